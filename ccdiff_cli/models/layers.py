"""Building blocks that both resamplers and the conditional generation module share.

Notable here:
- parameter names are those of the released checkpoints.
- :func:`ragged_attention`: queries of a picture attend to the keys of all its references without padding to the most crowded
  picture; the softmax is joined across references by segment, in float32.
- :func:`tiled_attention`: attention of chosen cells to chosen contexts only, in small tiles, weighted and summed per cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

_FREQUENCIES = 8
POINT_WIDTH = 512


def fourier_code(x: Tensor, count: int = _FREQUENCIES) -> Tensor:
    """``(..., n)`` coordinates -> ``(..., 2 F n)`` float32: for each of F frequencies 100^(i/F) the sines, then the cosines, of all."""
    frequencies = 100.0 ** (torch.arange(count, device=x.device, dtype=torch.float32) / count)
    angles = x.float()[..., None, :] * frequencies[:, None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class PlainProcessor(AttnProcessor2_0):
    """diffusers' attention; takes what a method hands to every layer, and ignores it.

    NOTE: by name, because diffusers reads the signature to see which keywords a processor takes.
    """

    def __call__(  # type: ignore[override]
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, conditioning=None, layout=None
    ):
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class PointNet(nn.Module):
    """OBB corners ``(..., 8)`` -> ``(..., width)``."""

    def __init__(self, width: int, hidden: int = POINT_WIDTH):
        super().__init__()
        self.linears_position = nn.Sequential(
            nn.Linear(8 * 2 * _FREQUENCIES, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, obb: Tensor) -> Tensor:
        return self.linears_position(fourier_code(obb).to(next(self.parameters()).dtype))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(B, n, h * d)`` -> ``(B, h, n, d)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """``(B, h, n, d)`` -> ``(B, n, h * d)``."""
    return x.transpose(1, 2).flatten(2)


def caption_attention(
    attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Queries ``(B, n, width)`` of a layer of diffusers, and what they get from the caption, before the output projection."""
    caption = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    if attention_mask is not None:
        batch = hidden_states.shape[0]
        attention_mask = attn.prepare_attention_mask(attention_mask, caption.shape[1], batch)
        attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
    query = attn.to_q(hidden_states)
    key, value = split_heads(attn.to_k(caption), attn.heads), split_heads(attn.to_v(caption), attn.heads)
    return query, join_heads(F.scaled_dot_product_attention(split_heads(query, attn.heads), key, value, attn_mask=attention_mask))


class CrossAttention(nn.Module):
    """Multi-head attention with bias-free q, k, v and an output linear with bias; scaling 1/sqrt(head width)."""

    def __init__(self, width: int, context_width: int | None = None, heads: int = 8, head_width: int | None = None):
        super().__init__()
        context_width = width if context_width is None else context_width
        inner = width if head_width is None else heads * head_width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_width, inner, bias=False)
        self.to_v = nn.Linear(context_width, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def query(self, x: Tensor) -> Tensor:
        return split_heads(self.to_q(x), self.heads)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, n, D)`` -> two ``(B, h, n, d)``."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def attend(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, n, C)`` and prepared keys and values -> ``(B, n, C)``."""
        return self.to_out[0](join_heads(F.scaled_dot_product_attention(self.query(x), key, value, attn_mask=mask)))


def ragged_attention(query: Tensor, pieces: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Queries of B pictures attend to all keys of their own picture.

    Args:
        query: ``(B, h, n, d)``.
        pieces: (key ``(S, h, m, d)``, value ``(S, h, m, d)``, picture ``(S,)`` int64) with any S and m; every picture occurs.

    Returns:
        ``(B, h, n, d)``.  The softmax is in float32.
    """
    scale = query.shape[-1] ** -0.5
    scores = [torch.matmul((query * scale)[picture], key.transpose(-1, -2)).float() for key, _, picture in pieces]
    with torch.no_grad():  # the shift cancels, it only keeps exp in range
        top = query.new_full(query.shape[:-1], -torch.inf, dtype=torch.float32)
        for score, (_, _, picture) in zip(scores, pieces, strict=True):
            index = picture.view(-1, 1, 1).expand(score.shape[:-1])
            top = top.scatter_reduce(0, index, score.amax(dim=-1), "amax", include_self=True)
    total = query.new_zeros((*query.shape[:-1], 1), dtype=torch.float32)
    out = query.new_zeros(query.shape, dtype=torch.float32)
    for score, (_, value, picture) in zip(scores, pieces, strict=True):
        weight = torch.exp(score - top[picture].unsqueeze(-1))
        total = total.index_add(0, picture, weight.sum(dim=-1, keepdim=True))
        out = out.index_add(0, picture, torch.matmul(weight, value.float()).float())  # autocast may lower it
    return (out / total).to(query.dtype)


@dataclass
class Tiles:
    """Which cells attend to which context, with what weight; see :func:`make_tiles`.

    Attributes:
        source: ``(M,)`` int64, the context each tile attends to.
        cells: ``(M * T,)`` int64 rows of the flattened cells; unused slots point at row 0 with weight 0.
        weight: ``(M * T, 1)`` float32.
        length: T.
    """

    source: Tensor
    cells: Tensor
    weight: Tensor
    length: int


def make_tiles(weights: Tensor, cell_offset: Tensor | None, threshold: float, length: int) -> Tiles:
    """Tiles of up to ``length`` cells for every context, covering the cells whose weight is above the threshold.

    Args:
        weights: ``(S, P)`` weight of each of S contexts at P cells.
        cell_offset: ``(S,)`` int64 added to the cell numbers of a context (where its picture starts); None: zero.
        threshold: weights up to this are skipped.  The sum then lacks at most ``S * threshold`` times the largest term.
        length: T, cells a tile.
    """
    source, cell = (weights > threshold).nonzero(as_tuple=True)
    count = torch.bincount(source, minlength=weights.shape[0])
    tiles = (count + length - 1) // length
    first_tile, first = tiles.cumsum(0) - tiles, count.cumsum(0) - count
    rank = torch.arange(len(source), device=weights.device) - first[source]
    slot = first_tile[source] * length + rank
    total = int(tiles.sum())
    cells = torch.zeros(total * length, dtype=torch.int64, device=weights.device)
    weight = torch.zeros(total * length, dtype=torch.float32, device=weights.device)
    cells[slot] = cell if cell_offset is None else cell + cell_offset[source]
    weight[slot] = weights[source, cell].float()
    owner = torch.repeat_interleave(torch.arange(weights.shape[0], device=weights.device), tiles, output_size=total)
    return Tiles(owner, cells, weight[:, None], length)


def tiled_attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
    """Add to each cell the weighted attention to the contexts it has.

    Args:
        out: ``(P, C)`` what to add to; query: ``(P, C)`` of every cell, before heads are split.
        key, value: ``(S, h, m, d)`` of every context, C = h d.

    Returns:
        ``(P, C)``: ``out[p] + sum_s weight[s, p] softmax(q[p] k[s]^T / sqrt(d)) v[s]``.
    """
    heads = key.shape[1]
    q = query.index_select(0, tiles.cells).unflatten(0, (-1, tiles.length))
    attended = F.scaled_dot_product_attention(split_heads(q, heads), key.index_select(0, tiles.source), value.index_select(0, tiles.source))
    rows = join_heads(attended).flatten(0, 1) * tiles.weight.to(query.dtype)
    return out.index_add(0, tiles.cells, rows)
