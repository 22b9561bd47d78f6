"""Options as types: what a stage of the chain can be told, in one place for the command line, Python, project files and their schema.

A room owns its options: a frozen model in ``ROOM/options.py``, whose fields carry default, bounds and help text (``description``), and with
:class:`Option` what only the command line asks for (names of flags, panel of the help).  ``cli.binding`` makes flags of them,
:func:`checked_options` reads them from a file, ``model_json_schema`` describes them to an editor.

NOTE: modules of options import neither torch nor scipy nor diffusers: ``--help`` reads them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import CCDiffError

MOST_PROCESSES, MOST_SEED = 1024, 2**63 - 1
"""Bounds of options: more would be a slip of the hand."""


class Options(BaseModel):
    """Options of a stage, or a group of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=False)


@dataclass(frozen=True)
class Option:
    """What the command line asks of a field besides its type, default, bounds and description; stands in its ``Annotated``.

    Attributes:
        names: of the flag, where they are not the field's: ``("--n", "-n")``, ``("--keep-partial/--drop-partial",)``.
        panel: title of the help's panel; of a field of a group, that of the group unless given.
        first: one of those that matter most: shown first, and in every help.
        metavar: what stands for the value in the help.
        complete: a kind of names that a shell completes: a key of ``cli.completion.COMPLETERS``.
        kind: type of the flag's value, where it is not the field's: ``str`` of what a validator of the model takes apart.
        renamed: of a group: names of flags in place of those that its fields say, ``(("source", ("--layout-source",)),)``.
    """

    names: tuple[str, ...] = ()
    panel: str | None = None
    first: bool = False
    metavar: str | None = None
    complete: str | None = None
    kind: Any = None
    renamed: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Unfit(ValueError):
    """Raised by a validator of options: values that do not fit together.

    Args:
        key: the option to change, dotted, seen from the model that raises it.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, key: str = "", fix: str | None = None) -> None:
        super().__init__(what)
        self.key, self.fix = key, fix


Model = TypeVar("Model", bound=BaseModel)


def checked_options(
    model: type[Model],
    values: Any,
    *,
    where: str | Path | None,
    fix: str | None = None,
    place: Callable[[tuple[str, ...]], str | None] = lambda path: None,
) -> Model:
    """Values as a model.

    Args:
        values: keys and values as a file of settings, or the command line, gives them.
        where: the file they come from.
        place: where a key (its path) was given, in place of ``where`` and the key: its flag.

    Raises:
        CCDiffError: naming the first key that does not fit, what was found and what was expected; unknown keys with those that are known.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = problem_of(error, model)
        flag = place(problem.path)
        key = "" if flag is not None else f"{problem.key}: " if problem.key else ""
        raise CCDiffError(f"{key}{problem.what}", where=flag or where, fix=problem.fix or fix) from None


@dataclass(frozen=True)
class Problem:
    """The first thing that pydantic does not like.

    Attributes:
        path: the keys that lead to it; ``key``: the same as a text, ``steps[2].name``.
        what: found and expected, in one sentence, with the number of further problems.
        fix: known keys or the description of the field; None where there is nothing to say.
    """

    path: tuple[str, ...]
    key: str
    what: str
    fix: str | None


def problem_of(error: ValidationError, model: Any = None) -> Problem:
    """What an error of pydantic says, for people."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    loc = (*first["loc"], *cause.key.split(".")) if isinstance(cause, Unfit) and cause.key else first["loc"]
    place = [part for part in loc if isinstance(part, int) or not (part.startswith(_PREFIXES) or part in _BRANCHES)]
    path = tuple(part for part in place if isinstance(part, str))
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    *_, (holder, field) = _fields_along(model, path)
    fix = field.description if field is not None and field.description else None
    fix = f"{key}: {fix}" if fix else None
    if first["type"] == "missing":
        what = "the key is missing"
    elif first["type"] == "extra_forbidden":
        what, fix = "unknown key", _known(str(first["loc"][-1]), list(getattr(holder, "model_fields", ())))
    elif isinstance(cause, Unfit):
        what, fix = str(cause), cause.fix or fix
    else:
        what = _expected(first["msg"])
        if not (isinstance(cause, ValueError) and isinstance(first["input"], dict)):
            what = f"{what}, found {shown(first['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return Problem(path, key, f"{what}{more}", fix)


def _known(key: str, names: Sequence[str]) -> str | None:
    """The known keys, the one that was probably meant first."""
    longer = [name for name in names if key.startswith(f"{name}_") or name.startswith(f"{key}_")]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.8) or longer or difflib.get_close_matches(key, names, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"known keys: {', '.join(names)}" if names else None


_PREFIXES = ("function-", "constrained-", "lax-or-strict", "json-or-python", "literal[", "tuple[", "list[", "dict[")
_BRANCHES = {"bool", "int", "float", "str", "none", "nullable"}
"""What pydantic calls the branches of a union: no keys of the file."""
_WORDS = {"Input should be": "expected", "a valid dictionary": "an object", "a valid integer": "a whole number", "a valid ": "a "}


def _expected(message: str) -> str:
    text = message.removeprefix("Value error, ")
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    text = text.partition(" or instance of")[0]
    return f"{text[:1].lower()}{text[1:]}"


def _fields_along(model: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    """(model, its field) for each key of a path, from the outermost on; at the end what the last key is."""
    field = None
    yield model, None
    for name in path:
        if model is None:
            return
        field = getattr(model, "model_fields", {}).get(name)
        yield model, field
        model = group_of(field.annotation) if field is not None else None


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation names, alone or beside None."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def option_of(field: Any) -> Option:
    """What a field's ``Annotated`` says for the command line."""
    return next((entry for entry in field.metadata if isinstance(entry, Option)), Option())


def flag_names(model: type[BaseModel]) -> dict[str, str]:
    """Name of a flag -> the field it sets, where the two differ: ``from``, ``set``."""
    named = ((name, option_of(field).names) for name, field in model.model_fields.items())
    flags = {names[0].partition("/")[0].lstrip("-").replace("-", "_"): name for name, names in named if names}
    return {flag: name for flag, name in flags.items() if flag not in model.model_fields}


def by_field(model: type[BaseModel] | None, values: Any) -> Any:
    """A section by the names of its model."""
    if model is None or not isinstance(values, Mapping):
        return values
    flags = flag_names(model)
    found: dict[Any, Any] = {}
    for key, value in values.items():
        name = flags.get(str(key), key)
        if name in found or (name != key and name in values):
            raise Unfit(f"{key} and {name} are the same option", key=f"{key}", fix="give it once")
        found[name] = value
    return found


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path -> a mapping of groups."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        node = found
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return found


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: short, on one line, whatever it is."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    try:
        text = ascii(value)
    except ValueError:  # an int of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."
