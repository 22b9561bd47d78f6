"""Carrying out a plan: blocks of pictures from a pipeline, written one after the other.

Notable here:

* A picture has its own noise generator, and a block always holds the same pictures, so a picture's bytes do not depend on which process
  makes its block, when, or how often.  NOTE: the number of threads is part of the plan for the same reason: sums are split among them.
* A block counts as made once its record (``records/block-NNNNNN.json``, the hashes of its pictures) is there and the pictures have
  these hashes.  Anything less is made again as a whole.
* ``run`` is one of several processes of one ``synthesize``: it reads block numbers from standard
  input, one a line, and answers on standard output, one JSON object a line.  It leaves at once when its standard input closes, so no
  worker outlives the process that started it, however that one ended.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..dataset import IMAGES, MANIFEST
from ..errors import CCDiffError
from ..files import read_json, sha256_file, write_bytes, write_json
from ..references import Reference, ReferenceBank, SceneReferences
from .plan import Job, Plan, read_plan, references_of

RECORDS = "records"
PIPELINE = "ccdiff_cli.synthesis.worker:load_pipeline"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(checkpoint: str, device: str, precision: str) -> Any:
    """The pipeline of a generator folder, ready to be called on ``device``.

    Raises:
        CCDiffError: a part is missing or damaged.
    """
    from ..models.pipeline import CCDiffPipeline  # diffusers is slow to import, and --dry-run does not need it

    try:
        pipe: Any = CCDiffPipeline.from_pretrained(checkpoint, torch_dtype=PRECISIONS[precision])
    except CCDiffError:
        raise
    except Exception as error:  # a damaged file can end in nearly any error of the libraries that read it
        raise CCDiffError(
            f"the generator cannot be loaded: {' '.join(str(error).split())[:500] or type(error).__name__}",
            where=checkpoint,
            fix="train it again, or copy it again",
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def pipeline_from(name: str) -> Callable[[str, str, str], Any]:
    """The function ``module:function`` that loads a pipeline; :func:`load_pipeline` unless a test or another generator says otherwise."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def device_of(index: int) -> str:
    """The device of the worker with this number on its machine: GPUs in turn, else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{index % count}" if count else "cpu"


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


def make_block(out: Path, b: int, plan: Plan, pipe: Any, references: Mapping[str, Reference]) -> None:
    """Make, write and record the pictures of block ``b``.

    Raises:
        CCDiffError: a picture is not finite (precision), a reference is missing, the disk is full, ...
    """
    jobs, options = plan.block(b), plan.options
    sources = [plan.jobs[job.drawn_from] for job in jobs]
    images = pipe(
        scenes=[source.scene for source in sources],
        references=[_references_of(source, references) for source in sources],
        num_inference_steps=options["steps"],
        guidance_scale=options["guidance_scale"],
        negative_prompt=options["negative_prompt"],
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        output_type="np",
    ).images
    record = []
    for job, image in zip(jobs, images, strict=True):
        data = png_of(image, job, options["precision"])
        path = out / IMAGES / job.scene.file_name
        write_bytes(path, data)
        record.append({"file_name": job.scene.file_name, "sha256": sha256_file(path)})
    write_json(record_path(out, b), {"plan": plan.key, "pictures": record})


def png_of(image: np.ndarray, job: Job, precision: str) -> bytes:
    """A generated picture, ``(H, W, 3)`` in 0..1, as a PNG file.

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
    Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _references_of(job: Job, references: Mapping[str, Reference]) -> SceneReferences | None:
    if job.references is None:
        return None

    def find(key: str | None) -> Reference | None:
        if key is not None and key not in references:
            raise CCDiffError(f"the reference {key!r} of picture {job.k} is no longer in the bank", fix="prepare the set again")
        return references[key] if key is not None else None

    return SceneReferences(tuple(find(key) for key in job.references["instances"]), find(job.references["background"]))


def record_path(out: Path, b: int) -> Path:
    """Where the record of block ``b`` lies."""
    return out / RECORDS / f"block-{b:06d}.json"


def known_hashes(out: Path, plan: Plan) -> dict[str, str]:
    """File name -> SHA-256 of what this plan has already made: from the records, and from the manifest of a finished set."""
    hashes: dict[str, str] = {}
    if (out / MANIFEST).is_file():
        manifest = read_json(out / MANIFEST)
        if manifest.get("plan") == plan.key:
            hashes.update(manifest["pictures"])
    for b in range(plan.blocks):
        path = record_path(out, b)
        if path.is_file():
            record = read_json(path)
            if record.get("plan") == plan.key:
                hashes.update({p["file_name"]: p["sha256"] for p in record["pictures"]})
    return hashes


def missing_blocks(out: Path, plan: Plan) -> list[int]:
    """The blocks that are still to be made; a block with a missing or altered picture is one of them."""
    hashes = known_hashes(out, plan)

    def whole(job: Job) -> bool:
        path = out / IMAGES / job.scene.file_name
        return job.scene.file_name in hashes and path.is_file() and sha256_file(path) == hashes[job.scene.file_name]

    return [b for b in range(plan.blocks) if not all(whole(job) for job in plan.block(b))]


def make_blocks(
    out: Path, blocks: Iterable[int], checkpoint: str, bank: str | None, plan: Plan, device: str, pipeline: str, done: Callable[[int], None]
) -> None:
    """Load the pipeline and make blocks; ``done(b)`` is called after each, before the next number is asked for."""
    with fixed_arithmetic(plan.options["threads"]):
        references = references_of(ReferenceBank.read(bank)) if bank is not None else {}
        pipe = pipeline_from(pipeline)(checkpoint, device, plan.options["precision"])
        for b in blocks:
            make_block(out, b, plan, pipe, references)
            done(b)


def _numbers_from_stdin() -> Iterator[int]:
    numbers: queue.Queue[int | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            numbers.put(None if line.strip() == "end" else int(line))
        os._exit(1)  # the process that started this one is gone

    threading.Thread(target=read, daemon=True).start()
    while (number := numbers.get()) is not None:
        yield number


def main(arguments: list[str]) -> int:
    """``OUT CHECKPOINT BANK INDEX PIPELINE``; see the opening of the module."""
    out, checkpoint, bank, index, pipeline = arguments
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not stand between the answers

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        plan = read_plan(out)
        device = device_of(int(index))
        make_blocks(Path(out), _numbers_from_stdin(), checkpoint, bank or None, plan, device, pipeline, lambda b: answer(done=b))
    except CCDiffError as error:
        answer(error=[error.what, error.where, error.fix])
        return 2
    return 0


def run() -> None:
    """The whole life of a worker process."""
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the reading thread may hold standard input, which a normal exit would wait for
