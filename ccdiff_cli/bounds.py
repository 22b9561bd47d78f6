"""What a run may take: memory and disk of this machine, held against what a plan will need before anything is made.

Notable here:

* Needs are estimates, good to a third or so, so a run is refused only when it needs clearly more than there is (``MARGIN``); the plan
  names the figure in any case.
* Free memory is what the kernel would give without swapping, what the process's own limit (``ulimit -v``) and its cgroup (a container)
  leave, whichever is least.
* ``MOST_OBJECTS`` bounds the objects of one picture wherever layouts are planned, trained on or drawn: what one step does with them grows
  with their square.  Reading, cutting, exporting and testing have no such bound.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from .errors import CCDiffError
from .scene import Scene

MARGIN = 1.3
MOST_OBJECTS = 20_000


def free_memory() -> int | None:
    """Bytes that this process can still take; None where the system does not say."""
    found = [n for n in (_available(), _within_limit(), _within_group()) if n is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _within_limit() -> int | None:
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most == resource.RLIM_INFINITY:
            return None
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        return max(0, most - used)
    except (ImportError, OSError, ValueError, IndexError):
        return None


def _within_group() -> int | None:
    group = Path("/sys/fs/cgroup")
    for most, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            limit = int((group / most).read_text(encoding="ascii"))
            if limit < 1 << 60:  # larger ones say: none
                return max(0, limit - int((group / used).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return None


def check_memory(need: float, doing: str, *, where: str | Path | None = None, fix: str) -> None:
    """Raise CCDiffError where ``need`` bytes are clearly more than this machine has left."""
    free = free_memory()
    if free is not None and need > MARGIN * free:
        raise CCDiffError(f"{doing} takes about {amount(need)} of memory; {amount(free)} are free", where=where, fix=fix)


def check_disk(folder: str | Path, need: float, doing: str, *, fix: str) -> None:
    """Raise CCDiffError where ``need`` bytes are clearly more than the file system of a folder (which need not exist yet) has left."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return
    if need > MARGIN * free:
        raise CCDiffError(f"{doing} takes about {amount(need)} of disk; {amount(free)} are free", where=folder, fix=fix)


def check_crowded(scenes: Iterable[Scene], *, where: str | Path) -> None:
    """Raise CCDiffError where a picture has more than ``MOST_OBJECTS`` objects."""
    for scene in scenes:
        if len(scene.instances) > MOST_OBJECTS:
            raise CCDiffError(
                f"{scene.file_name} has {len(scene.instances):,} objects; at most {MOST_OBJECTS:,} in a picture can be learned or drawn",
                where=where,
                fix="prepare the set in tiles (--tile), or leave the picture out of the split lists",
            )


def amount(count: float) -> str:
    """Bytes for people: "3.1 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB" if count < 1000 else f"{count / 1000:.3g} PB"
