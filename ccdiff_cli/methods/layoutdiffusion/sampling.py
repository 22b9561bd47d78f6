"""LayoutDiffusion's samplers: DPM-Solver-fast as published (25 evaluations), and the ancestral chain with learned variances.

Notable here:
- NOTE: the time formulas of the solver run in single precision in the published order of operations.  Their last logarithm cancels, so
  that the published end time 1e-4 really is 9.974e-5; in double precision pictures differ by about 1e-3.
- the guidance is ``e_c + s (e_c - e_u)``: a scale of s here is 1 + s in the usual convention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import CCDiffError
from .diffusion import TRAINED_STEPS, Chain, chain_of, linear_betas
from .network import LayoutContext, LayoutDiffusionUNet

_FIRST, _LAST = 0.1, 20.0  # of the continuous beta


def guided(model: LayoutDiffusionUNet, conditional: LayoutContext, unconditional: LayoutContext, scale: float) -> Callable:
    """(x, times) -> the guided noise and the variance channels of the conditional branch."""

    def predict(x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        noise, variance = model(x, times, conditional).chunk(2, dim=1)
        if scale == 0:
            return noise, variance
        return noise + scale * (noise - model(x, times, unconditional).chunk(2, dim=1)[0]), variance

    return predict


# ---- DPM-Solver-fast ----


def log_alpha(t: Tensor) -> Tensor:
    """Of times in (0, 1], float32."""
    return -0.25 * t**2 * (_LAST - _FIRST) - 0.5 * t * _FIRST


def half_log_snr(t: Tensor) -> Tensor:
    """lambda: log alpha - log sigma at times in (0, 1], float32."""
    log = log_alpha(t)
    return log - 0.5 * torch.log(1.0 - torch.exp(2.0 * log))


def time_of(value: Tensor) -> Tensor:
    """The inverse of :func:`half_log_snr`, float32."""
    z = 2.0 * (_LAST - _FIRST) * torch.logaddexp(-2.0 * value, torch.zeros(()))
    return z / (torch.sqrt(_FIRST**2 + z) + _FIRST) / (_LAST - _FIRST)


def model_time(t: Tensor) -> Tensor:
    """The time that the network is told, 0 to 999."""
    return TRAINED_STEPS * (t - 1.0 / TRAINED_STEPS).clamp(min=0.0)


def dpm_orders(evaluations: int) -> list[int]:
    """Orders of the steps that take so many evaluations together."""
    if evaluations < 1:
        raise CCDiffError(f"{evaluations} denoising steps", fix="ask for at least one")
    steps = evaluations // 3 + 1
    return {0: [3] * (steps - 2) + [2, 1], 1: [3] * (steps - 1) + [1], 2: [3] * (steps - 1) + [2]}[evaluations % 3]


def dpm_times(steps: int, end: float = 1e-4) -> Tensor:
    """``(steps + 1,)`` float32 times of equal lambda from 1 to about ``end``."""
    if not 0 < end < 1:
        raise CCDiffError(f"the solver's end time is {end}", fix="give a number between 0 and 1")
    edges = half_log_snr(torch.tensor([1.0, end]))
    return time_of(torch.linspace(edges[0].item(), edges[1].item(), steps + 1))


def dpm_sample(noise: Callable[[Tensor, Tensor], Tensor], x: Tensor, evaluations: int, end: float = 1e-4) -> Tensor:
    """From noise to a picture (not clamped).

    Args:
        noise: (x ``(B, C, R, R)``, the network's times ``(B,)``) -> the noise in x, guidance included.
        x: of unit variance.
    """
    orders = dpm_orders(evaluations)
    times = dpm_times(len(orders), end)
    for order, s, r in zip(orders, times[:-1], times[1:], strict=True):
        x = _dpm_step(noise, x, s, r, order)
    return x


def _dpm_step(noise: Callable[[Tensor, Tensor], Tensor], x: Tensor, s: Tensor, r: Tensor, order: int) -> Tensor:
    """One step from time s to r, both 0-dimensional float32 tensors."""
    start, h = half_log_snr(s), half_log_snr(r) - half_log_snr(s)

    def at(t: Tensor, y: Tensor) -> Tensor:
        return noise(y, model_time(t).to(x.device).expand(len(x)))

    def ratio(t: Tensor) -> Tensor:
        return torch.exp(log_alpha(t) - log_alpha(s)).to(x.device)

    def sigma(t: Tensor) -> Tensor:
        return torch.sqrt(1.0 - torch.exp(2.0 * log_alpha(t))).to(x.device)

    grown, first = torch.expm1(h).to(x.device), at(s, x)
    end = ratio(r) * x - sigma(r) * grown * first
    if order == 1:
        return end
    r_1, r_2 = (0.5, None) if order == 2 else (1 / 3, 2 / 3)
    s_1 = time_of(start + r_1 * h)
    second = at(s_1, ratio(s_1) * x - sigma(s_1) * torch.expm1(r_1 * h).to(x.device) * first)
    if r_2 is None:
        return end - sigma(r) * grown * (second - first) / (2 * r_1)
    s_2 = time_of(start + r_2 * h)
    grown_2 = torch.expm1(r_2 * h)
    bend = (grown_2 / (r_2 * h) - 1.0).to(x.device)
    between = ratio(s_2) * x - sigma(s_2) * grown_2.to(x.device) * first - (r_2 / r_1) * sigma(s_2) * bend * (second - first)
    third = at(s_2, between)
    return end - (1 / r_2) * sigma(r) * (grown / h.to(x.device) - 1.0) * (third - first)


# ---- ancestral ----


@dataclass(frozen=True)
class Respaced:
    """A shorter chain: the kept times ``(S,)`` int64, rising, and its coefficients."""

    times: Tensor
    chain: Chain


def respaced(steps: int) -> Respaced:
    """The chain of the kept times ``round(i 999 / (S - 1))``."""
    if not 2 <= steps <= TRAINED_STEPS:
        raise CCDiffError(f"{steps} denoising steps", fix=f"ask for 2 to {TRAINED_STEPS}")
    times = torch.tensor([round(i * (TRAINED_STEPS - 1) / (steps - 1)) for i in range(steps)])
    kept = torch.cumprod(1 - linear_betas(), 0)[times]
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return Respaced(times, chain_of(1 - kept / before))


def ancestral_moments(
    x: Tensor, noise: Tensor, variance: Tensor, chain: Chain, index: Tensor, *, clamp: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the step before: ``index`` ``(B,)`` into the chain, ``variance`` the network's own channels."""
    start = chain.start(x, noise, index)
    return chain.posterior_mean(start.clamp(-1, 1) if clamp else start, x, index), chain.log_variance(variance, index)


def ancestral_sample(predict: Callable, x: Tensor, steps: int, noises: Callable[[int], Tensor], *, clamp: bool = True) -> Tensor:
    """From noise to a picture: ``predict`` as of :func:`guided`; ``noises(j)`` of x's shape is added after step j but the last."""
    short = respaced(steps)
    for j, index in enumerate(reversed(range(steps))):
        at = torch.full((len(x),), index, device=x.device)
        noise, variance = predict(x, short.times.to(x.device)[at])
        x, log = ancestral_moments(x, noise, variance, short.chain, at, clamp=clamp)
        if index:
            x = x + torch.exp(0.5 * log) * noises(j)
    return x
