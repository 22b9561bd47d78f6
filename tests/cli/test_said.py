"""What verbs say at their end, and where progress goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ccdiff_cli.cli import app
from ccdiff_cli.cli import evaluate as evaluate_verb
from ccdiff_cli.cli.prepare import _next
from ccdiff_cli.cli.synthesize import _synthesis_lines
from ccdiff_cli.drawn import draw_dataset
from ccdiff_cli.project.place import flag_of


@pytest.mark.parametrize(
    ("sizes", "layout", "how"),
    [
        ([(128, 128)], "coco", "--from tiny"),
        ([(256, 256)], "coco", "--from tiny --set picture_size=256"),
        ([(100, 100)], "coco", "--from tiny"),
        ([(128, 128), (64, 64)], "coco", "--from tiny"),
        ([(512, 512)], "hrsc", "--recipe ccdiffpp-sd14-hrsc --base STABLE_DIFFUSION_FOLDER"),
    ],
)
def test_prepare_ends_with_the_training_that_init_proposes(sizes: list[tuple[int, int]], layout: str, how: str) -> None:
    made = SimpleNamespace(scenes=[SimpleNamespace(width=w, height=h) for w, h in sizes], manifest={"prepare": {"format": layout}})
    assert _next(made, Path("runs/mine")) == f"next: ccdiff train {how} --data runs/mine --out runs/generator"


def test_a_project_file_of_another_name_is_named_in_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_dataset(tmp_path / "drawn", pictures=8)

    def last(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        return done.stdout.splitlines()[-1]

    named = "--project y.yaml"
    assert last("init", "drawn", "--out", "y.yaml") == f"next: ccdiff prepare {named}, or ccdiff run {named} for the whole chain"
    assert last("status", "--project", "y.yaml") == f"next: ccdiff prepare {named}, or ccdiff run {named} for all of the rest"
    assert last("prepare", "--project", "y.yaml") == f"next: ccdiff train {named}, or ccdiff run {named} for all that is left"
    assert last("run", "--project", "y.yaml", "--dry-run") == "nothing was done (--dry-run)"
    assert last("init", "drawn") == "next: ccdiff prepare, or ccdiff run for the whole chain"
    (tmp_path / "below").mkdir()
    (tmp_path / "other folder").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert flag_of(tmp_path / "ccdiff.yaml") == "", "found from below"
    assert flag_of(tmp_path / "y.yaml") == f" --project {tmp_path / 'y.yaml'}"
    monkeypatch.chdir(tmp_path)
    assert flag_of("other folder/ccdiff.yaml") == " --project 'other folder/ccdiff.yaml'"


def test_with_json_progress_goes_to_standard_error_unless_that_is_the_json(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "drawn", pictures=8)

    def run(out: str, stderr: int) -> tuple[str, str]:
        command = [sys.executable, "-m", "ccdiff_cli", "prepare", "drawn", "--out", out, "--json", "--processes", "1"]
        root = {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | root, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True)
        return done.stdout, done.stderr

    said, told = run("a", subprocess.PIPE)
    assert json.loads(said)["set"] == "a" and " of 8" in told
    said, _ = run("b", subprocess.STDOUT)
    assert json.loads(said)["set"] == "b"


def test_the_plan_of_an_evaluation_is_in_plain_words() -> None:
    plan: dict[str, Any] = {
        "real pictures": 9, "training pictures": 1234, "synthetic pictures": {"s": 20}, "extractors": {"small": "12.0 pictures/s"},
        "bootstrap samples": 100, "clip": "not measured: --clip names no weights", "estimated minutes": 1.5,
    }  # fmt: skip
    detector = {"detector": "fcos", "detector steps": 800, "detector already trained": False}
    said = evaluate_verb._plan_lines(plan | detector)
    assert said[0] == "pictures: 9 real to compare with, 1,234 real for training; synthetic: s 20"
    assert "detector: fcos, 800 steps, to be trained" in said and "about 1.5 minutes in all" in said
    assert "detector: none, so no YOLOScore" in evaluate_verb._plan_lines(plan)
    assert not any(mark in line for line in said for mark in "{}'")


def test_a_synthesis_is_told_in_plain_words_once() -> None:
    made: dict[str, Any] = {
        "out": "s", "pictures": 20, "objects": 60, "per_class": {"ship": 60}, "layouts": {}, "references": "chosen from the bank",
        "options": {}, "plan": "f00d",
    }  # fmt: skip
    cost = {
        "memory_of_the_plan": "0.1 MB", "disk": "2 MB", "memory_mib_per_process": 900, "seconds_per_batch": 1.21, "processes": 2,
        "estimated_seconds": 22.7, "estimated": "about 23 s",
    }  # fmt: skip
    said = "\n".join(_synthesis_lines(made | cost, Path("l"), Path("s"), True))
    assert said.count("23 s") == 1 and "22.7" not in said and "_" not in said
    assert "pictures: 20, with 60 objects" in said and "memory: 0.1 MB for the plan, 900 MiB in each process" in said
    done = {"made": 16, "kept": 4, "seconds": 8.0, "pictures_per_second": 2.0, "content": "beef"}
    said = "\n".join(_synthesis_lines(made | done, Path("l"), Path("s"), False))
    assert "made: 16 pictures in 8 s, 2.00/s; 4 were there" in said and "_" not in said.partition("next:")[0]
