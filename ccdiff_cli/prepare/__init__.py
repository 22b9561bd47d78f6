"""``prepare``: a raw data set becomes the set on disk that everything else works on.

Read the labels, check every picture's header, cut and resize, write captions, the reference bank and a manifest that counts all that was
left out and why.

* Every file is named by what it holds and written whole, so an interrupted run is completed by the same command, to the same bytes.
* Pictures are decoded, cut and encoded in threads (the picture library works outside Python's lock); results are taken in order, so
  their number changes nothing.
* NOTE: the split is decided per source picture, before tiles are cut; all tiles of a picture share its split and ``source``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..dataset import IMAGES, MANIFEST, SPLITS, PictureSet, read_set, scene_record, write_set
from ..errors import CCDiffError, os_errors
from ..files import TEMPORARY_PREFIX, content_key, inside, read_json, sha256_file, write_bytes, write_json
from ..formats import read_raw
from ..formats.classes import read_class_file
from ..formats.raw import RawSet, read_split_lists, seeded_splits
from ..geometry import clip_hbb
from ..pictures import UnreadablePicture, picture_size, read_stored
from ..references import REFERENCES, cut_reference, write_bank
from ..scene import Instance, Scene
from .captions import STYLES, caption_of
from .tiling import cut_picture, cut_scene, tile_origins

PLAN = "prepare.json"
"""Stands in the folder of an unfinished set: what it is being made from."""
Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


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
    strict: bool = False,
    workers: int | None = None,
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
        caption_style: "plain" or "short".
        strict: stop at a picture that does not decode, rather than leave it out and say so.
        workers: threads; all cores but at most 8 when None.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The set. Made before from the same inputs, it is read and nothing is written (stage "already prepared").

    Raises:
        CCDiffError: bad labels or options, a missing picture, an empty set, a folder that holds something else, a full disk.
    """
    source, out = Path(source), Path(out)
    report = progress or (lambda stage, done, total: None)
    _check_options(tile, overlap, size, keep_share, difficult_share, caption_style)
    threads = workers or min(8, os.cpu_count() or 1)

    report("reading labels", 0, 1)
    raw = read_raw(source, format, read_class_file(Path(classes)) if classes is not None else None)
    report("reading labels", 1, 1)
    ledger = _Ledger(raw, strict=strict)
    _apply_splits(ledger, Path(splits) if splits is not None else None, seed)
    scenes = _checked_sizes(ledger, threads, report)
    if not scenes:
        raise CCDiffError("no picture of the set decodes", where=source, fix="check the picture files")
    hashes = dict(
        zip(
            (s.file_name for s in scenes),
            _threaded(sha256_file, [str(s.path) for s in scenes], threads, "hashing pictures", report),
            strict=True,
        )
    )

    options = {
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
    labels = content_key([list(raw.classes), [scene_record(s) for s in scenes], hashes])
    plan = {"options": options, "inputs": labels}
    if (done := _finished(out, plan)) is not None:
        report("already prepared", len(done.scenes), len(done.scenes))
        return done
    _begin(out, plan)

    jobs = _named_jobs(scenes, out, tile=tile, overlap=overlap, size=size, keep_share=keep_share, difficult_share=difficult_share,
                       keep_empty=keep_empty, keep_partial=keep_partial, caption_style=caption_style)  # fmt: skip
    tiles: list[Scene] = []
    picture_hashes: dict[str, str] = {}
    references: list[dict[str, Any]] = []
    try:
        with contextlib.closing(_threaded(_prepare_picture, jobs, threads, "preparing pictures", report)) as results:
            for job, result in zip(jobs, results, strict=True):
                if result.failure:
                    ledger.quarantine(job.scene, result.failure)
                    continue
                tiles.extend(result.scenes)
                picture_hashes.update(result.hashes)
                references.extend(result.references)
                ledger.counts.update(result.counts)
        if not tiles:
            raise _Fruitless(
                "no picture with objects is left", where=source, fix="keep pictures without objects, or check the picture files"
            )
    except (UnreadablePicture, _Fruitless):
        _withdraw(out)  # the cure changes the inputs, so what is written would be of no use
        raise
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
        "skipped": dict(sorted(ledger.skipped.items())),
        "quarantined": ledger.quarantined,
        "notes": dict(sorted(ledger.notes.items())),
        "cutting": dict(sorted(ledger.counts.items())),
        "references": {"instances": len(references)},
        "sources": hashes,
    }
    if hasattr(os, "sync"):
        os.sync()  # the manifest, which says that all is there, must not reach the disk before the pictures
    done = write_set(out, tiles, raw.classes, kind="prepared", details=details, picture_hashes=picture_hashes)
    with os_errors(out, "finish the set"):
        (out / PLAN).unlink(missing_ok=True)
    return done


# ---------------------------------------------------------------------------------------------------------------- before any pixel


class _Ledger:
    """What is left out, corrected and counted on the way."""

    def __init__(self, raw: RawSet, *, strict: bool) -> None:
        self.raw, self.strict = raw, strict
        self.skipped, self.notes = Counter(raw.skipped), Counter(raw.notes)
        self.counts: Counter[str] = Counter()
        self.quarantined: list[dict[str, str]] = []

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


def _apply_splits(ledger: _Ledger, lists: Path | None, seed: int) -> None:
    raw = ledger.raw
    if lists is not None:
        stems = {_stem(s): s for s in raw.scenes}
        split_of = read_split_lists(lists, sorted(stems))
        if not split_of:
            raise CCDiffError("no train.txt, val.txt or test.txt with picture names", where=lists)
        ledger.skipped["pictures in no split list"] += sum(_stem(s) not in split_of for s in raw.scenes)
        ledger.skipped = +ledger.skipped
        raw.scenes = [s.replace(split=split_of[_stem(s)]) for s in raw.scenes if _stem(s) in split_of]
    else:
        drawn = seeded_splits([s.source for s in raw.scenes if not s.split], seed)
        if drawn:
            ledger.notes["pictures whose split was drawn by the seed"] += sum(not s.split for s in raw.scenes)
        raw.scenes = [s if s.split else s.replace(split=drawn[s.source]) for s in raw.scenes]
    split_by_source: dict[str, str] = {}
    for scene in raw.scenes:
        if scene.split not in SPLITS:
            raise CCDiffError(f"unknown split {scene.split!r}", where=scene.file_name, fix=f"known splits: {', '.join(SPLITS)}")
        if split_by_source.setdefault(scene.source, scene.split) != scene.split:
            raise CCDiffError(
                f"pictures of the source {scene.source!r} stand in two splits", where=scene.file_name, fix="correct the split lists"
            )
    if not raw.scenes:
        raise CCDiffError("the split lists name no picture of the set", where=lists)


def _stem(scene: Scene) -> str:
    return scene.file_name.rpartition(".")[0] or scene.file_name


def _checked_sizes(ledger: _Ledger, threads: int, report: Progress) -> list[Scene]:
    """Scenes with the size of their picture file, and objects that have an area inside it."""
    raw = ledger.raw
    good: list[Scene] = []
    sizes = _threaded(_size_or_reason, [str(s.path) for s in raw.scenes], threads, "checking pictures", report)
    for scene, size in zip(raw.scenes, sizes, strict=True):
        if isinstance(size, str):
            ledger.quarantine(scene, size)
            continue
        if scene.width and (scene.width, scene.height) != size:
            ledger.notes["pictures whose declared size was wrong"] += 1
        scene = scene.replace(width=size[0], height=size[1])
        good.append(scene.replace(instances=tuple(_checked_instances(scene, ledger))))
    return good


def _size_or_reason(path: str) -> tuple[int, int] | str:
    try:
        return picture_size(path)
    except UnreadablePicture as error:
        return error.what


def _checked_instances(scene: Scene, ledger: _Ledger) -> Iterator[Instance]:
    picture = (0.0, 0.0, float(scene.width), float(scene.height))
    for instance in scene.instances:
        x1, y1, x2, y2 = instance.hbb
        if not (x2 > x1 and y2 > y1):
            ledger.skipped["objects whose box has no area"] += 1
            continue
        hbb = clip_hbb(instance.hbb, picture)
        if hbb is None:
            ledger.skipped["objects outside the picture"] += 1
            continue
        if hbb != instance.hbb:
            ledger.notes["boxes clipped to the picture"] += 1
        if instance.oriented:
            yield Instance.from_corners(
                instance.category, instance.corners, hbb, difficult=instance.difficult, mask=instance.mask, extra=instance.extra
            )
        else:
            yield Instance.from_hbb(instance.category, hbb, difficult=instance.difficult, mask=instance.mask, extra=instance.extra)


def _finished(out: Path, plan: dict[str, Any]) -> PictureSet | None:
    """The set when it is finished and was made from the same inputs."""
    if not (out / MANIFEST).is_file():
        return None
    before = read_json(out / MANIFEST)
    before = before.get("prepare") if isinstance(before, dict) else None
    if not isinstance(before, dict):
        raise CCDiffError("the folder holds a set that `prepare` did not make", where=out, fix="choose another output folder")
    _same_plan(before, plan, out)
    return read_set(out)


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Claim an empty folder, or take an unfinished set of the same plan up again."""
    with os_errors(out, "make the output folder"):
        if out.exists() and not out.is_dir():
            raise CCDiffError("the output is a file, not a folder", where=out, fix="choose another output folder")
        out.mkdir(parents=True, exist_ok=True)
        for partial in sorted(out.rglob(f"{TEMPORARY_PREFIX}*")):
            partial.unlink()
        if (out / PLAN).is_file():
            _same_plan(read_json(out / PLAN), plan, out)
        elif any(out.iterdir()):
            raise CCDiffError("the output folder is not empty", where=out, fix="choose another folder, or empty this one")
    write_json(out / PLAN, plan)


class _Fruitless(CCDiffError):
    """Nothing is left to make a set of."""


def _withdraw(out: Path) -> None:
    """Leave the folder as empty as it was found."""
    with os_errors(out, "clean the output folder"):
        for name in (IMAGES, REFERENCES):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / PLAN).unlink(missing_ok=True)


def _same_plan(before: Any, plan: dict[str, Any], out: Path) -> None:
    if before == plan:
        return
    old = before.get("options", {}) if isinstance(before, dict) else {}
    changed = [f"{k}: {old.get(k)!r} before, {v!r} now" for k, v in plan["options"].items() if old.get(k) != v]
    what = "; ".join(changed) or "the source's pictures, labels or splits changed"
    raise CCDiffError(f"the folder holds a set made differently ({what})", where=out, fix="choose another output folder, or empty this one")


# ---------------------------------------------------------------------------------------------------------------- one picture


@dataclass(frozen=True)
class _Job:
    scene: Scene
    stem: str
    out: Path
    tile: int | None
    overlap: int
    size: int | None
    keep_share: float
    difficult_share: float
    keep_empty: bool
    keep_partial: bool
    caption_style: str


@dataclass
class _Result:
    scenes: list[Scene] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    references: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    failure: str = ""


def _named_jobs(scenes: list[Scene], out: Path, **options: Any) -> list[_Job]:
    """One job a picture, with a stem for its outputs that no other picture has."""
    stems = [_safe(_stem(s)) for s in scenes]
    repeated = {stem for stem, count in Counter(s.lower() for s in stems).items() if count > 1}
    named = [_safe(s.file_name) if stem.lower() in repeated else stem for s, stem in zip(scenes, stems, strict=True)]
    for name, count in Counter(named).items():
        if count > 1:
            raise CCDiffError(f"{count} pictures would be written as {name!r}", fix="rename the picture files")
    for scene in scenes:
        inside(out, scene.file_name, where=str(scene.path))
    return [_Job(scene, stem, out, **options) for scene, stem in zip(scenes, named, strict=True)]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name.replace("/", "__"))


def _prepare_picture(job: _Job) -> _Result:
    """Cut, resize and write one source picture; nothing that is already written is written again."""
    scene, result = job.scene, _Result()
    try:
        image, stored_rgb = read_stored(str(scene.path))
    except UnreadablePicture as error:
        result.failure = error.what
        return result
    longest = max(scene.width, scene.height)
    side = job.tile or longest
    whole = job.tile is None
    copied = whole and job.size is None
    size = job.size or side
    scale = 1.0 if copied else size / side
    origins = [(0, 0)] if whole else tile_origins(scene.width, scene.height, side, job.overlap)
    for x, y in origins:
        instances, counts = cut_scene(scene, (x, y), side, scale, keep=job.keep_share, difficult=job.difficult_share)
        result.counts.update({f"objects {k}": v for k, v in counts.items()})
        if not instances and not job.keep_empty:
            result.counts["pictures or tiles without objects left out"] += 1
            continue
        if instances and not counts["kept"] and not job.keep_partial:
            result.counts["tiles with only parts of objects left out"] += 1
            continue
        suffix = (Path(scene.file_name).suffix.lower() if stored_rgb else ".png") if copied else ".png"
        name = f"{job.stem}{suffix}" if whole else f"{job.stem}__x{x:05d}_y{y:05d}.png"
        path = job.out / IMAGES / name
        width, height = (scene.width, scene.height) if copied else (size, size)
        provenance: dict[str, Any] = {"picture": scene.file_name, "offset": [x, y], "side": side, "scale": scale}
        padded = [max(0, x + side - scene.width), max(0, y + side - scene.height)]
        if copied:
            data = Path(str(scene.path)).read_bytes() if stored_rgb else _png(image)
        else:
            cut, padding = cut_picture(image, (x, y), side, size, scene.instances)
            if padding:
                provenance["padded"] = {"right": padded[0], "below": padded[1], "how": padding}
                result.counts[f"pictures padded ({padding})"] += 1
            data = _png(cut)
        result.hashes[name] = _write_once(path, data)
        prepared = Scene(name, width, height, tuple(instances), split=scene.split, source=scene.source, provenance=provenance)
        caption = scene.caption or caption_of(prepared, job.caption_style)
        result.scenes.append(prepared.replace(caption=caption))
    if scene.split == "train":
        for index, instance in enumerate(scene.instances):
            data, record = cut_reference(image, instance, scale)
            name = f"{_safe(instance.category)}/{job.stem}_{index:04d}.png"
            digest = _write_once(job.out / REFERENCES / name, data)
            result.references.append(
                {"file": name, **record, "source": scene.source, "picture": scene.file_name, "instance": index, "sha256": digest}
            )
    return result


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=3)  # higher levels take three times as long for 1 % less
    return stream.getvalue()


def _write_once(path: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    if not (path.is_file() and path.read_bytes() == data):
        write_bytes(path, data, durable=False)
    return digest


def _threaded(work: Callable[[_T], _R], items: Iterable[_T], threads: int, stage: str, report: Progress) -> Generator[_R, None, None]:
    """``map`` in threads: results in order, a bounded number under way, progress reported."""
    items = list(items)
    total = len(items)
    report(stage, 0, total)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting = iter(items)
        queue = [pool.submit(work, item) for item in islice(waiting, 2 * threads)]
        done = 0
        try:
            while queue:
                result = queue.pop(0).result()
                for item in islice(waiting, 1):
                    queue.append(pool.submit(work, item))
                done += 1
                report(stage, done, total)
                yield result
        finally:
            for future in queue:
                future.cancel()


__all__ = ["caption_of", "prepare_dataset"]
