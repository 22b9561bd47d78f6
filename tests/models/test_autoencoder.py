"""Our own autoencoder: principal components in closed form, latents of mean 0 and deviation 1, save and load."""

from pathlib import Path

import numpy as np
import torch

from ccdiff_cli.models.autoencoder import PatchAutoencoder


def patches(n: int = 4000, patch: int = 4) -> torch.Tensor:
    """Smooth random patches around a grey that is not the middle."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 2, 2, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, size=(patch, patch), mode="bilinear", align_corners=False)
    return (0.2 * smooth + 0.02 * torch.randn(n, 3, patch, patch, generator=rng) + 0.3).flatten(1)


def fitted(latent_channels: int = 12) -> PatchAutoencoder:
    torch.manual_seed(0)
    vae = PatchAutoencoder(block_out_channels=(8, 8, 16), latent_channels=latent_channels)
    vae.fit_components(patches())
    return vae.eval()


def test_components_are_those_of_an_svd() -> None:
    data = patches().double().numpy()
    _, _, directions = np.linalg.svd(data - data.mean(0), full_matrices=False)
    kept = directions[:12].T @ directions[:12]
    decoded = (data - data.mean(0)) @ kept
    vae = fitted()
    pixels = torch.from_numpy(data).float().reshape(-1, 3, 4, 4)
    with torch.no_grad():
        ours = vae.linear_decoder(vae.encode(pixels).latent_dist.mode()).flatten(1).double().numpy() - data.mean(0)
    # the decoder has one mean per colour; the smooth patches' mean is a colour up to sampling noise
    assert np.abs(ours - decoded).max() < 0.03


def test_latents_have_mean_zero_and_deviation_one() -> None:
    with torch.no_grad():
        latents = fitted().encode(patches().reshape(-1, 3, 4, 4)).latent_dist.mode().flatten(1)
    torch.testing.assert_close(latents.mean(0), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(0), torch.ones(12), atol=1e-2, rtol=0)


def test_more_components_lose_less() -> None:
    pixels = patches().reshape(-1, 3, 4, 4)
    errors = []
    for kept in (2, 6, 12, 48):
        vae = fitted(kept)
        with torch.no_grad():
            errors.append(float((vae.decode(vae.encode(pixels).latent_dist.mode()).sample - pixels).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4 < errors[0]


def test_shapes_saving_and_loading(tmp_path: Path) -> None:
    vae = fitted()
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels, return_dict=False)[0].mode()
        assert latents.shape == (2, 12, 4, 6)
        decoded = vae.decode(latents, return_dict=False)[0]
    assert decoded.shape == pixels.shape
    vae.save_pretrained(tmp_path)
    again = PatchAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.decode(latents).sample, decoded)


def test_fitting_twice_gives_the_same_signs() -> None:
    assert torch.equal(fitted().encoder.weight, fitted().encoder.weight)
