"""Looking a set through: read, see how its pixels are, count, write the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..dataset import ANNOTATIONS, MANIFEST, check_out, in_memory, is_sharded, read_set
from ..duplicates import look_at_all
from ..errors import CCDiffError
from ..files import write_json, write_text
from ..formats import read_raw
from ..formats.classes import read_class_file
from ..formats.raw import PLACES
from ..locks import locked
from ..prepare.pixels import Found, PixelOptions, look, settle
from ..scene import ClassList, Scene
from .facts import angles_of, boxes_of, counts_of, duplicates_of, gsd_of, metadata_of, sizes_of, suspicious_boxes, warnings_of
from .options import InspectOptions

Progress = Callable[[str, int, int], None]
PAGE, FACTS = "inspection.html", "inspection.json"


@locked("inspect")
def inspect_set(
    source: str | Path,
    out: str | Path,
    options: InspectOptions = InspectOptions(),
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Look a set through and write ``inspection.html`` and ``inspection.json`` into ``out``.

    Args:
        source: a prepared or synthetic set, or a raw data set in a format that ``prepare`` reads.
        options: how a raw set is read, as for ``prepare``, and how many pictures the page shows at least (every class is shown).
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The facts, as ``inspection.json`` holds them; ``page`` is where the page lies.

    Raises:
        CCDiffError: no such set, broken labels, a missing picture, a folder that cannot be written.
    """
    source, out = Path(source), Path(out)
    if source.is_dir():
        check_out(out, source, around=True)
    kind, names, scenes, reader = _read(source, options, progress)
    scenes, pixels, wrong_size = _settled(scenes, kind.startswith("raw"), reader, progress)
    looks = look_at_all([str(s.path) for s in scenes], progress, readings=[s.reading for s in scenes])
    if not kind.startswith("raw"):
        wrong_size = [
            s.file_name for s, k in zip(scenes, looks, strict=True) if s.width and not k.failure and (s.width, s.height) != k.size
        ]
    scenes = [s if look.failure else s.replace(width=look.size[0], height=look.size[1]) for s, look in zip(scenes, looks, strict=True)]
    boxes = boxes_of(scenes, names)
    facts: dict[str, Any] = {
        "set": str(source),
        "kind": kind,
        "classes": list(names),
        "pictures": len(scenes),
        "objects": len(boxes.label),
        **counts_of(scenes, names, boxes),
        "sizes": sizes_of(names, boxes),
        "angles": angles_of(boxes),
        "suspicious": suspicious_boxes(scenes, names, boxes),
        "duplicates": duplicates_of(scenes, looks),
        "unreadable": [{"picture": s.file_name, "reason": look.failure} for s, look in zip(scenes, looks, strict=True) if look.failure],
        "declared_size_wrong": wrong_size,
        "pixels": pixels,
        "gsd": gsd_of(scenes),
        "metadata": metadata_of(scenes),
        "reader": reader,
    }
    facts["warnings"] = warnings_of(facts)
    facts["page"] = str(out / PAGE)
    if progress is not None:
        progress("drawing the page", 0, 1)
    from ..report.inspection import inspection_page

    page = inspection_page(facts, names, scenes, samples=options.samples)
    write_json(out / FACTS, facts)
    write_text(out / PAGE, page)
    if progress is not None:
        progress("drawing the page", 1, 1)
    return facts


def _read(source: Path, options: InspectOptions, progress: Progress | None) -> tuple[str, ClassList, list[Scene], dict[str, Any]]:
    """Kind, classes, scenes, and what the reader (or ``prepare``) left out and corrected."""
    ours = (source / MANIFEST).is_file() and ((source / ANNOTATIONS).is_file() or is_sharded(source))
    if options.format is None and ours:
        if (pattern := options.source_pattern) is not None:
            fix = "leave it out, or inspect the raw set"
            raise CCDiffError("a set of ours knows the source of each picture", where=f"--source-pattern {pattern}", fix=fix)
        made = in_memory(read_set(source, to_look_at=True))
        said = {key: made.manifest.get(key) or {} for key in ("changes", "skipped", "notes", "cutting", "places")}
        return str(made.manifest.get("kind", "set")), made.classes, list(made.scenes), said
    names = read_class_file(options.classes) if options.classes is not None else None
    raw = read_raw(
        source,
        options.format,
        names,
        strict=False,
        voc_origin=options.voc_origin,
        source_pattern=options.source_pattern,
        progress=progress,
    )
    said = {key: dict(sorted(getattr(raw, key).items())) for key in ("changes", "skipped", "notes", "places")}
    return f"raw ({raw.format})", raw.classes, raw.scenes, said


def _settled(
    scenes: list[Scene], raw: bool, reader: dict[str, Any], progress: Progress | None
) -> tuple[list[Scene], dict[str, Any], list[str]]:
    """Scenes as `prepare` would read their pixels; what that alters (also told to ``reader``); who declares another size.

    Our own sets are read as they are stored; a tag that other programs would turn them by is told.
    """

    def run(work: Callable[[Any], Any], items: Sequence[Any], stage: str) -> Iterator[Any]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for done, result in enumerate(pool.map(work, items), start=1):
                if progress is not None:
                    progress(stage, done, len(items))
                yield result

    looked = list(run(look, [str(s.path) for s in scenes], "looking at headers"))
    good = [k for k, found in enumerate(looked) if isinstance(found, Found)]
    if not raw:
        tagged = [scenes[k].file_name for k in good if looked[k].header.tagged]
        return scenes, {"tagged": tagged} if tagged else {}, []
    settled = settle([scenes[k] for k in good], [looked[k] for k in good], PixelOptions(), run, stop=False)
    read = list(scenes)
    for k, scene in zip(good, settled.scenes, strict=True):
        read[k] = scene
    for what, where, detail in settled.changes:
        reader["changes"][what] = reader["changes"].get(what, 0) + 1
        places = reader["places"].setdefault(what, [])
        if len(places) < PLACES:
            places.append({"where": where, "what": detail})
    names = {str(s.path): s.file_name for s in scenes}
    wrong = [names[path] for cases in settled.sizes.values() for path, _, _ in cases]
    return read, settled.summary, wrong
