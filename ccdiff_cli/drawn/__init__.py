"""A mini data set of aerial-looking scenes that the package draws itself, in native DIOR layout.

What is notable here:

- Pictures are composed on a plane of 256 x 256 units, whatever their size in pixels, and painted at twice the picture's resolution: a
  painter's order with anti-aliased outlines, then one reduction, an optical blur and sensor noise.
- One sun per picture: every shadow is its object's outline swept along the same direction, by the object's height.
- Ground is procedural: octaves of noise, stretched and turned for water and fields, embossed along the sun for tree canopies.
- A label is the outline that was painted: the OBB is the extent of the outline in the object's own frame, the HBB that in the picture's.
- Picture k depends on (seed, k, size) alone, so a larger set begins with the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np

from ..errors import CCDiffError
from ..files import TEMPORARY_PREFIX, read_json, write_bytes, write_json, write_text
from .canvas import UNITS, Canvas
from .scenes import SCENES

CLASS_MAP = {
    "airplane": "airplane",
    "ship": "ship",
    "storagetank": "storage tank",
    "tenniscourt": "tennis court",
    "basketballcourt": "basketball court",
    "vehicle": "vehicle",
}
"""The DIOR class names drawn here -> the names of the same things in NWPU VHR-10, which the shipped model knows."""

CLASSES = "classes.txt"
"""Class file for ``prepare``: the six classes drawn, of DIOR's twenty, under the names that the shipped model knows."""
_SPLITS = ("train", "train", "test", "train", "val", "train", "test", "train")  # by picture number modulo 8
_RECORD = "drawn.json"
_VERSION = 1


def draw_dataset(
    out: str | Path, *, pictures: int = 120, size: int = 256, seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Draw the mini set into ``out`` in native DIOR layout and return ``out``; a set already drawn with the same numbers is kept.

    Args:
        out: the folder that gets ``JPEGImages-trainval/``, ``JPEGImages-test/``, ``Annotations/``, ``ImageSets/Main/`` and a class file.
        pictures: how many; 5 of 8 are train, 1 of 8 val, 2 of 8 test.  At least 8, so that each split has one.
        size: side of the pictures in pixels.
        seed: of everything random.
        progress: called as ``progress("draw", done, total)``.

    Raises:
        CCDiffError: numbers out of range, ``out`` holds something else, the disk is full.
    """
    out = Path(out)
    if pictures < 8:
        raise CCDiffError(f"pictures is {pictures}, expected at least 8", fix="with fewer, a split would be empty")
    if not 32 <= size <= 2048:
        raise CCDiffError(f"size is {size}, expected 32 to 2048 pixels")
    record = {"pictures": pictures, "size": size, "seed": seed, "version": _VERSION, "opencv": cv2.__version__}
    if (out / _RECORD).is_file():
        found = read_json(out / _RECORD)
        if found == {**record, "finished": True}:
            return out
        if found != {**record, "finished": False}:
            raise CCDiffError(
                "the folder holds a set drawn with other numbers or another version", where=out, fix="choose another folder, or delete it"
            )
    elif out.exists() and (not out.is_dir() or any(not entry.name.startswith(TEMPORARY_PREFIX) for entry in out.iterdir())):
        raise CCDiffError("the folder holds something other than a drawn set", where=out, fix="choose an empty or a new folder")
    write_json(out / _RECORD, {**record, "finished": False})
    for unfinished in sorted(out.rglob(f"{TEMPORARY_PREFIX}*")):
        unfinished.unlink()
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(pictures):
        name, split = f"{number + 1:05d}", _SPLITS[number % len(_SPLITS)]
        names[split].append(name)
        picture, objects = draw_picture(number, size=size, seed=seed)
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 95])
        write_bytes(out / ("JPEGImages-test" if split == "test" else "JPEGImages-trainval") / f"{name}.jpg", data.tobytes())
        for folder, oriented in (("Horizontal Bounding Boxes", False), ("Oriented Bounding Boxes", True)):
            write_text(out / "Annotations" / folder / f"{name}.xml", _xml(name, size, objects, oriented=oriented))
        if progress is not None:
            progress("draw", number + 1, pictures)
    for split, members in names.items():
        write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in members))
    lines = [*dict.fromkeys(CLASS_MAP.values()), *(f"{name} = {known}" for name, known in CLASS_MAP.items())]  # names alone: the whole list
    write_text(out / CLASSES, "".join(f"{line}\n" for line in lines))
    write_json(out / _RECORD, {**record, "finished": True})
    return out


def draw_picture(number: int, *, size: int = UNITS, seed: int = 0) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Picture ``number`` of the set.

    Returns:
        The picture (size, size, 3) uint8 RGB, and one dictionary per object: ``category`` (DIOR name), ``corners`` (x1 y1 ... x4 y4,
        pixels) and ``hbb`` (x_min y_min x_max y_max, pixels).
    """
    rng = np.random.default_rng([seed, number])
    canvas = Canvas(size, rng)
    SCENES[number % len(SCENES)](canvas)
    return canvas.finish(), canvas.objects


def _xml(name: str, size: int, objects: list[dict[str, Any]], *, oriented: bool) -> str:
    lines = [
        "<annotation>",
        f"\t<filename>{escape(name)}.jpg</filename>",
        "\t<source>",
        "\t\t<database>drawn by ccdiff</database>",
        "\t</source>",
    ]
    lines += [
        "\t<size>",
        f"\t\t<width>{size}</width>",
        f"\t\t<height>{size}</height>",
        "\t\t<depth>3</depth>",
        "\t</size>",
        "\t<segmented>0</segmented>",
    ]
    for item in objects:
        lines.append("\t<object>")
        if oriented:
            lines.append("\t\t<type>robndbox</type>")
        lines += [f"\t\t<name>{escape(item['category'])}</name>", "\t\t<pose>Unspecified</pose>"]
        if oriented:
            lines += ["\t\t<truncated>0</truncated>", "\t\t<difficult>0</difficult>"]
            tag, keys, values = "robndbox", _ROBNDBOX, item["corners"]
        else:
            tag, keys, values = "bndbox", ("xmin", "ymin", "xmax", "ymax"), item["hbb"]
        lines += [f"\t\t<{tag}>", *(f"\t\t\t<{key}>{value:.2f}</{key}>" for key, value in zip(keys, values, strict=True)), f"\t\t</{tag}>"]
        lines.append("\t</object>")
    return "\n".join([*lines, "</annotation>", ""])


_ROBNDBOX = tuple(f"{axis}_{corner}" for corner in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy")
