"""The prototype transformer of Txt2Img-MHN (Xu et al., IEEE TIP 2023): captions and picture codes so far to the next code.

Notable here:
- parameter names are those of the released checkpoints.
- keys serve as values, and nothing in a row depends on later rows: :meth:`PrototypeTransformer.sample` keeps the keys of every block, so
  a new code costs one row instead of the whole sequence.  The numbers are those of the whole sequence up to rounding.
- training needs no logits of text rows, so they are not computed (:meth:`PrototypeTransformer.loss`).
- a grid of codes has rows and columns; published ones are square.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers import ModelMixin as ModelMixin  # diffusers looks it up here when it loads a saved PrototypeTransformer
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ...models.layers import join_heads, split_heads
from .pictures import gumbel_noise

PAD = 0
"""The id of a place of a caption that holds nothing, and the start token."""


class _Hopfield(nn.Module):
    def __init__(self, width: int, prototypes: int, dropout: float):
        super().__init__()
        self.lookup_matrix = nn.Linear(width, prototypes, bias=False)
        self.content_matrix = nn.Linear(prototypes, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor, kept: _Keys | None = None) -> Tensor:
        return self.dropout(self.content_matrix((self.lookup_matrix(y) * y.shape[-1] ** -0.5).softmax(-1)))


class _Attention(nn.Module):
    """Causal attention whose keys are its values."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qk = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(dropout))

    def forward(self, y: Tensor, kept: _Keys | None = None) -> Tensor:
        q, k = (split_heads(x, self.heads) for x in self.to_qk(y).chunk(2, dim=-1))
        if kept is None:
            attended = F.scaled_dot_product_attention(q, k, k, is_causal=True)
        else:
            before = kept.length
            k = kept.add(self, k)
            allowed = None
            if q.shape[2] > 1:  # rows after those that are kept
                rows = torch.arange(before, k.shape[2], device=q.device)
                allowed = torch.arange(k.shape[2], device=q.device)[None] <= rows[:, None]
            attended = F.scaled_dot_product_attention(q, k, k, attn_mask=allowed)
        return self.to_out(join_heads(attended))


class _Keys:
    """The keys of every attention, of as many rows as were seen: ``(B, h, length, d)`` each."""

    def __init__(self, rows: int):
        self.rows, self.length = rows, 0
        self.of: dict[nn.Module, Tensor] = {}

    def add(self, layer: nn.Module, keys: Tensor) -> Tensor:
        if layer not in self.of:
            self.of[layer] = keys.new_empty(*keys.shape[:2], self.rows, keys.shape[3])
        end = self.length + keys.shape[2]
        self.of[layer][:, :, self.length : end] = keys
        return self.of[layer][:, :, :end]


class _Normed(nn.Module):
    def __init__(self, width: int, fn: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x: Tensor, kept: _Keys | None = None) -> Tensor:
        return self.fn(self.norm(x), kept)


class _Scaled(nn.Module):
    def __init__(self, width: int, fn: nn.Module):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 1, width), 0.1))
        self.fn = _Normed(width, fn)

    def forward(self, x: Tensor, kept: _Keys | None = None) -> Tensor:
        return x + self.scale * self.fn(x, kept)


class _Blocks(nn.Module):
    def __init__(self, blocks: Iterable[Sequence[nn.Module]]):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(block) for block in blocks)

    def forward(self, x: Tensor, kept: _Keys | None = None) -> Tensor:
        for block in self.layers:
            for layer in block:  # type: ignore[attr-defined]  # a list of modules
                x = layer(x, kept)
        if kept is not None:
            kept.length += x.shape[1]
        return x


class _GridPositions(nn.Module):
    def __init__(self, rows: int, columns: int, width: int):
        super().__init__()
        self.weights_0 = nn.Parameter(torch.randn(1, rows, 1, width))
        self.weights_1 = nn.Parameter(torch.randn(1, 1, columns, width))

    def forward(self) -> Tensor:
        """``(rows * columns, width)``, row by row."""
        return (self.weights_0 + self.weights_1).flatten(0, 2)


class PrototypeTransformer(ModelMixin, ConfigMixin):
    """Text ids and picture codes to logits of the next picture code.

    Args:
        width: D.
        blocks: a Hopfield layer and an attention each.
        heads, head_width: of the attention.
        prototypes: P, of every Hopfield layer and of the last one.
        text_ids: of the text tokenizer; T more stand for the padding of each place.
        text_length: T.
        codes: of the picture tokenizer.
        grid: (rows, columns) of codes.
        dropout: after Hopfield layers and attentions, while training.
    """

    @register_to_config
    # wide: its saved configuration
    def __init__(
        self,
        width: int = 512,
        blocks: int = 10,
        heads: int = 8,
        head_width: int = 48,
        prototypes: int = 1000,
        text_ids: int = 5000,
        text_length: int = 40,
        codes: int = 2048,
        grid: Sequence[int] = (32, 32),
        dropout: float = 0.1,
    ):
        super().__init__()
        self.all_text, self.cells = text_ids + text_length, grid[0] * grid[1]
        self.text_emb, self.image_emb = nn.Embedding(self.all_text, width), nn.Embedding(codes, width)
        self.text_pos_emb = nn.Embedding(text_length + 1, width)
        self.image_pos_emb = _GridPositions(grid[0], grid[1], width)
        self.prototype_learning = _Blocks(
            [_Scaled(width, _Hopfield(width, prototypes, dropout)), _Scaled(width, _Attention(width, heads, head_width, dropout))]
            for _ in range(blocks)
        )
        vocabulary = self.all_text + codes
        self.lookup = nn.Linear(width, prototypes, bias=False)
        self.content = nn.Sequential(nn.Linear(prototypes, vocabulary, bias=False), nn.LayerNorm(vocabulary))

    # ---- rows of the sequence ----

    def text_rows(self, text: Tensor) -> Tensor:
        """Ids ``(B, T)``, 0 where there is nothing -> ``(B, T + 1, D)`` with the start token in front.

        Raises:
            ValueError: another number of places.
        """
        length = self.config.text_length
        if text.shape[1] != length:
            raise ValueError(f"expected {length} places a caption, found {text.shape[1]}")
        places = torch.arange(length, device=text.device)
        ids = torch.where(text == PAD, self.config.text_ids + places, text)
        return self.text_emb(F.pad(ids, (1, 0), value=PAD)) + self.text_pos_emb.weight

    def code_rows(self, codes: Tensor, first: int = 0) -> Tensor:
        """``(B, m)`` codes of the cells from ``first`` on, row by row -> ``(B, m, D)``."""
        return self.image_emb(codes) + self.image_pos_emb()[first : first + codes.shape[1]]

    def states(self, text: Tensor, codes: Tensor | None = None) -> Tensor:
        """``(B, T)`` ids and ``(B, m)`` codes, m <= n -> ``(B, min(T + 1 + m, T + n), D)`` after the last block."""
        rows = self.text_rows(text)
        if codes is not None:
            rows = torch.cat([rows, self.code_rows(codes)], dim=1)
        return self.prototype_learning(rows[:, : self.config.text_length + self.cells])

    def logits(self, states: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., V)``, text ids before picture codes; nothing is masked."""
        return self.content((self.lookup(states) * states.shape[-1] ** -0.5).softmax(-1))

    def forward(self, text: Tensor, codes: Tensor | None = None) -> Tensor:
        """``(B, T)`` ids and ``(B, m)`` codes -> logits ``(B, rows, V)``; what a row may not speak is the least float there is."""
        logits = self.logits(self.states(text, codes))
        is_text = torch.arange(logits.shape[-1], device=logits.device) < self.all_text
        speaks_text = torch.arange(logits.shape[1], device=logits.device) < self.config.text_length
        return logits.masked_fill(is_text != speaks_text[:, None], -torch.finfo(logits.dtype).max)

    def code_logits(self, states: Tensor) -> Tensor:
        """``(..., D)`` of rows that speak codes -> ``(..., codes)``."""
        return self.logits(states)[..., self.all_text :]

    def loss(self, text: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of every picture code ``(B, n)`` given the text and the codes before it, in nats."""
        logits = self.code_logits(self.states(text, codes)[:, self.config.text_length :])
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    # ---- sampling ----

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        uniform: Iterable[Tensor],
        *,
        filter_threshold: float = 0.9,
        temperature: float = 1.0,
        guidance: float = 1.0,
    ) -> Tensor:
        """Picture codes ``(B, n)``, one after another.

        Args:
            text: ``(B, T)`` ids; not changed.
            uniform: for each cell numbers in [0, 1) of shape ``(B, V)``.
            filter_threshold: the share of the V logits that is left out; see :func:`keep_largest`.
            temperature: above 0; lower is less varied.
            guidance: of logits, against a caption of nothing; 1: none, as every released script.

        Raises:
            ValueError: settings out of range.
        """
        if not temperature > 0 or not 0 <= filter_threshold <= 1:
            raise ValueError(f"temperature {temperature:g} must be above 0, filter_threshold {filter_threshold:g} in [0, 1]")
        guided = guidance != 1
        rows = self.text_rows(torch.cat([torch.full_like(text, PAD), text]) if guided else text)
        kept = _Keys(self.config.text_length + self.cells)
        numbers = iter(uniform)
        found: list[Tensor] = []
        for cell in range(self.cells):
            logits = self.code_logits(self.prototype_learning(rows, kept)[:, -1]).float()
            if guided:
                without, with_ = logits.chunk(2)
                logits = without + guidance * (with_ - without)
            noise = gumbel_noise(next(numbers)[:, self.all_text :].to(logits))
            kept_logits = keep_largest(logits, filter_threshold, self.all_text + logits.shape[-1])
            code = (kept_logits / temperature + noise).argmax(-1, keepdim=True)
            found.append(code)
            rows = self.code_rows(torch.cat([code, code]) if guided else code, cell)
        return torch.cat(found, dim=1)


def keep_largest(logits: Tensor, threshold: float, vocabulary: int) -> Tensor:
    """Logits of codes ``(..., codes)`` with all but the ``max(int((1 - threshold) vocabulary), 1)`` largest at minus infinity.

    The count is of the whole vocabulary, text included, as published.
    """
    count = max(int((1 - threshold) * vocabulary), 1)
    if count >= logits.shape[-1]:
        return logits
    values, places = logits.topk(count, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, places, values)


def uniform_of(generators: Sequence[torch.Generator | None], vocabulary: int) -> Iterator[Tensor]:
    """For every cell ``(B, vocabulary)`` numbers, each picture's from its own generator on the CPU."""
    while True:
        yield torch.stack([torch.rand(vocabulary, generator=generator) for generator in generators])


def sizes_of(weights: dict[str, Tensor], heads: int = 8) -> dict[str, Any]:
    """The arguments of a :class:`PrototypeTransformer` of the sizes of weights under released names; heads cannot be read from them."""
    text, codes = weights["text_emb.weight"], weights["image_emb.weight"]
    length = weights["text_pos_emb.weight"].shape[0] - 1
    return {
        "width": text.shape[1],
        "blocks": len({key.split(".")[2] for key in weights if key.startswith("prototype_learning.layers.")}),
        "heads": heads,
        "head_width": weights["prototype_learning.layers.0.1.fn.fn.to_qk.weight"].shape[0] // 2 // heads,
        "prototypes": weights["lookup.weight"].shape[0],
        "text_ids": text.shape[0] - length,
        "text_length": length,
        "codes": codes.shape[0],
        "grid": (weights["image_pos_emb.weights_0"].shape[1], weights["image_pos_emb.weights_1"].shape[2]),
    }
