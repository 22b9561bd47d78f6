"""The four commands with no option in the folder of a project file, and ``ccdiff run``."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccdiff_cli.drawn import draw_dataset

SMALL: dict[str, Any] = {
    "prepare": {"size": 128},
    "train": {"from": "tiny", "set": {"denoiser.train.steps": 2, "denoiser.train.batch_size": 2, "denoiser.sample_every": 100}},
    "synthesize": {"n": 4, "sampling": {"steps": 1}},
    "export": {"format": "yolo-obb"},
    "trainability": {"seeds": [0], "match": "steps", "samples": 50, "detector": {"steps": 2, "warmup_steps": 1, "input_size": 64}},
}


def ccdiff(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ccdiff_cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_dataset(tmp_path / "drawn", pictures=8)
    (tmp_path / "ccdiff.yaml").write_text(yaml.safe_dump({"data": "drawn", **SMALL}))
    (tmp_path / "below").mkdir()
    return tmp_path


def test_prepare_takes_all_from_the_file_and_status_follows(folder: Path) -> None:
    assert [s["state"] for s in json.loads(ccdiff(folder, "status", "--json").stdout)["stages"]][:3] == ["missing"] * 3
    said = ccdiff(folder / "below", "prepare")
    assert "next: ccdiff train" in said.stdout and f"project: {folder / 'ccdiff.yaml'}" in said.stderr
    stages = {s["stage"]: s for s in json.loads(ccdiff(folder, "status", "--json").stdout)["stages"]}
    assert stages["prepare"]["state"] == "done" and Path(stages["prepare"]["folder"]).is_dir()
    assert stages["evaluate"]["state"] == "missing, not in the file"
    refused = ccdiff(folder, "synthesize", code=2).stderr
    assert "the stage train is not done" in refused and "ccdiff train" in refused
    plan = json.loads(ccdiff(folder, "run", "--dry-run", "--json").stdout)["stages"]
    assert plan == {"prepare": "done before", "train": "to do", "synthesize": "to do", "export": "to do", "trainability": "to do"}


def test_without_a_project_file_the_message_names_what_is_missing_and_init(tmp_path: Path) -> None:
    for verb, named in (("prepare", "SOURCE, --out"), ("train", "--data, --out"), ("synthesize", "--checkpoint, --layouts, --out")):
        said = ccdiff(tmp_path, verb, *(["--n", "4"] if verb == "synthesize" else []), code=2).stderr
        assert named in said and "ccdiff init" in said and "Traceback" not in said


@pytest.mark.slow
def test_init_and_the_four_commands_with_no_further_option(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "DIOR_LIKE", pictures=16)
    for arguments in (("init", "DIOR_LIKE"), ("prepare",), ("train",), ("synthesize", "--n", "64"), ("eval-trainability",)):
        said = ccdiff(tmp_path, *arguments)
    assert "report" in said.stdout
    assert json.loads(ccdiff(tmp_path, "run", "--dry-run", "--json").stdout)["stages"] == {
        "prepare": "done before", "train": "done before", "synthesize": "done before", "export": "to do", "trainability": "done before",
    }  # fmt: skip


@pytest.mark.slow
def test_run_goes_on_after_kills_and_then_has_nothing_to_do(folder: Path) -> None:
    dice = random.Random(0)
    for _ in range(6):
        running = subprocess.Popen(
            [sys.executable, "-m", "ccdiff_cli", "run"], cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL
        )
        time.sleep(dice.uniform(2, 25))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    made = json.loads(ccdiff(folder, "run", "--json").stdout)
    assert set(made["stages"]) == {"prepare", "train", "synthesize", "export", "trainability"}
    again = json.loads(ccdiff(folder, "run", "--json").stdout)
    assert set(again["stages"].values()) == {"done before"} and again["results"] == {}
    assert not [p for p in (folder / "runs").rglob(".partial-*")]
