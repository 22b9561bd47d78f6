"""labelme and X-AnyLabeling: one JSON file a picture, beside it or in another folder.

Followed: labelme's ``label_file.py`` and its examples (5.x), the user guide of X-AnyLabeling (3.x).  A file has ``imagePath``,
``imageWidth``, ``imageHeight``, ``flags`` and ``shapes``, each with ``label``, ``points``, ``shape_type`` ("polygon" where it has none),
``flags``, ``group_id``, ``description``; X-AnyLabeling adds ``rotation``, ``difficult``, ``attributes`` and ``score``.

* ``rectangle``: two opposite corners in any order, or four; an HBB.  ``rotation``: four corners as they are turned, the OBB; ``direction``
  (radians, what the program shows) repeats them and goes to ``extra``.  ``polygon``: an outline (see ``common``).  ``mask``: the bitmap
  that stands in the shape, at its box.
* ``circle``: its centre and a point on it; its square as HBB, 32 points of it as mask.
* ``line``, ``linestrip``, ``point``, ``points`` and every other kind are left out, counted by kind.
* An object is difficult where ``difficult``, or a flag or attribute of that name, says so.
* The class list is ``classes.txt`` or ``labels.txt`` where the folder has one (labelme's ``__ignore__`` and ``_background_`` are no
  classes), else the labels found, sorted.
* NOTE: ``imageData`` is the picture itself as text, megabytes of it: dropped unread.  The picture is looked for by ``imagePath``, else by
  the file's own name (see ``common``).
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CCDiffError
from ..files import is_file
from ..geometry import hbb_of
from ..pictures import opened
from ..scene import ClassList, Instance
from .classes import ClassMap, clean_name, over, read_class_file
from .common import (
    MAX_MASK_PIXELS,
    Labelled,
    add_scenes,
    declared,
    ellipse_outline,
    of_bitmap,
    of_outline,
    plain_value,
    read_tail,
    split_of_folders,
)
from .raw import (
    Faults,
    MissingPicture,
    PictureFinder,
    RawSet,
    files_below,
    first_files,
    flag,
    number,
    parse_json,
    read_head,
    read_text,
    text_lines,
)

CLASSES = ("classes.txt", "labels.txt")
NO_CLASSES = ("__ignore__", "_background_")
_KEYS = (b'"shapes"', b'"imagePath"', b'"imageData"', b'"imageHeight"', b'"imageWidth"')
STRAIGHT = 0.5
"""Pixels by which the corners of a four-cornered rectangle may lie off its HBB's."""


def is_labelme(root: Path) -> bool:
    """Whether a first JSON file below the folder (or the file itself) has three of the format's own keys in its first and last 100 kB."""
    ends = (read_head(path, 100_000) + read_tail(path, 100_000) for path in _files(root, 5))
    return any(sum(key in text for key in _KEYS) >= 3 for text in ends)


def read_labelme(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read every file below the folder, or the one file.

    Raises:
        CCDiffError: a file or shape that is not as above, an unknown class, a picture that is missing.
    """
    faults = faults or Faults()
    files, folder = _files(root), root if root.is_dir() else root.parent
    if not files:
        raise CCDiffError("no annotation files (*.json with shapes and imagePath)", where=root)
    loaded: dict[Path, dict[str, Any]] = {}
    for path in files:
        with faults.leaving_out("annotation files"):
            loaded[path] = _load(path)
    broken = [path for path in files if path not in loaded]
    names = over(classes, lambda: _class_map(folder, loaded, faults))
    raw = RawSet("labelme", names.classes, [])
    pictures = PictureFinder(folder, by_name=True)
    for path in broken:
        pictures.forget(path.stem, labels=path)
    labelled = []
    for path, entry in loaded.items():
        with faults.leaving_out("pictures"):
            picture = _picture(pictures, path, entry)
            size = declared(entry.get("imageWidth"), entry.get("imageHeight"))
            instances = []
            _note_groups(entry["shapes"], raw, path)
            for k, shape in enumerate(entry["shapes"], start=1):
                with faults.leaving_out("shapes"):
                    found = _object(shape, names, raw, where=f"{path}: shape {k}")
                    instances += [found] if found is not None else []
            flags = _true_flags(entry.get("flags"))
            provenance = {"flags": flags} if flags else {}
            labelled.append(Labelled(picture, tuple(instances), size, split_of_folders(path, folder), provenance=provenance))
    add_scenes(raw, folder, labelled)
    if root.is_dir():
        raw.skipped["pictures without annotations"] += pictures.left()
    raw.skipped, raw.notes = +raw.skipped, +raw.notes
    return raw


def _note_groups(shapes: Sequence[Any], raw: RawSet, path: Path) -> None:
    """Shapes of one label and group are parts of one object to some programs (labelme2coco), and objects of their own to others."""
    groups = Counter((str(s.get("label")), str(s["group_id"])) for s in shapes if isinstance(s, Mapping) and s.get("group_id") is not None)
    for (label, group), count in groups.items():
        if count > 1:
            raw.note("groups of shapes of one label, each kept as an object of its own", str(path), f"{count} of {label}, group {group}")


def _files(root: Path, first: int | None = None) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" else []
    return files_below(root, (".json",)) if first is None else first_files(root, (".json",), first)


def _load(path: Path) -> dict[str, Any]:
    entry = parse_json(read_text(path), where=path)
    if not isinstance(entry, dict) or not isinstance(entry.get("shapes"), list):
        raise CCDiffError("expected an object with shapes and imagePath", where=path, fix="take other JSON files out of the folder")
    entry["imageData"] = bool(entry.get("imageData"))
    return entry


def _picture(pictures: PictureFinder, path: Path, entry: Mapping[str, Any]) -> Path:
    name = entry.get("imagePath")
    if isinstance(name, str) and name.strip():
        try:
            return pictures.take(name.strip(), labels=path, where=str(path))
        except MissingPicture:
            pass
    try:
        return pictures.take(path.stem, labels=path, where=str(path))
    except MissingPicture as error:
        if entry["imageData"]:
            fix = "the file holds a copy of it (imageData), which labelme_export_json writes out"
            raise MissingPicture(error.what, where=error.where, fix=fix) from error
        raise


def _class_map(root: Path, loaded: Mapping[Path, Mapping[str, Any]], faults: Faults) -> ClassMap:
    if is_file(root / CLASSES[0]):
        return read_class_file(root / CLASSES[0])
    if is_file(root / CLASSES[1]):
        found = [line.strip() for line in text_lines(root / CLASSES[1])]
        listed = [clean_name(name, where=str(root / CLASSES[1])) for name in found if name and name not in NO_CLASSES]
    else:
        labels = set()
        for path, entry in loaded.items():
            for k, shape in enumerate(entry["shapes"], start=1):
                if isinstance(shape, Mapping) and shape.get("label") not in NO_CLASSES and _kind(shape) in _KINDS:
                    with faults.leaving_out("class names"):
                        labels.add(clean_name(shape.get("label"), where=f"{path}: shape {k}"))
        listed = sorted(labels)
    if not listed:
        raise CCDiffError("no object has a class", where=root, fix=f"name the classes in {CLASSES[0]}, one a line, or with --classes")
    return ClassMap.of(ClassList(tuple(dict.fromkeys(listed))))


# -------------------------------------------------------------------------------------------------------------------------- shapes


def _kind(shape: Mapping[str, Any]) -> str:
    return str(shape.get("shape_type") or "polygon").lower()


def _object(shape: Any, names: ClassMap, raw: RawSet, *, where: str) -> Instance | None:
    if not isinstance(shape, Mapping):
        raise CCDiffError(f"expected an object with label and points, found {type(shape).__name__}", where=where)
    kind, label = _kind(shape), shape.get("label")
    if kind not in _KINDS:
        raw.skipped[f"shapes of the kind {kind[:40]!r}, which is no box or outline"] += 1
        return None
    if label in NO_CLASSES and not names.knows(str(label)):
        raw.skipped[f"shapes labelled {label}, which is no class"] += 1
        return None
    category = names.name(clean_name(label, where=where), where=where)
    points = _points(shape.get("points"), where)
    more = {"difficult": _difficult(shape, where), "extra": _extra(shape)}
    return _KINDS[kind](category, points, shape, raw, where, more)


def _points(points: Any, where: str) -> list[float]:
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise CCDiffError(f"points: expected [[x, y], ...], found {points!r:.60}", where=where)
    return [number(v, where=where, what="points") for p in points for v in p]


def _rectangle(category: str, points: Sequence[float], shape: Mapping[str, Any], raw: RawSet, where: str, more: Any) -> Instance:
    if len(points) not in (4, 8):
        raise CCDiffError(f"a rectangle of {len(points) // 2} points, expected two opposite corners or all four", where=where)
    x1, y1, x2, y2 = hbb = hbb_of(points)
    straight = all(min(abs(x - x1), abs(x - x2)) <= STRAIGHT for x in points[0::2]) and all(
        min(abs(y - y1), abs(y - y2)) <= STRAIGHT for y in points[1::2]
    )
    return Instance.from_hbb(category, hbb, **more) if straight else Instance.from_corners(category, points, **more)


def _turned(category: str, points: Sequence[float], shape: Mapping[str, Any], raw: RawSet, where: str, more: Any) -> Instance:
    if len(points) != 8:
        raise CCDiffError(f"a rotation of {len(points) // 2} points, expected its four corners", where=where)
    return Instance.from_corners(category, points, **more)


def _polygon(category: str, points: Sequence[float], shape: Mapping[str, Any], raw: RawSet, where: str, more: Any) -> Instance:
    return of_outline(category, points, raw, where=where, **more)


def _circle(category: str, points: Sequence[float], shape: Mapping[str, Any], raw: RawSet, where: str, more: Any) -> Instance:
    if len(points) != 4:
        raise CCDiffError(f"a circle of {len(points) // 2} points, expected its centre and a point on it", where=where)
    cx, cy, x, y = points
    r = math.hypot(x - cx, y - cy)
    return Instance.from_hbb(category, (cx - r, cy - r, cx + r, cy + r), mask=(ellipse_outline((cx, cy), (r, r)),), **more)


def _mask(category: str, points: Sequence[float], shape: Mapping[str, Any], raw: RawSet, where: str, more: Any) -> Instance:
    """labelme's mask: a picture of its box, whose two corners are the first and last pixel of it."""
    if len(points) != 4:
        raise CCDiffError(f"a mask of {len(points) // 2} points, expected two corners of its box", where=where)
    x1, y1, x2, y2 = hbb_of(points)
    try:
        data = base64.b64decode(str(shape.get("mask") or ""), validate=True)
        with opened(io.BytesIO(data)) as image:
            if abs(image.width - (x2 - x1)) > 2 or abs(image.height - (y2 - y1)) > 2:  # says how much is decoded
                raise CCDiffError(f"a mask of {image.width} x {image.height} pixels in a box of {x2 - x1:g} x {y2 - y1:g}", where=where)
            if image.width * image.height > MAX_MASK_PIXELS:
                raise CCDiffError(f"a mask of {image.width} x {image.height} pixels", where=where, fix="draw it as a polygon")
            bitmap = np.asarray(image.convert("L")) > 0
    except (binascii.Error, ValueError, OSError, SyntaxError) as error:
        raise CCDiffError(f"mask: expected a picture as base64, found {type(error).__name__}", where=where) from error
    return of_bitmap(category, bitmap, (round(x1), round(y1)), where=where, **more)


_KINDS = {"rectangle": _rectangle, "rotation": _turned, "polygon": _polygon, "circle": _circle, "mask": _mask}


def _difficult(shape: Mapping[str, Any], where: str) -> bool:
    found = [shape.get("difficult")]
    for group in (shape.get("flags"), shape.get("attributes")):
        if isinstance(group, Mapping):
            found += [value for key, value in group.items() if str(key).strip().lower() == "difficult"]
    return any(flag(value, what="difficult", where=where) for value in found)


def _true_flags(flags: Any) -> list[str]:
    return sorted(str(key) for key, value in flags.items() if value is True) if isinstance(flags, Mapping) else []


def _extra(shape: Mapping[str, Any]) -> dict[str, Any]:
    extra = {key: plain_value(shape.get(key)) for key in ("description", "group_id", "score", "direction", "attributes")}
    extra["flags"] = [name for name in _true_flags(shape.get("flags")) if name.strip().lower() != "difficult"]
    return {key: value for key, value in extra.items() if value not in (None, "", [], {})}
