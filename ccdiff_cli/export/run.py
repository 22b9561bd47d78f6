"""One export: the folder, the pictures, the labels by a writer, the receipt.

``export_set`` links (or, across file systems, copies) the pictures and writes the labels in the format's own terms; what a format cannot
hold is counted and said.  The receipt ``export.json`` is written last: a folder without one is unfinished and is completed by the same
command.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset import SPLITS, PictureSet, read_set
from ..errors import CCDiffError, os_errors
from ..files import TEMPORARY_PREFIX, inside, read_json, write_json
from ..scene import ClassList, Scene
from .common import Job
from .writers import WRITERS

RECEIPT = "export.json"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        root: the folder.
        format: one of ``WRITERS``.
        pictures, objects: how many.
        lost: what the format cannot hold -> how many objects or pictures had it.
        entry: the file or folder a user points the next tool at.
        resumed: whether the folder was already complete.
    """

    root: Path
    format: str
    pictures: int
    objects: int
    lost: dict[str, int]
    entry: Path
    resumed: bool = False


def export_set(
    source: str | Path | PictureSet, out: str | Path, format: str, *, splits: Sequence[str] = SPLITS, progress: Progress | None = None
) -> Export:
    """Write a set in another format.

    Args:
        source: a prepared or synthetic set.
        format: a key of :data:`WRITERS`.
        splits: the splits to write.
        progress: called as ``progress("exporting", done, total)``.

    Raises:
        CCDiffError: an unknown format, not a set, two pictures with one stem, class or file names that the format cannot spell, a folder
            that holds something else, a full disk.
    """
    if format not in WRITERS:
        raise CCDiffError(f"unknown export format {format!r}", fix=f"known formats: {', '.join(WRITERS)}")
    data = source if isinstance(source, PictureSet) else read_set(source)
    out = Path(out)
    scenes = [s for s in data.scenes if s.split in splits]
    if not scenes:
        raise CCDiffError(f"the set has no pictures in the splits {', '.join(splits)}", where=data.root)
    _check_names(format, data.classes, scenes)
    plan = {"format": format, "set": data.key(), "splits": sorted(set(splits)), "pictures": len(scenes)}
    if (receipt := _receipt(out, plan)) is not None:
        return Export(out, format, receipt["pictures"], receipt["objects"], receipt["lost"], out / receipt["entry"], resumed=True)
    _begin(out, plan)
    job, writer = Job(out, data.classes), WRITERS[format]
    job.lost["folders in file names"] += sum("/" in s.file_name for s in scenes)
    scenes = _named(scenes)
    for done, scene in enumerate(scenes, start=1):
        if name := writer.place(scene):
            _place(Path(str(scene.path)), inside(out, name, where=data.root))
        writer.labels(job, scene)
        if progress is not None:
            progress("exporting", done, len(scenes))
    entry = writer.finish(job, scenes)
    lost = dict(sorted((+job.lost).items()))  # what did happen
    objects = sum(len(s.instances) for s in scenes)
    if hasattr(os, "sync"):
        os.sync()  # the receipt, which says that all is there, must not reach the disk before the labels
    write_json(out / RECEIPT, {"plan": plan, "pictures": len(scenes), "objects": objects, "lost": lost, "entry": entry})
    with os_errors(out, "finish the export"):
        (out / _PLAN).unlink(missing_ok=True)
    return Export(out, format, len(scenes), objects, lost, out / entry)


_PLAN = ".export-plan.json"


def _receipt(out: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    if not (out / RECEIPT).is_file():
        return None
    receipt = read_json(out / RECEIPT)
    if not isinstance(receipt, dict) or receipt.get("plan") != plan:
        raise CCDiffError("the folder holds another export", where=out, fix="choose another output folder, or empty this one")
    return receipt


def _begin(out: Path, plan: dict[str, Any]) -> None:
    with os_errors(out, "make the output folder"):
        if out.exists() and not out.is_dir():
            raise CCDiffError("the output is a file, not a folder", where=out, fix="choose another output folder")
        out.mkdir(parents=True, exist_ok=True)
        for partial in sorted(out.rglob(f"{TEMPORARY_PREFIX}*")):
            partial.unlink()
        if (out / _PLAN).is_file():
            if read_json(out / _PLAN) != plan:
                raise CCDiffError(
                    "the folder holds the beginning of another export", where=out, fix="choose another output folder, or empty this one"
                )
        elif any(out.iterdir()):
            raise CCDiffError("the output folder is not empty", where=out, fix="choose another folder, or empty this one")
    write_json(out / _PLAN, plan)


def _check_names(format: str, classes: ClassList, scenes: Sequence[Scene]) -> None:
    """Names that would break a label file, or make two classes one."""
    for name in (*classes, *(s.file_name for s in scenes)):
        if any(unicodedata.category(ch) in ("Cc", "Cs", "Zl", "Zp") for ch in name):
            raise CCDiffError(f"the name {name!r} holds a character that label files cannot", fix="rename the class or the picture")
    for spelling, count in Counter(WRITERS[format].spelling(name) for name in classes).items():
        if count > 1:
            raise CCDiffError(f"{count} classes would both be written as {spelling!r}", fix="rename one of them")


def _named(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes with a flat name for every picture, of a stem that no other has."""
    stems = [s.file_name.replace("/", "__").rpartition(".")[0] or s.file_name for s in scenes]
    for stem, count in Counter(stems).items():
        if count > 1:
            raise CCDiffError(
                f"{count} pictures are called {stem!r} with different extensions",
                fix="rename them: their labels would overwrite each other",
            )
    return [s.replace(file_name=stem + Path(str(s.path)).suffix) for s, stem in zip(scenes, stems, strict=True)]


def _place(picture: Path, target: Path) -> None:
    """Link a picture under a new name, or copy it; whole or not at all."""
    if target.exists():
        return
    with os_errors(target, "write the picture"):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
        partial.unlink(missing_ok=True)
        try:
            os.link(picture.resolve(), partial)
        except OSError:  # another file system, or one without links
            try:
                shutil.copyfile(picture, partial)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        os.replace(partial, target)
