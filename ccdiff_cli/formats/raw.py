"""RawSet: what every reader returns, and the small helpers readers share.

A reader keeps every object it can make sense of and counts the rest under a reason, in three ranks: ``RawSet.changes`` (what altered a
label), ``RawSet.skipped`` (what is left out) and ``RawSet.notes``.  What is broken raises :class:`CCDiffError` with file and line inside
``with faults.leaving_out("objects")``, which lets it through or leaves the broken thing out, see :class:`Faults`.  Pictures are not
decoded by readers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dataset import SPLITS
from ..errors import CCDiffError, UnsafeInput
from ..pictures import SUFFIXES
from ..scene import ClassList, Scene

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass
class RawSet:
    """A raw data set in memory.

    Attributes:
        format: the reader's name.
        classes: the frozen class list.
        scenes: in a stable order; ``path`` set; ``split`` is "" where the source names none; ``width`` and ``height`` are what the
            source declares, 0 where it declares nothing.
        skipped: reason -> count of what the reader left out.
        notes: reason -> count of what it matched or took for granted.
        changes: reason -> count of what it altered in a label or a split.
        places: reason (of any rank) -> the first places it was found at, as ``{"where": "a.txt:3", "what": "..."}``.
    """

    format: str
    classes: ClassList
    scenes: list[Scene]
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[dict[str, str]]] = field(default_factory=dict)


class MissingPicture(CCDiffError):
    """Labels whose picture is not there, see :func:`missing_picture`."""


class UnknownClass(CCDiffError):
    """A class that the class list does not know."""


def missing_picture(name: str, *, where: str | Path, looked: str | None = None) -> MissingPicture:
    """The error of a picture that is not there: the same message, and counted alike, in every format."""
    among = f" from {looked}" if looked else ""
    return MissingPicture(f"the picture {name:.200} is missing{among}", where=where, fix="restore it, or remove its labels")


PLACES = 20
"""The first places of each reason are kept; all are counted."""
RARE = 0.01
"""An unknown class of a larger share of the objects is no slip of the pen, but missing from the class list."""
FEW = 10
"""Of fewer things it takes all, of more than half of them, to be broken for the set not to be what its format says."""
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w.])[-+]?\d[\d.,e+-]*")


class Faults:
    """What is broken in a set's labels: an error at once (``strict``), else left out, counted by reason, its first places kept.

    Readers wrap the smallest thing that can be left out alone, the innermost block catches::

        for path in files:
            with faults.leaving_out("files"):
                for line in ...:
                    with faults.leaving_out("lines"):
                        instances.append(...)

    :class:`UnsafeInput` passes through in any mode.  Errors that concern the whole set are raised outside any block.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[dict[str, str]]] = {}
        self._tried: Counter[str] = Counter()
        self._broken: dict[str, list[CCDiffError]] = {}
        self._unknown: dict[str, tuple[str, CCDiffError]] = {}
        self._broken_count: Counter[str] = Counter()

    @contextmanager
    def leaving_out(self, kind: str) -> Iterator[None]:
        """Leave the ``kind`` ("objects", "lines", "files", "pictures": a plural) read in this block out if it is broken."""
        self._tried[kind] += 1
        try:
            yield
        except UnsafeInput:
            raise
        except CCDiffError as error:
            if self.strict:
                raise
            self._record(kind, error)

    def _record(self, kind: str, error: CCDiffError) -> None:
        if isinstance(error, MissingPicture):
            reason = "pictures that are missing"
        elif isinstance(error, UnknownClass):
            reason = f"{kind} of the {error.what}"
            self._unknown.setdefault(reason, (kind, error))
        else:
            reason = f"broken {kind}: {_VALUES.sub('...', error.what):.120}"
            self._broken_count[kind] += 1
            first = self._broken.setdefault(kind, [])
            if len(first) < 3:
                first.append(error)
        self.counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES:
            places.append({"where": error.where or "", "what": error.what})

    def check(self) -> None:
        """That what was left out is the exception.

        Raises:
            CCDiffError: most of a kind is broken, naming the first; a class that the class list lacks is no rarity.
        """
        for kind, errors in self._broken.items():
            tried, broken = self._tried[kind], self._broken_count[kind]
            if broken == tried or (tried >= FEW and 2 * broken > tried):
                others = "".join(f"; {e.where or 'another'}: {e.what}" for e in errors[1:])
                more = f" ({broken:,} of {tried:,} {kind} are broken{others})" if broken > 1 else ""
                fix = errors[0].fix or "correct them, or name the format of the folder yourself (--format)"
                raise CCDiffError(f"{errors[0].what}{more}", where=errors[0].where, fix=fix)
        for reason, (kind, error) in self._unknown.items():
            if self.counts[reason] > RARE * self._tried[kind]:
                many = f" ({self.counts[reason]:,} of {self._tried[kind]:,} {kind})" if self.counts[reason] > 1 else ""
                raise CCDiffError(f"{error.what}{many}", where=error.where, fix=error.fix)


MAX_LABEL_BYTES = 2_000_000_000
"""The largest label file that is read at all: a sparse file may claim more than the memory holds."""


def is_file(path: Path) -> bool:
    """``path.is_file()``, but False too for a name that the file system cannot hold."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, limit: int = MAX_LABEL_BYTES) -> bytes:
    """A label file's bytes.

    Raises:
        CCDiffError: missing, not a plain file (a pipe would wait for ever), larger than ``limit``.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CCDiffError("not a plain file", where=path, fix="take it out of the folder")
        if found.st_size > limit:
            raise CCDiffError(f"the file has {found.st_size:,} bytes; at most {limit:,} are read", where=path, fix="split the set")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CCDiffError("the label file does not exist", where=path) from error
    except OSError as error:
        raise CCDiffError(f"cannot read the file: {error.strerror or error}", where=path) from error


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a file, to recognise a format by; none of what is missing, cannot be read or is no plain file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with open(path, "rb") as stream:
            return stream.read(size)
    except (OSError, ValueError):
        return b""


def read_text(path: Path) -> str:
    """A label file as text.

    Raises:
        CCDiffError: see :func:`read_bytes`; not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CCDiffError(f"not UTF-8 text (byte {error.start})", where=path, fix="save the file as UTF-8") from error


def parse_json(text: str, *, where: str | Path) -> Any:
    """The value of a JSON text.  ``NaN`` and ``Infinity`` pass, as in the standard library: numbers are checked where they are used.

    Raises:
        CCDiffError: not JSON, nested too deeply, a number of thousands of digits, half a surrogate pair (which no file can hold).
    """
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        raise CCDiffError(f"not valid JSON: {error.msg} at column {error.colno}", where=_at_line(where, error.lineno)) from error
    except UnicodeEncodeError as error:
        raise CCDiffError("not valid JSON: half a surrogate pair in a text", where=where) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CCDiffError(f"not valid JSON: {what}", where=where) from error


def _at_line(where: str | Path, line: int) -> str:
    return f"{where}:{line}" if isinstance(where, Path) else where


def number(text: object, *, where: str, what: str) -> float:
    """A finite number.

    Raises:
        CCDiffError: naming what was found.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise CCDiffError(f"{what}: expected a number, found {str(text)[:40]!r}", where=where) from None
    if not math.isfinite(value) or abs(value) > 1e9:
        raise CCDiffError(f"{what}: expected a finite number of pixels, found {str(text)[:40]!r}", where=where)
    return value


def find_pictures(folders: Sequence[Path]) -> dict[str, Path]:
    """Stem -> picture file of some folders (not their subfolders).

    Raises:
        CCDiffError: two pictures share a stem.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                if path.stem in found:
                    raise CCDiffError(f"two pictures are called {path.stem!r}: {found[path.stem]} and {path}", where=folder)
                found[path.stem] = path
    return found


def read_split_lists(folder: Path, known: Sequence[str], *, names: Sequence[str] = SPLITS) -> dict[str, str]:
    """Picture id -> split, from ``train.txt``, ``val.txt`` and ``test.txt`` of ``folder``; {} where it has none of them.

    A line is a picture's stem or file name (an extension is ignored).

    Raises:
        CCDiffError: an id that no picture has, or one that stands in two lists.
    """
    ids = set(known)
    split_of: dict[str, str] = {}
    for split in names:
        path = folder / f"{split}.txt"
        if not path.is_file():
            continue
        for line_number, line in enumerate(read_text(path).splitlines(), start=1):
            text = line.strip()
            if not text:
                continue
            where = f"{path}:{line_number}"
            picture = text if text in ids else text.rpartition(".")[0] or text
            if picture not in ids:
                raise CCDiffError(
                    f"no picture is called {text!r}", where=where, fix="take the line out, or restore the picture and its labels"
                )
            if split_of.setdefault(picture, split) != split:
                raise CCDiffError(
                    f"{text!r} stands in two lists, {split_of[picture]} and {split}", where=where, fix="leave it in one of them"
                )
    return split_of


def seeded_splits(sources: Sequence[str], seed: int, shares: Sequence[float] = (0.7, 0.1, 0.2)) -> dict[str, str]:
    """Source -> split, drawn by source so that pictures that share one stay together; depends on the names and the seed alone."""
    ordered = sorted(set(sources), key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).digest())
    n = len(ordered)
    test = round(n * shares[2])
    val = round(n * shares[1])
    train = n - val - test
    cut = [train, train + val]
    return {s: "train" if k < cut[0] else "val" if k < cut[1] else "test" for k, s in enumerate(ordered)}
