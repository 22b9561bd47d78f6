"""The demo's chain with a model of seconds: it runs, resumes, says where the report is, and never looks for a network."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from ccdiff_cli import demo
from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError

from .conftest import DETECTOR, Run, files_under

SMALL = {"pictures": 16, "train_steps": 2, "synthetic": 4, "sampling_steps": 2, "detector": DETECTOR}


def test_the_chain_resumes_and_ends_with_the_report(tmp_path: Path, generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    out, stages = tmp_path / "demo", []

    def stop_in_synthesis(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage.startswith("4/6") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(out, generator=generator, **SMALL, progress=stop_in_synthesis)
    assert "HF_HUB_OFFLINE" not in os.environ
    assert not (out / "demo.json").exists()
    kept = files_under(out / "prepared") | files_under(out / "few") | files_under(out / "generator")

    made = demo.run_demo(out, generator=generator, **SMALL, progress=lambda stage, done, total: stages.append(stage))
    assert kept.items() <= (files_under(out / "prepared") | files_under(out / "few") | files_under(out / "generator")).items()
    assert {stage[:3] for stage in stages} == {f"{n}/6" for n in range(1, 7)}
    assert Path(made["report"]).is_file()
    assert made["lines"][-2] == f"report: {made['report']}"
    assert made["lines"][-1].startswith("next, on your own data") and "ccdiff prepare" in made["lines"][-1]
    assert made["synthetic"]["pictures"] == 4
    assert list(made["seconds"]) == ["draw", "prepare", "train", "synthesize", "export", "eval-trainability"]
    few, everything = (read_set(out / name).split("train") for name in ("few", "prepared"))
    assert len(few) == round(len(everything) * demo.PERCENT / 100) and {s.source for s in few} < {s.source for s in everything}
    shown = read_set(out / "synthetic").scenes
    assert {s.provenance["layout"]["picture"] for s in shown} <= {Path(s.file_name).name for s in few}  # nothing of the rest
    assert sum("synthesized:" in line or "with pasted crops:" in line for line in made["lines"]) == 2
    assert made["yardstick"]["sentence"] in made["lines"] and made["yardstick"]["over"].startswith("20 % of real")
    for format in demo.FORMATS:
        assert (out / "export" / format / "export.json").is_file()

    before = files_under(out)
    again = demo.run_demo(out, generator=generator, **SMALL)
    assert files_under(out) == before  # finished: only read
    assert again["verdict"] == made["verdict"]
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["seconds"] == made["seconds"]


def test_another_seed_in_the_same_folder_is_refused(tmp_path: Path, generator: Path) -> None:
    from ccdiff_cli.drawn import draw_dataset

    draw_dataset(tmp_path / "drawn", pictures=16)
    with pytest.raises(CCDiffError, match="other numbers"):
        demo.run_demo(tmp_path, generator=generator, **SMALL, seed=1)


def test_without_its_model_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(CCDiffError, match="missing"):
        demo.run_demo(tmp_path / "out", generator=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not demo.shipped_generator().is_dir(), reason="the shipped model is not there")
def test_the_demo_as_a_user_runs_it(ccdiff: Run, tmp_path: Path) -> None:
    """One command, no network, and a second run that only reads."""
    threads = {"OMP_NUM_THREADS": "2"}
    done = ccdiff("demo", "--out", "demo", cwd=tmp_path, env=threads, timeout=7200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[-1].startswith("next, on your own data")
    report = tmp_path / lines[-2].removeprefix("report: ")
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
    result = json.loads((tmp_path / "demo/demo.json").read_text(encoding="utf-8"))
    print(result["seconds"])
    scores = result["adherence"]
    assert scores["synthetic pictures"]["AP50"]["mean"] > scores["synthetic pictures, labels shuffled (floor)"]["AP50"]["mean"] + 5
    before = files_under(tmp_path / "demo")
    assert ccdiff("demo", "--out", "demo", cwd=tmp_path, env=threads).returncode == 0
    assert files_under(tmp_path / "demo") == before
