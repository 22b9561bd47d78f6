"""MIGC, the multi-instance generation controller (Zhou et al., CVPR 2024, arXiv 2402.05408): every instance is drawn by its own text in
its own box, and what it gives is weighed against the others cell by cell.

The licence of the authors' program forbids commercial use; this is written from an account of what it computes.  It has no oriented
boxes: an OBB enters as its HBB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..method import CAPTION, CLASS_TEXT, HBB, Base, Given, Method, denoiser_stage, places_in
from ..recipe import LatentRecipe, Section

if TYPE_CHECKING:
    from torch import nn

    from ...models.pipeline import ScenePipeline


class MIGCSettings(Section):
    """The multi-instance generation controller."""

    places: tuple[str, ...] = Field(("mid_block", "up_blocks.1"), description="parts of the UNet whose cross-attention gets the module")
    active: float = Field(
        0.5, ge=0, le=1, description="share of the denoising steps up to which the module works; later ones see the caption"
    )
    fuser: float | None = Field(
        None, ge=0, le=1, description="share of the steps up to which all other cross-attentions mix in the classes by box; none: never"
    )
    slots: int = Field(30, ge=3, le=4096, description="planes the aggregation tells apart: two more than instances in a picture")
    masks: Literal["points", "area"] = Field(
        "points", description="points: as published, objects between sample points are lost; area: the covered share of each cell"
    )
    position_width: int = Field(512, gt=0, le=65536, description="hidden width of the net of the box (512 as published)")


class MIGCRecipe(LatentRecipe):
    migc: MIGCSettings = MIGCSettings()


def build(base: Base) -> dict[str, Any]:
    """The UNet with the module."""
    from .network import MIGCConfig, install_migc

    unet = base.parts["unet"]
    install_migc(unet, MIGCConfig(**base.recipe.migc.model_dump()))
    return {"unet": unet}


def trained(pipe: Any, recipe: MIGCRecipe) -> Iterable[nn.Parameter]:
    """The module, as published, or the whole UNet with it."""
    from .network import migc_parameters

    return list(pipe.unet.parameters() if recipe.unet.train_all else migc_parameters(pipe.unet))


def numbers_of_object(recipe: MIGCRecipe, parts: Mapping[str, Any]) -> float:
    """Its two tokens in every layer with the module, and a dozen values a channel at a sixteenth of the cells."""
    from ...models.conditioning import grid_sizes

    unet = parts["unet"]
    layers = {n.removesuffix(".migc.ea.to_k.weight"): p for n, p in unet.named_parameters() if n.endswith(".migc.ea.to_k.weight")}
    side = unet.config.sample_size
    sizes = grid_sizes(unet, layers, (side, side))
    return float(
        sum(2 * (w.shape[1] + 2 * w.shape[0]) + 12 * w.shape[0] * max(1, sizes[n][0] * sizes[n][1] // 16) for n, w in layers.items())
    )


def _pipeline() -> type[ScenePipeline]:
    from .pipeline import MIGCPipeline

    return MIGCPipeline


def _import(released: Path, out: Path, given: Given) -> dict[str, Any]:
    from .checkpoints import import_checkpoint

    return import_checkpoint(released, given.base(), out)


def _export(generator: Path, out: Path) -> list[Path]:
    from .checkpoints import export_checkpoint

    return export_checkpoint(generator, out)


METHOD = Method(
    name="migc",
    title="MIGC",
    licence="research only, no commercial use",
    exact="< 1e-6",
    differs=("batches; slots by box, not at random; free slots weigh nothing (published: options); no inhibition loss in training"),
    takes=frozenset({CAPTION, CLASS_TEXT, HBB}),
    recipe=MIGCRecipe,
    pipeline=_pipeline,
    build=build,
    stages=(denoiser_stage(trained),),
    import_checkpoint=_import,
    export_checkpoint=_export,
    published={"steps": 50, "guidance_scale": 7.5, "scheduler": "euler"},
    most_objects=lambda recipe: recipe.migc.slots - 2,
    places=places_in("migc", "slots", "migc.slots", spare=2),
    numbers_of_object=numbers_of_object,
)
