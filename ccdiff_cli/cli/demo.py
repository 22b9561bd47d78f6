"""``ccdiff demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .binding import verb
from .common import Json


@verb(app, epilog="Example: ccdiff demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; run again to continue.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole chain in minutes, without network: drawn pictures, a short training, synthesis, export, detector, report."""
    from ..console import finish, progress_bars
    from ..demo import run_demo

    with progress_bars(as_json=as_json) as progress:
        made = run_demo(out, seed=seed, progress=progress)
    finish(made, as_json=as_json, lines=made.get("lines", []))
