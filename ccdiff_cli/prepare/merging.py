"""Merging: what a detector found on tiles, brought back to the scenes that the tiles were cut from.

Notable here:

* Two detections of one class are the same object when they agree (rotated IoU) on what both their tiles see: inside one tile that is
  the usual rule of non-maximum suppression.
* A detection at a border of its tile may be the part that the border left of an object.  A slanted object that is cut has no rectangle that
  fits, so its box may be much smaller or larger than what is seen: it is the same as another tile's detection when one of them, as far as
  it was in sight, lies mostly in the other.
* Whole detections go before those at a border of their tile; of the whole, better ones go first, of the others those farthest from the
  border, then the largest.  What is left carries the best score of all that it replaces.
* An object that no tile sees whole (larger than the overlap) is put together from its parts: their common minimum-area rectangle.
  NOTE: parts of tiles that do not overlap cannot be recognised; tile with an overlap of at least the largest object.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from ..dataset import ANNOTATIONS, read_set
from ..detectors import Detections
from ..errors import CCDiffError
from ..files import read_json, write_json
from ..geometry import hbb_corners, hbb_of, intersections, min_area_corners, paired_iou, quadrilaterals, touching_pairs, visible_hbbs
from ..locks import locked
from ..scene import Scene
from .results import coco_results, geojson, read_results

IOU = 0.5
BORDER = 0.02
"""A detection nearer to its tile's border than this share of the tile's side may be a part of something."""
SEEN, SLIVER = 0.9, 0.1
"""Shares of a detection's area in another tile: all of it, as good as nothing of it."""


def merge_tiles(tiles: Sequence[Scene], detections: Sequence[Detections], *, iou: float = IOU) -> dict[str, Detections]:
    """Detections on tiles in the pixels of their scenes, each object once.

    Args:
        tiles: pictures of a prepared set (``provenance`` says which scene and window each was cut from), or whole pictures of one.
        detections: what was found on each, in tile pixels.
        iou: detections of one class that overlap more than this are one object.

    Returns:
        Scene file name (``provenance["picture"]``) -> detections in scene pixels, best first; a scene without any is there too.
        ``corners`` are given where any detection of the scene has them, and may reach beyond it; ``boxes`` are around what is in it.

    Raises:
        CCDiffError: a picture that does not say where it was cut from, an ``iou`` outside 0..1.
        ValueError: another number of detections than of tiles.
    """
    if len(tiles) != len(detections):
        raise ValueError(f"{len(tiles)} tiles but detections for {len(detections)}")
    if not 0 < iou <= 1:
        raise CCDiffError(f"iou {iou}", fix="0 < iou <= 1")
    of_scene: dict[str, list[int]] = {}
    places = [_place(tile) for tile in tiles]
    for k, (picture, _, _) in enumerate(places):
        of_scene.setdefault(picture, []).append(k)
    return {
        picture: _merge_scene(
            [places[k][1] for k in members],
            [places[k][2] for k in members],
            [detections[k] for k in members],
            iou,
            _extent([tiles[k] for k in members], [places[k][1] for k in members]),
        )
        for picture, members in sorted(of_scene.items())
    }


def _place(tile: Scene) -> tuple[str, tuple[float, float, float, float], float]:
    """Scene, window (x1 y1 x2 y2 in scene pixels) and tile pixels per scene pixel."""
    try:
        x, y = (float(v) for v in tile.provenance["offset"])
        side, scale, picture = float(tile.provenance["side"]), float(tile.provenance["scale"]), str(tile.provenance["picture"])
        if side <= 0 or scale <= 0:
            raise ValueError(f"side {side}, scale {scale}")
    except (KeyError, TypeError, ValueError) as error:
        raise CCDiffError(
            f"the picture does not say where it was cut from ({type(error).__name__}: {error})",
            where=tile.file_name,
            fix="give the set that `ccdiff prepare` made, not one derived from it",
        ) from error
    return picture, (x, y, x + side, y + side), scale


def _extent(tiles: Sequence[Scene], windows: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    """What of a scene some tiles show (x1 y1 x2 y2), their padding not counted."""
    padding = [tile.provenance.get("padded") or {} for tile in tiles]
    right = max(w[2] - float(p.get("right", 0)) for w, p in zip(windows, padding, strict=True))
    below = max(w[3] - float(p.get("below", 0)) for w, p in zip(windows, padding, strict=True))
    return min(w[0] for w in windows), min(w[1] for w in windows), right, below


def _merge_scene(
    windows: list[tuple[float, float, float, float]],
    scales: list[float],
    found: list[Detections],
    iou: float,
    extent: tuple[float, float, float, float],
) -> Detections:
    tile = np.repeat(np.arange(len(found)), [len(d) for d in found])
    oriented = any(d.corners is not None for d in found)
    corners = np.concatenate([_scene_corners(d, w, s) for d, w, s in zip(found, windows, scales, strict=True)])
    scores = np.concatenate([np.asarray(d.scores, np.float64) for d in found])
    labels = np.concatenate([np.asarray(d.labels, np.int64) for d in found])
    merged: list[tuple[float, int, tuple[float, ...]]] = []
    for label in sorted(set(labels.tolist())):
        of_class = np.flatnonzero(labels == label)
        for score, box in _merge_class(
            corners[of_class], scores[of_class], np.asarray(windows)[tile[of_class]], tile[of_class], iou, oriented
        ):
            merged.append((score, label, box))
    merged.sort(key=lambda m: (-m[0], m[1], m[2]))
    boxes = np.array([hbb_of(box) for _, _, box in merged]).reshape(-1, 4)
    turned = None
    if oriented:
        turned = np.array([box for _, _, box in merged], np.float32).reshape(-1, 8)
        boxes = visible_hbbs(turned, extent)
    return Detections(
        boxes.astype(np.float32), np.array([m[0] for m in merged], np.float32), np.array([m[1] for m in merged], np.int64), turned
    )


def _scene_corners(found: Detections, window: Sequence[float], scale: float) -> np.ndarray:
    corners = found.corners if found.corners is not None else [hbb_corners(box) for box in np.asarray(found.boxes).tolist()]
    return np.asarray(corners, np.float64).reshape(-1, 8) / scale + np.tile(window[:2], 4)


def _merge_class(
    corners: np.ndarray, scores: np.ndarray, windows: np.ndarray, tile: np.ndarray, iou: float, oriented: bool
) -> list[tuple[float, tuple[float, ...]]]:
    """Score and corners of every object that some detections of one class show.

    Args:
        corners: (N, 8) scene pixels.
        windows: (N, 4) the windows they were found in.
        tile: (N,) the tiles' numbers.
    """
    shapes = quadrilaterals(corners)
    low, high = corners.reshape(-1, 4, 2).min(1), corners.reshape(-1, 4, 2).max(1)
    margin = BORDER * (windows[:, 2] - windows[:, 0])
    gap = np.minimum(low - windows[:, :2], windows[:, 2:] - high).min(1).clip(0)
    cut = gap < margin
    order = np.lexsort((-shapely.area(shapes), np.where(cut, -gap, -scores), cut))  # stable: equal ones in the order they came
    same = _same_objects(shapes, windows, tile, cut, iou)

    taken = np.zeros(len(shapes), bool)
    objects = []
    for best in order.tolist():
        if taken[best]:
            continue
        taken[best] = True
        members, parts = [best], [best]
        for one in parts:  # grows: an object may reach over many tiles
            for other in same.get(one, ()):
                if taken[other]:
                    continue
                taken[other] = True
                members.append(other)
                if cut[one] and cut[other] and _reaches_beyond(low[other], high[other], windows[one], margin[one]):
                    parts.append(other)
        box = tuple(corners[best].tolist())
        if len(parts) > 1:
            points = corners[parts].ravel().tolist()
            box = min_area_corners(points) if oriented else hbb_corners(hbb_of(points))
        objects.append((float(scores[members].max()), box))
    return objects


def _same_objects(shapes: np.ndarray, windows: np.ndarray, tile: np.ndarray, cut: np.ndarray, iou: float) -> dict[int, list[int]]:
    """Detection -> the others that show the same object."""
    i, j = touching_pairs(shapes)
    seen = np.concatenate([np.maximum(windows[i, :2], windows[j, :2]), np.minimum(windows[i, 2:], windows[j, 2:])], axis=1)
    apart = tile[i] != tile[j]
    i, j, seen, apart = (a[~apart | (seen[:, :2] < seen[:, 2:]).all(1)] for a in (i, j, seen, apart))
    a, b = shapes[i], shapes[j]
    common = shapely.box(*seen[apart].T)
    a[apart], b[apart] = intersections(a[apart], common), intersections(b[apart], common)
    agree = paired_iou(a, b) > iou
    # the share of each that the other's tile sees; a sliver of a neighbour is no part of it
    area, area_a, area_b = shapely.area(shapes), shapely.area(a), shapely.area(b)
    share_a, share_b = (np.divide(x, area[k], out=np.zeros_like(x), where=area[k] > 0) for x, k in ((area_a, i), (area_b, j)))
    part = apart & ((cut[i] & (share_a > SEEN) & (share_b > SLIVER)) | (cut[j] & (share_b > SEEN) & (share_a > SLIVER)))
    agree[part] |= shapely.area(intersections(a[part], b[part])) > iou * np.minimum(area_a, area_b)[part]
    same: dict[int, list[int]] = {}
    for one, other in zip(i[agree].tolist(), j[agree].tolist(), strict=True):
        same.setdefault(one, []).append(other)
        same.setdefault(other, []).append(one)
    return same


def _reaches_beyond(low: np.ndarray, high: np.ndarray, window: np.ndarray, margin: np.ndarray) -> bool:
    """Whether a detection shows what the other's tile could not see."""
    return bool((low < window[:2] - margin).any() or (high > window[2:] + margin).any())


# ---------------------------------------------------------------------------------------------------------------- files


FORMATS = ("coco", "geojson")


@locked("merge-tiles", whole=True)
def merge_file(detections: str | Path, data: str | Path, out: str | Path, *, iou: float = IOU, format: str = "coco") -> dict[str, Any]:
    """Merge detections on a prepared set's tiles into a file of detections on its scenes.

    Args:
        detections: COCO results, ultralytics' label files or DOTA's task files, see ``results.read_results``.
        format: of ``out``: "coco" (results in scene pixels, scenes named by ``file_name``) or "geojson" (polygons on the ground).

    Returns:
        Counts: ``tiles``, ``detections`` before, ``scenes``, ``objects`` after; ``file``, and of GeoJSON ``source_crs``.

    Raises:
        CCDiffError: a broken set or file (with line or entry), an unknown tile or class, scenes without a place on the ground.
    """
    if format not in FORMATS:
        raise CCDiffError(f"unknown format {format!r}", where="--format", fix=" or ".join(FORMATS))
    prepared = read_set(data)
    found = read_results(detections, prepared.scenes, prepared.classes, ids=_image_ids(Path(data)))
    merged = merge_tiles(prepared.scenes, found, iou=iou)
    made: dict[str, Any] = {
        "tiles": len(found),
        "detections": sum(len(d) for d in found),
        "scenes": len(merged),
        "objects": sum(len(d) for d in merged.values()),
        "file": str(out),
    }
    if format == "geojson":
        collection = geojson(merged, prepared.scenes, prepared.classes, where=data)
        write_json(out, collection)
        return made | {"source_crs": collection["source_crs"]}
    write_json(out, coco_results(merged))
    return made


def _image_ids(data: Path) -> dict[int, str]:
    return {int(image["id"]): str(image["file_name"]) for image in read_json(data / ANNOTATIONS)["images"]}
