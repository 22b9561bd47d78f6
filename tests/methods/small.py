"""What tests of methods on Stable Diffusion's parts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import PNDMScheduler, UNet2DConditionModel

from ccdiff_cli.methods import Base, Method
from ccdiff_cli.methods.loss import DenoiserLoss
from ccdiff_cli.methods.recipe import LatentRecipe
from tests.models.small import TEXT, TOKENS, UNET, make_batch, make_scenes, make_text_encoder, make_tokenizer, make_vae


def stable_diffusion(folder: Path, **unet: Any) -> Path:
    """A folder in the layout of Stable Diffusion's, small."""
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET | unet).save_pretrained(folder / "unet")
    make_vae().save_pretrained(folder / "vae")
    make_text_encoder().save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    schedule = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1)
    schedule.save_pretrained(folder / "scheduler")
    return folder


def make_recipe(method: Method, **changes: Any) -> LatentRecipe:
    values: dict[str, Any] = {
        "name": "small", "method": method.name, "picture_size": 128, "autoencoder": {"source": "x"}, "encoders": {"text_source": "x"},
        "unet": {"source": "x", "train_all": False}, "denoiser": {"train": {"steps": 1, "batch_size": 1}},
    }  # fmt: skip
    return method.recipe(**values | changes)


def make_pipeline(method: Method, recipe: LatentRecipe, *, training: bool = False) -> Any:
    """The method's pipeline on small random parts, as ``train`` puts it together."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNET)
    parts = {"vae": make_vae().eval(), "text_encoder": make_text_encoder().eval(), "tokenizer": make_tokenizer(), "unet": unet}
    built = method.build(Base(recipe, (), (), 16, 4, TEXT, 0, parts))
    pipe = method.pipeline()(
        **{**parts, **built}, scheduler=method.schedule(recipe, training), num_inference_steps=4, guidance_scale=2.5, negative_prompt="two",
        **method.options(recipe),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.modules_of().values():
        part.eval()
    return pipe


def pictures(pipe: Any, counts: list[int], which: list[int] | None = None, **options: Any) -> torch.Tensor:
    """Latents of the scenes of these counts (or only some of them), each from its own noise."""
    scenes, _ = make_scenes(counts)
    which = list(range(len(counts))) if which is None else which
    generators = [torch.Generator().manual_seed(k) for k in which]
    return pipe([scenes[k] for k in which], generator=generators, output_type="latent", **options).images


def trained_names(method: Method, recipe: LatentRecipe) -> set[str]:
    """The UNet's parameters that a step of training changes; that it lowers the loss on its own batch is asserted here."""
    pipe = make_pipeline(method, recipe, training=True)
    stage = method.stages[-1]
    pipe.unet.requires_grad_(False)
    chosen = list(stage.trains(pipe, recipe))
    for parameter in chosen:
        parameter.requires_grad_(True)
    before = {name: value.detach().clone() for name, value in pipe.unet.named_parameters()}
    loss = stage.loss(pipe, recipe)
    assert isinstance(loss, DenoiserLoss)
    layout = make_batch([3, 1])
    batch = {
        "latents": torch.randn(2, 4, 16, 16), "layout": layout, "dropped": torch.tensor([False, True]),
        "empty_tokens": torch.randn(1, TOKENS, TEXT),
    }  # fmt: skip
    ((share, piece),) = loss.parts(batch)
    assert share == 1.0
    optimizer, values = torch.optim.AdamW(chosen, lr=1e-3, weight_decay=0.0), []
    for _ in range(4):
        torch.manual_seed(3)
        value = loss(**piece)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0]
    return {name for name, value in pipe.unet.named_parameters() if not torch.equal(value, before[name])}
