"""DIOR-RSVG: a subset of DIOR with a referring phrase for every object.

``JPEGImages/`` (or DIOR's own picture folders), ``Annotations/NAME.xml`` as VOC with one ``<description>`` an object, kept in
``Instance.extra["description"]``; ``train.txt``, ``val.txt``, ``test.txt`` list objects, not pictures: numbers from 0, counted over the
annotation files in the order of their names.

* NOTE: such lists can spread the objects of one picture over train and test.  A picture cannot stand in two splits, so it goes to test if
  any of its objects does, else to val if any does, and brings all its objects: nothing listed for testing is trained on.  An object's own
  list is kept in ``extra["listed"]`` where it differs, and counted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import CCDiffError
from ..scene import Scene
from .classes import ClassMap, over
from .raw import Faults, RawSet, child, find_pictures, listed, text_lines
from .voc import ANNOTATIONS, begins_with_tag, declared_size, picture_of, read_annotation, voc_objects

PICTURES = ("JPEGImages", "JPEGImages-trainval", "JPEGImages-test")
_STRICTEST = ("test", "val", "train")


def is_rsvg(root: Path) -> bool:
    """Whether the folder has VOC annotations with descriptions."""
    return begins_with_tag(child(root, ANNOTATIONS), b"<description>")


def read_rsvg(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the folder; without lists every object is kept and no split is set.

    Raises:
        CCDiffError: broken XML, an unknown class, a list that names an object twice or one that does not exist, a missing picture.
    """
    faults = faults or Faults()
    names = over(classes, lambda: ClassMap.frozen("dior"))
    raw = RawSet("rsvg", names.classes, [])
    files = listed(child(root, ANNOTATIONS), ".xml")
    if not files:
        raise CCDiffError("no annotation files (*.xml)", where=root / ANNOTATIONS)
    folders = [child(root, name) for name in PICTURES]
    found = find_pictures(folders)
    trees = [read_annotation(path) for path in files]  # all of them: the lists count the objects through
    objects = [voc_objects(tree, names, faults, raw, where=path) for path, tree in zip(files, trees, strict=True)]
    split_of = _read_lists(root, sum(map(len, objects)))
    first = 0
    for path, tree, instances in zip(files, trees, objects, strict=True):
        own = [split_of.get(first + k, "") for k in range(len(instances))]
        first += len(instances)
        split = next((s for s in _STRICTEST if s in own), "")
        with faults.leaving_out("pictures"):
            picture = picture_of(path, tree, found, folders)
            if split_of and not split:
                raw.skipped["pictures with no object in a split list"] += 1
                raw.skipped["objects in no split list"] += len(instances)
                continue
            raw.notes["objects with a description"] += sum("description" in i.extra for i in instances if i is not None)
            raw.changes["objects listed for another split than their picture's"] += sum(s != split for s in own if s)
            if split_of:
                raw.notes["objects in no split list, kept with their picture"] += own.count("")
            pairs = [(i, s) for i, s in zip(instances, own, strict=True) if i is not None]
            kept = tuple(replace(i, extra={**i.extra, "listed": s}) if s != split else i for i, s in pairs)
            width, height = declared_size(tree) or (0, 0)
            raw.scenes.append(Scene(picture.name, width, height, kept, split, picture.stem, path=str(picture)))
    raw.skipped["pictures without annotations"] += len(found)
    raw.skipped, raw.notes, raw.changes = +raw.skipped, +raw.notes, +raw.changes  # without the zeros
    return raw


def _read_lists(root: Path, count: int) -> dict[int, str]:
    """Object number -> split; {} where there are no lists."""
    folder = next((f for f in (root, child(root, "ImageSets/Main"), child(root, "ImageSets")) if (f / "train.txt").is_file()), root)
    split_of: dict[int, str] = {}
    for split in reversed(_STRICTEST):
        path = folder / f"{split}.txt"
        if not path.is_file():
            continue
        for line_number, line in enumerate(text_lines(path), start=1):
            text = line.strip()
            if not text:
                continue
            where = f"{path}:{line_number}"
            if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < count):
                raise CCDiffError(
                    f"expected an object's number, 0 to {count - 1}, found {text!r:.40}",
                    where=where,
                    fix="the numbers count the objects of all annotation files: restore the missing ones, or read the folder as voc",
                )
            if int(text) in split_of:
                raise CCDiffError(
                    f"object {text} stands in {split_of[int(text)]} and again in {split}", where=where, fix="leave it in one list, once"
                )
            split_of[int(text)] = split
    return split_of
