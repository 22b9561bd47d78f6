"""Recipes: what a generator is made of and how it is trained, read from commented YAML.

A recipe fails when it is loaded, with the file, the key and the fix, never an hour into training.  ``recipes/tiny.yaml`` and
``recipes/ccdiffpp-sd14-dior.yaml`` show every key.  Its sections are typed in ``methods.recipe``; each method adds one of its own.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

from .errors import CCDiffError
from .files import is_file
from .methods import METHODS
from .methods.recipe import (
    DEFAULT_METHOD,
    AutoencoderConfig,
    DenoiserConfig,
    EncodersConfig,
    Recipe,
    SamplingConfig,
    StageConfig,
    UNetConfig,
)
from .options import checked_options
from .settings import read_yaml

__all__ = [
    "AutoencoderConfig", "DenoiserConfig", "EncodersConfig", "Recipe", "SamplingConfig", "StageConfig", "UNetConfig",
    "find_recipe", "load_recipe", "recipe_folders", "recipe_of", "shipped_recipes",
]  # fmt: skip

SHARED = Path("share", "ccdiff", "recipes")
"""Where a wheel lays the recipes, below the prefix that it is installed with (pyproject.toml, ``data-files``)."""


def recipe_folders() -> list[Path]:
    """Where recipes are looked for by name: the checkout, or the installed copy.  NOTE: never the current folder, which may be anybody's.

    A wheel's data files lie under the prefix that it was installed with (an environment, ``--user``, ``--prefix``), which its record
    tells; ``--target`` moves them beside the package without noting it.
    """
    beside = Path(__file__).resolve().parent.parent
    if (beside / "pyproject.toml").is_file():
        return [beside / "recipes"]
    recorded = [
        Path(str(file.locate())).resolve().parent
        for distribution in importlib.metadata.distributions(name="ccdiff", path=[str(beside)])
        for file in distribution.files or ()
        if file.parts[-4:-1] == SHARED.parts
    ]
    return list(dict.fromkeys([*recorded, beside / SHARED, Path(sys.prefix) / SHARED]))


def find_recipe(name: str | Path, *, experiment: bool = False) -> Path:
    """The file of a recipe given by path (with a separator, or ending in .yaml) or by the name of a shipped one ("tiny").

    An ``experiment`` is a recipe of ``eval-trainability``.

    Raises:
        CCDiffError: there is none; lists the known names.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) != 1 or any(s in str(name) for s in (os.sep, os.altsep) if s):
        if is_file(path):
            return path
        raise CCDiffError("no such recipe file", where=path, fix=_known(experiment))
    for folder in recipe_folders():
        if is_file(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    near = next((p for p in (Path("recipes") / f"{name}.yaml", Path(f"{name}.yaml"), path) if is_file(p)), None)
    there = f"./{near} is a file of the current folder: name it by its path, --recipe ./{near}; " if near is not None else ""
    raise CCDiffError(f"no recipe named {str(name)!r} is shipped", fix=there + _known(experiment))


def shipped_recipes(*, experiments: bool = False) -> list[str]:
    """Names of the shipped recipes of generators, or of experiments."""
    names = sorted({p.stem for folder in recipe_folders() if folder.is_dir() for p in folder.glob("*.yaml")})
    return [name for name in names if name.startswith("trainability-") == experiments]


def recipe_of_size(size: int | None, layout: str) -> str | None:
    """The shipped recipe to begin with for pictures of one size (None: of several), of a set of some format: the small one or the published
    one; None: there is none of that size."""
    published = next((f"ccdiffpp-sd14-{name}" for name in ("dota", "hrsc") if layout.startswith(name)), "ccdiffpp-sd14-dior")
    return {128: "tiny", 512: published}.get(size or 0)


def _known(experiment: bool) -> str:
    names = shipped_recipes(experiments=experiment)
    return f"known recipes: {', '.join(names)}; or give the path of a .yaml file" if names else "give the path of a .yaml file"


_BASE = {
    "autoencoder": {"source": None, "subfolder": "vae"},
    "encoders": {"text_source": None, "text_subfolder": "text_encoder"},
    "unet": {"source": None, "subfolder": "unet"},
}
"""Section -> the keys that a base sets; None: to its name."""
_INSTEAD = {"steps": "epochs", "epochs": "steps"}


def load_recipe(name: str | Path, overrides: dict[str, Any] | None = None, *, base: str | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        name: a path, or the name of a shipped recipe: see :func:`find_recipe`.
        overrides: dotted keys that replace values ("denoiser.train.steps": 4); a length in steps takes the place of one in epochs, and
            the other way round.
        base: folder or hub name of a whole model in the layout of diffusers, whose autoencoder, tokenizer, text encoder and UNet take the
            place of the recipe's; ``overrides`` come after.

    Raises:
        CCDiffError: not YAML, unknown or missing keys, values out of range: with file, key, found and expected.
    """
    path = find_recipe(name)
    values = read_yaml(path, "the recipe")
    if not isinstance(values, dict):
        raise CCDiffError(f"a recipe is a mapping of keys, found {type(values).__name__}", where=path)
    if base is not None:
        parts = {section: keys for section, keys in _BASE.items() if isinstance(values.get(section), dict)}
        if not parts:
            raise CCDiffError(f"the recipe {path.stem!r} takes no parts of another model", where="--base", fix="leave it out")
        for section, keys in parts.items():
            values[section] = {**values[section], **{key: value or base for key, value in keys.items()}}
    for key, value in (overrides or {}).items():
        _set(values, key, value, path)
    return recipe_of(values, where=path)


def _set(values: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        if values.get(key) is None:  # a section that is left empty, or out
            values[key] = {}
        node = values[key]
        if not isinstance(node, dict):
            raise CCDiffError(f"{dotted}: {key} is not a group of keys", where=path)
        values = node
    values.pop(_INSTEAD.get(last, ""), None)
    values[last] = value


def recipe_of(values: dict[str, Any], *, where: str | Path) -> Recipe:
    """A recipe from its dictionary; raises CCDiffError naming the key."""
    return checked_options(_model_of(values, where), values, where=where, fix="see the comments in recipes/tiny.yaml")


def _model_of(values: dict[str, Any], where: str | Path) -> type[Recipe]:
    """The recipe model of the method that a recipe names; recipes of earlier versions name it, if at all, in ``conditioning.variant``."""
    name = values.get("method")
    if name is None:
        group = values.get("conditioning")
        variant = group.get("variant") if isinstance(group, dict) else None
        name = variant if isinstance(variant, str) and variant in METHODS else DEFAULT_METHOD
    if not isinstance(name, str) or name not in METHODS:
        raise CCDiffError(f"method: there is no method {name!r:.80}", where=where, fix=f"known methods: {', '.join(METHODS)}")
    return METHODS[name].recipe
