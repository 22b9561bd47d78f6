"""Training of our own latent autoencoder: copied from a teacher, or from the pictures alone.

With a teacher (an ``AutoencoderTiny`` of as many channels) the encoder learns its latents and the decoder its pictures, on random crops;
neither sees the other, and nothing but what the teacher puts out is used.  A teacher's pictures are a function of its latents, so copying
them does not blur as learning to guess the lost detail would.  Without one, decoder and encoder are trained together on the pictures.

* The loss of pictures is L1 on pixels and on pixel differences: edges matter more than flat ground in aerial pictures.
* The decoder is trained on latents with a little noise, which is what it gets from a denoiser: one that only ever saw exact latents turns
  their errors into a pattern of dots.
* Pictures without labels help as well as labelled ones (``autoencoder.pictures``); those that show what a picture of the set's val or test
  split shows are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..duplicates import alike_across, look_at_all
from ..errors import CCDiffError
from ..files import content_key, read_json, write_json
from ..methods.perceptual import picture_error
from ..methods.recipe import AutoencoderConfig
from ..models.autoencoder import TinyAutoencoder
from ..pictures import SUFFIXES, open_picture, read_rgb, to_rgb
from ..scene import Scene
from .loop import Progress, Run, batch_indices, pass_of, run_stage, seed_of

_SPREAD = 1e-3
"""Weight of the latents' square in the loss without a teacher: they stay near zero and of about one size."""


def load_pixels(scene: Scene) -> np.ndarray:
    """The picture of a scene, (H, W, 3) uint8.

    Raises:
        CCDiffError: the file is missing or does not decode.
    """
    return np.asarray(read_rgb(str(scene.path)))


def pixel_tensor(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """Pictures (H, W, 3) uint8 of one size -> ``(n, 3, H, W)`` float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1


def normalise_latents(vae: TinyAutoencoder, scenes: Sequence[Scene], whitening: float, device: torch.device) -> None:
    """Normalise the latents of an autoencoder on (up to 256 of) the training pictures."""
    some = np.unique(np.linspace(0, len(scenes) - 1, min(256, len(scenes))).astype(int))
    with torch.no_grad():
        rows = [vae.encoder(pixel_tensor([load_pixels(scenes[i])]).to(device)).cpu() for i in some]
    vae.normalise(torch.cat(rows), whitening)


def more_pictures(
    folders: Sequence[str], held_out: Sequence[Scene], found: Path, progress: Progress | None = None
) -> tuple[list[str], int]:
    """The picture files under some folders, sorted, without those that show what a held-out picture shows; and how many those are.

    Which ones those are is kept in the file ``found``, so that a training that goes on need not look at them again.

    Raises:
        CCDiffError: a folder is missing, holds no picture, or one that does not decode.
    """
    paths: list[str] = []
    for folder in folders:
        inside = sorted(str(p) for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise CCDiffError("no pictures in this folder", where=folder, fix="correct the recipe key autoencoder.pictures")
        paths += inside
    others = [str(scene.path) for scene in held_out]
    key = content_key([paths, others])
    known = read_json(found) if found.is_file() else None
    if not isinstance(known, dict) or known.get("key") != key:
        looks = look_at_all(paths, progress)
        for path, look in zip(paths, looks, strict=True):
            if look.failure:
                raise CCDiffError(f"the picture cannot be read: {look.failure}", where=path, fix="replace or remove the file")
        known = {"key": key, "shown": sorted({j for _, j, _ in alike_across(look_at_all(others, progress), looks)})}
        write_json(found, known)
    shown = set(known["shown"])
    return [path for k, path in enumerate(paths) if k not in shown], len(shown)


class _CopyLoss(nn.Module):
    """Encoder and decoder each against the teacher's; the latents' noise is drawn on the CPU: the same numbers on every device."""

    def __init__(self, vae: TinyAutoencoder, teacher: TinyAutoencoder, latent_noise: float) -> None:
        super().__init__()
        self.vae, self.teacher, self.latent_noise = vae, teacher, latent_noise

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher.encode(pixels).latent_dist.mode()
            shown = self.teacher.decode(wanted).sample
        noise = self.latent_noise * torch.randn(wanted.shape).to(wanted)
        latents = self.vae.encode(pixels).latent_dist.mode()
        return (latents - wanted).float().square().mean() + picture_error(self.vae.decode(wanted + noise).sample, shown).mean()


class _PictureLoss(nn.Module):
    """Encoder and decoder together, on the pictures alone."""

    def __init__(self, vae: TinyAutoencoder, latent_noise: float) -> None:
        super().__init__()
        self.vae, self.latent_noise = vae, latent_noise

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = self.vae.encode(pixels).latent_dist.mode()
        noise = self.latent_noise * torch.randn(latents.shape).to(latents)
        return picture_error(self.vae.decode(latents + noise).sample, pixels).mean() + _SPREAD * latents.float().square().mean()


def train_autoencoder(
    scenes: Sequence[Scene],
    config: AutoencoderConfig,
    run: Run,
    *,
    teacher: TinyAutoencoder | None = None,
    held_out: Sequence[Scene] = (),
) -> TinyAutoencoder:
    """Train (or finish training) the autoencoder on the pictures of ``scenes`` and of ``config.pictures``.

    Args:
        teacher: whose latents, as it normalises them, and pictures are copied.
        held_out: pictures that must not be among those of ``config.pictures``.
    """
    assert config.train is not None
    torch.manual_seed(seed_of(run.seed, "autoencoder", "weights"))
    vae = TinyAutoencoder((config.width,) * 4, config.latent_channels).to(run.accelerator.device)
    paths = [str(scene.path) for scene in scenes]
    if config.pictures:
        more, shown = more_pictures(config.pictures, held_out, run.folder / "pictures.json", run.progress)
        paths += more
        if run.progress is not None:
            run.progress(f"pictures left out that val or test shows: {shown}", 1, 1)
    loss: nn.Module
    if teacher is not None:
        vae.register_to_config(latent_mean=teacher.config.latent_mean, latent_scale=teacher.config.latent_scale)
        loss = _CopyLoss(vae, teacher, config.latent_noise)
    else:
        loss = _PictureLoss(vae, config.latent_noise)
    loss.to(memory_format=torch.channels_last)
    run_stage("autoencoder", loss, _crops(paths, config, run.seed), config.train, run)
    vae = vae.eval().requires_grad_(False).to(run.accelerator.device)
    if teacher is None:
        normalise_latents(vae, scenes, config.whitening, run.accelerator.device)
    return vae


def _crops(paths: Sequence[str], config: AutoencoderConfig, seed: int) -> Callable[[int, int, int, int], dict[str, torch.Tensor]]:
    """Batches of random crops in random orientations, ``(B, 3, crop, crop)`` in [-1, 1]."""
    assert config.train is not None
    train, crop = config.train, config.crop

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, torch.Tensor]:
        indices = batch_indices(len(paths), step=step, micro=micro, rank=rank, world=world, config=train, seed=seed, stage="autoencoder")
        rng = np.random.default_rng(seed_of(seed, "autoencoder", "crop", step, *pass_of(micro, rank, world)))
        crops = []
        for index in indices:
            with open_picture(paths[index]) as image:
                picture = to_rgb(image)
            if min(picture.size) < crop:
                picture = picture.resize((max(crop, picture.width), max(crop, picture.height)), Image.Resampling.BICUBIC)
            x, y = (int(rng.integers(0, side - crop + 1)) for side in picture.size)
            piece = np.rot90(np.asarray(picture.crop((x, y, x + crop, y + crop))), int(rng.integers(4)))
            crops.append(piece[:, ::-1] if rng.integers(2) else piece)
        return {"pixels": pixel_tensor(crops).contiguous(memory_format=torch.channels_last)}

    return batch_of
