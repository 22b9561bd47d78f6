"""mmrotate's and mmdetection's detectors: trained, killed, resumed, reloaded, scored; and what is said without the extra."""

from __future__ import annotations

import collections
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ccdiff_cli.dataset import write_set
from ccdiff_cli.detectors import Detections, DetectorConfig, fit, load_detector, mm_models
from ccdiff_cli.detectors.config import SETTINGS
from ccdiff_cli.detectors.samples import Draws, collate
from ccdiff_cli.detectors.store import read_detections, write_detections
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import corners_to_le90, hbb_of, le90_to_corners
from ccdiff_cli.metrics.average_precision import evaluate
from ccdiff_cli.scene import ClassList, Instance, Scene

from .mmrotate_map import compare
from .small import CLASSES, TINY, make_set

needs_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in mm_models.NEEDS),
    reason="the extra mmrotate is not installed: pip install 'ccdiff[mmrotate]'",
)


class Killed(BaseException):
    """What a kill looks like to the code: nothing catches it."""


def small(kind: str, **changes) -> DetectorConfig:
    shared = {k: v for k, v in TINY.model_dump().items() if k in SETTINGS[kind] and k not in ("kind", "nms_iou")}
    return DetectorConfig.model_validate({**shared, "kind": kind, **changes})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), {"train": 6, "test": 3})


@needs_extra
@pytest.mark.parametrize("kind", ["oriented-rcnn", "rtmdet-r"])
def test_trained_killed_resumed_reloaded_and_scored(pictures, tmp_path, kind):
    config = small(kind, steps=12)  # a checkpoint at 10

    def kill(stage: str, done: int, total: int) -> None:
        if done == 11:
            raise Killed

    whole = fit(pictures.split("train"), CLASSES, config, tmp_path / "whole", 3)
    with pytest.raises(Killed):
        fit(pictures.split("train"), CLASSES, config, tmp_path / "killed", 3, kill)
    steps: list[int] = []
    resumed = fit(pictures.split("train"), CLASSES, config, tmp_path / "killed", 3, lambda stage, done, total: steps.append(done))
    assert steps == [11, 12] and resumed.info["losses"] == whole.info["losses"]
    key = whole.info["key"]
    assert (tmp_path / "whole" / key / "model.safetensors").read_bytes() == (tmp_path / "killed" / key / "model.safetensors").read_bytes()
    assert {"mmdet", "mmrotate"} <= whole.info["versions"].keys()

    test = pictures.split("test")
    found, again = whole.predict(test), load_detector(tmp_path / "killed" / key, "cpu").predict(test)
    for a, b in zip(found, again, strict=True):
        assert np.array_equal(a.corners, b.corners) and np.array_equal(a.scores, b.scores) and np.array_equal(a.labels, b.labels)
    write_detections(tmp_path / "d.safetensors", found)
    stored = read_detections(tmp_path / "d.safetensors", len(test))
    assert stored and all(np.array_equal(a.corners, b.corners) for a, b in zip(found, stored, strict=True))
    for row in compare(test, found, CLASSES):
        assert row[1] == pytest.approx(row[2], abs=1e-3) and row[3] == pytest.approx(row[4], abs=1e-3)


@needs_extra
@pytest.mark.parametrize("kind", ["rotated-faster-rcnn", "mmdet-faster-rcnn"])
def test_the_other_families_train_and_predict(pictures, tmp_path, kind):
    detector = fit(pictures.split("train"), CLASSES, small(kind, steps=2), tmp_path, 0)
    assert detector.info["losses"]["columns"] == ["step", "total", "box", "class", "rpn box", "objectness"]
    found = detector.predict(pictures.split("test")[:1])[0]
    assert (found.corners is not None) == (kind == "rotated-faster-rcnn") and len(found)
    assert found.boxes.min() >= 0 and found.boxes.max() <= 64 and (np.diff(found.scores) <= 0).all()


@needs_extra
def test_an_oriented_network_learns_its_pictures(tmp_path):
    """Slanted objects on two pictures, learned by heart: the angles come out, not the horizontal boxes."""
    from PIL import Image, ImageDraw

    from ccdiff_cli.files import sha256_file

    scenes, hashes = [], {}
    (tmp_path / "images").mkdir()
    for k, boxes in enumerate([[(20, 20, 28, 8, 0.6), (46, 44, 26, 8, -0.9)], [(22, 42, 28, 8, -0.5), (44, 18, 28, 8, 1.0)]]):
        picture = Image.new("RGB", (64, 64), (90, 90, 90))
        for box in boxes:
            ImageDraw.Draw(picture).polygon(le90_to_corners(box), fill=(40, 60, 250))
        picture.save(tmp_path / "images" / f"{k}.png")
        hashes[f"{k}.png"] = sha256_file(tmp_path / "images" / f"{k}.png")
        instances = tuple(Instance.from_corners("ship", le90_to_corners(box)) for box in boxes)
        scenes.append(Scene(f"{k}.png", 64, 64, instances, split="train"))
    made = write_set(tmp_path, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
    config = small("oriented-rcnn", steps=120, lr=0.002, warmup_steps=5, augment="none", fpn_channels=32, backbone_weights="auto")
    detector = fit(made.split("train"), CLASSES, config, tmp_path / "t", 0)
    train = made.split("train")
    scores = evaluate(train, detector.predict(train), CLASSES, boxes="obb").summary
    assert scores["AP50"] > 60
    best = detector.predict(train)[0]
    assert best.corners is not None
    wanted = [corners_to_le90(i.corners) for i in train[0].instances]
    angle = corners_to_le90(best.corners[0].tolist())[4]
    assert min(abs(angle - w[4]) for w in wanted) < 0.25


def noisy_detections(scenes, classes, seed) -> list[Detections]:
    """Most objects found askew, some twice, some by another name, and boxes on nothing; every score once."""
    rng = np.random.default_rng(seed)
    made = []
    for scene in scenes:
        rows = []
        for instance in scene.instances:
            for _ in range(int(rng.integers(0, 3))):
                box = np.array(corners_to_le90(instance.corners)) + rng.normal(0, [2, 2, 3, 2, 0.12])
                label = classes.index(instance.category) if rng.random() < 0.85 else int(rng.integers(len(classes)))
                rows.append((box, label))
        for _ in range(int(rng.integers(0, 4))):
            rows.append(
                (np.array([*rng.uniform(0, 100, 2), *rng.uniform(8, 40, 2), rng.uniform(-1.5, 1.5)]), int(rng.integers(len(classes))))
            )
        scores = np.sort(rng.random(len(rows)))[::-1].astype(np.float32)
        corners = np.array([le90_to_corners(np.abs(b) * [1, 1, 1, 1, 0] + b * [0, 0, 0, 0, 1]) for b, _ in rows], np.float32).reshape(-1, 8)
        hulls = np.array([hbb_of(c) for c in corners], np.float32).reshape(-1, 4)
        made.append(Detections(hulls, scores, np.array([label for _, label in rows], np.int64), corners))
    return made


@needs_extra
@pytest.mark.parametrize("seed", range(3))
def test_our_map_is_mmrotates(seed):
    rng = np.random.default_rng(seed)
    classes = ClassList(("ship", "plane", "harbor"))
    scenes = []
    for k in range(25):
        boxes = [(*rng.uniform(10, 90, 2), *rng.uniform(10, 40, 2), rng.uniform(-1.5, 1.5)) for _ in range(int(rng.integers(0, 6)))]
        instances = tuple(
            Instance.from_corners(str(rng.choice(classes.names[:2])), le90_to_corners(b), difficult=bool(rng.random() < 0.2)) for b in boxes
        )
        scenes.append(Scene(f"{k}.png", 100, 100, instances, split="test"))
    rows = compare(scenes, noisy_detections(scenes, classes, seed), classes)
    assert [row[0] for row in rows] == ["ship", "plane", "mean"]
    for row in rows:
        assert 10 < row[1] < 95, "neither all right nor all wrong, or the comparison says nothing"
        assert row[1] == pytest.approx(row[2], abs=1e-3) and row[3] == pytest.approx(row[4], abs=1e-3)


@needs_extra
def test_a_diverging_training_is_one_clear_error(pictures, tmp_path):
    config = small("oriented-rcnn", optimizer="sgd", lr=10.0, steps=20, clip_gradient=1e9)
    with pytest.raises(CCDiffError, match=r"(loss|gradient) became (nan|inf) at step \d+ of 20") as caught:
        fit(pictures.split("train"), CLASSES, config, tmp_path, 0)
    assert "fix: lower detector.lr" in str(caught.value) and not list(tmp_path.rglob("detector.json"))


@needs_extra
def test_cspnext_takes_mmdetections_file(tmp_path):
    from mmdet.models.backbones import CSPNeXt

    config = DetectorConfig.published(100, kind="rtmdet-r", backbone_weights=str(tmp_path / "w.safetensors"))
    body = CSPNeXt(arch="P5", deepen_factor=0.167, widen_factor=0.375)
    save_file({f"backbone.{k}": v for k, v in body.state_dict().items()}, tmp_path / "w.safetensors")
    from ccdiff_cli.detectors.backbones import find_weights

    network = mm_models.build(config, CLASSES, find_weights(config))
    name = "stem.0.conv.weight"
    assert torch.equal(network.net.backbone.body.state_dict()[name], body.state_dict()[name])
    assert sum(p.numel() for p in network.net.parameters()) == pytest.approx(4.88e6, rel=0.02)  # as the RTMDet paper gives for tiny


PUBLISHED_CONFIGS = {
    "oriented-rcnn": "oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py",
    "rotated-faster-rcnn": "rotated_faster_rcnn/rotated-faster-rcnn-le90_r50_fpn_1x_dota.py",
    "rtmdet-r": "rotated_rtmdet/rotated_rtmdet_tiny-3x-dota.py",
    "mmdet-faster-rcnn": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
}


@needs_extra
@pytest.mark.parametrize("kind", PUBLISHED_CONFIGS)
def test_published_preset_computes_what_the_libraries_own_config_does(pictures, kind):
    """The same weights in the network that mmrotate's (mmdetection's) config describes: the same losses, the same detections."""
    mm_models.backend()
    library = importlib.import_module("mmdet" if kind.startswith("mmdet") else "mmrotate")
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmrotate.registry import MODELS

    described = Config.fromfile(Path(library.__file__).parent / ".mim" / "configs" / PUBLISHED_CONFIGS[kind]).model
    described.backbone.init_cfg = None
    described.backbone.norm_cfg.type = "BN"  # for SyncBN, which has no CPU form
    if kind == "rtmdet-r":
        described.neck.norm_cfg.type = described.bbox_head.norm_cfg.type = "BN"
    (described.roi_head.bbox_head if "roi_head" in described else described.bbox_head).num_classes = len(CLASSES)
    if "rpn" in described.train_cfg:
        described.train_cfg.rpn.allowed_border = -1  # the one setting of mmrotate's that ours does not follow
    if kind.startswith("mmdet"):
        described.type, described.data_preprocessor = "mmdet.FasterRCNN", None
    described.test_cfg.get("rcnn", described.test_cfg).score_thr = 0.0  # untrained, it is sure of nothing
    config = DetectorConfig.published(100, kind=kind, input_size=64, score_threshold=0.0)
    torch.manual_seed(0)
    network = mm_models.build(config, CLASSES, {"file": None, "frozen": True})
    with DefaultScope.overwrite_default_scope(library.__name__):
        theirs = MODELS.build(described)
    state = {name.replace("backbone.body.", "backbone."): value for name, value in network.net.state_dict().items()}
    fits = theirs.load_state_dict(state, strict=False)
    assert not fits.unexpected_keys and all(name.endswith("num_batches_tracked") for name in fits.missing_keys)

    draws = Draws(pictures.split("train"), CLASSES, 0, 2, "none", oriented=True)
    batch = collate([draws[0], draws[1]])
    results = []
    for net in (network.net, theirs):
        network.net = net
        net.eval()
        torch.manual_seed(0)
        losses = network.losses(*batch)
        with torch.no_grad():
            found = network.find(batch[0])
        results.append(([float(v.detach()) for v in losses], found))
    (ours, found), (published, expected) = results
    assert ours == pytest.approx(published, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        count = min(len(b.scores), config.detections_per_picture)  # mmrotate keeps 2000 a picture, the evaluation counts 1000
        assert count > 5 and len(a.scores) == count
        assert torch.allclose(a.scores, b.scores[:count], atol=1e-5) and torch.allclose(a.boxes, b.boxes[:count], atol=1e-2)
        assert a.corners is None or torch.allclose(a.corners, b.corners[:count], atol=1e-2)


@needs_extra
def test_nothing_of_the_cures_stays_behind():
    mm_models.backend()
    assert not hasattr(collections, "Sequence")


def test_without_the_extra_the_error_says_how_to_get_it(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(mm_models, "NEEDS", ("mmcv", "a_package_that_is_not_there"))
    mm_models.backend.cache_clear()
    try:
        with pytest.raises(CCDiffError, match="needs the extra mmrotate") as caught:
            fit(pictures.split("train"), CLASSES, small("oriented-rcnn"), tmp_path, 0)
        assert "pip install 'ccdiff[mmrotate]'" in str(caught.value) and not list(tmp_path.iterdir())
    finally:
        mm_models.backend.cache_clear()


def test_nothing_of_the_extras_is_imported_unless_chosen():
    code = (
        "import sys, ccdiff_cli.cli, ccdiff_cli.trainability, ccdiff_cli.detectors.training, ccdiff_cli.detectors.torchvision_models;"
        "print([m for m in ('mmcv', 'mmdet', 'mmrotate', 'ultralytics') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
