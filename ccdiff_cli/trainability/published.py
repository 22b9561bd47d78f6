"""Published trainability, shown beside ours for the same data set alone.

Source: the table of CC-Diff++ (IEEE TGRS 2025), detectors of 800 px on a 1x schedule, one synthetic picture for each real training picture:
Faster R-CNN R50-FPN on DIOR-RSVG (HBB), oriented detectors on DOTA v1.0 (tiles of 512 px) and HRSC2016.
"""

from __future__ import annotations

from typing import Any

from ..dataset import PictureSet
from ..formats.classes import DIOR, DOTA10, HRSC
from ..scene import ClassList

METHODS = ("real only", "Txt2Img-MHN", "DiffusionSat", "AeroGen", "LayoutDiffusion", "MIGC", "CC-Diff", "CC-Diff++")
PUBLISHED: dict[str, tuple[tuple[float, float, float], ...]] = {
    "DIOR-RSVG": (
        (50.17, 75.84, 54.38),
        (50.12, 75.87, 54.74),
        (49.95, 75.59, 55.26),
        (51.39, 76.85, 56.75),
        (51.96, 77.31, 56.82),
        (51.87, 76.65, 57.20),
        (52.18, 77.39, 57.59),
        (52.62, 77.51, 58.09),
    ),
    "DOTA v1.0": (
        (35.53, 62.10, 35.83),
        (35.91, 62.53, 36.43),
        (36.15, 62.50, 36.76),
        (36.65, 63.15, 36.96),
        (35.15, 61.54, 35.18),
        (35.93, 62.36, 36.32),
        (37.36, 63.18, 38.55),
        (37.57, 63.18, 38.05),
    ),
    "HRSC2016": (
        (34.88, 51.45, 40.90),
        (33.45, 49.65, 38.67),
        (29.67, 45.62, 33.51),
        (44.43, 60.38, 50.60),
        (43.74, 60.27, 51.34),
        (42.18, 60.01, 49.44),
        (42.15, 61.15, 50.74),
        (46.69, 66.58, 55.73),
    ),
}
"""Data set -> mAP, AP50, AP75 of each of :data:`METHODS`, percent."""
KNOWN: dict[tuple[str, ClassList], str] = {("rsvg", DIOR): "DIOR-RSVG", ("dota", DOTA10): "DOTA v1.0", ("hrsc", HRSC): "HRSC2016"}
"""Format that ``prepare`` read, and class list -> data set."""


def published_rows(real: PictureSet) -> dict[str, Any] | None:
    """The published table of the data set that a prepared set was made of; None for every other set.

    It is recognised by the manifest: the format ``prepare`` read and the frozen class list.  A set of the same format but other classes
    is another set.
    """
    source = real.manifest.get("source")
    format = source.get("format") if isinstance(source, dict) else None
    for (known, classes), name in KNOWN.items():
        if format == known and set(classes) == set(real.classes):
            rows = {m: dict(zip(("mAP", "AP50", "AP75"), v, strict=True)) for m, v in zip(METHODS, PUBLISHED[name], strict=True)}
            return {"data_set": name, "rows": rows}
    return None
