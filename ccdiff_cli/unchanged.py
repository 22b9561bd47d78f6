"""Are files still the ones whose hashes were written down when they were made?

Small sets are hashed whenever they are read.  Of larger ones, a file that has the size and the time it had when it was last hashed is
taken for unchanged: that memory lies in the user's cache folder (``seen/``), never in the set, so a set holds no times, and one that was
copied, however, is hashed once.  ``verify`` always hashes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from .console import tell
from .errors import CCDiffError
from .files import cache_folder, content_key, sha256_file, write_json
from .stored import Count, Digest, read_as

SMALL = 64_000_000
PER_FILE = 50_000
"""Bytes, counting each file as so many more, that are hashed without asking the memory: a fraction of a second."""
MANY, TELL_EVERY = 5_000, 500
"""Files that take so long that progress is told, and how often."""
_Memory = dict[str, tuple[Count, Annotated[int, Field(strict=True)], Digest]]


def listed(folder: str | Path) -> dict[str, os.stat_result]:
    """Name -> status of the plain files directly in a folder (links followed); {} where there is none."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        found[entry.name] = entry.stat()
                except OSError:  # a link in a circle
                    continue
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CCDiffError(f"cannot read the folder: {error.strerror or error}", where=folder) from error
    return found


def hashes_of(folder: str | Path, files: Mapping[str, os.stat_result], *, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of files of a folder, by their names in it, read only where size or time are not those of the memory.

    Args:
        known: hashes that are expected; a file whose hash is another one is never remembered.

    Raises:
        CCDiffError: a file cannot be read.
    """
    root = Path(folder)
    large = _large(files)
    place = cache_folder() / "seen" / f"{content_key(os.path.abspath(root))}.json"
    memory = _remembered(place) if large else {}
    found, fresh = {}, False
    for done, (name, status) in enumerate(files.items()):
        if len(files) >= MANY and done % TELL_EVERY == 0:
            tell("hashing files", done, len(files))
        seen = memory.get(name)
        if seen is not None and seen[:2] == (status.st_size, status.st_mtime_ns) and seen[2] == known.get(name):
            found[name] = seen[2]
        else:
            found[name] = sha256_file(os.path.join(root, name))
            fresh = True
    if len(files) >= MANY:
        tell("hashing files", len(files), len(files))
    if large and fresh:
        remember(folder, {n: s for n, s in files.items() if found[n] == known.get(n)}, found)
    return found


def remember(folder: str | Path, files: Mapping[str, os.stat_result], hashes: Mapping[str, str]) -> None:
    """Keep the sizes and times of files whose hashes are known; a cache that cannot be written is done without."""
    if not _large(files):
        return
    place = cache_folder() / "seen" / f"{content_key(os.path.abspath(folder))}.json"
    try:
        write_json(place, {n: [s.st_size, s.st_mtime_ns, hashes[n]] for n, s in files.items() if n in hashes})
    except CCDiffError:
        return


def _remembered(place: Path) -> _Memory:
    try:
        return read_as(_Memory, place)
    except CCDiffError:
        return {}


def _large(files: Mapping[str, os.stat_result]) -> bool:
    return sum(PER_FILE + status.st_size for status in files.values()) > SMALL
