"""A detector of no time: it 'finds' the labelled objects with a skill that grows with the pictures it was trained on.

It stands in for ``fit`` in the room of trainings, files itself as a real one does, and counts what it was asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ccdiff_cli.detectors import Detections, training_key
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import read_json, write_json
from ccdiff_cli.trainability import trainings


class Fake:
    """Finds an object when a coin, tossed for (seed, object), falls below ``skill``; now and then something that is not there."""

    def __init__(self, info: dict[str, Any], classes: Any, oriented: bool) -> None:
        self.info, self.classes, self.oriented = info, classes, oriented

    def predict(self, scenes, progress=None):
        found = []
        for i, scene in enumerate(scenes):
            rng = np.random.default_rng([self.info["seed"], i])
            coins = rng.random(len(scene.instances))
            kept = [x for x, c in zip(scene.instances, coins, strict=True) if c < self.info["skill"]]
            boxes = np.array([x.hbb for x in kept] + [(1, 1, 9, 9)], np.float32).reshape(-1, 4)
            corners = np.array([x.corners for x in kept] + [(1, 1, 9, 1, 9, 9, 1, 9)], np.float32).reshape(-1, 8)
            scores = np.array([0.6 + 0.3 * rng.random() for _ in kept] + [0.55], np.float32)
            labels = np.array([self.classes.index(x.category) for x in kept] + [0], np.int64)
            found.append(Detections(boxes, scores, labels, corners if self.oriented else None))
        return found


class FakeFits:
    """Takes the place of ``fit`` and ``load_detector``; ``log`` holds (pictures, steps, seed, start) of each training."""

    def __init__(self, fail=lambda scenes, seed: False, oriented: bool = False) -> None:
        self.log: list[tuple[int, int, int, str | None]] = []
        self.fail, self.oriented, self.classes = fail, oriented, None

    def install(self, monkeypatch) -> FakeFits:
        monkeypatch.setattr(trainings, "fit", self.fit)
        monkeypatch.setattr(trainings, "load_detector", self.load)
        return self

    def fit(self, scenes, classes, config, out, seed, progress=None, start=None, threads=None):
        self.classes = classes
        if self.fail(scenes, seed):
            raise CCDiffError("the detector's loss became nan at step 3 of 4", fix="lower detector.lr; finished trainings are kept")
        if start is not None:
            assert (Path(out) / start / "detector.json").is_file(), "the first stage comes first"
        self.log.append((len(scenes), config.steps, seed, start))
        key = training_key(scenes, classes, config, seed, start)
        weights = {"name": "none", "sha256": "x", "note": "backbone weights: a fake"}
        kinds = {s.file_name[0] for s in scenes}
        info = {
            "key": key, "seed": seed, "skill": min(0.95, 0.3 + 0.02 * len(scenes) + 0.1 * ("s" in kinds) + 0.2 * (start is not None)),
            "steps": config.steps, "pictures": len(scenes), "objects_unusable": 0, "backbone_weights": weights,
            "losses": {"columns": ["step", "total"], "rows": [[2, 1.0], [config.steps, 0.5]]}, "seconds": 6.0,
            "pictures_per_second": 2.0, "device": "cpu",
        }  # fmt: skip
        write_json(Path(out) / key / "detector.json", info)
        return Fake(info, classes, self.oriented)

    def load(self, folder, device="auto"):
        return Fake(read_json(Path(folder) / "detector.json"), self.classes, self.oriented)
