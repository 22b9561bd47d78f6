"""``ccdiff train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .binding import verb
from .common import Json, Out, overrides_of, shipped


@verb(app, epilog="Example: ccdiff train --recipe tiny --data runs/vhr10 --out runs/generator")
def train(
    data: Annotated[Path, typer.Option("--data", "-d", help="A prepared set.")],
    out: Out,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="The name of a shipped recipe, or the path of a file: ./mine.yaml.")
    ] = "tiny",
    start: Annotated[
        str | None, typer.Option("--from", help="Go on from a generator folder, or from the shipped model: tiny (./tiny: a folder).")
    ] = None,
    transplant: Annotated[
        bool,
        typer.Option("--transplant", help="With --from: take its encoders and the inner levels of its denoiser, the rest by the recipe."),
    ] = False,
    override: Annotated[list[str] | None, typer.Option("--set", help="Replace a key of the recipe: denoiser.train.steps=2000.")] = None,
    cpu: Annotated[bool, typer.Option(help="Do not use a GPU.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check recipe and data, print the plan, train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a generator. Resumes by itself; under `accelerate launch` it uses every GPU given."""
    from ..console import finish, progress_bars
    from ..recipes import load_recipe

    loaded = load_recipe(recipe, overrides_of(override))
    from ..training import plan
    from ..training import train as run

    if dry_run:
        finish(
            described := plan(loaded, data, start=shipped(start) if start else None, transplanted=transplant),
            as_json=as_json,
            lines=[f"{k}: {v}" for k, v in described.items()],
        )
        return
    with progress_bars(quiet=as_json) as progress:
        made = run(loaded, data, out, start=shipped(start) if start else None, transplanted=transplant, progress=progress, cpu=cpu)
    lines = [
        f"generator: {out} ({made['steps']} steps, loss {made['final_loss']:.4f}); validation pictures in {out}/train/samples",
        f"next: ccdiff synthesize --n 1000 --checkpoint {out} --layouts {data} --out runs/synthetic",
    ]
    finish({"generator": str(out), **made}, as_json=as_json, lines=lines)
