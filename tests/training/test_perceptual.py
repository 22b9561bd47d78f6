"""The loss of what a network sees in denoised pictures: what it measures, when it is asked, what is said without its weights."""

from __future__ import annotations

import importlib.util
import itertools
import json
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
        "pixels": torch.rand(count, 3, *layout.image_size) * 2 - 1,
    }


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
    found = seen(made, pixels, torch.zeros(3))
    assert found.shape == (3,) and found[0] == 0 and 0 < found[1] < found[2] < 4
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
    batch = batch_of(loss)
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
def test_a_decoder_that_is_trained_has_a_gradient_where_pictures_are_looked_at_and_its_encoder_none() -> None:
    loss = loss_of("v_prediction", **{"denoiser.perceptual": 0.1, "denoiser.decoder": True})
    vae, batch = loss.pipe.vae, batch_of(loss)
    into = {name for name, _ in vae.named_parameters() if name.startswith(("encoder.", "quant_conv."))}
    for time, looked_at in ((5, True), (999, False)):
        vae.zero_grad(set_to_none=True)
        steps = torch.full((4,), time)
        loss(**batch, noise=torch.randn(batch["latents"].shape), steps=steps, mean_weight=torch.ones(())).backward()
        found = {name for name, p in vae.named_parameters() if p.grad is not None}
        assert into and found == ({name for name, _ in vae.named_parameters()} - into if looked_at else set())
    plain = loss_of("v_prediction", **{"denoiser.perceptual": 0.1})
    assert not any(p.requires_grad for p in plain.pipe.vae.parameters())


@needs_weights
def test_it_trains_the_denoiser_and_if_asked_the_decoder_and_costs_memory_that_is_said(recipe_file, prepared, generator, tmp_path) -> None:
    looked = {"denoiser.perceptual": 0.1, "sampling.steps": 3}
    recipes = [load_recipe(recipe_file, changes) for changes in ({}, looked, looked | {"denoiser.decoder": True})]
    told = [train(recipe, prepared, tmp_path / str(k), start=generator, cpu=True) for k, recipe in enumerate(recipes)]
    sections = [one["recipe"]["denoiser"] for one in told]
    assert "perceptual" not in sections[0] and "decoder" not in sections[1] and sections[2]["decoder"] is True
    assert len({one["identity"] for one in told}) == 3 and told[1]["final_loss"] > told[0]["final_loss"]

    def weights(part: str) -> list[dict[str, torch.Tensor]]:
        return [load_file(tmp_path / str(k) / part / "diffusion_pytorch_model.safetensors") for k in range(3)]

    assert all(any(not torch.equal(one[k], other[k]) for k in one) for one, other in itertools.combinations(weights("unet"), 2))
    plain, fixed, learned = weights("vae")
    assert all(torch.equal(plain[k], fixed[k]) for k in plain)
    changed = {k for k in plain if not torch.equal(plain[k], learned[k])}
    assert changed and not any(k.startswith("encoder") for k in changed)
    steps = [json.loads((tmp_path / str(k) / "model_index.json").read_text())["num_inference_steps"] for k in range(3)]
    assert steps == [2, 3, 3]  # what the recipe says, not what the start did
    needs = [memory_of_training(recipe, (), generator) for recipe in recipes]
    assert needs[1]["pictures"] > 1.2 * needs[0]["pictures"] and needs[2]["pictures"] == needs[1]["pictures"]
    decoder = sum(t.numel() for k, t in plain.items() if not k.startswith("encoder"))
    assert (
        needs[1]["weights"] == needs[0]["weights"] and needs[2]["weights"] - needs[1]["weights"] == decoder * 4 * 4
    )  # value, gradient, two moments, average


@needs_weights
def test_a_decoder_goes_on_where_its_training_was_killed(recipe_file, prepared, generator, tmp_path) -> None:
    recipe = load_recipe(recipe_file, {"denoiser.perceptual": 0.1, "denoiser.decoder": True, "denoiser.train.checkpoint_every": 1})
    train(recipe, prepared, tmp_path / "whole", start=generator, cpu=True)
    stopped = tmp_path / "stopped"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "denoiser" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, prepared, stopped, start=generator, cpu=True, progress=stop)
    assert list((stopped / "train" / "denoiser").glob("checkpoint-*.pt"))
    train(recipe, prepared, stopped, start=generator, cpu=True)
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert (stopped / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_decoder_needs_what_it_learns_by() -> None:
    with pytest.raises(CCDiffError, match=r"denoiser\.decoder"):
        load_recipe("tiny", {"denoiser.decoder": True})


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
