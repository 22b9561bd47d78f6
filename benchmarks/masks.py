"""How well a model cuts objects out: its masks (``prepare --masks``) against a data set's own, class by class.

    python -m benchmarks.masks NWPU_VHR10 --masks u2netp --per-class 40

IoU within the box, mean over objects; beside it what a whole box scores (the share of the box that the object fills), and the share of
objects that the model misses (its mask covers under a tenth of the box: then the bank keeps the whole box, and so does the figure here).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np
from PIL import Image, ImageDraw

from ccdiff_cli.formats import read_raw
from ccdiff_cli.pictures import picture_size
from ccdiff_cli.prepare.masks import masker_of
from ccdiff_cli.references import MIN_SHARE, reference_window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a raw data set with masks")
    parser.add_argument("--masks", default="u2netp", help="u2netp, or sam:FOLDER")
    parser.add_argument("--per-class", type=int, default=40, help="objects of each class, drawn with seed 0")
    asked = parser.parse_args()
    masker, _ = masker_of(asked.masks)
    by_class = defaultdict(list)
    for scene in read_raw(asked.data, None, None).scenes:
        for instance in scene.instances:
            if instance.mask:
                by_class[instance.category].append((scene, instance))
    rng = np.random.default_rng(0)
    rows, seconds, count = [], 0.0, 0
    for name, objects in sorted(by_class.items()):
        found = []
        for k in rng.permutation(len(objects))[: asked.per_class]:
            scene, instance = objects[k]
            width, height = picture_size(str(scene.path))
            box = reference_window(instance, width, height)
            start = time.process_time()
            mask = masker(str(scene.path), width, height, [box])[0]
            seconds, count = seconds + time.process_time() - start, count + 1
            true = Image.new("L", (box[2] - box[0], box[3] - box[1]))
            for outline in instance.mask:
                points = [(x - box[0], y - box[1]) for x, y in zip(outline[0::2], outline[1::2], strict=True)]
                ImageDraw.Draw(true).polygon(points, fill=255)
            wanted = np.asarray(true) > 0
            missed = mask.mean() < MIN_SHARE
            kept = np.ones_like(wanted) if missed else mask
            found.append((float((kept & wanted).sum() / max(1, (kept | wanted).sum())), float(wanted.mean()), float(missed)))
        rows.append((name, len(found), *np.mean(found, axis=0)))
    print(f"| class | objects | IoU of {asked.masks} | IoU of the whole box | missed |\n|---|---|---|---|---|")
    for name, n, iou, whole, missed in rows:
        print(f"| {name} | {n} | {iou:.2f} | {whole:.2f} | {missed:.0%} |")
    means = np.mean([row[2:] for row in rows], axis=0)
    print(f"| **mean of the classes** | {count} | **{means[0]:.2f}** | **{means[1]:.2f}** | {means[2]:.0%} |")
    print(f"\n{seconds / count:.2f} s of processor time an object")


if __name__ == "__main__":
    main()
