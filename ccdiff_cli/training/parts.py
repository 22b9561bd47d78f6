"""The parts of a generator as a recipe describes them: shared ones loaded or trained, the method's own built on them.

Notable: weights are drawn in one order under one seed (the plain UNet, then the method's own parts), so a recipe makes the same generator
whatever was loaded or trained before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import BitImageProcessor, CLIPTextModel, Dinov2Model

from ..dataset import PictureSet
from ..errors import CCDiffError
from ..files import content_key
from ..generator import SHIPPED, generator_key, shipped_generator
from ..methods import Base, Method
from ..methods.recipe import AutoencoderConfig, UNetConfig
from ..models.autoencoder import SCALES, TinyAutoencoder, encoder_weights
from ..models.pipeline import ScenePipeline
from ..prepare.captions import caption_of
from ..references import ReferenceBank
from ..scene import SYMMETRIES, Scene, symmetric_scene
from ..sources import Found
from ..threads import Threads
from .autoencoder import load_pixels, normalise_latents, train_autoencoder
from .encoders import resize_pixels, train_encoders
from .loop import Progress, Run, seed_of
from .sources import Sources
from .transplant import transplant
from .vocabulary import extend_vocabulary, is_word_level, known_words, words_of


@dataclass(frozen=True)
class Work:
    """One training: what every step of it needs.

    Attributes:
        scenes: of the train split; ``folder``: where the state of the training lies.
        sources: of the parts that are loaded.
        write: ``write(name, value, step)`` of a figure, for TensorBoard.
        threads: of the stages.
    """

    recipe: Any
    method: Method
    sources: Sources
    prepared: PictureSet
    scenes: Sequence[Scene]
    bank: ReferenceBank
    folder: Path
    accelerator: Accelerator
    progress: Progress | None
    write: Callable[[str, float, int], None]
    threads: Threads

    def run(self, stage: str, key: Any) -> Run:
        """Where and as what a stage runs."""
        return Run(self.folder / stage, self.accelerator, self.recipe.seed, key, self.progress, self.write, self.threads)


def build(work: Work, given: ScenePipeline | None = None) -> tuple[ScenePipeline, str, str]:
    """The pipeline of a recipe, its own parts untrained (encoders: those of ``given``); with the keys of what cached features depend on."""
    recipe, needs = work.recipe, work.recipe.base()
    parts: dict[str, Any] = {}
    autoencoder_key = content_key(["pixels", recipe.picture_size])
    encoders_key = content_key(["no encoders"])
    if "vae" in needs:
        parts["vae"], autoencoder_key = _autoencoder(work)
    if needs & {"text", "image"}:
        found, encoders_key = _encoders(work, needs, given)
        parts |= found
    side, channels = recipe.picture_size, 3
    if "vae" in parts:
        side, channels = side // 2 ** (len(parts["vae"].config.block_out_channels) - 1), parts["vae"].config.latent_channels
    widths = [parts[name].config.hidden_size if name in parts else 0 for name in ("text_encoder", "image_encoder")]
    torch.manual_seed(seed_of(recipe.seed, "denoiser", "weights"))
    if "unet" in needs:
        given_unet = work.sources.get("unet")
        parts["unet"] = given_unet.load() if given_unet else own_unet(recipe.unet, side, channels, widths[0])
    style = recipe.caption_style
    captions = tuple(scene.caption if style == "stored" else caption_of(scene, style=style) for scene in work.scenes)
    base = Base(recipe, tuple(work.prepared.classes), captions, side, channels, widths[0], widths[1], parts)
    components = {**parts, **work.method.build(base)}
    if (schedule := work.method.schedule(recipe, True)) is not None:
        components["scheduler"] = schedule
    make: Any = work.method.pipeline()
    pipe: ScenePipeline = make(**components, **recipe.sampling.in_pipeline(), **work.method.options(recipe))
    return pipe, autoencoder_key, encoders_key


def _autoencoder(work: Work) -> tuple[Any, str]:
    """The recipe's autoencoder, loaded or trained, and the key of what it depends on."""
    recipe, prepared, auto, device = work.recipe, work.prepared, work.recipe.autoencoder, work.accelerator.device
    key = content_key(["autoencoder", auto.model_dump(mode="json"), recipe.seed, prepared.key(), *_shipped(auto.source)])
    if auto.source:
        shown = work.scenes if recipe.unet is None or recipe.unet.source is None else ()  # the latents of a given UNet are what they are
        return _load_autoencoder(work.sources["vae"], auto, device, shown), key
    teacher = _teacher(work.sources["teacher"], auto, device, work.scenes) if auto.teacher else None
    held_out = [scene for scene in prepared.scenes if scene.split != "train"]
    vae = train_autoencoder(work.scenes, auto, work.run("autoencoder", key), teacher=teacher, held_out=held_out)
    return vae, key


def _encoders(work: Work, needs: frozenset[str], given: Any = None) -> tuple[dict[str, Any], str]:
    """Tokenizer and text encoder, image processor and image encoder, as far as they are needed, and the key of what they depend on."""
    recipe, enc = work.recipe, work.recipe.encoders
    data = None if enc.text_source else work.prepared.key()
    key = content_key(["encoders", enc.model_dump(mode="json"), recipe.seed, recipe.caption_style, data, *_shipped(enc.text_source)])
    names = [("tokenizer", "text"), ("text_encoder", "text"), ("feature_extractor", "image"), ("image_encoder", "image")]
    parts: dict[str, Any] = {}
    if given is not None:
        parts = {name: getattr(given, name, None) for name, need in names if need in needs}
        if missing := [name for name, part in parts.items() if part is None]:
            raise CCDiffError(f"the generator to take from has no {missing[0]}", where="--from", fix="take another, or train from scratch")
        return parts, key
    if (enc.text_source is None and "text" in needs) or (enc.image_source is None and "image" in needs):
        parts = dict(zip([name for name, _ in names], _own_encoders(work, key), strict=True))
    parts |= {name: work.sources[name].load() for name, _ in names if name in work.sources}
    if enc.text_source == SHIPPED:
        taught = _Words(parts["tokenizer"], parts["text_encoder"])
        learn_words(taught, work.prepared, work.scenes, recipe)
        parts["tokenizer"] = taught.tokenizer
        key = content_key([key, len(taught.tokenizer)])
    return {name: parts[name] for name, need in names if need in needs}, key


@dataclass
class _Words:
    tokenizer: Any
    text_encoder: Any


def _shipped(source: str | None) -> list[str]:
    """What the shipped generator adds to a key."""
    return [generator_key(shipped_generator())] if source == SHIPPED else []


def own_unet(config: UNetConfig, latent_side: int, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """A plain UNet of a recipe's sizes, for square latents."""
    attention = config.attention or (True,) * len(config.channels)
    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.channels,
        down_block_types=["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attention],
        up_block_types=["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attention)],
        cross_attention_dim=text_width,
        attention_head_dim=config.heads,
        norm_num_groups=min(16, config.channels[0]),
    )


def learn_words(pipe: Any, prepared: PictureSet, scenes: Sequence[Scene], recipe: Any) -> list[str]:
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


def transplanted(pipe: ScenePipeline, given: ScenePipeline) -> dict[str, Any]:
    """Take the inner levels of the UNet and the other trained parts of ``given``; how many tensors were copied, which are new."""
    told = {}
    same_latents = same_latents_of(getattr(pipe, "vae", None), getattr(given, "vae", None))
    for name in pipe.TRAINED:
        mine, theirs = getattr(pipe, name), getattr(given, name, None)
        if theirs is None:
            continue
        levels = [len(part.config.get("block_out_channels", ())) for part in (mine, theirs)]
        names = transplant(mine, theirs, shift=levels[1] - levels[0], same_latents=same_latents)
        told[name] = {"copied": len(names["copied"]), "in part": names["in part"], "new": names["new"]}
    return {"transplant": told}


def same_latents_of(one: Any, other: Any) -> bool:
    """Whether two autoencoders make the same latents of a picture; their decoders may differ."""
    if one is None or other is None or any(one.config.get(key) != other.config.get(key) for key in SCALES):
        return False
    mine, theirs = encoder_weights(one), encoder_weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k].cpu(), theirs[k].cpu()) for k in mine)


def _load_autoencoder(found: Found, auto: AutoencoderConfig, device: torch.device, scenes: Sequence[Scene]) -> Any:
    """An autoencoder from elsewhere; the latents of an ``AutoencoderTiny`` are normalised on ``scenes``, unless there are none."""
    vae = found.load()
    if type(vae) is not AutoencoderTiny:
        return vae
    vae = TinyAutoencoder.of(vae).eval().requires_grad_(False).to(device)
    if scenes:
        normalise_latents(vae, scenes, auto.whitening, device)
    return vae


def _teacher(found: Found, auto: AutoencoderConfig, device: torch.device, scenes: Sequence[Scene]) -> TinyAutoencoder:
    teacher: TinyAutoencoder = _load_autoencoder(found, auto, device, scenes)
    return teacher.eval().requires_grad_(False).to(device)


def _own_encoders(work: Work, key: str) -> tuple[Any, CLIPTextModel, BitImageProcessor, Dinov2Model]:
    recipe, prepared, scenes, enc = work.recipe, work.prepared, work.scenes, work.recipe.encoders
    style = "plain" if recipe.caption_style == "stored" else recipe.caption_style
    captions = [scene.caption if recipe.caption_style == "stored" else caption_of(scene, style=style) for scene in scenes]
    turns = range(0, SYMMETRIES, SYMMETRIES // recipe.denoiser.symmetries)
    texts = [caption_of(symmetric_scene(scene, k), style=style) for scene in scenes for k in turns]
    crops = [
        (resize_pixels(np.asarray(r.image()), enc.image_size), prepared.classes.index(r.category))
        for r in work.bank.candidates()
        if r.kind == "instance"
    ]
    if not crops:
        raise CCDiffError("the set's reference bank has no object crops to train the encoders on", where=prepared.root)
    pictures = [resize_pixels(load_pixels(scene), enc.image_size) for scene in scenes]
    return train_encoders(
        enc, work.run("encoders", key), crops=crops, pictures=pictures, captions=captions, class_names=list(prepared.classes),
        texts=[*captions, *texts, *prepared.classes, recipe.sampling.negative_prompt, *known_words()],
    )  # fmt: skip
