"""NWPU VHR-10 as it lies on disk.

``positive image set/NNN.jpg``, ``ground truth/NNN.txt`` with lines ``(x1,y1),(x2,y2),class`` (class 1 to 10, spaces in odd places,
blank lines), and optionally a COCO file with a polygon mask per object.  Masks are matched to the ground-truth boxes by IoU, one to one,
optimal over the picture, same class only; the OBB is the mask's minimum-area rectangle.  The ground truth decides what exists: an object
without a mask keeps its HBB alone, a mask without an object is counted and left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import CCDiffError
from ..geometry import hbb_iou, hbb_of, min_area_corners
from ..pictures import SUFFIXES
from ..scene import Instance, Scene
from .classes import VHR10, ClassMap, over
from .raw import (
    Faults,
    RawSet,
    UnknownClass,
    child,
    find_pictures,
    in_order,
    listed,
    missing_picture,
    number,
    parse_json,
    read_split_lists,
    read_text,
    text_lines,
)

PICTURES = "positive image set"
NEGATIVE = "negative image set"
LABELS = "ground truth"
MASKS = "instances.json"
MIN_IOU = 0.2
"""A mask whose HBB overlaps a ground-truth box less than this belongs to something else (the two were drawn by different people: tanks that
lean in the picture are boxed with and without their wall, and overlap by 0.3 to 0.5)."""
_NUMBER = r"\s*([-+0-9.eE]+)\s*"
_LINE = re.compile(rf"\s*\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)\s*,{_NUMBER}")


def is_vhr10(root: Path) -> bool:
    """Whether the folder looks like NWPU VHR-10."""
    return child(root, PICTURES).is_dir() and child(root, LABELS).is_dir()


def read_vhr10(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the folder; the split comes from ``splits/*.txt`` where they exist.

    Raises:
        CCDiffError: a broken line, an unknown class, a label file without its picture.
    """
    faults = faults or Faults()
    pictures = find_pictures([child(root, PICTURES)])
    labels = listed(child(root, LABELS), ".txt")
    if not labels:
        raise CCDiffError("no label files (*.txt)", where=root / LABELS)
    names = over(classes, lambda: ClassMap.frozen("vhr10"))
    raw = RawSet("vhr10", names.classes, [])
    masks = _read_masks(root / MASKS, names, faults) if (root / MASKS).is_file() else {}
    splits = read_split_lists(child(root, "splits"), [p.stem for p in labels], faults)
    for path in labels:
        with faults.leaving_out("label files"):
            picture = pictures.pop(path.stem, None)
            if splits and path.stem not in splits:
                raw.skipped["pictures in no split list"] += 1
                continue
            if picture is None:
                raise missing_picture(path.stem, where=path, looked=PICTURES)
            boxes = _read_boxes(path, names, raw, faults)
            instances = _with_masks(boxes, masks.pop(picture.name, []), raw)
            scene = Scene(picture.name, 0, 0, instances, split=splits.get(path.stem, ""), source=path.stem, path=str(picture))
            raw.scenes.append(scene)
    if pictures:
        raw.skipped["pictures without a label file"] += len(pictures)
    if negative := len(listed(child(root, NEGATIVE), *SUFFIXES)):
        raw.skipped["pictures of the negative image set, which show no object"] += negative
    if masks:
        raw.skipped["masks of pictures that are not in the set"] += sum(len(m) for m in masks.values())
    return raw


def _read_boxes(path: Path, names: ClassMap, raw: RawSet, faults: Faults) -> list[Instance]:
    found = []
    for line_number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            with faults.leaving_out("lines"):
                found.append(_read_box(line, names, raw, where=f"{path}:{line_number}"))
    return found


def _read_box(line: str, names: ClassMap, raw: RawSet, *, where: str) -> Instance:
    match = _LINE.fullmatch(line.rstrip())
    try:
        if match is None:
            raise ValueError
        x1, y1, x2, y2 = (float(v) for v in match.groups()[:4])
        class_number = int(match.group(5))
    except ValueError:
        raise CCDiffError(f"expected (x1,y1),(x2,y2),class, found {line.strip()[:60]!r}", where=where) from None
    if not 1 <= class_number <= len(VHR10):
        known = ", ".join(f"{k} {name}" for k, name in enumerate(VHR10, start=1))
        raise UnknownClass(f"unknown class {class_number}", where=where, fix=f"known classes: {known}")
    if not all(abs(v) <= 1e9 for v in (x1, y1, x2, y2)):
        raise CCDiffError(f"the box is not made of finite numbers of pixels: {line.strip()[:60]!r}", where=where)
    hbb = in_order(raw, (x1, y1, x2, y2), where=where)
    return Instance.from_hbb(names.name(VHR10.names[class_number - 1], where=where), hbb)


def _read_masks(path: Path, classes: ClassMap, faults: Faults) -> dict[str, list[tuple[str, tuple[tuple[float, ...], ...]]]]:
    """Picture name -> (class, polygons) of its masks."""
    coco = parse_json(read_text(path), where=path)
    masks: dict[str, list[tuple[str, tuple[tuple[float, ...], ...]]]] = {}
    try:
        names = {int(c["id"]): classes.name(str(c["name"]), where=f"{path}: categories") for c in coco["categories"]}
        files = {int(image["id"]): str(image["file_name"]) for image in coco["images"]}
        for annotation in coco["annotations"]:
            where = f"{path}: annotation {annotation.get('id')}"
            with faults.leaving_out("masks"):
                outlines = [p for p in annotation["segmentation"] if len(p) >= 6 and len(p) % 2 == 0]
                polygons = tuple(tuple(number(v, where=where, what="segmentation") for v in p) for p in outlines)
                if polygons:
                    masks.setdefault(files[int(annotation["image_id"])], []).append((names[int(annotation["category_id"])], polygons))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CCDiffError(f"not a COCO file with polygon masks: {type(error).__name__}: {error}", where=path) from error
    return masks


def _with_masks(boxes: list[Instance], masks: list[tuple[str, tuple[tuple[float, ...], ...]]], raw: RawSet) -> tuple[Instance, ...]:
    from scipy.optimize import linear_sum_assignment  # slow to import

    matched: dict[int, int] = {}
    if boxes and masks:
        iou = hbb_iou(np.array([b.hbb for b in boxes]), np.array([hbb_of([v for p in m[1] for v in p]) for m in masks]))
        same = np.array([[b.category == m[0] for m in masks] for b in boxes])
        iou = np.where(same & (iou >= MIN_IOU), iou, 0.0)
        rows, columns = linear_sum_assignment(iou, maximize=True)
        matched = {int(r): int(c) for r, c in zip(rows, columns, strict=True) if iou[r, c] > 0}
    out = []
    for k, box in enumerate(boxes):
        if k not in matched:
            out.append(box)
            continue
        polygons = masks[matched[k]][1]
        corners = min_area_corners([v for p in polygons for v in p])
        out.append(Instance.from_corners(box.category, corners, box.hbb, mask=polygons))
    raw.notes["objects with a mask"] += len(matched)
    if len(boxes) > len(matched):
        raw.notes["objects without a mask"] += len(boxes) - len(matched)
    if len(masks) > len(matched):
        raw.skipped["masks without an object"] += len(masks) - len(matched)
    return tuple(out)
