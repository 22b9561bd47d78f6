"""Files that appear whole or not at all, hashes, and paths that stay under their root.

NOTE: every write of the program goes through :func:`atomic_write` (temporary name in the same folder, fsync, rename), so a
``kill -9`` or a full disk never leaves a half-written file under a final name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import CCDiffError, UnsafeInput, os_errors

TEMPORARY_PREFIX = ".partial-"


@contextlib.contextmanager
def atomic_write(path: str | Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary binary file that becomes ``path`` when the block ends without an error.

    Args:
        durable: wait until the bytes are on the disk. False is for the many small files of a set whose last file is durable and
            whose writer calls ``os.sync`` before it: a killed process loses nothing either way, only a power cut can.

    Raises:
        CCDiffError: the disk is full, the folder is read-only, what is there is no file, ...; nothing is left behind then.
    """
    path = Path(path)
    temporary: str | None = None
    with os_errors(path, "write the file"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_replaced(path)
            handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            raise


def _check_replaced(path: Path) -> None:
    """That nothing but a file (or a link) is replaced: to a user who may do all, /dev/null is a name like any other."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise CCDiffError("not a plain file: a folder, a pipe or a device", where=path, fix="name another file to write")


def write_bytes(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path, durable=durable) as stream:
        stream.write(data)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file's bytes, atomically and not durably; a reflink where the file system can, which shares no later change."""
    with os_errors(source, "read the file"), open(source, "rb") as reader, atomic_write(target, durable=False) as stream:
        if not _reflink(reader.fileno(), stream.fileno()):
            shutil.copyfileobj(reader, stream, 1 << 20)


def take_up(out: Path) -> None:
    """Make an output folder, or take it up again: what a killed run left half written is removed.

    Raises:
        CCDiffError: it is a file, or cannot be made.
    """
    with os_errors(out, "make the output folder"):
        if out.exists() and not out.is_dir():
            raise CCDiffError("the output is a file, not a folder", where=out, fix="choose another output folder")
        out.mkdir(parents=True, exist_ok=True)
        clear_partials(out)


def clear_partials(out: Path) -> None:
    """Remove what a killed process left half written below a folder."""
    for partial in sorted(out.rglob(f"{TEMPORARY_PREFIX}*"), reverse=True):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


_FICLONE = 0x40049409
"""Linux's request to share a file's blocks until one side is written (btrfs, XFS, ...)."""


def _reflink(source: int, target: int) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def link_file(source: str | Path, target: str | Path) -> bool:
    """Make ``target`` a second name of a file, or a copy where that cannot be; returns whether the two are one file.

    NOTE: whoever writes into one of them changes both.
    """
    target = Path(target)
    with os_errors(target, "link the file"):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            os.link(Path(source).resolve(), partial)
        except OSError:  # another file system, or one without links
            copy_file(source, target)
            return False
        os.replace(partial, target)
        return True


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 with ``\\n`` line ends, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically and the same bytes for the same value."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


MAX_BYTES = 2_000_000_000
"""The largest file that is read whole: a sparse one may claim more than the memory holds."""


def read_bytes(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """A file's bytes.

    Raises:
        CCDiffError: missing (also a link to nowhere), a folder or a pipe, larger than ``limit``, not to be read.
    """
    path = Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CCDiffError("not a plain file: a folder, a pipe or a device", where=path, fix="take it out of the folder")
        if found.st_size > limit:
            raise CCDiffError(f"the file has {found.st_size:,} bytes; at most {limit:,} are read", where=path, fix="split it")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CCDiffError("the file does not exist", where=path) from error
    except (OSError, ValueError) as error:  # a name with a null byte
        raise CCDiffError(f"cannot read the file: {getattr(error, 'strerror', None) or error}", where=path) from error


_ODD = re.compile(rb"\\u[dD][89a-fA-F]|[0-9.][eE]\+?[0-9]{3}")
"""Half a surrogate pair, perhaps, or a number too large for a float."""


def parse_json(data: bytes, *, where: str | Path, careful: bool = True, constants: bool = False) -> Any:
    """The value of a JSON text: finite numbers, whole characters, every key once.

    Args:
        constants: whether ``NaN`` and ``Infinity`` pass: diffusers writes them into configurations.
        careful: look for repeated keys, half surrogate pairs and 1e999 too, which costs more than the parsing; without it, the caller does.

    Raises:
        CCDiffError: not UTF-8, not JSON (with line and column), ``NaN``, ``Infinity`` or 1e999, a number of thousands of digits, half a
            surrogate pair, a repeated key, nested too deeply.
    """
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=None if constants else _no_constant, object_pairs_hook=_unique_keys if careful else None)
        if careful and _ODD.search(data):
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        return value
    except UnicodeDecodeError as error:
        raise CCDiffError(f"not UTF-8 text (byte {error.start})", where=where) from error
    except json.JSONDecodeError as error:
        raise CCDiffError(f"not valid JSON: {error.msg}", where=f"{where}:{error.lineno}:{error.colno}") from error
    except UnicodeEncodeError as error:
        raise CCDiffError("not valid JSON: half a surrogate pair in a text", where=where) from error
    except RecursionError as error:
        raise CCDiffError("not valid JSON: nested too deeply", where=where) from error
    except ValueError as error:
        what = "a number of thousands of digits" if "digits" in str(error) else str(error)
        raise CCDiffError(f"not valid JSON: {what}", where=where) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return made


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        CCDiffError: see :func:`read_bytes` and :func:`parse_json`.
    """
    return parse_json(read_bytes(path), where=path)


def open_file(path: str | Path) -> IO[bytes]:
    """A file, opened for reading; never waits, as opening a pipe that nobody writes into would.

    Raises:
        OSError: as ``open``; also for folders, pipes and devices.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a file", str(path))
    return os.fdopen(handle, "rb")


def is_file(path: str | Path) -> bool:
    """Whether there is a file; False of what no file can be called (names too long, with a null in them), or what may not be looked at."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with os_errors(path, "read the file"), open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: IO[bytes]) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def content_key(value: Any) -> str:
    """A stable 16-digit key of a JSON-able value: what caches are filed under."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def inside(root: str | Path, name: str, *, where: str | Path) -> Path:
    """``root / name``, refused when ``name`` is absolute or climbs out of ``root``.

    Raises:
        UnsafeInput: naming ``where`` (the annotation file the name was read from).
    """
    root = Path(root)
    if not name or "\x00" in name or os.path.isabs(name) or "\\" in name or ".." in name.split("/"):
        raise UnsafeInput(f"the file name {name!r} leaves its folder", where=where, fix=f"name files relative to {root}")
    return root / name


def cache_folder() -> Path:
    """Where things worth keeping between runs are kept: ``$CCDIFF_CACHE``, else the user's cache folder, else one for temporary files."""
    if named := os.environ.get("CCDIFF_CACHE"):
        return Path(named)
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "ccdiff"
    try:
        return Path.home() / ".cache" / "ccdiff"
    except RuntimeError:  # no HOME, and a user whom the system does not know
        return Path(tempfile.gettempdir()) / "ccdiff-cache"
