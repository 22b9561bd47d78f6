"""Common augmentation as an arm: mosaics of four training pictures.

Notable:

* As in YOLOv4 (Bochkovskiy et al., 2020), at the pictures' own scale: the four meet at a point drawn from the middle half of the picture,
  and of each the quadrant shows a part drawn at random.  Flips and quarter turns are the detector's own augmentation, of every arm.
* Objects are cut at the quadrants' edges by the rule of `ccdiff prepare` (below a share of their area they are left out, and counted).
* Picture k depends on (set, fraction, draw, k) alone.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..dataset import PictureSet, scene_record
from ..detectors import Progress
from ..files import content_key
from ..pictures import read_rgb
from ..prepare import PrepareOptions
from ..prepare.tiling import cut_scene
from ..scene import Instance, Scene
from .copy_paste import in_turn
from .made import Made, made_set

REVISION = 1
PARTS = 16
"""What the random stream is for."""
RULE = PrepareOptions()
"""What of an object must be in a quadrant, as where tiles are cut."""
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
    key = content_key([REVISION, real.key(), said, count, draw])
    sources = sorted({s.source for s in train})

    def details(scenes: list[Scene]) -> dict[str, Any]:
        return {"made_from": {"set": real.key(), "sources": sources, "draw": draw}}

    return made_set(out / key, "mosaic", real.classes, count, lambda k: mosaic(k, train, draw), details, progress)


def mosaic(k: int, train: Sequence[Scene], draw: int) -> Made:
    """Mosaic ``k``, in the size of its first picture: its labels, its pixels, and what was cut off or is difficult, by number."""
    rng = np.random.default_rng([draw, PARTS, k])
    first = in_turn(train, k, draw)
    four = [first, *(train[int(rng.integers(len(train)))] for _ in range(3))]
    width, height = first.width, first.height
    x, y = (round(side * (0.25 + 0.5 * rng.random())) for side in (width, height))
    pixels = np.full((height, width, 3), GREY, np.uint8)
    placed: list[Instance] = []
    happened = Counter[str]()
    quadrants = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    for scene, (x1, y1, x2, y2) in zip(four, quadrants, strict=True):
        size = x2 - x1, y2 - y1
        left, top = (int(rng.integers(max(0, side - part) + 1)) for side, part in zip((scene.width, scene.height), size, strict=True))
        part = read_rgb(str(scene.path)).crop((left, top, min(left + size[0], scene.width), min(top + size[1], scene.height)))
        pixels[y1 : y1 + part.height, x1 : x1 + part.width] = np.asarray(part)
        instances, counts = cut_scene(scene, (left, top), size, 1.0, keep=RULE.keep_share, difficult=RULE.difficult_share)
        placed += [_shifted(instance, x1, y1) for instance in instances]
        happened += Counter({name: counts[name] for name in ("cut off", "kept as difficult")})
    made = Scene(
        f"{k:08d}.png", width, height, tuple(placed), split="train", source=first.source,
        provenance={"pictures": [scene.file_name for scene in four], "meet": [x, y]},
    )  # fmt: skip
    return made, Image.fromarray(pixels), happened


def _shifted(instance: Instance, x: int, y: int) -> Instance:
    def moved(points: Sequence[float]) -> Any:
        return tuple(v + (y if k % 2 else x) for k, v in enumerate(points))

    return dataclasses.replace(
        instance, hbb=moved(instance.hbb), corners=moved(instance.corners), mask=tuple(moved(part) for part in instance.mask), extra={}
    )
