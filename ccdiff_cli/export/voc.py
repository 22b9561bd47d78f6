"""VOC: ``JPEGImages/``, ``Annotations/NAME.xml`` with DIOR-R's `robndbox` beside the `bndbox`, ``ImageSets/Main/``.

* ``bndbox`` is the devkit's: the first pixel is 1 and the last one lies inside the box, so that the edges x1 y1 x2 y2 become
  x1 + 1, y1 + 1, x2, y2.  ``<source>`` says so, and our reader goes by it.  ``voc_origin`` 0 writes the edges as they are.
* ``robndbox`` is DIOR-R's, whose readers take nothing off: corners from 0, whatever the ``bndbox``.
* NOTE: coordinates are rounded to 1/1000 pixel.  Whole ones are written without a point, since many readers take nothing else;
  others keep their decimals, which mmdet cuts off and others (supervision, ours) read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # builds and writes here; what is read goes through defusedxml

from ..dataset import SPLITS
from ..scene import HBB, Scene
from .common import DIFFICULT, ORIENTATIONS, OTHER_HBB, UNKNOWN, Job, Writer, decimal, stem_of, whole_number, write_classes, write_label

COUNTED_FROM = "PASCAL VOC, pixels counted from"
"""What ``source/annotation`` begins with; 0 or 1 follows."""
ROUNDED = 5e-4
"""Pixels: what is written may be so far off."""
_ROBNDBOX = tuple(f"{axis}_{place}" for place in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy")


def _place(scene: Scene) -> str:
    return f"JPEGImages/{scene.file_name}"


def _labels(job: Job, scene: Scene) -> None:
    """``Annotations/NAME.xml``: ``bndbox`` for every object, and ``robndbox`` beside it where the orientation is known."""
    root = ElementTree.Element("annotation")
    _texts(root, {"folder": "JPEGImages", "filename": scene.file_name})
    _texts(ElementTree.SubElement(root, "source"), {"database": "ccdiff", "annotation": f"{COUNTED_FROM} {job.options.voc_origin}"})
    _texts(ElementTree.SubElement(root, "size"), {"width": scene.width, "height": scene.height, "depth": 3})
    _texts(root, {"segmented": 0})
    for instance in scene.instances:
        entry = ElementTree.SubElement(root, "object")
        _texts(entry, {"name": instance.category, "pose": "Unspecified", "truncated": 0, "difficult": int(instance.difficult)})
        sides = zip(("xmin", "ymin", "xmax", "ymax"), map(_short, _bndbox(job, scene, instance.hbb)), strict=True)
        _texts(ElementTree.SubElement(entry, "bndbox"), dict(sides))
        if instance.oriented:
            corners = zip(_ROBNDBOX, map(_short, instance.corners), strict=True)
            _texts(ElementTree.SubElement(entry, "robndbox"), dict(corners))
    ElementTree.indent(root)
    write_label(job.out / "Annotations" / f"{stem_of(scene)}.xml", ElementTree.tostring(root, encoding="unicode") + "\n")


def _bndbox(job: Job, scene: Scene, hbb: HBB) -> HBB:
    """A box as it is written; one of pixels that is narrower than a pixel would end before it begins, and is made one wide."""
    job.apart["decimals of boxes (read by supervision and by us, cut off by mmdet)"] += not all(map(whole_number, hbb))
    x1, y1, x2, y2 = hbb
    job.apart["boxes reaching out of the picture (written whole)"] += min(x1, y1) < 0 or x2 > scene.width or y2 > scene.height
    if job.options.voc_origin == 0:
        return hbb
    narrow, low = x2 - x1 < 1 - ROUNDED, y2 - y1 < 1 - ROUNDED
    job.lost["boxes narrower than a pixel, made one wide"] += narrow or low
    x1, y1 = max(0.0, min(x1, scene.width - 1.0)) if narrow else x1, max(0.0, min(y1, scene.height - 1.0)) if low else y1
    return x1 + 1, y1 + 1, max(x2, x1 + 1), max(y2, y1 + 1)


def _texts(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _short(value: float) -> str:
    """A whole number without its ".0"."""
    return decimal(value).removesuffix(".0")


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """``ImageSets/Main/SPLIT.txt``, ``trainval.txt`` (what many readers ask for), ``classes.txt``."""
    lists = {split: [stem_of(s) for s in scenes if s.split == split] for split in SPLITS}
    lists["trainval"] = lists["train"] + lists["val"]
    for name, members in lists.items():
        if members:
            write_label(job.out / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{stem}\n" for stem in members))
    write_classes(job)
    if others := sum(Path(s.file_name).suffix != ".jpg" for s in scenes):
        job.said.append(f"{others} pictures are no .jpg, which torchvision's and mmdet's readers ask for (--picture-format jpeg)")
    how = "edges counted from 0" if job.options.voc_origin == 0 else "pixels counted from 1, the last one inside the box, as VOC's devkit"
    job.said.append(f"bndbox: {how}; robndbox: corners from 0, as DIOR-R's")
    return "."


WRITER = Writer(
    _place, _labels, _finish, (UNKNOWN, OTHER_HBB, DIFFICULT), (ORIENTATIONS,), pictures=("png", "jpeg"), plain_names=True
)  # fmt: skip
