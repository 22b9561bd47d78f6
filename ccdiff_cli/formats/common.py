"""What the readers of annotation tools' formats share: what an outline is as an object, splits by folder.

* The path of a picture in an annotation file comes from another machine more often than not (``..\\\\x\\\\a.png``, ``/home/someone/a.png``,
  ``a%20b.png``).  Of the pictures below the set's folder the one that shares the longest end of that path is taken, then the one nearest to
  the annotation file; so nothing outside the folder is ever read, whatever the path says.
* An outline of four corners is the OBB itself, in its order; any other is a mask, its minimum-area rectangle the OBB.
* NOTE: picture names repeat in sets that count from 1 in each of their folders (FAIR1M's ``0.tif``): names are then paths below the folder.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import CCDiffError
from ..geometry import bitmap_outlines, hbb_of, min_area_corners
from ..scene import Instance, Scene
from .dota import tile_source
from .raw import SPLIT_WORDS, RawSet, read_split_lists

ELLIPSE_POINTS = 32
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


def ellipse_outline(centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> tuple[float, ...]:
    """Points of an ellipse, its first axis turned (radians, from the x axis towards the y axis)."""
    cos, sin = math.cos(turn), math.sin(turn)
    angles = [2 * math.pi * k / ELLIPSE_POINTS for k in range(ELLIPSE_POINTS)]
    round_it = [(radii[0] * math.cos(a), radii[1] * math.sin(a)) for a in angles]
    return tuple(v for x, y in round_it for v in (centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos))


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
