"""AeroGen and LayoutDiffusion in training: half precision, less memory, what is trained, and that the loss falls on what is seen again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ccdiff_cli.drawn import CLASSES, draw_dataset
from ccdiff_cli.generator import read_generator
from ccdiff_cli.methods import METHODS, load_pipeline
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.training import train
from tests.models.small import make_scenes

from .test_aerogen import make_pipeline as make_aerogen
from .test_layoutdiffusion import make_pipeline as make_layoutdiffusion

NAMES = ("aerogen", "layoutdiffusion")
SMALL = {
    "picture_size": 32, "denoiser.train.steps": 3, "denoiser.train.batch_size": 2, "denoiser.train.warmup_steps": 0,
    "denoiser.symmetries": 1, "denoiser.balance": 0.0, "denoiser.sample_every": 100, "sampling.steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    drawn = draw_dataset(root / "drawn", pictures=8, size=64)
    prepare_dataset(drawn, root / "set", PrepareOptions(size=32, classes=drawn / CLASSES))
    return root / "set"


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_in_half_precision_with_less_memory_and_crowds_in_pieces(name: str, prepared: Path, tmp_path: Path) -> None:
    losses = []
    for k, more in enumerate(
        ({}, {"denoiser.train.precision": "bfloat16", "denoiser.gradient_checkpointing": True, "denoiser.objects_at_once": 1})
    ):
        recipe = load_recipe(f"{name}-tiny", {**SMALL, **more})
        losses.append(train(recipe, prepared, tmp_path / str(k), cpu=True)["final_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert read_generator(tmp_path / "1")["method"] == name and load_pipeline(tmp_path / "1") is not None


def test_pixels_are_trained_on_without_an_autoencoder(prepared: Path, tmp_path: Path) -> None:
    recipe = load_recipe("layoutdiffusion-tiny", {**SMALL, "layoutdiffusion.space": "pixels", "autoencoder": None})
    train(recipe, prepared, tmp_path / "g", cpu=True)
    pipe: Any = load_pipeline(tmp_path / "g")
    assert pipe.vae is None and pipe.vae_scale_factor == 1 and pipe.unet.config.in_channels == 3 and not (tmp_path / "g" / "vae").exists()


def _batches(pipe: Any, scenes: list[Any], channels: int) -> Iterator[dict[str, Any]]:
    layout = pipe.layout_batch(scenes)
    g = torch.Generator().manual_seed(1)
    latents = torch.rand(len(scenes), channels, 16, 16, generator=g) * 2 - 1
    while True:
        yield {
            "latents": latents, "layout": layout, "dropped": torch.tensor([False, True, False]), "empty_tokens": pipe._text("")[0],
        }  # fmt: skip


def _pipe(name: str) -> tuple[Any, list[Any], int]:
    if name == "aerogen":
        return make_aerogen(), make_scenes([2, 1, 0])[0], 4
    return make_layoutdiffusion(), make_scenes([2, 1, 0], size=(16, 16))[0], 3


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss_and_change_what_is_trained_alone(name: str) -> None:
    torch.manual_seed(0)
    method, recipe = METHODS[name], load_recipe(f"{name}-tiny", {"denoiser.object_weight": 1.0})
    pipe, scenes, channels = _pipe(name)
    pipe.register_modules(scheduler=method.schedule(recipe, True))
    for part in pipe.modules_of().values():
        part.requires_grad_(False)
    stage = method.stages[0]
    trained = list(stage.trains(pipe, recipe))
    for parameter in trained:
        parameter.requires_grad_(True)
    before = {f"{k}.{n}": v.detach().clone() for k, part in pipe.modules_of().items() for n, v in part.named_parameters()}
    module, optimizer, batches = stage.loss(pipe, recipe), torch.optim.AdamW(trained, lr=2e-3), _batches(pipe, scenes, channels)

    def loss_of(seed: int) -> Tensor:
        torch.manual_seed(seed)
        ((_, piece),) = module.parts(next(batches))
        return module(**piece)

    first = sum(loss_of(k).item() for k in range(4))
    for k in range(24):
        optimizer.zero_grad()
        loss_of(k % 4).backward()
        optimizer.step()
    assert sum(loss_of(k).item() for k in range(4)) < 0.8 * first
    ours = {id(p) for p in trained}
    for k, part in pipe.modules_of().items():
        for n, v in part.named_parameters():
            assert torch.equal(v, before[f"{k}.{n}"]) == (id(v) not in ours), f"{k}.{n}"


def test_as_published_aerogen_trains_transformer_blocks_and_what_takes_the_layout() -> None:
    pipe = make_aerogen()
    recipe = SimpleNamespace(unet=SimpleNamespace(train_all=False))
    ours = {id(p) for p in METHODS["aerogen"].stages[0].trains(pipe, recipe)}
    names = {n for n, p in pipe.unet.named_parameters() if id(p) in ours}
    assert {n.split(".")[0] for n in names} == {"down_blocks", "mid_block", "up_blocks", "layout_encoder", "mask_attention"}
    assert all(".transformer_blocks." in n or n.startswith(("layout_encoder", "mask_attention")) for n in names)


def test_pieces_of_a_batch_sum_to_the_batch() -> None:
    pipe, scenes, channels = _pipe("layoutdiffusion")
    recipe = load_recipe("layoutdiffusion-tiny")
    pipe.register_modules(scheduler=METHODS["layoutdiffusion"].schedule(recipe, True))
    module = METHODS["layoutdiffusion"].stages[0].loss(pipe, recipe)
    batch = next(_batches(pipe, scenes, channels))
    found = []
    for most in (1, 4000):
        module.objects_at_once = most
        torch.manual_seed(4)
        with torch.no_grad():
            found.append(float(sum(share * module(**piece) for share, piece in module.parts(batch))))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_it_samples_in_half_precision(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe, scenes, _ = _pipe(name)
    pipe.save_pretrained(tmp_path)
    half = type(pipe).from_pretrained(tmp_path, dtype=dtype)
    assert half.arithmetic == dtype
    x, found = torch.randn(6, *_shape(name), generator=torch.Generator().manual_seed(1)), []
    for one in (pipe, half):
        one.set_progress_bar_config(disable=True)
        condition = one.condition(one.layout_batch(scenes), one._text("")[0], guided=True)
        found.append(one.predict(x.to(one.arithmetic), torch.tensor(500), condition))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.05
    made = half(scenes, generator=[torch.Generator().manual_seed(k) for k in range(3)], output_type="latent").images
    assert bool(made.isfinite().all())


def _shape(name: str) -> tuple[int, int, int]:
    return (4 if name == "aerogen" else 3, 16, 16)
