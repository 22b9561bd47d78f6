"""Time of one guided denoising step of every method beside that of the plain UNet, and of what is prepared once a batch.

    python -m benchmarks.denoise_step --method ccdiff++ migc --size small --instances 6 100 --repeats 5 --clock cpu

Settings are those of the full-size recipes; weights are random, since time does not depend on them.  Methods, the plain UNet and the
published form take turns, and the figure is the smallest over the repeats.  A method with a network of its own (LayoutDiffusion) is timed
at its recipe's picture size.  Of Txt2Img-MHN a step is one code, half way through the picture.

"published / ours" is what a user would otherwise run, over ours: AeroGen's mask attention on the whole grid for each of its slots; MIGC's
shading with every instance on the whole grid, picture by picture; GLIGEN by diffusers' own pipeline, which takes one layout a call, picture
by picture; Txt2Img-MHN without keys kept from code to code.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from benchmarks.denoise_step import CLASSES, TOKENS, UNETS, WIDTH, make_layout
from ccdiff_cli.methods import METHODS, Base
from ccdiff_cli.methods.method import HBB
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.recipes import load_recipe

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "ccdiff++": ("ccdiffpp-sd14-dior", {}),
    "ccdiff": ("ccdiffpp-sd14-dior", {"conditioning.variant": "ccdiff"}),
    "migc": ("migc-sd14-dior", {}),
    "gligen": ("gligen-sd14-dior", {}),
    "aerogen": ("aerogen-sd15-dior", {"aerogen.class_source": None}),  # no weights are asked for
    "diffusionsat": ("diffusionsat-sd21-dior", {}),
    "layoutdiffusion": ("layoutdiffusion-dior", {}),
    "txt2img_mhn": ("txt2img_mhn-dior", {}),
}
SLOTS = 15
"""Of AeroGen, published in training: its mask attention is computed for all of them."""


def whole_maps(module: Any, x: Tensor, vectors: Tensor, picture: Tensor, slot: Tensor, cell: Tensor, active: Tensor) -> Tensor:
    """AeroGen's mask attention as published: every slot on the whole grid, cut out by its mask afterwards."""
    size, count, grid = len(x), vectors.shape[1], x.shape[2] * x.shape[3]
    masks = torch.zeros(size, max(SLOTS, count), grid)
    masks[picture, slot, cell] = 1
    vectors = torch.nn.functional.pad(vectors, (0, 0, 0, masks.shape[1] - count))
    cells = x.flatten(2).transpose(1, 2)
    added = torch.zeros_like(cells)
    for n in range(masks.shape[1]):
        z = module.proj_in(cells) + module.crossattn(vectors[:, n])[:, None]
        z = z + module.ffn(module.norm3(z))
        added += masks[:, n, :, None] * module.proj_out(z)
    mixed = module.strength * added.transpose(1, 2).reshape(x.shape) + (1 - module.strength) * x
    return torch.where(active[:, None, None, None], mixed, x)


def published_form(name: str, pipe: Any, layout: LayoutBatch, x: Tensor, t: Tensor, condition: Any) -> Callable[[], Any] | None:
    """The step as a user would otherwise run it, guided; None where that is what ours is."""
    size = layout.batch_size
    if name == "aerogen":

        def masked() -> Any:
            module = pipe.unet.mask_attention
            module.forward = functools.partial(whole_maps, module)
            try:
                return pipe.predict(x, t, condition)
            finally:
                del module.forward

        return masked
    if name == "gligen" and size > 1:
        alone = [pipe.condition(layout.rows(b, b + 1), torch.zeros(1, TOKENS, WIDTH), guided=True) for b in range(size)]
        return lambda: [pipe.predict(x[[b, size + b]], t[:2], alone[b]) for b in range(size)]
    if name == "migc":
        from tests.methods.test_migc import PlainProcessor, pixel_masks

        grids, grid = {}, layout.latent_size
        for _ in pipe.unet.config.down_block_types:
            grids[grid[0] * grid[1]] = grid
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        kept, slots = pipe.unet.attn_processors, pipe.unet.config.migc["slots"]
        texts, forms = layout.caption_tokens, []
        for b in range(size):
            index, hbb = layout.class_index[b], layout.hbb[b]
            given = {
                "hbb": hbb, "text": list(layout.class_tokens[index]), "pooled": layout.class_pooled[index],
                "masks": pixel_masks(hbb, layout.image_size), "latent": layout.latent_size, "grids": grids, "heads": 8, "slots": slots,
                "order": list(range(slots - 2)), "fuser": False,
            }  # fmt: skip
            forms.append({
                key: PlainProcessor(dict(own.named_parameters()) if (own := getattr(p, "migc", None)) is not None else None, given)
                if ".attn2." in key else p
                for key, p in kept.items()
            })  # fmt: skip

        def shaded() -> None:
            pipe.unet(x[:size], t[:size], texts)  # the unconditional branch
            for b, form in enumerate(forms):
                pipe.unet.set_attn_processor(dict(form))
                try:
                    pipe.unet(x[size + b : size + b + 1], t[:1], texts[b : b + 1])
                finally:
                    pipe.unet.set_attn_processor(dict(kept))

        return shaded
    return None


@torch.no_grad()
def codes_of(size: int, now: Callable[[], float], repeats: int) -> dict[str, float]:
    """Seconds of one code of Txt2Img-MHN half way through a picture, with keys kept, and of the whole sequence up to it."""
    from ccdiff_cli.methods.txt2img_mhn.network import _Keys

    recipe = load_recipe(*RECIPES["txt2img_mhn"])
    torch.manual_seed(0)
    built = METHODS["txt2img_mhn"].build(Base(recipe, (), (), recipe.picture_size, 3, 0, 0, {}))["transformer"].eval()
    text, half = torch.ones(size, built.config.text_length, dtype=torch.int64), built.cells // 2
    codes = torch.zeros(size, half, dtype=torch.int64)
    own, base, prepare = [], [], 0.0
    for _ in range(repeats + 1):
        kept, start = _Keys(built.config.text_length + built.cells), now()
        built.prototype_learning(torch.cat([built.text_rows(text), built.code_rows(codes[:, :-1])], dim=1), kept)
        prepare, start = now() - start, now()
        built.code_logits(built.prototype_learning(built.code_rows(codes[:, -1:], half - 1), kept)[:, -1])
        own.append(now() - start)
        start = now()
        built.code_logits(built.states(text, codes)[:, -1])
        base.append(now() - start)
    return {"prepare": prepare, "step": min(own[1:]), "published": min(base[1:])}


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
    if scheduler is not None:
        scheduler.set_timesteps(20)  # some methods count the steps
    for part in pipe.modules_of().values():
        part.eval().requires_grad_(False)
    return pipe


@torch.no_grad()
def steps_of(name: str, pipe: Any, layout: LayoutBatch, now: Callable[[], float], repeats: int) -> dict[str, float]:
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
    published = published_form(name, pipe, layout, x, t, condition)
    own, base, other = [], [], []
    for _ in range(repeats + 1):  # the first warms up
        own.append(clock(lambda: pipe.predict(x, t, condition))[0])
        if published is not None:
            other.append(clock(published)[0])
        if plain is not None:
            base.append(clock(lambda: plain(x, t, text).sample)[0])
    found = {"prepare": prepare, "step": min(own[1:])}
    return found | ({"plain": min(base[1:])} if base else {}) | ({"published": min(other[1:])} if other else {})


def _fits(pipe: Any, size: str) -> bool:
    wanted = UNETS[size].get("block_out_channels", (320, 640, 1280, 1280))
    return tuple(pipe.unet.config.get("block_out_channels", ())) == tuple(wanted)


def table(methods: list[str], size: str, instances: list[int], batch: int, repeats: int, now: Callable[[], float]) -> None:
    """Print a row for every method and number of instances."""
    print(f"{size} UNet, batch {batch}, guided; {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads\n")
    print("| method | N | prepare s | step s | plain UNet s | step / plain | published / ours |\n|---|---|---|---|---|---|---|")
    for name in methods:
        pipe = None if name == "txt2img_mhn" else pipeline_of(name, size)
        for count in instances if METHODS[name].of_boxes() is None or HBB in METHODS[name].takes else instances[:1]:
            layout = make_layout(batch, count, "cpu", torch.float32)
            row = codes_of(batch, now, repeats) if pipe is None else steps_of(name, pipe, layout, now, repeats)
            plain = f"{row['plain']:.3f} | {row['step'] / row['plain']:.2f}" if "plain" in row else "- | -"
            other = f"{row['published'] / row['step']:.2f}" if "published" in row else "-"
            print(f"| {name} | {count} | {row['prepare']:.3f} | {row['step']:.3f} | {plain} | {other} |", flush=True)
