"""What a method says, and nothing else.  Light: a method's ``__init__`` imports no torch; its functions import what they need.

Training, plan, workers, filter, export, evaluation and trainability read these fields and call these functions; none of them
knows which method it serves.  How the condition enters, and what the unconditional branch is, stands in the method's pipeline
(``ScenePipeline.condition`` and ``predict``), which training and sampling share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CCDiffError
from ..files import read_json
from .recipe import Recipe, StageConfig

if TYPE_CHECKING:
    from torch import nn

    from ..models.pipeline import ScenePipeline

CAPTION, CLASS_TEXT, CLASS_INDEX, HBB, OBB = "caption", "class text", "class index", "hbb", "obb"
REFERENCES, METADATA, MASKS = "references", "metadata", "masks"
TAKES = (CAPTION, CLASS_TEXT, CLASS_INDEX, HBB, OBB, REFERENCES, METADATA, MASKS)
"""What a method may take of a scene."""


@dataclass(frozen=True)
class Base:
    """What a method's own parts stand on; also given with every part on torch's meta device, where only sizes are asked for.

    Attributes:
        classes: of the set; ``captions``: of its training pictures, as they are trained on (() where only sizes are asked for).
        latent_side, latent_channels: of the grid that the VAE makes (the picture itself where there is no VAE).
        text_width, image_width: of the encoders' tokens; 0 where there is none.
        parts: the shared parts that ``recipe.base()`` asks for, loaded or trained: "vae", "tokenizer", "text_encoder",
            "feature_extractor", "image_encoder", and "unet", a plain ``UNet2DConditionModel``.  Where only sizes are asked for:
            the UNet, and the text encoder where its configuration is at hand.
    """

    recipe: Any
    classes: tuple[str, ...]
    captions: tuple[str, ...]
    latent_side: int
    latent_channels: int
    text_width: int
    image_width: int
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage of a method's training.

    Attributes:
        name: of its folder under ``G/train``, its seeds and its progress.
        config: its section of the recipe.
        trains: the parameters that it changes; all others are frozen.
        loss: the module that the loop trains: ``module(**batch) -> scalar``, with ``parts(batch)`` where batches may be worked off in
            pieces (see ``training.loop.run_stage``).
        sees: "features": batches of ``training.denoiser.batch_source`` (latents, layout, dropped, empty_tokens); "both": these with their
            "pixels"; "pixels": batches ``{"pixels": (B, 3, H, W) in [-1, 1], "step": number}``, for a tokenizer of pictures, trained
            before features are cached.
        once: passes one picture without objects through what is trained, given the recipe and the parts on torch's meta device: what
            autograd keeps of it is counted.
    """

    name: str
    config: Callable[[Any], StageConfig]
    trains: Callable[[Any, Any], Iterable[nn.Parameter]]
    loss: Callable[[Any, Any], nn.Module]
    sees: Literal["features", "both", "pixels"] = "features"
    once: Callable[[Any, Mapping[str, Any]], Any] = lambda recipe, parts: unet_once(parts)


def unet_once(parts: Mapping[str, Any], **more: Any) -> Any:
    """A pass of the part "unet", as Stable Diffusion's is called, with ``more`` arguments."""
    import torch

    unet = parts["unet"]
    size, config = unet.config.sample_size, unet.config
    context = torch.empty(1, 77, config.cross_attention_dim)
    return unet(torch.empty(1, config.in_channels, size, size), torch.empty(1), context, **more)


def denoiser_stage(
    trains: Callable[[Any, Any], Iterable[nn.Parameter]],
    loss: Callable[[Any, Any], nn.Module] | None = None,
    once: Callable[[Any, Mapping[str, Any]], Any] = lambda recipe, parts: unet_once(parts),
) -> Stage:
    """The stage of a method that denoises, by the recipe's section ``denoiser``; ``loss``: in place of ``loss.DenoiserLoss``."""
    return Stage("denoiser", config=lambda recipe: recipe.denoiser.train, trains=trains, loss=loss or _denoiser_loss, once=once)


def _decoder_loss(pipe: ScenePipeline, recipe: Recipe) -> nn.Module:
    from .decoder import DecoderLoss

    return DecoderLoss(pipe, recipe)


def _decoder_parameters(pipe: Any, recipe: Recipe) -> Iterable[nn.Parameter]:
    from ..models.autoencoder import decoder_parameters

    return decoder_parameters(pipe.vae)


DECODER = Stage(
    "decoder", config=lambda recipe: recipe.decoder.train, trains=_decoder_parameters, loss=_decoder_loss, sees="both",
    once=lambda recipe, parts: None,  # what is looked at is counted by itself
)  # fmt: skip
"""The stage of a recipe's section ``decoder``, whatever its method."""


def _denoiser_loss(pipe: ScenePipeline, recipe: Recipe) -> nn.Module:
    from .loss import DenoiserLoss

    return DenoiserLoss(pipe, recipe)


@dataclass(frozen=True)
class Given:
    """What ``ccdiff import-checkpoint`` was given beside the released checkpoint.

    Attributes:
        stable_diffusion: a Stable Diffusion folder in the diffusers layout; ``image_encoder``: one of an image encoder.
        head_width: of attentions whose weights do not show it.
        classes: names of the checkpoint's classes, in its order, where its weights know them by number alone.
        method: the method as it was asked for; None: it was not.
    """

    stable_diffusion: Path | None = None
    image_encoder: Path | None = None
    head_width: int = 64
    classes: tuple[str, ...] = ()
    method: str | None = None

    def base(self) -> Path:
        """The Stable Diffusion folder.

        Raises:
            CCDiffError: it was not given.
        """
        if self.stable_diffusion is None:
            raise CCDiffError(
                "a Stable Diffusion folder is needed beside the checkpoint",
                where="--stable-diffusion",
                fix="give it in the diffusers layout",
            )
        return self.stable_diffusion


def stable_diffusion_schedule(recipe: Recipe, training: bool) -> Any:
    """The noise schedule of Stable Diffusion 1.x, as a scheduler for training or as the recipe samples."""
    from diffusers import DDPMScheduler, EulerDiscreteScheduler

    schedule: dict[str, Any] = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": recipe.denoiser.prediction,
    }  # fmt: skip
    if training:
        return DDPMScheduler(**schedule, clip_sample=False)
    if recipe.sampling.scheduler == "euler":
        return EulerDiscreteScheduler(**schedule, timestep_spacing="leading", steps_offset=1)
    from ..models.pipeline import SAMPLERS

    kind, own = SAMPLERS[recipe.sampling.scheduler]
    return kind(**schedule, **own)


def _nothing(recipe: Any) -> dict[str, Any]:
    return {}


def _no_clips(recipe: Any) -> dict[str, str]:
    return {}


def _any_number(recipe: Any) -> int | None:
    return None


@dataclass(frozen=True)
class Places:
    """How many objects of a picture a generator has places for.

    Attributes:
        most: more cannot be drawn; None: any number can.
        usual: up to so many, what is drawn is what a generator of the published form draws; more are drawn, too, but as no picture
            that it was trained on unless its set had as many; None: no such number.
        key: the recipe's key that says so.
    """

    most: int | None = None
    usual: int | None = None
    key: str = ""


def places_in(part: str, setting: str, key: str, *, spare: int = 0, bound: bool = True) -> Callable[[Path], Places]:
    """:attr:`Method.places` of a method whose network's configuration holds the number of its slots.

    Args:
        part: the entry of ``unet/config.json`` that holds the settings; "": the configuration itself.
        setting: the number's name there; ``spare``: how many of the slots are not for objects.
        bound: whether more objects than slots cannot be drawn.
    """

    def read(generator: Path) -> Places:
        config = read_json(generator / "unet" / "config.json")
        count = (config.get(part) or {} if part else config).get(setting)
        if not isinstance(count, int):
            return Places()
        return Places(count - spare, key=key) if bound else Places(usual=count - spare, key=key)

    return read


def _no_places(generator: Path) -> Places:
    return Places()


def _none(recipe: Any, parts: Mapping[str, Any]) -> float:
    return 0.0


@dataclass(frozen=True)
class Method:
    """One way to make pictures from scenes.

    Attributes:
        name: its key in ``METHODS``, in recipes and in ``ccdiff.json``; ``title``: its name for people.
        takes: of :data:`TAKES`; what it does not take is neither planned nor encoded.
        recipe: its recipe model.
        pipeline: gives the class of its pipeline.
        build: the components that it makes itself or puts in place of shared ones, with random weights.
        stages: its own stages of training, in order; the last one is said to be the generator's.
        schedule: a diffusers scheduler for training or for sampling (None: it has none).
        options: further arguments of its pipeline, saved with the generator.
        clips: recipe keys that name a CLIP -> the name, beside those that methods share.
        import_checkpoint: ``(released folder or file, generator folder, Given) -> description``; None: nothing was released.
        export_checkpoint: ``(generator folder, folder) -> files written`` in the released form.
        schedulers: names that may stand in place of a generator's own in a synthesis (``ScenePipeline.set_up``).
        published: the published sampling, as arguments of a synthesis; empty: not to be had by arguments alone.
        most_objects: the most objects of a picture that a generator of the recipe takes; None: any number.
        places: the same of a generator's folder, and how many are usual.
        numbers_of_object: how many numbers training keeps of one object, for the estimate of memory.
        licence: of the published weights; ``exact``: relative error of the computation on the golden cases; ``differs``: what differs
            from the released program: for people who compare methods, as the README says it.
    """

    name: str
    title: str
    takes: frozenset[str]
    recipe: type[Recipe]
    pipeline: Callable[[], type[ScenePipeline]]
    build: Callable[[Base], dict[str, Any]]
    stages: tuple[Stage, ...]
    schedule: Callable[[Any, bool], Any] = stable_diffusion_schedule
    options: Callable[[Any], dict[str, Any]] = _nothing
    clips: Callable[[Any], Mapping[str, str]] = _no_clips
    import_checkpoint: Callable[[Path, Path, Given], dict[str, Any]] | None = None
    export_checkpoint: Callable[[Path, Path], list[Path]] | None = None
    schedulers: tuple[str, ...] = ("euler", "dpmsolver++", "dpmsolver++-karras")
    published: Mapping[str, Any] = field(default_factory=dict)
    most_objects: Callable[[Any], int | None] = _any_number
    places: Callable[[Path], Places] = _no_places
    numbers_of_object: Callable[[Any, Mapping[str, Any]], float] = _none
    licence: str = "none stated"
    exact: str = "not measured"
    differs: str = ""

    def stages_of(self, recipe: Recipe) -> tuple[Stage, ...]:
        """What a recipe trains, in order: the method's own stages, and the decoder where it says so."""
        if recipe.decoder is None:
            return self.stages
        return (DECODER,) if recipe.decoder.alone else (*self.stages, DECODER)

    def of_boxes(self) -> str | None:
        """What who uses its pictures must know of their labels; None where every box was given to it as it is."""
        if not self.takes & {HBB, OBB}:
            return f"{self.title} takes no boxes: nothing but the caption ties its pictures to their labels"
        return None if OBB in self.takes else f"{self.title} takes horizontal boxes: an oriented one was drawn as its HBB"
