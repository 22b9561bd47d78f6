"""One training: from a recipe and a prepared set to a generator folder.

Stages: our own VAE and encoders where the recipe names no source, the method's tokenizer of pictures where it has one, the cache of
frozen features, the method's own stages.  Each resumes from its newest checkpoint under ``G/train/``; the generator itself
(a diffusers pipeline folder plus ``ccdiff.json``, written last) appears when the last stage is done.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from diffusers.utils import logging as diffusers_logging
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .. import __version__
from ..comparison import check_sets
from ..dataset import PictureSet, read_set, versions
from ..errors import CCDiffError, os_errors
from ..files import clear_partials, content_key, read_json, write_json
from ..generator import GENERATOR_FILE, Generator, changed_files, generator_key, part_hashes, read_generator
from ..locks import locked
from ..methods import Stage, load_pipeline, method_named, method_of
from ..methods.method import REFERENCES
from ..methods.recipe import StageConfig, in_steps
from ..models.pipeline import ScenePipeline, check_weights
from ..recipes import Recipe
from ..references import WORDS, ReferenceBank
from ..retrieval import OWN, EmbeddingSimilarity, open_similarity
from ..scene import Scene
from ..stored import checked
from ..threads import THREADS, Threads, restored
from .adapters import check_extras
from .costs import check_training
from .denoiser import batch_source, cache_features, pixel_source, train_stage, training_items
from .loop import Progress
from .parts import Work, build, learn_words, transplanted
from .resting import Resting
from .samples import drawn_latents, set_schedule, validation_pictures
from .sources import check_sources

log = logging.getLogger(__name__)

SHARDING = (
    ("ACCELERATE_USE_FSDP", "FSDP", "--use_fsdp"),
    ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed", "--use_deepspeed"),
    ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM", "--use_megatron_lm"),
)
"""Variables that ``accelerate launch`` sets, what they ask for, and the option that set them."""


@locked("train")
# wide: the options of the verb
def train(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    start: str | Path | None = None,
    transplanted: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    cpu: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train a generator, or finish one that was interrupted.

    Args:
        recipe: what to train (see ``recipes.load_recipe``).
        data: a prepared set whose pictures are ``recipe.picture_size`` squares.
        out: the generator folder; training state lies in ``out/train``.
        start: a generator folder to go on from: its VAE and encoders are kept, its denoiser goes on; with the recipe's section ``decoder``
            the VAE's decoder goes on, too, or alone.
        transplanted: of ``start`` only the encoders, the resampler and the inner levels of the UNet are taken (see ``transplant``);
            autoencoder and UNet are the recipe's, whose latents and widths may be others.
        say: is told by how many processes and threads, how much, and in how much memory is trained.
        cpu: do not use a GPU.
        threads: of the processor; None: as OMP_NUM_THREADS says, else measured (see ``threads.Threads``).

    Returns:
        what ``out/ccdiff.json`` holds.

    Raises:
        CCDiffError: the set does not fit the recipe, a source cannot be loaded, the folder belongs to another training.
    """
    out = Path(out)
    prepared = read_set(data)
    check_sets({"real": prepared}, out)
    scenes = prepared.split("train")
    _check_set(prepared, scenes, recipe)
    _check_start(start, recipe, transplanted, tuple(prepared.classes))
    start_key = generator_key(start) if start else None
    identity: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "data": prepared.key(), "start": start_key}
    if transplanted:
        if not start:
            raise CCDiffError("a transplant without a generator to take from", where="--transplant", fix="give --from GENERATOR too")
        identity["transplant"] = True
    made_from = content_key(identity)
    if (done := _finished(out, made_from, prepared)) is not None:
        return done
    _check_launcher()
    check_extras(recipe)
    sources = check_sources(recipe, start=start, transplanted=transplanted)
    memory = check_training(recipe, scenes, where=prepared.root, start=None if transplanted else start)
    folder = out / "train"
    with os_errors(out, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator(cpu)
    if accelerator.is_main_process:
        clear_partials(folder)
    accelerator.wait_for_everyone()
    processes = accelerator.num_processes
    asked, recipe = recipe, in_steps(recipe, len(scenes), processes)
    if recipe is not asked:  # its steps are of so many processes
        identity = {**identity, "processes": processes}
    _check_processes(folder, processes, fixed=recipe is not asked, accelerator=accelerator)
    if not accelerator.is_main_process:
        progress = say = None
    if say is not None:
        say(processes_note(recipe, len(scenes), accelerator))
        say(f"memory: {memory}")
    set_seed(recipe.seed)
    method, bank = method_named(recipe.method), ReferenceBank.read(prepared.root)
    with _tensorboard(folder / "logs", accelerator) as write, restored():
        chosen = Threads(folder / THREADS, device=accelerator.device.type, processes=processes, asked=threads, say=say)
        work = Work(recipe, method, sources, prepared, scenes, bank, folder, accelerator, progress, write, chosen)
        if REFERENCES in method.takes and recipe.retrieval not in (WORDS, OWN):  # before hours of training: it may not be there
            bank.similarity = _similarity(work)
        given = load_pipeline(str(start)) if start else None
        if given is not None and start is not None:
            check_weights(given, start)
        pipe, told, keys = _assemble(work, given, start_key, transplanted)
        stage, losses = _train_stages(work, pipe, identity, keys)
    description = {
        "format": "ccdiff generator 1",
        "identity": made_from,
        **recipe.named(),
        "picture_size": recipe.picture_size,
        "classes": list(prepared.classes),
        "recipe": asked.model_dump(mode="json"),
        "data": {"key": prepared.key(), "pictures": len(scenes), "sources": sorted({scene.source for scene in scenes})},
        **(_of_denoiser(start, scenes) if start is not None and recipe.decoder is not None and recipe.decoder.alone else {}),
        "steps": stage.config(recipe).steps,
        "final_loss": float(np.mean(losses[-100:])),
        "versions": versions(),
        "ccdiff": __version__,
        **told,
    }
    if accelerator.is_main_process:
        set_schedule(work, pipe, training=False)
        save_generator(pipe, out, description)
    accelerator.wait_for_everyone()
    return description


def _of_denoiser(start: str | Path, scenes: Sequence[Scene]) -> dict[str, Any]:
    """What of a generator's description a denoiser decides that was not trained here: its classes, and whose pictures it has seen."""
    found = read_generator(start)
    data = found.get("data") or {}
    sources = data.get("sources")
    seen = sorted({*sources, *(scene.source for scene in scenes)}) if isinstance(sources, list) else None
    return {"classes": found["classes"], "data": {**data, "sources": seen}}


def _assemble(
    work: Work, given: ScenePipeline | None, start_key: str | None, as_transplant: bool
) -> tuple[ScenePipeline, dict[str, Any], tuple[str, str]]:
    """The pipeline to train, what is said of where it started, and the keys of its frozen parts (autoencoder, encoders)."""
    told: dict[str, Any] = {}
    new_words: list[str] = []
    if given is not None:
        new_words = learn_words(given, work.prepared, work.scenes, work.recipe) if "text" in work.recipe.base() else []
        told = {"start": {"generator": start_key, "new words": new_words}}
    if given is not None and not as_transplant:
        pipe, autoencoder_key, encoders_key = given, str(start_key), ""
        pipe.register_to_config(**work.recipe.sampling.in_pipeline())
    else:
        pipe, autoencoder_key, encoders_key = build(work, given)
        if given is not None:
            told["start"] |= transplanted(pipe, given)
    if given is not None:
        encoders_key = content_key([start_key, len(pipe.tokenizer) if "text" in work.recipe.base() else 0])
    if named := work.recipe.named():  # what a method has of its own may say how texts and pictures are encoded
        sections = {k: v for k, v in work.recipe.model_dump(mode="json").items() if k not in Recipe.model_fields}
        autoencoder_key, encoders_key = (content_key([key, named, sections]) for key in (autoencoder_key, encoders_key))
    return pipe, told, (autoencoder_key, encoders_key)


def _train_stages(work: Work, pipe: ScenePipeline, identity: dict[str, Any], keys: tuple[str, str]) -> tuple[Stage, list[float]]:
    """Train the recipe's stages, one after the other, in place; the last of the method's own that was trained, and its losses."""
    recipe, method, bank, accelerator = work.recipe, work.method, work.bank, work.accelerator
    for name, part in pipe.modules_of().items():
        part.requires_grad_(False)
        if name not in pipe.TRAINED:
            part.eval().to(accelerator.device)
    items = training_items(work.scenes, recipe)
    if REFERENCES in method.takes and recipe.retrieval == OWN:
        bank.similarity = _similarity(work, pipe)
    if isinstance(bank.similarity, EmbeddingSimilarity):
        bank.similarity.remember([item.caption for item in items], work.progress)
    autoencoder_key, encoders_key = keys
    told: list[tuple[Stage, list[float]]] = []
    features, resting = None, Resting(work, pipe)
    for stage in method.stages_of(recipe):
        sample = None
        if stage.sees == "pixels":
            batch_of = pixel_source(items, work.scenes, stage, recipe)
            autoencoder_key = content_key([autoencoder_key, stage.name, identity])
        else:
            if features is None:
                features = cache_features(work, pipe, items, autoencoder_key=autoencoder_key, encoders_key=encoders_key)
                resting.leave()
            drawn = None
            if stage.sees == "both" and recipe.decoder is not None and recipe.decoder.drawn:
                with resting.awake():
                    drawn = drawn_latents(work, pipe, items, recipe.decoder.drawn, identity)
            batch_of = batch_source(items, features, work, pipe, stage, drawn)
            sample = _samples(work, pipe, resting, stage)
        set_schedule(work, pipe, training=True)
        told.append((stage, train_stage(work, pipe, stage, batch_of, key=identity, sample=sample)))
    resting.come_back()
    return next((one for one in reversed(told) if one[0] in method.stages), told[-1])


def _samples(work: Work, pipe: ScenePipeline, resting: Resting, stage: Stage) -> tuple[Callable[[int], None], Callable[[int], bool]]:
    """How validation pictures of a step are made, and whether they are there."""
    of = "" if stage in work.method.stages else f"{stage.name}-"

    def sheet(step: int) -> Path:
        return work.folder / "samples" / f"{of}step-{step:08d}.png"

    def draw(step: int) -> None:
        with resting.awake():
            validation_pictures(work, pipe, sheet(step))

    return draw, lambda step: sheet(step).is_file()


def _similarity(work: Work, pipe: ScenePipeline | None = None) -> EmbeddingSimilarity:
    with work.accelerator.main_process_first():  # the first writes the index, the others read it
        return open_similarity(
            work.recipe.retrieval, work.prepared, pipe=pipe, style=work.recipe.caption_style, where="recipe key retrieval",
            device=str(work.accelerator.device), progress=work.progress,
        )  # fmt: skip


def _check_start(start: str | Path | None, recipe: Recipe, as_transplant: bool, classes: Sequence[str] = ()) -> None:
    """Whether a training can go on from a generator: a transplant from any, else from one of its own method."""
    if recipe.decoder is not None and recipe.decoder.alone and (start is None or as_transplant):
        raise CCDiffError(
            "the decoder alone is to be trained, and there is no finished denoiser whose latents it draws",
            where="recipe key decoder.alone",
            fix="give --from GENERATOR without --transplant, or set it to false: the denoiser is trained first",
        )
    if start is None:
        return
    described = read_generator(start)
    if recipe.decoder is not None and recipe.decoder.alone:
        _check_same_denoiser(described, recipe, classes, where=start)
    found = method_of(described, where=start)
    if not as_transplant and found.name != recipe.method:
        raise CCDiffError(
            f"the generator to start from is of the method {found.name}, recipe {recipe.name!r} is of {recipe.method}",
            where=start,
            fix="take a recipe of the generator's method, or --transplant what the two share",
        )


def _check_same_denoiser(found: dict[str, Any], recipe: Recipe, classes: Sequence[str], *, where: str | Path) -> None:
    """Whether a recipe says of a denoiser that is not trained what it is, as the generator's description does.

    Raises:
        CCDiffError: it says otherwise: what the denoiser predicts would be read wrongly, or captions would be put otherwise than it knows
            them; or the set has classes that it does not know.
    """
    if unknown := sorted(set(classes) - set(found["classes"])):
        raise CCDiffError(
            f"the denoiser that stays as it is knows no {', '.join(unknown[:5])}",
            where=where,
            fix="train it on the set first: leave out decoder.alone",
        )
    both = (found.get("recipe") or {}, recipe.model_dump(mode="json"))
    for key in ("caption_style", "denoiser.prediction", "unet"):
        *groups, last = key.split(".")
        was, now = both
        for group in groups:
            was, now = (one.get(group) or {} for one in (was, now))
        if last in was and was[last] != now.get(last):
            raise CCDiffError(
                f"the denoiser that stays as it is was made with {_short(was[last])}, the recipe says {_short(now.get(last))}",
                where=f"recipe key {key}",
                fix="take the recipe that the generator was made with (its ccdiff.json has it): decoder.alone trains the decoder only",
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_launcher() -> None:
    """Whether ``accelerate launch`` asks for what this training does not do: every process holds all that is trained (DDP).

    Raises:
        CCDiffError: weights are to be divided among the processes; checkpoints and validation pictures need them whole in one.
    """
    for variable, name, option in SHARDING:
        if os.environ.get(variable, "").lower() in ("true", "1", "yes"):
            raise CCDiffError(
                f"the weights are to be divided among the processes by {name}, which training cannot do",
                where=f"accelerate launch ({variable})",
                fix=f"leave out {option}: every process holds all weights (DDP); where memory is short, see docs/full-size.md",
            )


def _check_processes(folder: Path, processes: int, *, fixed: bool, accelerator: Accelerator) -> None:
    """Whether a training may go on by so many processes; kept in the folder is how many went on last.

    Args:
        fixed: it is counted in epochs: its steps are of the number of processes that it was begun by.

    Raises:
        CCDiffError: it is, and was begun by another number.
    """
    path = folder / "processes.json"
    before = read_json(path) if path.is_file() else None
    count = before["processes"] if isinstance(before, dict) and type(before.get("processes")) is int else processes
    begun = count != processes and any(folder.glob("*/checkpoint-*.pt"))
    if begun and fixed:
        raise CCDiffError(
            f"this training was begun by {_processes(count)} and is to go on by {processes}; its length is in epochs, so its steps, and "
            "the pictures of each, are of the former number",
            where=folder.parent,
            fix=f"start {_processes(count)} again, or train into a new folder",
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and (before is None or count != processes):
        if begun:
            log.warning(
                "%s: begun by %s, goes on by %d: a step that is left sees %.3g times as many pictures as one before",
                folder.parent, _processes(count), processes, processes / count,
            )  # fmt: skip
        write_json(path, {"processes": processes})


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _finished(out: Path, identity: str, prepared: PictureSet) -> dict[str, Any] | None:
    """The generator where it is finished and whole; None where it is still to be trained, or to be made whole again.

    Raises:
        CCDiffError: the folder holds the generator of another training.
    """
    if not (out / GENERATOR_FILE).is_file():
        return None
    try:
        found = read_generator(out)
    except CCDiffError:
        if not (out / "train").is_dir():
            raise
        return None  # its checkpoints say whose they are
    if found.get("identity") != identity:
        edited = (found.get("data") or {}).get("key") in prepared.ancestors()
        what = "the set was edited since the generator was trained" if edited else "a generator of another recipe or data set lies there"
        raise CCDiffError(what, where=out, fix="choose another --out folder, or delete this one")
    wrong = changed_files(out)
    if not wrong:
        return found
    log.warning("%s: %s: it is made again from the training's last checkpoint", out, "; ".join(wrong[:3]))
    return None


def plan(
    recipe: Recipe, data: str | Path, out: str | Path | None = None, *, start: str | Path | None = None, transplanted: bool = False
) -> dict[str, Any]:
    """What :func:`train` would do, into ``out`` where one is named: stages, steps, pictures seen; raises the same errors before anything is
    written."""
    prepared = read_set(data)
    if out is not None:
        check_sets({"real": prepared}, out)
    scenes = prepared.split("train")
    _check_set(prepared, scenes, recipe)
    _check_start(start, recipe, transplanted, tuple(prepared.classes))
    needs, processes = recipe.base(), _launched()
    recipe = in_steps(recipe, len(scenes), processes)
    stages: dict[str, Any] = {}
    if recipe.autoencoder is not None and "vae" in needs and (transplanted or not start):
        stages["autoencoder"] = None if recipe.autoencoder.source else recipe.autoencoder.train
    if recipe.encoders is not None and needs & {"text", "image"} and not start:
        stages["encoders"] = recipe.encoders.train
    stages |= {stage.name: stage.config(recipe) for stage in method_named(recipe.method).stages_of(recipe)}
    check_extras(recipe)
    sources = check_sources(recipe, start=start, transplanted=transplanted)
    memory = check_training(recipe, scenes, where=prepared.root, start=None if transplanted else start)
    described: dict[str, Any] = {"recipe": recipe.name, "training pictures": len(scenes), "classes": ", ".join(prepared.classes)}
    described |= {name: found.line() for name, found in sources.items()}
    for name, stage in stages.items():
        if stage is not None:
            described[name] = length_note(stage, len(scenes), processes)
    return described | {"memory": memory}


def length_note(stage: StageConfig, pictures: int, processes: int) -> str:
    """How long a stage of so many training pictures lasts, for people."""
    seen = stage.steps * stage.pictures(processes)
    return f"{stage.steps} steps of {stage.pictures(processes)} pictures, {seen} in all ({seen / pictures:.1f} epochs)"


def _launched() -> int:
    """The processes that a launcher says it has started; 1 without one."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))


def _accelerator(cpu: bool) -> Accelerator:
    """Where GPUs are missing the processes of a launcher do not meet unless the CPU is asked for: each would train alone."""
    return Accelerator(
        cpu=cpu or (_launched() > 1 and not torch.cuda.is_available()),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def processes_note(recipe: Recipe, pictures: int, accelerator: Accelerator) -> str:
    """Who trains, and how long: one line; a second one where fewer processes run than were asked for.

    NOTE: ``accelerate launch --cpu`` starts one process whatever it is told (it leaves more of them to MPI), with the address that several
    would meet at and without the number of them.
    """
    note = f"{_processes(accelerator.num_processes)} on {accelerator.device.type}"
    for stage in method_named(recipe.method).stages_of(recipe):
        note = f"{note}; {stage.name}: {length_note(stage.config(recipe), pictures, accelerator.num_processes)}"
    if accelerator.num_processes == 1 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        note += (
            "\nWARNING: accelerate launch was asked for more than one process and started one, as it does without GPUs; "
            "for N of them: python -m torch.distributed.run --nproc_per_node N -m ccdiff_cli train ..."
        )
    return note


def save_generator(pipe: ScenePipeline, out: Path, description: dict[str, Any]) -> None:
    """Write a generator folder in half precision: parts first, ``ccdiff.json`` last."""
    partial = out / ".partial-generator"
    with os_errors(out, "write the generator"):
        shutil.rmtree(partial, ignore_errors=True)
        parts = list(pipe.modules_of().values())
        dtypes = [next(p.parameters()).dtype for p in parts]
        diffusers_logging.set_verbosity_error()  # it warns of half precision, which is what is wanted here
        transformers_logging.disable_progress_bar()
        for part in parts:
            part.to("cpu", torch.float16)
        if isinstance(tokenizer := getattr(pipe, "tokenizer", None), PreTrainedTokenizerBase):
            # its file holds how it was last called, which is another way in a run that found all texts encoded
            tokenizer("", padding=False, truncation=False)
        pipe.save_pretrained(partial, safe_serialization=True)
        for part, dtype in zip(parts, dtypes, strict=True):
            part.to(dtype=dtype)
        for entry in sorted(partial.iterdir()):
            target = out / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
        partial.rmdir()
    description["files"] = {name: digest for name, digest in part_hashes(out).items() if name != GENERATOR_FILE}
    checked(Generator, description, where=out / GENERATOR_FILE)
    write_json(out / GENERATOR_FILE, description)


def _check_set(prepared: PictureSet, scenes: Sequence[Scene], recipe: Recipe) -> None:
    if not scenes:
        raise CCDiffError(
            "the set has no pictures in its train split", where=prepared.root, fix="check the splits given to `ccdiff prepare`"
        )
    size = recipe.picture_size
    for scene in scenes:
        if (scene.width, scene.height) != (size, size):
            raise CCDiffError(
                f"{scene.file_name} is {scene.width}x{scene.height} px; recipe {recipe.name!r} trains on {size}x{size}",
                where=prepared.root,
                fix=f"prepare the set again with --size {size} (and --tile for large pictures)",
            )


class _tensorboard:
    """A TensorBoard writer on the main process, as a function ``write(name, value, step)``."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.main = folder, accelerator.is_main_process
        self.writer: Any = None

    def __enter__(self) -> Callable[[str, float, int], None]:
        if self.main:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder))

        def write(name: str, value: float, step: int) -> None:
            if self.writer is not None:
                self.writer.add_scalar(name, value, step)

        return write

    def __exit__(self, *_: Any) -> None:
        if self.writer is not None:
            self.writer.close()
