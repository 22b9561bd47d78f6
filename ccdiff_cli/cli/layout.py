"""``ccdiff layout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..layouts.options import LayoutOptions
from ..options import MOST_SEED
from .app import app
from .binding import verb
from .common import Json
from .completion import sets


@verb(app, epilog="Example: ccdiff layout runs/vhr10 --source sampled --n 60 --out runs/layouts")
def layout(
    data: Annotated[Path, typer.Argument(help="A prepared set.", autocompletion=sets)],
    options: LayoutOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("runs/layouts"),
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", min=1, max=10**15, help="How many layouts: 60, or to compare as many as half of the set, unless given."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Fit every source to half of the set, and measure how far it is from the other half.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the layouts.")] = 0,
    as_json: Json = False,
) -> None:
    """Show the layouts of a source as pictures and in numbers; nothing is synthesized."""
    from ..console import finish, progress_bars
    from ..layouts.llm import writer_of
    from ..layouts.show import compare_layouts, comparison_table, show_layouts, statistics_table

    writer = writer_of(options.llm_url, options.llm_model, options.llm_captions)
    with progress_bars(as_json=as_json) as progress:
        if compare:
            made = compare_layouts(data, out, split=options.split, seed=seed, n=n, writer=writer, progress=progress)
        else:
            made = show_layouts(data, out, n or 60, options, seed=seed, writer=writer, progress=progress)
    if compare:
        finish(
            made, as_json=as_json, lines=[comparison_table(made), f"comparison: {out}/comparison.json; layouts of each source: {out}/*.png"]
        )
        return
    llm = [f"language model: {', '.join(f'{k} {v}' for k, v in made['llm'].items() if k != 'reasons')}"] if made["llm"] else []
    balance = f"--balance {options.balance} " if options.balance != "none" else ""
    balance += f"--misses {options.misses} " if options.misses else ""
    follow = (
        f"next: ccdiff synthesize --n 1000 --checkpoint runs/generator --layouts {data} --layout-source {made['source']} {balance}"
        "--out runs/synthetic"
    )
    finish(made, as_json=as_json, lines=[statistics_table(made), *llm, f"layouts: {made['sheet']}", follow])
