"""What suits a data set: tile, size, recipe, splits and detector, each with its reason, from a look at labels and headers.

Notable:

* Labels are read whole, of the pictures a sample's headers; no pixel is decoded and nothing is written.
* The size follows from the objects: after cutting and resizing, three quarters of them must still be visible (``SEEN`` pixels or more)
  and nearly every one must fit into a tile (``ROOM``).  Whole pictures are preferred to tiles, small pictures to large ones: a training at
  twice the side takes four times as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CCDiffError
from ..formats import read_raw
from ..geometry import corners_to_le90
from ..pictures import read_header
from ..scene import Scene

SEEN, CLEAR = 12.0, 20.0
"""Pixels of the generated picture: the square root of the area that three quarters of the objects have, in whole pictures at least, in
tiles if they fit into them so."""
ROOM = 1.25
"""A tile is so many times as long as nine objects in ten."""
SIZES = (128, 256)
"""Sides of generated pictures, the first that serves: what the small recipe is made for, and the next."""
STEP = 32
"""Tiles are a multiple of it, source pixels."""
HEADERS = 200
EPOCHS, FEWEST = 60, 4_000
"""Pictures that the generator is trained on: so many times the training pictures, and at least so many."""
DETECTOR_EPOCHS, DETECTOR_FEWEST, DETECTOR_BATCH = 12, 150, 8
"""The published 1x schedule, and at least so many steps."""


@dataclass(frozen=True)
class Machine:
    """How much it is asked for at most: what a machine of its kind does in hours, not days.

    Attributes:
        seen: pictures of the generator's training (of the small recipe's 128 px); ``steps``: of a detector, which is trained three times
            for each arm; ``made``: synthetic pictures.
    """

    title: str
    seen: int
    steps: int
    made: int


CPU, GPU = Machine("a CPU", 160_000, 1_500, 10_000), Machine("one GPU", 1_600_000, 20_000, 100_000)


@dataclass(frozen=True)
class Sight:
    """What a look at a raw set found; lengths in source pixels.

    Attributes:
        pictures: (N, 2) widths and heights of the pictures whose headers were read.
        sides: (M,) square roots of the areas of all objects; ``lengths``: their longer sides.
        boxes: (M, 5) the number of the picture that an object is in, and its horizontal box.
        splits: file names of the pictures of each split, "" where the set has none.
        skipped: what the reader left out, and how often.
    """

    root: Path
    format: str
    count: int
    classes: dict[str, int]
    splits: dict[str, tuple[str, ...]]
    pictures: np.ndarray
    sides: np.ndarray
    lengths: np.ndarray
    boxes: np.ndarray
    oriented: float
    skipped: dict[str, int]


@dataclass(frozen=True)
class Choice:
    """A proposed value and why."""

    value: Any
    why: str


def look(root: str | Path, format: str | None = None, progress: Callable[[str, int, int], None] | None = None) -> Sight:
    """Look at a raw data set.

    Raises:
        CCDiffError: no such folder, an unknown format, no labelled objects, no picture that can be read.
    """
    root = Path(root)
    raw = read_raw(root, format, strict=False, progress=progress)
    instances = [i for scene in raw.scenes for i in scene.instances]
    if not instances:
        raise CCDiffError(
            "the set holds no labelled objects", where=root, fix="a generator learns from labelled pictures; check the folder"
        )
    extents = np.array([corners_to_le90(i.corners)[2:4] for i in instances])
    counts = Counter(i.category for i in instances)
    return Sight(
        root=root,
        format=raw.format,
        count=len(raw.scenes),
        classes={name: counts[name] for name in raw.classes},
        splits={
            split: tuple(scene.file_name for scene in raw.scenes if (scene.split or "") == split)
            for split in sorted({scene.split or "" for scene in raw.scenes})
        },
        pictures=_sizes_of(raw.scenes, root),
        sides=np.sqrt(extents.prod(axis=1)),
        lengths=extents.max(axis=1),
        boxes=np.array([(k, *i.hbb) for k, scene in enumerate(raw.scenes) for i in scene.instances]),
        oriented=sum(i.oriented for i in instances) / len(instances),
        skipped={reason: count for reason, count in sorted(raw.skipped.items()) if count},
    )


def _sizes_of(scenes: Sequence[Scene], root: Path) -> np.ndarray:
    """Widths and heights of up to ``HEADERS`` pictures, evenly spread over the set."""
    chosen = [scenes[int(k)] for k in np.unique(np.linspace(0, len(scenes) - 1, HEADERS).astype(int))]
    found, failure = [], ""
    for scene in chosen:
        try:
            header = read_header(Path(str(scene.path)))
        except CCDiffError as error:
            failure = failure or f"{scene.file_name}: {error.what}"
            continue
        found.append(header.size)
    if not found:
        raise CCDiffError(f"no picture of the set can be read ({failure})", where=root, fix="check the picture files")
    return np.array(found)


@dataclass(frozen=True)
class Cut:
    """How pictures are cut and resized: ``tile`` None for whole pictures, ``overlap`` in source pixels, ``size`` of the result."""

    tile: int | None
    overlap: int
    size: int
    why: str


def choose_cut(sight: Sight, sizes: Sequence[int] = SIZES) -> Cut:
    """Tile, overlap and size that keep objects visible and whole."""
    small, long = float(np.percentile(sight.sides, 25)), float(np.percentile(sight.lengths, 90))
    side = int(np.median(sight.pictures.max(axis=1)))
    seen = f"a quarter of the objects is smaller than {small:.0f} px, nine in ten are shorter than {long:.0f} px"
    for size in sizes:
        largest = size * small / SEEN
        if largest >= side:
            return Cut(None, 0, size, f"{seen}; in whole pictures ({side} px) at {size} px they have {small * size / side:.0f} px and more")
        if largest >= ROOM * long or size == sizes[-1]:
            clear = size * small / CLEAR
            wanted = max(clear // STEP * STEP, -(-min(ROOM * long, largest) // STEP) * STEP, size)
            tile = int(min(wanted, side))
            overlap = min(tile // 3, int(np.percentile(sight.lengths, 50))) // STEP * STEP
            short = "" if tile >= ROOM * long else "; larger ones are cut by a tile's border and counted"
            return Cut(tile, overlap, size, f"{seen}; in tiles of {tile} px at {size} px they have {small * size / tile:.0f} px{short}")
    raise AssertionError("the last size always serves")


ENOUGH = 0.1
"""Of an object's width and height that is in a tile which is counted: so 3 to 14 % fewer tiles are foretold than are cut, on three sets."""


def training_pictures(sight: Sight, cut: Cut) -> int:
    """About how many pictures the prepared train split will hold."""
    share = len(sight.splits["train"]) / sight.count if "train" in sight.splits else 0.7
    if cut.tile is None:
        return max(1, round(share * sight.count))
    stride = max(1, cut.tile - cut.overlap)
    last = np.ceil(np.maximum(np.median(sight.pictures, axis=0) - cut.tile, 0) / stride)
    first, second = sight.boxes[:, 1:3], sight.boxes[:, 3:5]
    edge = (second - first) * ENOUGH
    to = np.clip(np.ceil((second - edge) / stride) - 1, 0, last)
    begin = np.clip(np.floor((first + edge - cut.tile) / stride) + 1, 0, to)
    found = {  # tiles with enough of an object
        (int(picture), x, y)
        for (picture, *_), (x1, y1), (x2, y2) in zip(sight.boxes, begin.astype(int), to.astype(int), strict=True)
        for x in range(x1, x2 + 1)
        for y in range(y1, y2 + 1)
    }
    return max(1, round(share * len(found)))


def training_steps(pictures: int, batch: int, machine: Machine = CPU) -> Choice:
    """Steps of the generator's training from the shipped model."""
    wanted = max(EPOCHS * pictures, FEWEST)
    steps = max(1, round(min(wanted, machine.seen) / batch / 50) * 50)
    short = f"; more would serve ({EPOCHS} times), but {machine.title} takes long" if wanted > machine.seen else ""
    return Choice(steps, f"{steps * batch:,} pictures, {_times(steps * batch / pictures)} each of about {pictures:,}{short}")


def _times(count: float) -> str:
    return f"{count:.0f} times" if count >= 10 else f"{count:.1f} times"


def made_pictures(pictures: int, machine: Machine = CPU) -> Choice:
    """How many pictures are synthesized: one for each real one, None, unless that is too many."""
    if pictures <= machine.made:
        return Choice(None, "as many pictures are made as there are real ones to train on, unless `n` says a number")
    return Choice(machine.made, f"pictures; one for each real one would be about {pictures:,}, which takes {machine.title} long")


def detector_of(sight: Sight, cut: Cut, pictures: int, machine: Machine = CPU) -> dict[str, Choice]:
    """Settings of the detector that fit the prepared pictures."""
    scale = cut.size / (cut.tile or float(np.median(sight.pictures.max(axis=1))))
    low = float(np.percentile(sight.sides, 10)) * scale
    enlarged = cut.size if low >= 10 else int(cut.size * 1.5)
    smallest = low * enlarged / cut.size
    first = int(min(max(2 ** round(np.log2(max(smallest, 1.0))), 8), 32))
    wanted = DETECTOR_EPOCHS * pictures / DETECTOR_BATCH
    steps = int(min(max(wanted, DETECTOR_FEWEST), machine.steps))
    epochs = f"{_times(steps * DETECTOR_BATCH / pictures)} the real pictures"
    if wanted > machine.steps:
        epochs += f"; the published schedule is {DETECTOR_EPOCHS} times, {wanted:,.0f} steps, which takes {machine.title} long"
    anchors = [first * 2**k for k in range(4)]
    return {
        "input_size": Choice(enlarged, f"pixels of the shorter side; a tenth of the objects is then smaller than {smallest:.0f} px"),
        "anchor_sizes": Choice(anchors, "pixels, one for each level of the pyramid, from the smallest objects up"),
        "steps": Choice(steps, epochs),
        "warmup_steps": Choice(min(50, steps // 4), "steps of linear warm-up"),
    }


def splits_of(sight: Sight) -> Choice:
    """Which splits the project works with: a mapping of split -> the set's split it is, or None where the set's own (or drawn ones) do."""
    have = {name for name in sight.splits if name}
    told = ", ".join(f"{name} {len(sight.splits[name]):,}" for name in sorted(have, key=("train", "val", "test").index))
    loose = len(sight.splits.get("", ()))
    if not have:
        return Choice(None, "the set has none: train 70 %, val 10 %, test 20 % are drawn by picture, by the seed")
    if loose:
        return Choice(None, f"the set's own: {told}; those of the other {loose:,} pictures are drawn by the seed")
    if "train" in have and "val" in have and "test" not in have:
        why = f"the set has no test split ({told}): its val split is taken as test, which leaves none for filters"
        return Choice({"train": "train", "test": "val"}, why)
    if lacking := [name for name in ("train", "test") if name not in have]:
        fix = "name a folder with train.txt, val.txt and test.txt as splits in the section prepare"
        return Choice(None, f"the set's own: {told}; without {' and '.join(lacking)} the chain does not get to its end: {fix}")
    return Choice(None, f"the set's own: {told}")
