"""What a recipe says, as typed objects: the sections that methods share.  ``recipes`` finds and reads the files.

A part with a ``source`` (a diffusers / transformers folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub) is loaded and stays frozen
(but for the denoiser, and the autoencoder's decoder where there is a section ``decoder``); a part without one is built small from the sizes
given here and trained by us.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from typing_extensions import Self

from ..generator import IN_PIPELINE

DEFAULT_METHOD = "ccdiff++"
"""Of recipes that do not say."""


MOST_STEPS, MOST_WIDTH = 10**9, 16_384
"""Bounds far beyond what anybody trains: a number above them is a slip of the hand, which would only end in an error of memory later."""
Channels = Annotated[int, Field(gt=0, le=MOST_WIDTH)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Grown(Section):
    """A section that got keys later: they are left out of what is written as long as nobody sets them, so that generators made before have
    the same identity as now."""

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._without_later(dump(self))

    def _without_later(self, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in self.LATER or value != type(self).model_fields[key].default}


VARIANT = "of the weights' files: fp16 for those with .fp16. in their names; none: those without, or the only ones there"


class StageConfig(Grown):
    """One stage of gradient descent (AdamW, betas 0.9 / 0.999), as long as ``steps`` or ``epochs`` say."""

    LATER = ("epochs", "optimizer")

    steps: int = Field(0, ge=0, le=MOST_STEPS, description="optimizer steps; or give `epochs`")
    epochs: float = Field(
        0.0, ge=0, le=MOST_STEPS, description="how often every training picture is seen, by all processes together; in place of `steps`"
    )
    batch_size: int = Field(gt=0, le=65_536, description="pictures per process and forward pass")
    accumulation: int = Field(1, gt=0, le=65_536, description="forward passes per optimizer step")
    learning_rate: float = Field(1e-4, gt=0, le=10, description="peak learning rate")
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS, description="steps of linear warm-up from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="after warm-up: constant, cosine to a twentieth, or constant and linear to 0 over the last 30 %"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit: AdamW with moments of 8 bits, a quarter of its memory (extra `8bit`: bitsandbytes)"
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW weight decay")
    gradient_clip: float = Field(1.0, gt=0, le=1e9, description="largest norm of the gradient")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0: none")
    checkpoint_every: int = Field(500, gt=0, le=MOST_STEPS, description="steps between checkpoints that training resumes from")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="bfloat16, float16 (with scaled gradients, for GPUs that lack bfloat16): automatic mixed precision"
    )

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError("give either `steps` or `epochs`, above 0")
        return self

    def pictures(self, processes: int) -> int:
        """Pictures of one optimizer step."""
        return self.batch_size * self.accumulation * processes


class AutoencoderConfig(Grown):
    """The latent autoencoder: a diffusers ``AutoencoderKL`` or ``AutoencoderTiny`` from a source, or our own ``TinyAutoencoder``."""

    LATER = ("variant",)

    source: str | None = Field(
        None, description="folder or hub name of an AutoencoderKL or AutoencoderTiny; tiny: the shipped model's; none: our own, trained"
    )
    subfolder: str | None = Field(None, description="sub-folder of the source that holds it")
    variant: str | None = Field(None, description=VARIANT)
    teacher: str | None = Field(
        None, description="folder or hub name of an AutoencoderTiny of as many channels that our own learns to copy; none: pictures alone"
    )
    pictures: tuple[str, ...] = Field(
        (), description="folders of pictures without labels that our own is trained on, too; copies of val and test pictures are left out"
    )
    width: int = Field(64, gt=0, le=MOST_WIDTH, description="channels of every layer of our own")
    latent_channels: int = Field(16, gt=0, le=1024, description="channels of the latent")
    whitening: float = Field(1.0, ge=0, le=1, description="1: every channel of the latent has the same deviation; 0: their own ratio")
    crop: int = Field(64, gt=0, le=8192, description="side of the random training crops, pixels")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the encoding of the training pictures")
    latent_noise: float = Field(
        0.0,
        ge=0,
        le=100,
        description="deviation of the noise on the latents that our own decoder is trained on: it learns to forgive the denoiser",
    )
    train: StageConfig | None = Field(None, description="required without a source")


class EncodersConfig(Grown):
    """Text encoder (``CLIPTextModel``) and image encoder of the reference pictures (``Dinov2Model``)."""

    LATER = ("text_variant", "image_variant")

    text_source: str | None = Field(None, description="folder or hub name with tokenizer and text encoder; none: our own")
    text_subfolder: str | None = Field(None, description="sub-folder of the text encoder (the tokenizer's is `tokenizer`)")
    text_variant: str | None = Field(None, description=VARIANT)
    image_source: str | None = Field(None, description="folder or hub name of a Dinov2Model; none: our own")
    image_variant: str | None = Field(None, description=VARIANT)
    text_width: int = Field(96, gt=0, le=MOST_WIDTH, description="width of our text encoder")
    text_layers: int = Field(2, gt=0, le=200, description="layers of our text encoder")
    max_words: int = Field(64, gt=1, le=4096, description="longest caption in words, our text encoder")
    image_width: int = Field(96, gt=0, le=MOST_WIDTH, description="width of our image encoder")
    image_layers: int = Field(3, gt=0, le=200, description="layers of our image encoder")
    image_patch: int = Field(8, gt=0, le=1024, description="side of a patch, pixels, our image encoder")
    image_size: int = Field(48, gt=0, le=4096, description="side the references are resized to, pixels, our image encoder")
    train: StageConfig | None = Field(None, description="required when text or image encoder is our own (contrastive training)")


class UNetConfig(Grown):
    """The denoiser (diffusers ``UNet2DConditionModel``)."""

    LATER = ("variant", "lora")

    source: str | None = Field(None, description="folder or hub name; none: our own, trained from scratch")
    subfolder: str | None = Field(None, description="sub-folder of the source")
    variant: str | None = Field(None, description=VARIANT)
    channels: tuple[Channels, ...] = Field((64, 128, 160), min_length=1, max_length=8, description="channels per resolution")
    attention: tuple[bool, ...] | None = Field(None, max_length=8, description="whether a resolution has attention; none: all have")
    layers_per_block: int = Field(1, gt=0, le=32, description="residual blocks per resolution")
    heads: int = Field(4, gt=0, le=256, description="attention heads")
    train_all: bool = Field(True, description="train the whole UNet; false: only the conditioning, as published")
    lora: int = Field(
        0,
        ge=0,
        le=1024,
        description="rank of adapters on the attentions of a UNet that is frozen otherwise; 0: none (extra `lora`: peft)",
    )


class DropoutConfig(Section):
    """Probabilities, per picture and step, of training without some condition; guidance needs the first."""

    everything: float = Field(0.1, ge=0, le=1, description="no caption and no layout: the unconditional branch")
    references: float = Field(0.1, ge=0, le=1, description="no reference pictures: synthesis works without a bank")


class DenoiserConfig(Grown):
    """Training of the denoiser."""

    LATER = ("perceptual",)

    train: StageConfig
    prediction: Literal["epsilon", "v_prediction"] = Field("epsilon", description="what the UNet predicts")
    snr_gamma: float = Field(0.0, ge=0, le=1e6, description="min-SNR loss weighting (5 is usual); 0: none, as published")
    symmetries: Literal[1, 2, 4, 8] = Field(
        8, description="how many of the 8 flips and quarter turns of a picture to train on; 1 as published"
    )
    balance: float = Field(
        0.0, ge=0, le=1, description="pictures of classes seen in less than this share of the set are repeated; 0: never, as published"
    )
    object_weight: float = Field(
        1.0, gt=0, le=1e6, description="loss of a cell that objects cover over that of one they do not; 1 as published"
    )
    perceptual: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="weight of what EfficientNet-Lite0 sees in denoised pictures, and of pixels where hardly any noise is left (0.1; extra "
        "`cpu-detector`); 0: none, as published",
    )
    objects_at_once: int = Field(
        4000,
        gt=0,
        le=10**9,
        description="a batch with more objects is worked off in pieces (a picture is never divided): bounds the memory",
    )
    gradient_checkpointing: bool = Field(False, description="less memory, more time; not of the pictures that `perceptual` looks at")
    dropout: DropoutConfig = DropoutConfig()
    top_k: int = Field(8, gt=0, le=10**6, description="references are drawn from the k best; 1: always the best, as published")
    sample_every: int = Field(1000, gt=0, le=MOST_STEPS, description="steps between validation pictures")


class DecoderTraining(StageConfig):
    """What of the decoder's training nobody needs to say.

    NOTE: twice as many steps, the last of them with a rate going down, make a regular pattern on even ground (docs/log.md, 2026-11-28).
    """

    STEPS: ClassVar[int] = 800

    batch_size: int = Field(16, gt=0, le=65_536, description="pictures per process and forward pass")
    learning_rate: float = Field(5e-4, gt=0, le=10, description="peak learning rate")
    warmup_steps: int = Field(50, ge=0, le=MOST_STEPS, description="steps of linear warm-up from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="as of the other stages")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW weight decay")
    gradient_clip: float = Field(5.0, gt=0, le=1e9, description="largest norm of the gradient")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0: none")
    checkpoint_every: int = Field(100, gt=0, le=MOST_STEPS, description="steps between checkpoints that training resumes from")

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, values: Any) -> Any:
        given = isinstance(values, dict) and not {"steps", "epochs"} & values.keys()
        return {"steps": cls.STEPS, **values} if given else values


class DecoderConfig(Section):
    """A last stage: the autoencoder's decoder learns to draw what the finished denoiser hands it."""

    train: DecoderTraining = DecoderTraining()
    drawn: int = Field(
        512,
        ge=0,
        le=10**6,
        description="training layouts whose latents are sampled once, at its start: its judge sees what a synthesis decodes",
    )
    alone: bool = Field(False, description="nothing else is trained: the denoiser is that of `ccdiff train --from`")


class SamplingConfig(Section):
    """How `ccdiff synthesize` samples from the generator unless told otherwise."""

    scheduler: Literal["dpmsolver++", "dpmsolver++-karras", "euler"] = Field(
        "dpmsolver++", description="DPM-Solver++ 2M, the same with the noise levels of Karras et al., or Euler as published"
    )
    steps: int = Field(20, gt=0, le=1000, description="denoising steps (50 as published)")
    guidance_scale: float = Field(7.5, ge=1, le=1000, description="classifier-free guidance; 1: none")
    negative_prompt: str = Field("", description="caption of the unconditional branch")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the generator's arithmetic")
    channels_last: bool = Field(False, description="the memory layout that GPUs like better")
    compile: bool = Field(False, description="compile the repeated blocks of the denoiser: minutes at the start, then faster")

    def in_pipeline(self) -> dict[str, Any]:
        """What a pipeline keeps of it in its configuration."""
        return {name: getattr(self, key) for key, name in IN_PIPELINE.items()}


class Recipe(Grown):
    """Everything that makes a generator, but the data.  A method's recipe is a subclass with a section of its own settings."""

    LATER = ("retrieval", "decoder")

    name: str = Field(max_length=200, description="shown in reports and written into the generator")
    description: str = Field("", max_length=10_000, description="what the recipe makes, in one line")
    seed: int = Field(0, ge=0, lt=2**31, description="of every random draw of the training")
    method: str = Field(DEFAULT_METHOD, description="what the generator is: a name of `methods.METHODS`")
    picture_size: int = Field(gt=0, le=8192, description="side of the pictures, pixels; the prepared set must have it")
    caption_style: Literal["plain", "short", "measured", "phrases", "quadrants", "stored"] = Field(
        "plain", description="how scenes are put into words; stored: the captions of the prepared set"
    )
    retrieval: str = Field(
        "words",
        min_length=1,
        description="how backgrounds are found: by the words of captions, by our own encoders, or by a CLIP (folder or hub name)",
    )
    autoencoder: AutoencoderConfig | None = None
    encoders: EncodersConfig | None = None
    unet: UNetConfig | None = None
    denoiser: DenoiserConfig
    decoder: DecoderConfig | None = Field(
        None, description="a last stage that teaches the autoencoder's decoder on what the denoiser hands it; none: as published"
    )
    sampling: SamplingConfig = SamplingConfig()

    def base(self) -> frozenset[str]:
        """The shared parts that this recipe's generator stands on, of "vae", "text", "image" and "unet"."""
        return frozenset()

    def named(self) -> dict[str, str]:
        """What ``ccdiff.json`` says of the method beside the recipe."""
        return {"method": self.method}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        base = self.base()
        auto, enc, unet = self.autoencoder, self.encoders, self.unet
        for part, key, section in (
            ("vae", "autoencoder", auto),
            ("text", "encoders", enc),
            ("image", "encoders", enc),
            ("unet", "unet", unet),
        ):
            if part in base and section is None:
                raise ValueError(f"{key}: the method {self.method} needs this section")
        if auto is not None and auto.source is None and auto.train is None:
            raise ValueError("autoencoder: give `source`, or `train` to train our own")
        if enc is not None:
            own = ("text" in base and enc.text_source is None) or ("image" in base and enc.image_source is None)
            if own and enc.train is None:
                raise ValueError("encoders: give both sources, or `train` to train our own")
        if unet is not None and unet.source is None and not unet.train_all:
            raise ValueError("unet.train_all: an own UNet has random weights, it must be trained: set it to true")
        if unet is not None and unet.lora and (unet.train_all or "unet" not in base):
            raise ValueError("unet.lora: adapters are for a UNet that is frozen (unet.train_all: false): set it to 0")
        if self.denoiser.perceptual and "vae" not in base:
            raise ValueError(f"denoiser.perceptual: it looks at decoded latents, and {self.method} has none: set it to 0")
        if self.decoder is not None and not {"vae", "unet"} <= base:
            raise ValueError(f"decoder: it draws the latents of a UNet, and {self.method} has none: leave it out")
        if unet is not None and unet.attention is not None and len(unet.attention) != len(unet.channels):
            raise ValueError(f"unet.attention: {len(unet.attention)} values for {len(unet.channels)} resolutions")
        if self.caption_style == "stored" and self.denoiser.symmetries > 1:
            raise ValueError("denoiser.symmetries: stored captions name positions that a flip would make wrong: set it to 1")
        if unet is not None and unet.source is None and enc is not None and enc.text_source is None and enc.text_width % 8:
            raise ValueError("encoders.text_width: must be a multiple of 8")
        return self


def in_steps(section: Section, pictures: int, processes: int) -> Any:
    """A recipe, or a section of one, with every length in steps.

    Args:
        pictures: training pictures of the set; ``processes``: that train together, each with batches of its own.
    """
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section) and (found := in_steps(value, pictures, processes)) is not value:
            changed[name] = found
    if isinstance(section, StageConfig) and section.epochs:
        changed = {"steps": math.ceil(section.epochs * pictures / section.pictures(processes)), "epochs": 0.0}
    return section.model_copy(update=changed) if changed else section


class LatentRecipe(Recipe):
    """The recipe of a method that denoises latents under a text, as Stable Diffusion does: autoencoder, text encoder and UNet."""

    autoencoder: AutoencoderConfig
    encoders: EncodersConfig
    unet: UNetConfig

    def base(self) -> frozenset[str]:
        return frozenset({"vae", "text", "unet"})
