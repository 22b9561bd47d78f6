"""Overlaps of objects, and their repair: pushed apart along the minimum translation vector, moved into the picture, shrunk, left out.

The minimum translation vector of two convex shapes is the shortest shift that parts them; by the separating axis theorem it is
perpendicular to a side of one of them (Gottschalk, Lin, Manocha 1996).

NOTE: in real pictures some classes do overlap (a vehicle on a bridge, an aircraft on an airport).  :class:`Overlaps` learns from a set how
much overlap is usual between two classes; only more than that is repaired.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np
import shapely

from ..geometry import intersections, quadrilaterals, touching_pairs
from ..scene import Instance, Scene

ROUNDS = 20
SHRINK = 0.85
SHRINKS = 6
LEAST = 2.0
"""Pixels: an object is not shrunk below this side."""
USUAL = 0.9
"""Quantile of a class pair's largest overlap per picture that counts as usual."""
_SLACK = 1e-3
_NOTICED = 0.01

Allowed = Callable[[str, str], float]
"""How much two objects of these classes may overlap: intersection over the smaller area."""


def no_overlap(one: str, other: str) -> float:
    """Nothing may overlap."""
    return 0.0


def minimum_translation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shortest shift (2,) of ``b`` that parts it from ``a``; zeros where they do not overlap.

    Args:
        a, b: (N, 2) and (M, 2) corners of convex shapes, in order around them.
    """
    best, shift = np.inf, np.zeros(2)
    for shape in (a, b):
        sides = np.roll(shape, -1, axis=0) - shape
        for x, y in sides:
            length = np.hypot(x, y)
            if length < 1e-12:
                continue
            axis = np.array([-y, x]) / length
            pa, pb = a @ axis, b @ axis
            forward, back = pa.max() - pb.min(), pb.max() - pa.min()  # how far b has to go along the axis, and against it
            if min(forward, back) <= 0:
                return np.zeros(2)
            if forward < best:
                best, shift = forward, axis * forward
            if back < best:
                best, shift = back, -axis * back
    return shift


def overlap_shares(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs (i, j), i < j, of oriented boxes (N, 8) that overlap, and their intersection over the smaller area."""
    shapes = quadrilaterals(corners)
    i, j = touching_pairs(shapes)
    inter = shapely.area(intersections(shapes[i], shapes[j]))
    area = np.maximum(np.minimum(shapely.area(shapes[i]), shapely.area(shapes[j])), 1e-9)
    real = inter > 0
    return i[real], j[real], (inter / area)[real]


class Overlaps:
    """How much the classes of a set usually overlap; see the module's opening."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        largest: dict[tuple[str, str], list[float]] = {}
        hits: Counter[tuple[str, str]] = Counter()
        beside: Counter[tuple[str, str]] = Counter()
        for scene in scenes:
            names = scene.categories()
            present = sorted(set(names))
            found = {(a, b): 0.0 for k, a in enumerate(present) for b in present[k:] if a != b or names.count(a) > 1}
            if not found:
                continue
            touching: set[tuple[int, str]] = set()
            for i, j, share in zip(*overlap_shares(corners_of(scene.instances)), strict=True):
                pair = _pair(names[i], names[j])
                found[pair] = max(found[pair], float(share))
                if share > _NOTICED:
                    touching |= {(int(i), names[j]), (int(j), names[i])}
            hits.update((names[i], other) for i, other in touching)
            beside.update((name, other) for name in names for other in present if name != other or names.count(name) > 1)
            for pair, share in found.items():
                largest.setdefault(pair, []).append(share)
        self._usual = {pair: float(np.quantile(shares, USUAL)) for pair, shares in largest.items()}
        self._rate = {pair: hit / beside[pair] for pair, hit in hits.items()}

    def rate(self, one: str, other: str) -> float:
        """The share of the objects of class ``one`` in pictures with (other) objects of class ``other`` that overlap one of them."""
        return self._rate.get((one, other), 0.0)

    def __call__(self, one: str, other: str) -> float:
        return self._usual.get(_pair(one, other), 0.0)


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one <= other else (other, one)


def corners_of(instances: Sequence[Instance]) -> np.ndarray:
    """(N, 8) corners."""
    return np.array([i.corners for i in instances], np.float64).reshape(-1, 8)


def repair(scene: Scene, *, allowed: Allowed = no_overlap, fixed: int = 0, cut: Collection[int] = ()) -> tuple[Scene, dict[str, int]]:
    """The scene with every object that is not said to stay inside the picture, and no overlap that is not allowed.

    Args:
        allowed: overlap that may stay.
        fixed: the first so many objects are neither moved nor left out.
        cut: places of further objects that the border cuts: not moved either; what stands in their way is, or they are left out.

    Returns:
        The scene and how many objects were ``moved``, ``shrunk`` and ``left_out``; the order of the rest is kept.
    """
    points = [np.array(i.corners, np.float64).reshape(4, 2) for i in scene.instances]
    names, size = scene.categories(), np.array([scene.width, scene.height], np.float64)
    before = [p.copy() for p in points]
    shrunk: set[int] = set()
    stays = {*range(fixed), *cut}
    movable = [k for k in range(len(points)) if k not in stays]
    for k in movable:
        points[k], smaller = _inside(points[k], size)
        if smaller:
            shrunk.add(k)
    gone: set[int] = set()
    for turn in range(SHRINKS + 1):
        for _ in range(ROUNDS):
            bad = _too_much(points, names, allowed, fixed, gone)
            if not bad:
                break
            for i, j in bad:
                shift = minimum_translation(points[i], points[j])
                part = 1.0 if i in stays or j in stays else 0.5  # of two movable ones each goes half of the way
                if j not in stays:
                    points[j] = _inside(points[j] + part * 1.001 * shift, size)[0]
                if i not in stays:
                    points[i] = _inside(points[i] - part * 1.001 * shift, size)[0]
        bad = _too_much(points, names, allowed, fixed, gone)
        if not bad or turn == SHRINKS:
            break
        for k in {k for pair in bad for k in pair if k not in stays}:
            centre = points[k].mean(0)
            smaller_box = centre + (points[k] - centre) * SHRINK
            if min(np.hypot(*(smaller_box[1] - smaller_box[0])), np.hypot(*(smaller_box[2] - smaller_box[1]))) >= LEAST:
                points[k] = smaller_box
                shrunk.add(k)
    while bad := _too_much(points, names, allowed, fixed, gone):
        gone.add(bad[0][1])
    kept = [k for k in range(len(points)) if k not in gone]
    changed = [k for k in kept if not np.allclose(points[k], before[k], atol=1e-9)]
    instances = tuple(_placed(scene.instances[k], points[k], size) if k in set(changed) else scene.instances[k] for k in kept)
    counts = {"moved": len(set(changed) - shrunk), "shrunk": len(shrunk - gone), "left_out": len(gone)}
    return scene.replace(instances=instances), counts


def _too_much(points: list[np.ndarray], names: list[str], allowed: Allowed, fixed: int, gone: set[int]) -> list[tuple[int, int]]:
    if len(points) < 2:
        return []
    i, j, shares = overlap_shares(np.array(points).reshape(-1, 8))
    return [
        (int(a), int(b))
        for a, b, share in zip(i, j, shares, strict=True)
        if b >= fixed and a not in gone and b not in gone and share > allowed(names[a], names[b]) + _SLACK
    ]


def _inside(points: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, bool]:
    """The box moved into the picture, and shrunk first where it is larger than that."""
    extent = points.max(0) - points.min(0)
    ratio = float(min(1.0, (size / np.maximum(extent, 1e-9)).min()))
    if ratio < 1:
        centre = points.mean(0)
        points = centre + (points - centre) * ratio
    points = points + np.maximum(0, -points.min(0))
    points = points - np.maximum(0, points.max(0) - size)
    return np.clip(points, 0, size), ratio < 1


def _placed(instance: Instance, points: np.ndarray, size: np.ndarray) -> Instance:
    """The object at its new corners, a shifted and scaled copy of the old ones; its HBB, which may be smaller than theirs, goes along.

    Where the old corners reached beyond the picture, the HBB was that of the visible part alone: the new one is that of the corners.
    """
    old = np.array(instance.corners, np.float64).reshape(4, 2)
    ratio = np.hypot(*(points[2] - points[0])) / max(np.hypot(*(old[2] - old[0])), 1e-9)
    hbb = (np.array(instance.hbb).reshape(2, 2) - old.mean(0)) * ratio + points.mean(0)
    low, high = points.min(0), points.max(0)
    if (old < -1e-6).any() or (old > size + 1e-6).any():
        hbb = np.stack([low, high])
    x1, y1, x2, y2 = (float(v) for v in np.clip(hbb, low, high).ravel())
    corners = tuple(float(v) for v in points.ravel())
    return dataclasses.replace(instance, corners=corners, hbb=(x1, y1, x2, y2), mask=())  # type: ignore[arg-type]
