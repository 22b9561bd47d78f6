"""What the UNets of all methods share: an argument of their own that diffusers saves and gives back, and settings read from it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from diffusers import UNet2DConditionModel

from ..errors import CCDiffError

Settings = TypeVar("Settings")


def remember(unet: type[UNet2DConditionModel], argument: str) -> None:
    """Let ``save_pretrained`` and ``from_pretrained`` of a kind of UNet keep one argument beside a UNet's own.

    diffusers reads the arguments of a saved model from the signature of ``__init__``.
    """
    own = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
    more = inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, default=None)
    unet.__init__.__signature__ = inspect.Signature([*own, more])  # type: ignore[attr-defined]


def settings_of(kind: type[Settings], values: Mapping[str, Any], what: str) -> Settings:
    """A dataclass of settings from what was saved of it.

    Raises:
        CCDiffError: a key is unknown, or a value not allowed; ``what`` says whose settings they are.
    """
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if surplus := set(values) - known:
        raise CCDiffError(f"{what}: unknown keys {sorted(surplus)}", fix=f"known keys: {', '.join(sorted(known))}")
    return kind(**values)
