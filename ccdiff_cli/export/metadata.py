"""CC-Diff's interchange file: ``SPLIT/metadata.jsonl`` beside the pictures.

NOTE: coordinates are rounded to eight decimals of the picture's side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..scene import Scene
from .common import (
    CAPTIONS,
    ORIENTATIONS,
    OTHER_HBB,
    REACHING_OUT,
    Job,
    Writer,
    split_folder,
    unit_coordinates,
    unit_corners,
    write_classes,
    write_label,
)

METADATA_OBJECTS = 6
"""CC-Diff pads a picture's objects to this number."""
_BEYOND = f"objects beyond CC-Diff's {METADATA_OBJECTS} a picture (written, but its own programs may not look at them)"


def _labels(job: Job, scene: Scene) -> None:
    job.lost[_BEYOND] += max(0, len(scene.instances) - METADATA_OBJECTS)


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """``SPLIT/metadata.jsonl`` beside the pictures, one a line; ``classes.txt``.  Every object is written, also beyond the sixth."""
    lines: dict[str, list[str]] = {}
    for scene in scenes:
        padding = max(0, METADATA_OBJECTS - len(scene.instances))
        boxes = [unit_coordinates(job, i.hbb, scene, REACHING_OUT) for i in scene.instances]
        corners = [unit_corners(job, i, scene, lambda four: four) for i in scene.instances]
        record = {
            "file_name": scene.file_name,
            "caption": [scene.caption, *scene.categories(), *[""] * padding],
            "bndboxes": [[round(v, 8) for v in box] for box in boxes] + [[0.0] * 4] * padding,
            "obboxes": [[round(v, 8) for v in box] for box in corners] + [[0.0] * 8] * padding,
        }
        lines.setdefault(scene.split, []).append(json.dumps(record, ensure_ascii=False) + "\n")
    for split, members in lines.items():
        write_label(job.out / split / "metadata.jsonl", "".join(members))
    write_classes(job)
    return "." if len(lines) > 1 else f"{next(iter(lines))}/metadata.jsonl"


WRITER = Writer(split_folder, _labels, _finish, (CAPTIONS, ORIENTATIONS, OTHER_HBB), plain_names=True)
