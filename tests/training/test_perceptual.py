"""The loss of what a network sees in denoised pictures: what it measures, when it is asked, what is said without its weights."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from ccdiff_cli.cli import main
from ccdiff_cli.detectors import backbones
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods import perceptual
from ccdiff_cli.methods.loss import DenoiserLoss
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.training import train
from ccdiff_cli.training.costs import memory_of_training
from tests.models.small import make_pipeline, training_batch

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(backbones.LITE0_PACKAGE) is None, reason="the extra cpu-detector is not installed"
)


def loss_of(prediction: str, **settings: Any) -> DenoiserLoss:
    torch.manual_seed(0)
    pipe = make_pipeline()
    pipe.register_modules(scheduler=DDPMScheduler(prediction_type=prediction))
    recipe = load_recipe("tiny", {"denoiser.snr_gamma": 0, "denoiser.object_weight": 1, **settings})
    return DenoiserLoss(pipe, recipe)


def weights_of(generator: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(generator / part / "diffusion_pytorch_model.safetensors")


@needs_weights
def test_alike_is_nothing_and_what_is_not_trained_stays_as_it_is() -> None:
    pipe = make_pipeline()
    seen = perceptual.PerceptualLoss(pipe)
    latents = torch.randn(3, pipe.vae.config.latent_channels, 16, 16)
    pixels = pipe.decoded(latents)
    made = latents.clone()
    made[1] += 0.1 * torch.randn(made[1].shape)
    made[2] += torch.randn(made[2].shape)
    made.requires_grad_(True)
    torch.manual_seed(0)
    found = seen(made, pixels, torch.zeros(3))
    assert found.shape == (3,) and found[0] == 0 and 0 < found[1] < found[2] < 4
    torch.manual_seed(0)  # the same shift of the pictures
    surely = seen(made, pixels, torch.tensor([True, False, True]))
    assert surely[0] == 0 and surely[1] == found[1]
    torch.testing.assert_close(surely[2] - found[2], perceptual.PIXELS * perceptual.picture_error(pipe.decoded(made), pixels)[2])
    found.sum().backward()
    assert made.grad is not None and made.grad[2].abs().max() > 0
    assert all(p.grad is None for part in (pipe.vae, seen.network) for p in part.parameters())
    assert not seen.network.training


def test_an_error_of_pictures_counts_pixels_and_edges() -> None:
    pixels = torch.zeros(2, 3, 8, 8)
    flat, striped = pixels[:1] + 0.5, pixels[:1].clone()
    striped[..., ::2] += 1.0  # half of the pixels by 1; every difference along x by 1
    found = perceptual.picture_error(torch.cat([flat, striped]), pixels)
    assert found.tolist() == [0.5, 1.0]


@needs_weights
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_is_looked_at_is_the_denoised_picture_where_the_noise_is_low(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loss_of(prediction, **{"denoiser.perceptual": 0.5})
    batch = training_batch(loss.pipe)
    steps = torch.tensor([10, 599, 600, 999])
    noise = torch.randn(batch["latents"].shape)
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(loss, "seen", lambda *given: (shown.extend(given), torch.tensor([2.0, 4.0]))[-1])
    schedule = loss.scheduler
    right = noise if prediction == "epsilon" else schedule.get_velocity(batch["latents"], noise, steps)
    monkeypatch.setattr(loss.pipe, "condition", lambda *args, **more: None)
    monkeypatch.setattr(loss.pipe, "predict", lambda *args: right)
    value = loss(**batch, noise=noise, steps=steps, mean_weight=torch.ones(()))
    made, pixels, sure = shown
    torch.testing.assert_close(made, batch["latents"][:2], rtol=1e-3, atol=1e-3)  # a network that is right shows the real picture
    assert torch.equal(pixels, batch["pixels"][:2]) and sure.tolist() == [True, False]
    assert float(value) == pytest.approx(0.5 * 6 / 4)
    shown.clear()
    assert float(loss(**batch, noise=noise, steps=torch.tensor([700, 800, 900, 600]), mean_weight=torch.ones(()))) >= 0 and not shown


@needs_weights
def test_a_pattern_of_two_pixels_cannot_hide_from_a_network_that_takes_every_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = perceptual.PerceptualLoss(make_pipeline())
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    pattern = torch.zeros_like(pixels)
    pattern[..., ::2, ::2] = 0.1
    shown: list[torch.Tensor] = []
    plain = seen.network.forward
    monkeypatch.setattr(seen.network, "forward", lambda x: (shown.append(x), plain(x))[-1])
    monkeypatch.setattr(seen.pipe, "decoded", lambda latents: latents)
    for k in range(20):
        torch.manual_seed(k)
        seen(pixels + pattern, pixels, torch.zeros(2))
    wanted, made = shown[::2], shown[1::2]
    assert len({float((a - b)[0, 0, 0, 0].round(decimals=3)) for a, b in zip(made, wanted, strict=True)}) == 2  # now on it, now beside it
    assert all(torch.equal(a.sort().values, b.sort().values) for a, b in itertools.pairwise([one.flatten() for one in wanted]))


@needs_weights
def test_looked_at_closely_a_quarter_is_shown_at_twice_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = perceptual.PerceptualLoss(make_pipeline())
    pixels = torch.rand(1, 3, 32, 64) * 2 - 1
    made = pixels.clone()
    made[..., 5, 7] += 1.0
    shown: list[torch.Tensor] = []
    plain = seen.network.forward
    monkeypatch.setattr(seen.network, "forward", lambda x: (shown.append(x), plain(x))[-1])
    monkeypatch.setattr(seen.pipe, "decoded", lambda latents: latents)
    noticed = 0
    for k in range(60):
        torch.manual_seed(k)
        [error], _, _ = seen.compared(made, pixels, torch.zeros(1), closely=True)
        wanted, looked = shown[-2:]
        assert wanted.shape == pixels.shape
        places = (looked - wanted).abs().sum(1)[0].nonzero()
        assert len(places) <= 16 and bool(len(places)) == (float(error) > 0)  # a pixel is four, and its bilinear neighbours
        noticed += bool(len(places))
    assert 5 <= noticed <= 30  # one in four


@needs_weights
def test_it_trains_the_denoiser_and_costs_memory_that_is_said(recipe_file, prepared, generator, tmp_path) -> None:
    recipes = [load_recipe(recipe_file, changes) for changes in ({}, {"denoiser.perceptual": 0.1, "sampling.steps": 3})]
    told = [train(recipe, prepared, tmp_path / str(k), start=generator, cpu=True) for k, recipe in enumerate(recipes)]
    assert "perceptual" not in told[0]["recipe"]["denoiser"] and "decoder" not in told[0]["recipe"]
    assert told[0]["identity"] != told[1]["identity"] and told[1]["final_loss"] > told[0]["final_loss"]
    (plain, other), (vae, same) = ([weights_of(tmp_path / str(k), part) for k in range(2)] for part in ("unet", "vae"))
    assert any(not torch.equal(plain[k], other[k]) for k in plain) and all(torch.equal(vae[k], same[k]) for k in vae)
    steps = [json.loads((tmp_path / str(k) / "model_index.json").read_text())["num_inference_steps"] for k in range(2)]
    assert steps == [2, 3]  # what the recipe says, not what the start did
    needs = [memory_of_training(recipe, (), generator) for recipe in recipes]
    assert needs[1]["pictures"] > 1.2 * needs[0]["pictures"] and needs[1]["weights"] == needs[0]["weights"]


def test_without_its_weights_nothing_is_begun(prepared, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(backbones, "_lite0_file", lambda: None)
    out = tmp_path / "g"
    with pytest.raises(SystemExit) as left:
        main(["train", "--recipe", "tiny", "--data", str(prepared), "--set", "picture_size=32", "--set", "denoiser.perceptual=0.1",
              "--out", str(out)])  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert left.value.code == 2 and "denoiser.perceptual" in said and "pip install 'ccdiff[cpu-detector]'" in said
    assert not (out / "train").exists()


@pytest.mark.parametrize("name", ["layoutdiffusion-tiny", "txt2img_mhn-tiny"])
def test_methods_that_have_no_such_picture_refuse_it(name: str) -> None:
    with pytest.raises(CCDiffError, match="perceptual"):
        load_recipe(name, {"denoiser.perceptual": 0.1})
