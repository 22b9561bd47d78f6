"""``ccdiff run``: every stage of a project that is not done, in order, each as its verb would do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import CCDiffError
from .file import Project
from .stages import STAGES, State, states_of

CarryOut = Callable[[State], Any]


def run_project(project: Project, carry_out: CarryOut, *, until: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Carry out what is not done.

    Args:
        carry_out: runs the verb of a stage in the project and returns its result; the stage is done when it comes back.
        until: the last stage to run; all that the file asks for unless given.
        dry_run: say what would be done.

    Returns:
        ``project``, ``stages`` (name -> "done before", "done now" or "to do") and ``results`` (name -> what its verb returned).

    Raises:
        CCDiffError: of a stage; those before it stay done, and the same command goes on.  An unknown stage.
    """
    if until is not None and until not in STAGES:
        raise CCDiffError(f"there is no stage {until!r}", where="--until", fix=f"choose {', '.join(STAGES)}")
    names = [name for name in STAGES if project.asks_for(name) or name == until]
    names = names[: names.index(until) + 1] if until is not None else names
    told: dict[str, str] = {}
    results: dict[str, Any] = {}
    for name in names:
        state = states_of(project, name)[name]  # anew: what was just made has a key now
        if state.state == "done":
            told[name] = "done before"
        elif dry_run:
            told[name] = "to do" + (f" ({'; '.join(state.why)})" if state.why else "")
        else:
            results[name] = carry_out(state)
            told[name] = "done now"
    return {"project": str(project.path), "stages": told, "results": results}
