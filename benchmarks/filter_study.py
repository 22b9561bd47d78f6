"""What filtering does to layout adherence and to diversity.

    ccdiff synthesize --n 400 -c GENERATOR -l runs/vhr10 --out runs/plain
    ccdiff synthesize --n 400 -c GENERATOR -l runs/vhr10 --out runs/objects --filter objects
    ccdiff synthesize --n 400 -c GENERATOR -l runs/vhr10 --out runs/pictures --filter pictures
    ccdiff synthesize --n 400 -c GENERATOR -l runs/vhr10 --out runs/crops --filter pictures --filter-judges crops
    python -m benchmarks.filter_study --real runs/vhr10 --sets runs/plain runs/objects runs/pictures runs/crops

The last set is AeroGen's filter of pictures (a classifier of crops, whose least certain object must pass; --filter-clip for its other
half).  Its filter of layouts is the last column: the share of boxes whose size or shape is more than 2 deviations from the mean of the
real ones of their class.

Adherence is measured by a detector of another seed than the filter's: one that judged the pictures cannot be asked again.  Diversity is
the mean cosine distance between pictures, and between objects of one class, in the features of that detector's backbone; beside it what
the filter leaves of each class, and how large and how many the objects are that stay.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccdiff_cli.console import progress_bars
from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import DetectorConfig, fit
from ccdiff_cli.detectors.samples import load_picture
from ccdiff_cli.files import cache_folder
from ccdiff_cli.layouts.diffusion import Likely
from ccdiff_cli.metrics.average_precision import evaluate
from ccdiff_cli.references import reference_window
from ccdiff_cli.scene import Scene

CROP = 64


@torch.no_grad()
def features(detector: Any, pictures: Sequence[torch.Tensor]) -> np.ndarray:
    """(N, C): the coarsest level of the detector's feature pyramid, averaged over the picture."""
    rows = []
    for start in range(0, len(pictures), 16):
        images, _ = detector.network.net.transform([p.to(detector.device).float() / 255 for p in pictures[start : start + 16]])
        levels = list(detector.network.net.backbone(images.tensors).values())
        rows.append(levels[3].mean((2, 3)).cpu().numpy())
    return np.concatenate(rows)


def spread(vectors: np.ndarray, centre: np.ndarray) -> float:
    """Mean cosine distance of two different rows, seen from the centre (of the real ones)."""
    vectors, n = vectors - centre, len(vectors)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return float(1 - (np.square(vectors.sum(0)).sum() - n) / (n * (n - 1)))


def crops(scenes: Sequence[Scene], limit: int = 300) -> dict[str, list[torch.Tensor]]:
    """Object crops of each class, resized to one size."""
    found: dict[str, list[torch.Tensor]] = {}
    for scene in scenes:
        picture = load_picture(scene)
        for instance in scene.instances:
            mine = found.setdefault(instance.category, [])
            if len(mine) < limit:
                x1, y1, x2, y2 = reference_window(instance, scene.width, scene.height)
                crop = picture[None, :, y1:y2, x1:x2].float()
                mine.append(torch.nn.functional.interpolate(crop, (CROP, CROP), mode="bilinear")[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=1, help="of the detector that measures; the filter's has seed 0")
    options = parser.parse_args()
    real = read_set(options.real)
    with progress_bars() as progress:
        home = cache_folder() / "detectors"
        detector: Any = fit(real.split("train"), real.classes, DetectorConfig(), home, options.seed, progress)
    likely = Likely([s for s in real.split("train") if s.instances])
    rows: dict[str, list[str]] = {}
    shares: dict[str, Counter[str]] = {}
    named = {"real test pictures": real.split("test"), **{path.name: read_set(path).scenes for path in options.sets}}
    whole: np.ndarray | None = None
    by_class_centre: dict[str, np.ndarray] = {}
    for name, scenes in named.items():
        labelled = [s for s in scenes if s.instances]
        result = evaluate(labelled, detector.predict(labelled), real.classes).summary
        objects = [i for s in labelled for i in s.instances]
        sizes = [np.sqrt((i.hbb[2] - i.hbb[0]) * (i.hbb[3] - i.hbb[1])) for i in objects]
        pictures = features(detector, [load_picture(s) for s in labelled])
        objects_of = {c: features(detector, v) for c, v in crops(labelled).items() if len(v) > 4}
        if whole is None:  # the real ones come first
            whole, by_class_centre = pictures.mean(0), {c: v.mean(0) for c, v in objects_of.items()}
        within = [(spread(v, by_class_centre[c]), len(v)) for c, v in objects_of.items() if c in by_class_centre]
        shares[name] = Counter(i.category for i in objects)
        rows[name] = [
            str(len(labelled)),
            str(len(objects)),
            f"{result['AP50']:.1f}",
            f"{result['mAP']:.1f}",
            f"{spread(pictures, whole):.3f}",
            f"{np.average([w for w, _ in within], weights=[n for _, n in within]):.3f}",
            f"{np.median(sizes):.1f}",
            f"{len(objects) / len(labelled):.2f}",
            f"{100 * np.mean([not likely.box(i, s) for s in labelled for i in s.instances]):.1f} %",
        ]
    columns = [
        "set",
        "pictures",
        "objects",
        "AP50",
        "mAP",
        "distance of pictures",
        "of objects of a class",
        "median size, px",
        "objects a picture",
        "boxes unlike real ones",
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")
    print(f"\n| objects | {' | '.join(named)} |\n|{'---|' * (len(named) + 1)}")
    for category in real.classes:
        print(f"| {category} | {' | '.join(str(shares[name][category]) for name in named)} |")
    for path in options.sets:
        if (result := read_set(path).manifest.get("filter")) is not None:
            found = ", ".join(f"{c} {v['found']}" for c, v in result["real"].items())
            print(
                f"\n{path.name}: {result['result']['pictures']}; by judge {result['result'].get('judges')}; share of real validation "
                f"objects that the filter's detector finds: {found}"
            )


if __name__ == "__main__":
    main()
