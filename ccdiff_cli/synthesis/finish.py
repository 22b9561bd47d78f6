"""From the pictures of a plan to a set on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import ANNOTATIONS, IMAGES, MANIFEST, PictureSet, Redrawn, content_of, look_at_set, read_manifest, write_set
from ..drawing import contact_sheet, draw_scene, legend
from ..errors import CCDiffError, os_errors
from ..files import TEMPORARY_PREFIX, sha256_file, write_bytes, write_text
from ..methods import method_of
from ..pictures import read_rgb
from ..scene import ClassList, Scene
from .card import card
from .filtering import account, kept_objects
from .plan import Job, Plan
from .records import RECORDS, VERDICTS, known_pictures, read_record
from .verify import CARD, CONTACT_SHEET

SHEET_PICTURES = 40
SHEET_COLUMNS = 8
SHEET_CELL = 192
"""The contact sheet shows this many pictures, in cells of about this side."""

Progress = Callable[[str, int, int], None]


def finish(out: Path, plan: Plan, generator: Mapping[str, Any], machine: Mapping[str, Any], progress: Progress | None = None) -> PictureSet:
    """Write labels, contact sheet, card and manifest of a set whose pictures are all made; the manifest comes last, then the records go.

    Raises:
        CCDiffError: the filter left no picture over.
    """
    entries = known_pictures(out, plan)
    ordered = [entries[job.scene.file_name] for job in plan.jobs]
    rules = plan.options["filter"]
    scenes = [
        _labelled(out, job, entry, generator["key"], rules)
        for job, entry in zip(plan.jobs, ordered, strict=True)
        if not entry.get("dropped")
    ]
    if not scenes:
        raise CCDiffError(
            "the filter left no picture over",
            where=out,
            fix="train the generator longer, or lower --filter-recall; then another --out folder",
        )
    if progress is not None:
        progress("write", 0, 1)
    _remove_surplus(out, {scene.file_name for scene in scenes})
    write_contact_sheet(out / CONTACT_SHEET, scenes, plan.classes)
    method = method_of(generator)
    note = method.of_boxes()
    details: dict[str, Any] = {
        "plan": plan.key,
        **plan.header["identity"],
        "generator": {
            **plan.header["identity"]["generator"],
            "trained_on": (generator.get("data") or {}).get("key"),
            "sources": (generator.get("data") or {}).get("sources"),
            "steps": generator.get("steps"),
            "method": method.name,
            **({"boxes": note} if note else {}),
        },
        "skipped_layouts": plan.header["layouts"],
        "environment": dict(machine),
    }
    if smaller := _smaller_batches(out, plan):
        details["made_in_smaller_batches"] = smaller
    if "redraws" in plan.options:
        struck = [entry for entry in ordered if "redrawn" in entry]
        again = {entry["file_name"]: {key: entry[key] for key in Redrawn.__annotations__ if key in entry} for entry in struck}
        details["colours"] = {"redrawn": len(again), "infrared": sum("infrared" in said for said in again.values()), "pictures": again}
    if rules is not None:
        write_text(out / VERDICTS, "".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in ordered))
        details["filter"] = {
            **rules,
            **plan.header["filter"],
            "verdicts": sha256_file(out / VERDICTS),
            "result": account([job.scene for job in plan.jobs], ordered, rules["mode"], plan.header["filter"]["thresholds"]),
        }
    write_text(out / CARD, card(scenes, plan, details))
    if hasattr(os, "sync"):
        os.sync()  # the manifest, which says that all is there, must not reach the disk before the pictures
    made = write_set(
        out,
        scenes,
        plan.classes,
        kind="floor" if plan.options["shuffle_layouts"] else "synthetic",
        details=details,
        picture_hashes={s.file_name: entries[s.file_name]["sha256"] for s in scenes},
    )
    shutil.rmtree(out / RECORDS, ignore_errors=True)
    if progress is not None:
        progress("write", 1, 1)
    return made


def _labelled(out: Path, job: Job, entry: Mapping[str, Any], generator: str, rules: Mapping[str, Any] | None) -> Scene:
    """The picture's labels and where they come from; with a filter, the scores of the objects and the labels that stay."""
    instances = job.scene.instances
    provenance: dict[str, Any] = {
        **job.scene.provenance,
        "k": job.k,
        "seed": entry.get("seed", job.seed),
        "references": job.references,
        "generator": generator,
        **({"drawn_from": job.drawn_from} if job.drawn_from != job.k else {}),
    }
    if rules is not None:
        kept = kept_objects(entry, len(instances), rules["mode"])
        provenance["filter"] = {"attempt": entry["attempt"], "accepted": entry["accepted"], "left_out": len(instances) - len(kept)}
        if job.references is not None:  # one for each instance
            provenance["references"] = {**job.references, "instances": [job.references["instances"][k] for k in kept]}
        instances = tuple(
            dataclasses.replace(instances[k], extra={**instances[k].extra, "scores": entry["scores"][k], "passed": entry["passed"][k]})
            for k in kept
        )
    return job.scene.replace(path=str(out / IMAGES / job.scene.file_name), instances=instances, provenance=provenance)


def _smaller_batches(out: Path, plan: Plan) -> dict[str, int]:
    """How many blocks were made in smaller batches for want of memory: their bytes may differ in rounding."""
    found: Counter[str] = Counter()
    if (out / MANIFEST).is_file():
        with contextlib.suppress(CCDiffError):
            manifest = read_manifest(out)
            found.update(manifest.get("made_in_smaller_batches", {}) if manifest.get("plan") == plan.key else {})
    for b in range(plan.blocks):
        if (record := read_record(out, b, plan)) is not None and (size := record.get("made_in_batches_of")) is not None:
            found[str(size)] += 1
    return dict(sorted(found.items()))


def changed_by_hand(out: Path, plan: Plan) -> bool:
    """Whether the labels of the finished set are somebody's: edited, or accepted as the set's own.  Making it again would undo that.

    Raises:
        CCDiffError: the set was edited and accepted, and then lost pictures: the plan does not say how it was; files that do not belong
            to the set lie among its pictures.
    """
    try:
        if not (out / MANIFEST).is_file() or read_manifest(out).get("plan") != plan.key:
            return False
        look = look_at_set(out)
    except CCDiffError:
        return False  # what cannot be read is made again
    if foreign := [name for name in look.surplus if not name.startswith(TEMPORARY_PREFIX) and name not in _planned_names(plan)]:
        raise CCDiffError(f"{IMAGES}/{foreign[0]} does not belong to the set", where=out, fix="take the file out of the folder")
    if look.manifest.get("edits") and (look.missing or look.changed):
        raise CCDiffError(
            f"the set was edited and accepted, and since then {(look.missing or look.changed)[0]} was lost or changed",
            where=out / IMAGES,
            fix=f"restore the file, or take the set as it is: ccdiff verify --accept {out}; or make it anew in another --out folder",
        )
    if look.manifest.get("edits"):
        return True
    return content_of(look.coco, look.manifest["pictures"], where=out / ANNOTATIONS) != look.manifest["content"]


def _planned_names(plan: Plan) -> set[str]:
    return {job.scene.file_name for job in plan.jobs}


def is_whole(out: Path) -> bool:
    """Whether everything but the pictures, which are looked at elsewhere, stands in the folder of a finished set."""
    try:
        look = look_at_set(out)
    except CCDiffError:
        return False
    return not look.missing and look.content == look.manifest["content"] and all((out / n).is_file() for n in (CONTACT_SHEET, CARD))


def _remove_surplus(out: Path, names: set[str]) -> None:
    for path in sorted((out / IMAGES).iterdir()):
        if path.name.startswith(TEMPORARY_PREFIX) and path.name not in names:
            with os_errors(path, "remove the unfinished file"):
                path.unlink(missing_ok=True)


def write_contact_sheet(path: Path, scenes: list[Scene], classes: ClassList, count: int = SHEET_PICTURES) -> None:
    """Pictures spread evenly over the set, with their boxes and a legend."""
    chosen = [scenes[i] for i in np.unique(np.linspace(0, len(scenes) - 1, min(count, len(scenes))).astype(int))]
    pictures = []
    for scene in chosen:
        image = read_rgb(str(scene.path))
        pictures.append(draw_scene(image, scene, SHEET_CELL / max(scene.width, scene.height), classes=classes))
    present = {name for scene in chosen for name in scene.categories()}
    columns = min(SHEET_COLUMNS, len(pictures))
    strip = (
        legend([n for n in classes if n in present], max(2 * SHEET_CELL, columns * (SHEET_CELL + 4)), classes=classes) if present else None
    )
    buffer = io.BytesIO()
    contact_sheet(pictures, columns, titles=[Path(s.file_name).stem for s in chosen], footer=strip).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
