"""LayoutDiffusion's noise schedule and losses: 1000 steps of evenly spaced betas, noise and learned variance.

Coefficients are computed in double precision and rounded where they meet a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

TRAINED_STEPS = 1000
BETAS = (1e-4, 0.02)


def training_schedule() -> DDPMScheduler:
    """The noise schedule as diffusers names it, saved with generators."""
    return DDPMScheduler(beta_schedule="linear", beta_start=BETAS[0], beta_end=BETAS[1], clip_sample=False)


def linear_betas() -> Tensor:
    """``(1000,)`` float64: 1e-4 to 0.02."""
    return torch.linspace(*BETAS, TRAINED_STEPS, dtype=torch.float64)


@dataclass(frozen=True)
class Chain:
    """Coefficients of a diffusion chain, ``(S,)`` float64 each; indices ``(B,)`` int64 into it."""

    betas: Tensor
    alphas_cumprod: Tensor
    previous: Tensor

    def _at(self, values: Tensor, index: Tensor, like: Tensor) -> Tensor:
        return values.to(index.device)[index].to(like.dtype).view(-1, *[1] * (like.dim() - 1))

    def noised(self, start: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """x at a step."""
        abar = self.alphas_cumprod
        return self._at(abar.sqrt(), index, start) * start + self._at((1 - abar).sqrt(), index, start) * noise

    def start(self, x: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """The picture that x is with this noise."""
        abar = self.alphas_cumprod
        return self._at((1 / abar).sqrt(), index, x) * x - self._at((1 / abar - 1).sqrt(), index, x) * noise

    def posterior_mean(self, start: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """Mean of the step before, of a picture and x."""
        abar, previous, betas = self.alphas_cumprod, self.previous, self.betas
        of_start = betas * previous.sqrt() / (1 - abar)
        of_x = (1 - previous) * (1 - betas).sqrt() / (1 - abar)
        return self._at(of_start, index, x) * start + self._at(of_x, index, x) * x

    @property
    def posterior_log_variance(self) -> Tensor:
        """``(S,)``; the first one, which would be log 0, is the second."""
        variance = self.betas * (1 - self.previous) / (1 - self.alphas_cumprod)
        return torch.cat([variance[1:2], variance[1:]]).log()

    def log_variance(self, channels: Tensor, index: Tensor) -> Tensor:
        """Of the network's variance channels: -1 the posterior's, 1 beta's."""
        share = (channels + 1) / 2
        return share * self._at(self.betas.log(), index, channels) + (1 - share) * self._at(self.posterior_log_variance, index, channels)


def chain_of(betas: Tensor) -> Chain:
    abar = torch.cumprod(1 - betas, 0)
    return Chain(betas, abar, torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]]))


def training_chain() -> Chain:
    """The 1000 steps."""
    return chain_of(linear_betas())


def losses(chain: Chain, prediction: Tensor, start: Tensor, noise: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What training sums: squared error of the noise, and the variational bound in bits per dimension.

    Args:
        prediction: ``(B, 2 C, R, R)`` of ``chain.noised(start, noise, index)``; gradients of the bound reach its variance alone.
        start: pictures in [-1, 1].

    Returns:
        two ``(B, R, R)``, the mean over channels at each cell; a picture's loss is their mean.
    """
    predicted, channels = prediction.float().chunk(2, dim=1)
    squared = ((noise - predicted) ** 2).mean(1)
    x = chain.noised(start, noise, index)
    mean = chain.posterior_mean(chain.start(x, predicted.detach(), index), x, index)
    log_variance = chain.log_variance(channels, index)
    true_mean = chain.posterior_mean(start, x, index)
    true_log = chain._at(chain.posterior_log_variance, index, x)
    divergence = 0.5 * (
        -1.0 + log_variance - true_log + torch.exp(true_log - log_variance) + (true_mean - mean) ** 2 * torch.exp(-log_variance)
    )
    likelihood = -_discretised_log_likelihood(start, mean, 0.5 * log_variance)
    bound = torch.where((index == 0).view(-1, 1, 1, 1), likelihood, divergence)
    return squared, bound.mean(1) / math.log(2.0)


def _normal_cdf(y: Tensor) -> Tensor:
    """The published approximation."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3)))


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Of pictures of 256 values, as bins of a normal distribution; the outer bins are open."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (centred + 1.0 / 255.0))
    lower = _normal_cdf(inverse * (centred - 1.0 / 255.0))
    inner = (upper - lower).clamp(min=1e-12).log()
    lowest, highest = upper.clamp(min=1e-12).log(), (1.0 - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inner))
