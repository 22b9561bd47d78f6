"""``prepare`` from the raw set to the finished one: what is read first, what is made of each picture, what is written last."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dataset import MANIFEST, PictureSet, scene_record, write_set
from ..errors import CCDiffError, os_errors
from ..files import content_key, sha256_file
from ..formats import read_raw
from ..formats.classes import read_class_file
from ..formats.raw import RawSet
from ..geometry import FITTED, TURNED
from ..locks import locked
from ..pictures import UnreadablePicture, labels_of_stored_pixels
from ..references import write_bank
from ..scene import Scene
from .folder import PLAN, begin, finished, withdraw
from .labels import Ledger, apply_splits, checked_sizes, sentences_of
from .leaks import settle_leaks
from .masks import COCO, MASKS, NONE, SAM, MaskJob, mask_picture, masker_of
from .metadata import add_metadata
from .options import PrepareOptions
from .picture import Job, named_jobs, prepare_picture
from .pixels import KEEP, PixelOptions, pixel_options
from .scenes import DEFAULT_PLACES, PLACES_FOUND, name_scenes, read_places
from .workers import Progress, Workers, crops_told

if TYPE_CHECKING:
    from ..pretrained import Clip


@locked("prepare")
def prepare_dataset(
    source: str | Path,
    out: str | Path,
    options: PrepareOptions = PrepareOptions(),
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> PictureSet:
    """Prepare a raw data set into the folder ``out``.

    Args:
        source: the raw set as it lies on disk.
        options: whole pictures that are not square are padded before they are resized, so that angles stay true; splits are those of
            ``splits``, else the source's own, else drawn by ``seed``; sentences open the captions of their pictures and tiles.
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
    if processes < 1:
        raise CCDiffError(f"{processes} processes", fix="at least 1")
    tools = _tools_of(options)
    raw = _read_labels(source, options, report)
    ledger = Ledger(raw, strict=options.strict)
    if options.metadata is not None:
        raw.scenes = add_metadata(raw.scenes, options.metadata, ledger.notes)
    drawn = apply_splits(ledger, options.splits, options.seed, options.leaks)
    said = sentences_of(ledger, options.sentences) if options.sentences is not None else {}
    with Workers(processes, report) as workers:
        scenes, settled = checked_sizes(ledger, workers, tools.pixels)
        if not scenes:
            first = "".join(f"; {told['file']}: {told['reason']}" for told in ledger.quarantined[:1])
            raise CCDiffError(f"no picture of the set decodes{first}", where=source, fix="check the picture files")
        inputs = _inputs_of(scenes, settled, ledger, workers, options.leaks, drawn)
        plan = _plan_of(inputs, raw, options, tools, said)
        if (done := finished(out, plan, report)) is not None:
            report("already prepared", len(done.scenes), len(done.scenes))
            return done
        begin(out, plan)
        if (say := getattr(progress, "say", None)) is not None:
            say({"changes": ledger.changes, "skipped": ledger.skipped, "places": ledger.places})
        jobs = named_jobs(inputs.scenes, out, said, options)
        if tools.masker is not None:
            _mask_objects(jobs, tools.masker["source"], workers)
        try:
            made = _prepare_pictures(jobs, workers, ledger)
            if not made.tiles:
                lost = "".join(f"; {what}: {count:,}" for what, count in (ledger.skipped + ledger.counts).most_common(3))
                raise _Fruitless(
                    f"no picture with objects is left{lost}",
                    where=source,
                    fix="keep pictures without objects (--keep-empty), or check labels and pictures",
                )
        except (UnreadablePicture, _Fruitless):
            workers.close()
            if not (out / MANIFEST).is_file():  # else it is a finished set that lost files
                withdraw(out)  # the cure changes the inputs, so what is written would be of no use
            raise
    if tools.clip is not None:
        known = {s.file_name for s in inputs.scenes if s.caption or s.file_name in said}
        made.tiles = name_scenes(made.tiles, out, tools.clip, tools.places, style=options.caption_style, leave=known, report=report)
    write_bank(out, made.references, made.tiles)
    facts = {
        "source": {
            "format": raw.format,
            "folder": source.resolve().name,
            "pictures": len(inputs.scenes),
            "objects": sum(len(s.instances) for s in inputs.scenes),
        },
        "prepare": plan,
        "seed": options.seed,
    }
    return _finish(out, raw, made, {**facts, **_counted(ledger, inputs, made)})


# ------------------------------------------------------------------------------------------------------------- before any picture is cut


@dataclass(frozen=True)
class _Tools:
    """What the options name, found and checked: how pixels are read, who masks objects (None: nobody), who finds places (None: nobody)."""

    pixels: PixelOptions
    masker: dict[str, Any] | None
    clip: Clip | None
    places: Sequence[str]


@dataclass(frozen=True)
class _Inputs:
    """The pictures that are prepared, the SHA-256 of their files by name, and what was settled about their pixels, for the manifest."""

    scenes: list[Scene]
    hashes: dict[str, str]
    pixels: dict[str, Any]


def _tools_of(options: PrepareOptions) -> _Tools:
    places = read_places(options.places) if options.places is not None else DEFAULT_PLACES
    pixels = pixel_options(options.exif, options.bands, options.stretch, options.resized)
    masker = masker_of(options.masks)[1] if options.masks not in (COCO, NONE) else None
    clip = None
    if options.scene_clip is not None:
        from ..pretrained import Clip  # slow to import, and few need it

        clip = Clip(options.scene_clip, where="--scene-clip")
    return _Tools(pixels, masker, clip, places)


def _read_labels(source: Path, options: PrepareOptions, report: Progress) -> RawSet:
    names = read_class_file(options.classes) if options.classes is not None else None
    with labels_of_stored_pixels(options.exif == KEEP):
        return read_raw(
            source,
            options.format,
            names,
            strict=options.strict,
            voc_origin=options.voc_origin,
            source_pattern=options.source_pattern,
            progress=report,
        )


def _inputs_of(
    scenes: list[Scene], settled: dict[str, Any], ledger: Ledger, workers: Workers, leaks: str | None, drawn: set[str]
) -> _Inputs:
    """The pictures after what is done about leaks; ``drawn``: the sources whose split was drawn by the seed."""
    found = workers.map(sha256_file, [str(s.path) for s in scenes], "hashing pictures")
    hashes = dict(zip((s.file_name for s in scenes), found, strict=True))
    scenes = settle_leaks(scenes, hashes, leaks, ledger, workers.map, drawn=drawn)
    return _Inputs(scenes, {s.file_name: hashes[s.file_name] for s in scenes}, settled)


def _plan_of(inputs: _Inputs, raw: RawSet, options: PrepareOptions, tools: _Tools, said: dict[str, str]) -> dict[str, Any]:
    """What decides the set's bytes, as it stands in the manifest: options that are newer than old sets stand there where they matter."""
    stored: dict[str, Any] = {
        "format": raw.format,
        "tile": options.tile,
        "overlap": options.overlap,
        "size": options.size,
        "keep_share": options.keep_share,
        "difficult_share": options.difficult_share,
        "keep_empty": options.keep_empty,
        "keep_partial": options.keep_partial,
        "caption_style": options.caption_style,
        "seed": options.seed,
    }
    if options.sentences is not None:
        stored["sentences"] = content_key(said)
    if tools.clip is not None:
        stored["scene_clip"], stored["places"] = tools.clip.key, content_key(tools.places)
    if options.masks != COCO:
        stored["masks"] = tools.masker or NONE
    if inputs.pixels:
        stored["pixels"] = inputs.pixels
    labels = content_key([list(raw.classes), [scene_record(s) for s in inputs.scenes], inputs.hashes])
    return {"options": stored, "inputs": labels}


# ---------------------------------------------------------------------------------------------------------------------- the pictures


class _Fruitless(CCDiffError):
    """Nothing is left to make a set of."""


@dataclass
class _Made:
    """What came of all pictures."""

    tiles: list[Scene] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    references: list[dict[str, Any]] = field(default_factory=list)


def _mask_objects(jobs: Sequence[Job], model: str, workers: Workers) -> None:
    """Let a model cut the objects of the train split out, one file a picture; what was done before is not done again."""
    todo = [MaskJob(job.scene, job.options.masks, job.mask_file) for job in jobs if job.scene.split == "train" and job.scene.instances]
    if model == SAM:  # one process: it is large, and batches the boxes of a picture itself
        workers = Workers(1, workers.report)
    for _ in workers.map(mask_picture, todo, "masking objects"):
        pass


def _prepare_pictures(jobs: Sequence[Job], workers: Workers, ledger: Ledger) -> _Made:
    made = _Made()
    cut_out = [len(job.scene.instances) for job in jobs if job.scene.split == "train"]
    with crops_told(cut_out, workers), contextlib.closing(workers.map(prepare_picture, jobs, "preparing pictures")) as results:
        for job, result in zip(jobs, results, strict=True):
            if result.failure:
                ledger.quarantine(job.scene, result.failure)
                continue
            made.tiles.extend(result.scenes)
            made.hashes.update(result.hashes)
            made.references.extend(result.references)
            ledger.counts.update(result.counts)
            for how in (FITTED, TURNED) if job.options.tile is None else ():  # no tile's border but the picture's: the annotator's own box
                if count := result.notes.pop(how, 0):
                    ledger.change(how, str(job.scene.path), count=count)
            ledger.notes.update(result.notes)
    return made


# ------------------------------------------------------------------------------------------------------------------- written last


def _counted(ledger: Ledger, inputs: _Inputs, made: _Made) -> dict[str, Any]:
    """What the manifest says of all that was altered, left out and made."""
    return {
        "changes": dict(sorted(ledger.changes.items())),
        "skipped": dict(sorted(ledger.skipped.items())),
        "places": dict(sorted(ledger.places.items())),
        "quarantined": ledger.quarantined,
        "notes": dict(sorted(ledger.notes.items())),
        "cutting": dict(sorted(ledger.counts.items())),
        **({"pixels": inputs.pixels} if inputs.pixels else {}),
        "references": {"instances": len(made.references), "masks": dict(sorted(Counter(r["mask"] for r in made.references).items()))},
        "sources": inputs.hashes,
    }


def _finish(out: Path, raw: RawSet, made: _Made, details: dict[str, Any]) -> PictureSet:
    if hasattr(os, "sync"):
        os.sync()  # the manifest, which says that all is there, must not reach the disk before the pictures
    done = write_set(out, made.tiles, raw.classes, kind="prepared", details=details, picture_hashes=made.hashes)
    with os_errors(out, "finish the set"):
        for name in (MASKS, PLACES_FOUND):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / PLAN).unlink(missing_ok=True)
    return done
