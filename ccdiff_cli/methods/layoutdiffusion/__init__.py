"""LayoutDiffusion (Zheng et al., CVPR 2023, arXiv 2303.17189): horizontal boxes of a closed list of classes, trained from scratch.

Built from its published description.  Differences by choice: as many objects as a scene has, small ones too; the condition is dropped
picture by picture, not for a whole batch; one network pass of both branches a step instead of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..method import CLASS_INDEX, HBB, Base, Given, Method, denoiser_stage, places_in
from ..recipe import MOST_WIDTH, Recipe, SamplingConfig, Section

if TYPE_CHECKING:
    from torch import nn

    from .pipeline import LayoutDiffusionPipeline


class LayoutDiffusionSettings(Section):
    """The network, which has its own UNet."""

    space: Literal["pixels", "latents"] = Field("pixels", description="what is denoised; latents: of the recipe's autoencoder")
    channels: int = Field(256, gt=0, le=MOST_WIDTH, description="channels at the first resolution; a multiple of 32 (256 as published)")
    multipliers: tuple[int, ...] = Field((1, 1, 2, 2, 4, 4), description="of the channels, per resolution (as published for 256 px)")
    layers_per_block: int = Field(2, gt=0, le=32, description="residual blocks per resolution (2 as published)")
    attention: tuple[int, ...] = Field((8, 16, 32), description="down-sampling factors at which cells attend to objects (grids up to 32)")
    head_width: int = Field(64, gt=0, le=MOST_WIDTH, description="width of an attention head (64 or 32 as published)")
    layout_width: int = Field(256, gt=0, le=MOST_WIDTH, description="width of the layout encoder; a multiple of 32 (256 as published)")
    layout_layers: int = Field(6, gt=0, le=200, description="layers of the layout encoder (6 as published)")
    layout_heads: int = Field(8, gt=0, le=256, description="attention heads of the layout encoder (8 as published)")
    slots: int = Field(
        10, gt=0, le=100_000, description="picture, objects and padding a layout has at least (10 as published; it changes the picture)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="in the residual blocks (0.1 as published at 128 px)")
    end_time: float = Field(1e-4, gt=0, lt=1, description="where DPM-Solver-fast stops (1e-4 as published)")


class LayoutDiffusionSampling(SamplingConfig):
    """As of any method, with the published samplers."""

    scheduler: Literal["dpmsolver-fast", "ancestral"] = Field(  # type: ignore[assignment]
        "dpmsolver-fast", description="DPM-Solver-fast (25 evaluations as published) or the ancestral chain (200 steps)"
    )
    steps: int = Field(25, gt=0, le=100_000, description="evaluations of the network")
    guidance_scale: float = Field(2.0, ge=1, lt=1000, description="classifier-free guidance; 1: none (2 as published, there called 1)")


class LayoutDiffusionRecipe(Recipe):
    layoutdiffusion: LayoutDiffusionSettings = LayoutDiffusionSettings()
    sampling: LayoutDiffusionSampling = LayoutDiffusionSampling()

    def base(self) -> frozenset[str]:
        return frozenset({"vae"} if self.layoutdiffusion.space == "latents" else ())

    @model_validator(mode="after")
    def _as_it_is_trained(self) -> Self:
        if self.denoiser.prediction != "epsilon" or self.denoiser.snr_gamma or self.denoiser.perceptual:
            raise ValueError(
                "denoiser: LayoutDiffusion predicts noise and variance, unweighted: set prediction to epsilon, "
                "snr_gamma and perceptual to 0"
            )
        for key, values in (("encoders", self.encoders), ("unet", self.unet)):
            if values is not None:
                raise ValueError(f"{key}: LayoutDiffusion reads no text and has its own network: leave this section out")
        if self.layoutdiffusion.space == "pixels" and self.autoencoder is not None:
            raise ValueError("autoencoder: pixels need none: leave this section out, or set layoutdiffusion.space to latents")
        return self


def build(base: Base) -> dict[str, Any]:
    """The whole network."""
    from .network import LayoutDiffusionUNet

    s: LayoutDiffusionSettings = base.recipe.layoutdiffusion
    return {
        "unet": LayoutDiffusionUNet(
            image_size=base.latent_side, in_channels=base.latent_channels, model_channels=s.channels, channel_mult=s.multipliers,
            num_res_blocks=s.layers_per_block, attention_ds=s.attention, num_head_channels=s.head_width, classes=len(base.classes) + 2,
            slots=s.slots, layout_width=s.layout_width, layout_layers=s.layout_layers, layout_heads=s.layout_heads, dropout=s.dropout,
            class_names=base.classes,
        )
    }  # fmt: skip


def trained(pipe: LayoutDiffusionPipeline, recipe: LayoutDiffusionRecipe) -> Iterable[nn.Parameter]:
    """Everything."""
    return pipe.unet.parameters()


def schedule(recipe: LayoutDiffusionRecipe, training: bool) -> Any:
    """1000 steps of evenly spaced betas; the samplers have their own."""
    from .diffusion import training_schedule

    return training_schedule()


def _once(recipe: LayoutDiffusionRecipe, parts: Mapping[str, Any]) -> Any:
    import torch

    from .network import pack_layout

    unet = parts["unet"]
    classes, boxes, valid = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool)
    layout = pack_layout(classes, boxes, valid, unet.config.slots, unet.padding)
    size = unet.config.image_size
    return unet(torch.empty(1, unet.config.in_channels, size, size), torch.empty(1), unet.prepare(layout))


def _loss(pipe: LayoutDiffusionPipeline, recipe: LayoutDiffusionRecipe) -> nn.Module:
    from .loss import LayoutDiffusionLoss

    return LayoutDiffusionLoss(pipe, recipe)


def numbers_of_object(recipe: LayoutDiffusionRecipe, parts: Mapping[str, Any]) -> float:
    """Its token in the layout encoder, its key and value in every layer, its share of the attention."""
    s, unet = recipe.layoutdiffusion, parts["unet"]
    layers = sum(weight.shape[0] for name, weight in unet.named_parameters() if name.endswith("layout_content_embedding_projector.weight"))
    return float(s.layout_layers * 14 * s.layout_width + 2 * layers)


def _pipeline() -> type[LayoutDiffusionPipeline]:
    from .pipeline import LayoutDiffusionPipeline

    return LayoutDiffusionPipeline


def _import(released: Path, out: Path, given: Given) -> dict[str, Any]:
    from .checkpoints import import_checkpoint

    return import_checkpoint(released, out, given)


def _export(generator: Path, out: Path) -> list[Path]:
    from .checkpoints import export_checkpoint

    return export_checkpoint(generator, out)


LAYOUTDIFFUSION = Method(
    name="layoutdiffusion",
    title="LayoutDiffusion",
    licence="none stated (code MIT)",
    exact="< 3e-6",
    differs="any number and size of objects; condition dropped picture by picture; both branches in one pass",
    takes=frozenset({CLASS_INDEX, HBB}),
    recipe=LayoutDiffusionRecipe,
    pipeline=_pipeline,
    build=build,
    stages=(denoiser_stage(trained, _loss, _once),),
    schedule=schedule,
    options=lambda recipe: {"sampler": recipe.sampling.scheduler, "end_time": recipe.layoutdiffusion.end_time},
    import_checkpoint=_import,
    export_checkpoint=_export,
    schedulers=("dpmsolver-fast", "ancestral"),
    published={"steps": 25, "guidance_scale": 2.0, "scheduler": "dpmsolver-fast"},
    places=places_in("", "slots", "layoutdiffusion.slots", spare=1, bound=False),
    numbers_of_object=numbers_of_object,
)
