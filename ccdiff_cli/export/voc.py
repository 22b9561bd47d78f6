"""VOC: ``JPEGImages/``, ``Annotations/NAME.xml`` with DIOR-R's `robndbox` beside the `bndbox`, ``ImageSets/Main/``.

NOTE: coordinates are rounded to 1/1000 pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree  # builds and writes here; what is read goes through defusedxml

from ..dataset import SPLITS
from ..scene import Scene
from .common import Job, Writer, count_lost, decimal, stem_of, write_classes, write_label

_ROBNDBOX = tuple(f"{axis}_{place}" for place in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy")


def _place(scene: Scene) -> str:
    return f"JPEGImages/{scene.file_name}"


def _labels(job: Job, scene: Scene) -> None:
    """``Annotations/NAME.xml``: ``bndbox`` for every object, and ``robndbox`` beside it where the orientation is known."""
    count_lost(
        job, scene, ("orientations", "marks that an orientation is unknown", "horizontal boxes other than the OBB's", "difficult flags")
    )
    root = ElementTree.Element("annotation")
    _texts(root, {"folder": "JPEGImages", "filename": scene.file_name})
    _texts(ElementTree.SubElement(root, "source"), {"database": "ccdiff"})
    _texts(ElementTree.SubElement(root, "size"), {"width": scene.width, "height": scene.height, "depth": 3})
    _texts(root, {"segmented": 0})
    for instance in scene.instances:
        entry = ElementTree.SubElement(root, "object")
        _texts(entry, {"name": instance.category, "pose": "Unspecified", "truncated": 0, "difficult": int(instance.difficult)})
        sides = zip(("xmin", "ymin", "xmax", "ymax"), map(_short, instance.hbb), strict=True)
        _texts(ElementTree.SubElement(entry, "bndbox"), dict(sides))
        if instance.oriented:
            corners = zip(_ROBNDBOX, map(_short, instance.corners), strict=True)
            _texts(ElementTree.SubElement(entry, "robndbox"), dict(corners))
    ElementTree.indent(root)
    write_label(job.out / "Annotations" / f"{stem_of(scene)}.xml", ElementTree.tostring(root, encoding="unicode") + "\n")


def _texts(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _short(value: float) -> str:
    """A whole number without its ".0": many VOC readers take nothing else."""
    return decimal(value).removesuffix(".0")


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """``ImageSets/Main/SPLIT.txt``, ``trainval.txt`` (what many readers ask for), ``classes.txt``."""
    lists = {split: [stem_of(s) for s in scenes if s.split == split] for split in SPLITS}
    lists["trainval"] = lists["train"] + lists["val"]
    for name, members in lists.items():
        if members:
            write_label(job.out / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{stem}\n" for stem in members))
    write_classes(job)
    return "."


WRITER = Writer(_place, _labels, _finish)
