"""Resamplers: from image tokens of the references to the context tokens of the conditional generation module.

Notable here:
- :class:`CoResampler` (CC-Diff++) and :class:`DualResampler` (CC-Diff) compute what the published models compute; parameter
  names are those of the released checkpoints.
- both run over the valid instances of the whole batch, packed; the number of instances has no limit.
- each reference picture is projected once, however many instances use it: ``proj_in(f + e) = proj_in(f) + W e``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from .layers import POINT_WIDTH, PointNet, join_heads, ragged_attention, split_heads
from .layout import LayoutBatch


@dataclass
class ContextTokens:
    """What a resampler makes of a batch.

    Attributes:
        foreground: ``(V, q, D)`` of the V valid instances, in the order of ``batch.valid.nonzero()``.
        background: ``(B, q, D)``.
        relation: ``(B, q, D)``; None for CC-Diff.
    """

    foreground: Tensor
    background: Tensor
    relation: Tensor | None


class PerceiverAttention(nn.Module):
    """LayerNorms of tokens and queries, q from the queries, k and v from ``[tokens, queries]``; all linears bias-free."""

    def __init__(self, dim: int, dim_head: int, heads: int):
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def keys_values(self, tokens: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens`` (S, T, dim), normed ``queries`` (S, q, dim) -> two ``(S, h, T + q, d)``."""
        key, value = self.to_kv(torch.cat([self.norm1(tokens), queries], dim=1)).chunk(2, dim=-1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def attend(self, queries: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Normed ``queries`` (S, q, dim) over their own keys -> ``(S, q, dim)``."""
        return self.to_out(join_heads(F.scaled_dot_product_attention(split_heads(self.to_q(queries), self.heads), key, value)))

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        queries = self.norm2(latents)
        return self.attend(queries, *self.keys_values(tokens, queries))


def _feed_forward(dim: int, mult: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * mult, bias=False), nn.GELU(), nn.Linear(dim * mult, dim, bias=False))


def _layers(dim: int, depth: int, dim_head: int, heads: int, ff_mult: int) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleList([PerceiverAttention(dim, dim_head, heads), _feed_forward(dim, ff_mult)]) for _ in range(depth))


def _rows(features: Tensor, index: Tensor) -> Tensor:
    """Rows of ``features`` (R, ...), with zeros where the index is -1."""
    rows = torch.cat([features, features.new_zeros(1, *features.shape[1:])])
    return rows.index_select(0, index.remainder(len(rows)))  # -1 becomes the added last row


class CoResampler(ModelMixin, ConfigMixin):
    """The Co-Resampler of CC-Diff++: foreground, background and relation queries in one masked perceiver.

    Args:
        dim: inner width; depth: layers; dim_head, heads: of the attention; num_queries: queries a group.
        embedding_dim: width of the image tokens; output_dim: width of the text tokens; ff_mult: of the feed-forward;
        point_width: hidden width of the PointNet.
    """

    @register_to_config
    # wide: its saved configuration
    def __init__(
        self,
        dim: int = 1280,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 16,
        num_queries: int = 8,
        embedding_dim: int = 1024,
        output_dim: int = 768,
        ff_mult: int = 4,
        point_width: int = POINT_WIDTH,
    ):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.layers: Any = _layers(dim, depth, dim_head, heads, ff_mult)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.point_net = PointNet(embedding_dim, point_width)

    def forward(self, batch: LayoutBatch) -> ContextTokens:
        picture = batch.valid.nonzero()[:, 0]
        count, size = len(picture), batch.batch_size
        dtype = self.latents.dtype
        # references of the instances, then of the backgrounds
        index = torch.cat([batch.instance_reference[batch.valid], batch.background_reference])
        owner = torch.cat([picture, torch.arange(size, device=picture.device)])
        projected = torch.cat([self.proj_in(batch.features.to(dtype)), self.proj_in.bias.expand(1, batch.features.shape[1], -1)])
        place = F.linear(self.point_net(batch.obb[batch.valid]), self.proj_in.weight)
        tokens = projected.index_select(0, index.remainder(len(projected))) + F.pad(place, (0, 0, 0, size))[:, None]

        latents = self.latents
        groups = torch.cat([latents[0].expand(count, -1, -1), latents[1].expand(size, -1, -1)])
        relation = latents[2].expand(size, -1, -1)
        for attention, feed_forward in self.layers:
            own = attention.norm2(groups)
            key, value = attention.keys_values(tokens, own)
            query = split_heads(attention.to_q(attention.norm2(relation)), attention.heads)
            seen = attention.to_out(join_heads(ragged_attention(query, [(key, value, owner)])))
            groups, relation = groups + attention.attend(own, key, value), relation + seen
            groups, relation = groups + feed_forward(groups), relation + feed_forward(relation)
        out = self.norm_out(self.proj_out(torch.cat([groups, relation])))
        return ContextTokens(*out.split([count, size, size]))


class Resampler(nn.Module):
    """An ordinary perceiver resampler."""

    def __init__(
        self, dim: int, depth: int, dim_head: int, heads: int, num_queries: int, embedding_dim: int, output_dim: int, ff_mult: int
    ):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.layers: Any = _layers(dim, depth, dim_head, heads, ff_mult)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)

    def forward(self, features: Tensor, more_queries: Tensor | None = None) -> Tensor:
        """``(S, T, E)`` image tokens, ``(S, n, dim)`` more queries -> ``(S, q + n, D)``."""
        tokens = self.proj_in(features)
        queries = self.latents.expand(len(features), -1, -1)
        if more_queries is not None:
            queries = torch.cat([queries, more_queries], dim=1)
        for attention, feed_forward in self.layers:
            queries = queries + attention(tokens, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))


class _SelfAttention(nn.Module):
    """Holds the bridge's attention under its released names."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])


class CoherentBridge(nn.Module):
    """GLIGEN's gated self-attention over ``[queries, objects]`` of each picture, kept for the queries (Li et al., CVPR 2023)."""

    def __init__(self, dim: int, object_dim: int, heads: int):
        super().__init__()
        self.linear = nn.Linear(object_dim, dim)
        self.attn = _SelfAttention(dim, heads)
        self.ff = FeedForward(dim, activation_fn="geglu")
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.alpha_attn, self.alpha_dense = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, queries: Tensor, objects: Tensor, picture: Tensor) -> Tensor:
        """``queries`` (B, q, dim); ``objects`` (V, n, D) of instances of ``picture`` (V,) -> ``(B, q, dim)``."""
        attn, own, others = self.attn, self.norm1(queries), self.norm1(self.linear(objects))
        pieces = [
            (split_heads(attn.to_k(x), attn.heads), split_heads(attn.to_v(x), attn.heads), owner)
            for x, owner in ((own, torch.arange(len(queries), device=queries.device)), (others, picture))
        ]
        attended = attn.to_out[0](join_heads(ragged_attention(split_heads(attn.to_q(own), attn.heads), pieces)))
        queries = queries + self.alpha_attn.tanh() * attended
        return queries + self.alpha_dense.tanh() * self.ff(self.norm2(queries))


class DualResampler(ModelMixin, ConfigMixin):
    """The Dual Resampler with context bridge of CC-Diff.

    Args:
        num_queries: foreground, background and bridge queries; the other arguments are those of :class:`CoResampler`.
        heads: of the resamplers; None: ``dim // dim_head``.
        bridge_heads: of the bridge; None: as ``heads``.
    """

    @register_to_config
    # wide: its saved configuration
    def __init__(
        self,
        dim: int = 1280,
        depth: int = 4,
        dim_head: int = 64,
        heads: int | None = None,
        num_queries: Sequence[int] = (16, 8, 8),
        embedding_dim: int = 1024,
        output_dim: int = 768,
        ff_mult: int = 4,
        bridge_heads: int | None = None,
        point_width: int = POINT_WIDTH,
    ):
        super().__init__()
        heads = dim // dim_head if heads is None else heads
        foreground, background, bridge = num_queries
        self.fg_resampler = Resampler(dim, depth, dim_head, heads, foreground, embedding_dim, output_dim, ff_mult)
        self.bg_resampler = Resampler(dim, depth, dim_head, heads, background, embedding_dim, output_dim, ff_mult)
        self.point_net = PointNet(output_dim, point_width)
        self.coherent_queries = nn.Parameter(torch.randn(1, bridge, dim) / dim**0.5)
        self.coherent_bridge = CoherentBridge(dim, output_dim, heads if bridge_heads is None else bridge_heads)

    def forward(self, batch: LayoutBatch) -> ContextTokens:
        picture = batch.valid.nonzero()[:, 0]
        features = batch.features.to(self.coherent_queries.dtype)
        foreground = self.fg_resampler(_rows(features, batch.instance_reference[batch.valid]))
        objects = foreground.detach() + self.point_net(batch.obb[batch.valid])[:, None]
        bridge = self.coherent_bridge(self.coherent_queries.expand(batch.batch_size, -1, -1), objects, picture)
        return ContextTokens(foreground, self.bg_resampler(_rows(features, batch.background_reference), bridge), None)


RESAMPLERS: dict[str, type[CoResampler] | type[DualResampler]] = {"ccdiff++": CoResampler, "ccdiff": DualResampler}
