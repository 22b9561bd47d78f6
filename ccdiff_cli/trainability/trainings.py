"""Carrying out the trainings of an experiment, one after the other or spread over devices.

Notable:

* A training lies in a folder under the key of all it depends on, what its detector found under the key of detector and pictures: what is
  finished is never done again, whichever arm, fraction or earlier run asked for it.
* One process a GPU; on a CPU as many as asked for, with the cores shared out.  A training that fails leaves the others alone: what failed
  is returned by name.  A full disk ends all.
* NOTE: on a CPU the number of threads decides the order of sums.  All trainings of an experiment have one: OMP_NUM_THREADS, or what the
  first one's timed step chooses (of several processes, which would disturb one another, each takes its share of the cores).  It is kept
  beside the trainings, and taken again whatever the number of processes is then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch

from ..console import guard_streams, remark
from ..detectors import STAGE, Detections, Detector, DetectorConfig, Progress, fit, load_detector
from ..detectors.store import read_detections, write_detections
from ..errors import CCDiffError
from ..failures import as_ccdiff_error
from ..files import content_key
from ..scene import ClassList, Scene
from ..startup import end_with_parent, fresh_processes
from ..threads import THREADS, VARIABLE, Threads, as_trained, restored
from .arms import Training

TRAININGS, PREDICTIONS = "trainings", "predictions"


@dataclass(frozen=True)
class Look:
    """Pictures that a detector is shown.

    Attributes:
        what: "test", "synthetic", ...
        key: of the set they are of.
    """

    what: str
    key: str
    scenes: Sequence[Scene]

    def path(self, out: Path, training: str) -> Path:
        """Where what a detector found lies."""
        return out / PREDICTIONS / f"{content_key([training, self.key, self.what])}.safetensors"


@dataclass(frozen=True)
class Task:
    """A training and what its detector is then shown."""

    training: Training
    looks: tuple[Look, ...]


def carry_out(
    tasks: Sequence[Task], classes: ClassList, out: Path, *, processes: int | None = None, progress: Progress | None = None
) -> dict[str, CCDiffError]:
    """Train and look, whatever is not finished.

    Returns:
        Key of each training that failed -> why.  One that was to go on from a failed one fails with it.

    Raises:
        CCDiffError: the disk is full or cannot be written.
    """
    left: dict[str, Task] = {}
    for task in tasks:  # arms of different fractions may share a training
        known = left.get(task.training.key)
        looks = {look.path(out, task.training.key): look for look in (*(known.looks if known else ()), *task.looks)}
        left[task.training.key] = Task(known.training if known else task.training, tuple(looks.values()))
    left = {key: task for key, task in left.items() if not is_done(task, out)}
    failed: dict[str, CCDiffError] = {}
    if not left:
        return failed
    threads = threads_of(out, next(iter(left.values())).training.config, processes)
    for stage in ([t for t in left.values() if t.training.start is None], [t for t in left.values() if t.training.start is not None]):
        ready = [t for t in stage if t.training.start not in failed]
        failed |= {t.training.key: failed[str(t.training.start)] for t in stage if t.training.start in failed}
        devices = _devices(ready, processes)
        if len(devices) > 1:
            failed |= _in_processes(ready, classes, out, devices, progress)
            continue
        for task in ready:
            try:
                _do(task, classes, out, threads, progress)
            except CCDiffError as error:
                if isinstance(error.__cause__, OSError):
                    raise
                failed[task.training.key] = error
    return failed


def threads_of(out: Path, config: DetectorConfig, processes: int | None = None, *, say: bool = True) -> Threads:
    """The number of threads of all trainings in ``out``; of several processes on a CPU each takes its share of the cores."""
    cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    threads = Threads(out / TRAININGS / THREADS, device="cpu" if cpu else config.device, say=remark if say else None)
    if cpu and processes is not None and processes > 1:
        with restored():
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
            threads.choose(STAGE)
    return threads


def is_finished(training: Training, out: Path) -> bool:
    """Whether the detector is there."""
    return (out / TRAININGS / training.key / "detector.json").is_file()


def is_done(task: Task, out: Path) -> bool:
    """Whether the detector and all it found are there."""
    return is_finished(task.training, out) and all(found_in(look, out, task.training.key) is not None for look in task.looks)


def found_in(look: Look, out: Path, training: str) -> list[Detections] | None:
    """What a detector found in some pictures; None where that is not known yet."""
    return read_detections(look.path(out, training), len(look.scenes))


def _do(task: Task, classes: ClassList, out: Path, threads: Threads, progress: Progress | None) -> None:
    training = task.training
    if is_finished(training, out):
        detector: Detector = load_detector(out / TRAININGS / training.key, training.config.device)
    else:
        report = _staged(progress, f"train {training.name}")
        detector = fit(training.scenes, classes, training.config, out / TRAININGS, training.seed, report, training.start, threads)
    with as_trained(detector.info):
        for look in task.looks:
            if found_in(look, out, training.key) is None:
                report = _staged(progress, f"look at {look.what} pictures, {training.name}")
                write_detections(look.path(out, training.key), detector.predict(look.scenes, report))


def _staged(progress: Progress | None, stage: str) -> Progress | None:
    return (lambda _, done, total: progress(stage, done, total)) if progress else None


def _devices(tasks: Sequence[Task], processes: int | None) -> list[str]:
    """The device of each process; no more of them than there are trainings."""
    if not tasks:
        return []
    named = tasks[0].training.config.device
    devices = [named]
    if named in ("auto", "cuda") and torch.cuda.is_available():
        devices = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    count = min(processes or len(devices), len(tasks))
    return [devices[k % len(devices)] for k in range(count)]


def _in_processes(
    tasks: Sequence[Task], classes: ClassList, out: Path, devices: Sequence[str], progress: Progress | None
) -> dict[str, CCDiffError]:
    """Hand the tasks out one at a time, over a pipe to each process: one that dies takes only its task with it."""
    context = fresh_processes()
    threads = 0 if VARIABLE in os.environ else max(1, (os.cpu_count() or 1) // len(devices))
    workers: dict[Connection, BaseProcess] = {}
    for device in devices:
        ours, theirs = context.Pipe()
        # no daemon, which could not start processes that load pictures; it ends with this process all the same (end_with_parent)
        workers[ours] = context.Process(target=_work, args=(theirs, classes, out, device, threads), daemon=False)
        workers[ours].start()
        theirs.close()
    todo, failed = list(reversed(tasks)), {}
    busy: dict[Connection, Task] = {}
    try:
        for pipe in list(workers):
            _hand_out(pipe, todo, busy)
        while busy:
            for pipe in cast("list[Connection]", wait(list(busy))):
                try:
                    what, value = pipe.recv()
                except (EOFError, OSError):
                    workers[pipe].join()
                    failed[busy.pop(pipe).training.key] = CCDiffError(
                        f"its process ended with code {workers[pipe].exitcode}",
                        fix="it was killed, most likely for lack of memory: use fewer --processes; the same command goes on",
                    )
                    continue
                if what == "progress":
                    if progress is not None:
                        progress(*value)
                    continue
                task = busy.pop(pipe)
                if what == "failed":
                    error, fatal = value
                    if fatal:
                        raise error
                    failed[task.training.key] = error
                _hand_out(pipe, todo, busy)
        for task in todo:  # every process is gone
            failed[task.training.key] = CCDiffError("no process was left to run it", fix="the same command goes on")
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.join()
    return failed


def _hand_out(pipe: Connection, todo: list[Task], busy: dict[Connection, Task]) -> None:
    if todo:
        with contextlib.suppress(OSError):  # a process that is gone is noticed when it is listened to
            pipe.send(todo[-1])
        busy[pipe] = todo.pop()


def _work(pipe: Connection, classes: ClassList, out: Path, device: str, threads: int) -> None:
    """One process: trainings on one device until it is ended."""
    guard_streams()
    end_with_parent()
    if threads:
        torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt, EOFError):  # the parent says it
        while True:
            task: Task = pipe.recv()
            config = task.training.config.model_copy(update={"device": device})
            placed = Task(dataclasses.replace(task.training, config=config), task.looks)
            try:
                _do(placed, classes, out, threads_of(out, config, say=False), lambda *a: pipe.send(("progress", a)))
                pipe.send(("end", None))
            except CCDiffError as error:
                pipe.send(("failed", (error, isinstance(error.__cause__, OSError))))
            except Exception as error:
                bug = CCDiffError(f"{type(error).__name__}: {error}", fix="run the same command with --processes 1 to see where")
                pipe.send(("failed", (as_ccdiff_error(error) or bug, False)))
