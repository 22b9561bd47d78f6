"""Common augmentation as an arm: mosaics of four training pictures.

Notable:

* As in YOLOv4 (Bochkovskiy et al., 2020), at the pictures' own scale: the four meet at a point drawn from the middle half of the picture,
  and of each the quadrant shows a part drawn at random.  Flips and quarter turns are the detector's own augmentation, of every arm.
* Objects are cut at the quadrants' edges by the shares of `ccdiff prepare` that the set was made with (below the lower one they are left
  out, and counted).  Where an oriented box would reach over the edge, into another picture, it is fitted to what of the object is inside,
  and counted, too.
* Picture k depends on (set, fraction, draw, k) alone.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..dataset import PictureSet, scene_record
from ..detectors import Progress
from ..files import content_key
from ..geometry import clip, corners_inside, hbb_corners, min_area_corners, outlines, polygon
from ..pictures import read_rgb
from ..prepare import PrepareOptions
from ..prepare.tiling import cut_scene
from ..scene import Instance, Scene
from .copy_paste import in_turn
from .made import Made, made_set

REVISION = 1
PARTS = 16
"""What the random stream is for."""
GREY = 114
"""Of a quadrant that its picture does not fill."""


def make_mosaics(
    out: Path, real: PictureSet, train: Sequence[Scene], count: int, *, draw: int = 0, progress: Progress | None = None
) -> PictureSet:
    """Write the first ``count`` mosaics as a set in a folder below ``out``, or read it where it is there already.

    Args:
        real: the set that ``train`` is of.

    Raises:
        CCDiffError: a picture does not decode.
    """
    said = [scene_record(s.replace(provenance={}, caption="")) for s in train]
    shares = shares_of(real.manifest)
    key = content_key([REVISION, real.key(), said, count, draw, *shares])
    sources = sorted({s.source for s in train})

    def details(scenes: list[Scene]) -> dict[str, Any]:
        cut = {name: sum(s.provenance[name] for s in scenes) for name in ("difficult", "fitted")}
        return {"made_from": {"set": real.key(), "sources": sources, "draw": draw}, **cut}

    return made_set(out / key, "mosaic", real.classes, count, lambda k: mosaic(k, train, draw, shares), details, progress)


def shares_of(manifest: Mapping[str, Any]) -> tuple[float, float]:
    """The least shares of an object's area inside a tile for which a set keeps it, and keeps it as difficult."""
    made, usual = manifest.get("prepare"), PrepareOptions()
    found = made.get("options") if isinstance(made, Mapping) else None
    found = found if isinstance(found, Mapping) else {}
    return float(found.get("keep_share", usual.keep_share)), float(found.get("difficult_share", usual.difficult_share))


def mosaic(k: int, train: Sequence[Scene], draw: int, shares: tuple[float, float]) -> Made:
    """Mosaic ``k``, in the size of its first picture: its labels, its pixels, and how many objects were cut off.

    Its provenance says how many are difficult for being cut, and how many oriented boxes were fitted.
    """
    rng = np.random.default_rng([draw, PARTS, k])
    first = in_turn(train, k, draw)
    four = [first, *(train[int(rng.integers(len(train)))] for _ in range(3))]
    width, height = first.width, first.height
    x, y = (round(side * (0.25 + 0.5 * rng.random())) for side in (width, height))
    pixels = np.full((height, width, 3), GREY, np.uint8)
    placed: list[Instance] = []
    cut_off = Counter[str]()
    happened = {"difficult": 0, "fitted": 0}
    quadrants = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    for scene, (x1, y1, x2, y2) in zip(four, quadrants, strict=True):
        size = x2 - x1, y2 - y1
        left, top = (int(rng.integers(max(0, side - part) + 1)) for side, part in zip((scene.width, scene.height), size, strict=True))
        part = read_rgb(str(scene.path)).crop((left, top, min(left + size[0], scene.width), min(top + size[1], scene.height)))
        pixels[y1 : y1 + part.height, x1 : x1 + part.width] = np.asarray(part)
        instances, counts = cut_scene(scene, (left, top), size, 1.0, keep=shares[0], difficult=shares[1])
        for instance in instances:
            inside = _fitted(instance, size)
            happened["fitted"] += inside is not instance
            placed.append(_shifted(inside, x1, y1))
        cut_off["cut off by a quadrant"] += counts["cut off"]
        happened["difficult"] += counts["kept as difficult"]
    made = Scene(
        f"{k:08d}.png", width, height, tuple(placed), split="train", source=first.source,
        provenance={"pictures": [scene.file_name for scene in four], "meet": [x, y], **happened},
    )  # fmt: skip
    return made, Image.fromarray(pixels), +cut_off


def _fitted(instance: Instance, size: tuple[int, int]) -> Instance:
    """The object with an oriented box inside a window of ``size``: around what of its own is inside, else its horizontal box."""
    window = (0.0, 0.0, float(size[0]), float(size[1]))
    if corners_inside(instance.corners, window, tolerance=0.5):
        return instance
    left = clip(polygon(instance.corners), window)
    rings = outlines(left)
    corners = min_area_corners(rings[0]) if rings else hbb_corners(instance.hbb)
    if not corners_inside(corners, window, tolerance=0.5):
        corners = hbb_corners(instance.hbb)
    return dataclasses.replace(instance, corners=corners)


def _shifted(instance: Instance, x: int, y: int) -> Instance:
    def moved(points: Sequence[float]) -> Any:
        return tuple(v + (y if k % 2 else x) for k, v in enumerate(points))

    return dataclasses.replace(
        instance, hbb=moved(instance.hbb), corners=moved(instance.corners), mask=tuple(moved(part) for part in instance.mask), extra={}
    )
