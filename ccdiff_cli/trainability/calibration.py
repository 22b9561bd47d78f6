"""Looking for an experiment that can answer: a part of the real pictures, and steps, for which more real pictures bring a clear gain.

Notable:

* Only real pictures are trained on, and only validation pictures are looked at: the split "val", or where there is none (or it holds no
  object) a fifth of the training sources, held out.  Test pictures stay unseen, so a regime found here is no choice made on them.
* Cheapest first: few steps before many, at each the smallest part first.  A regime is taken when the yardstick clears zero there and the
  detector has converged, that is: twice the steps bring the part alone less than :data:`CONVERGED` mAP.  A regime that is clear but not
  converged leaves a gain that mere training time brings as well.
* A part that lacks a class is left out, and said: what more pictures bring over it is that class more than anything else.  Where every
  part lacks one, as with very rare classes, all are tried, and what each lacks stands beside what was found.
* Trainings and predictions lie where the experiment files its own, so an interrupted search goes on, and what it trained serves the
  experiment.  What was found is a recipe: ``regime.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..dataset import PictureSet, read_set
from ..detectors import Progress, seconds_per_step, training_key
from ..errors import CCDiffError
from ..files import clear_partials, write_json, write_text
from ..locks import locked
from ..metrics.average_precision import Boxes, Evaluation, evaluate
from ..scene import Scene
from .arms import REAL, Arm, Training, fraction_of, source_of
from .config import ExperimentConfig, with_steps
from .statistics import resample, signed, spread
from .trainings import Look, Task, carry_out, found_in, is_finished
from .yardstick import answer_of, more_real

CALIBRATION, REGIME = "calibration.json", "regime.yaml"
FRACTIONS = (5.0, 10.0, 25.0)
"""Percent of the real training pictures that are tried where the experiment names no part."""
CONVERGED = 1.0
"""mAP that twice the steps may bring a detector that counts as converged."""
HELD_OUT_SHARE = 20.0
"""Percent of the training sources that stand in for a validation split."""
VALIDATION = 16
"""What the random stream of held-out sources is for."""


@dataclass(frozen=True)
class _Search:
    """What a search trains on and looks at."""

    real: PictureSet
    train: Sequence[Scene]
    validation: Sequence[Scene]
    from_train: bool
    config: ExperimentConfig
    out: Path
    processes: int | None
    progress: Progress | None

    @property
    def look(self) -> Look:
        return Look("val", self.real.key(), self.validation)

    @property
    def wanted(self) -> list[float]:
        """The parts that were asked for, percent."""
        return [f for f in self.config.fractions if f < 100] or list(FRACTIONS)

    @cached_property
    def lacking(self) -> dict[float, list[str]]:
        """Part -> classes of the training pictures that none of its objects is of: no detector trained on it can find them."""
        classes = {i.category for s in self.train for i in s.instances}
        missing = {f: sorted(classes - {i.category for s in self.part(f) for i in s.instances}) for f in self.wanted}
        return {f: names for f, names in missing.items() if names}

    @property
    def incomplete(self) -> bool:
        """Whether every part lacks a class, so that all are tried."""
        return all(f in self.lacking for f in self.usable)

    @cached_property
    def usable(self) -> list[float]:
        """The parts that hold an object, and fewer pictures than there are."""
        return [f for f in self.wanted if any(s.instances for s in self.part(f)) and len(self.part(f)) < len(self.train)]

    def part(self, fraction: float) -> tuple[Scene, ...]:
        return fraction_of(self.train, fraction, self.config.draw)

    def trainings(self, fraction: float, steps: int) -> list[Training]:
        """The trainings on a part, one a seed."""
        detector, scenes = with_steps(self.config.detector, steps), self.part(fraction)
        name = REAL if fraction == 100 else f"{fraction:g} % of real"
        return [
            Training(
                f"{name}, {steps:,} steps, seed {seed}", training_key(scenes, self.real.classes, detector, seed), scenes, detector, seed
            )
            for seed in self.config.seeds
        ]

    def evaluations(self, fraction: float, steps: int) -> list[Evaluation]:
        """Of the detectors of a part on the validation pictures; what is not finished is trained.

        Raises:
            CCDiffError: a training failed.
        """
        trainings = self.trainings(fraction, steps)
        tasks = [Task(t, (self.look,)) for t in trainings]
        failed = carry_out(tasks, self.real.classes, self.out, processes=self.processes, progress=self.progress)
        if failed:
            raise next(iter(failed.values()))
        boxes: Boxes = "obb" if self.config.detector.oriented else "hbb"
        found = [found_in(self.look, self.out, t.key) for t in trainings]
        return [evaluate(self.validation, f or [], self.real.classes, boxes) for f in found]


@locked("eval-trainability")
def calibrate(
    real: str | Path,
    out: str | Path,
    config: ExperimentConfig = ExperimentConfig(),
    *,
    processes: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search for the cheapest regime in which an experiment on ``real`` can answer.

    Writes ``out/calibration.json`` after every regime, and ``out/regime.yaml``, a recipe for :func:`.eval_trainability`, when one is found.

    Args:
        config: its fractions below 100, seeds, detector and ``calibrate_steps`` say what is tried; its arms enter the recipe.
        dry_run: train and write nothing; return what would be tried, and its cost.

    Returns:
        {"tried": [{"fraction", "pictures", "of", "steps", "lacking" (classes), "mAP", "mAP_all", "yardstick", "converged"}, ...],
        "regime": {"fraction", "steps", "converged"} or None, "sentence", "recipe": its path or None, "left_out": parts that lack a class,
        "validation": what was looked at}; for a dry run the plan.

    Raises:
        CCDiffError: no training pictures, nothing to validate on, no part can be tried, a training failed (finished ones are kept).
    """
    pictures = read_set(real)
    config = config.with_steps(len(pictures.split("train")))
    train, validation, from_train = _validation(pictures, config.draw)
    search = _Search(pictures, train, validation, from_train, config, Path(out), processes, progress)
    fractions = _fractions(search)
    ladder = config.calibrate_steps or tuple(dict.fromkeys(max(2, config.detector.steps * k // 4) for k in (1, 2, 4, 8, 16)))
    if dry_run:
        return _plan(search, fractions, ladder)
    clear_partials(search.out)
    tried: list[dict[str, Any]] = []
    means: dict[float, float] = {}
    for place, steps in enumerate(ladder):
        for fraction in fractions:
            part = search.evaluations(fraction, steps)
            mean = spread([e.summary["mAP"] for e in part])["mean"]
            before = next((t for t in tried if place and (t["fraction"], t["steps"]) == (fraction, ladder[place - 1])), None)
            if before is not None:
                before["converged"] = mean is not None and mean - means[fraction] < CONVERGED
                if before["converged"] and before["yardstick"]["can_answer"]:
                    return _found(search, tried, before)
            means[fraction] = mean if mean is not None else 0.0
            tried.append(_regime(search, fraction, steps, part))
            write_json(search.out / CALIBRATION, _result(search, tried, None))
    clear = [t for t in tried if t["yardstick"]["can_answer"]]
    return _found(search, tried, clear[-1] if clear else None)


def _validation(real: PictureSet, draw: int) -> tuple[Sequence[Scene], Sequence[Scene], bool]:
    """Training and validation pictures, and whether the second were held out of the training split."""
    train, validation = real.split("train"), real.split("val")
    if not train:
        raise CCDiffError("the real set has no train split", where=real.root, fix="prepare it with one: `ccdiff prepare --splits FOLDER`")
    if any(not i.difficult for s in validation for i in s.instances):
        return train, validation, False
    sources = sorted({source_of(s) for s in train})
    if len(sources) < 5:
        raise CCDiffError(
            f"the real set has no labelled validation pictures, and {len(sources)} training sources are too few to hold some out",
            where=real.root,
            fix="prepare it with a val split: `ccdiff prepare --splits FOLDER`",
        )
    order = np.random.default_rng([draw, VALIDATION]).permutation(len(sources))
    held = {sources[int(k)] for k in order[: max(1, round(len(sources) * HELD_OUT_SHARE / 100))]}
    return tuple(s for s in train if source_of(s) not in held), tuple(s for s in train if source_of(s) in held), True


def _fractions(search: _Search) -> list[float]:
    """The parts that are tried, smallest first: smaller than all pictures and, where some part holds every class, those that do."""
    if not search.usable:
        asked = ", ".join(f"{f:g} %" for f in search.wanted)
        raise CCDiffError(
            f"no part of the real training pictures can be tried: {asked} hold no object, or all pictures",
            where=search.real.root,
            fix="name larger or smaller parts: --fractions 10,25,50",
        )
    return search.usable if search.incomplete else [f for f in search.usable if f not in search.lacking]


def _regime(search: _Search, fraction: float, steps: int, part: list[Evaluation]) -> dict[str, Any]:
    """One regime, measured."""
    whole = search.evaluations(100.0, steps)
    arms = [
        Arm(REAL if f == 100 else f"{f:g} % of real", REAL, None, f, search.part(f), steps) for f in (fraction, 100.0)
    ]  # what the yardstick reads of an arm
    evaluations = dict(zip((a.name for a in arms), (part, whole), strict=True))
    drawn = resample(evaluations, [source_of(s) for s in search.validation], samples=search.config.samples)
    rows = more_real(arms, evaluations, drawn)
    return {
        "fraction": fraction,
        "pictures": len(arms[0].scenes),
        "of": len(arms[1].scenes),
        "steps": steps,
        "lacking": search.lacking.get(fraction, []),
        "mAP": spread([e.summary["mAP"] for e in part]),
        "mAP_all": spread([e.summary["mAP"] for e in whole]),
        "yardstick": {**answer_of(rows, fraction, len(search.config.seeds)), "gain": rows[0]["gain"]},
        "converged": None,
    }


def _found(search: _Search, tried: list[dict[str, Any]], chosen: dict[str, Any] | None) -> dict[str, Any]:
    """The end of a search: the recipe, where a regime was found."""
    result = _result(search, tried, chosen)
    recipe = search.out / REGIME
    if chosen is None:
        recipe.unlink(missing_ok=True)  # of an earlier search
    else:
        regime = search.config.model_copy(
            update={
                "name": "regime",
                "description": result["sentence"],
                "fractions": (chosen["fraction"],),
                "calibrate_steps": None,
                "detector": with_steps(search.config.detector, chosen["steps"]),
            }
        )
        values = regime.model_dump(mode="json", exclude_none=True)
        text = "# Found by `ccdiff eval-trainability --calibrate` on validation pictures; use it with --recipe.\n"
        write_text(recipe, text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
    write_json(search.out / CALIBRATION, result)
    return result


def _result(search: _Search, tried: list[dict[str, Any]], chosen: dict[str, Any] | None) -> dict[str, Any]:
    if chosen is None:
        sentence = f"No regime was found: in none of {len(tried)} tried do more real pictures bring a gain that is clear of zero."
    else:
        gain, within = (chosen["yardstick"]["gain"]["mAP"][k] for k in ("mean", "interval"))
        sentence = (
            f"{chosen['fraction']:g} % of the real pictures ({chosen['pictures']} of {chosen['of']}), {chosen['steps']:,} steps: all of "
            f"them bring {signed(gain)} mAP [{signed(within['low'])}, {signed(within['high'])}] on validation pictures"
            + (f"; the part has no {', no '.join(chosen['lacking'])}, and some of the gain is theirs" if chosen["lacking"] else "")
            + ("" if chosen["converged"] else "; the detector has not been seen to converge: more steps may bring as much")
            + "."
        )
    held = (
        f"{HELD_OUT_SHARE:g} % of the training sources, held out (the set has no labelled val split)" if search.from_train else "split val"
    )
    return {
        "tried": tried,
        "regime": {k: chosen[k] for k in ("fraction", "steps", "converged")} if chosen else None,
        "sentence": sentence,
        "recipe": str(search.out / REGIME) if chosen else None,
        "left_out": [] if search.incomplete else [{"fraction": f, "lacking": classes} for f, classes in search.lacking.items()],
        "validation": {"what": held, "pictures": len(search.validation), "objects": sum(len(s.instances) for s in search.validation)},
        "seeds": list(search.config.seeds),
    }


def _plan(search: _Search, fractions: Sequence[float], ladder: Sequence[int]) -> dict[str, Any]:
    """What would be tried, and its cost if the search goes on to the end."""
    nothing_yet = _result(search, [], None)
    step = seconds_per_step(search.train, search.real.classes, search.config.detector)
    counted: set[str] = set()
    rows: list[dict[str, Any]] = []
    for steps in ladder:
        for fraction in fractions:
            new = {t.key for f in (fraction, 100.0) for t in search.trainings(f, steps) if not is_finished(t, search.out)} - counted
            counted |= new
            rows.append(
                {"fraction": fraction, "pictures": len(search.part(fraction)), "steps": steps, "trainings": len(new),
                 "minutes": round(len(new) * steps * step / 60, 1), "lacking": search.lacking.get(fraction, [])}
            )  # fmt: skip
    return {
        "regimes": rows,
        **{key: nothing_yet[key] for key in ("left_out", "validation")},
        "seeds": list(search.config.seeds),
        "estimated minutes": round(sum(r["minutes"] for r in rows), 1),
    }
