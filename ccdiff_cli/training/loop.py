"""The loop that every stage of training shares: gradient steps, moving average, checkpoints, exact resumption.

What is notable: no random state is ever saved.  Every draw of step k comes from generators seeded with (seed, stage, k, rank), and
the order of the data is a permutation per epoch seeded the same way, so a run that was killed and started again computes what an
uninterrupted one computes.  Gradients of all trained modules are synchronised and clipped together: a stage trains ONE module,
whose ``forward`` returns the loss.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from ..errors import CCDiffError
from ..files import content_key, write_bytes, write_json
from ..methods.recipe import StageConfig

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called after every unit of work."""


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from any parts (run seed, stage name, step, ...)."""
    digest = hashlib.sha256("/".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


FIGURES_EVERY = 10
"""Steps between entries in the log of what a loss says of its network."""
LINEAR_SHARE = 0.3
"""The last share of the steps, over which the linear schedule goes down."""


def learning_rate_at(step: int, config: StageConfig) -> float:
    """Learning rate of optimizer step ``step`` (from 0)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "linear":
        return config.learning_rate * min(1.0, (config.steps - step) / max(1.0, LINEAR_SHARE * config.steps))
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, share))) / 2)


def batch_indices(count: int, *, step: int, micro: int, rank: int, world: int, config: StageConfig, seed: int, stage: str) -> list[int]:
    """The data indices of one forward pass: every item once per epoch, in an order that depends on the seed and epoch alone.

    Processes and accumulation passes take neighbouring slices of the same global batch.
    """
    start = ((step * config.accumulation + micro) * world + rank) * config.batch_size
    orders: dict[int, np.ndarray] = {}
    indices = []
    for position in range(start, start + config.batch_size):
        epoch, offset = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng(seed_of(seed, stage, "epoch", epoch)).permutation(count)
        indices.append(int(orders[epoch][offset]))
    return indices


@contextmanager
def termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that a stage can finish its step and save before it leaves."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_stage(
    stage: str,
    module: nn.Module,
    batch_of: Callable[[int, int, int, int], dict[str, Any]],
    config: StageConfig,
    folder: Path,
    accelerator: Accelerator,
    *,
    seed: int,
    key: Any,
    progress: Progress | None = None,
    log: Callable[[str, float, int], None] | None = None,
    every: tuple[int, Callable[[int], None], Callable[[int], bool]] | None = None,
) -> list[float]:
    """Train ``module`` for ``config.steps`` steps, resuming from the newest checkpoint in ``folder``.

    On return the module holds the averaged weights (where an average is kept).

    Args:
        stage: its name, for seeds, logs and progress.
        module: ``module(**batch) -> scalar loss``; its parameters with ``requires_grad`` are trained.  Where it has ``parts(batch) ->
            [(share, piece), ...]``, pieces are worked off one after the other and their gradients added up; where it has ``figures() ->
            {name: number}``, these are logged.
        batch_of: ``(step, micro, rank, world) -> batch`` on the CPU; must be a function of these and the seed alone.
        key: anything JSON-able that determines the result (recipe part, data); a checkpoint of another key is refused.
        every: ``(n, function, made)``: call ``function(step)`` after every n steps and after the last, with the averaged weights in place.
            A run that was killed between a checkpoint and the call makes up for it where ``made(step)`` says that nothing is there.

    Returns:
        the loss after each step, since the first.

    Raises:
        CCDiffError: the loss is not finite; a checkpoint of another configuration lies in the folder.
        SystemExit: SIGTERM arrived; everything up to the last step is saved.
    """
    names, parameters = zip(*[(n, p) for n, p in module.named_parameters() if p.requires_grad], strict=True)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    step, losses, average_state = 0, [], None
    key = content_key(key)
    state = _load_checkpoint(folder, key, dict(zip(names, parameters, strict=True)))
    if state is not None:
        step, losses, average_state = state["step"], state["losses"], state["average"]
        with torch.no_grad():
            for name, parameter in zip(names, parameters, strict=True):
                parameter.copy_(state["weights"][name])
        optimizer.load_state_dict(state["optimizer"])
    trained, optimizer = accelerator.prepare(module, optimizer)
    average = None
    if config.ema_decay:
        average = EMAModel(parameters, decay=config.ema_decay)
        if average_state is not None:
            average.load_state_dict(average_state)
        average.to(accelerator.device)
    autocast = config.precision == "bfloat16"
    rank, world = accelerator.process_index, accelerator.num_processes

    def tidy() -> None:
        write_json(folder / "losses.json", losses)
        *older, _ = found = sorted(folder.glob("checkpoint-*.pt"))
        odd = {path for path in older if _step_of(path) % config.checkpoint_every}  # saved by a signal: without it there would be none
        regular = [path for path in found if path not in odd]
        for old in (*odd, *regular[:-2]):
            old.unlink()

    def call() -> None:
        if every is not None and (step % every[0] == 0 or step == config.steps) and accelerator.is_main_process:
            with _averaged(average, parameters):
                every[1](step)

    def save() -> None:
        if accelerator.is_main_process:
            saved = {
                "step": step,
                "key": key,
                "losses": losses,
                "weights": {n: p.detach().cpu() for n, p in zip(names, parameters, strict=True)},
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict() if average is not None else None,
            }
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            write_bytes(folder / f"checkpoint-{step:08d}.pt", buffer.getvalue())
            tidy()
        accelerator.wait_for_everyone()

    if state is not None and accelerator.is_main_process:  # what the run that saved it may not have come to
        tidy()
        if every is not None and not every[2](step):
            call()
    figures: Callable[[], dict[str, float]] = getattr(module, "figures", dict)
    divide: Callable[[dict[str, Any]], list[tuple[float, dict[str, Any]]]] | None = getattr(module, "parts", None)
    pictures = config.batch_size * config.accumulation * world
    with termination() as stop:
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
            total = 0.0
            for micro in range(config.accumulation):
                batch = _to_device(batch_of(step, micro, rank, world), accelerator.device)
                torch.manual_seed(seed_of(seed, stage, step, micro, rank))
                pieces = divide(batch) if divide is not None else [(1.0, batch)]
                for k, (share, piece) in enumerate(pieces):
                    last = micro == config.accumulation - 1 and k == len(pieces) - 1
                    with nullcontext() if last else accelerator.no_sync(trained):
                        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=autocast):
                            loss = trained(**piece)
                        accelerator.backward(loss * (share / config.accumulation))
                    total += float(loss.detach()) * share / config.accumulation
            if not math.isfinite(total):
                raise CCDiffError(
                    f"the loss of stage {stage!r} is {total} at step {step}",
                    where=folder,
                    fix="lower the stage's learning_rate (or raise warmup_steps) in the recipe and train into a new folder",
                )
            norm = float(accelerator.clip_grad_norm_(parameters, config.gradient_clip))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.step(parameters)
            step += 1
            losses.append(total)
            if log is not None and accelerator.is_main_process:
                log(f"{stage}/loss", total, step)
                log(f"{stage}/gradient_norm", norm, step)
                log(f"{stage}/learning_rate", learning_rate_at(step - 1, config), step)
                for name, value in figures().items() if step % FIGURES_EVERY == 0 or step == config.steps else ():
                    log(f"{stage}/{name}", value, step)
            if progress is not None:
                progress(stage, step * pictures, config.steps * pictures)
            if step % config.checkpoint_every == 0 or step == config.steps or stop.is_set():
                save()
            call()
            if stop.is_set():
                raise SystemExit(128 + signal.SIGTERM)
    if average is not None:
        average.copy_to(parameters)
    accelerator.free_memory()
    return losses


@contextmanager
def _averaged(average: EMAModel | None, parameters: tuple[nn.Parameter, ...]) -> Iterator[None]:
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: _to_device(v, device) for k, v in value.items()}
    return value.to(device) if hasattr(value, "to") else value


def _load_checkpoint(folder: Path, key: str, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; a damaged one (a disk fault) falls back to the one before."""
    found = sorted(folder.glob("checkpoint-*.pt"), reverse=True)
    for path in found:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            continue
        if not isinstance(state, dict) or not isinstance(state.get("key"), str):
            continue
        if state["key"] != key:
            raise CCDiffError(
                "the checkpoint there was made with another recipe or data set",
                where=path,
                fix="train into a new folder, or go back to the recipe and data it was started with",
            )
        if _is_whole(state, parameters):
            return state
    if found:
        raise CCDiffError("no checkpoint in this folder can be read", where=folder, fix=f"delete {folder} to start this stage again")
    return None


def _is_whole(state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether a checkpoint of our own key holds what was saved: every weight, of its shape, finite, and a loss for each step."""
    step, losses, weights = (state.get(name) for name in ("step", "losses", "weights"))
    return (
        type(step) is int
        and isinstance(losses, list)
        and len(losses) == step
        and all(isinstance(loss, float) for loss in losses)
        and isinstance(weights, dict)
        and weights.keys() == parameters.keys()
        and all(isinstance(w, torch.Tensor) and w.shape == parameters[n].shape and bool(w.isfinite().all()) for n, w in weights.items())
        and isinstance(state.get("optimizer"), dict)
        and isinstance(state.get("average"), (dict, type(None)))
    )


def _step_of(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def threads_note() -> str:
    """How many processor threads torch uses, for logs."""
    return f"{torch.get_num_threads()} of {os.cpu_count()} threads"
