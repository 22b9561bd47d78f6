"""Sequences that are not in memory: :class:`Spooled`, of labels that lie in a temporary file, and :class:`Made`, of items made as they are
asked for.

Notable: a picture takes about a tenth of what it takes as Python objects, on disk and not in memory; to read one costs some 50
microseconds, in whatever order they are asked for.  The file lies in the system's folder of temporary files (``TMPDIR``) and goes with the
sequence; other processes read the same file as long as the one lives that laid it down.  On Linux it has no name there, so that nothing
stays of a process that is killed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Generic, TypeVar, overload

import numpy as np

from .errors import os_errors

Item = TypeVar("Item")


@dataclass
class _File:
    """Where the items lie: item k from ``ends[k]`` to ``ends[k + 1]``; ``tags``: one of each.

    Attributes:
        path: what this process and others open it by.
        held: of a file without a name, what it lives by.
    """

    path: str
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    tags: list[str] = field(default_factory=list)
    held: IO[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "held": None}  # for another process, which opens it by its path


class Spooled(Sequence[Item], Generic[Item]):
    """Items that lie in a file; a slice of them is in memory.

    Args:
        decode: of what lies there.
        numbers: which of the file's items these are, in this order.
    """

    def __init__(self, file: _File, decode: Callable[[bytes], Item], numbers: np.ndarray) -> None:
        self._file, self._decode, self._numbers = file, decode, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, k: int) -> Item: ...

    @overload
    def __getitem__(self, k: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, k: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(k, slice):
            return tuple(self._items(self._numbers[k]))
        return next(self._items(self._numbers[[k]]))

    def __iter__(self) -> Iterator[Item]:
        return self._items(self._numbers)

    def tagged(self, tag: str) -> Spooled[Item]:
        """Those with this tag."""
        return Spooled(self._file, self._decode, np.array([k for k in self._numbers.tolist() if self._file.tags[k] == tag], np.int64))

    def _items(self, numbers: np.ndarray) -> Iterator[Item]:
        with os_errors(self._file.path, "read the labels that were laid down there"), open(self._file.path, "rb") as file:
            for k in numbers.tolist():
                start, end = self._file.ends[k], self._file.ends[k + 1]
                file.seek(start)
                yield self._decode(zlib.decompress(file.read(end - start)))


class Made(Sequence[Item], Generic[Item]):
    """``count`` items, each made by its number whenever it is asked for; a slice of them is in memory."""

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._numbers, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, k: int) -> Item: ...

    @overload
    def __getitem__(self, k: slice) -> list[Item]: ...

    def __getitem__(self, k: int | slice) -> Item | list[Item]:
        if isinstance(k, slice):
            return [self._make(n) for n in self._numbers[k]]
        return self._make(self._numbers[k])


def spool(items: Iterable[tuple[str, Item]], encode: Callable[[Item], bytes], decode: Callable[[bytes], Item]) -> Spooled[Item]:
    """Lay items down as they come, each with its tag.

    Raises:
        CCDiffError: the disk is full.
    """
    folder = tempfile.gettempdir()
    with os_errors(folder, "make a temporary file"):
        made, file = _unnamed() if os.path.isdir("/proc/self/fd") else _named()
    for tag, item in items:
        data = zlib.compress(encode(item), 1)
        with os_errors(folder, "lay down labels (TMPDIR names another folder for them)"):
            file.write(data)
        made.ends.append(made.ends[-1] + len(data))
        made.tags.append(sys.intern(tag))
    with os_errors(folder, "lay down labels (TMPDIR names another folder for them)"):
        file.flush() if made.held else file.close()
    return Spooled(made, decode, np.arange(len(made.tags)))


def _unnamed() -> tuple[_File, IO[bytes]]:
    """A file that ends with this process, and what to write it by."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as it is needed
    return _File(f"/proc/{os.getpid()}/fd/{file.fileno()}", held=file), file


def _named() -> tuple[_File, IO[bytes]]:
    """The same where a file without a name cannot be opened again; a process that is killed leaves it."""
    file = tempfile.NamedTemporaryFile(prefix="ccdiff-labels-", delete=False)  # noqa: SIM115 - closed when it is written
    made = _File(file.name)
    weakref.finalize(made, _remove, file.name)
    return made, file


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
