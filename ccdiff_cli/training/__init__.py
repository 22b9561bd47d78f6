"""``ccdiff train``: from a recipe and a prepared set to a generator folder.

Stages: our own VAE and encoders where the recipe names no source, the cache of frozen features, the denoiser.  Each stage resumes from
its newest checkpoint under ``G/train/``; the generator itself (a diffusers pipeline folder plus ``ccdiff.json``, written last)
appears when the last stage is done.
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
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import AutoImageProcessor, AutoTokenizer, BitImageProcessor, CLIPTextModel, Dinov2Model
from transformers.utils import logging as transformers_logging

from .. import __version__
from ..dataset import PictureSet, read_set, versions
from ..drawing import contact_sheet, draw_scene
from ..errors import CCDiffError, os_errors
from ..files import atomic_write, content_key, write_json
from ..generator import (
    GENERATOR_FILE,
    SHIPPED,
    Generator,
    changed_files,
    generator_key,
    part_hashes,
    read_generator,
    shipped_generator,
)
from ..locks import locked
from ..models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ..models.conditioning import ConditioningConfig
from ..models.pipeline import CCDiffPipeline
from ..prepare.captions import caption_of
from ..recipes import AutoencoderConfig, EncodersConfig, Recipe, StageConfig
from ..references import WORDS, ReferenceBank
from ..retrieval import OWN, EmbeddingSimilarity, open_similarity
from ..scene import SYMMETRIES, Scene, symmetric_scene
from ..stored import checked
from .autoencoder import load_pixels, normalise_latents, train_autoencoder
from .costs import check_training
from .denoiser import batch_source, cache_features, train_denoiser, training_items
from .encoders import resize_pixels, train_encoders
from .loop import Progress, seed_of
from .parts import make_resampler, own_unet, with_conditioning
from .transplant import transplant
from .vocabulary import extend_vocabulary, is_word_level, known_words, words_of

log = logging.getLogger(__name__)


@locked("train")
def train(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    start: str | Path | None = None,
    transplanted: bool = False,
    progress: Progress | None = None,
    cpu: bool = False,
) -> dict[str, Any]:
    """Train a generator, or finish one that was interrupted.

    Args:
        recipe: what to train (see ``recipes.load_recipe``).
        data: a prepared set whose pictures are ``recipe.picture_size`` squares.
        out: the generator folder; training state lies in ``out/train``.
        start: a generator folder to go on from: its VAE and encoders are kept, its denoiser is trained further.
        transplanted: of ``start`` only the encoders, the resampler and the inner levels of the UNet are taken (see ``transplant``);
            autoencoder and UNet are the recipe's, whose latents and widths may be others.
        cpu: do not use a GPU.

    Returns:
        what ``out/ccdiff.json`` holds.

    Raises:
        CCDiffError: the set does not fit the recipe, a source cannot be loaded, the folder belongs to another training.
    """
    out = Path(out)
    prepared = read_set(data)
    scenes = prepared.split("train")
    _check_set(prepared, scenes, recipe)
    if start:
        read_generator(start)
    start_key = generator_key(start) if start else None
    identity: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "data": prepared.key(), "start": start_key}
    if transplanted:
        if not start:
            raise CCDiffError("a transplant without a generator to take from", where="--transplant", fix="give --from GENERATOR too")
        identity["transplant"] = True
    if (done := _finished(out, content_key(identity), prepared)) is not None:
        return done
    check_training(recipe, scenes, where=prepared.root, start=None if transplanted else start)
    work = out / "train"
    with os_errors(out, "make the folder"):
        work.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if not accelerator.is_main_process:
        progress = None
    set_seed(recipe.seed)
    bank = ReferenceBank.read(prepared.root)

    def similarity(pipe: CCDiffPipeline | None = None) -> EmbeddingSimilarity:
        with accelerator.main_process_first():  # the first writes the index, the others read it
            return open_similarity(
                recipe.retrieval, prepared, pipe=pipe, style=recipe.caption_style, where="recipe key retrieval",
                device=str(accelerator.device), progress=progress,
            )  # fmt: skip

    if recipe.retrieval not in (WORDS, OWN):  # before hours of training: it may not be there
        bank.similarity = similarity()
    with _tensorboard(work / "logs", accelerator) as write:
        given = CCDiffPipeline.from_pretrained(str(start)) if start else None
        told: dict[str, Any] = {}
        if given is not None:
            told = {"start": {"generator": start_key, "new words": _learn_words(given, prepared, scenes, recipe)}}
        if given is not None and not transplanted:
            pipe, autoencoder_key = given, str(start_key)
            encoders_key = content_key([start_key, len(pipe.tokenizer)])
        else:
            pipe, autoencoder_key, encoders_key = _build(recipe, prepared, scenes, bank, work, accelerator, progress, write, given)
            if given is not None:
                told["start"] |= _transplanted(pipe, given)
                encoders_key = content_key([start_key, len(pipe.tokenizer)])
        for part in (pipe.vae, pipe.text_encoder, pipe.image_encoder):
            part.eval().requires_grad_(False).to(accelerator.device)
        items = training_items(scenes, recipe)
        if recipe.retrieval == OWN:
            bank.similarity = similarity(pipe)
        if isinstance(bank.similarity, EmbeddingSimilarity):
            bank.similarity.remember([item.caption for item in items], progress)
        features = cache_features(
            pipe, items, scenes, list(prepared.classes), bank, recipe, work / "cache", accelerator,
            encoders_key=encoders_key, autoencoder_key=autoencoder_key, set_key=prepared.key(), progress=progress,
        )  # fmt: skip
        _set_schedule(pipe, recipe, training=True)

        def sheet(step: int) -> Path:
            return work / "samples" / f"step-{step:08d}.png"

        def sample(step: int) -> None:
            _validation_pictures(pipe, prepared, bank, recipe, sheet(step))

        losses = train_denoiser(
            pipe, batch_source(items, features, list(prepared.classes), bank, recipe), recipe, work / "denoiser", accelerator,
            key=identity, progress=progress, log=write, sample=(sample, lambda step: sheet(step).is_file()),
        )  # fmt: skip
    description = {
        "format": "ccdiff generator 1",
        "identity": content_key(identity),
        "picture_size": recipe.picture_size,
        "classes": list(prepared.classes),
        "recipe": recipe.model_dump(mode="json"),
        "data": {"key": prepared.key(), "pictures": len(scenes), "sources": sorted({scene.source for scene in scenes})},
        "steps": recipe.denoiser.train.steps,
        "final_loss": float(np.mean(losses[-100:])),
        "versions": versions(),
        "ccdiff": __version__,
        **told,
    }
    if accelerator.is_main_process:
        _set_schedule(pipe, recipe, training=False)
        save_generator(pipe, out, description)
    accelerator.wait_for_everyone()
    return description


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


def plan(recipe: Recipe, data: str | Path, *, start: str | Path | None = None, transplanted: bool = False) -> dict[str, Any]:
    """What :func:`train` would do: stages, steps, pictures seen; raises the same errors before anything is written."""
    prepared = read_set(data)
    scenes = prepared.split("train")
    _check_set(prepared, scenes, recipe)
    if start:
        read_generator(start)
    stages: dict[str, StageConfig | None] = {}
    if transplanted or not start:
        stages["autoencoder"] = None if recipe.autoencoder.source else recipe.autoencoder.train
    if not start:
        stages["encoders"] = recipe.encoders.train
    stages["denoiser"] = recipe.denoiser.train
    memory = check_training(recipe, scenes, where=prepared.root, start=None if transplanted else start)
    described: dict[str, Any] = {"recipe": recipe.name, "training pictures": len(scenes), "classes": ", ".join(prepared.classes)}
    for name, stage in stages.items():
        if stage is None:
            described[name] = "loaded, frozen"
        else:
            seen = stage.steps * stage.batch_size * stage.accumulation
            described[name] = f"{stage.steps} steps, {seen} pictures a process ({seen / len(scenes):.1f} epochs)"
    return described | {"memory": memory}


def save_generator(pipe: CCDiffPipeline, out: Path, description: dict[str, Any]) -> None:
    """Write a generator folder in half precision: parts first, ``ccdiff.json`` last."""
    partial = out / ".partial-generator"
    with os_errors(out, "write the generator"):
        shutil.rmtree(partial, ignore_errors=True)
        parts = [p for p in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.image_encoder, pipe.resampler)]
        dtypes = [next(p.parameters()).dtype for p in parts]
        diffusers_logging.set_verbosity_error()  # it warns of half precision, which is what is wanted here
        transformers_logging.disable_progress_bar()
        for part in parts:
            part.to("cpu", torch.float16)
        # its file holds how it was last called, which is another way in a run that found all texts encoded
        pipe.tokenizer("", padding=False, truncation=False)
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


def _check_set(prepared: PictureSet, scenes: tuple[Scene, ...], recipe: Recipe) -> None:
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


def _learn_words(pipe: CCDiffPipeline, prepared: PictureSet, scenes: tuple[Scene, ...], recipe: Recipe) -> list[str]:
    """Add the words of the set, and those that later sets may have, to a text encoder of our own; the new words of the set.

    Raises:
        CCDiffError: the text encoder has a fixed vocabulary, which lacks a word of a class.
    """
    if is_word_level(pipe.tokenizer):
        style = "plain" if recipe.caption_style == "stored" else recipe.caption_style
        texts = [*prepared.classes, *(s.caption for s in scenes), *(caption_of(s, style=style) for s in scenes)]
        met = {word for text in texts for word in words_of(text)}
        pipe.tokenizer, new = extend_vocabulary(pipe.tokenizer, pipe.text_encoder, {*met, *known_words()})
        return sorted(met & set(new))
    unknown = pipe.tokenizer.unk_token_id
    for name in prepared.classes:
        if unknown not in (pipe.tokenizer.eos_token_id, None) and unknown in pipe.tokenizer(name)["input_ids"]:
            raise CCDiffError(
                f"the generator to start from does not know a word of the class {name!r}",
                where=prepared.root,
                fix="train from scratch (no --from), or rename the class",
            )
    return []


def _transplanted(pipe: CCDiffPipeline, given: CCDiffPipeline) -> dict[str, Any]:
    """Take the inner levels of the UNet and the resampler of ``given``; how many tensors were copied, which in part and which are new."""
    levels = len(given.unet.config.block_out_channels) - len(pipe.unet.config.block_out_channels)
    told = {"unet": transplant(pipe.unet, given.unet, shift=levels), "resampler": transplant(pipe.resampler, given.resampler)}
    return {
        "transplant": {
            part: {"copied": len(names["copied"]), "in part": names["in part"], "new": names["new"]} for part, names in told.items()
        }
    }


def _build(
    recipe: Recipe,
    prepared: PictureSet,
    scenes: tuple[Scene, ...],
    bank: ReferenceBank,
    work: Path,
    accelerator: Accelerator,
    progress: Progress | None,
    write: Callable[[str, float, int], None],
    given: CCDiffPipeline | None = None,
) -> tuple[CCDiffPipeline, str, str]:
    """The parts of a recipe, loaded or trained (encoders: those of ``given``); with the keys of what the cached features depend on."""
    auto, enc = recipe.autoencoder, recipe.encoders
    shipped = generator_key(shipped_generator()) if auto.source == SHIPPED else None
    auto_key = content_key(["autoencoder", auto.model_dump(mode="json"), recipe.seed, prepared.key(), *([shipped] if shipped else [])])
    enc_key = content_key(
        ["encoders", enc.model_dump(mode="json"), recipe.seed, recipe.caption_style, None if enc.text_source else prepared.key()]
    )
    if auto.source:
        shown = scenes if recipe.unet.source is None else ()  # the latents of a given UNet are what they are
        vae = _load_autoencoder(auto.source, auto.subfolder, auto, accelerator.device, shown, "autoencoder.source")
    else:
        teacher = _teacher(auto, accelerator.device, scenes) if auto.teacher else None
        held_out = [scene for scene in prepared.scenes if scene.split != "train"]
        vae = train_autoencoder(
            scenes, auto, work / "autoencoder", accelerator, seed=recipe.seed, key=auto_key, teacher=teacher, held_out=held_out,
            progress=progress, log=write,
        )  # fmt: skip
    tokenizer: Any = None
    text: Any = None
    processor: Any = None
    image: Any = None
    if given is not None:
        tokenizer, text, processor, image = given.tokenizer, given.text_encoder, given.feature_extractor, given.image_encoder
    elif not (enc.text_source and enc.image_source):
        tokenizer, text, processor, image = _own_encoders(enc, recipe, prepared, scenes, bank, work, accelerator, enc_key, progress, write)
    if enc.text_source and given is None:
        tokenizer = _load(AutoTokenizer, enc.text_source, "tokenizer" if enc.text_subfolder else None, "encoders.text_source")
        text = _load(CLIPTextModel, enc.text_source, enc.text_subfolder, "encoders.text_source")
    if enc.image_source and given is None:
        processor = _load(AutoImageProcessor, enc.image_source, None, "encoders.image_source")
        image = _load(Dinov2Model, enc.image_source, None, "encoders.image_source")
    torch.manual_seed(seed_of(recipe.seed, "denoiser", "weights"))
    unet = (
        _load(UNet2DConditionModel, recipe.unet.source, recipe.unet.subfolder, "unet.source")
        if recipe.unet.source
        else own_unet(
            recipe,
            recipe.picture_size // 2 ** (len(vae.config.block_out_channels) - 1),
            vae.config.latent_channels,
            text.config.hidden_size,
        )
    )
    unet = with_conditioning(unet, ConditioningConfig(**recipe.conditioning.model_dump()))
    resampler = make_resampler(recipe, image.config.hidden_size, text.config.hidden_size)
    sampling = recipe.sampling
    pipe = CCDiffPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=_scheduler(recipe, training=True), resampler=resampler,
        image_encoder=image, feature_extractor=processor, num_inference_steps=sampling.steps, guidance_scale=sampling.guidance_scale,
        negative_prompt=sampling.negative_prompt,
    )  # fmt: skip
    return pipe, auto_key, enc_key


def _load_autoencoder(
    source: str, subfolder: str | None, auto: AutoencoderConfig, device: torch.device, scenes: Sequence[Scene], key: str
) -> Any:
    """An autoencoder by folder or name; the latents of an ``AutoencoderTiny`` are normalised on ``scenes``, unless there are none."""
    if source == SHIPPED:
        source, subfolder = str(shipped_generator()), "vae"
    kind = _load_config(source, subfolder).get("_class_name")
    if kind == "AutoencoderTiny":
        vae = TinyAutoencoder.of(_load(AutoencoderTiny, source, subfolder, key)).eval().requires_grad_(False).to(device)
        if scenes:
            normalise_latents(vae, scenes, auto.whitening, device)
        return vae
    own = {"TinyAutoencoder": TinyAutoencoder, "PatchAutoencoder": PatchAutoencoder}
    return _load(own.get(str(kind), AutoencoderKL), source, subfolder, key)


def _teacher(auto: AutoencoderConfig, device: torch.device, scenes: Sequence[Scene]) -> TinyAutoencoder:
    teacher = _load_autoencoder(str(auto.teacher), None, auto, device, scenes, "autoencoder.teacher")
    channels = teacher.config.latent_channels
    if not isinstance(teacher, TinyAutoencoder) or channels != auto.latent_channels:
        raise CCDiffError(
            f"the teacher is a {type(teacher).__name__} of {channels} channels, expected an AutoencoderTiny of {auto.latent_channels}",
            where="recipe key autoencoder.teacher",
            fix="set autoencoder.latent_channels to the teacher's, or name another teacher",
        )
    return teacher.eval().requires_grad_(False).to(device)


def _load_config(source: str, subfolder: str | None) -> dict[str, Any]:
    try:
        found: dict[str, Any] = AutoencoderKL.load_config(source, subfolder=subfolder)
    except Exception:  # loading it says what is wrong
        return {}
    return found


def _own_encoders(
    enc: EncodersConfig,
    recipe: Recipe,
    prepared: PictureSet,
    scenes: tuple[Scene, ...],
    bank: ReferenceBank,
    work: Path,
    accelerator: Accelerator,
    key: str,
    progress: Progress | None,
    write: Callable[[str, float, int], None],
) -> tuple[Any, CLIPTextModel, BitImageProcessor, Dinov2Model]:
    style = "plain" if recipe.caption_style == "stored" else recipe.caption_style
    captions = [scene.caption if recipe.caption_style == "stored" else caption_of(scene, style=style) for scene in scenes]
    turns = range(0, SYMMETRIES, SYMMETRIES // recipe.denoiser.symmetries)
    texts = [caption_of(symmetric_scene(scene, k), style=style) for scene in scenes for k in turns]
    crops = [
        (resize_pixels(np.asarray(r.image()), enc.image_size), prepared.classes.index(r.category))
        for r in bank.candidates()
        if r.kind == "instance"
    ]
    if not crops:
        raise CCDiffError("the set's reference bank has no object crops to train the encoders on", where=prepared.root)
    pictures = [resize_pixels(load_pixels(scene), enc.image_size) for scene in scenes]
    return train_encoders(
        enc, crops=crops, pictures=pictures, captions=captions, class_names=list(prepared.classes),
        texts=[*captions, *texts, *prepared.classes, recipe.sampling.negative_prompt, *known_words()],
        folder=work / "encoders", accelerator=accelerator, seed=recipe.seed, key=key, progress=progress, log=write,
    )  # fmt: skip


def _load(cls: Any, source: str, subfolder: str | None, key: str) -> Any:
    """``cls.from_pretrained`` of a folder or hub name, safetensors only; CCDiffError naming the recipe key when it fails."""
    kwargs: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
    if hasattr(cls, "config_class") or issubclass(cls, (AutoencoderKL, AutoencoderTiny, UNet2DConditionModel)):
        kwargs["use_safetensors"] = True
    try:
        return cls.from_pretrained(source, **kwargs)
    except Exception as error:
        raise CCDiffError(
            f"cannot load {cls.__name__} from {source!r}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=f"recipe key {key}",
            fix="give a folder in the diffusers / transformers layout with safetensors weights, or a hub name when the network is there",
        ) from error


def _scheduler(recipe: Recipe, *, training: bool) -> Any:
    # the noise schedule of Stable Diffusion 1.x
    schedule: dict[str, Any] = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": recipe.denoiser.prediction,
    }  # fmt: skip
    if training:
        return DDPMScheduler(**schedule, clip_sample=False)
    if recipe.sampling.scheduler == "euler":
        return EulerDiscreteScheduler(**schedule, timestep_spacing="leading", steps_offset=1)
    return DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing")


def _set_schedule(pipe: CCDiffPipeline, recipe: Recipe, *, training: bool) -> None:
    pipe.register_modules(scheduler=_scheduler(recipe, training=training))


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


@torch.no_grad()
def _validation_pictures(
    pipe: CCDiffPipeline, prepared: PictureSet, bank: ReferenceBank, recipe: Recipe, path: Path, count: int = 16
) -> None:
    """Pictures of ``count`` validation layouts with their boxes, real above synthetic; the same layouts and noise every time."""
    pool = prepared.split("val") or prepared.split("train")
    chosen = [pool[i] for i in np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int)]
    style = recipe.caption_style
    scenes = [s if style == "stored" else s.replace(caption=caption_of(s, style=style)) for s in chosen]
    training_schedule = pipe.scheduler
    pipe.set_progress_bar_config(disable=True)
    modes = [(m, m.training) for m in (pipe.unet, pipe.resampler)]
    for module, _ in modes:
        module.eval()
    _set_schedule(pipe, recipe, training=False)
    images = pipe(
        scenes,
        references=[bank.choose(scene, seed=k, top_k=recipe.denoiser.top_k) for k, scene in enumerate(scenes)],
        generator=[torch.Generator().manual_seed(seed_of(recipe.seed, "validation", k)) for k in range(len(scenes))],
    ).images
    pipe.register_modules(scheduler=training_schedule)
    for module, mode in modes:
        module.train(mode)
    from PIL import Image

    tiles = []
    for scene, image in zip(scenes, images, strict=True):
        real = Image.fromarray(load_pixels(scene))
        tiles += [real, draw_scene(image, scene), image]
    sheet = contact_sheet(tiles, columns=12)
    with atomic_write(path) as stream:
        sheet.save(stream, format="PNG")
