"""What a user knows of each picture beyond its labels: a file of gsd (metres a pixel), sensor, date, place and the like.

CSV with a column ``file_name``, or JSON: ``{file name: {field: value}}`` or a list of objects with ``file_name``.  Pictures are named as
the set names them, with or without extension.  ``gsd`` goes into the provenance beside what labels and rasters say, and before it; the
other fields go there under ``metadata``, as they are; those that ``quantities`` knows (place, cloud cover, date) are checked.

HRSC2016's labels give a place without the sign of its longitude: a field ``hemisphere`` (E or W) settles it.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CCDiffError
from ..formats.raw import parse_json, read_text
from ..quantities import GSD, METADATA, fields_of, measured, quantities_of
from ..rasters import to_wgs84
from ..scene import Scene

KEY, HEMISPHERE, LOCATION = "file_name", "hemisphere", "location"


def add_metadata(scenes: Sequence[Scene], path: Path, notes: Counter[str]) -> list[Scene]:
    """Scenes with the file's fields in their provenance; counts who has none, and who is no picture of the set.

    Raises:
        CCDiffError: see :func:`read_metadata_file`; no entry is a picture of the set.
    """
    known = read_metadata_file(path)
    used: set[str] = set()
    made = []
    for scene in scenes:
        stem = scene.file_name.rpartition(".")[0] or scene.file_name
        name = next((n for n in (scene.file_name, stem, stem.rpartition("/")[2]) if n in known), None)
        if name is None:
            made.append(scene)
            notes["pictures that --metadata does not name"] += 1
            continue
        used.add(name)
        fields = dict(known[name])
        provenance = dict(scene.provenance)
        if GSD in fields:
            provenance[GSD] = fields.pop(GSD)
        if HEMISPHERE in fields and LOCATION in provenance and not {"longitude", "latitude"} & measured(fields).keys():
            latitude, longitude = provenance[LOCATION]
            fields |= {"latitude": latitude, "longitude": abs(longitude) * (1 if fields[HEMISPHERE] == "E" else -1)}
        if fields:
            provenance[METADATA] = fields
        made.append(scene.replace(provenance=provenance))
    if not used:
        raise CCDiffError(
            f"none of its {len(known)} file names is a picture of the set",
            where=path,
            fix=f"name pictures as the set does, for example {scenes[0].file_name}",
        )
    if missing := sum(LOCATION in s.provenance and "longitude" not in quantities_of(s) for s in made):
        notes["places of labels without a hemisphere, left unknown"] += missing
    if len(known) > len(used):
        notes["entries of --metadata for pictures that the set has not"] += len(known) - len(used)
    return made


def read_metadata_file(path: Path) -> dict[str, dict[str, Any]]:
    """File name (and, where it is unique, the name without extension) -> fields.

    Raises:
        CCDiffError: missing, not CSV or JSON of that form, a picture named twice, a gsd that is no length.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json":
        entries = _of_json(parse_json(text, where=path), path)
    else:
        rows = csv.DictReader(io.StringIO(text))
        if KEY not in (rows.fieldnames or ()):
            raise CCDiffError(
                f"no column {KEY}, found {', '.join(rows.fieldnames or ()) or 'nothing'}",
                where=path,
                fix="begin with a line such as: file_name,gsd,sensor,date",
            )
        entries = [(f"{path}:{rows.line_num}", {k: v for k, v in row.items() if k is not None and v not in (None, "")}) for row in rows]
    known: dict[str, dict[str, Any]] = {}
    for where, entry in entries:
        name = entry.pop(KEY, None)
        if not isinstance(name, str) or not name.strip():
            raise CCDiffError(f"{KEY}: expected a text, found {name!r:.40}", where=where)
        if name in known:
            raise CCDiffError(f"{name:.100} stands there twice", where=where, fix="leave one of the entries")
        if GSD in entry:
            entry[GSD] = _length(entry[GSD], where)
        if HEMISPHERE in entry:
            half = str(entry[HEMISPHERE]).strip().upper()[:1]
            if half not in ("E", "W"):
                raise CCDiffError(f"{HEMISPHERE}: expected E or W, found {entry[HEMISPHERE]!r:.40}", where=where)
            entry[HEMISPHERE] = half
        measured(entry, where=where)
        known[name] = entry
    return known


def located(provenance: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The provenance of a picture of (width, height) whose ``georeference`` tells its place, with the place of its middle.

    What a user or the labels say of the place stays; without the library that reads coordinates, it stays unknown.
    """
    told = Scene("", *size, provenance=provenance)
    if "georeference" not in provenance or {"longitude", "latitude"} & quantities_of(told).keys():
        return provenance
    georeference = provenance["georeference"]
    a, b, c, d, e, f = georeference["transform"]
    x, y = size[0] / 2, size[1] / 2
    try:
        (lon,), (lat,) = to_wgs84(georeference["crs"], [a * x + b * y + c], [d * x + e * y + f], where="georeference")
        place = {"longitude": round((lon + 180) % 360 - 180, 6), "latitude": round(lat, 6)}
        measured(place)
    except CCDiffError:
        return provenance
    return {**provenance, METADATA: {**fields_of(provenance), **place}}


def _of_json(value: Any, path: Path) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()):
        return [(f"{path}: {name:.60}", {**fields, KEY: name}) for name, fields in value.items()]
    if isinstance(value, list) and all(isinstance(v, dict) for v in value):
        return [(f"{path}: entry {k}", dict(v)) for k, v in enumerate(value)]
    raise CCDiffError(
        "expected an object of objects, or a list of objects", where=path, fix='write {"P0001.png": {"gsd": 0.3, "sensor": "GF-2"}}'
    )


def _length(value: Any, where: str) -> float:
    try:
        gsd = float(value)
        if isinstance(value, bool) or not (math.isfinite(gsd) and 0 < gsd < 1e6):
            raise ValueError
    except (TypeError, ValueError):
        raise CCDiffError(f"gsd: expected metres a pixel, found {str(value)[:40]!r}", where=where) from None
    return gsd
