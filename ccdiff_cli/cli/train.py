"""``ccdiff train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..training.options import TrainOptions
from .app import app
from .binding import OUTPUT, WHAT, verb
from .common import Json, Out
from .completion import sets
from .stage import At, follow


@verb(app, epilog="Example: ccdiff train --recipe tiny --data runs/vhr10 --out runs/generator", at=At("train"))
def train(
    data: Annotated[Path, typer.Option("--data", "-d", help="A prepared set.", rich_help_panel=WHAT, autocompletion=sets)],
    out: Out,
    options: TrainOptions,
    dry_run: Annotated[bool, typer.Option(help="Check recipe and data, print the plan, train nothing.", rich_help_panel=OUTPUT)] = False,
    as_json: Json = False,
) -> None:
    """Train a generator. Resumes by itself; under `accelerate launch` it uses every GPU given."""
    from ..console import finish, progress_bars, to_stderr
    from ..generator import generator_folder
    from ..recipes import load_recipe

    recipe = load_recipe(options.recipe, options.overrides, base=options.base)
    from ..training import plan
    from ..training import train as run

    start = generator_folder(options.start) if options.start else None
    if dry_run:
        described = plan(recipe, data, out, start=start, transplanted=options.transplant)
        finish(described, as_json=as_json, lines=[f"{k}: {v}" for k, v in described.items()])
        return
    with progress_bars(as_json=as_json) as progress:
        made = run(
            recipe, data, out, start=start, transplanted=options.transplant, progress=progress, say=to_stderr,
            cpu=options.cpu, threads=options.threads,
        )  # fmt: skip
    lines = [
        f"generator: {out} ({made['steps']} steps, loss {made['final_loss']:.4f}); validation pictures in {out}/train/samples",
        follow(f"next: ccdiff synthesize --n 1000 --checkpoint {out} --layouts {data} --out runs/synthetic"),
    ]
    finish({"generator": str(out), **made}, as_json=as_json, lines=lines)
