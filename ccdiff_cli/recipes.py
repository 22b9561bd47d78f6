"""Recipes: what a generator is made of and how it is trained, as typed objects read from commented YAML.

A recipe fails when it is loaded, with the file, the key and the fix, never an hour into training.  ``recipes/tiny.yaml`` and
``recipes/ccdiffpp-sd14-dior.yaml`` show every key.  A part with a ``source`` (a diffusers / transformers folder or hub name)
is loaded and stays frozen; a part without one is built small from the sizes given here and trained by us.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from .errors import CCDiffError
from .files import is_file
from .settings import read_yaml


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageConfig(_Part):
    """One stage of gradient descent (AdamW, betas 0.9 / 0.999)."""

    steps: int = Field(gt=0, description="optimizer steps")
    batch_size: int = Field(gt=0, description="pictures per process and forward pass")
    accumulation: int = Field(1, gt=0, description="forward passes per optimizer step")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="after warm-up: constant, cosine to a twentieth, or constant and linear to 0 over the last 30 %"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0: none")
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints that training resumes from")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: automatic mixed precision")


class AutoencoderConfig(_Part):
    """The latent autoencoder: a diffusers ``AutoencoderKL`` or ``AutoencoderTiny`` from a source, or our own ``TinyAutoencoder``."""

    source: str | None = Field(
        None, description="folder or hub name of an AutoencoderKL or AutoencoderTiny; tiny: the shipped model's; none: our own, trained"
    )
    subfolder: str | None = Field(None, description="sub-folder of the source that holds it")
    teacher: str | None = Field(
        None, description="folder or hub name of an AutoencoderTiny of as many channels that our own learns to copy; none: pictures alone"
    )
    pictures: tuple[str, ...] = Field(
        (), description="folders of pictures without labels that our own is trained on, too; copies of val and test pictures are left out"
    )
    width: int = Field(64, gt=0, description="channels of every layer of our own")
    latent_channels: int = Field(16, gt=0, description="channels of the latent")
    whitening: float = Field(1.0, ge=0, le=1, description="1: every channel of the latent has the same deviation; 0: their own ratio")
    crop: int = Field(64, gt=0, description="side of the random training crops, pixels")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the encoding of the training pictures")
    latent_noise: float = Field(
        0.0, ge=0, description="deviation of the noise on the latents that our own decoder is trained on: it learns to forgive the denoiser"
    )
    train: StageConfig | None = Field(None, description="required without a source")


class EncodersConfig(_Part):
    """Text encoder (``CLIPTextModel``) and image encoder of the reference pictures (``Dinov2Model``)."""

    text_source: str | None = Field(None, description="folder or hub name with tokenizer and text encoder; none: our own")
    text_subfolder: str | None = Field(None, description="sub-folder of the text encoder (the tokenizer's is `tokenizer`)")
    image_source: str | None = Field(None, description="folder or hub name of a Dinov2Model; none: our own")
    text_width: int = Field(96, gt=0, description="width of our text encoder")
    text_layers: int = Field(2, gt=0, description="layers of our text encoder")
    max_words: int = Field(64, gt=1, description="longest caption in words, our text encoder")
    image_width: int = Field(96, gt=0, description="width of our image encoder")
    image_layers: int = Field(3, gt=0, description="layers of our image encoder")
    image_patch: int = Field(8, gt=0, description="side of a patch, pixels, our image encoder")
    image_size: int = Field(48, gt=0, description="side the references are resized to, pixels, our image encoder")
    train: StageConfig | None = Field(None, description="required when text or image encoder is our own (contrastive training)")


class UNetConfig(_Part):
    """The denoiser (diffusers ``UNet2DConditionModel``)."""

    source: str | None = Field(None, description="folder or hub name; none: our own, trained from scratch")
    subfolder: str | None = Field(None, description="sub-folder of the source")
    channels: tuple[int, ...] = Field((64, 128, 160), description="channels per resolution")
    attention: tuple[bool, ...] | None = Field(None, description="whether a resolution has attention; none: all have")
    layers_per_block: int = Field(1, gt=0, description="residual blocks per resolution")
    heads: int = Field(4, gt=0, description="attention heads")
    train_all: bool = Field(True, description="train the whole UNet; false: only the conditioning, as published")


class ResamplerConfig(_Part):
    """Co-Resampler (CC-Diff++) or Dual Resampler (CC-Diff)."""

    width: int = Field(1280, gt=0, description="inner width")
    depth: int = Field(4, gt=0, description="layers")
    head_width: int = Field(64, gt=0, description="width of an attention head")
    heads: int = Field(16, gt=0, description="attention heads")
    queries: int = Field(8, gt=0, description="learned queries of each group")
    ff_mult: int = Field(4, gt=0, description="width of the feed-forward layers over the inner width")


class ConditioningRecipe(_Part):
    """The conditional generation module."""

    variant: Literal["ccdiff++", "ccdiff"] = Field("ccdiff++", description="CC-Diff++ (2025) or its predecessor")
    places: tuple[str, ...] = Field(("mid_block", "up_blocks.1"), description="parts of the UNet whose cross-attention gets the module")
    gate: Literal["hbb", "obb"] = Field("hbb", description="soft ellipse inscribed in the HBB (as published) or in the OBB")
    gate_centred: bool = Field(False, description="sample the ellipse at the cells' centres; as published: at their corners")
    gate_min_cells: float = Field(0.0, ge=0, description="widen ellipses to so many latent cells, for small objects")
    point_width: int = Field(512, gt=0, description="hidden width of the PointNet of the box corners (512 as published)")


class DropoutConfig(_Part):
    """Probabilities, per picture and step, of training without some condition; guidance needs the first."""

    everything: float = Field(0.1, ge=0, le=1, description="no caption and no layout: the unconditional branch")
    references: float = Field(0.1, ge=0, le=1, description="no reference pictures: synthesis works without a bank")


class DenoiserConfig(_Part):
    """Training of the denoiser."""

    train: StageConfig
    prediction: Literal["epsilon", "v_prediction"] = Field("epsilon", description="what the UNet predicts")
    snr_gamma: float = Field(0.0, ge=0, description="min-SNR loss weighting (5 is usual); 0: none, as published")
    symmetries: Literal[1, 2, 4, 8] = Field(
        8, description="how many of the 8 flips and quarter turns of a picture to train on; 1 as published"
    )
    balance: float = Field(
        0.0, ge=0, le=1, description="pictures of classes seen in less than this share of the set are repeated; 0: never, as published"
    )
    object_weight: float = Field(1.0, gt=0, description="loss of a cell that objects cover over that of one they do not; 1 as published")
    objects_at_once: int = Field(
        4000, gt=0, description="a batch with more objects is worked off in pieces (a picture is never divided): bounds the memory"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    dropout: DropoutConfig = DropoutConfig()
    top_k: int = Field(8, gt=0, description="references are drawn from the k best; 1: always the best, as published")
    sample_every: int = Field(1000, gt=0, description="steps between validation pictures")


class SamplingConfig(_Part):
    """How `ccdiff synthesize` samples from the generator unless told otherwise."""

    scheduler: Literal["dpmsolver++", "euler"] = Field("dpmsolver++", description="DPM-Solver++ 2M, or Euler as published")
    steps: int = Field(20, gt=0, description="denoising steps (50 as published)")
    guidance_scale: float = Field(7.5, ge=1, description="classifier-free guidance; 1: none")
    negative_prompt: str = Field("", description="caption of the unconditional branch")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the generator's arithmetic")
    channels_last: bool = Field(False, description="the memory layout that GPUs like better")
    compile: bool = Field(False, description="compile the repeated blocks of the denoiser: minutes at the start, then faster")


class Recipe(_Part):
    """Everything that makes a generator, but the data."""

    name: str
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**31)
    picture_size: int = Field(gt=0, description="side of the pictures, pixels; the prepared set must have it")
    caption_style: Literal["plain", "short", "stored"] = Field(
        "plain", description="how scenes are put into words; stored: the captions of the prepared set"
    )
    retrieval: str = Field(
        "words",
        min_length=1,
        description="how backgrounds are found: by the words of captions, by our own encoders, or by a CLIP (folder or hub name)",
    )
    autoencoder: AutoencoderConfig
    encoders: EncodersConfig
    unet: UNetConfig
    resampler: ResamplerConfig = ResamplerConfig()
    conditioning: ConditioningRecipe = ConditioningRecipe()
    denoiser: DenoiserConfig
    sampling: SamplingConfig = SamplingConfig()

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.retrieval == "words":  # generators made before the key was there have the same identity as now
            del values["retrieval"]
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.autoencoder.source is None and self.autoencoder.train is None:
            raise ValueError("autoencoder: give `source`, or `train` to train our own")
        own = self.encoders.text_source is None or self.encoders.image_source is None
        if own and self.encoders.train is None:
            raise ValueError("encoders: give both sources, or `train` to train our own")
        if self.unet.source is None and not self.unet.train_all:
            raise ValueError("unet.train_all: an own UNet has random weights, it must be trained: set it to true")
        if self.unet.attention is not None and len(self.unet.attention) != len(self.unet.channels):
            raise ValueError(f"unet.attention: {len(self.unet.attention)} values for {len(self.unet.channels)} resolutions")
        if self.caption_style == "stored" and self.denoiser.symmetries > 1:
            raise ValueError("denoiser.symmetries: stored captions name positions that a flip would make wrong: set it to 1")
        if self.unet.source is None and self.encoders.text_source is None and self.encoders.text_width % 8:
            raise ValueError("encoders.text_width: must be a multiple of 8")
        return self


def recipe_folders() -> list[Path]:
    """Where recipes are looked for by name: the checkout, the installed copy.  NOTE: never the current folder, which may be anybody's."""
    here = Path(__file__).resolve().parent
    return [here.parent / "recipes", Path(sys.prefix) / "share" / "ccdiff" / "recipes"]


def find_recipe(name: str | Path, *, experiment: bool = False) -> Path:
    """The file of a recipe given by path (with a separator, or ending in .yaml) or by the name of a shipped one ("tiny").

    An ``experiment`` is a recipe of ``eval-trainability``.

    Raises:
        CCDiffError: there is none; lists the known names.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) != 1 or any(s in str(name) for s in (os.sep, os.altsep) if s):
        if is_file(path):
            return path
        raise CCDiffError("no such recipe file", where=path, fix=_known(experiment))
    for folder in recipe_folders():
        if is_file(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    near = next((p for p in (Path("recipes") / f"{name}.yaml", Path(f"{name}.yaml"), path) if is_file(p)), None)
    there = f"./{near} is a file of the current folder: name it by its path, --recipe ./{near}; " if near is not None else ""
    raise CCDiffError(f"no recipe named {str(name)!r} is shipped", fix=there + _known(experiment))


def _known(experiment: bool) -> str:
    names = sorted({p.stem for folder in recipe_folders() if folder.is_dir() for p in folder.glob("*.yaml")})
    names = [name for name in names if name.startswith("trainability-") == experiment]
    return f"known recipes: {', '.join(names)}; or give the path of a .yaml file" if names else "give the path of a .yaml file"


def load_recipe(name: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        name: a path, or the name of a shipped recipe: see :func:`find_recipe`.
        overrides: dotted keys that replace values ("denoiser.train.steps": 4).

    Raises:
        CCDiffError: not YAML, unknown or missing keys, values out of range: with file, key, found and expected.
    """
    path = find_recipe(name)
    values = read_yaml(path, "the recipe")
    if not isinstance(values, dict):
        raise CCDiffError(f"a recipe is a mapping of keys, found {type(values).__name__}", where=path)
    for key, value in (overrides or {}).items():
        _set(values, key, value, path)
    return recipe_of(values, where=path)


def _set(values: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        node = values.setdefault(key, {})
        if not isinstance(node, dict):
            raise CCDiffError(f"{dotted}: {key} is not a group of keys", where=path)
        values = node
    values[last] = value


def recipe_of(values: dict[str, Any], *, where: str | Path) -> Recipe:
    """A recipe from its dictionary; raises CCDiffError naming the key."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        found = "" if first["type"] == "missing" else f" (found {first['input']!r:.80})"
        more = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
        message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        fix = f"keys known there: {', '.join(_fields(first['loc']))}" if first["type"] == "extra_forbidden" else None
        raise CCDiffError(f"{key}: {message}{found}{more}", where=where, fix=fix or "see the comments in recipes/tiny.yaml") from error


def _fields(location: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)
