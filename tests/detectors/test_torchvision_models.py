"""RetinaNet and FCOS: trained, reloaded, and their boxes in the right place (Faster R-CNN: test_training.py)."""

from __future__ import annotations

import numpy as np
import pytest

from ccdiff_cli.detectors import DetectorConfig, fit, load_detector
from ccdiff_cli.detectors.config import SETTINGS

from .small import CLASSES, TINY, make_set


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_trains_and_finds_again_after_loading(kind, tmp_path):
    made = make_set(tmp_path / "set", {"train": 3, "test": 1})
    shared = {k: v for k, v in TINY.model_dump().items() if k in SETTINGS[kind] and k not in ("kind", "anchor_sizes")}
    config = DetectorConfig.model_validate({**shared, "kind": kind, "fpn_channels": 64, "steps": 8, "score_threshold": 0.0})
    detector = fit(made.split("train"), CLASSES, config, tmp_path / "t", 0)
    rows = detector.info["losses"]["rows"]
    assert detector.info["losses"]["columns"][2:4] == ["class", "box"] and rows[-1][1] == pytest.approx(sum(rows[-1][2:]), abs=1e-3)
    a = detector.predict(made.split("test"))[0]
    b = load_detector(tmp_path / "t" / detector.info["key"], "cpu").predict(made.split("test"))[0]
    assert len(a) and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and a.corners is None
    assert set(a.labels) <= {0, 1} and a.boxes.min() >= 0 and a.boxes.max() <= 64
