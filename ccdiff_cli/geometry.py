"""Boxes and polygons in pixels: HBB, four corners, le90, clipping, rotated IoU.

Notable here:

* le90 is ``(cx, cy, w, h, angle)`` with w >= h and the angle of the long side in [-pi/2, pi/2) radians, measured from the x axis
  towards the y axis (y points down, so a positive angle turns clockwise on the screen).  A square's angle lies in [-pi/4, pi/4).
* Areas, intersections and clipping come from shapely (double precision); the minimum-area rectangle from OpenCV, which works in single
  precision, so points are centred first and the result is good to about 1e-4 of the object's size.
* NOTE: a quadrilateral that is not a rectangle becomes its minimum-area rectangle on its way to le90.

The rule for an oriented box that a border cuts (:func:`cut_box`; of a tile or of a picture beyond which its labels reach).  An OBB may
reach beyond the picture.  Where at least ``WHOLE_SHARE`` of its area is inside, it stays whole, as annotated.  Else it becomes the
smallest rectangle at its own angle around what is visible of the object, which may reach beyond, too: the part of it inside the picture
is then just the visible part of a rectangular object (the minimum-area rectangle at any angle, which is turned, agrees less).  Only
where the mask of the visible part says clearly otherwise (an IoU better by ``_CLEARLY``) is the minimum-area rectangle taken, and the
object counts as one whose box was turned.  The HBB always lies inside, tight around the visible part; so do masks.
"""

from __future__ import annotations

import itertools
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
    """The common parts of two geometries, or of the geometries of two arrays one by one.

    NOTE: of outlines that all but coincide GEOS 3.14 finds in one of some thousand cases that they have nothing in common.
    """
    common = _overlaid(shapely.intersection, a, b)
    none = shapely.area(common) == 0
    if not np.any(none):
        return common
    if np.ndim(common) == 0:
        return shapely.intersection(a, b, grid_size=_GRID) if _overlapping(a, b) else common
    ones, others = (np.broadcast_to(shapes, np.shape(common))[none] for shapes in (a, b))
    lost = np.flatnonzero(none)[_overlapping(ones, others)]
    common.flat[lost] = shapely.intersection(*(np.broadcast_to(shapes, np.shape(common)).flat[lost] for shapes in (a, b)), grid_size=_GRID)
    return common


def _overlapping(a: Any, b: Any) -> Any:
    """Whether a point inside one geometry is inside the other."""
    return shapely.contains_properly(a, shapely.point_on_surface(b)) | shapely.contains_properly(b, shapely.point_on_surface(a))


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


WHOLE_SHARE = 0.7
"""An oriented box stays whole where at least this share of its area is in the window (the threshold of DOTA's development kit)."""
INSIDE, WHOLE, FITTED, TURNED = (
    "",
    "oriented boxes kept whole that reach beyond the picture",
    f"oriented boxes fitted to the visible part (less than {WHOLE_SHARE:.0%} of the box is in the picture)",
    "oriented boxes fitted to the visible part and turned (its mask lies clearly otherwise than the box)",
)
"""What :func:`cut_box` did, as it is counted in a manifest."""
_CLEARLY = 0.1
_TOUCHING = 0.05
"""Pixels: a box that reaches so little beyond (rounding of labels, of minimum-area rectangles) is moved to the border."""


def cut_box(corners: Corners, visible: BaseGeometry, window: Sequence[float]) -> tuple[Corners, str]:
    """The oriented box of an object that a window cuts; see the rule in the module's opening.

    Args:
        corners: the whole box.
        visible: what of the object (its mask where known, else its box) is in the window; must have an area.
        window: x1 y1 x2 y2.

    Returns:
        The box, which may reach beyond the window, and one of INSIDE, WHOLE, FITTED, TURNED. Fitted corners start where the whole box's do.
    """
    if corners_inside(corners, window, _TOUCHING):
        held = np.clip(np.reshape(corners, (4, 2)), window[:2], window[2:])
        return tuple(float(v) for v in held.ravel()), INSIDE  # type: ignore[return-value]
    whole = polygon(corners)
    if whole.area > 0 and clip(whole, window).area >= WHOLE_SHARE * whole.area:
        return corners, WHOLE
    points = [v for ring in outlines(visible) for v in ring]
    upright, turned = _box_at(points, corners_to_le90(corners)[4]), min_area_corners(points)
    agreement, other = (_iou_of(clip(polygon(c), window), visible) for c in (upright, turned))
    fitted, how = (turned, TURNED) if other > agreement + _CLEARLY else (upright, FITTED)
    return _ordered_as(corners, fitted), how


def quadrilateral_inside(corners: Corners, window: Sequence[float], read_as: Callable[[Corners], Corners]) -> Corners:
    """Four points inside a window that stand for the visible part of a box which reaches beyond, for formats that forbid points outside.

    Tried are every four corners of the visible part, the box's own corners moved to the border, and the HBB; the one wins that, as its
    readers take it, agrees best (by IoU, inside the window) with the visible part.

    Args:
        read_as: what a reader makes of four points (``min_area_corners``, or the points themselves).
    """
    low, high = np.asarray(window[:2], np.float64), np.asarray(window[2:], np.float64)
    moved = tuple(float(v) for v in np.clip(np.reshape(corners, (4, 2)), low, high).ravel())
    visible = clip(polygon(corners), window)
    if visible.area <= 0:
        return moved  # type: ignore[return-value]
    hull = np.asarray(visible.convex_hull.exterior.coords)[:-1]
    fours = [tuple(float(v) for v in hull[list(chosen)].ravel()) for chosen in itertools.combinations(range(len(hull)), 4)]
    candidates: list[Any] = [moved, *fours, hbb_corners(shapely.bounds(visible))]
    return max(candidates, key=lambda four: round(_iou_of(clip(polygon(read_as(four)), window), visible), 6))


def visible_hbbs(corners: np.ndarray, window: Any) -> np.ndarray:
    """(N, 4) horizontal boxes around the parts of oriented boxes (N, 8) inside ``window``; of one without any, its HBB moved to the border.

    NOTE: of a box that slants through the border it is smaller than the HBB's part inside.

    Args:
        window: x1 y1 x2 y2, or (N, 4) of them.
    """
    corners = np.asarray(corners, np.float64).reshape(-1, 8)
    window = np.broadcast_to(np.asarray(window, np.float64), (len(corners), 4))
    first, last = np.tile(window[:, :2], 2), np.tile(window[:, 2:], 2)
    hulls = np.concatenate(_extents(corners), axis=1)
    boxes = np.clip(hulls, first, last)
    cut = np.flatnonzero((hulls != boxes).any(axis=1))
    if len(cut):
        parts = intersections(quadrilaterals(corners[cut]), shapely.box(*window[cut].T))
        there = shapely.area(parts) > 0
        cut = cut[there]
        boxes[cut] = np.clip(shapely.bounds(parts[there]), first[cut], last[cut])
    return boxes


def fitted_corners(corners: Corners, window: Sequence[float]) -> Corners:
    """The smallest rectangle at a box's own angle around the part of it inside a window; the box itself where all or nothing of it is."""
    if corners_inside(corners, window):
        return corners
    visible = clip(polygon(corners), window)
    if visible.area <= 0:
        return corners
    return _ordered_as(corners, _box_at([v for ring in outlines(visible) for v in ring], corners_to_le90(corners)[4]))


def area_inside(corners: Sequence[float], width: float, height: float) -> float:
    """The area of the part of an outline that lies in a picture, pixels squared."""
    return float(clip(polygon(corners), (0, 0, width, height)).area)


def _iou_of(one: BaseGeometry, other: BaseGeometry) -> float:
    inter = intersections(one, other).area
    total = one.area + other.area - inter
    return inter / total if total > 0 else 0.0


def _ordered_as(model: Sequence[float], corners: Corners) -> Corners:
    """The same rectangle, its corners in the order in which those of ``model``, which is turned alike, run."""
    p, q = (np.asarray(c, np.float64).reshape(4, 2) for c in (corners, model))
    orders = [np.roll(np.arange(4)[::way], k) for way in (1, -1) for k in range(4)]
    best = max(orders, key=lambda order: float(((p[order] - p.mean(0)) * (q - q.mean(0))).sum()))
    return tuple(float(v) for v in p[best].ravel())  # type: ignore[return-value]


def _box_at(points: Sequence[float], angle: float) -> Corners:
    p = np.asarray(points, np.float64).reshape(-1, 2)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # rows: the box's own axes
    q = p @ turn.T
    low, high = q.min(0), q.max(0)
    cx, cy = ((low + high) / 2) @ turn
    return le90_to_corners((float(cx), float(cy), float(high[0] - low[0]), float(high[1] - low[1]), angle))
