"""The loop that every stage of training shares: gradient steps, moving average, checkpoints, exact resumption.

What is notable: no random state is ever saved.  Every draw of step k comes from generators seeded with (seed, stage, k, pass), and
the order of the data is a permutation per epoch seeded the same way, so a run that was killed and started again computes what an
uninterrupted one computes.  Gradients of all trained modules are synchronised and clipped together: a stage trains ONE module,
whose ``forward`` returns the loss.
"""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from ..errors import CCDiffError
from ..files import atomic_write, content_key, write_json
from ..methods.recipe import StageConfig
from ..threads import Threads

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called after every unit of work."""


BatchOf = Callable[[int, int, int, int], dict[str, Any]]
"""(step, micro, rank, world) -> the batch; a function of these and the recipe's seed alone, called by one thread at a time."""


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


def pass_of(micro: int, rank: int, world: int) -> tuple[int, int]:
    """What of a forward pass goes into its seeds: its number in the step, over all processes, so that N processes draw what one with N
    accumulated passes draws (the second number: seeds of one process are those of earlier versions)."""
    return micro * world + rank, 0


def arithmetic(device: str, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision on a kind of device, where a stage's ``precision`` asks for it."""
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    return torch.autocast(device, kind, enabled=kind is not None)


def optimizer_of(parameters: Sequence[nn.Parameter], config: StageConfig) -> torch.optim.Optimizer:
    """AdamW as a stage asks for it.

    NOTE: in 8 bits it keeps moments of tensors under 4,096 numbers in float32.
    """
    kind: Any = torch.optim.AdamW
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        kind = AdamW8bit
    optimizer: torch.optim.Optimizer = kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return optimizer


@contextmanager
def made_ahead(batch_of: BatchOf, config: StageConfig) -> Iterator[BatchOf]:
    """The same batches, each made by a thread while the one before it is worked on."""
    with ThreadPoolExecutor(1, "batches") as maker:
        waiting: dict[tuple[int, int], Future[dict[str, Any]]] = {}

        def batch(step: int, micro: int, rank: int, world: int) -> dict[str, Any]:
            made = waiting.pop((step, micro), None) or maker.submit(batch_of, step, micro, rank, world)
            found = made.result()
            more, first = divmod(micro + 1, config.accumulation)
            if step + more < config.steps:
                waiting[step + more, first] = maker.submit(batch_of, step + more, first, rank, world)
            return found

        try:
            yield batch
        finally:
            maker.shutdown(cancel_futures=True)


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


@dataclass(frozen=True)
class Run:
    """Where and as what a stage runs.

    Attributes:
        folder: of its checkpoints.
        key: anything JSON-able that determines the result (recipe part, data); a checkpoint of another key is refused.
        log: ``log(name, value, step)`` of a figure.
        threads: chooses those of the stage; None: they stay as they are.
    """

    folder: Path
    accelerator: Accelerator
    seed: int
    key: Any
    progress: Progress | None = None
    log: Callable[[str, float, int], None] | None = None
    threads: Threads | None = None


Every = tuple[int, Callable[[int], None], Callable[[int], bool]]
"""``(n, function, made)``: call ``function(step)`` after every n steps and after the last, with the averaged weights in place.  A run that
was killed between a checkpoint and the call makes up for it where ``made(step)`` says that nothing is there."""


def run_stage(
    stage: str,
    module: nn.Module,
    batch_of: BatchOf,
    config: StageConfig,
    run: Run,
    *,
    every: Every | None = None,
) -> list[float]:
    """Train ``module`` for ``config.steps`` steps, resuming from the newest checkpoint in the run's folder.

    On return the module holds the averaged weights (where an average is kept).

    Args:
        stage: its name, for seeds, logs and progress.
        module: ``module(**batch) -> scalar loss``; its parameters with ``requires_grad`` are trained.  Where it has ``parts(batch) ->
            [(share, piece), ...]``, pieces are worked off one after the other and their gradients added up; where it has ``figures() ->
            {name: number}``, these are logged.
        batch_of: of batches on the CPU.

    Returns:
        the loss after each step, since the first.

    Raises:
        CCDiffError: the loss is not finite; a checkpoint of another configuration lies in the folder.
        SystemExit: SIGTERM arrived; everything up to the last step is saved.
    """
    descent = _Descent(stage, module, config, run, every)
    if run.threads is not None:
        run.threads.choose(stage, lambda: descent.rehearse(batch_of))
    descent.make_up()
    with termination() as stop, made_ahead(batch_of, config) as batches:
        while descent.step < config.steps:
            descent.advance(descent.accumulate(batches))
            if descent.step % config.checkpoint_every == 0 or descent.step == config.steps or stop.is_set():
                descent.save()
            descent.call()
            if stop.is_set():
                raise SystemExit(128 + signal.SIGTERM)
    if descent.average is not None:
        descent.average.copy_to(descent.parameters)
    run.accelerator.free_memory()
    return descent.losses


class _Descent:
    """A stage on its way: weights, optimizer, average, and how far it is; begun where its newest checkpoint stands.

    Attributes:
        step: optimizer steps done; ``losses``: one of each.
    """

    def __init__(self, stage: str, module: nn.Module, config: StageConfig, run: Run, every: Every | None) -> None:
        self.stage, self.module, self.config, self.run, self.every = stage, module, config, run, every
        self.names, self.parameters = zip(*[(n, p) for n, p in module.named_parameters() if p.requires_grad], strict=True)
        self.step, self.losses, self.average, self.resumed = 0, [], None, False
        self.key = content_key(run.key)
        self.device = run.accelerator.device.type
        self.scaler = torch.amp.GradScaler(self.device, enabled=config.precision == "float16")
        optimizer = optimizer_of(self.parameters, config)
        state = _load_checkpoint(run.folder, self.key, dict(zip(self.names, self.parameters, strict=True)))
        if state is not None:
            self.step, self.losses = state["step"], state["losses"]
            with torch.no_grad():
                for name, parameter in zip(self.names, self.parameters, strict=True):
                    parameter.copy_(state["weights"][name])
            optimizer.load_state_dict(state["optimizer"])
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
        self.trained, self.optimizer = run.accelerator.prepare(module, optimizer)
        if config.ema_decay:
            self.average = EMAModel(self.parameters, decay=config.ema_decay)
            if state is not None and state["average"] is not None:
                self.average.load_state_dict(state["average"])
            self.average.to(run.accelerator.device)
        self.resumed = state is not None

    def make_up(self) -> None:
        """What the run that saved the checkpoint may not have come to."""
        if self.resumed and self.run.accelerator.is_main_process:
            self._tidy()
            if self.every is not None and not self.every[2](self.step):
                self.call()

    def rehearse(self, batch_of: BatchOf) -> None:
        """A forward and backward pass of which nothing stays."""
        self._pass(batch_of, 0, last=True)
        self.optimizer.zero_grad(set_to_none=True)

    def accumulate(self, batch_of: BatchOf) -> float:
        """The loss of the next step, its gradient in the parameters.

        Raises:
            CCDiffError: it is not finite.
        """
        accelerator, passes, total = self.run.accelerator, self.config.accumulation, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.config)
        for micro in range(passes):
            for loss in self._pass(batch_of, micro, last=micro == passes - 1):
                total += loss
        if accelerator.num_processes > 1:  # of all pictures of the step; the same in all processes, so that none goes on alone
            total = float(accelerator.reduce(torch.tensor(total, device=accelerator.device), "mean"))
        if not math.isfinite(total):
            raise CCDiffError(
                f"the loss of stage {self.stage!r} is {total} at step {self.step}",
                where=self.run.folder,
                fix="lower the stage's learning_rate (or raise warmup_steps) in the recipe and train into a new folder",
            )
        return total

    def _pass(self, batch_of: BatchOf, micro: int, *, last: bool) -> list[float]:
        """One batch forward and backward, its gradient added to the parameters': what its pieces add to the loss of the step."""
        config, accelerator = self.config, self.run.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        divide: Callable[[dict[str, Any]], list[tuple[float, dict[str, Any]]]] | None = getattr(self.module, "parts", None)
        batch = _to_device(batch_of(self.step, micro, rank, world), accelerator.device)
        torch.manual_seed(seed_of(self.run.seed, self.stage, self.step, *pass_of(micro, rank, world)))
        pieces = divide(batch) if divide is not None else [(1.0, batch)]
        losses = []
        for k, (share, piece) in enumerate(pieces):
            with nullcontext() if last and k == len(pieces) - 1 else accelerator.no_sync(self.trained):
                with arithmetic(self.device, config.precision):
                    loss = self.trained(**piece)
                accelerator.backward(self.scaler.scale(loss * (share / config.accumulation)))
            losses.append(float(loss.detach()) * share / config.accumulation)
        return losses

    def advance(self, loss: float) -> None:
        """One optimizer step along the gradient, said to whoever listens."""
        config, accelerator, log = self.config, self.run.accelerator, self.run.log
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        self.scaler.unscale_(inner)
        norm = float(accelerator.clip_grad_norm_(self.parameters, config.gradient_clip))
        self.scaler.step(inner)  # not at all where a gradient was beyond what half precision holds: the next one is scaled less
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.step(self.parameters)
        self.step += 1
        self.losses.append(loss)
        if log is not None and accelerator.is_main_process:
            log(f"{self.stage}/loss", loss, self.step)
            log(f"{self.stage}/gradient_norm", norm, self.step)
            if self.scaler.is_enabled():
                log(f"{self.stage}/gradient_scale", self.scaler.get_scale(), self.step)
            log(f"{self.stage}/learning_rate", learning_rate_at(self.step - 1, config), self.step)
            figures: Callable[[], dict[str, float]] = getattr(self.module, "figures", dict)
            for name, value in figures().items() if self.step % FIGURES_EVERY == 0 or self.step == config.steps else ():
                log(f"{self.stage}/{name}", value, self.step)
        if self.run.progress is not None:
            pictures = config.batch_size * config.accumulation * accelerator.num_processes
            self.run.progress(self.stage, self.step * pictures, config.steps * pictures)

    def save(self) -> None:
        """A checkpoint of this step, and no more older ones than are needed."""
        if self.run.accelerator.is_main_process:
            saved = {
                "step": self.step,
                "key": self.key,
                "losses": self.losses,
                "weights": {n: p.detach().cpu() for n, p in zip(self.names, self.parameters, strict=True)},
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
                **({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
            }
            with atomic_write(self.run.folder / f"checkpoint-{self.step:08d}.pt") as stream:
                torch.save(saved, stream)
            self._tidy()
        self.run.accelerator.wait_for_everyone()

    def call(self) -> None:
        """What is due after this step."""
        every, step = self.every, self.step
        if every is not None and (step % every[0] == 0 or step == self.config.steps) and self.run.accelerator.is_main_process:
            with _averaged(self.average, self.parameters):
                every[1](step)

    def _tidy(self) -> None:
        folder, regularly = self.run.folder, self.config.checkpoint_every
        write_json(folder / "losses.json", self.losses)
        *older, _ = found = sorted(folder.glob("checkpoint-*.pt"))
        odd = {path for path in older if _step_of(path) % regularly}  # saved by a signal: without it there would be none
        regular = [path for path in found if path not in odd]
        for old in (*odd, *regular[:-2]):
            old.unlink()


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
            with zipfile.ZipFile(path) as archive:  # its sums are not looked at where the file is mapped
                if archive.testzip() is not None:
                    continue
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
