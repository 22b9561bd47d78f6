"""A test for eyes that have seen neither layouts nor pictures: twelve drawn tiles among twelve real ones, to be named by class.

    python -m benchmarks.fresh_eyes --real runs/vhr10 --checkpoint tiny --seed 0 --out runs/eyes

``sheet.png`` is for the eyes: tiles are numbered from 1, boxes are not shown.  Which class is each, and is it real or drawn?
``key.json`` has the answers.  Layouts are of the validation split: pictures whose clear objects are all of one class, every class once,
then the first two again with another picture; the real tiles are others, chosen alike.  The seed decides all of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ccdiff_cli.dataset import PictureSet, read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import write_json
from ccdiff_cli.generator import SHIPPED, generator_folder, read_generator
from ccdiff_cli.methods import load_pipeline
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.scene import Scene

EACH, ACROSS, ZOOM = 12, 6, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="a prepared set with a val split")
    parser.add_argument("--checkpoint", default=SHIPPED, help="a generator folder, or the shipped model: tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of sheet.png and key.json")
    given = parser.parse_args()
    try:
        draw_sheet(given.real, generator_folder(given.checkpoint), given.seed, given.out)
    except CCDiffError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"sheet: {given.out / 'sheet.png'}\nanswers: {given.out / 'key.json'}")


def draw_sheet(data: Path, generator: Path, seed: int, out: Path) -> None:
    """Write sheet and key.

    Raises:
        CCDiffError: the set has too few pictures of one class alone.
    """
    real, rng = read_set(data), np.random.default_rng(seed)
    chosen = of_one_class(real, rng)
    style = read_generator(generator)["recipe"]["caption_style"]
    layouts = [scene.replace(caption=caption_of(scene, style=style)) for scene in chosen[:EACH]]
    bank, pipe = ReferenceBank.read(data), load_pipeline(str(generator), torch_dtype=torch.float32)
    references = [bank.choose(scene, seed=seed + k) for k, scene in enumerate(layouts)]
    made = pipe(layouts, references, generator=[torch.Generator().manual_seed(seed + k) for k in range(EACH)]).images
    tiles = [(image, "drawn", scene) for image, scene in zip(made, layouts, strict=True)]
    tiles += [(Image.open(str(scene.path)).convert("RGB"), "real", scene) for scene in chosen[EACH:]]
    order = rng.permutation(len(tiles)).tolist()
    side = ZOOM * layouts[0].width
    sheet = Image.new("RGB", (ACROSS * (side + 8), len(tiles) // ACROSS * (side + 24)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, k in enumerate(order):
        x, y = place % ACROSS * (side + 8), place // ACROSS * (side + 24)
        pen.text((x + 4, y + 4), str(place + 1), fill="black", font=ImageFont.load_default(14))
        sheet.paste(tiles[k][0].resize((side, side), Image.Resampling.BICUBIC), (x, y + 22))
    out.mkdir(parents=True, exist_ok=True)
    sheet.save(out / "sheet.png")
    answers = [{"tile": place + 1, "kind": tiles[k][1], "class": _class(tiles[k][2])} for place, k in enumerate(order)]
    write_json(out / "key.json", {"generator": str(generator), "seed": seed, "tiles": answers})


def of_one_class(real: PictureSet, rng: np.random.Generator) -> list[Scene]:
    """2 x ``EACH`` validation pictures that show one class alone, the classes in turn, none twice."""
    members: dict[str, list[Scene]] = {}
    for scene in real.split("val"):
        clear = {i.category for i in scene.instances if not i.difficult}
        if len(clear) == 1 and {i.category for i in scene.instances} == clear and "spectrum" not in scene.provenance:
            members.setdefault(next(iter(clear)), []).append(scene)
    names = [name for name in real.classes if len(members.get(name, ())) >= -(-2 * EACH // len(real.classes))]
    if 2 * len(names) < EACH:
        raise CCDiffError("too few validation pictures show one class alone", where=real.root, fix="take a set with more")
    for name in names:
        members[name] = [members[name][k] for k in rng.permutation(len(members[name]))]
    return [members[names[k % len(names)]][k // len(names)] for k in range(2 * EACH)]


def _class(scene: Scene) -> str:
    return scene.instances[0].category


if __name__ == "__main__":
    main()
