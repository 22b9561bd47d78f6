"""How many threads a stage computes with: chosen by a timed pass, written down before it counts, taken again by a training that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ccdiff_cli import threads as module
from ccdiff_cli.methods.recipe import StageConfig
from ccdiff_cli.recipes import Recipe
from ccdiff_cli.threads import Threads, best, restored, seconds_by_threads
from ccdiff_cli.training import train
from ccdiff_cli.training.loop import Run, run_stage


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that would compute with eight threads, and was told nothing."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    with restored():
        torch.set_num_threads(8)
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a step moves it."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def chosen(path: Path, clock: list[float], seconds: dict[int, float], **given: object) -> tuple[int, list[str]]:
    """What a new process takes for a stage whose passes take so long, and what it says."""
    said: list[str] = []
    torch.set_num_threads(8)

    def step() -> None:
        clock[0] += seconds[torch.get_num_threads()]

    Threads(path, device="cpu", say=said.append, **given).choose("denoiser", step)  # type: ignore[arg-type]
    return torch.get_num_threads(), said


def test_one_half_and_all_are_timed_in_turn(clock: list[float]) -> None:
    used: list[int] = []

    def step() -> None:
        used.append(torch.get_num_threads())
        clock[0] += 2.0

    assert seconds_by_threads(step, 8) == {1: 2.0, 4: 2.0, 8: 2.0}
    assert used == [8, 1, 4, 8, 1, 4, 8][: len(used)] and set(used[1:]) == {1, 4, 8} and torch.get_num_threads() == 8
    assert list(seconds_by_threads(step, 2)) == [1, 2]


@pytest.mark.parametrize(
    ("seconds", "count"),
    [({1: 8.0, 4: 3.0, 8: 2.0}, 8), ({1: 1.0, 4: 4.0, 8: 10.0}, 1), ({1: 9.0, 4: 2.1, 8: 2.0}, 4), ({1: 2.0}, 1)],
    ids=["idle", "busy", "more gain nothing", "one core"],
)
def test_the_fewest_that_are_nearly_the_fastest_are_taken(seconds: dict[int, float], count: int) -> None:
    assert best(seconds) == count


def test_what_was_chosen_is_written_and_taken_again_whatever_is_fast_by_then(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "threads.json"
    count, said = chosen(path, clock, {1: 1.0, 4: 4.0, 8: 10.0})
    assert count == 1 and json.loads(path.read_text()) == {"denoiser": 1}
    assert said == ["denoiser: 1 thread (a pass takes 1 s with 1, 4 s with 4, 10 s with 8; OMP_NUM_THREADS fixes the number)"]
    count, said = chosen(path, clock, {})  # a pass would fail: none is made
    assert count == 1 and said == ["denoiser: 1 thread, with which it was begun"]


def test_a_stage_is_not_bound_by_what_the_one_before_chose(tmp_path: Path, clock: list[float]) -> None:
    seconds = {1: 1.0, 4: 2.0, 8: 3.0}

    def step() -> None:
        clock[0] += seconds[torch.get_num_threads()]

    threads = Threads(tmp_path / "threads.json", device="cpu")
    threads.choose("features", step)
    seconds.update({4: 0.5, 8: 0.2})
    threads.choose("denoiser", step)
    assert torch.get_num_threads() == 8 and json.loads((tmp_path / "threads.json").read_text()) == {"features": 1, "denoiser": 8}


def test_what_the_user_says_is_taken_without_a_pass_and_said(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "threads.json"
    assert chosen(path, clock, {}, asked=2) == (2, ["2 threads by --threads"])
    assert json.loads(path.read_text()) == {"denoiser": 2}
    monkeypatch.setenv("OMP_NUM_THREADS", "8")  # as torch took it
    count, said = chosen(path, clock, {})
    assert count == 8 and said[0] == "8 threads by OMP_NUM_THREADS"
    assert "begun with 2 threads, goes on with 8" in said[1] and "rounding" in said[1]
    assert chosen(tmp_path / "other.json", clock, {}, asked=3)[0] == 3  # what was typed is nearer than the environment


def test_neither_several_processes_nor_a_gpu_measure(tmp_path: Path) -> None:
    for given in ({"device": "cpu", "processes": 2}, {"device": "cuda"}):
        Threads(tmp_path / "threads.json", **given).choose("denoiser", lambda: pytest.fail("a pass was made"))  # type: ignore[arg-type]
        assert torch.get_num_threads() == 8
    assert not (tmp_path / "threads.json").exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"denoiser": 0}', '{"denoiser": true}', '{"denoiser": 1e9}', '{"denoiser": "2"}'])
def test_a_damaged_file_is_chosen_anew(tmp_path: Path, clock: list[float], text: str) -> None:
    path = tmp_path / "threads.json"
    path.write_text(text)
    assert chosen(path, clock, {1: 9.0, 4: 9.0, 8: 1.0})[0] == 8 and json.loads(path.read_text()) == {"denoiser": 8}


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + torch.randn(x.shape)).square().mean()


def test_nothing_stays_of_the_passes_that_were_timed(tmp_path: Path) -> None:
    config = StageConfig(steps=5, batch_size=2, accumulation=2, learning_rate=0.1, checkpoint_every=3)

    def losses(folder: Path, threads: Threads | None) -> list[float]:
        torch.manual_seed(1)
        run = Run(folder, Accelerator(cpu=True), 3, "k", threads=threads)
        return run_stage("line", Line(), lambda step, *_: {"x": torch.full((2, 3), float(step))}, config, run)

    torch.set_num_threads(2)
    timed = losses(tmp_path / "timed", Threads(tmp_path / "threads.json", device="cpu"))
    assert json.loads((tmp_path / "threads.json").read_text()).keys() == {"line"}
    assert timed == losses(tmp_path / "left alone", None)


def test_a_training_keeps_a_number_for_every_stage_and_leaves_that_of_the_process(recipe: Recipe, prepared: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(recipe, prepared, tmp_path / "g", cpu=True, threads=1, say=said.append)
    kept = json.loads((tmp_path / "g/train/threads.json").read_text())
    assert kept == dict.fromkeys(("autoencoder", "encoders", "features", "denoiser"), 1)
    assert said.count("1 thread by --threads") == 1 and torch.get_num_threads() == 8
