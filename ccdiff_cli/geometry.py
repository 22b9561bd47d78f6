"""Boxes and polygons in pixels: HBB, four corners, le90, clipping, rotated IoU.

Notable here:

* le90 is ``(cx, cy, w, h, angle)`` with w >= h and the angle of the long side in [-pi/2, pi/2) radians, measured from the x axis
  towards the y axis (y points down, so a positive angle turns clockwise on the screen).  A square's angle lies in [-pi/4, pi/4).
* Areas, intersections and clipping come from shapely (double precision); the minimum-area rectangle from OpenCV, which works in single
  precision, so points are centred first and the result is good to about 1e-4 of the object's size.
* NOTE: a quadrilateral that is not a rectangle becomes its minimum-area rectangle on its way to le90.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from .scene import HBB, Corners

Le90 = tuple[float, float, float, float, float]
"""cx, cy, w, h in pixels, angle in radians; see the module's opening."""


def hbb_of(points: Sequence[float]) -> HBB:
    """The horizontal box around x1 y1 x2 y2 ..."""
    xs, ys = points[0::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def hbb_corners(hbb: Sequence[float]) -> Corners:
    """The corners of a horizontal box, from the top left, clockwise on the screen."""
    x1, y1, x2, y2 = (float(v) for v in hbb)
    return x1, y1, x2, y1, x2, y2, x1, y2


def hbb_area(hbb: Sequence[float]) -> float:
    """Area in pixels squared; 0 for a box turned inside out."""
    return max(0.0, hbb[2] - hbb[0]) * max(0.0, hbb[3] - hbb[1])


def clip_hbb(hbb: Sequence[float], window: Sequence[float]) -> HBB | None:
    """The part of a horizontal box inside ``window`` (x1 y1 x2 y2); None where nothing with an area is left."""
    x1, y1 = max(hbb[0], window[0]), max(hbb[1], window[1])
    x2, y2 = min(hbb[2], window[2]), min(hbb[3], window[3])
    return (float(x1), float(y1), float(x2), float(y2)) if x2 > x1 and y2 > y1 else None


def hbb_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairwise IoU of horizontal boxes, (N, 4) and (M, 4) to (N, M)."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = (np.prod(np.clip(v[:, 2:] - v[:, :2], 0, None), axis=1) for v in (a, b))
    union = area_a[:, None] + area_b[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def le90_to_corners(box: Sequence[float]) -> Corners:
    """Corners of (cx, cy, w, h, angle): before rotation they run from the top left, clockwise on the screen."""
    cx, cy, w, h, angle = box
    ux, uy = math.cos(angle) * w / 2, math.sin(angle) * w / 2
    vx, vy = -math.sin(angle) * h / 2, math.cos(angle) * h / 2
    return (
        cx - ux - vx, cy - uy - vy,
        cx + ux - vx, cy + uy - vy,
        cx + ux + vx, cy + uy + vy,
        cx - ux + vx, cy - uy + vy,
    )  # fmt: skip


def normalise_le90(cx: float, cy: float, w: float, h: float, angle: float) -> Le90:
    """The same rectangle with w >= h and the angle in [-pi/2, pi/2)."""
    if h > w:
        w, h, angle = h, w, angle + math.pi / 2
    period = math.pi / 2 if math.isclose(w, h, rel_tol=1e-9) else math.pi  # a square looks the same after a quarter turn
    angle = (angle + period / 2) % period - period / 2
    return cx, cy, w, h, -period / 2 if angle >= period / 2 else angle


def corners_to_le90(corners: Sequence[float]) -> Le90:
    """le90 of four corners: exact for a rectangle (in either direction around), of the minimum-area rectangle otherwise."""
    p = np.asarray(corners, np.float64).reshape(4, 2)
    side, next_side = p[1] - p[0], p[2] - p[1]
    scale = float(np.abs(p - p.mean(0)).max()) or 1.0
    parallel = float(np.abs(p[0] + p[2] - p[1] - p[3]).max()) <= 1e-6 * scale
    if parallel and abs(float(side @ next_side)) <= 1e-6 * scale * scale:
        w, h = float(np.hypot(*side)), float(np.hypot(*next_side))
        angle = math.atan2(side[1], side[0]) if w >= h else math.atan2(next_side[1], next_side[0])
        cx, cy = (float(v) for v in p.mean(0))
        return normalise_le90(cx, cy, max(w, h), min(w, h), angle)
    return min_area_le90(corners)


def untangled(corners: Sequence[float]) -> tuple[Corners, bool]:
    """The corners in order around the box, beginning with the first, and whether two sides crossed before."""
    a, b, c, d = ((corners[k], corners[k + 1]) for k in (0, 2, 4, 6))
    if _cross(a, b, c, d):
        return (*a, *c, *b, *d), True
    if _cross(b, c, d, a):
        return (*a, *b, *d, *c), True
    return (*a, *b, *c, *d), False


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    """Whether the segments ab and cd cross between their ends."""

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def min_area_le90(points: Sequence[float]) -> Le90:
    """le90 of the minimum-area rectangle around x1 y1 x2 y2 ...; a point or a line gives a rectangle without area."""
    p = np.asarray(points, np.float64).reshape(-1, 2)
    centre = (p.min(0) + p.max(0)) / 2
    scale = float(np.abs(p - centre).max())
    if scale == 0.0:
        return float(centre[0]), float(centre[1]), 0.0, 0.0, 0.0
    (dx, dy), (w, h), degrees = cv2.minAreaRect(((p - centre) / scale).astype(np.float32))
    return normalise_le90(float(centre[0] + dx * scale), float(centre[1] + dy * scale), w * scale, h * scale, math.radians(degrees))


def min_area_corners(points: Sequence[float]) -> Corners:
    """Corners of the minimum-area rectangle around x1 y1 x2 y2 ..."""
    return le90_to_corners(min_area_le90(points))


def polygon(points: Sequence[float]) -> BaseGeometry:
    """A valid shapely geometry of x1 y1 x2 y2 ...; a self-crossing outline is untangled, fewer than 3 points are empty."""
    if len(points) < 6:
        return shapely.Polygon()
    shape = shapely.Polygon(np.asarray(points, np.float64).reshape(-1, 2))
    return shape if shape.is_valid else _untangled(shape)


def _untangled(shape: BaseGeometry) -> BaseGeometry:
    """What has an area of an outline that crosses itself, on a grid of ``_GRID`` pixels; the lines that hang on it are left out."""
    snapped = shapely.make_valid(shapely.transform(shape, lambda points: np.round(points / _GRID) * _GRID))
    parts = [g for g in shapely.get_parts(snapped) if g.geom_type in ("Polygon", "MultiPolygon")]
    return parts[0] if len(parts) == 1 else _overlaid(shapely.union_all, parts)


def union(polygons: Iterable[Sequence[float]]) -> BaseGeometry:
    """One geometry of several outlines."""
    shapes = [polygon(p) for p in polygons]
    return shapes[0] if len(shapes) == 1 else _overlaid(shapely.union_all, shapes)


_GRID = 1e-6


def _overlaid(operation: Callable[..., Any], *shapes: Any) -> Any:
    """An overlay of shapely; where its exact one fails, the robust one on a grid of ``_GRID`` pixels.

    The exact one is the faster, and fails for outlines that are degenerate by less than a double can tell.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        try:
            return operation(*shapes)
        except shapely.GEOSException:
            return operation(*shapes, grid_size=_GRID)


def intersections(a: Any, b: Any) -> Any:
    """The common parts of two geometries, or of the geometries of two arrays one by one."""
    return _overlaid(shapely.intersection, a, b)


def outlines(shape: BaseGeometry) -> tuple[tuple[float, ...], ...]:
    """The outer rings of a geometry's parts that have an area, largest first, as x1 y1 x2 y2 ... without the closing point."""
    parts = [g for g in shapely.get_parts(shape) if g.area > 0]
    flat = []
    for part in parts:
        if part.geom_type == "Polygon":
            flat.append(part)
        else:  # a collection within a collection
            flat.extend(g for g in shapely.get_parts(part) if g.geom_type == "Polygon")
    flat.sort(key=lambda g: (-g.area, g.bounds))
    return tuple(tuple(float(v) for v in np.asarray(g.exterior.coords)[:-1].ravel()) for g in flat)


def bitmap_outlines(bitmap: np.ndarray, offset: tuple[int, int] = (0, 0)) -> tuple[tuple[float, ...], ...]:
    """The outer outlines of an (H, W) bitmap along the pixels' edges, longest first; pixels that touch at a corner are one part.

    OpenCV's contours run through pixels' centres.  In a bitmap of doubled size they run through quarters of pixels, each of which stands
    for the corner of its pixel that it lies at.

    Args:
        offset: x and y of the first pixel.
    """
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if not len(rows):
        return ()
    top, left = int(rows[0]), int(columns[0])
    small = np.ascontiguousarray(bitmap[top : rows[-1] + 1, left : columns[-1] + 1], np.uint8)
    contours, _ = cv2.findContours(small.repeat(2, axis=0).repeat(2, axis=1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for contour in contours:
        points = (contour.reshape(-1, 2) + 1) // 2
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        steps = np.roll(points, -1, axis=0) - points
        points = points[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
        points = points + np.array([left + offset[0], top + offset[1]])
        found.append(tuple(float(v) for v in points.ravel()))
    return tuple(sorted(found, key=lambda ring: (-len(ring), ring)))


def clip(shape: BaseGeometry, window: Sequence[float]) -> BaseGeometry:
    """The part of a geometry inside ``window`` (x1 y1 x2 y2)."""
    return intersections(shape, shapely.box(*window))


def polygon_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two outlines x1 y1 x2 y2 ... (rotated IoU when they are four corners)."""
    shape_a, shape_b = polygon(a), polygon(b)
    inter = intersections(shape_a, shape_b).area
    union_area = shape_a.area + shape_b.area - inter
    return inter / union_area if union_area > 0 else 0.0


def rotated_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairwise IoU of oriented boxes as corners, (N, 8) and (M, 8) to (N, M); boxes without an area overlap nothing."""
    a, b = np.asarray(a, np.float64).reshape(-1, 8), np.asarray(b, np.float64).reshape(-1, 8)
    result = np.zeros((len(a), len(b)))
    low_a, high_a, low_b, high_b = *_extents(a), *_extents(b)
    near = ((low_a[:, None] < high_b[None]) & (low_b[None] < high_a[:, None])).all(2)  # most pairs of a scene do not even touch
    rows, columns = np.nonzero(near)
    result[rows, columns] = paired_iou(quadrilaterals(a)[rows], quadrilaterals(b)[columns])
    return result


def rotated_nms(corners: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Rotated non-maximum suppression: the indices that are kept, best first (equal scores: the earlier first).

    A box goes when its rotated IoU with a better one that stays is above ``threshold``.

    Args:
        corners: (N, 8) oriented boxes of one class.
        scores: (N,) floats.
    """
    shapes, scores = quadrilaterals(corners), np.asarray(scores, np.float64)
    rank = np.empty(len(shapes), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(shapes))
    better, worse = touching_pairs(shapes)
    swap = rank[better] > rank[worse]
    better, worse = np.where(swap, worse, better), np.where(swap, better, worse)
    above = paired_iou(shapes[better], shapes[worse]) > threshold
    beaten: dict[int, list[int]] = {}
    for one, other in zip(better[above].tolist(), worse[above].tolist(), strict=True):
        beaten.setdefault(one, []).append(other)
    gone = np.zeros(len(shapes), bool)
    kept = []
    for index in np.argsort(rank).tolist():
        if not gone[index]:
            kept.append(index)
            gone[beaten.get(index, [])] = True
    return np.array(kept, np.int64)


def quadrilaterals(corners: np.ndarray) -> np.ndarray:
    """(N, 8) corners as an array of N valid geometries; a self-crossing one is untangled, a flat one has no area."""
    shapes = shapely.polygons(np.asarray(corners, np.float64).reshape(-1, 4, 2))
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = [_untangled(shape) for shape in shapes[broken]]
    return shapes


def touching_pairs(shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (i, j), i < j, of geometries whose horizontal boxes touch, as two index arrays in ascending order."""
    i, j = shapely.STRtree(shapes).query(shapes)
    i, j = i[i < j], j[i < j]
    order = np.lexsort((j, i))
    return i[order], j[order]


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of geometry ``a[k]`` with ``b[k]``, (N,); 0 where neither has an area."""
    inter = shapely.area(intersections(a, b))
    total = shapely.area(a) + shapely.area(b) - inter
    return np.divide(inter, total, out=np.zeros_like(inter), where=total > 0)


def _extents(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = corners.reshape(-1, 4, 2)
    return points.min(1), points.max(1)


def corners_inside(corners: Sequence[float], window: Sequence[float], tolerance: float = 1e-6) -> bool:
    """Whether all points lie in ``window`` (x1 y1 x2 y2)."""
    x1, y1, x2, y2 = hbb_of(corners)
    return x1 >= window[0] - tolerance and y1 >= window[1] - tolerance and x2 <= window[2] + tolerance and y2 <= window[3] + tolerance


def fit_rectangle(shape: BaseGeometry, window: Sequence[float], angle: float) -> Corners:
    """The rectangle inside ``window`` that covers a clipped object best.

    Tried are the minimum-area rectangle, the rectangle at the object's own ``angle`` (radians) and the HBB; those that stick out of the
    window (a slanted object cut by a border) are shrunk about their centre until they fit; the highest IoU with ``shape`` wins.

    Args:
        shape: what is left of the object inside ``window``; must have an area.
    """
    points = [v for ring in outlines(shape) for v in ring]
    candidates = [min_area_corners(points), _box_at(points, angle), hbb_corners(hbb_of(points))]
    fitted = [_shrink_into(c, window) for c in candidates]
    best = max(range(3), key=lambda k: (round(_iou_with(shape, fitted[k]), 6), -k))
    return fitted[best]


def _iou_with(shape: BaseGeometry, corners: Corners) -> float:
    other = polygon(corners)
    inter = intersections(shape, other).area
    total = shape.area + other.area - inter
    return inter / total if total > 0 else 0.0


def _box_at(points: Sequence[float], angle: float) -> Corners:
    p = np.asarray(points, np.float64).reshape(-1, 2)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # rows: the box's own axes
    q = p @ turn.T
    low, high = q.min(0), q.max(0)
    cx, cy = ((low + high) / 2) @ turn
    return le90_to_corners((float(cx), float(cy), float(high[0] - low[0]), float(high[1] - low[1]), angle))


def _shrink_into(corners: Corners, window: Sequence[float]) -> Corners:
    p = np.asarray(corners, np.float64).reshape(4, 2)
    centre = p.mean(0)
    low, high = np.asarray(window[:2], np.float64), np.asarray(window[2:], np.float64)
    offset = p - centre
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        room = np.where(offset > 0, (high - centre) / offset, np.where(offset < 0, (low - centre) / offset, np.inf))
    p = centre + offset * min(1.0, max(0.0, float(room.min())))
    return tuple(float(v) for v in np.clip(p, low, high).ravel())  # type: ignore[return-value]
