"""Tiles: where they lie, and what of each object falls into one.

Windows are squares in source pixels.  Those at the right and lower border are shifted inside the picture (so they overlap more); a
picture smaller than the tile is padded on the right and below.  An object is kept when at least ``keep`` of its visible area is inside,
kept as difficult down to ``difficult`` (the generator must know that something is drawn there), and counted below that.  HBB and mask are
clipped to the window; the oriented box may reach beyond it, by the rule in ``geometry``, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import shapely
from PIL import Image

from ..errors import CCDiffError
from ..geometry import FITTED, INSIDE, TURNED, WHOLE, clip, clip_hbb, corners_inside, cut_box, hbb_corners, outlines, polygon, union
from ..scene import Instance, Scene

Window = tuple[float, float, float, float]
"""x1 y1 x2 y2 in source pixels."""


def offsets(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start along one side of a picture."""
    if tile <= 0 or not 0 <= overlap < tile:
        raise CCDiffError(f"tile {tile} with overlap {overlap}", fix="the overlap must be at least 0 and smaller than the tile")
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, tile - overlap))
    return [*starts, length - tile]


def tile_origins(width: int, height: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """The top left corners of all tiles of a picture, row by row."""
    return [(x, y) for y in offsets(height, tile, overlap) for x in offsets(width, tile, overlap)]


def cut_scene(
    scene: Scene,
    origin: tuple[int, int],
    side: int | tuple[int, int],
    scale: float,
    *,
    keep: float,
    difficult: float,
    among: Iterable[int] | None = None,
) -> tuple[list[Instance], dict[str, int]]:
    """The objects of one window, in its own pixels after scaling.

    Args:
        origin: top left corner of the window, source pixels.
        side: its side, or its width and height, source pixels.
        scale: output pixels per source pixel.
        among: indices of the objects to look at; all when None. (Of a large scene few are near a window.)

    Returns:
        The kept objects (``extra["object"]`` is the object's index in its source picture), and counts of what happened to the others and,
        under WHOLE, FITTED and TURNED of ``geometry``, to the oriented boxes of those kept.
    """
    x0, y0 = origin
    across, down = (side, side) if isinstance(side, int) else side
    window = (x0, y0, min(x0 + across, scene.width), min(y0 + down, scene.height))
    kept: list[Instance] = []
    counts = {"kept": 0, "kept as difficult": 0, "cut off": 0, WHOLE: 0, FITTED: 0, TURNED: 0}
    for index in range(len(scene.instances)) if among is None else among:
        instance = scene.instances[index]
        share, part, how = _cut(instance, window, (0, 0, scene.width, scene.height))
        if part is None or share < difficult:
            counts["cut off"] += share > 0
            continue
        counts["kept" if share >= keep else "kept as difficult"] += 1
        if how:
            counts[how] += 1
        kept.append(_moved(part, x0, y0, scale, difficult=part.difficult or share < keep, extra={**instance.extra, "object": index}))
    return kept, counts


def _cut(instance: Instance, window: Window, picture: Window) -> tuple[float, Instance | None, str]:
    """The share of an object's visible area inside a window, the object clipped to it, and what ``cut_box`` did."""
    hbb = clip_hbb(instance.hbb, window)
    if hbb is None:
        return 0.0, None, INSIDE
    if hbb == instance.hbb and corners_inside(instance.corners, window) and all(corners_inside(p, window) for p in instance.mask):
        return 1.0, instance, INSIDE
    shape = clip(union(instance.mask) if instance.mask else polygon(instance.corners), picture)
    if shape.area <= 0:
        shape = clip(polygon(hbb_corners(instance.hbb)), picture)
    left = clip(shape, window)
    share = float(left.area / shape.area) if shape.area > 0 else 0.0
    if left.area <= 0:
        return share, None, INSIDE
    mask = outlines(left) if instance.mask else ()
    if not instance.oriented:
        return share, Instance.from_hbb(instance.category, hbb, difficult=instance.difficult, mask=mask), INSIDE
    if share < 1 - 1e-6:  # the HBB of what is left can be much smaller than the old HBB's part in the window
        hbb = clip_hbb(hbb, shapely.bounds(left)) or hbb
    corners, how = cut_box(instance.corners, left, window)
    return share, Instance.from_corners(instance.category, corners, hbb, difficult=instance.difficult, mask=mask), how


def _moved(instance: Instance, x0: float, y0: float, scale: float, *, difficult: bool, extra: dict) -> Instance:
    return Instance(
        category=instance.category,
        hbb=_moved_points(instance.hbb, x0, y0, scale),  # type: ignore[arg-type]
        corners=_moved_points(instance.corners, x0, y0, scale),  # type: ignore[arg-type]
        oriented=instance.oriented,
        difficult=difficult,
        mask=tuple(_moved_points(p, x0, y0, scale) for p in instance.mask),
        extra=extra,
    )


def _moved_points(points: Sequence[float], x0: float, y0: float, scale: float) -> tuple[float, ...]:
    return tuple(round((v - (y0 if k % 2 else x0)) * scale, 3) for k, v in enumerate(points))


def pad_and_resize(
    cut: Image.Image, origin: tuple[int, int], side: int, size: int, instances: Sequence[Instance]
) -> tuple[Image.Image, str]:
    """The pixels of one window at the output size.

    Where the picture is smaller than the window it is continued by reflection, unless that would draw a labelled object a second time
    without a label; then by its edge pixels.

    Args:
        cut: what the picture has inside the window, RGB.
        origin, side: the window, source pixels.
        instances: all objects of the picture, source pixels.

    Returns:
        The RGB picture (``size`` squared) and how it was padded: "", "reflect" or "edge".
    """
    x0, y0 = origin
    padding = ""
    if cut.size != (side, side):
        w, h = cut.size
        mirrored_x, mirrored_y = w - (side - w), h - (side - h)  # pixels beyond these are seen twice
        seen_twice = any((side > w and i.hbb[2] > x0 + mirrored_x) or (side > h and i.hbb[3] > y0 + mirrored_y) for i in instances)
        padding = "edge" if seen_twice or side > 2 * min(w, h) else "reflect"
        mode = "edge" if padding == "edge" else "symmetric"
        cut = Image.fromarray(np.pad(np.asarray(cut), ((0, side - h), (0, side - w), (0, 0)), mode=mode))  # type: ignore[call-overload]
    if size != side:
        cut = cut.resize((size, size), Image.Resampling.BICUBIC)
    return cut, padding
