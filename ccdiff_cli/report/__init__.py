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

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..detectors import Detections
from ..drawing import class_colour
from ..pictures import read_rgb
from ..scene import ClassList, Scene
from . import figures

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
class Box:
    """One box of a drawing: an SVG polygon, its colour, and the text shown on hovering."""

    points: str
    colour: str
    title: str
    dashed: bool = False


def trainability_page(results: Mapping[str, Any], classes: ClassList, examples: Sequence[Example], samples: Sequence[Scene]) -> str:
    """The page of :func:`ccdiff_cli.trainability.eval_trainability`.

    Args:
        results: what ``results.json`` holds.
        examples: test pictures with the detections of both arms (first seed).
        samples: synthetic pictures, shown with their labels.
    """
    names = [c for c in classes if any(i.category == c for s in (*samples, *(e.scene for e in examples)) for i in s.instances)]
    return render(
        "page.html",
        r=results,
        arms=results["arms"],
        protocol=results["protocol"],
        classes=list(classes),
        legend=[(name, hex_colour(name, classes)) for name in names],
        gain_figure=Markup(figures.class_gains(results)),  # our own SVG; matplotlib escapes the class names
        adherence_figure=Markup(figures.adherence(results)),
        curves_figure=Markup(figures.precision_recall(results)),
        loss_figure=Markup(figures.losses(results)),
        examples=[
            {
                "name": e.scene.file_name,
                "picture": _picture(e.scene),
                "width": e.scene.width,
                "height": e.scene.height,
                "panels": [
                    ("labels", _labels(e.scene, classes)),
                    ("real", _found(e.before, classes)),
                    ("real + synthetic", _found(e.after, classes)),
                ],
            }
            for e in examples
        ],
        samples=[
            {"name": s.file_name, "picture": _picture(s), "width": s.width, "height": s.height, "boxes": _labels(s, classes)}
            for s in samples
        ],
        shown_score=SHOWN_SCORE,
    )


def render(template: str, **values: Any) -> str:
    """A page of this folder's templates; every value is escaped unless it is ``Markup``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "signed": _signed, "spread": _spread, "interval": _interval}
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
    for (x1, y1, x2, y2), score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if score >= SHOWN_SCORE:
            name = classes.names[label]
            boxes.append(Box(_points((x1, y1, x2, y1, x2, y2, x1, y2)), hex_colour(name, classes), f"{name} {score:.2f}"))
    return boxes


def _points(corners: Sequence[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(corners[0::2], corners[1::2], strict=True))


def hex_colour(name: str, classes: ClassList) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_colour(name, classes))


def _picture(scene: Scene) -> str:
    """The picture as a data address: JPEG, shrunk to :data:`LARGEST_SIDE`."""
    picture = read_rgb(str(scene.path))
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


def _interval(value: Mapping[str, float] | None) -> str:
    return NO_VALUE if not value else f"{_signed(value['low'])} … {_signed(value['high'])}"
