"""Tiles: where they lie, what they keep, clip and count."""

import math
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely import affinity

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import FITTED, TURNED, WHOLE, clip_hbb, corners_inside, corners_to_le90, hbb_of, le90_to_corners, polygon
from ccdiff_cli.prepare.tiling import cut_scene, offsets, pad_and_resize, tile_origins
from ccdiff_cli.scene import Instance, Scene


@given(st.integers(1, 3000), st.integers(8, 700), st.data())
@settings(max_examples=100, deadline=None)
def test_tiles_cover_the_side_and_overlap_enough(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    if length / (tile - overlap) > 5000:
        return
    starts = offsets(length, tile, overlap)
    assert starts[0] == 0 and starts == sorted(set(starts))
    if length <= tile:
        assert starts == [0]
    else:
        assert starts[-1] == length - tile  # the last tile is shifted inside the picture
        assert all(b - a <= tile - overlap for a, b in pairwise(starts))


def test_origins_row_by_row():
    assert tile_origins(500, 256, 256, 64) == [(0, 0), (192, 0), (244, 0)]
    with pytest.raises(CCDiffError, match="overlap"):
        offsets(100, 50, 50)


def cut(instance, origin=(0, 0), side=100, scale=1.0, size=(300, 300)):
    return cut_scene(Scene("a.png", *size, (instance,)), origin, side, scale, keep=0.7, difficult=0.2)


def test_whole_objects_move_and_scale():
    corners = le90_to_corners((150, 150, 30, 10, 0.3))
    instance = Instance.from_corners("ship", corners, mask=(corners,), extra={"id": 5})
    (moved,), counts = cut(instance, origin=(100, 100), side=100, scale=0.5)
    expected = [(v - 100) / 2 for v in corners]
    assert moved.corners == pytest.approx(expected, abs=1e-3) and moved.mask[0] == pytest.approx(expected, abs=1e-3)
    assert moved.hbb == pytest.approx(hbb_of(expected), abs=1e-3)
    assert moved.extra == {"id": 5, "object": 0} and not moved.difficult
    assert counts == {"kept": 1, "kept as difficult": 0, "cut off": 0, WHOLE: 0, FITTED: 0, TURNED: 0}


@pytest.mark.parametrize(
    ("x", "kept", "difficult"),
    [(60, 1, False), (71.9, 1, False), (72.1, 1, True), (91.9, 1, True), (92.1, 0, None), (99, 0, None), (120, 0, None)],
)
def test_shares_decide(x, kept, difficult):
    """Of a 40 px wide box from x, (100 - x) / 40 is inside: 0.7 at 72, 0.2 at 92."""
    found, counts = cut(Instance.from_hbb("ship", (x, 10, x + 40, 30)))
    assert len(found) == kept
    if kept:
        assert found[0].difficult == difficult and found[0].hbb == pytest.approx((x, 10, min(100, x + 40), 30), abs=1e-3)
    assert sum(counts.values()) == (x < 100)  # outside altogether: not this tile's business


boxes = st.tuples(st.floats(-20, 320), st.floats(-20, 320), st.floats(4, 200), st.floats(4, 200), st.floats(-3, 3))


@given(boxes, st.booleans())
@settings(max_examples=100, deadline=None)
def test_kept_objects_agree_with_what_is_visible_and_shares_are_right(box, masked):
    corners = le90_to_corners(box)
    shape = polygon(corners).intersection(shapely.box(0, 0, 300, 300))
    if shape.area < 1:
        return
    hbb = shapely.bounds(shape)
    instance = Instance.from_corners("ship", corners, hbb, mask=(corners,) if masked else ())
    found, counts = cut(instance, origin=(100, 100), side=100)
    share = shape.intersection(shapely.box(100, 100, 200, 200)).area / shape.area
    if abs(share - 0.7) > 1e-3 and abs(share - 0.2) > 1e-3:
        assert len(found) == (share >= 0.2) and counts["kept"] == (share >= 0.7)
    for part in found:
        for points in (part.hbb, *part.mask):
            x1, y1, x2, y2 = hbb_of(points)
            assert x1 >= 0 and y1 >= 0 and x2 <= 100 and y2 <= 100
        assert part.hbb[2] > part.hbb[0] and part.hbb[3] > part.hbb[1]
        tile = shapely.box(0, 0, 100, 100)
        seen = affinity.translate(shape, -100, -100).intersection(tile)
        held = polygon(part.corners).intersection(tile)
        if seen.area > 10:
            assert held.intersection(seen).area / held.union(seen).area > 0.98
            assert part.hbb == pytest.approx(seen.bounds, abs=2e-3)
    how = {k: counts[k] for k in (WHOLE, FITTED, TURNED)}
    reaching = [not corners_inside(i.corners, (0, 0, 100, 100), 2e-3) for i in found]
    assert sum(how.values()) >= sum(reaching) and sum(how.values()) <= len(found)


def test_only_the_objects_asked_for_are_looked_at():
    scene = Scene("a.png", 300, 300, tuple(Instance.from_hbb("ship", (10 * k, 10, 10 * k + 8, 20)) for k in range(5)))
    found, counts = cut_scene(scene, (0, 0), 100, 1.0, keep=0.7, difficult=0.2, among=[1, 3])
    assert [i.extra["object"] for i in found] == [1, 3] and counts["kept"] == 2


def test_the_hbb_of_a_slanted_object_that_is_cut_fits_what_is_left():
    corners = le90_to_corners((100, 50, 80, 6, math.pi / 4))  # from upper left to lower right, through the right border
    (part,), _ = cut(Instance.from_corners("ship", corners), side=100)
    assert part.difficult and part.hbb[3] < 60  # the lower half lies in the next tile
    assert corners_to_le90(part.corners)[4] == pytest.approx(math.pi / 4, abs=1e-3)  # half of it is visible: shorter, but not turned
    assert corners_to_le90(part.corners)[2:4] == pytest.approx((43, 6), abs=0.01)


def test_an_oriented_box_stays_whole_where_enough_of_it_is_visible():
    corners = le90_to_corners((80, 50, 60, 20, 0.6))
    (part,), counts = cut(Instance.from_corners("ship", corners, extra={"id": 1}), side=100)
    assert part.corners == pytest.approx(corners, abs=1e-3) and part.oriented and not part.difficult
    assert max(part.corners) > 100 and part.hbb[2] == 100 and counts[WHOLE] == 1 and counts[FITTED] == 0


def test_a_box_whose_mask_knows_better():
    """An upright mask in a slanted box: what the mask shows of it is taken."""
    mask = (70.0, 20.0, 90.0, 20.0, 90.0, 60.0, 130.0, 60.0, 130.0, 70.0, 70.0, 70.0)
    instance = Instance.from_corners("ship", le90_to_corners((110, 40, 130, 60, 0.7)), hbb_of(mask), mask=(mask,))
    (part,), counts = cut(instance, side=100)
    assert counts[TURNED] == 1 and counts[FITTED] == counts[WHOLE] == 0 and part.hbb == (70, 20, 100, 70)
    assert hbb_of(part.corners) == pytest.approx(part.hbb, abs=1e-3) and polygon(part.corners).area == pytest.approx(1500)


def test_padding_mirrors_only_what_carries_no_label():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = Image.fromarray(pixels)
    whole, how = pad_and_resize(image, (0, 0), 100, 100, [])
    array = np.asarray(whole)
    assert how == "reflect" and (array[:60, :80] == pixels).all() and (array[60:100, :80] == pixels[::-1][:40]).all()
    _, how = pad_and_resize(image, (0, 0), 100, 100, [Instance.from_hbb("ship", (2, 2, 9, 9))])
    assert how == "reflect"  # far from the borders that are mirrored
    edged, how = pad_and_resize(image, (0, 0), 100, 100, [Instance.from_hbb("ship", (2, 40, 9, 50))])
    assert how == "edge" and (np.asarray(edged)[60:, :80] == pixels[59]).all()
    assert pad_and_resize(image.crop((10, 0, 60, 50)), (10, 0), 50, 25, [])[0].size == (25, 25)


_number = st.one_of(
    st.floats(-1e9, 1e9), st.integers(-10, 110).map(float), st.floats(-1, 101), st.sampled_from([0.0, 1e9, -1e9, 1e-300, 64.0, 96.0])
)
_ring = st.lists(_number, min_size=3, max_size=14).filter(lambda v: len(v) % 2 == 0).map(tuple)
_flat = (0.0, 0.0, 1.0, 1.0, 0.0, 1e-300, 0.0, 1.0, 0.0, 1.0, 1.0, -1.0)
"""An outline for which the overlay of shapely fails."""


@given(st.lists(st.tuples(st.tuples(*[_number] * 4), st.tuples(*[_number] * 8), st.lists(_ring, max_size=3), st.booleans()), max_size=2))
@example([((0.0, 0.0, 1.0, 1.0), (0.0,) * 8, [_flat], False)])
@settings(max_examples=150, deadline=None)
def test_whatever_a_reader_lets_through_can_be_cut(objects):
    """Masks and corners of any finite numbers: degenerate, crossing, far outside."""
    made = []
    for (x1, y1, x2, y2), corners, mask, oriented in objects:
        hbb = clip_hbb((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), (0, 0, 96, 64))
        if hbb is not None:
            made.append(Instance.from_corners("ship", corners, hbb, mask=tuple(mask)) if oriented else
                        Instance.from_hbb("ship", hbb, mask=tuple(mask)))  # fmt: skip
    for origin in ((0, 0), (10, 5), (60, 30)):
        kept, _ = cut_scene(Scene("a", 96, 64, tuple(made)), origin, 40, 0.5, keep=0.7, difficult=0.2)
        for instance in kept:
            assert all(-1e-3 <= v <= 20.001 for v in instance.hbb)
            assert all(math.isfinite(v) for v in instance.corners)
            assert all(math.isfinite(v) for ring in instance.mask for v in ring)
