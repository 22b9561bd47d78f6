"""Several processes that work on pictures, one each; results are taken in order, so their number changes nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from ..console import guard_streams
from ..errors import CCDiffError
from ..startup import end_with_parent, fresh_processes

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""
_T = TypeVar("_T")
_R = TypeVar("_R")


class Workers:
    """``map`` over several processes: results in order, a bounded number under way, progress reported.

    One process is this one.  Others are started afresh (not forked: this one may have threads), and end when this one does, however.
    """

    def __init__(self, processes: int, report: Progress) -> None:
        self.processes, self.report = processes, report
        self.crops: Any = fresh_processes().Value("Q", 0)
        self._pool: ProcessPoolExecutor | None = None
        _count_into(self.crops)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is under way and end the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, work: Callable[[_T], _R], items: Sequence[_T], stage: str) -> Generator[_R, None, None]:
        """``work`` (a function of a module) of every item.

        Raises:
            CCDiffError: a process was killed.
        """
        self.report(stage, 0, len(items))
        for done, result in enumerate(self._results(work, items), start=1):
            self.report(stage, done, len(items))
            yield result

    def _results(self, work: Callable[[_T], _R], items: Sequence[_T]) -> Generator[_R, None, None]:
        if min(self.processes, len(items)) < 2:
            yield from map(work, items)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes, fresh_processes(), _start_worker, (self.crops,))
        pool, waiting = self._pool, iter(items)
        queue = [pool.submit(work, item) for item in islice(waiting, 2 * self.processes)]
        try:
            while queue:
                result = queue.pop(0).result()
                queue += [pool.submit(work, item) for item in islice(waiting, 1)]
                yield result
        except BrokenProcessPool as error:
            raise CCDiffError(
                "a worker process was killed, perhaps for lack of memory",
                fix="run the same command again with fewer --processes: it resumes",
            ) from error
        finally:
            for future in queue:
                future.cancel()


CROWDED, TELL_EVERY = 2_000, 2.0
"""Objects of a picture that take long enough for progress to be told while it is worked on; how often, in seconds."""
_counters: list[Any] = []
"""Of this process: the number of crops that all processes have cut so far."""


def _count_into(counter: Any) -> None:
    _counters[:] = [counter]


def count_crop() -> None:
    """One more crop is cut, by whichever process."""
    for counter in _counters:
        with counter.get_lock():
            counter.value += 1


@contextlib.contextmanager
def crops_told(objects: Sequence[int], workers: Workers) -> Iterator[None]:
    """Where a picture is crowded, tell every few seconds how many crops are cut, for the pictures alone may be counted once in minutes.

    Args:
        objects: of every picture whose objects are cut out.
    """
    if max(objects, default=0) < CROWDED:
        yield
        return
    done = threading.Event()

    def tell() -> None:
        while not done.wait(TELL_EVERY):
            workers.report("cutting reference crops", workers.crops.value, sum(objects))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _start_worker(counter: Any) -> None:
    _count_into(counter)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    guard_streams()
    end_with_parent()
