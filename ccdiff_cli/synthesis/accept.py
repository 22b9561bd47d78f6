"""``ccdiff verify --accept``: what somebody changed by hand in a set becomes the set's own.

Notable: nothing is taken that would not be read and used; every change is counted and stays on record in the manifest (``edits``), whose
``content`` is the key that the edited set had already.  Crops of the reference bank that were cut from pictures which are taken out go
with them; other crops stay as they were cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..dataset import (
    ANNOTATIONS,
    IMAGES,
    MANIFEST,
    Look,
    count_scenes,
    is_sharded,
    key_of_shards,
    label_digest,
    look_at_set,
    read_manifest,
    said_of_edit,
    shards_of,
    sum_counts,
    write_manifest,
)
from ..errors import CCDiffError, os_errors
from ..files import inside, write_json
from ..references import REFERENCES, crops_without_picture, drop_crops
from ..scene import Scene
from .verify import problems_of

SHOWN = 20


def accept_set(root: str | Path) -> dict[str, Any]:
    """Take the labels and pictures of a set as they are: write the manifest for them.

    The labels of a picture that is not there any more are left out, and counted.

    Returns:
        what changed: ``labels_changed`` (pictures whose labels did), ``pictures_changed``, ``taken_out``, ``added`` (names), ``objects``
        before and after, ``crops`` taken out of the reference bank, and ``lines`` that say it.

    Raises:
        CCDiffError: labels that cannot be read, that leave their picture, have no area, or two boxes that cannot be one object's; a picture
            without labels, of another size than they say, or that does not open; nothing is left. Nothing is written then.
    """
    if is_sharded(root):
        return _accept_shards(Path(root))
    look = look_at_set(root, full=True)
    root = look.root
    kept = [scene for scene in look.scenes if scene.file_name not in set(look.missing)]
    if not kept:
        raise CCDiffError("no picture of the set is left", where=root, fix="make the set again")
    _check(look, kept)
    edit = look.differences()
    lost = sorted({*edit.taken_out, *(name for name in look.missing if name in look.manifest["pictures"])})
    edit = edit.model_copy(update={"taken_out": lost})
    before = look.manifest.get("counts", {}).get("objects")
    objects = sum(len(scene.instances) for scene in kept)
    dropped = sum(len(scene.instances) for scene in look.scenes) - objects
    crops = crops_without_picture(root, kept) if (root / REFERENCES).is_dir() else []
    if not (look.missing or crops or look.content != look.manifest["content"]):
        return {**edit.model_dump(), "objects": [objects, objects], "crops": 0, "lines": ["nothing was changed since the set was made"]}
    if look.missing:
        write_json(root / ANNOTATIONS, _without(look.coco, set(look.missing)))
        look = look_at_set(root, full=True)
    record = {**edit.model_dump(), "objects": [before, objects], "labels_left_out": dropped}
    manifest = {
        **look.manifest,
        "classes": list(look.classes),
        "counts": count_scenes(kept),
        "content": look.content,
        "edits": [*look.manifest.get("edits", []), record],
        "pictures": {scene.file_name: look.hashes[scene.file_name] for scene in kept},
        "labels": {scene.file_name: label_digest(scene) for scene in kept},
    }
    drop_crops(root, crops)
    write_manifest(root, manifest)
    with os_errors(root, "remove the crops"):
        for name in crops:
            inside(root / REFERENCES, name, where=root).unlink(missing_ok=True)
    lines = [f"accepted: {said_of_edit(edit)}; objects: {before} before, {objects} now"]
    lines += [f"labels left out with pictures that are gone: {dropped} objects of {len(lost)} pictures"] if dropped else []
    lines += [f"crops left out of the reference bank: {len(crops)}"] if crops else []
    return {**record, "crops": len(crops), "lines": lines}


def _accept_shards(root: Path) -> dict[str, Any]:
    """Every shard by itself, then the manifest above them."""
    folders = shards_of(root)
    for folder in folders:  # before the first of them is written
        look = look_at_set(folder)
        _check(look, [scene for scene in look.scenes if scene.file_name not in set(look.missing)])
    edits = [accept_set(folder) for folder in folders]
    manifests = [read_manifest(folder) for folder in folders]
    shards = [{"name": f.name, "content": m["content"]} for f, m in zip(folders, manifests, strict=True)]
    counts = sum_counts([m["counts"] for m in manifests])
    write_manifest(root, {**read_manifest(root), "counts": counts, "content": key_of_shards(shards), "shards": shards})
    lists = ("pictures_changed", "taken_out", "added")
    changed = [(f, e) for f, e in zip(folders, edits, strict=True) if e["before"] != read_manifest(f)["content"]]
    return {
        "labels_changed": sum(e["labels_changed"] for e in edits),
        **{name: [picture for e in edits for picture in e[name]] for name in lists},
        "objects": [sum(e["objects"][k] or 0 for e in edits) for k in (0, 1)],
        "crops": 0,
        "lines": [f"{f.name}: {line}" for f, e in changed for line in e["lines"]] or ["nothing was changed since the set was made"],
    }


def _check(look: Look, kept: list[Scene]) -> None:
    problems = [f"{IMAGES}/{name}: it has no labels" for name in look.surplus]
    for scene in kept:
        path = inside(look.root / IMAGES, scene.file_name, where=look.root / ANNOTATIONS)
        problems += problems_of(scene, path, None, edited=scene.file_name in look.edited)
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CCDiffError(
            f"cannot be taken as they are: {'; '.join(problems[:SHOWN])}{more}",
            where=look.root,
            fix=f"correct {ANNOTATIONS}, or take the files out of the folder; {MANIFEST} was not changed",
        )


def _without(coco: dict[str, Any], names: set[str]) -> dict[str, Any]:
    gone = {image["id"] for image in coco["images"] if image["file_name"] in names}
    return {
        **coco,
        "images": [image for image in coco["images"] if image["id"] not in gone],
        "annotations": [a for a in coco["annotations"] if a["image_id"] not in gone],
    }
