"""``ccdiff synthesize``: n labelled pictures from a generator and a set's layouts.

    plan -> blocks of pictures, by one process or several -> one set on disk

Notable here:

* Labels are the very layout that conditioned the picture; both stand in the plan before the first picture is made.
* The set's bytes are the same whatever the number of processes and however often the run was interrupted (same kind of device, same
  versions; the plan holds both).  The same command again goes on where the last one stopped.
* Several processes: ``num_processes`` starts them here, and hands out blocks one at a time, so a slow or dead worker holds nothing up;
  under ``accelerate launch`` or ``torchrun`` each process takes every world-size-th block.  No process waits for another between
  its first block and its last.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..dataset import IMAGES, MANIFEST, read_set
from ..errors import CCDiffError, os_errors
from ..files import TEMPORARY_PREFIX, read_json
from ..generator import generator_key, read_generator
from ..references import WORDS, ReferenceBank
from .finish import CONTACT_SHEET, finish, verify_set
from .plan import (
    PLAN,
    PLAN_LINES,
    Plan,
    environment,
    holds_plan,
    identity_of,
    make_plan,
    open_layouts,
    read_plan,
    write_plan,
)
from .worker import PIPELINE, PRECISIONS, RECORDS, device_of, make_blocks, missing_blocks, pipeline_from, record_path

if TYPE_CHECKING:
    from ..retrieval import EmbeddingSimilarity

__all__ = ["CONTACT_SHEET", "PLAN", "PLAN_LINES", "synthesize", "verify_set"]

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called after every unit of work."""

LOCK = ".lock"
RUN_WORKER = "from ccdiff_cli.synthesis.worker import run; run()"


def synthesize(
    checkpoint: str | Path,
    layouts: str | Path,
    out: str | Path,
    n: int,
    *,
    seed: int = 0,
    batch_size: int = 8,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    layout_source: str | None = None,
    shuffle_layouts: bool = False,
    split: str = "train",
    references: str | Path | None = None,
    retrieval: str | None = None,
    top_k: int | None = None,
    precision: str = "float32",
    num_processes: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    dry_run: bool = False,
    pipeline: str = PIPELINE,
) -> dict[str, Any]:
    """Make a synthetic set, or finish one that was interrupted.

    Args:
        checkpoint: the generator folder.
        layouts: the set whose layouts (and, unless ``references`` names another set, reference bank) are used.
        out: the folder of the new set.
        n: number of pictures.
        batch_size: pictures per forward pass.  The result depends on it within floating point rounding, so it is part of the plan.
        steps, guidance_scale, negative_prompt: by default the recipe's.
        layout_source: "set" (layouts as they are) or "augmented"; by default "augmented" wherever captions can be made anew.
        shuffle_layouts: make a floor set: picture k is drawn from the layout, caption and references of picture k + 1 (the last from
            those of the first), its labels stay its own.  What a detector scores on such a set is what it scores where pictures have
            nothing to do with their labels; its manifest says ``kind: floor``, and nothing should be trained on it.
        split: the split that layouts come from.
        retrieval: how backgrounds are found: "words", "own" or a CLIP (see ``retrieval``); by default as the generator was trained.
        top_k: references are drawn from so many best, 1: the best, as published; by default as the generator was trained.
        precision: of the generator's arithmetic: "float32", "bfloat16" or "float16".
        num_processes: by default one per GPU; on a CPU as many as there are cores, but no more than have work to do.
        threads: processor threads of each process; part of the plan, as sums are split among them.
        dry_run: make the plan, write nothing.
        pipeline: ``module:function`` that loads the pipeline.

    Returns:
        A summary: ``out``, ``pictures``, ``objects``, ``per_class``, ``objects_per_picture``, ``layouts``, ``references``, ``made``,
        ``kept``, ``seconds`` (of making pictures), ``pictures_per_second`` and ``content`` (the key of the finished set).

    Raises:
        CCDiffError: the generator, the layouts or the options are wrong or do not fit together; the folder belongs to another run, or
            another process works on it; the disk is full.  What was made so far stays; the same command goes on.
    """
    out = Path(out)
    _check_options(
        n=n, batch_size=batch_size, steps=steps, top_k=top_k, guidance_scale=guidance_scale, precision=precision, threads=threads
    )
    if shuffle_layouts and n < 2:
        raise CCDiffError("one picture has no other layout to be drawn from", where="--shuffle-layouts", fix="ask for at least two")
    generator = {**read_generator(checkpoint), "key": generator_key(checkpoint)}
    source = open_layouts(layouts, split)
    bank_folder = _bank_folder(references, source.root)
    bank = ReferenceBank.read(bank_folder) if bank_folder is not None else None
    sampling = (generator.get("recipe") or {}).get("sampling", {})
    options = {
        "batch_size": batch_size,
        "steps": steps if steps is not None else sampling.get("steps", 20),
        "guidance_scale": float(guidance_scale if guidance_scale is not None else sampling.get("guidance_scale", 7.5)),
        "negative_prompt": negative_prompt if negative_prompt is not None else sampling.get("negative_prompt", ""),
        "precision": precision,
        "threads": threads,
        "shuffle_layouts": shuffle_layouts,
    }
    rank, world = _place()
    found_by = retrieval or (generator.get("recipe") or {}).get("retrieval", WORDS)
    if bank is not None and bank_folder is not None and found_by != WORDS and rank == 0:
        bank.similarity = _similarity(found_by, bank_folder, str(checkpoint), generator, pipeline, progress)
    identity = identity_of(
        generator, source, bank, n, seed=seed, split=split, layout_source=layout_source, options=options, retrieval=found_by, top_k=top_k
    )
    if dry_run:
        return _summary(out, make_plan(identity, source, bank))
    machine = environment(device_of(0).partition(":")[0])
    with contextlib.ExitStack() as stack:
        if rank == 0:
            with os_errors(out, "make the folder"):
                out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(out))
            if not holds_plan(out, identity, machine):
                write_plan(out, make_plan(identity, source, bank), machine)
            _clean(out)
        _wait_for_start(world)
        plan = read_plan(out)  # the written one counts, also for those who could make it again
        missing = missing_blocks(out, plan)
        kept = n - sum(len(plan.block(b)) for b in missing)
        start = time.monotonic()
        report = _counter(plan, kept, progress if rank == 0 else None)
        work = _Work(out, plan, str(checkpoint), str(bank_folder) if bank_folder is not None else "", pipeline)
        if world > 1:
            _one_of_several(work, missing, rank, world, report)
            if rank > 0:
                return _summary(out, plan)
            _wait_for_others(work, missing, report)
        elif missing:
            count = _process_count(num_processes, len(missing), threads)
            if count == 1:
                work.make(missing, 0, report)
            else:
                _start_workers(work, missing, count, report)
        seconds = time.monotonic() - start
        if missing or (out / RECORDS).is_dir() or not (out / MANIFEST).is_file():
            finish(out, plan, generator, machine, progress)
        made = n - kept
        return {
            **_summary(out, plan),
            "made": made,
            "kept": kept,
            "seconds": round(seconds, 3),
            "pictures_per_second": round(made / seconds, 3) if made and seconds > 0 else None,
            "content": read_json(out / MANIFEST)["content"],
        }


class _Work:
    """What every way of sharing the work needs to know."""

    def __init__(self, out: Path, plan: Plan, checkpoint: str, bank: str, pipeline: str) -> None:
        self.out, self.plan, self.checkpoint, self.bank, self.pipeline = out, plan, checkpoint, bank, pipeline

    def make(self, blocks: list[int], index: int, report: Callable[[int], None]) -> None:
        """Make blocks in this process, on the device of worker ``index``."""
        make_blocks(self.out, blocks, self.checkpoint, self.bank or None, self.plan, device_of(index), self.pipeline, report)


def _check_options(**given: Any) -> None:
    for name in ("n", "batch_size", "steps", "top_k", "threads"):
        if given[name] is not None and given[name] < 1:
            raise CCDiffError(f"{name} is {given[name]}, expected at least 1", where=f"--{name.replace('_', '-')}")
    if given["guidance_scale"] is not None and not 1 <= given["guidance_scale"] < 1e3:
        raise CCDiffError(f"the guidance scale is {given['guidance_scale']}, expected at least 1 (1: none)", where="--guidance-scale")
    if given["precision"] not in PRECISIONS:
        raise CCDiffError(f"unknown precision {given['precision']!r}", where="--precision", fix=f"choose {', '.join(PRECISIONS)}")


def _similarity(
    retrieval: str, bank: Path, checkpoint: str, generator: Mapping[str, Any], pipeline: str, progress: Progress | None
) -> EmbeddingSimilarity:
    from ..retrieval import OWN, open_similarity

    pipe = pipeline_from(pipeline)(checkpoint, device_of(0), "float32") if retrieval == OWN else None
    style = (generator.get("recipe") or {}).get("caption_style", "plain")
    return open_similarity(retrieval, read_set(bank), pipe=pipe, style=style, progress=progress)


def _bank_folder(references: str | Path | None, layouts: Path) -> Path | None:
    if references is not None:
        return Path(references)
    return layouts if (layouts / "references").is_dir() else None


def _summary(out: Path, plan: Plan) -> dict[str, Any]:
    counts = plan.header["counts"]
    per_picture = [len(job.scene.instances) for job in plan.jobs]
    return {
        "out": str(out),
        "pictures": counts["pictures"],
        "objects": counts["objects"],
        "per_class": counts["per_class"],
        "objects_per_picture": {"min": min(per_picture), "mean": sum(per_picture) / len(per_picture), "max": max(per_picture)},
        "layouts": {**plan.header["identity"]["layouts"], **plan.header["layouts"]},
        "references": "none: the set has no reference bank" if plan.jobs[0].references is None else "chosen from the bank",
        "options": plan.options,
        "plan": plan.key,
    }


def _counter(plan: Plan, kept: int, progress: Progress | None) -> Callable[[int], None]:
    state = {"done": kept}
    lock = threading.Lock()

    def report(b: int) -> None:
        with lock:
            state["done"] += len(plan.block(b))
            if progress is not None:
                progress("synthesize", state["done"], len(plan.jobs))

    if progress is not None:
        progress("synthesize", kept, len(plan.jobs))
    return report


# ---- the folder ----


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder against a second run.

    The operating system gives the lock back when its holder ends in any way, so a lock is never stale.  (Windows has no such lock
    in the standard library; there, a second run on the same folder is not noticed.)
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = out / LOCK
    with os_errors(path, "lock the folder"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = path.exists() and os.fstat(handle).st_ino == path.stat().st_ino  # its last holder may just have removed it
        except BlockingIOError:
            current = False
        if not current:
            holder = os.read(handle, 32).decode("ascii", "replace").strip()
            raise CCDiffError(
                f"another run is working on this folder (process {holder or 'unknown'})",
                where=out,
                fix="wait until it is done, or choose another --out folder",
            )
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode("ascii"))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)


def _clean(out: Path) -> None:
    """Remove what a killed run left half written."""
    for folder in (out, out / IMAGES, out / RECORDS):
        if folder.is_dir():
            for path in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")):
                with os_errors(path, "remove the unfinished file"):
                    path.unlink(missing_ok=True)


# ---- several processes, started from outside (accelerate launch, torchrun) ----


def _place() -> tuple[int, int]:
    """This process's number and how many there are."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def _state() -> Any:
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def _wait_for_start(world: int) -> None:
    """Nobody starts before the plan is written and the folder clean: the only time that processes wait for each other."""
    if world > 1:
        _state().wait_for_everyone()


def _one_of_several(work: _Work, missing: list[int], rank: int, world: int, report: Callable[[int], None]) -> None:
    # by block number, not by place among the missing ones: processes that look a moment later may find fewer of them
    mine = [b for b in missing if b % world == rank]
    if mine:
        work.make(mine, int(os.environ.get("LOCAL_RANK", rank)), report)


def _wait_for_others(work: _Work, missing: list[int], report: Callable[[int], None]) -> None:
    """The first process finishes the set; it sees from the records when the others are done (their launcher ends it if one fails)."""
    world = int(os.environ["WORLD_SIZE"])
    waiting = [b for b in missing if b % world != 0]
    while waiting:
        for b in [b for b in waiting if record_path(work.out, b).is_file()]:
            waiting.remove(b)
            report(b)
        if waiting:
            time.sleep(0.2)
    if left := missing_blocks(work.out, work.plan):
        raise CCDiffError(f"{len(left)} blocks of pictures are missing or damaged", where=work.out, fix="run the same command again")


# ---- several processes, started here ----


def _process_count(asked: int | None, blocks: int, threads: int) -> int:
    if asked is not None:
        if asked < 1:
            raise CCDiffError(f"num_processes is {asked}, expected at least 1", where="--num-processes")
        return min(asked, blocks)
    if torch.cuda.is_available():
        return min(torch.cuda.device_count(), blocks)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, blocks // 2))  # a process takes seconds to start


def _start_workers(work: _Work, missing: list[int], count: int, report: Callable[[int], None]) -> None:
    """Start workers and hand each a block whenever it has done one.

    Raises:
        CCDiffError: what a worker reported; or blocks are left.  The block of a dead worker goes to one that still works.
    """
    todo: queue.Queue[int] = queue.Queue()
    for b in missing:
        todo.put(b)
    failures: list[CCDiffError] = []
    deaths: list[str] = []
    workers = [_launch(work, index) for index in range(count)]
    threads = [
        threading.Thread(target=_serve, args=(index, worker, todo, report, failures, deaths), daemon=True)
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
            if worker.poll() is None and (failures or any(t.is_alive() for t in threads)):
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
    if left := missing_blocks(work.out, work.plan):
        raise CCDiffError(
            f"{len(left)} blocks of pictures are missing: {'; '.join(deaths) or 'a worker stopped'}",
            where=work.out,
            fix="run the same command again: it goes on (with fewer processes, if memory ran out)",
        )


def _launch(work: _Work, index: int) -> subprocess.Popen[str]:
    threads = str(work.plan.options["threads"])
    path = os.pathsep.join(p if p else os.getcwd() for p in sys.path)  # the worker imports what this process imports
    variables: Mapping[str, str] = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-c", RUN_WORKER, str(work.out), work.checkpoint, work.bank, str(index), work.pipeline]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, bufsize=1)


def _serve(
    index: int,
    worker: subprocess.Popen[str],
    todo: queue.Queue[int],
    report: Callable[[int], None],
    failures: list[CCDiffError],
    deaths: list[str],
) -> None:
    """Hand blocks to one worker until there are none, or it dies."""
    assert worker.stdin is not None and worker.stdout is not None
    while True:
        try:
            b = todo.get_nowait()
        except queue.Empty:
            break
        try:
            worker.stdin.write(f"{b}\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except (OSError, ValueError):
            line = ""
        answer = json.loads(line) if line.strip() else {}
        if "done" in answer:
            report(b)
            continue
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
