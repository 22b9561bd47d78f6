"""Boxes on pictures, layouts as pictures, contact sheets and comparison grids.

* A class has one colour wherever it is drawn: by its place in the class list where that is given, else by a hash of its name.
* The colours are Okabe and Ito's and Paul Tol's, chosen to stay apart for colour-blind readers; every line has a dark rim, so it
  shows on bright concrete as well as on dark water.
* Nothing here reads a file or knows a generator: pictures in, pictures out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scene import ClassList, Instance, Scene

RGB: TypeAlias = tuple[int, int, int]
Picture: TypeAlias = "Image.Image | np.ndarray[Any, Any]"

PALETTE: tuple[RGB, ...] = (
    (230, 159, 0),  # Okabe and Ito, 2008
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (136, 34, 85),  # Paul Tol's schemes, 2021, the most different first
    (153, 153, 51),
    (120, 94, 240),
    (255, 170, 187),
    (68, 170, 153),
    (51, 34, 136),
    (221, 204, 119),
    (170, 68, 153),
    (136, 204, 238),
    (238, 136, 102),
    (187, 204, 51),
    (204, 102, 119),
    (17, 119, 51),
)
RIM: RGB = (20, 20, 20)
GROUND: RGB = (236, 236, 232)
PAPER: RGB = (255, 255, 255)
INK: RGB = (30, 30, 30)

_SHIFT = 4  # OpenCV draws to 1/16 of a pixel


def class_colour(name: str, classes: ClassList | Sequence[str] | None = None) -> RGB:
    """The colour of a class: by its place in ``classes``, or by a hash of the name where no list is given (colours may then repeat)."""
    if classes is not None:
        names = list(classes)
        if name in names:
            return PALETTE[names.index(name) % len(PALETTE)]
    return PALETTE[zlib.crc32(name.encode("utf-8")) % len(PALETTE)]


def picture_of(image: Picture) -> Image.Image:
    """An RGB picture of a PIL image or of an array ``(H, W)``, ``(H, W, 1|3|4)``: uint8, or floats in 0..1."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = (np.clip(array.astype(np.float64), 0, 1) * 255).round().astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(array).convert("RGB")


def draw_scene(
    image: Picture,
    scene: Scene,
    scale: float = 1,
    *,
    classes: ClassList | Sequence[str] | None = None,
    labels: bool = False,
    width: float | None = None,
    scores: bool = False,
) -> Image.Image:
    """A picture with the OBBs of its scene.

    Args:
        image: the picture; where its size is not the scene's, the boxes are stretched with it.
        scale: magnification of the result.
        classes: the class list that fixes the colours.
        labels: whether to write the class name at each box.
        width: line width in pixels of the result; by default about 1/100 of the shorter side, at least 1.
        scores: with ``labels``, adds ``extra["score"]`` where there is one (detections).

    Returns:
        A new RGB picture of ``round(scale * size)``; difficult objects have thinner lines.
    """
    picture = picture_of(image)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    stretch = (size[0] / max(1, scene.width), size[1] / max(1, scene.height))
    line = width if width is not None else max(1.0, min(size) / 100)
    canvas = np.array(picture)
    for instance in scene.instances:
        points = _points(instance.corners, stretch)
        thickness = max(1, round(line / 2 if instance.difficult else line))
        cv2.polylines(canvas, [points], True, RIM, thickness + 2, cv2.LINE_AA, _SHIFT)
        cv2.polylines(canvas, [points], True, class_colour(instance.category, classes), thickness, cv2.LINE_AA, _SHIFT)
    picture = Image.fromarray(canvas)
    if labels:
        _write_names(picture, scene.instances, stretch, classes, scores=scores)
    return picture


def layout_image(
    scene: Scene, scale: float = 1, *, classes: ClassList | Sequence[str] | None = None, labels: bool = True, ground: RGB = GROUND
) -> Image.Image:
    """A layout alone: translucent filled OBBs on a plain ground, with class names where ``labels``.

    Large boxes are painted first, so small objects inside large ones stay visible.
    """
    size = (max(1, round(scene.width * scale)), max(1, round(scene.height * scale)))
    canvas: Any = np.full((size[1], size[0], 3), ground, dtype=np.uint8)
    stretch = (size[0] / max(1, scene.width), size[1] / max(1, scene.height))
    line = max(1, round(min(size) / 160))
    by_area = sorted(scene.instances, key=lambda i: -(i.hbb[2] - i.hbb[0]) * (i.hbb[3] - i.hbb[1]))
    for instance in by_area:
        colour = class_colour(instance.category, classes)
        points = _points(instance.corners, stretch)
        filled = canvas.copy()
        cv2.fillPoly(filled, [points], colour, cv2.LINE_AA, _SHIFT)
        canvas = cv2.addWeighted(filled, 0.55, canvas, 0.45, 0)
        cv2.polylines(canvas, [points], True, tuple(c * 3 // 5 for c in colour), line, cv2.LINE_AA, _SHIFT)
    picture = Image.fromarray(canvas)
    if labels:
        _write_names(picture, scene.instances, stretch, classes, scores=False)
    return picture


def legend(names: Iterable[str], width: int, *, classes: ClassList | Sequence[str] | None = None, font_size: int = 13) -> Image.Image:
    """A strip of colour swatches and class names, at most ``width`` pixels wide, in as many lines as it takes."""
    font, pad, swatch = _font(font_size), 6, font_size
    lines: list[list[tuple[str, float]]] = [[]]
    used = 0.0
    for name in names:
        wide = swatch + pad + font.getlength(name) + 3 * pad
        if lines[-1] and used + wide > width - pad:
            lines.append([])
            used = 0.0
        lines[-1].append((name, wide))
        used += wide
    height = len(lines) * (font_size + pad) + pad
    strip = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        x, y = float(pad), pad + row * (font_size + pad)
        for name, wide in line:
            draw.rectangle((x, y + 1, x + swatch, y + swatch), fill=class_colour(name, classes), outline=RIM)
            draw.text((x + swatch + pad, y + swatch / 2), name, fill=INK, font=font, anchor="lm")
            x += wide
    return strip


def contact_sheet(
    images: Sequence[Picture],
    columns: int = 8,
    titles: Sequence[str] | None = None,
    *,
    gap: int = 4,
    font_size: int = 12,
    footer: Image.Image | None = None,
) -> Image.Image:
    """Pictures in a grid of ``columns``, each centred in a cell of the largest size, with a title above it where given.

    Args:
        footer: a picture below the grid, such as a :func:`legend`.

    Raises:
        ValueError: no pictures, or another number of titles.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(titles)} titles")
    pictures = [picture_of(image) for image in images]
    columns = max(1, min(columns, len(pictures)))
    head = font_size + 4 if titles else 0
    wide, high = max(p.width for p in pictures), max(p.height for p in pictures)
    rows = -(-len(pictures) // columns)
    size = [columns * wide + (columns + 1) * gap, rows * (high + head) + (rows + 1) * gap]
    if footer is not None:
        size = [max(size[0], footer.width), size[1] + footer.height]
    sheet = Image.new("RGB", (size[0], size[1]), PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(font_size)
    for k, picture in enumerate(pictures):
        x = gap + (k % columns) * (wide + gap)
        y = gap + (k // columns) * (high + head + gap)
        if titles:
            draw.text((x + wide / 2, y + head / 2), _shorten(titles[k], font, wide), fill=INK, font=font, anchor="mm")
        sheet.paste(picture, (x + (wide - picture.width) // 2, y + head + (high - picture.height) // 2))
    if footer is not None:
        sheet.paste(footer, (0, size[1] - footer.height))
    return sheet


def comparison_grid(
    rows: Sequence[Sequence[Scene | Picture | None]],
    titles: Sequence[str] = ("layout", "real", "synthetic"),
    *,
    classes: ClassList | Sequence[str] | None = None,
    names: Iterable[str] | None = None,
    cell: int = 192,
    across: int = 1,
    gap: int = 4,
    font_size: int = 13,
) -> Image.Image:
    """Rows of (layout, real, synthetic), or of any other columns, with column titles and a legend of the classes.

    Args:
        rows: each a tuple with one entry per title: a picture, a :class:`Scene` (drawn by :func:`layout_image`), or None (left blank).
        classes: the class list that fixes the colours.
        names: the classes in the legend; by default those of the scenes in ``rows`` (none: no legend).
        cell: side of a cell in pixels; pictures are fitted into it.
        across: how many rows stand side by side.

    Raises:
        ValueError: no rows, or a row with another number of entries than titles.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"every row needs {len(titles)} entries ({', '.join(titles)}), and there must be at least one row")
    across = max(1, min(across, len(rows)))
    head, block_gap, font = font_size + 8, 4 * gap, _font(font_size)
    block = len(titles) * (cell + gap) - gap
    width = across * block + (across - 1) * block_gap + 2 * gap
    lines = -(-len(rows) // across)
    grid = Image.new("RGB", (width, head + lines * (cell + gap) + gap), PAPER)
    draw = ImageDraw.Draw(grid)
    for column in range(across):
        for j, title in enumerate(titles):
            x = gap + column * (block + block_gap) + j * (cell + gap)
            draw.text((x + cell / 2, head / 2), title, fill=INK, font=font, anchor="mm")
    for k, row in enumerate(rows):
        for j, entry in enumerate(row):
            if entry is None:
                continue
            if isinstance(entry, Scene):
                picture = layout_image(entry, cell / max(entry.width, entry.height, 1), classes=classes, labels=False)
            else:
                picture = picture_of(entry)
            ratio = cell / max(picture.size)
            if ratio != 1:
                fitted = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
                picture = picture.resize(fitted, Image.Resampling.BICUBIC)
            x = gap + (k % across) * (block + block_gap) + j * (cell + gap) + (cell - picture.width) // 2
            y = head + (k // across) * (cell + gap) + (cell - picture.height) // 2
            grid.paste(picture, (x, y))
    if names is None:
        present = {i.category for row in rows for entry in row if isinstance(entry, Scene) for i in entry.instances}
        names = [n for n in classes if n in present] if classes is not None else sorted(present)
    names = list(names)
    if not names:
        return grid
    strip = legend(names, width, classes=classes, font_size=font_size)
    whole = Image.new("RGB", (width, grid.height + strip.height), PAPER)
    whole.paste(grid, (0, 0))
    whole.paste(strip, (0, grid.height))
    return whole


def _points(corners: Sequence[float], stretch: tuple[float, float]) -> np.ndarray[Any, Any]:
    points = np.asarray(corners, dtype=np.float64).reshape(-1, 2) * stretch - 0.5  # pixel edges to OpenCV's pixel centres
    return np.clip(np.round(points * (1 << _SHIFT)), -(2**30), 2**30).astype(np.int32)


def _write_names(
    picture: Image.Image,
    instances: Iterable[Instance],
    stretch: tuple[float, float],
    classes: ClassList | Sequence[str] | None,
    *,
    scores: bool,
) -> None:
    font_size = max(9, min(14, round(min(picture.size) / 24)))
    font, draw = _font(font_size), ImageDraw.Draw(picture)
    written: list[tuple[float, float, float, float]] = []
    for instance in instances:
        text = instance.category
        if scores and "score" in instance.extra:
            text = f"{text} {float(instance.extra['score']):.2f}"
        x, y = instance.hbb[0] * stretch[0], instance.hbb[1] * stretch[1] - font_size - 2
        wide = font.getlength(text) + 2
        x, y = max(0.0, min(x, picture.width - wide)), max(0.0, y)  # a name never starts outside the picture
        place = (x, y, x + wide, y + font_size + 1)
        if any(place[0] < p[2] and p[0] < place[2] and place[1] < p[3] and p[1] < place[3] for p in written):
            continue  # crowded: two names on top of each other are no name; the colour still says the class
        written.append(place)
        draw.rectangle(place, fill=RIM)
        draw.text((x + 1, y + font_size / 2 + 0.5), text, fill=class_colour(instance.category, classes), font=font, anchor="lm")


def _shorten(text: str, font: Any, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
