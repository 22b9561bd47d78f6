"""The conditional generation module of CC-Diff and CC-Diff++ on any diffusers ``UNet2DConditionModel``.

Notable here:
- :func:`install_conditioning` puts an attention processor into the ``attn2`` of the chosen places; parameters are named
  ``...attn2.processor.fusion.*`` as in the released checkpoints.
- :func:`prepare_context` computes all that does not change over the denoising steps, once per batch of pictures: gates, tiles,
  region masks, keys and values of every class name, instance, background and relation context.
- instance attention, its queries and its output projection run only where a gate is above ``gate_threshold``, over tiles of
  cells, so cost grows with the covered area.  The class text of several instances of one class is attended to once:
  ``sum_i g_i a_i = sum_c (sum_{i in c} g_i) a_c``.
- output projections are linear, so they are applied once to the weighted sum instead of once per instance.

NOTE: every computation runs for zero instances and zero conditional rows too (empty tensors, not a branch), so that each
parameter always receives a gradient, as distributed training wants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin as ModelMixin  # diffusers looks it up here when it loads a saved ConditionedUNet
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..errors import CCDiffError
from .layers import (
    POINT_WIDTH,
    CrossAttention,
    PlainProcessor,
    PointNet,
    Tiles,
    caption_attention,
    make_tiles,
    split_heads,
    tiled_attention,
)
from .layout import LayoutBatch, may_attend, resize_support, soft_ellipses
from .resamplers import ContextTokens
from .unets import remember, settings_of

VARIANTS = ("ccdiff++", "ccdiff")
_TEXT_TILE = 64  # cells a tile; larger wastes cells at the rim, smaller copies the keys of the context more often
_INSTANCE_TILE = 16


@dataclass(frozen=True)
class ConditioningConfig:
    """How a UNet is conditioned; saved in its configuration.

    Attributes:
        variant: "ccdiff++" or "ccdiff".
        places: prefixes of module names whose ``attn2`` are enhanced.
        gate: "hbb" (published): ellipse inscribed in the horizontal box; "obb": in the oriented box.
        gate_centred: sample the ellipse at the cells' centres; published: at their top left corners.
        gate_min_cells: ellipses are at least this many latent cells wide and high; published: 0.
        gate_threshold: cells of an instance with a gate up to this are skipped; 0 skips nothing but exact zeros.  A layer's
            sum over instances then lacks at most ``N * gate_threshold`` times the largest instance term; the default is
            below the resolution of float32.
        point_width: hidden width of the PointNet of the box corners; published: 512.
        heads: attention heads of the module; None: as many as the layer has; published: 8, as Stable Diffusion 1.x has.
        zero_init: new modules start with a zero output, so that the UNet starts as it was (plus the class text in the gates).
    """

    variant: str = "ccdiff++"
    places: tuple[str, ...] = ("mid_block", "up_blocks.1")
    gate: str = "hbb"
    gate_centred: bool = False
    gate_min_cells: float = 0.0
    gate_threshold: float = 1e-7
    zero_init: bool = True
    point_width: int = POINT_WIDTH
    heads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", tuple(self.places))
        for key, known in (("variant", VARIANTS), ("gate", ("hbb", "obb"))):
            if getattr(self, key) not in known:
                raise CCDiffError(f"conditioning: {key} is {getattr(self, key)!r}", fix=f"choose one of {', '.join(known)}")
        if not 0 <= self.gate_threshold < 1 or self.gate_min_cells < 0:
            raise CCDiffError("conditioning: gate_threshold must lie in [0, 1) and gate_min_cells must not be negative")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"places": list(self.places)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConditioningConfig:
        return settings_of(cls, values, "conditioning")


class Fusion(nn.Module):
    """The trained part of one enhanced ``attn2``; ``width`` is the layer's, ``context_width`` that of the text tokens."""

    def __init__(self, width: int, context_width: int, heads: int, config: ConditioningConfig):
        super().__init__()
        self.ea_obj, self.norm_obj = CrossAttention(width, context_width, heads), nn.LayerNorm(width)
        self.ea2, self.norm2 = CrossAttention(width, context_width, heads), nn.LayerNorm(width)
        self.pos_net = PointNet(context_width, config.point_width)
        self.la = CrossAttention(width, heads=heads)
        relation = config.variant == "ccdiff++"
        if relation:
            self.ea_rel, self.norm_rel = CrossAttention(width, context_width, heads), nn.LayerNorm(width)
        self.relation = relation
        if config.zero_init:
            for attention in (self.ea_obj, self.ea2, self.la, *((self.ea_rel,) if relation else ())):
                nn.init.zeros_(attention.to_out[0].weight)
                nn.init.zeros_(attention.to_out[0].bias)


@dataclass
class GridContext:
    """What the layout says on one grid of h x w cells, for the R conditional rows.

    Attributes:
        mask: ``(R, 1, h w, h w)`` bool, which cells may attend to each other.
        text: tiles of cells over the class names; rows count through the whole UNet batch.
        covered: ``(K,)`` int64 cells that some instance reaches, counted through the conditional rows only.
        instances: tiles of the K covered cells over the V instances.
        gate_sum: ``(R, h w, 1)`` sum of the gates.
    """

    mask: Tensor
    text: Tiles
    covered: Tensor
    instances: Tiles
    gate_sum: Tensor


@dataclass
class LayerContext:
    """What one enhanced layer needs: its grid, and keys and values ``(contexts, heads, tokens, head width)``."""

    grid: GridContext
    text: tuple[Tensor, Tensor]
    instances: tuple[Tensor, Tensor]
    background: tuple[Tensor, Tensor]
    relation: tuple[Tensor, Tensor] | None


@dataclass
class ConditioningContext:
    """All that does not change over the denoising steps, for one batch of pictures and one UNet.

    Attributes:
        start: first conditional row of the UNet batch where the conditional rows are the last ones.
        rows: ``(R,)`` int64 conditional rows of the UNet batch where they are scattered; None: from ``start`` on.
        layers: by module name.
    """

    start: int
    rows: Tensor | None
    layers: dict[str, LayerContext] = field(default_factory=dict)


class FusionProcessor(nn.Module):
    """Cross-attention to the caption, plus the conditional generation module for the conditional rows."""

    def __init__(self, name: str, fusion: Fusion):
        super().__init__()
        self.name = name
        self.fusion = fusion

    # NOTE: __call__ rather than forward, because diffusers reads its signature to see which keywords a processor takes
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        conditioning: ConditioningContext | None = None,
    ) -> Tensor:
        width = hidden_states.shape[-1]
        query, attended = caption_attention(attn, hidden_states, encoder_hidden_states, attention_mask)
        project = attn.to_out[0]
        if conditioning is None:
            return attn.to_out[1](project(attended))

        fusion, layer, rows = self.fusion, conditioning.layers[self.name], conditioning.rows
        grid = layer.grid
        gate_sum = grid.gate_sum.to(hidden_states.dtype)
        x = hidden_states[conditioning.start :] if rows is None else hidden_states.index_select(0, rows)
        if x.shape[:2] != gate_sum.shape[:2]:
            raise ValueError(f"the context is of {tuple(gate_sum.shape[:2])} (conditional rows, cells), the layer got {tuple(x.shape[:2])}")

        # class text through the layer's own attention: project(a_0 + sum g a) counts its bias once, each a_i wants it g_i times
        text_query = query.flatten(0, 1)
        bias = project.bias if project.bias is not None else hidden_states.new_zeros(width)
        if fusion.relation:
            with_text = tiled_attention(attended.flatten(0, 1), text_query, *layer.text, grid.text).view_as(attended)
            plain = attn.to_out[1](project(with_text))
            base = plain[conditioning.start :] if rows is None else plain.index_select(0, rows)
            text = gate_sum * bias
        else:  # the background term needs the sum over instances by itself
            plain = attn.to_out[1](project(attended))
            base = plain[conditioning.start :] if rows is None else plain.index_select(0, rows)
            text = tiled_attention(torch.zeros_like(text_query), text_query, *layer.text, grid.text).view_as(attended)
            text = text[conditioning.start :] if rows is None else text.index_select(0, rows)
            text = F.linear(text, project.weight) + gate_sum * bias

        # instances, on the covered cells alone
        there = x.flatten(0, 1).index_select(0, grid.covered)
        object_query = fusion.ea_obj.to_q(fusion.norm_obj(there))
        instances = tiled_attention(torch.zeros_like(object_query), object_query, *layer.instances, grid.instances)
        out: Any = fusion.ea_obj.to_out[0]
        instances = F.linear(instances, out.weight) + gate_sum.flatten(0, 1).index_select(0, grid.covered) * out.bias

        # background, relation, layout
        if fusion.relation:
            background = fusion.ea2.attend(fusion.norm2(x), *layer.background)
            result = _add_at(base + text + background, grid.covered, instances)
        else:
            foreground = _add_at(text, grid.covered, instances)
            result = base + foreground + fusion.ea2.attend(fusion.norm2(foreground), *layer.background)
        if fusion.relation:
            assert layer.relation is not None
            result = result + fusion.ea_rel.attend(fusion.norm_rel(result), *layer.relation)
        result = result + fusion.la.attend(x, *fusion.la.keys_values(x), mask=grid.mask)
        if rows is None:
            return torch.cat([plain[: conditioning.start], result]) if conditioning.start else result
        return plain.index_copy(0, rows, result.to(plain.dtype))


def _add_at(out: Tensor, cells: Tensor, rows: Tensor) -> Tensor:
    """``(R, n, C)`` with ``(K, C)`` rows added to some of its cells, counted through the rows."""
    return out.flatten(0, 1).index_add(0, cells, rows.to(out.dtype)).view_as(out)


def _enhanced(unet: UNet2DConditionModel) -> dict[str, tuple[Attention, Fusion]]:
    """The enhanced layers by name, in the order of the module tree."""
    return {
        name: (module, module.processor.fusion)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and isinstance(module.processor, FusionProcessor)
    }


def install_conditioning(unet: UNet2DConditionModel, config: ConditioningConfig) -> None:
    """Put the conditional generation module into the ``attn2`` layers under ``config.places``; new weights are random.

    A plain ``UNet2DConditionModel`` becomes a :class:`ConditionedUNet` in place, so that saving keeps the module.

    Raises:
        CCDiffError: a place that holds no cross-attention.
    """
    used: set[str] = set()
    for name, module in list(unet.named_modules()):
        if not isinstance(module, Attention):
            continue
        place = next((p for p in config.places if name == p or name.startswith(p + ".")), None)
        if place is None or not name.endswith(".attn2"):
            module.set_processor(PlainProcessor())
            continue
        used.add(place)
        weight = module.to_q.weight
        heads = config.heads or module.heads
        if module.to_q.in_features % heads:
            raise CCDiffError(f"conditioning: {name} is {module.to_q.in_features} wide, which {heads} heads do not divide")
        fusion = Fusion(module.to_q.in_features, module.to_k.in_features, heads, config)
        module.set_processor(FusionProcessor(name, fusion.to(device=weight.device, dtype=weight.dtype)))
    if missing := [place for place in config.places if place not in used]:
        raise CCDiffError(
            f"conditioning: no cross-attention under {', '.join(missing)}",
            fix="name blocks of the UNet that have cross-attention, for example mid_block, up_blocks.1",
        )
    if type(unet) is UNet2DConditionModel:
        unet.__class__ = ConditionedUNet
    unet.register_to_config(conditioning=config.to_dict())


def with_conditioning(unet: UNet2DConditionModel, config: ConditioningConfig) -> ConditionedUNet:
    """A conditioned UNet with the weights of a plain one; its conditional generation module is new."""
    arguments = {key: value for key, value in unet.config.items() if not key.startswith("_") and key != "conditioning"}
    made = ConditionedUNet(conditioning=config.to_dict(), **arguments)
    missing, surplus = made.load_state_dict(unet.state_dict(), strict=False)
    if surplus or [key for key in missing if ".processor.fusion." not in key]:
        raise CCDiffError(f"the UNet's weights do not fit: missing {missing[:3]}, surplus {surplus[:3]}", where="recipe key unet.source")
    return made


def conditioning_config(unet: UNet2DConditionModel) -> ConditioningConfig:
    """The configuration that :func:`install_conditioning` stored."""
    return ConditioningConfig.from_dict(unet.config.conditioning)


def conditioning_parameters(unet: UNet2DConditionModel) -> Iterator[nn.Parameter]:
    """Parameters of the conditional generation module."""
    for _, fusion in _enhanced(unet).values():
        yield from fusion.parameters()


def grid_sizes(unet: UNet2DConditionModel, names: Iterable[str], latent_size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """(height, width) of the cells of each layer: every downsampler halves, rounding up."""
    levels = [latent_size]
    for _ in range(len(unet.config.down_block_types) - 1):
        levels.append(((levels[-1][0] + 1) // 2, (levels[-1][1] + 1) // 2))
    sizes = {}
    for name in names:
        block, _, rest = name.partition(".")
        if block == "mid_block":
            sizes[name] = levels[-1]
        else:
            index = int(rest.partition(".")[0])
            sizes[name] = levels[index if block == "down_blocks" else len(levels) - 1 - index]
    return sizes


def prepare_context(
    unet: UNet2DConditionModel,
    batch: LayoutBatch,
    tokens: ContextTokens,
    conditional: Tensor | None = None,
    *,
    guidance: bool = False,
    gate_threshold: float | None = None,
) -> ConditioningContext:
    """All that the enhanced layers need of a batch and that does not change over the steps; on the device of ``batch``.

    Gradients flow into keys and values, hence into the resampler and the module, unless called under ``torch.no_grad``.

    Args:
        batch: B pictures; ``tokens``: the resampler's result for it.
        conditional: ``(B,)`` bool; rows with False go through the plain cross-attention.  None: all are conditional.
        guidance: the UNet batch will be ``[unconditional x B, conditional x B]``.
        gate_threshold: in place of the configured one.

    Returns:
        what goes into ``unet(..., cross_attention_kwargs={"conditioning": context})``.
    """
    if guidance and conditional is not None:
        raise ValueError("with guidance every picture has a conditional row: leave conditional out")
    config = conditioning_config(unet)
    threshold = config.gate_threshold if gate_threshold is None else gate_threshold
    device = batch.hbb.device
    batch = batch.with_regions()
    assert batch.regions is not None

    # the conditional pictures, and the valid instances among them
    size, valid, regions = batch.batch_size, batch.valid, batch.regions
    background, relation, caption_pooled = tokens.background, tokens.relation, batch.caption_pooled
    rows, first_rows, start = None, torch.arange(size, device=device), size if guidance else 0
    foreground = tokens.foreground
    if guidance:
        first_rows = first_rows + size
    if conditional is not None and not bool(conditional.all()):
        rows = first_rows = conditional.nonzero()[:, 0]
        foreground = foreground[conditional[valid.nonzero()[:, 0]]]
        background, caption_pooled, regions = background[rows], caption_pooled[rows], regions[rows]
        relation = relation[rows] if relation is not None else None
        batch = dataclasses.replace(batch, hbb=batch.hbb[rows], obb=batch.obb[rows], class_index=batch.class_index[rows])
        valid = valid[rows]
        size = len(rows)
    picture = valid.nonzero()[:, 0]
    classes, obb = batch.class_index[valid], batch.obb[valid]
    gates = soft_ellipses(
        batch.hbb[valid],
        obb,
        batch.latent_size,
        shape=config.gate,
        centred=config.gate_centred,
        min_cells=config.gate_min_cells,
    )

    layers = _enhanced(unet)
    sizes = grid_sizes(unet, layers, batch.latent_size)
    grids = {
        grid: _grid_context(gates, picture, first_rows, classes, len(batch.class_tokens), regions, grid, threshold)
        for grid in dict.fromkeys(sizes.values())
    }
    context = ConditioningContext(start, rows)
    for name, (attn, fusion) in layers.items():
        dtype = attn.to_q.weight.dtype
        text = batch.class_tokens.to(dtype)
        instance = torch.cat([batch.class_pooled.to(dtype)[classes][:, None], foreground.to(dtype), fusion.pos_net(obb)[:, None]], dim=1)
        behind = torch.cat([caption_pooled.to(dtype)[:, None], background.to(dtype)], dim=1)
        context.layers[name] = LayerContext(
            grid=grids[sizes[name]],
            text=(split_heads(attn.to_k(text), attn.heads), split_heads(attn.to_v(text), attn.heads)),
            instances=fusion.ea_obj.keys_values(instance),
            background=fusion.ea2.keys_values(behind),
            relation=fusion.ea_rel.keys_values(relation.to(dtype)) if relation is not None else None,
        )
    return context


def _grid_context(
    gates: Tensor,
    picture: Tensor,
    rows: Tensor,
    classes: Tensor,
    class_count: int,
    regions: Tensor,
    grid: tuple[int, int],
    threshold: float,
) -> GridContext:
    """``gates`` (V, h, w) on the latent grid, ``picture`` (V,) its row among the conditional rows, ``rows`` (R,) in the UNet batch."""
    cells, count = grid[0] * grid[1], len(rows)
    if not len(gates):
        gates = gates.new_zeros(0, *grid)
    elif gates.shape[-2:] != torch.Size(grid):
        gates = F.interpolate(gates[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0]
    flat = gates.flatten(1)
    # an instance below the threshold is absent from text, instance term and bias alike
    flat = torch.where(flat > threshold, flat, 0.0)
    gate_sum = flat.new_zeros(count, cells).index_add_(0, picture, flat)
    reached = gate_sum.flatten() > 0
    covered = reached.nonzero()[:, 0]
    instances = make_tiles(flat, picture * cells, 0.0, min(_INSTANCE_TILE, cells))
    if len(covered):  # an unused slot may point at any cell
        instances.cells = (reached.cumsum(0)[instances.cells] - 1).clamp(min=0)
    by_class = flat.new_zeros(class_count * count, cells).index_add_(0, classes * count + picture, flat).view(class_count, count * cells)
    text = make_tiles(by_class, None, 0.0, min(_TEXT_TILE, cells))
    if len(text.cells) and count:
        text.cells = rows[text.cells // cells] * cells + text.cells % cells
    mask = may_attend(resize_support(regions, grid))
    return GridContext(mask[:, None], text, covered, instances, gate_sum[..., None])


class ConditionedUNet(UNet2DConditionModel):
    """A ``UNet2DConditionModel`` that remembers its conditioning, so that ``save_pretrained`` and ``from_pretrained`` keep it.

    Args:
        conditioning: a :class:`ConditioningConfig` as a dictionary; None: a plain UNet.
        unet: the arguments of ``UNet2DConditionModel``.
    """

    def __init__(self, conditioning: dict[str, Any] | None = None, **unet: Any):
        super().__init__(**unet)
        self.register_to_config(conditioning=conditioning)
        if conditioning is not None:
            install_conditioning(self, ConditioningConfig.from_dict(conditioning))


remember(ConditionedUNet, "conditioning")
