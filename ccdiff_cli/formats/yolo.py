"""YOLO and YOLO-OBB folders, as ultralytics describes them and as our exporter writes them.

``data.yaml`` names the classes and the splits; ``images/.../NAME.jpg`` has its labels in ``labels/.../NAME.txt`` (the last ``images``
becomes ``labels``; a picture in no such folder has them beside it).  All coordinates are shares of the picture's width and height:

* ``yolo``: ``class cx cy w h`` is an HBB, ``class x1 y1 ... xn yn`` an outline, whose minimum-area rectangle is the OBB;
* ``yolo-obb``: ``class x1 y1 x2 y2 x3 y3 x4 y4``.

Without a ``data.yaml``, darknet's ``obj.data`` is read, else the folders are those it would name (``images/train``, ``train/images``,
``train``, ``images``), the lists ``train.txt`` ..., or the folder itself with labels beside the pictures (labelImg); the names are those of
``classes.txt``, ``obj.names``, ``_darknet.labels`` or of the user's class file.  A picture without a label file has no objects: the
format says so.

NOTE: paths in a ``data.yaml`` come from another machine more often than not (``../train/images``, ``/home/someone/set/images/train``).  The
longest end of a path that exists below the folder is taken, so nothing outside the folder is ever read.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CCDiffError
from ..files import is_file
from ..geometry import min_area_corners
from ..pictures import SUFFIXES, UnreadablePicture, labelled_size
from ..scene import ClassList, Instance, Scene
from ..settings import parse_yaml
from .classes import ClassMap, clean_name, over
from .dota import tile_source
from .raw import (
    SPLIT_WORDS,
    Faults,
    PictureFinder,
    RawSet,
    UnknownClass,
    below,
    child,
    files_below,
    is_litter,
    lines_of,
    listed,
    missing_picture,
    number,
    read_head,
    read_split_lists,
    read_text,
    same_name,
    some,
    split_words,
    text_lines,
)  # fmt: skip

DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NOT_LABELS = ("classes.txt", *(f"{name}.txt" for name in SPLIT_WORDS))
NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt")
_LABEL_LINE = re.compile(rb"\d+(\.0*)?([ \t]+[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?){4,}")
REACH = (-1.0, 2.0)
"""Shares outside are pixels or rubbish; a little outside [0, 1] is an object that reaches out of its picture."""


def is_yolo(root: Path) -> bool:
    """Whether the path is a YOLO folder (or its ``data.yaml``) whose labels are not OBBs."""
    return _field_count(root) not in (None, 9)


def is_yolo_obb(root: Path) -> bool:
    """Whether the path is a YOLO folder (or its ``data.yaml``) whose first object has four corners."""
    return _field_count(root) == 9


def read_yolo(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read a folder of horizontal boxes or outlines; see :func:`read_yolo_obb`."""
    return _read(root, classes, faults or Faults(), "yolo", _box_or_outline)


def read_yolo_obb(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read a folder, or its ``data.yaml``. Headers of pictures are read, because labels are shares of their size.

    Raises:
        CCDiffError: a broken ``data.yaml``, no class names, a broken line, a class number without a name, a folder or picture that is
            missing, a picture in two splits.
    """
    return _read(root, classes, faults or Faults(), "yolo-obb", _oriented_box)


def _read(root: Path, classes: ClassMap | None, faults: Faults, format: str, instance_of: _InstanceOf) -> RawSet:
    source = _open(root)
    folder = source.folder
    spellings = _class_names(source, classes)
    names = over(classes, lambda: ClassMap.of(ClassList(tuple(spellings.values()))))
    raw = RawSet(format, names.classes, [])
    split_of = _pictures(source, raw, faults)
    pictures = sorted(split_of)
    if not pictures and faults.counts:
        raise CCDiffError("none of the listed pictures lies below the folder", where=folder, fix="put the pictures into images/")
    if not pictures:
        raise CCDiffError("no pictures in the folders of the set", where=folder, fix="put the pictures into images/train, images/val, ...")
    lists = read_split_lists(child(folder, "splits"), [p.stem for p in pictures], faults) if not any(split_of.values()) else {}
    where_labels = _label_folders(folder, pictures)
    labels = _label_files(pictures, where_labels)
    if not any(is_file(path) for path in labels.values()):
        among = some(sorted({p.relative_to(folder).as_posix() for p in where_labels.values()}), 3)
        raise CCDiffError(f"none of the {len(pictures)} pictures has a label file in {among}/", where=folder, fix="put NAME.txt there")

    points = _keypoint_fields(source)

    def read_line(size: tuple[int, int], fields: list[str], where: str) -> Instance:
        if points and len(fields) == 5 + points:
            raw.notes["keypoints of boxes, passed over"] += 1
            fields = fields[:5]
        return instance_of(_line(fields, spellings, names, size, where), raw)

    for path, count in Counter(labels.values()).items():
        if count > 1 and is_file(path):
            raw.change("label files that several pictures of one name share, used for each", str(path), f"{count} pictures")
    for picture, file_name in zip(pictures, _file_names(folder, pictures), strict=True):
        if lists and picture.stem not in lists:
            raw.skipped["pictures in no split list"] += 1
            continue
        try:
            width, height = labelled_size(picture)
        except UnreadablePicture:
            # whoever opens the picture next will say so; its objects are counted all the same, in a picture of one by one
            width, height = 0, 0
        instances: list[Instance] = []
        with faults.leaving_out("label files"):
            if os.path.lexists(labels[picture]):  # a link to nowhere is a label file that is lost, not a picture without objects
                instances = _read_labels(labels[picture], faults, partial(read_line, (width or 1, height or 1)))
            else:
                raw.notes["pictures without a label file, taken as without objects"] += 1
            split = lists.get(picture.stem, split_of[picture])
            raw.scenes.append(Scene(file_name, width, height, tuple(instances), split, _source(file_name), path=str(picture)))
    _unused(folder, labels, set(where_labels.values()), raw, faults)
    return raw


def _label_folders(folder: Path, pictures: Iterable[Path]) -> dict[Path, Path]:
    """Folder of pictures -> that of their labels: the last folder ``images`` below ``folder`` becomes ``labels``."""
    found = {}
    for parent in dict.fromkeys(p.parent for p in pictures):
        parts = parent.relative_to(folder).parts
        k = next((k for k in range(len(parts) - 1, -1, -1) if parts[k].lower() == "images"), None)
        found[parent] = parent if k is None else child(folder.joinpath(*parts[:k]), "/".join(("labels", *parts[k + 1 :])))
    return found


def _label_files(pictures: Iterable[Path], where_labels: Mapping[Path, Path]) -> dict[Path, Path]:
    """Picture -> its labels, which need not be there: in their folder, or beside it where only there is a file; in any case of letters."""
    present: dict[Path, dict[str, Path]] = {}

    def look(folder: Path, stem: str) -> Path | None:
        if folder not in present:
            present[folder] = {same_name(p.stem): p for p in listed(folder, ".txt")}
        path = folder / f"{stem}.txt"
        return path if is_file(path) else present[folder].get(same_name(stem))

    found = {}
    for picture in pictures:
        folder = where_labels[picture.parent]
        found[picture] = look(folder, picture.stem) or look(picture.parent, picture.stem) or folder / f"{picture.stem}.txt"
    return found


def _unused(folder: Path, labels: Mapping[Path, Path], label_folders: set[Path], raw: RawSet, faults: Faults) -> None:
    """Count the pictures below the folder that are in no split, and the label files that no picture has.

    Args:
        labels: of the pictures of the set.
    """
    others = [p for p in files_below(folder, SUFFIXES) if p not in labels and p.is_file()]
    raw.skipped["pictures in no split list"] += len(others)
    present = {p for label_folder in label_folders for p in listed(label_folder, ".txt") if p.name not in _NOT_LABELS}
    unknown = present - set(labels.values()) - set(_label_files(others, _label_folders(folder, others)).values())
    for path in sorted(p for p in unknown if _looks_like_labels(read_head(p, 2000))):
        with faults.leaving_out("label files"):
            raise missing_picture(path.stem, where=path)


def _looks_like_labels(head: bytes) -> bool:
    """Whether a file's first line is a class number and shares, and nothing else."""
    lines = [line for line in head.splitlines() if line.strip()]
    return bool(lines) and _LABEL_LINE.fullmatch(lines[0].strip()) is not None


def _source(file_name: str) -> str:
    """The source of a picture; a name without its folder and tile offset, so that tiles of one scene stay together."""
    name = PurePosixPath(file_name)
    return (name.parent / tile_source(name.stem)).as_posix()


# ----------------------------------------------------------------------------------------------------------- description and classes


@dataclass(frozen=True)
class _Source:
    """A folder, its description file and what that says; no file and nothing where the folder has none."""

    folder: Path
    file: Path | None
    keys: dict[str, Any]


def _open(root: Path) -> _Source:
    path = root if root.is_file() else next((p for name in DESCRIPTIONS if is_file(p := child(root, name))), None)
    if path is None:
        darknet = [p for base in (root, child(root, "data"), child(root, "cfg")) for p in listed(base, ".data")]
        path = next((p for p in darknet if re.search(rb"(?m)^\s*names\s*=", read_head(p, 4096))), None)
    if path is None:
        return _Source(root, None, {})
    text = read_text(path)
    if path.suffix == ".data":
        return _Source(path.parent if root.is_file() else root, path, _darknet(text))
    found = parse_yaml(text, where=path)
    if not isinstance(found, dict):
        raise CCDiffError(f"expected a mapping with names, train and val, found {type(found).__name__}", where=path)
    return _Source(path.parent, path, found)


def _darknet(text: str) -> dict[str, Any]:
    """What darknet's ``obj.data`` says, under the keys of a ``data.yaml``; ``names`` is a file's name there."""
    pairs = [line.partition("=") for line in lines_of(text) if "=" in line and not line.lstrip().startswith("#")]
    keys: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    return {key: keys[key] for key in SPLIT_WORDS if keys.get(key)} | {"name_file": keys.get("names", "")}


def _class_names(source: _Source, classes: ClassMap | None) -> dict[int, str]:
    """Class number -> name, as the source spells it."""
    if source.file is not None and source.keys.get("names") is not None:
        return _described_names(source.file, source.keys)
    if (path := _name_file(source)) is not None:
        return dict(enumerate(_checked_names(_listed_names(read_text(path)), path)))
    if classes is not None and not classes.adds:
        return dict(enumerate(classes.classes))
    raise CCDiffError(
        "nothing names the classes: no data.yaml with names, no classes.txt, no obj.names",
        where=source.folder,
        fix="give a class file (--classes), one class a line, in the order of the class numbers",
    )


def _listed_names(text: str) -> list[str]:
    """The names of a file, one a line: without comments (``# ...``), quotes, and numbers where every line begins with its own."""
    lines = [line.strip() for line in lines_of(text) if line.strip() and not line.startswith("# ")]
    numbered = [re.fullmatch(rf"{k}\s*[:\s]\s*(.+)", line) for k, line in enumerate(lines)]
    if all(numbered):
        lines = [match.group(1) for match in numbered if match]
    return [line[1:-1] if len(line) > 2 and line[0] == line[-1] and line[0] in "'\"" else line for line in lines]


def _name_file(source: _Source) -> Path | None:
    """The file that lists the names, one a line: the one that obj.data names, or one of the usual name in the usual places."""
    folder = source.folder
    if (said := source.keys.get("name_file")) and (path := below(folder, said)) is not None and is_file(path):
        return path
    places = [
        folder,
        *(child(folder, name) for name in ("labels", "images", *SPLIT_WORDS)),
        *(child(folder, f"labels/{name}") for name in SPLIT_WORDS),
    ]
    usual = [path for name in NAME_FILES for place in places if is_file(path := child(place, name))]
    return next(iter((*usual, *listed(folder, ".names"))), None)


def _described_names(path: Path, keys: dict[str, Any]) -> dict[int, str]:
    """The names of a description: a list, or a mapping whose numbers may begin at 1 or have gaps."""
    names = keys["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        what = f"names: expected a list of class names, or numbers with names, found {type(names).__name__}"
        raise CCDiffError(what, where=path, fix="names: [ship, plane], or leave names out and list them, one a line, in classes.txt")
    named = [(int(k) if isinstance(k, str) and k.isascii() and k.isdigit() and len(k) < 9 else k, name) for k, name in names.items()]
    names = dict(sorted(named)) if all(type(k) is int and k >= 0 for k, _ in named) else {}
    if len(names) != len(named):
        raise CCDiffError("names: expected class numbers, 0 or more, each once", where=path, fix="names: {0: ship, 1: plane}")
    for k, name in names.items():
        if not isinstance(name, str) and not (type(name) in (int, float) and abs(name) < 1e9):
            raise CCDiffError(f"names: class {k} is a {type(name).__name__}, not a name", where=path, fix='write the name in quotes: "yes"')
    if "nc" in keys and keys["nc"] != len(names):
        raise CCDiffError(f"nc is not {len(names)}, the number of names", where=path, fix="correct nc, or leave it out")
    return dict(zip(names, _checked_names([str(name) for name in names.values()], path), strict=True))


def _keypoint_fields(source: _Source) -> int:
    """How many fields of a line follow its box where the description says ``kpt_shape: [points, numbers of each]``, else 0."""
    match source.keys.get("kpt_shape"):
        case [int(count), int(numbers)] if count > 0 and numbers in (2, 3):
            return count * numbers
    return 0


def _checked_names(names: list[str], path: Path) -> list[str]:
    try:
        return list(ClassList(tuple(clean_name(name, where=str(path)) for name in names)))
    except CCDiffError as error:
        raise CCDiffError(error.what, where=path) from error


# ------------------------------------------------------------------------------------------------------------------------- pictures


def _pictures(source: _Source, raw: RawSet, faults: Faults) -> dict[Path, str]:
    """Every picture with its split.

    Raises:
        CCDiffError: a folder, list or picture that is missing, a picture in two splits.
    """
    named: dict[str, list[Path]] = {}
    for split, text, entry in _entries(source):
        if entry is None and split == "test":  # many sets are published without their test pictures
            raw.skipped[f"test folders that are named and do not exist ({text:.80})"] += 1
            continue
        if entry is None:
            raise CCDiffError(
                f"{split}: {text!r:.80} is not below {source.folder}",
                where=source.file,
                fix="name the folders of pictures relative to this file",
            )
        named.setdefault(split, []).extend(_pictures_of(entry, source, faults))
    split_of: dict[Path, str] = {}
    for split, found in named.items():
        again = next((other for other in named if other != split and found and set(named[other]) == set(found)), None)
        if again in split_of.values():
            # detectors want a `val`: without one, people name the training pictures twice
            raw.notes[f"pictures of {again} that {split} names again"] += len(found)
            continue
        for picture in found:
            if split_of.setdefault(picture, split) != split:
                raise CCDiffError(
                    f"the picture {picture.relative_to(source.folder)} is in {split_of[picture]} and in {split}",
                    where=source.file or source.folder,
                    fix="leave it in one of them: a folder's pictures are those of the folders in it, too",
                )
    return split_of


def _entries(source: _Source) -> Iterator[tuple[str, str, Path | None]]:
    """Split, how the source names its folder or list, and where that is; None where it is not."""
    if not any(source.keys.get(key) for key in SPLIT_WORDS):
        yield from ((split, str(path), path) for split, path in _usual_places(source.folder))
        return
    prefix = source.keys.get("path") or ""
    for key, split in split_words(source.keys.get).items():
        value = source.keys[key]
        for entry in value if isinstance(value, list) else [value] if value else []:
            if not isinstance(entry, str) or not isinstance(prefix, str):
                raise CCDiffError(f"{key}: expected a folder or a list of folders, found a {type(entry).__name__}", where=source.file)
            yield split, entry, _below(source.folder, entry) or _below(source.folder, f"{prefix}/{entry}")


def _usual_places(folder: Path) -> list[tuple[str, Path]]:
    """Split and place, where nothing describes the set: a folder or list a split, ``images``, or the folder itself."""
    found = [
        (split, path)
        for name, split in SPLIT_WORDS.items()
        for path in (child(folder, f"images/{name}"), child(folder, f"{name}/images"))
        if path.is_dir()
    ]
    found = found or [(split, path) for name, split in SPLIT_WORDS.items() if listed(path := child(folder, name), *SUFFIXES)]
    if not found:
        lists = split_words(lambda word: _is_list(child(folder, f"{word}.txt")))
        found = [(split, child(folder, f"{name}.txt")) for name, split in lists.items()]
    return found or [("", path if (path := child(folder, "images")).is_dir() else folder)]


def _is_list(path: Path) -> bool:
    """Whether the first line of a file is a picture's path."""
    lines = read_head(path, 4000).decode("utf-8", "replace").split("\n")
    return PurePosixPath(lines[0].strip()).suffix.lower() in SUFFIXES


def _below(folder: Path, text: str) -> Path | None:
    """The folder or list below ``folder`` that a foreign path means; of a folder, the last two names must be right where it has two."""
    return folder if text.strip() in (".", "./") else below(folder, text, least=1 if text.strip().endswith(".txt") else 2)


def _pictures_of(entry: Path, source: _Source, faults: Faults) -> list[Path]:
    """The pictures below a folder, or of a list such as ``train.txt``, one path a line."""
    if not entry.is_file():
        return [p for p in files_below(entry, SUFFIXES) if p.is_file()]
    prefix = child(source.folder, str(source.keys.get("path") or ".").strip("/\\"))
    inner = prefix.is_dir() and prefix.resolve().is_relative_to(source.folder.resolve())
    finder = PictureFinder(source.folder, (source.folder, child(source.folder, "images"), entry.parent, *((prefix,) if inner else ())))
    found = []
    for line_number, line in enumerate(text_lines(entry), start=1):
        if (text := line.strip()) and not is_litter(re.split(r"[/\\]", text)[-1]):
            with faults.leaving_out("pictures"):
                found.append(finder.find(text, where=f"{entry}:{line_number}"))
    return found


def _file_names(folder: Path, pictures: Sequence[Path]) -> list[str]:
    """Plain names where no two pictures of the set share one, else paths below the folder, without ``images``."""
    if len({p.stem for p in pictures}) == len(pictures):
        return [p.name for p in pictures]
    relative = [p.relative_to(folder) for p in pictures]
    inner = [[part for k, part in enumerate(p.parts) if part.lower() != "images" or k == len(p.parts) - 1] for p in relative]
    return [PurePosixPath(*parts).as_posix() for parts in inner]


# --------------------------------------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class _Line:
    """One label line: class name, shares, and the picture's size in pixels."""

    category: str
    shares: tuple[float, ...]
    size: tuple[int, int]
    where: str

    def points(self) -> list[float]:
        """x1 y1 x2 y2 ... in pixels."""
        return [v * self.size[k % 2] for k, v in enumerate(self.shares)]


_InstanceOf = Callable[[_Line, RawSet], Instance]


def _read_labels(path: Path, faults: Faults, read_line: Callable[[list[str], str], Instance]) -> list[Instance]:
    found = []
    for line_number, line in enumerate(text_lines(path), start=1):
        if fields := line.split():
            with faults.leaving_out("lines"):
                found.append(read_line(fields, f"{path}:{line_number}"))
    return found


def _line(fields: list[str], spellings: Mapping[int, str], names: ClassMap, size: tuple[int, int], where: str) -> _Line:
    class_number = number(fields[0], where=where, what="class number")
    if class_number != int(class_number) or int(class_number) not in spellings:
        known = some([f"{k} {name}" for k, name in spellings.items()])
        fix = f"known classes: {known}; if the labels count from 1, write the numbers into data.yaml (names: {{1: ..., 2: ...}})"
        raise UnknownClass(f"unknown class number {fields[0]!r:.40}", where=where, fix=fix)
    shares = tuple(number(v, where=where, what=f"field {k}") for k, v in enumerate(fields[1:], start=2))
    if any(not REACH[0] <= v <= REACH[1] for v in shares):
        worst = max(shares, key=lambda v: abs(v - 0.5))
        raise CCDiffError(
            f"expected coordinates from 0 to 1 (shares of the picture's size), found {worst:g}", where=where, fix="divide pixels by it"
        )
    return _Line(names.name(spellings[int(class_number)], where=where), shares, size, where)


def _box_or_outline(line: _Line, raw: RawSet) -> Instance:
    if len(line.shares) == 4:
        cx, cy, w, h = line.points()
        if w < 0 or h < 0:
            raise CCDiffError("expected a width and a height that are not negative", where=line.where)
        return Instance.from_hbb(line.category, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    if len(line.shares) < 6 or len(line.shares) % 2:
        raise CCDiffError(f"expected class cx cy w h, or class x1 y1 ... xn yn, found {len(line.shares) + 1} fields", where=line.where)
    if len(line.shares) % 3 == 1 and set(line.shares[6::3]) <= {0.0, 1.0, 2.0} and 2.0 in line.shares[6::3]:
        raise CCDiffError(
            "this is a box with keypoints (every third number after it says whether one is seen), not an outline",
            where=line.where,
            fix=f"say so in data.yaml: kpt_shape: [{(len(line.shares) - 4) // 3}, 3]; the boxes are then read without them",
        )
    outline = line.points()
    raw.notes["outlines, with the minimum-area rectangle as OBB"] += 1
    hbb = (min(outline[0::2]), min(outline[1::2]), max(outline[0::2]), max(outline[1::2]))
    return Instance.from_corners(line.category, min_area_corners(outline), hbb, mask=(tuple(outline),))


def _oriented_box(line: _Line, raw: RawSet) -> Instance:
    if len(line.shares) != 8:
        raise CCDiffError(
            f"expected class x1 y1 x2 y2 x3 y3 x4 y4, found {len(line.shares) + 1} fields",
            where=line.where,
            fix="a set of horizontal boxes or outlines is read with --format yolo",
        )
    return Instance.from_corners(line.category, line.points())


# ----------------------------------------------------------------------------------------------------------------------- recognition


def _holds_texts(folder: Path) -> bool:
    """Whether a folder of labels holds text files, or nothing yet; VOC's and others' have that name, too."""
    for _, _, names in os.walk(folder):
        for suffix in (Path(name).suffix.lower() for name in names if not is_litter(name)):
            if suffix in (".txt", ".xml", ".json"):
                return suffix == ".txt"
    return folder.is_dir()


def _field_count(root: Path) -> int | None:
    """Fields of the set's label lines, 0 where no object is labelled, None where this is not a YOLO set.

    9 where the first line has so many, unless others show that it is an outline of four corners among others.
    """
    if root.is_file() and root.suffix not in (".yaml", ".yml", ".data"):
        return None
    try:
        source = _open(root)
        label_folders = ("labels", *(f"{name}/labels" for name in SPLIT_WORDS))
        sure = source.keys.keys() & {"names", "name_file"} or any(_holds_texts(child(source.folder, name)) for name in label_folders)
        places = [entry for _, _, entry in _entries(source) if entry is not None]
        pictures = [p for place in places for p in _pictures_of(place, source, Faults(strict=False))]
    except CCDiffError:
        return 0 if root.is_file() or any(is_file(child(root, name)) for name in DESCRIPTIONS) else None  # the reader says what is wrong
    labels = _label_files(pictures, _label_folders(source.folder, pictures))
    counts: list[int] = []
    for picture in pictures:
        head = read_head(labels[picture], 20_000)
        if not sure and not _looks_like_labels(head):
            continue
        sure = True
        counts += [len(line.split()) for line in head.splitlines()[: -1 if len(head) == 20_000 else None] if line.split()]
        if counts and (counts[0] != 9 or set(counts) - {5, 9}):
            break
    if not sure:
        return None
    if _keypoint_fields(source):
        return 5
    return next((k for k in counts if k not in (5, 9) and k > 6 and k % 2), counts[0] if counts else 0)
