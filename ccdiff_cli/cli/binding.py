"""Verbs: a function whose parameters are options, models of options among them, becomes a command.

Notable here:

* A parameter whose annotation is a model (``options.Options``) becomes a flag for each of its fields, groups included; the function is
  given the model, built from what was said on the command line alone, so ``model_fields_set`` tells what was.
* Bounds are the model's: it checks what the parser takes, and its message names the flag.
* A help is as long as a screen (``SCREEN`` lines): arguments, required options, the ``first`` of each model and the panel Output are always
  shown, the others in their order as far as they fit; ``--help-all`` shows all.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Optional, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from ..options import Option, Options, checked_options, group_of, nested, option_of
from .completion import COMPLETERS
from .stage import At, ProjectOption, at_stage

SCREEN = 59
WHAT, OUTPUT = "What", "Output"
"""Panels: what is made of what, and what a verb says (its help included)."""


def verb(
    app: typer.Typer, name: str | None = None, *, epilog: str, at: At | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of ``app``; the function stays as it is.

    Args:
        at: the stage of a project that the verb is: what is not typed comes from the project file.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name, cls=Verb, epilog=epilog)(_flattened(function, at))
        return function

    return register


@dataclass(frozen=True)
class _Leaf:
    """One flag of a model: the parameter it belongs to, its path in the model, and how it is declared."""

    parameter: str
    path: tuple[str, ...]
    field: FieldInfo
    option: Option

    @property
    def name(self) -> str:
        return "__".join((self.parameter, *self.path))

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags; a switch is one that can be turned off as well, for a file of settings may have turned it on."""
        plain = self.path[-1].replace("_", "-")
        switch = bool in (self.field.annotation, *get_args(self.field.annotation))
        return self.option.names or (f"--{plain}/--no-{plain}" if switch else f"--{plain}",)

    @property
    def flag(self) -> str:
        return self.flags[0].partition("/")[0]


def _leaves(parameter: str, model: type[Options], path: tuple[str, ...] = (), group: Option | None = None) -> Iterator[_Leaf]:
    renamed = dict(group.renamed) if group is not None else {}
    for name, field in model.model_fields.items():
        option, inner = option_of(field), group_of(field.annotation)
        if inner is not None and issubclass(inner, Options):
            yield from _leaves(parameter, inner, (*path, name), option)
            continue
        option = Option(
            names=renamed.get(name, option.names),
            panel=option.panel or (group.panel if group is not None else None),
            first=option.first,
            metavar=option.metavar,
            complete=option.complete,
            kind=option.kind,
        )
        yield _Leaf(parameter, (*path, name), field, option)


def _flattened(function: Callable[..., None], at: At | None = None) -> Callable[..., None]:
    hints = get_type_hints(function, include_extras=True)
    models = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Options)}
    leaves = {leaf.name: leaf for name, kind in models.items() for leaf in _leaves(name, kind)}
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values() if p.name not in models]
    required = [p.name for p in own if at is not None and p.name in at.fills and p.default is p.empty]
    own = [_left_out(p) if p.name in required else p for p in own]

    @functools.wraps(function)
    def run(**given: Any) -> None:
        context = given.pop("context_")
        given.pop("help_all")
        said: dict[str, dict[tuple[str, ...], Any]] = {name: {} for name in models}
        for name, leaf in leaves.items():
            value, source = given.pop(name), context.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                said[leaf.parameter][leaf.path] = value
        values = {name: nested(said[name]) for name in models}
        with contextlib.ExitStack() as stack:
            if at is not None:
                file = given.pop("project_file")
                values |= stack.enter_context(at_stage(at, file, context.command.name, said, given, required))
            for name, kind in models.items():
                flags = {leaf.path: leaf.flag for leaf in leaves.values() if leaf.parameter == name}
                given[name] = checked_options(kind, values[name], where=None, fix=f"{context.command_path} --help", place=flags.get)
            function(**given)

    for parameter in own:
        if (info := _info(parameter)) is not None and not _is_argument(parameter):
            info.rich_help_panel = info.rich_help_panel or WHAT
    parameters = [*own, *(_parameter(leaf, can_wait=at is not None) for leaf in leaves.values())]
    asked = {p.name for p in parameters if p.default is p.empty or p.name in required}
    parameters.sort(key=lambda p: (not _is_argument(p), p.name not in asked, not _is_first(p, leaves), _panel(p) == OUTPUT))
    if at is not None:
        parameters.append(_named("project_file", ProjectOption, None))
    parameters.append(_named("context_", typer.Context, inspect.Parameter.empty))
    parameters.append(_named("help_all", HelpAll, False))
    run.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.fields = {leaf.name: leaf.field for leaf in leaves.values()}  # type: ignore[attr-defined]
    first = {p.name for p in parameters if _is_argument(p) or _is_first(p, leaves) or _panel(p) == OUTPUT}
    run.can_wait = {p.name for p in parameters} - first - asked  # type: ignore[attr-defined]
    return run


def _left_out(parameter: inspect.Parameter) -> inspect.Parameter:
    """A folder that a project file may say in place of the command line."""
    kind, info, *_ = get_args(parameter.annotation)
    return parameter.replace(annotation=Annotated[kind | None, info], default=None)


def _named(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(leaf: _Leaf, *, can_wait: bool) -> inspect.Parameter:
    """The flag of a leaf; ``can_wait``: a project file may say what is required."""
    field, option = leaf.field, leaf.option
    default: Any = field.get_default(call_default_factory=True)
    if field.is_required():
        default = None if can_wait else inspect.Parameter.empty
    info = typer.Option(
        *leaf.flags,
        help=field.description,
        metavar=option.metavar,
        rich_help_panel=option.panel or WHAT,
        show_default=option.kind is None and default not in ("", (), None),
        autocompletion=COMPLETERS[option.complete] if option.complete else None,
    )
    kind = option.kind or field.annotation
    if option.kind is not None:  # what the model makes of it is nothing that a flag could show
        default = default if field.is_required() and not can_wait else None
    listed = get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,)
    if listed:
        kind, default = list[get_args(kind)[0]], list(default) if field.default else None  # type: ignore[misc]
    elif get_origin(kind) is list:  # of texts that a validator takes apart
        default = None
    if field.is_required() and can_wait:
        kind = Optional[kind]  # noqa: UP045 (a type that is known as the program runs)
    return _named(leaf.name, Annotated[kind, info], default)


def _info(parameter: inspect.Parameter) -> Any:
    kinds = (typer.models.ParameterInfo,)
    return next((entry for entry in get_args(parameter.annotation) if isinstance(entry, kinds)), None)


def _is_argument(parameter: inspect.Parameter) -> bool:
    return isinstance(_info(parameter), typer.models.ArgumentInfo)


def _panel(parameter: inspect.Parameter) -> str | None:
    return getattr(_info(parameter), "rich_help_panel", None)


def _is_first(parameter: inspect.Parameter, leaves: dict[str, _Leaf]) -> bool:
    return parameter.name in leaves and leaves[parameter.name].option.first


# ---- help ----


def _show_all(context: typer.Context, value: bool) -> None:
    if value:
        context.meta[ALL] = True
        if text := context.get_help():
            typer.echo(text)
        raise typer.Exit


ALL = "ccdiff.help-all"
HelpAll = Annotated[bool, typer.Option("--help-all", is_eager=True, callback=_show_all, hidden=True, help="Show every option and leave.")]


class Verb(TyperCommand):
    """A command whose help fits on a screen."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = OUTPUT  # type: ignore[attr-defined]
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        others = [] if ctx.meta.get(ALL) else [p for p in self.params if self._can_wait(p)]
        fits = _most(len(others), lambda count: self._lines(ctx, formatter, others[count:]) <= SCREEN)
        with _hidden(others[fits:]), _literal(self.params):
            super().format_help(ctx, formatter)
        if others[fits:]:
            typer.echo(_more(ctx, len(others) - fits))

    def _lines(self, ctx: Any, formatter: Any, hidden: list[Any]) -> int:
        text = io.StringIO()
        with _hidden(hidden), _literal(self.params), contextlib.redirect_stdout(text):
            super().format_help(ctx, formatter)
        return text.getvalue().count("\n") + (2 if hidden else 0)

    def _can_wait(self, parameter: Any) -> bool:
        return parameter.name in getattr(self.callback, "can_wait", ()) and not parameter.hidden


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``count`` that fits, of a question that is answered yes up to some number and no beyond."""
    if fits(count):
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@contextlib.contextmanager
def _hidden(parameters: list[Any]) -> Iterator[None]:
    for parameter in parameters:
        parameter.hidden = True
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.hidden = False


MARKS = re.compile(r"(`[^`]*`)|([\\*_\[\]<>~&#])")
"""A span of code, or a character that means something in Markdown."""


@contextlib.contextmanager
def _literal(parameters: list[Any]) -> Iterator[None]:
    """Help is rendered as Markdown, for its spans of code: every other mark stands for itself, as in ``^(.+)_\\d+_\\d+$``."""
    texts = [getattr(parameter, "help", None) for parameter in parameters]
    for parameter, text in zip(parameters, texts, strict=True):
        parameter.help = MARKS.sub(lambda found: found[1] or f"\\{found[2]}", text) if text else text
    try:
        yield
    finally:
        for parameter, text in zip(parameters, texts, strict=True):
            parameter.help = text


def _more(ctx: Any, count: int) -> str:
    return f" {count} more option{'s' if count > 1 else ''}: {ctx.command_path} --help-all"
