"""PASCAL VOC folders, and the XML of annotations that DIOR and DIOR-RSVG share with them.

``JPEGImages/`` (or ``images/``, ``data/``, or the XML files' own folder), ``Annotations/NAME.xml`` (or ``labels/``),
``ImageSets/Main/{train,val,test}.txt``; or one folder a split, with pictures and XML side by side (Roboflow) or in folders of their own.
An object has a ``bndbox`` (turned by CVAT's attribute ``rotation``), a ``robndbox`` of four corners (DIOR-R) or of ``cx cy w h angle``
in radians (roLabelImg), or a ``polygon`` (LabelMe, Roboflow), which is the OBB where it has four corners, else the mask.

* The class list is ``classes.txt`` where the folder has one (our exporter writes it), else the names found, sorted.
* A ``bndbox`` is taken as edges counted from 0, as most sets that use the format write it.  The devkit's own counts pixels from 1, the
  last one inside the box: so it is read where ``source/annotation`` says so (our exporter's does), or the user (``origin`` 1), the
  points of a ``polygon`` likewise.  A ``robndbox`` counts from 0 in any case.
* NOTE: the declared ``<size>`` is not believed further on; `prepare` measures the picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ..errors import CCDiffError, UnsafeInput
from ..files import inside, is_file, read_bytes
from ..geometry import hbb_of, le90_to_corners, min_area_corners
from ..pictures import SUFFIXES
from ..scene import HBB, ClassList, Corners, Instance, Scene
from .classes import ClassMap, clean_name, over, read_class_file
from .dota import tile_source
from .raw import (
    LITTER_FOLDER,
    SPLIT_WORDS,
    Faults,
    RawSet,
    child,
    files_below,
    find_pictures,
    flag,
    in_order,
    listed,
    make_names_differ,
    missing_picture,
    note_turn,
    number,
    path_parts,
    radians,
    read_head,
    read_split_lists,
    turned_box,
)  # fmt: skip

ANNOTATIONS = "Annotations"
PICTURES = ("JPEGImages", "images", "data", "image", "imgs", "img")
_LIKE_ANNOTATIONS = ("Annotation", "labels", "xml", "xmls", "label")
CLASSES = "classes.txt"
MAX_XML_BYTES = 64_000_000
"""An annotation of 100,000 objects is smaller."""
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_CORNERS = tuple(f"{axis}_{place}" for place in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy")
_TURNED = ("cx", "cy", "w", "h", "angle")
_DECLARED = re.compile(rb"""<\?xml[^>]*encoding=["'](gbk|gb2312|gb18030|big5|shift_jis|euc-jp|euc-kr|cp949)["'][^>]*\?>""", re.IGNORECASE)
_ROTATION = re.compile(r"(?:^|,)\s*rotation\s*=\s*([^,\s]+)", re.IGNORECASE)
_COUNTED_FROM = re.compile(r"pixels counted from ([01])")


def is_voc(root: Path) -> bool:
    """Whether the folder has annotation files that begin as VOC's."""
    return any(begins_with_tag(part.folder, b"<annotation") for part in _parts(root))


def begins_with_tag(folder: Path, tag: bytes) -> bool:
    """Whether one of the first XML files of a folder has ``tag`` in its first 4 kB."""
    return any(tag in read_head(path, 4096).replace(b"\x00", b"") for path in listed(folder, ".xml")[:20])


def read_voc(root: Path, classes: ClassMap | None = None, faults: Faults | None = None, origin: int | None = None) -> RawSet:
    """Read the folder; the split comes from ``ImageSets/Main`` or ``ImageSets``, else from the folder's name.

    Args:
        origin: what the boxes count from where their file does not say it itself: 1 as the devkit, 0 (or None) edges from 0.

    Raises:
        CCDiffError: objects where VOC has none; (strict) broken XML (with its line), an unknown class, a box that is not finite numbers, a
            picture that is missing.
    """
    faults = faults or Faults()
    parts = _parts(root)
    files = {path: part for part in parts for path in listed(part.folder, ".xml")}
    if not files:
        raise CCDiffError(f"no annotation files ({ANNOTATIONS}/*.xml)", where=root)
    trees = _trees(list(files), faults)
    names = over(classes, lambda: _class_map(root, trees, faults))
    raw = RawSet("voc", names.classes, [])
    beginnings: dict[int | None, Counter[int]] = {None: Counter(), 0: Counter(), 1: Counter()}
    pictures: dict[tuple[Path, ...], dict[str, Path]] = {}
    for part in parts:
        beside = {path.stem for path, other in files.items() if other.base == part.base}
        if (folders := part.folders()) not in pictures:
            pictures[folders] = find_pictures(folders)
        for said, hbb in _read_part(part, pictures[folders], beside, trees, names, raw, faults, origin):
            beginnings[said][int(min(hbb[:2]))] += 1
    raw.skipped["pictures without annotations"] += sum(map(len, pictures.values()))
    others = [path for path in files_below(root, (".xml",)) if path not in files and b"<annotation" in read_head(path, 4096)]
    raw.skipped["annotation files in other folders, not read"] += len(others)
    _say_origins(raw, beginnings, origin)
    make_names_differ(raw, root)
    raw.skipped, raw.notes, raw.changes = +raw.skipped, +raw.notes, +raw.changes
    return raw


@dataclass(frozen=True)
class _Part:
    """A folder of XML files: the folder it belongs to, where its pictures may lie, its split."""

    folder: Path
    base: Path
    pictures: tuple[Path, ...]
    split: str = ""

    def folders(self) -> tuple[Path, ...]:
        """Where its pictures lie; for a folder without any of the usual names, wherever below it pictures lie that are no masks."""
        if any(listed(folder, *SUFFIXES) for folder in self.pictures):
            return self.pictures
        folders = {p.parent for p in files_below(self.base, SUFFIXES)}
        return tuple(sorted(f for f in folders if not re.search("segmentation|mask", f.name.lower())))


def _parts(root: Path) -> list[_Part]:
    """The folders of XML files: of the folder itself, or of those below (``VOCdevkit/VOC2012``)."""
    level = [root]
    for _ in range(3):
        found = [part for base in level for part in _named_parts(base)]
        if found:
            return found
        if level == [root] and listed(root, ".xml"):
            return [_Part(root, root, (root, *(child(root, p) for p in PICTURES)))]
        level = sorted(p for base in level if base.is_dir() for p in base.iterdir() if p.is_dir() and p.name != LITTER_FOLDER)[:1000]
    others = sorted({p.parent for p in files_below(root, (".xml",))})
    return [_Part(folder, folder if listed(folder, *SUFFIXES) else root, (folder,)) for folder in others]


def _named_parts(base: Path) -> list[_Part]:
    """``Annotations`` (by any of its names) and the folders in it, whose pictures lie in folders of the same name; else one a split."""
    annotations = [path for name in (ANNOTATIONS, *_LIKE_ANNOTATIONS) if (path := child(base, name)).is_dir()]
    whole = [p for p in annotations if listed(p, ".xml")]
    found = []
    for folder in whole[:1] or annotations:
        for inner in sorted({path.parent for path in files_below(folder, (".xml",))}):
            place = inner.relative_to(folder)
            split = next((SPLIT_WORDS[part.lower()] for part in place.parts if part.lower() in SPLIT_WORDS), "")
            found.append(_Part(inner, base, (*(child(base, (p / place).as_posix()) for p in map(Path, PICTURES)), inner), split))
    for name, split in SPLIT_WORDS.items() if not found else ():
        folder = child(base, name)
        beside = next((p for p in (folder, *(child(folder, a) for a in (ANNOTATIONS, *_LIKE_ANNOTATIONS))) if listed(p, ".xml")), None)
        if beside is not None:
            found.append(_Part(beside, folder, (*(child(folder, p) for p in PICTURES), *dict.fromkeys((beside, folder))), split))
    return found


def _read_part(
    part: _Part, found: dict[str, Path], stems: Collection[str], trees: Mapping[Path, Element], names: ClassMap, raw: RawSet,
    faults: Faults, origin: int | None,
) -> list[tuple[int | None, HBB]]:  # fmt: skip
    """Add the scenes of a part, whose pictures are taken out of ``found``; what each box says that it counts from, and the box.

    Args:
        found: stem -> picture.
        stems: of all annotation files that split lists may name.
    """
    files = listed(part.folder, ".xml")
    boxes: list[tuple[int | None, HBB]] = []
    for path in files:
        if path not in trees:
            found.pop(path.stem, None)  # its labels are broken, which is counted already
    splits: dict[str, str] = {}
    for name in ("ImageSets/Main", "ImageSets"):
        splits = splits or read_split_lists(child(part.base, name), {*stems, *found}, faults)
    for path in files:
        with faults.leaving_out("pictures"):
            if path not in trees:
                continue
            picture = picture_of(path, trees[path], found, (*part.pictures, *dict.fromkeys(p.parent for p in found.values())))
            split = _listed_split(path, picture, splits, stems, raw) if splits else part.split
            if split is None:
                raw.skipped["pictures in no split list"] += 1
                continue
            said = origin_of(trees[path])
            counts_from = (origin or 0) if said is None else said
            objects = voc_objects(trees[path], names, faults, raw, where=path, origin=counts_from)
            instances = tuple(i for i in objects if i is not None)
            boxes += [(said, i.hbb) for i in instances]
            width, height = declared_size(trees[path]) or (0, 0)
            raw.scenes.append(Scene(picture.name, width, height, instances, split, tile_source(picture.stem), path=str(picture)))
    listed_alone = sorted(splits.keys() & found.keys() - set(stems))
    raw.scenes += [unannotated(found.pop(stem), splits[stem], raw) for stem in listed_alone]
    return boxes


def _listed_split(path: Path, picture: Path, splits: Mapping[str, str], stems: Collection[str], raw: RawSet) -> str | None:
    """The split of an annotation file: lists name it, or its picture where that is called otherwise and no other annotation is.

    Raises:
        CCDiffError: both are named, in two lists.
    """
    own, other = splits.get(path.stem), splits.get(picture.stem) if picture.stem not in stems else None
    if own and other and own != other:
        fix = "leave it in one of them"
        raise CCDiffError(f"{path.stem!r} stands in two lists, {own} and (as {picture.stem!r}) {other}", where=path, fix=fix)
    if not own and other:
        raw.note("pictures that split lists name by their own names, not by their annotations'", str(path), picture.name)
    return own or other


def origin_of(tree: Element) -> int | None:
    """What the boxes of an annotation count from, as it says itself; None where it does not."""
    match = _COUNTED_FROM.search(tree.findtext("source/annotation") or "")
    return int(match.group(1)) if match else None


def _say_origins(raw: RawSet, beginnings: dict[int | None, Counter[int]], origin: int | None) -> None:
    """Note what boxes were taken to count from; ``beginnings`` are their first pixels, by what their files say."""
    for said in (0, 1):
        raw.notes[f"boxes counted from {said}, as their files say"] += beginnings[said].total()
    unsaid = beginnings[None]
    if origin is not None:
        raw.notes[f"boxes taken as counted from {origin} (--voc-origin)"] += unsaid.total()
    elif unsaid[1] and min(unsaid) == 1:
        what = f"boxes taken as edges from 0, though {unsaid[1]} begin at 1 and none at 0: give --voc-origin 1 if the set counts from 1"
        raw.notes[what] += unsaid.total()
    else:
        raw.notes["boxes taken as edges from 0 (--voc-origin 1: pixels from 1, as VOC's devkit)"] += unsaid.total()
    raw.notes = +raw.notes


def unannotated(picture: Path, split: str, raw: RawSet) -> Scene:
    """A picture that a split list names and no annotation file: without objects, which ``prepare`` leaves out unless told to keep such."""
    raw.note("pictures that a split list names and nobody annotated, taken as without objects", str(picture))
    return Scene(picture.name, 0, 0, (), split, tile_source(picture.stem), path=str(picture))


def _trees(files: Sequence[Path], faults: Faults) -> dict[Path, Element]:
    trees: dict[Path, Element] = {}
    for path in files:
        with faults.leaving_out("annotation files"):
            trees[path] = read_annotation(path)
        if path in trees and (elsewhere := _objects_elsewhere(trees[path])):
            raise CCDiffError(
                f"the objects stand in <{elsewhere}>, where VOC has none: this is another format",
                where=path,
                fix="FAIR1M is read by --format fair1m; of another format, name it (--format) or convert it",
            )
    return trees


def _objects_elsewhere(tree: Element) -> str:
    """The element that holds what is not VOC's: objects that no ``<object>`` of the annotation is; "" where there is none."""
    if tree.find("object") is not None:
        return ""
    for parent in tree.iter():
        for element in parent:
            if element.tag.lower() in ("object", "objects", "bndbox", "robndbox", "points", "polygon") and len(element):
                return element.tag[:60]
    return ""


def _class_map(root: Path, trees: dict[Path, Element], faults: Faults) -> ClassMap:
    if is_file(own := child(root, CLASSES)):
        return read_class_file(own)
    found: set[str] = set()
    for path, tree in trees.items():
        for k, element in objects_of(tree):
            with faults.leaving_out("class names"):
                found.add(clean_name(element.findtext("name"), where=f"{path}: object {k}"))
    if not found:
        raise CCDiffError("no object has a class", where=root, fix=f"name the classes in {CLASSES}, one a line, or with --classes")
    return ClassMap.of(ClassList(tuple(sorted(found))))


def picture_of(path: Path, tree: Element, found: dict[str, Path], folders: Sequence[Path]) -> Path:
    """The picture of an annotation file: its namesake, taken out of ``found``, else the file that ``<filename>`` names.

    Raises:
        MissingPicture: there is none.
    """
    if (picture := found.pop(path.stem, None)) is not None:
        return picture
    parts = path_parts(" ".join((tree.findtext("filename") or "").split()))[-1]
    for folder in folders if parts else ():
        candidate = inside(folder, parts[-1], where=path)
        if found.get(candidate.stem) == candidate and is_file(candidate):
            return found.pop(candidate.stem)
    raise missing_picture(path.stem, where=path, looked=", ".join(dict.fromkeys(f.name for f in folders)))


# ------------------------------------------------------------------------------------------------------------------------- XML


def parse_xml(path: Path, limit: int = MAX_XML_BYTES) -> Element:
    """The root element of an XML file.

    Raises:
        CCDiffError: missing, truncated or broken (with line and column), larger than ``limit``.
        UnsafeInput: entities, which no annotation needs.
    """
    data = read_bytes(path, limit)
    try:
        return ElementTree.fromstring(_decoded(data), forbid_dtd=True)
    except ParseError as error:
        line, column = error.position
        fix = "restore the file" if _is_utf8(data) else "say its encoding in the first line (<?xml version='1.0' encoding='gbk'?>)"
        raise CCDiffError(f"not valid XML: {error.msg}", where=f"{path}:{line}:{column}", fix=fix) from error
    except DefusedXmlException as error:
        raise UnsafeInput(f"the XML declares a document type or entities: {error}", where=path, fix="remove the declaration") from error
    except (ValueError, LookupError) as error:  # an encoding that is unknown or not the file's
        raise CCDiffError(f"not valid XML: {error}", where=path, fix="save the file as UTF-8") from error


def _decoded(data: bytes) -> bytes | str:
    """The text of a file that declares one of the encodings that the XML parser does not know; else the bytes."""
    if declared := _DECLARED.match(data):
        try:
            return data[declared.end() :].decode(declared.group(1).decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"not the {error.encoding} that it declares (byte {declared.end() + error.start})") from error
    return data


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def read_annotation(path: Path) -> Element:
    """The ``<annotation>`` of an XML file.

    Raises:
        CCDiffError: see :func:`parse_xml`; another root element.
    """
    tree = parse_xml(path)
    if tree.tag != "annotation":
        raise CCDiffError(f"expected the element <annotation>, found <{tree.tag[:60]}>", where=path)
    return tree


def objects_of(tree: Element) -> list[tuple[int, Element]]:
    """The objects of an annotation, numbered from 1."""
    return list(enumerate(tree.iterfind("object"), start=1))


def voc_objects(tree: Element, names: ClassMap, faults: Faults, raw: RawSet, *, where: Path, origin: int = 0) -> list[Instance | None]:
    """The objects of an annotation, None in the place of one that is left out; ``extra["description"]`` holds its ``<description>``.

    Args:
        origin: 1 where ``bndbox`` counts pixels from 1, the last one inside; 0 where it gives edges from 0.

    Raises:
        CCDiffError: (strict) naming the object's number: an unknown class, no box, a box that is not finite numbers.
    """
    found: list[Instance | None] = []
    for k, element in objects_of(tree):
        found.append(None)
        if (element.findtext("deleted") or "").strip() == "1":  # LabelMe keeps what an annotator took back
            raw.skipped["objects marked as deleted"] += 1
            continue
        with faults.leaving_out("objects"):
            found[-1] = _object(element, names, raw, f"{where}: object {k}", origin)
    return found


def _object(element: Element, names: ClassMap, raw: RawSet, where: str, origin: int) -> Instance:
    category = names.name(" ".join((element.findtext("name") or "").split()), where=where)
    description = " ".join((element.findtext("description") or "").split())
    more: dict[str, Any] = {"extra": {"description": description}} if description else {}
    if flag(element.findtext("difficult"), where=where, what="<difficult>"):
        more["difficult"] = True
    boxes, turned = element.findall("bndbox"), element.find("robndbox")
    if len(boxes) > 1:
        raise CCDiffError(f"the object has {len(boxes)} <bndbox>", where=where, fix="give each box an <object> of its own")
    box = boxes[0] if boxes else None
    ring = tuple(v - origin for v in _polygon(element, where)) if turned is None else ()
    hbb = _hbb(box, raw, where, origin) if box is not None else None
    if ring:
        if len(ring) == 8:
            straight = hbb_of(ring)
            if (angle := _rotation(element, where)) and np.allclose(sorted(ring), sorted((*straight, *straight)), atol=1.0):
                raw.changes["boxes turned by their attribute rotation"] += 1  # CVAT's LabelMe writes the box before its turn
                return Instance.from_corners(category, turned_box(straight, angle), **more)
            return Instance.from_corners(category, ring, hbb, **more)
        raw.notes["outlines, with the minimum-area rectangle as OBB"] += 1
        return Instance.from_corners(category, min_area_corners(ring), hbb or hbb_of(ring), mask=(ring,), **more)
    if turned is None:
        if hbb is None:
            raise CCDiffError("the object has no <bndbox>", where=where)
        if angle := _rotation(element, where):
            raw.changes["boxes turned by their attribute rotation"] += 1
            return Instance.from_corners(category, turned_box(hbb, angle), **more)
        note_turn(raw, {e.tag: (e.text or "").strip() for e in (*element, *element.iterfind("bndbox/*"))}, where=where)
        return Instance.from_hbb(category, hbb, **more)
    corners = _turned(turned, where) if turned.find("cx") is not None else tuple(_numbers(turned, _CORNERS, where))
    return Instance.from_corners(category, corners, hbb, **more)


def _polygon(element: Element, where: str) -> tuple[float, ...]:
    """The outline of an object, as LabelMe (``<pt><x>``) or Roboflow (``<x1> <y1> <x2> ...``) writes it; () where it has none."""
    polygon = next((p for name in ("polygon", "segmentation", "points") if (p := element.find(name)) is not None), None)
    if polygon is None:
        return ()
    points = [p for p in polygon if p.find("x") is not None and p.find("y") is not None]
    values = [p.findtext(axis) for p in points for axis in "xy"]
    for k in range(1, 100_000) if not points else ():
        if polygon.find(f"x{k}") is None:
            break
        values += [polygon.findtext(f"x{k}"), polygon.findtext(f"y{k}")]
    ring = tuple(number((v or "").strip(), where=where, what="<polygon>") for v in values)
    if ring[:2] == ring[-2:] and len(ring) > 6:  # closed
        ring = ring[:-2]
    if values and len(ring) < 6:
        raise CCDiffError(f"<polygon>: expected three points or more, found {len(ring) // 2}", where=where)
    return ring


def _rotation(element: Element, where: str) -> float:
    """Degrees by which CVAT means the box turned, clockwise about its centre."""
    said = element.findtext("rotation")
    for attribute in element.iterfind("attributes/attribute"):
        if (attribute.findtext("name") or "").strip().lower() == "rotation":
            said = attribute.findtext("value")
    if match := _ROTATION.search(element.findtext("attributes") or ""):
        said = match.group(1)
    return number(said.strip(), where=where, what="rotation") % 360 if said and said.strip() else 0.0


def _numbers(box: Element, keys: Sequence[str], where: str) -> list[float]:
    return [number((box.findtext(key) or "").strip(), where=where, what=f"<{key}>") for key in keys]


def _hbb(box: Element, raw: RawSet, where: str, origin: int) -> HBB:
    x1, y1, x2, y2 = in_order(raw, _numbers(box, _SIDES, where), where=where)
    return x1 - origin, y1 - origin, x2, y2


def _turned(box: Element, where: str) -> Corners:
    cx, cy, w, h, angle = _numbers(box, _TURNED, where)
    if w < 0 or h < 0:
        raise CCDiffError(f"<w>, <h>: expected sizes that are not negative, found {w:g} and {h:g}", where=where)
    return le90_to_corners((cx, cy, w, h, radians(angle, where=where, what="<angle>")))


def declared_size(tree: Element) -> tuple[int, int] | None:
    """Width and height as the annotation declares them; None where it does not, or nonsense."""
    try:
        width, height = int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)
    except ValueError:
        return None
    return (width, height) if 0 < width < 1_000_000 and 0 < height < 1_000_000 else None
