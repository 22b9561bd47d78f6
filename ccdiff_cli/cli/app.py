"""The program: its verbs by name, and how a command line ends.

A verb's module is imported when the verb is asked for, and heavy libraries inside its function, so ``--help`` is instant and no verb pays
for another.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info, get_command_name

from .. import __version__
from ..errors import EditedSet
from ..startup import INTERRUPTED, Terminated, leave_current_folder

VERBS = {
    "init": "project",
    "run": "project",
    "status": "project",
    "prepare": "prepare",
    "train": "train",
    "misses": "misses",
    "layout": "layout",
    "synthesize": "synthesize",
    "repair": "repair",
    "export": "export",
    "eval-trainability": "trainability",
    "evaluate": "evaluate",
    "compare": "compare",
    "inspect": "sets",
    "verify": "sets",
    "merge-tiles": "prepare",
    "demo": "demo",
    "import-checkpoint": "checkpoints",
    "export-checkpoint": "checkpoints",
    "doctor": "doctor",
}
"""Verb -> the module of this folder that holds it."""


def descriptions() -> dict[str, str]:
    """Verb -> the docstring of its function, read from the sources of this folder: importing all of them takes longer than all else."""
    found = {}
    for module in dict.fromkeys(VERBS.values()):
        for node in ast.parse(Path(__file__).with_name(f"{module}.py").read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                found[node.name.replace("_", "-")] = ast.get_docstring(node) or ""
    return found


class _Verbs(TyperGroup):
    """Commands that are made when they are asked for; for the list of all of them, what their modules say of them is enough."""

    said: Mapping[str, str] | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.said = descriptions()
        try:
            super().format_help(ctx, formatter)
        finally:
            self.said = None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if self.said is not None:
            return TyperCommand(cmd_name, help=self.said[cmd_name])
        if cmd_name in VERBS and cmd_name not in self.commands:
            importlib.import_module(f"{__package__}.{VERBS[cmd_name]}")
            for info in app.registered_commands:
                name = info.name or get_command_name(info.callback.__name__)  # type: ignore[union-attr]
                if name == cmd_name:
                    self.commands[name] = get_command_from_info(
                        info, pretty_exceptions_short=app.pretty_exceptions_short, rich_markup_mode=app.rich_markup_mode
                    )
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="ccdiff",
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Multiply a labelled set of aerial pictures with layout-conditioned diffusion (CC-Diff++), and measure whether a detector gains."
    "\n\n"
    "The chain: **prepare** → **train** → **synthesize** → **export** / **eval-trainability**. Try `ccdiff demo` first.",
)


def _version(value: bool) -> None:
    if value:
        print(f"ccdiff {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    pass


def _show_once(show: Any) -> Any:
    """How a warning is shown: that a set was edited as a line of ours, and once, however often the set is read."""
    said: set[str] = set()

    def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, EditedSet):
            show(message, category, *place, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    return shown


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code: 0, 2 for bad input (one message), 130, 141, 143 after a signal, 1 for a bug."""
    leave_current_folder()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ..console import guarded_streams
    from ..failures import BAD_INPUT, NO_MEMORY, check_surroundings, flush_streams, tell

    given = sys.argv[1:] if arguments is None else list(arguments)
    with guarded_streams(), warnings.catch_warnings():
        warnings.simplefilter("always", EditedSet)
        warnings.showwarning = _show_once(warnings.showwarning)
        try:
            check_surroundings(given)
            code = app(args=given, prog_name="ccdiff", standalone_mode=False)
            if code == INTERRUPTED:
                raise Terminated if Terminated.came else KeyboardInterrupt
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            try:
                code = tell(error, as_json="--json" in given)
            except MemoryError:  # not even for the message
                os.write(2, NO_MEMORY)
                code = BAD_INPUT
    flush_streams()
    raise SystemExit(code if isinstance(code, int) else 0)
