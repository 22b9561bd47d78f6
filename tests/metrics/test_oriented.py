"""Average precision, horizontal and oriented, against pycocotools and against evaluators written from COCO's and DOTA's definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ccdiff_cli.detectors import Detections
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import corners_to_le90, hbb_corners, hbb_of, le90_to_corners, rotated_iou
from ccdiff_cli.metrics.average_precision import IOU_THRESHOLDS, SIZES, Evaluation, average_precision, evaluate
from ccdiff_cli.scene import ClassList, Instance, Scene

from .plain_evaluators import clipped_iou, plain_coco, plain_dota, pycocotools_precision

CLASSES = ClassList(("ship", "plane", "bridge"))
EVERYTHING = (0.0, 1e10)
COCO_AREAS = [tuple(float(side) ** 2 for side in sides) for sides in SIZES["COCO"].values()]


def made(pictures: list[tuple[list, list]]) -> tuple[list[Scene], list[Detections]]:
    """Scenes and detections from (objects, finds) of every picture: (label, corners, difficult) and (label, corners, score)."""
    scenes, detections = [], []
    for p, (objects, finds) in enumerate(pictures):
        instances = tuple(Instance.from_corners(CLASSES.names[k], c, difficult=d) for k, c, d in objects)
        scenes.append(Scene(f"{p}.png", 200, 200, instances, split="test", source=f"{p}"))
        corners = np.array([c for _, c, _ in finds], np.float32).reshape(-1, 8)
        boxes = np.array([hbb_of(c) for c in corners.tolist()], np.float32).reshape(-1, 4)
        labels, scores = np.array([k for k, _, _ in finds], np.int64), np.array([s for _, _, s in finds], np.float32)
        detections.append(Detections(boxes, scores, labels, corners))
    return scenes, detections


def random_corners(rng: np.random.Generator, near: tuple | None = None) -> tuple:
    if near is None:
        w, h = rng.uniform(4, 60, 2)
        return le90_to_corners((*rng.uniform(20, 180, 2), max(w, h), min(w, h), rng.uniform(-math.pi / 2, math.pi / 2)))
    cx, cy, w, h, angle = corners_to_le90(near)
    return le90_to_corners((cx + rng.normal(0, 1), cy + rng.normal(0, 1), w * rng.uniform(0.8, 1.2), h, angle + rng.normal(0, 0.1)))


def random_case(seed: int, pictures: int = 25) -> tuple[list[Scene], list[Detections]]:
    """Objects on top of one another, some difficult; several finds of most, some of another class, and finds of nothing."""
    rng = np.random.default_rng(seed)
    some = []
    for _ in range(pictures):
        objects, finds = [], []
        for _ in range(int(rng.integers(0, 12))):
            corners = random_corners(rng, objects[-1][1] if objects and rng.random() < 0.4 else None)
            label = int(rng.integers(2))
            objects.append((label, corners, bool(rng.random() < 0.2)))
            for _ in range(int(rng.integers(0, 4))):
                finds.append((label if rng.random() < 0.9 else int(rng.integers(3)), random_corners(rng, corners), round(rng.random(), 1)))
        finds += [(int(rng.integers(3)), random_corners(rng), round(rng.random(), 1)) for _ in range(int(rng.integers(0, 4)))]
        some.append((objects, finds))
    return made(some)


def per_class(scenes: list[Scene], detections: list[Detections], name: str, boxes: str):
    """Truth and lines of one class, as the plain evaluators take them."""
    truth = [
        [(hbb_corners(i.hbb) if boxes == "hbb" else i.corners, i.difficult) for i in s.instances if i.category == name] for s in scenes
    ]
    lines = []
    for p, d in enumerate(detections):
        for k in range(len(d)):
            if CLASSES.names[d.labels[k]] == name:
                box = hbb_corners(d.boxes[k]) if boxes == "hbb" else [float(v) for v in d.corners[k]]
                lines.append((p, float(d.scores[k]), box))
    return truth, lines


def values(evaluation: Evaluation, name: str) -> np.ndarray:
    """AP (T,) of a class; NaN where it was not evaluated."""
    if name not in evaluation.matches:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    matches = evaluation.matches[name]
    return average_precision(matches, np.ones(len(matches.objects)))


def assert_equals_pycocotools(scenes: list[Scene], detections: list[Detections]) -> None:
    evaluation = evaluate(scenes, detections, CLASSES)
    table = pycocotools_precision(scenes, detections, CLASSES, [EVERYTHING, *COCO_AREAS])
    expected = np.where((table == -1).any(axis=1), np.nan, table.mean(axis=1))  # (T, K, areas)
    for k, name in enumerate(CLASSES):
        assert values(evaluation, name) == pytest.approx(expected[:, k, 0], abs=1e-6, nan_ok=True)
        for a, size in enumerate(SIZES["COCO"], start=1):
            row = evaluation.summary["per_class"][name].get("per_size", {}).get(f"COCO {size}", {"mAP": np.nan, "AP50": np.nan})
            wanted = [100 * expected[:, k, a].mean(), 100 * expected[0, k, a]]
            assert [row["mAP"], row["AP50"]] == pytest.approx(wanted, abs=1e-4, nan_ok=True), (name, size)


def assert_equals_plain(scenes: list[Scene], detections: list[Detections], boxes: str) -> None:
    evaluation = evaluate(scenes, detections, CLASSES, boxes)
    for name in CLASSES:
        truth, lines = per_class(scenes, detections, name, boxes)
        known = values(evaluation, name)
        for t in (0, 1, 5, 9):
            expected = plain_coco(truth, lines, clipped_iou, IOU_THRESHOLDS[t])
            assert known[t] == pytest.approx(expected, abs=1e-6, nan_ok=True), (name, t)
        row = evaluation.summary["per_class"][name]
        for metric, voc07 in (("AP50_voc07", True), ("AP50_voc12", False)):
            expected = 100 * plain_dota(truth, lines, clipped_iou, voc07)
            found = np.nan if row[metric] is None else row[metric]
            assert found == pytest.approx(expected, abs=1e-4, nan_ok=True), (name, metric)


@pytest.mark.parametrize("seed", range(4))
def test_horizontal_equals_pycocotools_with_difficult_objects_and_sizes(seed):
    assert_equals_pycocotools(*random_case(seed))


@pytest.mark.parametrize("boxes", ["hbb", "obb"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definitions_of_coco_and_dota(seed, boxes):
    assert_equals_plain(*random_case(seed), boxes)


corner = st.integers(0, 6).map(lambda v: 4.0 * v)
side = st.integers(1, 6).map(lambda v: 4.0 * v)
grid_box = st.builds(lambda x, y, w, h: hbb_corners((x, y, x + w, y + h)), corner, corner, side, side)
turned_box = st.builds(
    lambda x, y, w, h, k: le90_to_corners((20 + x, 20 + y, max(w, h), min(w, h), k * math.pi / 7)),
    corner,
    corner,
    side,
    side,
    st.integers(-3, 3),
)
score = st.sampled_from([0.25, 0.5, 0.75])
label = st.integers(0, 2)


def pictures(box):
    objects = st.lists(st.tuples(label, box, st.booleans()), max_size=6)
    finds = st.lists(st.tuples(label, box, score), max_size=10)
    return st.lists(st.tuples(objects, finds), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(pictures(grid_box))
def test_horizontal_equals_pycocotools_with_ties_and_empty_classes(some):
    """Boxes on a coarse grid: equal scores, equal overlaps, overlaps that are exactly a threshold, classes and pictures without any."""
    assert_equals_pycocotools(*made(some))


@settings(max_examples=60, deadline=None)
@given(pictures(grid_box))
def test_oriented_evaluation_of_upright_boxes_equals_the_horizontal_one(some):
    scenes, detections = made(some)
    horizontal, oriented = (evaluate(scenes, detections, CLASSES, boxes) for boxes in ("hbb", "obb"))
    assert horizontal.summary | {"boxes": "obb"} == oriented.summary


@settings(max_examples=100, deadline=None)
@given(pictures(turned_box))
def test_oriented_equals_the_definitions_with_ties_and_empty_classes(some):
    scenes, detections = made(some)
    for s, d in zip(scenes, detections, strict=True):  # no overlap so near a threshold that rounding decides
        overlaps = rotated_iou(d.corners, np.array([i.corners for i in s.instances]).reshape(-1, 8))
        assume(np.abs(overlaps[..., None] - np.array(IOU_THRESHOLDS)).min(initial=1) > 1e-5)
        ordered = np.sort(overlaps, axis=1)  # nor two objects that only rounding tells apart
        gaps = np.diff(ordered, axis=1)[ordered[:, 1:] >= 0.5]
        assume(not ((gaps > 0) & (gaps < 1e-5)).any())
    assert_equals_plain(scenes, detections, "obb")


def test_rotated_overlap_equals_torchvision_and_the_clipping():
    rng = np.random.default_rng(0)
    one = [random_corners(rng) for _ in range(40)]
    other = [random_corners(rng, c) for c in one] + [random_corners(rng) for _ in range(20)]
    ours = rotated_iou(np.array(one), np.array(other))
    by_hand = np.array([[clipped_iou(a, b) for b in other] for a in one])
    assert ours == pytest.approx(by_hand, abs=1e-9)
    boxes = [torch.tensor([corners_to_le90(c) for c in some], dtype=torch.float64) for some in (one, other)]
    for b in boxes:
        b[:, 4] = -torch.rad2deg(b[:, 4])  # counter-clockwise, y down
    try:
        theirs = torchvision.ops.box_iou(*boxes, fmt="cxcywhr").numpy()
    except TypeError:
        pytest.skip("this torchvision has no rotated boxes")
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_quadrilateral_is_measured_as_it_is():
    """DOTA's corners need not be a rectangle."""
    trapezium = (10.0, 10.0, 50.0, 10.0, 40.0, 30.0, 20.0, 30.0)
    scenes, detections = made([([(0, trapezium, False)], [(0, trapezium, 0.9)])])
    assert evaluate(scenes, detections, CLASSES, "obb").summary["mAP"] == 100
    box = Detections(detections[0].boxes, detections[0].scores, detections[0].labels, np.array([hbb_corners((10, 10, 50, 30))]))
    assert evaluate(scenes, [box], CLASSES, "obb").summary["per_class"]["ship"]["AP50"] == 100  # 600 of 800
    assert evaluate(scenes, [box], CLASSES, "obb").summary["per_class"]["ship"]["AP75"] == 100
    assert evaluate(scenes, [box], CLASSES, "obb").summary["mAP"] == pytest.approx(60)


def test_voc_counts_a_second_find_as_wrong_where_coco_gives_it_the_next_object():
    first, second = hbb_corners((0, 0, 20, 10)), hbb_corners((4, 0, 24, 10))
    finds = [(0, hbb_corners((0, 0, 20, 10)), 0.9), (0, hbb_corners((1, 0, 21, 10)), 0.8)]
    row = evaluate(*made([([(0, first, False), (0, second, False)], finds)]), CLASSES, "obb").summary["per_class"]["ship"]
    assert row["AP50"] == 100
    assert row["AP50_voc12"] == 50 and row["AP50_voc07"] == pytest.approx(600 / 11)


def test_detections_without_corners_cannot_be_evaluated_as_oriented():
    scenes, detections = made([([(0, hbb_corners((0, 0, 9, 9)), False)], [(0, hbb_corners((0, 0, 9, 9)), 0.5)])])
    bare = Detections(detections[0].boxes, detections[0].scores, detections[0].labels)
    with pytest.raises(CCDiffError, match="horizontal boxes only"):
        evaluate(scenes, [bare], CLASSES, "obb")
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert evaluate(scenes, [nothing], CLASSES, "obb").summary["AP50"] == 0


def test_more_detections_than_pairs_at_once_and_more_than_count(monkeypatch):
    scenes, detections = random_case(9)
    whole = evaluate(scenes, detections, CLASSES, "obb").summary
    monkeypatch.setattr("ccdiff_cli.metrics.average_precision.PAIRS_AT_ONCE", 7)
    assert evaluate(scenes, detections, CLASSES, "obb").summary == whole
    monkeypatch.setattr("ccdiff_cli.metrics.average_precision.MAX_DETS", 2)
    table = pycocotools_precision(scenes, detections, CLASSES, [EVERYTHING], most=2)
    few = evaluate(scenes, detections, CLASSES)
    for k, name in enumerate(CLASSES.names[:2]):
        assert values(few, name) == pytest.approx(table[:, :, k, 0].mean(axis=1), abs=1e-6)
