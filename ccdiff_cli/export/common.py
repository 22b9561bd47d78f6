"""What every writer is given and gives, and what several of them need.

A writer is told where it writes and what it writes about (:class:`Job`), picture by picture and once at the end.  It says what its
format holds of a scene; what it does not is counted (:func:`count_kept`): nothing is dropped unsaid.  The scenes it gets carry the
picture's name in the export: flat, of a stem that no other has, since label files are found by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..files import write_bytes
from ..geometry import corners_inside, quadrilateral_inside, visible_hbbs
from ..scene import ClassList, Corners, Instance, Scene
from .options import ExportOptions

REACHING_OUT = "horizontal boxes reaching out of the picture"
CORNERS_OUTSIDE = "the parts of oriented boxes outside the picture (four points inside stand for them)"
PICTURE_FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""What pictures can be encoded as -> the extension of their names."""


@dataclass(frozen=True)
class Job:
    """An export under way.

    Attributes:
        out: the folder to write.
        classes: of the set.
        options: what the user chose.
        lost: what the format cannot hold -> how many objects or pictures had it.
        apart: what is written where only readers that know of it look -> how many had it.
        said: what else a user should know, one sentence each.
    """

    out: Path
    classes: ClassList
    options: ExportOptions
    lost: Counter[str] = field(default_factory=Counter)
    apart: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)


CAPTIONS, SOURCES, PROVENANCE, DIFFICULT, MASKS, EXTRA = (
    "captions", "sources", "provenance", "difficult flags", "masks", "extra fields",
)  # fmt: skip
ORIENTATIONS, UNKNOWN, OTHER_HBB = (
    "orientations", "marks that an orientation is unknown", "horizontal boxes other than the OBB's",
)  # fmt: skip
"""What a scene may say beyond its pictures, classes, splits and one box an object."""


@dataclass(frozen=True)
class Writer:
    """How a format is written.

    Attributes:
        place: where a scene's picture goes, below the export's folder; "" for nowhere.
        labels: writes the labels of one scene.
        finish: writes what stands once; returns the file or folder a user points the next tool at.
        holds: what of a scene every reader of the format finds (of ``CAPTIONS``, ...).
        apart: what is written where only readers that know of it look.
        pictures: the picture formats that its readers take, of ``PICTURE_FORMATS``.
        files: whether pictures are files of their own, which can be links.
        spaces: whether a picture's name may hold them.
        spelling: how a class is spelled in the format; two classes may not become one.
        plain_names: whether ``classes.txt`` is read as a class file, in which # and = mean something.
    """

    place: Callable[[Scene], str]
    labels: Callable[[Job, Scene], None]
    finish: Callable[[Job, Sequence[Scene]], str]
    holds: tuple[str, ...]
    apart: tuple[str, ...] = ()
    pictures: tuple[str, ...] = tuple(PICTURE_FORMATS)
    files: bool = True
    spaces: bool = True
    spelling: Callable[[str], str] = str
    plain_names: bool = False


def stem_of(scene: Scene) -> str:
    """The name that the label file of a scene shares with its picture."""
    return Path(scene.file_name).stem


def write_label(path: Path, text: str) -> None:
    """One of the many small files of an export: its receipt, written last, is the durable one."""
    write_bytes(path, text.encode("utf-8"), durable=False)


def write_classes(job: Job) -> None:
    """``classes.txt``, one class a line."""
    write_label(job.out / "classes.txt", "".join(f"{name}\n" for name in job.classes))


def count_kept(job: Job, scene: Scene, writer: Writer) -> None:
    """Count what a scene says that the format cannot hold, or holds where few look."""
    unit, stem = scene.instances, stem_of(scene)
    found = {
        CAPTIONS: bool(scene.caption),
        # a source is known by the name of its picture, whatever that is encoded as, and a tile's name begins with it
        SOURCES: not {scene.source, scene.source.rpartition(".")[0]} & {stem, stem.partition("__x")[0]} and scene.source != "",
        PROVENANCE: bool(scene.provenance),
        ORIENTATIONS: sum(i.oriented for i in unit),
        UNKNOWN: sum(not i.oriented for i in unit),
        OTHER_HBB: sum(not _same_hbb(i, scene) for i in unit),
        DIFFICULT: sum(i.difficult for i in unit),
        MASKS: sum(bool(i.mask) for i in unit),
        EXTRA: sum(bool(i.extra) for i in unit),
    }
    job.apart.update({what: int(count) for what, count in found.items() if what in writer.apart})
    job.lost.update({what: int(count) for what, count in found.items() if what not in (*writer.apart, *writer.holds)})


def _same_hbb(instance: Instance, scene: Scene) -> bool:
    """Whether the HBB is that of what is visible of the OBB."""
    (seen,) = visible_hbbs(np.array([instance.corners]), (0, 0, scene.width, scene.height)).tolist()
    return all(abs(a - b) < 0.05 for a, b in zip(seen, instance.hbb, strict=True))


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


def unit_corners(job: Job, instance: Instance, scene: Scene, read_as: Callable[[Corners], Corners]) -> list[float]:
    """The oriented box in [0, 1]; one that reaches beyond the picture is replaced (``quadrilateral_inside``) and counted."""
    picture = (0, 0, scene.width, scene.height)
    corners = instance.corners
    if not corners_inside(corners, picture, 1e-6 * max(scene.width, scene.height)):
        job.lost[CORNERS_OUTSIDE] += 1
        corners = quadrilateral_inside(corners, picture, read_as)
    return [min(1.0, max(0.0, v / (scene.height if k % 2 else scene.width))) for k, v in enumerate(corners)]


def images_by_split(scene: Scene) -> str:
    """``images/SPLIT/NAME``"""
    return f"images/{scene.split}/{scene.file_name}"


def split_folder(scene: Scene) -> str:
    """``SPLIT/NAME``"""
    return f"{scene.split}/{scene.file_name}"


def no_labels(job: Job, scene: Scene) -> None:
    """For formats whose labels stand in a file that is written at the end."""


def whole_number(value: float) -> bool:
    """Whether a coordinate is one, at the three decimals that are written."""
    return decimal(value).endswith(".0")
