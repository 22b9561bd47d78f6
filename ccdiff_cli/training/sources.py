"""The parts that a recipe takes from elsewhere, looked at all before one is loaded or anything is trained.

Notable here: that each part is whole (``sources``) is not enough.  A UNet of Stable Diffusion XL or of inpainting, the texts of
Stable Diffusion 2 under the UNet of 1, a frozen UNet that predicts velocities under a recipe of noise: all would train, to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Dinov2Model,
)

from ..errors import CCDiffError
from ..files import read_json
from ..generator import GENERATOR_FILE, SHIPPED, shipped_generator
from ..methods import method_named
from ..methods.method import REFERENCES
from ..models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ..pretrained import PROCESSOR_FILES, SPARE_OF_CLIP, WHOLE_CLIP
from ..references import WORDS
from ..retrieval import OWN
from ..sources import Found, Place, Source, check_files, check_model, open_place, read_settings

log = logging.getLogger(__name__)

BASES = "Stable Diffusion 1.4, 1.5, 2.1 or a fine-tune of one of them"
VAE = f"the autoencoder of {BASES}, or an AutoencoderTiny"
TEXT = f"the CLIP text encoder of {BASES}"
TOKENIZER = f"the tokenizer of {BASES}"
IMAGE = "a DINOv2 without registers, as facebook/dinov2-large"
UNET = f"the UNet of {BASES}"

_AUTOENCODERS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, TinyAutoencoder, PatchAutoencoder)}
_TEACHERS = {kind.__name__: kind for kind in (AutoencoderTiny, TinyAutoencoder)}
_TEXTS = {"clip_text_model": CLIPTextModel, "clip": CLIPTextModel}
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_CHANNELS = {
    9: "an inpainting UNet",
    8: "a UNet that edits pictures (InstructPix2Pix)",
    7: "a UNet that enlarges pictures",
    5: "a UNet of depth maps",
}
_XL_SCALE = 0.13025
"""Of the latents of Stable Diffusion XL: its autoencoder has the form of the earlier ones, and other latents."""


def autoencoder_without_weights(folder: Path) -> Any:
    """The autoencoder that a folder's ``config.json`` describes; its weights are not read."""
    config = read_json(folder / "config.json")
    return _AUTOENCODERS[config["_class_name"]].from_config(config)


class Sources(dict[str, Found]):
    """Part -> where it is and that it fits; places that several parts lie in are opened once."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, Place] = {}

    def place(self, source: Source) -> Place:
        if source.name not in self._places:
            self._places[source.name] = open_place(source)
        return self._places[source.name]

    def model(self, part: str, kinds: Mapping[str, Any], source: Source, fits: str, **more: Any) -> None:
        self[part] = check_model(kinds, source, fits=fits, place=self.place(source), **more)

    def files(self, part: str, kind: Any, source: Source, needed: Sequence[Sequence[str]], fits: str) -> None:
        self[part] = check_files(kind, source, needed, fits=fits, place=self.place(source))


def check_sources(recipe: Any, *, start: str | Path | None = None, transplanted: bool = False) -> Sources:
    """Everything that a recipe takes from elsewhere, whole and fitting together.

    Args:
        start: the generator that the training goes on from, which has its own autoencoder and encoders; ``transplanted``: only the latter
            are taken.

    Raises:
        CCDiffError: with the recipe's key, the folder, what was found there and what fits.
    """
    found, needs = Sources(), recipe.base()
    auto, enc, unet = recipe.autoencoder, recipe.encoders, recipe.unet
    if not start or transplanted:
        if "vae" in needs and auto.source:
            found.model("vae", _AUTOENCODERS, _source(auto.source, "autoencoder.source", auto.subfolder, "vae", auto.variant), VAE)
        elif "vae" in needs and auto.teacher:
            found.model("teacher", _TEACHERS, _source(auto.teacher, "autoencoder.teacher", None, "vae"), "an AutoencoderTiny")
            _check_teacher(found["teacher"], auto.latent_channels)
        if "unet" in needs and unet.source:
            source = _source(unet.source, "unet.source", unet.subfolder, "unet", unet.variant)
            own = GENERATOR_FILE in found.place(source).names("")
            found.model("unet", {"UNet2DConditionModel": UNet2DConditionModel}, source, UNET, own=own)
    if not start:
        if "text" in needs and enc.text_source:
            _check_text(found, enc)
        if "image" in needs and enc.image_source:
            source = _source(enc.image_source, "encoders.image_source", None, "image_encoder", enc.image_variant)
            found.model("image_encoder", {"dinov2": Dinov2Model}, source, IMAGE)
            source = _source(enc.image_source, "encoders.image_source", None, "feature_extractor")
            found.files("feature_extractor", AutoImageProcessor, source, PROCESSOR_FILES, IMAGE)
        method = method_named(recipe.method)
        for key, name in method.clips(recipe).items():
            found.model(key, {"clip": CLIPTextModelWithProjection}, _source(name, key), WHOLE_CLIP, spare=SPARE_OF_CLIP)
    if REFERENCES in method_named(recipe.method).takes and recipe.retrieval not in (WORDS, OWN):
        source = _source(recipe.retrieval, "retrieval")
        found.model("retrieval", {"clip": CLIPModel}, source, WHOLE_CLIP)
        found.files("retrieval's processor", CLIPProcessor, source, PROCESSOR_FILES, WHOLE_CLIP)
    _check_together(found, recipe, Path(start) if start else None)
    return found


def _source(name: str, key: str, subfolder: str | None = None, part: str | None = None, variant: str | None = None) -> Source:
    """Where a key's part lies; ``tiny`` is the shipped generator."""
    where, choice = f"recipe key {key}", f"{key.removesuffix('source')}variant"
    if name == SHIPPED:
        return Source(str(shipped_generator()), where, part)
    return Source(name, where, subfolder, variant, choice if key.endswith("source") and part else None)


def _check_teacher(teacher: Found, channels: int) -> None:
    if (taught := teacher.config.get("latent_channels", 4)) != channels:
        raise CCDiffError(
            f"{teacher.place.shown}: the teacher has {taught} channels, expected {channels}",
            where=teacher.source.where,
            fix="set autoencoder.latent_channels to the teacher's, or name another teacher",
        )


def _check_text(found: Sources, enc: Any) -> None:
    """Tokenizer and text encoder, and that they are of one vocabulary."""
    source = _source(enc.text_source, "encoders.text_source", enc.text_subfolder, "text_encoder", enc.text_variant)
    found.model("text_encoder", _TEXTS, source, TEXT, spare=SPARE_OF_CLIP)
    source = _source(enc.text_source, "encoders.text_source", "tokenizer" if enc.text_subfolder else None, "tokenizer")
    found.files("tokenizer", AutoTokenizer, source, _TOKENIZER_FILES, f"{TOKENIZER}, beside the text encoder")
    words, known = len(found["tokenizer"].load()), found["text_encoder"].config["vocab_size"]
    if words > known:
        raise CCDiffError(
            f"{source.name}: the tokenizer knows {words:,} pieces of words, the text encoder {known:,}",
            where=source.where,
            fix="take tokenizer and text encoder of one model",
        )


def _check_together(found: Sources, recipe: Any, start: Path | None) -> None:
    """Whether a UNet from elsewhere belongs to what it is given."""
    if "unet" not in found:
        return
    unet = found["unet"]
    config, where = unet.config, unet.source.where
    shown = f"{unet.place.shown}/{unet.source.subfolder or ''}".rstrip("/")

    def wrong(what: str, fix: str = f"give {UNET}") -> CCDiffError:
        return CCDiffError(f"{shown}: {what}", where=where, fix=fix)

    if config.get("addition_embed_type") or config.get("encoder_hid_dim_type"):
        model = "Stable Diffusion XL" if config.get("addition_embed_type") == "text_time" else "another model than Stable Diffusion 1 or 2"
        raise wrong(f"the UNet of {model}, which is given more than latents and texts")
    auto, enc = recipe.autoencoder, recipe.encoders
    channels = found["vae"].config.get("latent_channels", 4) if "vae" in found else auto.latent_channels
    taken = config.get("in_channels", 4)
    if taken != channels:
        model = f"{_CHANNELS[taken]}: it" if taken in _CHANNELS and channels == 4 else "the UNet"
        raise wrong(f"{model} takes {taken} channels, the autoencoder gives {channels}")
    text = read_json(start / "text_encoder" / "config.json") if start else found["text_encoder"].config if "text_encoder" in found else {}
    width, wanted = text.get("hidden_size", enc.text_width), config.get("cross_attention_dim", 1280)
    if width != wanted:
        raise wrong(
            f"the UNet takes texts of width {wanted}{_of(wanted)}, the text encoder gives {width}{_of(width)}",
            "take autoencoder, text encoder and UNet of one model: --base FOLDER sets all three",
        )
    if "vae" in found and abs(found["vae"].config.get("scaling_factor", 0.18215) - _XL_SCALE) < 1e-5:
        raise CCDiffError(
            f"{found['vae'].place.shown}: the autoencoder of Stable Diffusion XL, whose latents the UNet does not know",
            where=found["vae"].source.where,
            fix="take autoencoder, text encoder and UNet of one model: --base FOLDER sets all three",
        )
    _check_prediction(unet, recipe)


def _of(width: int) -> str:
    models = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
    return f" ({models[width]})" if width in models else ""


def _check_prediction(unet: Found, recipe: Any) -> None:
    """Whether the recipe trains for what the UNet predicts; a UNet that is trained whole may learn the other."""
    name = "scheduler/scheduler_config.json"
    if "scheduler/" not in unet.place.names("") or "scheduler_config.json" not in unet.place.names("scheduler"):
        return
    predicts = read_settings(unet.place, name).get("prediction_type", "epsilon")
    ours = recipe.denoiser.prediction
    if predicts == ours:
        return
    what = f"{unet.place.shown}: the UNet predicts {predicts!r} (its scheduler says so), the recipe trains it for {ours!r}"
    if recipe.unet.train_all:
        log.warning("%s: it has that to learn first", what)
        return
    raise CCDiffError(what, where=unet.source.where, fix=f"set denoiser.prediction to {predicts}")
