"""The four commands with no option in the folder of a project file, and ``ccdiff run``."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccdiff_cli.drawn import draw_dataset

from .conftest import ENVIRONMENT
from .killing import content, differences

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
    """As ``init`` proposes, but for the amounts: those take a quarter of an hour of processor time (docs/results.md)."""
    draw_dataset(tmp_path / "DIOR_LIKE", pictures=16)
    ccdiff(tmp_path, "init", "DIOR_LIKE")
    said = yaml.safe_load((tmp_path / "ccdiff.yaml").read_text())
    said["train"]["set"]["denoiser.train.steps"], said["synthesize"]["sampling"]["steps"] = 4, 2
    said["trainability"] |= {"seeds": [0], "detector": said["trainability"]["detector"] | {"steps": 4, "warmup_steps": 1}}
    (tmp_path / "ccdiff.yaml").write_text(yaml.safe_dump(said))
    for arguments in (("prepare",), ("train",), ("synthesize", "--n", "64"), ("eval-trainability",)):
        said = ccdiff(tmp_path, *arguments)
    assert "report" in said.stdout
    assert json.loads(ccdiff(tmp_path, "run", "--dry-run", "--json").stdout)["stages"] == {
        "prepare": "done before", "train": "done before", "synthesize": "done before", "export": "to do", "trainability": "done before",
    }  # fmt: skip


VERBS = {"prepare": "prepare", "train": "train", "synthesize": "synthesize", "export": "export", "eval-trainability": "trainability"}
"""Verb -> its stage."""


@pytest.mark.slow
def test_run_and_the_verbs_go_on_after_kills_to_the_same_files(folder: Path) -> None:
    alone, killed, typed = (folder / name for name in ("alone", "killed", "typed"))
    for copy in (alone, killed, typed):
        copy.mkdir()
        shutil.copy(folder / "ccdiff.yaml", copy)
        shutil.copytree(folder / "drawn", copy / "drawn")
    ccdiff(alone, "run")
    dice, whole = random.Random(0), files_below(alone / "runs")

    def kill(where: Path, verb: str, files: int) -> bool:
        """Kill it at a random moment after so many files are there; whether it still ran."""
        program = [sys.executable, "-m", "ccdiff_cli", verb]
        with open(where / "log", "ab") as log, subprocess.Popen(program, cwd=where, env=ENVIRONMENT, stdout=log, stderr=log) as running:
            while running.poll() is None and files_below(where / "runs") < files:
                time.sleep(0.02)
            time.sleep(dice.uniform(0, 1))
            if running.poll() is None:
                running.kill()  # itself alone: what it started ends by itself
                return True
        assert running.returncode == 0, (where / "log").read_text()[-3000:]
        return False

    kills = sum(kill(killed, "run", files) for files in sorted(dice.sample(range(whole), 6)))
    made = json.loads(ccdiff(killed, "run", "--json").stdout)
    assert kills >= 3 and set(made["stages"]) == {"prepare", "train", "synthesize", "export", "trainability"}
    again = json.loads(ccdiff(killed, "run", "--json").stdout)
    assert set(again["stages"].values()) == {"done before"} and again["results"] == {}
    for verb, stage in VERBS.items():
        (folder,) = (p for p in (alone / "runs").glob(f"{stage}-*") if p.is_dir())
        before = files_below(typed / "runs")
        kills += sum(kill(typed, verb, before + files) for files in sorted(dice.sample(range(files_below(folder)), 2)))
        ccdiff(typed, verb)
    print(f"{kills} kills")
    assert kills >= 6
    expected = results(alone)
    for other in (killed, typed):
        assert differences(results(other), expected) == []
        assert not [p for p in (other / "runs").rglob(".partial-*")]


def files_below(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def results(where: Path) -> dict[str, bytes]:
    """The files of all stages, and of their receipts what no clock says."""
    found = {}
    for name, data in content(where / "runs").items():
        if "/" in name:
            found[name] = data
        elif "-" in name:
            receipt = json.loads(data.replace(b"*", b'"seconds": 0'))
            found[name] = json.dumps([receipt["stage"], receipt["identity"], receipt["holds"]]).encode()
    return found
