"""AeroGen's network: a Stable Diffusion 1.x UNet with a token for each object and one mask attention.

Notable here:
- every ``attn2`` attends to the caption and, with keys and values of its own, to one token for each object.
- the published program fills a picture up to S slots; a slot without an object gives the same learned token, and all S are attended to.
  P equal tokens are one token whose logit is ln P higher, so a picture here has its N objects and one empty token that counts for
  ``max(S, N) - N``: exactly the published result, whatever else is in the batch.
- the mask attention is a map of each cell by the class of the objects that cover it, computed at the covered cells alone; the published
  program computes it on the whole grid for each slot.
- NOTE: masks are polygons of corners cut to whole cells, drawn on the latent grid; not a drawing of the picture made smaller.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin as ModelMixin  # diffusers looks it up here when it loads a saved AeroGenUNet
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ...errors import CCDiffError
from ...models.layers import PlainProcessor, fourier_code
from ...models.unets import remember, settings_of

RASTERS = ("opencv", "pillow")


@dataclass(frozen=True)
class LayoutConfig:
    """How a UNet takes a layout; saved in its configuration.

    Attributes:
        class_width: of the class vectors; published: 768.
        slots: S, objects and empty tokens a picture has at least; published: 15 in training.
        frequencies: of the code of the corners; published: 8.
        hidden: width of the layout encoder; published: 512.
        mask_strength: share of the mask attention in its output; published: 0.2.
        mask_threshold: time steps below this leave the mask attention out; published: 200.
        raster: how polygons are drawn: "opencv" as in training, "pillow" as the published quick program does (a few cells at the rim).
        first_sample_decides: whether the time of a batch's first picture decides on ``mask_threshold`` for all, as released.
    """

    class_width: int = 768
    slots: int = 15
    frequencies: int = 8
    hidden: int = 512
    mask_strength: float = 0.2
    mask_threshold: int = 200
    raster: str = "opencv"
    first_sample_decides: bool = False

    def __post_init__(self) -> None:
        if self.raster not in RASTERS:
            raise CCDiffError(f"AeroGen: raster is {self.raster!r}", fix=f"choose one of {', '.join(RASTERS)}")
        for key in ("class_width", "slots", "frequencies", "hidden"):
            if getattr(self, key) < 1:
                raise CCDiffError(f"AeroGen: {key} is {getattr(self, key)}", fix="give at least 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayoutConfig:
        return settings_of(cls, values, "AeroGen")


@dataclass
class Layout:
    """B pictures of one size with up to N objects each.

    Attributes:
        obb: ``(B, N, 8)`` x1 y1 x2 y2 x3 y3 x4 y4 from the left top corner clockwise, divided by the picture's width and height.
        vectors: ``(B, N, D)`` class vectors.
        valid: ``(B, N)`` bool; places without an object count as empty slots of no picture.
        grid: (height, width) of the latents.
    """

    obb: Tensor
    vectors: Tensor
    valid: Tensor
    grid: tuple[int, int]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Layout:
        """A copy on ``device``; class vectors also become ``dtype``."""
        return Layout(self.obb.to(device), self.vectors.to(device, dtype), self.valid.to(device), self.grid)


def clockwise(corners: Tensor) -> Tensor:
    """``(..., 4, 2)`` corners of boxes in any order round them -> ``(..., 8)`` clockwise from the left top one, x1 y1 x2 y2 ...

    The left top corner is the one of the smallest x + y, of two equal ones the upper: a box turned by 45 degrees starts at its top.
    """
    x, y = corners[..., 0], corners[..., 1]
    area = (x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1)
    corners = torch.where((area < 0)[..., None, None], corners.flip(-2), corners)  # y points down
    total = corners.sum(-1)
    least = total <= total.amin(-1, keepdim=True) + 1e-6
    first = torch.where(least, corners[..., 1], torch.inf).argmin(-1)
    order = (first[..., None] + torch.arange(4, device=corners.device)) % 4
    return corners.gather(-2, order[..., None].expand_as(corners)).flatten(-2)


def cell_corners(obb: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(..., 8)`` normalised corners -> float32 whole cells, cut toward zero; negative where a box leaves the picture."""
    height, width = grid
    return (obb.float() * torch.tensor([width, height] * 4, dtype=torch.float32, device=obb.device)).trunc()


def rasters(corners: Tensor, grid: tuple[int, int], how: str = "opencv") -> Tensor:
    """The cells inside each polygon, its edge included.

    Args:
        corners: ``(n, 8)`` whole cells.
        how: one of ``RASTERS``.

    Returns:
        ``(n, h, w)`` bool on the CPU.
    """
    polygons = corners.detach().float().cpu().numpy().reshape(-1, 4, 2).clip(-32000, 32000).astype(np.int32)
    drawn = np.zeros((len(polygons), *grid), dtype=np.uint8)
    for raster, polygon in zip(drawn, polygons, strict=True):
        if how == "opencv":
            cv2.fillPoly(raster, [polygon], 1)
        else:
            picture = Image.new("L", grid[::-1])
            ImageDraw.Draw(picture).polygon([tuple(corner) for corner in polygon.tolist()], fill=1, outline=1)
            raster[:] = np.asarray(picture)
    return torch.from_numpy(drawn).bool()


class LayoutEncoder(nn.Module):
    """Corners in cells and class vectors to tokens; names as released (there: ``condition_tokenizer``)."""

    def __init__(self, class_width: int, token_width: int, frequencies: int, hidden: int):
        super().__init__()
        code = 8 * 2 * frequencies
        self.frequencies = frequencies
        self.linears = nn.Sequential(
            nn.Linear(class_width + code, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, token_width)
        )
        self.null_text_feature = nn.Parameter(torch.zeros(class_width))
        self.null_position_feature = nn.Parameter(torch.zeros(code))

    def forward(self, corners: Tensor, vectors: Tensor, valid: Tensor) -> Tensor:
        """``(B, N, 8)`` cells, ``(B, N, D)``, ``(B, N)`` bool -> ``(B, N, W)``; places that are not valid give the empty token."""
        there, dtype = valid[..., None], self.null_text_feature.dtype
        vector = torch.where(there, vectors.to(dtype), self.null_text_feature)
        place = torch.where(there, fourier_code(corners, self.frequencies).to(dtype), self.null_position_feature)
        return self.linears(torch.cat([vector, place], dim=-1))


class ClassShift(nn.Module):
    """What is left of the published masked cross-attention: each slot has one key, so its softmax is 1 whatever the queries are."""

    def __init__(self, width: int, class_width: int):
        super().__init__()
        self.to_v = nn.Linear(class_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, vectors: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., C)``."""
        return self.to_out[0](self.to_v(vectors))


class MaskAttention(nn.Module):
    """Adds to each cell what the classes of the objects that cover it make of it; names as released."""

    def __init__(self, width: int, class_width: int, strength: float):
        super().__init__()
        self.strength = strength
        self.proj_in = nn.Linear(width, width)
        self.crossattn = ClassShift(width, class_width)
        self.norm3 = nn.LayerNorm(width)
        self.ffn = FeedForward(width, activation_fn="geglu")
        self.proj_out = nn.Linear(width, width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, vectors: Tensor, picture: Tensor, slot: Tensor, cell: Tensor, active: Tensor) -> Tensor:
        """
        Args:
            x: ``(B, C, h, w)``; vectors: ``(B, N, D)``.
            picture, slot, cell: ``(M,)`` int64 each, the cells that each object covers.
            active: ``(B,)`` bool; other pictures pass unchanged.

        Returns:
            ``(B, C, h, w)``.
        """
        kept = active[picture]
        picture, slot, cell = picture[kept], slot[kept], cell[kept]
        cells = x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1])  # B h w, C
        row = picture * (x.shape[2] * x.shape[3]) + cell
        z = self.proj_in(cells.index_select(0, row)) + self.crossattn(vectors.to(x.dtype))[picture, slot]
        z = z + self.ffn(self.norm3(z))
        # NOTE: runs for no cell at all too, so that every parameter has a gradient
        added = torch.zeros_like(cells).index_add(0, row, self.proj_out(z).to(cells.dtype))
        added = added.unflatten(0, (x.shape[0], -1)).transpose(1, 2).reshape(x.shape)
        return torch.where(active[:, None, None, None], self.strength * added + (1 - self.strength) * x, x)


@dataclass
class LayoutContext:
    """All that does not change over the denoising steps, for the B rows of a UNet batch.

    Attributes:
        tokens: ``(B, N + 1, W)``, the last one the empty token.
        bias: ``(B, 1, 1, N + 1)`` added to the logits: 0 for an object, ln P for P empty slots, -inf for none.
        vectors: ``(B, N, D)``.
        picture, slot, cell: ``(M,)`` int64 each, the cells that each object covers.
    """

    tokens: Tensor
    bias: Tensor
    vectors: Tensor
    picture: Tensor
    slot: Tensor
    cell: Tensor

    def repeated(self, times: int) -> LayoutContext:
        """The context of a UNet batch that holds the same pictures ``times`` times, one block after another."""
        size = len(self.tokens)
        shift = torch.arange(times, device=self.picture.device).repeat_interleave(len(self.picture)) * size
        return LayoutContext(
            self.tokens.repeat(times, 1, 1),
            self.bias.repeat(times, 1, 1, 1),
            self.vectors.repeat(times, 1, 1),
            self.picture.repeat(times) + shift,
            self.slot.repeat(times),
            self.cell.repeat(times),
        )


class DualProcessor(nn.Module):
    """Cross-attention to the caption plus, with the same queries and output, to the objects' tokens."""

    def __init__(self, width: int, token_width: int):
        super().__init__()
        self.to_k_control = nn.Linear(token_width, width, bias=False)
        self.to_v_control = nn.Linear(token_width, width, bias=False)

    # NOTE: __call__ rather than forward, because diffusers reads its signature to see which keywords a processor takes
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        layout: LayoutContext | None = None,
    ) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = split(attn.to_q(hidden_states))
        attended = F.scaled_dot_product_attention(query, split(attn.to_k(text)), split(attn.to_v(text)))
        if layout is not None:
            tokens = layout.tokens.to(hidden_states.dtype)
            key, value = split(self.to_k_control(tokens)), split(self.to_v_control(tokens))
            attended = attended + F.scaled_dot_product_attention(query, key, value, attn_mask=layout.bias.to(query.dtype))
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))


class AeroGenUNet(UNet2DConditionModel):
    """The UNet with its layout encoder and mask attention; ``save_pretrained`` and ``from_pretrained`` keep them.

        context = unet.prepare(layout)
        unet(latents, t, text, cross_attention_kwargs={"layout": context})

    Args:
        layout: a :class:`LayoutConfig` as a dictionary; None: the published one.
        unet: the arguments of ``UNet2DConditionModel``.
    """

    def __init__(self, layout: dict[str, Any] | None = None, **unet: Any):
        super().__init__(**unet)
        config = LayoutConfig.from_dict(layout or {})
        self.register_to_config(layout=dataclasses.asdict(config))
        self.layout_config = config
        token_width = self.config.cross_attention_dim
        self.layout_encoder = LayoutEncoder(config.class_width, token_width, config.frequencies, config.hidden)
        self.mask_attention = MaskAttention(self.config.block_out_channels[0], config.class_width, config.mask_strength)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                dual = name.endswith(".attn2")
                module.set_processor(DualProcessor(module.to_q.out_features, token_width) if dual else PlainProcessor())

    def prepare(self, layout: Layout) -> LayoutContext:
        """What the layers need of a batch of layouts; gradients flow into the layout encoder unless under ``torch.no_grad``."""
        valid, device = layout.valid, layout.obb.device
        corners = cell_corners(layout.obb, layout.grid)
        size, count = valid.shape
        drawn = torch.zeros(size, count, layout.grid[0] * layout.grid[1], dtype=torch.bool)
        drawn[valid.cpu()] = rasters(corners[valid], layout.grid, self.layout_config.raster).flatten(1)
        picture, slot, cell = drawn.to(device).nonzero(as_tuple=True)
        # one more place that is never valid: the empty token
        tokens = self.layout_encoder(F.pad(corners, (0, 0, 0, 1)), F.pad(layout.vectors, (0, 0, 0, 1)), F.pad(valid, (0, 1)))
        own = valid.sum(1)
        empty = (self.layout_config.slots - own).clamp(min=0)
        bias = torch.cat([torch.where(valid, 0.0, -math.inf), empty.float().log()[:, None]], dim=1)
        return LayoutContext(tokens, bias[:, None, None], layout.vectors, picture, slot, cell)

    def forward(self, sample, timestep, encoder_hidden_states, *args: Any, cross_attention_kwargs=None, **kwargs: Any):
        """As ``UNet2DConditionModel``, with ``cross_attention_kwargs={"layout": LayoutContext}``; without it a plain UNet."""
        layout = (cross_attention_kwargs or {}).get("layout")
        if layout is None:
            return super().forward(sample, timestep, encoder_hidden_states, *args, cross_attention_kwargs=cross_attention_kwargs, **kwargs)
        if len(layout.tokens) != len(sample):
            raise ValueError(f"the layout is of {len(layout.tokens)} rows, the latents of {len(sample)}")
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        if self.layout_config.first_sample_decides:
            times = times[:1].expand(len(sample))
        active = times >= self.layout_config.mask_threshold

        def masked(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            return self.mask_attention(output, layout.vectors, layout.picture, layout.slot, layout.cell, active)

        hook = self.conv_in.register_forward_hook(masked)
        try:
            return super().forward(sample, timestep, encoder_hidden_states, *args, cross_attention_kwargs=cross_attention_kwargs, **kwargs)
        finally:
            hook.remove()


remember(AeroGenUNet, "layout")


def with_layout(unet: UNet2DConditionModel, layout: Mapping[str, Any]) -> AeroGenUNet:
    """A UNet with the weights of a plain one; all that takes the layout is new.

    Raises:
        CCDiffError: the UNet's weights do not fit.
    """
    made = AeroGenUNet(layout=dict(layout), **{key: value for key, value in unet.config.items() if not key.startswith("_")})
    missing, surplus = made.load_state_dict(unet.state_dict(), strict=False)
    new = ("layout_encoder.", "mask_attention.")
    if surplus or [key for key in missing if ".processor." not in key and not key.startswith(new)]:
        raise CCDiffError(f"the UNet's weights do not fit: missing {missing[:3]}, surplus {surplus[:3]}", where="recipe key unet.source")
    return made


def trained_parameters(unet: AeroGenUNet) -> list[nn.Parameter]:
    """What the published training changes: transformer blocks, layout encoder and mask attention; all else of the UNet is frozen."""
    return [
        parameter
        for name, parameter in unet.named_parameters()
        if ".transformer_blocks." in name or name.startswith(("layout_encoder.", "mask_attention."))
    ]
