"""The set on disk: prepared, synthetic and detector-training sets are the same thing.

::

    D/
      images/<file_name>       the pictures
      annotations.json         COCO; annotations carry the OBB (see below); images carry split, source, caption, provenance
      manifest.json            class list, kind, counts, what was skipped and why, recipe, seed, versions, hashes
      references/              prepared sets only: the reference bank (see ``references.py``)

An annotation has ``bbox`` (HBB, x y w h, inside the picture), ``segmentation`` ([[x1 y1 x2 y2 x3 y3 x4 y4]], the OBB, which may reach
beyond the picture, see ``geometry``), ``area`` (of the OBB's part in the picture), ``iscrowd`` (0), ``oriented`` and ``difficult`` (0 or
1), and, where known, ``mask`` (polygons inside the picture) and ``extra``.  Any tool that reads COCO reads it.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .errors import CCDiffError
from .files import content_key, inside, read_json, write_json
from .geometry import area_inside, corners_inside
from .scene import ClassList, Instance, Scene

SPLITS = ("train", "val", "test")
ANNOTATIONS = "annotations.json"
MANIFEST = "manifest.json"
IMAGES = "images"


@dataclass(frozen=True)
class PictureSet:
    """A set on disk, read into memory (labels only; pictures stay on disk, at ``scene.path``).

    Attributes:
        root: its folder.
        classes: the frozen class list.
        scenes: all labelled pictures, in the order of the file.
        manifest: the manifest as read; {} where there is none.
    """

    root: Path
    classes: ClassList
    scenes: tuple[Scene, ...]
    manifest: dict[str, Any]

    def split(self, name: str) -> tuple[Scene, ...]:
        """The scenes of one split ("train", "val" or "test")."""
        return tuple(scene for scene in self.scenes if scene.split == name)

    def key(self) -> str:
        """A key of the set's labels and pictures (the manifest's hash of both): what caches derived from it are filed under."""
        return str(self.manifest.get("content") or content_key([scene_record(s) for s in self.scenes]))


def scene_record(scene: Scene) -> dict[str, Any]:
    """A JSON-able record of a scene, without its path: layout plans are lines of these."""
    return {
        "file_name": scene.file_name,
        "width": scene.width,
        "height": scene.height,
        "split": scene.split,
        "source": scene.source,
        "caption": scene.caption,
        "provenance": dict(scene.provenance),
        "instances": [_instance_record(i) for i in scene.instances],
    }


def _instance_record(instance: Instance) -> dict[str, Any]:
    record: dict[str, Any] = {"category": instance.category, "hbb": list(instance.hbb), "corners": list(instance.corners)}
    if not instance.oriented:
        record["oriented"] = False
    if instance.difficult:
        record["difficult"] = True
    if instance.mask:
        record["mask"] = [list(p) for p in instance.mask]
    if instance.extra:
        record["extra"] = dict(instance.extra)
    return record


def scene_from_record(record: dict[str, Any]) -> Scene:
    """The inverse of :func:`scene_record`."""
    instances = tuple(
        Instance(
            category=i["category"],
            hbb=tuple(i["hbb"]),
            corners=tuple(i["corners"]),
            oriented=i.get("oriented", True),
            difficult=i.get("difficult", False),
            mask=tuple(tuple(p) for p in i.get("mask", ())),
            extra=i.get("extra", {}),
        )
        for i in record["instances"]
    )
    fields = {k: record[k] for k in ("file_name", "width", "height", "split", "source", "caption", "provenance")}
    return Scene(instances=instances, **fields)


def polygon_area(corners: Sequence[float]) -> float:
    """Area of a simple polygon x1 y1 x2 y2 ..., pixels squared."""
    xs, ys = corners[0::2], corners[1::2]
    n = len(xs)
    return abs(sum(xs[i] * ys[(i + 1) % n] - xs[(i + 1) % n] * ys[i] for i in range(n))) / 2


def visible_area(instance: Instance, width: float, height: float) -> float:
    """Area of the OBB's part in a picture, pixels squared: ``area`` of our annotations."""
    if corners_inside(instance.corners, (0, 0, width, height)):
        return polygon_area(instance.corners)
    return area_inside(instance.corners, width, height)


def coco_of_scenes(scenes: Iterable[Scene], classes: ClassList) -> dict[str, Any]:
    """The COCO dictionary of some scenes; ids count from 1 in the given order."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": scene.file_name,
                "width": scene.width,
                "height": scene.height,
                "split": scene.split,
                "source": scene.source,
                "caption": scene.caption,
                "provenance": dict(scene.provenance),
            }
        )
        for instance in scene.instances:
            x1, y1, x2, y2 = instance.hbb
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": classes.index(instance.category, where=scene.file_name) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": [list(instance.corners)],
                "area": visible_area(instance, scene.width, scene.height),
                "iscrowd": 0,
                "difficult": int(instance.difficult),
                "oriented": int(instance.oriented),
            }
            if instance.mask:
                annotation["mask"] = [list(p) for p in instance.mask]
            if instance.extra:
                annotation["extra"] = dict(instance.extra)
            annotations.append(annotation)
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(classes, start=1)]
    return {"info": {"generator": f"ccdiff {__version__}"}, "images": images, "annotations": annotations, "categories": categories}


def write_set(
    root: str | Path, scenes: Sequence[Scene], classes: ClassList, *, kind: str, details: dict[str, Any], picture_hashes: dict[str, str]
) -> PictureSet:
    """Write ``annotations.json`` and ``manifest.json`` of a set whose pictures already lie in ``images/``.

    The manifest is written last: a set without one is unfinished.

    Args:
        kind: "prepared", "synthetic", ...
        details: what the manifest says beyond the common keys (sources, skipped, recipe, seed, ...).
        picture_hashes: file name -> SHA-256 of every picture.
    """
    root = Path(root)
    classes.check(scenes)
    coco = coco_of_scenes(scenes, classes)
    write_json(root / ANNOTATIONS, coco)
    manifest = {
        "kind": kind,
        "classes": list(classes),
        "counts": count_scenes(scenes),
        "content": content_key([coco["images"], coco["annotations"], coco["categories"], picture_hashes]),
        **details,
        "versions": versions(),
        "pictures": picture_hashes,
    }
    write_json(root / MANIFEST, manifest)
    return read_set(root)


def count_scenes(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Pictures and objects, in all, per split and per class."""
    per_split: dict[str, dict[str, int]] = {}
    per_class: Counter[str] = Counter()
    for scene in scenes:
        entry = per_split.setdefault(scene.split, {"pictures": 0, "objects": 0})
        entry["pictures"] += 1
        entry["objects"] += len(scene.instances)
        per_class.update(scene.categories())
    return {
        "pictures": len(scenes),
        "objects": sum(per_class.values()),
        "per_split": per_split,
        "per_class": dict(sorted(per_class.items())),
    }


def versions() -> dict[str, str]:
    """Versions of this program, Python and the libraries that decide a result's bytes."""
    import importlib.metadata

    found = {"ccdiff": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "diffusers", "transformers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_set(root: str | Path) -> PictureSet:
    """Read a set from its folder (labels and manifest; pictures are not opened but must exist).

    Raises:
        CCDiffError: no such folder, not a set, unfinished, broken labels, a missing picture, an empty set.
    """
    root = Path(root)
    if not root.is_dir():
        raise CCDiffError("no such folder", where=root, fix="give the folder that `ccdiff prepare` or `ccdiff synthesize` wrote")
    path = root / ANNOTATIONS
    if not path.is_file():
        raise CCDiffError(
            f"not a prepared or synthetic set: it has no {ANNOTATIONS}", where=root, fix="run `ccdiff prepare SOURCE --out FOLDER` first"
        )
    if not (root / MANIFEST).is_file():
        raise CCDiffError(f"the set is unfinished: it has no {MANIFEST}", where=root, fix="run the command that makes it again: it resumes")
    manifest = read_json(root / MANIFEST)
    scenes, classes = scenes_of_coco(read_json(path), where=path)
    names = {entry.name for entry in (root / IMAGES).iterdir()} if (root / IMAGES).is_dir() else set()
    placed = []
    for scene in scenes:
        picture = inside(root / IMAGES, scene.file_name, where=path)
        if scene.file_name not in names and not picture.is_file():
            raise CCDiffError(
                f"the picture {scene.file_name} is missing from {root / IMAGES}", where=path, fix="make the set again, or restore the file"
            )
        placed.append(scene.replace(path=str(picture)))
    if not placed:
        raise CCDiffError("the set holds no pictures", where=path, fix="check what `ccdiff prepare` reported as skipped")
    return PictureSet(root, classes, tuple(placed), manifest)


def scenes_of_coco(coco: Any, *, where: str | Path) -> tuple[list[Scene], ClassList]:
    """Scenes of a COCO dictionary as :func:`coco_of_scenes` writes it (foreign COCO files: ``formats.coco``).

    Raises:
        CCDiffError: missing keys, unknown ids, boxes that are not finite numbers.
    """
    try:
        categories = {int(c["id"]): str(c["name"]) for c in sorted(coco["categories"], key=lambda c: c["id"])}
        classes = ClassList(tuple(categories.values()))
        by_image: dict[int, list[Instance]] = {int(image["id"]): [] for image in coco["images"]}
        if len(by_image) != len(coco["images"]):
            raise CCDiffError("two pictures share an id", where=where)
        for a in coco["annotations"]:
            x, y, w, h = (float(v) for v in a["bbox"])
            corners = tuple(float(v) for v in a["segmentation"][0])
            instance = Instance(
                category=categories[int(a["category_id"])],
                hbb=(x, y, x + w, y + h),
                corners=corners,  # type: ignore[arg-type]
                oriented=bool(a.get("oriented", 1)),
                difficult=bool(a.get("difficult", 0)),
                mask=tuple(tuple(float(v) for v in p) for p in a.get("mask", ())),
                extra=a.get("extra", {}),
            )
            if len(corners) != 8 or not instance.is_finite():
                raise CCDiffError(f"annotation {a.get('id')}: the box is not made of finite numbers with 4 corners", where=where)
            if any(len(p) % 2 for p in instance.mask) or not all(math.isfinite(v) for p in instance.mask for v in p):
                raise CCDiffError(f"annotation {a.get('id')}: the mask is not made of points with finite coordinates", where=where)
            by_image[int(a["image_id"])].append(instance)
        scenes = [
            Scene(
                file_name=str(image["file_name"]),
                width=int(image["width"]),
                height=int(image["height"]),
                instances=tuple(by_image[int(image["id"])]),
                split=str(image.get("split", "train")),
                source=str(image.get("source", image["file_name"])),
                caption=str(image.get("caption", "")),
                provenance=image.get("provenance", {}),
            )
            for image in coco["images"]
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CCDiffError(f"the labels are broken: {type(error).__name__}: {error}", where=where, fix="make the set again") from error
    return scenes, classes
