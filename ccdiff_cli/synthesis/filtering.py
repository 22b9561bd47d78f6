"""Is every object there?  Objects of generated pictures are scored by a detector trained on the real set, CLIP, a classifier of crops.

Notable here:

* The score of an object is that of the best detection of its class with an IoU of at least 0.5 (each detection counts once); 0 where
  there is none.  CLIP's is the cosine of the crop and the name of the class.  The classifier's (``crops``) is how sure it is of the class.
* Thresholds are not chosen by hand: for every class the one that a share ``recall`` of the real validation objects pass.  A class that
  the detector misses too often on real pictures gets the threshold 0: it cannot judge that class, and does not.  The threshold of the
  classifier is one for all classes: what the least certain object of a share ``recall`` of the real pictures passes.
* A picture is accepted when no more of its objects fail detector and CLIP than of a real one would, ``floor((1 - recall) * objects)``,
  and none fails the classifier: as published, the minimum over the picture's objects must pass (AeroGen, CVPR 2025).  A rejected one is
  made again with its next seed, ``retries`` times at most; then the best attempt is kept without the labels of its failing objects (mode
  "objects"), or left out (mode "pictures").  Difficult objects are scored, but fail nothing.
* All of this happens within a block, so picture k still depends on the plan alone.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dataset import PictureSet
from ..detectors import Detections, Detector, DetectorConfig, fit, load_detector, training_key
from ..errors import CCDiffError
from ..files import cache_folder, content_key, sha256_file
from ..geometry import hbb_iou
from ..pictures import read_rgb
from ..references import reference_window
from ..scene import ClassList, Scene
from .options import FilterOptions

if TYPE_CHECKING:
    from ..pretrained import Clip
    from .crops import CropJudge

OF_PICTURES = "crops"
"""The judge whose threshold the least of a picture's objects must pass."""
IOU = 0.5
FEW = 20
"""A class with fewer validation objects gets the threshold of all classes together."""
REVISION = 1

Scores = list[dict[str, float]]
"""Of one picture: for every object, its score by each judge."""
Progress = Callable[[str, int, int], None]


def filter_identity(real: PictureSet, filter: FilterOptions) -> dict[str, Any] | None:
    """What the filter's verdicts depend on, part of the plan; None without a filter.

    Raises:
        CCDiffError: no such detector, no such CLIP.
    """
    if filter.mode is None:
        return None
    chosen = filter.chosen_judges()
    key = None
    judged_by_crops: dict[str, str] = {}
    if "crops" in chosen:
        from .crops import crops_file  # torchvision's models are slow to import, and most workers need none

        judged_by_crops["crops"] = crops_file(real).stem
    if filter.detector is not None:
        key = content_key([sha256_file(filter.detector / name) for name in ("detector.json", "model.safetensors")])
    elif "detector" in chosen:
        key = training_key(real.split("train"), real.classes, DetectorConfig(), 0)
    return {
        "mode": filter.mode,
        "recall": filter.recall,
        "retries": filter.retries,
        "detector": key,
        "clip": content_key([sha256_file(p) for p in _clip_files(filter.clip)]) if filter.clip is not None else None,
        "iou": IOU,
        "revision": REVISION,
        **({"judges": chosen} if chosen != filter.usual_judges() else {}),
        **judged_by_crops,
    }


def judges_of(rules: Mapping[str, Any]) -> list[str]:
    """The judges of a filter, from its :func:`filter_identity`."""
    return list(rules.get("judges") or ["detector", *(["clip"] if rules["clip"] else [])])


def _crop_judge(crops: PictureSet, device: str, progress: Progress | None) -> CropJudge:
    from .crops import CropJudge  # as above

    return CropJudge(crops, device, progress)


def prepare_filter(real: PictureSet, detector: str | Path | None, progress: Progress | None = None) -> Path:
    """The folder of the detector: the one given, or one trained on the real set's train split, kept in the cache folder."""
    if detector is not None:
        return Path(detector)
    home = cache_folder() / "detectors"
    key = fit(real.split("train"), real.classes, DetectorConfig(), home, 0, progress).info["key"]
    return home / key


class Judge:
    """Scores objects, and says whether they pass.

    Args:
        detector: folder of a trained detector; ``clip``: folder of a transformers CLIP model; ``crops``: the set whose crops a
            classifier knows.  None: not a judge.
        device: where it computes.
        thresholds: class -> judge -> threshold, of :func:`calibrate`; None while calibrating.
        recall: see the module's opening.
    """

    def __init__(
        self,
        detector: str | Path | None,
        clip: str | Path | None = None,
        device: str = "auto",
        *,
        crops: PictureSet | None = None,
        thresholds: Mapping[str, Mapping[str, float]] | None = None,
        recall: float = 0.9,
        progress: Progress | None = None,
    ) -> None:
        self.detector: Detector | None = load_detector(detector, device) if detector is not None else None
        self.clip = _clip(clip, device) if clip is not None else None
        self.crops = _crop_judge(crops, device, progress) if crops is not None else None
        self.names: dict[str, np.ndarray] = {}
        self.thresholds, self.recall = thresholds or {}, recall

    def scores(self, scenes: Sequence[Scene], progress: Progress | None = None) -> list[Scores]:
        """The scores of every object of labelled pictures (``scene.path`` must be set)."""
        found = self.detector.predict(scenes, progress) if self.detector is not None else None
        made = []
        for k, scene in enumerate(scenes):
            by_judge: dict[str, list[float]] = {}
            if self.detector is not None and found is not None:
                by_judge["detector"] = object_scores(scene, found[k], self.detector.classes)
            if self.clip is not None:
                by_judge["clip"] = clip_scores(self.clip, scene, self.names)
            if self.crops is not None:
                by_judge["crops"] = self.crops.scores(scene)
            made.append([{judge: round(values[n], 4) for judge, values in by_judge.items()} for n in range(len(scene.instances))])
        return made

    def look(self, scenes: Sequence[Scene], pictures: Sequence[bytes]) -> list[Scores]:
        """The scores of pictures that are files in memory."""
        with tempfile.TemporaryDirectory(prefix="ccdiff-") as folder:
            placed = []
            for number, (scene, data) in enumerate(zip(scenes, pictures, strict=True)):
                path = Path(folder) / f"{number}{Path(scene.file_name).suffix}"
                path.write_bytes(data)
                placed.append(scene.replace(path=str(path)))
            return self.scores(placed)

    def passed(self, scene: Scene, scores: Scores) -> list[bool]:
        """Whether each object is there."""
        return [not failed for failed in failing(scene, scores, self.thresholds)]

    def accepts(self, scene: Scene, scores: Scores) -> bool:
        """Whether a picture with these objects is as good as a real one."""
        by_judge = failing(scene, scores, self.thresholds)
        some = sum(bool(failed - {OF_PICTURES}) for failed in by_judge)
        return some <= math.floor((1 - self.recall) * len(by_judge) + 1e-9) and not any(OF_PICTURES in failed for failed in by_judge)


def failing(scene: Scene, scores: Scores, thresholds: Mapping[str, Mapping[str, float]]) -> list[set[str]]:
    """For every object the judges that it fails; a difficult one fails none."""
    return [
        set() if instance.difficult else {judge for judge, limit in thresholds.get(instance.category, {}).items() if entry[judge] < limit}
        for instance, entry in zip(scene.instances, scores, strict=True)
    ]


def object_scores(scene: Scene, found: Detections, classes: ClassList) -> list[float]:
    """For every object the score of its detection: greedy, best detection first, each object and each detection once."""
    scores = [0.0] * len(scene.instances)
    if not scores or not len(found):
        return scores
    overlap = hbb_iou(np.array([i.hbb for i in scene.instances]), found.boxes)
    labels = np.array([classes.index(i.category) if i.category in classes else -1 for i in scene.instances])
    overlap[labels[:, None] != found.labels[None]] = 0
    for j in np.argsort(-found.scores, kind="stable"):
        i = int(overlap[:, j].argmax())
        if overlap[i, j] >= IOU:
            scores[i] = float(found.scores[j])
            overlap[i] = 0
    return scores


def clip_scores(clip: Clip, scene: Scene, names: dict[str, np.ndarray]) -> list[float]:
    """For every object the cosine of its crop and the name of its class, whose embedding is kept in ``names``."""
    if not scene.instances:
        return []
    for name in set(scene.categories()) - names.keys():
        names[name] = clip.text(f"an aerial photograph of a {name}")
    picture = read_rgb(str(scene.path))
    crops = clip.pictures([picture.crop(reference_window(i, picture.width, picture.height)) for i in scene.instances])
    return [float(crop @ names[i.category]) for crop, i in zip(crops, scene.instances, strict=True)]


def calibrate(judge: Judge, real: PictureSet, recall: float, progress: Progress | None = None) -> dict[str, Any]:
    """Thresholds from the real validation pictures, with what they were taken from.

    Returns:
        ``{"thresholds": {class: {judge: value}}, "real": {class: {"objects", "found", "from": "class" or "all classes"}}}``; ``found`` is
        the share that the detector finds at all, None without one.

    Raises:
        CCDiffError: the set has no labelled validation pictures.
    """
    scenes = [s for s in real.split("val") if s.instances]
    if not scenes:
        raise CCDiffError(
            "the set has no labelled pictures in its val split to calibrate the filter on",
            where=real.root,
            fix="prepare it with a val split",
        )
    values: dict[str, list[dict[str, float]]] = {}
    least: list[float] = []
    for scene, scores in zip(scenes, judge.scores(scenes, progress), strict=True):
        for instance, entry in zip(scene.instances, scores, strict=True):
            if not instance.difficult:
                values.setdefault(instance.category, []).append(entry)
        if ones := [e[OF_PICTURES] for i, e in zip(scene.instances, scores, strict=True) if OF_PICTURES in e and not i.difficult]:
            least.append(min(ones))
    everything = [entry for entries in values.values() for entry in entries]
    thresholds, facts = {}, {}
    for name in real.classes:
        own = values.get(name, [])
        base = own if len(own) >= FEW else everything
        judges = sorted(everything[0]) if everything else []
        thresholds[name] = {j: _reached(least if j == OF_PICTURES else [e[j] for e in base], recall) for j in judges}
        facts[name] = {
            "objects": len(own),
            "found": round(sum(e["detector"] > 0 for e in own) / len(own), 4) if own and "detector" in judges else None,
            "from": "class" if len(own) >= FEW else "all classes",
        }
    return {"thresholds": thresholds, "real": facts}


def _reached(values: Sequence[float], share: float) -> float:
    """The largest value that at least this share of the values reaches."""
    return sorted(values, reverse=True)[math.ceil(share * len(values)) - 1]


def account(
    scenes: Sequence[Scene], entries: Sequence[Mapping[str, Any]], mode: str, thresholds: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What the filter did, for the manifest: a filter that keeps only easy pictures shows here.

    Args:
        scenes: the planned pictures; ``entries``: their records, in the same order.
        thresholds: of :func:`calibrate`; where the detector's is 0, it does not judge the class.
    """
    attempts = Counter(e["attempt"] for e in entries if e["accepted"])
    planned: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    rejecting: Counter[str] = Counter()
    sizes: dict[str, list[float]] = {"planned": [], "kept": []}
    per_picture: dict[str, list[int]] = {"planned": [], "kept": []}
    for scene, entry in zip(scenes, entries, strict=True):
        planned.update(scene.categories())
        stays = kept_objects(entry, len(scene.instances), mode)
        by_judge = failing(scene, entry["scores"], thresholds)
        failed.update(judge for judges in by_judge for judge in judges)
        rejecting.update(set().union(*by_judge))
        sides = [math.sqrt(max(0.0, (i.hbb[2] - i.hbb[0]) * (i.hbb[3] - i.hbb[1]))) for i in scene.instances]
        kept.update(scene.instances[k].category for k in stays)
        sizes["planned"] += sides
        sizes["kept"] += [sides[k] for k in stays]
        per_picture["planned"].append(len(sides))
        if stays:
            per_picture["kept"].append(len(stays))
    return {
        "pictures": {
            "planned": len(scenes),
            "accepted": {str(k): attempts[k] for k in sorted(attempts)},
            "rejected": sum(not e["accepted"] for e in entries),
            "left_out": sum(bool(e.get("dropped")) for e in entries),
        },
        "objects": {
            name: {"planned": planned[name], "kept": kept[name], "share": round(kept[name] / planned[name], 4)} for name in sorted(planned)
        },
        "judges": {
            judge: {"objects_failed": failed[judge], "in_pictures": rejecting[judge]}
            for judge in sorted({judge for limits in thresholds.values() for judge in limits})
        },
        "not_judged": sorted(name for name, limits in thresholds.items() if limits.get("detector", 1.0) <= 0),
        "median_size": {what: round(float(np.median(v)), 2) if v else None for what, v in sizes.items()},
        "objects_per_picture": {what: round(float(np.mean(v)), 3) if v else None for what, v in per_picture.items()},
    }


def kept_objects(entry: Mapping[str, Any], count: int, mode: str) -> list[int]:
    """The numbers of the objects that keep their labels."""
    if entry.get("dropped"):
        return []
    if entry["accepted"] or mode == "pictures":
        return list(range(count))
    return [k for k, passed in enumerate(entry["passed"]) if passed]


def _clip(folder: str | Path, device: str) -> Clip:
    from ..pretrained import Clip  # slow to import, and few need it

    _clip_files(folder)
    return Clip(folder, where="--filter-clip", device=None if device == "auto" else device)


def _clip_files(folder: str | Path | None) -> list[Path]:
    files = sorted(Path(str(folder)).glob("*.safetensors"))
    if not files:
        raise CCDiffError("no CLIP model in safetensors", where=folder, fix="give a transformers CLIP folder")
    return files
