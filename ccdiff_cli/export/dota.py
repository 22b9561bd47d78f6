"""DOTA: ``SPLIT/images/`` beside ``SPLIT/labelTxt/``, after the DOTA label description (`imagesource:`, `gsd:`, then
`x1 y1 ... x4 y4 class difficult`), and ``SPLIT/annfiles/`` for mmrotate.  And the labels as files of results for its Task 1 (OBB):
``Task1_CLASS.txt`` of lines `picture score x1 y1 ... x4 y4`, without pictures.

NOTE: coordinates are rounded to 1/1000 pixel; class names are one word in both, with dashes for spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..dataset import SPLITS
from ..errors import CCDiffError
from ..scene import Scene
from .common import DIFFICULT, ORIENTATIONS, Job, Writer, decimal, no_labels, stem_of, write_classes, write_label

NAME_BYTES = 255
"""The longest file name that file systems take."""
_RESERVED = re.compile(r'[<>:"/\\|?*]')


def _place(scene: Scene) -> str:
    return f"{scene.split}/images/{scene.file_name}"


def _labels(job: Job, scene: Scene) -> None:
    """``labelTxt/NAME.txt`` as the published files: headers, class names without spaces, corners as decimals ("274.0").

    ``annfiles/NAME.txt`` are the same lines without headers, as mmrotate's reader wants them; it also asks for PNG pictures.
    """
    job.lost["provenance"] -= bool(scene.provenance) and scene.provenance.keys() <= {"imagesource", "gsd"}
    header = {"imagesource": scene.provenance.get("imagesource") or "ccdiff", "gsd": scene.provenance.get("gsd") or "null"}
    head = "".join(f"{key}:{' '.join(str(value).split())}\n" for key, value in header.items())
    lines = ""
    for instance in scene.instances:
        lines += f"{_corners(instance.corners)} {one_word(instance.category)} {int(instance.difficult)}\n"
    write_label(job.out / scene.split / "labelTxt" / f"{stem_of(scene)}.txt", head + lines)
    write_label(job.out / scene.split / "annfiles" / f"{stem_of(scene)}.txt", lines)


def _corners(corners: Sequence[float]) -> str:
    return " ".join(decimal(v) for v in corners)


def one_word(name: str) -> str:
    """A class name as DOTA writes it."""
    return "-".join(name.split())


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    if others := sum(Path(s.file_name).suffix != ".png" for s in scenes):
        job.said.append(f"{others} pictures are no .png, which mmrotate's reader asks for (--picture-format png)")
    job.lost["spaces in class names (written as dashes)"] += sum(one_word(name) != name for name in job.classes)
    job.lost["dashes in class names (readers that undo the former take them for spaces)"] += sum("-" in name for name in job.classes)
    write_label(job.out / "classes.txt", "".join(f"{one_word(name)}\n" for name in job.classes))
    return "."


def file_word(name: str) -> str:
    """A class name in a file name."""
    return _RESERVED.sub("_", one_word(name))


def _nowhere(scene: Scene) -> str:
    return ""


def _finish_task1(job: Job, scenes: Sequence[Scene]) -> str:
    """``Task1_CLASS.txt`` for every class, ``imagesets/SPLIT.txt`` (the evaluation's list of pictures), ``classes.txt``.

    The score is what an object's ``extra`` has as ``score``, else 1.
    """
    for name in job.classes:
        if len(file := f"Task1_{file_word(name)}.txt".encode()) > NAME_BYTES:
            raise CCDiffError(
                f"the class {name[:40]!r}... makes a file name of {len(file)} bytes; file systems take {NAME_BYTES}",
                where="--format dota-task1",
                fix="prepare the set with shorter class names (--classes FILE with lines `name = shorter`)",
            )
    lines: dict[str, list[str]] = {name: [] for name in job.classes}
    for scene in scenes:
        for instance in scene.instances:
            score = instance.extra.get("score")
            score = float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else 1.0
            lines[instance.category].append(f"{stem_of(scene)} {score!r} {_corners(instance.corners)}\n")
    for name, members in lines.items():
        write_label(job.out / f"Task1_{file_word(name)}.txt", "".join(members))
    for split in SPLITS:
        if stems := [stem_of(s) for s in scenes if s.split == split]:
            write_label(job.out / "imagesets" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
    write_classes(job)
    job.lost["class names spelled otherwise in file names (classes.txt has them)"] += sum(file_word(name) != name for name in job.classes)
    job.said.append("files of results name the pictures by their stem and hold none")
    return "."


WRITER = Writer(_place, _labels, _finish, (ORIENTATIONS, DIFFICULT), pictures=("png", "jpeg"), spelling=one_word)
TASK1_WRITER = Writer(_nowhere, no_labels, _finish_task1, (ORIENTATIONS,), pictures=(), files=False, spaces=False, spelling=file_word)
