"""DOTA: ``SPLIT/images/`` beside ``SPLIT/labelTxt/``, after the DOTA label description (`imagesource:`, `gsd:`, then
`x1 y1 ... x4 y4 class difficult`), and ``SPLIT/annfiles/`` for mmrotate.

NOTE: coordinates are rounded to 1/1000 pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..scene import Scene
from .common import Job, Writer, count_lost, decimal, stem_of, write_label


def _place(scene: Scene) -> str:
    return f"{scene.split}/images/{scene.file_name}"


def _labels(job: Job, scene: Scene) -> None:
    """``labelTxt/NAME.txt`` as the published files: headers, class names without spaces, corners as decimals ("274.0").

    ``annfiles/NAME.txt`` are the same lines without headers, as mmrotate's reader wants them; it also asks for PNG pictures.
    """
    count_lost(job, scene, ("orientations", "difficult flags"))
    job.lost["provenance"] -= bool(scene.provenance) and scene.provenance.keys() <= {"imagesource", "gsd"}
    header = {"imagesource": scene.provenance.get("imagesource") or "ccdiff", "gsd": scene.provenance.get("gsd") or "null"}
    head = "".join(f"{key}:{' '.join(str(value).split())}\n" for key, value in header.items())
    lines = ""
    for instance in scene.instances:
        corners = " ".join(decimal(v) for v in instance.corners)
        lines += f"{corners} {spelling(instance.category)} {int(instance.difficult)}\n"
    write_label(job.out / scene.split / "labelTxt" / f"{stem_of(scene)}.txt", head + lines)
    write_label(job.out / scene.split / "annfiles" / f"{stem_of(scene)}.txt", lines)
    job.lost["pictures that are no PNG (DOTA's tools take them, mmrotate's reader does not)"] += Path(scene.file_name).suffix != ".png"


def spelling(name: str) -> str:
    """A class name as one word."""
    return "-".join(name.split())


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    write_label(job.out / "classes.txt", "".join(f"{spelling(name)}\n" for name in job.classes))
    return "."


WRITER = Writer(_place, _labels, _finish, spelling)
