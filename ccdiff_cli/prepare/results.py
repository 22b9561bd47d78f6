"""What detectors write about tiles, and what is written about scenes.

In: COCO results (one JSON list; ``image_id`` may be a tile's name and ``poly`` its corners, as ultralytics' ``val save_json=True`` has it),
the label files of ultralytics' ``predict save_txt=True save_conf=True`` (``labels/TILE.txt``: class, box or four corners as shares of the
tile, confidence), and the files of DOTA's tasks (``Task1_CLASS.txt``: tile, score, four corners; ``Task2_CLASS.txt``: tile, score,
x1 y1 x2 y2).  Out: COCO results, or GeoJSON (RFC 7946) where the scenes have a place on the ground.

NOTE: GeoJSON has longitude and latitude of WGS 84 and nothing else, so coordinates of other systems are transformed; a foreign member
``source_crs`` says from which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..detectors import Detections
from ..errors import CCDiffError
from ..files import read_json
from ..formats.classes import plain_name
from ..formats.raw import listed, number, text_lines
from ..geometry import hbb_corners, hbb_of, untangled
from ..rasters import to_wgs84
from ..scene import ClassList, Scene
from .pixels import composed

Found = tuple[float, int, tuple[float, ...], tuple[float, ...] | None]
"""Score, class index, HBB and corners (None: a horizontal box alone), tile pixels."""
_TASKS = {"Task1_": 8, "Task2_": 4}
_DECIMALS = 8
"""Of a degree: a millimetre."""


def read_results(path: str | Path, scenes: Sequence[Scene], classes: ClassList, *, ids: Mapping[int, str]) -> list[Detections]:
    """Detections for each of some pictures; none for a picture that the results do not name.

    Args:
        path: a JSON file, a folder of label files (or the folder above its ``labels/``), or one of ``Task1_*.txt``.
        ids: image id -> file name, for COCO results.

    Raises:
        CCDiffError: no such results, an unknown picture or class, numbers that are not finite, no scores (with file and line or entry).
    """
    path = Path(path)
    of_picture: dict[str, list[Found]] = {s.file_name: [] for s in scenes}
    if path.is_dir() or path.suffix.lower() == ".txt":
        folder = path / "labels" if not any(path.glob("*.txt")) and (path / "labels").is_dir() else path
        files = [path] if path.is_file() else [p for p in listed(folder, ".txt") if p.name != "classes.txt"]
        if not files:
            raise CCDiffError(
                "no results in the folder",
                where=path,
                fix="give a folder of ultralytics' label files (predict save_txt=True save_conf=True) or of DOTA's Task1_CLASS.txt",
            )
        if any(p.name.startswith(tuple(_TASKS)) for p in files):
            _read_tasks(files, scenes, classes, of_picture)
        else:
            _read_label_files(files, scenes, classes, of_picture)
    else:
        _read_coco(path, scenes, classes, ids, of_picture)
    _check_places(of_picture, scenes, path)
    return [_as_detections(of_picture[s.file_name]) for s in scenes]


def _check_places(of_picture: Mapping[str, list[Found]], scenes: Sequence[Scene], path: Path) -> None:
    """Raise CCDiffError where the boxes cannot be in the pixels of their tiles: all are shares, or one lies beside its tile."""
    boxes = [f[2] for found in of_picture.values() for f in found]
    if boxes and all(-1 <= v <= 2 for box in boxes for v in box) and any(v != int(v) for box in boxes for v in box):
        raise CCDiffError("the boxes are shares of the tiles' sizes, not pixels", where=path, fix="multiply them by the size of the tile")
    for scene in scenes:
        for _, _, box, _ in of_picture[scene.file_name]:
            if box[0] > scene.width or box[1] > scene.height or box[2] < 0 or box[3] < 0:
                at = ", ".join(f"{v:g}" for v in box)
                raise CCDiffError(
                    f"a box ({at}) lies beside its picture {scene.file_name} of {scene.width} x {scene.height} pixels",
                    where=path,
                    fix="give boxes in the pixels of the prepared pictures, and the set that the detector was run on",
                )


def _as_detections(found: list[Found]) -> Detections:
    found = sorted(found, key=lambda f: -f[0])
    oriented = any(f[3] is not None for f in found)
    return Detections(
        np.array([f[2] for f in found], np.float32).reshape(-1, 4),
        np.array([f[0] for f in found], np.float32),
        np.array([f[1] for f in found], np.int64),
        np.array([untangled(f[3])[0] if f[3] else hbb_corners(f[2]) for f in found], np.float32).reshape(-1, 8) if oriented else None,
    )


def _unknown_class(what: str, classes: ClassList, where: str, first: int) -> CCDiffError:
    known = ", ".join(f"{k} {c}" for k, c in enumerate(classes, start=first))
    return CCDiffError(what, where=where, fix=f"known: {known}")


# ----------------------------------------------------------------------------------------------------------------------- COCO results


def _read_coco(path: Path, scenes: Sequence[Scene], classes: ClassList, ids: Mapping[int, str], of_picture: dict[str, list[Found]]) -> None:
    entries, tiles = read_json(path), _by_stem(scenes)
    if not isinstance(entries, list):
        raise CCDiffError(f"expected a list of detections, found a {type(entries).__name__}", where=path, fix="give a COCO results file")
    for k, entry in enumerate(entries):
        where = f"{path}: entry {k}"
        try:
            if "file_name" in entry:
                name = str(entry["file_name"])
            elif isinstance(named := entry["image_id"], str) and not (named.isdecimal() and named not in tiles):
                name = _tile(named, tiles, scenes, where=where).file_name  # as ultralytics' val save_json=True has it
            else:
                name = ids.get(_whole(named), f"with the id {named}")
            label, score = _whole(entry["category_id"]) - 1, float(entry["score"])
            points = entry["segmentation"][0] if entry.get("segmentation") else entry.get("poly")
            corners = tuple(float(v) for v in points) if points else None
            x, y, w, h = (float(v) for v in entry["bbox"]) if "bbox" in entry or corners is None else (0.0, 0.0, 0.0, 0.0)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise CCDiffError(
                f"broken: {type(error).__name__}: {error}",
                where=where,
                fix="an entry has image_id or file_name, category_id, score, bbox [x, y, w, h], and segmentation [4 corners] if oriented",
            ) from error
        if name not in of_picture:
            raise CCDiffError(f"the set has no picture {name}", where=where, fix="give the set that the detector was run on")
        if not 0 <= label < len(classes):
            raise _unknown_class(f"unknown category_id {label + 1}", classes, where, 1)
        if (corners is not None and len(corners) != 8) or not np.isfinite((score, x, y, w, h, *(corners or ()))).all() or min(w, h) < 0:
            raise CCDiffError("the box is not made of finite numbers, 4 sides or 4 corners", where=where)
        of_picture[name].append((score, label, hbb_of(corners) if corners else (x, y, x + w, y + h), corners))


def _whole(value: Any) -> int:
    """An id: a whole number, or the text of one; else a ValueError."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"expected an id, found {value!r}")
    return int(value)


# ------------------------------------------------------------------------------------------------------------ ultralytics' label files


def _read_label_files(files: Sequence[Path], scenes: Sequence[Scene], classes: ClassList, of_picture: dict[str, list[Found]]) -> None:
    tiles = _by_stem(scenes)
    for path in files:
        tile = _tile(path.stem, tiles, scenes, where=str(path))
        for line_number, line in enumerate(text_lines(path), start=1):
            if line.split():
                of_picture[tile.file_name].append(_label_line(line.split(), tile, classes, where=f"{path}:{line_number}"))


def _label_line(fields: Sequence[str], tile: Scene, classes: ClassList, *, where: str) -> Found:
    """One line: class, cx cy w h or four corners, confidence, and the number of its track where there is one."""
    values = [number(v, where=where, what=f"field {k}") for k, v in enumerate(fields, start=1)]
    corners = len(values) in (9, 10, 11)
    at = 9 if corners else 5
    if len(values) not in (5, 6, 7, 9, 10, 11):
        raise CCDiffError(
            f"expected class, cx cy w h or four corners, confidence, found {len(values)} fields",
            where=where,
            fix="give results of a detector of boxes or oriented boxes",
        )
    if len(values) == at or not 0 <= values[at] <= 1:
        raise CCDiffError("the detection has no confidence", where=where, fix="predict with save_conf=True as well")
    label = int(values[0])
    if label != values[0] or not 0 <= label < len(classes):
        raise _unknown_class(f"unknown class number {fields[0]}", classes, where, 0)
    size = (tile.width, tile.height)
    if any(not -1 <= v <= 2 for v in values[1:at]):
        raise CCDiffError("the box is not given as shares of the tile's size", where=where, fix="give what predict save_txt=True wrote")
    points = tuple(v * size[k % 2] for k, v in enumerate(values[1:at]))
    if corners:
        return values[at], label, hbb_of(points), points
    cx, cy, w, h = points
    return values[at], label, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), None


# ------------------------------------------------------------------------------------------------------------------ DOTA's task files


def _read_tasks(files: Sequence[Path], scenes: Sequence[Scene], classes: ClassList, of_picture: dict[str, list[Found]]) -> None:
    tiles, names = _by_stem(scenes), {plain_name(name): k for k, name in enumerate(classes)}
    tasks = {p.name[:6] for p in files}
    if len(tasks) > 1 or not tasks <= set(_TASKS):
        raise CCDiffError(
            f"files of several kinds in one folder ({', '.join(sorted(tasks))}...)", where=files[0].parent, fix="keep those of one task"
        )
    count = _TASKS[tasks.pop()]
    for path in files:
        label = names.get(plain_name(path.stem[6:]))
        if label is None:
            raise _unknown_class(f"unknown class {path.stem[6:]!r}", classes, str(path), 0)
        for line_number, line in enumerate(text_lines(path), start=1):
            fields, where = line.split(), f"{path}:{line_number}"
            if not fields:
                continue
            if len(fields) != 2 + count:
                raise CCDiffError(f"expected picture, score and {count} numbers, found {len(fields)} fields", where=where)
            score, *points = (number(v, where=where, what=f"field {k}") for k, v in enumerate(fields[1:], start=2))
            tile = _tile(fields[0], tiles, scenes, where=where)
            box = tuple(points)
            of_picture[tile.file_name].append((score, label, hbb_of(box), box) if count == 8 else (score, label, box, None))


def _by_stem(scenes: Sequence[Scene]) -> dict[str, Scene | None]:
    """Tiles by the names that exports give them; None where two share one."""
    tiles: dict[str, Scene | None] = {}
    for scene in scenes:
        flat = scene.file_name.replace("/", "__")
        for name in {flat, flat.rpartition(".")[0] or flat}:
            tiles[name] = None if name in tiles else scene
    return tiles


def _tile(name: str, tiles: Mapping[str, Scene | None], scenes: Sequence[Scene], *, where: str) -> Scene:
    tile = tiles.get(name)
    if tile is not None:
        return tile
    if name in tiles:
        raise CCDiffError(f"two pictures of the set are called {name}", where=where, fix="give COCO results, which name them in full")
    pictures = {str(s.provenance.get("picture", "")) for s in scenes}
    if name in pictures or any(p.rpartition(".")[0] == name for p in pictures):
        raise CCDiffError(f"{name} is a scene, no tile of the set", where=where, fix="these results are merged already")
    raise CCDiffError(f"the set has no picture {name}", where=where, fix="give the set that the detector was run on")


# ------------------------------------------------------------------------------------------------------------------------------ out


def coco_results(merged: Mapping[str, Detections]) -> list[dict[str, Any]]:
    """Detections by scene as COCO results; scenes are named by ``file_name``."""
    records = []
    for picture, objects in merged.items():
        for k in range(len(objects)):
            x1, y1, x2, y2 = (round(v, 2) for v in objects.boxes[k].tolist())
            record: dict[str, Any] = {"file_name": picture, "category_id": int(objects.labels[k]) + 1}
            record |= {"score": round(float(objects.scores[k]), 6), "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]}
            if objects.corners is not None:
                record["segmentation"] = [[round(v, 2) for v in objects.corners[k].tolist()]]
            records.append(record)
    return records


def scene_georeferences(tiles: Sequence[Scene]) -> dict[str, dict[str, Any]]:
    """Scene -> coordinate reference system and transform of the scene's own pixels, from those of its tiles."""
    found: dict[str, dict[str, Any]] = {}
    for tile in tiles:
        place = tile.provenance
        known = place.get("georeference")
        if known is None or place["picture"] in found:
            continue
        try:
            (x, y), s = place["offset"], float(place["scale"])
            transform = [float(v) for v in known["transform"]]
            to_tile = (s, 0, -s * x, 0, s, -s * y)
            found[place["picture"]] = {"crs": str(known["crs"]), "transform": composed(transform, to_tile)}
        except (KeyError, TypeError, ValueError) as error:
            raise CCDiffError(
                f"the georeference is broken: {type(error).__name__}: {error}", where=tile.file_name, fix="prepare the set again"
            ) from error
    return found


def geojson(merged: Mapping[str, Detections], tiles: Sequence[Scene], classes: ClassList, *, where: str | Path) -> dict[str, Any]:
    """Detections by scene as a GeoJSON FeatureCollection of polygons with ``class``, ``score`` and ``picture``.

    Raises:
        CCDiffError: a scene without a coordinate reference, a system that cannot be transformed.
    """
    places = scene_georeferences(tiles)
    lost = [picture for picture in merged if picture not in places]
    if lost:
        raise CCDiffError(
            f"{len(lost)} of {len(merged)} scenes have no coordinate reference, the first {lost[0]}",
            where=where,
            fix="GeoJSON holds places on the ground alone: --format coco writes pixels; scenes keep their place when they are GeoTIFF or "
            "JPEG 2000 with one and the extra `raster` is installed while they are prepared",
        )
    features = []
    for picture, objects in merged.items():
        if not len(objects):
            continue
        corners = objects.corners if objects.corners is not None else [hbb_corners(box) for box in objects.boxes.tolist()]
        points = np.asarray(corners, np.float64).reshape(-1, 2)
        a, b, c, d, e, f = places[picture]["transform"]
        x, y = points.T
        lon, lat = to_wgs84(places[picture]["crs"], (a * x + b * y + c).tolist(), (d * x + e * y + f).tolist(), where=picture)
        rings = np.round(np.stack([lon, lat], axis=1).reshape(-1, 4, 2), _DECIMALS)
        for k, ring in enumerate(rings):
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [_closed(ring)]},
                    "properties": {
                        "class": classes.names[int(objects.labels[k])],
                        "score": round(float(objects.scores[k]), 6),
                        "picture": picture,
                    },
                }
            )
    systems = sorted({places[picture]["crs"] for picture in merged})
    return {"type": "FeatureCollection", "source_crs": systems, "features": features}


def _closed(ring: np.ndarray) -> list[list[float]]:
    """Counter-clockwise, the first point again at the end, as RFC 7946 asks."""
    x, y = ring.T
    area = float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
    points = ring.tolist() if area >= 0 else ring[::-1].tolist()
    return [*points, points[0]]
