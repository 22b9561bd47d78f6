"""`imagefolder` of Hugging Face's datasets, after its page: ``SPLIT/metadata.jsonl`` beside the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..dataset import polygon_area
from ..scene import ClassList, Scene
from .common import Job, Writer, count_lost, split_folder, write_classes, write_label

_KEPT = (
    "captions", "sources", "orientations", "marks that an orientation is unknown", "horizontal boxes other than the OBB's",
    "difficult flags",
)  # fmt: skip


def example(scene: Scene, classes: ClassList) -> dict[str, Any]:
    """What `datasets` and training scripts written for it expect of a picture for detection; boxes in pixels, the rest as we have it."""
    objects = {
        "bbox": [[i.hbb[0], i.hbb[1], i.hbb[2] - i.hbb[0], i.hbb[3] - i.hbb[1]] for i in scene.instances],
        "category": [classes.index(i.category) for i in scene.instances],
        "name": scene.categories(),
        "corners": [list(i.corners) for i in scene.instances],
        "oriented": [i.oriented for i in scene.instances],
        "difficult": [i.difficult for i in scene.instances],
        "area": [polygon_area(i.corners) for i in scene.instances],
    }
    return {
        "file_name": scene.file_name,
        "width": scene.width,
        "height": scene.height,
        "text": scene.caption,
        "source": scene.source,
        "objects": objects,
    }


def count_example(job: Job, scene: Scene) -> None:
    """Count what :func:`example` does not say."""
    count_lost(job, scene, _KEPT)


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """``SPLIT/metadata.jsonl``; ``classes.txt``."""
    lines: dict[str, list[str]] = {}
    for scene in scenes:
        lines.setdefault(scene.split, []).append(json.dumps(example(scene, job.classes), ensure_ascii=False) + "\n")
    for split, members in lines.items():
        write_label(job.out / split / "metadata.jsonl", "".join(members))
    write_classes(job)
    return "."


WRITER = Writer(split_folder, count_example, _finish)
