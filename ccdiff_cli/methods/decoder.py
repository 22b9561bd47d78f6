"""The autoencoder's decoder, taught on what a finished denoiser hands it.

What is notable: a decoder that learned on pictures' own latents draws smoothly what a denoiser makes of noise.  Here real latents are
noised to a time below ``BELOW``, denoised in one pass without gradients, decoded, and held against the real picture by what
``perceptual.PerceptualLoss`` sees.  Neither the latents nor anything that makes them changes: the same seed gives the same scene, drawn
otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..models.autoencoder import decoder_parameters
from ..models.layout import LayoutBatch
from ..models.pipeline import ScenePipeline
from .loss import denoised, in_pieces
from .perceptual import BELOW, SURE, PerceptualLoss
from .recipe import Recipe


class DecoderLoss(nn.Module):
    """``forward(**piece of :meth:`parts`) -> loss``: the autoencoder, of which the decoder is trained."""

    def __init__(self, pipe: ScenePipeline, recipe: Recipe) -> None:
        super().__init__()
        self.pipe, self.vae, self.scheduler = pipe, pipe.vae, pipe.scheduler
        self.objects_at_once = recipe.denoiser.objects_at_once
        self.seen = PerceptualLoss(pipe)
        for parameter in decoder_parameters(pipe.vae):
            parameter.requires_grad_(True)

    def parts(self, batch: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """A batch in pieces, as ``loss.DenoiserLoss.parts`` divides it, with noise and low times drawn on the CPU."""
        latents = batch["latents"]
        noise = torch.randn(latents.shape).to(latents)
        below = int(BELOW * self.scheduler.config.num_train_timesteps)
        steps = torch.randint(0, below, (len(latents),)).to(latents.device)
        return in_pieces({**batch, "noise": noise, "steps": steps}, self.objects_at_once)

    def forward(
        self,
        latents: torch.Tensor,
        layout: LayoutBatch,
        dropped: torch.Tensor,
        empty_tokens: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        pixels: torch.Tensor,
    ) -> torch.Tensor:
        with torch.no_grad():
            noisy = self.scheduler.add_noise(latents, noise, steps)
            condition = self.pipe.condition(layout, empty_tokens, dropped=torch.zeros_like(dropped))
            clean = denoised(self.scheduler, noisy, self.pipe.predict(noisy, steps, condition), steps)
        sure = steps < SURE * self.scheduler.config.num_train_timesteps
        return self.seen(clean, pixels, sure).mean()
