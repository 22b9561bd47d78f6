"""``ccdiff repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from ..synthesis.options import RepairOptions
from .app import app
from .binding import verb
from .common import Json, Out
from .completion import sets


@verb(app, epilog="Example: ccdiff repair runs/synthetic --real runs/vhr10 --out runs/repaired")
def repair(
    source: Annotated[Path, typer.Argument(help="A synthetic set; it stays as it is.", autocompletion=sets)],
    real: Annotated[Path, typer.Option(help="The prepared set whose val split says when a detector is sure.", autocompletion=sets)],
    out: Out,
    options: RepairOptions,
    as_json: Json = False,
) -> None:
    """Make a set with the labels that a detector sees in the pictures of a synthetic one: shifted, dropped, added, all counted and on
    record. What the detector does wrong becomes labels, so hold the new set against the old one."""
    from ..console import finish, progress_bars
    from ..synthesis import repair_set

    with progress_bars(as_json=as_json) as progress:
        made = repair_set(source, real, out, options, progress=progress)
    finish(made, as_json=as_json, lines=_lines(made, source, real, out))


def _lines(made: dict[str, Any], source: Path, real: Path, out: Path) -> list[RenderableType]:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("labels")
    rows = made["per_class"]
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{n:,}" for n in row.values()))
    unjudged = [name for name, score in made["missing"].items() if score <= 0]
    return [
        table,
        f"sure: from a score of {made['sure']:.2f} on" if made["sure"] is not None else "no detection is sure: nothing was moved or added",
        *([f"never dropped, for the detector misses too many real ones: {', '.join(unjudged)}"] if unjudged else []),
        f"pictures left out, without any label: {made['pictures_without_a_label_left']:,}",
        f"repaired set: {out}",
        f"next: ccdiff eval-trainability --real {real} --synthetic {source} --other repaired={out} --arm synthetic=1 --arm repaired=1 "
        "--out runs/trainability",
    ]
