"""``ccdiff init``, ``run`` and ``status``: a project file, and the chain it describes."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CCDiffError
from .app import app
from .binding import OUTPUT, verb
from .common import Json
from .stage import ProjectOption, opened


@verb(app, epilog="Example: ccdiff init DOTA --out ccdiff.yaml")
def init(
    data: Annotated[Path, typer.Argument(help="A data set as it lies on disk.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The project file to write.")] = Path("ccdiff.yaml"),
    format: Annotated[str | None, typer.Option(help="Of the data set; recognised from the folder unless given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a project file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a data set and write ccdiff.yaml for it: tile, size, recipe, splits, detector, each with its reason."""
    from ..console import finish, progress_bars
    from ..project import init_project
    from ..project.init import absent
    from ..project.place import flag_of

    with progress_bars(as_json=as_json) as progress:
        made = init_project(data, out, format=format, force=force, progress=progress)
    lines = [f"{made['format']}: {made['pictures']:,} pictures, {made['objects']:,} objects"]
    lines += [f"left out: {count:,} {reason}" for reason, count in made["skipped"].items()]
    lines += filter(None, [absent(made["classes"]), f"splits: {made['splits']}"])
    lines += [f"{key}: {value}" for key, value in made["proposed"].items()]
    flag = flag_of(made["project"])
    lines += [f"project file, with the reasons: {made['project']}", f"next: ccdiff prepare{flag}, or ccdiff run{flag} for the whole chain"]
    finish(made, as_json=as_json, lines=lines)


@verb(app, epilog="Example: ccdiff run --until synthesize")
def run(
    until: Annotated[str | None, typer.Option(help="The last stage: prepare, train, synthesize, export, evaluate or trainability.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; do nothing.", rich_help_panel=OUTPUT)] = False,
    file: ProjectOption = None,
    as_json: Json = False,
) -> None:
    """The whole chain of the project file, stage by stage; what is up to date is passed over, what was interrupted goes on."""
    from ..console import finish
    from ..project import run_project
    from ..project.place import flag_of

    project = _project(file)

    def carry_out(state: Any) -> Any:
        arguments = [state.stage.verb, "--project", str(project.path)]
        if not as_json:
            app(args=arguments, prog_name="ccdiff", standalone_mode=False)
            return None
        with contextlib.redirect_stdout(io.StringIO()) as text:
            app(args=[*arguments, "--json"], prog_name="ccdiff", standalone_mode=False)
        return json.loads(text.getvalue())

    made = run_project(project, carry_out, until=until, dry_run=dry_run)
    lines = [f"{name}: {told}" for name, told in made["stages"].items()]
    lines.append("nothing was done (--dry-run)" if dry_run else f"next: ccdiff status{flag_of(project.path)}")
    finish(made, as_json=as_json, lines=lines)


@verb(app, epilog="Example: ccdiff status")
def status(file: ProjectOption = None, as_json: Json = False) -> None:
    """Each stage of the project file: done, stale (and which change made it so), begun or missing; how long it took, where it lies."""
    from rich.table import Table
    from rich.text import Text

    from ..console import finish
    from ..errors import visible
    from ..project import status_of
    from ..project.status import earlier_lines, next_step, status_rows

    made = status_of(_project(file))
    table = Table("stage", "state", "took", "where")
    for row in status_rows(made):
        table.add_row(*(Text(visible(text, lines=False)) for text in row))
    finish(made, as_json=as_json, lines=[table, *earlier_lines(made), next_step(made)])


def _project(file: Path | None) -> Any:
    from ..project import PROJECT_FILE

    project = opened(file)
    if project is None:
        raise CCDiffError(f"there is no {PROJECT_FILE} here or above", fix="`ccdiff init DATA` writes one; or name it: --project FILE")
    return project
