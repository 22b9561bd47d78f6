"""The judges of a filter side by side: what each fails of real objects that it has not seen, and of synthetic ones.

    ccdiff synthesize --n 300 --steps 4 -c GENERATOR -l runs/vhr10 --out runs/plain
    python -m benchmarks.filter_judges --real runs/vhr10 --made runs/plain

Thresholds are calibrated on the real validation objects as ``synthesize --filter`` does; the real test objects are the control.  An object
fails the judge "crops" where the classifier is less sure of it than the threshold for the least certain object of a picture.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ccdiff_cli.console import progress_bars
from ccdiff_cli.dataset import read_set
from ccdiff_cli.scene import Scene
from ccdiff_cli.synthesis.filtering import Judge, calibrate, failing, prepare_filter

JUDGES = ("detector", "crops")
KINDS = ("neither", "detector alone", "crops alone", "both")


def fails(judge: Judge, scenes: Sequence[Scene]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How many objects fail which judges, in all and by class."""
    counted: Counter[str] = Counter()
    by_class: dict[str, Counter[str]] = {}
    for scene, scores in zip(scenes, judge.scores(scenes), strict=True):
        for instance, failed in zip(scene.instances, failing(scene, scores, judge.thresholds), strict=True):
            if instance.difficult:
                continue
            kind = KINDS[("detector" in failed) + 2 * ("crops" in failed)]
            counted[kind] += 1
            by_class.setdefault(instance.category, Counter())[kind] += 1
    return counted, by_class


def share(counts: Counter[str], judge: str) -> str:
    """Objects that fail a judge, percent."""
    return f"{100 * (counts[f'{judge} alone'] + counts['both']) / max(1, counts.total()):.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--most", type=int, default=400, help="real test pictures, evenly spaced")
    options = parser.parse_args()
    real, made = read_set(options.real), read_set(options.made)
    with progress_bars() as progress:
        judge = Judge(prepare_filter(real, None, progress), crops=real, progress=progress)
        judge.thresholds = calibrate(judge, real, 0.9, progress)["thresholds"]
    test = [s for s in real.split("test") if s.instances]
    sets = {"real test objects": test[:: max(1, len(test) // options.most)], "synthetic objects": list(made.scenes)}
    found = {name: fails(judge, scenes) for name, scenes in sets.items()}
    print(f"| | objects | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 2)}")
    for name, (counts, _) in found.items():
        print(f"| {name} | {counts.total()} | {' | '.join(f'{100 * counts[k] / counts.total():.0f} %' for k in KINDS)} |")
    head = [f"{judge_}, {name.split()[0]}" for judge_ in JUDGES for name in found]
    print(f"\n| fail | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    for category in real.classes:
        cells = [share(by_class.get(category, Counter()), judge_) for judge_ in JUDGES for _, by_class in found.values()]
        print(f"| {category} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
