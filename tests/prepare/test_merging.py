"""Detections on tiles come back to their scenes: a scene scores the same whether it was tiled or not."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ccdiff_cli.cli import app
from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import Detections
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import hbb_of, le90_to_corners, rotated_iou
from ccdiff_cli.metrics.average_precision import evaluate
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.prepare.merging import merge_file, merge_tiles
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.rawsets import coco

CATEGORIES = [{"id": 1, "name": "ship"}, {"id": 2, "name": "vehicle"}]
CLASSES = ClassList(("ship", "vehicle"))
SIZE = (700, 500)


def objects(seed: int, spacing: int = 43) -> list[dict]:
    """COCO annotations: slanted boxes on a loose grid over all of the picture."""
    rng = np.random.default_rng(seed)
    made = []
    for y in range(25, SIZE[1] - 24, spacing):
        for x in range(25, SIZE[0] - 24, spacing):
            if rng.random() < 0.3:
                continue
            box = (x + rng.uniform(-6, 6), y + rng.uniform(-6, 6), rng.uniform(14, 36), rng.uniform(6, 14), rng.uniform(-1.5, 1.5))
            corners = le90_to_corners(box)
            x1, y1, x2, y2 = hbb_of(corners)
            made.append({"id": len(made) + 1, "image_id": 1, "category_id": int(rng.integers(1, 3)),
                         "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [corners], "iscrowd": 0})  # fmt: skip
    return made


def perturbed(scenes, classes: ClassList, seed: int) -> list[Detections]:
    """Labels of whole scenes, moved, turned, resized, sometimes missed, mistaken or invented, with scores: a detector's work."""
    rng = np.random.default_rng(seed)
    found = []
    for scene in scenes:
        size = np.array([scene.width, scene.height])
        corners, scores, labels = [], [], []
        for instance in scene.instances:
            if rng.random() < 0.1:
                continue
            p = np.reshape(instance.corners, (4, 2))
            centre, turn = p.mean(0), rng.normal(0, 0.05)
            p = (p - centre) * rng.normal(1, 0.07, 2) @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
            corners.append((p + centre + rng.normal(0, 1, 2)).ravel())
            scores.append(rng.uniform(0.3, 1))
            label = classes.index(instance.category)
            labels.append((label + 1) % len(classes) if rng.random() < 0.1 else label)
        for _ in range(5):
            corners.append(le90_to_corners((*(rng.random(2) * size), 20, 10, rng.uniform(-1.5, 1.5))))
            scores.append(rng.uniform(0.1, 0.7))
            labels.append(int(rng.integers(len(classes))))
        corners = np.array(corners).reshape(-1, 4, 2)
        corners += np.maximum(0, 1 - corners.min(1, keepdims=True)) - np.maximum(0, corners.max(1, keepdims=True) - (size - 1))
        corners = corners.reshape(-1, 8)
        keep = np.triu(rotated_iou(corners, corners), 1).max(0) < 0.05  # a detector's own suppression
        found.append(as_detections(corners[keep], np.array(scores)[keep], np.array(labels)[keep]))
    return found


def as_detections(corners, scores, labels) -> Detections:
    corners, scores, labels = np.reshape(corners, (-1, 8)), np.asarray(scores), np.asarray(labels, np.int64)
    order = np.argsort(-scores, kind="stable")
    boxes = np.array([hbb_of(c) for c in corners.tolist()]).reshape(-1, 4)
    return Detections(*(a[order].astype(t) for a, t in ((boxes, np.float32), (scores, np.float32), (labels, np.int64))),
                      corners[order].astype(np.float32))  # fmt: skip


def seen_on(tile: Scene, whole: Detections, classes: ClassList, share: float = 0.15) -> Detections:
    """What of a scene's detections a tile shows: those inside, and the parts of those that its border cuts."""
    from ccdiff_cli.prepare.tiling import cut_scene

    labelled = tuple(
        Instance.from_corners(classes.names[label], c, extra={"score": s})
        for c, label, s in zip(whole.corners.tolist(), whole.labels.tolist(), whole.scores.tolist(), strict=True)
    )
    place = tile.provenance
    source = Scene("s", 10**6, 10**6, labelled)
    parts, _ = cut_scene(source, tuple(place["offset"]), place["side"], place["scale"], keep=0.7, difficult=share)
    return as_detections([i.corners for i in parts], [i.extra["score"] for i in parts], [classes.index(i.category) for i in parts])


def results_of(tiles, found) -> list[dict]:
    return [
        {
            "file_name": t.file_name,
            "category_id": int(d.labels[k]) + 1,
            "score": float(d.scores[k]),
            "segmentation": [d.corners[k].tolist()],
        }
        for t, d in zip(tiles, found, strict=True)
        for k in range(len(d))
    ]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three scenes, prepared whole and as tiles that overlap by more than the largest object, at half scale."""
    root = tmp_path_factory.mktemp("merging")
    images = [{"id": k, "file_name": f"s{k}.png", "width": SIZE[0], "height": SIZE[1]} for k in (1, 2, 3)]
    annotations = [{**a, "id": 1000 * k + a["id"], "image_id": k} for k in (1, 2) for a in objects(k)]  # the third scene is empty
    raw = coco(root / "raw", annotations, images=images, categories=CATEGORIES, size=SIZE)
    whole = prepare_dataset(raw, root / "whole", PrepareOptions(keep_empty=True))
    tiles = prepare_dataset(raw, root / "tiles", PrepareOptions(tile=200, overlap=60, size=100, keep_empty=True))
    assert len(tiles.scenes) == 3 * 5 * 4 and sum(i.difficult for s in tiles.scenes for i in s.instances) > 15
    return whole, tiles


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_untiled_scene(sets, seed):
    check_scores(*sets, seed)


def check_scores(whole, tiles, seed: int, metrics=("mAP", "AP50", "AP75"), closest: float = 0.97) -> None:
    scenes = {s.provenance["picture"]: s for s in whole.scenes}
    on_scenes = dict(zip(scenes, perturbed(whole.scenes, whole.classes, seed), strict=True))
    on_tiles = [seen_on(t, on_scenes[t.provenance["picture"]], whole.classes) for t in tiles.scenes]
    assert sum(map(len, on_tiles)) > 1.2 * sum(map(len, on_scenes.values()))
    merged = merge_tiles(tiles.scenes, on_tiles)
    assert set(merged) == set(scenes)
    expected = evaluate(list(scenes.values()), [on_scenes[n] for n in scenes], whole.classes).summary
    found = evaluate(list(scenes.values()), [merged[n] for n in scenes], whole.classes).summary
    assert 20 < expected["mAP"] < 95 and expected["detections"] == found["detections"]
    for metric in metrics:
        # labels of tiles are rounded to 0.001 px, which may carry a match over one of the ten IoU thresholds: 0.01 each
        assert found[metric] == pytest.approx(expected[metric], abs=0.03), metric
    for name, detections in merged.items():
        assert detections.scores == pytest.approx(on_scenes[name].scores)
        assert (rotated_iou(on_scenes[name].corners, detections.corners).max(1, initial=float(not len(detections))) > closest).all()


@pytest.mark.skipif("CCDIFF_SHARED" not in os.environ, reason="needs the published samples")
def test_scores_of_published_scenes(tmp_path):
    """Three scenes of DOTA; at 512 px some objects are larger than the overlap, and put together of their parts at an IoU above 0.85."""
    source = Path(os.environ["CCDIFF_SHARED"]) / "data" / "samples" / "DOTA"
    whole = prepare_dataset(source, tmp_path / "whole")
    check_scores(whole, prepare_dataset(source, tmp_path / "1024", PrepareOptions(tile=1024, overlap=200, size=512)), seed=0)
    tiles = prepare_dataset(source, tmp_path / "512", PrepareOptions(tile=512, overlap=100))
    check_scores(whole, tiles, seed=0, metrics=("AP50", "AP75"), closest=0.85)


def tile_of(k: int, x: int, y: int, side: int = 100) -> Scene:
    return Scene(f"t{k}.png", side, side, provenance={"picture": "s.png", "offset": [x, y], "side": side, "scale": 1.0})


def horizontal(boxes, scores, labels=None) -> Detections:
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels or [0] * len(scores)))


TWO = [tile_of(0, 0, 0), tile_of(1, 60, 0)]
"""They share x 60 to 100."""


def test_the_whole_object_goes_before_its_part_and_takes_the_better_score():
    found = merge_tiles(TWO, [horizontal([(70, 10, 100, 30)], [0.9]), horizontal([(10, 10, 60, 30)], [0.4])])["s.png"]
    assert found.boxes.tolist() == [[70, 10, 120, 30]] and found.scores == pytest.approx([0.9]) and found.corners is None


def test_an_object_that_no_tile_sees_whole_is_put_together():
    tiles = [*TWO, tile_of(2, 120, 0)]
    parts = [horizontal([(50, 10, 100, 30)], [0.5]), horizontal([(0, 10, 100, 30)], [0.9]), horizontal([(0, 10, 70, 30)], [0.6])]
    found = merge_tiles(tiles, parts)["s.png"]
    assert found.boxes.tolist() == [[50, 10, 190, 30]] and found.scores == pytest.approx([0.9])


def test_neighbours_classes_and_far_scenes_stay_apart():
    near = [horizontal([(70, 10, 95, 30), (70, 32, 95, 50)], [0.9, 0.8]), horizontal([(10, 10, 35, 30)], [0.7], [1])]
    found = merge_tiles(TWO, near)["s.png"]
    assert len(found) == 3 and found.labels.tolist() == [0, 0, 1]
    other = Scene("u0.png", 100, 100, provenance={"picture": "u.png", "offset": [60, 0], "side": 100, "scale": 1.0})
    merged = merge_tiles([TWO[0], other], [horizontal([(70, 10, 95, 30)], [0.9]), horizontal([(10, 10, 35, 30)], [0.7])])
    assert {k: len(v) for k, v in merged.items()} == {"s.png": 1, "u.png": 1}


def test_within_one_tile_it_is_plain_suppression():
    found = merge_tiles(TWO, [horizontal([(20, 20, 50, 40), (22, 21, 51, 40), (20, 30, 50, 50)], [0.6, 0.8, 0.3]), horizontal([], [])])
    assert found["s.png"].boxes.tolist() == [[22, 21, 51, 40], [20, 30, 50, 50]]
    loose = merge_tiles(TWO, [horizontal([(20, 20, 50, 40), (22, 21, 51, 40)], [0.6, 0.8]), horizontal([], [])], iou=0.95)
    assert len(loose["s.png"]) == 2


def test_pictures_that_were_not_cut_or_do_not_say_from_where(sets):
    whole, _ = sets
    found = perturbed(whole.scenes, CLASSES, 0)
    merged = merge_tiles(whole.scenes, found)
    for scene, detections in zip(whole.scenes, found, strict=True):
        assert merged[scene.file_name].corners == pytest.approx(detections.corners, abs=1e-3)
    with pytest.raises(CCDiffError, match="does not say where it was cut from"):
        merge_tiles([Scene("a.png", 10, 10)], [horizontal([], [])])
    with pytest.raises(CCDiffError, match="iou 0"):
        merge_tiles([], [], iou=0)


def test_from_file_to_file(sets, tmp_path):
    whole, tiles = sets
    on_scenes = dict(zip((s.file_name for s in whole.scenes), perturbed(whole.scenes, CLASSES, 7), strict=True))
    on_tiles = [seen_on(t, on_scenes[t.provenance["picture"]], CLASSES) for t in tiles.scenes]
    results = results_of(tiles.scenes, on_tiles)
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = CliRunner().invoke(
        app, ["merge-tiles", str(tmp_path / "results.json"), "--data", str(tiles.root), "--out", str(tmp_path / "scenes.json"), "--json"]
    )
    assert run.exit_code == 0 and json.loads(run.stdout)["objects"] == sum(map(len, on_scenes.values()))
    by_id = {s.file_name: k for k, s in enumerate(read_set(tiles.root).scenes, start=1)}
    for entry in results:
        entry["image_id"] = by_id[entry.pop("file_name")]
    (tmp_path / "ids.json").write_text(json.dumps(results))
    merge_file(tmp_path / "ids.json", tiles.root, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "scenes.json").read_bytes()
    merged = json.loads((tmp_path / "scenes.json").read_text())
    assert {e["file_name"] for e in merged} == {"s1.png", "s2.png", "s3.png"}
    for entry in merged:
        x, y, w, h = entry["bbox"]
        assert hbb_of(entry["segmentation"][0]) == pytest.approx((x, y, x + w, y + h), abs=0.02) and entry["category_id"] in (1, 2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"category_id": 1, "score": 1, "bbox": [1, 1, 5, 5]}, "entry 0: broken: KeyError: 'image_id'"),
        ({"image_id": 999, "category_id": 1, "score": 1, "bbox": [1, 1, 5, 5]}, "no picture with the id 999"),
        ({"file_name": "../x.png", "category_id": 1, "score": 1, "bbox": [1, 1, 5, 5]}, "no picture ../x.png"),
        ({"image_id": 1, "category_id": 9, "score": 1, "bbox": [1, 1, 5, 5]}, r"(?s)unknown category_id 9.*1 ship, 2 vehicle"),
        ({"image_id": 1, "category_id": 1, "score": float("nan"), "bbox": [1, 1, 5, 5]}, "NaN is no number"),
        ({"image_id": 1, "category_id": 1, "score": 1, "bbox": [1, 1, -5, 5]}, "not made of finite numbers"),
        ({"image_id": 1, "category_id": 1, "score": 1, "segmentation": [[1, 1, 5, 5]]}, "4 corners"),
        ("text", "entry 0: broken"),
    ],
)
def test_broken_results(sets, tmp_path, entry, message):
    (tmp_path / "results.json").write_text(json.dumps([entry]))
    with pytest.raises(CCDiffError, match=message):
        merge_file(tmp_path / "results.json", sets[1].root, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
