"""What all pages are made of: templates, pictures inside the page, boxes as SVG over them.

No script, no network, figures as SVG, pictures as JPEG inside.  Boxes are drawn as SVG over the picture, which stays sharp at any zoom.
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

from ..drawing import class_colour
from ..pictures import read_rgb
from ..scene import ClassList, Scene

NO_VALUE = "\N{EN DASH}"
LARGEST_SIDE = 480
"""Pictures are embedded at this size at most, pixels."""


@dataclass(frozen=True)
class Box:
    """One box of a drawing: an SVG polygon, its colour, and the text shown on hovering."""

    points: str
    colour: str
    title: str
    dashed: bool = False


def render(template: str, **values: Any) -> str:
    """A page of this folder's templates; every value is escaped unless it is ``Markup``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "signed": _signed, "spread": _spread, "interval": _interval, "chance": _chance}
    return environment.get_template(template).render(values)


def labels_of(scene: Scene, classes: ClassList) -> list[Box]:
    """The boxes of a picture's objects; those of difficult ones are dashed."""
    return [
        Box(
            points_of(i.corners),
            hex_colour(i.category, classes),
            i.category + (" (difficult)" if i.difficult else ""),
            dashed=i.difficult,
        )
        for i in scene.instances
    ]


def labelled(scene: Scene, classes: ClassList) -> dict[str, Any]:
    """A picture with its labels, for a template."""
    return {
        "name": scene.file_name,
        "picture": picture_address(scene),
        "width": scene.width,
        "height": scene.height,
        "boxes": labels_of(scene, classes),
    }


def points_of(corners: Sequence[float]) -> str:
    """x1 y1 x2 y2 ... as SVG writes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(corners[0::2], corners[1::2], strict=True))


def hex_colour(name: str, classes: ClassList) -> str:
    """The colour of a class, as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(name, classes))


def picture_address(scene: Scene, window: tuple[float, float, float, float] | None = None) -> str:
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
