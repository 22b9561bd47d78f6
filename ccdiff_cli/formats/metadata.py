"""CC-Diff's interchange file ``metadata.jsonl``, and what our exporter writes under that name.

One picture a line: ``file_name``, ``caption`` = [scene caption, class of object 1, ...], ``bndboxes`` = [[x1, y1, x2, y2], ...],
``obboxes`` = [[x1, y1, ..., x4, y4], ...], as shares of the picture's width and height, padded (to 6) with "" and zeros.  The file lies
beside its pictures, at the top or in ``train/``, ``val/`` and ``test/``; more than six objects are read.

* Pixels need the picture's size, so its header is opened.  One that does not open keeps its boxes as shares; `prepare` quarantines it.
* The class list is ``classes.txt`` where there is one (our exporter writes it), else the names found, sorted.
* An object without an OBB (zeros, or a file without ``obboxes``) keeps its HBB alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..dataset import SPLITS
from ..errors import CCDiffError
from ..files import inside, is_file
from ..pictures import UnreadablePicture, labelled_size
from ..scene import ClassList, Instance, Scene
from .classes import ClassMap, clean_name, over, read_class_file
from .dota import tile_source
from .raw import SPLIT_WORDS, Faults, RawSet, child, count_unnamed, in_order, missing_picture, number, parse_json, read_head, read_text

METADATA = "metadata.jsonl"
CLASSES = "classes.txt"
REACH = (-1.0, 2.0)
"""Shares beyond this are pixels, or nonsense."""


def is_metadata(root: Path) -> bool:
    """Whether the path is a ``metadata.jsonl`` with boxes, or a folder with one."""
    return any(b'"bndboxes"' in read_head(path, 200_000) for path, _ in _files(root))


def read_metadata(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the file or the folder; the split is the name of the file's folder, where that is one.

    Raises:
        CCDiffError: a line that is not as above, an unknown class, a picture that is missing or named twice.
    """
    files = _files(root)
    if not files:
        raise CCDiffError(f"no {METADATA}, at the top or in {', '.join(SPLITS)}", where=root)
    faults = faults or Faults()
    entries = [(where, path.parent, split, entry) for path, split in files for where, entry in _entries(path, faults)]
    names = over(classes, lambda: _class_map(root, entries, faults))
    raw = RawSet("metadata", names.classes, [])
    seen: dict[Path, str] = {}
    file_names: dict[str, str] = {}
    for where, folder, split, entry in entries:
        with faults.leaving_out("lines"):
            picture = _picture(folder, entry, where=where)
            if seen.setdefault(picture, where) != where:
                raise CCDiffError(f"the picture {picture.name} stands in {seen[picture]} too", where=where, fix="keep one of the lines")
            try:
                width, height = labelled_size(picture)
            except UnreadablePicture:
                width = height = 0
            instances = tuple(_instances(entry, names, (width or 1, height or 1), raw, faults, where=where))
            name = picture.relative_to(folder).as_posix()
            if name in file_names:  # 1.png of train and 1.png of test
                name = f"{folder.name}/{name}"
            if file_names.setdefault(name, where) != where:
                raise CCDiffError(f"two pictures are called {name}", where=where, fix="rename one of them")
            caption = _texts(entry, where=where)[0]
            source = tile_source(re.sub(r"\.[^./]+$", "", name))
            raw.scenes.append(Scene(name, width, height, instances, split, source, caption, str(picture)))
    named = [str(entry.get("file_name")) for _, _, _, entry in entries]
    count_unnamed(raw, named, {Path(str(scene.path)).parent for scene in raw.scenes})
    return raw


def _files(root: Path) -> list[tuple[Path, str]]:
    """The metadata files with their split."""
    if is_file(root):
        return [(root, SPLIT_WORDS.get(root.resolve().parent.name.lower(), ""))] if root.suffix == ".jsonl" else []
    if is_file(root / METADATA):
        return [(root / METADATA, SPLIT_WORDS.get(root.resolve().name.lower(), ""))]
    return [(path, split) for name, split in SPLIT_WORDS.items() if is_file(path := child(root, name) / METADATA)]


def _entries(path: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line_number, line in enumerate(read_text(path).split("\n"), start=1):  # not splitlines: a caption may hold any other line end
        if not line.strip():
            continue
        where = f"{path}:{line_number}"
        entry = None
        with faults.leaving_out("JSON lines"):
            entry = parse_json(line, where=where)
            if not isinstance(entry, Mapping):
                raise CCDiffError(f"expected an object with file_name, caption, bndboxes, found {type(entry).__name__}", where=where)
        if isinstance(entry, Mapping):
            yield where, entry


def _class_map(root: Path, entries: list[tuple[str, Path, str, Mapping[str, Any]]], faults: Faults) -> ClassMap:
    top = root.resolve() if root.is_dir() else root.resolve().parent
    for folder in (top, top.parent) if top.name.lower() in SPLIT_WORDS else (top,):
        if is_file(folder / CLASSES):
            return read_class_file(folder / CLASSES)
    found: set[str] = set()
    for where, _, _, entry in entries:
        with faults.leaving_out("lists of classes"):
            found |= {clean_name(text, where=where) for text in _texts(entry, where=where)[1:] if text}
    if not found:
        raise CCDiffError("no object has a class", where=root, fix=f"name the classes in {CLASSES}, one a line, or with --classes")
    return ClassMap.of(ClassList(tuple(sorted(found))))


def _picture(folder: Path, entry: Mapping[str, Any], *, where: str) -> Path:
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise CCDiffError(f"file_name: expected a text, found {type(name).__name__}", where=where)
    for base in (folder, folder / "images"):
        picture = inside(base, name, where=where)
        if is_file(picture):
            return picture
    raise missing_picture(name, where=where, looked=str(folder))


def _texts(entry: Mapping[str, Any], *, where: str) -> list[str]:
    """Scene caption, then the class of every object and of the padding ("")."""
    texts = entry.get("caption")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise CCDiffError("caption: expected a list of texts, the scene's and one an object", where=where)
    return [" ".join(t.split()) for t in texts]


def _instances(
    entry: Mapping[str, Any], names: ClassMap, size: tuple[int, int], raw: RawSet, faults: Faults, *, where: str
) -> Iterator[Instance]:
    texts = _texts(entry, where=where)[1:]
    boxes = _rows(entry.get("bndboxes"), 4, "bndboxes", len(texts), where=where)
    corners = _rows(entry["obboxes"], 8, "obboxes", len(texts), where=where) if "obboxes" in entry else [[0.0] * 8] * len(texts)
    for k, (text, box, turned) in enumerate(zip(texts, boxes, corners, strict=True), start=1):
        if not text and not any(box) and not any(turned):
            continue
        found = None
        with faults.leaving_out("objects"):
            found = _instance(text, box, turned, names, size, raw, where=where, k=k)
        if found is not None:
            yield found


def _instance(
    text: str, box: list[float], turned: list[float], names: ClassMap, size: tuple[int, int], raw: RawSet, *, where: str, k: int
) -> Instance:
    if not text:
        raise CCDiffError(f"object {k} has a box and no class", where=where, fix="give its class in caption, or zeros as its box")
    category = names.name(text, where=f"{where}: object {k}")
    if not any(box) and not any(turned):
        raise CCDiffError(f"object {k}, {text!r}, has a class and no box", where=where, fix="give its box, or an empty text as its class")
    hbb = in_order(raw, [v * size[j % 2] for j, v in enumerate(box)], where=f"{where}: object {k}") if any(box) else None
    if any(turned):
        return Instance.from_corners(category, [v * size[j % 2] for j, v in enumerate(turned)], hbb)
    assert hbb is not None
    return Instance.from_hbb(category, hbb)


def _rows(rows: Any, length: int, key: str, count: int, *, where: str) -> list[list[float]]:
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(r, list) and len(r) == length for r in rows):
        found = f"{len(rows)} entries" if isinstance(rows, list) else type(rows).__name__
        raise CCDiffError(f"{key}: expected {count} lists (as many as caption has classes) of {length} numbers, found {found}", where=where)
    values = [[number(v, where=where, what=key) for v in row] for row in rows]
    for row in values:
        for v in row:
            if not REACH[0] <= v <= REACH[1]:
                raise CCDiffError(f"{key}: expected shares from 0 to 1, found {v:g}", where=where, fix="divide by the picture's size")
    return values
