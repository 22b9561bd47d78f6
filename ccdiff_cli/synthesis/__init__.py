"""``ccdiff synthesize``: n labelled pictures from a generator and a set's layouts.

    plan -> blocks of pictures, by one process or several -> one set on disk

Notable here:

* Labels are the very layout that conditioned the picture; both stand in the plan before the first picture is made.
* The set's bytes are the same whatever the number of processes and however often the run was interrupted (same kind of device, same
  versions; the plan holds both).  The same command again goes on where the last one stopped.
* Several processes: ``num_processes`` starts them here, and hands out blocks one at a time, so a slow or dead worker holds nothing up;
  under ``accelerate launch`` or ``torchrun`` each process takes every world-size-th block.  No process waits for another between
  its first block and its last.  Machines that share nothing but a folder each take a ``part``.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..dataset import IMAGES, MANIFEST, read_manifest, read_set
from ..errors import CCDiffError, Stopped, os_errors
from ..files import TEMPORARY_PREFIX
from ..generator import generator_key, read_generator
from ..layouts.llm import Writer
from ..locks import LOCK, hold
from ..methods import method_of
from ..methods.method import REFERENCES
from ..references import WORDS, ReferenceBank
from ..startup import python_command, python_environment
from .accept import accept_set
from .filtering import Judge, calibrate, filter_identity, judges_of, prepare_filter
from .finish import CONTACT_SHEET, changed_by_hand, finish, is_whole, verify_set
from .plan import (
    PLAN,
    PLAN_LINES,
    Plan,
    check_needs,
    check_objects,
    environment,
    holds_plan,
    identity_of,
    make_plan,
    open_layouts,
    read_plan,
    write_plan,
)
from .worker import (
    FORMATS,
    PIPELINE,
    PRECISIONS,
    RECORDS,
    Parts,
    device_of,
    fixed_arithmetic,
    make_blocks,
    maker_of,
    memory_of,
    missing_blocks,
    pipeline_from,
    record_path,
)

if TYPE_CHECKING:
    from ..retrieval import EmbeddingSimilarity

__all__ = ["CONTACT_SHEET", "PLAN", "PLAN_LINES", "accept_set", "synthesize", "verify_set"]

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called after every unit of work."""

AHEAD = 2
"""Blocks that a worker is given at a time: while one is written, the next is made."""
RUN_WORKER = (
    "from ccdiff_cli.startup import end_with, quiet_aborts; quiet_aborts(); end_with({}); "
    "from ccdiff_cli.synthesis.worker import run; run()"
)


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
    scheduler: str | None = None,
    layout_source: str | None = None,
    balance: str = "none",
    writer: Writer | None = None,
    shuffle_layouts: bool = False,
    split: str = "train",
    val_share: float = 0.0,
    references: str | Path | None = None,
    retrieval: str | None = None,
    top_k: int | None = None,
    filter: str | None = None,
    filter_recall: float = 0.9,
    filter_retries: int = 2,
    filter_detector: str | Path | None = None,
    filter_clip: str | Path | None = None,
    filter_judges: Sequence[str] = (),
    precision: str | None = None,
    channels_last: bool | None = None,
    compile: bool | None = None,
    format: str = "png",
    num_processes: int | None = None,
    part: tuple[int, int] | None = None,
    ray_actors: int | None = None,
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
        scheduler: a name of its method's ``schedulers`` ("euler") in place of the generator's own.
        layout_source: a key of ``layouts.SOURCES``; by default "augmented" wherever captions can be made anew, else "set".
        balance: one of ``layouts.BALANCES``.
        writer: the language model of source "llm".
        shuffle_layouts: make a floor set: picture k is drawn from the layout, caption and references of picture k + 1 (the last from
            those of the first), its labels stay its own.  What a detector scores on such a set is what it scores where pictures have
            nothing to do with their labels; its manifest says ``kind: floor``, and nothing should be trained on it.
        split: the split that layouts come from.
        retrieval: how backgrounds are found: "words", "own" or a CLIP (see ``retrieval``); by default as the generator was trained.
        top_k: references are drawn from so many best, 1: the best, as published; by default as the generator was trained.
        val_share: share of the real pictures whose layouts go to the "val" split of the new set.
        filter: None, "objects" or "pictures"; with ``filter_recall``, ``filter_retries``, ``filter_detector`` (folder of a trained
            detector), ``filter_clip`` (folder of a CLIP model) and ``filter_judges``: see ``filtering``.
        precision: of the generator's arithmetic: "float32", "bfloat16" or "float16"; by default the recipe's.
        channels_last, compile: other ways to compute the same, up to rounding; by default the recipe's.
        format: of the pictures: "png", "jpeg" or "webp".
        num_processes: by default one per GPU; on a CPU as many as there are cores, but no more than have work to do.
        part: ``(i, n)``: make only every n-th block, from the i-th on (counted from 0), beside other parts on other machines; the set is
            finished by a run without a part.
        ray_actors: make the blocks by so many Ray actors (one a GPU) in place of processes; see ``cluster``.
        threads: processor threads of each process; part of the plan, as sums are split among them.
        dry_run: make the plan, write nothing; a timed batch says how long it would take.
        pipeline: ``module:function`` that loads the pipeline.

    Returns:
        A summary: ``out``, ``pictures``, ``objects``, ``per_class``, ``objects_per_picture``, ``layouts``, ``references``, ``made``,
        ``kept``, ``seconds`` (of making pictures), ``pictures_per_second``, ``workers`` (pictures and memory of each) and ``content`` (the
        key of the finished set).

    Raises:
        CCDiffError: the generator, the layouts or the options are wrong or do not fit together; the folder belongs to another run, or
            another process works on it; the disk is full.  What was made so far stays; the same command goes on.
        Stopped: SIGTERM came; the blocks that were begun are finished.
    """
    out = Path(out)
    _check_options(
        n=n, batch_size=batch_size, steps=steps, top_k=top_k, guidance_scale=guidance_scale, precision=precision, threads=threads,
        format=format, val_share=val_share, part=part, ray_actors=ray_actors,
    )  # fmt: skip
    if shuffle_layouts and n < 2:
        raise CCDiffError("one picture has no other layout to be drawn from", where="--shuffle-layouts", fix="ask for at least two")
    if shuffle_layouts and filter is not None:
        raise CCDiffError("a floor set is not filtered: nothing would be left", where="--filter", fix="leave one of the two options out")
    generator = {**read_generator(checkpoint), "key": generator_key(checkpoint)}
    method = method_of(generator, where=checkpoint)
    takes = method.takes
    if scheduler is not None and scheduler not in method.schedulers:
        fix = f"choose {' or '.join(method.schedulers)}" if method.schedulers else "leave the option out"
        raise CCDiffError(f"{method.title} does not sample by {scheduler!r}", where="--scheduler", fix=fix)
    source = open_layouts(layouts, split)
    cost = check_needs(out, source, split, n, int(generator["picture_size"]), format)
    if references is not None and REFERENCES not in takes:
        raise CCDiffError("the generator's method takes no reference pictures", where="--references", fix="leave the option out")
    bank_folder = _bank_folder(references, source.root) if REFERENCES in takes else None
    bank = ReferenceBank.read(bank_folder) if bank_folder is not None else None
    sampling = (generator.get("recipe") or {}).get("sampling", {})

    def or_recipe(given: Any, name: str, default: Any) -> Any:
        return given if given is not None else sampling.get(name, default)

    options = {
        "batch_size": batch_size,
        "steps": or_recipe(steps, "steps", 20),
        "guidance_scale": float(or_recipe(guidance_scale, "guidance_scale", 7.5)),
        "negative_prompt": or_recipe(negative_prompt, "negative_prompt", ""),
        "scheduler": scheduler,
        "precision": or_recipe(precision, "precision", "float32"),
        "channels_last": or_recipe(channels_last, "channels_last", False),
        "compile": or_recipe(compile, "compile", False),
        "threads": threads,
        "format": format,
        "val_share": val_share,
        "shuffle_layouts": shuffle_layouts,
        "filter": filter_identity(
            source, filter, recall=filter_recall, retries=filter_retries, detector=filter_detector, clip=filter_clip, judges=filter_judges
        ),
    }
    judges = judges_of(options["filter"]) if filter is not None else []
    rank, world = _place()
    found_by = retrieval or (generator.get("recipe") or {}).get("retrieval", WORDS)
    if bank is not None and bank_folder is not None and found_by != WORDS and rank == 0:
        bank.similarity = _similarity(found_by, bank_folder, str(checkpoint), generator, pipeline, progress)
    identity = identity_of(
        generator, source, bank, n, seed=seed, split=split, layout_source=layout_source, balance=balance, writer=writer, options=options,
        retrieval=found_by, top_k=top_k,
    )  # fmt: skip
    extension = FORMATS[format][0]
    crops = str(source.root) if "crops" in judges else ""
    parts = Parts(str(checkpoint), str(bank_folder or ""), "", str(filter_clip or ""), crops, pipeline)
    if dry_run:
        plan = make_plan(identity, source, bank, writer=writer, extension=extension, progress=progress)
        check_objects(plan, method.places(Path(checkpoint)), method.title, where=layouts)
        return {**_summary(out, plan), **cost, **_estimate(plan, parts, num_processes)}
    machine = environment(device_of(0).partition(":")[0])
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stop_signal())
        if rank == 0:
            with os_errors(out, "make the folder"):
                out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(out, part))
            with _planning(out, part):
                if "detector" in judges:
                    parts = replace(parts, detector=str(prepare_filter(source, filter_detector, progress)))
                if not holds_plan(out, identity, machine):
                    thresholds = None
                    if filter is not None:
                        known = source if parts.crops else None
                        judge = Judge(parts.detector or None, parts.clip or None, crops=known, progress=progress)
                        thresholds = calibrate(judge, source, filter_recall, progress)
                    made_plan = make_plan(
                        identity, source, bank, writer=writer, thresholds=thresholds, extension=extension, progress=progress
                    )
                    check_objects(made_plan, method.places(Path(checkpoint)), method.title, where=layouts)
                    write_plan(out, made_plan, machine)
            if part is None:
                _clean(out)  # of other parts, unfinished files may still be written
        _wait_for_start(world)
        if rank > 0 and "detector" in judges:
            parts = replace(parts, detector=str(prepare_filter(source, filter_detector)))
        plan = read_plan(out)  # the written one counts, also for those who could make it again
        by_hand = changed_by_hand(out, plan)
        missing = [] if by_hand and read_manifest(out).get("edits") else missing_blocks(out, plan)
        kept = n - sum(len(plan.block(b)) for b in missing)
        start = time.monotonic()
        report = _Counter(plan, kept, progress if rank == 0 else None)
        work = _Work(out, plan, parts, stop)
        mine = missing if part is None else [b for b in missing if b % part[1] == part[0]]
        if world > 1:
            _one_of_several(work, missing, rank, world, report)
            if rank > 0:
                return _summary(out, plan)
            _wait_for_others(work, missing, report)
        elif mine and ray_actors is not None:
            from .cluster import make_with_ray

            make_with_ray(out, mine, plan, parts, ray_actors, report, stop)
            work.leave_if_stopped()
        elif mine:
            count = _process_count(num_processes, len(mine), threads)
            if count == 1:
                work.make(mine, 0, report)
            else:
                _start_workers(work, mine, count, report)
        made = n - kept if part is None else sum(len(plan.block(b)) for b in mine)
        seconds = time.monotonic() - start
        done: dict[str, Any] = {
            "made": made,
            "kept": kept,
            "seconds": round(seconds, 3),
            "pictures_per_second": round(made / seconds, 3) if made and seconds > 0 else None,
            "workers": report.summary(),
        }
        if part is not None:
            left = sum(len(plan.block(b)) for b in missing_blocks(out, plan))
            return {**_summary(out, plan), **done, "part": f"{part[0]}/{part[1]}", "left_to_other_parts": left}
        if by_hand:  # the labels are somebody's
            shutil.rmtree(out / RECORDS, ignore_errors=True)
            read_set(out)  # says so
        elif missing or (out / RECORDS).is_dir() or not (out / MANIFEST).is_file() or not is_whole(out):
            finish(out, plan, generator, machine, progress)
        manifest = read_manifest(out)
        filtered = {"filter": manifest["filter"]["result"]} if filter is not None else {}
        return {**_summary(out, plan), **done, **filtered, "content": manifest["content"]}


class _Work:
    """What every way of sharing the work needs to know."""

    def __init__(self, out: Path, plan: Plan, parts: Parts, stop: Callable[[], bool]) -> None:
        self.out, self.plan, self.parts, self.stop = out, plan, parts, stop

    def make(self, blocks: list[int], index: int, report: _Counter) -> None:
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
def _stop_signal() -> Iterator[Callable[[], bool]]:
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


def _estimate(plan: Plan, parts: Parts, num_processes: int | None) -> dict[str, Any]:
    """What a batch costs on this machine: the first one is drawn with one step and with three, and nothing is kept of it."""
    count = _process_count(num_processes, plan.blocks, plan.options["threads"])
    taken = []
    with fixed_arithmetic(plan.options["threads"]):
        unfiltered = Plan({**plan.header, "identity": {**plan.header["identity"], "options": {**plan.options, "filter": None}}}, plan.jobs)
        maker = maker_of(unfiltered, parts, device_of(0))
        for steps in (1, 1, 3):  # the first one warms up
            maker.plan.options["steps"] = steps
            start = time.perf_counter()
            maker.block(0)
            taken.append(time.perf_counter() - start)
    per_step = max(0.0, taken[2] - taken[1]) / 2
    batch = max(0.0, taken[1] - per_step) + per_step * plan.options["steps"]
    return {
        "memory_mib_per_process": memory_of(device_of(0)),
        "seconds_per_batch": round(batch, 3),
        "processes": count,
        "estimated_seconds": round(batch * plan.blocks / count, 1),
        "estimated": _duration(batch * plan.blocks / count) + (", filter not counted" if plan.options["filter"] else ""),
    }


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"about {max(1, round(seconds))} s"
    return f"about {minutes} min" if minutes < 120 else f"about {minutes / 60:.1f} h"


def _check_options(**given: Any) -> None:
    for name in ("n", "batch_size", "steps", "top_k", "threads", "ray_actors"):
        if given[name] is not None and given[name] < 1:
            raise CCDiffError(f"{name} is {given[name]}, expected at least 1", where=f"--{name.replace('_', '-')}")
    if given["guidance_scale"] is not None and not 1 <= given["guidance_scale"] < 1e3:
        raise CCDiffError(f"the guidance scale is {given['guidance_scale']}, expected at least 1 (1: none)", where="--guidance-scale")
    for name, known in (("precision", (None, *PRECISIONS)), ("format", FORMATS)):
        if given[name] not in known:
            raise CCDiffError(f"unknown {name} {given[name]!r}", where=f"--{name}", fix=f"choose {', '.join(k for k in known if k)}")
    if not 0 <= given["val_share"] < 1:
        raise CCDiffError(f"the share of the val split is {given['val_share']}, expected 0 or more, below 1", where="--val-share")
    if given["part"] is not None and not 0 <= given["part"][0] < given["part"][1]:
        raise CCDiffError(f"part {given['part'][0]} of {given['part'][1]}", where="--part", fix="parts are counted from 0: 0/8 to 7/8")


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
        "references": "none: no reference bank, or a method without" if plan.jobs[0].references is None else "chosen from the bank",
        "options": plan.options,
        "plan": plan.key,
    }


class _Counter:
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


# ---- the folder ----


@contextlib.contextmanager
def _locked(out: Path, part: tuple[int, int] | None) -> Iterator[None]:
    """Hold the folder against a second run: alone, or as one of several parts."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(out / LOCK, out, "synthesize", shared=part is not None))
        if part is not None:
            stack.enter_context(hold(out / f"{LOCK}-{part[0]}-of-{part[1]}", out, f"synthesize --part {part[0]}/{part[1]}"))
        yield


@contextlib.contextmanager
def _planning(out: Path, part: tuple[int, int] | None) -> Iterator[None]:
    """Of several parts, one plans, the others wait for it."""
    with contextlib.nullcontext() if part is None else hold(out / f"{LOCK}-plan", out, "synthesize", wait=True):
        yield


def _clean(out: Path) -> None:
    """Remove what a killed run left half written."""
    for path in out.glob(f"{LOCK}-*"):  # of parts that have ended: this run holds the folder alone
        path.unlink(missing_ok=True)
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


def _one_of_several(work: _Work, missing: list[int], rank: int, world: int, report: _Counter) -> None:
    # by block number, not by place among the missing ones: processes that look a moment later may find fewer of them
    mine = [b for b in missing if b % world == rank]
    if mine:
        work.make(mine, int(os.environ.get("LOCAL_RANK", rank)), report)


def _wait_for_others(work: _Work, missing: list[int], report: _Counter) -> None:
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


def _process_count(asked: int | None, blocks: int, threads: int) -> int:
    if asked is not None:
        if asked < 1:
            raise CCDiffError(f"num_processes is {asked}, expected at least 1", where="--num-processes")
        return min(asked, blocks)
    if torch.cuda.is_available():
        return min(torch.cuda.device_count(), blocks)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, blocks // 2))  # a process takes seconds to start


def _start_workers(work: _Work, missing: list[int], count: int, report: _Counter) -> None:
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
    work.leave_if_stopped()
    if left := sorted(set(missing_blocks(work.out, work.plan)) & set(missing)):
        raise CCDiffError(
            f"{len(left)} blocks of pictures are missing: {'; '.join(deaths) or 'a worker stopped'}",
            where=work.out,
            fix="run the same command again: it goes on (with fewer processes, if memory ran out)",
        )


def _launch(work: _Work, index: int) -> subprocess.Popen[str]:
    threads = str(work.plan.options["threads"])
    variables = {**python_environment(), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [*python_command(RUN_WORKER.format(os.getpid())), str(work.out), str(index), json.dumps(asdict(work.parts))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, bufsize=1)


def _serve(
    index: int,
    worker: subprocess.Popen[str],
    todo: queue.Queue[int],
    report: _Counter,
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
