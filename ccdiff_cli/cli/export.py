"""``ccdiff export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .binding import verb
from .common import Json, Out


@verb(app, epilog="Example: ccdiff export runs/synthetic --format yolo-obb --out runs/synthetic_yolo")
def export(
    source: Annotated[Path, typer.Argument(help="A prepared or synthetic set.")],
    out: Out,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="coco, roboflow-coco, dota, dota-task1 (labels as result files), yolo, yolo-obb, voc, metadata (CC-Diff's jsonl), "
            "huggingface or webdataset.",
        ),
    ],
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard links to the set's pictures: no room is taken, but a tool that rewrites them in place changes the set. "
            "Copies unless given (reflinks, where the file system can).",
        ),
    ] = False,
    picture_format: Annotated[
        str | None,
        typer.Option(help="Encode pictures as png, jpeg or webp; those that are it already, and all unless given, stay as they are."),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of jpeg (95 unless given) or webp (lossless unless given), 1 to 100.")
    ] = None,
    voc_origin: Annotated[
        int, typer.Option(help="VOC alone. 1: pixels counted from 1, the last one inside the box, as the devkit; 0: edges from 0.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Write a set in the folders that other tools read. The pictures are copied, so that no tool changes the set."""
    from dataclasses import asdict

    from ..console import finish, progress_bars
    from ..export import ExportOptions, export_set

    options = ExportOptions(link=link, picture_format=picture_format, quality=quality, voc_origin=voc_origin)
    with progress_bars(quiet=as_json) as progress:
        made = export_set(source, out, format, options=options, progress=progress)
    notes = []
    for title, counts in ((f"{format} cannot hold", made.lost), (f"{format} has these where not every reader looks", made.apart)):
        if counts:
            notes.append(f"{title}: {', '.join(f'{what} ({count})' for what, count in counts.items())}")
    already = "already exported, unchanged: " if made.resumed else ""
    finish(asdict(made), as_json=as_json, lines=[*notes, *made.said, f"{already}{format} export of {made.pictures} pictures: {made.entry}"])
