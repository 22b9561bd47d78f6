"""Any COCO file with its pictures: boxes, polygons, RLE masks.

The OBB is the ``segmentation`` itself where it is one ring of four corners, else the minimum-area rectangle of the mask; an annotation
without a mask has its HBB alone, turned by CVAT's attribute ``rotation``.  A group (``iscrowd`` 1) becomes a difficult object and is
counted.

* One file a split (``instances_train.json``, ``annotations/val.json``, Roboflow's ``train/_annotations.coco.json``) or one file in all;
  what a download of COCO holds beside the instances (captions, panoptic, ...) is passed over.  Categories are matched by name.
* Our own sets and exports are read whole: beside the OBB (``obb`` where the segmentation is the mask) ``oriented``, ``difficult``,
  ``mask`` and ``extra`` of an object, ``split``, ``source``, ``caption`` and ``provenance`` of a picture.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..dataset import SPLITS
from ..errors import CCDiffError
from ..files import is_file
from ..geometry import bitmap_outlines, clip_hbb, hbb_of, min_area_corners
from ..scene import HBB, ClassList, Corners, Instance, Scene
from .classes import ClassMap, clean_name, over, plain_name
from .raw import (
    SPLIT_WORDS,
    Faults,
    PictureFinder,
    RawSet,
    UnknownClass,
    child,
    count_unnamed,
    flag,
    is_litter,
    listed,
    make_names_differ,
    note_turn,
    number,
    parse_json,
    read_split_lists,
    read_text,
    some,
    split_of_name,
    turned_box,
)  # fmt: skip

MAX_MASK_SIDE = 20_000
"""RLE masks larger than this are refused: their size comes from the file."""
MAX_MASK_PIXELS = 100_000_000
"""The most that is unpacked of one RLE mask: its columns, from the first to the last that the object touches."""


def is_coco(root: Path) -> bool:
    """Whether the path is a COCO file or a folder with one."""
    return bool(_files(root))


def read_coco(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read a COCO file, or all COCO files of a folder; pictures are looked for beside the file and in the usual folders.

    Raises:
        CCDiffError: not COCO; (strict) unknown ids, boxes that are not finite, repeated ids, a picture that is missing.
    """
    faults = faults or Faults()
    files = _files(root)
    if not files:
        raise CCDiffError(
            "no COCO file (a JSON object with images, annotations and categories)",
            where=root,
            fix="JSON of Label Studio, VIA, CreateML or FiftyOne is not read: let the tool export COCO, YOLO or VOC",
        )
    folder = root if root.is_dir() else root.parent
    loaded = [(path, _lists(path)) for path in files]
    if not any(
        _holds(coco) in ("instances", "keypoints") for _, coco in loaded
    ):  # at the top lies what a download holds beside the objects
        loaded += [(path, _lists(path)) for path in _split_files(root) if path not in files]
    loaded = _with_boxes(loaded, notes := Counter[str]())
    table = _Categories(loaded, notes)
    names = over(classes, lambda: ClassMap.of(ClassList(tuple(table.names))))
    raw = RawSet("coco", names.classes, [], notes=notes)
    finder = PictureFinder(folder, (folder, child(folder, "images")))
    claimed: dict[str, Path] = {}
    for path, coco in loaded:
        split = _split_of(path, folder, [other for other, _ in loaded], where=path) if len(loaded) > 1 else ""
        here: set[str] = set()
        for scene in _read_one(path, coco, table.of_file(path, names), finder, raw, faults, split=split):
            if (other := claimed.setdefault(str(scene.path), path)) is not path or str(scene.path) in here:
                what = f"stands in {other.name} too" if other is not path else "stands in the file twice"
                raise CCDiffError(f"the picture {scene.file_name} {what}", where=path, fix="keep it once, or give one of the files alone")
            here.add(str(scene.path))
            raw.scenes.append(scene)
    named = (_picture_name(image) for _, coco in loaded for image in coco["images"])
    count_unnamed(raw, named, {Path(str(scene.path)).parent for scene in raw.scenes})
    make_names_differ(raw, folder)
    raw.notes = +raw.notes  # without the zeros
    lists = child(folder, "splits")
    if lists.is_dir() and not any(s.split for s in raw.scenes):
        splits = read_split_lists(lists, [_stem(s.file_name) for s in raw.scenes], faults)
        if splits:
            raw.skipped["pictures in no split list"] += sum(_stem(s.file_name) not in splits for s in raw.scenes)
            raw.skipped = +raw.skipped
            raw.scenes = [s.replace(split=splits[_stem(s.file_name)]) for s in raw.scenes if _stem(s.file_name) in splits]
    return raw


# ------------------------------------------------------------------------------------------------------------------- the files


def _files(root: Path) -> list[Path]:
    """The COCO files of a folder: at its top, in ``annotations``, or one a split folder (Roboflow)."""
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" else []
    if not root.is_dir():
        return []
    found = [p for folder in (root, child(root, "annotations")) for p in listed(folder, ".json") if _looks_like_coco(p)]
    return found or _split_files(root)


def _split_files(root: Path) -> list[Path]:
    splits = sorted(p for p in root.iterdir() if p.is_dir() and p.name.lower() in SPLIT_WORDS) if root.is_dir() else []
    return [p for folder in splits for p in listed(folder, ".json") if _looks_like_coco(p)]


def _looks_like_coco(path: Path) -> bool:
    """By its first and last 200 kB, so that a folder is recognised without reading all of it."""
    if not is_file(path):  # opening a pipe would wait for ever
        return False
    try:
        with open(path, "rb") as stream:
            text = stream.read(200_000)
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 200_000))
            text += stream.read()
    except OSError:
        return False
    text = text.replace(b"\x00", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")  # whatever the encoding
    return text.startswith(b"{") and sum(f'"{key}"'.encode() in text for key in ("images", "annotations", "categories")) >= 2


def _split_of(path: Path, folder: Path, others: Iterable[Path] = (), *, where: Path | None = None) -> str:
    """The split that a file's name tells among the others, else that of the folder it lies in; ``where``: see :func:`split_of_name`."""
    if found := split_of_name(path.stem, [other.stem for other in others], where=where):
        return found
    return next(filter(None, (split_of_name(name, where=where) for name in reversed(path.parent.relative_to(folder).parts))), "")


def _lists(path: Path) -> dict[str, list[Any]]:
    """The three lists of a COCO file; a file of pictures alone has no annotations."""
    coco = parse_json(read_text(path), where=path)
    if not isinstance(coco, dict):
        raise CCDiffError(f"not a COCO file: expected an object, found {type(coco).__name__}", where=path)
    found: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        value = coco.get(key, None if key == "images" else [])
        if not isinstance(value, list):
            raise CCDiffError(f"not a COCO file: {key}: expected a list, found {type(value).__name__}", where=path)
        found[key] = value
    return found


def _holds(coco: dict[str, list[Any]]) -> str:
    """What a file's annotations are, by the first hundred."""
    first = [a for a in coco["annotations"][:100] if isinstance(a, dict)]
    if not coco["annotations"]:
        return "pictures alone"
    if any("segments_info" in a for a in first):
        return "panoptic segments"
    if any("caption" in a for a in first) and not any("bbox" in a or "segmentation" in a for a in first):
        return "captions"
    return "keypoints" if any("keypoints" in a for a in first) else "instances"


def _with_boxes(loaded: list[tuple[Path, dict[str, list[Any]]]], notes: Counter[str]) -> list[tuple[Path, dict[str, list[Any]]]]:
    """The files of objects: what a download of COCO holds beside them is passed over and named.

    Raises:
        CCDiffError: there are none.
    """
    if len(loaded) == 1 and _holds(loaded[0][1]) == "pictures alone" and loaded[0][1]["categories"]:
        return loaded  # a set without objects, not yet labelled or of empty scenes
    kinds = {path: _holds(coco) for path, coco in loaded}
    instances = [path for path, kind in kinds.items() if kind == "instances" and not path.stem.lower().startswith("stuff")]
    more = () if instances else ("keypoints",) if "keypoints" in kinds.values() else ("instances",)
    kept = [(path, coco) for path, coco in loaded if path in instances or kinds[path] in more]
    if instances:  # a part of the set that has no objects is still a part of it
        seen = {_picture_name(image) for _, coco in kept for image in coco["images"]}
        alone = [(p, c) for p, c in loaded if kinds[p] == "pictures alone" and c["categories"] and "image_info" not in p.name.lower()]
        kept += [(p, c) for p, c in alone if not seen & {_picture_name(image) for image in c["images"]}]
    if not kept:
        what = "; ".join(f"{path.name} holds {kind}" for path, kind in kinds.items())
        raise CCDiffError(f"no file with boxes: {what}", where=loaded[0][0], fix="give the file of the instances")
    for path, _ in loaded:
        if path not in {p for p, _ in kept}:
            kind = kinds[path] if kinds[path] != "instances" else "stuff"
            notes[f"files without objects, passed over ({path.name}: {kind})"] += 1
    order = {path: k for k, (path, _) in enumerate(loaded)}
    return sorted(kept, key=lambda pair: order[pair[0]])


def _picture_name(image: Any) -> str:
    return str(image.get("file_name")) if isinstance(image, dict) else ""


# -------------------------------------------------------------------------------------------------------------- ids and classes


def _key(value: Any) -> Any:
    """An id as a key: any text or number; 7.0 is 7.

    Raises:
        CCDiffError: (through :func:`_broken`) a TypeError for what is no id.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or value != value:
        raise TypeError(f"expected an id, found {value!r:.40}")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _lookup(table: Mapping[Any, Any], value: Any) -> Any:
    """The key of the table that an id means, "7" and 7 alike where only one is there; None where none is."""
    key = _key(value)
    if key in table:
        return key
    if isinstance(key, str):
        other: Any = int(key) if re.fullmatch(r"-?(0|[1-9]\d{0,17})", key) else None
    else:
        other = str(key)
    return other if other in table else None


@contextmanager
def _broken(what: str, where: str) -> Iterator[None]:
    """What Python says of a thing that is not as COCO has it, as an error of ours."""
    try:
        yield
    except KeyError as error:
        raise CCDiffError(f"{what}: no {error.args[0]!r:.60}", where=where) from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CCDiffError(f"{what}: {error!s:.200}", where=where) from error


class _Categories:
    """The categories of all files, matched by name: ids may differ from file to file."""

    def __init__(self, loaded: Sequence[tuple[Path, dict[str, list[Any]]]], notes: Counter[str]) -> None:
        self.by_file: dict[Path, dict[Any, str]] = {}
        spelled: dict[str, str] = {}
        above: set[str] = set()
        for path, coco in loaded:
            ids: dict[Any, str] = {}
            for category in coco["categories"]:
                with _broken("not a COCO file: categories", str(path)):
                    key = _key(category["id"])
                    name = clean_name(category["name"], where=f"{path}: category {key}")
                    above.add(plain_name(str(category.get("supercategory") or "")))
                name = spelled.setdefault(plain_name(name), name) if len(loaded) > 1 else name
                if ids.setdefault(key, name) != name:
                    raise CCDiffError(f"category {key} is {ids[key]!r} and {name!r}", where=path, fix="give each an id of its own")
            self.by_file[path] = ids
        agreed: dict[Any, set[str]] = {}
        for ids in self.by_file.values():
            for key, name in ids.items():
                agreed.setdefault(key, set()).add(name)
        differ = [key for key, found in agreed.items() if len(found) > 1]
        if differ:
            notes["category ids that differ between the files (matched by name)"] += len(differ)
            ordered = [name for ids in self.by_file.values() for name in ids.values()]
        else:
            ordered = [next(iter(agreed[key])) for key in sorted(agreed, key=lambda k: (isinstance(k, str), k))]
        names = list(dict.fromkeys(ordered))
        used = self._used(loaded)
        groups = [n for n in names if n not in used and plain_name(n) in above]
        if used:  # the project that Roboflow writes as category 0, a class above the classes
            notes["categories above others that no object has, taken for no class"] += len(groups)
            names = [n for n in names if n not in groups]
        if not names:
            raise CCDiffError("the file names no categories", where=loaded[0][0])
        self.names = names

    def _used(self, loaded: Sequence[tuple[Path, dict[str, list[Any]]]]) -> set[str]:
        used = set()
        for path, coco in loaded:
            ids = self.by_file[path]
            for annotation in coco["annotations"]:
                try:
                    used.add(ids.get(_lookup(ids, annotation["category_id"]), ""))
                except (TypeError, KeyError):
                    continue
        return used - {""}

    def of_file(self, path: Path, names: ClassMap) -> dict[Any, str | UnknownClass]:
        """Id -> class of one file; where the class list does not know the name, the error that an object of it is."""
        found: dict[Any, str | UnknownClass] = {}
        for key, name in self.by_file[path].items():
            try:
                found[key] = names.name(name, where=f"{path}: category {key}")
            except UnknownClass as error:
                found[key] = error
        return found


# ------------------------------------------------------------------------------------------------------------ pictures and objects


def _read_one(
    path: Path, coco: dict[str, list[Any]], categories: dict[Any, str | UnknownClass], finder: PictureFinder, raw: RawSet, faults: Faults,
    *, split: str,
) -> list[Scene]:  # fmt: skip
    images = _images(path, coco["images"], raw, faults)
    instances: dict[Any, list[Instance]] = {key: [] for key in images}
    seen: set[str] = set()
    for k, annotation in enumerate(coco["annotations"]):
        number_of = annotation.get("id") if isinstance(annotation, dict) else None
        where = f"{path}: annotation {number_of if number_of is not None else f'number {k + 1}'}"
        if number_of is not None:
            raw.notes["annotations whose id repeats (all kept)"] += str(number_of) in seen
            seen.add(str(number_of))
        with faults.leaving_out("annotations"), _broken("not a COCO annotation", where):
            key = _lookup(images, annotation["image_id"])
            if key is None:
                raise CCDiffError(f"no picture has the id {annotation['image_id']!r:.60}", where=where)
            category = _category(annotation["category_id"], categories, where=where)
            instance = _instance(annotation, category, images[key], raw, where=where)
            if instance is not None:
                instances[key].append(instance)
    scenes = []
    pictures = {key: image for key, image in images.items() if image}  # litter has none, but its objects are no strangers
    raw.skipped["objects of files that macOS or Windows left"] += sum(len(instances[key]) for key in images.keys() - pictures.keys())
    for key, image in sorted(pictures.items(), key=lambda pair: (str(pair[1]["file_name"]), str(pair[0]))):
        with faults.leaving_out("pictures"), _broken("not a picture of a COCO file", f"{path}: image {key}"):
            scenes.append(_scene(path, image, tuple(instances[key]), finder, split))
    return scenes


def _images(path: Path, images: list[Any], raw: RawSet, faults: Faults) -> dict[Any, Mapping[str, Any]]:
    """Id -> picture; an id that two pictures have says nothing about whose the objects are, so both are left out."""
    found: dict[Any, Mapping[str, Any]] = {}
    twice: set[Any] = set()
    for k, image in enumerate(images):
        where = f"{path}: image number {k + 1}"
        with faults.leaving_out("pictures"), _broken("not a picture of a COCO file", where):
            key, name = _key(image["id"]), str(image["file_name"])
            if is_litter(re.split(r"[/\\]", name)[-1]):
                raw.skipped["files that macOS or Windows left, named as pictures"] += 1
                found.setdefault(key, {})
                continue
            if found.get(key):
                if str(found[key].get("file_name")) != name:  # else only this entry is one too many
                    twice.add(key)
                raise CCDiffError(f"two pictures have the id {key}", where=path, fix="give each an id of its own")
            found[key] = image
    for key in twice:
        with faults.leaving_out("pictures"):
            raise CCDiffError(f"two pictures have the id {key}", where=path, fix="give each an id of its own")
    return {key: image for key, image in found.items() if key not in twice}


def _category(value: Any, categories: dict[Any, str | UnknownClass], *, where: str) -> str:
    key = _lookup(categories, value)
    if key is None:
        known = some([f"{i} {n}" for i, n in categories.items() if isinstance(n, str)])
        raise UnknownClass(f"unknown category {value!r:.60}", where=where, fix=f"known: {known}")
    found = categories[key]
    if isinstance(found, UnknownClass):
        raise UnknownClass(found.what, where=where, fix=found.fix)
    return found


def _scene(path: Path, image: Mapping[str, Any], instances: tuple[Instance, ...], finder: PictureFinder, split: str) -> Scene:
    name = str(image["file_name"])
    own = str(image.get("split", "")) or split
    if own and own not in SPLITS:
        raise CCDiffError(f"unknown split {own!r}", where=f"{path}: picture {name}", fix=f"known splits: {', '.join(SPLITS)}")
    found = finder.find(name, where=str(path), near=path.parent, split=own or _split_of(path, finder.folder))
    plain = PurePosixPath(name)
    if plain.is_absolute() or "\\" in name or found.parts[-len(plain.parts) :] != plain.parts:  # a path of another machine
        plain = PurePosixPath(found.relative_to(finder.folder).as_posix().removeprefix("images/"))
    name = plain.as_posix()
    size = [_side(image.get(k)) for k in ("width", "height")]
    provenance = _object_of(image, "provenance", where=f"{path}: picture {name}")
    source = str(image.get("source") or _stem(name))
    return Scene(name, size[0], size[1], instances, own, source, str(image.get("caption", "")), str(found), provenance)


def _side(value: Any) -> int:
    """A declared width or height; 0 for what is no number, so that the picture is measured rather than left out."""
    try:
        return int(float(str(value or 0)))
    except (ValueError, OverflowError):
        return 0


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _instance(annotation: Mapping[str, Any], category: str, image: Mapping[str, Any], raw: RawSet, *, where: str) -> Instance | None:
    outlines = _outlines(annotation.get("segmentation"), where=where)
    _check_rle(annotation, outlines, image, where=where)
    mask = _rings(annotation.get("mask", []), "mask", where=where)
    four = isinstance(annotation.get("segmentation"), list) and len(outlines) == 1 and len(outlines[0]) == 8  # not of an RLE
    corners = outlines[0] if four else None
    if annotation.get("obb") is not None:  # as our exporter writes it; the segmentation is then the mask, or the OBB once more
        corners = _row(annotation["obb"], 8, "obb: expected x1 y1 ... x4 y4", where=where)
        mask = mask or (outlines if outlines != (corners,) else ())
    elif corners is None:
        mask = mask or outlines
    if annotation.get("bbox") not in (None, [], {}, ""):
        x, y, w, h = _row(annotation["bbox"], 4, "bbox: expected x, y, width, height", where=where)
        if w < 0 or h < 0:
            raise CCDiffError("bbox: expected a width and a height that are not negative", where=where)
        hbb = (x, y, x + w, y + h)
    elif outlines or corners is not None:
        hbb = hbb_of(corners if corners is not None else [v for p in outlines for v in p])
    else:
        raw.skipped["annotations without a box or a mask"] += 1
        return None
    _check_place(outlines or ((corners,) if corners is not None else ()), hbb, raw, where=where)
    crowd, ignored, difficult = (flag(annotation.get(key), where=where, what=key) for key in ("iscrowd", "ignore", "difficult"))
    difficult |= crowd or ignored
    raw.notes["groups (iscrowd) kept as difficult"] += crowd
    raw.notes["objects with the flag ignore kept as difficult"] += ignored and not crowd
    extra = _object_of(annotation, "extra", where=where)
    if turned := _rotation(annotation, corners, outlines, hbb, where=where):
        raw.changes["boxes turned by their attribute rotation"] += 1
        return Instance.from_corners(category, turned, difficult=difficult, mask=mask, extra=extra)
    if (corners is None and not outlines) or not annotation.get("oriented", 1):
        attributes = annotation.get("attributes")
        turns = {**annotation, **{str(k): v for k, v in attributes.items()}} if isinstance(attributes, Mapping) else annotation
        note_turn(raw, {str(k): v for k, v in turns.items() if str(k).lower() != "rotation"}, where=where)
        return Instance.from_hbb(category, hbb, difficult=difficult, mask=mask, extra=extra)
    if corners is None:
        corners = min_area_corners([v for p in outlines for v in p])
    return Instance.from_corners(category, corners, hbb, difficult=difficult, mask=mask, extra=extra)


def _check_place(outlines: Sequence[Sequence[float]], hbb: HBB, raw: RawSet, *, where: str) -> None:
    """Say where the outlines of an annotation lie elsewhere than its box, which may be that of their visible part alone."""
    area = (hbb[2] - hbb[0]) * (hbb[3] - hbb[1])
    if not outlines or area <= 0:
        return
    x1, y1, x2, y2 = clip_hbb(hbb_of([v for ring in outlines for v in ring]), hbb) or (0.0, 0.0, 0.0, 0.0)
    if (x2 - x1) * (y2 - y1) < 0.5 * area:
        raw.note("annotations whose segmentation covers less than half of their bbox (is one of them not in pixels?)", where)


def _rotation(
    annotation: Mapping[str, Any], corners: Sequence[float] | None, outlines: Sequence[Sequence[float]], hbb: HBB, *, where: str
) -> Corners | None:
    """The box as CVAT means it where it writes it before its turn; None where it is not turned, or the segmentation shows the turn."""
    said = annotation.get("rotation")
    if isinstance(attributes := annotation.get("attributes"), Mapping):
        said = next((value for key, value in attributes.items() if str(key).strip().lower() == "rotation"), said)
    if said in (None, "", 0) or (outlines and corners is None):
        return None
    angle = number(said, where=where, what="rotation")
    if corners is not None and not np.allclose(sorted(corners), sorted((*hbb, *hbb)), atol=1.0):
        return None  # an outline that is turned already
    return turned_box(hbb, angle) if angle % 360 else None


def _object_of(entry: Mapping[str, Any], key: str, *, where: str) -> Mapping[str, Any]:
    """What one of our own sets says beside a box or a picture; it is written to JSON again, so it must not hold NaN."""
    value = entry.get(key, {})
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise CCDiffError(f"{key}: {error}", where=where) from error
    if not isinstance(value, Mapping):
        raise CCDiffError(f"{key}: expected an object, found {type(value).__name__}", where=where)
    return value


def _row(values: Any, length: int, expected: str, *, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != length:
        fix = "give oriented boxes as a segmentation of 4 corners" if length == 4 else None
        raise CCDiffError(f"{expected}, found {values!r:.60}", where=where, fix=fix)
    return tuple(number(v, where=where, what=expected.partition(":")[0]) for v in values)


def _outlines(segmentation: Any, *, where: str) -> tuple[tuple[float, ...], ...]:
    """Outlines of a segmentation: polygons or an RLE."""
    if isinstance(segmentation, Mapping):
        return _outlines_of_rle(segmentation, where=where) if segmentation else ()
    return _rings(segmentation or [], "segmentation", where=where)


def _check_rle(annotation: Mapping[str, Any], outlines: Sequence[Sequence[float]], image: Mapping[str, Any], *, where: str) -> None:
    """An RLE counts the pixels of its picture: of another size it lies elsewhere in it, unless the box says that it does not."""
    segmentation = annotation.get("segmentation")
    if not isinstance(segmentation, Mapping) or not outlines:
        return
    height, width = (int(v) for v in segmentation["size"])
    declared = [_side(image.get(k)) for k in ("width", "height")]
    if min(declared) <= 0 or declared == [width, height]:
        return
    if annotation.get("bbox"):
        x, y, w, h = _row(annotation["bbox"], 4, "bbox: expected x, y, width, height", where=where)
        if np.allclose(hbb_of([v for ring in outlines for v in ring]), (x, y, x + w, y + h), atol=1.5):
            return
    fix = "RLE gives height and width, in this order; make the mask anew for the picture"
    raise CCDiffError(f"RLE mask of {width} x {height} pixels in a picture of {declared[0]} x {declared[1]}", where=where, fix=fix)


def _rings(polygons: Any, what: str, *, where: str) -> tuple[tuple[float, ...], ...]:
    """Polygons with at least three corners."""
    if isinstance(polygons, list) and polygons and not any(isinstance(p, (list, dict)) for p in polygons):
        polygons = [polygons]  # one ring without the list around it
    if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
        raise CCDiffError(f"{what}: expected polygons or an RLE, found {type(polygons).__name__}", where=where)
    rings = []
    for points in polygons:
        pairs = bool(points) and all(isinstance(p, list) and len(p) == 2 for p in points)
        ring = tuple(number(v, where=where, what=what) for v in ([v for p in points for v in p] if pairs else points))
        if len(ring) % 2:
            raise CCDiffError(f"{what}: an odd number of coordinates ({len(ring)})", where=where)
        if len(ring) >= 6:
            rings.append(ring)
    return tuple(rings)


def _outlines_of_rle(segmentation: Mapping[str, Any], *, where: str) -> tuple[tuple[float, ...], ...]:
    height, width = (int(v) for v in segmentation["size"])
    if not (0 < height <= MAX_MASK_SIDE and 0 < width <= MAX_MASK_SIDE):
        raise CCDiffError(f"RLE mask of {width} x {height} pixels", where=where)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = [int(c) if isinstance(c, float) and c.is_integer() else c for c in counts]
    runs = counts if isinstance(counts, list) else _runs(str(counts), height * width, where=where)
    if any(not isinstance(c, int) or c < 0 for c in runs) or sum(runs) != height * width:
        raise CCDiffError("RLE mask: its runs do not add up to its size", where=where)
    # Only the columns that the mask touches are unpacked: masks are stored column by column, and a scene has 20,000 of them.
    ends = np.cumsum(np.asarray(runs, np.int64))
    ones = ends[1::2] > ends[0::2][: len(ends[1::2])]
    if not ones.any():
        return ()
    left = int(ends[0::2][: len(ones)][ones][0]) // height
    right = (int(ends[1::2][ones][-1]) - 1) // height + 1
    if (right - left) * height > MAX_MASK_PIXELS:
        raise CCDiffError(
            f"RLE mask whose object covers {right - left} columns of {height} pixels", where=where, fix="store it as polygons"
        )
    steps = np.zeros((right - left) * height + 1, np.int8)
    np.add.at(steps, np.clip(ends - left * height, 0, len(steps) - 1), np.where(np.arange(len(ends)) % 2, -1, 1).astype(np.int8))
    bitmap = np.cumsum(steps[:-1], dtype=np.int8).astype(np.uint8).reshape(right - left, height).T
    return bitmap_outlines(bitmap, (left, 0))


def _runs(counts: str, area: int, *, where: str) -> list[int]:
    """The runs of a compressed RLE. Decoded here because the C library believes what it reads and writes past its memory."""
    runs: list[int] = []
    k = 0
    while k < len(counts):
        value, shift, more = 0, 0, True
        while more:
            if k >= len(counts) or not 48 <= ord(counts[k]) < 112 or shift > 60:
                raise CCDiffError("RLE mask: broken text", where=where)
            c = ord(counts[k]) - 48
            value |= (c & 0x1F) << shift
            more = bool(c & 0x20)
            k, shift = k + 1, shift + 5
            if not more and c & 0x10:
                value |= -1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if not 0 <= value <= area:
            raise CCDiffError("RLE mask: its runs do not add up to its size", where=where)
        runs.append(value)
    return runs
