"""The multi-instance generation controller (MIGC, arXiv 2402.05408) on any diffusers ``UNet2DConditionModel``.

Notable here:
- :func:`install_migc` puts a processor into every ``attn2``; those at the chosen places hold the module, whose parameters are
  named ``...attn2.processor.migc.*`` as in the released checkpoint.
- :func:`prepare_context` computes all that does not change over the denoising steps, once per batch of pictures; pictures
  without instances stay plain.
- an instance is computed where its mask is not zero alone.  Its plane is a constant elsewhere until the 7 x 7 convolution,
  which sees two channels, so the means, maxima and logits of the shading are exact without the dense planes.
- an instance's share does not depend on the batch: free slots hold the null plane and get no weight.  As published, padding
  instances get weight: ``LayoutBatch.published_padding`` makes them valid ones with an empty mask.
- the published order of the slots is random.  Here it is given, or follows the boxes, so that neither global state nor the
  order of the instances is seen in the picture.

NOTE: every computation runs for zero instances and zero conditional rows too, so that each parameter always gets a gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin as ModelMixin  # diffusers looks it up here when it loads a saved MIGCUNet
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...errors import CCDiffError
from ...models.conditioning import grid_sizes
from ...models.layers import (
    CrossAttention,
    PlainProcessor,
    Tiles,
    caption_attention,
    fourier_code,
    join_heads,
    make_tiles,
    split_heads,
    tiled_attention,
)
from ...models.layout import LayoutBatch, may_attend
from ...models.unets import remember, settings_of

_TILE = 16  # cells; larger wastes cells at the rim, smaller copies the keys of the text more often
_FUSER_WEIGHT = 10.0


@dataclass(frozen=True)
class MIGCConfig:
    """How a UNet is controlled; saved in its configuration.

    Attributes:
        places: prefixes of module names whose ``attn2`` hold the module.
        active: the module works at denoising steps up to this share of all, included; published: step 25 of 50, the 26th.
        fuser: up to this share every ``attn2`` whose module is absent or no longer active mixes in the text of the instances by
            their masks; None, as published: never (0.5 in the authors' second script).
        slots: planes that the aggregation tells apart: background, layout and ``slots - 2`` instances; published: 30.
        heads: attention heads of the module.
        position_width: hidden width of the net of the box.
        reduction: how much narrower than the layer the channel attention of the planes is.
        masks: "points", as published: two bilinear resizings, which lose a box between their sample points; "area": the covered
            share of each cell.
    """

    places: tuple[str, ...] = ("mid_block", "up_blocks.1")
    active: float = 0.5
    fuser: float | None = None
    slots: int = 30
    heads: int = 8
    position_width: int = 512
    reduction: int = 16
    masks: str = "points"

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", tuple(self.places))
        if self.masks not in ("points", "area"):
            raise CCDiffError(f"MIGC: masks is {self.masks!r}", fix="choose points or area")
        for key, share in (("active", self.active), ("fuser", self.fuser)):
            if share is not None and not 0 <= share <= 1:
                raise CCDiffError(f"MIGC: {key} is {share}", fix="give a share of the denoising steps, 0 to 1")
        for key, least in (("slots", 3), ("heads", 1), ("position_width", 1), ("reduction", 1)):
            if getattr(self, key) < least:
                raise CCDiffError(f"MIGC: {key} is {getattr(self, key)}", fix=f"give at least {least}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"places": list(self.places)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MIGCConfig:
        return settings_of(cls, values, "MIGC")


# ---- the trained parts ----


class PositionNet(nn.Module):
    """HBB ``(..., 4)`` x_min, y_min, x_max, y_max -> position token ``(..., width)``."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linears_position = nn.Sequential(
            nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width)
        )

    def forward(self, hbb: Tensor) -> Tensor:
        return self.linears_position(fourier_code(hbb[..., [0, 2, 1, 3]]).to(next(self.parameters()).dtype))


class ChannelGate(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, mean: Tensor, peak: Tensor) -> Tensor:
        """Mean and maximum ``(n, channels)`` of each plane -> factors ``(n, channels)``."""
        return torch.sigmoid(self.mlp(mean) + self.mlp(peak))


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({"conv": nn.Conv2d(2, 1, 7, padding=3, bias=False)})

    def forward(self, peak: Tensor, mean: Tensor) -> Tensor:
        """Maximum and mean ``(n, h, w)`` over the channels -> factors ``(n, h, w)``."""
        return torch.sigmoid(self.spatial["conv"](torch.stack([peak, mean], dim=1)))[:, 0]


class CBAM(nn.Module):
    """Attention over channels, then over cells (Woo et al., ECCV 2018, without batch norm)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(channels, hidden), SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` -> the same."""
        x = x * self.ChannelGate(x.mean(dim=(2, 3)), x.amax(dim=(2, 3)))[..., None, None]
        return x * self.SpatialGate(x.amax(dim=1), x.mean(dim=1))[:, None]


class Shading(nn.Module):
    """Weights of the planes at each cell."""

    def __init__(self, width: int, slots: int, reduction: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width + 1, width, 1), nn.Conv2d(width, 1, 1)
        self.cbam1, self.cbam2 = CBAM(width, max(1, width // reduction)), CBAM(slots, slots)

    def logits(self, values: Tensor, mask: Tensor, plane: Tensor, cell: Tensor, planes: int, size: tuple[int, int]) -> Tensor:
        """Logit of each plane, before the attention over slots.

        Args:
            values: ``(K, C)`` features of those cells of all planes that are not zero; ``mask``: ``(K, 1)``.
            plane, cell: ``(K,)`` int64, which plane and cell each row of ``values`` is.
            planes: their number; ``size``: (height, width) of the grid.

        Returns:
            ``(planes, h, w)``.
        """
        weight, empty = self.conv1.weight[:, :, 0, 0], self.conv1.bias
        assert empty is not None
        hidden = (F.linear(values, weight[:, :-1], empty) + mask * weight[:, -1]).to(weight.dtype)  # autocast may have lowered it
        cells = size[0] * size[1]
        count = torch.zeros(planes, dtype=torch.int64, device=plane.device).index_add_(0, plane, torch.ones_like(plane))[:, None]
        total = hidden.new_zeros(planes, hidden.shape[1]).index_add(0, plane, hidden) + (cells - count) * empty
        outside = torch.where(count < cells, empty, torch.finfo(hidden.dtype).min)
        peak = outside.scatter_reduce(0, plane[:, None].expand_as(hidden), hidden, "amax")
        factor = self.cbam1.ChannelGate(total / cells, peak)
        hidden, outside = hidden * factor.index_select(0, plane), empty * factor

        def spread(inside: Tensor, elsewhere: Tensor) -> Tensor:
            """``(K,)`` and, for cells that no row is of, ``(planes,)`` -> ``(planes, h, w)``."""
            flat = elsewhere[:, None].expand(-1, cells).flatten()
            return flat.index_copy(0, plane * cells + cell, inside.to(flat.dtype)).view(planes, *size)

        focus = self.cbam1.SpatialGate(spread(hidden.amax(1), outside.amax(1)), spread(hidden.mean(1), outside.mean(1)))
        out = self.conv2.weight.flatten()
        assert self.conv2.bias is not None
        return spread(hidden @ out, outside @ out) * focus + self.conv2.bias


class MIGC(nn.Module):
    """The trained part of one ``attn2``; ``width`` is the layer's, ``context_width`` that of the text tokens."""

    def __init__(self, width: int, context_width: int, config: MIGCConfig):
        super().__init__()
        self.ea = CrossAttention(width, context_width, config.heads)
        self.la = CrossAttention(width, heads=config.heads)
        self.norm = nn.LayerNorm(width)
        self.sac = Shading(width, config.slots, config.reduction)
        self.pos_net = PositionNet(context_width, config.position_width)

    def forward(
        self, x: Tensor, caption: Tensor, text: Tensor, position: tuple[Tensor, Tensor], grid: GridContext
    ) -> tuple[Tensor, Tensor]:
        """Join what the layer sees of the caption and of each instance.

        Args:
            x: ``(R, P, C)`` what the layer is given, for the R conditional rows; ``caption``: its attention to the caption.
            text: ``(E, C)`` its attention to the text of the instances, at the entries of the grid.
            position: keys and values of the two tokens of each instance, see :func:`instance_tokens`.

        Returns:
            ``(R, P, C)``, and the weights ``(R, slots, P)`` of the planes.
        """
        rows, cells, _ = x.shape
        flat = x.flatten(0, 1)
        query = self.ea.to_q(self.norm(flat.index_select(0, grid.covered)))
        enhanced = self.ea.to_out[0](_attend_entries(query, *position, grid, grid.tiles.source))
        mask = grid.entry_mask.to(x.dtype)
        instances = mask * (text + enhanced)
        background = grid.background.to(x.dtype) * caption
        layout = self.la.attend(x, *self.la.keys_values(x), mask=grid.sight)

        # planes: the backgrounds of all rows, their layouts, all instances, and the null plane, of which no cell is given
        row_plane = torch.arange(rows, device=x.device).repeat_interleave(cells)
        row_cell = torch.arange(cells, device=x.device).repeat(rows)
        logits = self.sac.logits(
            torch.cat([background.flatten(0, 1), layout.flatten(0, 1), instances]),
            torch.cat([grid.background.flatten(0, 1), torch.ones_like(grid.background).flatten(0, 1), grid.entry_mask]).to(x.dtype),
            torch.cat([row_plane, rows + row_plane, 2 * rows + grid.entry_instance]),
            torch.cat([row_cell, row_cell, grid.entry_cell % cells]),
            2 * rows + grid.instances + 1,
            grid.size,
        )
        logits = self.sac.cbam2(logits.index_select(0, grid.planes.flatten()).view(*grid.planes.shape, *grid.size)).flatten(2)
        weights = logits.masked_fill(grid.free[..., None], -torch.inf).softmax(dim=1)
        mixed = weights[:, 0, :, None] * background + weights[:, -1, :, None] * layout
        share = weights.flatten().index_select(0, grid.entry_weight)[:, None]
        return mixed.flatten(0, 1).index_add(0, grid.entry_cell, (share * instances).to(mixed.dtype)).view_as(x), weights


def instance_tokens(migc: MIGC, pooled: Tensor, hbb: Tensor) -> Tensor:
    """Pooled text ``(V, D)`` and boxes ``(V, 4)`` of V instances -> their two tokens ``(V, 2, D)``."""
    return torch.stack([pooled, migc.pos_net(hbb).to(pooled.dtype)], dim=1)


def _attend_entries(query: Tensor, key: Tensor, value: Tensor, grid: GridContext, source: Tensor) -> Tensor:
    """Attention of the entries of a grid to one context each.

    Args:
        query: ``(K, C)`` of the covered cells; key, value: ``(S, heads, tokens, d)``; ``source``: the context of each tile.

    Returns:
        ``(E, C)``.
    """
    q = query.index_select(0, grid.tiles.cells).unflatten(0, (-1, grid.tiles.length))
    k, v = key.index_select(0, source), value.index_select(0, source)
    rows = join_heads(F.scaled_dot_product_attention(split_heads(q, key.shape[1]), k, v)).flatten(0, 1)
    return rows.index_select(0, grid.entry_slot)


# ---- what the layout says ----


def instance_masks(hbb: Tensor, picture: Tensor, count: int, image_size: tuple[int, int], *sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where each instance and where no instance is, as published.

    Boxes are filled at picture resolution, corners truncated to whole pixels, and resized bilinearly to each of ``sizes`` in turn.
    A box beyond the picture counts as far as it is inside.

    Args:
        hbb: ``(V, 4)`` normalised; truncated in double precision.
        picture: ``(V,)`` int64 which of ``count`` pictures each is in.

    Returns:
        ``(V, h, w)`` and ``(count, h, w)`` float32 on the grid of the last size.
    """
    down, across, union = _fill(hbb, picture, count, image_size)
    for size in sizes:
        down, across = (_line(line, length) for line, length in zip((down, across), size, strict=True))
        union = F.interpolate(union[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return down[:, :, None] * across[:, None], union


def area_masks(hbb: Tensor, picture: Tensor, count: int, image_size: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """As :func:`instance_masks`, but the share of each cell that is covered: no box between two sample points is lost."""
    box = hbb.double().clamp(0, 1).float()

    def share(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edge = torch.arange(cells + 1, device=hbb.device, dtype=torch.float32) / cells
        return ((torch.minimum(high[:, None], edge[1:]) - torch.maximum(low[:, None], edge[:-1])) * cells).clamp(0, 1)

    union = _fill(hbb, picture, count, image_size)[2]
    masks = share(box[:, 1], box[:, 3], size[0])[:, :, None] * share(box[:, 0], box[:, 2], size[1])[:, None]
    return masks, F.adaptive_avg_pool2d(union[:, None], size)[:, 0]


def _fill(hbb: Tensor, picture: Tensor, count: int, image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows ``(V, H)`` and columns ``(V, W)`` of each box, and ``(count, H, W)`` where none is: 0 or 1 in float32."""
    lines = []
    for axis, length in ((1, image_size[0]), (0, image_size[1])):
        first, last = (hbb[:, axis].double() * length).trunc(), (hbb[:, axis + 2].double() * length).trunc()
        pixel = torch.arange(length, device=hbb.device)
        lines.append(((pixel >= first[:, None]) & (pixel < last[:, None])).float())
    down, across = lines
    union = torch.stack([(down[picture == b].T @ across[picture == b] == 0).float() for b in range(count)] or [down.new_zeros(image_size)])
    return down, across, union[:count]


def _line(line: Tensor, length: int) -> Tensor:
    """Bilinear resizing of a product of rows and columns is that of each: ``(V, n)`` -> ``(V, length)``."""
    return F.interpolate(line[:, None], size=length, mode="linear", align_corners=False)[:, 0] if len(line) else line.new_zeros(0, length)


def slot_order(hbb: Tensor, class_index: Tensor, valid: Tensor) -> Tensor:
    """Rank of each instance in its picture, by its box, then its class: ``(B, N)`` int64, whatever order they are given in."""
    order = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    for key in (class_index, *(hbb[..., k] for k in (3, 2, 1, 0)), (~valid).int()):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(dim=1)


@dataclass
class GridContext:
    """What the layout says on one grid of P = h x w cells, for R conditional rows with V instances in all.

    An entry is a cell that the mask of an instance reaches; there are E.

    Attributes:
        size: (h, w).
        instances: V.
        background: ``(R, P, 1)`` mask of what no instance covers.
        sight: ``(R, 1, P, P)`` bool, which cells see each other in the layout attention.
        covered: ``(K,)`` cells that some instance reaches, counted through the rows.
        tiles: tiles of the covered cells over the instances.
        entry_slot: ``(E,)`` place of each entry in the tiles.
        entry_instance, entry_cell: ``(E,)`` its instance and its cell, the latter counted through the rows.
        entry_mask: ``(E, 1)``.
        entry_weight: ``(E,)`` where its weight stands among all ``(R, slots, P)``.
        planes: ``(R, slots)`` the plane in each slot: R backgrounds, R layouts, V instances, then the null plane.
        free: ``(R, slots)`` bool, slots of the null plane.
    """

    size: tuple[int, int]
    instances: int
    background: Tensor
    sight: Tensor
    covered: Tensor
    tiles: Tiles
    entry_slot: Tensor
    entry_instance: Tensor
    entry_cell: Tensor
    entry_mask: Tensor
    entry_weight: Tensor
    planes: Tensor
    free: Tensor


@dataclass
class FuserContext:
    """What the plain fuser needs on one grid: ``tiles`` of cells over the class names, and the masks' sum ``(R, P, 1)``."""

    tiles: Tiles
    mask_sum: Tensor


@dataclass
class MIGCContext:
    """All that does not change over the denoising steps, for one batch of pictures and one UNet.

    Attributes:
        rows: ``(R,)`` int64, rows of the UNet batch that are conditional and have instances.
        source: ``(V,)`` int64 into the class names, of the instances of those rows.
        grids: by grid size; ``grid_of`` by module name.
        text: keys and values of the class names by module name; ``position``: those of the instances' two tokens.
        fusers: by grid size; empty where no step uses the plain fuser.
        module, fuser: whether the module, and elsewhere the plain fuser, work at this step.
    """

    rows: Tensor
    source: Tensor
    grids: dict[tuple[int, int], GridContext] = field(default_factory=dict)
    grid_of: dict[str, tuple[int, int]] = field(default_factory=dict)
    text: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    position: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    fusers: dict[tuple[int, int], FuserContext] = field(default_factory=dict)
    module: bool = True
    fuser: bool = False

    def at(self, share: float, config: MIGCConfig) -> MIGCContext | None:
        """What works when ``share`` of the denoising steps is done; None: nothing does."""
        module, fuser = share <= config.active, config.fuser is not None and share <= config.fuser
        return dataclasses.replace(self, module=module, fuser=fuser) if module or fuser else None


class MIGCProcessor(nn.Module):
    """Cross-attention to the caption; for the conditional rows also the module (where the layer has one) or the plain fuser."""

    def __init__(self, name: str, migc: MIGC | None):
        super().__init__()
        self.name = name
        self.migc = migc

    # NOTE: __call__ rather than forward, because diffusers reads its signature to see which keywords a processor takes
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        conditioning: MIGCContext | None = None,
    ) -> Tensor:
        query, attended = caption_attention(attn, hidden_states, encoder_hidden_states, attention_mask)
        plain = attn.to_out[1](attn.to_out[0](attended))
        if conditioning is None or not (conditioning.fuser or (self.migc is not None and conditioning.module)):
            return plain
        rows, size = conditioning.rows, conditioning.grid_of[self.name]
        background = conditioning.grids[size].background
        query = query.index_select(0, rows)
        if query.shape[:2] != background.shape[:2]:
            raise ValueError(
                f"the context is of {tuple(background.shape[:2])} (conditional rows, cells), the layer got {tuple(query.shape[:2])}"
            )
        text = conditioning.text[self.name]
        if self.migc is not None and conditioning.module:
            grid = conditioning.grids[size]
            source = conditioning.source.index_select(0, grid.tiles.source)
            words = attn.to_out[0](_attend_entries(query.flatten(0, 1).index_select(0, grid.covered), *text, grid, source))
            x, base = hidden_states.index_select(0, rows), plain.index_select(0, rows)
            result = self.migc(x, base, words, conditioning.position[self.name], grid)[0]
        else:
            fuser = conditioning.fusers[size]
            words = tiled_attention(torch.zeros_like(query).flatten(0, 1), query.flatten(0, 1), *text, fuser.tiles).view_as(query)
            result = _plain_fuser(attn, attended.index_select(0, rows), words, fuser.mask_sum.to(query.dtype))
        return plain.index_copy(0, rows, result.to(plain.dtype))


def _plain_fuser(attn: Attention, caption: Tensor, words: Tensor, mask_sum: Tensor) -> Tensor:
    """Attention to the caption and, by mask, to the instances' text, both before the output projection: one projection serves all."""
    project: Any = attn.to_out[0]
    out = F.linear(caption + _FUSER_WEIGHT * words, project.weight)
    if project.bias is not None:
        out = out + (1 + _FUSER_WEIGHT * mask_sum) * project.bias
    return out / (1 + _FUSER_WEIGHT * mask_sum + 1e-6)


def _layers(unet: UNet2DConditionModel) -> dict[str, tuple[Attention, MIGC | None]]:
    """The cross-attentions by name, in the order of the module tree."""
    return {
        name: (module, module.processor.migc)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and isinstance(module.processor, MIGCProcessor)
    }


def install_migc(unet: UNet2DConditionModel, config: MIGCConfig) -> None:
    """Put the module into the ``attn2`` layers under ``config.places``; its weights are random.

    A plain ``UNet2DConditionModel`` becomes a :class:`MIGCUNet` in place, so that saving keeps the module.

    Raises:
        CCDiffError: a place that holds no cross-attention, or a width that the heads do not divide.
    """
    used: set[str] = set()
    for name, module in list(unet.named_modules()):
        if not isinstance(module, Attention):
            continue
        if not name.endswith(".attn2"):
            module.set_processor(PlainProcessor())
            continue
        place = next((p for p in config.places if name == p or name.startswith(p + ".")), None)
        migc, weight = None, module.to_q.weight
        if place is not None:
            used.add(place)
            if module.to_q.in_features % config.heads:
                raise CCDiffError(f"MIGC: {name} is {module.to_q.in_features} wide, which {config.heads} heads do not divide")
            migc = MIGC(module.to_q.in_features, module.to_k.in_features, config)
        module.set_processor(MIGCProcessor(name, migc).to(device=weight.device, dtype=weight.dtype))
    if missing := [place for place in config.places if place not in used]:
        raise CCDiffError(
            f"MIGC: no cross-attention under {', '.join(missing)}",
            fix="name blocks of the UNet that have cross-attention, for example mid_block, up_blocks.1",
        )
    if type(unet) is UNet2DConditionModel:
        unet.__class__ = MIGCUNet
    unet.register_to_config(migc=config.to_dict())


def migc_config(unet: UNet2DConditionModel) -> MIGCConfig:
    """The configuration that :func:`install_migc` stored."""
    return MIGCConfig.from_dict(unet.config.migc)


def migc_parameters(unet: UNet2DConditionModel) -> Iterator[nn.Parameter]:
    """Parameters of the module: all that MIGC trains."""
    for _, migc in _layers(unet).values():
        if migc is not None:
            yield from migc.parameters()


def prepare_context(
    unet: UNet2DConditionModel,
    batch: LayoutBatch,
    conditional: Tensor | None = None,
    *,
    guidance: bool = False,
    order: Tensor | None = None,
) -> MIGCContext:
    """All that the layers need of a batch and that does not change over the steps; on the device of ``batch``.

    Args:
        batch: B pictures; ``hbb``, ``valid``, ``class_index``, ``class_tokens`` and ``class_pooled`` are used.
        conditional: ``(B,)`` bool; rows with False go through the plain cross-attention.  None: all are conditional.
        guidance: the UNet batch will be ``[unconditional x B, conditional x B]``.
        order: ``(slots - 2,)`` or ``(B, slots - 2)`` permutation: which instance, counted through the valid ones, or null plane
            each slot holds.  None: by :func:`slot_order`.

    Returns:
        what goes into ``unet(..., cross_attention_kwargs={"conditioning": context})``; see also :meth:`MIGCContext.at`.

    Raises:
        CCDiffError: a picture has more instances than there are slots for.
    """
    if guidance and conditional is not None:
        raise ValueError("with guidance every picture has a conditional row: leave conditional out")
    config, device = migc_config(unet), batch.hbb.device
    most = int(batch.valid.sum(1).max()) if batch.valid.numel() else 0
    if most > config.slots - 2:
        raise CCDiffError(
            f"a picture has {most} instances, this MIGC takes {config.slots - 2}",
            fix="leave instances out, or train with more slots",
        )
    used = batch.valid.any(1) if conditional is None else batch.valid.any(1) & conditional
    pictures = used.nonzero()[:, 0]
    valid, hbb, classes = batch.valid[pictures], batch.hbb[pictures], batch.class_index[pictures]
    slots = _slots(hbb, classes, valid, None if order is None else order.expand(len(used), -1)[pictures], config.slots - 2)
    row = valid.nonzero()[:, 0]
    context = MIGCContext(pictures + len(used) if guidance else pictures, classes[valid])
    layers = _layers(unet)
    sizes = grid_sizes(unet, layers, batch.latent_size)
    for name, (attn, migc) in layers.items():
        if migc is None and config.fuser is None:
            continue
        size = context.grid_of[name] = sizes[name]
        if size not in context.grids:
            if config.masks == "area":
                masks, background = area_masks(hbb[valid], row, len(pictures), batch.image_size, size)
            else:
                masks, background = instance_masks(hbb[valid], row, len(pictures), batch.image_size, batch.latent_size, size)
            context.grids[size] = _grid_context(masks, background, row, slots[valid], config.slots)
            if config.fuser is not None:
                context.fusers[size] = _fuser_context(masks, row, len(pictures), classes[valid], len(batch.class_tokens))
        dtype = attn.to_q.weight.dtype
        words = batch.class_tokens.to(device=device, dtype=dtype)
        context.text[name] = (split_heads(attn.to_k(words), attn.heads), split_heads(attn.to_v(words), attn.heads))
        if migc is not None:
            tokens = instance_tokens(migc, batch.class_pooled.to(dtype)[classes[valid]], hbb[valid])
            context.position[name] = migc.ea.keys_values(tokens)
    return context


def _slots(hbb: Tensor, classes: Tensor, valid: Tensor, order: Tensor | None, middle: int) -> Tensor:
    """Which of the ``middle`` slots each instance has: ``(R, N)`` int64."""
    if order is None:
        return slot_order(hbb, classes, valid)
    if order.shape[1:] != (middle,) or not bool((order.sort(dim=1).values == torch.arange(middle, device=order.device)).all()):
        raise ValueError(f"a slot order is a permutation of {middle} numbers")
    number = valid.cumsum(1) - 1  # of each instance among the valid ones
    return order.argsort(dim=1).gather(1, number.clamp(min=0))


def _grid_context(masks: Tensor, background: Tensor, row: Tensor, slot: Tensor, slots: int) -> GridContext:
    """``masks`` (V, h, w), ``background`` (R, h, w); ``row`` and ``slot`` (V,) of each instance."""
    rows, height, width = background.shape
    cells, count, device = height * width, len(masks), masks.device
    tiles = make_tiles(masks.flatten(1), row * cells, 0.0, min(_TILE, cells))
    entry = (tiles.weight[:, 0] > 0).nonzero()[:, 0]
    instance = tiles.source.repeat_interleave(tiles.length)[entry]
    cell = tiles.cells[entry]
    reached = torch.zeros(rows * cells, dtype=torch.bool, device=device)
    reached[cell] = True
    if len(cell):  # an unused place of a tile may point at any cell
        tiles.cells = (reached.cumsum(0)[tiles.cells] - 1).clamp(min=0)
    # the regions of each row: its instances by slot, and the background
    regions = torch.zeros(rows, slots - 1, height, width, dtype=torch.bool, device=device)
    regions[row, slot] = masks > 0
    regions[:, -1] = background > 0
    planes = torch.full((rows, slots), 2 * rows + count, device=device)
    planes[:, 0] = torch.arange(rows, device=device)
    planes[:, -1] = rows + torch.arange(rows, device=device)
    planes[row, slot + 1] = 2 * rows + torch.arange(count, device=device)
    return GridContext(
        size=(height, width),
        instances=count,
        background=background.flatten(1)[..., None],
        sight=may_attend(regions)[:, None],
        covered=reached.nonzero()[:, 0],
        tiles=tiles,
        entry_slot=entry,
        entry_instance=instance,
        entry_cell=cell,
        entry_mask=tiles.weight[entry],
        entry_weight=((row * slots + slot + 1)[instance]) * cells + cell % cells,
        planes=planes,
        free=planes == 2 * rows + count,
    )


def _fuser_context(masks: Tensor, row: Tensor, rows: int, classes: Tensor, class_count: int) -> FuserContext:
    flat = masks.flatten(1)
    cells = flat.shape[1]
    by_class = flat.new_zeros(class_count * rows, cells).index_add_(0, classes * rows + row, flat).view(class_count, rows * cells)
    mask_sum = flat.new_zeros(rows, cells).index_add_(0, row, flat)
    return FuserContext(make_tiles(by_class, None, 0.0, min(_TILE, cells)), mask_sum[..., None])


class MIGCUNet(UNet2DConditionModel):
    """A ``UNet2DConditionModel`` that remembers its module, so that ``save_pretrained`` and ``from_pretrained`` keep it.

    Args:
        migc: a :class:`MIGCConfig` as a dictionary; None: a plain UNet.
        unet: the arguments of ``UNet2DConditionModel``.
    """

    def __init__(self, migc: dict[str, Any] | None = None, **unet: Any):
        super().__init__(**unet)
        self.register_to_config(migc=migc)
        if migc is not None:
            install_migc(self, MIGCConfig.from_dict(migc))


remember(MIGCUNet, "migc")
