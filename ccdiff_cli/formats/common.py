"""What the readers of annotation tools' formats share: where a named picture lies, what an outline is as an object, splits by folder.

* The path of a picture in an annotation file comes from another machine more often than not (``..\\\\x\\\\a.png``, ``/home/someone/a.png``,
  ``a%20b.png``).  Of the pictures below the set's folder the one that shares the longest end of that path is taken, then the one nearest to
  the annotation file; so nothing outside the folder is ever read, whatever the path says.
* An outline of four corners is the OBB itself, in its order; any other is a mask, its minimum-area rectangle the OBB.
* NOTE: picture names repeat in sets that count from 1 in each of their folders (FAIR1M's ``0.tif``): names are then paths below the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import CCDiffError
from ..geometry import bitmap_outlines, hbb_of, min_area_corners
from ..pictures import SUFFIXES
from ..scene import Instance, Scene
from .dota import tile_source
from .raw import LITTER_FOLDER, RawSet, is_file, is_litter, missing_picture, path_parts, read_split_lists

SPLIT_WORDS = {
    "train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
"""Name of a folder or subset, in lower case -> split."""
MAX_MASK_PIXELS, MAX_RUNS = 25_000_000, 100_000
"""The largest bitmap of one object that is unpacked, and the most runs of pixels in its rows."""
_OUTLINES = "outlines of more or fewer than four corners, with the minimum-area rectangle as OBB"


@dataclass(frozen=True)
class Labelled:
    """A picture that was found, with its objects; ``size`` as declared, (0, 0) where nothing is."""

    picture: Path
    instances: tuple[Instance, ...]
    size: tuple[int, int] = (0, 0)
    split: str = ""
    caption: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Pictures:
    """The pictures below a folder, each given out once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._taken: dict[Path, str] = {}
        for path in files_below(root, SUFFIXES):
            self._by_stem[path.stem.casefold()].append(path)

    def take(self, name: str, *, labels: Path, where: str) -> Path:
        """The picture that ``name`` (a path of any kind, of any machine) means in the annotation file ``labels``.

        Raises:
            MissingPicture: none has that name, with any extension.
            CCDiffError: several are as near; it was taken before.
        """
        ways = [parts for parts in path_parts(name) if parts] if "\x00" not in name else []
        parts, found = next(((parts, found) for parts in ways if (found := self._candidates(parts[-1]))), ([], []))
        if not found:
            raise missing_picture(name, where=where, looked=str(self.root))
        near = labels.parent.relative_to(self.root).parts if labels.is_relative_to(self.root) else ()
        ranked = [(_shared_end(parts[:-1], folder), _shared_end(near[::-1], folder[::-1]), path) for path in found
                  for folder in (path.relative_to(self.root).parts[:-1],)]  # fmt: skip
        best = max(rank[:2] for rank in ranked)
        chosen = [path for *rank, path in ranked if tuple(rank) == best]
        if len(chosen) > 1:
            fix = "keep one of them, or put each annotation file beside its picture"
            raise CCDiffError(f"the picture {name:.200} lies in {len(chosen)} places below the folder", where=where, fix=fix)
        if (other := self._taken.setdefault(chosen[0], where)) != where:
            raise CCDiffError(f"the picture {chosen[0].name} has labels in {other} too", where=where, fix="keep one of them")
        return chosen[0]

    def _candidates(self, name: str) -> list[Path]:
        """The files of that name, else of that name in another case, else with another extension."""
        stem = PurePosixPath(name).stem if PurePosixPath(name).suffix.lower() in SUFFIXES else name
        alike = [path for path in self._by_stem.get(stem.casefold(), []) if is_file(path)]
        for same in (lambda p: p.name == name, lambda p: p.name.casefold() == name.casefold(), lambda p: p.stem == stem, lambda p: True):
            if found := [path for path in alike if same(path)]:
                return found
        return []

    def forget(self, name: str, *, labels: Path) -> None:
        """The picture of annotations that are broken, which is counted already, is not left over as well."""
        with contextlib.suppress(CCDiffError):
            self.take(name, labels=labels, where=str(labels))

    def left(self) -> int:
        """How many pictures nothing asked for."""
        return sum(map(len, self._by_stem.values())) - len(self._taken)


def files_below(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files below a folder whose names end so (lower case), sorted; without the litter of macOS and Windows."""
    return sorted(_walk(root, tuple(suffixes)))


def first_files(root: Path, suffixes: Sequence[str], count: int) -> list[Path]:
    """The first of :func:`files_below`, those nearest to the top, to recognise a format by."""
    return list(islice(_walk(root, tuple(suffixes)), count)) if root.is_dir() else []


def _walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(d for d in folders if not d.startswith(".") and d != LITTER_FOLDER)
        if real not in seen:  # a link may lead to a folder above it
            yield from (Path(folder, n) for n in sorted(names) if n.lower().endswith(suffixes) and not is_litter(n))
        seen.add(real)


def read_tail(path: Path, size: int) -> bytes:
    """The last bytes of a file, to recognise a format by; none of what cannot be read or is no plain file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with open(path, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            return stream.read(size)
    except (OSError, ValueError):
        return b""


def _shared_end(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for left, right in zip(reversed(a), reversed(b), strict=False):
        if left != right:
            break
        count += 1
    return count


def split_of_folders(path: Path, root: Path) -> str:
    """The split that a folder between ``root`` and the file names; "" where none does."""
    names = path.relative_to(root).parts[:-1]
    return next((SPLIT_WORDS[name.lower()] for name in names if name.lower() in SPLIT_WORDS), "")


def add_scenes(raw: RawSet, root: Path, labelled: Iterable[Labelled]) -> None:
    """Scenes in the order of their names: plain ones where all differ, else paths below ``root``; splits of ``splits/*.txt`` where
    nothing else names one."""
    found = list(labelled)
    plain = len({item.picture.stem for item in found}) == len(found)
    scenes = []
    for item in found:
        name = item.picture.name if plain else item.picture.relative_to(root).as_posix()
        source = (PurePosixPath(name).parent / tile_source(PurePosixPath(name).stem)).as_posix()
        scenes.append(Scene(name, *item.size, item.instances, item.split, source, item.caption, str(item.picture), item.provenance))
    raw.scenes = sorted(scenes, key=lambda scene: scene.file_name)
    if (root / "splits").is_dir() and not any(scene.split for scene in scenes):
        stem = {scene.file_name: scene.file_name.rpartition(".")[0] or scene.file_name for scene in scenes}
        if lists := read_split_lists(root / "splits", list(stem.values())):
            raw.skipped["pictures in no split list"] += sum(stem[s.file_name] not in lists for s in scenes)
            raw.scenes = [s.replace(split=lists[stem[s.file_name]]) for s in raw.scenes if stem[s.file_name] in lists]


# ------------------------------------------------------------------------------------------------------------------------- objects


def of_outline(category: str, ring: Sequence[float], raw: RawSet, *, where: str, **more: Any) -> Instance:
    """The object of an outline x1 y1 x2 y2 ...; a last point that closes it is left out.

    Raises:
        CCDiffError: fewer than three points.
    """
    points = list(ring)
    if len(points) > 6 and points[:2] == points[-2:]:
        points = points[:-2]
    if len(points) < 6:
        raise CCDiffError(f"an outline of {len(points) // 2} points, expected at least 3", where=where)
    if len(points) == 8:
        return Instance.from_corners(category, points, **more)
    raw.notes[_OUTLINES] += 1
    return Instance.from_corners(category, min_area_corners(points), hbb_of(points), mask=(tuple(points),), **more)


def of_bitmap(category: str, bitmap: np.ndarray, offset: tuple[int, int], *, where: str, **more: Any) -> Instance:
    """The object of an (H, W) array of truth values whose first pixel lies at ``offset``; its outlines run along the pixels' edges.

    Raises:
        CCDiffError: no pixel is set, or more than ``MAX_RUNS`` runs of them.
    """
    runs = int(np.count_nonzero(bitmap[:, 1:] != bitmap[:, :-1])) // 2
    if runs > MAX_RUNS:
        raise CCDiffError(f"a mask of {runs:,} runs of pixels, more than {MAX_RUNS:,}", where=where, fix="store it as a polygon")
    rings = bitmap_outlines(bitmap, offset)
    points = [v for ring in rings for v in ring]
    if not points:
        raise CCDiffError("a mask without a single pixel", where=where)
    return Instance.from_corners(category, min_area_corners(points), hbb_of(points), mask=rings, **more)


def plain_value(value: Any) -> Any:
    """What can stand in ``extra``: texts, truth values, numbers, and lists and mappings of them; None for the rest."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


def declared(width: object, height: object) -> tuple[int, int]:
    """A declared size, (0, 0) where it is nonsense: `prepare` measures the picture."""
    try:
        size = int(float(str(width))), int(float(str(height)))
    except (ValueError, OverflowError):
        return 0, 0
    return size if all(0 < side < 1_000_000 for side in size) else (0, 0)
