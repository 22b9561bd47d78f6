"""AeroGen (Tang et al., CVPR 2025, arXiv 2411.15497): oriented or horizontal boxes as one token each and as masks, under a caption.

Built from its published description: the authors' program has no licence.  Differences by choice: as many objects as a scene has; time
decides on the mask attention picture by picture; DDIM takes the steps asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..method import CAPTION, CLASS_TEXT, OBB, Base, Given, Method, denoiser_stage, places_in, stable_diffusion_schedule
from ..recipe import MOST_WIDTH, LatentRecipe, SamplingConfig, Section

if TYPE_CHECKING:
    from torch import nn

    from .pipeline import AeroGenPipeline


class AeroGenSettings(Section):
    """How the layout enters."""

    slots: int = Field(
        15, gt=0, le=100_000, description="objects and empty tokens a picture has at least (15 as published; it changes the picture)"
    )
    hidden: int = Field(512, gt=0, le=MOST_WIDTH, description="width of the layout encoder (512 as published)")
    mask_strength: float = Field(0.2, ge=0, le=1, description="share of the mask attention in its output (0.2 as published)")
    mask_threshold: int = Field(200, ge=0, le=1000, description="time steps below this leave the mask attention out (200 as published)")
    class_prompt: str = Field("an aerial photo of a {class}", description="the text whose pooled feature stands for a class")
    class_source: str | None = Field(
        None, description="folder or hub name of a CLIP whose text projection class features go through (as published); none: not projected"
    )
    eta: float = Field(0.2, ge=0, le=1, description="noise of the DDIM sampler; 0: none (0.2 as published)")


class AeroGenSampling(SamplingConfig):
    """As of any method, with the published sampler."""

    scheduler: Literal["ddim", "dpmsolver++", "dpmsolver++-karras", "euler"] = Field(  # type: ignore[assignment]
        "ddim", description="DDIM as published, DPM-Solver++ 2M, the same with the noise levels of Karras et al., or Euler"
    )


class AeroGenRecipe(LatentRecipe):
    aerogen: AeroGenSettings = AeroGenSettings()
    sampling: AeroGenSampling = AeroGenSampling()


def build(base: Base) -> dict[str, Any]:
    """The UNet with layout encoder and mask attention; the text encoder with its projection, where the recipe names one."""
    from ...sources import Source
    from .network import with_layout
    from .pipeline import projecting_text_encoder

    settings: AeroGenSettings = base.recipe.aerogen
    made: dict[str, Any] = {}
    width = base.text_width
    if settings.class_source is not None and "tokenizer" in base.parts:  # not where only sizes are asked for
        source = Source(settings.class_source, where="recipe key aerogen.class_source")
        made["text_encoder"] = projecting_text_encoder(source, base.parts["text_encoder"])
        width = made["text_encoder"].config.projection_dim
    layout = settings.model_dump(include={"slots", "hidden", "mask_strength", "mask_threshold"})
    return made | {"unet": with_layout(base.parts["unet"], layout | {"class_width": width})}


def trained(pipe: AeroGenPipeline, recipe: AeroGenRecipe) -> Iterable[nn.Parameter]:
    """Transformer blocks, layout encoder and mask attention, as published, or the whole UNet."""
    from .network import trained_parameters

    return pipe.unet.parameters() if recipe.unet.train_all else trained_parameters(pipe.unet)


def schedule(recipe: AeroGenRecipe, training: bool) -> Any:
    """As of Stable Diffusion; DDIM in double precision to sample with."""
    if training or recipe.sampling.scheduler != "ddim":
        return stable_diffusion_schedule(recipe, training)
    from .sampling import ddim

    return ddim(recipe.denoiser.prediction)


def numbers_of_object(recipe: AeroGenRecipe, parts: Mapping[str, Any]) -> float:
    """Its token in the encoder and in every layer, and the mask attention in a twentieth of the cells."""
    unet = parts["unet"]
    layers = sum(len(weight) for name, weight in unet.named_parameters() if name.endswith("to_k_control.weight"))
    cells, width = unet.config.sample_size**2, unet.config.block_out_channels[0]
    return float(4 * recipe.aerogen.hidden + 2 * layers + cells / 20 * 16 * width)


def _pipeline() -> type[AeroGenPipeline]:
    from .pipeline import AeroGenPipeline

    return AeroGenPipeline


def _import(released: Path, out: Path, given: Given) -> dict[str, Any]:
    from .checkpoints import import_checkpoint

    return import_checkpoint(released, out, given)


def _export(generator: Path, out: Path) -> list[Path]:
    from .checkpoints import export_checkpoint

    return export_checkpoint(generator, out)


AEROGEN = Method(
    name="aerogen",
    title="AeroGen",
    licence="none stated",
    exact="< 3e-6",
    differs=(
        "any number of objects, batches; the time decides on the mask attention picture by picture; DDIM takes the steps asked for; "
        "class vectors by a prompt, not the authors' table; its layout generator, never released, is one of boxes, not of maps "
        "(--layout-source diffusion), its filters are built from the paper (--filter-judges)"
    ),
    takes=frozenset({CAPTION, CLASS_TEXT, OBB}),
    recipe=AeroGenRecipe,
    pipeline=_pipeline,
    build=build,
    stages=(denoiser_stage(trained),),
    schedule=schedule,
    options=lambda recipe: {"eta": recipe.aerogen.eta, "class_prompt": recipe.aerogen.class_prompt},
    clips=lambda recipe: {"aerogen.class_source": recipe.aerogen.class_source} if recipe.aerogen.class_source else {},
    import_checkpoint=_import,
    export_checkpoint=_export,
    schedulers=("ddim", "euler", "dpmsolver++", "dpmsolver++-karras"),
    published={"steps": 50, "guidance_scale": 7.5, "scheduler": "ddim"},
    places=places_in("layout", "slots", "aerogen.slots", bound=False),
    numbers_of_object=numbers_of_object,
)
