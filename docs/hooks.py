"""mkdocs: the pages that are made from the types, so that they cannot go stale: every option of every verb, every key of every recipe.

NOTE: mkdocs loads this file by its path; ``ccdiff_cli`` is the one that is installed beside it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ccdiff_cli.cli import app
from ccdiff_cli.compare import Comparison
from ccdiff_cli.detectors import DetectorConfig
from ccdiff_cli.methods import METHODS
from ccdiff_cli.methods.recipe import Recipe
from ccdiff_cli.options import group_of
from ccdiff_cli.project.file import ProjectFile
from ccdiff_cli.trainability.config import ExperimentConfig

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "null", Any: "anything"}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that no file holds."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Path below ``docs/`` -> Markdown."""
    return {
        "reference/options.md": options_page(),
        "reference/project.md": project_page(),
        "reference/comparison.md": comparison_page(),
        "reference/recipes.md": recipes_page(),
    }


# ---- options of the verbs ----


def options_page() -> str:
    """Every verb with its arguments and options, as ``--help-all`` has them."""
    command = typer.main.get_command(app)
    told = [
        "# Options of the verbs",
        "Made from the program itself. `ccdiff VERB --help` shows the same for one verb, `--help-all` where a help is cut to the screen.",
    ]
    for name in command.list_commands(None):  # type: ignore[attr-defined]
        verb = command.get_command(None, name)  # type: ignore[attr-defined]
        told += [f"## ccdiff {name}", _text(verb.help), f"```bash\n{verb.epilog.removeprefix('Example: ')}\n```"]
        panels: dict[str, list[Any]] = {}
        fields = getattr(verb.callback, "fields", {})
        for parameter in verb.params:
            if not {"--help", "--help-all"} & set(parameter.opts):
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
        for panel, parameters in panels.items():
            told += [f"### {panel} {{ #{name}-{panel.lower().replace(' ', '-')} }}"] if panel and len(panels) > 1 else []
            told.append(
                table(("option", "value", "unless given", "what it does"), (_option_row(p, fields.get(p.name)) for p in parameters))
            )
    return "\n\n".join(told) + "\n"


def _option_row(parameter: Any, field: Any) -> tuple[str, ...]:
    argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    flag = not argument and parameter.is_flag
    value = "" if flag else kind(parameter.type_descriptor.annotation)
    value += "" if parameter.min is None and parameter.max is None else f", {_range(parameter.min, parameter.max)}"
    value += _bounds(field) if field is not None else ""
    default = parameter.default() if callable(parameter.default) else parameter.default
    unless = "**required**" if parameter.required else "" if default in (None, False, "", (), []) else f"`{_shown(default)}`"
    if flag and parameter.secondary_opts and default is not None:
        unless = f"`{parameter.opts[0] if default else parameter.secondary_opts[0]}`"
    return ", ".join(f"`{name}`" for name in names), value, unless, _text(parameter.help)


# ---- keys of the project file ----


def project_page() -> str:
    """Every key of ``ccdiff.yaml``."""
    told = [
        "# The project file",
        "Made from the types that check `ccdiff.yaml`, which `ccdiff init DATA` writes with its reasons. A section holds the options of "
        "its verb; what is given on the command line wins. Paths are seen from the file's own folder.",
    ]
    keys = {key: field for key, field in keys_of(ProjectFile) if not key.startswith(("synthesize.layouts", "synthesize.filter"))}
    return "\n\n".join([*told, _keys_table(keys)]) + "\n"


def comparison_page() -> str:
    """Every key of a file for ``ccdiff compare``."""
    told = [
        "# The comparison file",
        "Made from the types that check a file of `ccdiff compare`. `methods` holds a group for each row; its keys are shown once; "
        "`synthesize`, `evaluate` and `trainability` hold the options of their verbs. Paths are seen from the file's own folder.",
    ]
    return "\n\n".join([*told, _keys_table(dict(keys_of(Comparison)))]) + "\n"


# ---- keys of recipes ----


def recipes_page() -> str:
    """Every key of every recipe: those that all methods share, those of each method, those of an experiment."""
    shared = dict(keys_of(Recipe))
    told = [
        "# Keys of recipes",
        "Made from the types that check a recipe. A recipe is a YAML file; `--recipe NAME` names a shipped one, `--recipe ./mine.yaml` a "
        "file of yours, and `--set denoiser.train.steps=2000` replaces one key. The shipped files say the same beside each key.",
        "## Shipped recipes",
        table(("recipe", "method", "what it is"), _shipped()),
        "## Keys of every method",
        _keys_table(shared),
    ]
    for name, method in METHODS.items():
        own = {key: field for key, field in keys_of(method.recipe) if key not in shared or _changed(field, shared[key])}
        told += [f"## Method {name}", f"{method.title}. Besides the keys above, or in place of them:"]
        told.append(_keys_table(own) if own else "Nothing.")
    told += [
        "## Keys of an experiment",
        "Of `eval-trainability --recipe`; `--set` takes them, too.",
        _keys_table(dict(keys_of(ExperimentConfig, stop=DetectorConfig))),
    ]
    told += [
        "## Keys of a detector",
        "Under `detector:` of an experiment, or in a file for `--detector`.",
        _keys_table(dict(keys_of(DetectorConfig))),
    ]
    return "\n\n".join(told) + "\n"


def keys_of(model: type[BaseModel], prefix: str = "", stop: type[BaseModel] | None = None) -> Iterator[tuple[str, Any]]:
    """(dotted key, field) of a model and of the models in it."""
    for name, field in model.model_fields.items():
        inner = group_of(field.annotation)
        yield f"{prefix}{name}", field
        if inner is not None and inner is not stop:
            yield from keys_of(inner, f"{prefix}{name}.", stop)


def _changed(field: Any, shared: Any) -> bool:
    return (field.annotation, field.default, field.description) != (shared.annotation, shared.default, shared.description) and group_of(
        field.annotation
    ) is None


def _shipped() -> Iterator[tuple[str, ...]]:
    for path in sorted(RECIPES.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        method = "eval-trainability" if path.stem.startswith("trainability-") else values.get("method") or values["conditioning"]["variant"]
        yield f"`{path.stem}`", method, _text(values["description"])


def _keys_table(keys: dict[str, Any]) -> str:
    return table(("key", "value", "unless given", "what it is"), (_key_row(key, field) for key, field in keys.items()))


def _key_row(key: str, field: Any) -> tuple[str, ...]:
    inner = group_of(field.annotation)
    if inner is not None:
        about = field.description or (inner.__doc__ or "").strip().splitlines()[0]
        return f"**`{key}`**", "group of keys" + (" or null" if type(None) in get_args(field.annotation) else ""), "", _text(about)
    value = kind(field.annotation) + _bounds(field)
    default = field.get_default(call_default_factory=True)
    unless = "**required**" if default is PydanticUndefined else "null" if default is None else f"`{_shown(default)}`"
    return f"`{key}`", value, unless, _text(field.description)


def _bounds(field: Any) -> str:
    """The range of a field of a model, after a comma; "" where it has none."""
    bounds = {name: getattr(m, name) for m in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    return "" if low is None and high is None else f", {_range(low, high, above='gt' in bounds, below='lt' in bounds)}"


def kind(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{_shown(a)}`" for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(a) for a in arguments))
    if origin in (tuple, list):
        return f"list of {kind(arguments[0])}" if arguments[1:] in ((...,), ()) else f"[{', '.join(map(kind, arguments))}]"
    if origin is dict:
        return f"{kind(arguments[0])}: {kind(arguments[1])}"
    return PLAIN.get(annotation) or getattr(annotation, "__name__", str(annotation))


# ---- words ----


def table(heads: tuple[str, ...], rows: Any) -> str:
    """A Markdown table."""
    lines = [" | ".join(row) for row in (heads, ("---",) * len(heads), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _range(low: Any, high: Any, *, above: bool = False, below: bool = False) -> str:
    first, last = f"above {_shown(low)}" if above else f"{_shown(low)}", f"below {_shown(high)}" if below else f"{_shown(high)}"
    if high is None:
        return first if above else f"{first} or more"
    if low is None:
        return last if below else f"at most {last}"
    return f"{first} to {last}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_shown(v)}' for k, v in value.items())}}}"
    return '""' if value == "" else "null" if value is None else str(value)


def _text(text: str | None) -> str:
    """A help text in one line of Markdown: what looks like HTML or a column is not, but in code it stays as it is."""
    parts = re.split(r"(`[^`]*`)", " ".join((text or "").replace("``", "`").split()))
    return "".join(p.replace("|", "\\|") if p.startswith("`") else re.sub(r"([|<*_\[])", r"\\\1", p) for p in parts)
