"""The last stage that teaches the decoder on what the denoiser hands it: what it changes, what it leaves, how it goes on."""

from __future__ import annotations

import importlib.util
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch.nn import functional as F

from ccdiff_cli.cli import main
from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import backbones
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods import METHODS, load_pipeline
from ccdiff_cli.methods.decoder import CLOSELY, JUDGED, DecoderLoss, Judge
from ccdiff_cli.methods.loss import denoised
from ccdiff_cli.methods.perceptual import BELOW, CHANNELS
from ccdiff_cli.models.autoencoder import encoder_weights
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.training import plan, train
from ccdiff_cli.training.cache import FeatureStore
from ccdiff_cli.training.costs import memory_of_training
from ccdiff_cli.training.denoiser import training_items
from ccdiff_cli.training.loop import seed_of
from ccdiff_cli.training.samples import DRAWN_ROWS
from tests.models.small import make_pipeline, training_batch

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(backbones.LITE0_PACKAGE) is None, reason="the extra cpu-detector is not installed"
)
ALONE = {"decoder.alone": True, "decoder.train.steps": 2, "decoder.train.batch_size": 2, "decoder.drawn": 3}


def loss_of(prediction: str, **settings: Any) -> DecoderLoss:
    torch.manual_seed(0)
    pipe = make_pipeline()
    pipe.register_modules(scheduler=DDPMScheduler(prediction_type=prediction))
    for part in pipe.modules_of().values():
        part.eval().requires_grad_(False)
    return DecoderLoss(pipe, load_recipe("tiny", {"decoder.train.steps": 2, **settings}))


@needs_weights
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_is_decoded_is_what_the_denoiser_says_is_behind_little_noise(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loss_of(prediction)
    batch = training_batch(loss.pipe, 64)
    [(share, piece)] = loss.parts(batch)
    assert share == 1 and int(piece["steps"].min()) >= 0 and BELOW * 900 < int(piece["steps"].max()) < BELOW * 1000
    batch = training_batch(loss.pipe)
    noise, steps = torch.randn(batch["latents"].shape), torch.tensor([0, 149, 150, 599])
    right = noise if prediction == "epsilon" else loss.scheduler.get_velocity(batch["latents"], noise, steps)
    shown: list[torch.Tensor] = []
    levels = [torch.randn(4, channels, 4, 4) for channels in CHANNELS]
    unlike = torch.tensor([1.0, 2.0, 3.0, 6.0])
    monkeypatch.setattr(loss.seen, "compared", lambda *given, closely: (shown.extend(given), (unlike, levels, levels))[-1])
    monkeypatch.setattr(loss.pipe, "condition", lambda *args, **more: None)
    monkeypatch.setattr(loss.pipe, "predict", lambda *args: right)
    monkeypatch.setattr(loss.judge, "forward", lambda seen: [torch.zeros(4, 1, 4, 4) for _ in seen])
    assert float(loss(**batch, noise=noise, steps=steps)) == pytest.approx(3.0 + 2 * JUDGED)  # of real and of decoded it is 1 off each
    made, pixels, sure = shown
    torch.testing.assert_close(made, batch["latents"], rtol=1e-3, atol=1e-3)  # a network that is right shows the real picture
    assert torch.equal(pixels, batch["pixels"]) and sure.tolist() == [True, True, False, False]


@needs_weights
def test_the_decoder_and_its_judge_alone_have_gradients_however_many_objects_are_denoised_at_once() -> None:
    loss = loss_of("v_prediction")
    vae, batch = loss.pipe.vae, training_batch(loss.pipe)

    def gradients(most: int) -> dict[str, torch.Tensor]:
        loss.objects_at_once = most
        loss.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        [(share, piece)] = loss.parts(batch)
        assert share == 1
        loss(**piece).backward()
        return {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}

    whole, pieced = gradients(1000), gradients(1)
    encoder = {f"vae.{name}" for name in encoder_weights(vae)}
    judge = {f"judge.{name}" for name, _ in loss.judge.named_parameters()}
    assert encoder and whole.keys() == {f"vae.{name}" for name, _ in vae.named_parameters()} - encoder | judge
    assert not any(p.requires_grad for p in loss.pipe.unet.parameters())
    apart = sum(float((pieced[name] - value).square().sum()) for name, value in whole.items())
    assert apart < 1e-4 * sum(float(value.square().sum()) for value in whole.values())  # the network's kinks turn rounding into more


def test_a_judge_learns_to_tell_and_bounds_what_it_says() -> None:
    torch.manual_seed(0)
    judge = Judge()
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter.mul_(7.0)  # larger weights, the same judge but for its biases
    real, made = ([F.normalize(torch.randn(4, c, 4, 4) + shift, dim=1) for c in CHANNELS] for shift in (0.3, 0.0))
    judge_plain = [level.detach() for level in judge(real)]
    before = [level.weight.detach().clone() for level in judge.modules() if isinstance(level, torch.nn.Conv2d)]
    for layer, weight in zip([m for m in judge.modules() if isinstance(m, torch.nn.Conv2d)], before, strict=True):
        x = torch.randn(1, layer.in_channels, 3, 3)
        found = layer(x) - (0 if layer.bias is None else layer.bias.view(1, -1, 1, 1))
        plain = F.conv2d(x, weight, padding=layer.padding)
        torch.testing.assert_close(found, plain / torch.linalg.matrix_norm(weight.flatten(1), 2), rtol=1e-3, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.allclose(a.float(), b, atol=0.1) for a, b in zip(judge(real), judge_plain, strict=True))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        wrong = sum(F.relu(1 - yes).mean() + F.relu(1 + no).mean() for yes, no in zip(judge(real), judge(made), strict=True))
        optimizer.zero_grad()
        wrong.backward()
        optimizer.step()
        losses.append(float(wrong.detach()))
    assert losses[-1] < 0.7 * losses[0] and not list(judge.buffers())


@needs_weights
def test_the_decoder_learns_to_be_taken_for_real_and_the_judge_not_to_be_fooled() -> None:
    """Each gradient alone: that of the judge's verdict on the decoder's pictures goes to the decoder, that of its errors to the judge."""
    loss = loss_of("v_prediction")
    batch = training_batch(loss.pipe)
    torch.manual_seed(1)
    [(_, piece)] = loss.parts(batch)
    torch.manual_seed(2)
    loss(**piece).backward()
    towards = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    with torch.no_grad():
        noisy = loss.scheduler.add_noise(piece["latents"], piece["noise"], piece["steps"])
        condition = loss.pipe.condition(piece["layout"], piece["empty_tokens"], dropped=piece["dropped"])
        clean = denoised(loss.scheduler, noisy, loss.pipe.predict(noisy, piece["steps"], condition), piece["steps"])
    torch.manual_seed(2)
    closely = bool(torch.rand(()) < CLOSELY)
    unlike, made, real = loss.seen.compared(clean, piece["pixels"], piece["steps"] < 150, closely=closely)
    for parameter in loss.judge.parameters():
        parameter.requires_grad_(False)
    loss.zero_grad(set_to_none=True)
    (unlike.mean() - JUDGED * torch.stack([level.mean() for level in loss.judge(made)]).mean()).backward()
    for name, parameter in loss.vae.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(towards[f"vae.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)
    for parameter in loss.judge.parameters():
        parameter.requires_grad_(True)
    pairs = zip(loss.judge(real), loss.judge([level.detach() for level in made]), strict=True)
    (JUDGED * torch.stack([F.relu(1 - yes).mean() + F.relu(1 + no).mean() for yes, no in pairs]).mean()).backward()
    for name, parameter in loss.judge.named_parameters():
        torch.testing.assert_close(towards[f"judge.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)


@needs_weights
def test_alone_it_leaves_all_but_the_decoder_and_after_a_denoiser_both_are_trained(recipe_file, prepared, generator, tmp_path) -> None:
    alone, both = (load_recipe(recipe_file, ALONE | {"decoder.alone": only}) for only in (True, False))
    told = train(alone, prepared, tmp_path / "alone", start=generator, cpu=True)
    assert told["steps"] == 2 and told["recipe"]["decoder"]["alone"] is True and told["start"]["generator"]
    changed = set()
    for path in generator.rglob("*.safetensors"):
        if "train" in path.relative_to(generator).parts:
            continue
        name, before = path.relative_to(generator).as_posix(), load_file(path)
        after = load_file(tmp_path / "alone" / name)
        changed |= {(name.split("/")[0], key) for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(part == "vae" and not key.startswith("encoder") for part, key in changed)
    before = json.loads((generator / "ccdiff.json").read_text())
    assert told["classes"] == before["classes"] and told["data"]["sources"] == before["data"]["sources"]
    assert not (tmp_path / "alone" / "train" / "denoiser").exists()
    assert [path.name for path in sorted((tmp_path / "alone" / "train" / "samples").iterdir())] == ["decoder-step-00000002.png"]

    told = train(both, prepared, tmp_path / "both", cpu=True)
    assert told["steps"] == both.denoiser.train.steps
    assert {"denoiser", "decoder"} <= {path.name for path in (tmp_path / "both" / "train").iterdir()}
    assert train(both, prepared, tmp_path / "both", cpu=True)["identity"] == told["identity"]  # known as finished
    described = plan(both, prepared)
    assert (
        described["decoder"].startswith("2 steps of 2 pictures")
        and "denoiser" in described
        and "denoiser" not in plan(alone, prepared, start=generator)
    )


@needs_weights
def test_the_judge_sees_what_a_synthesis_of_the_denoiser_hands_over(recipe_file, prepared, generator, tmp_path) -> None:
    recipe = load_recipe(recipe_file, ALONE)
    train(recipe, prepared, tmp_path / "g", start=generator, cpu=True)
    [folder] = (tmp_path / "g" / "train" / "cache").glob("drawn-*")
    stored = FeatureStore(folder, ["0", "1", "2"], DRAWN_ROWS).tensor(["0", "1", "2"])
    data, pipe = read_set(prepared), load_pipeline(str(generator))
    items, bank = training_items(data.split("train"), recipe), ReferenceBank.read(prepared)
    order = np.random.default_rng(seed_of(recipe.seed, "drawn")).permutation(len(items))
    for k, latents in enumerate(stored):
        item = items[int(order[k])]
        scene = item.scene.replace(caption=item.caption)
        reference = bank.choose(scene, seed=k, top_k=recipe.denoiser.top_k)
        noise = torch.Generator().manual_seed(seed_of(recipe.seed, "drawn", k))
        made = pipe([scene], references=[reference], generator=[noise], output_type="latent").images[0]
        torch.testing.assert_close(latents, made, rtol=2e-3, atol=2e-3)  # kept in half precision
    none = load_recipe(recipe_file, ALONE | {"decoder.drawn": 0})
    train(none, prepared, tmp_path / "none", start=generator, cpu=True)
    assert not list((tmp_path / "none" / "train" / "cache").glob("drawn-*"))
    file = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "none" / file).read_bytes() != (tmp_path / "g" / file).read_bytes()


@needs_weights
def test_drawn_latents_are_judged_and_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loss_of("v_prediction")
    batch = training_batch(loss.pipe)
    [(_, piece)] = loss.parts(batch)
    shown: list[torch.Tensor] = []
    judged: list[torch.Tensor] = []

    def compared(latents: torch.Tensor, pixels: torch.Tensor, sure: torch.Tensor, *, closely: bool) -> Any:
        shown.append(latents)
        levels = [torch.randn(len(latents), channels, 2, 2) for channels in CHANNELS]
        return torch.zeros(len(pixels)), levels, [level[: len(pixels)] for level in levels]

    def verdict(seen: Any) -> list[torch.Tensor]:  # 1 on what was denoised, 3 on what was drawn
        judged.extend(seen)
        rows = torch.tensor([1.0] * 4 + [3.0] * (len(seen[0]) - 4)).view(-1, 1, 1, 1)
        return [rows.expand(-1, 1, 2, 2) for _ in seen]

    monkeypatch.setattr(loss.seen, "compared", compared)
    monkeypatch.setattr(loss.judge, "forward", verdict)
    drawn = torch.randn(2, *batch["latents"].shape[1:])
    value = float(loss(**piece, drawn=drawn))
    assert torch.equal(shown[0][4:], drawn) and len(shown[0]) == 6
    # the decoder is judged by -(1 + 3) / 2; the judge is right of real ones, and wrong by 2 and by 4 of the others
    assert value == pytest.approx(JUDGED * (-2 + 3))


@needs_weights
def test_it_goes_on_where_it_was_killed(recipe_file, prepared, generator, tmp_path) -> None:
    recipe = load_recipe(recipe_file, ALONE | {"decoder.train.steps": 4, "decoder.train.checkpoint_every": 1})
    train(recipe, prepared, tmp_path / "whole", start=generator, cpu=True)
    stopped = tmp_path / "stopped"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "decoder" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, prepared, stopped, start=generator, cpu=True, progress=stop)
    assert list((stopped / "train" / "decoder").glob("checkpoint-*.pt"))
    train(recipe, prepared, stopped, start=generator, cpu=True)
    file = "vae/diffusion_pytorch_model.safetensors"
    assert (stopped / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_its_memory_is_the_decoder_s_and_what_is_looked_at(recipe_file, generator) -> None:
    plain, looked, alone = (
        memory_of_training(load_recipe(recipe_file, changes), (), generator)
        for changes in (
            {},
            {"denoiser.perceptual": 0.1},
            ALONE | {"decoder.train.batch_size": load_recipe(recipe_file).denoiser.train.batch_size},
        )
    )
    assert 0 < alone["pictures"] < 2 * looked["pictures"] and alone["objects"] == 0
    vae = load_file(generator / "vae" / "diffusion_pytorch_model.safetensors")
    decoder = sum(t.numel() for k, t in vae.items() if not k.startswith("encoder"))
    judge = sum(p.numel() for p in Judge().parameters())
    assert alone["weights"] - 20 * (decoder + judge) < plain["weights"]  # the UNet has neither gradients nor moments nor an average
    assert alone["checkpoint"] == (decoder + judge) * 4 * 4  # value, two moments, average


@pytest.mark.parametrize("arguments", [(), ("--from", "tiny", "--transplant")])
def test_alone_it_needs_a_finished_denoiser(prepared, tmp_path, capsys, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--recipe", "tiny", "--data", str(prepared), "--set", "picture_size=32", "--set", "decoder.alone=true", *arguments,
              "--out", str(tmp_path / "g")])  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert left.value.code == 2 and "decoder.alone" in said and "--from GENERATOR" in said
    assert not (tmp_path / "g" / "train").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("denoiser.prediction", "epsilon"), ("caption_style", "plain"), ("unet.channels", [16, 32]), ("classes", None)]
)
def test_alone_it_is_told_what_the_denoiser_is(recipe_file, prepared, generator, tmp_path, key: str, value: Any) -> None:
    """What is not trained cannot become what the recipe says: velocities read as noise would spoil the decoder and every synthesis."""
    recipe, start, where = load_recipe(recipe_file, ALONE | ({key: value} if value else {})), generator, key
    if key == "classes":
        start, where = tmp_path / "other", "knows no"
        shutil.copytree(generator, start, ignore=shutil.ignore_patterns("train"))
        described = json.loads((start / "ccdiff.json").read_text())
        (start / "ccdiff.json").write_text(json.dumps(described | {"classes": described["classes"][1:]}))
    for call in (plan, train):
        with pytest.raises(CCDiffError, match=where.split(".channels")[0]):
            call(recipe, prepared, tmp_path / "g", start=start)
    assert not (tmp_path / "g").exists()


@needs_weights
def test_alone_it_has_seen_what_its_denoiser_saw(recipe_file, prepared, generator, tmp_path) -> None:
    """The look for leaks goes by these: a decoder taught on a tenth does not make the rest unseen."""
    start = tmp_path / "other"
    shutil.copytree(generator, start, ignore=shutil.ignore_patterns("train"))
    described = json.loads((start / "ccdiff.json").read_text())
    described["data"]["sources"] = ["elsewhere"]
    (start / "ccdiff.json").write_text(json.dumps(described))
    told = train(load_recipe(recipe_file, ALONE | {"decoder.train.steps": 1}), prepared, tmp_path / "g", start=start, cpu=True)
    assert set(told["data"]["sources"]) == {"elsewhere", *(scene.source for scene in read_set(prepared).split("train"))}


def test_its_length_has_a_default_and_the_section_may_be_empty(recipe_file, tmp_path) -> None:
    assert load_recipe(recipe_file, {"decoder.train.batch_size": 3}).decoder.train.steps == 800
    assert load_recipe(recipe_file, {"decoder.train.epochs": 2}).decoder.train.steps == 0
    path = tmp_path / "empty.yaml"
    path.write_text(recipe_file.read_text() + "decoder:\n")
    assert load_recipe(path).decoder is None and load_recipe(path, {"decoder.alone": True}).decoder.alone


def test_without_the_network_s_weights_nothing_is_begun(prepared, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(backbones, "_lite0_file", lambda: None)
    with pytest.raises(SystemExit) as left:
        main(["train", "--recipe", "tiny", "--data", str(prepared), "--set", "picture_size=32", "--set", "decoder.train.steps=2",
              "--out", str(tmp_path / "g")])  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert left.value.code == 2 and "decoder" in said and "pip install 'ccdiff[cpu-detector]'" in said
    assert not (tmp_path / "g" / "train").exists()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_that_denoise_latents_take_it_and_the_others_say_why_not(name: str) -> None:
    recipe = "tiny" if name == "ccdiff++" else f"{name}-tiny"
    if name in ("layoutdiffusion", "txt2img_mhn"):
        with pytest.raises(CCDiffError, match="decoder: it draws the latents"):
            load_recipe(recipe, {"decoder.train.steps": 2})
        return
    found = load_recipe(recipe, {"decoder.train.epochs": 2})
    assert [stage.name for stage in METHODS[found.method].stages_of(found)][-1] == "decoder"
    assert found.decoder is not None and found.decoder.train.steps == 0
    assert "decoder" not in json.loads(load_recipe(recipe).model_dump_json())
