"""Horizontal average precision against plain pycocotools, against hand-computed values, and at the edges; the bootstrap."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ccdiff_cli.detectors import Detections
from ccdiff_cli.metrics.average_precision import average_precision, evaluate, outcomes
from ccdiff_cli.scene import ClassList, Instance, Scene

CLASSES = ClassList(("ship", "plane"))


def scene(name: str, *boxes: tuple[str, tuple[float, ...]], difficult: tuple[int, ...] = ()) -> Scene:
    instances = tuple(Instance.from_hbb(c, b, difficult=i in difficult) for i, (c, b) in enumerate(boxes))
    return Scene(name, 100, 100, instances, split="test", source=name)


def found(*rows: tuple[tuple[float, ...], float, int]) -> Detections:
    boxes = np.array([r[0] for r in rows], dtype=np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([r[1] for r in rows], dtype=np.float32), np.array([r[2] for r in rows], dtype=np.int64))


def random_case(seed: int, pictures: int = 12) -> tuple[list[Scene], list[Detections]]:
    rng = np.random.default_rng(seed)
    scenes, detections = [], []
    for p in range(pictures):
        boxes, rows = [], []
        for _ in range(int(rng.integers(0, 6))):
            x, y, w, h = *rng.uniform(0, 70, 2), *rng.uniform(5, 30, 2)
            label = int(rng.integers(2))
            boxes.append((CLASSES.names[label], (x, y, x + w, y + h)))
            if rng.random() < 0.8:
                shift = rng.normal(0, 2, 4)
                rows.append((tuple(np.array([x, y, x + w, y + h]) + shift), float(rng.random()), label))
        for _ in range(int(rng.integers(0, 4))):
            x, y = rng.uniform(0, 70, 2)
            rows.append(((x, y, x + 20, y + 20), float(rng.random()), int(rng.integers(2))))
        scenes.append(scene(f"{p}.png", *boxes))
        detections.append(found(*sorted(rows, key=lambda r: -r[1])))
    return scenes, detections


def plain_pycocotools(scenes: list[Scene], detections: list[Detections]) -> dict[str, float]:
    """The library as its own documentation uses it, through loadRes and summarize."""
    annotations, results = [], []
    for p, (s, d) in enumerate(zip(scenes, detections, strict=True), start=1):
        for i in s.instances:
            x1, y1, x2, y2 = i.hbb
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": p,
                    "category_id": CLASSES.index(i.category) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        for b, score, label in zip(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist(), strict=True):
            results.append({"image_id": p, "category_id": label + 1, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": score})
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": p + 1, "width": 100, "height": 100} for p in range(len(scenes))],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": n} for k, n in enumerate(CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {"mAP": 100 * run.stats[0], "AP50": 100 * run.stats[1], "AP75": 100 * run.stats[2]}


@pytest.mark.parametrize("seed", range(6))
def test_equals_plain_pycocotools_where_nothing_is_difficult(seed):
    scenes, detections = random_case(seed)
    summary = evaluate(scenes, detections, CLASSES).summary
    for metric, value in plain_pycocotools(scenes, detections).items():
        assert summary[metric] == pytest.approx(value, abs=1e-3), metric


@pytest.mark.parametrize("seed", range(3))
def test_own_average_precision_equals_pycocotools(seed):
    scenes, detections = random_case(seed, pictures=30)
    evaluation = evaluate(scenes, detections, CLASSES)
    for name, matches in evaluation.matches.items():
        values = 100 * average_precision(matches, np.ones(len(scenes)))
        expected = evaluation.summary["per_class"][name]
        assert [values.mean(), values[0], values[5]] == pytest.approx([expected["mAP"], expected["AP50"], expected["AP75"]], abs=2e-3)


def test_resampling_equals_evaluating_the_repeated_pictures():
    scenes, detections = random_case(7, pictures=8)
    times = np.array([0, 2, 1, 0, 3, 1, 1, 0])
    repeated = [i for i, n in enumerate(times) for _ in range(n)]
    expected = evaluate([scenes[i] for i in repeated], [detections[i] for i in repeated], CLASSES).summary["per_class"]
    for name, matches in evaluate(scenes, detections, CLASSES).matches.items():
        assert 100 * average_precision(matches, times.astype(float)).mean() == pytest.approx(expected[name]["mAP"], abs=2e-3)


def test_hand_computed():
    # Two objects; detections by score: right, wrong, right.  Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.  The envelope is 1 up to
    # recall 0.5 (51 of the 101 points) and 2/3 above (50 points).
    scenes = [scene("a", ("ship", (0, 0, 10, 10)), ("ship", (50, 50, 60, 60)))]
    detections = [found(((0, 0, 10, 10), 0.9, 0), ((20, 20, 30, 30), 0.8, 0), ((50, 50, 60, 60), 0.7, 0))]
    summary = evaluate(scenes, detections, CLASSES).summary
    assert summary["per_class"]["ship"]["AP50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101, abs=1e-3)


def test_a_class_without_objects_is_not_evaluated_and_does_not_count_as_zero():
    scenes = [scene("a", ("ship", (0, 0, 10, 10)))]
    summary = evaluate(scenes, [found(((0, 0, 10, 10), 0.9, 0), ((40, 40, 60, 60), 0.9, 1))], CLASSES).summary
    assert summary["AP50"] == summary["per_class"]["ship"]["AP50"] == 100
    assert summary["per_class"]["plane"]["AP50"] is None
    assert summary["not_evaluated"] == ["plane"]


def test_nothing_found_is_zero_and_no_objects_at_all_is_none():
    empty = found()
    assert evaluate([scene("a", ("ship", (0, 0, 10, 10)))], [empty], CLASSES).summary["mAP"] == 0
    summary = evaluate([scene("a")], [empty], CLASSES).summary
    assert summary["mAP"] is None and summary["not_evaluated"] == ["ship", "plane"]


def test_difficult_objects_count_neither_way_however_often_they_are_found():
    scenes = [scene("a", ("ship", (0, 0, 10, 10)), ("ship", (50, 50, 60, 60)), difficult=(1,))]
    # two detections of the difficult object rank above the right one: 100, not 33
    detections = [found(((50, 50, 60, 60), 0.99, 0), ((50, 50, 60, 61), 0.98, 0), ((0, 0, 10, 10), 0.9, 0))]
    ship = evaluate(scenes, detections, CLASSES).summary["per_class"]["ship"]
    assert (ship["AP50"], ship["objects"], ship["difficult"]) == (100, 1, 1)
    # a small box inside a large difficult one has a low IoU: it is wrong (a COCO crowd would soak it up)
    detections = [found(((52, 52, 55, 55), 0.99, 0), ((0, 0, 10, 10), 0.9, 0))]
    assert evaluate(scenes, detections, CLASSES).summary["per_class"]["ship"]["AP50"] == pytest.approx(50)


def test_more_than_a_hundred_objects_in_a_picture_are_all_counted():
    boxes = [("ship", (10.0 * (i % 20), 10.0 * (i // 20), 10.0 * (i % 20) + 8, 10.0 * (i // 20) + 8)) for i in range(180)]
    detections = [found(*((b, 1 - i / 1000, 0) for i, (_, b) in enumerate(boxes)))]
    evaluation = evaluate([scene("a", *boxes)], detections, CLASSES)
    assert evaluation.summary["AP50"] == 100 and evaluation.summary["max_dets"] == [1000]


def test_it_prints_nothing(capsys):
    evaluate(*random_case(1), CLASSES)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("seed", range(3))
def test_what_became_of_each_detection_is_what_is_counted(seed: int) -> None:
    scenes, detections = random_case(seed)
    scenes[0] = scene("0.png", *((i.category, i.hbb) for i in scenes[0].instances), difficult=(0,))
    made, counted = outcomes(scenes, detections, CLASSES), evaluate(scenes, detections, CLASSES).matches
    assert (np.diff(made.score) <= 0).all() and made.hit.any() and not made.hit.all()
    for k, name in enumerate(CLASSES):
        for mine, theirs in ((made.hit, counted[name].hit[0]), (made.ignored, counted[name].ignored[0])):
            assert mine[made.label == k].tolist() == theirs.tolist()
    taken = list(zip(made.picture[made.hit].tolist(), made.found[made.hit].tolist(), strict=True))
    assert len(set(taken)) == len(taken) and (made.found[~made.hit] == -1).all(), "each object once"
    for (i, j), label in zip(taken, made.label[made.hit].tolist(), strict=True):
        assert scenes[i].instances[j].category == CLASSES.names[label] and not scenes[i].instances[j].difficult
    sure = [Detections(*(v[d.scores >= 0.5] for v in (d.boxes, d.scores, d.labels))) for d in detections]
    first = made.score >= 0.5
    assert outcomes(scenes, sure, CLASSES).found.tolist() == made.found[first].tolist(), "lower scores change nothing"
    nothing = outcomes(scenes, [found()] * len(scenes), CLASSES)
    assert len(nothing.score) == len(nothing.hit) == 0
