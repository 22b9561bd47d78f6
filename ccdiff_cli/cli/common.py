"""What several verbs share: kinds of options, values that are texts on the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from .binding import OUTPUT, WHAT


def finite(value: float | None) -> float | None:
    """The bounds of an option let NaN through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress to standard error.", rich_help_panel=OUTPUT)]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", help="Folder to write. An interrupted run is finished by the same command.", rich_help_panel=WHAT),
]


def overrides_of(pairs: list[str] | None) -> dict[str, Any]:
    from ..settings import overrides

    return overrides(pairs or [])
