"""The set on disk: prepared, synthetic and detector-training sets are the same thing.

::

    D/
      images/<file_name>       the pictures
      annotations.json         COCO; annotations carry the OBB (see below); images carry split, source, caption, provenance
      manifest.json            class list, kind, counts, what was skipped and why, recipe, seed, versions, hashes
      references/              prepared sets only: the reference bank (see ``references.py``)
      shards/00000/ ...        very large synthetic sets only, in place of images and labels: each a set by itself, named in the manifest

An annotation has ``bbox`` (HBB, x y w h, inside the picture), ``segmentation`` ([[x1 y1 x2 y2 x3 y3 x4 y4]], the OBB, which may reach
beyond the picture, see ``geometry``), ``area`` (of the OBB's part in the picture), ``iscrowd`` (0), ``oriented`` and ``difficult`` (0 or
1), and, where known, ``mask`` (polygons inside the picture) and ``extra``.  Any tool that reads COCO reads it.

NOTE: a set's key is that of the labels and pictures that were read, whatever its manifest says: editing ``annotations.json`` by hand makes
another set, which everything works with and files under another key.  A picture that is not the manifest's is a fault, and so is an
edit that says of an object or a picture what cannot be (:func:`boxes_at_odds`, a size that is not the file's).
``ccdiff verify --accept`` takes edits and pictures as the set's own.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import platform
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue
from typing_extensions import NotRequired, TypedDict

from . import __version__
from .bounds import check_memory
from .console import tell
from .errors import CCDiffError, EditedSet
from .files import content_key, inside, parse_json, read_bytes, write_json
from .geometry import area_inside, corners_inside, hbb_corners, hbb_of, untangled
from .options import shown
from .pictures import picture_size
from .scene import ClassList, Instance, Scene
from .spooled import Spooled, spool
from .stored import Bit, Caption, ClassName, Coordinate, Count, Digest, FileName, Flag, Free, Pixels, Seed, Stored, Text, checked, read_as
from .unchanged import hashes_of, listed, remember

SPLITS = ("train", "val", "test")
ANNOTATIONS = "annotations.json"
MANIFEST = "manifest.json"
BEGUN = "plan.json", "prepare.json"
"""What a synthesis and a preparation write first: where one stands and no manifest does, the set is not finished."""
IMAGES = "images"
SHARDS = "shards"


class Manifest(Stored):
    """``manifest.json``: what is read of it."""

    kind: Text
    classes: list[ClassName]
    content: Text
    pictures: dict[FileName, Digest]
    labels: dict[FileName, Text] = Field(default_factory=dict)
    edits: list[Edit] = Field(default_factory=list)
    counts: Counts
    plan: Text | None = None
    prepare: Free | None = None
    generator: Free | None = None
    source: Free | None = None
    references: Free | None = None
    filter: Free | None = None
    skipped: dict[str, Count] | None = None
    notes: dict[str, Count] | None = None
    cutting: dict[str, Count] | None = None
    left_out: dict[str, Count] | None = None
    shards: list[Shard] = Field(default_factory=list)
    made_in_smaller_batches: dict[str, Count] = Field(default_factory=dict)
    colours: Colours | None = None


class Parts(TypedDict):
    """Of one split: pictures and objects."""

    pictures: Count
    objects: Count


class Counts(Stored):
    """What :func:`count_scenes` makes."""

    pictures: Count
    objects: Count
    per_split: dict[Text, Parts]
    per_class: dict[ClassName, Count]


class Redrawn(TypedDict):
    """Of a synthetic picture that was drawn again, how often, by which seed, and whether it is colour-infrared all the same."""

    seed: Seed
    redrawn: Count
    infrared: NotRequired[Flag]


class Colours(Stored):
    """Synthetic pictures that were drawn again because they came out colour-infrared and nobody had asked for it."""

    redrawn: Count
    infrared: Count
    """Those that are so all the same."""
    pictures: dict[FileName, Redrawn] = Field(default_factory=dict)


class Shard(Stored):
    """One of the sets that a very large set is made of."""

    name: Annotated[str, Field(strict=True, pattern=r"\A[0-9]{5,9}\z")]
    content: Text


class Edit(Stored):
    """What ``ccdiff verify --accept`` took as the set's own, once."""

    before: Text
    """The content key that the set had."""
    labels_changed: Count
    pictures_changed: list[FileName]
    taken_out: list[FileName]
    added: list[FileName]


def _pairs(outline: list[float]) -> list[float]:
    if len(outline) % 2:
        raise ValueError("expected points, x and y in turn")
    return outline


_Corners = tuple[Coordinate, Coordinate, Coordinate, Coordinate, Coordinate, Coordinate, Coordinate, Coordinate]
_Side = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1e9)]


class _Annotation(TypedDict):
    image_id: Count
    category_id: Count
    bbox: tuple[Coordinate, Coordinate, _Side, _Side]
    segmentation: tuple[_Corners]
    oriented: NotRequired[Bit]
    difficult: NotRequired[Bit]
    mask: NotRequired[list[Annotated[list[Coordinate], AfterValidator(_pairs)]]]
    extra: NotRequired[Free]


class _Image(TypedDict):
    id: Count
    file_name: FileName
    width: Pixels
    height: Pixels
    split: NotRequired[Literal["train", "val", "test"]]
    source: NotRequired[Text]
    caption: NotRequired[Caption]
    provenance: NotRequired[Free]


class _Category(TypedDict):
    id: Count
    name: ClassName


class _Labels(TypedDict):
    """``annotations.json``: what is read of it."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class PictureSet:
    """A set on disk, its labels read (pictures stay on disk, at ``scene.path``).

    Attributes:
        root: its folder.
        classes: the frozen class list.
        scenes: all labelled pictures, in the order of the file; of a set of shards they are not in memory (``spooled``).
        manifest: the manifest as read; {} where there is none.
        content: the key of the labels and pictures as they were read; "" where the scenes were not read from a folder.
        hashes: file name -> SHA-256 of the picture as it lies there.
    """

    root: Path
    classes: ClassList
    scenes: Sequence[Scene]
    manifest: dict[str, Any]
    content: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)

    def split(self, name: str) -> Sequence[Scene]:
        """The scenes of one split ("train", "val" or "test")."""
        if isinstance(self.scenes, Spooled):
            return self.scenes.tagged(name)
        return tuple(scene for scene in self.scenes if scene.split == name)

    def key(self) -> str:
        """A key of the set's labels and pictures: what everything derived from it is filed under."""
        return self.content or content_key([scene_record(s) for s in self.scenes])

    def edited(self) -> bool:
        """Whether the labels are others than the manifest was written for."""
        return bool(self.content) and self.content != self.manifest.get("content")

    def ancestors(self) -> set[str]:
        """Content keys that this set had before it was edited."""
        before = {str(edit["before"]) for edit in self.manifest.get("edits", [])}
        return before | ({str(self.manifest.get("content"))} if self.edited() else set())


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


class _InstanceRecord(TypedDict):
    category: ClassName
    hbb: tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    corners: _Corners
    oriented: NotRequired[Flag]
    difficult: NotRequired[Flag]
    mask: NotRequired[list[Annotated[list[Coordinate], AfterValidator(_pairs)]]]
    extra: NotRequired[Free]


class SceneRecord(TypedDict):
    """What :func:`scene_record` makes."""

    file_name: FileName
    width: Pixels
    height: Pixels
    split: Literal["train", "val", "test"]
    source: Text
    caption: Text
    provenance: Free
    instances: list[_InstanceRecord]


def scene_from_record(record: Mapping[str, Any]) -> Scene:
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
    as_read, _ = scenes_of_coco(coco, where=root / ANNOTATIONS)  # x + w is not always x2 to the last digit
    write_json(root / ANNOTATIONS, coco)
    manifest = {
        "kind": kind,
        "classes": list(classes),
        "counts": count_scenes(scenes),
        "content": content_of(coco, picture_hashes, where=root / ANNOTATIONS),
        **details,
        "versions": versions(),
        "pictures": picture_hashes,
        "labels": {scene.file_name: label_digest(scene) for scene in as_read},
    }
    write_manifest(root, manifest)
    remember(root / IMAGES, {n: s for n, s in listed(root / IMAGES).items() if n in picture_hashes}, picture_hashes)
    return read_set(root)


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``, which must be readable again."""
    checked(Manifest, manifest, where=root / MANIFEST)
    write_json(root / MANIFEST, manifest)


def content_of(coco: Mapping[str, Any], pictures: Mapping[str, str], *, where: str | Path) -> str:
    """The key of labels as they stand in ``annotations.json`` and of the hashes of the pictures.

    Raises:
        CCDiffError: a number that is not finite, half a surrogate pair, ...
    """
    value = [coco["images"], coco["annotations"], coco["categories"], pictures]
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
    except (ValueError, RecursionError) as error:
        what = "half a surrogate pair in a text" if isinstance(error, UnicodeError) else str(error)
        raise CCDiffError(f"the labels cannot be written again: {what}", where=where) from None


def label_digest(scene: Scene) -> str:
    """A short digest of all that a picture's labels say: which pictures were edited is seen from it."""
    return content_key(scene_record(scene))[:12]


ROUNDED = 0.05
"""Pixels that two boxes of one object may differ by where a tool rounded what it wrote."""


def boxes_at_odds(instance: Instance) -> tuple[str, str] | None:
    """What cannot be of the two boxes of an edited object, and the fix; None where they can be.

    Which of the two is meant is not for a program to say: formats hold one or the other, so both would be exported.
    """
    corners, (x1, y1, x2, y2) = instance.corners, instance.hbb
    bbox, points = f"bbox {_listed(x1, y1, x2 - x1, y2 - y1)}", f"segmentation [{_listed(*corners)}]"
    a1, b1, a2, b2 = around = hbb_of(corners)
    in_order, crossed = untangled(corners)
    upright = f"segmentation [{_listed(*hbb_corners(instance.hbb))}]"
    if crossed:
        return f"two sides of its {points} cross", f"list the corners in order around the box: [{_listed(*in_order)}]"
    if not instance.oriented:
        if _at(hbb_corners(instance.hbb), corners):
            return None
        what = f"its {points} is not that of its {bbox}: expected the corners of the bbox, since no orientation is known (oriented 0)"
        if _at(hbb_corners(around), corners):
            return what, f"correct the one that is wrong: write {upright}, or bbox {_listed(a1, b1, a2 - a1, b2 - b1)}"
        return what, f"write {upright}, or oriented 1 where these corners are the object's orientation"
    if x1 >= a2 or a1 >= x2 or y1 >= b2 or b1 >= y2:
        fix = f"correct the one that is wrong; where the orientation is not known, write oriented 0 and {upright}"
        return f"its {bbox} and its {points} have no part in common: expected two boxes of one object", fix
    return None


def _at(corners: Sequence[float], found: Sequence[float]) -> bool:
    """Whether there is a point of the others at every corner."""
    others = list(zip(found[0::2], found[1::2], strict=True))
    return all(
        any(abs(x - u) <= ROUNDED and abs(y - v) <= ROUNDED for u, v in others) for x, y in zip(corners[0::2], corners[1::2], strict=True)
    )


def _listed(*values: float) -> str:
    return f"[{', '.join(f'{round(v, 3):.12g}' for v in values)}]"


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


def sum_counts(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several sets (:func:`count_scenes`) as those of one."""
    per_split: dict[str, dict[str, int]] = {}
    per_class: dict[str, int] = {}
    for found in counts:
        for split, numbers in found["per_split"].items():
            entry = per_split.setdefault(split, {"pictures": 0, "objects": 0})
            for what, number in numbers.items():
                entry[what] += number
        for name, number in found["per_class"].items():
            per_class[name] = per_class.get(name, 0) + number
    total = {what: sum(found[what] for found in counts) for what in ("pictures", "objects")}
    return {**total, "per_split": per_split, "per_class": dict(sorted(per_class.items()))}


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


@dataclass(frozen=True)
class Look:
    """A set's folder as it was found, before anything is refused.

    Attributes:
        coco: ``annotations.json`` as parsed; ``scenes`` without paths, and ``classes``: what it says.
        manifest: as parsed.
        hashes: labelled picture that is there -> its SHA-256.
        missing, changed, added: labelled pictures that are not there, that are not the manifest's, that it does not name.
        surplus: files in the folder of pictures that have no labels.
    """

    root: Path
    coco: dict[str, Any]
    scenes: list[Scene]
    classes: ClassList
    manifest: dict[str, Any]
    hashes: dict[str, str]
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)

    @functools.cached_property
    def content(self) -> str:
        """The key of what was found; missing pictures count as the manifest has them."""
        known = self.manifest["pictures"]
        pictures = {s.file_name: self.hashes.get(s.file_name, known.get(s.file_name, "")) for s in self.scenes}
        return content_of(self.coco, pictures, where=self.root / ANNOTATIONS)

    @functools.cached_property
    def edited(self) -> frozenset[str]:
        """The pictures whose labels are not those that the manifest was written for."""
        if self.content == self.manifest["content"]:
            return frozenset()
        then = self.manifest.get("labels", {})
        return frozenset(s.file_name for s in self.scenes if then.get(s.file_name) != label_digest(s))

    def differences(self) -> Edit:
        """What somebody changed since the manifest was written."""
        then = self.manifest.get("labels", {})
        named = {scene.file_name for scene in self.scenes}
        return Edit(
            before=self.manifest["content"],
            labels_changed=sum(name in then for name in self.edited),
            pictures_changed=self.changed,
            taken_out=sorted(self.manifest["pictures"].keys() - named),
            added=self.added,
        )


def read_set(root: str | Path, *, to_look_at: bool = False) -> PictureSet:
    """Read a set from its folder: labels and manifest, and whether its pictures are still the manifest's (see ``unchanged``).

    Labels that were edited after the set was made are used as they are, and :class:`EditedSet` is warned of; the set's key is theirs.

    Args:
        to_look_at: nothing is derived from the set, so pictures that were changed are no fault, nor are edits that cannot be.

    Raises:
        CCDiffError: no such folder, not a set, unfinished, broken labels, a picture that is missing or was changed, an empty set; an edit
            that says what cannot be of an object's boxes or a picture's size.
    """
    if is_sharded(root):
        return _read_shards(Path(root), to_look_at=to_look_at)
    with _without_collection():
        look = look_at_set(root)
        content = look.content
    root, labels = look.root, look.root / ANNOTATIONS
    cures = f"run the command that made the set again, restore the file, or take the set as it is: ccdiff verify --accept {root}"
    if look.missing:
        raise CCDiffError(f"the picture {_first_of(look.missing)} is missing from {root / IMAGES}", where=labels, fix=cures)
    if look.changed and not to_look_at:
        raise CCDiffError(f"the picture {_first_of(look.changed)} was changed after the set was made", where=root / IMAGES, fix=cures)
    if not look.scenes:
        raise CCDiffError("the set holds no pictures", where=labels, fix="check what `ccdiff prepare` reported as skipped")
    if not to_look_at:
        _check_edits(look)
    folder = str(root / IMAGES)
    scenes = tuple(scene.replace(path=os.path.join(folder, scene.file_name)) for scene in look.scenes)
    made = PictureSet(root, look.classes, scenes, look.manifest, content, look.hashes)
    if made.edited():
        warnings.warn(
            f"{root}: the set was edited after it was made ({said_of_edit(look.differences())}) and is used as it is now; "
            f"`ccdiff verify --accept {root}` takes it as the set's own",
            EditedSet,
            stacklevel=2,
        )
    return made


def _check_edits(look: Look) -> None:
    """Refuse what cannot be in the labels of edited pictures, the only ones whose headers are read."""
    where = look.root / ANNOTATIONS
    for scene in look.scenes:
        if scene.file_name not in look.edited:
            continue
        for number, instance in enumerate(scene.instances):
            if wrong := boxes_at_odds(instance):
                raise CCDiffError(f"{_annotation(look.coco, scene, number)}: {wrong[0]}", where=where, fix=wrong[1])
        width, height = picture_size(inside(look.root / IMAGES, scene.file_name, where=where))
        if (width, height) != (scene.width, scene.height):
            raise CCDiffError(
                f"images: {scene.file_name} is {width}x{height} px, its labels say {scene.width}x{scene.height}",
                where=where,
                fix=f"write width {width} and height {height}, and boxes in pixels of the picture as it lies there",
            )


def _annotation(coco: Mapping[str, Any], scene: Scene, number: int) -> str:
    """The place in the file of an object of a picture, and its id."""
    image = next(image["id"] for image in coco["images"] if image["file_name"] == scene.file_name)
    k, found = [(k, a) for k, a in enumerate(coco["annotations"]) if a["image_id"] == image][number]
    return f"annotations[{k}] (id {shown(found.get('id'))}, of {scene.file_name})"


def is_sharded(root: str | Path) -> bool:
    """Whether a folder holds a set, finished or not, that is made of shards."""
    return (Path(root) / SHARDS).is_dir() and not (Path(root) / ANNOTATIONS).exists()


def shards_of(root: str | Path) -> list[Path]:
    """The folders of the shards of a finished set, in order.

    Raises:
        CCDiffError: it is unfinished, its manifest is broken, or says another key than that of its shards.
    """
    root = Path(root)
    if not (root / MANIFEST).is_file():
        raise CCDiffError(f"the set is unfinished: it has no {MANIFEST}", where=root, fix="run the command that makes it again: it resumes")
    manifest = read_manifest(root)
    shards = manifest.get("shards", [])
    if not shards or manifest["content"] != key_of_shards(shards):
        raise CCDiffError(
            "shards: not those that the set was made of", where=root / MANIFEST, fix="run the command that made the set again"
        )
    return [root / SHARDS / shard["name"] for shard in shards]


def key_of_shards(shards: Sequence[Mapping[str, Any]]) -> str:
    """The content key of a set of these shards (``name`` and ``content`` of each)."""
    return content_key([[shard["name"], shard["content"]] for shard in shards])


def _read_shards(root: Path, *, to_look_at: bool) -> PictureSet:
    """The pictures of all shards as one set, read a shard at a time; what stays in memory of a picture is its name and hash."""
    folders, manifest = shards_of(root), read_manifest(root)
    hashes: dict[str, str] = {}
    shards: list[dict[str, str]] = []

    def scenes() -> Iterator[tuple[str, Scene]]:
        for folder in folders:
            part = read_set(folder, to_look_at=to_look_at)
            if list(part.classes) != manifest["classes"]:
                raise CCDiffError("the class list of a shard is not the set's", where=folder, fix="run the command that made the set again")
            if twice := next((name for name in part.hashes if name in hashes), None):
                raise CCDiffError(f"the picture {twice} stands in two shards", where=root, fix="run the command that made the set again")
            hashes.update(part.hashes)
            shards.append({"name": folder.name, "content": part.content})
            yield from ((scene.split, scene) for scene in part.scenes)

    laid_down = spool(scenes(), _laid_down, _taken_up)
    return PictureSet(root, ClassList(tuple(manifest["classes"])), laid_down, manifest, key_of_shards(shards), hashes)


def _laid_down(scene: Scene) -> bytes:
    return json.dumps([scene.path, scene_record(scene)]).encode()


def _taken_up(data: bytes) -> Scene:
    path, record = json.loads(data)
    return scene_from_record(record).replace(path=path)


def check_out(out: str | Path, root: str | Path, name: str = "set", *, around: bool = False) -> None:
    """Whether a folder that is to be written is not the one of a set that is read, nor, where it is asked, one around it.

    Raises:
        CCDiffError: it is; ``name`` is what the set is called.
    """
    folder, read = Path(out).resolve(), Path(root).resolve()
    if folder == read or (around and folder in read.parents):
        what = "is" if folder == read else "lies around"
        raise CCDiffError(f"the output folder {what} the {name} itself", where=out, fix="choose another --out folder")


HELD = 2000, 800
"""Bytes of memory that the labels of a picture take, and those of each of its objects, about."""


def in_memory(made: PictureSet) -> PictureSet:
    """The set with the labels of all its shards in memory, for what goes through them again and again in any order.

    Raises:
        CCDiffError: they clearly do not fit.
    """
    if not isinstance(made.scenes, Spooled):
        return made
    fix = f"give one of its shards, which are sets by themselves: {made.root / SHARDS / '00000'}"
    objects = sum(len(scene.instances) for scene in made.scenes)
    need = HELD[0] * len(made.scenes) + HELD[1] * objects
    check_memory(need, f"looking at all {len(made.scenes):,} pictures together", where=made.root, fix=fix)
    return replace(made, scenes=tuple(made.scenes))


LARGE = 20_000_000
"""Bytes of labels that take so long to read that it is told."""


def look_at_set(root: str | Path, *, full: bool = False) -> Look:
    """Read the labels and the manifest of a set's folder, and look for its pictures.

    Args:
        full: hash every picture, whatever its size and time.

    Raises:
        CCDiffError: no such folder, not a set, unfinished, labels or a manifest that cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise CCDiffError("no such folder", where=root, fix="give the folder that `ccdiff prepare` or `ccdiff synthesize` wrote")
    path = root / ANNOTATIONS
    if not (root / MANIFEST).is_file() and any((root / name).is_file() for name in (ANNOTATIONS, *BEGUN)):
        raise CCDiffError(f"the set is unfinished: it has no {MANIFEST}", where=root, fix="run the command that makes it again: it resumes")
    if not path.is_file():
        what = "the labels are gone" if (root / MANIFEST).is_file() else "not a prepared or synthetic set"
        fix = "run `ccdiff prepare SOURCE --out FOLDER` first; for a set that lost them: the command that made it, again"
        raise CCDiffError(f"{what}: it has no {ANNOTATIONS}", where=root, fix=fix)
    manifest = read_manifest(root)
    data = read_bytes(path)
    large = len(data) > LARGE
    if large:
        tell("reading labels", 0, 1)
    coco = _parsed(data, path, careful=False)
    scenes, classes = scenes_of_coco(coco, where=path)
    if large:
        tell("reading labels", 1, 1)
    names = [scene.file_name for scene in scenes]
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise CCDiffError(f"the picture {twice} is labelled twice", where=path, fix="leave one of the two in `images`")
    known: dict[str, str] = manifest["pictures"]
    top = listed(root / IMAGES)
    found = _pictures(root, names, top, where=path)
    surplus = sorted(name for name in top if name not in found)
    there = {name: status for name, status in found.items() if status is not None}
    hashes = hashes_of(root / IMAGES, there, known={} if full else known)
    look = Look(
        root, coco, scenes, classes, manifest, hashes,
        missing=[name for name in names if name not in there],
        changed=[name for name in names if name in there and name in known and hashes[name] != known[name]],
        added=[name for name in names if name in there and name not in known],
        surplus=surplus,
    )  # fmt: skip
    if look.content != manifest["content"]:  # not as we wrote them, so perhaps with a key twice, of which the parser kept the last
        _parsed(data, path)
    return look


def _parsed(data: bytes, path: Path, *, careful: bool = True) -> Any:
    try:
        return parse_json(data, where=path, careful=careful)
    except CCDiffError as error:
        raise CCDiffError(
            error.what, where=error.where, fix="correct the file, restore it, or run the command that made the set again"
        ) from error


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The manifest of a set, checked.

    Raises:
        CCDiffError: it is missing or broken.
    """
    path = Path(root) / MANIFEST
    fix = "run the command that made the set again, or restore the file"
    manifest: dict[str, Any] = read_as(dict[str, JsonValue], path, fix=fix)
    checked(Manifest, manifest, where=path, fix=fix)
    return manifest


def said_of_edit(edit: Edit) -> str:
    """An edit in words."""
    counts = [
        (edit.labels_changed, "labels of {} pictures changed"),
        (len(edit.pictures_changed), "{} pictures changed"),
        (len(edit.taken_out), "{} pictures taken out"),
        (len(edit.added), "{} pictures added"),
    ]
    return ", ".join(text.format(count) for count, text in counts if count) or "labels changed"


def _first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _pictures(root: Path, names: Iterable[str], top: Mapping[str, os.stat_result], *, where: Path) -> dict[str, os.stat_result | None]:
    """Status of every labelled picture, most of them in ``top``; None where it is not there."""
    found: dict[str, os.stat_result | None] = {}
    for name in names:
        if name in top:
            found[name] = top[name]
            continue
        path = inside(root / IMAGES, name, where=where)
        try:
            status = path.stat()
        except (OSError, ValueError):
            status = None
        found[name] = status if status is not None and stat.S_ISREG(status.st_mode) else None
    return found


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Without the garbage collector, which otherwise looks through millions of new objects again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def scenes_of_coco(coco: Any, *, where: str | Path) -> tuple[list[Scene], ClassList]:
    """Scenes of a COCO dictionary as :func:`coco_of_scenes` writes it (foreign COCO files: ``formats.coco``).

    Raises:
        CCDiffError: missing keys, values of a wrong kind, unknown ids, boxes that are not finite numbers.
    """
    labels: _Labels = checked(_Labels, coco, where=where, fix="correct the entry, or make the set again")
    categories = {c["id"]: c["name"] for c in sorted(labels["categories"], key=lambda c: c["id"])}
    by_image: dict[int, list[Instance]] = {image["id"]: [] for image in labels["images"]}
    for what, key, ids in (
        ("pictures", "images", [image["id"] for image in labels["images"]]),
        ("classes", "categories", [c["id"] for c in labels["categories"]]),
    ):
        if len(set(ids)) != len(ids):
            twice = next(number for number, count in Counter(ids).items() if count > 1)
            fix = f"give each entry of `{key}` an id of its own, and correct the annotations that name it"
            raise CCDiffError(f"{key}: two {what} share an id: {twice}", where=where, fix=fix)
    classes = ClassList(tuple(categories.values()))
    for k, a in enumerate(labels["annotations"]):
        if a["category_id"] not in categories or a["image_id"] not in by_image:
            key = "category_id" if a["category_id"] not in categories else "image_id"
            entries = "categories" if key == "category_id" else "images"
            fix = f"write the id of an entry of `{entries}`, add that entry, or take the annotation out"
            raise CCDiffError(f"annotations[{k}].{key}: nothing has the id {a[key]}", where=where, fix=fix)  # type: ignore[literal-required]
        x, y, w, h = a["bbox"]
        by_image[a["image_id"]].append(
            Instance(
                category=categories[a["category_id"]],
                hbb=(x, y, x + w, y + h),
                corners=a["segmentation"][0],
                oriented=bool(a.get("oriented", 1)),
                difficult=bool(a.get("difficult", 0)),
                mask=tuple(tuple(p) for p in a.get("mask", ())),
                extra=a.get("extra", {}),
            )
        )
    scenes = [
        Scene(
            file_name=image["file_name"],
            width=image["width"],
            height=image["height"],
            instances=tuple(by_image[image["id"]]),
            split=image.get("split", "train"),
            source=image.get("source", image["file_name"]),
            caption=image.get("caption", ""),
            provenance=image.get("provenance", {}),
        )
        for image in labels["images"]
    ]
    return scenes, classes
