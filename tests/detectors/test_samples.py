"""Draws: determined by seed and number alone; boxes move with their pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ccdiff_cli.detectors.samples import Draws, count_unusable, draw_turn, rectangles_to_le90, scene_targets, turned, turned_points
from ccdiff_cli.geometry import corners_to_le90, le90_to_corners
from ccdiff_cli.scene import ClassList, Instance, Scene

from .small import CLASSES, make_set


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_boxes_follow_their_object_through_every_turn(flip, turns):
    picture = torch.zeros(3, 20, 30, dtype=torch.uint8)  # oblong, so that a mixed-up axis shows
    picture[:, 3:8, 10:17] = 255
    moved = turned(picture, flip, turns)
    boxes = turned_points(torch.tensor([[10.0, 3.0, 17.0, 8.0]]), 30, 20, flip, turns)
    corners = turned_points(torch.tensor([[[10.0, 3.0], [17.0, 3.0], [17.0, 8.0], [10.0, 8.0]]]), 30, 20, flip, turns)
    assert torch.equal(torch.cat((corners.amin(1), corners.amax(1)), 1), boxes)
    rows, columns = torch.nonzero(moved[0], as_tuple=True)
    assert boxes[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert moved.shape == ((3, 20, 30) if turns % 2 == 0 else (3, 30, 20))


def test_draws_depend_on_seed_and_number_alone(tmp_path):
    scenes = make_set(tmp_path, {"train": 5}).split("train")
    a, b = Draws(scenes, CLASSES, 1, 40, "turns"), Draws(scenes, CLASSES, 1, 40, "turns")
    for k in (17, 3, 39):  # in another order, from a fresh object
        assert torch.equal(a[k][0], b[k][0]) and torch.equal(a[k][1]["boxes"], b[k][1]["boxes"])
    other = Draws(scenes, CLASSES, 2, 40, "turns")
    assert any(not torch.equal(a[k][0], other[k][0]) for k in range(10))


def test_every_epoch_shows_every_picture_once(tmp_path):
    scenes = make_set(tmp_path, {"train": 5}).split("train")
    draws = Draws(scenes, CLASSES, 0, 10, "none")
    orders = []
    for epoch in range(2):
        shown = [draws[epoch * 5 + i][0].sum().item() for i in range(5)]
        orders.append(shown)
    assert sorted(orders[0]) == sorted(orders[1])


def test_all_eight_turns_occur():
    codes = {draw_turn(0, k, "turns") for k in range(200)}
    assert len(codes) == 8
    assert {draw_turn(0, k, "flip") for k in range(50)} == {(False, 0), (True, 0)}
    assert draw_turn(0, 3, "none") == (False, 0)


def test_targets_are_clipped_and_slivers_left_out():
    scene = Scene("a", 100, 50, tuple(Instance.from_hbb("plane", b) for b in ((-5, 10, 20, 60), (99.5, 0, 120, 20), (0, 0, 1, 1))))
    targets = scene_targets(scene, CLASSES)
    assert targets["boxes"].tolist() == [[0, 10, 20, 50], [0, 0, 1, 1]] and targets["labels"].tolist() == [2, 2]
    assert "corners" not in targets and count_unusable([scene], CLASSES) == 1


def test_oriented_targets_are_rectangles_and_thin_ones_left_out():
    slanted = le90_to_corners((50, 25, 30, 10, 0.4))
    kite = (10.0, 5.0, 20.0, 12.0, 40.0, 15.0, 12.0, 13.0)
    line = le90_to_corners((50, 25, 30, 0.5, 0.7))
    scene = Scene("a", 100, 50, tuple(Instance.from_corners("ship", c) for c in (slanted, kite, line)))
    targets = scene_targets(scene, CLASSES, oriented=True)
    assert count_unusable([scene], CLASSES, oriented=True) == 1 and count_unusable([scene], CLASSES) == 0
    assert len(targets["corners"]) == len(targets["labels"]) == len(targets["boxes"]) == 2
    assert corners_to_le90(targets["corners"][0].flatten().tolist()) == pytest.approx((50, 25, 30, 10, 0.4), abs=1e-4)
    sides = targets["corners"][1].roll(-1, 0) - targets["corners"][1]
    assert float((sides[0] * sides[1]).sum()) == pytest.approx(0, abs=1e-3)  # the kite became a rectangle


def test_labels_of_another_resolution_are_brought_to_the_picture(tmp_path):
    scene = make_set(tmp_path, {"train": 1}).split("train")[0]
    doubled = scene.replace(
        width=128, height=128, instances=tuple(Instance.from_hbb(i.category, np.array(i.hbb) * 2) for i in scene.instances)
    )
    a, b = (Draws([s], ClassList(CLASSES.names), 0, 1, "none")[0][1]["boxes"] for s in (scene, doubled))
    assert torch.equal(a, b)


@pytest.mark.parametrize("w", [30.0, 12.0])
def test_rectangles_to_le90_is_the_geometry_modules(w):
    boxes = [(50.0, 20.0, w, 12.0, a) for a in np.linspace(-1.55, 1.55, 17)]
    corners = torch.tensor([le90_to_corners(b) for b in boxes], dtype=torch.float64).reshape(-1, 4, 2)
    for around in (corners, corners.roll(1, 1), corners.flip(1)):  # whichever corner comes first, in either direction
        for found, c in zip(rectangles_to_le90(around).tolist(), corners, strict=True):
            assert np.allclose(sorted(np.reshape(le90_to_corners(found), (4, 2)).round(6).tolist()), sorted(c.round(decimals=6).tolist()))
            assert found[2] >= found[3] - 1e-9 and -np.pi / 2 <= found[4] < np.pi / 2
