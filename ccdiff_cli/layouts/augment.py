"""Augmentation of layouts: the eight symmetries, a common shift and scale, a small jitter of single objects.

What makes an augmented layout believable: nothing leaves the picture, no two objects overlap more than they did, and an object that
the border cuts stays at its border (half an aircraft in the middle of a picture would be a wrong label).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..geometry import hbb_iou, rotated_iou
from ..scene import Instance, Scene, symmetric_scene

BORDER = 1.0
"""Pixels: an object this near to the border counts as cut by it."""
SCALE = (0.8, 1.25)
"""Range of the common scale of a layout."""
SHIFT = 0.25
"""Largest common shift, as a share of the picture's side."""
OBJECT_SCALE = (0.9, 1.1)
OBJECT_SHIFT = 0.1
"""Jitter of one object, relative to the sides of its HBB."""

_SLACK = 1e-6  # IoU: rounding


def augment_layout(scene: Scene, rng: np.random.Generator) -> Scene:
    """A new layout made from one: flipped or turned, moved and scaled as a whole, its objects moved a little.

    Oblong pictures are only flipped and turned by 180 degrees, so the size stays.  ``provenance["layout"]`` of the result holds the
    ``symmetry`` (see ``scene.symmetric_scene``), ``scale`` and ``shift`` (pixels) of the whole, and how many objects were ``jittered``.
    The caption is kept as it is; it may no longer hold.
    """
    square = scene.width == scene.height
    symmetry = int(rng.integers(8)) if square else int(rng.choice((0, 2, 4, 6)))
    scene = symmetric_scene(scene, symmetry)
    scene, scale, shift = _move_all(scene, rng)
    scene, jittered = _jitter(scene, rng)
    changes = {"symmetry": symmetry, "scale": scale, "shift": list(shift), "jittered": jittered}
    return scene.replace(provenance={**scene.provenance, "layout": changes})


def moved(instance: Instance, scale: float, shift: tuple[float, float], centre: tuple[float, float]) -> Instance:
    """The object after scaling about ``centre`` and a shift in pixels; boxes and outlines go along."""

    def points(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float((v - centre[j % 2]) * scale + centre[j % 2] + shift[j % 2]) for j, v in enumerate(values))

    return dataclasses.replace(
        instance,
        hbb=points(instance.hbb),  # type: ignore[arg-type]
        corners=points(instance.corners),  # type: ignore[arg-type]
        mask=tuple(points(p) for p in instance.mask),
    )


def touches_border(instance: Instance, width: float, height: float) -> bool:
    """Whether the border (probably) cuts the object."""
    x1, y1, x2, y2 = _extent(instance)
    return x1 < BORDER or y1 < BORDER or x2 > width - BORDER or y2 > height - BORDER


def _extent(instance: Instance) -> tuple[float, float, float, float]:
    c, (x1, y1, x2, y2) = instance.corners, instance.hbb
    return min(x1, *c[0::2]), min(y1, *c[1::2]), max(x2, *c[0::2]), max(y2, *c[1::2])


def _move_all(scene: Scene, rng: np.random.Generator) -> tuple[Scene, float, tuple[float, float]]:
    """One similarity for the whole layout: relative places and overlaps stay as they are.

    Where objects are cut by the left or right border, the layout only moves up and down, and the other way round; without its scale.
    """
    draw = rng.random(3)  # always drawn, so that what follows in the random stream does not depend on the outcome
    still = (scene, 1.0, (0.0, 0.0))
    if not scene.instances:
        return still
    size = np.array([scene.width, scene.height], float)
    extents = np.array([_extent(i) for i in scene.instances])
    low, high = extents[:, :2].min(0), extents[:, 2:].max(0)
    free = (low >= BORDER) & (high <= size - BORDER)
    if not free.any():
        return still
    largest = float(min((size - 2 * BORDER) / np.maximum(high - low, 1e-9)))  # nothing comes to touch the border
    scale = min(float(SCALE[0] + draw[0] * (SCALE[1] - SCALE[0])), largest) if free.all() else 1.0
    centre, half = (low + high) / 2, (high - low) / 2 * scale
    first = np.maximum(BORDER + half - centre, -SHIFT * size)
    last = np.minimum(size - BORDER - half - centre, SHIFT * size)
    shift = np.where(free, np.where(first <= last, first + draw[1:] * (last - first), (first + last) / 2), 0.0)
    at = (float(centre[0]), float(centre[1]))
    by = (float(shift[0]), float(shift[1]))
    candidates = tuple(moved(i, scale, by, at) for i in scene.instances)
    if not all(_within(i, scene) for i in candidates):
        return still
    return scene.replace(instances=candidates), scale, by


def _jitter(scene: Scene, rng: np.random.Generator) -> tuple[Scene, int]:
    """Every object that the border does not cut moves a little, where that makes no overlap worse."""
    instances = list(scene.instances)
    draws = rng.random((len(instances), 3))
    boxes = np.array([i.hbb for i in instances], float).reshape(-1, 4)
    extents = np.array([_extent(i) for i in instances], float).reshape(-1, 4)
    corners = np.array([i.corners for i in instances], float).reshape(-1, 8)
    count = 0
    for index, instance in enumerate(instances):
        if touches_border(instance, scene.width, scene.height):
            continue
        scale = OBJECT_SCALE[0] + draws[index, 0] * (OBJECT_SCALE[1] - OBJECT_SCALE[0])
        x1, y1, x2, y2 = instance.hbb
        by = tuple(float(v) for v in (2 * draws[index, 1:] - 1) * OBJECT_SHIFT * (x2 - x1, y2 - y1))
        candidate = moved(instance, float(scale), by, ((x1 + x2) / 2, (y1 + y2) / 2))  # type: ignore[arg-type]
        if not _within(candidate, scene) or touches_border(candidate, scene.width, scene.height):
            continue
        if _worse(candidate, instance, np.delete(boxes, index, 0), np.delete(extents, index, 0), np.delete(corners, index, 0)):
            continue
        instances[index] = candidate
        boxes[index], extents[index], corners[index] = candidate.hbb, _extent(candidate), candidate.corners
        count += 1
    return scene.replace(instances=tuple(instances)), count


def _within(instance: Instance, scene: Scene) -> bool:
    x1, y1, x2, y2 = _extent(instance)
    return x1 >= 0 and y1 >= 0 and x2 <= scene.width and y2 <= scene.height


def _worse(candidate: Instance, before: Instance, boxes: np.ndarray, extents: np.ndarray, corners: np.ndarray) -> bool:
    """Whether the candidate overlaps any of the others more than the object did, by its HBB or by its OBB."""
    was, now = hbb_iou(np.array([before.hbb]), boxes)[0], hbb_iou(np.array([candidate.hbb]), boxes)[0]
    if (now > was + _SLACK).any():
        return True
    near = corners[hbb_iou(np.array([_extent(candidate)]), extents)[0] > 0]  # OBBs are slow to compare
    if not len(near):
        return False
    was, now = rotated_iou(np.array([before.corners]), near)[0], rotated_iou(np.array([candidate.corners]), near)[0]
    return bool((now > was + _SLACK).any())
