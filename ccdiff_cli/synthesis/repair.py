"""``ccdiff repair``: the labels of a synthetic set by what a detector sees in its pictures, as a new set; the old one stays as it is.

Notable:

* Three changes, each counted class by class and on record, so that all can be undone: *shift*: the label is moved to a sure detection of
  its class that overlaps it by an IoU of 0.3 to 0.7 (above, it is left alone); *drop*: the label of an object that the filter would find
  missing (``filtering``) and that is not surely seen nearby; *add*: a sure detection that overlaps no label becomes one.
* Thresholds are not chosen by hand: sure is a detection with a score from which on a share ``precision`` of those on the real validation
  pictures is right; missing is what scores less than a share ``recall`` of the real validation objects do.
* Difficult objects are left alone.  Of an oriented label a horizontal detector moves the centre; shape and angle stay.
* NOTE: what the detector does wrong on generated pictures becomes labels.  The set says that it was repaired, and by which detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..comparison import check_sets
from ..dataset import IMAGES, MANIFEST, PictureSet, in_memory, read_manifest, read_set, write_set
from ..detectors import Detections, Detector
from ..errors import CCDiffError, markdown
from ..files import content_key, copy_file, inside, read_bytes, sha256_file, take_up, write_text
from ..geometry import clip_hbb, hbb_iou, visible_hbbs
from ..locks import locked
from ..metrics.average_precision import outcomes
from ..scene import ClassList, Instance, Scene
from ..threads import as_trained
from .filtering import Judge, Progress, calibrate, object_scores, prepare_filter
from .finish import write_contact_sheet
from .options import RepairOptions
from .verify import CARD, CONTACT_SHEET

NEAR, SAME = 0.3, 0.7
"""IoU from which on a detection may be of a label, and from which on the label is left where it is."""
CHANGES = {"shift": "shifted", "drop": "dropped", "add": "added"}
ANEW = {"kind", "classes", "counts", "content", "versions", "pictures", "labels", "plan", "edits"}
"""Keys of a manifest that are the old set's alone."""
REVISION = 1


@locked("repair")
def repair_set(
    source: str | Path, real: str | Path, out: str | Path, options: RepairOptions = RepairOptions(), *, progress: Progress | None = None
) -> dict[str, Any]:
    """Make a set of the pictures of ``source`` with repaired labels.

    Args:
        source: a synthetic set; ``real``: the prepared set whose detector looks, and on whose val split its thresholds are taken.

    Returns:
        What the manifest says under ``repair``: "per_class" (class -> "before", "shifted", "dropped", "added", "after"), "sure" (the score,
        None: no detection is sure enough, so nothing is moved or added), "missing" (class -> score), "of" (key of the old set), ...

    Raises:
        CCDiffError: no synthetic set, or one that was repaired before; other classes than the real one's; no labelled val split; ``out``
            holds something else.
    """
    made, base, out = in_memory(read_set(source)), read_set(real), Path(out)
    check_sets({"real": base, "synthetic": made}, out)
    if made.manifest.get("kind") != "synthetic" or "repair" in made.manifest:
        what = "was repaired already" if "repair" in made.manifest else f"is of the kind {made.manifest.get('kind')!r}, not synthetic"
        raise CCDiffError(f"the set {what}", where=source, fix="give a set as `ccdiff synthesize` made it")
    folder = prepare_filter(base, options.detector, progress)
    detector_key = content_key([sha256_file(folder / name) for name in ("detector.json", "model.safetensors")])
    told = options.model_dump(mode="json", exclude={"detector"})
    key = content_key([REVISION, made.key(), base.key(), detector_key, told])
    if (done := _finished(out, key)) is not None:
        return done
    judge = Judge(folder, progress=progress)
    assert judge.detector is not None
    if set(judge.detector.classes) != set(base.classes):
        raise CCDiffError("the detector knows other classes than the real set", where=folder, fix="train it on that set")
    with as_trained(judge.detector.info):
        limits = calibrate(judge, base, options.recall, progress)["thresholds"]
        sure = sure_score(judge.detector, base, options.precision)
        found = judge.detector.predict(made.scenes, progress)
    missing = {name: limits[name]["detector"] for name in base.classes}
    repaired = [
        repair_scene(scene, one, judge.detector.classes, sure, missing, options.changes)
        for scene, one in zip(made.scenes, found, strict=True)
    ]
    account = {
        "key": key, "of": made.key(), "real": base.key(), "detector": detector_key, **told, "sure": sure, "missing": missing,
        "per_class": _per_class(made.scenes, repaired, made.classes),
    }  # fmt: skip
    _write(made, [scene for scene in repaired if scene.instances], out, account, progress)
    return account


def sure_score(detector: Detector, real: PictureSet, precision: float) -> float | None:
    """The lowest score from which on this share of the detections on real validation pictures is right (IoU 0.5); None: there is none."""
    scenes = real.split("val")
    score, right, wrong = outcomes(scenes, detector.predict(scenes), detector.classes).cuts()
    good = np.flatnonzero((right > 0) & (right >= precision * (right + wrong)))
    return float(score[good[-1]]) if len(good) else None


def repair_scene(
    scene: Scene, found: Detections, classes: ClassList, sure: float | None, missing: Mapping[str, float], changes: Sequence[str]
) -> Scene:
    """One picture's labels repaired; ``provenance["repair"]`` counts what was done and holds the labels that were dropped.

    Args:
        found: the detector's, whose classes are ``classes``.
        sure, missing, changes: see :func:`repair_set`.
    """
    instances = scene.instances
    boxes = np.array([i.hbb for i in instances], np.float64).reshape(-1, 4)
    overlap = hbb_iou(boxes, found.boxes) if len(found) else np.zeros((len(boxes), 0))
    labels = np.array([classes.index(i.category) if i.category in classes else -1 for i in instances], np.int64)
    target = _matches(np.where(labels[:, None] == found.labels[None], overlap, 0.0), found, sure)
    scores = object_scores(scene, found, classes)
    kept: list[Instance] = []
    stays: list[int] = []
    dropped: list[dict[str, Any]] = []
    shifted = 0
    for n, instance in enumerate(instances):
        j = target.get(n)
        nearby = j is not None and overlap[n, j] < SAME
        if instance.difficult:
            pass
        elif j is not None and nearby and "shift" in changes:
            instance, moved = _shifted(instance, found, j, float(overlap[n, j]), scene)
            shifted += moved
        elif not nearby and "drop" in changes and scores[n] < missing[instance.category]:
            what = {"category": instance.category, "hbb": list(instance.hbb), "corners": list(instance.corners)}
            dropped.append({**what, "score": round(scores[n], 4)})
            continue
        kept.append(instance)
        stays.append(n)
    added = _added(scene, kept, found, classes, sure, set(target.values())) if "add" in changes else []
    done = {"shifted": shifted, "dropped": dropped, "added": len(added)}
    provenance = {**scene.provenance, "repair": done}
    references = scene.provenance.get("references")
    if isinstance(references, dict) and len(references.get("instances", ())) == len(instances):  # one for each object
        provenance["references"] = {**references, "instances": [*(references["instances"][n] for n in stays), *(None for _ in added)]}
    return scene.replace(instances=(*kept, *added), provenance=provenance)


def _matches(overlap: np.ndarray, found: Detections, sure: float | None) -> dict[int, int]:
    """Label -> its detection: first those that agree, whatever their score, then sure ones nearby; best first, each once."""
    target: dict[int, int] = {}
    free = overlap.copy()
    for lowest, least in ((SAME, -np.inf), (NEAR, np.inf if sure is None else sure)):
        for j in np.argsort(-found.scores, kind="stable").tolist() if len(free) else ():
            n = int(free[:, j].argmax())
            if free[n, j] >= lowest and found.scores[j] >= least:
                target[n] = j
                free[n], free[:, j] = 0, 0
    return target


def _shifted(instance: Instance, found: Detections, j: int, iou: float, scene: Scene) -> tuple[Instance, bool]:
    """The label at its detection, and whether it could be put there."""
    record = {"what": "shifted", "score": round(float(found.scores[j]), 4), "iou": round(iou, 4)}
    extra = {**instance.extra, "repair": {**record, "hbb": list(instance.hbb), "corners": list(instance.corners)}}
    window = (0.0, 0.0, float(scene.width), float(scene.height))
    box = clip_hbb([float(v) for v in found.boxes[j]], window)
    if box is None:
        return instance, False
    if not instance.oriented:
        return Instance.from_hbb(instance.category, box, extra=extra), True
    if found.corners is not None:
        corners = found.corners[j].astype(np.float64)
    else:
        shift = [(box[k] + box[k + 2] - instance.hbb[k] - instance.hbb[k + 2]) / 2 for k in (0, 1)]
        corners = np.array(instance.corners) + np.tile(shift, 4)
    hbb = clip_hbb(visible_hbbs(corners, window)[0].tolist(), window)
    return (instance, False) if hbb is None else (Instance.from_corners(instance.category, corners.tolist(), hbb, extra=extra), True)


def _added(
    scene: Scene, kept: Sequence[Instance], found: Detections, classes: ClassList, sure: float | None, used: set[int]
) -> list[Instance]:
    """Sure detections that overlap no label as it stands now."""
    added: list[Instance] = []
    window = (0.0, 0.0, float(scene.width), float(scene.height))
    for j in np.argsort(-found.scores, kind="stable").tolist():
        if sure is None or found.scores[j] < sure or j in used:
            continue
        box = clip_hbb([float(v) for v in found.boxes[j]], window)
        others = np.array([i.hbb for i in (*kept, *added)], np.float64).reshape(-1, 4)
        if box is None or (len(others) and (hbb_iou(others, np.array([box])) >= NEAR).any()):
            continue
        name = classes.names[int(found.labels[j])]
        extra = {"repair": {"what": "added", "score": round(float(found.scores[j]), 4)}}
        if found.corners is None:
            added.append(Instance.from_hbb(name, box, extra=extra))
        else:
            added.append(Instance.from_corners(name, found.corners[j].tolist(), box, extra=extra))
    return added


def _per_class(before: Sequence[Scene], after: Sequence[Scene], classes: ClassList) -> dict[str, dict[str, int]]:
    """Objects of every class, and what was done with them."""
    counts = {name: dict.fromkeys(("before", *CHANGES.values(), "after"), 0) for name in classes}
    for old, new in zip(before, after, strict=True):
        for name in old.categories():
            counts[name]["before"] += 1
        for one in new.provenance["repair"]["dropped"]:
            counts[one["category"]]["dropped"] += 1
        for instance in new.instances:
            counts[instance.category]["after"] += 1
            if what := instance.extra.get("repair", {}).get("what"):
                counts[instance.category][what] += 1
    return counts


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The account of this very repair, where it is done; None where there is none yet."""
    if not (out / MANIFEST).is_file():
        names = [p.name for p in out.iterdir() if not p.name.startswith(".") and p.name != IMAGES] if out.is_dir() else []
        if set(names) - {"annotations.json", CARD, CONTACT_SHEET}:
            raise CCDiffError("the folder holds something else", where=out, fix="choose another --out folder")
        return None
    account = read_manifest(out).get("repair")
    if not isinstance(account, dict) or account.get("key") != key:
        raise CCDiffError("the folder holds another set", where=out, fix="choose another --out folder, or delete this one")
    return account


def _write(made: PictureSet, scenes: Sequence[Scene], out: Path, account: dict[str, Any], progress: Progress | None) -> None:
    if not scenes:
        raise CCDiffError(
            "no label would be left", where=made.root, fix="leave out drop (--changes shift,add), or train the detector longer"
        )
    take_up(out)
    placed = []
    for k, scene in enumerate(scenes, start=1):
        target = inside(out / IMAGES, scene.file_name, where=made.root)
        copy_file(str(scene.path), target)
        placed.append(scene.replace(path=str(target)))
        if progress is not None:
            progress("copy", k, len(scenes))
    details = {name: value for name, value in made.manifest.items() if name not in ANEW}
    if isinstance(details.get("filter"), dict):  # its list of verdicts is the old set's
        details["filter"] = {name: value for name, value in details["filter"].items() if name != "verdicts"}
    account["pictures_without_a_label_left"] = len(made.scenes) - len(scenes)
    write_contact_sheet(out / CONTACT_SHEET, placed, made.classes)
    write_text(out / CARD, _card(made, account))
    hashes = {scene.file_name: made.hashes[scene.file_name] for scene in scenes}
    write_set(out, placed, made.classes, kind="synthetic", details={**details, "repair": account}, picture_hashes=hashes)


def _card(made: PictureSet, account: Mapping[str, Any]) -> str:
    """The old set's card, and what was done to it since."""
    card = made.root / CARD
    rows = [f"| {markdown(name)} | {' | '.join(str(n) for n in row.values())} |" for name, row in account["per_class"].items()]
    told = [
        "# Labels repaired by a detector",
        f"The labels of the set `{account['of']}` (its card is below, its counts are those of before) were changed by the detector "
        f"`{account['detector']}`: each changed object says so (`extra.repair`), dropped ones stand in `provenance.repair`. What the "
        "detector does wrong on generated pictures is in these labels.",
        "| class | before | shifted | dropped | added | after |\n|---|---|---|---|---|---|\n" + "\n".join(rows),
    ]
    old = read_bytes(card).decode("utf-8", "replace") if card.is_file() else ""
    head, body = "", old
    if old.startswith("---\n") and (end := old.find("\n---\n", 4)) >= 0:  # the hub reads what stands first
        head, body = old[: end + 5] + "\n", old[end + 5 :].lstrip("\n")
    return head + "\n\n".join(told) + "\n\n" + body
