"""Evaluators to hold ours against: pycocotools with difficult objects, and plain loops written from COCO's and DOTA's definitions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ccdiff_cli.detectors import Detections
from ccdiff_cli.scene import ClassList, Scene

THRESHOLDS = np.linspace(0.5, 0.95, 10)
Points = Sequence[float]


class DifficultEval(COCOeval):
    """COCOeval in which a crowd is a difficult object: it soaks up any number of detections, by plain IoU."""

    def computeIoU(self, imgId, catId):
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects and not found:
            return []
        order = np.argsort([-d["score"] for d in found], kind="mergesort")
        boxes = [found[i]["bbox"] for i in order[: self.params.maxDets[-1]]]
        return mask_utils.iou(boxes, [o["bbox"] for o in objects], [0] * len(objects))


def coco_annotations(scenes: Sequence[Scene], classes: ClassList) -> dict:
    """A COCO dictionary of horizontal boxes; difficult objects are crowds."""
    annotations = []
    for p, s in enumerate(scenes, start=1):
        for i in s.instances:
            x1, y1, x2, y2 = i.hbb
            row = {"id": len(annotations) + 1, "image_id": p, "category_id": classes.index(i.category) + 1}  # 0 means "not matched"
            annotations.append(
                row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(i.difficult)},
            )
    return {
        "info": {},
        "images": [{"id": p + 1, "width": s.width, "height": s.height} for p, s in enumerate(scenes)],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": n} for k, n in enumerate(classes)],
    }


def coco_results(detections: Sequence[Detections]) -> list[dict]:
    rows = []
    for p, d in enumerate(detections, start=1):
        for b, score, label in zip(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist(), strict=True):
            rows.append({"image_id": p, "category_id": label + 1, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": score})
    return rows


def pycocotools_precision(
    scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList, areas: Sequence[Sequence[float]], most: int = 1000
) -> np.ndarray:
    """pycocotools' precision table (thresholds, recall points, classes, areas); -1 where nothing could be measured."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_annotations(scenes, classes)
        truth.createIndex()
        found = COCO()
        rows = coco_results(detections)
        found.dataset = truth.dataset | {
            "annotations": [
                r | {"id": i + 1, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for i, r in enumerate(rows)
            ]  # loadRes refuses an empty list
        }
        found.createIndex()
        run = DifficultEval(truth, found, "bbox")
        run.params.maxDets = [most]
        run.params.areaRng, run.params.areaRngLbl = [list(a) for a in areas], [str(a) for a in areas]
        run.params.imgIds = list(range(1, len(scenes) + 1))
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., -1]


def area(points: Points) -> float:
    """Shoelace formula, x1 y1 x2 y2 ..., signed."""
    n = len(points) // 2
    return sum(points[2 * i] * points[2 * ((i + 1) % n) + 1] - points[2 * ((i + 1) % n)] * points[2 * i + 1] for i in range(n)) / 2


def clipped_iou(a: Points, b: Points) -> float:
    """IoU of two convex quadrilaterals by clipping one with the other's sides (Sutherland and Hodgman)."""
    if area(b) < 0:
        b = [v for i in (3, 2, 1, 0) for v in b[2 * i : 2 * i + 2]]
    rest = [(a[2 * i], a[2 * i + 1]) for i in range(4)]
    for i in range(4):
        (px, py), (qx, qy) = (b[2 * i], b[2 * i + 1]), (b[2 * ((i + 1) % 4)], b[2 * ((i + 1) % 4) + 1])
        side = [(qx - px) * (y - py) - (qy - py) * (x - px) for x, y in rest]
        new = []
        for k, (x, y) in enumerate(rest):
            (x0, y0), s0, s1 = rest[k - 1], side[k - 1], side[k]
            if (s0 < 0) != (s1 < 0):
                t = s0 / (s0 - s1)
                new.append((x0 + t * (x - x0), y0 + t * (y - y0)))
            if s1 >= 0:
                new.append((x, y))
        rest = new
    inter = abs(area([v for p in rest for v in p])) if len(rest) > 2 else 0.0
    return inter / (abs(area(a)) + abs(area(b)) - inter)


Lines = list[tuple[int, float, Points]]
"""Detections of one class as DOTA's Task1_CLASS.txt holds them: picture, score, box."""


def plain_dota(truth: list[list[tuple[Points, bool]]], found: Lines, iou: Callable[[Points, Points], float], voc07: bool) -> float:
    """AP of one class at IoU 0.5 by VOC's protocol, which is DOTA's: ``truth[picture]`` = (box, difficult) of every object.

    NaN without objects that count.
    """
    objects = sum(not difficult for some in truth for _, difficult in some)
    taken = [[False] * len(some) for some in truth]
    right = wrong = 0
    recall, precision = [], []
    for picture, _, box in sorted(found, key=lambda line: -line[1]):
        best, best_iou = -1, -1.0
        for k, (other, _) in enumerate(truth[picture]):
            if (value := iou(other, box)) > best_iou:
                best, best_iou = k, value
        if best_iou > 0.5:
            if not truth[picture][best][1]:
                if taken[picture][best]:
                    wrong += 1
                else:
                    right += 1
                    taken[picture][best] = True
        else:
            wrong += 1
        recall.append(right / objects if objects else 0.0)
        precision.append(right / max(right + wrong, 1e-12))
    if objects == 0:
        return float("nan")
    if voc07:
        return sum(max((p for p, r in zip(precision, recall, strict=True) if r >= t), default=0.0) for t in np.arange(0.0, 1.1, 0.1)) / 11
    total, last = 0.0, 0.0
    for i, r in enumerate(recall):
        if r > last:
            total += (r - last) * max(precision[i:])
            last = r
    return total


def plain_coco(
    truth: list[list[tuple[Points, bool]]], found: Lines, iou: Callable[[Points, Points], float], threshold: float, most: int = 1000
) -> float:
    """COCO's AP of one class at one IoU; a difficult object is ignored and soaks up any number of detections."""
    objects = sum(not difficult for some in truth for _, difficult in some)
    lines: list[tuple[float, bool]] = []
    for picture, some in enumerate(truth):
        order = sorted(range(len(some)), key=lambda k: some[k][1])
        taken = [False] * len(some)
        for _, score, box in sorted((line for line in found if line[0] == picture), key=lambda line: -line[1])[:most]:
            best, least = -1, min(threshold, 1 - 1e-10)
            for k in order:
                other, difficult = some[k]
                if taken[k] and not difficult:
                    continue
                if best >= 0 and not some[best][1] and difficult:
                    break
                if (value := iou(other, box)) >= least:
                    best, least = k, value
            if best < 0:
                lines.append((score, False))
            else:
                taken[best] = True
                if not some[best][1]:
                    lines.append((score, True))
    if objects == 0:
        return float("nan")
    lines.sort(key=lambda line: -line[0])
    right = np.cumsum([hit for _, hit in lines]) if lines else np.zeros(0)
    precision = right / np.arange(1, len(lines) + 1)
    recall = right / objects
    return float(np.mean([max(precision[recall >= point], default=0.0) for point in np.linspace(0, 1, 101)]))
