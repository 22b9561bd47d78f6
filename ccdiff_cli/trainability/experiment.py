"""What is compared: the sets, the arms with the pictures that each can add, and the looks that detectors take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..comparison import check_sets, read_added
from ..dataset import PictureSet, read_set
from ..detectors import Progress
from ..errors import CCDiffError
from ..layouts import plan_layouts
from ..metrics.average_precision import Boxes, evaluate
from ..scene import ClassList, Scene
from .arms import REAL, Arm, Training, copies_wanted, fraction_of, source_of, trainings_of
from .config import ALL, COPY_PASTE, HELD_OUT, JITTERED, KINDS, MOSAIC, PRETRAIN, SYNTHETIC, SYNTHETIC_ONLY, ExperimentConfig
from .copy_paste import make_copy_paste
from .jitter import jitter_labels
from .mosaic import make_mosaics
from .statistics import resample
from .trainings import Look, found_in
from .yardstick import answer_of, more_real

Plan = Mapping[tuple[str, int], Sequence[Training]]
"""(arm, seed) -> its trainings, in the order they must be run."""


@dataclass(frozen=True)
class Experiment:
    """Everything that is compared, and where it is written.

    Attributes:
        config: with ``detector.steps`` settled.
        sets: "real", "synthetic", "floor" and any other -> set; copy-paste sets and mosaics join them as they are made.
    """

    config: ExperimentConfig
    sets: dict[str, PictureSet]
    out: Path
    processes: int | None
    progress: Progress | None

    @cached_property
    def train(self) -> Sequence[Scene]:
        """The real pictures that are trained on."""
        return self.sets["real"].split("train")

    @cached_property
    def test(self) -> Sequence[Scene]:
        """The real pictures that all is measured on."""
        return self.sets["real"].split("test")

    @property
    def classes(self) -> ClassList:
        """The same for all sets."""
        return self.sets["real"].classes

    @property
    def boxes(self) -> Boxes:
        """What the detector finds."""
        return "obb" if self.config.detector.oriented else "hbb"

    @property
    def added(self) -> dict[str, PictureSet]:
        """The sets whose pictures are added to the real ones."""
        return {name: some for name, some in self.sets.items() if name not in ("real", "floor")}

    @cached_property
    def on_test(self) -> Look:
        """What every arm's detectors look at."""
        return Look("test", self.sets["real"].key(), self.test)

    @cached_property
    def for_adherence(self) -> list[Look]:
        """What the real arm's detectors look at besides, where there are synthetic pictures."""
        names = [name for name in (SYNTHETIC, "floor") if name in self.sets] if SYNTHETIC in self.sets else []
        return [Look(name, self.sets[name].key(), self.sets[name].split("train")) for name in names]

    def trainings(self, arms: Sequence[Arm]) -> dict[tuple[str, int], list[Training]]:
        """Of every arm and seed, seed by seed: an early stop leaves whole pairs."""
        return {(arm.name, seed): trainings_of(arm, self.classes, self.config, seed) for seed in self.config.seeds for arm in arms}


def open_experiment(
    config: ExperimentConfig, sets: dict[str, PictureSet], out: Path, processes: int | None, progress: Progress | None
) -> Experiment:
    """The experiment with its steps settled.

    Raises:
        CCDiffError: a set lacks what it is needed for.
    """
    check_sets(sets, out)
    _check_splits(sets)
    config = config.with_steps(len(sets["real"].split("train")))
    return Experiment(config, sets, out, processes, progress)


def with_arms(config: ExperimentConfig, others: Mapping[str, Any], *, with_synthetic: bool) -> ExperimentConfig:
    """The experiment with the other sets as arms.

    Raises:
        CCDiffError: an arm of no known kind or set, or no arm at all.
    """
    ratios = config.arms.get(SYNTHETIC, (ALL,))
    arms = {**config.arms, **{name: ratios for name in others if name not in config.arms}}
    if unknown := [name for name in arms if name not in KINDS and name not in others]:
        raise CCDiffError(
            f"arms.{unknown[0]}: no such arm and no such set",
            fix=f"arms: {', '.join(KINDS)}; any other set is named by --other {unknown[0]}=SET",
        )
    if not arms:
        raise CCDiffError("the experiment has no arm besides real", fix="for example --arm synthetic=1")
    if not with_synthetic and (needing := [name for name in arms if name in (SYNTHETIC, SYNTHETIC_ONLY, PRETRAIN)]):
        raise CCDiffError(
            f"arms.{needing[0]}: there is no synthetic set", fix="give one with --synthetic SET, or other arms: --arm copy-paste=1"
        )
    return config.model_copy(update={"arms": arms})


def read_sets(
    real: str | Path, synthetic: str | Path | None, others: Mapping[str, str | Path], floor: str | Path | None
) -> dict[str, PictureSet]:
    """Name -> set."""
    sets = {"real": read_set(real)}
    if synthetic is not None:
        sets[SYNTHETIC] = read_added(synthetic, SYNTHETIC)
    for name, root in others.items():
        if name in ("real", "floor", *KINDS):
            raise CCDiffError(f"{name!r} cannot name an other set", fix="choose another name: --other NAME=SET")
        sets[name] = read_added(root, name)
    if floor is not None:
        sets["floor"] = read_added(floor, "floor")
    return sets


def _check_splits(sets: Mapping[str, PictureSet]) -> None:
    real = sets["real"]
    train, test = real.split("train"), real.split("test")
    for name, scenes in (("train", train), ("test", test)):
        if not scenes:
            raise CCDiffError(
                f"the real set has no {name} split",
                where=real.root,
                fix="prepare it with one: `ccdiff prepare --splits FOLDER` (train.txt, val.txt, test.txt); `ccdiff init` takes val as test",
            )
    if all(i.difficult for scene in test for i in scene.instances):
        raise CCDiffError("no test picture holds an object that counts: there is nothing to measure", where=real.root)
    for name, made in sets.items():
        if name != "real" and not any(scene.instances for scene in made.split("train")):
            raise CCDiffError(f"the {name} set holds no labelled object", where=made.root, fix="run `ccdiff synthesize` with layouts")


def yardstick_of(experiment: Experiment, arms: Sequence[Arm], plan: Plan, fraction: float) -> dict[str, Any] | None:
    """Whether the experiment can answer, from the real arms alone; None while one of their trainings is not finished."""
    real = [a for a in arms if a.kind == REAL]
    config, look = experiment.config, experiment.on_test
    evaluations = {}
    for arm in real:
        found = [found_in(look, experiment.out, plan[arm.name, seed][-1].key) for seed in config.seeds]
        if any(f is None for f in found):
            return None
        evaluations[arm.name] = [evaluate(look.scenes, f, experiment.classes, experiment.boxes) for f in found if f is not None]
    drawn = resample(evaluations, [source_of(s) for s in look.scenes], samples=config.samples)
    rows = more_real(real, evaluations, drawn)
    return {**answer_of(rows, fraction, len(config.seeds)), "more_real": rows}


def pools_of(experiment: Experiment, *, dry_run: bool = False) -> dict[tuple[str, float], Sequence[Scene]]:
    """(arm, fraction) -> the pictures it can add; copy-paste and mosaic sets are made here, and join the experiment's.

    A dry run makes nothing: training pictures stand in for theirs, as many as there would be.
    """
    config, sets, train = experiment.config, experiment.sets, experiment.train
    pools: dict[tuple[str, float], Sequence[Scene]] = {}
    synthetic = sets[SYNTHETIC].split("train") if SYNTHETIC in sets else ()
    for percent in config.fractions:
        here = fraction_of(train, percent, config.draw)
        for kind in config.arms:
            if kind in (HELD_OUT, JITTERED):
                pools[kind, percent] = _held_out(config, train, here, kind, percent)
                continue
            if kind not in (COPY_PASTE, MOSAIC):
                pools[kind, percent] = sets[kind if kind in sets else SYNTHETIC].split("train")
                continue
            count = copies_wanted(config, kind, len(here), len(synthetic) or len(here))
            if dry_run:
                pools[kind, percent] = [here[k % len(here)].replace(file_name=f"{kind}-{k}") for k in range(count)]
                continue
            made = _made(experiment, kind, here, count, synthetic)
            sets[kind if percent == 100 else f"{kind} ({percent:g} %)"] = made
            pools[kind, percent] = made.split("train")
    return pools


def _made(experiment: Experiment, kind: str, here: Sequence[Scene], count: int, synthetic: Sequence[Scene]) -> PictureSet:
    """Mosaics of a fraction's pictures, or pictures of it with crops pasted in at the layouts of the synthetic ones."""
    config, real, out = experiment.config, experiment.sets["real"], experiment.out / kind
    if kind == MOSAIC:
        return make_mosaics(out, real, here, count, draw=config.draw, progress=experiment.progress)
    layouts = synthetic
    if not synthetic:
        own = PictureSet(real.root, real.classes, tuple(here), {})
        layouts = tuple(plan_layouts(own, count, config.draw))
    return make_copy_paste(out, real, here, layouts, count, draw=config.draw, overlap=config.paste_overlap, progress=experiment.progress)


def _held_out(config: ExperimentConfig, train: Sequence[Scene], here: Sequence[Scene], kind: str, percent: float) -> Sequence[Scene]:
    """The real pictures that a fraction leaves out, as they are or with jittered labels."""
    chosen = {s.file_name for s in here}
    rest = [s for s in train if s.file_name not in chosen]
    if not rest:
        raise CCDiffError(
            f"arms.{kind}: {percent:g} % of the real pictures leave none out", fix="look at a smaller part: for example --fractions 10"
        )
    return rest if kind == HELD_OUT else [jitter_labels(s, config.label_jitter, config.draw) for s in rest]
