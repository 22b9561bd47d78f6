"""Overlaps: the minimum translation against shapely, repair leaves nothing on top of anything and nothing outside."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.geometry import le90_to_corners, rotated_iou
from ccdiff_cli.layouts.repair import Overlaps, minimum_translation, overlap_shares, repair
from ccdiff_cli.scene import Instance, Scene

BOXES = st.tuples(st.floats(-20, 150), st.floats(-20, 150), st.floats(4, 60), st.floats(4, 60), st.floats(-1.57, 1.57))


def corners(box):
    return np.array(le90_to_corners(box)).reshape(4, 2)


@settings(max_examples=150, deadline=None)
@given(BOXES, BOXES)
def test_the_translation_parts_the_boxes_and_no_shorter_one_does(one, other):
    a, b = corners(one), corners(other)
    shift = minimum_translation(a, b)
    inter = shapely.Polygon(a).intersection(shapely.Polygon(b)).area
    if inter < 1e-9:
        assert np.hypot(*shift) < 1e-6
        return
    length = float(np.hypot(*shift))
    assert shapely.Polygon(a).intersection(shapely.Polygon(b + shift * (1 + 1e-9) + 1e-9 * np.sign(shift))).area < 1e-5
    if length > 0.05:
        for angle in np.linspace(0, 2 * math.pi, 24, endpoint=False):  # the Minkowski difference has no nearer border
            step = 0.98 * length * np.array([math.cos(angle), math.sin(angle)])
            assert shapely.Polygon(a).intersection(shapely.Polygon(b + step)).area > 0


@settings(max_examples=30, deadline=None)
@given(st.lists(BOXES, max_size=10), st.data())
def test_repaired_layouts_are_inside_and_apart(boxes, data):
    instances = tuple(Instance.from_corners(data.draw(st.sampled_from(["ship", "court"])), le90_to_corners(b)) for b in boxes)
    scene = Scene("s.png", 128, 96, instances)
    made, counts = repair(scene)
    assert len(made.instances) == len(instances) - counts["left_out"] and min(counts.values()) >= 0
    values = np.array([(*i.corners, *i.hbb) for i in made.instances]).reshape(-1, 12)
    if len(values):
        assert values.min() >= 0 and values[:, 0::2].max() <= 128 and values[:, 1::2].max() <= 96
    _, _, shares = overlap_shares(values[:, :8])
    assert not (shares > 2e-3).any()
    assert all(i.hbb[2] > i.hbb[0] and i.hbb[3] > i.hbb[1] for i in made.instances)


def test_what_is_in_order_is_left_alone():
    scene = Scene("s.png", 64, 64, (Instance.from_hbb("ship", (0, 0, 10, 10)), Instance.from_hbb("ship", (10, 0, 20, 10))))
    made, counts = repair(scene)
    assert made == scene and counts == {"moved": 0, "shrunk": 0, "left_out": 0}


def test_two_boxes_give_way_by_half_each_and_fixed_ones_stay():
    pair = (Instance.from_hbb("ship", (20, 20, 40, 30)), Instance.from_hbb("ship", (36, 20, 56, 30)))
    scene = Scene("s.png", 128, 128, pair)
    made, counts = repair(scene)
    assert counts["moved"] == 2
    assert made.instances[0].hbb == pytest.approx((18, 20, 38, 30), abs=0.05) and made.instances[1].hbb == pytest.approx(
        (38, 20, 58, 30), abs=0.05
    )
    made, counts = repair(scene, fixed=1)
    assert made.instances[0] == pair[0] and made.instances[1].hbb == pytest.approx((40, 20, 60, 30), abs=0.05)


def test_a_picture_too_full_loses_objects_and_says_so():
    boxes = tuple(Instance.from_hbb("ship", (0, 0, 60, 60)) for _ in range(9))
    made, counts = repair(Scene("s.png", 64, 64, boxes))
    assert counts["left_out"] + len(made.instances) == 9 and counts["left_out"] > 0 and counts["shrunk"] > 0
    found = np.array([i.corners for i in made.instances])
    assert (rotated_iou(found, found) - np.eye(len(found))).max() < 2e-3


def test_a_horizontal_box_smaller_than_its_corners_goes_along():
    ship = Instance.from_corners("ship", le90_to_corners((64, 64, 40, 10, 0.6)), hbb=(50, 55, 78, 73))
    other = Instance.from_corners("ship", le90_to_corners((64, 66, 40, 10, 0.6)), hbb=(50, 57, 78, 75))
    made, counts = repair(Scene("s.png", 128, 128, (ship, other)))
    assert counts["moved"] == 2
    for before, after in zip((ship, other), made.instances, strict=True):
        shift = np.array(after.corners[:2]) - before.corners[:2]
        assert np.array(after.hbb) == pytest.approx(np.add(before.hbb, (*shift, *shift)))


def test_usual_overlaps_are_learned_and_kept():
    bridge = Instance.from_hbb("bridge", (10, 40, 110, 60))
    scenes = [Scene(f"{k}.png", 128, 128, (bridge, Instance.from_hbb("vehicle", (40 + k, 45, 50 + k, 55)))) for k in range(9)]
    scenes += [Scene("x.png", 128, 128, (bridge, Instance.from_hbb("vehicle", (40, 80, 50, 90))))]
    usual = Overlaps(scenes)
    assert usual("bridge", "vehicle") == usual("vehicle", "bridge") == pytest.approx(1.0)
    assert usual("vehicle", "vehicle") == 0.0 and usual("ship", "bridge") == 0.0
    assert usual.rate("vehicle", "bridge") == usual.rate("bridge", "vehicle") == pytest.approx(0.9) and usual.rate("bridge", "ship") == 0.0
    assert repair(scenes[0], allowed=usual)[0] == scenes[0]
    assert repair(scenes[0])[1]["moved"] == 2


def test_a_box_that_reached_beyond_has_the_hbb_of_its_corners_once_inside():
    corners = (-13.0, 40.0, 21.0, 40.0, 21.0, 60.0, -13.0, 60.0)
    cut = Instance.from_corners("ship", corners, (0.0, 40.0, 21.0, 60.0))
    made, counts = repair(Scene("a.png", 128, 128, (cut,)))
    assert counts["moved"] == 1 and made.instances[0].hbb == pytest.approx((0, 40, 34, 60))
