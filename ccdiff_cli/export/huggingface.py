"""`imagefolder` of Hugging Face's datasets, after its page: ``SPLIT/metadata.jsonl`` beside the pictures.

`datasets` infers the types of a split from its first megabytes, and refuses splits that differ: the empty lists of pictures without
objects, or of objects without masks, have no type in JSON.  So where a split shows no object early, or there are masks, all splits have a
``metadata.parquet`` instead, which says types.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset import visible_area
from ..errors import CCDiffError
from ..files import atomic_write
from ..scene import ClassList, Scene
from .common import (
    CAPTIONS,
    DIFFICULT,
    MASKS,
    ORIENTATIONS,
    OTHER_HBB,
    SOURCES,
    UNKNOWN,
    Job,
    Writer,
    no_labels,
    split_folder,
    write_classes,
    write_label,
)

HOLDS = (CAPTIONS, SOURCES, ORIENTATIONS, UNKNOWN, OTHER_HBB, DIFFICULT, MASKS)


def have_masks(scenes: Sequence[Scene]) -> bool:
    """Whether an object of a set has a mask; then all objects have the key."""
    return any(i.mask for s in scenes for i in s.instances)


def example(scene: Scene, classes: ClassList, *, masks: bool) -> dict[str, Any]:
    """What `datasets` and training scripts written for it expect of a picture for detection; boxes in pixels, the rest as we have it."""
    objects = {
        "bbox": [[i.hbb[0], i.hbb[1], i.hbb[2] - i.hbb[0], i.hbb[3] - i.hbb[1]] for i in scene.instances],
        "category": [classes.index(i.category) for i in scene.instances],
        "name": scene.categories(),
        "corners": [list(i.corners) for i in scene.instances],
        "oriented": [i.oriented for i in scene.instances],
        "difficult": [i.difficult for i in scene.instances],
        "area": [visible_area(i, scene.width, scene.height) for i in scene.instances],
    }
    if masks:
        objects["mask"] = [[list(polygon) for polygon in i.mask] for i in scene.instances]
    return {
        "file_name": scene.file_name,
        "width": scene.width,
        "height": scene.height,
        "text": scene.caption,
        "source": scene.source,
        "objects": objects,
    }


TYPED_EARLY = 500
"""A split whose first pictures have an object among so many gets the right types from JSON."""


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """``SPLIT/metadata.jsonl`` or ``.parquet``; ``classes.txt``."""
    members = {split: [s for s in scenes if s.split == split] for split in dict.fromkeys(s.split for s in scenes)}
    masks = have_masks(scenes)
    typed = not masks and all(any(s.instances for s in of_split[:TYPED_EARLY]) for of_split in members.values())
    for split, of_split in members.items():
        rows = [example(s, job.classes, masks=masks) for s in of_split]
        if typed:
            write_label(job.out / split / "metadata.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        else:
            _write_parquet(job.out / split / "metadata.parquet", rows, masks=masks)
    if not typed:
        job.said.append("labels are metadata.parquet: lists that are empty (no objects, no masks) would have no type in JSON")
    write_classes(job)
    return "."


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]], *, masks: bool) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CCDiffError(
            "labels whose types JSON does not show are written by pyarrow, which does not load", where=path, fix="pip install pyarrow"
        ) from error

    numbers, text = pyarrow.list_(pyarrow.float64()), pyarrow.string()
    objects = {
        "bbox": pyarrow.list_(numbers), "category": pyarrow.list_(pyarrow.int64()), "name": pyarrow.list_(text),
        "corners": pyarrow.list_(numbers), "oriented": pyarrow.list_(pyarrow.bool_()), "difficult": pyarrow.list_(pyarrow.bool_()),
        "area": numbers,
    }  # fmt: skip
    if masks:
        objects["mask"] = pyarrow.list_(pyarrow.list_(numbers))
    columns = {"file_name": text, "width": pyarrow.int64(), "height": pyarrow.int64(), "text": text, "source": text}
    schema = pyarrow.schema([*columns.items(), ("objects", pyarrow.struct(list(objects.items())))])
    with atomic_write(path, durable=False) as stream:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), stream)


WRITER = Writer(split_folder, no_labels, _finish, HOLDS, plain_names=True)
