"""Where, when and how sharply a picture was taken: seven quantities, each known or not.

They stand in a scene's provenance: ``gsd`` (metres a pixel, of the picture as it is) by itself, since it follows every resize; the others
under ``metadata``, in the words of their source.  :func:`quantities_of` understands those words, :func:`measured` refuses what they
cannot mean.  Unknown is absent, and NaN in a row of numbers; nothing is guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from .errors import CCDiffError
from .scene import Scene

QUANTITIES = ("longitude", "latitude", "gsd", "cloud_cover", "year", "month", "day")
"""Degrees east, degrees north (WGS 84), metres a pixel, 0 to 1, and the date."""
METADATA, GSD = "metadata", "gsd"
_NAMES = {
    "longitude": ("longitude", "lon", "lng", "long"),
    "latitude": ("latitude", "lat"),
    "cloud_cover": ("cloud_cover", "cloudcover", "cloud", "clouds"),
    "year": ("year",),
    "month": ("month",),
    "day": ("day",),
    "date": ("date", "datetime", "timestamp", "acquired", "acquisition_date", "acquisition_time", "capture_date"),
}
_QUANTITY = {name: quantity for quantity, names in _NAMES.items() for name in names}
_BOUNDS = {"longitude": (-180, 180), "latitude": (-90, 90), "cloud_cover": (0, 1), "year": (1800, 2200), "month": (1, 12), "day": (1, 31)}
_MEANING = {
    "longitude": "degrees east from -180 to 180",
    "latitude": "degrees north from -90 to 90",
    "cloud_cover": "a share from 0 to 1, or a percentage such as 25%",
    "year": "a year",
    "month": "a month from 1 to 12",
    "day": "a day from 1 to 31",
}
_DATE = re.compile(r"(\d{4})(?:[-/:.]?(\d{2})(?:[-/:.]?(\d{2})(?:[T ].*)?)?)?")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")


def measured(fields: Mapping[str, Any], *, where: str | None = None) -> dict[str, float]:
    """The quantities among the fields of one picture, other fields and empty ones left alone; ``gsd`` is not looked at.

    Raises:
        CCDiffError: a value that its field cannot have, two fields that say different things.
    """
    found: dict[str, float] = {}
    for name, value in fields.items():
        quantity = _QUANTITY.get(re.sub(r"[^a-z]+", "_", str(name).strip().lower()))
        if quantity is None or value is None or (isinstance(value, str) and value.strip().lower() in ("", "null", "none", "nan")):
            continue
        for key, number in (
            _of_date(name, value, where) if quantity == "date" else {quantity: _number(quantity, name, value, where)}
        ).items():
            if found.setdefault(key, number) != number:
                raise CCDiffError(
                    f"{name} {value!r} says {key} {number:g}, another field {found[key]:g}", where=where, fix="leave one of the fields"
                )
    if {"year", "month", "day"} <= found.keys():
        try:
            date(*(int(found[k]) for k in ("year", "month", "day")))
        except ValueError:
            raise CCDiffError(f"there is no {found['day']:g}. {_MONTHS[int(found['month']) - 1]} {found['year']:g}", where=where) from None
    return found


def fields_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a provenance that tell the quantities but ``gsd``."""
    fields = provenance.get(METADATA)
    return fields if isinstance(fields, Mapping) else {}


def quantities_of(scene: Scene) -> dict[str, float]:
    """What is known of a picture; what its provenance says in words that mean nothing is unknown."""
    found: dict[str, float] = {}
    for name, value in fields_of(scene.provenance).items():
        try:
            found = measured({name: value}) | found
        except CCDiffError:
            continue
    gsd = scene.provenance.get(GSD)
    if isinstance(gsd, int | float) and not isinstance(gsd, bool) and math.isfinite(gsd) and gsd > 0:
        found[GSD] = float(gsd)
    return found


def quantity_rows(scenes: Sequence[Scene]) -> list[list[float]]:
    """A row of the seven :data:`QUANTITIES` for each scene, NaN where unknown."""
    known = [quantities_of(scene) for scene in scenes]
    return [[k.get(name, math.nan) for name in QUANTITIES] for k in known]


def date_of(known: Mapping[str, float]) -> str:
    """ "2014-05-31", "2014-05", "2014" or ""."""
    if "year" not in known:
        return ""
    parts = [f"{known['year']:04.0f}"]
    for name in ("month", "day"):
        if name not in known:
            break
        parts.append(f"{known[name]:02.0f}")
    return "-".join(parts)


def words_of(known: Mapping[str, float]) -> str:
    """What is known, as the end of a sentence: "0.5 m per pixel, at 48.1 N 11.5 E, in May 2014, 25 percent clouds"; "" for nothing."""
    parts = []
    if GSD in known:
        parts.append(f"{known[GSD]:.2g} m per pixel")
    if "latitude" in known and "longitude" in known:
        lat, lon = known["latitude"], known["longitude"]
        parts.append(f"at {abs(lat):.1f} {'S' if lat < 0 else 'N'} {abs(lon):.1f} {'W' if lon < 0 else 'E'}")
    if "year" in known:
        parts.append(f"in {_MONTHS[int(known['month']) - 1] + ' ' if 'month' in known else ''}{known['year']:.0f}")
    if known.get("cloud_cover"):
        parts.append(f"{100 * known['cloud_cover']:.0f} percent clouds")
    return ", ".join(parts)


def _number(quantity: str, name: str, value: Any, where: str | None) -> float:
    low, high = _BOUNDS[quantity]
    text = str(value).strip()
    percent = quantity == "cloud_cover" and text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / 100 if percent else float(text)
    except ValueError:
        number = math.nan
    whole = quantity in ("year", "month", "day")
    if isinstance(value, bool) or not low <= number <= high or (whole and number != int(number)):
        raise CCDiffError(f"{name}: expected {_MEANING[quantity]}, found {text[:40]!r}", where=where, fix="correct it, or leave it empty")
    return number


def _of_date(name: str, value: Any, where: str | None) -> dict[str, float]:
    found = _DATE.fullmatch(str(value).strip())
    parts = {k: int(v) for k, v in zip(("year", "month", "day"), found.groups(), strict=True) if v} if found else {}
    try:
        if not parts or isinstance(value, bool) or not 1800 <= date(*(parts.get(k, 1) for k in ("year", "month", "day"))).year <= 2200:
            raise ValueError
    except ValueError:
        raise CCDiffError(
            f"{name}: expected a date such as 2014-05-31, 2014-05 or 2014, found {str(value)[:40]!r}", where=where, fix="write it so"
        ) from None
    return {k: float(v) for k, v in parts.items()}
