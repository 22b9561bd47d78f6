"""Any COCO file with its pictures: boxes, polygons, RLE masks.

The OBB is the ``segmentation`` itself where it is one ring of four corners, else the minimum-area rectangle of the mask; an annotation
without a mask has its HBB alone.  A group (``iscrowd`` 1) becomes a difficult object and is counted.  One file a split
(``instances_train.json``, ``annotations/val.json``, ...) or one file in all.  Our own sets and exports are read whole: beside the OBB
(``obb`` where the segmentation is the mask) ``oriented``, ``difficult``, ``mask`` and ``extra`` of an object, ``split``, ``source``,
``caption`` and ``provenance`` of a picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..dataset import SPLITS
from ..errors import CCDiffError
from ..files import inside
from ..geometry import hbb_of, min_area_corners
from ..pictures import SUFFIXES
from ..scene import ClassList, Instance, Scene
from .classes import ClassMap, clean_name, over
from .raw import Faults, RawSet, is_file, missing_picture, number, parse_json, read_split_lists, read_text

_SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "minival": "val", "test": "test"}
MAX_MASK_SIDE = 20_000
"""RLE masks larger than this are refused: their size comes from the file."""
MAX_MASK_PIXELS = 100_000_000
"""The most that is unpacked of one RLE mask: its columns, from the first to the last that the object touches."""


def is_coco(root: Path) -> bool:
    """Whether the path is a COCO file or a folder with one."""
    return bool(_files(root))


def read_coco(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read a COCO file, or all COCO files of a folder; pictures are looked for beside the file and in the usual folders.

    Raises:
        CCDiffError: not COCO, unknown ids, boxes that are not finite, repeated ids, a picture that is missing.
    """
    faults = faults or Faults()
    files = _files(root)
    if not files:
        raise CCDiffError("no COCO file (a JSON object with images, annotations and categories)", where=root)
    folder = root if root.is_dir() else root.parent
    loaded = [(path, parse_json(read_text(path), where=path)) for path in files]
    names = over(classes, lambda: ClassMap.of(_class_list(loaded)))
    raw = RawSet("coco", names.classes, [])
    finder = _PictureFinder(folder, files)
    claimed: dict[str, Path] = {}
    for path, coco in loaded:
        here: set[str] = set()
        for scene in _read_one(path, coco, names, finder, raw, faults, split=_split_of_name(path) if len(loaded) > 1 else ""):
            if (other := claimed.setdefault(str(scene.path), path)) is not path or str(scene.path) in here:
                what = f"stands in {other.name} too" if other is not path else "stands in the file twice"
                raise CCDiffError(f"the picture {scene.file_name} {what}", where=path, fix="keep it once")
            here.add(str(scene.path))
            raw.scenes.append(scene)
    raw.notes = +raw.notes  # without the zeros
    lists = folder / "splits"
    if lists.is_dir() and not any(s.split for s in raw.scenes):
        splits = read_split_lists(lists, [_stem(s.file_name) for s in raw.scenes])
        if splits:
            raw.skipped["pictures in no split list"] += sum(_stem(s.file_name) not in splits for s in raw.scenes)
            raw.skipped = +raw.skipped
            raw.scenes = [s.replace(split=splits[_stem(s.file_name)]) for s in raw.scenes if _stem(s.file_name) in splits]
    return raw


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix == ".json" else []
    if not root.is_dir():
        return []
    found = sorted(root.glob("*.json")) + sorted(root.glob("annotations/*.json"))
    return [p for p in found if _looks_like_coco(p)]


def _looks_like_coco(path: Path) -> bool:
    """By its first and last 200 kB, so that a folder is recognised without reading all of it."""
    if not is_file(path):  # opening a pipe would wait for ever
        return False
    try:
        with open(path, "rb") as stream:
            text = stream.read(200_000)
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 200_000))
            text += stream.read()
    except OSError:
        return False
    return text.lstrip().startswith(b"{") and sum(f'"{key}"'.encode() in text for key in ("images", "annotations", "categories")) >= 2


def _split_of_name(path: Path) -> str:
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((_SPLIT_WORDS[w] for w in words if w in _SPLIT_WORDS), "")


def _class_list(loaded: Sequence[tuple[Path, Any]]) -> ClassList:
    """The categories of the files, by id; they must agree."""
    by_id: dict[int, str] = {}
    for path, coco in loaded:
        try:
            for category in coco["categories"]:
                name = clean_name(category["name"], where=f"{path}: category {category['id']}")
                if by_id.setdefault(int(category["id"]), name) != name:
                    raise CCDiffError(
                        f"category {category['id']} is {name!r} here and {by_id[int(category['id'])]!r} in another file", where=path
                    )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CCDiffError(f"not a COCO file: categories: {type(error).__name__}: {error}", where=path) from error
    if not by_id:
        raise CCDiffError("the file names no categories", where=loaded[0][0])
    names = [by_id[k] for k in sorted(by_id)]
    return ClassList(tuple(dict.fromkeys(names)))


class _PictureFinder:
    """Where a COCO file's pictures lie: beside it, in images/, in images/SPLIT/, or wherever one file below the folder has the name."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        self.roots = [folder, folder / "images", *sorted({p.parent for p in files})]
        self._everything: dict[str, list[Path]] | None = None

    def find(self, name: str, *, where: str, split: str) -> Path:
        inside(self.folder, name, where=where)
        tried = [*self.roots, self.folder / split, self.folder / "images" / split] if split else self.roots
        for root in tried:
            if is_file(root / name):
                return root / name
        if self._everything is None:
            self._everything = {}
            for path in sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES):
                self._everything.setdefault(path.name, []).append(path)
        found = self._everything.get(Path(name).name, [])
        if len(found) == 1:
            return found[0]
        if not found:
            raise missing_picture(name, where=where, looked=str(self.folder))
        fix = f"put the pictures into {self.folder / 'images'}"
        raise CCDiffError(f"the picture {name} lies in {len(found)} places below the folder", where=where, fix=fix)


def _read_one(path: Path, coco: Any, names: ClassMap, finder: _PictureFinder, raw: RawSet, faults: Faults, *, split: str) -> list[Scene]:
    instances: dict[int, list[Instance]] = {}
    images: dict[int, Mapping[str, Any]] = {}
    try:
        categories = {
            int(c["id"]): names.name(" ".join(str(c["name"]).split()), where=f"{path}: category {c['id']}") for c in coco["categories"]
        }
        for image in coco["images"]:
            if int(image["id"]) in images:
                raise CCDiffError(f"two pictures have the id {image['id']}", where=path)
            images[int(image["id"])] = image
            instances[int(image["id"])] = []
        seen: set[Any] = set()
        for k, annotation in enumerate(coco["annotations"]):
            where = f"{path}: annotation {annotation.get('id', f'number {k + 1}')}"
            if annotation.get("id") is not None:
                raw.notes["annotations whose id repeats (all kept)"] += annotation["id"] in seen
                seen.add(annotation["id"])
            with faults.leaving_out("annotations"):
                image_id, category = int(annotation["image_id"]), int(annotation["category_id"])
                if image_id not in images:
                    raise CCDiffError(f"no picture has the id {image_id}", where=where)
                if category not in categories:
                    known = ", ".join(f"{i} {n}" for i, n in categories.items())
                    raise CCDiffError(f"unknown category {category}", where=where, fix=f"known: {known}")
                instance = _instance(annotation, categories[category], raw, where=where)
                if instance is not None:
                    instances[image_id].append(instance)
        scenes = []
        for image_id in sorted(images, key=lambda k: (str(images[k]["file_name"]), k)):
            image = images[image_id]
            name = str(image["file_name"])
            own = str(image.get("split", "")) or split
            if own and own not in SPLITS:
                raise CCDiffError(f"unknown split {own!r}", where=f"{path}: picture {name}", fix=f"known splits: {', '.join(SPLITS)}")
            with faults.leaving_out("pictures"):
                found = finder.find(name, where=str(path), split=own)
                size = [int(image.get(k) or 0) for k in ("width", "height")]
                provenance = _object_of(image, "provenance", where=f"{path}: picture {name}")
                scenes.append(
                    Scene(
                        name,
                        size[0],
                        size[1],
                        tuple(instances[image_id]),
                        own,
                        str(image.get("source") or _stem(name)),
                        str(image.get("caption", "")),
                        str(found),
                        provenance,
                    )
                )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CCDiffError(f"not a COCO file: {type(error).__name__}: {error}", where=path) from error
    return scenes


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _instance(annotation: Mapping[str, Any], category: str, raw: RawSet, *, where: str) -> Instance | None:
    outlines = _outlines(annotation.get("segmentation"), where=where)
    mask = _rings(annotation.get("mask", []), "mask", where=where)
    four = isinstance(annotation.get("segmentation"), list) and len(outlines) == 1 and len(outlines[0]) == 8  # not of an RLE
    corners = outlines[0] if four else None
    if annotation.get("obb") is not None:  # as our exporter writes it; the segmentation is then the mask, or the OBB once more
        corners = _row(annotation["obb"], 8, "obb: expected x1 y1 ... x4 y4", where=where)
        mask = mask or (outlines if outlines != (corners,) else ())
    elif corners is None:
        mask = mask or outlines
    if annotation.get("bbox") is not None:
        x, y, w, h = _row(annotation["bbox"], 4, "bbox: expected x, y, width, height", where=where)
        hbb = (x, y, x + w, y + h)
    elif outlines or corners is not None:
        hbb = hbb_of(corners if corners is not None else [v for p in outlines for v in p])
    else:
        raw.skipped["annotations without a box or a mask"] += 1
        return None
    difficult = bool(annotation.get("difficult", 0)) or bool(annotation.get("iscrowd", 0))
    if annotation.get("iscrowd", 0):
        raw.notes["groups (iscrowd) kept as difficult"] += 1
    extra = _object_of(annotation, "extra", where=where)
    if (corners is None and not outlines) or not annotation.get("oriented", 1):
        return Instance.from_hbb(category, hbb, difficult=difficult, mask=mask, extra=extra)
    if corners is None:
        corners = min_area_corners([v for p in outlines for v in p])
    return Instance.from_corners(category, corners, hbb, difficult=difficult, mask=mask, extra=extra)


def _object_of(entry: Mapping[str, Any], key: str, *, where: str) -> Mapping[str, Any]:
    """What one of our own sets says beside a box or a picture; it is written to JSON again, so it must not hold NaN."""
    value = entry.get(key, {})
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise CCDiffError(f"{key}: {error}", where=where) from error
    if not isinstance(value, Mapping):
        raise CCDiffError(f"{key}: expected an object, found {type(value).__name__}", where=where)
    return value


def _row(values: Any, length: int, expected: str, *, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != length:
        fix = "give oriented boxes as a segmentation of 4 corners" if length == 4 else None
        raise CCDiffError(f"{expected}, found {values!r:.60}", where=where, fix=fix)
    return tuple(number(v, where=where, what=expected.partition(":")[0]) for v in values)


def _outlines(segmentation: Any, *, where: str) -> tuple[tuple[float, ...], ...]:
    """Outlines of a segmentation: polygons or an RLE."""
    if isinstance(segmentation, Mapping):
        return _outlines_of_rle(segmentation, where=where) if segmentation else ()
    return _rings(segmentation or [], "segmentation", where=where)


def _rings(polygons: Any, what: str, *, where: str) -> tuple[tuple[float, ...], ...]:
    """Polygons with at least three corners."""
    if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
        raise CCDiffError(f"{what}: expected polygons or an RLE, found {type(polygons).__name__}", where=where)
    rings = []
    for points in polygons:
        ring = tuple(number(v, where=where, what=what) for v in points)
        if len(ring) % 2:
            raise CCDiffError(f"{what}: an odd number of coordinates ({len(ring)})", where=where)
        if len(ring) >= 6:
            rings.append(ring)
    return tuple(rings)


def _outlines_of_rle(segmentation: Mapping[str, Any], *, where: str) -> tuple[tuple[float, ...], ...]:
    height, width = (int(v) for v in segmentation["size"])
    if not (0 < height <= MAX_MASK_SIDE and 0 < width <= MAX_MASK_SIDE):
        raise CCDiffError(f"RLE mask of {width} x {height} pixels", where=where)
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _runs(str(counts), height * width, where=where)
    if any(not isinstance(c, int) or c < 0 for c in runs) or sum(runs) != height * width:
        raise CCDiffError("RLE mask: its runs do not add up to its size", where=where)
    # Only the columns that the mask touches are unpacked: masks are stored column by column, and a scene has 20,000 of them.
    ends = np.cumsum(np.asarray(runs, np.int64))
    ones = ends[1::2] > ends[0::2][: len(ends[1::2])]
    if not ones.any():
        return ()
    left = int(ends[0::2][: len(ones)][ones][0]) // height
    right = (int(ends[1::2][ones][-1]) - 1) // height + 1
    if (right - left) * height > MAX_MASK_PIXELS:
        raise CCDiffError(
            f"RLE mask whose object covers {right - left} columns of {height} pixels", where=where, fix="store it as polygons"
        )
    steps = np.zeros((right - left) * height + 1, np.int8)
    np.add.at(steps, np.clip(ends - left * height, 0, len(steps) - 1), np.where(np.arange(len(ends)) % 2, -1, 1).astype(np.int8))
    bitmap = np.cumsum(steps[:-1], dtype=np.int8).astype(np.uint8).reshape(right - left, height).T
    rings, _ = cv2.findContours(np.ascontiguousarray(bitmap), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, 0))
    # Contours run through pixel centres; half a pixel outwards would be right, and is less than annotators' accuracy.
    found = [tuple(float(v) + 0.5 for v in ring.ravel()) for ring in rings if len(ring) >= 3]
    return tuple(sorted(found, key=lambda p: (-len(p), p)))


def _runs(counts: str, area: int, *, where: str) -> list[int]:
    """The runs of a compressed RLE. Decoded here because the C library believes what it reads and writes past its memory."""
    runs: list[int] = []
    k = 0
    while k < len(counts):
        value, shift, more = 0, 0, True
        while more:
            if k >= len(counts) or not 48 <= ord(counts[k]) < 112 or shift > 60:
                raise CCDiffError("RLE mask: broken text", where=where)
            c = ord(counts[k]) - 48
            value |= (c & 0x1F) << shift
            more = bool(c & 0x20)
            k, shift = k + 1, shift + 5
            if not more and c & 0x10:
                value |= -1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if not 0 <= value <= area:
            raise CCDiffError("RLE mask: its runs do not add up to its size", where=where)
        runs.append(value)
    return runs
