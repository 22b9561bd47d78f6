"""The loss of GLIGEN: any denoiser's.  Whether it learns to obey boxes shows in how far its gates are open, long before the loss does."""

from __future__ import annotations

from ..loss import DenoiserLoss
from .network import gates


class GLIGENLoss(DenoiserLoss):
    """See :class:`DenoiserLoss`."""

    def figures(self) -> dict[str, float]:
        """Mean and largest |tanh alpha| of the gates of attention and of feed-forward: 0 closed, 1 open."""
        opened = gates(self.pipe.unet)
        return {
            f"gates/{name}_{how}": float(value)
            for name, column in zip(("attention", "feed_forward"), opened.T, strict=True)
            for how, value in (("mean", column.mean()), ("max", column.max()))
        }
