"""Average precision of detections by pycocotools, and its paired bootstrap over test pictures.

Notable:

* At most :data:`MAX_DETS` = 1, 100, 1000 detections a picture and class count (COCO's 100 is too few for aerial scenes).  All
  figures here are at 1000, in percent.
* pycocotools forces ``ignore`` to ``iscrowd`` and measures crowds by another overlap than IoU.  Difficult objects are neither: a
  detection whose best match is a difficult object, by plain IoU, is neither right nor wrong (VOC's and DOTA's rule).
* A class without (non-difficult) objects in the test pictures is not evaluated: None, never 0.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..detectors import Detections
from ..scene import ClassList, Scene

MAX_DETS = (1, 100, 1000)
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
METRICS = ("mAP", "AP50", "AP75")


@dataclass(frozen=True)
class Matches:
    """Detections of one class over all pictures, best first, matched to objects at every IoU threshold.

    Attributes:
        picture: (N,) index of the picture.
        hit: (T, N) whether the detection found an object.
        ignored: (T, N) whether it counts neither way.
        objects: (I,) objects that count, per picture.
    """

    picture: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What one detector scored on one list of pictures.

    Attributes:
        summary: JSON-able: mAP, AP50, AP75 (percent; None: no class could be evaluated), ``per_class``, ``not_evaluated``,
            ``max_dets`` and counts.
        curves: class -> precision at the 101 recall points 0, 0.01, ..., 1 at IoU 0.5.
        matches: class -> matches, for the bootstrap.
    """

    summary: dict[str, Any]
    curves: dict[str, np.ndarray]
    matches: dict[str, Matches]


def evaluate(scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList) -> Evaluation:
    """COCO average precision (HBB) of ``detections[i]`` on ``scenes[i]``.

    mAP is the mean over IoU 0.50, 0.55, ..., 0.95 and over the classes that have objects; AP50 and AP75 are at one IoU.

    Raises:
        ValueError: another number of detections than of scenes.
    """
    if len(scenes) != len(detections):
        raise ValueError(f"{len(scenes)} scenes but detections for {len(detections)}")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        run = _DifficultEval(_truth(scenes, classes), _results(scenes, detections, classes), "bbox")
        run.params.maxDets = list(MAX_DETS)
        run.params.iouThrs = np.array(IOU_THRESHOLDS)
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.imgIds = list(range(1, len(scenes) + 1))
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1]  # (T, R, K)
    counted = [sum(i.category == name and not i.difficult for s in scenes for i in s.instances) for name in classes]
    difficult = [sum(i.category == name and i.difficult for s in scenes for i in s.instances) for name in classes]
    evaluated = [k for k in range(len(classes)) if counted[k]]
    values = np.full((len(classes), 3), np.nan)
    for k in evaluated:
        table = precision[:, :, k]
        values[k] = 100 * np.array([table.mean(), table[0].mean(), table[5].mean()])
    summary: dict[str, Any] = {metric: _number(np.mean(values[evaluated, m]) if evaluated else np.nan) for m, metric in enumerate(METRICS)}
    summary["per_class"] = {
        name: {metric: _number(values[k, m]) for m, metric in enumerate(METRICS)} | {"objects": counted[k], "difficult": difficult[k]}
        for k, name in enumerate(classes)
    }
    summary["not_evaluated"] = [name for k, name in enumerate(classes) if not counted[k]]
    summary |= {"pictures": len(scenes), "objects": sum(counted), "difficult_ignored": sum(difficult)}
    summary |= {"detections": sum(len(d) for d in detections), "max_dets": list(MAX_DETS)}
    curves = {name: precision[0, :, k] for k, name in enumerate(classes) if counted[k]}
    return Evaluation(summary, curves, {name: _matches(run, k, len(scenes)) for k, name in enumerate(classes) if counted[k]})


def average_precision(matches: Matches, times: np.ndarray) -> np.ndarray:
    """AP (T,), 0..1, when picture i stands ``times[i]`` times in the test set; NaN without objects."""
    objects = float(matches.objects @ times)
    if objects == 0:
        return np.full(len(matches.hit), np.nan)
    weight = times[matches.picture]
    right = np.cumsum(matches.hit * weight, axis=1)
    wrong = np.cumsum(~(matches.hit | matches.ignored) * weight, axis=1)
    precision = right / np.maximum(right + wrong, 1e-12)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = right / objects
    found = np.zeros((len(recall), len(RECALL_POINTS)))
    for t, curve in enumerate(recall):
        place = np.searchsorted(curve, RECALL_POINTS, side="left")
        reached = place < len(curve)
        found[t, reached] = precision[t, place[reached]]
    result: np.ndarray = found.mean(axis=1)
    return result


def paired_bootstrap(
    before: Sequence[Evaluation], after: Sequence[Evaluation], groups: Sequence[str], *, samples: int = 400, seed: int = 0
) -> dict[str, dict[str, float]]:
    """95 % intervals of the gain ``after - before``, in percent points, by resampling test pictures and seeds together.

    Args:
        before, after: evaluations on the same pictures, paired by seed.
        groups: the source of every picture; pictures of one source are drawn together, for they are not independent.

    Returns:
        {"mAP" | "AP50" | "AP75": {"low", "high", "above_zero"}}; ``above_zero`` is the share of samples with a gain.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    member = np.array([names.index(g) for g in groups])
    gains: list[tuple[float, float, float]] = []
    for _ in range(samples):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member].astype(np.float64)
        drawn = rng.integers(len(before), size=len(before))
        values = {int(i): _resampled(after[i], times) - _resampled(before[i], times) for i in sorted(set(drawn.tolist()))}
        gains.append(tuple(np.mean([values[int(i)] for i in drawn], axis=0)))
    table = np.array(gains)
    table = table[~np.isnan(table).any(axis=1)]
    if not len(table):
        return {}
    low, high = np.percentile(table, [2.5, 97.5], axis=0)
    above = (table > 0).mean(axis=0)
    return {
        metric: {"low": round(float(low[m]), 3), "high": round(float(high[m]), 3), "above_zero": round(float(above[m]), 4)}
        for m, metric in enumerate(METRICS)
    }


def _resampled(evaluation: Evaluation, times: np.ndarray) -> np.ndarray:
    """mAP, AP50, AP75 in percent."""
    per_class = np.array([average_precision(m, times) for m in evaluation.matches.values()])
    per_class = per_class[~np.isnan(per_class).any(axis=1)]
    if not len(per_class):
        return np.full(3, np.nan)
    mean = 100 * per_class.mean(axis=0)
    return np.array([mean.mean(), mean[0], mean[5]])


class _DifficultEval(COCOeval):
    """COCOeval in which an ignored object soaks up any number of detections, by plain IoU (see the module's text)."""

    def computeIoU(self, imgId, catId):
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects and not found:
            return []
        order = np.argsort([-d["score"] for d in found], kind="mergesort")
        boxes = [found[i]["bbox"] for i in order[: self.params.maxDets[-1]]]
        return mask_utils.iou(boxes, [o["bbox"] for o in objects], [0] * len(objects))


def _truth(scenes: Sequence[Scene], classes: ClassList) -> COCO:
    annotations: list[dict[str, Any]] = []
    for picture, scene in enumerate(scenes, start=1):
        for instance in scene.instances:
            box = _xywh(instance.hbb)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # NOTE: pycocotools takes the id 0 for "not matched"
                    "image_id": picture,
                    "category_id": classes.index(instance.category, where=scene.file_name) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(instance.difficult),
                }
            )
    return _coco(scenes, classes, annotations)


def _results(scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList) -> COCO:
    annotations: list[dict[str, Any]] = []
    for picture, found in enumerate(detections, start=1):
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            wide = _xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture,
                    "category_id": label + 1,
                    "bbox": wide,
                    "area": wide[2] * wide[3],
                    "score": score,
                    "iscrowd": 0,
                }
            )
    return _coco(scenes, classes, annotations)


def _coco(scenes: Sequence[Scene], classes: ClassList, annotations: list[dict[str, Any]]) -> COCO:
    """A COCO object from memory (``loadRes`` refuses empty results; this does not)."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": s.width, "height": s.height} for i, s in enumerate(scenes, start=1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }
    coco.createIndex()
    return coco


def _matches(run: COCOeval, k: int, pictures: int) -> Matches:
    """Collect the matches of class k from COCOeval's per-picture results, in the order its accumulation uses."""
    per_picture = run.evalImgs[k * pictures : (k + 1) * pictures]
    index, scores, hits, ignored = [], [], [], []
    objects = np.zeros(pictures)
    for i, entry in enumerate(per_picture):
        if entry is None:
            continue
        objects[i] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        n = len(entry["dtScores"])
        index.append(np.full(n, i))
        scores.append(np.asarray(entry["dtScores"], dtype=np.float64))
        hits.append(np.asarray(entry["dtMatches"]).reshape(len(IOU_THRESHOLDS), n))
        ignored.append(np.asarray(entry["dtIgnore"]).reshape(len(IOU_THRESHOLDS), n).astype(bool))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    skip = np.concatenate(ignored, axis=1)[:, order]
    hit = (np.concatenate(hits, axis=1)[:, order] > 0) & ~skip
    return Matches(np.concatenate(index)[order].astype(np.int64), hit, skip, objects)


def _xywh(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)
