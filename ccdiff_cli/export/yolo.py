"""YOLO and YOLO-OBB: ``images/SPLIT/``, ``labels/SPLIT/``, ``data.yaml``, after the detection and OBB dataset pages of ultralytics.

NOTE: coordinates are rounded to six decimals of the picture's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from ..dataset import SPLITS
from ..geometry import clip_hbb, min_area_corners
from ..scene import Scene
from .common import (
    ORIENTATIONS,
    OTHER_HBB,
    REACHING_OUT,
    UNKNOWN,
    Job,
    Writer,
    images_by_split,
    stem_of,
    unit_corners,
    write_label,
)


def _labels(job: Job, scene: Scene) -> None:
    """``class cx cy w h``, normalised."""
    lines = []
    for instance in scene.instances:
        hbb = clip_hbb(instance.hbb, (0, 0, scene.width, scene.height))
        if hbb is None:
            job.lost["objects without an area inside the picture"] += 1
            continue
        job.lost[REACHING_OUT] += hbb != instance.hbb
        x1, y1, x2, y2 = hbb[0] / scene.width, hbb[1] / scene.height, hbb[2] / scene.width, hbb[3] / scene.height
        lines.append(f"{job.classes.index(instance.category)} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
    write_label(job.out / "labels" / scene.split / f"{stem_of(scene)}.txt", "".join(lines))


def _obb_labels(job: Job, scene: Scene) -> None:
    """``class x1 y1 x2 y2 x3 y3 x4 y4``, normalised, in [0, 1]; ultralytics reads the minimum-area rectangle of the four points."""
    lines = []
    for instance in scene.instances:
        corners = unit_corners(job, instance, scene, min_area_corners)
        lines.append(f"{job.classes.index(instance.category)} " + " ".join(f"{v:.6f}" for v in corners) + "\n")
    write_label(job.out / "labels" / scene.split / f"{stem_of(scene)}.txt", "".join(lines))


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """``data.yaml``. No ``path``: it is then the folder of the file, wherever that is moved."""
    present = {s.split for s in scenes}
    train = "train" if "train" in present else next(s for s in SPLITS if s in present)
    description: dict[str, Any] = {"train": f"images/{train}", "val": f"images/{'val' if 'val' in present else train}"}
    if "test" in present:
        description["test"] = "images/test"
    if "val" not in present:
        job.said.append(f"val of data.yaml names the pictures of {train}, since the set has no val split and trainers ask for one")
    if "train" not in present:
        job.said.append(f"train of data.yaml names the pictures of {train}, since the set has no train split and trainers ask for one")
    description["names"] = dict(enumerate(job.classes))
    write_label(job.out / "data.yaml", yaml.safe_dump(description, sort_keys=False, allow_unicode=True))
    return "data.yaml"


WRITER = Writer(images_by_split, _labels, _finish, (UNKNOWN, OTHER_HBB))
OBB_WRITER = Writer(images_by_split, _obb_labels, _finish, (ORIENTATIONS,))
