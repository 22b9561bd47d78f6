"""Draw docs/grid.png: layouts of the validation split, the real pictures, and what a generator makes of the layouts.

    python docs/grid.py runs/vhr10 ccdiff_cli/weights/tiny docs/grid.png

One picture of each class, the first by file name whose most frequent class it is and that holds at least one object that is not
difficult: nothing is picked by hand.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from ccdiff_cli.dataset import read_set
from ccdiff_cli.drawing import comparison_grid
from ccdiff_cli.generator import read_generator
from ccdiff_cli.methods.ccdiff.pipeline import CCDiffPipeline
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.references import ReferenceBank


def main(data: str, generator: str, out: str) -> None:
    pictures, bank = read_set(data), ReferenceBank.read(data)
    style = read_generator(generator)["recipe"]["caption_style"]
    scenes = []
    for name in pictures.classes:
        for scene in pictures.split("val"):
            clear = Counter(i.category for i in scene.instances if not i.difficult)
            if clear and clear.most_common(1)[0][0] == name:
                scenes.append(scene.replace(caption=caption_of(scene, style=style)))
                break
    pipe = CCDiffPipeline.from_pretrained(generator)
    references = [bank.choose(scene, seed=k) for k, scene in enumerate(scenes)]
    made = pipe(scenes, references, generator=[torch.Generator().manual_seed(k) for k in range(len(scenes))]).images
    rows = [(scene, Image.open(str(scene.path)), image) for scene, image in zip(scenes, made, strict=True)]
    comparison_grid(rows, classes=pictures.classes, across=4, cell=128).save(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
