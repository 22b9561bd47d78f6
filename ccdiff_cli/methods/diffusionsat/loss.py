"""The loss of DiffusionSat: any denoiser's, with quantities that are dropped one by one, and the published weight of time steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..loss import DenoiserLoss
from .pipeline import DiffusionSatPipeline


class DiffusionSatLoss(DenoiserLoss):
    """See :class:`DenoiserLoss`.

    Args:
        recipe: with a section ``diffusionsat``.
    """

    pipe: DiffusionSatPipeline

    def __init__(self, pipe: DiffusionSatPipeline, recipe: Any) -> None:
        super().__init__(pipe, recipe)
        self.published_weight = recipe.diffusionsat.published_weight

    def parts(self, batch: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """As of any denoiser; of every picture each quantity is unknown with a probability of its own.

        Drawn for the whole batch, on the CPU: the same numbers on every device, and in whatever pieces the batch is worked off.
        """
        layout = batch["layout"]
        dropped = (torch.rand(layout.metadata.shape) < self.pipe.config.metadata_dropout).to(layout.metadata.device)
        unknown = layout.metadata.masked_fill(dropped, torch.nan)
        return super().parts({**batch, "layout": dataclasses.replace(layout, metadata=unknown)})

    def snr_weight(self, snr: Tensor) -> Tensor:
        """Published: the weight that min-SNR has for noise, on velocities, too, so that steps of little noise count for less."""
        return snr.clamp(max=self.snr_gamma) / snr if self.published_weight else super().snr_weight(snr)
