"""Files that appear whole or not at all, hashes, and paths that stay under their root.

NOTE: every write of the program goes through :func:`atomic_write` (temporary name in the same folder, fsync, rename), so a
``kill -9`` or a full disk never leaves a half-written file under a final name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
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
        CCDiffError: the disk is full, the folder is read-only, ...; nothing is left behind then.
    """
    path = Path(path)
    temporary: str | None = None
    with os_errors(path, "write the file"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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


def write_bytes(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path, durable=durable) as stream:
        stream.write(data)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file's bytes, atomically and not durably; a reflink where the file system can, which shares no later change."""
    with os_errors(source, "read the file"), open(source, "rb") as reader, atomic_write(target, durable=False) as stream:
        if not _reflink(reader.fileno(), stream.fileno()):
            shutil.copyfileobj(reader, stream, 1 << 20)


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


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        CCDiffError: the file is missing, not UTF-8 or not JSON (with line and column).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CCDiffError("the file does not exist", where=path) from error
    except UnicodeDecodeError as error:
        raise CCDiffError(f"not UTF-8 text (byte {error.start})", where=path) from error
    except json.JSONDecodeError as error:
        raise CCDiffError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}") from error
    except RecursionError as error:
        raise CCDiffError("not valid JSON: nested too deeply", where=path) from error
    except OSError as error:
        raise CCDiffError(f"cannot read the file: {error.strerror or error}", where=path) from error


def is_file(path: str | Path) -> bool:
    """Whether there is a file; False of what no file can be called (names too long, with a null in them), or what may not be looked at."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with os_errors(path, "read the file"), open(path, "rb") as stream:
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
    if not name or "\x00" in name or os.path.isabs(name) or "\\" in name or ".." in Path(name).parts:
        raise UnsafeInput(f"the file name {name!r} leaves its folder", where=where, fix=f"name files relative to {root}")
    return root / name
