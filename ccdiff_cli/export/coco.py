"""COCO: ``images/SPLIT/`` and ``annotations/instances_SPLIT.json``, after the COCO data format page; and the folders of Roboflow:
``train/``, ``valid/`` and ``test/`` with ``_annotations.coco.json`` beside the pictures.

Everything is held, but ``bbox`` is horizontal, and what COCO has no key for stands in keys of our own: ``obb``, ``oriented``,
``difficult`` and ``extra`` of an object, ``split``, ``source``, ``caption`` and ``provenance`` of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dataset import SPLITS, coco_of_scenes, polygon_area
from ..files import write_json
from ..scene import Scene
from .common import (
    CAPTIONS,
    DIFFICULT,
    EXTRA,
    MASKS,
    ORIENTATIONS,
    OTHER_HBB,
    PROVENANCE,
    SOURCES,
    UNKNOWN,
    Job,
    Writer,
    images_by_split,
    no_labels,
)

ROBOFLOW_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
ROBOFLOW_FILE = "_annotations.coco.json"


def _coco(job: Job, scenes: Sequence[Scene]) -> dict[str, Any]:
    """``segmentation`` is the mask where known, else the OBB, which is also kept as ``obb``."""
    coco = coco_of_scenes(scenes, job.classes)
    for annotation in coco["annotations"]:
        annotation["obb"] = annotation["segmentation"][0]
        if annotation.get("mask", [annotation["obb"]]) != [annotation["obb"]]:  # one that is the OBB itself would not be known again
            annotation["segmentation"] = annotation.pop("mask")
            annotation["area"] = sum(polygon_area(p) for p in annotation["segmentation"])
    return coco


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """One ``instances_SPLIT.json`` a split."""
    written = []
    for split in SPLITS:
        if members := [s for s in scenes if s.split == split]:
            written.append(f"annotations/instances_{split}.json")
            write_json(job.out / written[-1], _coco(job, members))
    return written[0] if len(written) == 1 else "annotations"


def _place_roboflow(scene: Scene) -> str:
    return f"{ROBOFLOW_FOLDERS[scene.split]}/{scene.file_name}"


def _finish_roboflow(job: Job, scenes: Sequence[Scene]) -> str:
    """One ``_annotations.coco.json`` a folder.  The category 0 that Roboflow puts before the classes is no class, and left out."""
    for split, folder in ROBOFLOW_FOLDERS.items():
        if members := [s for s in scenes if s.split == split]:
            write_json(job.out / folder / ROBOFLOW_FILE, _coco(job, members))
    return "."


_HOLDS = (MASKS, UNKNOWN, OTHER_HBB)
_APART = (ORIENTATIONS, DIFFICULT, CAPTIONS, SOURCES, PROVENANCE, EXTRA)
WRITER = Writer(images_by_split, no_labels, _finish, _HOLDS, _APART)
ROBOFLOW_WRITER = Writer(_place_roboflow, no_labels, _finish_roboflow, _HOLDS, _APART)
