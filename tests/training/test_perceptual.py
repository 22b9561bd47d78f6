"""The loss of what a network sees in denoised pictures: what it measures, when it is asked, what is said without its weights."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from ccdiff_cli.cli import main
from ccdiff_cli.detectors import backbones
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods import perceptual
from ccdiff_cli.methods.loss import DenoiserLoss
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.training import train
from ccdiff_cli.training.costs import memory_of_training
from tests.models.small import TEXT, TOKENS, make_batch, make_pipeline

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(backbones.LITE0_PACKAGE) is None, reason="the extra cpu-detector is not installed"
)


def loss_of(prediction: str, **settings: Any) -> DenoiserLoss:
    torch.manual_seed(0)
    pipe = make_pipeline()
    pipe.register_modules(scheduler=DDPMScheduler(prediction_type=prediction))
    recipe = load_recipe("tiny", {"denoiser.snr_gamma": 0, "denoiser.object_weight": 1, **settings})
    return DenoiserLoss(pipe, recipe)


def batch_of(loss: DenoiserLoss, count: int = 4) -> dict[str, Any]:
    layout = make_batch([1] * count)
    return {
        "latents": torch.randn(count, loss.pipe.unet.config.in_channels, *layout.latent_size),
        "layout": layout,
        "dropped": torch.zeros(count, dtype=torch.bool),
        "empty_tokens": torch.randn(1, TOKENS, TEXT),
    }


@needs_weights
def test_alike_is_nothing_and_the_decoder_stays_as_it_is() -> None:
    pipe = make_pipeline()
    seen = perceptual.PerceptualLoss(pipe)
    real = torch.randn(3, pipe.vae.config.latent_channels, 16, 16)
    made = real.clone()
    made[1] += 0.1 * torch.randn(made[1].shape)
    made[2] += torch.randn(made[2].shape)
    made.requires_grad_(True)
    found = seen(made, real)
    assert found.shape == (3,) and found[0] == 0 and 0 < found[1] < found[2] < 4
    found.sum().backward()
    assert made.grad is not None and made.grad[2].abs().max() > 0
    assert all(p.grad is None for part in (pipe.vae, seen.network) for p in part.parameters())
    assert not seen.network.training


@needs_weights
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_is_looked_at_is_the_denoised_picture_where_the_noise_is_low(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loss_of(prediction, **{"denoiser.perceptual": 0.5})
    batch = batch_of(loss)
    steps = torch.tensor([10, 599, 600, 999])
    noise = torch.randn(batch["latents"].shape)
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(loss, "seen", lambda made, real: (shown.append(made), shown.append(real), torch.tensor([2.0, 4.0]))[-1])
    schedule = loss.scheduler
    right = noise if prediction == "epsilon" else schedule.get_velocity(batch["latents"], noise, steps)
    monkeypatch.setattr(loss.pipe, "condition", lambda *args, **more: None)
    monkeypatch.setattr(loss.pipe, "predict", lambda *args: right)
    value = loss(**batch, noise=noise, steps=steps, mean_weight=torch.ones(()))
    torch.testing.assert_close(shown[0], batch["latents"][:2], rtol=1e-3, atol=1e-3)  # a network that is right shows the real picture
    assert torch.equal(shown[1], batch["latents"][:2])
    assert float(value) == pytest.approx(0.5 * 6 / 4)
    shown.clear()
    assert float(loss(**batch, noise=noise, steps=torch.tensor([700, 800, 900, 600]), mean_weight=torch.ones(()))) >= 0 and not shown


@needs_weights
def test_it_trains_the_denoiser_and_costs_memory_that_is_said(recipe_file, prepared, generator, tmp_path) -> None:
    with_it = load_recipe(recipe_file, {"denoiser.perceptual": 0.1, "sampling.steps": 3})
    told = train(with_it, prepared, tmp_path / "g", start=generator, cpu=True)
    plain = train(load_recipe(recipe_file), prepared, tmp_path / "p", start=generator, cpu=True)
    assert told["recipe"]["denoiser"]["perceptual"] == 0.1 and "perceptual" not in plain["recipe"]["denoiser"]
    assert told["identity"] != plain["identity"] and told["final_loss"] > plain["final_loss"]
    of = [(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for name in "gp"]
    vae = [(tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() for name in "gp"]
    assert of[0] != of[1] and vae[0] == vae[1]
    steps = [json.loads((tmp_path / name / "model_index.json").read_text())["num_inference_steps"] for name in "gp"]
    assert steps == [3, 2]  # what the recipe says, not what the start did
    needs = [memory_of_training(recipe, ())["pictures"] for recipe in (load_recipe(recipe_file), with_it)]
    assert needs[1] > 1.2 * needs[0]


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
