"""COCO: ``images/SPLIT/`` and ``annotations/instances_SPLIT.json``, after the COCO data format page."""

from __future__ import annotations

from collections.abc import Sequence

from ..dataset import SPLITS, coco_of_scenes, polygon_area
from ..files import write_json
from ..scene import Scene
from .common import Job, Writer, images_by_split


def _labels(job: Job, scene: Scene) -> None:
    """COCO holds everything, in one file a split that is written at the end."""


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """One ``instances_SPLIT.json`` a split; ``segmentation`` is the mask where known, else the OBB, which is also kept as ``obb``."""
    written = []
    for split in SPLITS:
        members = [s for s in scenes if s.split == split]
        if not members:
            continue
        coco = coco_of_scenes(members, job.classes)
        for annotation in coco["annotations"]:
            annotation["obb"] = annotation["segmentation"][0]
            if annotation.get("mask", [annotation["obb"]]) != [annotation["obb"]]:  # one that is the OBB itself would not be known again
                annotation["segmentation"] = annotation.pop("mask")
                annotation["area"] = sum(polygon_area(p) for p in annotation["segmentation"])
        write_json(job.out / "annotations" / f"instances_{split}.json", coco)
        written.append(f"annotations/instances_{split}.json")
    return written[0] if len(written) == 1 else "annotations"


WRITER = Writer(images_by_split, _labels, _finish)
