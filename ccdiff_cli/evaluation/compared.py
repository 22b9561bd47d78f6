"""What is compared: the sets by name, with the pictures of each that are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..comparison import check_sets, read_added
from ..dataset import PictureSet, read_set
from ..detectors import Progress
from ..errors import CCDiffError
from ..scene import ClassList, Scene
from .options import EvaluateOptions

REAL = "real pictures"


@dataclass(frozen=True)
class Compared:
    """The sets, and what has been measured of them so far.

    Attributes:
        sets: by name, the real one first.
        floors: names of the sets made from shuffled layouts.
        rows: set -> its figures, filled in one after the other.
    """

    sets: Mapping[str, PictureSet]
    floors: frozenset[str]
    out: Path
    options: EvaluateOptions
    progress: Progress | None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def train(self) -> Sequence[Scene]:
        """The real training pictures."""
        return self.sets[REAL].split("train")

    @cached_property
    def test(self) -> Sequence[Scene]:
        """The real pictures that others are compared with."""
        return self.sets[REAL].split(self.options.reference)

    @cached_property
    def made(self) -> dict[str, Sequence[Scene]]:
        """The pictures of each set but the real one."""
        return {name: some.split("train") for name, some in self.sets.items() if name != REAL}

    @property
    def looked_at(self) -> dict[str, Sequence[Scene]]:
        """The pictures of each set, the real ones first."""
        return {REAL: self.test, **self.made}

    @property
    def classes(self) -> ClassList:
        """The same for all sets."""
        return self.sets[REAL].classes

    @property
    def judged(self) -> int:
        """How many pictures of each set features are taken of: those of the smallest that is no floor."""
        return min(len(some) for name, some in self.made.items() if name not in self.floors)

    @property
    def share(self) -> Path:
        """Where trainings lie, and what their detectors found."""
        return self.options.share if self.options.share is not None else self.out


def read_compared(
    real: str | Path, synthetic: Sequence[str | Path], out: Path, options: EvaluateOptions, progress: Progress | None
) -> Compared:
    """The sets, checked against each other.

    Raises:
        CCDiffError: classes or picture sizes differ, a split is missing, there are too few pictures, ...
    """
    sets = _read_sets(real, synthetic, options.floor, out)
    _check(sets, options.reference)
    floors = frozenset([list(sets)[-1]] if options.floor is not None else ())
    compared = Compared(sets, floors, out, options, progress)
    for name, scenes in compared.looked_at.items():
        role = "ceiling" if name == REAL else "floor" if name in floors else "generator"
        compared.rows[name] = {"role": role, "pictures": len(scenes)}
    return compared


def _read_sets(real: str | Path, synthetic: Sequence[str | Path], floor: str | Path | None, out: Path) -> dict[str, PictureSet]:
    """The sets by the name of their folder; the real one first, the floor last."""
    if not synthetic:
        raise CCDiffError("no synthetic set is given", fix="--synthetic FOLDER, as often as there are generators")
    sets = {REAL: read_set(real)}
    folders = [*synthetic, *([floor] if floor is not None else [])]
    names = [Path(f).resolve().name for f in folders]
    for folder, name in zip(folders, names, strict=True):
        name = name if names.count(name) == 1 and name != REAL else str(folder)
        if name in sets:
            raise CCDiffError("the set is given twice", where=folder, fix="name every set once")
        sets[name] = read_added(folder, "synthetic" if folder != floor else "floor")
    check_sets(sets | {"real": sets[REAL]}, out)
    return sets


def _check(sets: Mapping[str, PictureSet], reference: str) -> None:
    train, test = sets[REAL].split("train"), sets[REAL].split(reference)
    for split, scenes in (("train", train), (reference, test)):
        if len(scenes) < 2:
            what = f"has no {split} split" if not scenes else f"has one picture only in its {split} split"
            fix = "choose another split with --reference (train, val, test), or prepare it with more pictures"
            raise CCDiffError(f"the real set {what}", where=sets[REAL].root, fix=fix)
    size = (test[0].width, test[0].height)
    for name, some in sets.items():
        scenes = (*train, *test) if name == REAL else some.split("train")
        if len(scenes) < 2:
            raise CCDiffError(
                f"the set {name} has one picture only: nothing can be compared", where=some.root, fix="synthesize more pictures"
            )
        for scene in scenes:
            if (scene.width, scene.height) != size:
                raise CCDiffError(
                    f"pictures of different sizes: {scene.file_name} has {scene.width} x {scene.height} pixels, "
                    f"{test[0].file_name} of {sets[REAL].root} has {size[0]} x {size[1]}",
                    where=some.root,
                    fix=f"prepare the real set with --size {scene.width}" if name != REAL else "prepare the real set with --size",
                )
