"""``ccdiff doctor``."""

from __future__ import annotations

import typer

from .app import app
from .binding import verb
from .common import Json


@verb(app, epilog="Example: ccdiff doctor")
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what each missing piece costs and how to get it. Exit code 2 when the core does not work."""
    from ..console import finish
    from ..doctor import examine, lines

    state = examine()
    finish(state, as_json=as_json, lines=lines(state))
    if not state["ok"]:
        raise typer.Exit(2)
