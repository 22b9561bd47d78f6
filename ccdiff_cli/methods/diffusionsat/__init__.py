"""DiffusionSat (Khanna et al., ICLR 2024): a latent diffusion model of captions and of where, when and how sharply a picture was taken.

It takes no boxes: its labels are the layout that the caption was made from, and a set says so.  The program is Apache-2.0; the weights
descend from Stable Diffusion 2.1 (CreativeML Open RAIL++-M).  Differences by choice: captions are dropped as any method's
here, for guidance; the min-SNR weight of a velocity is that of velocities, unless the recipe asks for the published one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..method import CAPTION, METADATA, Base, Given, Method, denoiser_stage, unet_once
from ..recipe import LatentRecipe, Section

if TYPE_CHECKING:
    from torch import nn

    from .pipeline import DiffusionSatPipeline


class DiffusionSatSettings(Section):
    """The seven quantities beside the caption."""

    dropout: float = Field(0.1, ge=0, le=1, description="share of the pictures trained without a quantity, each by itself (0.1 published)")
    published_weight: bool = Field(
        False, description="weight steps by min(SNR, gamma) / SNR, as published; false: by SNR + 1, as is right for velocities"
    )


class DiffusionSatRecipe(LatentRecipe):
    diffusionsat: DiffusionSatSettings = DiffusionSatSettings()


def build(base: Base) -> dict[str, Any]:
    """The UNet made to take what the embedding of the quantities gives, and the embedding."""
    from .network import embedding_of, with_metadata

    unet = with_metadata(base.parts["unet"])
    return {"unet": unet, "metadata_embedding": embedding_of(unet)}


def trained(pipe: DiffusionSatPipeline, recipe: DiffusionSatRecipe) -> Iterable[nn.Parameter]:
    """The whole UNet, as published, or the embedding of the quantities alone."""
    unet = pipe.unet.parameters() if recipe.unet.train_all else ()
    return [*unet, *pipe.metadata_embedding.parameters()]


def _once(recipe: DiffusionSatRecipe, parts: Mapping[str, Any]) -> Any:
    import torch

    embedding = parts["metadata_embedding"]
    return unet_once(parts, class_labels=embedding(torch.empty(1, embedding.config.num_metadata)))


def _loss(pipe: DiffusionSatPipeline, recipe: DiffusionSatRecipe) -> nn.Module:
    from .loss import DiffusionSatLoss

    return DiffusionSatLoss(pipe, recipe)


def _pipeline() -> type[DiffusionSatPipeline]:
    from .pipeline import DiffusionSatPipeline

    return DiffusionSatPipeline


def _import(released: Path, out: Path, given: Given) -> dict[str, Any]:
    from .checkpoints import import_checkpoint

    whole = given.stable_diffusion is None and (released / "vae").is_dir()
    return import_checkpoint(released, released if whole else given.base(), out)


def _export(generator: Path, out: Path) -> list[Path]:
    from .checkpoints import export_checkpoint

    return export_checkpoint(generator, out)


METHOD = Method(
    name="diffusionsat",
    title="DiffusionSat",
    licence="Open RAIL++-M (Stable Diffusion 2.1's)",
    exact="< 1e-5",
    differs=("captions dropped for guidance, min-SNR weight of velocities (published: a key), one scaling of quantities for all"),
    takes=frozenset({CAPTION, METADATA}),
    recipe=DiffusionSatRecipe,
    pipeline=_pipeline,
    build=build,
    stages=(denoiser_stage(trained, _loss, _once),),
    options=lambda recipe: {"metadata_dropout": recipe.diffusionsat.dropout},
    import_checkpoint=_import,
    export_checkpoint=_export,
)
