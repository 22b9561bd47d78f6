"""``ccdiff export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..export.options import ExportOptions
from .app import app
from .binding import verb
from .common import Json, Out
from .stage import At


@verb(app, epilog="Example: ccdiff export runs/synthetic --format yolo-obb --out runs/synthetic_yolo", at=At("export"))
def export(
    source: Annotated[Path, typer.Argument(help="A prepared or synthetic set.")],
    out: Out,
    options: ExportOptions,
    as_json: Json = False,
) -> None:
    """Write a set in the folders that other tools read. The pictures are copied, so that no tool changes the set."""
    from dataclasses import asdict

    from ..console import finish, progress_bars
    from ..export import export_set

    with progress_bars(as_json=as_json) as progress:
        made = export_set(source, out, options, progress=progress)
    notes, format = [], options.format
    for title, counts in ((f"{format} cannot hold", made.lost), (f"{format} has these where not every reader looks", made.apart)):
        if counts:
            notes.append(f"{title}: {', '.join(f'{what} ({count})' for what, count in counts.items())}")
    already = "already exported, unchanged: " if made.resumed else ""
    finish(asdict(made), as_json=as_json, lines=[*notes, *made.said, f"{already}{format} export of {made.pictures} pictures: {made.entry}"])
