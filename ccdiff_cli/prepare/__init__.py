"""``prepare``: a raw data set becomes the set on disk that everything else works on.

Read the labels, check every picture's header, cut and resize, write captions, the reference bank and a manifest that counts all that was
left out and why.

* Every file is named by what it holds and written whole, so an interrupted run is completed by the same command, to the same bytes.
* Pictures are decoded, cut and encoded by several processes, one picture each; results are taken in order, so their number changes nothing.
* Large scenes are cut while they are decoded, see ``windows``.
* NOTE: the split is decided per source picture, before tiles are cut; all tiles of a picture share its split and ``source``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import shapely
from PIL import Image

from ..console import guard_streams
from ..dataset import IMAGES, MANIFEST, SPLITS, PictureSet, content_of, look_at_set, read_manifest, read_set, scene_record, write_set
from ..errors import CCDiffError, os_errors
from ..files import TEMPORARY_PREFIX, content_key, inside, read_json, sha256_file, write_bytes, write_json
from ..formats import read_raw
from ..formats.classes import read_class_file
from ..formats.raw import PLACES, Faults, RawSet, keep_place, read_split_lists, seeded_splits
from ..geometry import FITTED, TURNED, WHOLE, clip, clip_hbb, corners_inside, polygon, union
from ..locks import LOCK, locked
from ..pictures import AS_STORED, UnreadablePicture, is_flat, labels_of_stored_pixels, read_header
from ..references import REFERENCES, cut_reference, problems_of_bank, reference_window, write_bank
from ..scene import HBB, Instance, Scene
from ..startup import end_with_parent, fresh_processes
from .captions import STYLES, caption_of, read_sentences
from .leaks import DROP, LEAKS, MOVE, settle_leaks
from .masks import COCO, MASKS, NONE, SAM, MaskJob, mask_picture, masker_of, read_masks
from .metadata import add_metadata, located
from .pixels import KEEP, PixelOptions, look, of_window, pixel_options, settle
from .scenes import DEFAULT_PLACES, PLACES_FOUND, name_scenes, read_places
from .spectra import colour_counts, spectrum_of
from .tiling import cut_scene, pad_and_resize, tile_origins
from .windows import read_windows

COPIED = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""Files of these kinds go into a set of whole pictures as they are; others (GIF, PPM, MPO, JPEG 2000) become PNG, which everybody reads."""
PLAN = "prepare.json"
"""Stands in the folder of an unfinished set: what it is being made from."""
Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


@locked("prepare")
def prepare_dataset(
    source: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    tile: int | None = None,
    overlap: int = 0,
    size: int | None = None,
    splits: str | Path | None = None,
    classes: str | Path | None = None,
    seed: int = 0,
    keep_share: float = 0.7,
    difficult_share: float = 0.2,
    keep_empty: bool = False,
    keep_partial: bool = True,
    caption_style: str = "plain",
    sentences: str | Path | None = None,
    scene_clip: str | Path | None = None,
    places: str | Path | None = None,
    masks: str = COCO,
    exif: str | None = None,
    bands: str | None = None,
    stretch: str = "set",
    resized: str = "stop",
    metadata: str | Path | None = None,
    leaks: str | None = None,
    source_pattern: str | None = None,
    strict: bool = False,
    voc_origin: int | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> PictureSet:
    """Prepare a raw data set into the folder ``out``.

    Args:
        source: the raw set as it lies on disk.
        format: a key of ``formats.READERS``; recognised from the folder when None.
        tile: side of the square tiles, source pixels; None for whole pictures.
        overlap: pixels that neighbouring tiles share.
        size: side of the square output pictures, pixels; None for no resizing. Whole pictures that are not square are padded first,
            so that angles stay true.
        splits: folder with train.txt, val.txt, test.txt; else the source's own lists; else drawn by ``seed``, 70 : 10 : 20.
        classes: class file (see ``formats.classes.read_class_file``).
        keep_share, difficult_share: shares of an object's visible area inside a tile, see ``tiling``.
        keep_empty: keep pictures and tiles without objects.
        keep_partial: keep tiles in which every object is cut (all difficult).
        caption_style: one of ``captions.STYLES``.
        sentences: file of scene sentences (see ``captions.read_sentences``): they open the captions of their pictures and tiles.
        scene_clip: folder or hub name of a CLIP that finds the place each other prepared picture shows (see ``scenes``).
        places: file of places it chooses from; our own list when None.
        masks: where the masks of reference crops come from, see ``masks``.
        exif, bands, stretch, resized: which way up, which bands, which values and in which size pictures are read, see
            ``pixels.pixel_options``.
        metadata: file of what is known of each picture (gsd, sensor, date, ...), see ``metadata.read_metadata_file``.
        leaks: what becomes of the same picture in several splits, one of ``leaks.LEAKS``; it is kept, and said, when None, while pieces
            of one scene in several splits are refused.
        source_pattern: regular expression whose first group names the scene that a picture is a piece of.
        strict: stop at the first broken label, missing picture or picture that does not decode, rather than leave it out and say so.
        voc_origin: of VOC whose files do not say it: 1 where boxes count pixels from 1, as the devkit's; edges from 0 unless given.
        processes: how many work at a time; 1 works in this one. Each holds a scene of up to 32 million pixels whole (4 bytes a pixel), of
            a larger PNG or TIFF about a row of tiles (see ``windows``), and a larger JPEG or BMP whole, which a stage of its own says.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The set. Made before from the same inputs, it is read and nothing is written (stage "already prepared").

    Raises:
        CCDiffError: bad labels or options, a missing picture, an empty set, a folder that holds something else, a full disk.
    """
    source, out = Path(source), Path(out)
    report = progress or (lambda stage, done, total: None)
    _check_options(tile, overlap, size, keep_share, difficult_share, caption_style)
    if processes < 1:
        raise CCDiffError(f"{processes} processes", fix="at least 1")
    if places is not None and scene_clip is None:
        raise CCDiffError("places without a CLIP to choose among them", where="--places", fix="give --scene-clip too")
    place_names = read_places(Path(places)) if places is not None else DEFAULT_PLACES
    if leaks not in (None, *LEAKS):
        raise CCDiffError(f"unknown way with leaks {leaks!r}", where="--leaks", fix=f"known: {', '.join(LEAKS)}")
    pixels = pixel_options(exif, bands, stretch, resized)
    masker = masker_of(masks)[1] if masks not in (COCO, NONE) else None
    clip = None
    if scene_clip is not None:
        from ..pretrained import Clip  # slow to import, and few need it

        clip = Clip(scene_clip, where="--scene-clip")
    report("reading labels", 0, 1)
    names = read_class_file(classes) if classes is not None else None
    with labels_of_stored_pixels(exif == KEEP):
        raw = read_raw(source, format, names, strict=strict, voc_origin=voc_origin, source_pattern=source_pattern)
    report("reading labels", 1, 1)
    ledger = _Ledger(raw, strict=strict)
    if metadata is not None:
        raw.scenes = add_metadata(raw.scenes, Path(metadata), ledger.notes)
    drawn = _apply_splits(ledger, Path(splits) if splits is not None else None, seed, leaks)
    said = _said(ledger, Path(sentences)) if sentences is not None else {}
    with _Workers(processes, report) as workers:
        scenes, settled = _checked_sizes(ledger, workers, pixels)
        if not scenes:
            raise CCDiffError("no picture of the set decodes", where=source, fix="check the picture files")
        hashes = dict(
            zip(
                (s.file_name for s in scenes),
                workers.map(sha256_file, [str(s.path) for s in scenes], "hashing pictures"),
                strict=True,
            )
        )
        scenes = settle_leaks(scenes, hashes, leaks, ledger, workers.map, drawn=drawn)
        hashes = {s.file_name: hashes[s.file_name] for s in scenes}
        options: dict[str, Any] = {
            "format": raw.format,
            "tile": tile,
            "overlap": overlap,
            "size": size,
            "keep_share": keep_share,
            "difficult_share": difficult_share,
            "keep_empty": keep_empty,
            "keep_partial": keep_partial,
            "caption_style": caption_style,
            "seed": seed,
        }
        if sentences is not None:
            options["sentences"] = content_key(said)
        if clip is not None:
            options["scene_clip"], options["places"] = clip.key, content_key(place_names)
        if masks != COCO:
            options["masks"] = masker or NONE
        if settled:
            options["pixels"] = settled
        labels = content_key([list(raw.classes), [scene_record(s) for s in scenes], hashes])
        plan = {"options": options, "inputs": labels}
        if (done := _finished(out, plan, report)) is not None:
            report("already prepared", len(done.scenes), len(done.scenes))
            return done
        _begin(out, plan)

        if (say := getattr(progress, "say", None)) is not None:
            say({"changes": ledger.changes, "skipped": ledger.skipped, "places": ledger.places})
        jobs = _named_jobs(scenes, out, said, tile=tile, overlap=overlap, size=size, keep_share=keep_share, difficult_share=difficult_share,
                           keep_empty=keep_empty, keep_partial=keep_partial, caption_style=caption_style, masks=masks)  # fmt: skip
        if masker is not None:
            _mask_objects(jobs, masker["source"], workers)
        tiles: list[Scene] = []
        picture_hashes: dict[str, str] = {}
        references: list[dict[str, Any]] = []
        try:
            with _crops_told(jobs, workers), contextlib.closing(workers.map(_prepare_picture, jobs, "preparing pictures")) as results:
                for job, result in zip(jobs, results, strict=True):
                    if result.failure:
                        ledger.quarantine(job.scene, result.failure)
                        continue
                    tiles.extend(result.scenes)
                    picture_hashes.update(result.hashes)
                    references.extend(result.references)
                    ledger.counts.update(result.counts)
                    for how in (FITTED, TURNED) if tile is None else ():  # no tile's border but the picture's: the annotator's own box
                        if count := result.notes.pop(how, 0):
                            ledger.change(how, str(job.scene.path), count=count)
                    ledger.notes.update(result.notes)
            if not tiles:
                raise _Fruitless(
                    "no picture with objects is left", where=source, fix="keep pictures without objects, or check the picture files"
                )
        except (UnreadablePicture, _Fruitless):
            workers.close()
            if not (out / MANIFEST).is_file():  # else it is a finished set that lost files
                _withdraw(out)  # the cure changes the inputs, so what is written would be of no use
            raise
    if clip is not None:
        known = {s.file_name for s in scenes if s.caption or s.file_name in said}
        tiles = name_scenes(tiles, out, clip, place_names, style=caption_style, leave=known, report=report)
    write_bank(out, references, tiles)
    details = {
        "source": {
            "format": raw.format,
            "folder": source.resolve().name,
            "pictures": len(scenes),
            "objects": sum(len(s.instances) for s in scenes),
        },
        "prepare": plan,
        "seed": seed,
        "changes": dict(sorted(ledger.changes.items())),
        "skipped": dict(sorted(ledger.skipped.items())),
        "places": dict(sorted(ledger.places.items())),
        "quarantined": ledger.quarantined,
        "notes": dict(sorted(ledger.notes.items())),
        "cutting": dict(sorted(ledger.counts.items())),
        **({"pixels": settled} if settled else {}),
        "references": {"instances": len(references), "masks": dict(sorted(Counter(r["mask"] for r in references).items()))},
        "sources": hashes,
    }
    if hasattr(os, "sync"):
        os.sync()  # the manifest, which says that all is there, must not reach the disk before the pictures
    done = write_set(out, tiles, raw.classes, kind="prepared", details=details, picture_hashes=picture_hashes)
    with os_errors(out, "finish the set"):
        for name in (MASKS, PLACES_FOUND):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / PLAN).unlink(missing_ok=True)
    return done


# ---------------------------------------------------------------------------------------------------------------- before any pixel


class _Ledger:
    """What is left out, altered and counted on the way: the three ranks of :class:`RawSet`, carried on."""

    def __init__(self, raw: RawSet, *, strict: bool) -> None:
        self.raw, self.strict = raw, strict
        self.changes, self.skipped, self.notes = Counter(raw.changes), Counter(raw.skipped), Counter(raw.notes)
        self.places = raw.places
        self.counts: Counter[str] = Counter()
        self.quarantined: list[dict[str, str]] = []

    def change(self, what: str, where: str, detail: str = "", count: int = 1) -> None:
        """Count an altered label or picture, and keep where the first were found."""
        self.changes[what] += count
        keep_place(self.places, what, where, detail)

    def quarantine(self, scene: Scene, reason: str) -> None:
        if self.strict:
            raise UnreadablePicture(reason, where=scene.path, fix="replace the file, or run without --strict to leave it out")
        self.quarantined.append({"file": scene.file_name, "reason": reason})
        self.skipped["pictures that do not decode"] += 1
        self.skipped["objects of pictures that do not decode"] += len(scene.instances)


def _check_options(tile: int | None, overlap: int, size: int | None, keep: float, difficult: float, style: str) -> None:
    if tile is not None and tile < 8:
        raise CCDiffError(f"tile {tile}", fix="tiles have at least 8 pixels")
    if overlap and tile is None:
        raise CCDiffError(f"overlap {overlap} without tiles", fix="give a tile size too")
    if tile is not None and not 0 <= overlap < tile:
        raise CCDiffError(f"overlap {overlap} with tile {tile}", fix="the overlap must be at least 0 and smaller than the tile")
    if size is not None and size < 8:
        raise CCDiffError(f"size {size}", fix="output pictures have at least 8 pixels")
    if not 0 < difficult <= keep <= 1:
        raise CCDiffError(f"keep share {keep}, difficult share {difficult}", fix="0 < difficult share <= keep share <= 1")
    if style not in STYLES:
        raise CCDiffError(f"unknown caption style {style!r}", fix=f"known styles: {', '.join(STYLES)}")


def _apply_splits(ledger: _Ledger, lists: Path | None, seed: int, leaks: str | None) -> set[str]:
    """Give every picture its split; the sources whose split was drawn by the seed."""
    raw, drawn = ledger.raw, dict[str, str]()
    if lists is not None:
        stems = {_stem(s): s for s in raw.scenes}
        faults = Faults(strict=ledger.strict)
        split_of = read_split_lists(lists, stems, faults)
        ledger.skipped += faults.counts
        for reason, places in faults.places.items():
            ledger.places[reason] = [*ledger.places.get(reason, []), *places][:PLACES]
        if not split_of:
            raise CCDiffError("no train.txt, val.txt or test.txt with picture names", where=lists)
        ledger.skipped["pictures in no split list"] += sum(_stem(s) not in split_of for s in raw.scenes)
        ledger.skipped = +ledger.skipped
        raw.scenes = [s.replace(split=split_of[_stem(s)]) for s in raw.scenes if _stem(s) in split_of]
    else:
        given = {s.source: s.split for s in raw.scenes if s.split}
        drawn = seeded_splits([s.source for s in raw.scenes if s.source not in given], seed)
        if drawn:
            ledger.notes["pictures whose split was drawn by the seed"] += sum(s.source in drawn for s in raw.scenes)
        raw.scenes = [s if s.split else s.replace(split=given.get(s.source) or drawn[s.source]) for s in raw.scenes]
    split_by_source: dict[str, str] = {}
    for scene in raw.scenes:
        if scene.split not in SPLITS:
            raise CCDiffError(f"unknown split {scene.split!r}", where=scene.file_name, fix=f"known splits: {', '.join(SPLITS)}")
        if split_by_source.setdefault(scene.source, scene.split) != scene.split and leaks not in (DROP, MOVE):
            raise CCDiffError(
                f"pictures of the source {scene.source!r} stand in two splits",
                where=scene.file_name,
                fix="correct the split lists, let --leaks move or drop them, or say by --source-pattern which pictures are of one scene",
            )
    if not raw.scenes:
        raise CCDiffError("the split lists name no picture of the set", where=lists)
    return set(drawn)


def _stem(scene: Scene) -> str:
    return scene.file_name.rpartition(".")[0] or scene.file_name


def _said(ledger: _Ledger, path: Path) -> dict[str, str]:
    """File name -> the user's scene sentence, for the pictures that have one."""
    given = read_sentences(path)
    said = {s.file_name: given.get(s.file_name) or given.get(_stem(s), "") for s in ledger.raw.scenes}
    known = {name for s in ledger.raw.scenes for name in (s.file_name, _stem(s))}
    if not any(said.values()):
        raise CCDiffError(
            f"none of its {len(given)} file names is a picture of the set",
            where=path,
            fix=f"name pictures as the set does, for example {ledger.raw.scenes[0].file_name}",
        )
    ledger.notes["pictures without a scene sentence"] += sum(not text for text in said.values())
    ledger.notes["scene sentences for pictures that the set has not"] += sum(name not in known for name in given)
    ledger.notes = +ledger.notes
    return {name: text for name, text in said.items() if text}


def _checked_sizes(ledger: _Ledger, workers: _Workers, pixels: PixelOptions) -> tuple[list[Scene], dict[str, Any]]:
    """Scenes with their pixels settled (see ``pixels``) and objects that have an area inside; what was settled, for the manifest."""
    raw = ledger.raw
    good: list[Scene] = []
    facts = []
    for scene, found in zip(raw.scenes, workers.map(look, [str(s.path) for s in raw.scenes], "checking pictures"), strict=True):
        if isinstance(found, str):
            ledger.quarantine(scene, found)
        else:
            good.append(scene)
            facts.append(found)
    settled = settle(good, facts, pixels, workers.map)
    for what, where, detail in settled.changes:
        ledger.change(what, where, detail)
    ledger.notes.update(settled.notes)
    whole = [f.header.size for f, s in zip(facts, settled.scenes, strict=True) if f.whole and not (s.reading and s.reading.raster)]
    if whole:
        ledger.notes["large pictures decoded whole, since their files have no bands"] += len(whole)
        advice = "store large scenes as PNG or as TIFF in strips or tiles, to cut them band by band"
        workers.report(f"decoding pictures whole: up to {max(w * h for w, h in whole) * 4 / 1e9:.1f} GB a process ({advice})", 1, 1)
    return [s.replace(instances=tuple(_checked_instances(s, ledger))) for s in settled.scenes], settled.summary


def _checked_instances(scene: Scene, ledger: _Ledger) -> Iterator[Instance]:
    picture = (0.0, 0.0, float(scene.width), float(scene.height))
    for instance in scene.instances:
        x1, y1, x2, y2 = instance.hbb
        if not (x2 > x1 and y2 > y1):
            ledger.skipped["objects whose box has no area"] += 1
            continue
        hbb = _visible_hbb(instance, picture)
        if hbb is None:
            ledger.skipped["objects outside the picture"] += 1
            continue
        if hbb != instance.hbb:
            ledger.change("boxes clipped to the picture", str(scene.path), "")
        if instance.oriented:  # the border's part in the oriented box is decided where tiles are cut, see ``geometry.cut_box``
            yield Instance.from_corners(
                instance.category, instance.corners, hbb, difficult=instance.difficult, mask=instance.mask, extra=instance.extra
            )
        else:
            yield Instance.from_hbb(instance.category, hbb, difficult=instance.difficult, mask=instance.mask, extra=instance.extra)


def _visible_hbb(instance: Instance, picture: tuple[float, float, float, float]) -> HBB | None:
    """The horizontal box around what is in the picture of an object; None where that is nothing."""
    hbb = clip_hbb(instance.hbb, picture)
    if hbb is None or not instance.oriented or corners_inside(instance.corners, picture):
        return hbb
    whole = union(instance.mask) if instance.mask else polygon(instance.corners)
    visible = clip(whole, picture)
    if visible.area > 0:
        return clip_hbb(hbb, shapely.bounds(visible)) or hbb  # of an object that slants through the border less than the HBB's part
    return None if whole.area > 0 else hbb


def _finished(out: Path, plan: dict[str, Any], report: Progress) -> PictureSet | None:
    """The set when it is finished, whole and made from the same inputs; None where it is to be made, or what it lost to be made again.

    Raises:
        CCDiffError: it was made from other inputs; it was edited by hand and lost pictures; files that are not its own lie in it.
    """
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
    if not isinstance(manifest.get("prepare"), dict):
        raise CCDiffError("the folder holds a set that `prepare` did not make", where=out, fix="choose another output folder")
    _same_plan(manifest["prepare"], plan, out)
    wrong, edited = [], bool(manifest.get("edits"))
    try:
        look = look_at_set(out)
        if look.surplus:
            raise _Foreign(f"{IMAGES}/{look.surplus[0]} does not belong to the set", where=out, fix="take the file out of the folder")
        wrong = [f"{IMAGES}/{name}" for name in (*look.missing, *look.changed)]
        edited = edited or content_of(look.coco, manifest["pictures"], where=out) != manifest["content"]
        wrong += problems_of_bank(out)
    except _Foreign:
        raise
    except CCDiffError as error:
        wrong.append(str(error).partition("\n")[0])
    if not wrong:
        return read_set(out)
    if edited:
        raise CCDiffError(
            f"the set was edited by hand, and it is not whole: {wrong[0]}; making it again would undo the edit",
            where=out,
            fix=f"restore the file, or take the set as it is: ccdiff verify --accept {out}",
        )
    report("making again what the set lost", 0, len(wrong))
    return None


class _Foreign(CCDiffError):
    """A file that is not ours."""


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Claim an empty folder, or take an unfinished set, or a finished one that lost files, of the same plan up again."""
    with os_errors(out, "make the output folder"):
        if out.exists() and not out.is_dir():
            raise CCDiffError("the output is a file, not a folder", where=out, fix="choose another output folder")
        out.mkdir(parents=True, exist_ok=True)
        for partial in sorted(out.rglob(f"{TEMPORARY_PREFIX}*")):
            partial.unlink()
        if (out / PLAN).is_file():
            before = read_json(out / PLAN)
            if not isinstance(before, dict) or not isinstance(before.get("options"), dict):
                raise CCDiffError("not the plan of a set", where=out / PLAN, fix="choose another output folder, or empty this one")
            _same_plan(before, plan, out)
        elif not (out / MANIFEST).is_file() and any(p.name != LOCK for p in out.iterdir()):
            raise CCDiffError("the output folder is not empty", where=out, fix="choose another folder, or empty this one")
    write_json(out / PLAN, plan)


class _Fruitless(CCDiffError):
    """Nothing is left to make a set of."""


def _withdraw(out: Path) -> None:
    """Leave the folder as empty as it was found."""
    with os_errors(out, "clean the output folder"):
        for name in (IMAGES, REFERENCES, MASKS, PLACES_FOUND):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / PLAN).unlink(missing_ok=True)


def _same_plan(before: Any, plan: dict[str, Any], out: Path) -> None:
    if before == plan:
        return
    old = before.get("options") if isinstance(before, dict) else None
    old = old if isinstance(old, dict) else {}
    changed = [f"{k}: {old.get(k)!r} before, {v!r} now" for k, v in {**dict.fromkeys(old), **plan["options"]}.items() if old.get(k) != v]
    what = "; ".join(changed) or "the source's pictures, labels or splits changed"
    raise CCDiffError(f"the folder holds a set made differently ({what})", where=out, fix="choose another output folder, or empty this one")


# ---------------------------------------------------------------------------------------------------------------- one picture


@dataclass(frozen=True)
class _Job:
    scene: Scene
    stem: str
    sentence: str
    out: Path
    tile: int | None
    overlap: int
    size: int | None
    keep_share: float
    difficult_share: float
    keep_empty: bool
    keep_partial: bool
    caption_style: str
    masks: str

    @property
    def mask_file(self) -> Path:
        """Where a model's masks of the picture's objects are kept until the set is finished."""
        return self.out / MASKS / f"{self.stem}.npz"


@dataclass
class _Result:
    scenes: list[Scene] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    references: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    failure: str = ""


def _named_jobs(scenes: list[Scene], out: Path, said: dict[str, str], **options: Any) -> list[_Job]:
    """One job a picture, with a stem for its outputs that no other picture has."""
    stems = [_safe(_stem(s)) for s in scenes]
    repeated = {stem for stem, count in Counter(s.lower() for s in stems).items() if count > 1}
    named = [_safe(s.file_name) if stem.lower() in repeated else stem for s, stem in zip(scenes, stems, strict=True)]
    for name, count in Counter(named).items():
        if count > 1:
            raise CCDiffError(f"{count} pictures would be written as {name!r}", fix="rename the picture files")
    for scene in scenes:
        inside(out, scene.file_name, where=str(scene.path))
    return [_Job(scene, stem, said.get(scene.file_name, ""), out, **options) for scene, stem in zip(scenes, named, strict=True)]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name.replace("/", "__"))


def _mask_objects(jobs: Sequence[_Job], model: str, workers: _Workers) -> None:
    """Let a model cut the objects of the train split out, one file a picture; what was done before is not done again."""
    todo = [MaskJob(job.scene, job.masks, job.mask_file) for job in jobs if job.scene.split == "train" and job.scene.instances]
    if model == SAM:  # one process: it is large, and batches the boxes of a picture itself
        workers = _Workers(1, workers.report)
    for _ in workers.map(mask_picture, todo, "masking objects"):
        pass


def _prepare_picture(job: _Job) -> _Result:
    """Cut, resize and write one source picture; nothing that is already written is written again, and nothing stays of one that fails."""
    result = _Result()
    written: list[Path] = []
    try:
        _cut_and_write(job, result, written)
    except UnreadablePicture as error:  # a large scene may fail after some of its tiles
        for path in written:
            path.unlink(missing_ok=True)
        return _Result(failure=error.what)
    return result


def _cut_and_write(job: _Job, result: _Result, written: list[Path]) -> None:
    scene = job.scene
    side = job.tile or max(scene.width, scene.height)
    size = job.size or side
    copied = job.tile is None and job.size is None
    scale = 1.0 if copied else size / side
    header = read_header(str(scene.path))
    # a file goes on as it is only where its pixels are what is meant, whoever reads it
    stored_rgb = copied and header.plain and header.mode == "RGB" and not header.tagged and scene.reading in (None, AS_STORED)
    stored_rgb = stored_rgb and header.format in COPIED
    tiles = _tiles_of(job, side, scale, result)
    objects = scene.instances if scene.split == "train" else ()
    windows = [(x, y, min(x + side, scene.width), min(y + side, scene.height)) for (x, y), _ in tiles]
    windows += [reference_window(i, scene.width, scene.height) for i in objects]
    made: dict[int, tuple[Scene, str]] = {}
    crops: dict[int, dict[str, Any]] = {}
    masks = read_masks(job.mask_file) if job.masks not in (COCO, NONE) else None
    flat, colours = bool(windows), np.zeros(5, np.int64)
    for k, cut in read_windows(str(scene.path), windows, scene.reading):
        flat = flat and is_flat(cut)
        if k >= len(tiles):
            index = k - len(tiles)
            mask = masks[index] if masks is not None else None
            data, record = cut_reference(cut, windows[k][:2], objects[index], scale, masks=job.masks.partition(":")[0], mask=mask)
            name = f"{_safe(objects[index].category)}/{job.stem}_{index:04d}.png"
            written.append(job.out / REFERENCES / name)
            digest = _write_once(written[-1], data)
            _count_crop()
            crops[index] = {"file": name, **record, "source": scene.source, "picture": scene.file_name, "instance": index, "sha256": digest}
            continue
        (x, y), instances = tiles[k]
        colours += colour_counts(cut)
        provenance = _carried(scene.provenance, (x, y), scale) | {
            "picture": scene.file_name,
            "offset": [x, y],
            "side": side,
            "scale": scale,
        }
        if copied:
            data = Path(str(scene.path)).read_bytes() if stored_rgb else _png(cut)
        else:
            cut, padding = pad_and_resize(cut, (x, y), side, size, scene.instances)
            if padding:
                padded = [max(0, x + side - scene.width), max(0, y + side - scene.height)]
                provenance["padded"] = {"right": padded[0], "below": padded[1], "how": padding}
                result.counts[f"pictures padded ({padding})"] += 1
            data = _png(cut)
        suffix = Path(scene.file_name).suffix.lower() if stored_rgb else ".png"
        name = f"{job.stem}{suffix}" if job.tile is None else f"{job.stem}__x{x:05d}_y{y:05d}.png"
        written.append(job.out / IMAGES / name)
        if job.sentence:
            provenance["sentence"] = job.sentence
        width, height = (scene.width, scene.height) if copied else (size, size)
        provenance = located(provenance, (width, height))
        prepared = Scene(name, width, height, tuple(instances), split=scene.split, source=scene.source, provenance=provenance)
        made[k] = prepared, _write_once(written[-1], data)
    if flat:
        result.notes["pictures without contrast (as good as one grey level)"] += 1
    spectrum = str(scene.provenance.get("spectrum", "")) or ("" if flat else spectrum_of(colours))
    if spectrum and made:
        result.notes[f"pictures that are {spectrum}"] += 1
    for k in sorted(made):
        prepared, digest = made[k]
        if spectrum:
            prepared = prepared.replace(provenance={**prepared.provenance, "spectrum": spectrum})
        if job.sentence or not scene.caption:
            caption = caption_of(prepared, job.caption_style, sentence=job.sentence)
        else:
            caption = scene.caption
        prepared = prepared.replace(caption=caption)
        result.scenes.append(prepared)
        result.hashes[prepared.file_name] = digest
    result.references += [crops[index] for index in sorted(crops)]


def _carried(provenance: Mapping[str, Any], origin: tuple[int, int], scale: float) -> dict[str, Any]:
    """What the source said of a picture; its ``gsd`` (metres a pixel) and ``georeference`` being those of the output's pixels."""
    carried = dict(provenance)
    if scale != 1.0 and type(carried.get("gsd")) in (int, float):
        carried["gsd"] = carried["gsd"] / scale
    if "georeference" in carried:
        carried["georeference"] = of_window(carried["georeference"], origin, scale)
    return carried


def _tiles_of(job: _Job, side: int, scale: float, result: _Result) -> list[tuple[tuple[int, int], list[Instance]]]:
    """The tiles of a picture that are kept: their origins, row by row, and their objects."""
    scene, tiles, counts = job.scene, [], result.counts
    boxes = np.array([i.hbb for i in scene.instances]).reshape(-1, 4)
    for x, y in [(0, 0)] if job.tile is None else tile_origins(scene.width, scene.height, side, job.overlap):
        near = (boxes[:, :2] < (x + side, y + side)).all(1) & (boxes[:, 2:] > (x, y)).all(1)
        instances, found = cut_scene(
            scene, (x, y), side, scale, keep=job.keep_share, difficult=job.difficult_share, among=np.flatnonzero(near).tolist()
        )
        reaching = {how: found.pop(how) for how in (WHOLE, FITTED, TURNED)}
        counts.update({f"objects {k}": v for k, v in found.items()})
        if not instances and not job.keep_empty:
            counts["pictures or tiles without objects left out"] += 1
        elif instances and not found["kept"] and not job.keep_partial:
            counts["tiles with only parts of objects left out"] += 1
        else:
            tiles.append(((x, y), instances))
            result.notes.update({how: count for how, count in reaching.items() if count})
    return tiles


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=3)  # higher levels take three times as long for 1 % less
    return stream.getvalue()


def _write_once(path: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    if not (path.is_file() and path.read_bytes() == data):
        write_bytes(path, data, durable=False)
    return digest


class _Workers:
    """``map`` over several processes: results in order, a bounded number under way, progress reported.

    One process is this one.  Others are started afresh (not forked: this one may have threads), and end when this one does, however.
    """

    def __init__(self, processes: int, report: Progress) -> None:
        self.processes, self.report = processes, report
        self.crops: Any = fresh_processes().Value("Q", 0)
        self._pool: ProcessPoolExecutor | None = None
        _count_into(self.crops)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is under way and end the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, work: Callable[[_T], _R], items: Sequence[_T], stage: str) -> Generator[_R, None, None]:
        """``work`` (a function of a module) of every item.

        Raises:
            CCDiffError: a process was killed.
        """
        self.report(stage, 0, len(items))
        for done, result in enumerate(self._results(work, items), start=1):
            self.report(stage, done, len(items))
            yield result

    def _results(self, work: Callable[[_T], _R], items: Sequence[_T]) -> Generator[_R, None, None]:
        if min(self.processes, len(items)) < 2:
            yield from map(work, items)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes, fresh_processes(), _start_worker, (self.crops,))
        pool, waiting = self._pool, iter(items)
        queue = [pool.submit(work, item) for item in islice(waiting, 2 * self.processes)]
        try:
            while queue:
                result = queue.pop(0).result()
                queue += [pool.submit(work, item) for item in islice(waiting, 1)]
                yield result
        except BrokenProcessPool as error:
            raise CCDiffError(
                "a worker process was killed, perhaps for lack of memory",
                fix="run the same command again with fewer --processes: it resumes",
            ) from error
        finally:
            for future in queue:
                future.cancel()


CROWDED, TELL_EVERY = 2_000, 2.0
"""Objects of a picture that take long enough for progress to be told while it is worked on; how often, in seconds."""
_counters: list[Any] = []
"""Of this process: the number of crops that all processes have cut so far."""


def _count_into(counter: Any) -> None:
    _counters[:] = [counter]


def _count_crop() -> None:
    for counter in _counters:
        with counter.get_lock():
            counter.value += 1


@contextlib.contextmanager
def _crops_told(jobs: Sequence[_Job], workers: _Workers) -> Iterator[None]:
    """Where a picture is crowded, tell every few seconds how many crops are cut, for the pictures alone may be counted once in minutes."""
    objects = [len(job.scene.instances) for job in jobs if job.scene.split == "train"]
    if max(objects, default=0) < CROWDED:
        yield
        return
    done = threading.Event()

    def tell() -> None:
        while not done.wait(TELL_EVERY):
            workers.report("cutting reference crops", workers.crops.value, sum(objects))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _start_worker(counter: Any) -> None:
    _count_into(counter)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    guard_streams()
    end_with_parent()


__all__ = ["caption_of", "prepare_dataset"]
