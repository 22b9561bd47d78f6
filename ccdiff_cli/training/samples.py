"""What a generator in training makes so far: pictures of validation layouts, to look at, and latents that its decoder learns on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..drawing import contact_sheet, draw_scene
from ..files import atomic_write
from ..methods.method import REFERENCES
from ..models.pipeline import ScenePipeline
from ..prepare.captions import caption_of
from ..scene import Scene
from .autoencoder import load_pixels
from .cache import FeatureStore, build_store
from .denoiser import TrainingItem
from .loop import seed_of
from .parts import Work

DRAWN_ROWS = 32
"""Of a shard of drawn latents: each takes a whole sampling."""


def set_schedule(work: Work, pipe: ScenePipeline, *, training: bool) -> None:
    """Give the pipeline the method's scheduler for training or for sampling, where it has one."""
    if (schedule := work.method.schedule(work.recipe, training)) is not None:
        pipe.register_modules(scheduler=schedule)


@contextmanager
def _sampling(work: Work, pipe: Any) -> Iterator[None]:
    """The pipeline as it samples, for a while."""
    training_schedule = getattr(pipe, "scheduler", None)
    pipe.set_progress_bar_config(disable=True)
    modes = [(m, m.training) for m in (getattr(pipe, name) for name in pipe.TRAINED)]
    for module, _ in modes:
        module.eval().to(work.accelerator.device)
    set_schedule(work, pipe, training=False)
    try:
        yield
    finally:
        if training_schedule is not None:
            pipe.register_modules(scheduler=training_schedule)
        for module, mode in modes:
            module.train(mode)


@torch.no_grad()
def _made(work: Work, pipe: Any, scenes: Sequence[Scene], numbers: Sequence[int], what: str, output_type: str) -> Any:
    """Pictures or latents of scenes; noise and references of each are drawn by ``what`` and its number."""
    references = None
    if REFERENCES in work.method.takes:
        references = [work.bank.choose(s, seed=k, top_k=work.recipe.denoiser.top_k) for s, k in zip(scenes, numbers, strict=True)]
    generators = [torch.Generator().manual_seed(seed_of(work.recipe.seed, what, k)) for k in numbers]
    return pipe(scenes, references=references, generator=generators, output_type=output_type).images


def drawn_latents(work: Work, pipe: ScenePipeline, items: Sequence[TrainingItem], count: int, identity: Any) -> FeatureStore:
    """Latents of ``count`` training layouts, sampled as a synthesis samples them and kept with the cached features; keys "0", "1", ...

    Args:
        identity: of the training, on which they depend as a whole.
    """
    order = np.random.default_rng(seed_of(work.recipe.seed, "drawn")).permutation(len(items))

    def encode(numbers: list[int]) -> torch.Tensor:
        chosen = [items[int(order[k % len(items)])] for k in numbers]
        scenes = [item.scene.replace(caption=item.caption) for item in chosen]
        latents: torch.Tensor = _made(work, pipe, scenes, numbers, "drawn", "latent")
        return latents

    keys, at_once = [str(k) for k in range(count)], work.method.stages_of(work.recipe)[-1].config(work.recipe).batch_size
    with _sampling(work, pipe):
        return build_store(
            work.folder / "cache",
            "drawn",
            keys,
            identity,
            encode,
            work.accelerator,
            batch_size=at_once,
            rows=DRAWN_ROWS,
            progress=work.progress,
        )


def validation_pictures(work: Work, pipe: ScenePipeline, path: Path, count: int = 16) -> None:
    """Pictures of ``count`` validation layouts with their boxes, real above synthetic; the same layouts and noise every time."""
    prepared, style = work.prepared, work.recipe.caption_style
    pool = prepared.split("val") or prepared.split("train")
    chosen = [pool[i] for i in np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int)]
    scenes = [s if style == "stored" else s.replace(caption=caption_of(s, style=style)) for s in chosen]
    at_once = work.method.stages_of(work.recipe)[-1].config(work.recipe).batch_size  # no more memory than a step of the training takes
    images: list[Image.Image] = []
    with _sampling(work, pipe):
        for first in range(0, len(scenes), at_once):
            some = range(first, min(first + at_once, len(scenes)))
            images += _made(work, pipe, [scenes[k] for k in some], some, "validation", "pil")
    tiles = []
    for scene, image in zip(scenes, images, strict=True):
        real = Image.fromarray(load_pixels(scene))
        tiles += [real, draw_scene(image, scene), image]
    sheet = contact_sheet(tiles, columns=12)
    with atomic_write(path) as stream:
        sheet.save(stream, format="PNG")
