"""Verbs that are killed twenty times, themselves or the processes they started, come to the same files as those left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import DETECTOR, ENVIRONMENT

pytest.importorskip("psutil")
KILLS = int(os.environ.get("CCDIFF_TEST_KILLS", "20"))
BRIEF = {"steps": 2}
"""Of a detector's training, where many are made."""


def killed(root: Path, **task: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.killing", json.dumps({"root": str(root), "kills": KILLS, **task})],
        env=ENVIRONMENT, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["kills"] >= KILLS and told["completed"] >= 1
    assert told["orphans"] == 0, "what a killed process started ends by itself"
    assert told["differences"] == [], "\n".join(told["differences"])
    return told


def settings(detector: dict[str, Any]) -> list[str]:
    return [part for key, value in detector.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.mark.slow
def test_train(prepared: Path, recipe: Path, tmp_path: Path) -> None:
    killed(tmp_path, arguments=["train", "--recipe", str(recipe), "--data", str(prepared), "--cpu"])


@pytest.mark.slow
def test_evaluate(prepared: Path, synthetic: Path, tmp_path: Path) -> None:
    more = ["--bootstrap", "5", "--device", "cpu", *settings({**DETECTOR, "steps": 12, "checkpoint_every": 10})]
    killed(tmp_path, arguments=["evaluate", "--real", str(prepared), "--synthetic", str(synthetic), *more])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_eval_trainability(prepared: Path, synthetic: Path, tmp_path: Path, processes: int) -> None:
    """Many short trainings; that a training goes on at its checkpoint, ``test_evaluate`` shows."""
    more = ["--seeds", "0", "--match", "steps", "--arm", "synthetic", "--arm", "copy-paste=0.5", "--processes", str(processes)]
    more += settings({**DETECTOR, **BRIEF, "device": "cpu", "samples": 50})
    arguments = ["eval-trainability", "--real", str(prepared), "--synthetic", str(synthetic), *more]
    told = killed(tmp_path, arguments=arguments, workers=processes > 1)
    assert processes == 1 or told["of workers"] > 0


@pytest.mark.slow
def test_synthesize_with_a_filter(prepared: Path, generator: Path, tmp_path: Path) -> None:
    from ccdiff_cli.dataset import read_set
    from ccdiff_cli.detectors import DetectorConfig, fit

    real = read_set(prepared)
    config = DetectorConfig.model_validate({**DETECTOR, "device": "cpu"})
    detector = fit(real.split("train"), real.classes, config, tmp_path / "judges", 0).info["key"]
    arguments = ["synthesize", "--n", "12", "-c", str(generator), "-l", str(prepared), "--steps", "1", "--batch-size", "2"]
    arguments += ["--filter", "objects", "--filter-detector", str(tmp_path / "judges" / detector), "--num-processes", "2"]
    told = killed(tmp_path, arguments=arguments, workers=True)
    assert told["of workers"] > 0


@pytest.mark.slow
def test_synthesize_by_actors_of_ray(prepared: Path, generator: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="the extra ccdiff[ray] is not installed")
    arguments = ["synthesize", "--n", "8", "-c", str(generator), "-l", str(prepared), "--steps", "1", "--batch-size", "2", "--ray", "2"]
    told = killed(tmp_path, arguments=arguments, workers="ray::MapWorker")  # not its agents, whose end ends Ray itself
    assert told["of workers"] > 0


@pytest.mark.slow
def test_demo(generator: Path, tmp_path: Path) -> None:
    small = {
        "generator": str(generator), "pictures": 24, "train_steps": 4, "synthetic": 6, "sampling_steps": 1,
        "detector": {**DETECTOR, **BRIEF},
    }  # fmt: skip
    killed(tmp_path, demo=small)
