"""Can an experiment answer at all?  What more real pictures bring in its schedule: the yardstick of every gain by added pictures.

Notable: it is measured before any arm with added pictures is trained, and says nothing of them.  Where not even more real pictures bring a
gain whose interval is clear of zero, none that is added can be seen, and a result without a gain speaks of the schedule, not of the
pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics.average_precision import Evaluation
from .arms import REAL, Arm
from .statistics import TRAIN_LONGER, compare, learned, signed, spread

CALIBRATE = "eval-trainability --calibrate looks for a part of the real pictures and a number of steps with which it can"


def more_real(
    arms: Sequence[Arm], evaluations: Mapping[str, Sequence[Evaluation]], drawn: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """What the largest part of the real set gains over each smaller one, in the same steps.

    Returns:
        [{"arm", "over", "fraction": percent of the smaller one, "times": as many pictures, "steps", "clear": whether the gain's interval
        lies above zero, "learned": whether either detector finds anything, "gain"}, ...].
    """
    real = [a for a in arms if a.kind == REAL]
    found = []
    for part in real[:-1]:
        gain, _ = compare(evaluations[part.name], evaluations[real[-1].name], drawn[part.name], drawn[real[-1].name])
        times = round(len(real[-1].scenes) / len(part.scenes), 2)
        within = gain["mAP"]["interval"]
        row = {"arm": real[-1].name, "over": part.name, "fraction": part.fraction, "times": times, "steps": part.steps}
        row["learned"] = learned(*({"mAP": spread([e.summary["mAP"] for e in evaluations[a.name]])} for a in (part, real[-1])))
        found.append({**row, "clear": bool(within and within["low"] > 0), "gain": gain})
    return found


def answer_of(rows: Sequence[Mapping[str, Any]], fraction: float, seeds: int) -> dict[str, Any]:
    """Whether the experiment can answer at a fraction of the real set, as one plain sentence.

    Args:
        rows: of :func:`more_real`.
        fraction: percent; of the whole set the largest part below it is looked at, for there is no larger one.

    Returns:
        {"can_answer": True, False or None (not known), "sentence", "over": the smaller real arm or None}.
    """
    here = [row for row in rows if row["fraction"] == fraction] or list(rows[-1:])
    if not here or here[0]["gain"]["mAP"]["interval"] is None:
        why = "the real set is too small to be halved" if not here else "no class has objects in the pictures it is measured on"
        return {"can_answer": None, "sentence": f"Whether this experiment can answer is not known: {why}.", "over": None}
    row = here[0]
    gain, within = row["gain"]["mAP"], row["gain"]["mAP"]["interval"]
    counted = f"{seeds} seed{'s' * (seeds > 1)}"
    if not row["learned"]:
        nothing = f"the detectors have learned nothing in {row['steps']:,} steps (mAP 0 by any number of real pictures, {counted})"
        return {"can_answer": False, "sentence": f"This experiment cannot answer: {nothing}; {TRAIN_LONGER}.", "over": row["over"]}
    brought = f"{signed(gain['mean'])} mAP [{signed(within['low'])}, {signed(within['high'])}] in {row['steps']:,} steps, {counted}"
    more = f"{row['times']:g} times as many real pictures ({row['arm']} over {row['over']})"
    if row["clear"]:
        sentence = f"This experiment can answer: {more} bring {brought}, which is clear of zero."
        if seeds == 1:
            sentence += " One seed says nothing of the chance of a training."
    else:
        sentence = (
            f"This experiment cannot answer: not even {more} bring a gain that is clear of zero ({brought}), so none of added pictures can "
            f"be seen; {CALIBRATE}."
        )
    return {"can_answer": row["clear"], "sentence": sentence, "over": row["over"]}


def unknown(trainings: int, minutes: float) -> dict[str, Any]:
    """The answer before the real arms are trained."""
    return {
        "can_answer": None,
        "sentence": f"Whether this experiment can answer is not known yet: {trainings} trainings on real pictures alone tell it (about "
        f"{minutes:.0f} minutes); they come first.",
        "over": None,
    }
