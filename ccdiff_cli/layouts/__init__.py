"""Where new layouts come from: a set's own labels, as they are or augmented.

* A layout is a :class:`Scene` without a picture; its ``provenance["layout"]`` says which picture it came from and what was changed.
* Layout k depends on (set, seed, k) alone: asking for more layouts never changes the first ones.
* A source is a plain function ``(scene, rng) -> scene`` in :data:`SOURCES`; every source is given the same seeded order of pictures.
* NOTE: outlines (``Instance.mask``) and what the data set said of an object (``Instance.extra``) are true of the real object only; they
  do not enter a planned layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ..dataset import PictureSet
from ..errors import CCDiffError
from ..geometry import clip, corners_inside, corners_to_le90, fit_rectangle, hbb_of, polygon
from ..prepare.captions import caption_of
from ..scene import HBB, Instance, Scene
from .augment import augment_layout

ORDER, CHANGE = 1, 2
"""What a random stream is for; with the seed and a number it makes the stream's key."""

INSIDE = 1e-6
"""How far, in pixels, rounding may put a box outside of its picture."""


def as_is(scene: Scene, rng: np.random.Generator) -> Scene:
    """The layout itself."""
    return scene


SOURCES: dict[str, Callable[[Scene, np.random.Generator], Scene]] = {"set": as_is, "augmented": augment_layout}


def layouts_of_set(pictures: PictureSet, split: str = "train") -> tuple[Scene, ...]:
    """The layouts of one split that hold at least one object, in the order of the set, every box inside its picture.

    A box that sticks out (some sets have such OBBs) is replaced by the rectangle that covers its visible part best; an object with
    nothing inside the picture is left out.

    Raises:
        CCDiffError: the split holds no object.
    """
    scenes = (_bare(scene) for scene in pictures.split(split))
    layouts = tuple(scene for scene in scenes if scene.instances)
    if not layouts:
        raise CCDiffError(
            f"the set has no labelled objects in its {split} split, so there is no layout to start from",
            where=pictures.root,
            fix="give a prepared set with labels, or another split",
        )
    return layouts


def plan_layouts(
    pictures: PictureSet,
    n: int,
    seed: int,
    *,
    source: str = "augmented",
    split: str = "train",
    caption_style: str = "plain",
    start: int = 0,
) -> list[Scene]:
    """Layouts ``start`` to ``start + n - 1``, named ``00000000.png``, ``00000001.png``, ...

    The pictures of the split are gone through in a random order, a new one each time round, so none is used twice before all were
    used once.

    Args:
        source: a key of :data:`SOURCES`.
        caption_style: how captions are made (``prepare.captions``); "stored": the set's own, with source "set" only.

    Raises:
        CCDiffError: an unknown source, a split without objects, stored captions for changed layouts.
    """
    if source not in SOURCES:
        raise CCDiffError(f"unknown layout source {source!r}", fix=f"known sources: {', '.join(SOURCES)}")
    if caption_style == "stored" and source != "set":
        raise CCDiffError(
            f"the generator was trained on stored captions, which do not fit layouts of source {source!r}",
            fix="use the layouts as they are: --layout-source set",
        )
    pool = layouts_of_set(pictures, split)
    orders: dict[int, np.ndarray] = {}
    planned = []
    for k in range(start, start + n):
        turn, place = divmod(k, len(pool))
        if turn not in orders:
            orders[turn] = np.random.default_rng((seed, ORDER, turn)).permutation(len(pool))
        original = pool[int(orders[turn][place])]
        layout = SOURCES[source](original, np.random.default_rng((seed, CHANGE, k)))
        changes = layout.provenance.get("layout", {})
        caption = layout.caption if caption_style == "stored" else caption_of(layout, style=caption_style)
        planned.append(
            layout.replace(
                file_name=f"{k:08d}.png",
                split="train",
                caption=caption,
                provenance={**_said(layout), "layout": {"source": source, "picture": original.file_name, **changes}},
            )
        )
    return planned


def _bare(scene: Scene) -> Scene:
    """The layout of a labelled picture: no picture, no outlines, boxes inside."""
    window = (0.0, 0.0, float(scene.width), float(scene.height))
    instances = []
    for instance in scene.instances:
        moved = _inside(instance, window)
        if moved is not None:
            instances.append(dataclasses.replace(moved, mask=(), extra={}))
    return scene.replace(path=None, provenance=_said(scene), instances=tuple(instances))


def _said(scene: Scene) -> dict[str, str]:
    """The scene sentence, which stays true of a layout however its objects move."""
    return {"sentence": str(scene.provenance["sentence"])} if "sentence" in scene.provenance else {}


def _inside(instance: Instance, window: Sequence[float]) -> Instance | None:
    corners, hbb = instance.corners, instance.hbb
    if not corners_inside(corners, window, INSIDE):
        seen = clip(polygon(corners), window)
        if seen.area <= 0:
            return None
        corners = fit_rectangle(seen, window, corners_to_le90(corners)[4])
        hbb = hbb_of(corners)
    x1, y1, x2, y2 = hbb
    held: HBB = (max(x1, window[0]), max(y1, window[1]), min(x2, window[2]), min(y2, window[3]))
    if held[2] <= held[0] or held[3] <= held[1]:
        return None
    return instance if corners == instance.corners and held == hbb else dataclasses.replace(instance, corners=corners, hbb=held)
