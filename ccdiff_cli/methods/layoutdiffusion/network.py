"""LayoutDiffusion's network: a layout encoder, a UNet of its own and object-aware cross attention inside it; names as released.

Notable here:
- the published program fills a picture up to L slots, and its padding takes part: in the encoder's attention, in the statistics of
  the norms over slots, and as keys.  P equal padding slots are one slot of weight P (ln P added to its logits, P times in the
  statistics), so a picture here has slot 0, its N objects and one padding slot of weight ``max(L - 1 - N, 0)``: exactly the published
  result, whatever else is in the batch.
- what an object says to a layer does not depend on the picture or on the time: :meth:`LayoutDiffusionUNet.prepare` computes it once.
- grids are square as published; boxes are horizontal, captions are not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ...errors import CCDiffError

GROUPS = 32
PICTURE = 0
"""The class of slot 0, which stands for the whole picture."""


@dataclass
class Layout:
    """B pictures in S slots each.

    Attributes:
        classes: ``(B, S)`` int64; slot 0 is the picture (class 0), objects are 1 to K - 2, padding is K - 1.
        boxes: ``(B, S, 4)`` x_min, y_min, x_max, y_max in [0, 1]; (0, 0, 1, 1) for the picture, zeros for padding.
        weight: ``(B, S)`` how many published slots each one stands for; 0: none.
    """

    classes: Tensor
    boxes: Tensor
    weight: Tensor

    def to(self, device: torch.device | str | None = None) -> Layout:
        """A copy on ``device``."""
        return Layout(self.classes.to(device), self.boxes.to(device), self.weight.to(device))

    def without_objects(self, padding: int) -> Layout:
        """The unconditional branch: every object becomes padding (class ``padding``), slot 0 stays."""
        classes, boxes = torch.full_like(self.classes, padding), torch.zeros_like(self.boxes)
        classes[:, 0], boxes[:, 0] = self.classes[:, 0], self.boxes[:, 0]
        return Layout(classes, boxes, self.weight)


def pack_layout(classes: Tensor, boxes: Tensor, valid: Tensor, slots: int, padding: int) -> Layout:
    """The slots of pictures with any number of objects.

    Args:
        classes: ``(B, N)`` int64 from 1 to K - 2; boxes: ``(B, N, 4)`` normalised; valid: ``(B, N)`` bool.
        slots: L; padding: the class K - 1.

    Returns:
        slot 0, the N places and one padding slot; places that are not valid weigh nothing.
    """
    size, device = len(classes), boxes.device
    own = valid.sum(1)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=device)
    return Layout(
        torch.cat([classes.new_full((size, 1), PICTURE), classes.where(valid, padding), classes.new_full((size, 1), padding)], dim=1),
        torch.cat([whole.expand(size, 1, 4), boxes.float() * valid[..., None], boxes.new_zeros(size, 1, 4).float()], dim=1),
        torch.cat([torch.ones(size, 1, device=device), valid.float(), (slots - 1 - own).clamp(min=0)[:, None].float()], dim=1),
    )


def _group_norm(norm: nn.GroupNorm, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """GroupNorm of ``(B, C, S)`` whose statistics count slot s ``weight[:, s]`` times; None: each once."""
    if weight is None:
        return norm(x)
    grouped, share = x.float().unflatten(1, (norm.num_groups, -1)), (weight / weight.sum(1, keepdim=True))[:, None, None]
    mean = (grouped * share).sum(-1, keepdim=True).mean(2, keepdim=True)
    centred = grouped - mean
    variance = (centred**2 * share).sum(-1, keepdim=True).mean(2, keepdim=True)
    normed = (centred * (variance + norm.eps).rsqrt()).flatten(1, 2).to(x.dtype)
    return normed * norm.weight[:, None] + norm.bias[:, None]


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(B, C, n)`` -> ``(B, heads, n, C / heads)``: heads are runs of channels."""
    return x.unflatten(1, (heads, -1)).transpose(-1, -2)


def _zeroed(module: nn.Module) -> nn.Module:
    """A layer that starts as zero, so that what it ends starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, u: Tensor, bias: Tensor) -> Tensor:
        query, key, value = self.c_qkv(u).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.c_proj(attended.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, u: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(u)))


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn, self.ln_1 = _SelfAttention(width, heads), nn.LayerNorm(width)
        self.mlp, self.ln_2 = _MLP(width), nn.LayerNorm(width)

    def forward(self, u: Tensor, bias: Tensor) -> Tensor:
        u = u + self.attn(self.ln_1(u), bias)
        return u + self.mlp(self.ln_2(u))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList(_EncoderBlock(width, heads) for _ in range(layers))

    def forward(self, u: Tensor, bias: Tensor) -> Tensor:
        for block in self.resblocks:
            u = block(u, bias)
        return u


class LayoutEncoder(nn.Module):
    """Slots to tokens that know of one another, and one vector for the whole layout."""

    def __init__(self, classes: int, width: int, out_width: int, layers: int, heads: int):
        super().__init__()
        self.obj_class_embedding = nn.Embedding(classes, width)
        self.obj_bbox_embedding = nn.Linear(4, width)
        self.transform = _Transformer(width, layers, heads)
        self.final_ln = nn.LayerNorm(width)
        self.transformer_proj = nn.Linear(width, out_width)

    def forward(self, layout: Layout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class codes ``(B, S, D)``, box codes ``(B, S, D)``, tokens ``(B, S, D)`` and the layout's vector ``(B, M)``."""
        names = self.obj_class_embedding(layout.classes)
        places = self.obj_bbox_embedding(layout.boxes.to(names.dtype))
        tokens = self.final_ln(self.transform(names + places, layout.weight.log()[:, None, None]))
        return names, places, tokens, self.transformer_proj(tokens[:, 0])


@dataclass
class ObjectContext:
    """What one attention layer needs of the layouts: places of the cells and keys and values of the slots.

    Attributes:
        cells: ``(1, heads, P, d)`` places of the cells.
        key: ``(B, heads, S, 2 d)``; value: ``(B, heads, S, d)``.
        bias: ``(B, 1, 1, P + S)`` added to the logits.
    """

    cells: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor


class ObjectAwareAttention(nn.Module):
    """Cells attend to cells and slots, by content and place."""

    def __init__(self, width: int, heads: int, layout_width: int, grid: int):
        super().__init__()
        self.heads, self.grid = heads, grid
        self.norm_for_qkv = nn.GroupNorm(GROUPS, width)
        self.qkv_projector = nn.Conv1d(width, 3 * width, 1)
        self.layout_content_embedding_projector = nn.Conv1d(layout_width, 2 * width, 1)
        self.layout_position_embedding_projector = nn.Conv1d(layout_width, width, 1)
        self.norm_for_obj_class_embedding = nn.GroupNorm(GROUPS, layout_width)
        self.norm_for_layout_positional_embedding = nn.GroupNorm(GROUPS, width)
        self.norm_for_image_patch_positional_embedding = nn.GroupNorm(GROUPS, width)
        self.proj_out = _zeroed(nn.Conv1d(width, width, 1))

    def cell_boxes(self) -> Tensor:
        """``(P, 4)`` boxes of the cells, row by row."""
        device = self.qkv_projector.weight.device
        row, column = torch.meshgrid(*[torch.arange(self.grid, device=device)] * 2, indexing="ij")
        return torch.stack([column, row, column + 1, row + 1], dim=-1).flatten(0, 1) / self.grid

    def prepare(self, names: Tensor, places: Tensor, tokens: Tensor, weight: Tensor, cell_codes: Tensor) -> ObjectContext:
        """The encoder's codes and tokens ``(B, S, D)``, weights ``(B, S)`` and codes of the cells ``(P, D)``."""
        names, places, tokens = (x.transpose(1, 2) for x in (names, places, tokens))
        project = self.layout_position_embedding_projector
        cells = self.norm_for_image_patch_positional_embedding(project(cell_codes.T[None]))
        where = _group_norm(self.norm_for_layout_positional_embedding, project(places), weight)
        content = (tokens + _group_norm(self.norm_for_obj_class_embedding, names, weight)) / 2
        key, value = self.layout_content_embedding_projector(content).chunk(2, dim=1)
        bias = F.pad(weight.log(), (self.grid**2, 0))[:, None, None]
        key = torch.cat([_heads(key, self.heads), _heads(where, self.heads)], dim=-1)
        return ObjectContext(_heads(cells, self.heads), key, _heads(value, self.heads), bias)

    def forward(self, x: Tensor, context: ObjectContext) -> Tensor:
        """``(B, C, R, R)`` -> the same."""
        flat = x.flatten(2)
        query, key, value = (_heads(part, self.heads) for part in self.qkv_projector(self.norm_for_qkv(flat)).chunk(3, dim=1))
        cells = context.cells.expand(len(x), -1, -1, -1)
        query = torch.cat([query, cells], dim=-1)
        key = torch.cat([torch.cat([key, cells], dim=-1), context.key], dim=2)
        value = torch.cat([value, context.value], dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=context.bias.to(query.dtype))
        return x + self.proj_out(attended.transpose(-1, -2).flatten(1, 2)).view_as(x)


class ResidualBlock(nn.Module):
    """Two convolutions with the time between them; ``resample``: 0.5 halves the grid, 2 doubles it."""

    def __init__(self, width: int, out_width: int, time_width: int, dropout: float, resample: float = 1):
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, out_width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * out_width))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_width), nn.SiLU(), nn.Dropout(dropout), _zeroed(nn.Conv2d(out_width, out_width, 3, padding=1))
        )
        self.skip_connection = nn.Conv2d(width, out_width, 1) if width != out_width else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == 2:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == 0.5 else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self._resampled(self.in_layers[1](self.in_layers[0](x))))
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(self._resampled(x)) + self.out_layers[1:](h)


@dataclass
class LayoutContext:
    """All that does not change over the denoising steps, for the B rows of a batch: by layer, and what is added to the time."""

    layers: dict[str, ObjectContext]
    whole: Tensor


class LayoutDiffusionUNet(ModelMixin, ConfigMixin):
    """The whole model.

        context = model.prepare(layout)
        model(x, t, context)

    Args:
        image_size: side of the (square) pictures or latents.
        in_channels: of the pictures; the result has twice as many (noise, then variance).
        model_channels, channel_mult, num_res_blocks: the UNet's widths and depth.
        attention_ds: down-sampling factors of the levels that attend to objects (the middle always does).
        num_head_channels: width of an attention head; -1: ``num_heads`` of them.
        classes: K, with the picture (0) and padding (K - 1).
        slots: L, see :func:`pack_layout`.
        layout_width, layout_layers, layout_heads: of the layout encoder.
        dropout: in the residual blocks.
        class_names: of classes 1 to K - 2, where they are known.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks: ClassVar = ["ResidualBlock", "ObjectAwareAttention"]

    @register_to_config
    # wide: its saved configuration
    def __init__(
        self,
        image_size: int = 256,
        in_channels: int = 3,
        model_channels: int = 256,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_ds: Sequence[int] = (8, 16, 32),
        num_head_channels: int = 64,
        num_heads: int = -1,
        classes: int = 185,
        slots: int = 10,
        layout_width: int = 256,
        layout_layers: int = 6,
        layout_heads: int = 8,
        dropout: float = 0.0,
        class_names: Sequence[str] = (),
    ):
        super().__init__()
        self.gradient_checkpointing = False
        _check(locals())
        time_width = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.layout_encoder = LayoutEncoder(classes, layout_width, time_width, layout_layers, layout_heads)

        def residual(width: int, out_width: int, resample: float = 1) -> ResidualBlock:
            return ResidualBlock(width, out_width, time_width, dropout, resample)

        def attention(width: int, ds: int) -> ObjectAwareAttention:
            heads = num_heads if num_head_channels == -1 else width // num_head_channels
            return ObjectAwareAttention(width, heads, layout_width, image_size // ds)

        width, ds = model_channels * channel_mult[0], 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(in_channels, width, 3, padding=1)])])
        skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block: list[nn.Module] = [residual(width, model_channels * mult)]
                width = model_channels * mult
                if ds in attention_ds:
                    block.append(attention(width, ds))
                self.input_blocks.append(nn.ModuleList(block))
                skips.append(width)
            if level + 1 < len(channel_mult):
                self.input_blocks.append(nn.ModuleList([residual(width, width, 0.5)]))
                skips.append(width)
                ds *= 2
        self.middle_block = nn.ModuleList([residual(width, width), attention(width, ds), residual(width, width)])
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                block = [residual(width + skips.pop(), model_channels * mult)]
                width = model_channels * mult
                if ds in attention_ds:
                    block.append(attention(width, ds))
                if level and i == num_res_blocks:
                    block.append(residual(width, width, 2))
                    ds //= 2
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), _zeroed(nn.Conv2d(width, 2 * in_channels, 3, padding=1)))

    @property
    def padding(self) -> int:
        """The class of padding slots."""
        return self.config.classes - 1

    def prepare(self, layout: Layout) -> LayoutContext:
        """What the layers need of a batch of layouts; gradients flow into the encoder unless under ``torch.no_grad``."""
        names, places, tokens, whole = self.layout_encoder(layout)
        layers = {}
        for name, module in self.named_modules():
            if isinstance(module, ObjectAwareAttention):
                codes = self.layout_encoder.obj_bbox_embedding(module.cell_boxes().to(names.dtype))
                layers[name] = module.prepare(names, places, tokens, layout.weight.to(names.dtype), codes)
        return LayoutContext(layers, whole)

    def forward(self, x: Tensor, timestep: Tensor, context: LayoutContext) -> Tensor:
        """``(B, C, R, R)`` noisy pictures at times ``(B,)`` or ``()``, also fractional -> ``(B, 2 C, R, R)``: noise, then variance."""
        if x.shape[-2:] != (self.config.image_size,) * 2:
            raise ValueError(f"pictures of {tuple(x.shape[-2:])}, the model's are {self.config.image_size} square")
        times = torch.as_tensor(timestep, device=x.device).reshape(-1).expand(len(x))
        emb = self.time_embed(_time_code(times, self.config.model_channels).to(x.dtype)) + context.whole

        def run(block: nn.Module, name: str, h: Tensor) -> Tensor:
            for i, module in enumerate(block.children()):
                given: tuple[Any, ...] = (h,)
                if isinstance(module, ResidualBlock):
                    given = (h, emb)
                elif isinstance(module, ObjectAwareAttention):
                    given = (h, context.layers[f"{name}.{i}"])
                again = self.gradient_checkpointing and torch.is_grad_enabled()
                h = self._gradient_checkpointing_func(module, *given) if again else module(*given)
            return h

        skips = []
        h = x
        for i, block in enumerate(self.input_blocks):
            h = run(block, f"input_blocks.{i}", h)
            skips.append(h)
        h = run(self.middle_block, "middle_block", h)
        for i, block in enumerate(self.output_blocks):
            h = run(block, f"output_blocks.{i}", torch.cat([h, skips.pop()], dim=1))
        return self.out(h)


def _time_code(times: Tensor, width: int) -> Tensor:
    """``(B,)`` -> ``(B, width)`` float32: cosines, then sines."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _check(sizes: dict) -> None:
    """Sizes that make a network, or a :class:`CCDiffError` that names the one that does not."""
    channels, mults, image = sizes["model_channels"], sizes["channel_mult"], sizes["image_size"]
    if channels % GROUPS or sizes["layout_width"] % GROUPS:
        raise CCDiffError(
            f"LayoutDiffusion: widths of {channels} and {sizes['layout_width']} (layout_width)", fix=f"take multiples of {GROUPS}"
        )
    if image % 2 ** (len(mults) - 1):
        raise CCDiffError(f"LayoutDiffusion: pictures of {image} cannot be halved {len(mults) - 1} times", fix="take a multiple of it")
    if sizes["layout_width"] % sizes["layout_heads"]:
        raise CCDiffError(f"LayoutDiffusion: layout_width {sizes['layout_width']} does not divide into {sizes['layout_heads']} heads")
    if sizes["class_names"] and len(sizes["class_names"]) + 2 != sizes["classes"]:
        raise CCDiffError(f"LayoutDiffusion: {len(sizes['class_names'])} class names for {sizes['classes'] - 2} classes")
    if sizes["classes"] < 2 or sizes["slots"] < 1:
        raise CCDiffError("LayoutDiffusion: needs two classes (picture and padding) and one slot at least")
    head = sizes["num_head_channels"]
    odd = [channels * m for m in mults if (channels * m) % (head if head != -1 else sizes["num_heads"])]
    if odd:
        raise CCDiffError(f"LayoutDiffusion: levels {odd} wide do not divide into heads", fix="choose num_head_channels that divides them")
