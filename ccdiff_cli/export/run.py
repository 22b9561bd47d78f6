"""One export: the folder, the pictures, the labels by a writer, the receipt.

``export_set`` copies (or links) the pictures and writes the labels in the format's own terms; what a format cannot hold is counted and
said.  The receipt ``export.json`` is written last: a folder without one is unfinished and is completed by the same
command.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset import SPLITS, PictureSet, is_sharded, read_manifest, read_set, shards_of
from ..errors import CCDiffError, os_errors
from ..files import inside, read_json, take_up, write_json
from ..locks import LOCK, locked
from ..scene import ClassList, Scene
from ..stored import checked
from .common import Job, Writer, count_kept
from .options import ExportOptions
from .pictures import place_picture, suffix_of
from .receipt import FIX, RECEIPT, Receipt, damaged, hashes_now, is_of_edited, read_receipt, refuse_hand_edits, remove_files
from .receipt import PLAN as _PLAN
from .writers import WRITERS

MAX_NAME = 250
"""Bytes: what file systems hold, less a longer extension."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        root: the folder.
        format: a key of ``WRITERS``.
        pictures, objects: how many.
        lost: what the format cannot hold -> how many objects or pictures had it.
        apart: what only readers that know of it look at -> how many objects or pictures had it.
        said: what else a user should know, a sentence each.
        entry: the file or folder a user points the next tool at.
        resumed: whether the folder was already complete.
    """

    root: Path
    format: str
    pictures: int
    objects: int
    lost: dict[str, int]
    apart: dict[str, int]
    said: list[str]
    entry: Path
    resumed: bool = False


@locked("export")
def export_set(
    source: str | Path | PictureSet,
    out: str | Path,
    options: ExportOptions,
    *,
    splits: Sequence[str] = SPLITS,
    progress: Progress | None = None,
) -> Export:
    """Write a set in another format.

    Args:
        source: a prepared or synthetic set.
        options: the format, and how pictures are handed over.
        splits: the splits to write.
        progress: called as ``progress("exporting", done, total)``.

    Raises:
        CCDiffError: an unknown format, options that do not fit it, not a set, two pictures with one stem, class or file names that the
            format cannot spell, a folder that holds something else, a full disk.
    """
    _check_options(options)
    if not isinstance(source, PictureSet) and is_sharded(source):
        return _export_shards(Path(source), Path(out), options, splits, progress)
    data = source if isinstance(source, PictureSet) else read_set(source)
    out, writer = Path(out), WRITERS[options.format]
    scenes = [s for s in data.scenes if s.split in splits]
    if not scenes:
        raise CCDiffError(f"the set has no pictures in the splits {', '.join(splits)}", where=data.root)
    job = Job(out, data.classes, options)
    _check_names(writer, data.classes, scenes)
    named = _named(scenes, job)
    chosen = {"format": options.format, "set": data.key(), "splits": sorted(set(splits)), "pictures": len(scenes)}
    plan = chosen | _planned(options)
    standing, news = _standing(out, plan, data)
    if standing is not None:
        kept = {key: getattr(standing, key) for key in ("pictures", "objects", "lost", "apart")}
        return Export(out, options.format, **kept, said=[*standing.said, *news], entry=out / standing.entry, resumed=True)
    _begin(out, plan)
    _check_case(out, named)
    shared = 0
    for done, scene in enumerate(named, start=1):
        if name := writer.place(scene):
            shared += place_picture(job, Path(str(scene.path)), inside(out, name, where=data.root))
        count_kept(job, scene, writer)
        writer.labels(job, scene)
        if progress is not None:
            progress("exporting", done, len(named))
    job.lost["folders in file names"] += sum("/" in s.file_name for s in scenes)
    entry = writer.finish(job, named)
    job.said.extend(_said_of_pictures(job, writer, shared, len(named)))
    counts = {"pictures": len(named), "objects": sum(len(s.instances) for s in named)}
    kept = {**counts, "lost": _happened(job.lost), "apart": _happened(job.apart), "said": job.said}
    if hasattr(os, "sync"):
        os.sync()  # the receipt, which says that all is there, must not reach the disk before the labels
    receipt = {"plan": plan, **kept, "entry": entry, "files": hashes_now(out)}
    checked(Receipt, receipt, where=out / RECEIPT)
    write_json(out / RECEIPT, receipt)
    with os_errors(out, "finish the export"):
        (out / _PLAN).unlink(missing_ok=True)
    return Export(out, options.format, **{**kept, "said": [*job.said, *news]}, entry=out / entry)


def _export_shards(root: Path, out: Path, options: ExportOptions, splits: Sequence[str], progress: Progress | None) -> Export:
    """A very large set, shard by shard: for each a folder of the format, which is an export by itself."""
    folders = [f for f in shards_of(root) if set(splits) & set(read_manifest(f)["counts"]["per_split"])]
    if not folders:
        raise CCDiffError(f"the set has no pictures in the splits {', '.join(splits)}", where=root)
    names = {folder.name for folder in folders}
    if out.is_dir() and (foreign := sorted(p.name for p in out.iterdir() if p.name != LOCK and p.name not in names)):
        raise CCDiffError(f"the output folder is not empty ({foreign[0]})", where=out, fix="choose another folder, or empty this one")
    made = [export_set(folder, out / folder.name, options, splits=splits, progress=progress) for folder in folders]
    said = [f"the set is made of {len(made)} shards: each has a folder of its own, {made[0].root.name} to {made[-1].root.name}"]
    return Export(
        out,
        options.format,
        pictures=sum(one.pictures for one in made),
        objects=sum(one.objects for one in made),
        lost=dict(sorted(sum((Counter(one.lost) for one in made), Counter()).items())),
        apart=dict(sorted(sum((Counter(one.apart) for one in made), Counter()).items())),
        said=[*said, *dict.fromkeys(text for one in made for text in one.said)],
        entry=out,
        resumed=all(one.resumed for one in made),
    )


def _check_options(options: ExportOptions) -> None:
    format = options.format
    if format not in WRITERS:
        raise CCDiffError(f"unknown export format {format!r}", fix=f"known formats: {', '.join(WRITERS)}")
    writer, chosen = WRITERS[format], options.picture_format
    if chosen is not None and chosen not in writer.pictures:
        known = ", ".join(writer.pictures) or "none, for it holds no pictures"
        raise CCDiffError(f"picture format {chosen!r} for {format}", where="--picture-format", fix=f"its readers take: {known}")
    if options.link and not writer.files:
        raise CCDiffError(f"{format} has no picture files that could be links", where="--link", fix="leave the option out")
    if options.link and chosen is not None:
        raise CCDiffError("links to pictures that are encoded anew", where="--link", fix="give --link or --picture-format")
    if options.quality is not None and chosen not in ("jpeg", "webp"):
        raise CCDiffError(f"quality {options.quality}", where="--quality", fix="1 to 100, with --picture-format jpeg or webp")


def _planned(options: ExportOptions) -> dict[str, Any]:
    """What tells one export from another beside the set: all that changes what is written."""
    planned = {"files": "links" if options.link else "copies", "picture_format": options.picture_format, "quality": options.quality}
    return planned | ({"voc_origin": options.voc_origin} if options.format == "voc" else {})


def _happened(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted((+counts).items()))


def _said_of_pictures(job: Job, writer: Writer, shared: int, pictures: int) -> list[str]:
    """What a user should know of the picture files."""
    if not job.options.link:
        return ["pictures are copies: the set does not change with them"] if writer.files else []
    said = [f"{shared} pictures are hard links: whoever changes one of these files changes the set"]
    if shared < pictures:
        said.append(f"{pictures - shared} pictures are copies: the set lies on another file system, or on one without links")
    return said


def _standing(out: Path, plan: dict[str, Any], data: PictureSet) -> tuple[Receipt | None, list[str]]:
    """The receipt where the export stands whole already, and what to say of it; None where it is to be written, in part or anew.

    Raises:
        CCDiffError: the folder holds another export.
    """
    receipt = read_receipt(out)
    if receipt is None:
        return None, []
    if receipt.plan == plan:
        wrong, foreign = damaged(out, receipt)
        if receipt.files is not None and not wrong:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            return receipt, [f"files in the folder that are not of the export, let alone: {foreign[0]}{more}"] if foreign else []
        news = [f"files that were lost or changed, written again: {len(wrong)}"] if wrong else []
    elif is_of_edited(receipt, plan, data):
        if not ((out / _PLAN).is_file() and read_json(out / _PLAN) == plan):  # else a run was stopped while it did this
            refuse_hand_edits(out, receipt)
        wrong, news = list(receipt.files or ()), ["the set was edited since the folder was written: the export was brought up to date"]
    else:
        raise CCDiffError("the folder holds another export", where=out, fix=FIX)
    write_json(out / _PLAN, plan)
    remove_files(out, wrong)
    with os_errors(out, "take the export up again"):
        (out / RECEIPT).unlink(missing_ok=True)
    return None, news


def _begin(out: Path, plan: dict[str, Any]) -> None:
    take_up(out)
    with os_errors(out, "make the output folder"):
        if (out / _PLAN).is_file():
            if read_json(out / _PLAN) != plan:
                raise CCDiffError(
                    "the folder holds the beginning of another export", where=out, fix="choose another output folder, or empty this one"
                )
        elif any(p.name != LOCK for p in out.iterdir()):
            raise CCDiffError("the output folder is not empty", where=out, fix="choose another folder, or empty this one")
    write_json(out / _PLAN, plan)


def _check_names(writer: Writer, classes: ClassList, scenes: Sequence[Scene]) -> None:
    """Names that would break a label file, or make two classes one."""
    pictures = [s.file_name for s in scenes]
    for name in (*classes, *pictures):
        if any(unicodedata.category(ch) in ("Cc", "Cs", "Zl", "Zp") for ch in name):
            raise CCDiffError(f"the name {name!r} holds a character that label files cannot", fix="rename the class or the picture")
    for name in pictures:
        stem = name.rpartition(".")[0] or name
        if stem != stem.strip() or (not writer.spaces and stem.split() != [stem]):
            raise CCDiffError(f"the picture's name {name!r} has a space where the format's lists of names end", fix="rename the picture")
        if name.rpartition("/")[2].startswith("._"):
            raise CCDiffError(f"the picture's name {name!r} is one that macOS gives its own files: readers pass it over", fix="rename it")
        if len(os.fsencode(name.replace("/", "__"))) > MAX_NAME:
            raise CCDiffError(f"the picture's name {name!r:.80} has more than {MAX_NAME} bytes", fix="rename the picture")
    for name in classes if writer.plain_names else ():
        if name.startswith("#") or "=" in name:
            raise CCDiffError(f"the class {name!r} would be read as a comment or a pair in classes.txt", fix="rename it without # and =")
    for spelling, count in Counter(writer.spelling(name).casefold() for name in classes).items():
        if count > 1 and writer.spelling is not str:
            raise CCDiffError(f"{count} classes would both be written as {spelling!r}", fix="rename one of them")


def _named(scenes: Sequence[Scene], job: Job) -> list[Scene]:
    """The scenes with a flat name for every picture, of a stem that no other has."""
    stems = [s.file_name.replace("/", "__").rpartition(".")[0] or s.file_name for s in scenes]
    for stem, count in Counter(stems).items():
        if count > 1:
            raise CCDiffError(
                f"{count} pictures are called {stem!r} with different extensions",
                fix="rename them: their labels would overwrite each other",
            )
    if alike := len(stems) - len(_without_case(stems)):
        job.said.append(f"{alike} pictures differ from others in case alone: file systems that ignore it (macOS, Windows) keep one of them")
    return [s.replace(file_name=stem + suffix_of(job, Path(str(s.path)))) for s, stem in zip(scenes, stems, strict=True)]


def _without_case(names: Sequence[str]) -> set[str]:
    return {unicodedata.normalize("NFC", name).casefold() for name in names}


def _check_case(out: Path, scenes: Sequence[Scene]) -> None:
    """Refuse names that this file system, which ignores case, takes for one."""
    names = [s.file_name for s in scenes]
    if len(_without_case(names)) < len(names) and (out / _PLAN.upper()).exists():
        raise CCDiffError(
            "pictures whose names differ in case alone, and a file system that ignores case",
            where=out,
            fix="rename them, or choose a folder on another file system",
        )
