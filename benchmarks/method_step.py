"""Time of one guided denoising step of every method beside that of the plain UNet, and of what is prepared once a batch.

    python -m benchmarks.denoise_step --method ccdiff++ migc --size small --instances 6 100 --repeats 5 --clock cpu

Settings are those of the full-size recipes; weights are random, since time does not depend on them.  Methods and the plain UNet take turns,
and the figure is the smallest over the repeats.  A method with a network of its own (LayoutDiffusion)
is timed at its recipe's picture size; one without a step (Txt2Img-MHN) is not.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.denoise_step import CLASSES, TOKENS, UNETS, WIDTH, make_layout
from ccdiff_cli.methods import METHODS, Base
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.recipes import load_recipe

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "ccdiff++": ("ccdiffpp-sd14-dior", {}),
    "ccdiff": ("ccdiffpp-sd14-dior", {"conditioning.variant": "ccdiff"}),
    "migc": ("migc-sd14-dior", {}),
    "gligen": ("gligen-sd14-dior", {}),
    "aerogen": ("aerogen-sd15-dior", {}),
    "diffusionsat": ("diffusionsat-sd21-dior", {}),
    "layoutdiffusion": ("layoutdiffusion-dior", {}),
}


def pipeline_of(name: str, size: str) -> Any:
    """An untrained pipeline of a method on a UNet of this size."""
    recipe = load_recipe(*RECIPES[name])
    method, needs = METHODS[name], recipe.base()
    torch.manual_seed(0)
    parts: dict[str, Any] = {"text_encoder": None, "tokenizer": None} if "text" in needs else {}
    side, channels = recipe.picture_size, 3
    if "vae" in needs:
        blocks = 4
        parts["vae"] = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=(8,) * blocks, norm_num_groups=4, latent_channels=4,
        )  # fmt: skip
        side, channels = side // 8, 4
    if "unet" in needs:
        parts["unet"] = UNet2DConditionModel(**UNETS[size])
    classes = tuple(f"class {k}" for k in range(CLASSES))
    built = method.build(Base(recipe, classes, (), side, channels, WIDTH, 1024, parts))
    scheduler = method.schedule(recipe, False)
    pipe = method.pipeline()(**{**parts, **built}, scheduler=scheduler, **method.options(recipe))
    for part in pipe.modules_of().values():
        part.eval().requires_grad_(False)
    return pipe


@torch.no_grad()
def steps_of(pipe: Any, layout: LayoutBatch, now: Callable[[], float], repeats: int) -> dict[str, float]:
    """Seconds of preparing the batch, of a guided step, and of the plain UNet's, where the method stands on one."""
    metadata = pipe.metadata_of([])
    if metadata is not None:
        layout.metadata = torch.full((layout.batch_size, 7), torch.nan, dtype=torch.float64)
    plain = next((UNet2DConditionModel.from_config(dict(UNETS[size])) for size in UNETS if _fits(pipe, size)), None)
    config = pipe.unet.config
    side = config.image_size if "image_size" in config else layout.latent_size[0]
    layout.latent_size = (side, side)
    x = torch.randn(2 * layout.batch_size, config.in_channels, side, side)
    text = torch.randn(2 * layout.batch_size, TOKENS, WIDTH)
    t, empty = torch.full((len(x),), 500), torch.randn(1, TOKENS, WIDTH)

    def clock(run: Callable[[], Any]) -> tuple[float, Any]:
        start = now()
        made = run()
        return now() - start, made

    prepare, condition = clock(lambda: pipe.condition(pipe.prepare_layout(layout), empty, guided=True))
    own, base = [], []
    for _ in range(repeats + 1):  # the first warms up
        own.append(clock(lambda: pipe.predict(x, t, condition))[0])
        if plain is not None:
            base.append(clock(lambda: plain(x, t, text).sample)[0])
    return {"prepare": prepare, "step": min(own[1:]), **({"plain": min(base[1:])} if base else {})}


def _fits(pipe: Any, size: str) -> bool:
    wanted = UNETS[size].get("block_out_channels", (320, 640, 1280, 1280))
    return tuple(pipe.unet.config.get("block_out_channels", ())) == tuple(wanted)


def table(methods: list[str], size: str, instances: list[int], batch: int, repeats: int, now: Callable[[], float]) -> None:
    """Print a row for every method and number of instances."""
    print(f"{size} UNet, batch {batch}, guided; {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads\n")
    print("| method | N | prepare s | step s | plain UNet s | step / plain |\n|---|---|---|---|---|---|")
    for name in methods:
        pipe = pipeline_of(name, size)
        for count in instances:
            row = steps_of(pipe, make_layout(batch, count, "cpu", torch.float32), now, repeats)
            plain = f"{row['plain']:.3f} | {row['step'] / row['plain']:.2f}" if "plain" in row else "- | -"
            print(f"| {name} | {count} | {row['prepare']:.3f} | {row['step']:.3f} | {plain} |", flush=True)
