"""Which pictures are pieces of one scene, told by their names: they share a ``source``, so no split drawn by us parts them.

* DOTA's tools, mmrotate, ultralytics, YOLT and our ``prepare`` write names that tell it one by one (``dota.tile_source``, which some
  readers ask themselves).
* SAHI writes corners (``scene_0_0_64_48``), in some versions after a number of its own (``scene_3_16_8_80_56``): only the names beside it
  tell whether the number is the tile's or the scene's.
* Rows and columns, offsets and words (``scene_0_1``, ``scene_r0_c1``, ``scene_patch_7``, Roboflow's ``scene_png.rf.0a1b``) tell it less
  surely, so they count only for pictures whose split is to be drawn; the user's own pattern counts for all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from ..errors import CCDiffError
from ..scene import Scene
from .dota import tile_source
from .raw import RawSet

_CORNERS = re.compile(r"(.+)_(\d{1,6})_(\d{1,6})_(\d{1,6})_(\d{1,6})")
_NUMBERED = re.compile(r"(.+)_(\d{1,6})")
_GRID = re.compile(r"(.+?)[_-](\d{1,6})[_-](\d{1,6})")
_WORDS = re.compile(
    r"(.+?)[_-](?:(?:r|row|y|i)[_-]?\d+[_-]?(?:c|col|column|x|j)[_-]?\d+|x[_-]?\d+[_-]?y[_-]?\d+"
    r"|(?:tile|patch|crop|chip|piece|part|window|block|sub|aug)[_-]?\d+(?:[_-]\d+)?)",
    re.IGNORECASE,
)
_AUGMENTED = re.compile(r"(.+)\.rf\.[0-9A-Za-z]+")
MIN_SIDE = 8
"""Numbers that span less are no corners of a tile."""


def name_sources(raw: RawSet, pattern: str | None) -> None:
    """Give the pictures whose reader knows no source but their name the scene that they are a piece of.

    Args:
        pattern: a regular expression, searched for in the file name without its extension; its group ``source``, or its first, is the
            source.

    Raises:
        CCDiffError: a pattern that is none, has no group or finds nothing.
    """
    if pattern is not None:
        _by_pattern(raw, pattern)
        return
    plain = {k: stem for k, s in enumerate(raw.scenes) if s.source in (stem := _stem(s), PurePosixPath(stem).name)}
    found = {stem: source for stem in plain.values() if (source := tile_source(stem)) != stem}
    found = {**by_corners(set(plain.values()) - found.keys()), **found}
    drawn = {stem for k, stem in plain.items() if not raw.scenes[k].split}
    found = {**by_hints(drawn - found.keys()), **found}
    for k, stem in plain.items():
        if stem in found:
            raw.scenes[k] = raw.scenes[k].replace(source=found[stem])
            raw.note("pictures taken for pieces of a scene by their names", raw.scenes[k].file_name, f"of {found[stem]}")
    if found and len(raw.scenes) > 1 and len({s.source for s in raw.scenes}) == 1 and drawn:
        what = "all pictures are pieces of one scene by their names, so they share a split: --source-pattern tells otherwise"
        raw.change(what, raw.scenes[0].file_name, f"of {raw.scenes[0].source}")


def _stem(scene: Scene) -> str:
    return scene.file_name.rpartition(".")[0] or scene.file_name


def _by_pattern(raw: RawSet, pattern: str) -> None:
    try:
        finder = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CCDiffError(f"not a regular expression: {error}", where=f"--source-pattern {pattern}") from error
    if not finder.groups:
        fix = r"put the part that names the scene into parentheses: '^(.+)_\d+_\d+$'"
        raise CCDiffError("the pattern has no group", where=f"--source-pattern {pattern}", fix=fix)
    matched = 0
    for k, scene in enumerate(raw.scenes):
        match = finder.search(_stem(scene))
        source = match.group("source" if "source" in finder.groupindex else 1) if match else None
        if source:
            matched += 1
            raw.scenes[k] = scene.replace(source=source)
    if not matched:
        example = f"it is searched for in names such as {_stem(raw.scenes[0])!r}" if raw.scenes else None
        raise CCDiffError("the pattern fits no picture", where=f"--source-pattern {pattern}", fix=example)
    raw.notes["pictures whose source the pattern gives"] += matched
    raw.notes["pictures that the pattern does not fit, each a source of its own"] += len(raw.scenes) - matched


def by_corners(names: Iterable[str]) -> dict[str, str]:
    """Name -> scene of the names that end in the corners of a tile, x1_y1_x2_y2, as SAHI's do."""
    corners: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)  # what stands before the corners -> name -> corners
    for name in sorted(names):
        if match := _CORNERS.fullmatch(name):
            x1, y1, x2, y2 = box = tuple(int(v) for v in match.groups()[1:])
            if x2 - x1 >= MIN_SIDE and y2 - y1 >= MIN_SIDE:
                corners[match.group(1)][name] = box
    numbered: dict[str, list[str]] = defaultdict(list)  # the same without a number at its end -> all that have one
    for base in corners:
        if match := _NUMBERED.fullmatch(base):
            numbered[match.group(1)].append(base)
    found: dict[str, str] = {}
    for scene, bases in numbered.items():
        boxes = [box for base in bases for box in corners[base].values()]
        if len(bases) > 1 and len(boxes) == len(bases) == len(set(boxes)):  # one box a number, each once: the numbers count tiles
            found.update({name: scene for base in bases for name in corners[base]})
    for base, tiles in corners.items():
        found.update({name: base for name in tiles if name not in found})
    return found


def by_hints(names: Iterable[str]) -> dict[str, str]:
    """Name -> scene of the names that say row and column, offsets or the number of a piece, where several of a scene do."""
    found: dict[str, str] = {}
    for expression in (_WORDS, _AUGMENTED):
        groups: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names):
            if name not in found and (match := expression.fullmatch(name)):
                groups[match.group(1)].append(name)
        found.update({name: scene for scene, members in groups.items() if len(members) > 1 for name in members})
    grids: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for name in sorted(names):
        if name not in found and (match := _GRID.fullmatch(name)):
            grids[match.group(1)][int(match.group(2)), int(match.group(3))] = name
    for scene, places in grids.items():
        first, second = {a for a, _ in places}, {b for _, b in places}
        if len(places) > 1 and min(first) <= 1 and min(second) <= 1 and 2 * len(places) >= len(first) * len(second):
            found.update(dict.fromkeys(places.values(), scene))
    return found
