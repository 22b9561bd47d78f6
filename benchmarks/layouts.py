"""How far the layout sources are from real layouts, on annotations alone (DIOR as it lies on disk, without its pictures).

    python -m benchmarks.layouts DIOR --split train --limit 4000

Prints the table of ``ccdiff layout --compare`` (which does the same for a prepared set) in Markdown.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from ccdiff_cli.dataset import PictureSet
from ccdiff_cli.formats.dior import read_dior
from ccdiff_cli.layouts import LayoutOptions, layouts_of_set, plan_layouts
from ccdiff_cli.layouts.statistics import MEASURES, compare_sources
from ccdiff_cli.scene import Scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dior", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--limit", type=int, default=4000, help="pictures used, drawn at random")
    parser.add_argument("--sources", nargs="*", default=["set", "augmented", "mixed", "sampled"])
    options = parser.parse_args()
    raw = read_dior(options.dior, pictures=False)
    scenes = [s for s in raw.scenes if s.split == options.split]
    chosen = np.sort(np.random.default_rng(0).permutation(len(scenes))[: options.limit])
    pictures = PictureSet(options.dior, raw.classes, tuple(scenes[k].replace(split="train") for k in chosen), {})
    seconds = {}

    def make(half: PictureSet, n: int, source: str) -> list[Scene]:
        start = time.process_time()
        made = plan_layouts(half, n, 0, LayoutOptions(source=source))
        seconds[source] = time.process_time() - start
        return made

    found = compare_sources(layouts_of_set(pictures), raw.classes, options.sources, make, options.dior)
    columns = list(found["distances"])
    first, other = found["pictures"]
    print(f"{other} layouts held out, sources fitted to {first} others")
    print(f"\n| what | {' | '.join('other half' if c == 'real' else c for c in columns)} |\n|{'---|' * (len(columns) + 1)}")
    for measure in MEASURES:
        values = (found["distances"][c][measure] for c in columns)
        print(f"| {measure} | {' | '.join('' if v is None else f'{v:.3f}' for v in values)} |")
    print("\nprocessor seconds per 1,000 layouts: " + ", ".join(f"{s} {1000 * t / other:.1f}" for s, t in seconds.items()))


if __name__ == "__main__":
    main()
