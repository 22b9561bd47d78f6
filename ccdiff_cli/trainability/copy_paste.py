"""The cheap rival: real training pictures with crops of real objects pasted in.

Notable:

* Picture k is a training picture (all are used before one is used twice) with objects at the places, of the classes and about the sizes
  of the k-th synthetic picture's layout: the same dose of labels as the synthetic pictures bring, without a generator.
* A crop is one of the 8 of its class whose shape is nearest to the box's; it is scaled evenly, flipped and turned by quarters, and its
  edge is blended over about two pixels.  The label is where the pasted pixels are.
* An object that would cover, or be covered by, more than a share of another is tried at other places, then left out and counted.
* Picture k depends on (set, fraction, layouts, draw, k) alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..dataset import PictureSet, scene_record
from ..detectors import Progress
from ..errors import CCDiffError
from ..files import content_key
from ..geometry import min_area_corners
from ..pictures import open_picture, read_rgb
from ..references import Reference, ReferenceBank
from ..scene import Instance, Scene, symmetric_pixels
from .made import Made, made_set

REVISION = 2
BACKGROUND, OBJECT = 13, 14
"""What a random stream is for."""
NEAREST = 8
TRIES = 10
LARGEST_SCALE = 2.0
"""Crops are scaled by at most this factor, up or down."""
BLEND = 0.8
"""Deviation of the blur of a crop's alpha, pixels."""
_MARGIN = 3


def make_copy_paste(
    out: Path,
    real: PictureSet,
    train: Sequence[Scene],
    layouts: Sequence[Scene],
    count: int,
    *,
    draw: int = 0,
    overlap: float = 0.1,
    progress: Progress | None = None,
) -> PictureSet:
    """Write the first ``count`` copy-paste pictures as a set in a folder below ``out``, or read it where it is there already.

    Args:
        real: the set of the reference bank.
        train: pictures of ``real`` to paste into, and the sources that crops may come from.
        layouts: the scenes whose instances say what to paste where.
        overlap: the largest share of the smaller of two objects that may be covered.

    Raises:
        CCDiffError: no reference bank, no crop of any wanted class, a picture that does not decode.
    """
    sources = {s.source for s in train}
    bank = {
        name: tuple(r for r in references if r.source in sources) for name, references in ReferenceBank.read(real.root).instances.items()
    }
    wanted = {i.category for s in layouts for i in s.instances}
    if not any(bank.get(name) for name in wanted):
        raise CCDiffError(
            f"the reference bank has no crop of {', '.join(sorted(wanted)) or 'any class'} from these training pictures",
            where=real.root,
            fix="leave out the arm copy-paste, or prepare the set again with its reference bank",
        )
    said = [[scene_record(s.replace(provenance={}, caption="")) for s in scenes] for scenes in (train, layouts)]
    crops = {name: [r.key for r in references] for name, references in bank.items()}
    key = content_key([REVISION, real.key(), *said, crops, count, draw, overlap])

    def details(scenes: list[Scene]) -> dict[str, Any]:
        pasted = sum(len(s.provenance["crops"]) for s in scenes)
        return {"made_from": {"set": real.key(), "sources": sorted(sources), "draw": draw, "overlap": overlap}, "pasted": pasted}

    def make(k: int) -> Made:
        return paste_picture(k, train, layouts[k % len(layouts)], bank, draw, overlap)

    return made_set(out / key, "copy-paste", real.classes, count, make, details, progress)


def paste_picture(
    k: int, train: Sequence[Scene], layout: Scene, bank: Mapping[str, Sequence[Reference]], draw: int, overlap: float
) -> Made:
    """Copy-paste picture ``k``: its labels, its pixels, and what of the layout was left out, by reason."""
    background = in_turn(train, k, draw)
    rng = np.random.default_rng([draw, OBJECT, k])
    pixels = np.array(read_rgb(str(background.path)))
    height, width = pixels.shape[:2]
    fx, fy = width / layout.width, height / layout.height
    placed, crops, left_out = list(background.instances), [], Counter[str]()
    for wanted in layout.instances:
        references = bank.get(wanted.category, ())
        if not references:
            left_out["no crop of the class"] += 1
            continue
        x1, y1, x2, y2 = (v * (fx, fy)[i % 2] for i, v in enumerate(wanted.hbb))
        reference = _nearest(references, (x2 - x1) / max(y2 - y1, 1e-6), rng)
        crop = _fitted(reference, x2 - x1, y2 - y1, (width, height), rng)
        spot = _free_spot(crop, ((x1 + x2) / 2, (y1 + y2) / 2), (width, height), placed, overlap, rng)
        if spot is None:
            left_out["no room"] += 1
            continue
        _blend(pixels, crop, spot)
        placed.append(_label(wanted.category, crop[..., 3], spot))
        crops.append(reference.key)
    scene = Scene(
        f"{k:08d}.png",
        width,
        height,
        tuple(placed),
        split="train",
        source=background.source,
        provenance={"background": background.file_name, "layout": {"picture": layout.file_name}, "crops": crops},
    )
    return scene, Image.fromarray(pixels), left_out


def in_turn(train: Sequence[Scene], k: int, draw: int) -> Scene:
    """Picture ``k`` of a drawn order in which all come once before one comes twice."""
    turn, place = divmod(k, len(train))
    return train[int(np.random.default_rng([draw, BACKGROUND, turn]).permutation(len(train))[place])]


def _nearest(references: Sequence[Reference], ratio: float, rng: np.random.Generator) -> Reference:
    """One of the crops whose shape is nearest to the box's, in either orientation."""
    wanted = max(ratio, 1 / max(ratio, 1e-6))
    own = np.array([max(r.width / r.height, r.height / r.width) for r in references])
    nearest = np.argsort(np.abs(own / wanted - 1), kind="stable")[:NEAREST]
    return references[int(nearest[int(rng.integers(len(nearest)))])]


def _fitted(reference: Reference, width: float, height: float, picture: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """The crop as (h, w, 4) uint8: turned like the box, at about its area, no larger than the picture."""
    with open_picture(reference.path) as stored:
        crop = stored.convert("RGBA")
    along = (crop.width >= crop.height) == (width >= height)
    scale = float(np.clip(np.sqrt(width * height / (crop.width * crop.height)), 1 / LARGEST_SCALE, LARGEST_SCALE))
    sides = crop.size if along else crop.size[::-1]
    scale = min(scale, picture[0] / sides[0], picture[1] / sides[1])
    size = max(1, int(crop.width * scale)), max(1, int(crop.height * scale))
    pixels = np.asarray(crop if size == crop.size else crop.resize(size, Image.Resampling.BICUBIC))
    turns = int(rng.integers(2)) * 2 + (0 if along else 1)
    return np.ascontiguousarray(symmetric_pixels(pixels, turns + 4 * int(rng.integers(2))))


def _free_spot(
    crop: np.ndarray,
    centre: tuple[float, float],
    picture: tuple[int, int],
    placed: Sequence[Instance],
    overlap: float,
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """The top left corner at which the crop covers no object too much: at the wanted place, else at a few drawn ones."""
    rows, columns = np.nonzero(crop[..., 3] >= 128)
    if not len(rows):
        return None
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)
    others = np.array([i.hbb for i in placed], np.float64).reshape(-1, 4)
    room = picture[0] - crop.shape[1], picture[1] - crop.shape[0]
    wanted = (round(centre[0] - crop.shape[1] / 2), round(centre[1] - crop.shape[0] / 2))
    for attempt in range(1 + TRIES):
        spot = wanted if not attempt else (int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)))
        x, y = (int(np.clip(v, 0, r)) for v, r in zip(spot, room, strict=True))
        if _covered(box + np.array([x, y, x, y]), others) <= overlap:
            return x, y
    return None


def _covered(box: np.ndarray, others: np.ndarray) -> float:
    """The largest share of a box, or of the other where that is smaller, that they have in common."""
    wide = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None)
    areas = np.minimum(np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1))
    return float(np.max(wide.prod(axis=1) / np.maximum(areas, 1e-6), initial=0.0))


def _blend(pixels: np.ndarray, crop: np.ndarray, spot: tuple[int, int]) -> None:
    """Lay the crop over the picture with a soft edge: its alpha is shrunk by a pixel, then blurred."""
    (x, y), (height, width) = spot, crop.shape[:2]
    alpha = cv2.copyMakeBorder(crop[..., 3], *(_MARGIN,) * 4, cv2.BORDER_CONSTANT, value=0)
    if min(height, width) > 4:
        alpha = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    soft = cv2.GaussianBlur(alpha, (0, 0), BLEND).astype(np.float32)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN, None] / 255
    under = pixels[y : y + height, x : x + width]
    under[:] = np.rint(under + soft * (crop[..., :3].astype(np.float32) - under)).astype(np.uint8)


def _label(category: str, alpha: np.ndarray, spot: tuple[int, int]) -> Instance:
    """The boxes of the pasted pixels (the oriented one may reach beyond the picture); a crop without a mask has a horizontal box alone."""
    inside = alpha >= 128
    rows, columns = np.nonzero(inside)
    x, y = spot
    hbb = tuple(float(v) for v in (columns.min() + x, rows.min() + y, columns.max() + 1 + x, rows.max() + 1 + y))
    if inside.all():
        return Instance.from_hbb(category, hbb)
    points = np.concatenate([np.stack([columns + dx, rows + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    corners = min_area_corners((points + np.array(spot)).reshape(-1).tolist())
    return Instance.from_corners(category, corners, hbb)
