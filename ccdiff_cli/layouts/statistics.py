"""What layouts look like in numbers, and how far two collections of layouts are apart.

Every figure compares distributions, so collections of different sizes can be compared: total variation (0 the same, 1 nothing in
common) of what is counted in bins, and the Wasserstein-1 distance (in the unit named) of what is measured.  The yardstick is the
distance between two halves of the real layouts: a source is as good as it can be when it is no farther from one half than the other is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ..dataset import PictureSet
from ..geometry import corners_to_le90
from ..prepare.captions import MIN_ELONGATION
from ..scene import ClassList, Scene
from .augment import touches_border
from .repair import corners_of, overlap_shares

ANGLE_BINS = 12
PLACE_BINS = 4
FEW = 10
"""A class is compared by sizes and the like where both collections have so many of its objects."""

MEASURES: dict[str, str] = {
    "classes": "share of each class among the objects (total variation)",
    "together": "which classes stand in one picture (total variation)",
    "counts": "objects per picture (Wasserstein-1 of log2)",
    "sizes": "square root of the area (Wasserstein-1 of log2, mean over classes)",
    "shapes": "long over short side (Wasserstein-1 of log2, mean over classes)",
    "places": "4 x 4 grid of the centres (total variation)",
    "borders": "share of objects that the border cuts (difference)",
    "angles": "of the long side, 15 degree bins (total variation, mean over classes)",
    "neighbour angles": "between nearest objects of a class (total variation over 15 degree bins)",
    "spacing": "to the nearest of the class, over its size (Wasserstein-1 of log2)",
    "overlaps": "share of objects that overlap another (difference)",
}
"""What is compared, and how."""


class Statistics:
    """Arrays over all objects of some layouts."""

    def __init__(self, scenes: Sequence[Scene], classes: ClassList) -> None:
        self.classes = classes
        self.pictures = len(scenes)
        self.counts = np.array([len(s.instances) for s in scenes])
        self.together = Counter(tuple(sorted(set(s.categories()))) for s in scenes)
        rows: list[tuple[float, ...]] = []
        between: list[float] = []
        spacing: list[float] = []
        for scene in scenes:
            if not scene.instances:
                continue
            boxes = np.array([corners_to_le90(i.corners) for i in scene.instances])
            names = np.array([classes.index(i.category) for i in scene.instances])
            i, j, shares = overlap_shares(corners_of(scene.instances))
            overlapping = set(i[shares > 0.01].tolist()) | set(j[shares > 0.01].tolist())
            unit = math.sqrt(scene.width * scene.height)
            for n, (instance, (cx, cy, w, h, angle)) in enumerate(zip(scene.instances, boxes, strict=True)):
                rows.append(
                    (
                        names[n], math.sqrt(max(w * h, 1e-9)) / unit, max(w, 1e-9) / max(h, 1e-9), angle if instance.oriented else math.nan,
                        cx / scene.width, cy / scene.height, touches_border(instance, scene.width, scene.height), n in overlapping,
                    )
                )  # fmt: skip
            for name in np.unique(names):
                members = np.flatnonzero(names == name)
                if len(members) < 2:
                    continue
                distance, near = cKDTree(boxes[members, :2]).query(boxes[members, :2], k=2)
                own = np.arange(len(members))
                other = np.where(near[:, 1] == own, near[:, 0], near[:, 1])
                size = np.sqrt(np.maximum(boxes[members, 2] * boxes[members, 3], 1e-9))
                spacing += np.maximum(distance[:, 1] / size, 1e-3).tolist()
                long = boxes[members, 2] >= MIN_ELONGATION * boxes[members, 3]
                both = long & long[other] & np.array([scene.instances[m].oriented for m in members])
                turn = np.abs(boxes[members, 4] - boxes[members, 4][other])[both]
                between += np.minimum(turn, math.pi - turn).tolist()
        self.table = np.array(rows, np.float64).reshape(-1, 8)
        self.between, self.spacing = np.array(between), np.array(spacing)

    def of(self, label: int) -> np.ndarray:
        """The rows of a class: label, size, ratio, angle, x, y, cut by the border, overlapping."""
        return self.table[self.table[:, 0] == label]

    def summary(self) -> dict[str, Any]:
        """JSON-able account for people."""
        t = self.table
        per_class = {}
        for k, name in enumerate(self.classes):
            mine = self.of(k)
            if len(mine):
                per_class[name] = {
                    "objects": len(mine),
                    "size": [round(float(v), 4) for v in np.quantile(mine[:, 1], (0.1, 0.5, 0.9))],
                    "ratio": round(float(np.median(mine[:, 2])), 2),
                }
        return {
            "pictures": self.pictures,
            "objects": len(t),
            "objects_per_picture": {"mean": round(float(self.counts.mean()), 2), "max": int(self.counts.max())} if self.pictures else {},
            "cut_by_the_border": round(float(t[:, 6].mean()), 4) if len(t) else 0.0,
            "overlapping": round(float(t[:, 7].mean()), 4) if len(t) else 0.0,
            "per_class": per_class,
        }


def distances(one: Statistics, reference: Statistics) -> dict[str, float | None]:
    """The distance of each of :data:`MEASURES`; means over classes are weighted by the reference's objects; None: too few."""
    a, b = one.table, reference.table
    pictures = sorted({*one.together, *reference.together})

    def by_class(distance: Callable[[np.ndarray, np.ndarray], float | None]) -> float:
        values, weights = [], []
        for k in range(len(reference.classes)):
            mine, theirs = one.of(k), reference.of(k)
            found = distance(mine, theirs) if min(len(mine), len(theirs)) >= FEW else None
            if found is not None:
                values.append(found)
                weights.append(len(theirs))
        return float(np.average(values, weights=weights)) if values else math.nan

    def angles(mine: np.ndarray, theirs: np.ndarray) -> float | None:
        bins = [_angle_bins(t[(t[:, 2] >= MIN_ELONGATION) & np.isfinite(t[:, 3]), 3]) for t in (mine, theirs)]
        return _variation(*bins) if min(b.sum() for b in bins) >= FEW else None

    classes = range(len(reference.classes))
    found = {
        "classes": _variation(*(np.array([(t[:, 0] == k).sum() for k in classes]) for t in (a, b))),
        "together": _variation(*(np.array([s.together[p] for p in pictures]) for s in (one, reference))),
        "counts": _wasserstein(np.log2(np.maximum(one.counts, 0.5)), np.log2(np.maximum(reference.counts, 0.5))),
        "sizes": by_class(lambda m, t: _wasserstein(np.log2(m[:, 1]), np.log2(t[:, 1]))),
        "shapes": by_class(lambda m, t: _wasserstein(np.log2(m[:, 2]), np.log2(t[:, 2]))),
        "places": _variation(_place_bins(a), _place_bins(b)),
        "borders": abs(float(a[:, 6].mean() - b[:, 6].mean())),
        "angles": by_class(angles),
        "neighbour angles": _variation(*(np.histogram(s.between, 6, (0, math.pi / 2))[0] for s in (one, reference))),
        "spacing": _wasserstein(np.log2(one.spacing), np.log2(reference.spacing)),
        "overlaps": abs(float(a[:, 7].mean() - b[:, 7].mean())),
    }
    return {name: None if math.isnan(value) else round(value, 4) for name, value in found.items()}


def compare_sources(
    layouts: Sequence[Scene],
    classes: ClassList,
    sources: Sequence[str],
    make: Callable[[PictureSet, int, str], Sequence[Scene]],
    root: Any,
    *,
    seed: int = 0,
    n: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """How far each source, fitted to one half of the layouts, is from the other half.

    Args:
        layouts: real layouts; halves are drawn by ``Scene.source``, so tiles of one picture stay together.
        make: ``make(first half, n, source)`` gives n layouts.
        n: how many of each source, the yardstick included: fewer are farther off by chance alone.  By default as many as the other half.

    Returns:
        ``{"pictures": [n, m], "distances": {"real": {...}, source: {...}}, "examples": {source: layouts}}``; "real" is the yardstick.
    """
    names = sorted({s.source or s.file_name for s in layouts})
    first = set(np.random.default_rng((seed, 5)).permutation(names)[: len(names) // 2].tolist())
    one = tuple(s for s in layouts if (s.source or s.file_name) in first)
    other = tuple(s for s in layouts if (s.source or s.file_name) not in first)
    reference = Statistics(other, classes)
    some = one if n is None else [one[k] for k in np.random.default_rng((seed, 6)).permutation(len(one))[:n]]
    table = {"real": distances(Statistics(some, classes), reference)}
    examples: dict[str, list[Scene]] = {"real": list(other)}
    for done, source in enumerate(sources):
        if progress is not None:
            progress("compare", done, len(sources))
        made = list(make(PictureSet(root, classes, tuple(s.replace(split="train") for s in one), {}), n or len(other), source))
        table[source] = distances(Statistics(made, classes), reference)
        examples[source] = made
    if progress is not None:
        progress("compare", len(sources), len(sources))
    return {"pictures": [len(one), len(other)], "distances": table, "examples": examples}


def _variation(a: np.ndarray, b: np.ndarray) -> float:
    if not a.sum() or not b.sum():
        return math.nan
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


def _wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import wasserstein_distance  # slow to import

    return float(wasserstein_distance(a, b)) if len(a) and len(b) else math.nan


def _angle_bins(angles: np.ndarray) -> np.ndarray:
    place = np.round((angles + math.pi / 2) / (math.pi / ANGLE_BINS)).astype(int) % ANGLE_BINS  # the axes fall in the middle of a bin
    return np.bincount(place, minlength=ANGLE_BINS)


def _place_bins(table: np.ndarray) -> np.ndarray:
    x, y = np.clip(table[:, 4:6], 0, 1).T  # of a box that reaches beyond the picture the centre may lie there, too
    return np.histogram2d(x, y, PLACE_BINS, ((0, 1), (0, 1)))[0].ravel()
