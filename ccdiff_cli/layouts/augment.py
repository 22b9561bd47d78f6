"""Augmentation of layouts: the eight symmetries, a turn by any angle, a common shift and scale, a jitter of single objects; mixing of two.

What makes an augmented layout believable: no object leaves the picture or comes into it, no two overlap more than they did, and one that
the border cuts stays at its border, its OBB reaching as far beyond (half an aircraft in the middle of a picture would be a wrong label).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import shapely

from ..geometry import corners_to_le90, hbb_iou, hbb_of, rotated_iou, touching_pairs, visible_hbbs
from ..scene import HBB, Corners, Instance, Scene, symmetric_scene
from .repair import Overlaps, repair

BORDER = 1.0
"""Pixels: an object this near to the border counts as cut by it."""
SCALE = (0.8, 1.25)
"""Range of the common scale of a layout."""
SHIFT = 0.25
"""Largest common shift, as a share of the picture's side."""
TURNED = 0.5
"""Share of the layouts that are turned by any angle, of those that can be."""
OBJECT_SCALE = (0.9, 1.1)
OBJECT_SHIFT = 0.1
"""Jitter of one object, relative to the sides of its HBB."""

_SLACK = 1e-6  # IoU: rounding


def augmented_layouts(pool: Sequence[Scene]) -> Callable[[Scene, np.random.Generator], Scene]:
    """The source of augmented layouts, which knows how the classes of the pool fill their oriented boxes (:func:`fill_of`)."""
    fill = fill_of(pool)
    return lambda scene, rng: augment_layout(scene, rng, fill)


def augment_layout(scene: Scene, rng: np.random.Generator, fill: Mapping[str, float] | None = None) -> Scene:
    """A new layout made from one: flipped or turned, moved and scaled as a whole, its objects moved a little.

    Oblong pictures are only flipped and turned by 180 degrees, so the size stays.  A turn by any angle needs orientations and objects
    that the border does not cut.  ``provenance["layout"]`` of the result holds the ``symmetry`` (see ``scene.symmetric_scene``), ``turn``
    (degrees), ``scale`` and ``shift`` (pixels) of the whole, and how many objects were ``jittered``.  The caption is kept as it is; it
    may no longer hold.
    """
    square = scene.width == scene.height
    symmetry = int(rng.integers(8)) if square else int(rng.choice((0, 2, 4, 6)))
    scene = symmetric_scene(scene, symmetry)
    scene, turn, fitted = _turn_all(scene, rng, fill or {})
    scene, scale, shift = _move_all(scene, rng)
    scene, jittered = _jitter(scene, rng)
    changes = {"symmetry": symmetry, "turn": turn, "scale": fitted * scale, "shift": list(shift), "jittered": jittered}
    return scene.replace(provenance={**scene.provenance, "layout": changes})


def mixed_layouts(pool: Sequence[Scene]) -> Callable[[Scene, np.random.Generator], Scene]:
    """A source of layouts mixed of two: what stands on one side of a line in one, and on the other side in another picture of the pool.

    Both are augmented first.  Where objects of the two overlap more than their classes usually do, those of the second give way
    (``repair``).  ``provenance["layout"]`` names the second picture as ``mixed_with``.
    """
    allowed, fill = Overlaps(pool), fill_of(pool)

    def mix(scene: Scene, rng: np.random.Generator) -> Scene:
        first = augment_layout(scene, rng, fill)
        other = pool[int(rng.integers(len(pool)))]
        angle, offset = rng.random() * 2 * math.pi, rng.normal(0, 0.15)
        if (other.width, other.height) != (scene.width, scene.height) or other.file_name == scene.file_name:
            return first
        second = augment_layout(other, rng, fill)
        normal = np.array([math.cos(angle), math.sin(angle)])

        def side(instance: Instance) -> float:
            centre = np.array(instance.corners).reshape(4, 2).mean(0) / (scene.width, scene.height) - 0.5
            return float(centre @ normal) - offset

        kept = tuple(i for i in first.instances if side(i) < 0)
        added = tuple(i for i in second.instances if side(i) >= 0)
        if not kept or not added:
            return first
        cut = [k for k, i in enumerate(added, start=len(kept)) if touches_border(i, scene.width, scene.height)]
        made, counts = repair(first.replace(instances=(*kept, *added)), allowed=allowed, fixed=len(kept), cut=cut)
        placed = len(made.instances) - len(kept)
        changes = {**first.provenance["layout"], "mixed_with": other.file_name, "added": placed, **counts}
        return made.replace(provenance={**made.provenance, "layout": changes})

    return mix


def fill_of(pool: Sequence[Scene]) -> dict[str, float]:
    """How the objects of each class fill their OBB, as their HBBs tell: 1 a rectangle, 0 the inscribed ellipse (a round tank).

    The HBB of a turned object lies between that of the turned rectangle and that of the ellipse.  The median over the objects whose
    OBB is slanted enough to tell; 1 where there are none.
    """
    found: dict[str, list[float]] = {}
    for scene in pool:
        for instance in scene.instances:
            if not instance.oriented or touches_border(instance, scene.width, scene.height):
                continue
            full, round_ = _half_sides(corners_to_le90(instance.corners))
            half = np.array([instance.hbb[2] - instance.hbb[0], instance.hbb[3] - instance.hbb[1]]) / 2
            if ((full - round_) > 0.05 * full).all():
                found.setdefault(instance.category, []).append(float(((half - round_) / (full - round_)).mean()))
    return {name: float(np.clip(np.median(values), 0, 1)) for name, values in found.items()}


def hbb_within(corners: Sequence[float], fill: float) -> HBB:
    """The HBB of an object that fills its OBB so (see :func:`fill_of`)."""
    le90 = corners_to_le90(corners)
    full, round_ = _half_sides(le90)
    half, (x1, y1, x2, y2) = fill * full + (1 - fill) * round_, hbb_of(corners)
    return max(x1, le90[0] - half[0]), max(y1, le90[1] - half[1]), min(x2, le90[0] + half[0]), min(y2, le90[1] + half[1])


def _half_sides(le90: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Half width and height of the HBB of a rectangle, and of the ellipse in it."""
    _, _, w, h, angle = le90
    c, s = abs(math.cos(angle)), abs(math.sin(angle))
    return np.array([w * c + h * s, w * s + h * c]) / 2, np.array([math.hypot(w * c, h * s), math.hypot(w * s, h * c)]) / 2


def turned(instance: Instance, angle: float, scale: float, centre: tuple[float, float], fill: float = 1.0) -> Instance:
    """The object after a turn (radians, from the x axis towards the y axis) and scaling about ``centre``; its HBB is made anew."""
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    p = np.asarray(instance.corners, np.float64).reshape(4, 2) - centre
    q = np.stack([c * p[:, 0] - s * p[:, 1], s * p[:, 0] + c * p[:, 1]], axis=1) + centre
    corners: Corners = tuple(float(v) for v in q.ravel())  # type: ignore[assignment]
    return dataclasses.replace(instance, corners=corners, hbb=hbb_within(corners, fill), mask=())


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


def cut_sides(instance: Instance, width: float, height: float) -> tuple[bool, bool, bool, bool]:
    """Which borders (probably) cut the object: left, top, right, bottom.

    An OBB that slants through the left border may reach above the picture too, outside of it alone: the upper border does not cut it.
    """
    x1, y1, x2, y2 = _visible_extent(instance, width, height)
    return x1 < BORDER, y1 < BORDER, x2 > width - BORDER, y2 > height - BORDER


def _visible_extent(instance: Instance, width: float, height: float) -> tuple[float, float, float, float]:
    """The HBB of what both boxes have in the picture."""
    a, (x1, y1, x2, y2) = visible_hbbs(np.array([instance.corners]), (0, 0, width, height))[0].tolist(), instance.hbb
    return min(x1, a[0]), min(y1, a[1]), max(x2, a[2]), max(y2, a[3])


def _extent(instance: Instance) -> tuple[float, float, float, float]:
    c, (x1, y1, x2, y2) = instance.corners, instance.hbb
    return min(x1, *c[0::2]), min(y1, *c[1::2]), max(x2, *c[0::2]), max(y2, *c[1::2])


def _turn_all(scene: Scene, rng: np.random.Generator, fill: Mapping[str, float]) -> tuple[Scene, float, float]:
    """The layout turned about its middle by any angle, and shrunk where it would not fit; degrees and scale."""
    chance, draw = rng.random(2)
    still = (scene, 0.0, 1.0)
    if chance >= TURNED or not scene.instances:
        return still
    if any(not i.oriented or touches_border(i, scene.width, scene.height) for i in scene.instances):
        return still
    angle = float(2 * math.pi * draw)
    extents = np.array([_extent(i) for i in scene.instances])
    middle = (extents[:, :2].min(0) + extents[:, 2:].max(0)) / 2
    at = (float(middle[0]), float(middle[1]))
    corners = np.array([turned(i, angle, 1.0, at).corners for i in scene.instances]).reshape(-1, 2)
    spread = corners.max(0) - corners.min(0)
    scale = min(1.0, float(((np.array([scene.width, scene.height]) - 2.1 * BORDER) / np.maximum(spread, 1e-9)).min()))
    if scale < SCALE[0]:
        return still
    made = [turned(i, angle, scale, at, fill.get(i.category, 1.0)) for i in scene.instances]
    corners = np.array([i.corners for i in made]).reshape(-1, 2)
    low, high = 1.05 * BORDER - corners.min(0), np.array([scene.width, scene.height]) - 1.05 * BORDER - corners.max(0)
    shift = np.clip(0.0, low, np.maximum(low, high))
    placed = tuple(moved(i, 1.0, (float(shift[0]), float(shift[1])), (0.0, 0.0)) for i in made)
    return scene.replace(instances=placed), math.degrees(angle), scale


def _move_all(scene: Scene, rng: np.random.Generator) -> tuple[Scene, float, tuple[float, float]]:
    """One similarity for the whole layout: relative places and overlaps stay as they are.

    Where objects are cut by the left or right border, the layout only moves up and down, and the other way round; without its scale.
    What reaches beyond a border that the layout moves along reaches as far beyond it afterwards.
    """
    draw = rng.random(3)  # always drawn, so that what follows in the random stream does not depend on the outcome
    still = (scene, 1.0, (0.0, 0.0))
    if not scene.instances:
        return still
    size = np.array([scene.width, scene.height], float)
    extents = np.array([_visible_extent(i, scene.width, scene.height) for i in scene.instances])
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
    return scene.replace(instances=candidates), scale, by


def _jitter(scene: Scene, rng: np.random.Generator) -> tuple[Scene, int]:
    """Every object that the border does not cut moves a little, where that makes no overlap worse."""
    instances = list(scene.instances)
    draws = rng.random((len(instances), 3))
    candidates = [_jittered(i, draw, scene) for i, draw in zip(instances, draws, strict=True)]
    boxes = np.array([i.hbb for i in instances], float).reshape(-1, 4)
    extents = np.array([_extent(i) for i in instances], float).reshape(-1, 4)
    corners = np.array([i.corners for i in instances], float).reshape(-1, 8)
    near = _within_reach(instances, candidates)
    count = 0
    for index, (instance, candidate) in enumerate(zip(tuple(instances), candidates, strict=True)):
        others = near[index]
        if candidate is None or _worse(candidate, instance, boxes[others], extents[others], corners[others]):
            continue
        instances[index] = candidate
        boxes[index], extents[index], corners[index] = candidate.hbb, _extent(candidate), candidate.corners
        count += 1
    return scene.replace(instances=tuple(instances)), count


def _jittered(instance: Instance, draw: np.ndarray, scene: Scene) -> Instance | None:
    """Where three numbers of 0..1 put an object; None where the border cuts it, or would."""
    if touches_border(instance, scene.width, scene.height):
        return None
    scale = OBJECT_SCALE[0] + draw[0] * (OBJECT_SCALE[1] - OBJECT_SCALE[0])
    x1, y1, x2, y2 = instance.hbb
    by = tuple(float(v) for v in (2 * draw[1:] - 1) * OBJECT_SHIFT * (x2 - x1, y2 - y1))
    candidate = moved(instance, float(scale), by, ((x1 + x2) / 2, (y1 + y2) / 2))  # type: ignore[arg-type]
    return None if touches_border(candidate, scene.width, scene.height) else candidate


def _within_reach(instances: Sequence[Instance], candidates: Sequence[Instance | None]) -> list[np.ndarray]:
    """For every object those that it can touch, wherever either of them comes to lie: of crowds, all pairs are too many to look at."""
    reach = []
    for pair in zip(instances, candidates, strict=True):
        points = np.array([_extent(i) for i in pair if i is not None]).reshape(-1, 2)
        reach.append((*points.min(0), *points.max(0)))
    i, j = touching_pairs(shapely.box(*np.array(reach, float).reshape(-1, 4).T))
    near: list[list[int]] = [[] for _ in instances]
    for one, other in zip(i.tolist(), j.tolist(), strict=True):
        near[one].append(other)
        near[other].append(one)
    return [np.array(sorted(n), int) for n in near]


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
