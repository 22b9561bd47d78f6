"""The same picture, or pieces of one scene, in several splits: what is measured on one would have been seen in the other.

Pictures are the same where their files are, byte for byte, or where they decode to the same pixels (another format, other metadata).
Pictures that only look alike are ``inspect``'s to find; those that show nothing (one colour: the rims of scenes) are not compared.

* Of pictures with the same size in two splits the pixels are hashed; of a JPEG among JPEGs those of an eighth of its size, which costs a
  fifth of the time.  Pictures of more than 32 million pixels are compared by their bytes alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import CCDiffError
from ..pictures import AS_STORED, Reading, UnreadablePicture, is_flat, open_picture, read_rgb
from ..scene import Scene
from .windows import WHOLE

KEEP, DROP, MOVE, REFUSE = "keep", "drop", "move", "refuse"
STRICTEST = ("test", "val", "train")
"""Where a picture belongs that stands in several splits: nothing that is tested on is trained on."""
_JPEG = (".jpg", ".jpeg")
Map = Callable[[Callable[..., Any], Sequence[Any], str], Iterable[Any]]


class Ledger(Protocol):
    """Where it is counted what became of leaks."""

    skipped: Counter[str]
    notes: Counter[str]

    def change(self, what: str, where: str, detail: str = "", count: int = 1) -> None: ...


def settle_leaks(
    scenes: list[Scene], hashes: Mapping[str, str], how: str | None, ledger: Ledger, mapped: Map, *, drawn: Collection[str] = ()
) -> list[Scene]:
    """The scenes after what ``how`` says was done about those that leak; what it was is counted in the ledger.

    Copies that only a split drawn by us would part stay together, whatever ``how`` says.

    Args:
        scenes: with their splits.
        hashes: file name -> SHA-256 of the file.
        how: keep, drop, move or refuse; None keeps copies and says so (sources in two splits were refused before).
        mapped: maps a function over processes, with the name of a stage.
        drawn: sources whose split was drawn by the seed.

    Raises:
        CCDiffError: ``refuse``, naming the first pair.
    """
    copies = _copies(scenes, hashes, mapped)
    scenes = _kept_together(scenes, copies, drawn, ledger)
    copies = [group for group in copies if len({scenes[k].split for k in group}) > 1]
    if copies:
        one, other = _first_pair(scenes, copies[0])
        count = sum(map(len, copies))
        if how == REFUSE:
            raise CCDiffError(
                f"the same picture stands in several splits: {one} and {other} ({count} pictures in all)",
                fix="take the copies out, or let --leaks move or drop them",
            )
        if how in (None, KEEP):
            ledger.change("the same picture in several splits, kept (--leaks drop, move or refuse)", one, f"the same as {other}", count)
    if how not in (DROP, MOVE):
        return scenes
    groups = _joined(len(scenes), [*copies, *_by(scenes, lambda s: s.source).values()])
    split_of = {k: min((scenes[m].split for m in group), key=STRICTEST.index) for group in groups for k in group}
    leaking = [k for k, split in sorted(split_of.items()) if scenes[k].split != split]
    if how == DROP:
        ledger.skipped["pictures that stand in a stricter split, too, or whose scene does"] += len(leaking)
        gone = set(leaking)
        return [s for k, s in enumerate(scenes) if k not in gone]
    moved = Counter((scenes[k].split, split_of[k]) for k in leaking)
    for (old, new), count in sorted(moved.items()):
        first = next(scenes[k].file_name for k in leaking if (scenes[k].split, split_of[k]) == (old, new))
        ledger.change(f"pictures moved from {old} to {new}, where a copy or another piece of their scene is", first, "", count)
    return [s.replace(split=split_of.get(k, s.split)) for k, s in enumerate(scenes)]


def _kept_together(scenes: list[Scene], copies: Sequence[Sequence[int]], drawn: Collection[str], ledger: Ledger) -> list[Scene]:
    """The scenes with pictures whose split was drawn, and the pieces of their scenes, where a copy of them is.

    That is the strictest split that somebody gave to one of them, else the one drawn for the first.
    """
    given = list(scenes)
    for group in _joined(len(scenes), [*copies, *_by(scenes, lambda s: s.source).values()]):
        free = [k for k in group if scenes[k].source in drawn]
        fixed = [scenes[k].split for k in group if scenes[k].source not in drawn]
        if not free:
            continue
        split = min(fixed, key=STRICTEST.index) if fixed else scenes[group[0]].split
        parted = [k for k in free if scenes[k].split != split]
        ledger.notes["pictures put into the split of their copies (the same picture), which the seed would have parted"] += len(parted)
        for k in parted:
            given[k] = scenes[k].replace(split=split)
    ledger.notes = +ledger.notes
    return given


def _copies(scenes: Sequence[Scene], hashes: Mapping[str, str], mapped: Map) -> list[list[int]]:
    """Groups of pictures that are the same."""
    by_bytes = [group for group in _by(scenes, lambda s: hashes[s.file_name]).values() if len(group) > 1]
    sizes = _by(scenes, lambda s: (s.width, s.height))
    near = [g for g in sizes.values() if len({scenes[k].split for k in g}) > 1 and scenes[g[0]].width * scenes[g[0]].height <= WHOLE]
    asked: list[tuple[str, Reading, bool]] = []
    order: list[int] = []
    for group in near:
        readings = [scenes[k].reading or AS_STORED for k in group]
        reduced = all(Path(str(scenes[k].path)).suffix.lower() in _JPEG and r == AS_STORED for k, r in zip(group, readings, strict=True))
        asked += [(str(scenes[k].path), reading, reduced) for k, reading in zip(group, readings, strict=True)]
        order += group
    by_pixels: dict[str, list[int]] = defaultdict(list)
    if order:
        for k, digest in zip(order, mapped(_pixel_hash, asked, "comparing pictures"), strict=True):
            if digest:
                by_pixels[digest].append(k)
    groups = _joined(len(scenes), [*by_bytes, *(g for g in by_pixels.values() if len(g) > 1)])
    first = [scenes[group[0]] for group in groups]
    plain = mapped(_shows_nothing, [(str(s.path), s.reading, s.width * s.height) for s in first], "comparing pictures") if first else ()
    return [group for group, nothing in zip(groups, plain, strict=True) if not nothing]


def _shows_nothing(asked: tuple[str, Reading | None, int]) -> bool:
    """Whether a picture has no contrast: the black rims of two scenes are no copies of one another."""
    path, reading, pixels = asked
    try:
        return pixels <= WHOLE and is_flat(read_rgb(path, reading))
    except UnreadablePicture:
        return False


def _pixel_hash(asked: tuple[str, Reading, bool]) -> str:
    """A hash of size and pixels as they are read, "" where they do not decode (which is said when the picture is prepared)."""
    path, reading, reduced = asked
    try:
        if reduced:
            with open_picture(path) as image:
                size = image.size
                image.draft("RGB", (max(1, size[0] // 8), max(1, size[1] // 8)))
                data = image.convert("RGB").tobytes()
        else:
            picture = read_rgb(path, reading)
            size, data = picture.size, picture.tobytes()
    except UnreadablePicture:
        return ""
    return hashlib.sha256(f"{size}:".encode() + data).hexdigest()


def _by(scenes: Sequence[Scene], key: Callable[[Scene], Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = defaultdict(list)
    for k, scene in enumerate(scenes):
        groups[key(scene)].append(k)
    return groups


def _joined(count: int, groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Groups that share a member become one; sorted."""
    first = list(range(count))

    def root(k: int) -> int:
        while first[k] != k:
            first[k] = first[first[k]]
            k = first[k]
        return k

    for group in groups:
        for k in group[1:]:
            a, b = sorted((root(group[0]), root(k)))
            first[b] = a
    found: dict[int, list[int]] = defaultdict(list)
    for k in range(count):
        found[root(k)].append(k)
    return [members for members in found.values() if len(members) > 1]


def _first_pair(scenes: Sequence[Scene], group: Sequence[int]) -> tuple[str, str]:
    one = scenes[group[0]]
    other = next(scenes[k] for k in group if scenes[k].split != one.split)
    return f"{one.file_name} ({one.split})", f"{other.file_name} ({other.split})"
