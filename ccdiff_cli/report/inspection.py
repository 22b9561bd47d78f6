"""The page of ``inspect``: warnings, tables, figures, drawn samples, and the boxes and pictures that look wrong.

Everything but the pictures comes from the facts (``inspection.json``); pictures are decoded one at a time and embedded small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.spatial import cKDTree

from ..dataset import polygon_area
from ..drawing import draw_scene
from ..pictures import read_rgb
from ..prepare.windows import read_windows
from ..scene import ClassList, Instance, Scene
from .figures import BOTH, FAINT, INK, REAL, STYLE, WIDTH, literal, svg_text
from .page import data_address, hex_colour, render

CELL = 300
"""Longest side of an embedded picture, pixels."""
SMALL_OBJECT, PART_OBJECT = 10, 24
"""Where the middle one of a picture's objects would be smaller than the first (pixels), a part is drawn in which it has the second."""
SHOWN_BOXES = 6
"""Suspicious boxes drawn for each reason."""
SHOWN_PAIRS = 12
"""Pairs of alike pictures drawn."""
SPLIT_COLOURS = {"train": BOTH, "val": "#e69f00", "test": "#1a7f5a", "no split": REAL}
_MARKS = (16, 32, 96)


def inspection_page(facts: Mapping[str, Any], classes: ClassList, scenes: Sequence[Scene], *, samples: int) -> str:
    """The page of :func:`ccdiff_cli.inspection.inspect_set`.

    Args:
        facts: what ``inspection.json`` holds.
        samples: how many pictures are shown at least.
    """
    bad = {entry["picture"] for entry in facts["unreadable"]}
    good = [s for s in scenes if s.file_name not in bad]
    shown = choose(good, classes, samples)
    present = {name for s in shown for name in s.categories()}
    return render(
        "inspection.html",
        f=facts,
        splits=list(facts["per_split"]),
        bins=list(facts["sizes"]["bins"]),
        legend=[(name, hex_colour(name, classes)) for name in classes if name in present],
        split_colours={split: _split_colour(split) for split in facts["per_split"]},
        class_figure=Markup(class_counts(facts)),  # our own SVG; matplotlib escapes the class names
        size_figure=Markup(size_histogram(facts)),
        angle_figure=Markup(angle_histogram(facts)),
        crowd_figure=Markup(objects_per_picture(facts)),
        samples=[{"name": s.file_name, "split": s.split or "no split", "objects": len(s.instances), **_sample(s, classes)} for s in shown],
        suspects=_suspects(facts, classes, {s.file_name: s for s in good}),
        pairs={what: _pairs(facts["duplicates"][what], good, classes) for what in ("across_splits", "within_a_split")},
    )


def choose(scenes: Sequence[Scene], classes: ClassList, count: int) -> list[Scene]:
    """Pictures with objects spread evenly over the set, then one for every class not seen in them; of a set without objects, any."""
    full = [k for k, s in enumerate(scenes) if s.instances] or list(range(len(scenes)))
    chosen = {full[i] for i in np.linspace(0, len(full) - 1, min(count, len(full))).astype(int)} if full else set()
    for name in classes:
        if not any(name in scenes[k].categories() for k in chosen):
            having = [k for k in full if name in scenes[k].categories()]
            chosen |= set(having[len(having) // 2 :][:1])
    return [scenes[k] for k in sorted(chosen)]


def _drawn(scene: Scene, classes: ClassList) -> str:
    return _embedded(read_rgb(str(scene.path), scene.reading), scene, classes)


def _sample(scene: Scene, classes: ClassList) -> dict[str, str]:
    """The picture with its boxes; where those would be too small to judge, the part with the most objects."""
    size = float(np.median([polygon_area(i.corners) for i in scene.instances] or [np.inf])) ** 0.5
    longest = max(scene.width, scene.height)
    side = max(64, round(CELL * size / PART_OBJECT)) if size < np.inf else longest
    if size * CELL / longest >= SMALL_OBJECT or side >= longest:
        return {"picture": _drawn(scene, classes), "part": ""}
    boxes = np.array([i.hbb for i in scene.instances])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    crowd = cKDTree(centres).query_ball_point(centres, side / 2, p=np.inf, return_length=True)
    room = np.maximum(0, np.array([scene.width, scene.height]) - side)
    x, y = (int(v) for v in np.clip(np.round(centres[int(np.argmax(crowd))] - side / 2), 0, room))
    window = (x, y, min(scene.width, x + side), min(scene.height, y + side))
    ((_, crop),) = read_windows(str(scene.path), [window], scene.reading)
    inside = np.flatnonzero((boxes[:, :2] < window[2:]).all(1) & (boxes[:, 2:] > window[:2]).all(1))
    moved = tuple(_moved(scene.instances[k], x, y) for k in inside.tolist())
    return {"picture": _embedded(crop, Scene("", *crop.size, moved), classes), "part": f"{crop.width} x {crop.height} px at {x}, {y}"}


def _moved(instance: Instance, x: int, y: int) -> Instance:
    corners = tuple(v - (y if k % 2 else x) for k, v in enumerate(instance.corners))
    return Instance.from_corners(instance.category, corners, difficult=instance.difficult)


def _embedded(picture: Image.Image, scene: Scene, classes: ClassList) -> str:
    """A picture with boxes; scaled before it is drawn on, so that lines stay as wide."""
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return data_address(
        draw_scene(picture.resize(size, Image.Resampling.LANCZOS), scene, classes=classes, width=2 if len(scene.instances) <= 40 else 1)
    )


def _suspects(facts: Mapping[str, Any], classes: ClassList, scenes: Mapping[str, Scene]) -> list[dict[str, Any]]:
    """For every reason with boxes: the count and some of them, spread evenly, each in its surroundings."""
    groups = []
    for reason, count in facts["suspicious"]["counts"].items():
        members = [b for b in facts["suspicious"]["boxes"] if b["reason"] == reason and b["picture"] in scenes]
        if not count:
            continue
        shown = [members[i] for i in np.unique(np.linspace(0, len(members) - 1, min(SHOWN_BOXES, len(members))).astype(int))]
        cases = []
        for box in shown:
            scene = scenes[box["picture"]]
            numbers = [box["object"], *([box["other_object"]] if "other_object" in box else [])]
            cases.append({**box, "crop": _surroundings(scene, [scene.instances[n] for n in numbers], classes)})
        groups.append({"reason": reason, "count": count, "cases": cases})
    return groups


def _surroundings(scene: Scene, instances: Sequence[Instance], classes: ClassList) -> str:
    """The part of the picture around an object, which is drawn alone; black beyond the picture."""
    points = np.array([p for i in instances for p in (*zip(i.corners[::2], i.corners[1::2], strict=True), i.hbb[:2], i.hbb[2:])])
    low, high = points.min(axis=0), points.max(axis=0)
    side = int(min(max(64.0, 2.0 * float((high - low).max())), 4.0 * max(scene.width, scene.height)))  # a wild box does not blow it up
    corner = np.round((low + high) / 2 - side / 2).astype(int)
    x, y = (int(v) for v in np.clip(corner, -side, np.array([scene.width, scene.height])))
    crop = read_rgb(str(scene.path), scene.reading).crop((x, y, x + side, y + side))
    moved = []
    for instance in instances:
        moved.append(_moved(instance, x, y))
        if instance.oriented:  # the HBB as a thin line, since the two may disagree
            hbb = tuple(v - (y if k % 2 else x) for k, v in enumerate(instance.hbb))
            moved.append(Instance.from_hbb(instance.category, hbb, difficult=True))
    return _embedded(crop, Scene("", side, side, tuple(moved)), classes)


def _pairs(pairs: Sequence[Mapping[str, Any]], scenes: Sequence[Scene], classes: ClassList) -> list[dict[str, Any]]:
    by_name = {s.file_name: s for s in scenes}
    shown = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(SHOWN_PAIRS, len(pairs))).astype(int))] if pairs else []
    return [{**pair, "shown": [_drawn(by_name[name], classes) for name in pair["pictures"]]} for pair in shown]


# ---------------------------------------------------------------------------------------------------------------- figures


def _split_colour(split: str) -> str:
    return SPLIT_COLOURS.get(split, SPLIT_COLOURS["no split"])


def class_counts(facts: Mapping[str, Any]) -> str:
    """Objects a class, stacked by split, most frequent on top."""
    per_class = facts["per_class"]
    order = sorted(per_class, key=lambda name: per_class[name]["objects"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 * max(3, len(order)) + 0.8))
        axes = figure.add_subplot()
        left = np.zeros(len(order))
        for split in facts["per_split"]:
            values = np.array([per_class[name]["per_split"][split] for name in order], float)
            axes.barh(range(len(order)), values, left=left, height=0.66, color=_split_colour(split))
            left += values
        for y, value in enumerate(left):
            axes.text(value + left.max(initial=1) * 0.008, y, f"{int(value):,}", va="center", fontsize=9)
        axes.set_yticks(range(len(order)), [literal(name) for name in order])
        axes.set_xlim(0, max(1.0, left.max(initial=1) * 1.08))
        _quiet(axes, "x")
        axes.set_xlabel("objects")
        return svg_text(figure)


def size_histogram(facts: Mapping[str, Any]) -> str:
    """Square root of the OBB's area, logarithmic bins, with the borders of the literature's size classes."""
    edges, counts = np.array(facts["sizes"]["histogram"]["edges"]), np.array(facts["sizes"]["histogram"]["counts"])
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (16, 28)
    first, last = max(0, min(first, 14)), min(len(counts), max(last, 28))  # the borders are always in view
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 2 - 0.2, 2.7))
        axes = figure.add_subplot()
        axes.bar(edges[first:last], counts[first:last], width=np.diff(edges)[first:last], align="edge", color=BOTH, alpha=0.85, linewidth=0)
        axes.set_xscale("log", base=2)
        ticks = [v for v in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if edges[first] <= v <= edges[last]]
        axes.set_xticks(ticks, [str(v) for v in ticks])
        axes.minorticks_off()
        for mark in _MARKS:
            axes.axvline(mark, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        _quiet(axes, "y")
        axes.set_xlabel("square root of the OBB's area, pixels")
        axes.set_ylabel("objects")
        return svg_text(figure)


def angle_histogram(facts: Mapping[str, Any]) -> str:
    """Direction of the long side; bins are centred on the axes, and the first stands for -90 and for 90 degrees."""
    centres, counts = np.array(facts["angles"]["centres"]), np.array(facts["angles"]["counts"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 2 - 0.2, 2.7))
        axes = figure.add_subplot()
        axes.bar(centres, counts, width=0.94 * (centres[1] - centres[0]), color=BOTH, alpha=0.85, linewidth=0)
        axes.set_xticks([-90, -45, 0, 45], ["-90°\nnorth-south", "-45°", "0°\neast-west", "45°"])
        _quiet(axes, "y")
        axes.set_xlabel("angle of the long side (le90)")
        axes.set_ylabel("objects")
        return svg_text(figure)


def objects_per_picture(facts: Mapping[str, Any]) -> str:
    """How many pictures have how many objects, stacked by split; wide ranges in bins of equal width."""
    found = {s: {int(n): c for n, c in p["objects_per_picture"]["histogram"].items()} for s, p in facts["per_split"].items()}
    most = max((n for counts in found.values() for n in counts), default=0)
    step = max(1, -(-(most + 1) // 40))
    places = np.arange(0, most + step, step)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5))
        axes = figure.add_subplot()
        below = np.zeros(len(places))
        for split, counts in found.items():
            values = np.zeros(len(places))
            for n, c in counts.items():
                values[n // step] += c
            axes.bar(places + (step - 1) / 2, values, width=0.85 * step, bottom=below, color=_split_colour(split))
            below += values
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _quiet(axes, "y")
        axes.set_xlabel("objects in a picture" + (f" (bins of {step})" if step > 1 else ""))
        axes.set_ylabel("pictures")
        return svg_text(figure)


def _quiet(axes: Any, grid: str) -> None:
    axes.tick_params(axis="y" if grid == "x" else "x", length=0)
    axes.grid(axis=grid, color=FAINT)
    axes.set_axisbelow(True)
