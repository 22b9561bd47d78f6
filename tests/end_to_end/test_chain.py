"""The chain through the command line: every verb in a process of its own, small enough for a minute."""

from __future__ import annotations

import json
from pathlib import Path

from ccdiff_cli.dataset import read_set

from .conftest import SIZE, Run, files_under


def test_every_verb_in_turn(ccdiff: Run, drawn: Path, recipe: Path, detector: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> dict:
        done = ccdiff(*arguments, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run("prepare", drawn, "--size", SIZE, "--classes", drawn / "classes.txt", "--out", "prepared")
    prepared = read_set(tmp_path / "prepared")
    assert {split: len(prepared.split(split)) for split in ("train", "val", "test")} == {"train": 15, "val": 3, "test": 6}
    assert all(i.oriented for s in prepared.scenes for i in s.instances)  # both XML files were understood

    run("train", "--recipe", recipe, "--data", "prepared", "--out", "generator", "--cpu")
    run(
        "train",
        "--recipe",
        recipe,
        "--data",
        "prepared",
        "--out",
        "tuned",
        "--from",
        "generator",
        "--set",
        "denoiser.train.steps=2",
        "--cpu",
    )

    run("synthesize", "--n", 6, "--checkpoint", "tuned", "--layouts", "prepared", "--out", "synthetic", "--batch-size", 4)
    synthetic = read_set(tmp_path / "synthetic")
    assert len(synthetic.scenes) == 6
    assert tuple(synthetic.classes) == tuple(prepared.classes)
    before = files_under(tmp_path / "synthetic")
    run("synthesize", "--n", 6, "--checkpoint", "tuned", "--layouts", "prepared", "--out", "synthetic", "--batch-size", 4)
    assert files_under(tmp_path / "synthetic") == before  # finished: only read
    run("verify", "synthetic")

    for format in ("coco", "dota", "yolo", "yolo-obb"):
        run("export", "synthetic", "--format", format, "--out", f"export/{format}")
    assert (tmp_path / "export/yolo-obb/data.yaml").is_file()

    result = run(
        "eval-trainability",
        "--real",
        "prepared",
        "--synthetic",
        "synthetic",
        "--out",
        "trainability",
        "--seeds",
        "0",
        "--detector",
        detector,
    )
    assert result["gain"]["AP50"]["per_seed"]
    assert (tmp_path / "trainability/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
