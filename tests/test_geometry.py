"""Geometry against shapely and OpenCV, by property."""

import math

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ccdiff_cli import geometry as g

coordinate = st.floats(-500, 1500, allow_nan=False, width=32)
length = st.floats(0.5, 800)
angle = st.floats(-10, 10)
boxes = st.tuples(coordinate, coordinate, length, length, angle)
quadrilateral = st.tuples(*[st.integers(-20, 20).map(float)] * 8)
"""Any four corners: on whole numbers, so that crossing, flat, doubled and spiked ones are common."""
points = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=12)


def shape(corners) -> shapely.Polygon:
    return shapely.Polygon(np.reshape(corners, (-1, 2)))


@given(boxes)
@settings(max_examples=100, deadline=None)
def test_le90_round_trip(box):
    """corners -> le90 -> corners is the same rectangle; le90 obeys its own ranges."""
    corners = g.le90_to_corners(box)
    cx, cy, w, h, a = g.corners_to_le90(corners)
    assert w >= h > 0 and -math.pi / 2 <= a < math.pi / 2
    assert (cx, cy) == pytest.approx(box[:2], abs=1e-6) and (w, h) == pytest.approx((max(box[2:4]), min(box[2:4])), rel=1e-6)
    again = shape(g.le90_to_corners((cx, cy, w, h, a)))
    assert again.symmetric_difference(shape(corners)).area <= 1e-4 * again.area + 1e-6


@given(boxes)
@settings(max_examples=100, deadline=None)
def test_le90_does_not_depend_on_where_or_which_way_the_corners_start(box):
    corners = np.reshape(g.le90_to_corners(box), (4, 2))
    expected = shape(corners)
    for turned in (np.roll(corners, 1, 0), np.roll(corners, 3, 0), corners[::-1]):
        found = shape(g.le90_to_corners(g.corners_to_le90(turned.ravel().tolist())))
        assert shapely.symmetric_difference(found, expected, grid_size=1e-6).area <= 1e-4 * expected.area + 1e-3


@given(boxes)
@settings(max_examples=100, deadline=None)
def test_corners_agree_with_opencv(box):
    cx, cy, w, h, a = box
    ours = shape(g.le90_to_corners(box))
    theirs = shape(cv2.boxPoints(((cx, cy), (w, h), math.degrees(a))))
    assert ours.symmetric_difference(theirs).area <= 2e-3 * (w + h) + 1e-3 * ours.area


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((0, 0, 4, 0, 4, 2, 0, 2), (2, 1, 4, 2, 0.0)),  # lying
        ((0, 0, 2, 0, 2, 4, 0, 4), (1, 2, 4, 2, -math.pi / 2)),  # standing: pi/2 is outside the range
        ((0, 0, 3, 3, 2, 4, -1, 1), (1, 2, 3 * math.sqrt(2), math.sqrt(2), math.pi / 4)),  # towards the lower right
        ((0, 0, 2, 0, 2, 2, 0, 2), (1, 1, 2, 2, 0.0)),  # a square
        ((5, 5, 5, 5, 5, 5, 5, 5), (5, 5, 0, 0, 0.0)),  # a point
    ],
)
def test_le90_of_known_boxes(corners, expected):
    assert g.corners_to_le90(corners) == pytest.approx(expected, abs=1e-6)


@given(points)
@settings(max_examples=100, deadline=None)
def test_min_area_rectangle_against_shapely(pts):
    """It holds every point, and its area is that of GEOS's minimum rotated rectangle."""
    hull = shapely.MultiPoint(pts).convex_hull
    assume(hull.geom_type == "Polygon" and hull.area > 1 and hull.area > 1e-3 * hull.length**2)
    corners = g.min_area_corners([v for p in pts for v in p])
    rectangle = shape(corners)
    assert rectangle.buffer(1e-3 * math.sqrt(hull.area) + 1e-3).covers(hull)
    # Calipers rest on a hull edge: the smallest over all edges is the answer, worked out here without OpenCV.
    ring = np.asarray(hull.exterior.coords)
    areas = []
    for edge in np.diff(ring, axis=0):
        n = np.linalg.norm(edge)
        if n == 0:
            continue
        u = edge / n
        q = ring @ np.array([[u[0], -u[1]], [u[1], u[0]]])
        areas.append(np.prod(q.max(0) - q.min(0)))
    assert rectangle.area == pytest.approx(min(areas), rel=1e-3, abs=1e-2)


@given(boxes, boxes)
@settings(max_examples=100, deadline=None)
def test_rotated_iou_against_shapely(a, b):
    ca, cb = g.le90_to_corners(a), g.le90_to_corners(b)
    inter, union = shape(ca).intersection(shape(cb)).area, shape(ca).union(shape(cb)).area
    found = g.rotated_iou(np.array([ca, cb]), np.array([cb]))
    assert found[0, 0] == pytest.approx(inter / union, abs=1e-6) and found[1, 0] == pytest.approx(1.0, abs=1e-6)
    assert g.polygon_iou(ca, cb) == pytest.approx(found[0, 0], abs=1e-9)


def test_the_overlap_of_boxes_that_all_but_coincide_is_not_lost():
    """A plain overlay of GEOS finds nothing in common of these, and of one such pair in about 1,500."""
    corners = np.reshape(g.le90_to_corners((-195.0, -336.0, 334.16286346497185, 466.38565942328717, 9.13671875)), (4, 2))
    again = g.le90_to_corners(g.corners_to_le90(np.roll(corners, 3, 0).ravel().tolist()))
    assert g.polygon_iou(corners.ravel().tolist(), again) == pytest.approx(1, abs=1e-6)
    apart = g.hbb_corners((0, 0, 1, 1))
    assert g.rotated_iou(np.array([corners.ravel(), apart]), np.array([again, apart])) == pytest.approx(np.eye(2), abs=1e-6)


def parts(corners) -> list:
    """The simple polygons that any four corners enclose."""
    pieces = shapely.get_parts(shapely.make_valid(shape(corners)))
    return [q for p in pieces for q in shapely.get_parts(p) if q.geom_type == "Polygon"]


@given(st.lists(quadrilateral, max_size=3), st.lists(quadrilateral, max_size=3))
@example([(4.0, -2.0, -13.0, -6.0, 15.0, 2.0, 1.0, 0.0)], [(0.0, -4.0, -13.0, -6.0, 15.0, 2.0, 6.0, 0.0)])
@settings(max_examples=50, deadline=None)
def test_rotated_iou_of_any_corners_against_shapely(a, b):
    """Self-crossing, flat and 1-pixel boxes too; added up here piece by piece, on a grid, off which GEOS loses one piece of the example."""
    found = g.rotated_iou(np.array(a).reshape(-1, 8), np.array(b).reshape(-1, 8))
    assert found.shape == (len(a), len(b))
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            inter = sum(shapely.intersection(p, q, grid_size=1e-9).area for p in parts(one) for q in parts(other))
            union = sum(p.area for p in parts(one) + parts(other)) - inter
            assert found[i, j] == pytest.approx(inter / union if union else 0, abs=1e-6)
            assert g.polygon_iou(one, other) == pytest.approx(found[i, j], abs=1e-9)


@given(quadrilateral, st.sampled_from([0.0, 1e4]))
@settings(max_examples=50, deadline=None)
def test_le90_of_any_corners_holds_them(corners, far):
    """Crossing, flat and 1-pixel quadrilaterals, also in the far corner of a large scene: their le90 is a rectangle around them."""
    corners = tuple(v + far for v in corners)
    cx, cy, w, h, a = g.corners_to_le90(corners)
    assert w >= h >= 0 and -math.pi / 2 <= a < math.pi / 2
    turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    local = np.abs((np.reshape(corners, (4, 2)) - (cx, cy)) @ turn)
    assert (local <= np.array([w, h]) / 2 + 1e-3).all()
    hull = shapely.MultiPoint(np.reshape(corners, (4, 2))).convex_hull
    if hull.area > 1:
        assert w * h <= hull.minimum_rotated_rectangle.area * (1 + 1e-3) + 1e-3
    again = g.corners_to_le90(g.le90_to_corners((cx, cy, w, h, a)))
    assert again[:4] == pytest.approx((cx, cy, w, h), abs=1e-3)


@given(st.integers(0, 19_999), st.integers(0, 19_999), st.integers(0, 3), st.booleans())
@settings(max_examples=50, deadline=None)
def test_one_pixel_boxes(x, y, first, backwards):
    hbb = (float(x), float(y), x + 1.0, y + 1.0)
    corners = np.roll(np.reshape(g.hbb_corners(hbb), (4, 2)), first, 0)[:: -1 if backwards else 1].ravel().tolist()
    assert g.corners_to_le90(corners) == pytest.approx((x + 0.5, y + 0.5, 1, 1, 0), abs=1e-9)
    assert g.hbb_of(corners) == hbb and g.polygon_iou(corners, g.hbb_corners(hbb)) == pytest.approx(1)
    assert g.clip_hbb(hbb, (0, 0, 20_000, 20_000)) == hbb and g.clip_hbb(hbb, (x + 1, 0, 20_000, 20_000)) is None


@given(quadrilateral, st.tuples(st.integers(-25, 25), st.integers(-25, 25), st.integers(1, 30), st.integers(1, 30)))
@settings(max_examples=50, deadline=None)
def test_any_corners_clipped_to_a_window(corners, place):
    """Far outside it, crossing it, crossing themselves."""
    window = (place[0], place[1], place[0] + place[2], place[1] + place[3])
    expected = sum(p.intersection(shapely.box(*window)).area for p in parts(corners))
    left = g.clip(g.polygon(corners), window)
    assert left.area == pytest.approx(expected, abs=1e-9)
    if left.area > 1e-6:
        held, how = g.cut_box(corners, left, window)
        if how in (g.FITTED, g.TURNED):
            assert all(shape(held).buffer(1e-3).covers(shape(ring)) for ring in g.outlines(left))
            assert np.abs(held).max() <= np.abs(window).max() + 1.5 * max(place[2:])  # around the visible part, wherever the rest lies
        else:
            assert how == g.WHOLE or g.corners_inside(held, window, 0)
            assert held == pytest.approx(corners, abs=0.05)
    else:
        assert sum(g.polygon(ring).area for ring in g.outlines(left)) <= 1e-6


def test_rotated_iou_of_nothing_and_of_a_quarter_turn():
    assert g.rotated_iou(np.zeros((0, 8)), np.zeros((3, 8))).shape == (0, 3)
    assert g.rotated_iou(np.zeros((1, 8)), np.zeros((1, 8)))[0, 0] == 0  # no area: no overlap, no division by zero
    upright, turned = g.le90_to_corners((0, 0, 4, 4, 0)), g.le90_to_corners((0, 0, 4, 4, math.pi / 4))
    octagon = 16 * (2 * math.sqrt(2) - 2)
    assert g.polygon_iou(upright, turned) == pytest.approx(octagon / (32 - octagon))


@given(boxes, boxes)
@settings(max_examples=100, deadline=None)
def test_hbb_iou_and_clip_against_shapely(a, b):
    ha, hb = g.hbb_of(g.le90_to_corners(a)), g.hbb_of(g.le90_to_corners(b))
    sa, sb = shapely.box(*ha), shapely.box(*hb)
    assert g.hbb_iou(np.array([ha]), np.array([hb]))[0, 0] == pytest.approx(sa.intersection(sb).area / sa.union(sb).area, abs=1e-6)
    clipped = g.clip_hbb(ha, hb)
    assert (0 if clipped is None else g.hbb_area(clipped)) == pytest.approx(sa.intersection(sb).area, rel=1e-6, abs=1e-3)


@given(points)
@settings(max_examples=100, deadline=None)
def test_clipping_any_outline(pts):
    """Self-crossing outlines too: what is left lies inside, and its outlines have its area where it has no holes."""
    window = (0.0, 0.0, 400.0, 300.0)
    whole = g.polygon([v for p in pts for v in p])
    left = g.clip(whole, window)
    assert left.area <= min(whole.area, 400 * 300) * (1 + 1e-9) + 1e-6
    for ring in g.outlines(left):
        assert g.corners_inside(ring, window)
    assert sum(g.polygon(ring).area for ring in g.outlines(left)) >= left.area * (1 - 1e-6) - 1e-6


WINDOW = (0.0, 0.0, 500.0, 400.0)


def iou(a, b) -> float:
    inter, total = a.intersection(b).area, a.union(b).area
    return inter / total if total else 0.0


def cuts(seed: int, count: int):
    """Random boxes that the window's border cuts, and what is visible of them."""
    rng = np.random.default_rng(seed)
    while count:
        x, y, w, h, a = *rng.uniform(-100, 600, 2), *rng.uniform(4, 250, 2), rng.uniform(-np.pi, np.pi)
        corners = g.le90_to_corners((x, y, w, h, a))
        left = shape(corners).intersection(shapely.box(*WINDOW))
        if 0.02 * w * h < left.area < 0.999 * w * h:
            count -= 1
            yield corners, left


@given(boxes)
@settings(max_examples=200, deadline=None)
def test_a_cut_box_agrees_with_what_is_visible(box):
    """Whole with 70 % inside, else around the visible part; at its own angle, a rectangle, its first corner and direction kept."""
    corners = g.le90_to_corners(box)
    left = g.clip(shape(corners), WINDOW)
    assume(left.area > 1)
    held, how = g.cut_box(corners, left, WINDOW)
    share = left.area / shape(corners).area
    if how in (g.INSIDE, g.WHOLE):
        assert held == corners if how == g.WHOLE else np.allclose(held, corners, atol=0.05) and g.corners_inside(held, WINDOW, 0)
        assert (how == g.INSIDE) == g.corners_inside(corners, WINDOW, 0.05) and share >= 0.7 - 1e-9
    else:
        assert how == g.FITTED and share < 0.7
        assert shape(corners).buffer(1e-3).covers(shape(held))
        p, q = np.reshape(held, (4, 2)), np.reshape(corners, (4, 2))
        for one, other in zip(np.roll(p, -1, 0) - p, np.roll(q, -1, 0) - q, strict=True):  # every side runs as it did
            assert one @ other >= (1 - 1e-6) * np.linalg.norm(one) * np.linalg.norm(other) - 1e-6
        for k in range(4):  # nothing to spare: every side touches
            assert shapely.LineString([p[k], p[k - 1]]).distance(left) < 1e-3
    assert iou(shape(held).intersection(shapely.box(*WINDOW)), left) > (0.999 if how != g.INSIDE else 0.8)
    again, _ = g.cut_box(held, left, WINDOW)
    assert np.allclose(again, held, atol=0.051)  # cut again by the same border it stays as it is


def test_random_cuts_agree_on_average_and_keep_their_angle():
    found = [(g.cut_box(corners, left, WINDOW), corners, left) for corners, left in cuts(0, 400)]
    assert np.mean([iou(shape(c).intersection(shapely.box(*WINDOW)), left) for (c, _), _, left in found]) > 0.999
    assert np.mean([iou(shape(c), left) for (c, _), _, left in found]) > 0.75  # what lies beyond counted against it
    for (held, how), corners, _ in found:
        if how == g.WHOLE:
            assert g.corners_to_le90(held)[4] == g.corners_to_le90(corners)[4]
    assert {how for (_, how), _, _ in found} == {g.WHOLE, g.FITTED}


def test_what_is_visible_of_a_mask_may_turn_the_box():
    slanted = g.le90_to_corners((0, 200, 200, 40, 0.6))
    part = shape(g.le90_to_corners((40, 230, 80, 10, 0.1)))
    held, how = g.cut_box(slanted, part, WINDOW)
    assert how == g.TURNED and iou(shape(held), part) > 0.99  # the mask lies 0.5 radians off the box
    assert g.corners_to_le90(held)[4] == pytest.approx(0.1, abs=1e-3)
    held, how = g.cut_box(slanted, shape(g.le90_to_corners((40, 230, 60, 40, 0.58))), WINDOW)
    assert how == g.FITTED and g.corners_to_le90(held)[4] == pytest.approx(0.6, abs=1e-6)  # not clearly otherwise


def test_area_inside_a_picture():
    assert g.area_inside(g.hbb_corners((-10, -10, 20, 30)), 15, 20) == 300
    assert g.area_inside(g.hbb_corners((20, 0, 30, 10)), 15, 20) == 0


def test_degenerate_outlines_have_no_area():
    for points_ in ((), (1, 1), (1, 1, 2, 2), (0, 0, 1, 1, 2, 2), (3, 3) * 4):
        assert g.polygon(points_).area == 0 and g.outlines(g.polygon(points_)) == ()


@given(
    cx=st.floats(-10, 110), cy=st.floats(-10, 110), w=st.floats(8, 80), h=st.floats(4, 40), angle=st.floats(-math.pi / 2, math.pi / 2)
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_four_points_inside_stand_for_a_box_that_reaches_beyond(cx: float, cy: float, w: float, h: float, angle: float) -> None:
    window = (0.0, 0.0, 100.0, 100.0)
    box = g.le90_to_corners((cx, cy, w, h, angle))
    visible = g.clip(g.polygon(box), window)
    assume(visible.area > 1)
    for read_as in (g.min_area_corners, lambda four: four):
        four = g.quadrilateral_inside(box, window, read_as)
        assert g.corners_inside(four, window)
        moved = tuple(float(v) for v in np.clip(np.reshape(box, (4, 2)), 0, 100).ravel())

        def agreement(points, read_as=read_as) -> float:
            shown = g.clip(g.polygon(read_as(points)), window)
            common = g.intersections(shown, visible).area
            return common / (shown.area + visible.area - common)

        assert agreement(four) >= agreement(moved) - 1e-4  # never worse than corners moved to the border
        assert agreement(four) > 0.4


def test_four_points_inside_agree_on_average() -> None:
    rng, window, found, before = np.random.default_rng(0), (0.0, 0.0, 100.0, 100.0), [], []
    for _ in range(200):
        box = g.le90_to_corners((rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(20, 60), rng.uniform(8, 25), rng.uniform(0, 3)))
        if g.corners_inside(box, window):
            continue
        visible = g.clip(g.polygon(box), window)
        moved = tuple(np.clip(np.reshape(box, (4, 2)), 0, 100).ravel())
        for points, scores in ((g.quadrilateral_inside(box, window, g.min_area_corners), found), (moved, before)):
            shown = g.clip(g.polygon(g.min_area_corners(points)), window)
            common = g.intersections(shown, visible).area
            scores.append(common / (shown.area + visible.area - common))
    assert np.mean(found) > 0.9 and np.mean(found) > np.mean(before) + 0.02, (np.mean(found), np.mean(before))
