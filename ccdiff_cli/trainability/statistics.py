"""How sure a gain is: intervals over test pictures and seeds.

Notable:

* Test pictures are drawn again by source (tiles of one source are not independent), the same draw for every arm and seed, and AP is
  computed anew from the matches: the gain of a draw is a difference of two APs on the same pictures.
* Seeds are random effects: what is asked is the gain of the next training, not of these three.  Drawing three seeds again makes an interval
  a third too narrow, for their spread is known so poorly; in its place the mean over seeds gets Student's t with n - 1 degrees of freedom.
  The tests hold the coverage of both to simulated experiments of a known effect.
* The probability of a gain is the share of draws above zero.
* NOTE: the choice of the real and of the synthetic training pictures is the same in all seeds: the interval does not speak of other sets.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from ..metrics.average_precision import METRICS, Evaluation, average_precision

TRAIN_LONGER = "train them longer (more steps: --set steps=N, or steps under detector)"
LEARNED = 0.05
"""A detector of a lower mAP (percent), which is shown as 0.0, has learned nothing."""
NOISE = 50
"""Draws of the seeds' mean for each draw of the pictures."""


def resample(
    evaluations: Mapping[str, Sequence[Evaluation]], groups: Sequence[str], *, samples: int = 400, seed: int = 0
) -> dict[str, np.ndarray]:
    """AP of every arm and seed on the same draws of the test pictures.

    Args:
        evaluations: arm -> its evaluations, one a seed, all on the same pictures.
        groups: the source of every picture; pictures of one source are drawn together.

    Returns:
        arm -> (samples, seeds, classes, 3): mAP, AP50, AP75 in percent, of the evaluated classes in their order; NaN where a draw has no
        object of a class.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    times = [
        np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member].astype(np.float64) for _ in range(samples)
    ]
    return {
        arm: np.array([[_per_class(e, t) for e in per_seed] for t in times], np.float32).reshape(samples, len(per_seed), -1, 3)
        for arm, per_seed in evaluations.items()
    }


def _per_class(evaluation: Evaluation, times: np.ndarray) -> np.ndarray:
    """(classes, 3) of one evaluation under picture weights."""
    rows = np.zeros((len(evaluation.matches), 3))
    for k, matches in enumerate(evaluation.matches.values()):
        ap = 100 * average_precision(matches, times)
        rows[k] = ap.mean(), ap[0], ap[5]
    return rows


def over_classes(draws: np.ndarray) -> np.ndarray:
    """(samples, seeds, 3): the mean over the classes that a draw has objects of."""
    counted = ~np.isnan(draws)
    total = np.where(counted, draws, 0).sum(axis=2)
    n = counted.sum(axis=2)
    mean: np.ndarray = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
    return mean


def interval(per_seed: Sequence[float], draws: np.ndarray, *, seed: int = 0) -> dict[str, float | None] | None:
    """95 % interval of a mean gain.

    Args:
        per_seed: (n,) the gains on the test pictures as they are.
        draws: (samples, n) the gains on the drawn pictures.

    Returns:
        {"low", "high", "above_zero": share of draws with a gain, "by_pictures", "by_seeds": half the interval that either would give
        alone (None with one seed, which says nothing of it)}; None where no draw could be evaluated.
    """
    of_pictures = draws.mean(axis=1)
    of_pictures = of_pictures[~np.isnan(of_pictures)]
    if not len(of_pictures):
        return None
    n = len(per_seed)
    sd_seeds = statistics.stdev(per_seed) / math.sqrt(n) if n > 1 else 0.0
    total = np.repeat(of_pictures, NOISE)
    if n > 1:
        total = total + sd_seeds * np.random.default_rng([seed, n]).standard_t(n - 1, size=len(total))
    low, high = np.clip(np.percentile(total, [2.5, 97.5]), -100, 100)
    return {
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "above_zero": round(float(((total > 0) + 0.5 * (total == 0)).mean()), 4),
        "by_pictures": round(float(np.subtract(*np.percentile(of_pictures, [97.5, 2.5]))) / 2, 3),
        "by_seeds": round(float(scipy.stats.t.ppf(0.975, n - 1)) * sd_seeds, 3) if n > 1 else None,
    }


def compare(
    before: Sequence[Evaluation], after: Sequence[Evaluation], drawn_before: np.ndarray, drawn_after: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gain of ``after`` over ``before``, seed by seed: of all classes, and of each.

    Returns:
        {metric: spread with "interval"}, {class: {metric: spread with "interval"}}.
    """
    difference = drawn_after - drawn_before
    mean = over_classes(drawn_after) - over_classes(drawn_before)
    gain: dict[str, Any] = {}
    per_class: dict[str, Any] = {}
    for m, metric in enumerate(METRICS):
        gain[metric] = _gain([_difference(b.summary[metric], a.summary[metric]) for b, a in _pairs(before, after)], mean[..., m])
    evaluated = list(before[0].matches)
    for name in before[0].summary["per_class"]:
        per_class[name] = {}
        for m, metric in enumerate(METRICS):
            values = [
                _difference(b.summary["per_class"][name][metric], a.summary["per_class"][name][metric]) for b, a in _pairs(before, after)
            ]
            draws = difference[:, :, evaluated.index(name), m] if name in evaluated else None
            per_class[name][metric] = _gain(values, draws)
    return gain, per_class


def _pairs(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> list[tuple[Evaluation, Evaluation]]:
    return list(zip(before, after, strict=True))


def _gain(values: Sequence[float | None], draws: np.ndarray | None) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    found = spread(values)
    return {**found, "interval": interval(known, draws) if draws is not None and found["mean"] is not None else None}


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, sample standard deviation, extremes and the values themselves; all None where a value is missing."""
    known = [v for v in values if v is not None]
    if len(known) != len(values) or not known:
        return {"mean": None, "sd": None, "min": None, "max": None, "per_seed": list(values)}
    return {
        "mean": round(statistics.fmean(known), 3),
        "sd": round(statistics.stdev(known), 3) if len(known) > 1 else None,
        "min": min(known),
        "max": max(known),
        "per_seed": known,
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return round(after - before, 3) if before is not None and after is not None else None


def learned(*arms: Mapping[str, Any]) -> bool:
    """Whether the detectors of any of these arms (or spreads of their mAP under the key ``mAP``) find anything."""
    return any(arm["mAP"]["mean"] is None or arm["mAP"]["mean"] >= LEARNED for arm in arms)


def verdict(gain: Mapping[str, Any], seeds: int, what: str = "the synthetic pictures", *, arms: Sequence[Mapping[str, Any]] = ()) -> str:
    """A gain in mAP as a plain sentence: "+1.9 mAP [+0.4, +3.3], 3 seeds: the detector gains from the synthetic pictures".

    Args:
        gain: mean, sd and interval of the mAP.
        what: what was added.
        arms: the two that are compared, with their ``mAP``; where neither has any, the sentence speaks of that alone.
    """
    if gain["mean"] is None:
        return "no gain could be measured: no class has objects in the test pictures"
    counted = f"{seeds} seed{'s' * (seeds > 1)}"
    if arms and not learned(*arms):
        return f"the detectors have learned nothing (mAP 0 with and without {what}, {counted}): {TRAIN_LONGER}"
    found = gain.get("interval")
    if not found:
        return f"{signed(gain['mean'])} mAP, {counted}"
    sentence = f"{signed(gain['mean'])} mAP [{signed(found['low'])}, {signed(found['high'])}], {counted}: "
    if found["low"] > 0:
        sentence += f"the detector gains from {what}"
    elif found["high"] < 0:
        sentence += f"the detector loses by {what}"
    else:
        chance = found["above_zero"]
        percent = "more than 99" if chance > 0.99 else "less than 1" if chance < 0.01 else f"{100 * chance:.0f}"
        sentence += f"neither gain nor loss is shown (probability of a gain {percent} %)"
    return sentence + ("; one seed cannot tell it from the chance of a training" if seeds == 1 else "")


def signed(value: float) -> str:
    """One digit, with its sign; adding zero turns -0.0 into 0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"
