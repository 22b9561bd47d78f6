"""Every weight of a released file is accounted for, or none is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CCDiffError


def account_for(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str | Path, fix: str) -> None:
    """Compare the weights a model has with those a file gives, both under the file's names.

    Raises:
        CCDiffError: listing the missing, the surplus, the wrongly shaped, and whole numbers in the place of floats.
    """
    missing, surplus = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    both = sorted(set(own) & set(given))
    odd = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}" for name in both if given[name].shape != own[name].shape
    ]
    kinds = [
        f"{name} {given[name].dtype} instead of {own[name].dtype}"
        for name in both
        if given[name].is_floating_point() != own[name].is_floating_point()
    ]
    lists = (("missing keys", missing), ("surplus keys", surplus), ("shapes", odd), ("kinds of numbers", kinds))
    if said := [f"{title} ({len(keys)}): {', '.join(keys)}" for title, keys in lists if keys]:
        raise CCDiffError("the weights do not fit the model; " + "; ".join(said), where=where, fix=fix)
