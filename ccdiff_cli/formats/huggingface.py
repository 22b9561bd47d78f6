"""The ``imagefolder`` of Hugging Face's datasets for object detection, and what our exporter writes under that name.

``metadata.jsonl`` or ``metadata.parquet`` beside the pictures, at the top or in ``train/``, ``validation/`` and ``test/`` (also below
``data/``), whose name is the split.  Followed: the pages "ImageFolder" and "Object detection" of datasets' documentation: ``file_name`` and
``objects``, a mapping of lists as long as there are objects (or a list of mappings), with ``bbox`` = x, y, width, height in pixels and
``category`` (also ``categories``, ``label``, ...), a number or a name.

* Our exporter also writes ``name``, ``corners``, ``oriented``, ``difficult`` and ``mask`` of an object, ``text`` (the caption), ``source``,
  ``width`` and ``height`` of a picture: all are read back, ``area`` is not needed.
* The classes are those of ``classes.txt`` (category numbers count its lines from 0) or of the user's class list, else the names found,
  sorted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CCDiffError
from ..files import is_file, read_bytes
from ..pictures import SUFFIXES
from ..scene import ClassList, Instance, Scene
from .classes import ClassMap, clean_name, over, read_class_file
from .common import declared, split_of_folders
from .dota import tile_source
from .raw import (
    Faults,
    PictureFinder,
    RawSet,
    UnknownClass,
    count_unnamed,
    files_below,
    first_files,
    flag,
    number,
    parse_json,
    read_head,
    read_text,
)

METADATA = ("metadata.jsonl", "metadata.parquet")
CLASSES = "classes.txt"
_CATEGORY = ("category", "categories", "category_id", "label", "labels", "class_label")
_OURS = ("name", "corners", "oriented", "difficult", "mask", "iscrowd")
_OBJECTS = re.compile(rb'"objects"\s*:\s*[\[{n]')


def is_huggingface(root: Path) -> bool:
    """Whether a ``metadata.jsonl`` or ``metadata.parquet`` below the folder (or the file itself) has objects."""
    return any(_has_objects(path) for path in _files(root, first=True))


def _has_objects(path: Path) -> bool:
    head = read_head(path, 200_000)
    if path.suffix == ".jsonl":
        return _OBJECTS.search(head) is not None and b'"bndboxes"' not in head
    return head.startswith(b"PAR1") and b"objects" in path.read_bytes()[-200_000:]  # the schema stands at the end


def read_huggingface(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the file, or all of them below the folder.

    Raises:
        CCDiffError: a line that is not as above, an unknown class, a picture that is missing or named twice.
    """
    faults = faults or Faults()
    folder = root if root.is_dir() else root.parent
    files = _files(root)
    if not files:
        raise CCDiffError(f"no {' or '.join(METADATA)}", where=root)
    entries: list[tuple[str, Path, Mapping[str, Any]]] = []
    named: list[str] = []
    for path in files:
        with faults.leaving_out("files"):
            entries += [(where, path, entry) for where, entry in _entries(path, faults, named)]
    spellings, names = class_names(folder, classes, [entry for _, _, entry in entries])
    raw = RawSet("huggingface", names.classes, [])
    finder, seen = PictureFinder(folder), dict[Path, str]()
    for where, path, entry in entries:
        with faults.leaving_out("pictures"):
            name = entry.get("file_name")
            if not isinstance(name, str):
                raise CCDiffError(f"file_name: expected a text, found {type(name).__name__}", where=where)
            picture = finder.find(name, where=where, near=path.parent)
            if seen.setdefault(picture, where) != where:
                raise CCDiffError(f"the picture {picture.name} stands in {seen[picture]} too", where=where, fix="keep one of the lines")
            scene = scene_of(entry, spellings, names, raw, faults, where=where, split=split_of_folders(path, folder))
            if picture.parts[-len(parts := PurePosixPath(name).parts) :] != parts:  # a path of another machine
                scene = scene.replace(file_name=picture.name, source=tile_source(picture.stem))
            raw.scenes.append(scene.replace(path=str(picture)))
    count_unnamed(raw, named, {path.parent for path in files_below(folder, SUFFIXES)})
    rename_alike(raw, folder)
    return raw


def _files(root: Path, *, first: bool = False) -> list[Path]:
    if root.is_file():
        return [root] if root.name.endswith(METADATA) else []
    if not root.is_dir():
        return []
    found = [path for name in METADATA if is_file(path := root / name)]
    below = first_files(root, METADATA, 3) if first else files_below(root, METADATA)
    return found or [path for path in below if path.name in METADATA]


def _entries(path: Path, faults: Faults, named: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where and what of each line; ``named`` gets the names of all pictures, broken lines' as well."""
    lines: Iterable[tuple[str, Any]]
    if path.suffix == ".parquet":
        lines = ((f"{path}: row {k}", row) for k, row in enumerate(_parquet_rows(path), start=1))
    else:  # not splitlines: a caption may hold any other line end
        lines = ((f"{path}:{k}", line) for k, line in enumerate(read_text(path).split("\n"), start=1) if line.strip())
    for where, line in lines:
        with faults.leaving_out("lines"):
            entry = parse_json(line, where=where) if isinstance(line, str) else line
            if not isinstance(entry, Mapping):
                raise CCDiffError(f"expected an object with file_name and objects, found {type(entry).__name__}", where=where)
            named.append(str(entry.get("file_name")))
            objects_of(entry, where=where)
            yield where, entry


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CCDiffError("reading Parquet needs the package pyarrow", where=path, fix="pip install pyarrow") from error
    try:
        return parquet.read_table(pyarrow.BufferReader(read_bytes(path))).to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError, KeyError, TypeError) as error:
        raise CCDiffError(f"not a Parquet file: {error!s:.200}", where=path, fix="restore the file") from error


# --------------------------------------------------------------------------------------------------------- examples (webdataset's too)


def class_names(folder: Path, classes: ClassMap | None, entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], ClassMap]:
    """The name of every category number, as the source spells it, and the class map."""
    if is_file(folder / CLASSES):
        own = read_class_file(folder / CLASSES)
        return list(own.classes), over(classes, lambda: own)
    if classes is not None and not classes.adds:
        return list(classes.classes), classes

    def found() -> ClassMap:
        spelled = {name for entry in entries for each in objects_of(entry, where="") if isinstance(name := _category(each), str)}
        if not spelled:
            fix = f"name the classes in {CLASSES}, one a line in the order of their numbers, or with --classes"
            raise CCDiffError("nothing names the classes of the objects", where=folder, fix=fix)
        return ClassMap.of(ClassList(tuple(sorted({clean_name(name, where=str(folder)) for name in spelled}))))

    return [], over(classes, found)


def objects_of(entry: Mapping[str, Any], *, where: str) -> list[Mapping[str, Any]]:
    """The objects of an example, each a mapping.

    Raises:
        CCDiffError: lists of different lengths, something else.
    """
    objects = entry.get("objects")
    if isinstance(objects, Mapping):
        lists = {key: objects[key] for key in ("bbox", *_CATEGORY, *_OURS) if objects.get(key) is not None}
        count = len(lists["bbox"]) if isinstance(lists.get("bbox"), list) else 0
        for key, values in lists.items():
            if not isinstance(values, list) or len(values) != count:
                found = f"{len(values)} entries" if isinstance(values, list) else type(values).__name__
                raise CCDiffError(f"objects: {key}: expected a list of {count}, as bbox has, found {found}", where=where)
        return [{key: values[k] for key, values in lists.items()} for k in range(count)]
    if objects is None:
        return []
    if not isinstance(objects, list) or not all(isinstance(each, Mapping) for each in objects):
        raise CCDiffError(f"objects: expected lists of bbox and category, found {type(objects).__name__}", where=where)
    return list(objects)


def scene_of(
    entry: Mapping[str, Any], spellings: Sequence[str], names: ClassMap, raw: RawSet, faults: Faults, *, where: str, split: str
) -> Scene:
    """The scene of an example, without its path."""
    instances = []
    for k, each in enumerate(objects_of(entry, where=where), start=1):
        with faults.leaving_out("objects"):
            instances.append(_instance(each, spellings, names, raw, where=f"{where}: object {k}"))
    caption = entry.get("text", entry.get("caption"))
    name = str(entry.get("file_name") or "")
    source = entry.get("source")
    return Scene(
        name, *declared(entry.get("width"), entry.get("height")), tuple(instances), split,
        source if isinstance(source, str) and source else tile_source(re.sub(r"\.[^./]+$", "", name)),
        " ".join(caption.split()) if isinstance(caption, str) else "",
    )  # fmt: skip


def rename_alike(raw: RawSet, folder: Path) -> None:
    """Names that several folders use become paths below ``folder``."""
    counts: dict[str, int] = {}
    for scene in raw.scenes:
        counts[scene.file_name] = counts.get(scene.file_name, 0) + 1
    raw.scenes = [
        s if counts[s.file_name] == 1 else s.replace(file_name=Path(str(s.path)).relative_to(folder).as_posix()) for s in raw.scenes
    ]


def _category(each: Mapping[str, Any]) -> object:
    return next((each[key] for key in ("name", *_CATEGORY) if each.get(key) is not None), None)


def _instance(each: Mapping[str, Any], spellings: Sequence[str], names: ClassMap, raw: RawSet, *, where: str) -> Instance:
    label = _category(each)
    if isinstance(label, int | float) and not isinstance(label, bool) and label == label // 1:
        label = int(label)
        if not 0 <= label < len(spellings):
            known = ", ".join(f"{k} {name}" for k, name in enumerate(spellings)) or f"none; name them in {CLASSES}"
            raise UnknownClass(f"unknown category {label}", where=where, fix=f"known categories: {known:.300}")
        label = spellings[label]
    category = names.name(clean_name(label, where=where), where=where)
    x, y, w, h = _row(each.get("bbox"), 4, "bbox: expected x, y, width, height", where)
    if w < 0 or h < 0:
        raise CCDiffError("bbox: expected a width and a height that are not negative", where=where)
    difficult, crowd = (flag(each.get(key), what=key, where=where) for key in ("difficult", "iscrowd"))
    raw.notes["groups (iscrowd) kept as difficult"] += crowd
    polygons = each.get("mask") or []
    if not isinstance(polygons, list) or not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        raise CCDiffError(f"mask: expected polygons x1 y1 x2 y2 ..., found {polygons!r:.60}", where=where)
    mask = tuple(tuple(number(v, where=where, what="mask") for v in p) for p in polygons)
    more: dict[str, Any] = {"difficult": difficult or crowd, "mask": mask}
    hbb = (x, y, x + w, y + h)
    if each.get("corners") is None or not flag(each.get("oriented", True), what="oriented", where=where):
        return Instance.from_hbb(category, hbb, **more)
    return Instance.from_corners(category, _row(each["corners"], 8, "corners: expected x1 y1 ... x4 y4", where), hbb, **more)


def _row(values: Any, length: int, expected: str, where: str) -> list[float]:
    if not isinstance(values, list) or len(values) != length:
        raise CCDiffError(f"{expected}, found {values!r:.60}", where=where)
    return [number(v, where=where, what=expected.partition(":")[0]) for v in values]
