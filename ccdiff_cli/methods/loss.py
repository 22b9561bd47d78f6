"""The loss of methods that denoise: noise or velocity at a random time, of the condition as it is or dropped.

What is notable: all that is trained is one module to the loop, so its gradients are synchronised and clipped together; the condition and
the network's pass are those of sampling (``ScenePipeline.condition``, ``predict``), so nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import nn

from ..models.layout import LayoutBatch
from ..models.pipeline import ScenePipeline
from .perceptual import BELOW, SURE, PerceptualLoss
from .recipe import Recipe


class DenoiserLoss(nn.Module):
    """``forward(**piece of :meth:`parts`) -> loss``: everything that is trained, in one module, named as in the pipeline."""

    def __init__(self, pipe: ScenePipeline, recipe: Recipe) -> None:
        super().__init__()
        for name in pipe.TRAINED:
            setattr(self, name, getattr(pipe, name))
        self.pipe = pipe
        self.scheduler = pipe.scheduler
        self.snr_gamma, self.object_weight = recipe.denoiser.snr_gamma, recipe.denoiser.object_weight
        self.objects_at_once = recipe.denoiser.objects_at_once
        self.perceptual = recipe.denoiser.perceptual
        if self.perceptual:
            self.seen = PerceptualLoss(pipe)

    def parts(self, batch: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """A batch of ``training.denoiser.batch_source`` in pieces of at most ``objects_at_once`` objects (a picture is never divided).

        Noise and timesteps are drawn for the whole batch, on the CPU (the same numbers on every device), and what the loss divides by is
        that of the whole batch, so gradients summed over the pieces are those of the batch up to rounding.

        Returns:
            (share of the batch's pictures, arguments of :meth:`forward`) of each piece.
        """
        latents, layout = batch["latents"], batch["layout"]
        if self.object_weight != 1:
            layout = layout.with_regions()
            batch = {**batch, "layout": layout}
        noise = torch.randn(latents.shape).to(latents)
        steps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),)).to(latents.device)
        whole = {**batch, "noise": noise, "steps": steps, "mean_weight": self._weights(layout).mean()}
        return in_pieces(whole, self.objects_at_once)

    def _weights(self, layout: LayoutBatch) -> torch.Tensor:
        """What the error of each cell counts for, (B, h, w), or one number for all."""
        if layout.regions is None or self.object_weight == 1:
            return torch.ones(())
        return torch.where(layout.regions[:, :-1].any(1), self.object_weight, 1.0)

    def forward(
        self,
        latents: torch.Tensor,
        layout: LayoutBatch,
        dropped: torch.Tensor,
        empty_tokens: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        mean_weight: torch.Tensor,
        pixels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        schedule = self.scheduler
        noisy = schedule.add_noise(latents, noise, steps)
        condition = self.pipe.condition(layout, empty_tokens, dropped=dropped)
        predicted = self.pipe.predict(noisy, steps, condition)
        kind = schedule.config.prediction_type
        target = noise if kind == "epsilon" else schedule.get_velocity(latents, noise, steps)
        error = (predicted - target).square().mean(1)
        if self.object_weight != 1:
            error = error * (self._weights(layout) / mean_weight)
        error = error.mean((1, 2))
        if self.snr_gamma:
            error = error * self.snr_weight(compute_snr(schedule, steps))
        if self.perceptual:
            assert pixels is not None
            error = error + self.perceptual * self._unlike(noisy, predicted, steps, pixels)
        return error.mean()

    def _unlike(self, noisy: torch.Tensor, predicted: torch.Tensor, steps: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """How unlike the real pictures the denoised ones look, ``(B,)``; 0 where the noise is too strong to ask."""
        schedule = self.scheduler
        times = schedule.config.num_train_timesteps
        rows = torch.nonzero(steps < BELOW * times)[:, 0]
        found = torch.zeros(len(steps), device=pixels.device)
        if not len(rows):
            return found
        clean = denoised(schedule, noisy[rows], predicted[rows], steps[rows])
        return found.index_add(0, rows, self.seen(clean, pixels[rows], steps[rows] < SURE * times).float())

    def snr_weight(self, snr: torch.Tensor) -> torch.Tensor:
        """min-SNR weight of steps (Hang et al., ICCV 2023), ``(B,)``: it weights the error of the picture alike whatever is predicted."""
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        return snr.clamp(max=self.snr_gamma) / (snr + 1 if velocity else snr)

    def figures(self) -> dict[str, float]:
        """What else of the network is worth a line in the training log."""
        return {}


def denoised(schedule: Any, noisy: torch.Tensor, predicted: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The latents that a prediction of noise or velocity at times ``steps`` (n,) says are behind noisy ones (n, C, h, w)."""
    share = schedule.alphas_cumprod.to(predicted)[steps].view(-1, 1, 1, 1)
    signal, noise = share.sqrt(), (1 - share).sqrt()
    if schedule.config.prediction_type == "epsilon":
        return (noisy - noise * predicted) / signal
    return signal * noisy - noise * predicted


def in_pieces(whole: dict[str, Any], most: int) -> list[tuple[float, dict[str, Any]]]:
    """A batch of a denoiser in pieces of at most ``most`` objects (a picture is never divided): (share of its pictures, the piece)."""
    layout = whole["layout"]
    pieces = _pieces(layout.valid.sum(1).tolist(), most)
    if len(pieces) == 1:
        return [(1.0, whole)]
    count = len(whole["latents"])
    rows = [name for name in ("latents", "pixels", "dropped", "noise", "steps") if name in whole]
    return [
        ((last - first) / count, whole | {k: whole[k][first:last] for k in rows} | {"layout": layout.rows(first, last)})
        for first, last in pieces
    ]


def _pieces(objects: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Consecutive runs (first, last + 1) of pictures that hold at most ``most`` objects together, or are one picture."""
    pieces, first, held = [], 0, 0
    for k, count in enumerate(objects):
        if k > first and held + count > most:
            pieces.append((first, k))
            first, held = k, 0
        held += count
    return [*pieces, (first, len(objects))]
