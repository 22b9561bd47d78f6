"""Layouts of a set, and new ones in its image: a seeded order of pictures, and a source that changes each."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np

from ..dataset import PictureSet
from ..errors import CCDiffError
from ..geometry import clip, clip_hbb, corners_inside, hbb_corners, polygon
from ..prepare.captions import caption_of
from ..prepare.spectra import usual_spectrum
from ..quantities import GSD, METADATA, quantities_of
from ..scene import Instance, Scene
from .augment import augmented_layouts, mixed_layouts
from .llm import Writer, written_layouts
from .misses import misses_of, times_of
from .options import LayoutOptions
from .sampler import Sampler

ORDER, CHANGE = 1, 2
"""What a random stream is for; with the seed and a number it makes the stream's key."""

INSIDE = 1e-6
"""How far, in pixels, rounding may put a box outside of its picture."""

Source = Callable[[Sequence[Scene], Sequence[np.random.Generator]], Sequence[Scene]]
Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""


def _each(draw: Callable[[Scene, np.random.Generator], Scene]) -> Source:
    return lambda scenes, rngs: [draw(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]


def _diffusion(pool: Sequence[Scene], writer: Writer | None, progress: Progress | None) -> Source:
    from .diffusion import DiffusionLayouts  # torch and diffusers are slow to import

    return DiffusionLayouts(pool, progress).draw


SOURCES: dict[str, Callable[[Sequence[Scene], Writer | None, Progress | None], Source]] = {
    "set": lambda pool, writer, progress: lambda scenes, rngs: scenes,
    "augmented": lambda pool, writer, progress: _each(augmented_layouts(pool)),
    "mixed": lambda pool, writer, progress: _each(mixed_layouts(pool)),
    "sampled": lambda pool, writer, progress: _each(Sampler(pool).draw),
    "diffusion": _diffusion,
    "llm": lambda pool, writer, progress: _each(written_layouts(pool, writer)),
}
"""Of ``LayoutOptions.source`` -> what makes the source for a pool of layouts; only "llm" looks at the writer, only "diffusion" is trained
first and says so."""
TOGETHER = {"diffusion": 64}
"""How many layouts a source draws at a time, always the same ones, where that is not one."""


def layouts_of_set(pictures: PictureSet, split: str = "train") -> tuple[Scene, ...]:
    """The layouts of one split that hold at least one object, in the order of the set.

    HBBs are held inside the picture; an OBB may reach beyond it (see ``geometry``); an object with nothing inside is left out.

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
    options: LayoutOptions = LayoutOptions(),
    *,
    caption_style: str = "plain",
    writer: Writer | None = None,
    start: int = 0,
    progress: Progress | None = None,
) -> list[Scene]:
    """Layouts ``start`` to ``start + n - 1``, named ``00000000.png``, ``00000001.png``, ...

    The pictures of the split are gone through in a random order, a new one each time round, so none is used twice before all were
    used once.  All layouts are of the spectrum (see ``prepare.spectra``) of most of these pictures: others are drawn where a caption asks.

    Args:
        options: source, balance and split.
        caption_style: how captions are made (``prepare.captions``); "stored": the set's own, with source "set" only.
        writer: the language model, for source "llm".

    Raises:
        CCDiffError: a split without objects, stored captions for changed layouts, misses of another set; of "llm": see there.
    """
    source = options.source or "augmented"
    if caption_style == "stored" and source != "set":
        raise CCDiffError(
            f"the generator was trained on stored captions, which do not fit layouts of source {source!r}",
            fix="use the layouts as they are: --layout-source set",
        )
    pool = layouts_of_set(pictures, options.split)
    order = _order(pool, seed, options, pictures)
    make = SOURCES[source](pool, writer, progress)
    spectrum = usual_spectrum(pictures.split(options.split))
    planned = []
    block = TOGETHER.get(source, 1)
    first, last = start - start % block, start + n + -(start + n) % block
    places = islice(order, first, None)
    for here in range(first, last, block):
        originals = [pool[place] for place in islice(places, block)]
        layouts = make(originals, [np.random.default_rng((seed, CHANGE, k)) for k in range(here, here + block)])
        for k, original, layout in zip(range(here, here + block), originals, layouts, strict=True):
            if not start <= k < start + n:
                continue
            changes = layout.provenance.get("layout", {})
            said = _said(layout) | ({"spectrum": spectrum} if spectrum else {})
            if GSD in said:  # of a layout that was scaled as a whole, pixels are smaller or larger on the ground
                said[GSD] /= changes.get("scale", 1.0)
            layout = layout.replace(provenance={**said, "layout": {"source": source, "picture": original.file_name, **changes}})
            caption = layout.caption if caption_style == "stored" else caption_of(layout, style=caption_style)
            planned.append(layout.replace(file_name=f"{k:08d}.png", split="train", caption=caption))
            if progress is not None:
                progress("layouts", len(planned), n)
    return planned


def _order(pool: Sequence[Scene], seed: int, options: LayoutOptions, pictures: PictureSet) -> Iterator[int]:
    """Places in the pool, without end."""
    if options.balance == "classes":
        return _class_by_class(pool, seed)
    times = _repeats(pool) if options.balance == "rare" else None
    if options.misses is not None:
        times = times_of(pool, misses_of(options.misses, pictures, options.split))
    return _round_by_round(len(pool), seed, times)


def _class_by_class(pool: Sequence[Scene], seed: int) -> Iterator[int]:
    """A picture of every class in turn."""
    members: dict[str, list[int]] = {}
    for place, scene in enumerate(pool):
        for name in set(scene.categories()):
            members.setdefault(name, []).append(place)
    names = sorted(members)
    for turn in count():
        for j in np.random.default_rng((seed, ORDER, turn)).permutation(len(names)).tolist():
            mine = members[names[j]]
            again, place = divmod(turn, len(mine))
            yield mine[int(np.random.default_rng((seed, ORDER, again, j)).permutation(len(mine))[place])]


def _round_by_round(pictures: int, seed: int, times: np.ndarray | None) -> Iterator[int]:
    """Every picture once a round, or ``times`` (N,), each at least 1, on average."""
    for turn in count():
        rng = np.random.default_rng((seed, ORDER, turn))
        order = rng.permutation(pictures)
        if times is not None:
            whole = np.floor(times + rng.random(pictures)).astype(int)
            order = rng.permutation(np.repeat(order, whole[order]))
        yield from order.tolist()


def _repeats(pool: Sequence[Scene]) -> np.ndarray:
    """Repeat factor of every picture (LVIS, Gupta et al. 2019): ``sqrt(threshold / share)`` of its rarest class, at least 1.

    The share of a class is that of the pictures that have it; the threshold is the mean share.
    """
    having = Counter(name for scene in pool for name in set(scene.categories()))
    mean = sum(having.values()) / len(having)
    return np.array([max(1.0, *(math.sqrt(mean / having[name]) for name in set(scene.categories()))) for scene in pool])


def _bare(scene: Scene) -> Scene:
    """The layout of a labelled picture: no picture, no outlines, boxes inside."""
    window = (0.0, 0.0, float(scene.width), float(scene.height))
    instances = []
    for instance in scene.instances:
        moved = _inside(instance, window)
        if moved is not None:
            instances.append(dataclasses.replace(moved, mask=(), extra={}))
    return scene.replace(path=None, provenance=_said(scene), instances=tuple(instances))


def _said(scene: Scene) -> dict[str, Any]:
    """What stays true of a layout however its objects move: the scene sentence, and what is known of place, date and GSD."""
    said = {k: scene.provenance[k] for k in ("sentence", METADATA) if k in scene.provenance}
    return said | {k: v for k, v in quantities_of(scene).items() if k == GSD}


def _inside(instance: Instance, window: Sequence[float]) -> Instance | None:
    """The object with its HBB in the picture; None where nothing of it is there."""
    if not corners_inside(instance.corners, window, INSIDE) and clip(polygon(instance.corners), window).area <= 0:
        return None
    held = clip_hbb(instance.hbb, window)
    if held is None:
        return None
    corners = instance.corners if instance.oriented else hbb_corners(held)
    return instance if corners == instance.corners and held == instance.hbb else dataclasses.replace(instance, corners=corners, hbb=held)
