"""How many threads a stage computes with on the CPU: measured where it begins, for the machine may do other work.

All cores are fastest on an idle machine.  Beside other programs every thread waits for the slowest of them, and a training on all cores
falls to a tenth of its speed (``docs/log.md``, 2026-11-23).

NOTE: sums are split among the threads, so another number gives other bytes.  What was chosen is written into the training's folder before
the stage computes anything that stays, and whoever goes on with the training takes it again.  What a finished detector is shown is looked
at with the number it was trained with (:func:`as_trained`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .errors import CCDiffError
from .files import read_json, write_json
from .options import MOST_PROCESSES

SECONDS, ROUNDS = 1.0, 20
"""A number of threads is tried for so long, or so often, whichever comes first; once at least."""
NEARLY = 1.1
"""So much longer than with the fastest number may a step take with fewer threads: cores that gain nothing are left to others."""
VARIABLE = "OMP_NUM_THREADS"
THREADS = "threads.json"
"""The file that the numbers are kept in."""


class Threads:
    """The number of threads of every stage of a training.

    Args:
        path: the file that they are kept in.
        device: "cpu", or what else computes: then nothing is measured.
        processes: that train together; of several none measures, for they would disturb one another.
        asked: a number for all stages.
        say: is told once a stage what was chosen, and why.

    Attributes:
        chosen: stage -> its number, as far as it was asked for.
    """

    def __init__(
        self, path: Path, *, device: str, processes: int = 1, asked: int | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.path, self.known, self.most = path, _read(path), torch.get_num_threads()
        self.chosen: dict[str, int] = {}
        self.say = say or (lambda text: None)
        self.measures = device == "cpu" and processes == 1
        self.fixed, self.by = asked, "--threads"
        if asked is None and VARIABLE in os.environ and device == "cpu":
            self.fixed, self.by = torch.get_num_threads(), VARIABLE
        if self.fixed is not None:
            torch.set_num_threads(self.fixed)
            self.say(f"{_threads(self.fixed)} by {self.by}")

    def choose(self, stage: str, step: Callable[[], object] | None = None) -> None:
        """Set the number of threads for what follows.

        Args:
            step: a step of the stage, of which nothing stays; called several times where the number is to be measured.  None: nothing is
                measured, the number that is set becomes the stage's.
        """
        if stage not in self.chosen and (self.measures or self.fixed is not None):
            self._settle(stage, step)
        if stage in self.chosen:
            torch.set_num_threads(self.chosen[stage])

    def _settle(self, stage: str, step: Callable[[], object] | None) -> None:
        """Find the number of a stage, and write it down."""
        before = self.known.get(stage)
        if self.fixed is not None:
            count = self.fixed
            if before not in (None, count):
                self.say(
                    f"{stage}: begun with {_threads(before)}, goes on with {count} by {self.by}: "
                    "its weights differ by rounding from those of a training that was left alone"
                )
        elif before is not None:
            count = before
            self.say(f"{stage}: {_threads(count)}, with which it was begun")
        elif step is None:
            count = torch.get_num_threads()
            self.say(f"{stage}: {_threads(count)} ({VARIABLE} fixes the number)")
        else:
            taken = seconds_by_threads(step, self.most) if self.most > 1 else {1: 0.0}
            count = best(taken)
            if len(taken) > 1:
                tried = ", ".join(f"{seconds:.3g} s with {n}" for n, seconds in taken.items())
                self.say(f"{stage}: {_threads(count)} (a pass takes {tried}; {VARIABLE} fixes the number)")
        self.chosen[stage] = count
        if before != count:
            self.known[stage] = count
            write_json(self.path, self.known)


def seconds_by_threads(step: Callable[[], object], most: int) -> dict[int, float]:
    """Mean seconds of a step with one, half and all of ``most`` threads, which take turns; the number that was set comes back."""
    before = torch.get_num_threads()
    taken = dict.fromkeys(sorted({1, max(1, most // 2), most}), 0.0)
    rounds = 0
    try:
        step()  # memory is asked for, kernels are chosen
        while rounds == 0 or (rounds < ROUNDS and sum(taken.values()) < SECONDS * len(taken)):
            for count in taken:
                torch.set_num_threads(count)
                begun = time.perf_counter()
                step()
                taken[count] += time.perf_counter() - begun
            rounds += 1
    finally:
        torch.set_num_threads(before)
    return {count: seconds / rounds for count, seconds in taken.items()}


def best(taken: Mapping[int, float]) -> int:
    """The fewest threads that are nearly as fast as the fastest number, of seconds by threads."""
    return min(count for count, seconds in taken.items() if seconds <= NEARLY * min(taken.values()))


@contextmanager
def restored() -> Iterator[None]:
    """The number of threads of this process comes back."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def as_trained(info: Mapping[str, Any]) -> Iterator[None]:
    """As many threads as a training had, by its account (``threads``), unless the user fixed the number; that of before comes back."""
    with restored():
        count = info.get("threads")
        if count is not None and VARIABLE not in os.environ:
            torch.set_num_threads(count)
        yield


def _threads(count: int | None) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _read(path: Path) -> dict[str, int]:
    """What was chosen before; nothing where the file is not there, or damaged: then it is chosen anew."""
    try:
        found = read_json(path) if path.is_file() else {}
    except CCDiffError:
        found = {}
    items = found.items() if isinstance(found, dict) else ()
    return {stage: count for stage, count in items if type(count) is int and 1 <= count <= MOST_PROCESSES}
