"""What a picture shows as a whole, by a CLIP that was never trained for it (zero-shot): the place in "This is an aerial image of <place>."

The sentence itself is what CLIP compares a picture with, once for each place of a list.  Some objects are the scene (an airport, a
harbor, a golf field, an expressway area): where a picture has one, it is the place and nobody is asked, as published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..dataset import IMAGES
from ..errors import CCDiffError
from ..files import content_key, read_json, write_json
from ..formats.classes import plain_name
from ..formats.raw import text_lines
from ..pictures import read_rgb
from ..scene import Scene
from .captions import caption_of, scene_sentence

if TYPE_CHECKING:
    from ..pretrained import Clip

PLACES_FOUND = "places"
"""Folder of an unfinished set: the places of the pictures that are done, ``ROWS`` a file."""
ROWS, BATCH = 256, 32
SCENE_CLASSES = frozenset(
    plain_name(name) for name in ("airport", "harbor", "golf field", "expressway service area", "expressway toll station")
)
DEFAULT_PLACES = (
    "an airport", "an industrial area", "a residential area with houses", "a city center with tall buildings", "a village", "a harbor",
    "the open sea", "a coast", "a beach", "a river", "a lake", "an island", "farmland", "a forest", "a meadow", "a desert", "mountains",
    "bare ground", "a construction site", "a quarry", "a parking lot", "a highway", "a road crossing", "a railway station", "a bridge",
    "a sports ground", "a park", "a golf course", "a school with its grounds", "a storage tank farm", "a power plant",
)  # fmt: skip


def read_places(path: Path) -> tuple[str, ...]:
    """Places of a file, one a line, as they are to stand after "This is an aerial image of"; lines with ``#`` are comments.

    Raises:
        CCDiffError: missing, not text, fewer than two places, one that stands there twice.
    """
    lines = [" ".join(line.split()).rstrip(".") for line in text_lines(path)]
    places = [line for line in lines if line and not line.startswith("#")]
    repeated = [name for name, count in Counter(places).items() if count > 1]
    if repeated:
        raise CCDiffError(f"the place {repeated[0]!r} stands there twice", where=path, fix="leave one of them")
    if len(places) < 2:
        raise CCDiffError(
            f"{len(places)} places, expected at least 2", where=path, fix="one place a line, with its article: a residential area"
        )
    return tuple(places)


def name_scenes(
    scenes: Sequence[Scene],
    root: Path,
    clip: Clip,
    places: Sequence[str],
    *,
    style: str,
    leave: set[str],
    report: Callable[[str, int, int], None],
) -> list[Scene]:
    """Prepared pictures with their place found and their captions opened by it.

    Args:
        root: the folder of the set, whose pictures are written.
        places: what to choose from, with articles.
        style: of the captions.
        leave: source pictures (``provenance["picture"]``) whose sentence or caption is known: their pictures stay as they are.
    """
    sentences = np.stack([clip.text(scene_sentence(place)) for place in places])
    found: dict[int, str] = {}
    seen: list[int] = []
    for k, scene in enumerate(scenes):
        if scene.provenance["picture"] in leave:
            continue
        name = scene_class(scene)
        if name is None:
            seen.append(k)
        else:
            found[k] = f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
    report("naming scenes", 0, len(seen))
    for start in range(0, len(seen), ROWS):
        part = seen[start : start + ROWS]
        names = [scenes[k].file_name for k in part]
        file = root / PLACES_FOUND / f"{start // ROWS:06d}-{content_key(names)}.json"
        if not file.is_file():
            rows: list[str] = []
            for first in range(0, len(part), BATCH):
                images = [read_rgb(root / IMAGES / name) for name in names[first : first + BATCH]]
                rows += [places[int(best)] for best in np.argmax(clip.pictures(images) @ sentences.T, axis=1)]
                report("naming scenes", start + len(rows), len(seen))
            write_json(file, rows)
        found.update(zip(part, read_json(file), strict=True))
        report("naming scenes", start + len(part), len(seen))
    named = list(scenes)
    for k, place in found.items():
        sentence = scene_sentence(place)
        told = scenes[k].replace(provenance={**scenes[k].provenance, "sentence": sentence})
        named[k] = told.replace(caption=caption_of(told, style))
    return named


def scene_class(scene: Scene) -> str | None:
    """The class of a scene that is a place by itself, the most frequent one; None where it has none."""
    counts = Counter(name for name in scene.categories() if plain_name(name) in SCENE_CLASSES)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None
