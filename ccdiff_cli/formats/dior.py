"""DIOR and DIOR-R as they lie on disk, and any VOC folder in the same layout.

``JPEGImages-trainval/``, ``JPEGImages-test/`` (or ``JPEGImages/``), ``Annotations/Horizontal Bounding Boxes/NAME.xml`` and
``Annotations/Oriented Bounding Boxes/NAME.xml``, ``ImageSets/Main/{train,val,test}.txt``.  The two files list the same objects in different
orders, so boxes are matched by the IoU of their HBBs: one to one, same class, optimal over the picture.  An HBB without an OBB stays
horizontal, an OBB without an HBB brings its own; both are kept and counted.  The declared ``<size>`` is not believed (33 OBB files lie).
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from scipy.optimize import linear_sum_assignment

from ..errors import CCDiffError
from ..files import inside
from ..geometry import hbb_iou, hbb_of
from ..scene import HBB, Corners, Instance, Scene
from .classes import ClassMap
from .raw import RawSet, find_pictures, number, read_split_lists

HBB_FOLDER = "Annotations/Horizontal Bounding Boxes"
OBB_FOLDER = "Annotations/Oriented Bounding Boxes"
PICTURES = ("JPEGImages-trainval", "JPEGImages-test", "JPEGImages")
MIN_IOU = 0.1
"""Below this two boxes are two objects: of DIOR's 192,518 pairs 144 lie below, objects of one file only or of swapped classes."""
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_CORNERS = tuple(f"{axis}_{place}" for place in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy")


def is_dior(root: Path) -> bool:
    """Whether the folder has DIOR's annotation folders."""
    return (root / HBB_FOLDER).is_dir() or (root / OBB_FOLDER).is_dir()


def read_dior(root: Path, classes: ClassMap | None = None, *, pictures: bool = True) -> RawSet:
    """Read the folder.

    Args:
        pictures: False reads the annotations of a folder that has no pictures (as layouts); scenes then have no ``path``.

    Raises:
        CCDiffError: broken XML (with its line), an unknown class, a box that is not four finite numbers, a picture that is missing.
    """
    names = classes or ClassMap.frozen("dior")
    raw = RawSet("dior", names.classes, [])
    folders = [root / HBB_FOLDER, root / OBB_FOLDER]
    horizontal, oriented = ({p.stem: p for p in folder.glob("*.xml")} if folder.is_dir() else {} for folder in folders)
    ids = sorted({*horizontal, *oriented})
    if not ids:
        raise CCDiffError("no annotation files (*.xml)", where=root / "Annotations")
    found = find_pictures([root / name for name in PICTURES]) if pictures else {}
    splits = read_split_lists(root / "ImageSets" / "Main", ids) or read_split_lists(root / "ImageSets", ids)
    for picture_id in ids:
        if splits and picture_id not in splits:
            raw.skipped["pictures in no split list"] += 1
            continue
        boxes, size = _read(horizontal[picture_id], names, raw) if picture_id in horizontal else ([], None)
        turned, turned_size = _read(oriented[picture_id], names, raw, oriented=True) if picture_id in oriented else ([], None)
        where = horizontal.get(picture_id) or oriented[picture_id]
        inside(root, picture_id, where=where)
        picture = found.pop(picture_id, None)
        if pictures and picture is None:
            raise CCDiffError(
                f"the picture {picture_id} is missing from {', '.join(PICTURES)}", where=where, fix="restore it, or remove its annotations"
            )
        split = splits.get(picture_id, "test" if picture is not None and picture.parent.name == "JPEGImages-test" else "")
        width, height = size or turned_size or (0, 0)
        instances = _merged(boxes, turned, raw, both=picture_id in horizontal and picture_id in oriented)
        name = picture.name if picture is not None else f"{picture_id}.jpg"
        raw.scenes.append(Scene(name, width, height, instances, split, picture_id, path=str(picture) if picture is not None else None))
    if found:
        raw.skipped["pictures without annotations"] += len(found)
    return raw


def parse_xml(path: Path) -> Element:
    """The root element of an XML file.

    Raises:
        CCDiffError: missing, truncated or broken (with line and column), or with entities, which no annotation needs.
    """
    try:
        return ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except ParseError as error:
        line, column = error.position
        raise CCDiffError(f"not valid XML: {error.msg}", where=f"{path}:{line}:{column}", fix="restore the file") from error
    except DefusedXmlException as error:
        raise CCDiffError(f"the XML declares a document type or entities: {error}", where=path, fix="remove the declaration") from error
    except (ValueError, LookupError) as error:  # an encoding that is unknown or not the file's
        raise CCDiffError(f"not valid XML: {error}", where=path, fix="save the file as UTF-8") from error
    except OSError as error:
        raise CCDiffError(f"cannot read the file: {error.strerror or error}", where=path) from error


def _read(path: Path, names: ClassMap, raw: RawSet, *, oriented: bool = False) -> tuple[list[Instance], tuple[int, int] | None]:
    tree = parse_xml(path)
    if tree.tag != "annotation":
        raise CCDiffError(f"expected the element <annotation>, found <{tree.tag}>", where=path)
    found = []
    for k, element in enumerate(tree.iterfind("object"), start=1):
        where = f"{path}: object {k}"
        category = names.name(" ".join((element.findtext("name") or "").split()), where=where)
        difficult = (element.findtext("difficult") or "0").strip() not in ("0", "")
        if oriented and (box := element.find("robndbox")) is not None:
            found.append(Instance.from_corners(category, _corners(box, where), difficult=difficult))
        else:
            found.append(Instance.from_hbb(category, _hbb(element.find("bndbox"), where), difficult=difficult))
            if oriented:
                raw.notes["objects of OBB files that have only an HBB"] += 1
    return found, _size(tree)


def _size(tree: Element) -> tuple[int, int] | None:
    try:
        width, height = int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)
    except ValueError:
        return None
    return (width, height) if 0 < width < 1_000_000 and 0 < height < 1_000_000 else None


def _hbb(box: Element | None, where: str) -> HBB:
    if box is None:
        raise CCDiffError("the object has no <bndbox>", where=where)
    x1, y1, x2, y2 = (number((box.findtext(side) or "").strip(), where=where, what=f"<{side}>") for side in _SIDES)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _corners(box: Element, where: str) -> Corners:
    return tuple(number((box.findtext(side) or "").strip(), where=where, what=f"<{side}>") for side in _CORNERS)  # type: ignore[return-value]


def _merged(boxes: list[Instance], turned: list[Instance], raw: RawSet, *, both: bool) -> tuple[Instance, ...]:
    """One object for every HBB, with the OBB that matches it, then the OBBs that match none."""
    partner = match_boxes(boxes, turned)
    out = []
    for k, box in enumerate(boxes):
        other = turned[partner[k]] if k in partner else None
        if other is None or not other.oriented:
            out.append(box)
        else:
            out.append(Instance.from_corners(box.category, other.corners, box.hbb, difficult=box.difficult or other.difficult))
    alone = sorted(set(range(len(turned))) - set(partner.values()))
    out.extend(turned[k] for k in alone)
    if both:
        raw.notes["objects with HBB and OBB"] += len(partner)
        if len(boxes) > len(partner):
            raw.notes["objects with an HBB alone"] += len(boxes) - len(partner)
        if alone:
            raw.notes["objects with an OBB alone"] += len(alone)
    return tuple(out)


def match_boxes(a: list[Instance], b: list[Instance], min_iou: float = MIN_IOU) -> dict[int, int]:
    """Index in ``a`` -> index in ``b`` of the same object: one to one, same class, greatest total IoU of the HBBs."""
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
