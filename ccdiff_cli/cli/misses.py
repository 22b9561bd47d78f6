"""``ccdiff misses``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import MOST_PROCESSES
from ..trainability.options import MissesOptions
from .app import app
from .binding import OUTPUT, verb
from .common import Json, Out
from .completion import sets


@verb(app, epilog="Example: ccdiff misses --real runs/vhr10 --out runs/misses")
def misses(
    real: Annotated[Path, typer.Option(help="A prepared set; its train split is used, val and test are not.", autocompletion=sets)],
    out: Out,
    options: MissesOptions,
    processes: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Trainings at a time; one a GPU, or one on a CPU, unless given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the folds and what they cost; train nothing.", rich_help_panel=OUTPUT)] = False,
    as_json: Json = False,
) -> None:
    """Find what a detector misses, and sees where nothing is, in training pictures it was not trained on: by cross-validation. Its file
    aims layouts: `layout` and `synthesize`, `--balance misses --misses OUT/misses.json`, with every source."""
    from ..console import finish, progress_bars
    from ..layouts.misses import MISSES
    from ..trainability import find_misses
    from ..trainability.console import misses_lines

    with progress_bars(as_json=as_json) as progress:
        made = find_misses(real, out, options, processes=processes, dry_run=dry_run, progress=progress)
    finish(made, as_json=as_json, lines=misses_lines(made, real, out, out / MISSES))
