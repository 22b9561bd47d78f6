"""From the request to the set: what is decided before anything is planned, the plan, its blocks, the finished folder."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dataset import IMAGES, MANIFEST, PictureSet, read_manifest, read_set
from ..errors import CCDiffError, os_errors
from ..files import TEMPORARY_PREFIX, content_key
from ..generator import generator_key, read_generator
from ..layouts.llm import Writer, writer_of
from ..locks import LOCK, hold
from ..methods import method_of, published_sampling
from ..methods.method import REFERENCES, Method
from ..references import WORDS, ReferenceBank
from .filtering import Judge, calibrate, filter_identity, judges_of, prepare_filter
from .finish import changed_by_hand, finish, is_whole
from .options import SynthesisOptions, WorkOptions
from .plan import Plan, environment, holds_plan, read_plan, write_plan
from .planning import check_needs, check_objects, identity_of, make_plan, open_layouts, resolved
from .records import RECORDS, missing_blocks
from .shards import begin, finish_shards, identity_of_all, identity_of_shard, is_sharded_run, left_of, make_shards, wait_for_shards
from .starting import Starter
from .worker import PIPELINE, Parts, device_of, fixed_arithmetic, maker_of, memory_of, pipeline_from
from .workers import (
    Counter,
    Progress,
    Work,
    one_of_several,
    place,
    process_count,
    start_workers,
    stop_signal,
    wait_for_others,
    wait_for_start,
)

if TYPE_CHECKING:
    from ..retrieval import EmbeddingSimilarity


def synthesize(
    checkpoint: str | Path,
    layouts: str | Path,
    out: str | Path,
    options: SynthesisOptions,
    *,
    work: WorkOptions = WorkOptions(),
    progress: Progress | None = None,
    dry_run: bool = False,
    pipeline: str = PIPELINE,
) -> dict[str, Any]:
    """Make a synthetic set, or finish one that was interrupted.

    Args:
        checkpoint: the generator folder.
        layouts: the set whose layouts (and, unless ``options.references`` names another set, reference bank) are used.
        out: the folder of the new set.
        options: what is made; all of it is part of the plan.  With ``shuffle_layouts`` a floor set: picture k is drawn from the layout,
            caption and references of picture k + 1 (the last from those of the first), its labels stay its own.  What a detector scores
            on such a set is what it scores where pictures have nothing to do with their labels; its manifest says ``kind: floor``, and
            nothing should be trained on it.
        work: who makes it.  With ``part`` (i, n) every n-th block alone, beside other parts on other machines; the set is finished by a
            run without a part.
        dry_run: make the plan, write nothing; a timed batch says how long it would take.
        pipeline: ``module:function`` that loads the pipeline.

    Returns:
        A summary: ``out``, ``pictures``, ``objects``, ``per_class``, ``objects_per_picture``, ``layouts``, ``references``, ``made``,
        ``kept``, ``seconds`` (of making pictures), ``pictures_per_second``, ``workers`` (pictures and memory of each), ``content`` (the key
        of the finished set); ``filter`` and ``colours`` where they were looked at.

    Raises:
        CCDiffError: the generator, the layouts or the options are wrong or do not fit together; the folder belongs to another run, or
            another process works on it; the disk is full.  What was made so far stays; the same command goes on.
        Stopped: SIGTERM came; the blocks that were begun are finished.
    """
    out = Path(out)
    task = _decide(checkpoint, layouts, out, options, pipeline, progress)
    if dry_run:
        if options.n > options.shard_size:  # the first shard speaks for all
            task = replace(task, identity=identity_of_shard(identity_of_all(task.identity, options), 0, options.at_once()))
        plan = task.plan(progress)
        all_of_it = {"pictures": options.n, "shards": sum(1 for _ in options.shards())} if options.n > options.shard_size else {}
        return {**_summary(out, plan), **all_of_it, **task.cost, **_estimate(plan, task.parts, work.num_processes, options.n)}
    machine = environment(device_of(0).partition(":")[0])
    starter = Starter(task.identity["options"]["threads"])
    with stop_signal() as stop, contextlib.closing(starter):
        make = _make_in_shards if is_sharded_run(out, options) else _make_set
        return make(task, machine, work, stop, progress, starter)


def _make_in_shards(
    task: _Task, machine: dict[str, Any], work: WorkOptions, stop: Callable[[], bool], progress: Progress | None, starter: Starter
) -> dict[str, Any]:
    """Make, or finish, a set of very many pictures; see ``shards``."""
    out, options, (rank, world) = task.out, task.options, place()
    identity = identity_of_all(task.identity, options)
    with contextlib.ExitStack() as stack:
        if rank == 0:
            with os_errors(out, "make the folder"):
                out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(out, work.part))
            with _planning(out, work.part):
                begin(out, identity, machine)
            if work.part is None:
                _clean(out)
        wait_for_start(world)
        alone = work.model_copy(update={"part": None} | ({"num_processes": 1} if world > 1 else {}))

        def make(folder: Path, wanted: Mapping[str, Any], report: Progress | None) -> dict[str, Any]:
            return _make_set(replace(task, out=folder, identity=dict(wanted)), machine, alone, stop, report, starter, by=(0, 1))

        share = work.part or (rank, world)
        done = make_shards(out, identity, machine, options, share, make, stop=stop, progress=progress if rank == 0 else None)
        said = {"out": str(out), "layouts": identity["layouts"], "options": identity["options"], "plan": content_key(identity), **done}
        if work.part is not None or rank > 0:
            left = sum(left_of(out, identity, options))
            return {**said, "part": f"{share[0]}/{share[1]}", "left_to_other_parts": left}
        wait_for_shards(out, identity, options, stop)
        manifest = finish_shards(out, identity, options)
        counts = {name: manifest["counts"][name] for name in ("pictures", "objects", "per_class")}
        return {**said, **counts, **_colours(manifest), "shards": len(manifest["shards"]), "content": manifest["content"]}


def _make_set(
    task: _Task,
    machine: dict[str, Any],
    work: WorkOptions,
    stop: Callable[[], bool],
    progress: Progress | None,
    starter: Starter,
    by: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Make, or finish, a set in one folder, as one of ``by[1]`` processes that were started from outside."""
    out, rank = task.out, (by or place())[0]
    with contextlib.ExitStack() as stack:
        if rank == 0:
            with os_errors(out, "make the folder"):
                out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(out, work.part))
        parts = _plan_folder(task, machine, work, progress if rank == 0 else None, by or place())
        plan = read_plan(out)  # the written one counts, also for those who could make it again
        by_hand = changed_by_hand(out, plan)
        missing = [] if by_hand and read_manifest(out).get("edits") else missing_blocks(out, plan)
        kept = len(plan.jobs) - sum(len(plan.block(b)) for b in missing)
        report = Counter(plan, kept, progress if rank == 0 else None)
        start = time.monotonic()
        mine = _make(Work(out, plan, parts, stop), missing, work, report, starter, by or place())
        if rank > 0:
            return _summary(out, plan)
        done = {**_summary(out, plan), **_account(plan, mine, kept, time.monotonic() - start, report)}
        if work.part is not None:
            left = sum(len(plan.block(b)) for b in missing_blocks(out, plan))
            return {**done, "part": f"{work.part[0]}/{work.part[1]}", "left_to_other_parts": left}
        if by_hand:  # the labels are somebody's
            shutil.rmtree(out / RECORDS, ignore_errors=True)
            read_set(out)  # says so
        elif missing or (out / RECORDS).is_dir() or not (out / MANIFEST).is_file() or not is_whole(out):
            finish(out, plan, task.generator, machine, progress)
        manifest = read_manifest(out)
        filtered = {"filter": manifest["filter"]["result"]} if plan.options["filter"] is not None else {}
        return {**done, **filtered, **_colours(manifest), "content": manifest["content"]}


# ---- what is decided before anything is planned ----


@dataclass(frozen=True)
class _Task:
    """What a request asks for, checked, and held against generator and set.

    Attributes:
        parts: what workers need; the filter's detector is found, or trained, when the folder is ours.
        cost: memory and disk, for people.
        found: what was found out once for all shards: ``thresholds`` of the filter.
    """

    out: Path
    options: SynthesisOptions
    method: Method
    generator: dict[str, Any]
    layouts: PictureSet
    bank: ReferenceBank | None
    writer: Writer | None
    identity: dict[str, Any]
    parts: Parts
    cost: dict[str, str]
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def judges(self) -> list[str]:
        rules = self.identity["options"]["filter"]
        return judges_of(rules) if rules is not None else []

    def plan(self, progress: Progress | None, thresholds: Mapping[str, Any] | None = None) -> Plan:
        made = make_plan(
            self.identity, self.layouts, self.bank, writer=self.writer, misses=self.options.layouts.misses, thresholds=thresholds,
            progress=progress,
        )  # fmt: skip
        check_objects(made, self.method.places(Path(self.parts.checkpoint)), self.method.title, where=self.layouts.root)
        return made


def _decide(
    checkpoint: str | Path, layouts: str | Path, out: Path, options: SynthesisOptions, pipeline: str, progress: Progress | None
) -> _Task:
    generator = {**read_generator(checkpoint), "key": generator_key(checkpoint)}
    method = method_of(generator, where=checkpoint)
    scheduler = options.sampling.scheduler
    if scheduler is not None and scheduler not in method.schedulers:
        fix = f"choose {' or '.join(method.schedulers)}" if method.schedulers else "leave the option out"
        raise CCDiffError(f"{method.title} does not sample by {scheduler!r}", where="--scheduler", fix=fix)
    options = resolved(options, generator, published_sampling(checkpoint) if options.sampling.published else {})
    llm = options.layouts
    writer = writer_of(llm.llm_url, llm.llm_model, llm.llm_captions)
    source = open_layouts(layouts, llm.split)
    cost = check_needs(out, source, options, int(generator["picture_size"]))
    if options.references is not None and REFERENCES not in method.takes:
        raise CCDiffError("the generator's method takes no reference pictures", where="--references", fix="leave the option out")
    bank_folder = _bank_folder(options.references, source.root) if REFERENCES in method.takes else None
    bank = ReferenceBank.read(bank_folder) if bank_folder is not None else None
    rules = filter_identity(source, options.filter)
    plans = place()[0] == 0 or is_sharded_run(Path(out), options)
    if bank is not None and bank_folder is not None and options.retrieval not in (None, WORDS) and plans:
        bank.similarity = _similarity(str(options.retrieval), bank_folder, str(checkpoint), generator, pipeline, progress)
    identity = identity_of(generator, source, bank, options, rules=rules, writer=writer)
    crops = str(source.root) if rules is not None and "crops" in judges_of(rules) else ""
    parts = Parts(str(checkpoint), str(bank_folder or ""), "", str(options.filter.clip or ""), crops, pipeline)
    return _Task(out, options, method, generator, source, bank, writer, identity, parts, cost)


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


# ---- the plan in its folder ----


def _plan_folder(task: _Task, machine: Mapping[str, Any], work: WorkOptions, progress: Progress | None, by: tuple[int, int]) -> Parts:
    """See that the folder holds this plan, made by the first process, and say where workers find what they need."""
    out, parts, detector = task.out, task.parts, task.options.filter.detector
    rank, world = by
    if rank == 0:
        with _planning(out, work.part):
            if "detector" in task.judges:
                parts = replace(parts, detector=str(prepare_filter(task.layouts, detector, progress)))
            if not holds_plan(out, task.identity, machine):
                thresholds = task.found.get("thresholds")
                if task.judges and thresholds is None:
                    known = task.layouts if parts.crops else None
                    judge = Judge(parts.detector or None, parts.clip or None, crops=known, progress=progress)
                    thresholds = task.found["thresholds"] = calibrate(judge, task.layouts, task.options.filter.recall, progress)
                write_plan(out, task.plan(progress, thresholds), machine)
        if work.part is None:
            _clean(out)  # of other parts, unfinished files may still be written
    wait_for_start(world)
    if rank > 0 and "detector" in task.judges:
        parts = replace(parts, detector=str(prepare_filter(task.layouts, detector)))
    return parts


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


# ---- blocks ----


def _make(work: Work, missing: list[int], options: WorkOptions, report: Counter, starter: Starter, by: tuple[int, int]) -> list[int]:
    """Make the missing blocks, or this part's or process's share of them; returns the numbers of those that were to be made here."""
    part, (rank, world) = options.part, by
    mine = missing if part is None else [b for b in missing if b % part[1] == part[0]]
    if world > 1:
        one_of_several(work, missing, rank, world, report)
        if rank == 0:
            wait_for_others(work, missing, report)
    elif mine and options.ray is not None:
        from .cluster import make_with_ray

        make_with_ray(work.out, mine, work.plan, work.parts, options.ray, report, work.stop)
        work.leave_if_stopped()
    elif mine:
        count = process_count(options.num_processes, len(mine), work.plan.options["threads"])
        if count == 1:
            work.make(mine, int(os.environ.get("LOCAL_RANK", 0)) if place()[1] > 1 else 0, report)
        else:
            start_workers(work, mine, count, report, starter)
    return mine


# ---- what is said ----


def _account(plan: Plan, mine: list[int], kept: int, seconds: float, report: Counter) -> dict[str, Any]:
    made = sum(len(plan.block(b)) for b in mine)
    return {
        "made": made,
        "kept": kept,
        "seconds": round(seconds, 3),
        "pictures_per_second": round(made / seconds, 3) if made and seconds > 0 else None,
        "workers": report.summary(),
    }


def _colours(manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = manifest.get("colours")
    return {"colours": {key: found[key] for key in ("redrawn", "infrared")}} if found else {}


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


def _estimate(plan: Plan, parts: Parts, num_processes: int | None, n: int) -> dict[str, Any]:
    """What a batch costs on this machine: the first one is drawn with one step and with three, and nothing is kept of it."""
    count = process_count(num_processes, plan.blocks, plan.options["threads"])
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
    seconds = batch * math.ceil(n / plan.options["batch_size"]) / count
    return {
        "memory_mib_per_process": memory_of(device_of(0)),
        "seconds_per_batch": round(batch, 3),
        "processes": count,
        "estimated_seconds": round(seconds, 1),
        "estimated": _duration(seconds) + (", filter not counted" if plan.options["filter"] else ""),
    }


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"about {max(1, round(seconds))} s"
    return f"about {minutes} min" if minutes < 120 else f"about {minutes / 60:.1f} h"
