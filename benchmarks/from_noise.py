"""At which noise a generator loses what makes pictures look real: real pictures, noised to a step of the sampling and finished from there.

    python -m benchmarks.from_noise --real runs/vhr10 --checkpoint tiny --out runs/from_noise

A row a step of the sampler, from the last to the first: FID, KID and precision (EfficientNet-Lite0, against all real pictures of the
split) and the share of fine detail of the finished pictures.  The first row is the autoencoder alone, the last a whole sampling.  A jump
between two rows is what the steps between them cost.  Layouts, captions and references are those of the pictures themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.latents import latents_of, pictures_of
from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.generator import SHIPPED, generator_folder, read_generator
from ccdiff_cli.methods import load_pipeline
from ccdiff_cli.metrics.colours import colour_rows, colour_summary
from ccdiff_cli.metrics.distances import compare
from ccdiff_cli.metrics.features import Extractor, find_extractor, read_scene
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.scene import Scene

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="a prepared set")
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", default=SHIPPED, help="a generator folder, or the shipped model: tiny")
    parser.add_argument("--n", type=int, default=148, help="pictures, evenly from the split")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished pictures, a folder a row")
    given = parser.parse_args()
    try:
        measure(given.real, given.split, str(generator_folder(given.checkpoint)), given.n, given.steps, given.out)
    except CCDiffError as error:
        raise SystemExit(f"error: {error}") from None


def measure(data: Path, split: str, generator: str, n: int, steps: int, out: Path) -> None:
    """Print the table.

    Raises:
        CCDiffError: the set or the generator cannot be read, or EfficientNet-Lite0's weights are missing.
    """
    real = read_set(data).split(split)
    style = read_generator(generator)["recipe"]["caption_style"]
    scenes = [
        real[k].replace(caption=caption_of(real[k], style=style)) for k in np.linspace(0, len(real) - 1, min(n, len(real))).astype(int)
    ]
    bank, pipe = ReferenceBank.read(data), load_pipeline(generator, torch_dtype=torch.float32)
    references = [bank.choose(scene, seed=k) for k, scene in enumerate(scenes)]
    judge = find_extractor("efficientnet-lite0", "cpu")
    features = encoded(judge, real)
    colours = colour_rows(real)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(steps)
    times = [int(t) for t in pipe.scheduler.timesteps]
    print("| begun at time (of 1,000) | FID | KID | precision | fine detail |\n|---|---|---|---|---|")
    for first in range(steps, -1, -1):
        finished: list[Scene] = []
        for i in range(0, len(scenes), BATCH):
            part = scenes[i : i + BATCH]
            for scene, picture in zip(part, finish(pipe, part, references[i : i + BATCH], first, steps, seed=i), strict=True):
                path = out / f"{first:02}" / Path(scene.file_name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
                finished.append(scene.replace(path=str(path)))
        made = encoded(judge, finished)
        found = compare(features, made, [s.source for s in real], samples=0)
        detail = colour_summary(colour_rows(finished), colours)["high_frequency_ratio"]
        named = "autoencoder alone" if first == steps else times[first]
        print(
            f"| {named} | {found['FID']['value']:.1f} | {found['KID']['value']:.0f} | {found['precision']['value']:.3f} | {detail:.2f} |",
            flush=True,
        )


def encoded(judge: Extractor, scenes: Sequence[Scene]) -> np.ndarray:
    """Features (N, D)."""
    return np.concatenate([judge.encode([read_scene(s) for s in scenes[i : i + BATCH]]) for i in range(0, len(scenes), BATCH)])


@torch.no_grad()
def finish(pipe: Any, scenes: Sequence[Scene], references: Sequence[Any], first: int, steps: int, *, seed: int) -> list[Image.Image]:
    """The pictures of scenes, noised to step ``first`` and denoised by the steps from there on; 0: from noise alone."""
    x = latents_of(pipe, scenes)
    if first < steps:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(len(scenes))]
        given = {"latents": x, "begin": first} if first else {}
        layout, empty = pipe.layout_batch(scenes, references), pipe.encode_text([""])[0]
        x = pipe.sample(layout, empty, generators, steps=steps, scale=pipe.config.guidance_scale, **given)
    return pictures_of(pipe, x)


if __name__ == "__main__":
    main()
