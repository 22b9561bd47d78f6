"""Sets that are held against a real one: what evaluation and trainability both ask of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from .dataset import PictureSet, check_out, read_set
from .errors import CCDiffError

Item = TypeVar("Item")


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """``n`` of the items, evenly spaced: what is shown is not chosen by hand."""
    if not items:
        return []
    return [items[int(k)] for k in np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).astype(int))]


def read_added(root: str | Path, name: str) -> PictureSet:
    """A set that is held against a real one or added to it; ``name`` is what errors call it.

    Raises:
        CCDiffError: it holds no training pictures.
    """
    made = read_set(root)
    if not made.split("train"):
        raise CCDiffError(f"the {name} set holds no training pictures", where=root, fix="run `ccdiff synthesize` first")
    return made


def check_sets(sets: Mapping[str, PictureSet], out: str | Path) -> None:
    """Whether all sets have the classes of the one called "real", and none is the folder that is to be written.

    Raises:
        CCDiffError: naming what one of them lacks or has besides.
    """
    real = sets["real"]
    for name, other in sets.items():
        check_out(out, other.root, f"{name} set")
        if set(other.classes) != set(real.classes):
            lacking = [c for c in real.classes if c not in other.classes]
            surplus = [c for c in other.classes if c not in real.classes]
            what = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(surplus)} besides"] * bool(surplus)
            raise CCDiffError(
                f"the classes differ: the {name} set {' and '.join(what)}",
                where=other.root,
                fix=f"use a generator trained on the classes of {real.root}",
            )
