"""Carrying out a plan: blocks of pictures from a pipeline, written one after the other.

Notable here:

* A picture has its own noise generator, and a block always holds the same pictures, so a picture's bytes do not depend on which process
  makes its block, when, or how often.  NOTE: the number of threads is part of the plan for the same reason: sums are split among them.
* What is guaranteed: the same plan gives the same bytes on the same kind of device and the same versions.  Another batch size gives the
  same pictures up to rounding (one grey level now and then), for batched matrix products add up in another order; so does a device
  that runs out of memory, where a block is made in halves.  The records say so, and the manifest does.
* Where some pictures of the set are colour-infrared and most are not, a generator now and then draws one that nobody asked for: its colours
  tell, and it is drawn again.
* ``run`` is one of several processes of one ``synthesize``: it reads block numbers from standard
  input, one a line, and answers on standard output, one JSON object a line.  It leaves at once when its standard input closes, so no
  worker outlives the process that started it, however that one ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import queue
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..console import guard_streams
from ..dataset import IMAGES, read_set
from ..errors import CCDiffError, EditedSet, said_by
from ..failures import as_ccdiff_error, short_of_memory
from ..files import write_bytes, write_json
from ..prepare.spectra import COLOUR_INFRARED, asks_for_infrared, colour_counts, spectrum_of
from ..references import Reference, ReferenceBank, SceneReferences
from .filtering import Judge
from .plan import Job, Plan, read_plan, references_of
from .records import record_path

PIPELINE = "ccdiff_cli.synthesis.worker:load_pipeline"
SAVED: dict[str, dict[str, Any]] = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
"""Picture format -> how Pillow saves it; only "jpeg" loses anything."""
COLOURS = 1_000_000
"""Attempts from here on are those for other colours; a filter's are fewer."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(checkpoint: str, device: str, precision: str) -> Any:
    """The pipeline of a generator folder, ready to be called on ``device``.

    Raises:
        CCDiffError: a part is missing or damaged.
    """
    from ..methods import load_pipeline as load
    from ..models.pipeline import check_weights  # diffusers is slow to import, and --dry-run does not need it

    try:
        pipe: Any = load(checkpoint, torch_dtype=PRECISIONS[precision])
    except CCDiffError:
        raise
    except Exception as error:  # a damaged file can end in nearly any error of the libraries that read it
        raise CCDiffError(
            f"the generator cannot be loaded: {said_by(error, 500)}",
            where=checkpoint,
            fix="train it again, or copy it again",
        ) from error
    check_weights(pipe, checkpoint)
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(device)
    except (RuntimeError, NotImplementedError) as error:
        raise CCDiffError(f"the generator cannot be brought to {device}: {str(error).splitlines()[0]}", where=checkpoint) from error


def pipeline_from(name: str) -> Callable[[str, str, str], Any]:
    """The function ``module:function`` that loads a pipeline; :func:`load_pipeline` unless a test or another generator says otherwise."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def import_parts(parts: str) -> None:
    """Import what a worker with these :class:`Parts` (as JSON) will load, and load nothing."""
    given = Parts(**json.loads(parts))
    if given.pipeline == PIPELINE:
        from ..generator import read_generator
        from ..methods import method_of

        method_of(read_generator(given.checkpoint)).pipeline()
    else:
        pipeline_from(given.pipeline)
    if given.crops:
        importlib.import_module(f"{__package__}.crops")


def device_of(index: int) -> str:
    """The device of the worker with this number on its machine: GPUs in turn, else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{index % count}" if count else "cpu"


def memory_of(device: str) -> int:
    """The most memory that this process has used so far, MiB: of the GPU, else of the machine (0 where the system does not say)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) >> 20
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1 << 20)


@contextlib.contextmanager
def fixed_arithmetic(threads: int) -> Iterator[None]:
    """Torch settings under which the same block gives the same bytes; put back afterwards."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    torch.set_num_threads(threads)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]


class Maker:
    """Makes the pictures of a plan: a pipeline, the references, and, with a filter, a judge.

    Attributes:
        most: pictures that fit into the device's memory at once, as far as is known; only ever lowered.
    """

    def __init__(self, plan: Plan, pipe: Any, references: Mapping[str, Reference], judge: Judge | None = None) -> None:
        self.plan, self.pipe, self.references, self.judge = plan, pipe, references, judge
        self.most = int(plan.options["batch_size"])

    def block(self, b: int) -> list[tuple[dict[str, Any], bytes | None]]:
        """The pictures of block ``b``: for each its record and its file's bytes (None: left out by the filter).

        Raises:
            CCDiffError: a picture is not finite (precision), a reference is missing, one picture alone is too much for the device.
        """
        jobs = self.plan.block(b)
        if self.judge is None:
            drawn = self._in_colour(jobs, [job.seed for job in jobs])
            return [
                ({"file_name": job.scene.file_name, "sha256": _sha256(data), **colours}, data)
                for job, (data, colours) in zip(jobs, drawn, strict=True)
            ]
        return self._judged(jobs, self.judge)

    def _judged(self, jobs: Sequence[Job], judge: Judge) -> list[tuple[dict[str, Any], bytes | None]]:
        rules = self.plan.options["filter"]
        best: dict[int, tuple[dict[str, Any], bytes]] = {}
        todo = list(jobs)
        for attempt in range(rules["retries"] + 1):
            seeds = [job.seed if attempt == 0 else next_seed(job.seed, attempt) for job in todo]
            drawn = self._in_colour(todo, seeds)
            looked = judge.look([j.scene for j in todo], [data for data, _ in drawn])
            for job, seed, (data, colours), scores in zip(todo, seeds, drawn, looked, strict=True):
                passed = judge.passed(job.scene, scores)
                entry: dict[str, Any] = {
                    "file_name": job.scene.file_name,
                    "sha256": _sha256(data),
                    "attempt": attempt,
                    "seed": seed,
                    **colours,
                    "scores": scores,
                    "passed": passed,
                    "accepted": judge.accepts(job.scene, scores),
                }
                if job.k not in best or sum(passed) > sum(best[job.k][0]["passed"]):
                    best[job.k] = entry, data
            todo = [job for job in todo if not best[job.k][0]["accepted"]]
            if not todo:
                break
        made: list[tuple[dict[str, Any], bytes | None]] = []
        for job in jobs:
            entry, data = best[job.k]
            gone = not entry["accepted"] and (rules["mode"] == "pictures" or not any(entry["passed"]))
            made.append(({**entry, "sha256": None, "dropped": True}, None) if gone else (entry, data))
        return made

    def _in_colour(self, jobs: Sequence[Job], seeds: Sequence[int]) -> list[tuple[bytes, dict[str, Any]]]:
        """The files of pictures, and what their records say of colours: of one that was drawn again how often, by which seed, and whether
        it is colour-infrared all the same."""
        files = self._files(jobs, seeds)
        told: list[dict[str, Any]] = [{} for _ in jobs]
        redraws = self.plan.options.get("redraws", 0)
        wrong = [i for i, job in enumerate(jobs) if redraws and not asks_for_infrared(self._source(job).scene) and _is_infrared(files[i])]
        for again in range(1, redraws + 1):
            if not wrong:
                break
            other = [next_seed(seeds[i], COLOURS + again) for i in wrong]
            for i, seed, data in zip(wrong, other, self._files([jobs[i] for i in wrong], other), strict=True):
                files[i], told[i] = data, {"seed": seed, "redrawn": again}
            wrong = [i for i in wrong if _is_infrared(files[i])]
        for i in wrong:
            told[i]["infrared"] = True
        return list(zip(files, told, strict=True))

    def _files(self, jobs: Sequence[Job], seeds: Sequence[int]) -> list[bytes]:
        """The files of pictures drawn in one batch, or in as many as the device's memory asks for."""
        files: list[bytes] = []
        for start in range(0, len(jobs), self.most):
            part = slice(start, start + self.most)
            try:
                images = self._draw(jobs[part], seeds[part])
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not short_of_memory(error):
                    raise
                count = len(jobs[part])
                if count == 1:
                    raise CCDiffError(
                        "one picture alone is too much for the device's memory",
                        where=f"picture {jobs[start].k}",
                        fix="use --precision bfloat16, a smaller generator, or another device",
                    ) from None  # this says more than that memory ran out
                self.most = count // 2
            else:
                options = self.plan.options
                files += [
                    file_of(image, job, options["precision"], options["format"]) for job, image in zip(jobs[part], images, strict=True)
                ]
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"out of memory: going on with {self.most} pictures at a time", file=sys.stderr)
            return [*files, *self._files(jobs[start:], seeds[start:])]
        return files

    def _draw(self, jobs: Sequence[Job], seeds: Sequence[int]) -> np.ndarray:
        options, sources = self.plan.options, [self._source(job) for job in jobs]
        return self.pipe(
            scenes=[source.scene for source in sources],
            references=[_references_of(source, self.references) for source in sources],
            num_inference_steps=options["steps"],
            guidance_scale=options["guidance_scale"],
            negative_prompt=options["negative_prompt"],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images

    def _source(self, job: Job) -> Job:
        """Whose layout the picture is drawn from: its own, but in a floor."""
        return self.plan.jobs[job.drawn_from - self.plan.first]


def next_seed(seed: int, attempt: int) -> int:
    """The seed of a picture's next attempt."""
    return int(np.random.SeedSequence((seed, attempt)).generate_state(1, np.uint64)[0]) >> 1


def save_block(out: Path, b: int, plan: Plan, made: Sequence[tuple[dict[str, Any], bytes | None]], most: int) -> None:
    """Write the pictures of a block and, last, its record.

    Raises:
        CCDiffError: the disk is full, ...
    """
    for entry, data in made:
        path = out / IMAGES / entry["file_name"]
        if data is not None:
            write_bytes(path, data, durable=False)  # a picture that a power cut took is missed by its hash
        else:
            path.unlink(missing_ok=True)
    if record_path(out, b).is_dir():  # damage of an odd kind
        shutil.rmtree(record_path(out, b))
    smaller = {"made_in_batches_of": most} if most < plan.options["batch_size"] else {}
    write_json(record_path(out, b), {"plan": plan.key, **smaller, "pictures": [entry for entry, _ in made]})


def _is_infrared(file: bytes) -> bool:
    with Image.open(io.BytesIO(file)) as image:
        return spectrum_of(colour_counts(image)) == COLOUR_INFRARED


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_of(image: np.ndarray, job: Job, precision: str, format: str) -> bytes:
    """A generated picture, ``(H, W, 3)`` in 0..1, as a file of one of :data:`SAVED`.

    Raises:
        CCDiffError: it holds numbers that are not finite.
    """
    if not np.isfinite(image).all():
        raise CCDiffError(
            f"picture {job.k} holds numbers that are not finite",
            fix="use --precision float32 or bfloat16" if precision == "float16" else "the generator is damaged: train or copy it again",
        )
    expected = (job.scene.height, job.scene.width, 3)
    if image.shape != expected:
        raise CCDiffError(f"picture {job.k} has shape {image.shape}, its layout asks for {expected}")
    buffer = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)).save(buffer, format.upper(), **SAVED[format])
    return buffer.getvalue()


def _references_of(job: Job, references: Mapping[str, Reference]) -> SceneReferences | None:
    if job.references is None:
        return None

    def find(key: str | None) -> Reference | None:
        if key is not None and key not in references:
            raise CCDiffError(f"the reference {key!r} of picture {job.k} is no longer in the bank", fix="prepare the set again")
        return references[key] if key is not None else None

    return SceneReferences(tuple(find(key) for key in job.references["instances"]), find(job.references["background"]))


@dataclass(frozen=True)
class Parts:
    """Where a worker finds what it needs, "" where there is none: the generator folder, the set with the reference bank, the judges'
    folders, the set whose crops a judge knows."""

    checkpoint: str
    bank: str = ""
    detector: str = ""
    clip: str = ""
    crops: str = ""
    pipeline: str = PIPELINE


def maker_of(plan: Plan, parts: Parts, device: str) -> Maker:
    """Load everything that makes pictures on a device."""
    options = plan.options
    references = references_of(ReferenceBank.read(parts.bank)) if parts.bank else {}
    pipe = pipeline_from(parts.pipeline)(parts.checkpoint, device, options["precision"])
    if options["scheduler"] or options["channels_last"] or options["compile"]:
        pipe.set_up(scheduler=options["scheduler"], channels_last=options["channels_last"], compile=options["compile"])
    judge = None
    if options["filter"] is not None:
        thresholds = plan.header["filter"]["thresholds"]
        crops = read_set(parts.crops) if parts.crops else None
        recall = options["filter"]["recall"]
        judge = Judge(parts.detector or None, parts.clip or None, device, crops=crops, thresholds=thresholds, recall=recall)
    return Maker(plan, pipe, references, judge)


def make_blocks(
    out: Path,
    blocks: Iterable[int],
    plan: Plan,
    parts: Parts,
    device: str,
    done: Callable[[int], None],
    *,
    stop: Callable[[], bool] = lambda: False,
    failed: Callable[[CCDiffError], None] = lambda error: None,
) -> None:
    """Load the pipeline and make blocks until they are at an end, or ``stop()`` says so.

    A block is written by another thread while the next one is being made.  That thread calls ``done(b)`` when the block is on the disk,
    or ``failed(error)`` where it cannot be; the error is also raised here, before the next block is begun.
    """

    def save(b: int, made: Sequence[tuple[dict[str, Any], bytes | None]], most: int) -> None:
        try:
            save_block(out, b, plan, made, most)
        except CCDiffError as error:
            failed(error)
            raise
        done(b)

    with fixed_arithmetic(plan.options["threads"]), ThreadPoolExecutor(1) as writer:
        maker = maker_of(plan, parts, device)
        writing: Future[None] | None = None
        for b in blocks:
            if stop():
                break
            made = maker.block(b)
            if writing is not None:
                writing.result()
            writing = writer.submit(save, b, made, maker.most)
        if writing is not None:
            writing.result()


def _numbers_from_stdin() -> Iterator[int]:
    numbers: queue.Queue[int | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            numbers.put(None if line.strip() == "end" else int(line))
        os._exit(1)  # the process that started this one is gone

    threading.Thread(target=read, daemon=True).start()  # at once, not with the first number: loading takes long, too
    return iter(numbers.get, None)  # type: ignore[arg-type]


def main(arguments: list[str]) -> int:
    """``OUT INDEX PARTS`` (the last as JSON); see the opening of the module."""
    out, index, parts = arguments[0], int(arguments[1]), Parts(**json.loads(arguments[2]))
    warnings.simplefilter("ignore", EditedSet)  # the process that started this one says it
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not stand between the answers

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    def refuse(error: CCDiffError) -> None:
        answer(error=[error.what, error.where, error.fix])
        os._exit(2)  # from whichever thread: the other may be waiting for a number that will not come

    # a scheduler's SIGTERM goes to the whole group: the process that started this one hands out no more blocks then
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        plan = read_plan(out)
        device = device_of(index)
        numbers = _numbers_from_stdin()
        make_blocks(Path(out), numbers, plan, parts, device, lambda b: answer(done=b, memory=memory_of(device)), failed=refuse)
    except Exception as error:
        found = as_ccdiff_error(error)
        if found is None:
            raise
        refuse(found)
    return 0


def run() -> None:
    """The whole life of a worker process."""
    guard_streams()
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the reading thread may hold standard input, which a normal exit would wait for
