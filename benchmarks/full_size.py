"""The chain at the published sizes, with random weights: what each stage takes in memory and time, and that a kill costs nothing.

    python -m benchmarks.full_size /tmp/full_size
    python -m benchmarks.full_size /tmp/full_size --steps 2 --pictures 8

Stable Diffusion 1.4 and DINOv2 ViT-L/14 are built with the shapes of the published configurations and random weights in bfloat16 (4 GB on
disk); weights decide neither time nor memory.  Then: draw and prepare a set of 512 px, train and kill after the first checkpoint, train on
(one step a step, ``--steps`` in all), synthesize two pictures, verify, export, export the checkpoint in its released form and import it.
Every command is a process of its own: wall clock, processor time and its largest resident memory are the kernel's.

NOTE: what lies in the folder from an earlier run is taken up; give a new one to measure all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccdiff_cli.drawn import CLASSES, draw_dataset

UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408}
IMAGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518, "patch_size": 14}


@dataclass
class Taken:
    """What a command took: seconds on the clock and of processors, and the gigabytes that were resident at once."""

    name: str
    wall: float
    processor: float
    memory: float


def build_base(folder: Path) -> None:
    """A folder of Stable Diffusion 1.4's shapes; its tokenizer spells words letter by letter."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(folder / "text_encoder")
    PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(folder / "scheduler")
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77).save_pretrained(folder / "tokenizer")


def build_image_encoder(folder: Path) -> None:
    """A folder of DINOv2 ViT-L/14's shapes."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Dinov2Model(Dinov2Config(**IMAGE)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)


def run(name: str, *arguments: str, kill_at: Path | None = None) -> Taken:
    """``ccdiff`` with these arguments, killed as soon as ``kill_at`` is there."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "ccdiff_cli", *arguments], stdout=subprocess.DEVNULL)
    if kill_at is not None:
        while not kill_at.exists() and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
        raise SystemExit(f"{name}: exit code {process.returncode}")
    scale = 1e9 if sys.platform == "darwin" else 1e6
    taken = Taken(name, time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / scale)
    print(row(taken), flush=True)
    return taken


def row(taken: Taken) -> str:
    return f"| {taken.name} | {taken.wall:,.0f} | {taken.processor:,.0f} | {taken.memory:.1f} |"


def chain(folder: Path, *, pictures: int, steps: int) -> list[Taken]:
    """Every stage, in order."""
    base, dino, data, generator = (str(folder / name) for name in ("sd14", "dino", "set", "generator"))
    changes = {
        "encoders.image_source": dino, "retrieval": "words", "denoiser.train.batch_size": 1, "denoiser.train.accumulation": 1,
        "denoiser.train.steps": steps, "denoiser.train.checkpoint_every": 1, "sampling.steps": 2,
    }  # fmt: skip
    train = ["train", "--recipe", "ccdiffpp-sd14-dior", "--base", base, "--data", data, "--out", generator, "--cpu"]
    train += [argument for key, value in changes.items() for argument in ("--set", f"{key}={value}")]
    drawn = folder / "drawn"
    if not drawn.exists():
        draw_dataset(drawn, pictures=pictures, size=512)
    taken = [run("prepare", "prepare", str(drawn), "--size", "512", "--classes", str(drawn / CLASSES), "--out", data)]
    taken.append(run("train --dry-run", *train, "--dry-run"))
    first = folder / "generator" / "train" / "denoiser" / "checkpoint-00000001.pt"
    taken.append(run("train, killed after its first checkpoint", *train, kill_at=first))
    taken.append(run(f"train on, to {steps} steps", *train))
    made = str(folder / "synthetic")
    options = ["--n", "2", "--steps", "2", "--checkpoint", generator, "--layouts", data, "--out", made]
    taken.append(run("synthesize 2 pictures, 2 steps", "synthesize", *options))
    taken.append(run("verify", "verify", made))
    taken.append(run("export --format yolo", "export", made, "--format", "yolo", "--out", str(folder / "yolo")))
    released = str(folder / "released")
    taken.append(run("export-checkpoint", "export-checkpoint", generator, "--out", released))
    given = ["--stable-diffusion", base, "--image-encoder", dino, "--out", str(folder / "imported")]
    taken.append(run("import-checkpoint", "import-checkpoint", released, *given))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where models, set and generator are laid")
    parser.add_argument("--pictures", type=int, default=8, help="of the set")
    parser.add_argument("--steps", type=int, default=2, help="of the training, at least 2")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(given.folder).free / 1e9
    if free < 40:
        raise SystemExit(f"{free:.0f} GB are free in {given.folder.parent}; models, checkpoints and generators take about 40")
    for name, build in (("sd14", "build_base"), ("dino", "build_image_encoder")):
        if not (given.folder / name).exists():  # in a process of its own, so that its memory is not held while the chain runs
            program = f"import sys, pathlib; from benchmarks.full_size import {build} as build; build(pathlib.Path(sys.argv[1]))"
            subprocess.run([sys.executable, "-c", program, str(given.folder / name)], check=True)
    print("| stage | seconds | of processors | GB at most |\n|---|---|---|---|")
    chain(given.folder, pictures=given.pictures, steps=given.steps)
    print(f"\n{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
