"""Average precision of detections, HBB or OBB: COCO's, and VOC's as DOTA reports it.

Notable:

* One matching for both kinds of boxes, over all pictures and IoU thresholds at once.  HBB figures equal pycocotools' (the tests hold
  them to 1e-6); OBB figures equal an evaluator written from DOTA's definition.  Rotated IoU is shapely's, so four corners that are no
  rectangle are measured as they are.
* COCO's rule (mAP, AP50, AP75, sizes): a detection takes the object of its class that it overlaps most among those still free; AP at
  101 recall points; at most :data:`MAX_DETS` detections of a class and picture (COCO's 100 is too few for aerial scenes).  VOC's rule
  (``AP50_voc07``, ``AP50_voc12``): it takes the object it overlaps most, free or not, by more than 0.5; AP at 11 recall points or as the
  area under the curve; any number of detections.  Coordinates are continuous: VOC's extra pixel is not added.
* A detection whose object is difficult is neither right nor wrong, however many find it (VOC's and DOTA's rule; in COCO's matching an
  object that counts goes before a difficult one).  A COCO group (``iscrowd``) is read as a difficult object.
* A class without (non-difficult) objects in the test pictures is not evaluated: None, never 0.  All figures are in percent.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..detectors import Detections
from ..errors import CCDiffError
from ..geometry import paired_iou, quadrilaterals
from ..scene import ClassList, Scene

MAX_DETS = 1000
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
METRICS = ("mAP", "AP50", "AP75")
SIZES: dict[str, dict[str, tuple[float, float]]] = {
    "COCO": {"small": (0, 32), "medium": (32, 96), "large": (96, 1e5)},
    "AI-TOD": {"very tiny": (2, 8), "tiny": (8, 16), "small": (16, 32), "medium": (32, 64)},
}
"""Literature -> size -> side of the square of the object's area, pixels of the evaluated picture; both ends belong to the size.
COCO's, and those of aerial pictures (Wang et al., "Tiny object detection in aerial images", ICPR 2021)."""
Boxes = Literal["hbb", "obb"]
PAIRS_AT_ONCE = 1 << 21


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
class Outcomes:
    """What became of each detection at IoU 0.5 by COCO's rule, over all pictures and classes, best first.

    What a detection finds does not depend on those with lower scores: to leave them out is to look at the first ones alone.

    Attributes:
        picture, label: (N,) index of the picture and of the class.
        score: (N,).
        area: (N,) of the box, pixels.
        hit: (N,) whether it found an object that counts; ``ignored``: (N,) whether it counts neither way.
        found: (N,) index of that object in its picture; -1 without a hit.
    """

    picture: np.ndarray
    label: np.ndarray
    score: np.ndarray
    area: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    found: np.ndarray

    def cuts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The different scores, falling, and how many detections are right and wrong from each on; equal scores are cut together."""
        last = np.flatnonzero(np.append(np.diff(self.score) != 0, True)[: len(self.score)])
        right, wrong = np.cumsum(self.hit), np.cumsum(~(self.hit | self.ignored))
        return self.score[last], right[last], wrong[last]


@dataclass(frozen=True)
class Evaluation:
    """What one detector scored on one list of pictures.

    Attributes:
        summary: JSON-able: mAP, AP50, AP75, AP50_voc07, AP50_voc12 (percent; None: no class could be evaluated), ``per_size``,
            ``per_class``, ``not_evaluated``, ``boxes``, ``max_dets`` and counts.
        curves: class -> precision at the 101 recall points 0, 0.01, ..., 1 at IoU 0.5.
        matches: class -> matches by COCO's rule at :data:`IOU_THRESHOLDS`, for intervals by the bootstrap
            (:mod:`ccdiff_cli.trainability.statistics`).
    """

    summary: dict[str, Any]
    curves: dict[str, np.ndarray]
    matches: dict[str, Matches]


def evaluate(scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList, boxes: Boxes = "hbb") -> Evaluation:
    """Average precision of ``detections[i]`` on ``scenes[i]``, by horizontal boxes or by oriented ones (``corners`` of both).

    mAP is the mean over IoU 0.50, 0.55, ..., 0.95 and over the classes that have objects; AP50 and AP75 are at one IoU.

    Raises:
        ValueError: another number of detections than of scenes.
        CCDiffError: an unknown class; oriented boxes asked of detections that have none.
    """
    truth, found, pairs = _paired(scenes, detections, classes, boxes)
    counts = [(truth.label == k) & ~truth.difficult for k in range(len(classes))]
    difficult = [int(((truth.label == k) & truth.difficult).sum()) for k in range(len(classes))]
    evaluated = [k for k in range(len(classes)) if counts[k].any()]

    def matches_of(k: int, hit: np.ndarray, ignored: np.ndarray, counted: np.ndarray, kept: np.ndarray) -> Matches:
        chosen = (found.label == k) & kept
        objects = np.bincount(truth.picture[counts[k] & counted], minlength=len(scenes)).astype(np.float64)
        return Matches(found.picture[chosen], hit[:, chosen], ignored[:, chosen], objects)

    proper = found.area >= 0
    kept, some, component = _looked_at(found, pairs, len(classes))
    everything = np.ones(len(truth.label), dtype=bool)
    hit, ignored = _counted(_match_coco(some, component, len(found.label), truth.difficult, everything), ~truth.difficult)
    matches = {classes.names[k]: matches_of(k, hit, ignored, everything, kept) for k in evaluated}

    times = np.ones(len(scenes))
    curves = {name: precision_at_recall(m, times) for name, m in matches.items()}
    per_class: dict[str, dict[str, Any]] = {
        name: dict.fromkeys((*METRICS, "AP50_voc07", "AP50_voc12")) | {"objects": int(counts[k].sum()), "difficult": difficult[k]}
        for k, name in enumerate(classes)
    }
    hit, ignored = _match_voc(pairs, len(found.label), truth.difficult)
    for k in evaluated:
        table = curves[classes.names[k]].mean(axis=1)
        voc07, voc12 = voc_average_precision(matches_of(k, hit, ignored, everything, proper))
        values = (table.mean(), table[0], table[5], voc07, voc12)
        per_class[classes.names[k]] |= {m: _percent(v) for m, v in zip((*METRICS, "AP50_voc07", "AP50_voc12"), values, strict=True)}

    per_size: dict[str, Any] = {}
    for literature, ranges in SIZES.items():
        for size, (low, high) in ranges.items():
            name = f"{literature} {size}"
            inside = (truth.area >= low**2) & (truth.area <= high**2)
            outside = (found.area < low**2) | (found.area > high**2)
            taken = _match_coco(some, component, len(found.label), truth.difficult, inside)
            hit, ignored = _counted(taken, inside & ~truth.difficult)
            ignored |= outside & ~hit
            rows = []
            for k in evaluated:
                if (objects := int((counts[k] & inside).sum())) == 0:
                    continue
                table = average_precision(matches_of(k, hit, ignored, inside, kept), times)
                rows.append((table.mean(), table[0]))
                row = {"mAP": _percent(table.mean()), "AP50": _percent(table[0]), "objects": objects}
                per_class[classes.names[k]].setdefault("per_size", {})[name] = row
            mean = np.mean(rows, axis=0) if rows else (np.nan, np.nan)
            total = int((inside & ~truth.difficult).sum())
            per_size[name] = {"mAP": _percent(mean[0]), "AP50": _percent(mean[1]), "objects": total, "classes": len(rows)}

    summary: dict[str, Any] = {
        metric: _mean([per_class[classes.names[k]][metric] for k in evaluated]) for metric in (*METRICS, "AP50_voc07", "AP50_voc12")
    }
    summary |= {"per_size": per_size, "per_class": per_class}
    summary["not_evaluated"] = [name for k, name in enumerate(classes) if k not in evaluated]
    summary |= {"boxes": boxes, "pictures": len(scenes), "objects": int((~truth.difficult).sum()), "difficult_ignored": sum(difficult)}
    summary |= {"detections": len(found.label), "max_dets": [MAX_DETS]}
    return Evaluation(summary, {name: curve[0] for name, curve in curves.items()}, matches)


def outcomes(scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList, boxes: Boxes = "hbb") -> Outcomes:
    """What became of each detection, where :func:`evaluate` counts; arguments and errors are the same.

    At most :data:`MAX_DETS` detections of a class and picture are looked at, and none that is turned inside out.
    """
    truth, found, pairs = _paired(scenes, detections, classes, boxes)
    kept, some, component = _looked_at(found, pairs, len(classes))
    everything = np.ones(len(truth.label), dtype=bool)
    taken = _match_coco(some, component, len(found.label), truth.difficult, everything)[0]
    hit, ignored = _counted(taken, ~truth.difficult)
    first = np.concatenate([[0], np.cumsum([len(scene.instances) for scene in scenes])])[found.picture]
    place = np.where(hit, taken - first, -1)
    score = -np.sort(-np.concatenate([np.zeros(0, np.float32), *(d.scores for d in detections)]), kind="stable")
    return Outcomes(*(v[kept] for v in (found.picture, found.label, score, found.area, hit, ignored, place)))


def precision_at_recall(matches: Matches, times: np.ndarray) -> np.ndarray:
    """The precision reached at each of the 101 recall points, (T, 101), when picture i stands ``times[i]`` times in the test set."""
    precision, recall = _curves(matches, times)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.zeros((len(recall), len(RECALL_POINTS)))
    for t, curve in enumerate(recall):
        place = np.searchsorted(curve, RECALL_POINTS, side="left")
        known = place < len(curve)
        reached[t, known] = precision[t, place[known]]
    return reached


def average_precision(matches: Matches, times: np.ndarray) -> np.ndarray:
    """COCO's AP (T,), 0..1, when picture i stands ``times[i]`` times in the test set; NaN without objects."""
    if matches.objects @ times == 0:
        return np.full(len(matches.hit), np.nan)
    result: np.ndarray = precision_at_recall(matches, times).mean(axis=1)
    return result


def voc_average_precision(matches: Matches) -> tuple[float, float]:
    """VOC's AP of 2007 (11 recall points) and of 2012 (area under the curve), 0..1, at the first threshold."""
    precision, recall = (curve[0] for curve in _curves(matches, np.ones(len(matches.objects))))
    voc07 = 0.0
    for point in np.arange(0.0, 1.1, 0.1):
        voc07 += float(precision[recall >= point].max(initial=0.0)) / 11
    precision, recall = np.concatenate([[0.0], precision, [0.0]]), np.concatenate([[0.0], recall, [1.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return voc07, float(np.sum(np.diff(recall) * precision[1:]))


def _curves(matches: Matches, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (T, N) after each detection."""
    weight = times[matches.picture]
    right = np.cumsum(matches.hit * weight, axis=1)
    wrong = np.cumsum(~(matches.hit | matches.ignored) * weight, axis=1)
    return right / np.maximum(right + wrong, 1e-12), right / max(float(matches.objects @ times), 1e-12)


@dataclass(frozen=True)
class _Labelled:
    """Boxes of all pictures in one row: picture (N,), label (N,), area (N,) and (N, 4) HBB or (N, 8) corners."""

    picture: np.ndarray
    label: np.ndarray
    area: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class _Pairs:
    """Detections and objects of one class and picture with an IoU of at least 0.5: indices (P,), (P,) and IoU (P,)."""

    found: np.ndarray
    truth: np.ndarray
    iou: np.ndarray

    def only(self, chosen: np.ndarray) -> _Pairs:
        return _Pairs(self.found[chosen], self.truth[chosen], self.iou[chosen])


def _paired(
    scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList, boxes: Boxes
) -> tuple[_Labelled, _Labelled, _Pairs]:
    """Objects, detections, and which of them overlap."""
    if len(scenes) != len(detections):
        raise ValueError(f"{len(scenes)} scenes but detections for {len(detections)}")
    truth, found = _truth(scenes, classes, boxes), _found(detections, boxes)
    return truth, found, _overlapping(truth, found, len(classes), boxes)


def _looked_at(found: _Labelled, pairs: _Pairs, classes: int) -> tuple[np.ndarray, _Pairs, np.ndarray]:
    """Which detections COCO looks at, (N,); their pairs, and the component of each pair."""
    kept = _first_of_each(found, classes, MAX_DETS) & (found.area >= 0)  # pycocotools, too, leaves out one turned inside out
    some = pairs.only(kept[pairs.found])
    return kept, some, _components(some, len(found.label))


def _truth(scenes: Sequence[Scene], classes: ClassList, boxes: Boxes) -> _Labelled:
    picture, label, difficult = array("q"), array("q"), array("b")  # arrays: lists would keep the boxes of all pictures as objects
    rows = array("d")
    for i, scene in enumerate(scenes):
        for instance in scene.instances:
            picture.append(i)
            label.append(classes.index(instance.category, where=scene.file_name))
            rows.extend(instance.hbb if boxes == "hbb" else instance.corners)
            difficult.append(instance.difficult)
    return _labelled(np.array(picture, np.int64), np.array(label, np.int64), np.array(rows), np.array(difficult, bool))


def _found(detections: Sequence[Detections], boxes: Boxes) -> _Labelled:
    """All detections, best first; equal scores keep the order of pictures, and within a picture that of the detector."""
    rows = []
    for d in detections:
        if boxes == "obb" and d.corners is None and len(d):
            raise CCDiffError(
                "the detector finds horizontal boxes only, so there are no oriented ones to evaluate", fix="choose an oriented detector"
            )
        rows.append(d.boxes if boxes == "hbb" else d.corners if d.corners is not None else np.zeros((0, 8)))
    picture = np.repeat(np.arange(len(detections)), [len(d) for d in detections])
    scores = np.concatenate([np.zeros(0), *(d.scores for d in detections)])
    order = np.argsort(-scores, kind="stable")
    label = np.concatenate([np.zeros(0, np.int64), *(d.labels for d in detections)])
    values = np.concatenate([np.zeros((0, 4 if boxes == "hbb" else 8)), *rows])
    return _labelled(picture[order], label[order], values[order], np.zeros(len(order), bool))


def _labelled(picture: np.ndarray, label: np.ndarray, rows: np.ndarray, difficult: np.ndarray) -> _Labelled:
    boxes = np.asarray(rows, np.float64).reshape(len(picture), -1) if len(picture) else np.zeros((0, 4))
    if boxes.shape[1] == 8:
        x, y = boxes[:, 0::2], boxes[:, 1::2]
        area = np.abs(np.sum(x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y, axis=1)) / 2
    else:
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)  # negative for a box turned inside out
    return _Labelled(picture, label, area, boxes, difficult)


def _first_of_each(found: _Labelled, classes: int, most: int) -> np.ndarray:
    """Which detections are among the ``most`` best of their picture and class, (N,) bool."""
    rank = _rank_within(found.picture * classes + found.label)
    kept: np.ndarray = rank < most
    return kept


def _rank_within(group: np.ndarray) -> np.ndarray:
    """How many earlier entries have the same group, (N,)."""
    order = np.argsort(group, kind="stable")
    first = np.r_[True, np.diff(group[order]) != 0][: len(order)]
    start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - start
    return rank


def _overlapping(truth: _Labelled, found: _Labelled, classes: int, boxes: Boxes) -> _Pairs:
    """All pairs of one class and picture with an IoU of at least the lowest threshold."""
    lowest = IOU_THRESHOLDS[0]
    truth_group, found_group = truth.picture * classes + truth.label, found.picture * classes + found.label
    order = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group[order], found_group, side="left")
    count = np.searchsorted(truth_group[order], found_group, side="right") - first
    around = [b if b.shape[1] == 4 else np.column_stack([b[:, 0::2].min(1), b[:, 1::2].min(1), b[:, 0::2].max(1), b[:, 1::2].max(1)])
              for b in (found.boxes, truth.boxes)]  # fmt: skip
    parts: list[_Pairs] = []
    before = np.concatenate([[0], np.cumsum(count)])
    start = 0
    while start < len(count):
        stop = max(start + 1, int(np.searchsorted(before, before[start] + PAIRS_AT_ONCE, side="right")) - 1)
        some = np.repeat(np.arange(start, stop), count[start:stop])
        offset = np.arange(len(some)) - (before[some] - before[start])
        other = order[first[some] + offset]
        a, b = around[0][some], around[1][other]
        wide = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
        inter = wide[:, 0] * wide[:, 1]
        if boxes == "obb":  # no more than this can two oriented boxes share
            inter = np.minimum(inter, np.minimum(found.area[some], truth.area[other])) * (1 + 1e-9)
        union = found.area[some] + truth.area[other] - inter
        iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
        near = iou >= lowest
        parts.append(_Pairs(some[near], other[near], iou[near]))
        start = stop
    pairs = _Pairs(
        np.concatenate([np.zeros(0, np.int64), *(p.found for p in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(p.truth for p in parts)]),
        np.concatenate([np.zeros(0), *(p.iou for p in parts)]),
    )
    if boxes == "hbb" or not len(pairs.iou):
        return pairs
    seen, at = np.unique(pairs.found, return_inverse=True)
    iou = paired_iou(quadrilaterals(found.boxes[seen])[at], quadrilaterals(truth.boxes)[pairs.truth])
    return _Pairs(pairs.found, pairs.truth, iou).only(iou >= lowest)


def _components(pairs: _Pairs, detections: int) -> np.ndarray:
    """Groups of detections and objects that could be matched to one another, as a number for every pair (P,)."""
    if not len(pairs.iou):
        return np.zeros(0, np.int64)
    nodes = detections + int(pairs.truth.max()) + 1
    graph = coo_array((np.ones(len(pairs.iou), np.int8), (pairs.found, detections + pairs.truth)), shape=(nodes, nodes))
    group: np.ndarray = connected_components(graph, directed=False)[1]
    return group[pairs.found]


def _match_coco(pairs: _Pairs, component: np.ndarray, detections: int, difficult: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """COCO's matching at every threshold: the object that each detection takes, (T, N); -1: none.

    An object that is difficult, or not ``inside`` the size looked at, is taken last; a difficult one stays free for others.  Matched in
    rounds: the k-th best detection of every component at once, for what one component does never touches another.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    result = np.full((len(thresholds), detections), -1, np.int32)
    if not len(pairs.iou):
        return result
    counts = inside & ~difficult
    chosen, at = np.unique(pairs.found, return_inverse=True)
    group = np.zeros(len(chosen), np.int64)
    group[at] = component
    round_of = _rank_within(group)[at]
    # within a detection, what it would rather take comes later: an object that counts, then the largest IoU, then the last
    order = np.lexsort((pairs.truth, pairs.iou, counts[pairs.truth], pairs.found, round_of))
    found, truth, iou = pairs.found[order], pairs.truth[order], pairs.iou[order]
    enough = iou[:, None] >= thresholds
    used = np.zeros((len(difficult), len(thresholds)), bool)
    ends = np.cumsum(np.bincount(round_of))
    columns = np.broadcast_to(np.arange(len(thresholds)), (1, len(thresholds)))
    for start, stop in zip(np.concatenate([[0], ends[:-1]]).tolist(), ends.tolist(), strict=True):
        who = found[start:stop]
        free = enough[start:stop] & (~used[truth[start:stop]] | difficult[truth[start:stop], None])
        first = np.flatnonzero(np.r_[True, np.diff(who) != 0])
        best = np.maximum.reduceat(np.where(free, np.arange(start, stop)[:, None], -1), first, axis=0)
        taken = best >= 0
        taken_truth = truth[best]
        used[taken_truth[taken], np.broadcast_to(columns, taken.shape)[taken]] = True
        result[:, who[first]] = np.where(taken, taken_truth, -1).T
    return result


def _counted(taken: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hit and ignored of detections that took these objects (-1: none), of which some count."""
    return np.append(counts, False)[taken], np.append(~counts, False)[taken]


def _match_voc(pairs: _Pairs, detections: int, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """VOC's matching at IoU 0.5: hit and ignored, (1, N) each.  A second find of an object is wrong, whatever else it overlaps."""
    above = pairs.only(pairs.iou > IOU_THRESHOLDS[0])
    order = np.lexsort((above.truth, -above.iou, above.found))
    found, truth = above.found[order], above.truth[order]
    first = np.r_[True, np.diff(found) != 0][: len(found)]
    found, truth = found[first], truth[first]  # ascending: best detection first
    hit, ignored = np.zeros((1, detections), bool), np.zeros((1, detections), bool)
    hit[0, found] = ~difficult[truth] & (_rank_within(truth) == 0)
    ignored[0, found] = difficult[truth]
    return hit, ignored


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if values else None


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100 * float(value), 6)
