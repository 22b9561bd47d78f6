"""FAIR1M v1.0 and v2.0 as they lie on disk, and any XML that describes objects as they do.

``labelXml/NAME.xml`` (or ``labelXmls/``, ``Annotations/``, ...) anywhere below the folder, pictures anywhere (``images/``, ``images-1/``):
``train/part1/...``, ``validation/...``, ``test/...`` give the split.  Followed: Sun et al., "FAIR1M", ISPRS Journal 184 (2022), and the
annotation template of the Gaofen challenge, which both releases use::

    <annotation> <source><filename>0.tif</filename><origin>GF2/GF3</origin></source> <size>...</size>
      <objects> <object> <coordinate>pixel</coordinate> <type>rectangle</type> <possibleresult><name>Dry Cargo Ship</name></possibleresult>
        <points> <point>10.0,8.0</point> ... </points> </object> ... </objects> </annotation>

* The corners run around the box from any of them; the fifth point repeats the first.  Coordinates count from 0.
* The class list is ``classes.txt`` where the folder has one, FAIR1M's 37 classes where most objects have one of them (``--classes fair1m5``
  makes its five groups of them), else the names found, sorted.  Of several ``<possibleresult>`` the first counts.
* ``<origin>`` goes to the scene's provenance; an object's ``<description>`` and the ``<probability>`` that predictions have, to ``extra``.
* NOTE: the root element is VOC's; what tells the two apart is that the objects stand in ``<objects>``.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from ..errors import CCDiffError
from ..scene import ClassList, Instance
from .classes import ClassMap, clean_name, over, read_class_file
from .common import Labelled, add_scenes, of_outline, split_of_folders
from .raw import Faults, PictureFinder, RawSet, files_below, first_files, number, read_head
from .voc import declared_size, read_annotation

CLASSES = "classes.txt"
_BEGINS = re.compile(rb"<annotation[\s>].*?<(objects[\s/>]|possibleresult[\s/>])", re.DOTALL)


def is_fair1m(root: Path) -> bool:
    """Whether the first XML files below the folder begin as FAIR1M's; those of pictures without objects tell as well."""
    return root.is_dir() and any(_BEGINS.search(read_head(path, 8192)) for path in first_files(root, (".xml",), 5))


def read_fair1m(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the folder.

    Raises:
        CCDiffError: broken XML (with its line), an unknown class, a box that is not four points of pixels, a picture that is missing.
    """
    faults = faults or Faults()
    files = files_below(root, (".xml",))
    if not files:
        raise CCDiffError("no annotation files (labelXml/*.xml)", where=root)
    names = over(classes, lambda: _class_map(root, files))
    raw = RawSet("fair1m", names.classes, [])
    pictures = PictureFinder(root, by_name=True)
    labelled = []
    for path in files:
        tree = None
        with faults.leaving_out("annotation files"):
            tree = _read(path)
        if tree is None:
            pictures.forget(path.stem, labels=path)
            continue
        with faults.leaving_out("pictures"):
            name = _text(tree, "source/filename") or path.stem
            picture = _picture(pictures, path, name)
            instances = []
            for k, element in _objects(tree):
                with faults.leaving_out("objects"):
                    instances.append(_object(element, names, raw, where=f"{path}: object {k}"))
            origin = _text(tree, "source/origin")
            provenance = {"imagesource": origin} if origin else {}
            size = declared_size(tree) or (0, 0)
            labelled.append(Labelled(picture, tuple(instances), size, split_of_folders(path, root), provenance=provenance))
    add_scenes(raw, root, labelled)
    raw.skipped["pictures without annotations"] += pictures.left()
    raw.skipped = +raw.skipped
    return raw


def _picture(pictures: PictureFinder, path: Path, name: str) -> Path:
    """The namesake of the annotation file; the file it names where there is none."""
    try:
        return pictures.take(path.stem, labels=path, where=str(path))
    except CCDiffError:
        if name == path.stem:
            raise
    return pictures.take(name, labels=path, where=str(path))


def _read(path: Path) -> Element:
    tree = read_annotation(path)
    if tree.find("object") is not None:
        fix = "that is VOC's way: read such files apart, with --format voc"
        raise CCDiffError("objects stand outside of <objects>, where FAIR1M has none", where=path, fix=fix)
    return tree


def _objects(tree: Element) -> Iterator[tuple[int, Element]]:
    return enumerate(tree.iterfind("objects/object"), start=1)


def _text(element: Element, path: str) -> str:
    return " ".join((element.findtext(path) or "").split())


def _class_map(root: Path, files: list[Path]) -> ClassMap:
    """The classes, from a reading of their own: the trees of a million objects would fill the memory."""
    if (root / CLASSES).is_file():
        return read_class_file(root / CLASSES)
    frozen = ClassMap.frozen("fair1m")
    found: Counter[str] = Counter()
    for path in files:
        with contextlib.suppress(CCDiffError):  # said where it is read
            found.update(_text(element, "possibleresult/name") for _, element in _objects(_read(path)))
    if 2 * sum(count for name, count in found.items() if frozen.knows(name)) >= found.total():
        return frozen
    return ClassMap.of(ClassList(tuple(sorted({clean_name(name, where=str(root)) for name in found if name and name.isprintable()}))))


def _object(element: Element, names: ClassMap, raw: RawSet, *, where: str) -> Instance:
    possible = [" ".join((e.text or "").split()) for e in element.iterfind("possibleresult/name")]
    category = names.name(clean_name(possible[0] if possible else "", where=where), where=where)
    raw.notes["objects with several possible classes, the first kept"] += len(possible) > 1
    unit = _text(element, "coordinate").lower()
    if unit not in ("", "pixel", "pixels"):
        raise CCDiffError(f"<coordinate>: expected pixel, found {unit[:40]!r}", where=where, fix="convert the points to pixels")
    points = [p.text or "" for p in element.iterfind("points/point")]
    if len(points) < 4:
        raise CCDiffError(f"<points>: expected the four corners, found {len(points)} points", where=where)
    ring: list[float] = []
    for text in points:
        pair = text.split(",")
        if len(pair) != 2:
            raise CCDiffError(f"<point>: expected x,y, found {text.strip()[:40]!r}", where=where)
        ring += [number(v.strip(), where=where, what="<point>") for v in pair]
    extra: dict[str, Any] = {}
    if (said := _text(element, "description")) and said.lower() not in ("none", "null"):
        extra["description"] = said
    if probability := _text(element, "possibleresult/probability"):
        extra["score"] = number(probability, where=where, what="<probability>")
    return of_outline(category, ring, raw, where=where, extra=extra)
