"""What is settled before any picture is cut: its split, its sentence, how its pixels are read, and which objects have an area inside it.

Nothing is dropped unsaid: what is left out, altered or worth a note is counted in the :class:`Ledger`, which becomes the manifest's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from ..dataset import SPLITS
from ..errors import CCDiffError
from ..formats.raw import PLACES, Faults, RawSet, keep_place, read_split_lists, seeded_splits
from ..geometry import clip, clip_hbb, corners_inside, hbb_corners, polygon, union
from ..pictures import UnreadablePicture
from ..scene import HBB, Instance, Scene
from .captions import read_sentences
from .leaks import DROP, MOVE
from .pixels import PixelOptions, look, settle
from .workers import Workers

FLAT = 1e-6
"""Square pixels: an oriented box of no larger area is a line or a point, as tools write it that know none."""
NO_TEST = "pictures of val in a set without a test split, which eval-trainability asks for (`ccdiff init` takes val as test; or --splits)"


class Ledger:
    """What is left out, altered and counted on the way: the three ranks of :class:`RawSet`, carried on."""

    def __init__(self, raw: RawSet, *, strict: bool) -> None:
        self.raw, self.strict = raw, strict
        self.changes, self.skipped, self.notes = Counter(raw.changes), Counter(raw.skipped), Counter(raw.notes)
        self.places = raw.places
        self.counts: Counter[str] = Counter()
        self.quarantined: list[dict[str, str]] = []

    def change(self, what: str, where: str, detail: str = "", count: int = 1) -> None:
        """Count an altered label or picture, and keep where the first were found."""
        self.changes[what] += count
        keep_place(self.places, what, where, detail)

    def leave_out(self, what: str, scene: Scene) -> None:
        """Count an object of a picture that is left out, and keep where the first were found."""
        self.skipped[what] += 1
        keep_place(self.places, what, str(scene.path), "")

    def quarantine(self, scene: Scene, reason: str) -> None:
        """Leave a picture out that does not decode.

        Raises:
            UnreadablePicture: nothing may be left out.
        """
        if self.strict:
            raise UnreadablePicture(reason, where=scene.path, fix="replace the file, or run without --strict to leave it out")
        self.quarantined.append({"file": scene.file_name, "reason": reason})
        self.skipped["pictures that do not decode"] += 1
        self.skipped["objects of pictures that do not decode"] += len(scene.instances)


def apply_splits(ledger: Ledger, lists: Path | None, seed: int, leaks: str | None) -> set[str]:
    """Give every picture its split; the sources whose split was drawn by the seed."""
    raw, drawn = ledger.raw, dict[str, str]()
    if lists is not None:
        stems = {stem_of(s): s for s in raw.scenes}
        faults = Faults(strict=ledger.strict)
        split_of = read_split_lists(lists, stems, faults)
        ledger.skipped += faults.counts
        for reason, places in faults.places.items():
            ledger.places[reason] = [*ledger.places.get(reason, []), *places][:PLACES]
        if not split_of:
            raise CCDiffError("no train.txt, val.txt or test.txt with picture names", where=lists)
        ledger.skipped["pictures in no split list"] += sum(stem_of(s) not in split_of for s in raw.scenes)
        ledger.skipped = +ledger.skipped
        raw.scenes = [s.replace(split=split_of[stem_of(s)]) for s in raw.scenes if stem_of(s) in split_of]
    else:
        given = {s.source: s.split for s in raw.scenes if s.split}
        drawn = seeded_splits([s.source for s in raw.scenes if s.source not in given], seed)
        if drawn:
            ledger.notes["pictures whose split was drawn by the seed"] += sum(s.source in drawn for s in raw.scenes)
        raw.scenes = [s if s.split else s.replace(split=given.get(s.source) or drawn[s.source]) for s in raw.scenes]
    split_by_source: dict[str, str] = {}
    for scene in raw.scenes:
        if scene.split not in SPLITS:
            raise CCDiffError(f"unknown split {scene.split!r}", where=scene.file_name, fix=f"known splits: {', '.join(SPLITS)}")
        if split_by_source.setdefault(scene.source, scene.split) != scene.split and leaks not in (DROP, MOVE):
            raise CCDiffError(
                f"pictures of the source {scene.source!r} stand in two splits",
                where=scene.file_name,
                fix="correct the split lists, let --leaks move or drop them, or say by --source-pattern which pictures are of one scene",
            )
    if not raw.scenes:
        raise CCDiffError("the split lists name no picture of the set", where=lists)
    counts = Counter(s.split for s in raw.scenes)
    if "test" not in counts and "val" in counts:
        ledger.notes[NO_TEST] += counts["val"]
    return set(drawn)


def stem_of(scene: Scene) -> str:
    """A picture's name without its extension: lists of splits and sentences may name it so."""
    return scene.file_name.rpartition(".")[0] or scene.file_name


def sentences_of(ledger: Ledger, path: Path) -> dict[str, str]:
    """File name -> the user's scene sentence, for the pictures that have one."""
    given = read_sentences(path)
    said = {s.file_name: given.get(s.file_name) or given.get(stem_of(s), "") for s in ledger.raw.scenes}
    known = {name for s in ledger.raw.scenes for name in (s.file_name, stem_of(s))}
    if not any(said.values()):
        raise CCDiffError(
            f"none of its {len(given)} file names is a picture of the set",
            where=path,
            fix=f"name pictures as the set does, for example {ledger.raw.scenes[0].file_name}",
        )
    ledger.notes["pictures without a scene sentence"] += sum(not text for text in said.values())
    ledger.notes["scene sentences for pictures that the set has not"] += sum(name not in known for name in given)
    ledger.notes = +ledger.notes
    return {name: text for name, text in said.items() if text}


def checked_sizes(ledger: Ledger, workers: Workers, pixels: PixelOptions) -> tuple[list[Scene], dict[str, Any]]:
    """Scenes with their pixels settled (see ``pixels``) and objects that have an area inside; what was settled, for the manifest."""
    raw = ledger.raw
    good: list[Scene] = []
    facts = []
    for scene, found in zip(raw.scenes, workers.map(look, [str(s.path) for s in raw.scenes], "checking pictures"), strict=True):
        if isinstance(found, str):
            ledger.quarantine(scene, found)
        else:
            good.append(scene)
            facts.append(found)
    settled = settle(good, facts, pixels, workers.map)
    _check_sides(settled.scenes, raw.format)
    for what, where, detail in settled.changes:
        ledger.change(what, where, detail)
    ledger.notes.update(settled.notes)
    whole = [f.header.size for f, s in zip(facts, settled.scenes, strict=True) if f.whole and not (s.reading and s.reading.raster)]
    if whole:
        ledger.notes["large pictures decoded whole, since their files have no bands"] += len(whole)
        advice = "store large scenes as PNG or as TIFF in strips or tiles, to cut them band by band"
        workers.report(f"decoding pictures whole: up to {max(w * h for w, h in whole) * 4 / 1e9:.1f} GB a process ({advice})", 1, 1)
    return [s.replace(instances=tuple(_checked_instances(s, ledger))) for s in settled.scenes], settled.summary


def _check_sides(scenes: Sequence[Scene], form: str) -> None:
    """Raise CCDiffError where boxes that should be x, y, width, height are two corners: many reach out so, and none does as corners."""
    if form not in ("coco", "huggingface", "webdataset"):
        return
    boxes = np.array([(*i.hbb, s.width, s.height) for s in scenes for i in s.instances], np.float64).reshape(-1, 6)
    x, y, x2, y2, width, height = boxes.T
    out = (x2 > width + 1) | (y2 > height + 1)
    fit = (x2 - x > x) & (y2 - y > y) & (x2 - x <= width + 1) & (y2 - y <= height + 1)
    if out.sum() >= max(2, 0.3 * len(boxes)) and fit.all():
        first = next(s for s in scenes for i in s.instances if i.hbb[2] > s.width + 1 or i.hbb[3] > s.height + 1)
        raise CCDiffError(
            f"{out.sum():,} of {len(boxes):,} boxes reach out of their pictures, and every box fits if its last two numbers are a corner",
            where=first.path,
            fix=f"bbox is x, y, width, height in {form}: write x1, y1, x2 - x1, y2 - y1",
        )


def _checked_instances(scene: Scene, ledger: Ledger) -> Iterator[Instance]:
    picture = (0.0, 0.0, float(scene.width), float(scene.height))
    for instance in scene.instances:
        x1, y1, x2, y2 = instance.hbb
        if not (x2 > x1 and y2 > y1):
            ledger.leave_out("objects whose box has no area", scene)
            continue
        if instance.oriented and polygon(instance.corners).area <= FLAT:
            ledger.change("oriented boxes without an area, their horizontal ones kept", str(scene.path), "")
            instance = replace(instance, corners=hbb_corners(instance.hbb), oriented=False)
        hbb = _visible_hbb(instance, picture)
        if hbb is None:
            ledger.leave_out("objects outside the picture", scene)
            continue
        if hbb != instance.hbb:
            ledger.change("boxes clipped to the picture", str(scene.path), "")
        if instance.oriented:  # the border's part in the oriented box is decided where tiles are cut, see ``geometry.cut_box``
            yield Instance.from_corners(
                instance.category, instance.corners, hbb, difficult=instance.difficult, mask=instance.mask, extra=instance.extra
            )
        else:
            yield Instance.from_hbb(instance.category, hbb, difficult=instance.difficult, mask=instance.mask, extra=instance.extra)


def _visible_hbb(instance: Instance, picture: tuple[float, float, float, float]) -> HBB | None:
    """The horizontal box around what is in the picture of an object; None where that is nothing."""
    hbb = clip_hbb(instance.hbb, picture)
    if hbb is None or not instance.oriented or corners_inside(instance.corners, picture):
        return hbb
    whole = union(instance.mask) if instance.mask else polygon(instance.corners)
    visible = clip(whole, picture)
    if visible.area > 0:
        return clip_hbb(hbb, shapely.bounds(visible)) or hbb  # of an object that slants through the border less than the HBB's part
    return None if whole.area > 0 else hbb
