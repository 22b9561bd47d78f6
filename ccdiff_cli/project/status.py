"""``ccdiff status``: how each stage of a project stands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .file import Project
from .place import flag_of
from .stages import STAGES, State, states_of


def status_of(project: Project) -> dict[str, Any]:
    """The state of every stage, JSON-able: ``project``, ``stages`` (in order) and ``earlier`` (folders of other settings)."""
    states = states_of(project)
    used = {state.folder.name for state in states.values()}
    left = sorted(p for p in project.runs.iterdir() if p.is_dir() and _is_ours(p) and p.name not in used) if project.runs.is_dir() else []
    return {
        "project": str(project.path),
        "stages": [_told(project, state) for state in states.values()],
        "earlier": [str(path) for path in left],
    }


def _is_ours(folder: Path) -> bool:
    name, dash, key = folder.name.rpartition("-")
    return bool(dash) and name in STAGES and len(key) == 8


def _told(project: Project, state: State) -> dict[str, Any]:
    return {
        "stage": state.stage.name,
        "verb": state.stage.verb,
        "state": state.state if project.asks_for(state.stage.name) else f"{state.state}, not in the file",
        "why": list(state.why),
        "typed": list(state.typed),
        "folder": str(state.folder),
        "seconds": state.seconds,
        "finished": state.finished,
        "earlier": str(state.earlier) if state.earlier else None,
    }


def status_rows(status: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows for a table: stage, state with its reason, time taken, place."""
    rows = []
    for stage in status["stages"]:
        why = f": {'; '.join(stage['why'])}" if stage["why"] else ""
        why += f" (typed: {', '.join(stage['typed'])})" if stage["typed"] else ""
        where = stage["folder"] if stage["state"].startswith(("done", "begun")) else stage["earlier"]
        place = os.path.relpath(where, Path(status["project"]).parent) if where else "-"
        rows.append((stage["stage"], f"{stage['state']}{why}", duration(stage["seconds"]), place))
    return rows


def next_step(status: dict[str, Any]) -> str:
    """What to run now, in one line."""
    todo = [s for s in status["stages"] if not s["state"].startswith("done") and "not in the file" not in s["state"]]
    if not todo:
        return "all stages are done"
    flag = flag_of(status["project"])
    return f"next: ccdiff {todo[0]['verb']}{flag}, or ccdiff run{flag} for {'all of the rest' if len(todo) > 1 else 'the same'}"


def duration(seconds: float | None) -> str:
    """ "12 s", "3 min", "2.1 h"; "-" where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def earlier_lines(status: dict[str, Any]) -> Iterator[str]:
    """Folders of earlier settings: they stay until somebody deletes them."""
    if status["earlier"]:
        yield f"of earlier settings, kept: {', '.join(status['earlier'])}"
