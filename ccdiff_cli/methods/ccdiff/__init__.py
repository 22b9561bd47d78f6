"""CC-Diff++ (IEEE TGRS 2025) and its predecessor CC-Diff: caption, classes, boxes and reference pictures into a latent diffusion model.

The two differ in the resampler of the references and in the relation term of the conditional generation module, which a recipe says in
``conditioning.variant``, as it did before there were other methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..method import CAPTION, CLASS_TEXT, HBB, OBB, REFERENCES, Base, Given, Method, denoiser_stage
from ..recipe import LatentRecipe, Section

if TYPE_CHECKING:
    from torch import nn

    from ...models.resamplers import CoResampler, DualResampler
    from .pipeline import CCDiffPipeline


class ResamplerConfig(Section):
    """Co-Resampler (CC-Diff++) or Dual Resampler (CC-Diff)."""

    width: int = Field(1280, gt=0, le=16_384, description="inner width")
    depth: int = Field(4, gt=0, le=200, description="layers")
    head_width: int = Field(64, gt=0, le=1024, description="width of an attention head")
    heads: int = Field(16, gt=0, le=256, description="attention heads")
    queries: int = Field(8, gt=0, le=1024, description="learned queries of each group")
    ff_mult: int = Field(4, gt=0, le=64, description="width of the feed-forward layers over the inner width")


class ConditioningRecipe(Section):
    """The conditional generation module."""

    variant: Literal["ccdiff++", "ccdiff"] = Field("ccdiff++", description="CC-Diff++ (2025) or its predecessor")
    places: tuple[str, ...] = Field(
        ("mid_block", "up_blocks.1"), max_length=32, description="parts of the UNet whose cross-attention gets the module"
    )
    gate: Literal["hbb", "obb"] = Field("hbb", description="soft ellipse inscribed in the HBB (as published) or in the OBB")
    gate_centred: bool = Field(False, description="sample the ellipse at the cells' centres; as published: at their corners")
    gate_min_cells: float = Field(0.0, ge=0, le=1000, description="widen ellipses to so many latent cells, for small objects")
    point_width: int = Field(512, gt=0, le=16_384, description="hidden width of the PointNet of the box corners (512 as published)")


class CCDiffRecipe(LatentRecipe):
    """The recipe of both."""

    resampler: ResamplerConfig = ResamplerConfig()
    conditioning: ConditioningRecipe = ConditioningRecipe()

    def base(self) -> frozenset[str]:
        return super().base() | {"image"}

    def named(self) -> dict[str, str]:
        return {}  # generators of earlier versions do not say it, and have the same bytes as now

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: Any) -> Any:
        """``method`` and ``conditioning.variant`` say the same."""
        if not isinstance(values, dict):
            return values
        group = values.get("conditioning", {})
        if not isinstance(group, dict):
            return values
        method, variant = values.get("method"), group.get("variant")
        if method is not None and variant is not None and method != variant:
            raise ValueError(f"method is {method!r}, conditioning.variant {variant!r}: name one of them, or both the same")
        if method is not None:
            group = {**group, "variant": method}
        return {**values, "method": method or variant or CCDIFFPP.name, "conditioning": group}

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """In the form of the versions that knew no other method, so that their generators have the same identity as now."""
        values = self._without_later(dump(self))
        del values["method"]
        last = {key: values.pop(key) for key in ("resampler", "conditioning", "denoiser", "sampling")}
        return values | last


def build(base: Base) -> dict[str, Any]:
    """The UNet with the conditional generation module, and the resampler."""
    from ...models.conditioning import ConditioningConfig, with_conditioning

    config = ConditioningConfig(**base.recipe.conditioning.model_dump())
    unet = with_conditioning(base.parts["unet"], config)
    return {"unet": unet, "resampler": make_resampler(base.recipe, base.image_width, base.text_width)}


def make_resampler(recipe: CCDiffRecipe, image_width: int, text_width: int) -> CoResampler | DualResampler:
    """The resampler of the recipe's variant, between an image encoder and a text encoder of these widths."""
    from ...models.resamplers import CoResampler, DualResampler

    r = recipe.resampler
    sizes = {
        "dim": r.width, "depth": r.depth, "dim_head": r.head_width, "embedding_dim": image_width,
        "output_dim": text_width, "ff_mult": r.ff_mult, "point_width": recipe.conditioning.point_width,
    }  # fmt: skip
    if recipe.conditioning.variant == CCDIFFPP.name:
        return CoResampler(heads=r.heads, num_queries=r.queries, **sizes)
    return DualResampler(num_queries=(2 * r.queries, r.queries, r.queries), **sizes)


def numbers_of_object(recipe: CCDiffRecipe, parts: Mapping[str, Any]) -> float:
    """Its reference in the resampler, its tokens in every enhanced layer, its gates."""
    r, enc, unet = recipe.resampler, recipe.encoders, parts["unet"]
    tokens = 257 if enc.image_source else (enc.image_size // enc.image_patch) ** 2 + 1
    inner = r.heads * r.head_width
    numbers = tokens * r.width + r.depth * (tokens + r.queries) * (2 * r.width + 3 * inner)
    layers = [p for name, p in unet.named_parameters() if name.endswith("fusion.ea_obj.to_k.weight")]
    numbers += sum((r.queries + 2) * (w.shape[1] + 2 * w.shape[0]) for w in layers)
    return float(numbers + 6 * unet.config.sample_size**2)


def trained(pipe: CCDiffPipeline, recipe: CCDiffRecipe) -> Iterable[nn.Parameter]:
    """The conditional generation module and the resampler, as published, or the whole UNet with them."""
    from ...models.conditioning import conditioning_parameters

    unet = pipe.unet.parameters() if recipe.unet.train_all else conditioning_parameters(pipe.unet)
    return [*unet, *pipe.resampler.parameters()]


def _pipeline() -> type[CCDiffPipeline]:
    from .pipeline import CCDiffPipeline

    return CCDiffPipeline


def _import(released: Path, out: Path, given: Given) -> dict[str, Any]:
    from .checkpoints import import_checkpoint

    return import_checkpoint(
        released, given.base(), out, image_encoder=given.image_encoder, head_width=given.head_width, method=given.method
    )


def _export(generator: Path, out: Path) -> list[Path]:
    from .checkpoints import export_checkpoint

    return export_checkpoint(generator, out)


CCDIFFPP = Method(
    name="ccdiff++",
    title="CC-Diff++",
    exact="< 1e-6",
    differs="any number of objects, batches, conditioning dropout",
    takes=frozenset({CAPTION, CLASS_TEXT, HBB, OBB, REFERENCES}),
    recipe=CCDiffRecipe,
    pipeline=_pipeline,
    build=build,
    stages=(denoiser_stage(trained),),
    import_checkpoint=_import,
    export_checkpoint=_export,
    published={"steps": 50, "guidance_scale": 7.5, "scheduler": "euler"},
    numbers_of_object=numbers_of_object,
)
CCDIFF = dataclasses.replace(CCDIFFPP, name="ccdiff", title="CC-Diff")
