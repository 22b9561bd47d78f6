"""How well the oriented boxes of cut objects agree with what is visible of them.

    python -m benchmarks.border_boxes DOTA_FOLDER [--tile 256] [--overlap 64] [--format dota]

Every picture is cut into tiles as ``ccdiff prepare`` cuts it.  Of each object that a tile's border cuts and that is not difficult, the part
of its stored box in the tile is compared (IoU) with the part of its whole, annotated box that is in the tile.  Beside ours: what readers
of ``export --format yolo-obb`` make of it (the minimum-area rectangle of four points inside), and the way of earlier versions, in which
the box was shrunk about its centre until it lay inside, turned or made horizontal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ccdiff_cli.formats import read_raw
from ccdiff_cli.geometry import (
    clip,
    corners_inside,
    corners_to_le90,
    hbb_corners,
    hbb_of,
    intersections,
    min_area_corners,
    polygon,
    quadrilateral_inside,
)
from ccdiff_cli.prepare.tiling import cut_scene, tile_origins
from ccdiff_cli.scene import Scene


def agreement(one: Sequence[float], other: Sequence[float], window: tuple[float, float, float, float]) -> float:
    """IoU of two boxes' parts in a window."""
    a, b = clip(polygon(one), window), clip(polygon(other), window)
    common = intersections(a, b).area
    return common / (a.area + b.area - common) if a.area + b.area > common else 0.0


def shrunk(corners: Sequence[float], window: tuple[float, float, float, float]) -> tuple[float, ...]:
    """The best of minimum-area rectangle, horizontal box and rectangle at the object's angle, each shrunk until it lies inside."""
    visible = clip(polygon(corners), window)
    points = np.asarray(visible.exterior.coords)[:-1]
    angle = corners_to_le90(corners)[4]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    low, high = (points @ turn.T).min(0), (points @ turn.T).max(0)
    own = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]) @ turn
    best: tuple[float, tuple[float, ...]] = (-1.0, ())
    for candidate in (min_area_corners(points.ravel().tolist()), own.ravel().tolist(), hbb_corners(hbb_of(points.ravel().tolist()))):
        p = np.reshape(candidate, (4, 2))
        centre = p.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(p > centre, (np.array(window[2:]) - centre) / (p - centre), (np.array(window[:2]) - centre) / (p - centre))
        fitted = tuple((centre + (p - centre) * min(1.0, max(0.0, float(np.nanmin(room))))).ravel())
        best = max(best, (round(agreement(fitted, corners, window), 6), fitted))
    return best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--format", default=None)
    args = parser.parse_args()
    rows: dict[str, list[float]] = {"ours": [], "ours, as yolo-obb is read": [], "shrunk until inside": []}
    for scene in read_raw(args.folder, args.format, strict=False).scenes:
        with Image.open(str(scene.path)) as image:
            sized: Scene = scene.replace(width=image.width, height=image.height)
        for x, y in tile_origins(sized.width, sized.height, args.tile, args.overlap):
            window = (float(x), float(y), float(min(x + args.tile, sized.width)), float(min(y + args.tile, sized.height)))
            for found in cut_scene(sized, (x, y), args.tile, 1.0, keep=0.7, difficult=0.2)[0]:
                whole = sized.instances[found.extra["object"]]
                if found.difficult or not whole.oriented or corners_inside(whole.corners, window):
                    continue
                back = [v + (y if k % 2 else x) for k, v in enumerate(found.corners)]
                held = quadrilateral_inside(tuple(back), window, min_area_corners)  # type: ignore[arg-type]
                kinds = (back, min_area_corners(held), shrunk(whole.corners, window))
                for values, corners in zip(rows.values(), kinds, strict=True):
                    values.append(agreement(corners, whole.corners, window))
    for name, values in rows.items():
        v = np.array(values)
        print(f"{name}: {len(v)} cut, non-difficult boxes, mean IoU {v.mean():.3f}, below 0.5: {100 * (v < 0.5).mean():.1f} %")


if __name__ == "__main__":
    main()
