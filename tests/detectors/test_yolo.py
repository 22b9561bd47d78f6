"""YOLO11 where the extra (AGPL-3.0) is installed: trained, reloaded, boxes in the right place; and what is said without it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ccdiff_cli.detectors import DetectorConfig, fit, load_detector, yolo
from ccdiff_cli.detectors.backbones import find_weights
from ccdiff_cli.errors import CCDiffError

from .small import CLASSES, make_set

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None,
    reason="the extra ultralytics (AGPL-3.0) is not installed: pip install 'ccdiff[ultralytics]'",
)


def small(**changes) -> DetectorConfig:
    settings = {"kind": "yolo", "input_size": 64, "steps": 3, "warmup_steps": 1, "batch": 2, "score_threshold": 0.0, "device": "cpu"}
    return DetectorConfig.model_validate({**settings, **changes})


@needs_extra
@pytest.mark.parametrize("boxes", ["hbb", "obb"])
def test_trains_and_finds_again_after_loading(boxes, tmp_path):
    made = make_set(tmp_path / "set", {"train": 3, "test": 1})
    detector = fit(made.split("train"), CLASSES, small(boxes=boxes), tmp_path / "t", 0)
    assert "ultralytics-opencv-headless" in detector.info["versions"] or "ultralytics" in detector.info["versions"]
    a = detector.predict(made.split("test"))[0]
    b = load_detector(tmp_path / "t" / detector.info["key"], "cpu").predict(made.split("test"))[0]
    assert len(a) and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)
    assert (a.corners is not None) == (boxes == "obb") and len(a) <= small().detections_per_picture


@needs_extra
@pytest.mark.parametrize("boxes", ["hbb", "obb"])
def test_boxes_come_out_where_the_network_says(boxes):
    """A made-up output of the network: suppressed per class, in pixels of the picture."""
    network = yolo.build(small(boxes=boxes, score_threshold=0.3), CLASSES, {"file": None})
    rows = torch.tensor([[20.0, 30, 16, 8, 0.9, 0.1], [21, 30, 16, 8, 0.8, 0.1], [20, 30, 16, 8, 0.1, 0.7], [50, 50, 9, 9, 0.2, 0.2]])
    if boxes == "obb":
        rows = torch.cat((rows, torch.zeros(4, 1)), 1)
    found = network._picked(rows, torch.tensor([2.0, 2.0]))
    assert found.scores.tolist() == pytest.approx([0.9, 0.7]) and found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[6, 13, 14, 17], [6, 13, 14, 17]]


@needs_extra
def test_starts_from_a_plain_state_dict_but_for_its_head(tmp_path):
    source = yolo.build(small(), CLASSES, {"file": None}).net.state_dict()
    head = max(int(name.split(".")[1]) for name in source)
    save_file({name: value + (1 if value.is_floating_point() else 0) for name, value in source.items()}, tmp_path / "w.safetensors")
    config = small(backbone_weights=str(tmp_path / "w.safetensors"))
    loaded = yolo.build(config, CLASSES, find_weights(config)).net.state_dict()
    assert torch.equal(loaded["model.0.conv.weight"], source["model.0.conv.weight"] + 1) and head > 20
    save_file({"model.0.conv.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CCDiffError, match="do not fit"):
        yolo.build(config, CLASSES, find_weights(config))


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CCDiffError, match="needs the extra ultralytics") as caught:
        yolo.build(small(), CLASSES, {"file": None})
    assert "AGPL-3.0" in str(caught.value)
