"""Readers and the recognition of a folder's format: ``READERS[name](root, classes, faults) -> RawSet``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import CCDiffError, UnsafeInput, visible
from ..geometry import untangled
from ..pictures import SUFFIXES
from .classes import ClassMap
from .coco import is_coco, read_coco
from .cvat import is_cvat, read_cvat
from .dior import is_dior, read_dior
from .dota import is_dota, read_dota
from .fair1m import is_fair1m, read_fair1m
from .hrsc import is_hrsc, read_hrsc
from .huggingface import is_huggingface, read_huggingface
from .labelme import is_labelme, read_labelme
from .metadata import is_metadata, read_metadata
from .raw import SPLIT_WORDS, Faults, RawSet, child, count_litter, files_below, listed, some
from .rsvg import is_rsvg, read_rsvg
from .sodaa import is_sodaa, read_sodaa
from .sources import name_sources
from .unread import unread, unread_by_suffix
from .vhr10 import is_vhr10, read_vhr10
from .visdrone import is_visdrone, read_visdrone
from .voc import is_voc, read_voc
from .webdataset import is_webdataset, read_webdataset
from .yolo import is_yolo, is_yolo_obb, read_yolo, read_yolo_obb

READING = "reading labels"
"""The stage that progress is told of."""
Reader = Callable[[Path, ClassMap | None, Faults], RawSet]
READERS: dict[str, Reader] = {
    "vhr10": read_vhr10,
    "dior": read_dior,
    "fair1m": read_fair1m,
    "rsvg": read_rsvg,
    "dota": read_dota,
    "hrsc": read_hrsc,
    "metadata": read_metadata,
    "sodaa": read_sodaa,
    "visdrone": read_visdrone,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "huggingface": read_huggingface,
    "webdataset": read_webdataset,
    "coco": read_coco,
    "yolo": read_yolo,
    "yolo-obb": read_yolo_obb,
    "voc": read_voc,
}
RECOGNISE: dict[str, Callable[[Path], bool]] = {
    "vhr10": is_vhr10,
    "dior": is_dior,
    "fair1m": is_fair1m,
    "rsvg": is_rsvg,
    "dota": is_dota,
    "hrsc": is_hrsc,
    "metadata": is_metadata,
    "sodaa": is_sodaa,
    "visdrone": is_visdrone,
    "cvat": is_cvat,
    "labelme": is_labelme,
    "huggingface": is_huggingface,
    "webdataset": is_webdataset,
    "coco": is_coco,
    "yolo": is_yolo,
    "yolo-obb": is_yolo_obb,
    "voc": is_voc,
}
"""Asked in this order; a folder may hold the labels of several formats, and those that say most come first."""


TWINS = "objects that stand in their picture before (same class, same box), kept"
_OF_SHARES = ("yolo", "yolo-obb", "metadata")
"""Formats that give boxes as shares; those of a picture that does not open stay shares."""


def detect_format(root: Path) -> str:
    """The format of a folder.

    Raises:
        CCDiffError: no such folder, or none of the known layouts.
    """
    if not root.exists():
        raise CCDiffError("no such folder", where=root, fix="give the folder of the raw data set")
    for name, matches in RECOGNISE.items():
        if matches(root):
            return name
    _refuse_unread(unread(root))
    for name in _nearly(root):
        try:
            READERS[name](root, None, Faults())
        except CCDiffError as error:
            raise CCDiffError(
                f"the folder's format was not recognised; it looks like {name}, but: {error.what}", where=error.where, fix=error.fix
            ) from error
        return name
    _refuse_unread(unread_by_suffix(root))
    if root.is_file() and root.suffix.lower() in (".zip", ".gz", ".tgz", ".tar", ".7z", ".rar"):
        raise CCDiffError("this is an archive", where=root, fix="unpack it, and give the folder")
    holds = f"it holds {some(sorted(p.name for p in root.iterdir()), 8) or 'nothing'}" if root.is_dir() else "it is a file"
    raise CCDiffError(
        f"the folder's format was not recognised ({holds}); known formats: {', '.join(READERS)}",
        where=root,
        fix="name the format yourself (--format), or check that this is the top folder of the set",
    )


def _refuse_unread(told: tuple[str, str, str] | None) -> None:
    if told is not None:
        where, what, fix = told
        raise CCDiffError(f"the folder's format was not recognised: this is {what}, which is not read", where=where, fix=fix)


def _nearly(root: Path) -> list[str]:
    """Formats whose files are there, although none is as it should be: their readers say what is wrong."""
    inner = [p for name in ("annotations", "labels", "images", *SPLIT_WORDS) for p in (child(root, name),) if p.is_dir()]
    if any(
        p.name.lower().startswith(("labeltxt", "annfiles")) for base in (root, *inner) for p in (base.iterdir() if base.is_dir() else ())
    ):
        return ["dota"]
    folders = [root, *inner]
    found = [name for name, suffix in (("voc", ".xml"), ("coco", ".json")) if any(listed(folder, suffix) for folder in folders)]
    pictures = any(files_below(folder, SUFFIXES) for folder in inner) or bool(listed(root, *SUFFIXES))
    texts = any(p.name not in ("README.txt", "requirements.txt") for folder in folders for p in listed(folder, ".txt"))
    return [*found, "yolo"] if pictures and texts else found


def read_raw(
    root: str | Path,
    format: str | None = None,
    classes: ClassMap | None = None,
    *,
    strict: bool = True,
    voc_origin: int | None = None,
    source_pattern: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> RawSet:
    """Read a raw data set's labels; pictures are not opened.

    Args:
        format: one of ``READERS``; recognised from the folder when None.
        classes: the user's class list and spellings; that of the format when None.
        strict: stop at the first broken line, object or file and at a missing picture, rather than leave it out, count it in
            ``skipped`` and keep the first ``places``.
        voc_origin: of VOC alone, see :func:`~.voc.read_voc`.
        source_pattern: what names the scene that a picture is a piece of, see :func:`~.sources.name_sources`.
        progress: called as ``progress(stage, done, total)``; where it has a ``note`` (``console.progress_bars``), that tells how far it is.

    Raises:
        CCDiffError: an unknown format, broken labels (when not strict: most of them broken), a class that the list lacks, no pictures
            at all.
    """
    root = Path(root)
    name = format or detect_format(root)
    if name not in READERS:
        raise CCDiffError(f"unknown format {name!r}", fix=f"known formats: {', '.join(READERS)}")
    if not root.exists():
        raise CCDiffError("no such folder", where=root, fix="give the folder of the raw data set")
    reader = READERS[name]
    if voc_origin is not None:
        if name != "voc" or voc_origin not in (0, 1):
            raise CCDiffError(f"origin {voc_origin} of a {name} set", where="--voc-origin", fix="0 or 1, for VOC alone")
        reader = partial(read_voc, origin=voc_origin)
    report = progress or (lambda stage, done, total: None)
    note = getattr(progress, "note", lambda stage, text: None)
    faults = Faults(strict=strict, told=lambda count: note(READING, f"{count:,} files, lines and objects"))
    report(READING, 0, 1)
    try:
        raw = reader(root, classes, faults)
    except UnsafeInput:
        raise
    except CCDiffError:
        faults.check()  # where most is broken, that is the cause
        raise
    _leave_out_odd_names(raw, faults)
    _leave_out_shares(raw, faults)
    _untangle(raw)
    _say_twins(raw)
    faults.check()
    report(READING, 1, 1)
    raw.skipped = +(raw.skipped + faults.counts)
    if root.is_dir() and (litter := count_litter(root)):
        raw.notes["files that macOS or Windows left (._NAME, .DS_Store, Thumbs.db), passed over"] += litter
    name_sources(raw, source_pattern)
    raw.notes, raw.changes = +raw.notes, +raw.changes
    raw.places |= faults.places
    if not raw.scenes:
        first = next((f"; {places[0]['where']}: {places[0]['what']}" for places in faults.places.values()), "")
        raise CCDiffError(f"the set holds no labelled pictures{first}", where=root, fix="check the folder and the split lists")
    return raw


def _untangle(raw: RawSet) -> None:
    """Boxes whose sides cross, their corners written row by row, get them in order around the box, whatever the format."""
    for k, scene in enumerate(raw.scenes):
        repaired = list(scene.instances)
        for n, instance in enumerate(scene.instances):
            corners, crossed = untangled(instance.corners) if instance.oriented else (instance.corners, False)
            if crossed:
                raw.change("boxes whose sides crossed, untangled", str(scene.path or scene.file_name), f"object {n + 1}")
                repaired[n] = replace(instance, corners=corners)
        if repaired != list(scene.instances):
            raw.scenes[k] = scene.replace(instances=tuple(repaired))


def _say_twins(raw: RawSet) -> None:
    """Note objects that stand twice in their picture, of one class and to the digit in one place; they stay, for which is one too many?"""
    for scene in raw.scenes:
        if len({(i.category, i.hbb) for i in scene.instances}) == len(scene.instances):
            continue
        corners = [frozenset(zip(i.corners[::2], i.corners[1::2], strict=True)) for i in scene.instances]
        counts = Counter((i.category, i.hbb, points) for i, points in zip(scene.instances, corners, strict=True))
        if len(counts) < len(scene.instances):
            (category, box, _), times = counts.most_common(1)[0]
            first = f"{category} {', '.join(f'{v:g}' for v in box)}, {times} times"
            raw.note(TWINS, str(scene.path or scene.file_name), first, len(scene.instances) - len(counts))


def _leave_out_odd_names(raw: RawSet, faults: Faults) -> None:
    """Pictures whose names are not UTF-8 (of old archives): no label file of ours could name them."""
    scenes, raw.scenes = raw.scenes, []
    for scene in scenes:
        with faults.leaving_out("picture names"):
            if not _spelled(f"{scene.file_name}{scene.path or ''}{scene.source}"):
                faults.counts["objects of pictures whose names are not UTF-8"] += len(scene.instances)
                raise CCDiffError(
                    "the file name is not Unicode text",
                    where=visible(str(scene.path or scene.file_name)),
                    fix="rename it, for example by convmv -r -f latin1 -t utf8 --notest FOLDER",
                )
            raw.scenes.append(scene)


def _leave_out_shares(raw: RawSet, faults: Faults) -> None:
    """Pictures all of whose boxes lie in their first pixel, in a format that counts pixels: they are shares of its size."""
    if raw.format in _OF_SHARES:
        return
    scenes, raw.scenes = raw.scenes, []
    for scene in scenes:
        with faults.leaving_out("pictures with objects"):
            values = [v for i in scene.instances for v in i.hbb]
            if values and min(values) >= -1 and max(values) <= 2 and any(v != int(v) for v in values):
                faults.counts["objects of pictures whose boxes are shares of its size"] += len(scene.instances)
                first = ", ".join(f"{v:g}" for v in scene.instances[0].hbb)
                raise CCDiffError(
                    f"the boxes are shares of the picture's size (0 to 1), where {raw.format} counts pixels (the first: {first})",
                    where=str(scene.path or scene.file_name),
                    fix="multiply them by the picture's width and height, or give the set as yolo, which has shares",
                )
            raw.scenes.append(scene)


def _spelled(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
