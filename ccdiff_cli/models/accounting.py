"""Every weight of a released file is accounted for, or none is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CCDiffError


def account_for(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str | Path, fix: str) -> None:
    """Compare the weights a model has with those a file gives, both under the file's names.

    Raises:
        CCDiffError: listing the missing, the surplus and the wrongly shaped.
    """
    missing, surplus = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    odd = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(given))
        if given[name].shape != own[name].shape
    ]
    lists = (("missing keys", missing), ("surplus keys", surplus), ("shapes", odd))
    if said := [f"{title} ({len(keys)}): {', '.join(keys)}" for title, keys in lists if keys]:
        raise CCDiffError("the weights do not fit the model; " + "; ".join(said), where=where, fix=fix)
