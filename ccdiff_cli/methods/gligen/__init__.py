"""GLIGEN, open-set grounded generation (Li et al., CVPR 2023, arXiv 2301.07093): gated self-attention over tokens of class names and boxes.

The authors' program is MIT, their weights CreativeML OpenRAIL-M; the blocks here are diffusers' own.  It has no oriented boxes: an OBB
enters as its HBB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from ..method import CAPTION, CLASS_TEXT, HBB, Base, Given, Method, denoiser_stage, places_in, unet_once
from ..recipe import LatentRecipe, Section

if TYPE_CHECKING:
    from torch import nn

    from ...models.pipeline import ScenePipeline


class GLIGENSettings(Section):
    """Grounding."""

    slots: int = Field(30, gt=0, le=4096, description="places for instances, empty ones are seen too; as many in sampling as in training")
    full: float = Field(0.3, ge=0, le=1, description="share of the denoising steps that are grounded, from the first on")
    fading: float = Field(0.0, ge=0, le=1, description="share of the steps after these in which the grounding falls to 0 (0 as published)")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.full + self.fading > 1:
            raise ValueError(f"full and fading are {self.full + self.fading} together: they are shares of all steps, at most 1")
        return self


class GLIGENRecipe(LatentRecipe):
    gligen: GLIGENSettings = GLIGENSettings()


def build(base: Base) -> dict[str, Any]:
    """The UNet with a tokenizer of boxes and a gate in every block, all closed."""
    from .network import GLIGENConfig, ground_unet

    return {"unet": ground_unet(base.parts["unet"], GLIGENConfig(**base.recipe.gligen.model_dump()))}


def trained(pipe: Any, recipe: GLIGENRecipe) -> Iterable[nn.Parameter]:
    """The tokenizer and the gated layers, as published, or the whole UNet with them."""
    from .network import grounding_parameters

    return list(pipe.unet.parameters() if recipe.unet.train_all else grounding_parameters(pipe.unet))


def _once(recipe: GLIGENRecipe, parts: Mapping[str, Any]) -> Any:
    """Every picture has all slots, filled or not: objects take nothing more."""
    import torch

    slots, width = recipe.gligen.slots, parts["unet"].config.cross_attention_dim
    empty = {"boxes": torch.empty(1, slots, 4), "masks": torch.empty(1, slots), "positive_embeddings": torch.empty(1, slots, width)}
    return unet_once(parts, cross_attention_kwargs={"gligen": empty})


def _loss(pipe: Any, recipe: GLIGENRecipe) -> nn.Module:
    from .loss import GLIGENLoss

    return GLIGENLoss(pipe, recipe)


def _pipeline() -> type[ScenePipeline]:
    from .pipeline import GLIGENPipeline

    return GLIGENPipeline


def _import(released: Path, out: Path, given: Given) -> dict[str, Any]:
    from .checkpoints import import_checkpoint

    whole = given.stable_diffusion is None and (released / "unet").is_dir()
    return import_checkpoint(released, released if whole else given.base(), out)


def _export(generator: Path, out: Path) -> list[Path]:
    from .checkpoints import export_checkpoint

    return export_checkpoint(generator, out)


METHOD = Method(
    name="gligen",
    title="GLIGEN",
    licence="CreativeML OpenRAIL-M",
    exact="< 2e-6",
    differs="another layout in every picture; small boxes kept; grounding dropped a picture, not a batch; boxes in float32",
    takes=frozenset({CAPTION, CLASS_TEXT, HBB}),
    recipe=GLIGENRecipe,
    pipeline=_pipeline,
    build=build,
    stages=(denoiser_stage(trained, _loss, _once),),
    import_checkpoint=_import,
    export_checkpoint=_export,
    most_objects=lambda recipe: recipe.gligen.slots,
    places=places_in("grounding", "slots", "gligen.slots"),
)
