"""A verb as a stage of a project: what the project file says is put below what was typed, and a finished stage leaves its receipt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import visible
from ..project.place import INPUTS, flag_of, missing, project_path

if TYPE_CHECKING:
    from ..project import Project

ProjectOption = Annotated[
    Path | None,
    typer.Option("--project", help="Project file; the nearest ccdiff.yaml unless given.", rich_help_panel="Output"),
]
AFTER = {"prepare": "train", "train": "synthesize", "synthesize": "eval-trainability", "evaluate": "eval-trainability"}
_running: ContextVar[tuple[str, Path] | None] = ContextVar("stage and project file", default=None)


@dataclass(frozen=True)
class At:
    """A verb's place in a project.

    Attributes:
        stage: a key of ``project.STAGES``.
        aside: an option with which the verb does something else than the stage, in a folder of its own.
        dry: options with which nothing is finished, so no receipt is written.
    """

    stage: str
    aside: str | None = None
    dry: tuple[str, ...] = ("dry_run",)

    @property
    def fills(self) -> tuple[str, ...]:
        """The verb's parameters that name folders."""
        return (*INPUTS[self.stage], "out")


@contextlib.contextmanager
def at_stage(
    at: At, file: Path | None, verb: str, typed: Mapping[str, Mapping[tuple[str, ...], Any]], given: dict[str, Any], required: Sequence[str]
) -> Iterator[dict[str, dict[str, Any]]]:
    """The values of the verb's models, the project's below what was typed; ``given`` gets the folders.

    Raises:
        CCDiffError: no project, and a folder that is required was not typed; see also ``project.fill``.
    """
    project = opened(file)
    if project is None:
        if lacking := [name for name in required if given[name] is None]:
            raise missing(lacking, verb)
        yield {}
        return
    from ..project import fill, recorded

    folders = {name: given[name] for name in at.fills if given[name] is not None}
    filled = fill(project, at.stage, typed, folders, aside=at.aside if at.aside and given.get(at.aside) else None)
    for name, folder in filled.paths.items():
        given[name] = [folder] if name == "synthetic" and at.stage == "evaluate" else folder
    for name, texts in filled.own.items():
        given[name] = [*texts, *(given[name] or [])]
    print(f"project: {visible(str(project.path), lines=False)}", file=sys.stderr)
    token = _running.set((at.stage, project.path))
    try:
        unfinished = any(given.get(name) for name in at.dry) or ("part",) in typed.get("work", {})
        with contextlib.nullcontext() if filled.state is None or unfinished else recorded(project, filled.state):
            yield filled.options
    finally:
        _running.reset(token)


def opened(file: Path | None) -> Project | None:
    """The project of a command: that of ``--project``, else the nearest above the current folder, if any."""
    path = file if file is not None else project_path()
    if path is None:
        return None
    from ..project import read_project

    return read_project(path)


def follow(line: str) -> str:
    """The last line of a verb: what to run next, which in a project needs no more than the verb's name (and that of a file elsewhere)."""
    running = _running.get()
    if running is None:
        return line
    stage, file = running
    flag, after = flag_of(file), AFTER.get(stage)
    return f"next: ccdiff {after}{flag}, or ccdiff run{flag} for all that is left" if after else f"next: ccdiff status{flag}"
