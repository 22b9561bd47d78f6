"""What is counted of a set: objects by class and split, sizes, angles, boxes that cannot be right, pictures that are alike.

All boxes of a set are a few arrays (:class:`Boxes`), so sizes, angles and checks are array expressions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from ..console import ranks
from ..dataset import SPLITS
from ..duplicates import Look, alike
from ..geometry import polygon_iou, visible_hbbs
from ..quantities import date_of, quantities_of
from ..scene import ClassList, Scene

UNASSIGNED = "no split"
SIZE_BINS = (("< 16 px", 0.0, 16.0), ("16 to 32 px", 16.0, 32.0), ("32 to 96 px", 32.0, 96.0), ("> 96 px", 96.0, np.inf))
"""By the square root of the OBB's area; the first two together are COCO's "small", then "medium" and "large"."""
ANGLE_STEP = 10
"""Width of the angle histogram's bins, degrees."""
MIN_ELONGATION = 1.2
"""Below this ratio of sides an object has no direction."""
TINY_SIDE = 3.0
"""An object whose shorter side has fewer pixels can hardly be seen."""
TOLERANCE = 1.0
"""Boxes may reach out of the picture by so many pixels: annotators' accuracy."""
MIN_HBB_IOU = 0.5
"""Of the HBB and the HBB of the OBB (both inside the picture): below this they are those of two objects."""
MAX_IOU = 0.9
"""Two boxes of one class that overlap more are one object labelled twice."""
NO_AREA, OUTSIDE, REACHES_OUT = (
    "box without an area",
    "box outside the picture",
    f"box reaches out of the picture by more than {TOLERANCE:g} px",
)
TINY, APART = f"object thinner than {TINY_SIDE:g} px", "HBB far from the OBB's HBB"
TWICE = f"labelled twice (same class, IoU > {MAX_IOU:g})"
SUSPICIONS = (NO_AREA, OUTSIDE, REACHES_OUT, TINY, APART, TWICE)


@dataclass(frozen=True)
class Boxes:
    """All objects of a set: arrays of N rows; see :func:`boxes_of`."""

    scene: np.ndarray
    number: np.ndarray
    label: np.ndarray
    hbb: np.ndarray
    corners: np.ndarray
    oriented: np.ndarray
    difficult: np.ndarray
    sides: np.ndarray
    angle: np.ndarray
    size: np.ndarray


def boxes_of(scenes: Sequence[Scene], names: ClassList) -> Boxes:
    """The objects as arrays.

    ``sides`` (N, 2) are the OBB's long and short side, ``angle`` that of the long side as in le90, degrees in [-90, 90); both from the
    means of opposite edges, which is exact for rectangles.  ``size`` is the square root of the OBB's area.
    """
    label = {name: k for k, name in enumerate(names)}
    items = [(k, n, i) for k, scene in enumerate(scenes) for n, i in enumerate(scene.instances)]
    corners = np.array([i.corners for _, _, i in items], np.float64).reshape(-1, 8)
    p = corners.reshape(-1, 4, 2)
    edges = np.stack([p[:, 1] - p[:, 0] + p[:, 2] - p[:, 3], p[:, 3] - p[:, 0] + p[:, 2] - p[:, 1]], axis=1) / 2
    lengths = np.linalg.norm(edges, axis=2)
    order = np.argsort(-lengths, axis=1, kind="stable")
    long_side = np.take_along_axis(edges, order[:, :1, None], axis=1)[:, 0]
    turned = np.roll(p, -1, axis=1)
    return Boxes(
        scene=np.array([k for k, _, _ in items], np.int64),
        number=np.array([n for _, n, _ in items], np.int64),
        label=np.array([label[i.category] for _, _, i in items], np.int64),
        hbb=np.array([i.hbb for _, _, i in items], np.float64).reshape(-1, 4),
        corners=corners,
        oriented=np.array([i.oriented for _, _, i in items], bool),
        difficult=np.array([i.difficult for _, _, i in items], bool),
        sides=np.take_along_axis(lengths, order, axis=1),
        angle=(np.degrees(np.arctan2(long_side[:, 1], long_side[:, 0])) + 90) % 180 - 90,
        size=np.sqrt(np.abs((p[..., 0] * turned[..., 1] - turned[..., 0] * p[..., 1]).sum(axis=1)) / 2),
    )


def _split_of(scene: Scene) -> str:
    return scene.split or UNASSIGNED


def counts_of(scenes: Sequence[Scene], names: ClassList, boxes: Boxes) -> dict[str, Any]:
    """Pictures and objects per split and class, objects per picture, picture sizes."""
    present = {_split_of(s) for s in scenes}
    splits = [s for s in (*SPLITS, UNASSIGNED) if s in present] + sorted(present - {*SPLITS, UNASSIGNED})
    split_of_scene = np.array([splits.index(_split_of(s)) for s in scenes], np.int64)
    table = np.zeros((len(names), len(splits)), np.int64)
    np.add.at(table, (boxes.label, split_of_scene[boxes.scene]), 1)
    objects = np.bincount(boxes.scene, minlength=len(scenes))
    per_split = {}
    for k, split in enumerate(splits):
        found = objects[split_of_scene == k]
        per_split[split] = {
            "pictures": len(found),
            "objects": int(found.sum()),
            "difficult": int(boxes.difficult[split_of_scene[boxes.scene] == k].sum()),
            "pictures_without_objects": int((found == 0).sum()),
            "objects_per_picture": {
                "mean": round(float(found.mean()), 2),
                "median": float(np.median(found)),
                "max": int(found.max()),
                "histogram": {str(int(n)): int(c) for n, c in zip(*np.unique(found, return_counts=True), strict=True)},
            },
        }
    per_class = {}
    for k, name in enumerate(names):
        mine = boxes.label == k
        per_class[name] = {
            "objects": int(mine.sum()),
            "pictures": len(np.unique(boxes.scene[mine])),
            "difficult": int(boxes.difficult[mine].sum()),
            "oriented": int(boxes.oriented[mine].sum()),
            "per_split": {split: int(table[k, j]) for j, split in enumerate(splits)},
            "median_size": round(float(np.median(boxes.size[mine])), 1) if mine.any() else None,
        }
    sizes = Counter(f"{s.width} x {s.height}" for s in scenes if s.width)
    return {
        "per_split": per_split,
        "per_class": per_class,
        "picture_sizes": dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
    }


def sizes_of(names: ClassList, boxes: Boxes) -> dict[str, Any]:
    edges = 2.0 ** np.arange(0, 12.25, 0.25)  # four bins an octave, 1 to 4096 pixels; what lies beyond is counted in the outermost
    clipped = np.clip(boxes.size, edges[0], edges[-1] * 0.999)
    bins = {name: (boxes.size >= low) & (boxes.size < high) for name, low, high in SIZE_BINS}
    small, medium = boxes.size < 32, (boxes.size >= 32) & (boxes.size <= 96)
    return {
        "of": "square root of the OBB's area, pixels",
        "bins": {name: int(mask.sum()) for name, mask in bins.items()},
        "coco": {"small": int(small.sum()), "medium": int(medium.sum()), "large": int((~small & ~medium).sum())},
        "per_class": {name: {b: int((mask & (boxes.label == k)).sum()) for b, mask in bins.items()} for k, name in enumerate(names)},
        "histogram": {"edges": [round(float(e), 3) for e in edges], "counts": np.histogram(clipped, edges)[0].tolist()},
    }


def angles_of(boxes: Boxes) -> dict[str, Any]:
    centres = np.arange(-90, 90, ANGLE_STEP)  # objects along the axes are many, and fall in the middle of a bin
    pointed = boxes.oriented & (boxes.sides[:, 0] >= MIN_ELONGATION * boxes.sides[:, 1])
    return {
        "of": "long side, degrees from the x axis towards the y axis (y points down), as in le90",
        "centres": centres.tolist(),
        "counts": np.bincount(
            np.round((boxes.angle[pointed] + 90) / ANGLE_STEP).astype(int) % len(centres), minlength=len(centres)
        ).tolist(),
        "too_square": int((boxes.oriented & ~pointed).sum()),
        "without_orientation": int((~boxes.oriented).sum()),
    }


def gsd_of(scenes: Sequence[Scene]) -> dict[str, Any]:
    """How many pictures are known to have how many metres a pixel."""
    told = [s.provenance.get("gsd") for s in scenes]
    known = [float(gsd) for gsd in told if isinstance(gsd, int | float)]
    if not known:
        return {"pictures": 0}
    low, middle, high = (float(f"{v:.4g}") for v in np.percentile(known, (0, 50, 100)))
    return {"pictures": len(known), "min": low, "median": middle, "max": high}


def metadata_of(scenes: Sequence[Scene]) -> dict[str, Any]:
    """What is known of place, clouds and date: quantity -> how many pictures, and the range; only what some picture has."""
    known = [quantities_of(scene) for scene in scenes]
    told: dict[str, Any] = {}
    for name in ("longitude", "latitude", "cloud_cover"):
        if values := [k[name] for k in known if name in k]:
            low, middle, high = (float(f"{v:.6g}") for v in np.percentile(values, (0, 50, 100)))
            told[name] = {"pictures": len(values), "min": low, "median": middle, "max": high}
    if dates := sorted(filter(None, map(date_of, known))):
        told["date"] = {"pictures": len(dates), "min": dates[0], "median": dates[(len(dates) - 1) // 2], "max": dates[-1]}
    return told


# ---------------------------------------------------------------------------------------------------------------- suspicious boxes


def suspicious_boxes(scenes: Sequence[Scene], names: ClassList, boxes: Boxes) -> dict[str, Any]:
    """Counts under a reason, and every such box."""
    size = np.array([(s.width, s.height) for s in scenes], np.float64).reshape(-1, 2)[boxes.scene]
    size[(size <= 0).any(axis=1)] = np.inf  # a size that nobody knows bounds nothing
    low, high = boxes.hbb[:, :2], boxes.hbb[:, 2:]
    points = boxes.corners.reshape(-1, 4, 2)
    no_area = (high <= low).any(axis=1) | (boxes.size <= 1e-6)
    outside = ~no_area & ((low >= size) | (high <= 0)).any(axis=1)
    centre = points.mean(axis=1)
    reaches = ((low < -TOLERANCE) | (high > size + TOLERANCE) | (centre < -TOLERANCE) | (centre > size + TOLERANCE)).any(axis=1)
    hbb_in = np.concatenate([np.clip(low, 0, size), np.clip(high, 0, size)], axis=1)
    obb_in = visible_hbbs(boxes.corners, np.concatenate([np.zeros_like(size), np.minimum(size, 1e9)], axis=1))
    flags = {
        NO_AREA: no_area,
        OUTSIDE: outside,
        REACHES_OUT: reaches & ~no_area & ~outside,
        TINY: ~no_area & (np.minimum(boxes.sides[:, 1], (high - low).min(axis=1, initial=np.inf)) < TINY_SIDE),
        APART: boxes.oriented & ~no_area & ~outside & (_iou_of_rows(hbb_in, obb_in) < MIN_HBB_IOU),
    }
    found: dict[str, list[tuple[int, int | None]]] = {
        reason: [(int(k), None) for k in np.flatnonzero(mask)] for reason, mask in flags.items()
    }
    found[TWICE] = sorted(labelled_twice(boxes))
    listed = [
        {
            "reason": reason,
            "picture": scenes[boxes.scene[k]].file_name,
            "split": _split_of(scenes[boxes.scene[k]]),
            "object": int(boxes.number[k]),
            **({"other_object": int(boxes.number[other])} if other is not None else {}),
            "class": names.names[boxes.label[k]],
            "hbb": [round(float(v), 2) for v in boxes.hbb[k]],
        }
        for reason in SUSPICIONS
        for k, other in found[reason]
    ]
    return {"counts": {reason: len(found[reason]) for reason in SUSPICIONS}, "boxes": listed}


def _iou_of_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of (N, 4) and (N, 4) horizontal boxes, row by row; 0 where neither has an area."""
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    inter = sides.prod(axis=1)
    union = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(axis=1) + np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def labelled_twice(boxes: Boxes) -> Iterator[tuple[int, int]]:
    """Pairs of objects of one picture and class that overlap almost wholly, by rotated IoU where both are oriented.

    A spatial index a group: a scene with ten thousand cars costs no more than they touch one another.
    """
    order = np.lexsort((boxes.label, boxes.scene))
    keys = np.stack([boxes.scene, boxes.label])[:, order]
    for members in np.split(order, np.flatnonzero(np.diff(keys, axis=1).any(axis=0)) + 1):
        if len(members) < 2:
            continue
        shapes = shapely.box(*boxes.hbb[members].T)
        left, right = np.sort(shapely.STRtree(shapes).query(shapes, predicate="intersects"), axis=0)
        left, right = np.unique(np.stack([left, right])[:, left < right], axis=1)
        a, b = members[left], members[right]
        iou = _iou_of_rows(boxes.hbb[a], boxes.hbb[b])
        for i, j, value in zip(a.tolist(), b.tolist(), iou.tolist(), strict=True):
            if value <= MAX_IOU / 2:  # OBBs that overlap by MAX_IOU have HBBs that overlap by far more than half of it
                continue
            if boxes.oriented[i] and boxes.oriented[j]:
                value = polygon_iou(boxes.corners[i].tolist(), boxes.corners[j].tolist())
            if value > MAX_IOU:
                yield i, j


# ---------------------------------------------------------------------------------------------------------------- duplicates


def duplicates_of(scenes: Sequence[Scene], looks: Sequence[Look]) -> dict[str, Any]:
    """Pictures that show the same, in two splits (a leak) or in one, and sources that stand in two splits.

    Tiles of one source in one split are expected to be alike at the picture's border, and not listed.
    """
    pairs, plain = alike(looks)
    listed: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    same_source = 0
    for i, j, correlation in pairs:
        across = _split_of(scenes[i]) != _split_of(scenes[j])
        if not across and scenes[i].source and scenes[i].source == scenes[j].source:
            same_source += 1
            continue
        listed[across].append(
            {
                "pictures": [scenes[i].file_name, scenes[j].file_name],
                "splits": [_split_of(scenes[i]), _split_of(scenes[j])],
                "correlation": correlation,
            }
        )
    splits: dict[str, set[str]] = {}
    for scene in scenes:
        if scene.source:
            splits.setdefault(scene.source, set()).add(_split_of(scene))
    return {
        "across_splits": listed[True],
        "within_a_split": listed[False],
        "alike_tiles_of_one_source": same_source,
        "sources_in_two_splits": sorted(source for source, found in splits.items() if len(found) > 1),
        "too_plain_to_compare": plain,
    }


def warnings_of(facts: dict[str, Any]) -> list[str]:
    """What should be seen to, most harmful first."""
    duplicates, found = facts["duplicates"], [line.plain.removeprefix("warning: ") for line in ranks(facts["reader"], grave=True)]
    if pairs := duplicates["across_splits"]:
        first = " and ".join(f"{name} ({split})" for name, split in zip(pairs[0]["pictures"], pairs[0]["splits"], strict=True))
        found.append(f"leak, pairs of alike pictures in different splits: {len(pairs)}, first {first}")
    if sources := duplicates["sources_in_two_splits"]:
        found.append(f"leak, source pictures with tiles in different splits: {len(sources)}, first {sources[0]}")
    if bad := facts["unreadable"]:
        found.append(f"pictures that do not decode: {len(bad)}, first {bad[0]['picture']}")
    if tagged := facts["pixels"].get("tagged"):
        found.append(
            f"pictures that other programs turn by their EXIF orientation: {len(tagged)}, first {tagged[0]}; prepare the set again"
        )
    if wrong := facts["declared_size_wrong"]:
        found.append(f"pictures of another size than their labels say: {len(wrong)}, first {wrong[0]}")
    absent = [name for name, c in facts["per_class"].items() if not c["objects"]]
    if absent:
        found.append(f"classes without an object: {', '.join(absent)}")
    for split, counts in facts["per_split"].items():
        missing = [name for name, c in facts["per_class"].items() if c["objects"] and not c["per_split"][split]]
        if missing and counts["objects"]:
            found.append(f"classes without an object in {split}: {', '.join(missing)}")
    suspicious = {reason: count for reason, count in facts["suspicious"]["counts"].items() if count}
    if suspicious:
        found.append("suspicious boxes: " + "; ".join(f"{reason}: {count}" for reason, count in suspicious.items()))
    if pairs := duplicates["within_a_split"]:
        found.append(f"pairs of alike pictures in one split: {len(pairs)}, first {' and '.join(pairs[0]['pictures'])}")
    return found
