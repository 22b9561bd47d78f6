"""DOTA v1.0, v1.5 and v2.0 as they lie on disk, whole scenes or tiles, and what our exporter writes.

``images/`` beside ``labelTxt*/`` (or mmrotate's ``annfiles/``), at the top or once a split (``train/``, ``val/``, ``test/``).  A label file
has header lines (``imagesource:GoogleEarth``, ``gsd:0.27`` or ``gsd:null``), which go to the scene's provenance, then
``x1 y1 ... x4 y4 class difficult``; the flag may be missing.

* Corners keep their order (the first is the object's head in many classes), except that boxes whose sides cross are untangled, in every
  format (``formats.read_raw``).
* The class list is that of ``classes.txt`` (our exporter's), of the version in the folder's name, the shortest of the three published
  lists that holds every class found, or of one's own classes: those found, where none of them is DOTA's.
* A class may have spaces (``storage tank``), the flag may be a word (``false``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CCDiffError
from ..files import is_file
from ..pictures import SUFFIXES
from ..scene import ClassList, Instance, Scene
from .classes import CLASS_LISTS, ClassMap, clean_name, over, plain_name
from .raw import (
    SPLIT_WORDS,
    Faults,
    RawSet,
    child,
    files_below,
    find_pictures,
    flag,
    lines_of,
    listed,
    missing_picture,
    number,
    read_split_lists,
    read_text,
    some,
    text_lines,
)

PICTURES = "images"
CLASSES = "classes.txt"
VERSIONS = {"1.0": "dota10", "1.5": "dota15", "2.0": "dota20"}
"""Version -> key of ``CLASS_LISTS``, each list the beginning of the next."""
_HEADER = re.compile(r"['\"]?([A-Za-z][A-Za-z _]*)['\"]?\s*:(.*)")
_VERSION = re.compile(r"v(1\.0|1\.5|2\.0)(?!\d)", re.IGNORECASE)
_FLAG = re.compile(r"[0-9]{1,3}|true|false|yes|no|none|null|unspecified", re.IGNORECASE)
_COMMAS = re.compile(r"((?:[-+.\deE]+\s*,\s*){8})(.+?)(?:\s*,\s*(\w+))?")
"""A line that separates by commas: corners, class, flag."""
_TILE_NAMES = (re.compile(r"(.+?)__[\d.]+__-?\d+___-?\d+"), re.compile(r"(.+)__x\d+_y\d+"), re.compile(r"(.+)(?:__|\|)\d+(?:_\d+){6}"))


def is_dota(root: Path) -> bool:
    """Whether the folder, or a split below it, has ``images/`` and DOTA's label folder."""
    return any(child(base, PICTURES).is_dir() and _label_folders(base) for base, _ in _bases(root))


def read_dota(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the folder; the split is that of the folder, else of ``splits/*.txt`` where they exist.

    Raises:
        CCDiffError: a broken line, an unknown class, two pictures with one name, label folders of several versions side by side.
    """
    faults = faults or Faults()
    bases = [(folder, split) for folder, split in _bases(root) if child(folder, PICTURES).is_dir() or _label_folders(folder)]
    label_folders = {folder: found for folder, _ in bases if (found := _label_folder(folder, root, classes)) is not None}
    labels = {folder: listed(found, ".txt") for folder, found in label_folders.items()}
    if not any(labels.values()):
        raise CCDiffError("no label files (labelTxt*/*.txt)", where=root)
    base = _class_map(root, list(label_folders.values()))
    own = _own_names(labels) if base is None and (classes is None or classes.adds) else None
    names = over(classes, lambda: base or own or ClassMap.frozen(VERSIONS["2.0"]))
    raw = RawSet("dota", names.classes, [])
    spellings: set[str] = set()
    pictures = find_pictures(sorted({p.parent for folder, _ in bases for p in files_below(child(folder, PICTURES), SUFFIXES)}))
    splits = read_split_lists(child(root, "splits"), pictures, faults) if not any(split for _, split in bases) else {}
    for folder, split in bases:
        for path in labels.get(folder, ()):
            with faults.leaving_out("label files"):
                picture = pictures.pop(path.stem, None)
                if picture is None:
                    raise missing_picture(path.stem, where=path, looked=f"{PICTURES}/")
                if splits and path.stem not in splits:
                    raw.skipped["pictures in no split list"] += 1
                    continue
                instances, provenance = _read_labels(path, names, spellings, raw, faults)
                raw.scenes.append(
                    Scene(
                        picture.name, 0, 0, tuple(instances), splits.get(path.stem, split), tile_source(path.stem),
                        path=str(picture), provenance=provenance,
                    )
                )  # fmt: skip
    if pictures:
        raw.skipped["pictures without a label file"] += len(pictures)
    if not raw.scenes and faults.counts["pictures that are missing"]:
        raise CCDiffError(
            f"none of the {sum(map(len, labels.values()))} label files has its picture",
            where=root,
            fix=f"put the pictures into {PICTURES}/",
        )
    if own is not None and base is None:
        raw.notes["classes found in the labels, none of them DOTA's"] += len(raw.classes)
    elif base is None:
        family = _shortest_list({plain_name(name) for name in (*spellings, *(classes.aliases.values() if classes is not None else ()))})
        raw.classes = over(classes, lambda: ClassMap.frozen(family)).classes
    return raw


def tile_source(stem: str) -> str:
    """The scene a tile was cut from, by the names that DOTA's tools, mmrotate, ultralytics, YOLT and `prepare` give; else the name."""
    return next((match.group(1) for pattern in _TILE_NAMES if (match := pattern.fullmatch(stem))), stem)


# ----------------------------------------------------------------------------------------------------------- folders and classes


def _bases(root: Path) -> list[tuple[Path, str]]:
    """The folders that may hold ``images/`` and labels, with their split."""
    return [(root, ""), *((path, split) for name, split in SPLIT_WORDS.items() if (path := child(root, name)).is_dir())]


def _label_folders(base: Path) -> list[Path]:
    """Folders of OBB label files; those with "hbb" or "rec" in their name hold the same objects as horizontal boxes.

    ``annfiles`` beside another are our exporter's: the same lines without their headers.
    """
    if not base.is_dir():
        return []
    tops = sorted(p for p in base.iterdir() if p.is_dir() and (p.name.lower().startswith("labeltxt") or p.name.lower() == "annfiles"))
    found = [folder for top in tops for folder in (top, *sorted(p for p in top.iterdir() if p.is_dir())) if listed(folder, ".txt")]
    found = [p for p in found if not any(word in p.relative_to(base).as_posix().lower() for word in ("hbb", "rec"))]
    return [p for p in found if p != base / "annfiles"] or found


def _label_folder(base: Path, root: Path, classes: ClassMap | None) -> Path | None:
    found = _label_folders(base)
    if len(found) > 1 and classes is not None:
        wanted = [p for p in found if (family := _family(p, root)) and CLASS_LISTS[family] == classes.classes]
        found = wanted or found
    if len(found) > 1:
        raise CCDiffError(
            f"labels of several versions: {', '.join(p.relative_to(base).as_posix() for p in found)}",
            where=base,
            fix=f"choose one by its class list (--classes {' or '.join(VERSIONS.values())}), or move the others away",
        )
    return found[0] if found else None


def _family(folder: Path, root: Path) -> str | None:
    """The class list that a label folder's name, or the name of a folder above it, tells."""
    for part in (*reversed(folder.relative_to(root).parts), root.name):
        if match := _VERSION.search(part):
            return VERSIONS[match.group(1)]
    return None


def _class_map(root: Path, folders: Sequence[Path]) -> ClassMap | None:
    """The classes that a folder tells; None where only its labels do."""
    if is_file(path := child(root, CLASSES)):
        # label lines cannot hold spaces: whoever writes them writes "storage-tank"
        lines = [line.replace("-", " ") for line in text_lines(path) if line.strip()]
        try:
            return ClassMap.of(ClassList(tuple(clean_name(line, where=str(path)) for line in lines)))
        except CCDiffError as error:
            raise CCDiffError(error.what, where=path, fix=error.fix) from error
    families = {_family(folder, root) for folder in folders}
    family = families.pop() if len(families) == 1 else None
    return ClassMap.frozen(family) if family else None


def _own_names(labels: Mapping[Path, Sequence[Path]]) -> ClassMap | None:
    """The classes of a set of one's own, in DOTA's format: those found, where none of them is DOTA's; None where one is."""
    known, found = ClassMap.frozen(VERSIONS["2.0"]), set()
    for path in (p for paths in labels.values() for p in paths):
        try:
            text = read_text(path)
        except CCDiffError:  # counted where it is read for good
            continue
        for line in lines_of(text):
            name, _ = _name_and_flag(line.split()[8:], known)
            if known.knows(name):
                return None
            if name and not any(map(_is_number, name.split())) and all(map(_is_number, line.split()[:8])):
                found.add(name)
    try:
        spelled = {plain_name(clean_name(name, where="")): clean_name(name, where="") for name in sorted(found)}
        return ClassMap.of(ClassList(tuple(sorted(spelled.values())))) if spelled else None
    except CCDiffError:
        return None


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _shortest_list(spellings: set[str]) -> str:
    """The first of the three lists that knows what the longest of them knows of the spellings (see ``plain_name``)."""
    known = {family: {plain_name(name) for name in CLASS_LISTS[family]} for family in VERSIONS.values()}
    return next(family for family in VERSIONS.values() if spellings & known[VERSIONS["2.0"]] <= known[family])


# ------------------------------------------------------------------------------------------------------------------- label files


def _read_labels(path: Path, names: ClassMap, spellings: set[str], raw: RawSet, faults: Faults) -> tuple[list[Instance], dict[str, Any]]:
    instances: list[Instance] = []
    provenance: dict[str, Any] = {}
    for line_number, line in enumerate(text_lines(path), start=1):
        if commas := _COMMAS.fullmatch(line.strip()):
            line = f"{commas.group(1).replace(',', ' ')} {commas.group(2)} {commas.group(3) or ''}"
        fields = line.split()
        if not fields:
            continue
        if not instances and (header := _HEADER.fullmatch(line.strip())):
            _read_header(header.group(1).strip().lower(), header.group(2).strip(), provenance, raw)
            continue
        with faults.leaving_out("lines"):
            instances.append(_read_line(line, fields, names, spellings, raw, where=f"{path}:{line_number}"))
    raw.notes = +raw.notes
    return instances, provenance


def _read_line(line: str, fields: list[str], names: ClassMap, spellings: set[str], raw: RawSet, *, where: str) -> Instance:
    spelling, word = _name_and_flag(fields[8:], names)
    if len(fields) < 9 or (len(fields) > 10 and not names.knows(spelling)):
        raise CCDiffError(
            f"expected x1 y1 x2 y2 x3 y3 x4 y4 class difficult, found {len(fields)} fields: {line.strip()[:60]!r}",
            where=where,
            fix=f"known classes: {some(names.classes)}; list others, one a line, in {CLASSES} or with --classes",
        )
    corners = _numbers(fields, where)
    category = names.name(spelling, where=where)
    spellings.add(spelling)
    if re.fullmatch(r"\d{1,3}", word, re.ASCII):
        difficult = int(word) > 0
        raw.notes["difficult flags above 1 kept as 1"] += int(word) > 1
    else:
        difficult = flag(word, where=where, what="difficult flag")
    if not word:
        raw.notes["objects without a difficult flag"] += 1
    return Instance.from_corners(category, corners, difficult=difficult)


def _name_and_flag(words: Sequence[str], names: ClassMap) -> tuple[str, str]:
    """Class (of any number of words) and difficult flag ("" where there is none) of what follows the corners."""
    whole, front, last = " ".join(words), " ".join(words[:-1]), words[-1] if words else ""
    known = names.knows if front else (lambda name: False)
    if known(whole) and not known(front):
        return whole, ""
    return (front, last) if front and (_FLAG.fullmatch(last) or known(front)) else (whole, "")


def _numbers(fields: Sequence[str], where: str) -> list[float]:
    """The first eight fields; millions of them, so that those in order are not looked at one by one."""
    try:
        values = [float(v) for v in fields[:8]]
        if all(-1e9 <= v <= 1e9 for v in values):
            return values
    except ValueError:
        pass
    return [number(v, where=where, what=f"corner coordinate {k}") for k, v in enumerate(fields[:8], start=1)]


def _read_header(key: str, value: str, provenance: dict[str, Any], raw: RawSet) -> None:
    if value.lower() in ("", "null", "none", "nan"):
        return
    if key == "imagesource":
        provenance[key] = value
    elif key == "gsd":
        gsd = _gsd(value)
        if gsd is None:
            raw.notes["pictures whose gsd is not a length"] += 1
        else:
            provenance[key] = gsd
    else:
        raw.notes["header lines other than imagesource and gsd"] += 1


def _gsd(text: str) -> float | int | None:
    """Metres a pixel; a whole number stays one, so that it is written back as it was."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not (math.isfinite(value) and value > 0):
        return None
    return int(value) if text.isdecimal() and value < 1e9 else value
