"""Writers: any set on disk as a COCO, DOTA, YOLO or YOLO-OBB folder.

``export_set`` links (or, across file systems, copies) the pictures and writes the labels in the format's own terms; what a format cannot
hold is counted and said.  The receipt ``export.json`` is written last: a folder without one is unfinished and is completed by the same
command.

Sources of the formats: the COCO data format page; the DOTA label description (`imagesource:`, `gsd:`, then `x1 y1 ... x4 y4 class
difficult`); the detection and OBB dataset pages of ultralytics (`images/SPLIT`, `labels/SPLIT`, `data.yaml`).
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .dataset import SPLITS, PictureSet, coco_of_scenes, polygon_area, read_set
from .errors import CCDiffError, os_errors
from .files import TEMPORARY_PREFIX, inside, read_json, write_bytes, write_json
from .geometry import clip_hbb
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
        format: "coco", "dota", "yolo" or "yolo-obb".
        splits: the splits to write.
        progress: called as ``progress("exporting", done, total)``.

    Raises:
        CCDiffError: an unknown format, not a set, two pictures with one stem, a folder that holds something else, a full disk.
    """
    if format not in FORMATS:
        raise CCDiffError(f"unknown export format {format!r}", fix=f"known formats: {', '.join(FORMATS)}")
    data = source if isinstance(source, PictureSet) else read_set(source)
    out = Path(out)
    scenes = [s for s in data.scenes if s.split in splits]
    if not scenes:
        raise CCDiffError(f"the set has no pictures in the splits {', '.join(splits)}", where=data.root)
    plan = {"format": format, "set": data.key(), "splits": sorted(set(splits)), "pictures": len(scenes)}
    if (receipt := _receipt(out, plan)) is not None:
        return Export(out, format, receipt["pictures"], receipt["objects"], receipt["lost"], out / receipt["entry"], resumed=True)
    _begin(out, plan)
    stems = _unique_stems(scenes)
    lost: Counter[str] = Counter()
    folder, write_labels, finish = FORMATS[format]
    for done, (scene, stem) in enumerate(zip(scenes, stems, strict=True), start=1):
        picture = Path(str(scene.path))
        target = inside(out, folder(scene, stem + picture.suffix), where=data.root)
        _place(picture, target)
        write_labels(out, scene, stem, data.classes, lost)
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


def _count_lost(scene: Scene, lost: Counter[str], *, obb: bool, difficult: bool, caption: bool, mask: bool = False) -> None:
    """Count what a format cannot hold."""
    lost["captions"] += bool(scene.caption) and not caption
    for instance in scene.instances:
        lost["orientations"] += instance.oriented and not obb
        lost["difficult flags"] += instance.difficult and not difficult
        lost["masks"] += bool(instance.mask) and not mask


# ---------------------------------------------------------------------------------------------------------------- COCO


def _coco_folder(scene: Scene, name: str) -> str:
    return f"images/{scene.split}/{name}"


def _no_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    pass


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
            if "mask" in annotation:
                annotation["segmentation"] = annotation.pop("mask")
                annotation["area"] = sum(polygon_area(p) for p in annotation["segmentation"])
        write_json(out / "annotations" / f"instances_{split}.json", coco)
        written.append(f"annotations/instances_{split}.json")
    return written[0] if len(written) == 1 else "annotations"


# ---------------------------------------------------------------------------------------------------------------- DOTA


def _dota_folder(scene: Scene, name: str) -> str:
    return f"{scene.split}/images/{name}"


def _dota_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """``labelTxt/NAME.txt``; class names without spaces, corners as decimals ("274.0"), as the published files."""
    _count_lost(scene, lost, obb=True, difficult=True, caption=False)
    gsd = scene.provenance.get("gsd")
    lines = [f"imagesource:{scene.provenance.get('imagesource', 'ccdiff')}", f"gsd:{gsd if gsd is not None else 'null'}"]
    for instance in scene.instances:
        corners = " ".join(_decimal(v) for v in instance.corners)
        lines.append(f"{corners} {instance.category.replace(' ', '-')} {int(instance.difficult)}")
        lost["horizontal boxes other than the OBB's"] += not _same_hbb(instance)
    _write_label(out / scene.split / "labelTxt" / f"{stem}.txt", "\n".join(lines) + "\n")


def _decimal(value: float) -> str:
    """At most three decimals and at least one, never "-0.0"."""
    whole, _, rest = f"{round(value, 3) + 0.0:.3f}".partition(".")
    return f"{whole}.{rest.rstrip('0') or '0'}"


def _same_hbb(instance: Instance) -> bool:
    xs, ys = instance.corners[0::2], instance.corners[1::2]
    return all(abs(a - b) < 0.05 for a, b in zip((min(xs), min(ys), max(xs), max(ys)), instance.hbb, strict=True))


def _finish_dota(out: Path, scenes: Sequence[Scene], stems: Sequence[str], classes: ClassList, lost: Counter[str]) -> str:
    _write_label(out / "classes.txt", "".join(f"{name.replace(' ', '-')}\n" for name in classes))
    return "."


# ---------------------------------------------------------------------------------------------------------------- YOLO


def _yolo_folder(scene: Scene, name: str) -> str:
    return f"images/{scene.split}/{name}"


def _yolo_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """``class cx cy w h``, normalised."""
    _count_lost(scene, lost, obb=False, difficult=False, caption=False)
    lines = []
    for instance in scene.instances:
        hbb = clip_hbb(instance.hbb, (0, 0, scene.width, scene.height))
        if hbb is None:
            lost["objects without an area inside the picture"] += 1
            continue
        x1, y1, x2, y2 = hbb[0] / scene.width, hbb[1] / scene.height, hbb[2] / scene.width, hbb[3] / scene.height
        lines.append(f"{classes.index(instance.category)} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
    _write_label(out / "labels" / scene.split / f"{stem}.txt", "".join(lines))


def _yolo_obb_labels(out: Path, scene: Scene, stem: str, classes: ClassList, lost: Counter[str]) -> None:
    """``class x1 y1 x2 y2 x3 y3 x4 y4``, normalised; the format demands [0, 1], so corners outside the picture are moved to its border."""
    _count_lost(scene, lost, obb=True, difficult=False, caption=False)
    lines = []
    for instance in scene.instances:
        unit = [v / (scene.height if k % 2 else scene.width) for k, v in enumerate(instance.corners)]
        inside_picture = [min(1.0, max(0.0, v)) for v in unit]
        lost["corners outside the picture"] += any(abs(a - b) > 1e-6 for a, b in zip(unit, inside_picture, strict=True))
        lost["horizontal boxes other than the OBB's"] += not _same_hbb(instance)
        lines.append(f"{classes.index(instance.category)} " + " ".join(f"{v:.6f}" for v in inside_picture) + "\n")
    _write_label(out / "labels" / scene.split / f"{stem}.txt", "".join(lines))


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


_Folder = Callable[[Scene, str], str]
_Labels = Callable[[Path, Scene, str, ClassList, "Counter[str]"], None]
_Finish = Callable[[Path, Sequence[Scene], Sequence[str], ClassList, "Counter[str]"], str]
FORMATS: dict[str, tuple[_Folder, _Labels, _Finish]] = {
    "coco": (_coco_folder, _no_labels, _finish_coco),
    "dota": (_dota_folder, _dota_labels, _finish_dota),
    "yolo": (_yolo_folder, _yolo_labels, _finish_yolo),
    "yolo-obb": (_yolo_folder, _yolo_obb_labels, _finish_yolo),
}
"""Format -> where a picture goes, how its labels are written, what is written at the end."""

__all__ = ["FORMATS", "Export", "export_set"]
