"""Captions by rule: how many of each class stand where, and which way they point.

"This is an aerial image of <scene>." and then, in the plain style, an account of the objects: the picture is cut into a 4 x 4 grid whose
inner 2 x 2 is the centre, its corners the four corners and the rest the four edges; for each of these places the number of objects of
each class and the direction of their long side, where most of them share it.  The same scene always gives the same words.
<scene> is the most frequent class, unless a user's sentence or a scene classifier (``scenes``) knows better.  A spectrum other than
natural colour (``provenance["spectrum"]``, see ``spectra``) is named: "This is a colour-infrared aerial image of <scene>."  In the style
"measured" the sentence also says what is known of the picture: "This is an aerial image of ships, 0.5 m per pixel, in May 2014."

Two more styles are what released weights were trained on.  "phrases" (AeroGen): "an aerial image with ship on the water and bustling
harbor", a phrase for each class of DIOR, its name for any other.  "quadrants" (DiffusionSat, its captions of Satlas): "a satellite image
of 3 ships, 1 harbor in the top left, 2 planes in the bottom right".  In both, classes are in the order of their names.

Text encoders see a fixed number of tokens, so an account that would be longer leaves out the directions, and if that is not enough, the
places (``MAX_TOKENS``).  Nothing is ever cut in the middle.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from pathlib import Path

from ..errors import CCDiffError
from ..files import read_json
from ..formats.raw import text_lines
from ..geometry import corners_to_le90
from ..quantities import quantities_of, words_of
from ..scene import Instance, Scene

STYLES = ("plain", "short", "measured", "phrases", "quadrants")
MAX_TOKENS = 75
"""CLIP's 77 without the first and the last; words, digits and punctuation marks count, as for CLIP."""
PLACES = ("center", "top left", "top", "top right", "left", "right", "bottom left", "bottom", "bottom right")
DIRECTIONS = ("east-west", "northwest-southeast", "north-south", "northeast-southwest")
MIN_ELONGATION = 1.2
"""Below this ratio of sides the long side has no direction worth naming."""
QUADRANTS = ("top left", "top right", "bottom right", "bottom left")
PHRASES = {
    "airplane": "airplane parked on the ground", "airport": "busy airport", "baseballfield": "green baseball field",
    "basketballcourt": "outdoor basketball court", "bridge": "long bridge", "chimney": "tall chimney", "dam": "large dam",
    "expresswayservicearea": "crowded expressway service area", "expresswaytollstation": "busy expressway toll station",
    "golffield": "well-maintained golf field", "groundtrackfield": "athletic ground track field", "harbor": "bustling harbor",
    "overpass": "elevated overpass", "ship": "ship on the water", "stadium": "large stadium", "storagetank": "industrial storage tank",
    "tenniscourt": "clay tennis court", "trainstation": "crowded train station", "vehicle": "vehicle on the road",
    "windmill": "rotating windmill",
}  # fmt: skip
"""AeroGen's, of DIOR's classes, by their letters alone."""
_ACCUSTOMED_PLURALS = {"aircraft": "aircraft"}


def caption_of(scene: Scene, style: str = "plain", *, place: str | None = None, sentence: str = "", max_tokens: int = MAX_TOKENS) -> str:
    """The caption of a scene.

    Args:
        style: "plain" (the full account), "short" (how many of each class, nothing else), or "measured": the plain account whose first
            sentence ends in what is known of GSD, place, date and clouds (see ``quantities``); "phrases" and "quadrants" (see the
            module's opening) say nothing but classes, counts and places.
        place: the scene word or words, where something better than the most frequent class is known.
        sentence: stands in the place of the whole first sentence; by default the one that `prepare` noted in ``provenance["sentence"]``.
        max_tokens: the account is shortened to so many (see :func:`count_tokens`).

    Raises:
        CCDiffError: an unknown style.
    """
    if style not in STYLES:
        raise CCDiffError(f"unknown caption style {style!r}", fix=f"known styles: {', '.join(STYLES)}")
    counts = Counter(scene.categories())
    if style == "phrases":
        return _phrases(sorted(counts))
    if style == "quadrants":
        return _quadrants(scene, max_tokens)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    spectrum = str(scene.provenance.get("spectrum", ""))
    head = sentence or ("" if place else str(scene.provenance.get("sentence", "")))
    if head:
        head = f"{spectrum.capitalize()}. {head}" if spectrum else head
    else:
        head = scene_sentence(place or (plural(order[0], 2) if order else "open ground"), spectrum)
    if style == "measured" and (words := words_of(quantities_of(scene))):
        head = f"{head.removesuffix('.')}, {words}."
    totals = _listed([(name, counts[name], None) for name in order])
    short = f"{head} {totals}." if totals else head
    if style == "short" or not order:
        return short
    for directions in (True, False):
        text = f"{head} {_account(scene, order, directions)}."
        if count_tokens(text) <= max_tokens:
            return text
    return short


def scene_sentence(place: str, spectrum: str = "") -> str:
    """The first sentence of a caption that is not the user's own; ``spectrum`` is one of ``spectra.SPECTRA`` or ""."""
    return f"This is a {spectrum} aerial image of {place}." if spectrum else f"This is an aerial image of {place}."


def count_tokens(text: str) -> int:
    """About how many tokens CLIP makes of a caption: it takes hyphens, other marks and digits one by one, and rare words in parts."""
    return len(re.findall(r"[^\W\d_]+|\d|[^\w\s]", text))


def read_sentences(path: Path) -> dict[str, str]:
    """Scene sentences by picture: a JSON object {"P0001.png": "An airport by the sea."}, or a CSV file with columns file_name, sentence.

    A picture is named by its file or its stem.  White space is tidied, and a sentence without a full stop gets one.

    Raises:
        CCDiffError: missing, not such a file, an empty or repeated name, a sentence that is no text (with the line or name).
    """
    if path.suffix.lower() == ".csv":
        try:
            rows = csv.reader(text_lines(path), strict=True)
            header = [h.strip() for h in next(rows, [])]
            if header != ["file_name", "sentence"]:
                raise CCDiffError(f"the columns are {header}", where=f"{path}:1", fix="the first line is file_name,sentence")
            pairs = []
            for row in rows:
                if row and len(row) != 2:
                    raise CCDiffError(
                        f"{len(row)} columns, expected 2", where=f"{path}:{rows.line_num}", fix='put sentences with commas in "quotes"'
                    )
                pairs += [(f"{path}:{rows.line_num}", *row)] if row else []
        except csv.Error as error:
            raise CCDiffError(f"not a CSV file: {error}", where=path) from error
    else:
        found = read_json(path)
        if not isinstance(found, dict):
            raise CCDiffError(f"expected an object {{file name: sentence}}, found a {type(found).__name__}", where=path)
        pairs = [(f"{path}: {name}", name, text) for name, text in found.items()]
    sentences: dict[str, str] = {}
    for where, name, text in pairs:
        tidy = " ".join(text.split()) if isinstance(text, str) else ""
        if not name.strip() or not tidy:
            raise CCDiffError(f"expected a file name and a sentence, found {name!r}: {text!r}", where=where)
        if sentences.setdefault(name.strip(), "") != "":
            raise CCDiffError(f"{name.strip()!r} has two sentences", where=where, fix="leave one of them")
        sentences[name.strip()] = tidy if tidy[-1] in ".!?" else f"{tidy}."
    return sentences


def place_of(x: float, y: float, width: float, height: float) -> str:
    """The place, one of ``PLACES``, of a point in a picture."""
    column = min(3, max(0, int(4 * x / width)))
    row = min(3, max(0, int(4 * y / height)))
    if column in (1, 2) and row in (1, 2):
        return "center"
    vertical = {0: "top", 3: "bottom"}.get(row, "")
    horizontal = {0: "left", 3: "right"}.get(column, "")
    return f"{vertical} {horizontal}".strip()


def direction_of(instance: Instance) -> str | None:
    """The direction of the long side, one of ``DIRECTIONS``; None for an unknown orientation or a nearly square object."""
    if not instance.oriented:
        return None
    _, _, w, h, angle = corners_to_le90(instance.corners)
    if h <= 0 or w / h < MIN_ELONGATION:
        return None
    return DIRECTIONS[round(angle / (math.pi / 4)) % 4]


def _phrases(names: list[str]) -> str:
    phrases = [PHRASES.get(re.sub(r"[^a-z]", "", name.lower()), name) for name in names]
    if not phrases:
        return "an aerial image"
    return f"an aerial image with {' and '.join(filter(None, (', '.join(phrases[:-1]), phrases[-1])))}"


def _quadrants(scene: Scene, max_tokens: int) -> str:
    groups: dict[str, Counter[str]] = {quadrant: Counter() for quadrant in QUADRANTS}
    for instance in scene.instances:
        x1, y1, x2, y2 = instance.hbb
        row, column = ("top", "bottom")[y1 + y2 >= scene.height], ("left", "right")[x1 + x2 >= scene.width]
        groups[f"{row} {column}"][instance.category] += 1
    items = [f"{_counted(counts)} in the {quadrant}" for quadrant, counts in groups.items() if counts]
    if not items:
        return "a satellite image"
    text = f"a satellite image of {', '.join(items)}"
    return text if count_tokens(text) <= max_tokens else f"a satellite image of {_counted(Counter(scene.categories()))}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}{'s' if counts[name] > 1 else ''}" for name in sorted(counts))


def _account(scene: Scene, order: list[str], directions: bool) -> str:
    groups: dict[str, dict[str, list[Instance]]] = {}
    for instance in scene.instances:
        x1, y1, x2, y2 = instance.hbb
        place = place_of((x1 + x2) / 2, (y1 + y2) / 2, scene.width, scene.height)
        groups.setdefault(place, {}).setdefault(instance.category, []).append(instance)
    parts = []
    for place in PLACES:
        if place not in groups:
            continue
        items = []
        for name in order:
            members = groups[place].get(name, [])
            if members:
                items.append((name, len(members), _common_direction(members) if directions else None))
        parts.append(f"{place}: {_listed(items)}")
    return "; ".join(parts)


def _common_direction(members: list[Instance]) -> str | None:
    """The direction that more than half of the members share."""
    found = Counter(direction_of(m) for m in members)
    direction, count = max(found.items(), key=lambda item: (item[1], str(item[0])))
    return direction if 2 * count > len(members) else None


def _listed(items: list[tuple[str, int, str | None]]) -> str:
    return ", ".join(f"{count} {plural(name, count)}{' ' + direction if direction else ''}" for name, count, direction in items)


def plural(name: str, count: int) -> str:
    if count == 1:
        return name
    if name in _ACCUSTOMED_PLURALS:
        return _ACCUSTOMED_PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"
