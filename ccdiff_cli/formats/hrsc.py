"""HRSC2016 as it lies on disk.

``FullDataSet/`` (or the folder itself, or ``Train/`` and ``Test/``) with ``Annotations/NNNNNNNNN.xml`` and ``AllImages/NNNNNNNNN.bmp``;
``ImageSets/{train,val,test}.txt`` beside or in it.  An object has a ``Class_ID`` in a tree of three levels, a horizontal box
(``box_xmin`` ...) and the OBB ``mbox_cx mbox_cy mbox_w mbox_h mbox_ang``: radians from the x axis towards the y axis, as le90.

* The class list decides the level: an object goes by the deepest of its class and the classes above it that the list knows.  The lists are
  ``hrsc`` (every object a ship), ``hrsc2`` and ``hrsc3``; an object that the source only calls a ship stays one in all of them.
* A ship without an ``mbox`` keeps its HBB alone; pictures that nobody annotated (``Annotated`` 0) are left out and counted.
* ``Img_Resolution`` goes to the provenance as ``gsd`` (metres a pixel), ``Img_Location`` as ``location``: latitude, longitude, whose
  sign is missing in the west, so it is no place on the ground before a user says on which half of the earth it lies.
* The ship's bow (``header_x``, ``header_y``) goes to ``extra``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from ..errors import CCDiffError
from ..geometry import le90_to_corners
from ..scene import Instance, Scene
from .classes import HRSC_TREE, ClassMap, over
from .raw import (
    SPLIT_WORDS,
    Faults,
    RawSet,
    UnknownClass,
    by_stem,
    child,
    find_pictures,
    flag,
    in_order,
    listed,
    missing_picture,
    number,
    radians,
    read_split_lists,
)
from .voc import begins_with_tag, parse_xml, unannotated

ANNOTATIONS = "Annotations"
PICTURES = "AllImages"
_BOX = ("box_xmin", "box_ymin", "box_xmax", "box_ymax")
_MBOX = ("mbox_cx", "mbox_cy", "mbox_w", "mbox_h", "mbox_ang")


def is_hrsc(root: Path) -> bool:
    """Whether the folder has annotation files that begin as HRSC2016's."""
    return any(begins_with_tag(child(base, ANNOTATIONS), b"<HRSC_Image") for base, _ in _bases(root))


def read_hrsc(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the folder; the split comes from ``ImageSets``, else from the folders ``Train`` and ``Test``.

    Raises:
        CCDiffError: broken XML, a ``Class_ID`` outside the tree or the class list, a box that is not finite, a missing picture.
    """
    faults = faults or Faults()
    names = over(classes, lambda: ClassMap.frozen("hrsc"))
    raw = RawSet("hrsc", names.classes, [])
    bases = _bases(root)
    found = {path: split for base, split in bases for path in listed(child(base, ANNOTATIONS), ".xml")}
    files = {stem: (path, found[path]) for stem, path in by_stem(found, "annotation files").items()}
    if not files:
        raise CCDiffError(f"no annotation files ({ANNOTATIONS}/*.xml)", where=root)
    pictures = find_pictures([child(base, PICTURES) for base, _ in bases])
    splits: dict[str, str] = {}
    for folder in (child(root, "ImageSets"), *(child(base, "ImageSets") for base, _ in bases), root.parent / "ImageSets"):
        splits = splits or read_split_lists(folder, {*files, *pictures}, faults)
    for stem, (path, folder_split) in sorted(files.items()):
        if splits and stem not in splits:
            raw.skipped["pictures in no split list"] += 1
            pictures.pop(stem, None)
            continue
        with faults.leaving_out("annotation files"):
            picture = pictures.pop(stem, None)
            tree = parse_xml(path)
            if tree.tag != "HRSC_Image":
                raise CCDiffError(f"expected the element <HRSC_Image>, found <{tree.tag}>", where=path)
            if _text(tree, "Annotated").lower() in ("0", "false", "no") and tree.find("HRSC_Objects/HRSC_Object") is None:
                raw.skipped["pictures that nobody annotated"] += 1
                continue
            if picture is None:
                raise missing_picture(stem, where=path, looked=f"{PICTURES}/")
            instances = []
            for k, element in enumerate(tree.iterfind("HRSC_Objects/HRSC_Object"), start=1):
                with faults.leaving_out("objects"):
                    instances.append(_instance(element, names, raw, where=f"{path}: object {k}"))
            width, height = _size(tree)
            raw.scenes.append(
                Scene(
                    picture.name, width, height, tuple(instances), splits.get(stem, "" if splits else folder_split), stem,
                    path=str(picture), provenance=_provenance(tree),
                )
            )  # fmt: skip
    raw.scenes += [unannotated(pictures.pop(stem), splits[stem], raw) for stem in sorted(splits.keys() & pictures.keys() - files.keys())]
    if pictures:
        raw.skipped["pictures without an annotation file"] += len(pictures)
    return raw


def _bases(root: Path) -> list[tuple[Path, str]]:
    """The folders with annotations, with their split; ``FullDataSet`` holds what ``Train`` and ``Test`` hold."""
    for base in (child(root, "FullDataSet"), root):
        if child(base, ANNOTATIONS).is_dir():
            return [(base, "")]
    folders = [(child(root, name), split) for name, split in SPLIT_WORDS.items()]
    return [(base, split) for base, split in folders if child(base, ANNOTATIONS).is_dir()]


def _text(element: Element, key: str) -> str:
    return (element.findtext(key) or "").strip()


def _instance(element: Element, names: ClassMap, raw: RawSet, *, where: str) -> Instance:
    category = _category(_text(element, "Class_ID"), names, where=where)
    extra: dict[str, Any] = {"class_id": _text(element, "Class_ID")}
    if _text(element, "header_x") and _text(element, "header_y"):
        extra["header"] = [number(_text(element, key), where=where, what=f"<{key}>") for key in ("header_x", "header_y")]
    if flag(_text(element, "truncated"), where=where, what="<truncated>"):
        extra["truncated"] = True
    difficult = flag(_text(element, "difficult"), where=where, what="<difficult>")
    hbb = None
    if any(_text(element, key) for key in _BOX):
        hbb = in_order(raw, [number(_text(element, key), where=where, what=f"<{key}>") for key in _BOX], where=where)
    if any(_text(element, key) for key in _MBOX):
        cx, cy, w, h, angle = (number(_text(element, key), where=where, what=f"<{key}>") for key in _MBOX)
        if w < 0 or h < 0:
            raise CCDiffError(f"<mbox_w>, <mbox_h>: expected positive sizes, found {w:g} and {h:g}", where=where)
        turned = le90_to_corners((cx, cy, w, h, radians(angle, where=where, what="<mbox_ang>")))
        return Instance.from_corners(category, turned, hbb, difficult=difficult, extra=extra)
    if hbb is None:
        raise CCDiffError("the object has neither <mbox_cx> ... nor <box_xmin> ...", where=where)
    raw.notes["objects with an HBB alone"] += 1
    return Instance.from_hbb(category, hbb, difficult=difficult, extra=extra)


def _category(class_id: str, names: ClassMap, *, where: str) -> str:
    """The deepest class of the tree, from ``class_id`` upwards, that the class list knows."""
    if class_id not in HRSC_TREE:
        known = ", ".join(f"{k} {name}" for k, (name, _) in HRSC_TREE.items())
        raise UnknownClass(f"unknown <Class_ID> {class_id!r}", where=where, fix=f"known classes: {known}")
    key: str | None = class_id
    while key is not None:
        name, key = HRSC_TREE[key]
        if names.knows(name):
            return names.name(name, where=where)
    return names.name(HRSC_TREE[class_id][0], where=where)  # raises, and says what the list knows


def _size(tree: Element) -> tuple[int, int]:
    try:
        width, height = int(_text(tree, "Img_SizeWidth")), int(_text(tree, "Img_SizeHeight"))
    except ValueError:
        return 0, 0
    return (width, height) if 0 < width < 1_000_000 and 0 < height < 1_000_000 else (0, 0)


def _provenance(tree: Element) -> dict[str, Any]:
    told: dict[str, Any] = {}
    try:
        gsd = float(_text(tree, "Img_Resolution"))
        if 0 < gsd < 1000:
            told["gsd"] = gsd
    except ValueError:
        pass
    try:
        latitude, longitude = (float(v) for v in _text(tree, "Img_Location").split(","))
        if -90 <= latitude <= 90 and -180 <= longitude <= 180 and (latitude or longitude):
            told["location"] = [latitude, longitude]
    except ValueError:
        pass
    return told
