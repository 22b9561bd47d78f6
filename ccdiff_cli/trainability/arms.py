"""The arms of an experiment: which pictures a training sees, and for how many steps.

Notable:

* A fraction of the real set is drawn by source picture, once for all seeds and arms, and nested: the 10 % lie within the 25 %.  Tiles of a
  source stay together, as they would for somebody who had labelled fewer pictures.
* Part of an added set is drawn the same way: half as many pictures lie within twice as many.
* An arm is trained at two protocols: for the steps of the real arm (fair), and for the epochs of the real arm (as published), which are
  more steps.  Beside the second stand the real pictures alone, trained as long: what is left of the gain over them is the pictures'.
* More real pictures than a fraction's are the yardstick of what is added to it; of the whole set, what it gains over half of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..dataset import SPLITS, PictureSet
from ..detectors import DetectorConfig, training_key
from ..errors import CCDiffError, os_errors
from ..files import write_text
from ..scene import ClassList, Scene
from .config import ALL, PRETRAIN, SYNTHETIC, SYNTHETIC_ONLY, ExperimentConfig, with_steps

REAL, LONGER = "real", "longer"
STEPS, EPOCHS = "steps", "epochs"
"""The two protocols: what an arm has in common with the real arm of its fraction."""
HALF = 50.0
FRACTION, PART = 11, 12
"""What a random stream is for; with the experiment's ``draw`` it makes the stream's key."""


@dataclass(frozen=True)
class Arm:
    """What one arm is trained on.

    Attributes:
        name: the label of tables and plots.
        kind: "real", "longer" (real alone, trained as long as an arm with more pictures), a key of :data:`.config.KINDS`, or the name of
            an other set.
        ratio: pictures added for each real one; None: the whole set, or nothing is added.
        fraction: percent of the real training split.
        scenes: the training pictures (of the arm pretrain: of its second stage), for ``steps`` steps.
        first: pictures of a first stage, for ``first_steps`` steps.
        added: how many of the pictures are not the fraction's own real ones.
        protocol: "steps" or "epochs": what it has in common with the real arm; "" of real pictures alone.
    """

    name: str
    kind: str
    ratio: float | None
    fraction: float
    scenes: tuple[Scene, ...]
    steps: int
    first: tuple[Scene, ...] = ()
    first_steps: int = 0
    added: int = 0
    protocol: str = ""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of both stages."""
        return self.steps + self.first_steps


@dataclass(frozen=True)
class Training:
    """One training of one arm; ``key`` is the folder it lies in.

    Attributes:
        start: key of the training it goes on from.
    """

    name: str
    key: str
    scenes: tuple[Scene, ...]
    config: DetectorConfig
    seed: int
    start: str | None = None


def source_of(scene: Scene) -> str:
    """The source of a picture; the picture itself where none is known."""
    return scene.source or scene.file_name


def fraction_of(train: Sequence[Scene], percent: float, draw: int) -> tuple[Scene, ...]:
    """The pictures of ``percent`` % of the sources (at least one), in the order of ``train``."""
    sources = sorted({source_of(s) for s in train})
    order = np.random.default_rng([draw, FRACTION]).permutation(len(sources))
    chosen = {sources[int(k)] for k in order[: max(1, round(len(sources) * percent / 100))]}
    return tuple(s for s in train if source_of(s) in chosen)


def write_split_lists(real: PictureSet, part: Sequence[Scene], folder: Path) -> None:
    """Write ``train.txt``, ... with which ``ccdiff prepare --splits`` makes a set of this part of the train split alone.

    A generator trained on that set knows nothing of the rest.  No lists where the pictures do not say what they were cut from; a list
    of another part that lies there is replaced or removed.
    """
    scenes = [*part, *(s for s in real.scenes if s.split != "train")]
    lists: dict[str, set[str]] = {}
    if all(isinstance(s.provenance.get("picture"), str) for s in scenes):
        for scene in scenes:
            lists.setdefault(scene.split, set()).add(scene.provenance["picture"])
    for split in SPLITS:
        file, text = folder / f"{split}.txt", "".join(f"{name}\n" for name in sorted(lists.get(split, ())))
        with os_errors(file, "write the list"):
            if not text:
                file.unlink(missing_ok=True)
            elif not file.is_file() or file.read_bytes() != text.encode():  # as it was: a set that was made from it is no older than it
                write_text(file, text)


def part_of(scenes: Sequence[Scene], count: int, draw: int) -> tuple[Scene, ...]:
    """``count`` of the pictures, in their order; fewer lie within more."""
    if count >= len(scenes):
        return tuple(scenes)
    order = np.random.default_rng([draw, PART]).permutation(len(scenes))
    return tuple(scenes[int(k)] for k in np.sort(order[:count]))


def fractions_of(config: ExperimentConfig, train: Sequence[Scene]) -> tuple[float, ...]:
    """The fractions at which the real arm is trained: the experiment's, and those of the yardstick."""
    wanted = {*config.fractions, 100.0}
    if wanted == {100.0} and len(fraction_of(train, HALF, config.draw)) < len(train):
        wanted.add(HALF)
    return tuple(sorted(wanted))


def make_arms(config: ExperimentConfig, train: Sequence[Scene], added: Mapping[tuple[str, float], Sequence[Scene]]) -> list[Arm]:
    """The arms of every fraction, the real one first, in the order of the recipe.

    Args:
        added: (arm, fraction) -> the pictures that can be added: the synthetic, the other sets and those made of the real ones.

    Raises:
        CCDiffError: a set has too few pictures for a ratio.
    """
    arms = []
    for percent in fractions_of(config, train):
        real = fraction_of(train, percent, config.draw)
        title = REAL if percent == 100 else f"{percent:g} % of real"
        alone = Arm(title, REAL, None, percent, real, config.detector.steps)
        arms.append(alone)
        if percent not in config.fractions:
            continue
        with_more = []
        for kind, ratios in config.arms.items():
            for ratio in ratios:
                with_more += _both_protocols(config, alone, kind, ratio, added[kind, percent])
        longer = sorted({arm.total_steps for arm in with_more if arm.protocol == EPOCHS and arm.total_steps > alone.steps})
        arms += [Arm(f"{title}, longer ({steps:,} steps)", LONGER, None, percent, real, steps) for steps in longer]
        arms += with_more
    return arms


def _both_protocols(config: ExperimentConfig, real: Arm, kind: str, ratio: float | str, pool: Sequence[Scene]) -> list[Arm]:
    """An arm at the protocols asked for; once where both come to the same."""
    extra = part_of(pool, added_count(kind, ratio, len(real.scenes), len(pool)), config.draw)
    times = "" if ratio == ALL else f"{ratio:g}x "
    place = "" if real.fraction == 100 and len(config.fractions) == 1 else f" ({real.fraction:g} %)"
    name, scenes = f"{real.name} + {times}{kind}", (*real.scenes, *extra)
    first: tuple[Scene, ...] = ()
    if kind == SYNTHETIC_ONLY:
        name, scenes = f"{times}synthetic only{place}", extra
    elif kind == PRETRAIN:
        name, scenes, first = f"{times}synthetic, then {real.name}", real.scenes, extra
    made: list[Arm] = []
    for protocol in (STEPS, EPOCHS) if config.match == "both" else (config.match,):
        steps, first_steps = _steps(config, real, len(scenes), len(first), protocol)
        if made and (made[0].steps, made[0].first_steps) == (steps, first_steps):
            continue
        title = name + (", equal epochs" if protocol == EPOCHS else "")
        rate = None if ratio == ALL else float(ratio)
        made.append(Arm(title, kind, rate, real.fraction, scenes, steps, first, first_steps, len(extra), protocol))
    return made


def _steps(config: ExperimentConfig, real: Arm, pictures: int, first: int, protocol: str) -> tuple[int, int]:
    """Steps of an arm's training, and of its first stage."""
    if protocol == EPOCHS:
        share = real.steps / len(real.scenes)
        return max(1, round(share * pictures)), max(1, round(share * first)) if first else 0
    first_steps = min(max(1, round(real.steps * config.pretrain_share)), real.steps - 1) if first else 0
    return real.steps - first_steps, first_steps


def added_count(kind: str, ratio: float | str, real: int, available: int) -> int:
    """How many pictures an arm adds.

    Raises:
        CCDiffError: there are not so many.
    """
    count = available if ratio == ALL else max(1, round(float(ratio) * real))
    if count > available:
        fix = "`ccdiff synthesize --n` more, or lower the ratio" if kind in (SYNTHETIC, SYNTHETIC_ONLY, PRETRAIN) else "lower the ratio"
        raise CCDiffError(
            f"arms.{kind}: ratio {float(ratio):g} asks for {count} pictures beside {real} real ones, but the set has {available}", fix=fix
        )
    return count


def copies_wanted(config: ExperimentConfig, kind: str, real: int, synthetic: int) -> int:
    """How many pictures of a kind that is made here the arms of a fraction need; "all" means as many as there are synthetic ones."""
    ratios = config.arms.get(kind, ())
    return max((synthetic if r == ALL else max(1, round(float(r) * real)) for r in ratios), default=0)


def trainings_of(arm: Arm, classes: ClassList, config: ExperimentConfig, seed: int) -> list[Training]:
    """The trainings of an arm with one seed, in the order they must be run; the last one is the arm's detector."""
    done: list[Training] = []
    for scenes, steps in ((arm.first, arm.first_steps), (arm.scenes, arm.steps)):
        if not steps:
            continue
        start = done[-1].key if done else None
        detector = with_steps(config.detector, steps)
        name = f"{arm.name}, seed {seed}" + (" (first stage)" if arm.first and not done else "")
        key = training_key(scenes, classes, detector, seed, start)
        done.append(Training(name, key, scenes, detector, seed, start))
    return done
