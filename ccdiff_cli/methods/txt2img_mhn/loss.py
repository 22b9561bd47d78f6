"""The losses of Txt2Img-MHN's two stages."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...models.layout import LayoutBatch
from .network import PAD
from .pictures import VQVAE, gumbel_noise
from .pipeline import MHNPipeline


def temperature_at(step: int) -> float:
    """Of the soft choice of codes: every 100 steps times ``exp(-1e-6 step)``, as published, and 0.5 at least."""
    turns = step // 100
    return max(0.5, math.exp(-1e-6 * 100 * turns * (turns + 1) / 2))


class PictureLoss(nn.Module):
    """The picture tokenizer's: a picture from a soft choice of codes."""

    def __init__(self, pictures: VQVAE) -> None:
        super().__init__()
        self.pictures = pictures

    def forward(self, pixels: Tensor, step: int) -> Tensor:
        """``pixels`` ``(B, 3, H, W)`` in [-1, 1]."""
        size = [side // self.pictures.factor for side in pixels.shape[-2:]]
        noise = gumbel_noise(torch.rand(len(pixels), self.pictures.codes, *size)).to(pixels)  # on the CPU: the same on every device
        return self.pictures.loss((pixels + 1) / 2, noise, temperature_at(step))


class CodeLoss(nn.Module):
    """The transformer's: every code of a picture from the caption and the codes before it; a dropped caption is one of nothing."""

    def __init__(self, pipe: MHNPipeline) -> None:
        super().__init__()
        self.transformer = pipe.transformer
        self.pipe = pipe

    def forward(self, latents: Tensor, layout: LayoutBatch, dropped: Tensor, empty_tokens: Tensor) -> Tensor:
        """``latents`` ``(B, h, w)`` codes."""
        text = torch.where(dropped[:, None], PAD, self.pipe.ids_of(layout.captions).to(latents.device))
        return self.transformer.loss(text, latents.long().flatten(1))
