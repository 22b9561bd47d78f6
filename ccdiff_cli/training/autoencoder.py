"""Training of our own latent autoencoder on the set's training pictures: the encoder in closed form, the decoder by gradient descent.

The decoder's loss is L1 on pixels and on pixel differences: edges matter more than flat ground in aerial pictures.  It is trained on
latents with a little noise, which is what it gets from a denoiser: one that only ever saw exact latents turns their errors into a
pattern of dots.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..errors import CCDiffError
from ..models.autoencoder import PatchAutoencoder
from ..pictures import read_rgb
from ..recipes import AutoencoderConfig
from ..scene import Scene
from .loop import Progress, batch_indices, run_stage, seed_of


def build_autoencoder(config: AutoencoderConfig) -> PatchAutoencoder:
    """An autoencoder of the recipe's sizes; shrinks pictures by ``2 ** (len(channels) - 1)``."""
    return PatchAutoencoder(block_out_channels=config.channels, latent_channels=config.latent_channels, whitening=config.whitening)


def load_pixels(scene: Scene) -> np.ndarray:
    """The picture of a scene, (H, W, 3) uint8.

    Raises:
        CCDiffError: the file is missing or does not decode.
    """
    return np.asarray(read_rgb(str(scene.path)))


class _DecoderLoss(nn.Module):
    def __init__(self, vae: PatchAutoencoder, latent_noise: float) -> None:
        super().__init__()
        self.vae, self.latent_noise = vae, latent_noise

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            latents = self.vae.encode(pixels, return_dict=False)[0].mode()
            if self.latent_noise:  # drawn on the CPU: the same numbers on every device
                latents = latents + self.latent_noise * torch.randn(latents.shape).to(latents)
        error = self.vae.decode(latents, return_dict=False)[0].float() - pixels
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + edges / 2


def train_autoencoder(
    scenes: tuple[Scene, ...],
    config: AutoencoderConfig,
    folder: Path,
    accelerator: Accelerator,
    *,
    seed: int,
    key: Any,
    progress: Progress | None = None,
    log: Any = None,
) -> PatchAutoencoder:
    """Fit the encoder, then train (or finish training) the decoder, on the pictures of ``scenes``."""
    assert config.train is not None
    torch.manual_seed(seed_of(seed, "autoencoder", "weights"))
    vae = build_autoencoder(config)
    pictures = [load_pixels(scene) for scene in scenes]
    patch = 2 ** (len(config.channels) - 1)
    smallest = min(min(p.shape[:2]) for p in pictures)
    if smallest < patch:
        raise CCDiffError(f"a picture is {smallest} px wide; the autoencoder needs at least {patch}", where=scenes[0].path)
    vae.fit_components(_patches(pictures, patch, seed))
    vae.encoder.requires_grad_(False)
    crop = min(config.crop, smallest - smallest % patch)
    train = config.train

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, torch.Tensor]:
        indices = batch_indices(len(pictures), step=step, micro=micro, rank=rank, world=world, config=train, seed=seed, stage="autoencoder")
        rng = np.random.default_rng(seed_of(seed, "autoencoder", "crop", step, micro, rank))
        crops = []
        for index in indices:
            picture = pictures[index]
            y, x = (int(rng.integers(0, side - crop + 1)) for side in picture.shape[:2])
            piece = np.rot90(picture[y : y + crop, x : x + crop], int(rng.integers(4)))
            crops.append(np.ascontiguousarray(piece[:, ::-1] if rng.integers(2) else piece))
        return {"pixels": torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1}

    loss = _DecoderLoss(vae, config.latent_noise)
    run_stage("autoencoder", loss, batch_of, train, folder, accelerator, seed=seed, key=key, progress=progress, log=log)
    return vae.eval().requires_grad_(False).to(accelerator.device)


def _patches(pictures: list[np.ndarray], patch: int, seed: int, per_picture: int = 128) -> torch.Tensor:
    """Patches at random places of every picture, ``(n, 3 * patch * patch)`` in [-1, 1]."""
    rng = np.random.default_rng(seed_of(seed, "autoencoder", "patches"))
    rows = []
    for picture in pictures:
        for _ in range(per_picture):
            y, x = (int(rng.integers(0, side - patch + 1)) for side in picture.shape[:2])
            rows.append(picture[y : y + patch, x : x + patch].transpose(2, 0, 1).reshape(-1))
    return torch.from_numpy(np.stack(rows)).float() / 127.5 - 1
