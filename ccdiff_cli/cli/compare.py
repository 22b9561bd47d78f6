"""``ccdiff compare``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import MOST_PROCESSES
from .app import app
from .binding import OUTPUT, verb
from .common import Json, Out


@verb(app, epilog="Example: ccdiff compare compare.yaml --out runs/compare --dry-run")
def compare(
    file: Annotated[Path, typer.Argument(help="What is compared: sets, methods, budget; see docs/comparison.md.")],
    out: Out,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, help="Of synthesis and detectors; one per GPU, or one, unless given."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check sets and recipes, print the plan; write nothing.", rich_help_panel=OUTPUT)] = False,
    as_json: Json = False,
) -> None:
    """Generators side by side: trains, synthesizes and measures every method on every set, and writes the two published tables."""
    from ..compare import compare as run
    from ..compare import read_comparison
    from ..console import finish, progress_bars

    config = read_comparison(file)
    with progress_bars(as_json=as_json) as progress:
        made = run(config, out, processes=processes, dry_run=dry_run, progress=progress)
    finish(made, as_json=as_json, lines=_plan_lines(made) if dry_run else _lines(made, out))


def _plan_lines(made: dict[str, Any]) -> list[Any]:
    lines = []
    for name, rows in made["sets"].items():
        pictures, detectors = made["pictures"][name], made["detectors"][name]
        lines += [
            f"{name} / {row}: recipe {said['recipe']}, {said['pictures seen']:,} pictures seen, generator {said['generator']}"
            for row, said in rows.items()
        ]
        lines.append(f"{name}: of each row {pictures['quality']:,} pictures to judge and {pictures['training']:,} to train detectors with")
        lines.append(
            f"{name}: detectors of {detectors['arms']} arms x {len(detectors['seeds'])} seeds, {detectors['steps']:,} steps "
            f"(match: {detectors['match']}), besides those of the yardstick"
        )
    return [*lines, "nothing was written (--dry-run)"]


def _lines(made: dict[str, Any], out: Path) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    from ..errors import visible
    from ..report.compare import sentences, tables_of

    lines: list[Any] = []
    for name, said in made["sets"].items():
        for title, head, rows in tables_of(said)[:2]:
            table = Table(title=Text(visible(f"{name}: {title}", lines=False)), title_justify="left", show_edge=False)
            for k, column in enumerate(head):
                table.add_column(Text(re.sub(r" \[.*?\]", "", column)), justify="right" if k else "left")
            for row in rows:
                table.add_row(*(Text(visible(cell, lines=False)) for cell in row))
            lines.append(table)
        lines += [f"{name}: {text}" for text in sentences(said)]
    return [
        *lines,
        f"report: {out}/report.html (tables: {out}/table.md, {out}/table.tex)",
        "next: open the report; docs/comparison.md reads one",
    ]
