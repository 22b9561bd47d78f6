"""VisDrone-DET (2018 to 2021) as it lies on disk.

``VisDrone2019-DET-train/{images,annotations}/``, the same for ``-val``, ``-test-dev`` and ``-test-challenge`` (or plainly ``train/``, ...):
the folder may be one of them or hold several, also deeper; its name gives the split.  Followed: the README of VisDrone2018-DET-toolkit.
A line of ``annotations/NAME.txt`` is ``left,top,width,height,score,category,truncation,occlusion`` in pixels, sometimes with a comma at
its end.

* ``score`` 0 says that the evaluation is to pass over the box: it is kept as difficult, and counted.
* Category 0 marks an ignored region and 11 "others": neither is one of the ten classes, so they are left out and counted, unless the user's
  class list knows "ignored regions" or "others".
* Truncation (0, 1) and occlusion (0, 1, 2) above 0 go to an object's ``extra``.
* NOTE: the boxes are horizontal; nothing in the set tells an orientation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CCDiffError
from ..scene import Instance
from .classes import ClassMap, over
from .common import Labelled, add_scenes, split_of_folders
from .raw import Faults, PictureFinder, RawSet, child, listed, number, read_head, text_lines

PICTURES, LABELS = "images", "annotations"
CATEGORIES = (
    "ignored regions", "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor", "others",
)  # fmt: skip
FIELDS = ("left", "top", "width", "height", "score", "category", "truncation", "occlusion")
_NAME = re.compile(r"visdrone\d*-det-(train|val|test)(-dev|-challenge)?", re.IGNORECASE)
_DEPTH = 4
"""Archives unpacked into folders of their own names lie so deep."""
_LINE = re.compile(rb"\s*-?\d+(\.\d*)?(\s*,\s*-?\d+(\.\d*)?){7}\s*,?\s*")


def is_visdrone(root: Path) -> bool:
    """Whether the folder, or one in it, has ``images/`` beside ``annotations/`` whose first line is eight whole numbers with commas."""
    for base, _ in _bases(root):
        for path in listed(child(base, LABELS), ".txt")[:20]:
            if first := read_head(path, 4096).removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]:
                return _LINE.fullmatch(first) is not None
    return False


def read_visdrone(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the folder, or all of a release's folders in it.

    Raises:
        CCDiffError: a line that is not as above, an unknown category, a picture that is missing.
    """
    faults = faults or Faults()
    names = over(classes, lambda: ClassMap.frozen("visdrone"))
    raw = RawSet("visdrone", names.classes, [])
    pictures = PictureFinder(root, by_name=True)
    labelled = []
    for base, split in _bases(root):
        for path in listed(child(base, LABELS), ".txt"):
            with faults.leaving_out("pictures"):
                picture = pictures.take(f"{PICTURES}/{path.stem}", labels=path, where=str(path))
                labelled.append(Labelled(picture, tuple(_read_labels(path, names, raw, faults)), split=split))
    if not labelled and not faults.counts:
        raise CCDiffError(f"no label files ({LABELS}/*.txt beside {PICTURES}/)", where=root)
    add_scenes(raw, root, labelled)
    raw.skipped["pictures without annotations"] += pictures.left()
    raw.skipped, raw.notes = +raw.skipped, +raw.notes
    return raw


def _bases(root: Path) -> list[tuple[Path, str]]:
    """The folders with pictures and labels, with their split."""
    found, level = [], [root] if root.is_dir() else []
    for _ in range(_DEPTH):
        found += [base for base in level if child(base, PICTURES).is_dir() and child(base, LABELS).is_dir()]
        level = sorted(p for base in level if base not in found for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [(base, _split(base, root)) for base in found]


def _split(base: Path, root: Path) -> str:
    names = (*base.relative_to(root).parts[::-1], root.resolve().name)
    if match := next((match for name in names if (match := _NAME.fullmatch(name))), None):
        return match.group(1).lower()
    return split_of_folders(base / LABELS, root)


def _read_labels(path: Path, names: ClassMap, raw: RawSet, faults: Faults) -> Iterator[Instance]:
    for line_number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        found = None
        with faults.leaving_out("lines"):
            found = _object(line, names, raw, where=f"{path}:{line_number}")
        if found is not None:
            yield found


def _object(line: str, names: ClassMap, raw: RawSet, *, where: str) -> Instance | None:
    fields = [v.strip() for v in line.strip().removesuffix(",").split(",")]
    if len(fields) != len(FIELDS):
        raise CCDiffError(f"expected {','.join(FIELDS)}, found {len(fields)} fields: {line.strip()[:60]!r}", where=where)
    values = dict(zip(FIELDS, (number(v, where=where, what=name) for v, name in zip(fields, FIELDS, strict=True)), strict=True))
    category = values["category"]
    if category != int(category) or not 0 <= category < len(CATEGORIES):
        raise CCDiffError(f"category: expected 0 to {len(CATEGORIES) - 1}, found {fields[5]!r:.40}", where=where)
    spelling = CATEGORIES[int(category)]
    if spelling in (CATEGORIES[0], CATEGORIES[-1]) and not names.knows(spelling):
        raw.skipped[f"boxes of the category {spelling!r}, which is no class"] += 1
        return None
    if values["width"] < 0 or values["height"] < 0:
        raise CCDiffError("expected a width and a height that are not negative", where=where)
    extra: dict[str, Any] = {key: int(values[key]) for key in ("truncation", "occlusion") if values[key] > 0}
    raw.notes["boxes of score 0 (not to be evaluated), kept as difficult"] += values["score"] == 0
    hbb = (values["left"], values["top"], values["left"] + values["width"], values["top"] + values["height"])
    return Instance.from_hbb(names.name(spelling, where=where), hbb, difficult=values["score"] == 0, extra=extra)
