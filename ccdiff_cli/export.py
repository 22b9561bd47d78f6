"""Writers: any set on disk as COCO, DOTA, YOLO, YOLO-OBB, VOC, CC-Diff (``metadata.jsonl``), Hugging Face or webdataset files.

``export_set`` links (or, across file systems, copies) the pictures and writes the labels in the format's own terms; what a format cannot
hold is counted and said.  The receipt ``export.json`` is written last: a folder without one is unfinished and is completed by the same
command.

Sources of the formats: the COCO data format page; the DOTA label description (`imagesource:`, `gsd:`, then `x1 y1 ... x4 y4 class
difficult`); the detection and OBB dataset pages of ultralytics (`images/SPLIT`, `labels/SPLIT`, `data.yaml`); the VOC development kit's
`Annotations/NAME.xml` with DIOR-R's `robndbox` beside the `bndbox`; the interchange file of CC-Diff; the `imagefolder` page of Hugging
Face's datasets; the README of webdataset.

NOTE: coordinates are rounded: to 1/1000 pixel in DOTA and VOC, to six decimals of the picture's side in YOLO, eight in `metadata.jsonl`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # builds and writes here; what is read goes through defusedxml

import yaml

from .dataset import SPLITS, PictureSet, coco_of_scenes, polygon_area, read_set
from .errors import CCDiffError, os_errors
from .files import TEMPORARY_PREFIX, atomic_write, inside, read_json, write_bytes, write_json
from .geometry import clip_hbb, hbb_of
from .scene import ClassList, Instance, Scene

RECEIPT = "export.json"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        root: the folder.
        format: one of ``FORMATS``.
        pictures, objects: how many.
        lost: what the format cannot hold -> how many objects or pictures had it.
        entry: the file or folder a user points the next tool at.
        resumed: whether the folder was already complete.
    """

    root: Path
    format: str
    pictures: int
    objects: int
    lost: dict[str, int]
    entry: Path
    resumed: bool = False


def export_set(
    source: str | Path | PictureSet, out: str | Path, format: str, *, splits: Sequence[str] = SPLITS, progress: Progress | None = None
) -> Export:
    """Write a set in another format.

    Args:
        source: a prepared or synthetic set.
        format: a key of :data:`FORMATS`.
        splits: the splits to write.
        progress: called as ``progress("exporting", done, total)``.

    Raises:
        CCDiffError: an unknown format, not a set, two pictures with one stem, class or file names that the format cannot spell, a folder
            that holds something else, a full disk.
    """
    if format not in FORMATS:
        raise CCDiffError(f"unknown export format {format!r}", fix=f"known formats: {', '.join(FORMATS)}")
    data = source if isinstance(source, PictureSet) else read_set(source)
    out = Path(out)
    scenes = [s for s in data.scenes if s.split in splits]
    if not scenes:
        raise CCDiffError(f"the set has no pictures in the splits {', '.join(splits)}", where=data.root)
    _check_names(format, data.classes, scenes)
    plan = {"format": format, "set": data.key(), "splits": sorted(set(splits)), "pictures": len(scenes)}
    if (receipt := _receipt(out, plan)) is not None:
        return Export(out, format, receipt["pictures"], receipt["objects"], receipt["lost"], out / receipt["entry"], resumed=True)
    _begin(out, plan)
    stems = _unique_stems(scenes)
    lost: Counter[str] = Counter()
    folder, write_labels, finish = FORMATS[format]
    for done, (scene, stem) in enumerate(zip(scenes, stems, strict=True), start=1):
        picture = Path(str(scene.path))
        if name := folder(scene, stem + picture.suffix):
            _place(picture, inside(out, name, where=data.root))
        write_labels(out, scene, stem, data.classes, lost)
        lost["folders in file names"] += "/" in scene.file_name
        if progress is not None:
            progress("exporting", done, len(scenes))
    entry = finish(out, scenes, stems, data.classes, lost)
    lost = +lost  # what did happen
    objects = sum(len(s.instances) for s in scenes)
    if hasattr(os, "sync"):
        os.sync()  # the receipt, which says that all is there, must not reach the disk before the labels
    write_json(
        out / RECEIPT, {"plan": plan, "pictures": len(scenes), "objects": objects, "lost": dict(sorted(lost.items())), "entry": entry}
    )
    with os_errors(out, "finish the export"):
        (out / _PLAN).unlink(missing_ok=True)
    return Export(out, format, len(scenes), objects, dict(sorted(lost.items())), out / entry)


_PLAN = ".export-plan.json"


def _receipt(out: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    if not (out / RECEIPT).is_file():
        return None
    receipt = read_json(out / RECEIPT)
    if not isinstance(receipt, dict) or receipt.get("plan") != plan:
        raise CCDiffError("the folder holds another export", where=out, fix="choose another output folder, or empty this one")
    return receipt


def _begin(out: Path, plan: dict[str, Any]) -> None:
    with os_errors(out, "make the output folder"):
        if out.exists() and not out.is_dir():
            raise CCDiffError("the output is a file, not a folder", where=out, fix="choose another output folder")
        out.mkdir(parents=True, exist_ok=True)
        for partial in sorted(out.rglob(f"{TEMPORARY_PREFIX}*")):
            partial.unlink()
        if (out / _PLAN).is_file():
            if read_json(out / _PLAN) != plan:
                raise CCDiffError(
                    "the folder holds the beginning of another export", where=out, fix="choose another output folder, or empty this one"
                )
        elif any(out.iterdir()):
            raise CCDiffError("the output folder is not empty", where=out, fix="choose another folder, or empty this one")
    write_json(out / _PLAN, plan)


def _unique_stems(scenes: Sequence[Scene]) -> list[str]:
    """A flat name for every picture; label files are found by it."""
    stems = [s.file_name.replace("/", "__").rpartition(".")[0] or s.file_name for s in scenes]
    for stem, count in Counter(stems).items():
        if count > 1:
            raise CCDiffError(
                f"{count} pictures are called {stem!r} with different extensions",
                fix="rename them: their labels would overwrite each other",
            )
    return stems


def _place(picture: Path, target: Path) -> None:
    """Link a picture under a new name, or copy it; whole or not at all."""
    if target.exists():
        return
    with os_errors(target, "write the picture"):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
        partial.unlink(missing_ok=True)
        try:
            os.link(picture.resolve(), partial)
        except OSError:  # another file system, or one without links
            try:
                shutil.copyfile(picture, partial)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        os.replace(partial, target)


def _write_label(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"), durable=False)


def _count_lost(scene: Scene, stem: str, lost: Counter[str], holds: Sequence[str]) -> None:
    """Count what a format cannot hold: everything a scene may say but for what is named in ``holds``."""
    unit = scene.instances
    found = {
        "captions": bool(scene.caption),
        "sources": scene.source not in ("", stem, scene.file_name, stem.partition("__x")[0]),  # a tile's name begins with its source
        "provenance": bool(scene.provenance),
        "orientations": sum(i.oriented for i in unit),
        "marks that an orientation is unknown": sum(not i.oriented for i in unit),
        "horizontal boxes other than the OBB's": sum(not _same_hbb(i) for i in unit),
        "difficult flags": sum(i.difficult for i in unit),
        "masks": sum(bool(i.mask) for i in unit),
        "extra fields": sum(bool(i.extra) for i in unit),
    }
    lost.update({what: int(count) for what, count in found.items() if what not in holds})


def _same_hbb(instance: Instance) -> bool:
    return all(abs(a - b) < 0.05 for a, b in zip(hbb_of(instance.corners), instance.hbb, strict=True))


def _check_names(format: str, classes: ClassList, scenes: Sequence[Scene]) -> None:
    """Names that would break a label file, or make two classes one."""
    for name in (*classes, *(s.file_name for s in scenes)):
        if any(unicodedata.category(ch) in ("Cc", "Cs", "Zl", "Zp") for ch in name):
            raise CCDiffError(f"the name {name!r} holds a character that label files cannot", fix="rename the class or the picture")
    if format == "dota":
        for spelling, count in Counter(_dota_name(name) for name in classes).items():
            if count > 1:
                raise CCDiffError(f"{count} classes would both be written as {spelling!r}", fix="rename one of them")


def _decimal(value: float) -> str:
    """At most three decimals and at least one, never "-0.0"."""
    whole, _, rest = f"{round(value, 3) + 0.0:.3f}".partition(".")
    return f"{whole}.{rest.rstrip('0') or '0'}"


# ---------------------------------------------------------------------------------------------------------------- COCO


def _coco_folder(scene: Scene, name: str) -> str:
    return f"images/{scene.split}/{name}"


def _no_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """COCO holds everything, in one file a split that is written at the end."""


def _finish_coco(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    """One ``instances_SPLIT.json`` a split; ``segmentation`` is the mask where known, else the OBB, which is also kept as ``obb``."""
    named = [s.replace(file_name=stem + Path(str(s.path)).suffix) for s, stem in zip(scenes, stems, strict=True)]
    written = []
    for split in SPLITS:
        members = [s for s in named if s.split == split]
        if not members:
            continue
        coco = coco_of_scenes(members, classes)
        for annotation in coco["annotations"]:
            annotation["obb"] = annotation["segmentation"][0]
            if annotation.get("mask", [annotation["obb"]]) != [annotation["obb"]]:  # one that is the OBB itself would not be known again
                annotation["segmentation"] = annotation.pop("mask")
                annotation["area"] = sum(polygon_area(p) for p in annotation["segmentation"])
        write_json(out / "annotations" / f"instances_{split}.json", coco)
        written.append(f"annotations/instances_{split}.json")
    return written[0] if len(written) == 1 else "annotations"


# ---------------------------------------------------------------------------------------------------------------- DOTA


def _dota_folder(scene: Scene, name: str) -> str:
    return f"{scene.split}/images/{name}"


def _dota_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """``labelTxt/NAME.txt`` as the published files: headers, class names without spaces, corners as decimals ("274.0").

    ``annfiles/NAME.txt`` are the same lines without headers, as mmrotate's reader wants them; it also asks for PNG pictures.
    """
    _count_lost(scene, stem, lost, ("orientations", "difficult flags"))
    lost["provenance"] -= bool(scene.provenance) and scene.provenance.keys() <= {"imagesource", "gsd"}
    header = {"imagesource": scene.provenance.get("imagesource") or "ccdiff", "gsd": scene.provenance.get("gsd") or "null"}
    head = "".join(f"{key}:{' '.join(str(value).split())}\n" for key, value in header.items())
    lines = ""
    for instance in scene.instances:
        corners = " ".join(_decimal(v) for v in instance.corners)
        lines += f"{corners} {_dota_name(instance.category)} {int(instance.difficult)}\n"
    _write_label(out / scene.split / "labelTxt" / f"{stem}.txt", head + lines)
    _write_label(out / scene.split / "annfiles" / f"{stem}.txt", lines)
    lost["pictures that are no PNG (DOTA's tools take them, mmrotate's reader does not)"] += Path(str(scene.path)).suffix != ".png"


def _dota_name(name: str) -> str:
    return "-".join(name.split())


def _finish_dota(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    _write_label(out / "classes.txt", "".join(f"{_dota_name(name)}\n" for name in classes))
    return "."


# ---------------------------------------------------------------------------------------------------------------- YOLO


_REACHING_OUT = "horizontal boxes reaching out of the picture"


def _yolo_folder(scene: Scene, name: str) -> str:
    return f"images/{scene.split}/{name}"


def _yolo_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """``class cx cy w h``, normalised."""
    _count_lost(scene, stem, lost, ("horizontal boxes other than the OBB's", "marks that an orientation is unknown"))
    lines = []
    for instance in scene.instances:
        hbb = clip_hbb(instance.hbb, (0, 0, scene.width, scene.height))
        if hbb is None:
            lost["objects without an area inside the picture"] += 1
            continue
        lost[_REACHING_OUT] += hbb != instance.hbb
        x1, y1, x2, y2 = hbb[0] / scene.width, hbb[1] / scene.height, hbb[2] / scene.width, hbb[3] / scene.height
        lines.append(f"{classes.index(instance.category)} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
    _write_label(out / "labels" / scene.split / f"{stem}.txt", "".join(lines))


def _yolo_obb_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """``class x1 y1 x2 y2 x3 y3 x4 y4``, normalised; the format demands [0, 1], so corners outside the picture are moved to its border."""
    _count_lost(scene, stem, lost, ("orientations",))
    lines = []
    for instance in scene.instances:
        corners = _unit_coordinates(instance.corners, scene, "corners outside the picture", lost)
        lines.append(f"{classes.index(instance.category)} " + " ".join(f"{v:.6f}" for v in corners) + "\n")
    _write_label(out / "labels" / scene.split / f"{stem}.txt", "".join(lines))


def _unit_coordinates(points: Sequence[float], scene: Scene, outside: str, lost: Counter[str]) -> list[float]:
    """x1 y1 x2 y2 ... in [0, 1]; points outside the picture are moved to its border, and the object is counted under ``outside``."""
    unit = [v / (scene.height if k % 2 else scene.width) for k, v in enumerate(points)]
    held = [min(1.0, max(0.0, v)) for v in unit]
    lost[outside] += any(abs(a - b) > 1e-6 for a, b in zip(unit, held, strict=True))
    return held


def _finish_yolo(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    """``data.yaml``. No ``path``: it is then the folder of the file, wherever that is moved."""
    present = {s.split for s in scenes}
    train = "train" if "train" in present else next(s for s in SPLITS if s in present)
    description: dict[str, Any] = {"train": f"images/{train}", "val": f"images/{'val' if 'val' in present else train}"}
    if "test" in present:
        description["test"] = "images/test"
    description["names"] = dict(enumerate(classes))
    _write_label(out / "data.yaml", yaml.safe_dump(description, sort_keys=False, allow_unicode=True))
    return "data.yaml"


# ----------------------------------------------------------------------------------------------------------------- VOC


def _voc_folder(scene: Scene, name: str) -> str:
    return f"JPEGImages/{name}"


_ROBNDBOX = tuple(f"{axis}_{place}" for place in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy")


def _voc_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """``Annotations/NAME.xml``: ``bndbox`` for every object, and ``robndbox`` beside it where the orientation is known."""
    _count_lost(
        scene,
        stem,
        lost,
        ("orientations", "marks that an orientation is unknown", "horizontal boxes other than the OBB's", "difficult flags"),
    )
    root = ElementTree.Element("annotation")
    _texts(root, {"folder": "JPEGImages", "filename": stem + Path(str(scene.path)).suffix})
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
    _write_label(out / "Annotations" / f"{stem}.xml", ElementTree.tostring(root, encoding="unicode") + "\n")


def _texts(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _short(value: float) -> str:
    """A whole number without its ".0": many VOC readers take nothing else."""
    return _decimal(value).removesuffix(".0")


def _finish_voc(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    """``ImageSets/Main/SPLIT.txt``, ``trainval.txt`` (what many readers ask for), ``classes.txt``."""
    lists = {split: [stem for s, stem in zip(scenes, stems, strict=True) if s.split == split] for split in SPLITS}
    lists["trainval"] = lists["train"] + lists["val"]
    for name, members in lists.items():
        if members:
            _write_label(out / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{stem}\n" for stem in members))
    _write_label(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    return "."


# ------------------------------------------------------------------------------------------------------- metadata.jsonl

METADATA_OBJECTS = 6
"""CC-Diff pads a picture's objects to this number."""
_BEYOND = f"objects beyond CC-Diff's {METADATA_OBJECTS} a picture (written, but its own programs may not look at them)"


def _metadata_folder(scene: Scene, name: str) -> str:
    return f"{scene.split}/{name}"


def _metadata_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    _count_lost(scene, stem, lost, ("captions", "orientations", "horizontal boxes other than the OBB's"))
    lost[_BEYOND] += max(0, len(scene.instances) - METADATA_OBJECTS)


def _finish_metadata(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    """``SPLIT/metadata.jsonl`` beside the pictures, one a line; ``classes.txt``.  Every object is written, also beyond the sixth."""
    lines: dict[str, list[str]] = {}
    for scene, stem in zip(scenes, stems, strict=True):
        padding = max(0, METADATA_OBJECTS - len(scene.instances))
        boxes = [_unit_coordinates(i.hbb, scene, _REACHING_OUT, lost) for i in scene.instances]
        corners = [_unit_coordinates(i.corners, scene, "corners outside the picture", lost) for i in scene.instances]
        record = {
            "file_name": stem + Path(str(scene.path)).suffix,
            "caption": [scene.caption, *scene.categories(), *[""] * padding],
            "bndboxes": [[round(v, 8) for v in box] for box in boxes] + [[0.0] * 4] * padding,
            "obboxes": [[round(v, 8) for v in box] for box in corners] + [[0.0] * 8] * padding,
        }
        lines.setdefault(scene.split, []).append(json.dumps(record, ensure_ascii=False) + "\n")
    for split, members in lines.items():
        _write_label(out / split / "metadata.jsonl", "".join(members))
    _write_label(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    return "." if len(lines) > 1 else f"{next(iter(lines))}/metadata.jsonl"


# -------------------------------------------------------------------------------------------- Hugging Face, webdataset


def _split_folder(scene: Scene, name: str) -> str:
    return f"{scene.split}/{name}"


def _example(scene: Scene, name: str, classes: ClassList) -> dict[str, Any]:
    """What `datasets` and training scripts written for it expect of a picture for detection; boxes in pixels, the rest as we have it."""
    objects = {
        "bbox": [[i.hbb[0], i.hbb[1], i.hbb[2] - i.hbb[0], i.hbb[3] - i.hbb[1]] for i in scene.instances],
        "category": [classes.index(i.category) for i in scene.instances],
        "name": scene.categories(),
        "corners": [list(i.corners) for i in scene.instances],
        "oriented": [i.oriented for i in scene.instances],
        "difficult": [i.difficult for i in scene.instances],
        "area": [polygon_area(i.corners) for i in scene.instances],
    }
    return {
        "file_name": name,
        "width": scene.width,
        "height": scene.height,
        "text": scene.caption,
        "source": scene.source,
        "objects": objects,
    }


_KEPT = ("captions", "sources", "orientations", "marks that an orientation is unknown", "horizontal boxes other than the OBB's")


def _count_examples(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    _count_lost(scene, stem, lost, (*_KEPT, "difficult flags"))


def _finish_huggingface(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    """`imagefolder` of Hugging Face's datasets: ``SPLIT/metadata.jsonl`` beside the pictures; ``classes.txt``."""
    lines: dict[str, list[str]] = {}
    for scene, stem in zip(scenes, stems, strict=True):
        example = _example(scene, stem + Path(str(scene.path)).suffix, classes)
        lines.setdefault(scene.split, []).append(json.dumps(example, ensure_ascii=False) + "\n")
    for split, members in lines.items():
        _write_label(out / split / "metadata.jsonl", "".join(members))
    _write_label(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    return "."


SHARD_PICTURES = 1000


def _nowhere(scene: Scene, name: str) -> str:
    """Pictures stand in the shards alone."""
    return ""


def _finish_webdataset(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    """``SPLIT-000000.tar``, each of at most ``SHARD_PICTURES`` pictures: ``KEY.png`` (or as it is) and ``KEY.json``; ``classes.txt``.

    Keys are numbers, for a dot in a key would end it.  The bytes of a shard depend on its pictures and labels alone.
    """
    for split in SPLITS:
        members = [scene for scene in scenes if scene.split == split]
        for first in range(0, len(members), SHARD_PICTURES):
            with (
                atomic_write(out / f"{split}-{first // SHARD_PICTURES:06d}.tar") as stream,
                tarfile.open(fileobj=stream, mode="w") as shard,
            ):
                for number, scene in enumerate(members[first : first + SHARD_PICTURES], start=first):
                    picture = Path(str(scene.path))
                    with os_errors(picture, "read the picture"):
                        data = picture.read_bytes()
                    label = json.dumps(_example(scene, scene.file_name, classes), ensure_ascii=False).encode("utf-8")
                    for suffix, content in ((picture.suffix, data), (".json", label)):
                        entry = tarfile.TarInfo(f"{number:08d}{suffix}")
                        entry.size = len(content)
                        shard.addfile(entry, io.BytesIO(content))
    _write_label(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    return "."


_Folder = Callable[[Scene, str], str]
_Labels = Callable[[Path, Scene, str, ClassList, "Counter[str]"], None]
_Finish = Callable[[Path, Sequence[Scene], Sequence[str], ClassList, "Counter[str]"], str]
FORMATS: dict[str, tuple[_Folder, _Labels, _Finish]] = {
    "coco": (_coco_folder, _no_labels, _finish_coco),
    "dota": (_dota_folder, _dota_labels, _finish_dota),
    "yolo": (_yolo_folder, _yolo_labels, _finish_yolo),
    "yolo-obb": (_yolo_folder, _yolo_obb_labels, _finish_yolo),
    "voc": (_voc_folder, _voc_labels, _finish_voc),
    "metadata": (_metadata_folder, _metadata_labels, _finish_metadata),
    "huggingface": (_split_folder, _count_examples, _finish_huggingface),
    "webdataset": (_nowhere, _count_examples, _finish_webdataset),
}
"""Format -> where a picture goes ("": nowhere), how its labels are written, what is written at the end."""

__all__ = ["FORMATS", "Export", "export_set"]
