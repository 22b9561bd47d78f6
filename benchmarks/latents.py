"""Real pictures to a generator's latents and back: what the measurements of the autoencoder and of the noise share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ccdiff_cli.metrics.features import read_scene
from ccdiff_cli.scene import Scene


@torch.no_grad()
def latents_of(pipe: Any, scenes: Sequence[Scene]) -> torch.Tensor:
    """Latents (n, C, h, w) of the pictures of scenes, all of one size."""
    pixels = np.stack([np.asarray(read_scene(scene), np.float32) for scene in scenes])
    latents: torch.Tensor = pipe.encode_latents(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    return latents


@torch.no_grad()
def pictures_of(pipe: Any, latents: torch.Tensor) -> list[Image.Image]:
    """The pictures that latents decode to."""
    decoded = pipe.decode_latents(latents).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in (decoded * 255).round().astype(np.uint8)]
