"""The place on the ground that files beside a picture give it, where the picture itself has none.

* A world file (``a.pgw``, ``a.jgw``, ``a.tfw``, ``a.pngw``, ``a.wld``: six numbers) gives the transform; it means the centre of the first
  pixel, we of its corner.
* ``a.prj`` or ``a.png.aux.xml`` names the coordinate reference system, as WKT; without one the transform says little, and is passed over.
* NOTE: read here rather than by GDAL, which would look for further files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ..formats.raw import read_head
from ..rasters import named_crs

SIDE_BYTES = 65_536
"""As much is read of a file beside a picture."""
_WKT = re.compile(r"(PROJ|GEOG|GEODETIC|COMPD|COMPOUND|BOUND|LOCAL|ENG)[A-Z]*\s*\[", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    """``crs``, ``transform`` and ``gsd`` as ``rasters.RasterHeader`` has them; ``crs`` is "" where no file names one."""

    crs: str
    transform: tuple[float, ...]
    gsd: float | None


def world_of(path: str | Path, height: int) -> World | None:
    """The place that files beside a picture of ``height`` pixels give it; None without a world file of six finite numbers."""
    path = Path(path)
    transform = _transform(path)
    if not transform:
        return None
    wkt = _side_crs(path)
    crs, gsd = named_crs(wkt, transform, height) if wkt else ("", None)
    return World(crs, transform, gsd)


def _transform(path: Path) -> tuple[float, ...]:
    kind = path.suffix.lstrip(".")
    for suffix in (f".{kind[:1]}{kind[-1:]}w", f".{kind}w", ".wld"):
        for name in (suffix.lower(), suffix.upper()):
            text = read_head(path.with_suffix(name), SIDE_BYTES).decode("latin-1")
            try:
                a, d, b, e, x, y = (float(v.replace(",", ".")) for v in text.split())
            except ValueError:
                continue
            transform = (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)
            if all(math.isfinite(v) for v in transform) and a * e != b * d:
                return transform
    return ()


def _side_crs(path: Path) -> str:
    """The coordinate reference system that a file beside the picture names, as WKT; "" where none does."""
    for name in (path.with_suffix(".prj"), path.with_suffix(".PRJ")):
        if _WKT.match(text := read_head(name, SIDE_BYTES).decode("utf-8", "replace").strip()):
            return text
    data = read_head(path.with_name(f"{path.name}.aux.xml"), SIDE_BYTES)
    try:
        text = (ElementTree.fromstring(data, forbid_dtd=True).findtext("SRS") or "").strip() if data else ""
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return ""
    return text if _WKT.match(text) else ""
