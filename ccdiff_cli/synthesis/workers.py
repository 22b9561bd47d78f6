"""Who makes the blocks of a plan: this process, processes started here or from outside (``accelerate launch``, ``torchrun``).

Notable: the pictures of a block are the same whoever makes it, so sharing is a matter of time alone.  Processes that are started here are
given one block after the other; those from outside take every world-size-th block and do not speak with each other, the first one sees
from the records when the others are done.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import CCDiffError, Stopped
from .plan import Plan
from .records import missing_blocks, record_path
from .starting import Starter, Worker
from .worker import Parts, device_of, make_blocks, memory_of

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called after every unit of work."""

AHEAD = 2
"""Blocks that a worker is given at a time: while one is written, the next is made."""


class Work:
    """What every way of sharing the work needs to know."""

    def __init__(self, out: Path, plan: Plan, parts: Parts, stop: Callable[[], bool]) -> None:
        self.out, self.plan, self.parts, self.stop = out, plan, parts, stop

    def make(self, blocks: list[int], index: int, report: Counter) -> None:
        """Make blocks in this process, on the device of worker ``index``."""
        device = device_of(index)

        def done(b: int) -> None:
            report(b, index, memory_of(device))

        make_blocks(self.out, blocks, self.plan, self.parts, device, done, stop=self.stop)
        self.leave_if_stopped()

    def leave_if_stopped(self) -> None:
        """Raise :class:`Stopped` where a signal came before all was made."""
        if self.stop() and (left := missing_blocks(self.out, self.plan)):
            count = len(self.plan.jobs) - sum(len(self.plan.block(b)) for b in left)
            raise Stopped(f"stopped by a signal after {count} of {len(self.plan.jobs)} pictures: run the same command again to go on")


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came; it no longer ends this process at once."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


class Counter:
    """Counts blocks as they are made, by worker; called from several threads."""

    def __init__(self, plan: Plan, kept: int, progress: Progress | None) -> None:
        self.plan, self.done, self.progress = plan, kept, progress
        self.pictures: dict[int, int] = {}
        self.memory: dict[int, int] = {}
        self._lock = threading.Lock()
        if progress is not None:
            progress("synthesize", kept, len(plan.jobs))

    def __call__(self, b: int, index: int = 0, memory: int = 0) -> None:
        """Block ``b`` was made by worker ``index``, which has used so many MiB."""
        with self._lock:
            count = len(self.plan.block(b))
            self.done += count
            self.pictures[index] = self.pictures.get(index, 0) + count
            self.memory[index] = memory
            if self.progress is not None:
                self.progress("synthesize", self.done, len(self.plan.jobs))
                note = getattr(self.progress, "note", None)
                if note is not None and memory:
                    shares = " ".join(f"{k}:{self.pictures[k]}" for k in sorted(self.pictures))
                    note("synthesize", f"{shares}, {max(self.memory.values()):,} MiB")

    def summary(self) -> list[dict[str, int]]:
        """Pictures and memory of each worker."""
        return [{"worker": k, "pictures": self.pictures[k], "memory_mib": self.memory[k]} for k in sorted(self.pictures)]


# ---- several processes, started from outside (accelerate launch, torchrun) ----


def place() -> tuple[int, int]:
    """This process's number and how many there are."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def _state() -> Any:
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def wait_for_start(world: int) -> None:
    """Nobody starts before the plan is written and the folder clean: the only time that processes wait for each other."""
    if world > 1:
        _state().wait_for_everyone()


def one_of_several(work: Work, missing: list[int], rank: int, world: int, report: Counter) -> None:
    # by block number, not by place among the missing ones: processes that look a moment later may find fewer of them
    mine = [b for b in missing if b % world == rank]
    if mine:
        work.make(mine, int(os.environ.get("LOCAL_RANK", rank)), report)


def wait_for_others(work: Work, missing: list[int], report: Counter) -> None:
    """The first process finishes the set; it sees from the records when the others are done (their launcher ends it if one fails)."""
    world = int(os.environ["WORLD_SIZE"])
    waiting = [b for b in missing if b % world != 0]
    while waiting:
        work.leave_if_stopped()
        for b in [b for b in waiting if record_path(work.out, b).is_file()]:
            waiting.remove(b)
            report(b)
        if waiting:
            time.sleep(0.2)
    if left := missing_blocks(work.out, work.plan):
        raise CCDiffError(f"{len(left)} blocks of pictures are missing or damaged", where=work.out, fix="run the same command again")


# ---- several processes, started here ----


def process_count(asked: int | None, blocks: int, threads: int) -> int:
    """How many processes to start: as asked, no more than have work to do."""
    if asked is not None:
        return min(asked, blocks)
    if torch.cuda.is_available():
        return min(torch.cuda.device_count(), blocks)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, blocks // 2))  # a process takes seconds to start


def start_workers(work: Work, missing: list[int], count: int, report: Counter, starter: Starter) -> None:
    """Start workers and hand each a block whenever it has done one.

    Raises:
        CCDiffError: what a worker reported; or blocks are left.  The block of a dead worker goes to one that still works.
    """
    todo: queue.Queue[int] = queue.Queue()
    for b in missing:
        todo.put(b)
    failures: list[CCDiffError] = []
    deaths: list[str] = []
    parts = json.dumps(asdict(work.parts))
    workers = [starter.start([str(work.out), str(index), parts]) for index in range(count)]
    threads = [
        threading.Thread(target=_serve, args=(index, worker, todo, report, failures, deaths, work.stop), daemon=True)
        for index, worker in enumerate(workers)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # joined in short steps, so that Ctrl-C is heard
                thread.join(0.2)
                if failures:
                    break
    finally:
        for worker in workers:
            if failures or any(t.is_alive() for t in threads):
                worker.kill()
            with contextlib.suppress(OSError):
                worker.stdin.close()  # type: ignore[union-attr]
            worker.wait()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        for worker in workers:
            worker.stdout.close()  # type: ignore[union-attr]
    if failures:
        raise failures[0]
    work.leave_if_stopped()
    if left := sorted(set(missing_blocks(work.out, work.plan)) & set(missing)):
        raise CCDiffError(
            f"{len(left)} blocks of pictures are missing: {'; '.join(deaths) or 'a worker stopped'}",
            where=work.out,
            fix="run the same command again: it goes on (with fewer processes, if memory ran out)",
        )


def _serve(
    index: int,
    worker: Worker,
    todo: queue.Queue[int],
    report: Counter,
    failures: list[CCDiffError],
    deaths: list[str],
    stop: Callable[[], bool],
) -> None:
    """Hand blocks to one worker until there are none, or it dies; it always has one more than it works on."""
    assert worker.stdin is not None and worker.stdout is not None
    given: list[int] = []
    while True:
        try:
            while len(given) < AHEAD and not stop():
                given.append(todo.get_nowait())
                worker.stdin.write(f"{given[-1]}\n")
                worker.stdin.flush()
        except queue.Empty:
            pass
        except (OSError, ValueError):
            pass  # it is dead: its answer below says so
        if not given:
            break
        try:
            line = worker.stdout.readline()
        except (OSError, ValueError):
            line = ""
        answer = json.loads(line) if line.strip() else {}
        if "done" in answer:
            given.remove(answer["done"])
            report(answer["done"], index, answer["memory"])
            continue
        for b in given:
            todo.put(b)
        if "error" in answer:
            what, where, fix = answer["error"]
            failures.append(CCDiffError(what, where=where, fix=fix))
        else:
            deaths.append(f"worker {index} ended with exit code {worker.wait()}")
        return
    with contextlib.suppress(OSError):
        worker.stdin.write("end\n")
        worker.stdin.flush()
