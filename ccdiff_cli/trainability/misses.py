"""What a detector gets wrong on its own training pictures, by cross-validation: which pictures more should be made like.

    folds of the train split -> a detector without each -> what it finds in the one left out -> misses.json -> layouts of balance "misses"

Notable:

* Folds are of sources, so no tile of a picture that is looked at was trained on; val and test pictures are neither trained on nor seen.
* An object is missed where no detection of its class with IoU 0.5 takes it (COCO's matching: each detection counts once); a false alarm is
  a detection that takes none.  Difficult objects are neither missed nor do finds of them count.  One threshold of the score holds for all
  folds: that of the best F1 over all of them.
* In rounds: synthetic sets join what is trained on, but for pictures whose layouts come from the fold left out.  NOTE: their generator,
  and the crops it drew from, have seen that fold all the same: a detector may miss less here than on pictures that nobody has seen.
* Trainings and finds lie where an experiment files its own, so an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..comparison import check_sets, read_added
from ..dataset import PictureSet, in_memory, polygon_area, read_set
from ..detectors import DetectorConfig, Progress, seconds_per_step, training_key
from ..errors import CCDiffError
from ..files import clear_partials, content_key, write_json
from ..geometry import hbb_area
from ..layouts.misses import MISSES, VERSION, PictureErrors
from ..locks import locked
from ..metrics.average_precision import SIZES, Boxes, Outcomes, outcomes
from ..scene import Scene
from ..settings import overrides
from .arms import Training, source_of
from .config import load_detector_config
from .options import MissesOptions
from .trainings import Look, Task, carry_out, found_in, is_finished

FOLDS = 17
"""What the random stream of folds is for."""
CROWDS = {"no objects": 0, "1 object": 1, "2 to 5": 5, "6 to 20": 20, "over 20": None}
"""Number of objects in a picture -> the most of them."""


@dataclass(frozen=True)
class _Fold:
    """Pictures that one detector is not trained on, and what it is.

    Attributes:
        left_out: pictures of the added sets that come from these pictures.
    """

    task: Task
    left_out: int

    @property
    def training(self) -> Training:
        return self.task.training

    @property
    def look(self) -> Look:
        return self.task.looks[0]


@locked("misses")
def find_misses(
    real: str | Path,
    out: str | Path,
    options: MissesOptions = MissesOptions(),
    *,
    processes: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What detectors miss, and see where nothing is, in the training pictures of a set that they were not trained on.

    Args:
        real: a prepared set.
        out: gets ``misses.json`` (``layouts.misses.Misses``), and before it detectors and their finds.
        dry_run: train and write nothing; return the folds and what they cost.

    Returns:
        What ``misses.json`` holds; for a dry run {"folds": [{"pictures", "trained_on", "left_out", "finished"}, ...], "estimated minutes"}.

    Raises:
        CCDiffError: no training pictures, fewer sources than folds, an added set of other classes, a training that failed (finished ones
            are kept), detectors that find nothing at all.
    """
    pictures, out = read_set(real), Path(out)
    config = detector_of(options)
    added = {str(root): in_memory(read_added(root, str(root))) for root in options.added}
    check_sets({"real": pictures, **{f"added {name}": other for name, other in added.items()}}, out)
    folds = _folds(pictures, added, config, options)
    if dry_run:
        return _plan(pictures, folds, config, out)
    clear_partials(out)
    failed = carry_out([fold.task for fold in folds], pictures.classes, out, processes=processes, progress=progress)
    if failed:
        raise next(iter(failed.values()))
    scenes = [scene for fold in folds for scene in fold.look.scenes]
    found = [one for fold in folds for one in found_in(fold.look, out, fold.training.key) or ()]
    boxes: Boxes = "obb" if config.oriented else "hbb"
    matched = outcomes(scenes, found, pictures.classes, boxes)
    objects = sum(not i.difficult for scene in scenes for i in scene.instances)
    threshold = best_threshold(matched, objects)
    if threshold is None:
        raise CCDiffError(
            f"the detectors find none of the {objects:,} objects in the pictures they were not trained on: that says nothing about them",
            where=real,
            fix=f"train them longer than {config.steps:,} steps: --set steps={4 * config.steps}",
        )
    result = {
        "version": VERSION,
        "set": pictures.key(),
        "detector": config.training_record(),
        "boxes": boxes,
        "folds": options.folds,
        "seed": options.seed,
        "added": [{"set": other.key(), "pictures": len(other.split("train"))} for other in added.values()],
        "left_out": [fold.left_out for fold in folds],
        "threshold": threshold,
        **_counted(scenes, matched, threshold, pictures, boxes),
    }
    write_json(out / MISSES, result)
    return result


def detector_of(options: MissesOptions) -> DetectorConfig:
    """The detector's settings: a file, and what takes the place of its keys."""
    said = {key.removeprefix("detector."): value for key, value in overrides(options.settings).items()}
    return load_detector_config(options.detector, said)


def best_threshold(matched: Outcomes, objects: int) -> float | None:
    """The score from which on detections have the best F1, the highest of equal ones; None where none finds an object."""
    if not matched.hit.any():
        return None
    score, right, wrong = matched.cuts()
    return float(score[int(np.argmax(2 * right / (right + wrong + objects)))])


def _folds(real: PictureSet, added: dict[str, PictureSet], config: DetectorConfig, options: MissesOptions) -> list[_Fold]:
    train = real.split("train")
    if not any(scene.instances for scene in train):
        raise CCDiffError("the set has no labelled training pictures", where=real.root, fix="prepare it with labels and a train split")
    chosen = fold_of_sources(train, options.folds, options.seed)
    if len(chosen) < options.folds:
        raise CCDiffError(
            f"{len(chosen)} training sources make no {options.folds} folds", where=real.root, fix="ask for fewer (--folds), or add pictures"
        )
    more = [scene for other in added.values() for scene in other.split("train")]
    folds = []
    for k in range(options.folds):
        here = tuple(scene for scene in train if chosen[source_of(scene)] == k)
        names = {name for scene in here for name in (source_of(scene), scene.file_name)}
        others = [scene for scene in more if not names & _layout_pictures(scene)]
        scenes = (*(scene for scene in train if chosen[source_of(scene)] != k), *others)
        key = training_key(scenes, real.classes, config, options.seed)
        training = Training(f"fold {k + 1} of {options.folds}", key, scenes, config, options.seed)
        look = Look("left-out", content_key([real.key(), [scene.file_name for scene in here]]), here)
        folds.append(_Fold(Task(training, (look,)), len(more) - len(others)))
    return folds


def fold_of_sources(train: Sequence[Scene], folds: int, seed: int) -> dict[str, int]:
    """Source -> its fold: in random order, each to the fold with the fewest pictures so far."""
    pictures: dict[str, int] = {}
    for scene in train:
        pictures[source_of(scene)] = pictures.get(source_of(scene), 0) + 1
    sources, filled, chosen = sorted(pictures), [0] * folds, {}
    for k in np.random.default_rng([seed, FOLDS]).permutation(len(sources)).tolist():
        fold = filled.index(min(filled))
        chosen[sources[k]] = fold
        filled[fold] += pictures[sources[k]]
    return chosen


def _layout_pictures(scene: Scene) -> set[str]:
    """The real pictures that a synthetic picture's layout comes from, as far as it says."""
    layout = scene.provenance.get("layout")
    return {source_of(scene), *(str(layout[key]) for key in ("picture", "mixed_with") if isinstance(layout, dict) and key in layout)}


def _counted(scenes: Sequence[Scene], matched: Outcomes, threshold: float, real: PictureSet, boxes: Boxes) -> dict[str, Any]:
    """What was wrong picture by picture, and by class, size and crowding."""
    above = matched.score >= threshold
    taken = set(zip(*(v[above & matched.hit].tolist() for v in (matched.picture, matched.found)), strict=True))
    false = above & ~matched.hit & ~matched.ignored
    tables: dict[str, dict[str, dict[str, int]]] = {
        name: {row: dict.fromkeys(("objects", "missed", "false_alarms"), 0) for row in rows}
        for name, rows in (("classes", real.classes), ("sizes", SIZES["COCO"]), ("crowding", CROWDS))
    }

    def count(what: str, scene: Scene, category: str, area: float) -> None:
        for name, row in (("classes", category), ("sizes", size_of(area)), ("crowding", crowd_of(len(scene.instances)))):
            tables[name][row][what] += 1

    errors: dict[str, PictureErrors] = {
        s.file_name: {"file_name": s.file_name, "missed": [], "false_alarms": 0} for s in real.split("train")
    }
    for i, scene in enumerate(scenes):
        for j, one in enumerate(scene.instances):
            if not one.difficult:
                area = hbb_area(one.hbb) if boxes == "hbb" else polygon_area(one.corners)
                count("objects", scene, one.category, area)
                if (i, j) not in taken:
                    count("missed", scene, one.category, area)
                    errors[scene.file_name]["missed"].append(j)
    for i, label, area in zip(*(v[false].tolist() for v in (matched.picture, matched.label, matched.area)), strict=True):
        count("false_alarms", scenes[i], real.classes.names[label], area)
        errors[scenes[i].file_name]["false_alarms"] += 1
    return {**tables, "pictures": list(errors.values())}


def size_of(area: float) -> str:
    """COCO's size of an object, the smaller one where two meet."""
    return next((name for name, (_, high) in SIZES["COCO"].items() if area <= high**2), "large")


def crowd_of(objects: int) -> str:
    """The row of :data:`CROWDS` that a picture with so many objects stands in."""
    return next(name for name, most in CROWDS.items() if most is None or objects <= most)


def _plan(real: PictureSet, folds: Sequence[_Fold], config: DetectorConfig, out: Path) -> dict[str, Any]:
    step = seconds_per_step(real.split("train"), real.classes, config)
    rows = [
        {
            "pictures": len(fold.look.scenes),
            "trained_on": len(fold.training.scenes),
            "left_out": fold.left_out,
            "finished": is_finished(fold.training, out),
        }
        for fold in folds
    ]
    left = sum(not row["finished"] for row in rows)
    return {"folds": rows, "steps": config.steps, "estimated minutes": round(left * config.steps * step / 60, 1)}
