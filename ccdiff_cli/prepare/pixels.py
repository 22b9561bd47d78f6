"""Pixels that are what the labels mean: which way up, which bands, which values are black and white, and in which size they were labelled.

:func:`look` reads a picture's header, :func:`settle` decides for a whole raw set how its files are read (``Scene.reading``) and whether its
boxes fit them.  Everything that is not simply 8-bit RGB is counted, and stands in the manifest under ``pixels`` and in the provenance of
the picture under ``reading``.

* Orientation: labels are taken as those of the picture as shown (labelling tools and most trainers obey the EXIF tag).  Declared sizes may
  contradict that; then nothing is decided silently.
* Sizes: where the declared and the real one differ, the places of the labels tell a wrong declaration (they do not fit into it) from a
  picture that was resized after it was labelled (they do).  The second stops, unless the user says what happened.
* Values of more than 8 bits are stretched.  By default one range for each band of the whole set, from percentiles over a sample of its
  training pictures, so that the same ground looks the same everywhere and nothing is learned from test pictures.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import rasters
from ..errors import CCDiffError
from ..pictures import Header, Reading, UnreadablePicture, open_picture, read_header, stored_point
from ..quantities import GSD, METADATA, fields_of, quantities_of
from ..rasters import RasterHeader
from ..scene import Instance, Scene
from .windows import held_whole, read_value_bands
from .world import World, world_of

TURN, KEEP = "turn", "keep"
SET, PICTURE, FIXED, NONE = "set", "picture", "fixed", "none"
STOP, SCALE, STRETCH = "stop", "scale", "stretch"
PERCENTILES = (0.5, 99.5)
SAMPLE_PICTURES, SAMPLE_PIXELS = 64, 65_536
"""A range is taken from so many pictures at most, and about so many pixels of each."""
OUTSIDE = 0.2
"""Labels do not fit a size when more than this share of their centres lies outside it."""
_CHANNELS = {"L": 1, "LA": 2, "RGBA": 4, "RGBX": 4, "RGBa": 4, "CMYK": 4}

Run = Callable[[Callable[[Any], Any], Sequence[Any], str], Iterable[Any]]
"""``map`` with the name of the stage, as several processes or threads do it."""


@dataclass(frozen=True)
class PixelOptions:
    """What a user says of the pixels of a raw set; see :func:`pixel_options`."""

    exif: str | None = None
    bands: tuple[int, ...] = ()
    stretch: str = SET
    range: tuple[float, float] = PERCENTILES
    resized: str = STOP


def pixel_options(exif: str | None = None, bands: str | None = None, stretch: str = SET, resized: str = STOP) -> PixelOptions:
    """The options of `prepare`, checked.

    Args:
        exif: "turn" or "keep"; None: turn, but stop where declared sizes contradict it.
        bands: "3,2,1" or one number; None: those that the file calls red, green and blue, else the first three (or the first).
        stretch: "set", "picture" (either with percentiles: "set:2,98"), "LOW,HIGH" (values) or "none" (the whole range of the kind).
        resized: "stop", "scale" (by one factor), "stretch" (by one factor an axis) or "keep" (the declared size is wrong, not the boxes).

    Raises:
        CCDiffError: anything else.
    """
    if exif not in (None, TURN, KEEP):
        raise CCDiffError(f"unknown choice {exif!r}", where="--exif", fix="turn or keep")
    if resized not in (STOP, SCALE, STRETCH, KEEP):
        raise CCDiffError(f"unknown choice {resized!r}", where="--resized", fix="stop, scale, stretch or keep")
    numbers: tuple[int, ...] = ()
    if bands is not None:
        if not re.fullmatch(r"\s*[1-9]\d{0,3}\s*(,\s*[1-9]\d{0,3}\s*){2}|\s*[1-9]\d{0,3}\s*", bands, re.ASCII):
            raise CCDiffError(
                f"expected one band or three, counted from 1, found {bands!r}", where="--bands", fix="--bands 3,2,1 or --bands 4"
            )
        numbers = tuple(int(b) for b in bands.split(","))
    kind, span = _stretch(stretch)
    return PixelOptions(exif, numbers, kind, span, resized)


def _stretch(text: str) -> tuple[str, tuple[float, float]]:
    kind, _, rest = text.strip().partition(":")
    if kind == NONE and not rest:
        return NONE, (0.0, 0.0)
    known = kind in (SET, PICTURE)
    if known and not rest:
        return kind, PERCENTILES
    try:
        low, high = (float(v) for v in (rest if known else text).split(","))
        if not np.isfinite((low, high)).all() or not low < high or (known and not (low >= 0 and high <= 100)):
            raise ValueError
    except ValueError:
        raise CCDiffError(
            f"expected set, picture, none or LOW,HIGH, found {text!r}",
            where="--stretch",
            fix="--stretch set (percentiles 0.5 and 99.5), set:2,98, picture, 0,2047 (values) or none",
        ) from None
    return (kind if known else FIXED), (low, high)


# ---------------------------------------------------------------------------------------------------------------- one picture


@dataclass(frozen=True)
class Found:
    """What the headers of a picture say; ``whole``: it is large, and will be decoded whole, for its file has no bands; ``world``: what
    files beside it say of its place."""

    header: Header
    raster: RasterHeader | None
    whole: bool
    world: World | None = None


def look(path: str) -> Found | str:
    """The headers of a picture; why it does not open, where it does not.

    Raises:
        CCDiffError: it is missing, or takes the raster library, which is not installed.
    """
    found = _look(path)
    if isinstance(found, str) or (found.raster is not None and found.raster.crs):
        return found
    return replace(found, world=world_of(path, found.header.size[1]))


def _look(path: str) -> Found | str:
    try:
        header = read_header(path)
        if header.plain:
            with open_picture(path) as image:
                whole = held_whole(image, path)
            wanted = header.georeferenced or (whole and header.format in ("TIFF", "JPEG2000"))
            return Found(header, _quiet_raster(path) if wanted and rasters.installed() else None, whole)
        if not rasters.installed():
            if header.mode and header.bands == 1:
                return Found(header, None, False)
            raise CCDiffError(
                f"a {header.format} picture of {header.bands} bands of {header.kind} values is read by the raster library",
                where=path,
                fix=f"{rasters.INSTALL}, or convert the pictures to 8-bit RGB",
            )
        return Found(header, rasters.raster_header(path) if header.format in ("TIFF", "JPEG2000", "PNG") else None, False)
    except UnreadablePicture as error:
        return error.what


def _quiet_raster(path: str) -> RasterHeader | None:
    try:
        return rasters.raster_header(path)
    except UnreadablePicture:  # Pillow reads it, so it is no failure
        return None


def _reading(found: Found, options: PixelOptions, path: str) -> Reading:
    """How a picture is read, but for the ranges of its values."""
    header, raster = found.header, found.raster
    by_raster = raster is not None and (
        not header.plain
        or header.format == "JPEG2000"  # Pillow does not read all of them
        or (found.whole and header.mode in ("L", "RGB", "RGBA", "RGBX"))
    )
    if header.format == "PNG" and header.bands == 1 and header.mode.startswith("I"):
        by_raster = False  # Pillow reads these band by band as well
    count = raster.bands if raster is not None and by_raster else _channels(header)
    bands: tuple[int, ...] = ()
    if options.bands:
        bands = options.bands
        if max(bands) > count:
            raise CCDiffError(
                f"the picture has {count} bands, --bands asks for band {max(bands)}", where=path, fix="name bands that every picture has"
            )
    elif by_raster or not header.plain:
        bands = raster.colours if raster is not None else ()
        if not bands:
            measured = [b for b in range(1, count + 1) if raster is None or b not in raster.alpha] or [1]
            bands = tuple(measured[:3]) if len(measured) >= 3 else (measured[0],)
    nodata = raster.nodata if raster is not None and not header.plain else None
    orientation = 1 if options.exif == KEEP else header.orientation
    return Reading(orientation, by_raster, bands, (), nodata)


def _masks(found: Found) -> int:
    """How many of a picture's bands are transparency, which nobody misses."""
    if found.header.plain:
        return int(found.header.mode in ("LA", "RGBA", "RGBa", "CMYK") or (found.header.mode == "RGBX" and found.header.format != "TIFF"))
    return _alpha(found)


def _alpha(found: Found) -> int:
    return len(found.raster.alpha) if found.raster is not None else 0


def _channels(header: Header) -> int:
    if not header.plain:
        return header.bands
    return _CHANNELS.get(header.mode, 3)


# ------------------------------------------------------------------------------------------------------------------ a whole set


@dataclass
class Settled:
    """A raw set with its pixels settled.

    Attributes:
        scenes: with ``reading``, the size of the picture as read, boxes in its pixels, and what is known of its place on the ground.
        changes: what was done to a picture or its labels, for people: (what, where, detail), one a picture.
        notes: what else should be known -> how many.
        summary: the same for the manifest; {} where all is plain.
        sizes: verdict -> [(path, declared size, real size)] of the pictures whose labels declare another size.
    """

    scenes: list[Scene]
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    summary: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, list[tuple[str, tuple[int, int], tuple[int, int]]]] = field(default_factory=dict)


def settle(scenes: Sequence[Scene], found: Sequence[Found], options: PixelOptions, run: Run, *, stop: bool = True) -> Settled:
    """Decide how each picture of a raw set is read, and bring its boxes to it.

    Args:
        found: what :func:`look` found of each scene.
        run: maps over processes.
        stop: raise where the user must say what happened; else only list it (``sizes``) and leave the boxes.

    Raises:
        CCDiffError: pictures that were resized or turned after they were labelled (see ``PixelOptions.resized`` and ``exif``), a band that
            a picture has not.
    """
    settled = Settled([])
    readings = [_reading(f, options, str(s.path)) for s, f in zip(scenes, found, strict=True)]
    readings = _stretched(scenes, found, readings, options, run, settled)
    _count_turns(scenes, found, options, settled)
    verdicts = [_verdict(s, f, r) for s, f, r in zip(scenes, found, readings, strict=True)]
    _tell_exchanged(scenes, found, readings, verdicts)
    for scene, one, reading, verdict in zip(scenes, found, readings, verdicts, strict=True):
        real = one.header.shown() if reading.orientation != 1 else one.header.size
        declared = (scene.width, scene.height)
        if verdict:
            settled.sizes.setdefault(verdict, []).append((str(scene.path), declared, real))
        provenance = {**scene.provenance, **_told(reading), **_placed(one, reading, scene)}
        if _scales(verdict, options):
            factors = (real[0] / declared[0], real[1] / declared[1])
            scene = scene.replace(instances=tuple(scaled(i, *factors) for i in scene.instances))
            provenance["labels_scaled"] = [round(f, 6) for f in factors]
            if GSD in quantities_of(scene):  # of the pixels that the labels count
                provenance[GSD] = scene.provenance[GSD] / math.sqrt(factors[0] * factors[1])
        settled.scenes.append(scene.replace(width=real[0], height=real[1], reading=reading, provenance=provenance))
        if one.header.pages > 1:
            what = "files of several pictures (pages, frames), of which the first is read"
            settled.changes.append((what, str(scene.path), f"it holds {one.header.pages}"))
        if one.header.georeferenced and one.raster is None and one.header.format == "TIFF" and not rasters.installed():
            settled.notes[f"georeferenced pictures whose coordinates were not read ({rasters.INSTALL})"] += 1
        elif one.world is not None and not one.world.crs:
            settled.notes["pictures with a world file whose coordinate reference system nobody says (NAME.prj), passed over"] += 1
        if one.header.format == "TIFF" and not options.bands and (one.header.mode in ("LA", "RGBA", "RGBa") or _alpha(one)):
            settled.notes["TIFF pictures with a band marked as transparency, which is not read (--bands chooses it)"] += 1
    _judge(settled, options, len(scenes), stop)
    return settled


def _told(reading: Reading) -> dict[str, Any]:
    """A reading for the provenance; nothing of a plain one."""
    told: dict[str, Any] = {}
    if reading.orientation != 1:
        told["orientation"] = reading.orientation
    if reading.bands:
        told["bands"] = list(reading.bands)
    if reading.ranges:
        told["ranges"] = [list(r) for r in reading.ranges]
    return {"reading": told} if told else {}


# ---------------------------------------------------------------------------------------------------------------------- orientation


def _count_turns(scenes: Sequence[Scene], found: Sequence[Found], options: PixelOptions, settled: Settled) -> None:
    turned = 0
    for scene, one in zip(scenes, found, strict=True):
        header = one.header
        if header.orientation != 1:
            turned += 1
            what = "pictures turned by their EXIF orientation (--exif keep if they were labelled as stored)"
            if options.exif == KEEP:
                what = "pictures with an EXIF orientation, read as they are stored (--exif keep); the tag is not passed on"
            settled.changes.append((what, str(scene.path), f"orientation {header.orientation}"))
        elif header.tagged:
            settled.notes["EXIF orientations that are none of 1 to 8, ignored"] += 1
    if turned:
        settled.summary["exif"] = {"choice": options.exif or TURN, "pictures": turned}


# -------------------------------------------------------------------------------------------------------------------------- values


def _stretched(
    scenes: Sequence[Scene], found: Sequence[Found], readings: list[Reading], options: PixelOptions, run: Run, settled: Settled
) -> list[Reading]:
    """The readings with ranges where values have more than 8 bits; groups of one kind and number of bands share theirs."""
    groups: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
    for k, (one, reading) in enumerate(zip(found, readings, strict=True)):
        kind = one.raster.kind if one.raster is not None and reading.raster else one.header.kind
        count = one.raster.bands if one.raster is not None and reading.raster else _channels(one.header)
        if kind != "uint8":
            groups.setdefault((kind, count, reading.bands), []).append(k)
        if not options.bands and (left := count - len(reading.bands or (1, 2, 3)) - _masks(one)) > 0:
            named = ", ".join(str(b) for b in reading.bands or (1, 2, 3))
            what = f"pictures of {count} bands of which {left} are not read (bands {named}; --bands chooses others)"
            settled.changes.append((what, str(scenes[k].path), ""))
    if options.bands:
        settled.summary["bands"] = list(options.bands)
    made = list(readings)
    listed = []
    for (kind, count, bands), members in sorted(groups.items()):
        ranges = _ranges(kind, members, scenes, readings, options, run)
        for k, r in zip(members, ranges, strict=True):
            made[k] = Reading(readings[k].orientation, readings[k].raster, bands, r, readings[k].nodata)
        shared = ranges[0] if options.stretch != PICTURE else None
        span = "each by its own range" if shared is None else "; ".join(f"{low:g} to {high:g}" for low, high in shared)
        what = f"pictures of {kind} values stretched to 8 bits ({options.stretch}: {span})"
        settled.changes += [(what, str(scenes[k].path), "") for k in members]
        listed.append(
            {
                "values": kind,
                "of_bands": count,
                "bands": list(bands),
                "pictures": len(members),
                "by": options.stretch,
                **({"percentiles": list(options.range)} if options.stretch in (SET, PICTURE) else {}),
                **({"ranges": [list(r) for r in shared]} if shared is not None else {}),
            }
        )
    if listed:
        settled.summary["stretch"] = listed
    return made


_Ranges = tuple[tuple[float, float], ...]


def _ranges(
    kind: str, members: Sequence[int], scenes: Sequence[Scene], readings: Sequence[Reading], options: PixelOptions, run: Run
) -> list[_Ranges]:
    """The ranges of each member of a group."""
    bands = len(readings[members[0]].bands) or 1
    if options.stretch in (FIXED, NONE):
        span = options.range if options.stretch == FIXED else _whole_range(kind)
        return [(span,) * bands] * len(members)
    chosen = list(members)
    if options.stretch == SET:
        chosen = [k for k in members if scenes[k].split == "train"] or chosen
        chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, min(SAMPLE_PICTURES, len(chosen))).astype(int))]
    samples = list(run(sample_values, [(str(scenes[k].path), readings[k]) for k in chosen], "measuring values"))
    if options.stretch == SET:
        return [_percentiles(np.concatenate(samples), bands, options.range)] * len(members)
    return [_percentiles(s, bands, options.range) for s in samples]


def _whole_range(kind: str) -> tuple[float, float]:
    if kind.startswith("float"):
        return (0.0, 255.0)
    limits = np.iinfo(kind)
    return (float(limits.min), float(limits.max))


def sample_values(job: tuple[str, Reading]) -> np.ndarray:
    """(n, bands) values spread evenly over a picture, NaN where it has none; (0, bands) of one that does not decode."""
    path, reading = job
    count = len(reading.bands) or 1
    parts = []
    try:
        width, height = read_header(path).size
        step = max(1, round((width * height / SAMPLE_PIXELS) ** 0.5))
        for top, values in read_value_bands(path, reading):
            part = values[-top % step :: step, ::step].reshape(-1, values.shape[2]).astype(np.float64)
            part[~np.isfinite(part)] = np.nan
            if reading.nodata is not None:
                part[part == reading.nodata] = np.nan
            parts.append(part)
    except UnreadablePicture:  # who cuts it will say so
        return np.zeros((0, count))
    return np.concatenate(parts)


def _percentiles(sample: np.ndarray, bands: int, percentiles: tuple[float, float]) -> _Ranges:
    ranges = []
    for band in range(bands):
        values = sample[:, band][np.isfinite(sample[:, band])]
        low, high = np.percentile(values, percentiles) if len(values) else (0.0, 1.0)
        low, high = float(f"{low:.6g}"), float(f"{high:.6g}")
        ranges.append((low, high) if high > low else (low, low + 1.0))
    return tuple(ranges)


# --------------------------------------------------------------------------------------------------------------------------- sizes

NONSENSE, PIXEL = "declared sizes that cannot be right", "declared sizes off by a pixel"
RESIZED, STRETCHED = "resized after labelling", "resized after labelling, not by one factor"
EXCHANGED, UNDECIDED, TURNED = "declared width and height exchanged", "width and height exchanged", "turned after labelling"
AS_OTHER = "declared size that of the picture before or after its EXIF turn"


def _verdict(scene: Scene, found: Found, reading: Reading) -> str:
    """What became of a picture whose labels declare another size than it has; "" where they do not."""
    (dw, dh), header = (scene.width, scene.height), found.header
    w, h = header.shown() if reading.orientation != 1 else header.size
    if (dw, dh) in ((0, 0), (w, h)):
        return ""
    if min(dw, dh) <= 0:
        return NONSENSE
    if abs(dw - w) <= 1 and abs(dh - h) <= 1:
        return PIXEL
    if header.orientation >= 5 and (dw, dh) in (header.size, header.shown()):
        return AS_OTHER
    if (dw, dh) == (h, w):
        return UNDECIDED
    if not _fit(scene, dw, dh):
        return NONSENSE
    low, high = max((w - 1) / dw, (h - 1) / dh), min((w + 1) / dw, (h + 1) / dh)
    return RESIZED if low <= high else STRETCHED


def _outside(scene: Scene, width: int, height: int) -> float:
    """The share of a scene's objects whose centre is not in a picture of a size."""
    boxes = np.array([i.hbb for i in scene.instances], np.float64).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return float(((centres < 0) | (centres > (width, height))).any(axis=1).mean()) if len(boxes) else 0.0


def _fit(scene: Scene, width: int, height: int) -> bool:
    return _outside(scene, width, height) <= OUTSIDE


def _tell_exchanged(scenes: Sequence[Scene], found: Sequence[Found], readings: Sequence[Reading], verdicts: list[str]) -> None:
    """Of pictures whose width and height are exchanged, the places of all their labels tell which of the two is right."""
    asked = [k for k, verdict in enumerate(verdicts) if verdict == UNDECIDED]
    declared = [_outside(scenes[k], scenes[k].width, scenes[k].height) for k in asked]
    real = [_outside(scenes[k], scenes[k].height, scenes[k].width) for k in asked]
    out_of_declared, out_of_real = sum(v > 0 for v in declared), sum(v > 0 for v in real)
    if out_of_declared > 10 * out_of_real:
        word = EXCHANGED
    elif out_of_real > 10 * out_of_declared:
        word = TURNED
    else:
        return
    for k in asked:
        verdicts[k] = word


def _scales(verdict: str, options: PixelOptions) -> bool:
    return (verdict == RESIZED and options.resized in (SCALE, STRETCH)) or (verdict == STRETCHED and options.resized == STRETCH)


def scaled(instance: Instance, fx: float, fy: float) -> Instance:
    """An object in the pixels of a picture that was resized by a factor on each axis: all its geometry."""

    def move(points: Sequence[float]) -> Any:
        return tuple(v * (fx, fy)[k % 2] for k, v in enumerate(points))

    return Instance(
        instance.category, move(instance.hbb), move(instance.corners), instance.oriented, instance.difficult,
        tuple(move(p) for p in instance.mask), instance.extra,
    )  # fmt: skip


_STOPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    RESIZED: (
        "another size than their labels declare, by one factor on both axes: they were resized after they were labelled",
        "--resized scale scales the boxes with them; --resized keep leaves the boxes, where only the declared size is wrong",
        (SCALE, STRETCH, KEEP),
    ),
    STRETCHED: (
        "another size than their labels declare, and not by one factor: they were stretched, cropped or given a border after they were "
        "labelled",
        "--resized stretch scales the boxes by a factor for each axis, where the pictures were stretched; --resized keep leaves the boxes, "
        "where only the declared size is wrong; pictures that were cropped or given a border must be labelled, or exported, again",
        (STRETCH, KEEP),
    ),
    UNDECIDED: (
        "width and height exchanged against what their labels declare, and the labels fit both ways: either the labels' width and height "
        "are exchanged, or the pictures were turned after they were labelled",
        "look at a sample with `ccdiff inspect`; --resized keep leaves the boxes, where only the declared sizes are exchanged",
        (KEEP,),
    ),
    TURNED: (
        "width and height exchanged against what their labels declare, and the labels fit the declared size alone: they were turned by 90 "
        "degrees after they were labelled",
        "turn the pictures back; --resized keep leaves the boxes as they are",
        (KEEP,),
    ),
}


def _judge(settled: Settled, options: PixelOptions, pictures: int, stop: bool) -> None:
    """Stop for what the user must decide, and count the rest."""
    for verdict, cases in sorted(settled.sizes.items()):
        told = [(name, f"declared {d[0]} x {d[1]}, found {r[0]} x {r[1]}") for name, d, r in cases]
        what, fix, asked = _STOPS.get(verdict, ("", "", ()))
        if verdict == AS_OTHER:
            what = "an EXIF orientation, and their labels declare the size that they have without the turn (or, with --exif keep, with it)"
            fix = "--exif keep if the stored pixels were labelled, --exif turn if the picture as it is shown"
            asked_for = options.exif is not None
            said = f"pictures read with --exif {options.exif or TURN} although their labels declare the other size"
        elif _scales(verdict, options):
            asked_for, said = True, f"pictures {verdict}: boxes scaled with them (--resized {options.resized})"
            settled.summary.setdefault("scaled", {})[verdict] = len(cases)
        elif what:
            asked_for, said = options.resized in asked, f"pictures {verdict}: boxes left as they are (--resized {options.resized})"
        else:
            asked_for, said = True, f"{verdict}, replaced by the pictures' own"
        if stop and not asked_for:
            raise CCDiffError(f"{len(cases)} of {pictures} pictures have {what}; the first: {told[0][1]}", where=told[0][0], fix=fix)
        settled.changes += [(said, name, detail) for name, detail in told]


# ----------------------------------------------------------------------------------------------------------------- place on the ground


def _placed(found: Found, reading: Reading, scene: Scene) -> dict[str, Any]:
    """The picture's coordinate reference, metres a pixel, date and clouds, as far as the file tells them and labels and user do not."""
    told: dict[str, Any] = {}
    if found.raster is not None and found.raster.told:
        known = quantities_of(scene)
        new = {k: v for k, v in found.raster.told.items() if ("year" if k == "date" else k) not in known}
        if new:
            told[METADATA] = {**fields_of(scene.provenance), **new}
    raster = found.raster if found.raster is not None and found.raster.crs else found.world
    if raster is None or not raster.crs:
        return told
    transform = raster.transform
    if reading.orientation != 1:
        c, a, b = (stored_point(reading.orientation, found.header.size, *p) for p in ((0, 0), (1, 0), (0, 1)))
        transform = composed(transform, (a[0] - c[0], b[0] - c[0], c[0], a[1] - c[1], b[1] - c[1], c[1]))
    told["georeference"] = {"crs": raster.crs, "transform": list(transform)}
    if raster.gsd is not None and "gsd" not in scene.provenance:
        told["gsd"] = float(f"{raster.gsd:.6g}")
    return told


def composed(outer: Sequence[float], inner: Sequence[float]) -> tuple[float, ...]:
    """The transform (a, b, c, d, e, f) that applies ``inner``, then ``outer``."""
    a, b, c, d, e, f = outer
    g, h, i, j, k, m = inner
    return (a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f)


def of_window(georeference: dict[str, Any], origin: Sequence[float], scale: float) -> dict[str, Any]:
    """The coordinate reference of a window's pixels: ``origin`` in the picture's pixels, ``scale`` its pixels per picture's pixel."""
    x, y = origin
    return {**georeference, "transform": list(composed(georeference["transform"], (1 / scale, 0, x, 0, 1 / scale, y)))}
