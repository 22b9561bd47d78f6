"""CVAT's own XML, version 1.1: "CVAT for images" and "CVAT for video".

``annotations.xml`` (or any XML of that kind) of a task, a job or a project, at the top or one folder a task; pictures anywhere below the
folder (``images/``, ``images/SUBSET/``).  Followed: "XML annotation format" of CVAT's documentation.

* ``box``: an HBB; with ``rotation`` (degrees, clockwise on the screen, about the box's centre) an OBB.  ``polygon``: an outline (see
  ``common``).  ``ellipse``: the rectangle about its axes as OBB, 32 points of it as mask.  ``mask``: its bitmap, whose ``rle`` counts
  row by row, unset pixels first, from ``left``, ``top``.
* ``polyline``, ``points``, ``cuboid``, ``skeleton`` and ``tag`` are left out, counted by kind, and so are shapes with ``outside="1"``.
  Of a video's tracks every frame that was exported (``frame_000123.png``) is a picture.
* An object is difficult where an attribute of the label called ``difficult`` says so, a group (``iscrowd``) as well; ``occluded``, the
  group's number and the other attributes go to ``extra``.
* The class list is that of the labels in ``<meta>``, in their order, of several files one after the other; else the names found, sorted.
* The split is the picture's subset (``Train``, ``Validation``, ``Test``), the task's where it has none; other names are counted and name
  no split.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ..errors import CCDiffError
from ..geometry import le90_to_corners
from ..scene import ClassList, Instance
from .classes import ClassMap, clean_name, over
from .common import MAX_MASK_PIXELS, Labelled, add_scenes, declared, ellipse_outline, of_bitmap, of_outline
from .raw import (
    SPLIT_WORDS,
    Faults,
    PictureFinder,
    RawSet,
    files_below,
    first_files,
    flag,
    in_order,
    note_turn,
    number,
    read_head,
    turned_box,
)
from .voc import parse_xml

MAX_XML_BYTES = 1_000_000_000
_BEGINS = re.compile(rb"<annotations[\s>].*?<(version|meta|image|track)[\s>/]", re.DOTALL)
_SHAPES = ("box", "polygon", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton", "tag")
_GROUPS = ("iscrowd", "is_crowd", "crowd")


def is_cvat(root: Path) -> bool:
    """Whether one of the first XML files below the folder (or the file itself) begins as CVAT's."""
    first = [root] if root.is_file() else first_files(root, (".xml",), 5)
    return any(path.suffix.lower() == ".xml" and _BEGINS.search(read_head(path, 8192)) for path in first)


def read_cvat(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read a file, or all files of a folder.

    Raises:
        CCDiffError: broken XML (with its line), another kind of XML, an unknown label, a shape that is not finite numbers, a picture that
            is missing or stands in two files.
    """
    faults = faults or Faults()
    files = _files(root)
    if not files:
        raise CCDiffError("no annotation file (annotations.xml)", where=root)
    trees: dict[Path, Element] = {}
    for path in files:
        with faults.leaving_out("annotation files"):
            trees[path] = _tree(path)
    names = over(classes, lambda: _class_map(root, trees))
    raw = RawSet("cvat", names.classes, [])
    folder = root if root.is_dir() else root.parent
    pictures = PictureFinder(folder, by_name=True)
    labelled = []
    for path, tree in trees.items():
        for entry in _images(tree, path):
            with faults.leaving_out("pictures"):
                where = f"{path}: image {entry.get('name', '')[:100]!r}"
                # its number is part of the key, so that a name that stands there twice is found out
                picture = pictures.take(_picture_name(entry, where), labels=path, where=f"{where}, id {entry.get('id', '')[:20]}")
                instances = []
                for k, shape in enumerate((e for e in entry if e.tag in _SHAPES), start=1):
                    with faults.leaving_out("shapes"):
                        found = _object(shape, names, raw, where=f"{where}, shape {k}")
                        instances += [found] if found is not None else []
                size = declared(entry.get("width"), entry.get("height"))
                labelled.append(Labelled(picture, tuple(instances), size, _split(entry, tree, raw)))
    add_scenes(raw, folder, labelled)
    raw.skipped["pictures without annotations"] += pictures.left()
    raw.skipped, raw.notes = +raw.skipped, +raw.notes
    return raw


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".xml" else []
    found = files_below(root, (".xml",)) if root.is_dir() else []
    return [path for path in found if _BEGINS.search(read_head(path, 8192))] or [path for path in found if path.name == "annotations.xml"]


def _tree(path: Path) -> Element:
    tree = parse_xml(path, MAX_XML_BYTES)
    if tree.tag != "annotations":
        raise CCDiffError(f"expected the element <annotations>, found <{tree.tag[:60]}>", where=path)
    return tree


def _class_map(root: Path, trees: Mapping[Path, Element]) -> ClassMap:
    """The labels of ``<meta>``, without the parts of a skeleton (they name their ``<parent>``); else the names of the shapes."""
    told = [
        clean_name(label.findtext("name"), where=f"{path}: <meta>")
        for path, tree in trees.items()
        for meta in tree.iterfind("meta")
        for label in meta.iter("label")
        if label.find("parent") is None and label.find("name") is not None
    ]
    found = told or sorted({" ".join((e.get("label") or "").split()) for tree in trees.values() for e in tree.iter() if e.tag in _SHAPES})
    names = tuple(dict.fromkeys(name for name in found if name))
    if not names:
        raise CCDiffError("no label in <meta> and no object", where=root, fix="name the classes with --classes")
    return ClassMap.of(ClassList(names))


def _images(tree: Element, path: Path) -> Iterator[Element]:
    """The ``<image>`` elements, and one made of every frame of a video's ``<track>`` elements."""
    yield from tree.iterfind("image")
    frames: dict[str, Element] = {}
    for track in tree.iterfind("track"):
        for shape in track:
            frame = shape.get("frame", "")
            entry = frames.setdefault(frame, Element("image", {"frame": frame, "id": frame}))
            shape.attrib.setdefault("label", track.get("label", ""))
            entry.append(shape)
    yield from (frames[frame] for frame in sorted(frames, key=lambda text: (len(text), text)))


def _picture_name(entry: Element, where: str) -> str:
    if (name := entry.get("name")) is not None:
        return name
    frame = number(entry.get("frame"), where=where, what="frame")
    if frame != int(frame) or frame < 0:
        raise CCDiffError(f"frame: expected a whole number, found {frame:g}", where=where)
    return f"frame_{int(frame):06d}"


def _split(entry: Element, tree: Element, raw: RawSet) -> str:
    subset = entry.get("subset") or tree.findtext("meta/task/subset") or tree.findtext("meta/job/subset") or ""
    word = " ".join(subset.split()).lower()
    if word not in SPLIT_WORDS and word not in ("", "default"):
        raw.notes[f"pictures of the subset {subset[:40]!r}, which names no split"] += 1
    return SPLIT_WORDS.get(word, "")


# -------------------------------------------------------------------------------------------------------------------------- shapes


def _object(shape: Element, names: ClassMap, raw: RawSet, *, where: str) -> Instance | None:
    if shape.tag not in _KINDS:
        raw.skipped[f"shapes of the kind {shape.tag!r}, which is no box or outline"] += 1
        return None
    if flag(shape.get("outside"), what="outside", where=where):
        raw.skipped["shapes outside their picture, as the file says"] += 1
        return None
    category = names.name(" ".join((shape.get("label") or "").split()), where=where)
    difficult = False
    extra: dict[str, Any] = {}
    attributes = {" ".join((e.get("name") or "").split()): " ".join((e.text or "").split()) for e in shape.iterfind("attribute")}
    for name in list(attributes):
        if name.lower() == "difficult":
            difficult |= flag(attributes.pop(name), what=f"attribute {name}", where=where)
        elif name.lower() in _GROUPS and flag(attributes.pop(name), what=f"attribute {name}", where=where):
            difficult = True
            raw.notes["groups (iscrowd) kept as difficult"] += 1
    if attributes:
        extra["attributes"] = attributes
    if flag(shape.get("occluded"), what="occluded", where=where):
        extra["occluded"] = True
    if shape.get("group_id"):
        extra["group_id"] = shape.get("group_id")
    return _KINDS[shape.tag](category, shape, raw, where, {"difficult": difficult, "extra": extra})


def _numbers(shape: Element, *keys: str, where: str) -> list[float]:
    return [number((shape.get(key) or "").strip(), where=where, what=key) for key in keys]


def _rotation(shape: Element, where: str) -> float:
    """Degrees, clockwise on the screen."""
    return number((shape.get("rotation") or "0").strip(), where=where, what="rotation") % 360


def _box(category: str, shape: Element, raw: RawSet, where: str, more: dict[str, Any]) -> Instance:
    x1, y1, x2, y2 = _numbers(shape, "xtl", "ytl", "xbr", "ybr", where=where)
    turn = _rotation(shape, where)
    hbb = in_order(raw, (x1, y1, x2, y2), where=where)
    if turn == 0:
        note_turn(raw, more["extra"].get("attributes", {}), where=where)
        return Instance.from_hbb(category, hbb, **more)
    return Instance.from_corners(category, turned_box(hbb, turn), **more)


def _polygon(category: str, shape: Element, raw: RawSet, where: str, more: dict[str, Any]) -> Instance:
    ring: list[float] = []
    for text in (shape.get("points") or "").split(";"):
        pair = text.split(",")
        if len(pair) != 2:
            raise CCDiffError(f"points: expected x,y;x,y;..., found {text.strip()[:40]!r}", where=where)
        ring += [number(v.strip(), where=where, what="points") for v in pair]
    return of_outline(category, ring, raw, where=where, **more)


def _ellipse(category: str, shape: Element, raw: RawSet, where: str, more: dict[str, Any]) -> Instance:
    cx, cy, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry", where=where)
    turn = math.radians(_rotation(shape, where))
    cos, sin = math.cos(turn), math.sin(turn)
    half = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    mask = ellipse_outline((cx, cy), (abs(rx), abs(ry)), turn)
    hbb = (cx - half[0], cy - half[1], cx + half[0], cy + half[1])
    corners = le90_to_corners((cx, cy, 2 * abs(rx), 2 * abs(ry), turn))
    return Instance.from_corners(category, corners, hbb, mask=(mask,), **more)


def _mask(category: str, shape: Element, raw: RawSet, where: str, more: dict[str, Any]) -> Instance:
    sizes = _numbers(shape, "left", "top", "width", "height", where=where)
    left, top, width, height = (int(v) for v in sizes)
    if any(v != int(v) for v in sizes) or width < 1 or height < 1 or width * height > MAX_MASK_PIXELS:
        raise CCDiffError(f"a mask of {width} x {height} pixels", where=where)
    runs = [number(v.strip(), where=where, what="rle") for v in (shape.get("rle") or "").split(",")]
    if any(v < 0 or v != int(v) for v in runs) or sum(runs) > width * height:
        raise CCDiffError(f"rle: its runs do not add up to {width} x {height}", where=where)
    counts = np.array([*runs, width * height - sum(runs)], np.int64)  # the last run of unset pixels may be left out
    bitmap = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if len(runs) % 2:  # the runs end with unset pixels already
        bitmap[int(sum(runs)) :] = False
    return of_bitmap(category, bitmap.reshape(height, width), (left, top), where=where, **more)


_KINDS = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
