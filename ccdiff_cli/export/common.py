"""What every writer is given and gives, and what several of them need.

A writer is told where it writes and what it writes about (:class:`Job`), picture by picture and once at the end.  It counts what its
format cannot hold in ``Job.lost``: nothing is dropped unsaid.  The scenes it gets carry the picture's name in the export: flat, of a stem
that no other has, since label files are found by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_bytes
from ..geometry import hbb_of
from ..scene import ClassList, Instance, Scene

REACHING_OUT = "horizontal boxes reaching out of the picture"
CORNERS_OUTSIDE = "corners outside the picture"


@dataclass(frozen=True)
class Job:
    """An export under way.

    Attributes:
        out: the folder to write.
        classes: of the set.
        lost: what the format cannot hold -> how many objects or pictures had it.
    """

    out: Path
    classes: ClassList
    lost: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Writer:
    """How a format is written.

    Attributes:
        place: where a scene's picture goes, below the export's folder; "" for nowhere.
        labels: writes the labels of one scene, or counts what they lose.
        finish: writes what stands once; returns the file or folder a user points the next tool at.
        spelling: how a class is spelled in the format; two classes may not become one.
    """

    place: Callable[[Scene], str]
    labels: Callable[[Job, Scene], None]
    finish: Callable[[Job, Sequence[Scene]], str]
    spelling: Callable[[str], str] = str


def stem_of(scene: Scene) -> str:
    """The name that the label file of a scene shares with its picture."""
    return Path(scene.file_name).stem


def write_label(path: Path, text: str) -> None:
    """One of the many small files of an export: its receipt, written last, is the durable one."""
    write_bytes(path, text.encode("utf-8"), durable=False)


def write_classes(job: Job) -> None:
    """``classes.txt``, one class a line."""
    write_label(job.out / "classes.txt", "".join(f"{name}\n" for name in job.classes))


def count_lost(job: Job, scene: Scene, holds: Sequence[str]) -> None:
    """Count what a format cannot hold: everything a scene may say but for what is named in ``holds``."""
    unit, stem = scene.instances, stem_of(scene)
    found = {
        "captions": bool(scene.caption),
        "sources": scene.source not in ("", stem, scene.file_name, stem.partition("__x")[0]),  # a tile's name begins with its source
        "provenance": bool(scene.provenance),
        "orientations": sum(i.oriented for i in unit),
        "marks that an orientation is unknown": sum(not i.oriented for i in unit),
        "horizontal boxes other than the OBB's": sum(not _same_hbb(i) for i in unit),
        "difficult flags": sum(i.difficult for i in unit),
        "masks": sum(bool(i.mask) for i in unit),
        "extra fields": sum(bool(i.extra) for i in unit),
    }
    job.lost.update({what: int(count) for what, count in found.items() if what not in holds})


def _same_hbb(instance: Instance) -> bool:
    return all(abs(a - b) < 0.05 for a, b in zip(hbb_of(instance.corners), instance.hbb, strict=True))


def decimal(value: float) -> str:
    """At most three decimals and at least one, never "-0.0"."""
    whole, _, rest = f"{round(value, 3) + 0.0:.3f}".partition(".")
    return f"{whole}.{rest.rstrip('0') or '0'}"


def unit_coordinates(job: Job, points: Sequence[float], scene: Scene, outside: str) -> list[float]:
    """x1 y1 x2 y2 ... in [0, 1]; points outside the picture are moved to its border, and the object is counted under ``outside``."""
    unit = [v / (scene.height if k % 2 else scene.width) for k, v in enumerate(points)]
    held = [min(1.0, max(0.0, v)) for v in unit]
    job.lost[outside] += any(abs(a - b) > 1e-6 for a, b in zip(unit, held, strict=True))
    return held


def images_by_split(scene: Scene) -> str:
    """``images/SPLIT/NAME``"""
    return f"images/{scene.split}/{scene.file_name}"


def split_folder(scene: Scene) -> str:
    """``SPLIT/NAME``"""
    return f"{scene.split}/{scene.file_name}"
