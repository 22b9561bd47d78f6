"""Two oracles of a trainability experiment: synthetic objects on real ground, and real objects on synthetic ground.

    ccdiff synthesize --n 391 -c runs/generator -l runs/held -r runs/tenth --layout-source set --out runs/drawn
    python -m benchmarks.composite_sets --real runs/held --synthetic runs/drawn --out runs/composites
    ccdiff eval-trainability ... --other objects=runs/composites/synthetic-objects --arm objects=8.8

A picture that was drawn for a real picture's layout is laid over that picture through its oriented boxes, grown by ``--margin`` pixels and
softened by as many: one set has the objects of the drawn picture, the other its ground, and both have the labels of the real one.  Against
the drawn pictures themselves they say which half of a picture costs the detector what.  Not resumable: it takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ccdiff_cli.dataset import IMAGES, read_set, write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import atomic_write, sha256_file
from ccdiff_cli.pictures import read_rgb
from ccdiff_cli.scene import Scene

SETS = ("synthetic-objects", "synthetic-ground")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="the prepared set whose layouts were drawn; its train split is taken")
    parser.add_argument("--synthetic", type=Path, required=True, help="the set that was drawn for its layouts: --layout-source set")
    parser.add_argument("--margin", type=float, default=2.0, help="pixels around an oriented box that go with the object")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two new sets")
    given = parser.parse_args()
    if given.out.exists():
        raise SystemExit(f"{given.out}: there is something already; choose another --out")
    try:
        for root in composites(given.real, given.synthetic, given.margin, given.out):
            print(f"set: {root}")
    except CCDiffError as error:
        raise SystemExit(f"error: {error}") from None


def composites(real: Path, synthetic: Path, margin: float, out: Path) -> list[Path]:
    """Write both sets; the first drawn picture of every real one is taken.

    Raises:
        CCDiffError: a set does not read, or a drawn picture has other boxes than the real one of its source.
    """
    pictures, drawn = read_set(real), read_set(synthetic)
    of_source = {scene.source: scene for scene in reversed(drawn.scenes)}
    scenes = [scene for scene in pictures.split("train") if scene.source in of_source]
    if not scenes:
        raise CCDiffError(
            "no picture of this set was drawn for a layout of the real one", where=synthetic, fix="give the sets that belong together"
        )
    roots = []
    for name in SETS:
        hashes: dict[str, str] = {}
        for scene in scenes:
            made = of_source[scene.source]
            if [i.corners for i in made.instances] != [i.corners for i in scene.instances]:
                raise CCDiffError(
                    f"its boxes are not those of {scene.file_name}", where=made.path, fix="synthesize with --layout-source set"
                )
            above, below = (made, scene) if name == SETS[0] else (scene, made)
            path = out / name / IMAGES / scene.file_name
            with atomic_write(path, durable=False) as stream:
                laid_over(above, below, margin).save(stream, format="PNG")
            hashes[scene.file_name] = sha256_file(path)
        told = {
            "composites": {
                "real": pictures.key(),
                "synthetic": drawn.key(),
                "margin": margin,
                "objects_of": "synthetic" if name == SETS[0] else "real",
            }
        }
        roots.append(write_set(out / name, scenes, pictures.classes, kind="synthetic", details=told, picture_hashes=hashes).root)
    return roots


def laid_over(objects: Scene, ground: Scene, margin: float) -> Image.Image:
    """The picture of ``ground`` with the oriented boxes of ``objects`` shown through a soft mask; both of one size."""
    top, bottom = (np.asarray(read_rgb(str(scene.path)), np.float32) for scene in (objects, ground))
    mask = Image.new("L", (objects.width, objects.height))
    draw = ImageDraw.Draw(mask)
    for instance in objects.instances:
        corners = np.asarray(instance.corners).reshape(4, 2)
        outwards = corners - corners.mean(0)
        draw.polygon(
            [tuple(p) for p in corners + margin * np.sqrt(2) * outwards / np.linalg.norm(outwards, axis=1, keepdims=True).clip(1e-6)],
            fill=255,
        )
    share = np.asarray(mask.filter(ImageFilter.GaussianBlur(margin / 2)), np.float32)[..., None] / 255
    return Image.fromarray((share * top + (1 - share) * bottom).round().astype(np.uint8))


if __name__ == "__main__":
    main()
