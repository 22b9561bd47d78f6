"""Rasters that Pillow does not read, by GDAL through rasterio (extra ``raster``): any number of bands, kinds of values, planes, JPEG 2000.

* Only drivers for files that hold pixels themselves are allowed: others (VRT, ...) name further files, or start programs.
* Pixels come row by row of the file's own blocks, and GDAL's cache is bounded, so memory does not grow with the scene.
* GDAL does not apply the orientation tag: these are stored pixels, as everywhere below ``pictures.turned``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CCDiffError, UnreadablePicture
from .files import open_file

DRIVERS = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff", b"\x89PNG": "PNG",
    b"\0\0\0\x0c": "JP2OpenJPEG", b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}  # fmt: skip
"""A file's first bytes -> who reads it."""
CACHE = 64
"""MB of decoded blocks that GDAL keeps."""
INSTALL = "pip install 'ccdiff[raster]'"
METRES_PER_DEGREE = 111_320.0
WGS84 = "EPSG:4326"


@dataclass(frozen=True)
class RasterHeader:
    """What GDAL knows of a file beyond ``pictures.Header``.

    Attributes:
        kind: numpy's name of the values' kind; of several, the widest.
        colours: the band numbers (from 1) that the file calls red, green and blue; () where it does not.
        alpha: the numbers of bands that are masks.
        nodata: the value of pixels that were not measured; None where none is.
        crs: "EPSG:32632", or WKT where no number fits; "" without one.
        transform: (a, b, c, d, e, f) of x = a column + b row + c, y = d column + e row + f; () without one.
        gsd: metres a pixel; None where unknown.
        told: ``date`` and ``cloud_cover`` (0 to 1) as the file's IMAGERY tags tell them.
    """

    bands: int
    kind: str
    colours: tuple[int, ...]
    alpha: tuple[int, ...]
    nodata: float | None
    crs: str
    transform: tuple[float, ...]
    gsd: float | None
    told: Mapping[str, Any] = field(default_factory=dict)


def installed() -> bool:
    """Whether rasters can be read."""
    return importlib.util.find_spec("rasterio") is not None


def raster_header(path: str | Path) -> RasterHeader:
    """Header of a raster.

    Raises:
        CCDiffError: the extra is not installed.
        UnreadablePicture: not a raster of the drivers above, values that are no real numbers.
    """
    with _opened(path) as source:
        kinds = [np.dtype(k) if k != "int8" else np.dtype(np.int8) for k in source.dtypes]
        if any(k.kind not in "iuf" for k in kinds):
            raise UnreadablePicture(f"the picture's values are {source.dtypes[0]} numbers", where=path, fix="store intensities")
        colour = {c.name: b for b, c in reversed(list(enumerate(source.colorinterp, start=1)))}
        alpha = tuple(b for b, c in enumerate(source.colorinterp, start=1) if c.name == "alpha")
        colours = tuple(colour[c] for c in ("red", "green", "blue")) if {"red", "green", "blue"} <= set(colour) else ()
        crs = source.crs if source.crs and source.crs.is_valid else None
        transform = tuple(float(v) for v in source.transform[:6])
        placed = crs is not None and transform != (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) and all(math.isfinite(v) for v in transform)
        number = crs.to_epsg() if crs is not None else None
        return RasterHeader(
            bands=source.count,
            kind=max(kinds, key=lambda k: k.itemsize).name,
            colours=colours,
            alpha=alpha,
            nodata=float(source.nodata) if source.nodata is not None and math.isfinite(source.nodata) else None,
            crs="" if crs is None or not placed else f"EPSG:{number}" if number else str(crs.to_wkt()),
            transform=transform if placed else (),
            gsd=_gsd(crs, transform, source.height) if placed else None,
            told=_told(source.tags(ns="IMAGERY")),
        )


def named_crs(wkt: str, transform: Sequence[float], height: int) -> tuple[str, float | None]:
    """A coordinate reference system as ``RasterHeader.crs`` has it, and metres a pixel; "" where the text is none.

    Without the extra the text is taken as it stands.
    """
    if not installed():
        return wkt, None
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError

    try:
        crs = CRS.from_wkt(wkt)
    except (RasterioError, ValueError):
        return "", None
    number = crs.to_epsg()
    return f"EPSG:{number}" if number else wkt, _gsd(crs, transform, height)


def read_values(path: str | Path, bands: Sequence[int], *, pixels: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """A raster from top to bottom: yields (first row, (rows, width, bands) values of the file's kind).

    Args:
        bands: which, from 1.
        pixels: of one piece, as near as the file's own blocks allow; all at once when None.

    Raises: as :func:`raster_header`; UnreadablePicture for a file that ends early, too.
    """
    with _opened(path) as source:
        unit = max(source.block_shapes[b - 1][0] for b in bands)
        rows = source.height if pixels is None else unit * max(1, round(pixels / (unit * source.width)))
        for top in range(0, source.height, rows):
            window = ((top, min(top + rows, source.height)), (0, source.width))
            yield top, np.moveaxis(source.read(list(bands), window=window), 0, 2)


def to_wgs84(crs: str, xs: Sequence[float], ys: Sequence[float], *, where: str | Path) -> tuple[list[float], list[float]]:
    """Longitudes and latitudes (degrees, WGS 84) of points of a coordinate reference system.

    Raises:
        CCDiffError: the extra is not installed (and it is another system), an unknown system, points outside its area.
    """
    if crs in (WGS84, "OGC:CRS84"):
        return list(xs), list(ys)
    if not installed():
        raise CCDiffError(f"{crs[:60]} is not WGS 84 longitude and latitude, which GeoJSON has", where=where, fix=INSTALL)
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        lon, lat = transform(CRS.from_string(crs), CRS.from_string(WGS84), list(xs), list(ys))[:2]
    except RasterioError as error:
        raise CCDiffError(f"cannot go from {crs[:60]} to WGS 84: {error}", where=where, fix="prepare the set again") from error
    if not np.isfinite([*lon, *lat]).all():
        raise CCDiffError(f"a point outside the area of {crs[:60]}", where=where, fix="check the scenes' georeference")
    return list(lon), list(lat)


def _told(tags: Mapping[str, str]) -> dict[str, Any]:
    """GDAL's names of what sensors' own files say; a cloud cover beyond 100 percent means that none is known."""
    told: dict[str, Any] = {}
    if re.match(r"\d{4}-\d{2}-\d{2}", acquired := tags.get("ACQUISITIONDATETIME", "")):
        told["date"] = acquired[:10]
    try:
        if 0 <= (clouds := float(tags.get("CLOUDCOVER", "nan"))) <= 100:
            told["cloud_cover"] = clouds / 100
    except ValueError:
        pass
    return told


def _gsd(crs: Any, transform: Sequence[float], height: int) -> float | None:
    """Metres a pixel: the root of a pixel's area, at the middle of the picture where the system has degrees."""
    a, b, _, d, e, f = transform
    side = math.sqrt(abs(a * e - b * d))
    if crs.is_geographic:
        side *= METRES_PER_DEGREE * math.sqrt(max(0.0, math.cos(math.radians(f + e * height / 2))))
    elif crs.is_projected:
        side *= float(crs.linear_units_factor[1])
    else:
        return None
    return side if math.isfinite(side) and side > 0 else None


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not installed():
        raise CCDiffError("the raster library is not installed", where=path, fix=INSTALL)
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    log = logging.getLogger("rasterio")
    if not log.handlers:
        log.addHandler(logging.NullHandler())  # GDAL's complaints become our errors; Python would print them as well
    try:
        with (
            warnings.catch_warnings(),
            rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_PAM_ENABLED="NO", GDAL_NUM_THREADS="1"),
        ):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with open_file(path) as stream:
                driver = DRIVERS.get(stream.read(4), "GTiff")
            with rasterio.open(str(path), driver=driver) as source:
                yield source
    except (RasterioError, OSError, ValueError, MemoryError) as error:
        raise UnreadablePicture(f"the picture does not decode: {error}", where=path, fix="replace the file") from error
