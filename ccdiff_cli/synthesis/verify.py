"""The proof that a set is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..dataset import ANNOTATIONS, IMAGES, MANIFEST, SHARDS, boxes_at_odds, is_sharded, look_at_set, read_manifest, said_of_edit, shards_of
from ..errors import CCDiffError
from ..files import TEMPORARY_PREFIX, inside, sha256_file
from ..geometry import area_inside, corners_inside
from ..pictures import picture_size
from ..references import REFERENCES, problems_of_bank
from ..scene import Scene
from .plan import PLAN, Plan, read_plan
from .records import VERDICTS, read_verdicts

CARD = "README.md"
CONTACT_SHEET = "contact_sheet.png"
TOLERANCE = 1e-3
"""Pixels that a label may stand outside of its picture: rounding in files."""


def verify_set(root: str | Path) -> dict[str, Any]:
    """Prove a set whole: every file has its hash, labels stand inside pictures, nothing is missing or too many.

    Horizontal boxes and masks must be inside; an oriented box may reach beyond its picture, but must have a part in it.

    Returns:
        ``{"ok": bool, "problems": [str, ...], "pictures": int, "objects": int, "kind": str, "content": str}``.

    Raises:
        CCDiffError: there is no finished set to look at.
    """
    root = Path(root)
    if is_sharded(root):
        return _verify_shards(root)
    for name in (MANIFEST, ANNOTATIONS):
        if (root / MANIFEST).exists() and not (root / name).is_file():
            return _unreadable(f"{name}: missing")
    try:
        look = look_at_set(root, full=True)
    except CCDiffError as error:
        if not (root / MANIFEST).is_file():
            raise
        return _unreadable(str(error).partition("\n")[0])
    manifest, hashes = look.manifest, look.manifest["pictures"]
    problems: list[str] = []
    names = [scene.file_name for scene in look.scenes]
    for name in sorted(set(names) ^ set(hashes)):
        problems.append(f"{name}: {'not in the manifest' if name not in hashes else 'in the manifest, but without labels'}")
    if list(look.classes) != manifest["classes"]:
        problems.append("the class list of the labels is not the manifest's")
    for scene in look.scenes:
        path, name = inside(root / IMAGES, scene.file_name, where=root / ANNOTATIONS), scene.file_name
        problems += problems_of(scene, path, hashes.get(name), edited=name in look.edited)
    found = (
        {p.relative_to(root / IMAGES).as_posix() for p in (root / IMAGES).rglob("*") if p.is_file()} if (root / IMAGES).is_dir() else set()
    )
    problems += [f"{IMAGES}/{name}: does not belong to the set" for name in sorted(found - set(names))]
    problems += [f"{path.name}: left by an interrupted run" for path in sorted(root.glob(f"{TEMPORARY_PREFIX}*"))]
    edited = look.content != manifest["content"]
    if edited:
        what = said_of_edit(look.differences())
        problems.append(f"labels or hashes were changed after the set was made: the content key differs ({what})")
    try:
        if (root / REFERENCES).is_dir():
            problems += problems_of_bank(root)
        if (root / PLAN).is_file() or manifest.get("plan"):
            problems += _missing_of_plan(root, read_plan(root), set(names), manifest)
            problems += [f"{name}: missing" for name in (CONTACT_SHEET, CARD) if not (root / name).is_file()]
    except CCDiffError as error:
        problems.append(str(error).partition("\n")[0])
    return {
        "ok": not problems,
        "problems": problems,
        "fix": f"{REPAIR}, or take the set as it is: ccdiff verify --accept {root}" if edited or problems else "",
        "kind": manifest["kind"],
        "pictures": len(look.scenes),
        "objects": sum(len(scene.instances) for scene in look.scenes),
        "content": look.content,
    }


def _verify_shards(root: Path) -> dict[str, Any]:
    """One shard after the other."""
    if not (root / MANIFEST).is_file():
        shards_of(root)  # says so
    try:
        problems, found = _problems_of_shards(root)
    except CCDiffError as error:
        return _unreadable(str(error).partition("\n")[0])
    manifest = read_manifest(root)
    return {
        "ok": not problems,
        "problems": problems,
        "fix": f"{REPAIR}; edits of a shard are taken as its own by ccdiff verify --accept {root}" if problems else "",
        "kind": manifest["kind"],
        "pictures": sum(one["pictures"] for one in found),
        "objects": sum(one["objects"] for one in found),
        "content": manifest["content"],
    }


def _problems_of_shards(root: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """What is wrong with the shards of a set, and what was found of each."""
    folders = shards_of(root)
    found = []
    problems = []
    for folder, shard in zip(folders, read_manifest(root)["shards"], strict=True):
        place = f"{SHARDS}/{folder.name}"
        if not (folder / MANIFEST).is_file():
            problems.append(f"{place}: missing, or unfinished")
            continue
        one = verify_set(folder)
        problems += [f"{place}/{text}" for text in one["problems"]]
        if one["ok"] and one["content"] != shard["content"]:
            problems.append(f"{place}: another shard than the set was made of")
        found.append(one)
    known = {folder.name for folder in folders}
    problems += [f"{SHARDS}/{p.name}: does not belong to the set" for p in sorted((root / SHARDS).iterdir()) if p.name not in known]
    return problems, found


REPAIR = "run the command that made the set again (it makes again what is lost), or restore its files"


def _unreadable(problem: str) -> dict[str, Any]:
    return {"ok": False, "problems": [problem], "fix": REPAIR, "kind": None, "pictures": 0, "objects": 0, "content": ""}


def _missing_of_plan(root: Path, plan: Plan, names: set[str], manifest: Mapping[str, Any]) -> list[str]:
    """Planned pictures that are neither in the set nor among those that its filter left out."""
    problems, left_out = [], set()
    if plan.options.get("filter") is not None:
        if not (root / VERDICTS).is_file() or sha256_file(root / VERDICTS) != manifest.get("filter", {}).get("verdicts"):
            return [f"{VERDICTS}: missing, or changed after it was made"]
        left_out = {entry["file_name"] for entry in read_verdicts(root) if entry.get("dropped")}
    for edit in manifest.get("edits", []):  # what `ccdiff verify --accept` took as the set's own
        left_out |= set(edit["taken_out"])
        names = names - set(edit["added"])
    planned = {job.scene.file_name for job in plan.jobs}
    problems += [f"{name}: planned, but not in the set" for name in sorted(planned - names - left_out)]
    problems += [f"{name}: in the set, but not planned" for name in sorted(names - planned)]
    return problems


def problems_of(scene: Scene, path: Path, expected: str | None, *, edited: bool) -> list[str]:
    """What is wrong with a picture (``expected``: its hash) and its labels, of which somebody may have edited some."""
    if not path.is_file():
        return [f"{scene.file_name}: the picture is missing"]
    problems = []
    if expected is not None and sha256_file(path) != expected:
        problems.append(f"{scene.file_name}: the picture was changed (its hash differs)")
    try:
        size = picture_size(path)
    except CCDiffError as error:
        return [*problems, f"{scene.file_name}: {error.what}"]
    if size != (scene.width, scene.height):
        problems.append(f"{scene.file_name}: the picture is {size[0]}x{size[1]} px, its labels say {scene.width}x{scene.height}")
    for number, instance in enumerate(scene.instances):
        seen = (-TOLERANCE, -TOLERANCE, scene.width + TOLERANCE, scene.height + TOLERANCE)
        clipped = [instance.hbb, *instance.mask, *(() if instance.oriented else (instance.corners,))]
        if not all(corners_inside(points, seen) for points in clipped if points):
            problems.append(f"{scene.file_name}: object {number} ({instance.category}) leaves the picture")
        # an oriented box may reach beyond the picture (see ``geometry``), but not lie beside it
        elif not corners_inside(instance.corners, seen) and area_inside(instance.corners, scene.width, scene.height) <= 0:
            problems.append(f"{scene.file_name}: object {number} ({instance.category}): its oriented box has no part in the picture")
        if instance.hbb[2] <= instance.hbb[0] or instance.hbb[3] <= instance.hbb[1]:
            problems.append(f"{scene.file_name}: object {number} ({instance.category}) has no area")
        elif edited and (wrong := boxes_at_odds(instance)):
            problems.append(f"{scene.file_name}: object {number} ({instance.category}): {wrong[0]}")
    return problems
