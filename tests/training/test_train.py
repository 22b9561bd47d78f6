"""``train`` from end to end: what it writes, that a killed run resumes to the same bytes, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.generator import read_generator
from ccdiff_cli.methods.ccdiff.pipeline import CCDiffPipeline
from ccdiff_cli.models.autoencoder import TinyAutoencoder
from ccdiff_cli.recipes import Recipe, load_recipe, recipe_of
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.training import plan, train
from ccdiff_cli.training.autoencoder import load_pixels, pixel_tensor
from ccdiff_cli.training.denoiser import training_items
from ccdiff_cli.training.loop import Run
from tests.training.conftest import STAGE, VALUES


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.parent.name}.{k}": v for p in sorted(folder.glob("*/*.safetensors")) for k, v in load_file(p).items()}


def test_a_generator_is_a_pipeline_folder_that_makes_pictures(generator: Path, prepared: Path) -> None:
    pipe = CCDiffPipeline.from_pretrained(generator)
    pipe.set_progress_bar_config(disable=True)
    scene = read_set(prepared).split("test")[0]
    references = ReferenceBank.read(prepared).choose(scene, seed=0)
    picture = pipe([scene], [references], generator=[torch.Generator().manual_seed(0)]).images[0]
    assert picture.size == (32, 32)
    described = read_generator(generator)
    assert described["picture_size"] == 32 and described["classes"] == list(read_set(prepared).classes)
    assert described["data"]["sources"] == sorted({s.source for s in read_set(prepared).split("train")})
    assert pipe.unet.config.conditioning["gate"] == "obb"


def test_weights_are_stored_in_half_precision_and_finite(generator: Path) -> None:
    stored = weights(generator)
    assert stored and all(v.dtype in (torch.float16, torch.int64) and torch.isfinite(v.float()).all() for v in stored.values())


def test_training_moved_every_part_of_the_denoiser(generator: Path, recipe: Recipe, prepared: Path, tmp_path: Path) -> None:
    values = recipe.model_dump(mode="json")
    values["denoiser"]["train"]["steps"] = 1
    values["denoiser"]["train"]["learning_rate"] = 1e-12

    train(recipe_of(values, where="test"), prepared, tmp_path / "still", cpu=True)
    still, moved = weights(tmp_path / "still"), weights(generator)
    unmoved = [k for k in moved if k.split(".")[0] in ("unet", "resampler") and torch.equal(moved[k], still[k])]
    # gates of classes and places are exercised by so few pictures only in part, but no whole tensor may stand still
    assert not unmoved, unmoved


def test_validation_pictures_and_logs_are_there(generator: Path) -> None:
    assert len(list((generator / "train" / "samples").glob("*.png"))) == 2
    assert list((generator / "train" / "logs").glob("events*"))


def test_the_same_command_on_a_finished_generator_does_nothing(generator: Path, recipe: Recipe, prepared: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in generator.rglob("*") if p.is_file()}
    assert train(recipe, prepared, generator, cpu=True) == read_generator(generator)
    assert {p: p.stat().st_mtime_ns for p in generator.rglob("*") if p.is_file()} == before


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(recipe_file: Path, prepared: Path, out: Path) -> list[str]:
    options = ["--cpu", "--recipe", str(recipe_file), "--data", str(prepared), "--out", str(out)]
    return [sys.executable, "-m", "ccdiff_cli", "train", *options]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path, prepared: Path) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "g"
    subprocess.run(command(recipe_file, prepared, out), env=ONE_THREAD, capture_output=True, check=True)
    return out


@pytest.mark.parametrize("moment", ["denoiser/checkpoint-00000002.pt", "encoders/checkpoint-00000004.pt"])
def test_killed_and_started_again_equals_uninterrupted(
    tmp_path: Path, uninterrupted: Path, recipe_file: Path, prepared: Path, moment: str
) -> None:
    out = tmp_path / "g"
    process = subprocess.Popen(command(recipe_file, prepared, out), env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / "train" / moment).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "ccdiff.json").exists()
    done = subprocess.run(command(recipe_file, prepared, out), env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, other = weights(out), weights(uninterrupted)
    assert one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_a_training_that_goes_on_by_another_number_of_processes(
    generator: Path, recipe: Recipe, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By epochs its steps are of that number, and it is refused; by steps it goes on, and says what changes."""
    cut = Path(shutil.copytree(generator, tmp_path / "g"))
    (cut / "ccdiff.json").unlink()
    kept = cut / "train" / "processes.json"
    assert json.loads(kept.read_text()) == {"processes": 1}
    kept.write_text('{"processes": 2}')
    values = recipe.model_dump(mode="json")
    values["denoiser"]["train"] |= {"steps": 0, "epochs": 1.0}
    with pytest.raises(CCDiffError, match="begun by 2 processes and is to go on by 1; its length is in epochs") as caught:
        train(recipe_of(values, where="test"), prepared, cut, cpu=True)
    assert "start 2 processes again" in str(caught.value) and json.loads(kept.read_text()) == {"processes": 2}
    train(recipe, prepared, cut, cpu=True)
    assert "begun by 2 processes, goes on by 1: a step that is left sees 0.5 times as many pictures" in caplog.text
    assert json.loads(kept.read_text()) == {"processes": 1}


def test_weights_that_a_launcher_would_divide_are_refused(
    recipe: Recipe, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(CCDiffError, match="by FSDP, which training cannot do") as caught:
        train(recipe, prepared, tmp_path / "g", cpu=True)
    assert "leave out --use_fsdp" in str(caught.value) and not (tmp_path / "g" / "train").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_accumulated_passes(tmp_path: Path, prepared: Path) -> None:
    """Data, draws and gradients of a step are the same; sums of floats are not in the same order."""
    stage = {**STAGE, "steps": 0, "epochs": 1, "learning_rate": 1e-4}
    values = {**VALUES, "denoiser": {**VALUES["denoiser"], "train": stage}}
    for name, accumulation in (("two", 1), ("one", 2)):
        for section in ("autoencoder", "encoders", "denoiser"):
            values = {**values, section: {**values[section], "train": {**values[section]["train"], "accumulation": accumulation}}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    two = [part for part in command(tmp_path / "two.yaml", prepared, tmp_path / "g2")[1:] if part != "--cpu"]  # without a GPU: of itself
    done = subprocess.run([*launch, *two], env={**ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("generator:") == 1  # one of the two speaks
    assert done.stderr.count("2 processes on cpu; denoiser: ") == 1
    one = subprocess.run(
        command(tmp_path / "one.yaml", prepared, tmp_path / "g1"), env=ONE_THREAD, capture_output=True, text=True, check=True
    )
    assert "1 process on cpu; denoiser: " in one.stderr
    both, alone = (read_generator(tmp_path / name) for name in ("g2", "g1"))
    assert both["steps"] == alone["steps"] > 1 and both["final_loss"] == pytest.approx(alone["final_loss"], rel=1e-3)
    trained, expected = weights(tmp_path / "g2"), weights(tmp_path / "g1")
    apart = {name: float((value.float() - expected[name].float()).abs().max()) for name, value in trained.items()}
    assert max(apart.values()) < 2e-3, max(apart.items(), key=lambda pair: pair[1])


@pytest.mark.parametrize(("world", "gpu", "asked"), [("2", False, True), ("1", False, False), ("2", True, False)])
def test_processes_of_a_launcher_meet_on_the_cpu_where_there_is_no_gpu(
    world: str, gpu: bool, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccdiff_cli.training import run

    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(run, "Accelerator", lambda cpu, kwargs_handlers: cpu)
    assert run._accelerator(False) is asked and run._accelerator(True) is True


def test_a_launcher_that_started_fewer_processes_than_it_was_told_is_named(
    recipe: Recipe, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    from ccdiff_cli.training.run import processes_note

    assert "WARNING" not in processes_note(recipe, 10, Accelerator(cpu=True))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as `accelerate launch --num_processes 2 --cpu` leaves it
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    note = processes_note(recipe, 10, Accelerator(cpu=True))
    assert "WARNING: accelerate launch was asked for more than one process and started one" in note and "--nproc_per_node N" in note


def test_half_precision_arithmetic_and_gradient_checkpointing_train(
    generator: Path, recipe_file: Path, prepared: Path, tmp_path: Path
) -> None:
    changed = load_recipe(recipe_file, {"denoiser.train.precision": "bfloat16", "denoiser.gradient_checkpointing": True})
    made = train(changed, prepared, tmp_path / "g", cpu=True)
    assert made["final_loss"] == pytest.approx(read_generator(generator)["final_loss"], rel=0.05)


def test_the_published_variant_of_2024_trains(recipe_file: Path, prepared: Path, tmp_path: Path) -> None:
    changed = load_recipe(recipe_file, {"conditioning.variant": "ccdiff", "denoiser.train.steps": 2})
    train(changed, prepared, tmp_path / "g", cpu=True)
    assert type(CCDiffPipeline.from_pretrained(tmp_path / "g").resampler).__name__ == "DualResampler"


def test_going_on_from_a_generator_keeps_its_frozen_parts(generator: Path, recipe: Recipe, prepared: Path, tmp_path: Path) -> None:
    train(recipe, prepared, tmp_path / "further", start=generator, cpu=True)
    before, after = weights(generator), weights(tmp_path / "further")
    frozen = [k for k in before if k.split(".")[0] in ("vae", "text_encoder", "image_encoder")]
    assert frozen and all(torch.equal(before[k], after[k]) for k in frozen)
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("unet."))


def test_a_transplant_takes_inner_levels_into_other_latents_and_says_so(
    generator: Path, recipe_file: Path, prepared: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderTiny

    widths = (8,) * 4
    AutoencoderTiny(latent_channels=6, encoder_block_out_channels=widths, decoder_block_out_channels=widths).save_pretrained(
        tmp_path / "taesd"
    )
    changes = {"autoencoder.source": str(tmp_path / "taesd"), "autoencoder.whitening": 1.0, "denoiser.train.learning_rate": 1e-12}
    changed = load_recipe(recipe_file, changes)
    made = train(changed, prepared, tmp_path / "g", start=generator, transplanted=True, cpu=True)
    before, after = weights(generator), weights(tmp_path / "g")
    told = made["start"]["transplant"]["unet"]
    assert "conv_in.weight" in told["new"] and "conv_out.bias" in told["new"] and told["copied"] > 50
    assert torch.equal(before["unet.mid_block.resnets.0.conv1.weight"], after["unet.mid_block.resnets.0.conv1.weight"])
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith("image_encoder."))
    vae = CCDiffPipeline.from_pretrained(tmp_path / "g").vae
    assert vae.config.latent_channels == 6 and len(vae.config.latent_mean) == 6
    scenes = read_set(prepared).split("train")
    with torch.no_grad():
        latents = torch.cat([vae.encode(pixel_tensor([load_pixels(s)])).latent_dist.mode() for s in scenes])
    assert latents.mean((0, 2, 3)).abs().max() < 0.05 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.05
    with pytest.raises(CCDiffError, match="--from"):
        train(changed, prepared, tmp_path / "h", transplanted=True, cpu=True)


def test_other_classes_are_learned_from_a_generator_that_did_not_know_them(
    generator: Path, recipe: Recipe, prepared: Path, tmp_path: Path
) -> None:

    data = tmp_path / "set"
    shutil.copytree(prepared, data)
    for name in ("annotations.json", "manifest.json"):
        path = data / name
        path.write_text(path.read_text().replace("windmill", "gizmometer").replace("ship", "gizmometer"))
    assert "gizmometer" in json.dumps(list(read_set(data).classes))
    made = train(recipe, data, tmp_path / "g", start=generator, cpu=True)
    assert "gizmometer" in made["start"]["new words"]
    tokenizer = CCDiffPipeline.from_pretrained(tmp_path / "g").tokenizer
    assert tokenizer.unk_token_id not in tokenizer("a gizmometer")["input_ids"]


def test_an_own_autoencoder_copies_a_teacher(recipe_file: Path, prepared: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from ccdiff_cli.training.autoencoder import more_pictures, train_autoencoder

    torch.manual_seed(3)
    teacher = TinyAutoencoder((8,) * 4, 4, latent_mean=[0.1] * 4, latent_scale=[0.5] * 4).eval().requires_grad_(False)
    stage = {"steps": 60, "batch_size": 4, "learning_rate": 3e-3, "schedule": "linear", "checkpoint_every": 60, "ema_decay": 0.0}
    config = load_recipe(recipe_file, {"autoencoder.train": stage, "autoencoder.crop": 16}).autoencoder
    scenes = read_set(prepared).split("train")
    student = train_autoencoder(scenes, config, Run(tmp_path / "a", Accelerator(cpu=True), 0, "k"), teacher=teacher)
    pixels = pixel_tensor([load_pixels(s) for s in scenes])
    torch.manual_seed(0)
    untaught = TinyAutoencoder((8,) * 4, 4, latent_mean=[0.1] * 4, latent_scale=[0.5] * 4)
    with torch.no_grad():
        wanted = teacher.encode(pixels).latent_dist.mode()
        far = (untaught.encode(pixels).latent_dist.mode() - wanted).square().mean()
        near = (student.encode(pixels).latent_dist.mode() - wanted).square().mean()
    assert near < 0.5 * far and student.config.latent_scale == [0.5] * 4
    test = read_set(prepared).split("test")
    paths, shown = more_pictures([str(prepared / "images")], test, tmp_path / "found.json")
    assert shown >= len(test) and not {str(s.path) for s in test} & set(paths)


def test_refusals(generator: Path, recipe: Recipe, recipe_file: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(CCDiffError, match="another recipe"):
        train(load_recipe(recipe_file, {"seed": 5}), prepared, generator, cpu=True)
    with pytest.raises(CCDiffError, match="--size 64"):
        plan(load_recipe(recipe_file, {"picture_size": 64}), prepared)
    with pytest.raises(CCDiffError, match="the output folder is the real set itself"):
        plan(load_recipe(recipe_file), prepared, prepared)
    with pytest.raises(CCDiffError, match=r"recipe key autoencoder\.source"):
        train(load_recipe(recipe_file, {"autoencoder.source": str(tmp_path)}), prepared, tmp_path / "g", cpu=True)
    with pytest.raises(CCDiffError, match="unfinished"):
        (tmp_path / "half" / "train").mkdir(parents=True)
        read_generator(tmp_path / "half")
    with pytest.raises(CCDiffError, match="no such generator"):
        read_generator(tmp_path / "nothing")


def test_symmetries_multiply_the_items_and_move_the_captions(recipe: Recipe, prepared: Path) -> None:
    scenes = read_set(prepared).split("train")
    items = training_items(scenes, recipe)
    assert len(items) == 2 * len(scenes) and len({item.latent for item in items}) == len(items)
    assert [len(i.scene.instances) for i in items[::2]] == [len(s.instances) for s in scenes]
