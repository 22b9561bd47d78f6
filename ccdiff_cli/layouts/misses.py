"""What a detector gets wrong on the pictures that layouts come from, as ``ccdiff misses`` writes it, and how often each is used for it.

NOTE: the file may come from elsewhere: it is checked, and no number in it makes a round of pictures longer than twice the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from ..dataset import PictureSet
from ..errors import CCDiffError
from ..files import sha256_file
from ..scene import Scene
from ..stored import Count, FileName, Free, Number, Seed, Stored, Text, read_as

MISSES = "misses.json"
VERSION = "ccdiff misses 1"
AGAIN = "run `ccdiff misses` on this set, and give the file it writes"


class PictureErrors(TypedDict):
    """What was wrong in one picture: objects that were not found, by their place among its labels, and detections of nothing."""

    file_name: FileName
    missed: list[Count]
    false_alarms: Count


class Misses(Stored):
    """``misses.json``.

    Attributes:
        set: key of the set; ``pictures`` are those of its train split, in its order.
        threshold: detections with this score or more were looked at.
        classes, sizes, crowding: what was wrong, counted.
    """

    version: Literal["ccdiff misses 1"]
    set: Text
    detector: Free
    boxes: Literal["hbb", "obb"]
    folds: Annotated[int, Field(strict=True, ge=2, le=1000)]
    seed: Seed
    threshold: Number
    classes: dict[str, Free]
    sizes: dict[str, Free]
    crowding: dict[str, Free]
    pictures: list[PictureErrors]


def misses_of(path: str | Path, layouts: PictureSet, split: str = "train") -> dict[str, int]:
    """Picture of the split -> objects missed and false alarms.

    Raises:
        CCDiffError: no such file, or one of another set or split.
    """
    if Path(path).is_dir():
        raise CCDiffError("this is a folder, not the file in it", where=path, fix=f"--misses {Path(path) / MISSES}")
    found: Misses = read_as(Misses, path, fix=AGAIN)
    if split != "train":
        raise CCDiffError(f"misses are known of the train split, layouts come from {split}", where=path, fix="--split train")
    if found.set != layouts.key() or [p["file_name"] for p in found.pictures] != [s.file_name for s in layouts.split(split)]:
        raise CCDiffError(f"these misses are of another set than the layouts (or it changed since): {layouts.root}", where=path, fix=AGAIN)
    return {p["file_name"]: len(p["missed"]) + p["false_alarms"] for p in found.pictures}


def misses_key(path: str | Path, layouts: PictureSet, split: str = "train") -> str:
    """A key of the file's bytes: what a plan made by it follows from.  Errors as of :func:`misses_of`."""
    misses_of(path, layouts, split)
    return sha256_file(path)


def times_of(pool: Sequence[Scene], errors: dict[str, int]) -> np.ndarray:
    """How often each picture of the pool stands in a round, (N,): once, and as many times again, all in all, in proportion to errors."""
    wrong = np.array([errors[scene.file_name] for scene in pool], np.float64)
    return 1 + wrong / wrong.mean() if wrong.any() else np.ones(len(pool))
