"""AeroGen's sampler: DDIM with noise (eta 0.2 as published), as the released program steps through it.

Notable here:
- the noise schedule is computed in double precision and rounded once; at the last steps 1 - a / a' cancels, and single precision shows.
- the released program takes more steps than asked for where their number does not divide 1000, and for some numbers none at all
  (it reaches past its schedule); here a sampler takes the steps asked for, unless ``released_count``.
- noise is added after the last step too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import CCDiffError

TRAINED_STEPS = 1000
BETAS = (0.00085, 0.012)


def alphas_cumprod() -> Tensor:
    """``(1000,)`` float32: the cumulative products of 1 - beta, square roots of beta evenly spaced."""
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TRAINED_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


@dataclass(frozen=True)
class Schedule:
    """What each step needs, by rising time (they are taken from the last to the first); ``(S,)`` each, float32 but ``timesteps``."""

    timesteps: Tensor
    alphas: Tensor
    alphas_prev: Tensor
    sigmas: Tensor


def ddim_schedule(steps: int, eta: float, *, released_count: bool = False) -> Schedule:
    """The times, alphas and noises of a run.

    Raises:
        CCDiffError: no steps, or so many that they reach past the schedule.
    """
    if not 1 <= steps <= TRAINED_STEPS:
        raise CCDiffError(f"{steps} denoising steps", fix=f"ask for 1 to {TRAINED_STEPS - 1}")
    stride = TRAINED_STEPS // steps
    count = -(-TRAINED_STEPS // stride) if released_count else steps
    times = 1 + stride * torch.arange(count)
    if times[-1] >= TRAINED_STEPS:
        raise CCDiffError(f"{steps} denoising steps reach time {int(times[-1])} of {TRAINED_STEPS - 1}", fix="ask for another number")
    table = alphas_cumprod().double()
    alphas, previous = table[times], torch.cat([table[:1], table[times[:-1]]])
    sigmas = eta * ((1 - previous) / (1 - alphas) * (1 - alphas / previous)).sqrt()
    return Schedule(times, alphas.float(), previous.float(), sigmas.float())


def ddim_step(x: Tensor, noise: Tensor, schedule: Schedule, index: int, added: Tensor) -> Tensor:
    """One step: ``noise`` is what the network predicts at ``schedule.timesteps[index]``, ``added`` of unit variance."""
    alpha, previous, sigma = (values[index].item() for values in (schedule.alphas, schedule.alphas_prev, schedule.sigmas))
    start = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return previous**0.5 * start + (1 - previous - sigma**2) ** 0.5 * noise + sigma * added


def sample(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, schedule: Schedule, noises: Sequence[Tensor] | Tensor) -> Tensor:
    """From noise to a latent.

    Args:
        denoise: (latents ``(B, C, h, w)``, times ``(B,)`` int64) -> the noise in them, guidance included.
        x: of unit variance; ``noises[j]`` of its shape is added at step j.
    """
    for j, index in enumerate(reversed(range(len(schedule.timesteps)))):
        times = schedule.timesteps[index].to(x.device).expand(len(x))
        x = ddim_step(x, denoise(x, times), schedule, index, noises[j])
    return x
