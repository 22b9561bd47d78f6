"""``ccdiff inspect`` and ``verify``: a set looked through, and proved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CCDiffError
from ..inspection.options import InspectOptions
from .app import app
from .binding import verb
from .common import Json


@verb(app, epilog="Example: ccdiff inspect runs/vhr10 --out runs/vhr10_inspected")
def inspect(
    source: Annotated[Path, typer.Argument(help="A prepared or synthetic set, or a raw data set as it lies on disk.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for inspection.html and inspection.json; runs/inspect-NAME unless given.")
    ] = None,
    *,
    options: InspectOptions,
    as_json: Json = False,
) -> None:
    """Look a set through: counts, sizes, angles, suspicious boxes, pictures in two splits, drawn samples on one page."""
    from ..console import finish, progress_bars
    from ..inspection import inspect_set, tables

    target = out if out is not None else Path("runs") / f"inspect-{source.resolve().name}"
    with progress_bars(as_json=as_json) as progress:
        made = inspect_set(source, target, options, progress=progress)
    warnings = [f"warning: {text}" for text in made["warnings"]]
    finish(made, as_json=as_json, lines=[*tables(made), *warnings, f"page: {made['page']}"])


@verb(app, epilog="Example: ccdiff verify runs/synthetic")
def verify(
    source: Annotated[Path, typer.Argument(help="A prepared or synthetic set.")],
    accept: Annotated[
        bool, typer.Option("--accept", help="Take labels edited by hand, and pictures taken out, added or changed, as the set's own.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove a set whole: hashes, labels inside pictures, nothing missing or extra."""
    from ..console import finish, progress_bars
    from ..synthesis import accept_set, verify_set

    lines = []
    with progress_bars(as_json=as_json):
        if accept:
            edit = accept_set(source)
            lines = edit["lines"]
        made = verify_set(source)
    if not made["ok"]:
        found = made["problems"]
        more = f"; and {len(found) - 20} more" if len(found) > 20 else ""
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        raise CCDiffError(f"{count}: {'; '.join(found[:20])}{more}", where=source, fix=made["fix"])
    if accept:
        made = {**made, "accepted": edit}
    finish(made, as_json=as_json, lines=[*lines, f"{source} is whole: {made['pictures']} pictures, {made['objects']} objects"])
