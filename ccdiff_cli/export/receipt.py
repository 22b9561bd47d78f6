"""The receipt of an export: what it was made from, and the hash of every file of it.

With it the same command can say that an export is there already, make again what was lost or changed, and bring an export up to date with
a set that was edited since.  Files that others put into the folder (caches of trainers, for instance) are let alone, and named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from ..dataset import PictureSet
from ..errors import CCDiffError, os_errors
from ..files import TEMPORARY_PREFIX, inside
from ..locks import LOCK
from ..stored import Count, Digest, FileName, Stored, Text, read_as
from ..unchanged import hashes_of

RECEIPT = "export.json"
PLAN = ".export-plan.json"
FIX = "choose another output folder, or empty this one"


class Receipt(Stored):
    """``export.json``."""

    plan: dict[str, JsonValue]
    pictures: Count
    objects: Count
    lost: dict[str, Count]
    apart: dict[str, Count] = Field(default_factory=dict)
    said: list[Text] = Field(default_factory=list)
    entry: FileName
    files: dict[FileName, Digest] | None = None


def read_receipt(out: Path) -> Receipt | None:
    """The receipt of a folder, None where there is none.

    Raises:
        CCDiffError: it is broken, or names files outside of the folder.
    """
    if not (out / RECEIPT).exists():
        return None
    receipt: Receipt = read_as(Receipt, out / RECEIPT, fix=FIX)
    for name in (receipt.entry, *(receipt.files or ())):
        inside(out, name, where=out / RECEIPT)
    return receipt


def files_of(out: Path) -> dict[str, os.stat_result]:
    """Every plain file of an export by its name below the folder, but the receipt and what runs keep beside it."""
    found = {}
    for folder, _, names in os.walk(out):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and name not in (RECEIPT, PLAN) and not name.startswith((LOCK, TEMPORARY_PREFIX)):
                found[path.relative_to(out).as_posix()] = path.stat()
    return found


def hashes_now(out: Path) -> dict[str, str]:
    """The hashes of all files of an export."""
    return hashes_of(out, dict(sorted(files_of(out).items())), known={})


def damaged(out: Path, receipt: Receipt) -> tuple[list[str], list[str]]:
    """Files of the receipt that are missing or changed; and files that it does not name."""
    known, there = receipt.files or {}, files_of(out)
    found = hashes_of(out, {name: status for name, status in there.items() if name in known}, known=known)
    return [name for name in known if found.get(name) != known[name]], sorted(there.keys() - known.keys())


def is_of_edited(receipt: Receipt, plan: dict[str, Any], data: PictureSet) -> bool:
    """Whether the receipt is of the very same set before somebody edited it."""
    then, now = ({k: v for k, v in p.items() if k not in ("set", "pictures")} for p in (receipt.plan, plan))
    return then == now and receipt.plan.get("set") in data.ancestors()


def remove_files(out: Path, names: Iterable[str]) -> None:
    """Remove files of an export, so that they are written again."""
    with os_errors(out, "remove what is written again"):
        for name in names:
            (out / name).unlink(missing_ok=True)


def refuse_hand_edits(out: Path, receipt: Receipt) -> None:
    """
    Raises:
        CCDiffError: files of an export of another state of the set were changed: what was done to them would be lost.
    """
    wrong, _ = damaged(out, receipt)
    if receipt.files is None or wrong:
        what = f"{wrong[0]} was changed in it since" if wrong else "its receipt does not say which files are its own"
        raise CCDiffError(f"the folder holds an export of the set before it was edited, and {what}", where=out, fix=FIX)
