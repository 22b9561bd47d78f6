"""The autoencoder's decoder, taught on what a finished denoiser hands it.

What is notable:

* A decoder that learned on pictures' own latents draws smoothly what a denoiser makes of noise.  Here real latents are noised to a time
  below ``BELOW``, denoised in one pass without gradients, decoded, and held against the real picture by what
  ``perceptual.PerceptualLoss`` sees.  Neither the latents nor anything that makes them changes: the same seed gives the same scene, drawn
  otherwise.
* That alone asks for the mean of the textures that the noise leaves possible.  A judge of the same features asks for one of them: small
  convolutions on each level of the network, told decoded from real (a projected discriminator: Sauer et al., NeurIPS 2021), with a
  hinge.  A judge of pixels taught a decoder to draw dots (docs/log.md, 2026-11-27); what the network does not see, this one cannot ask for.
* Half of the batches are looked at closely, at twice their size: at their own the network let a hatching of 4 px grow (docs/log.md).
* The judge also sees latents that were sampled to their end, as a synthesis hands them over (``decoder.drawn``).  They have no real
  picture, so nothing else can be asked of them.
* Decoder and judge take their steps together, in one module with one optimizer, and the judge keeps no state but its weights (its
  spectral norms are found anew each time), so a training that was killed goes on to the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ..models.autoencoder import decoder_parameters
from ..models.layout import LayoutBatch
from ..models.pipeline import ScenePipeline
from .loss import denoised, in_pieces
from .perceptual import BELOW, CHANNELS, SURE, PerceptualLoss
from .recipe import Recipe

WIDTH = 64
"""Channels of the judge."""
CLOSELY = 0.5
"""Share of the batches that are looked at closely."""
DRAWN = 0.5
"""Drawn latents for each denoised one of a batch."""
JUDGED = 0.1
"""Weight of the judge beside the distance: its gradient on the pictures is then half of the distance's."""


class _Bounded(nn.Conv2d):
    """A convolution whose matrix has a largest singular value of 1, as spectral normalisation makes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.weight.flatten(1).double()  # mixed precision leaves it as it is
        norm = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].sqrt()
        return self._conv_forward(x, self.weight / norm.to(self.weight), self.bias)


class Judge(nn.Module):
    """What a network sees at its levels, each (n, C, h, w) of unit length -> for each level (n, 1, h, w): above 0 real, below 0 decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                _Bounded(channels, WIDTH, 3, padding=1),
                nn.LeakyReLU(0.2),
                _Bounded(WIDTH, WIDTH, 3, padding=1),
                nn.LeakyReLU(0.2),
                _Bounded(WIDTH, 1, 1),
            )
            for channels in CHANNELS
        )

    def forward(self, seen: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [level(x * x.shape[1] ** 0.5) for level, x in zip(self.levels, seen, strict=True)]


class DecoderLoss(nn.Module):
    """``forward(**piece of :meth:`parts`) -> loss``: the autoencoder, of which the decoder is trained, and its judge."""

    def __init__(self, pipe: ScenePipeline, recipe: Recipe) -> None:
        super().__init__()
        self.pipe, self.vae, self.scheduler = pipe, pipe.vae, pipe.scheduler
        self.objects_at_once = recipe.denoiser.objects_at_once
        self.seen = PerceptualLoss(pipe)
        for parameter in decoder_parameters(pipe.vae):
            parameter.requires_grad_(True)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(recipe.seed)
            self.judge = Judge()

    def parts(self, batch: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """The batch, whole, with noise and low times drawn on the CPU."""
        latents = batch["latents"]
        noise = torch.randn(latents.shape).to(latents)
        below = int(BELOW * self.scheduler.config.num_train_timesteps)
        steps = torch.randint(0, below, (len(latents),)).to(latents.device)
        return [(1.0, {**batch, "noise": noise, "steps": steps})]

    def forward(
        self,
        latents: torch.Tensor,
        layout: LayoutBatch,
        dropped: torch.Tensor,
        empty_tokens: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        pixels: torch.Tensor,
        drawn: torch.Tensor | None = None,
    ) -> torch.Tensor:
        whole = {"latents": latents, "layout": layout, "dropped": torch.zeros_like(dropped), "noise": noise, "steps": steps}
        with torch.no_grad():
            pieces = in_pieces(whole, self.objects_at_once)
            clean = torch.cat([self._denoised(**piece, empty_tokens=empty_tokens) for _, piece in pieces])
        sure = steps < SURE * self.scheduler.config.num_train_timesteps
        shown = clean if drawn is None else torch.cat([clean, drawn])
        unlike, made, real = self.seen.compared(shown, pixels, sure, closely=bool(torch.rand(()) < CLOSELY))
        count = len(clean)
        # the judge learns of what is decoded as it is, the decoder of the judge as it is
        fixed = {name: parameter.detach() for name, parameter in self.judge.named_parameters()}
        fooled = torch.stack([-_mean(level, count) for level in functional_call(self.judge, fixed, (made,))]).mean()
        told = zip(self.judge(real), self.judge([level.detach() for level in made]), strict=True)
        wrong = torch.stack([F.relu(1 - yes).mean() + _mean(F.relu(1 + no), count) for yes, no in told]).mean()
        return unlike.mean() + JUDGED * (fooled + wrong)

    def _denoised(
        self,
        latents: torch.Tensor,
        layout: LayoutBatch,
        dropped: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        empty_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """What the denoiser makes of noised latents in one pass, all conditions given."""
        noisy = self.scheduler.add_noise(latents, noise, steps)
        condition = self.pipe.condition(layout, empty_tokens, dropped=dropped)
        return denoised(self.scheduler, noisy, self.pipe.predict(noisy, steps, condition), steps)


def _mean(values: torch.Tensor, count: int) -> torch.Tensor:
    """Of denoised rows, the first ``count``, and of drawn ones, where there are any, in equal parts."""
    return values.mean() if len(values) == count else (values[:count].mean() + values[count:].mean()) / 2
