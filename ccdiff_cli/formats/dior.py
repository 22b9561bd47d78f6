"""DIOR and DIOR-R as they lie on disk.

``JPEGImages-trainval/``, ``JPEGImages-test/`` (or ``JPEGImages/``), ``Annotations/Horizontal Bounding Boxes/NAME.xml`` and
``Annotations/Oriented Bounding Boxes/NAME.xml``, ``ImageSets/Main/{train,val,test}.txt``.  The two files list the same objects in different
orders, so boxes are matched by the IoU of their HBBs: one to one, same class, optimal over the picture.

NOTE: of the 192,518 objects, 192,374 match so.  Every picture has as many objects of each class in both files, so the other 144 are not
objects of one file only: 57 overlap too little, 18 have their class exchanged with another object's (in pairs, in 9 pictures), and the OBB
of 69 was drawn in another place.  The first 75 get their OBB by place; the 69 keep their HBB alone, and the stray OBB in
``extra["obb_elsewhere"]`` (pixels of the source picture).  All are counted.  The declared ``<size>`` is not believed (33 OBB files lie).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import CCDiffError
from ..files import inside
from ..geometry import hbb_iou, hbb_of
from ..scene import Instance, Scene
from .classes import ClassMap, over
from .raw import Faults, RawSet, by_stem, child, find_pictures, listed, missing_picture, read_split_lists
from .voc import declared_size, read_annotation, unannotated, voc_objects

HBB_FOLDER = "Annotations/Horizontal Bounding Boxes"
OBB_FOLDER = "Annotations/Oriented Bounding Boxes"
PICTURES = ("JPEGImages-trainval", "JPEGImages-test", "JPEGImages")
MIN_IOU = 0.1
"""Pairs that overlap less are left for the second look, by place."""
_LITTLE_OVERLAP = "objects whose HBB and OBB overlap little"
_OTHER_CLASS = "objects whose class differs in the OBB file (the HBB's kept)"


def is_dior(root: Path) -> bool:
    """Whether the folder has DIOR's annotation folders."""
    return child(root, HBB_FOLDER).is_dir() or child(root, OBB_FOLDER).is_dir()


def read_dior(root: Path, classes: ClassMap | None = None, faults: Faults | None = None, *, pictures: bool = True) -> RawSet:
    """Read the folder.

    Args:
        pictures: False reads the annotations of a folder that has no pictures (as layouts); scenes then have no ``path``.

    Raises:
        CCDiffError: broken XML (with its line), an unknown class, a box that is not four finite numbers, a picture that is missing.
    """
    faults = faults or Faults()
    names = over(classes, lambda: ClassMap.frozen("dior"))
    raw = RawSet("dior", names.classes, [])
    folders = [child(root, HBB_FOLDER), child(root, OBB_FOLDER)]
    horizontal, oriented = (by_stem(listed(folder, ".xml"), "annotation files") for folder in folders)
    ids = sorted({*horizontal, *oriented})
    if not ids:
        raise CCDiffError("no annotation files (*.xml)", where=root / "Annotations")
    found = find_pictures([child(root, name) for name in PICTURES]) if pictures else {}
    known = {*ids, *found}
    splits: dict[str, str] = {}
    for lists in ("ImageSets/Main", "ImageSets"):
        splits = splits or read_split_lists(child(root, lists), known, faults)
    for picture_id in ids:
        if splits and picture_id not in splits:
            raw.skipped["pictures in no split list"] += 1
            continue
        with faults.leaving_out("pictures"):
            where = horizontal.get(picture_id) or oriented[picture_id]
            inside(root, picture_id, where=where)
            picture = found.pop(picture_id, None)
            boxes, size = _read(horizontal[picture_id], names, raw, faults) if picture_id in horizontal else ([], None)
            turned, turned_size = _read(oriented[picture_id], names, raw, faults, oriented=True) if picture_id in oriented else ([], None)
            if pictures and picture is None:
                raise missing_picture(picture_id, where=where, looked=", ".join(PICTURES))
            split = splits.get(picture_id, "test" if picture is not None and picture.parent.name.lower() == "jpegimages-test" else "")
            width, height = size or turned_size or (0, 0)
            instances = _merged(boxes, turned, raw, both=picture_id in horizontal and picture_id in oriented)
            name = picture.name if picture is not None else f"{picture_id}.jpg"
            raw.scenes.append(Scene(name, width, height, instances, split, picture_id, path=str(picture) if picture is not None else None))
    raw.scenes += [unannotated(found.pop(stem), splits[stem], raw) for stem in sorted(splits.keys() & found.keys() - set(ids))]
    if found:
        raw.skipped["pictures without annotations"] += len(found)
    return raw


def _read(
    path: Path, names: ClassMap, raw: RawSet, faults: Faults, *, oriented: bool = False
) -> tuple[list[Instance], tuple[int, int] | None]:
    tree = read_annotation(path)
    found = [i for i in voc_objects(tree, names, faults, raw, where=path) if i is not None]
    if oriented and any(not i.oriented for i in found):
        raw.notes["objects of OBB files that have only an HBB"] += sum(not i.oriented for i in found)
    return found, declared_size(tree)


def _merged(boxes: list[Instance], turned: list[Instance], raw: RawSet, *, both: bool) -> tuple[Instance, ...]:
    """One object for every HBB, with its OBB where there is one, then the OBBs of objects that the HBB file does not have."""
    partner = match_boxes(boxes, turned)
    notes: Counter[str] = Counter()
    elsewhere: dict[int, int] = {}
    if len(partner) < max(len(boxes), len(turned)):
        partner, elsewhere = _match_rest(boxes, turned, partner, notes)
    out = []
    for k, box in enumerate(boxes):
        other = turned[partner[k]] if k in partner else None
        if k in elsewhere:
            box = replace(box, extra={**box.extra, "obb_elsewhere": list(turned[elsewhere[k]].corners)})
        if other is None or not other.oriented:
            out.append(box)
        else:
            difficult, extra = box.difficult or other.difficult, {**other.extra, **box.extra}
            out.append(Instance.from_corners(box.category, other.corners, box.hbb, difficult=difficult, extra=extra))
    alone = sorted(set(range(len(turned))) - set(partner.values()) - set(elsewhere.values()))
    out.extend(turned[k] for k in alone)
    if both:
        notes["objects with HBB and OBB"] += len(partner)
        notes["objects with an HBB alone"] += len(boxes) - len(partner) - len(elsewhere)
        notes["objects with an HBB alone, whose OBB lies elsewhere (kept in extra)"] += len(elsewhere)
        notes["objects with an OBB alone"] += len(alone)
        raw.notes.update(+notes)
    return tuple(out)


def match_boxes(a: list[Instance], b: list[Instance], min_iou: float = MIN_IOU) -> dict[int, int]:
    """Index in ``a`` -> index in ``b`` of the same object: one to one, same class, greatest total IoU of the HBBs."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    matched: dict[int, int] = {}
    for category in sorted({i.category for i in a} & {i.category for i in b}):
        rows = [k for k, i in enumerate(a) if i.category == category]
        columns = [k for k, i in enumerate(b) if i.category == category]
        iou = hbb_iou(np.array([a[k].hbb for k in rows]), np.array([hbb_of(b[k].corners) for k in columns]))
        iou[iou < min_iou] = 0.0
        for r, c in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
            if iou[r, c] > 0:
                matched[rows[int(r)]] = columns[int(c)]
    return matched


def _match_rest(
    boxes: list[Instance], turned: list[Instance], partner: dict[int, int], notes: Counter[str]
) -> tuple[dict[int, int], dict[int, int]]:
    """What :func:`match_boxes` left: all partners, and box -> OBB of the same object where the OBB was drawn in another place.

    First by place, whatever the class: the centre of one box lies in the other (a slanted bridge boxed with and without its banks, a ship
    of one pixel, two objects whose classes were exchanged in one of the files).  Then by class and number: both files count as many
    objects of every class, so a leftover pair is one object, but an OBB that lies apart from it tells nothing about its orientation.
    """
    from scipy.optimize import linear_sum_assignment

    rows = [k for k in range(len(boxes)) if k not in partner]
    taken = set(partner.values())
    columns = [k for k in range(len(turned)) if k not in taken]
    a, b = _hbbs(boxes, rows), _hbbs(turned, columns)
    near = _centres_inside(a, b) | _centres_inside(b, a).T
    score = np.where(near, hbb_iou(a, b) + 1e-6, 0.0)  # points have no IoU
    found: dict[int, int] = {}
    for r, c in zip(*linear_sum_assignment(score, maximize=True), strict=True):
        if score[r, c] > 0:
            k, m = rows[int(r)], columns[int(c)]
            found[k] = m
            same = boxes[k].category == turned[m].category
            notes[_LITTLE_OVERLAP if same else _OTHER_CLASS] += 1
    elsewhere: dict[int, int] = {}
    free = [m for m in columns if m not in set(found.values())]
    for k in rows:
        if k not in found and (match := next((m for m in free if turned[m].category == boxes[k].category), None)) is not None:
            elsewhere[k] = match
            free.remove(match)
    return {**partner, **found}, elsewhere


def _hbbs(instances: list[Instance], which: list[int]) -> np.ndarray:
    return np.array([hbb_of(instances[k].corners) for k in which], np.float64).reshape(-1, 4)


def _centres_inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M): whether the centre of a[n] lies in b[m], its border included."""
    centre = (a[:, None, :2] + a[:, None, 2:]) / 2
    return ((centre >= b[None, :, :2]) & (centre <= b[None, :, 2:])).all(axis=2)
