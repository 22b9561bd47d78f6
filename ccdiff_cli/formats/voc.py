"""PASCAL VOC folders, and the XML of annotations that DIOR and DIOR-RSVG share with them.

``JPEGImages/`` (or ``images/``, or the XML files' own folder), ``Annotations/NAME.xml``, ``ImageSets/Main/{train,val,test}.txt``; or one
folder a split with pictures and XML side by side.  An object has a ``bndbox``, a ``robndbox`` of four corners (DIOR-R) or of
``cx cy w h angle`` in radians (roLabelImg), or both.

* The class list is ``classes.txt`` where the folder has one (our exporter writes it), else the names found, sorted.
* A ``bndbox`` is taken as edges counted from 0, as most sets that use the format write it.  The devkit's own counts pixels from 1, the
  last one inside the box: so it is read where ``source/annotation`` says so (our exporter's does), or the user (``origin`` 1).  A
  ``robndbox`` counts from 0 in any case.
* NOTE: the declared ``<size>`` is not believed further on; `prepare` measures the picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ..errors import CCDiffError, UnsafeInput
from ..files import inside
from ..geometry import le90_to_corners
from ..scene import HBB, ClassList, Corners, Instance, Scene
from .classes import ClassMap, clean_name, over, read_class_file
from .dota import tile_source
from .raw import Faults, RawSet, find_pictures, is_file, missing_picture, number, read_bytes, read_head, read_split_lists

ANNOTATIONS = "Annotations"
PICTURES = ("JPEGImages", "images")
CLASSES = "classes.txt"
MAX_XML_BYTES = 64_000_000
"""An annotation of 100,000 objects is smaller."""
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_CORNERS = tuple(f"{axis}_{place}" for place in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy")
_TURNED = ("cx", "cy", "w", "h", "angle")
_COUNTED_FROM = re.compile(r"pixels counted from ([01])")


def is_voc(root: Path) -> bool:
    """Whether the folder has annotation files that begin as VOC's."""
    return any(begins_with_tag(folder, b"<annotation") for folder, _, _ in _folders(root))


def begins_with_tag(folder: Path, tag: bytes) -> bool:
    """Whether the first XML file of a folder has ``tag`` in its first 4 kB."""
    first = min(folder.glob("*.xml"), default=None)
    return first is not None and tag in read_head(first, 4096)


def read_voc(root: Path, classes: ClassMap | None = None, faults: Faults | None = None, origin: int | None = None) -> RawSet:
    """Read the folder; the split comes from ``ImageSets/Main`` or ``ImageSets``, else from the folder's name.

    Args:
        origin: what the boxes count from where their file does not say it itself: 1 as the devkit, 0 (or None) edges from 0.

    Raises:
        CCDiffError: broken XML (with its line), an unknown class, a box that is not finite numbers, a picture that is missing.
    """
    faults = faults or Faults()
    folders = _folders(root)
    files = {path: (pictures, split) for folder, pictures, split in folders for path in sorted(folder.glob("*.xml"))}
    if not files:
        raise CCDiffError(f"no annotation files ({ANNOTATIONS}/*.xml)", where=root)
    trees = _trees(list(files), faults)
    names = over(classes, lambda: _class_map(root, trees, faults))
    raw = RawSet("voc", names.classes, [])
    found = find_pictures(sorted({p for pictures, _ in files.values() for p in pictures}))
    for path in files.keys() - trees.keys():
        found.pop(path.stem, None)  # its labels are broken, which is counted already
    stems = [path.stem for path in files]
    if len(set(stems)) != len(stems):
        twice = next(s for s in stems if stems.count(s) > 1)
        raise CCDiffError(f"two annotation files are called {twice}.xml", where=root, fix="rename one of them and its picture")
    splits = read_split_lists(root / "ImageSets" / "Main", stems) or read_split_lists(root / "ImageSets", stems)
    beginnings: dict[int | None, Counter[int]] = {None: Counter(), 0: Counter(), 1: Counter()}
    for path, tree in trees.items():
        folders_of_pictures, split = files[path]
        with faults.leaving_out("pictures"):
            picture = picture_of(path, tree, found, folders_of_pictures)
            if splits and path.stem not in splits:
                raw.skipped["pictures in no split list"] += 1
                continue
            said = origin_of(tree)
            counts_from = (origin or 0) if said is None else said
            instances = tuple(i for i in voc_objects(tree, names, faults, where=path, origin=counts_from) if i is not None)
            beginnings[said].update(int(min(i.hbb[:2])) for i in instances)
            width, height = declared_size(tree) or (0, 0)
            raw.scenes.append(
                Scene(picture.name, width, height, instances, splits.get(path.stem, split), tile_source(picture.stem), path=str(picture))
            )
    if found:
        raw.skipped["pictures without annotations"] += len(found)
    _say_origins(raw, beginnings, origin)
    return raw


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


def _folders(root: Path) -> list[tuple[Path, tuple[Path, ...], str]]:
    """Folders of XML files, where their pictures may lie, their split."""
    if (root / ANNOTATIONS).is_dir():
        return [(root / ANNOTATIONS, (*(root / name for name in PICTURES), root / ANNOTATIONS), "")]
    beside = [(root / name, split) for name, split in _SPLIT_FOLDERS.items()]
    found = [(folder, split) for folder, split in beside if any(folder.glob("*.xml"))] or [(root, "")]
    return [(folder, (folder,), split) for folder, split in found]


def _trees(files: Sequence[Path], faults: Faults) -> dict[Path, Element]:
    trees: dict[Path, Element] = {}
    for path in files:
        with faults.leaving_out("annotation files"):
            trees[path] = read_annotation(path)
    return trees


def _class_map(root: Path, trees: dict[Path, Element], faults: Faults) -> ClassMap:
    if (root / CLASSES).is_file():
        return read_class_file(root / CLASSES)
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
        CCDiffError: there is none, or the name leaves the folder.
    """
    if (picture := found.pop(path.stem, None)) is not None:
        return picture
    name = " ".join((tree.findtext("filename") or "").split())
    for folder in folders if name else ():
        candidate = inside(folder, name, where=path)
        if found.get(candidate.stem) == candidate and is_file(candidate):
            return found.pop(candidate.stem)
    raise missing_picture(path.stem, where=path, looked=", ".join(dict.fromkeys(f.name for f in folders)))


# ------------------------------------------------------------------------------------------------------------------------- XML


def parse_xml(path: Path) -> Element:
    """The root element of an XML file.

    Raises:
        CCDiffError: missing, truncated or broken (with line and column), larger than ``MAX_XML_BYTES``.
        UnsafeInput: entities, which no annotation needs.
    """
    data = read_bytes(path, MAX_XML_BYTES)
    try:
        return ElementTree.fromstring(data, forbid_dtd=True)
    except ParseError as error:
        line, column = error.position
        raise CCDiffError(f"not valid XML: {error.msg}", where=f"{path}:{line}:{column}", fix="restore the file") from error
    except DefusedXmlException as error:
        raise UnsafeInput(f"the XML declares a document type or entities: {error}", where=path, fix="remove the declaration") from error
    except (ValueError, LookupError) as error:  # an encoding that is unknown or not the file's
        raise CCDiffError(f"not valid XML: {error}", where=path, fix="save the file as UTF-8") from error


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


def voc_objects(tree: Element, names: ClassMap, faults: Faults, *, where: Path, origin: int = 0) -> list[Instance | None]:
    """The objects of an annotation, None in the place of one that is left out; ``extra["description"]`` holds its ``<description>``.

    Args:
        origin: 1 where ``bndbox`` counts pixels from 1, the last one inside; 0 where it gives edges from 0.

    Raises:
        CCDiffError: (strict) naming the object's number: an unknown class, no box, a box that is not finite numbers.
    """
    found: list[Instance | None] = []
    for k, element in objects_of(tree):
        found.append(None)
        with faults.leaving_out("objects"):
            found[-1] = _object(element, names, f"{where}: object {k}", origin)
    return found


def _object(element: Element, names: ClassMap, where: str, origin: int) -> Instance:
    category = names.name(" ".join((element.findtext("name") or "").split()), where=where)
    description = " ".join((element.findtext("description") or "").split())
    more: dict[str, Any] = {"extra": {"description": description}} if description else {}
    if (element.findtext("difficult") or "0").strip() not in ("0", ""):
        more["difficult"] = True
    box, turned = element.find("bndbox"), element.find("robndbox")
    if turned is None:
        if box is None:
            raise CCDiffError("the object has no <bndbox>", where=where)
        return Instance.from_hbb(category, _hbb(box, where, origin), **more)
    corners = _turned(turned, where) if turned.find("cx") is not None else tuple(_numbers(turned, _CORNERS, where))
    return Instance.from_corners(category, corners, _hbb(box, where, origin) if box is not None else None, **more)


def _numbers(box: Element, keys: Sequence[str], where: str) -> list[float]:
    return [number((box.findtext(key) or "").strip(), where=where, what=f"<{key}>") for key in keys]


def _hbb(box: Element, where: str, origin: int) -> HBB:
    x1, y1, x2, y2 = _numbers(box, _SIDES, where)
    return min(x1, x2) - origin, min(y1, y2) - origin, max(x1, x2), max(y1, y2)


def _turned(box: Element, where: str) -> Corners:
    cx, cy, w, h, angle = _numbers(box, _TURNED, where)
    if w < 0 or h < 0:
        raise CCDiffError(f"<w>, <h>: expected sizes that are not negative, found {w:g} and {h:g}", where=where)
    if abs(angle) > 7:  # a full turn is 6.28
        raise CCDiffError(f"<angle>: expected radians, found {angle:g}", where=where)
    return le90_to_corners((cx, cy, w, h, angle))


def declared_size(tree: Element) -> tuple[int, int] | None:
    """Width and height as the annotation declares them; None where it does not, or nonsense."""
    try:
        width, height = int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)
    except ValueError:
        return None
    return (width, height) if 0 < width < 1_000_000 and 0 < height < 1_000_000 else None
