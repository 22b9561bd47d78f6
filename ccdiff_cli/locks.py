"""One run at a time on a folder: the lock of every verb that writes.

The operating system gives a lock back when its holder ends in any way, so a lock is never stale: the file that a killed run leaves behind
holds nobody up, it only says whose it was.  Where there are no such locks (Windows; a network file system without them) a second run is
not noticed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .errors import CCDiffError, os_errors

LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system without locks answers."""
READ_ONLY = {errno.EACCES, errno.EROFS, errno.EPERM}
"""Nobody writes there: a finished folder may still be asked for what it holds."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def locked(verb: str, *, whole: bool = False, also: str | None = None) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A function that holds the lock of its argument ``out`` while it runs, unless its ``dry_run`` is true.

    Args:
        verb: what the lock says.
        whole: ``out`` is a file, or a folder that appears as a whole: the lock lies beside it.
        also: an argument, or a field of one (``options.share``), that names one more folder it writes, or None.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = signature.bind(*args, **kwargs).arguments
            folders = [Path(given["out"])]
            if also is not None:
                argument, *fields = also.split(".")
                other = functools.reduce(lambda value, name: getattr(value, name, None), fields, given.get(argument))
                folders += [Path(other)] if other is not None else []
            with contextlib.ExitStack() as stack:
                if not given.get("dry_run") and os.environ.get("RANK", "0") == "0":  # of several processes, the first holds it
                    for folder in {f.resolve(): f for f in reversed(folders)}.values():
                        stack.enter_context((file_lock if whole else folder_lock)(folder, verb))
                return function(*args, **kwargs)

        return run

    return decorate


@contextlib.contextmanager
def folder_lock(out: str | Path, verb: str) -> Iterator[None]:
    """Hold the folder that a verb writes; it is made where it is missing, and removed again where nothing came into it.

    Args:
        out: the folder.
        verb: who asks: "prepare".

    Raises:
        CCDiffError: another run holds it (naming its process, host and verb); it cannot be made.
    """
    out = Path(out)
    with _made(out), hold(out / LOCK, out, verb):
        yield


@contextlib.contextmanager
def file_lock(out: str | Path, verb: str) -> Iterator[None]:
    """The same for one file, or a folder that appears as a whole: the lock lies beside it."""
    out = Path(os.path.abspath(out))
    with _made(out.parent), hold(out.with_name(f"{LOCK}-{out.name}"[:200]), out, verb):
        yield


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    missing = []
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            break
        missing.append(path)
    with os_errors(folder, "make the folder"):
        if folder.exists() and not folder.is_dir():
            raise CCDiffError("the output is a file, not a folder", where=folder, fix="choose another output folder")
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # there is something in it: it stays
                path.rmdir()


@contextlib.contextmanager
def hold(path: Path, out: Path, verb: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock file; removed afterwards unless others may share or await it.

    Raises:
        CCDiffError: somebody else holds it; the file is a link, or no file: it came with somebody's folder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno not in READ_ONLY:
            what = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise CCDiffError(f"cannot lock the folder: {what}", where=path, fix="remove the file, it came with the folder") from error
        yield
        return
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise CCDiffError("this is no lock of ours but another file's name", where=path, fix="remove it")
        locked = True
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise _taken(handle, out) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise CCDiffError(f"cannot lock the folder: {error.strerror}", where=path) from error
            locked = False
        if locked and not _is(handle, path):  # its last holder has just removed it
            raise _taken(handle, out)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "verb": verb}).encode("ascii"), 0)
        try:
            yield
        finally:
            if not shared and not wait:
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        os.close(handle)


def _is(handle: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.fstat(handle).st_ino == path.lstat().st_ino
    return False


def _taken(handle: int, out: Path) -> CCDiffError:
    holder: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        holder = json.loads(os.pread(handle, 1000, 0))
    if not isinstance(holder, dict):
        holder = {}
    process, host, verb = (str(holder.get(key, "unknown"))[:80] for key in ("process", "host", "verb"))
    return CCDiffError(
        f"another run is working on this folder (process {process} on {host}: ccdiff {verb})",
        where=out,
        fix="wait until it is done, or choose another --out folder",
    )
