"""The folder that is written: begun with a plan, taken up again where a run was stopped, and known again when it is finished."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..dataset import IMAGES, MANIFEST, PictureSet, content_of, look_at_set, read_manifest, read_set
from ..errors import CCDiffError, os_errors
from ..files import read_json, take_up, write_json
from ..locks import LOCK
from ..references import REFERENCES, problems_of_bank
from .masks import MASKS
from .scenes import PLACES_FOUND
from .workers import Progress

PLAN = "prepare.json"
"""Stands in the folder of an unfinished set: what it is being made from."""


def finished(out: Path, plan: dict[str, Any], report: Progress) -> PictureSet | None:
    """The set when it is finished, whole and made from the same inputs; None where it is to be made, or what it lost to be made again.

    Raises:
        CCDiffError: it was made from other inputs; it was edited by hand and lost pictures; files that are not its own lie in it.
    """
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
    if not isinstance(manifest.get("prepare"), dict):
        raise CCDiffError("the folder holds a set that `prepare` did not make", where=out, fix="choose another output folder")
    _same_plan(manifest["prepare"], plan, out)
    wrong, edited = [], bool(manifest.get("edits"))
    try:
        look = look_at_set(out)
        if look.surplus:
            raise _Foreign(f"{IMAGES}/{look.surplus[0]} does not belong to the set", where=out, fix="take the file out of the folder")
        wrong = [f"{IMAGES}/{name}" for name in (*look.missing, *look.changed)]
        edited = edited or content_of(look.coco, manifest["pictures"], where=out) != manifest["content"]
        wrong += problems_of_bank(out)
    except _Foreign:
        raise
    except CCDiffError as error:
        wrong.append(str(error).partition("\n")[0])
    if not wrong:
        return read_set(out)
    if edited:
        raise CCDiffError(
            f"the set was edited by hand, and it is not whole: {wrong[0]}; making it again would undo the edit",
            where=out,
            fix=f"restore the file, or take the set as it is: ccdiff verify --accept {out}",
        )
    report("making again what the set lost", 0, len(wrong))
    return None


class _Foreign(CCDiffError):
    """A file that is not ours."""


def begin(out: Path, plan: dict[str, Any]) -> None:
    """Claim an empty folder, or take an unfinished set, or a finished one that lost files, of the same plan up again."""
    take_up(out)
    with os_errors(out, "make the output folder"):
        if (out / PLAN).is_file():
            before = read_json(out / PLAN)
            if not isinstance(before, dict) or not isinstance(before.get("options"), dict):
                raise CCDiffError("not the plan of a set", where=out / PLAN, fix="choose another output folder, or empty this one")
            _same_plan(before, plan, out)
        elif not (out / MANIFEST).is_file() and any(p.name != LOCK for p in out.iterdir()):
            raise CCDiffError("the output folder is not empty", where=out, fix="choose another folder, or empty this one")
    write_json(out / PLAN, plan)


def withdraw(out: Path) -> None:
    """Leave the folder as empty as it was found."""
    with os_errors(out, "clean the output folder"):
        for name in (IMAGES, REFERENCES, MASKS, PLACES_FOUND):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / PLAN).unlink(missing_ok=True)


def _same_plan(before: Any, plan: dict[str, Any], out: Path) -> None:
    if before == plan:
        return
    old = before.get("options") if isinstance(before, dict) else None
    old = old if isinstance(old, dict) else {}
    changed = [f"{k}: {old.get(k)!r} before, {v!r} now" for k, v in {**dict.fromkeys(old), **plan["options"]}.items() if old.get(k) != v]
    what = "; ".join(changed) or "the source's pictures, labels or splits changed"
    raise CCDiffError(f"the folder holds a set made differently ({what})", where=out, fix="choose another output folder, or empty this one")
