"""Where a project file lies, which folders a verb takes from it, and what to say where there is none: light, for every verb asks."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ..errors import CCDiffError
from ..files import is_file

PROJECT_FILE = "ccdiff.yaml"
DATA = "data"
"""The raw set among a stage's inputs."""
INPUTS: dict[str, dict[str, str]] = {
    "prepare": {"source": DATA},
    "train": {"data": "prepare"},
    "synthesize": {"checkpoint": "train", "layouts": "prepare"},
    "export": {"source": "synthesize"},
    "evaluate": {"real": "prepare", "synthetic": "synthesize"},
    "trainability": {"real": "prepare", "synthetic": "synthesize"},
}
"""Stage -> the parameter of its verb -> the stage whose folder it is, or the raw set."""


def project_path(start: str | Path | None = None) -> Path | None:
    """The project file in a folder (the current one unless given) or the nearest above it; None where there is none."""
    try:
        here = Path(os.path.abspath(start or os.curdir))
    except FileNotFoundError:  # the current folder was deleted
        return None
    return next((folder / PROJECT_FILE for folder in (here, *here.parents) if is_file(folder / PROJECT_FILE)), None)


def flag_of(path: str | Path) -> str:
    """`` --project FILE`` where a command that is typed here would not find the project file by itself, else nothing."""
    full, found = os.path.abspath(path), project_path()
    if found is not None and os.path.realpath(found) == os.path.realpath(full):
        return ""
    near = os.path.relpath(full)
    return f" --project {shlex.quote(full if near.startswith(os.pardir) else near)}"


def missing(parameters: list[str], verb: str) -> CCDiffError:
    """What to say where a folder was neither typed nor known from a project file."""
    flags = ", ".join(p.upper() if p == "source" else f"--{p}" for p in parameters)
    return CCDiffError(
        f"{flags}: not given, and there is no {PROJECT_FILE} here or above that says it",
        where=f"ccdiff {verb}",
        fix=f"`ccdiff init DATA` writes one; or give {'it' if len(parameters) == 1 else 'them'}: ccdiff {verb} --help",
    )
