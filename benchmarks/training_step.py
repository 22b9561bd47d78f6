"""One step of training in memory and time: what activation checkpointing, adapters and an optimizer of 8 bits save and cost.

    OMP_NUM_THREADS=1 python -m benchmarks.training_step
    python -m benchmarks.training_step --width 320 --size 64          # Stable Diffusion 1.4

A UNet of Stable Diffusion 1.4's form and random weights, at a third of its width and on latents of 32 x 32 unless told otherwise, takes two
optimizer steps (the second is timed: in the first memory is asked for).  Every line is a process of its own, forked where the libraries are
loaded; memory is the largest resident one, less what it took then.  Weights decide neither.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any

import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import torch
from diffusers import UNet2DConditionModel

from ccdiff_cli.methods.recipe import StageConfig
from ccdiff_cli.training.adapters import adapt
from ccdiff_cli.training.loop import optimizer_of

VARIANTS: dict[str, dict[str, Any]] = {
    "whole UNet": {},
    "whole UNet, activation checkpointing": {"checkpointing": True},
    "whole UNet, AdamW in 8 bits": {"optimizer": "adamw8bit"},
    "frozen UNet, adapters of rank 16": {"rank": 16},
    "frozen UNet, adapters, activation checkpointing": {"rank": 16, "checkpointing": True},
}


def step(given: argparse.Namespace, name: str) -> str:
    """A line of the table: million numbers that are trained, gigabytes and seconds of an optimizer step."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chosen = {"checkpointing": False, "optimizer": "adamw", "rank": 0, **VARIANTS[name]}
    torch.manual_seed(0)
    widths = (given.width, 2 * given.width, 4 * given.width, 4 * given.width)
    unet = UNet2DConditionModel(sample_size=given.size, block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8).train()
    if chosen["rank"]:
        adapt(unet, [], chosen["rank"], seed=0)
    if chosen["checkpointing"]:
        unet.enable_gradient_checkpointing()
    trained = [p for p in unet.parameters() if p.requires_grad]
    adam = optimizer_of(trained, StageConfig(steps=2, batch_size=given.batch, optimizer=chosen["optimizer"]))
    noisy, text = torch.randn(given.batch, 4, given.size, given.size), torch.randn(given.batch, 77, 768)
    for _ in range(2):
        begun = time.process_time()
        unet(noisy, torch.full((given.batch,), 500), text).sample.square().mean().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        seconds = time.process_time() - begun
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    return f"| {name} | {sum(p.numel() for p in trained) / 1e6:.1f} | {memory:.2f} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=96, help="channels of the first resolution (Stable Diffusion 1.4: 320)")
    parser.add_argument("--size", type=int, default=32, help="side of the latents (Stable Diffusion 1.4: 64)")
    parser.add_argument("--batch", type=int, default=4, help="pictures")
    given = parser.parse_args()
    print("| trained | million numbers | GB | processor s |\n|---|---|---|---|")
    for name in VARIANTS:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.apply(step, (given, name)), flush=True)


if __name__ == "__main__":
    main()
