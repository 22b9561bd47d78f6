"""The training loop: data order, schedule, exact resumption, refusals."""

import shutil
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.recipes import StageConfig
from ccdiff_cli.training.loop import Run, batch_indices, learning_rate_at, made_ahead, run_stage

CONFIG = StageConfig(steps=9, batch_size=4, learning_rate=0.05, ema_decay=0.9, checkpoint_every=4, warmup_steps=2, schedule="cosine")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x + 0.1 * torch.randn(x.shape)) - x.sum(1, keepdim=True)).square().mean()


def run(
    folder: Path, config: StageConfig = CONFIG, *, key: str = "k", stop_at: int | None = None, data: float = 1.0
) -> tuple[list[float], dict]:
    torch.manual_seed(1)
    module = Line()

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, torch.Tensor]:
        if step == stop_at:
            raise InterruptedError
        return {"x": data * torch.randn(4, 3, generator=torch.Generator().manual_seed(step * 10 + micro))}

    losses = run_stage("line", module, batch_of, config, Run(folder, Accelerator(cpu=True), 3, key))
    return losses, {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("stop_at", [1, 4, 6, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    losses, weights = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", stop_at=stop_at)
    again_losses, again = run(tmp_path / "cut")
    assert again_losses == losses
    assert all(torch.equal(again[k], weights[k]) for k in weights)


def test_half_precision_scales_gradients_passes_over_those_that_overflow_and_resumes(tmp_path: Path) -> None:
    half = CONFIG.model_copy(update={"precision": "float16", "ema_decay": 0.0, "steps": 30, "warmup_steps": 0, "learning_rate": 0.1})
    losses, weights = run(tmp_path / "whole", half, data=10.0)
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", half, stop_at=14, data=10.0)
    again_losses, again = run(tmp_path / "cut", half, data=10.0)
    assert again_losses == losses and all(torch.equal(again[k], weights[k]) for k in weights)
    _, first = run(tmp_path / "first", half.model_copy(update={"steps": 1}), data=10.0)
    torch.manual_seed(1)
    assert all(torch.equal(first[k], v) for k, v in Line().state_dict().items())  # 65,536 times the gradient is beyond half precision
    (newest,) = (tmp_path / "first").glob("*.pt")
    assert torch.load(newest, weights_only=True)["scaler"]["scale"] == 2.0**15


def test_what_a_loss_says_of_its_network_is_logged(tmp_path: Path) -> None:
    class Said(Line):
        def figures(self) -> dict[str, float]:
            return {"gates/open": 0.25}

    logged: list[tuple[str, float, int]] = []
    config = CONFIG.model_copy(update={"steps": 12})
    where = Run(tmp_path, Accelerator(cpu=True), 3, "k", log=lambda *entry: logged.append(entry))
    run_stage("line", Said(), lambda *place: {"x": torch.ones(4, 3)}, config, where)
    assert [entry for entry in logged if "gates" in entry[0]] == [("line/gates/open", 0.25, 10), ("line/gates/open", 0.25, 12)]
    assert sum(name == "line/loss" for name, _, _ in logged) == 12


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    second = run(tmp_path, stop_at=0)  # would raise if a batch were asked for
    assert first[0] == second[0] and all(torch.equal(first[1][k], second[1][k]) for k in first[1])


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    losses, weights = run(tmp_path)
    newest = sorted(tmp_path.glob("checkpoint-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    again_losses, again = run(tmp_path)
    assert again_losses == losses and all(torch.equal(again[k], weights[k]) for k in weights)


def test_checkpoints_that_cannot_be_read_at_all_are_an_error(tmp_path: Path) -> None:
    run(tmp_path)
    for path in tmp_path.glob("checkpoint-*.pt"):
        path.write_bytes(b"nonsense")
    with pytest.raises(CCDiffError, match="no checkpoint"):
        run(tmp_path)


def test_another_recipe_or_set_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CCDiffError, match="another recipe"):
        run(tmp_path, key="other")


def test_a_loss_that_is_not_finite_stops_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(CCDiffError, match="learning_rate"):
        run(tmp_path, data=float("inf"))
    shutil.rmtree(tmp_path)


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    split = StageConfig(steps=2, batch_size=4, accumulation=2, learning_rate=0.1)
    losses, _ = run(tmp_path, split)
    assert len(losses) == 2


def test_every_item_is_seen_once_an_epoch_whatever_the_processes() -> None:
    config = StageConfig(steps=10, batch_size=3, accumulation=2)
    for world in (1, 2):
        drawn = []
        for step in range(20 // world):
            for micro in range(2):
                for rank in range(world):
                    drawn += batch_indices(12, step=step, micro=micro, rank=rank, world=world, config=config, seed=0, stage="s")
        assert all(sorted(drawn[i : i + 12]) == list(range(12)) for i in range(0, len(drawn) - 11, 12))
        assert drawn[:12] != drawn[12:24]


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate_at(step, CONFIG) for step in range(CONFIG.steps)]
    assert rates[0] < rates[1] == pytest.approx(CONFIG.learning_rate)
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 0.2 * CONFIG.learning_rate


def test_the_linear_schedule_is_constant_and_then_falls_to_nothing() -> None:
    config = StageConfig(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=4, schedule="linear")
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and set(rates[4:70]) == {1.0}
    assert rates[85] == pytest.approx(0.5) and rates[99] == pytest.approx(1 / 30)


def test_batches_are_made_while_the_step_before_runs_each_once_in_order() -> None:
    config = StageConfig(steps=3, batch_size=1, accumulation=2)
    asked: list[tuple[int, int]] = []
    following = threading.Event()

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, torch.Tensor]:
        asked.append((step, micro))
        if (step, micro) == (0, 1):
            following.set()
        if (step, micro) == (2, 1):
            raise InterruptedError
        return {"x": torch.full((1, 1), 10.0 * step + micro)}

    wanted = [(step, micro) for step in range(3) for micro in range(2)]
    with made_ahead(batch_of, config) as batches:
        assert batches(0, 0, 0, 1)["x"] == 0
        assert following.wait(30), "nobody asked for the second batch, and it is made"
        assert [float(batches(*place, 0, 1)["x"]) for place in wanted[1:-1]] == [1, 10, 11, 20]
        with pytest.raises(InterruptedError):  # where it is asked for, not where it was made
            batches(2, 1, 0, 1)
    assert asked == wanted


def test_an_error_in_the_step_ends_the_thread_that_makes_batches() -> None:
    with pytest.raises(ZeroDivisionError), made_ahead(lambda *place: {}, CONFIG) as batches:
        batches(0, 0, 0, 1)
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
