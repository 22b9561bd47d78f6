"""Real pictures through a generator's autoencoder, with their labels, as a set: what rounding by the autoencoder alone costs a detector.

    python -m benchmarks.autoencoder_set --real runs/hrsc --leave-out runs/hrsc_10 --checkpoint tiny --out runs/decoded
    ccdiff eval-trainability ... --other decoded=runs/decoded --arm decoded=8.8

``--leave-out`` is a set whose sources are not taken: with the fraction that an experiment trains on, the pictures are those of its arm
``held-out``.  Not resumable: it takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.latents import latents_of, pictures_of
from ccdiff_cli.dataset import IMAGES, read_set, write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import atomic_write, sha256_file
from ccdiff_cli.generator import SHIPPED, generator_folder
from ccdiff_cli.methods import load_pipeline

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="a prepared set; its train split is taken")
    parser.add_argument("--leave-out", type=Path, help="a prepared set whose sources are left out")
    parser.add_argument("--checkpoint", default=SHIPPED, help="a generator folder, or the shipped model: tiny")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new set")
    given = parser.parse_args()
    if given.out.exists():
        raise SystemExit(f"{given.out}: there is something already; choose another --out")
    try:
        print(f"set: {decoded_set(given.real, given.leave_out, given.checkpoint, given.out)}")
    except CCDiffError as error:
        raise SystemExit(f"error: {error}") from None


def decoded_set(real: Path, leave_out: Path | None, checkpoint: str, out: Path) -> Path:
    """Write the set and return its folder."""
    pictures = read_set(real)
    gone = {scene.source for scene in read_set(leave_out).split("train")} if leave_out is not None else set()
    scenes = [scene for scene in pictures.split("train") if scene.source not in gone]
    pipe = load_pipeline(str(generator_folder(checkpoint)), torch_dtype=torch.float32)
    hashes: dict[str, str] = {}
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        for scene, picture in zip(part, pictures_of(pipe, latents_of(pipe, part)), strict=True):
            path = out / IMAGES / scene.file_name
            with atomic_write(path, durable=False) as stream:
                picture.save(stream, format="PNG")
            hashes[scene.file_name] = sha256_file(path)
    told = {"decoded": {"real": pictures.key(), "checkpoint": str(checkpoint)}}
    return write_set(out, scenes, pictures.classes, kind="synthetic", details=told, picture_hashes=hashes).root


if __name__ == "__main__":
    main()
