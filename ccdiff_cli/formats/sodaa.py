"""SODA-A as it lies on disk: one JSON file a picture.

``Annotations/{train,val,test}/NAME.json`` (or ``train/Annotations/``) and the pictures in ``Images/``, anywhere below the folder; the
name of a folder gives the split.  Followed: the SODA page (shaunyuan22.github.io/SODA), the description of its folders in SODA-mmrotate,
and torchgeo's documentation of the set.  A file is ``{"images": {"file_name", "width", "height", ...}, "annotations": [{"poly": [x1, y1,
... x4, y4], "category_id": 0, ...}], "categories": [{"id": 0, "name": "airplane"}, ...]}``.

* The OBB is ``poly``, in its order, counted from 0; what has more corners is a mask (the benchmark passes over those), and is counted.
* The class list is SODA-A's nine where the files' categories are among them, else their categories by id; the user's in their place.
* ``ignore`` (category 9) marks a region of objects too small or too dense to draw, of no class: left out and counted, like the category
  ``other``.  An object whose own flag ``ignore`` or ``iscrowd`` is set is kept as difficult, and counted.
* Where two folders hold the same files with and without regions (``AnnsWithIgnore``, ``AnnsWoIgnore``), ``Annotations`` is read, else the
  one with the regions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CCDiffError
from ..scene import ClassList, Instance
from .classes import ClassMap, clean_name, over, plain_name
from .common import Labelled, add_scenes, declared, of_outline, split_of_folders
from .raw import Faults, PictureFinder, RawSet, files_below, first_files, number, parse_json, read_head, read_text

REGIONS = ("ignore", "ignored", "ignored regions", "other", "others")
"""Categories that stand for no class, where the class list does not know them."""
_FOLDERS = ("annotations", "annswithignore", "annswoignore")
_ONE_PICTURE = re.compile(rb'"images"\s*:\s*(\[\s*)?\{')


def is_sodaa(root: Path) -> bool:
    """Whether the first files that have objects hold ``poly`` and the entry of a picture."""
    for path in first_files(root, (".json",), 20):
        head = read_head(path, 200_000)
        if b'"poly"' in head and b'"annotations"' in head and (_ONE_PICTURE.search(head) or b'"images"' not in head):
            return True
    return False


def read_sodaa(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the folder.

    Raises:
        CCDiffError: a file that is not as above, an unknown category, a box that is not made of numbers, a picture that is missing.
    """
    faults = faults or Faults()
    files = _chosen(files_below(root, (".json",)))
    if not files:
        raise CCDiffError("no annotation files (Annotations/*.json)", where=root)
    names = over(classes, lambda: _class_map(files))
    raw = RawSet("sodaa", names.classes, [])
    pictures = PictureFinder(root, by_name=True)
    labelled = []
    for path in files:
        entry: Mapping[str, Any] | None = None
        with faults.leaving_out("annotation files"):
            entry = _load(path)
        if entry is None:
            pictures.forget(path.stem, labels=path)
            continue
        with faults.leaving_out("pictures"):
            about = entry.get("images") or {}
            name = about.get("file_name")
            picture = pictures.take(name if isinstance(name, str) and name else path.stem, labels=path, where=str(path))
            categories = _categories(entry, path)
            instances = []
            for k, annotation in enumerate(entry["annotations"], start=1):
                with faults.leaving_out("objects"):
                    found = _object(annotation, categories, names, raw, where=f"{path}: annotation {k}")
                    instances += [found] if found is not None else []
            size = declared(about.get("width"), about.get("height"))
            labelled.append(Labelled(picture, tuple(instances), size, split_of_folders(path, root)))
    add_scenes(raw, root, labelled)
    raw.skipped["pictures without annotations"] += pictures.left()
    raw.skipped, raw.notes = +raw.skipped, +raw.notes
    return raw


def _chosen(files: list[Path]) -> list[Path]:
    """The files of one folder where several hold the same annotations (see the module's opening)."""
    rank = {path: next((k for k, name in enumerate(_FOLDERS) if name in {p.lower() for p in path.parts}), None) for path in files}
    best = min((k for k in rank.values() if k is not None), default=None)
    return [path for path in files if rank[path] == best]


def _load(path: Path) -> Mapping[str, Any]:
    """A file's object, with ``images`` as the one entry it is."""
    entry = parse_json(read_text(path), where=path)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("annotations"), list):
        raise CCDiffError("expected an object with images, annotations, categories", where=path)
    about = entry.get("images")
    if isinstance(about, list) and len(about) == 1:
        about = about[0]
    if about is not None and not isinstance(about, Mapping):
        raise CCDiffError("images: expected the entry of one picture", where=path, fix="a COCO file of many is read with --format coco")
    return {**entry, "images": about}


def _categories(entry: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Category number -> name, as the file tells; SODA-A's own where it tells nothing."""
    listed = entry.get("categories") or [{"id": k, "name": name} for k, name in enumerate((*ClassMap.frozen("sodaa").classes, "ignore"))]
    try:
        return {int(c["id"]): clean_name(c["name"], where=f"{path}: category {c['id']}") for c in listed}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CCDiffError(f"categories: expected id and name, found {type(error).__name__}: {error!s:.80}", where=path) from error


def _class_map(files: list[Path]) -> ClassMap:
    """The classes, from a reading of their own: what a million objects say would fill the memory."""
    found: Counter[str] = Counter()
    by_id: dict[int, str] = {}
    for path in files:
        try:
            categories = _categories(_load(path), path)
        except CCDiffError:
            continue  # said where it is read
        for k, name in categories.items():
            by_id.setdefault(k, name)
            found[name] += plain_name(name) not in map(plain_name, REGIONS)
    frozen = ClassMap.frozen("sodaa")
    named = +found
    if all(frozen.knows(name) for name in named):
        return frozen
    return ClassMap.of(ClassList(tuple(dict.fromkeys([by_id[k] for k in sorted(by_id) if by_id[k] in named] + sorted(named)))))


def _object(annotation: Any, categories: Mapping[int, str], names: ClassMap, raw: RawSet, *, where: str) -> Instance | None:
    if not isinstance(annotation, Mapping):
        raise CCDiffError(f"expected an object with poly and category_id, found {type(annotation).__name__}", where=where)
    label = annotation.get("category_id", annotation.get("cat_id"))
    if (isinstance(label, float) and label.is_integer()) or (isinstance(label, str) and label.isascii() and label.isdecimal()):
        label = int(label)
    if type(label) is not int or label not in categories:
        known = ", ".join(f"{k} {name}" for k, name in categories.items())
        raise CCDiffError(f"unknown category {label!r:.40}", where=where, fix=f"known categories: {known:.300}")
    spelling = categories[label]
    if plain_name(spelling) in map(plain_name, REGIONS) and not names.knows(spelling):
        raw.skipped[f"regions of the category {spelling!r}, which is no class"] += 1
        return None
    poly = annotation.get("poly")
    if isinstance(poly, list) and poly and all(isinstance(p, list) and len(p) == 2 for p in poly):
        poly = [v for point in poly for v in point]
    if not isinstance(poly, list) or len(poly) % 2:
        raise CCDiffError(f"poly: expected x1 y1 ... x4 y4, found {poly!r:.60}", where=where)
    ring = [number(v, where=where, what="poly") for v in poly]
    ignored = any(annotation.get(flag) in (1, True) for flag in ("ignore", "iscrowd"))
    raw.notes["objects to be ignored, kept as difficult"] += ignored
    extra = {"truncated": True} if annotation.get("trunc") in (1, True) else {}
    return of_outline(names.name(spelling, where=where), ring, raw, where=where, difficult=ignored, extra=extra)
