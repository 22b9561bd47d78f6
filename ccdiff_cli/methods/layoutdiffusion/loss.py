"""LayoutDiffusion's loss: squared error of the noise plus the variational bound, which teaches the variance alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.layout import LayoutBatch
from ..loss import DenoiserLoss
from .diffusion import losses, training_chain


class LayoutDiffusionLoss(DenoiserLoss):
    """Batches, times and noise as of any denoiser; cells that objects cover may count for more, in both terms."""

    def forward(  # type: ignore[override]
        self,
        latents: Tensor,
        layout: LayoutBatch,
        dropped: Tensor,
        empty_tokens: Tensor,
        noise: Tensor,
        steps: Tensor,
        mean_weight: Tensor,
    ) -> Tensor:
        chain = training_chain()
        condition = self.pipe.condition(layout, empty_tokens, dropped=dropped)
        prediction = self.pipe.unet(chain.noised(latents, noise, steps), steps, condition)
        squared, bound = losses(chain, prediction, latents, noise, steps)
        error = squared + bound
        if self.object_weight != 1:
            error = error * (self._weights(layout) / mean_weight).to(error)
        return torch.mean(error)
