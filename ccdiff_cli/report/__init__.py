"""Self-contained HTML pages: here that of a trainability comparison; that of a set is in ``report.inspection``.

No script, no network, figures as SVG, pictures as JPEG inside.

Notable: the page is made from ``results.json`` plus a few pictures, so it can be made again; the same results give the same bytes.
Boxes are drawn as SVG over the picture, which stays sharp at any zoom.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..detectors import Detections
from ..drawing import class_colour
from ..pictures import read_rgb
from ..scene import ClassList, Instance, Scene
from ..startup import shield_matplotlib

shield_matplotlib()
from . import figures  # noqa: E402 (it imports matplotlib)

SHOWN_SCORE = 0.5
"""Detections below this score are not drawn in the examples."""
NO_VALUE = "\N{EN DASH}"
LARGEST_SIDE = 480
"""Pictures are embedded at this size at most, pixels."""


@dataclass(frozen=True)
class Example:
    """A test picture with what the detectors of the two arms found in it."""

    scene: Scene
    before: Detections
    after: Detections


@dataclass(frozen=True)
class Change:
    """An object that one arm's detectors find and the other's do not: ``found`` counts seeds, (before, after)."""

    example: Example
    instance: Instance
    found: tuple[int, int]


@dataclass(frozen=True)
class Box:
    """One box of a drawing: an SVG polygon, its colour, and the text shown on hovering."""

    points: str
    colour: str
    title: str
    dashed: bool = False


def trainability_page(
    results: Mapping[str, Any],
    classes: ClassList,
    examples: Sequence[Example],
    samples: Sequence[Scene],
    changes: Mapping[str, Sequence[Change]] | None = None,
) -> str:
    """The page of :func:`ccdiff_cli.trainability.eval_trainability`.

    Args:
        results: what ``results.json`` holds.
        examples: test pictures with the detections of the headline's two arms (first seed).
        samples: synthetic pictures, shown with their labels.
        changes: "learned" and "lost" -> objects.
    """
    from .trainability import COLUMNS, protocol_rows  # it builds on this module's tables

    arms, chosen, base = results["arms"], results["headline"]["arm"], results["headline"]["baseline"]
    kinds = [arm["kind"] for arm in arms.values()]
    shown = [base, *(n for n, a in arms.items() if a["fraction"] == arms[chosen]["fraction"] and n != base and _belongs(a, arms[chosen]))]
    names = [c for c in classes if any(i.category == c for s in (*samples, *(e.scene for e in examples)) for i in s.instances)]
    sizes = [s for s, v in arms[base]["per_size"].items() if v["test_objects"]]
    dose, by_fraction = figures.dose_curve(results), figures.fraction_curve(results)
    return render(
        "page.html",
        r=results,
        arms=arms,
        chosen=chosen,
        base=base,
        before=arms[base],
        after=arms[chosen],
        colours={name: figures.arm_colour(arm["kind"], kinds) for name, arm in arms.items()},
        shown=shown,
        sizes=sizes,
        protocol=results["protocol"],
        classes=list(classes),
        legend=[(name, hex_colour(name, classes)) for name in names],
        gains_figure=Markup(figures.gains(results)),  # our own SVG; matplotlib escapes the names
        dose_figure=Markup(dose) if dose else None,
        fraction_figure=Markup(by_fraction) if by_fraction else None,
        class_figure=Markup(figures.class_gains(results)),
        adherence_figure=Markup(figures.adherence(results)) if results["adherence"] else None,
        protocol_columns=COLUMNS,
        protocol_rows=protocol_rows(results),
        curves_figure=Markup(figures.precision_recall(results, shown)),
        loss_figure=Markup(figures.losses(results, shown)),
        examples=[
            {
                "name": e.scene.file_name,
                "picture": _picture(e.scene),
                "width": e.scene.width,
                "height": e.scene.height,
                "panels": [
                    ("labels", _labels(e.scene, classes)),
                    (base, _found(e.before, classes)),
                    (chosen, _found(e.after, classes)),
                ],
            }
            for e in examples
        ],
        samples=[
            {"name": s.file_name, "picture": _picture(s), "width": s.width, "height": s.height, "boxes": _labels(s, classes)}
            for s in samples
        ],
        changes={state: [_change(c, classes) for c in found] for state, found in (changes or {}).items()},
        shown_score=SHOWN_SCORE,
    )


def _belongs(arm: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Whether an arm is drawn beside the headline's: itself, and other ways of adding as many pictures at the same protocol."""
    return arm["ratio"] == chosen["ratio"] and arm["kind"] not in ("real", "longer") and arm["protocol"] == chosen["protocol"]


def _change(change: Change, classes: ClassList) -> dict[str, Any]:
    """A part of the picture around an object, with what either arm found there."""
    scene, (x1, y1, x2, y2) = change.example.scene, change.instance.hbb
    side = min(max(2.2 * max(x2 - x1, y2 - y1), 48.0), float(max(scene.width, scene.height)))
    left = min(max((x1 + x2 - side) / 2, 0.0), max(scene.width - side, 0.0))
    top = min(max((y1 + y2 - side) / 2, 0.0), max(scene.height - side, 0.0))
    window = (left, top, min(left + side, scene.width), min(top + side, scene.height))
    label = Box(_points(change.instance.corners), "#ffffff", f"{change.instance.category} (label)", dashed=True)
    return {
        "class": change.instance.category,
        "name": scene.file_name,
        "picture": _picture(scene, window),
        "x": round(window[0], 1),
        "y": round(window[1], 1),
        "width": round(window[2] - window[0], 1),
        "height": round(window[3] - window[1], 1),
        "panels": [[label, *_found(found, classes)] for found in (change.example.before, change.example.after)],
        "found": change.found,
    }


def render(template: str, **values: Any) -> str:
    """A page of this folder's templates; every value is escaped unless it is ``Markup``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "signed": _signed, "spread": _spread, "interval": _interval, "chance": _chance}
    return environment.get_template(template).render(values)


def _labels(scene: Scene, classes: ClassList) -> list[Box]:
    return [
        Box(
            _points(i.corners),
            hex_colour(i.category, classes),
            i.category + (" (difficult)" if i.difficult else ""),
            dashed=i.difficult,
        )
        for i in scene.instances
    ]


def _found(found: Detections, classes: ClassList) -> list[Box]:
    boxes = []
    corners = found.corners if found.corners is not None else np.asarray(found.boxes)[:, [0, 1, 2, 1, 2, 3, 0, 3]]
    for points, score, label in zip(corners.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if score >= SHOWN_SCORE:
            name = classes.names[label]
            boxes.append(Box(_points(points), hex_colour(name, classes), f"{name} {score:.2f}"))
    return boxes


def _points(corners: Sequence[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(corners[0::2], corners[1::2], strict=True))


def hex_colour(name: str, classes: ClassList) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_colour(name, classes))


def _picture(scene: Scene, window: tuple[float, float, float, float] | None = None) -> str:
    """The picture, or a part of it in pixels of the labels, as a data address: JPEG, shrunk to :data:`LARGEST_SIDE`."""
    picture = read_rgb(str(scene.path))
    if window is not None:
        fx, fy = picture.width / scene.width, picture.height / scene.height
        left, top, right, bottom = (v * (fx, fy)[k % 2] for k, v in enumerate(window))
        size = max(1, round(right - left)), max(1, round(bottom - top))
        picture = picture.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return data_address(picture)


def data_address(picture: Image.Image) -> str:
    """A picture as JPEG inside an address, for a page that needs no other file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _number(value: float | None, digits: int = 1) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 1) -> str:
    return NO_VALUE if value is None else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _spread(value: Mapping[str, Any], signed: bool = False) -> Markup:
    """Mean ± sd."""
    mean = _signed(value["mean"]) if signed else _number(value["mean"])
    if value["sd"] is None:
        return Markup(mean)  # digits alone
    return Markup(f'{mean}<span class="sd">± {value["sd"]:.1f}</span>')  # digits alone


def _chance(value: float) -> str:
    """A probability, never 0 or 1."""
    return "> 0.99" if value > 0.99 else "< 0.01" if value < 0.01 else f"{value:.2f}"


def _interval(value: Mapping[str, float] | None) -> str:
    return NO_VALUE if not value else f"{_signed(value['low'])} … {_signed(value['high'])}"
