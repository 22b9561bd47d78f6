"""Do the synthetic pictures show what their labels say?  Detectors trained on real pictures look for it.

The ceiling is what they reach on real test pictures; the floor is the same synthetic pictures with one another's labels, and where given
pictures that were made from shuffled layouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..detectors import Detections, Detector, Progress
from ..files import content_key
from ..metrics.average_precision import METRICS, Boxes, Evaluation, evaluate
from ..scene import ClassList, Instance, Scene
from ..spooled import Made
from .statistics import spread


def layout_adherence(detector: Detector, scenes: Sequence[Scene], classes: ClassList, progress: Progress | None = None) -> dict[str, Any]:
    """How well a detector trained on real pictures finds the layouts that synthetic pictures were made from.

    Returns:
        ``{"synthetic": summary, "shuffled labels": summary or None}``, summaries as :func:`..metrics.average_precision.evaluate` makes
        them; the floor scores the same pictures against one another's labels (:func:`swap_labels`).
    """
    found = detector.predict(scenes, progress)
    swapped = swap_labels(scenes)
    return {
        "synthetic": evaluate(scenes, found, classes).summary,
        "shuffled labels": evaluate(swapped, found, classes).summary if swapped is not None else None,
    }


def adherence_scores(
    looked_at: Mapping[str, Sequence[Scene]],
    found: Mapping[int, Mapping[str, list[Detections]]],
    ceiling: Sequence[Evaluation],
    classes: ClassList,
    boxes: Boxes = "hbb",
) -> dict[str, Any]:
    """mAP and AP50 of the real arm's detectors on real test pictures, synthetic ones, and the floors; per seed, mean and sd.

    Args:
        looked_at: "synthetic" and, where there is one, "floor" -> pictures.
        found: seed -> the same names -> what the detector found there.
        ceiling: the evaluations on the real test pictures.
    """
    swapped = swap_labels(looked_at["synthetic"])
    scores: dict[str, list[dict[str, Any]]] = {
        "real test pictures (ceiling)": [e.summary for e in ceiling],
        "synthetic pictures": [evaluate(looked_at["synthetic"], f["synthetic"], classes, boxes).summary for f in found.values()],
    }
    if swapped is not None:
        scores["synthetic pictures, labels shuffled (floor)"] = [
            evaluate(swapped, f["synthetic"], classes, boxes).summary for f in found.values()
        ]
    if "floor" in looked_at:
        scores["pictures from shuffled layouts (floor)"] = [
            evaluate(looked_at["floor"], f["floor"], classes, boxes).summary for f in found.values()
        ]
    per_class = {name: spread([s["per_class"][name]["AP50"] for s in scores["synthetic pictures"]]) for name in classes}
    rows = {
        name: {"pictures": summaries[0]["pictures"], **{m: spread([s[m] for s in summaries]) for m in METRICS}}
        for name, summaries in scores.items()
    }
    return {"scores": rows, "per_class_AP50": per_class}


def swap_labels(scenes: Sequence[Scene], seed: int = 0) -> Sequence[Scene] | None:
    """The scenes with one another's labels, made as they are asked for: a fixed permutation under which no picture gets a layout equal to
    its own.

    Layouts of another picture size are stretched.  None where over half of the pictures share one layout, so no such permutation exists.
    """
    rng = np.random.default_rng([seed, len(scenes)])
    groups: dict[str, list[int]] = {}
    for i, scene in enumerate(scenes):
        groups.setdefault(content_key(sorted([x.category, list(x.hbb)] for x in scene.instances)), []).append(i)
    names = sorted(groups)
    largest = max((len(g) for g in groups.values()), default=0)
    if not scenes or 2 * largest > len(scenes):
        return None
    # Equal layouts stand together; turning the row by the length of its longest run moves every picture out of its own run.
    order = [i for k in rng.permutation(len(names)) for i in groups[names[int(k)]]]
    donors = np.empty(len(order), np.int64)
    donors[order] = np.roll(order, -largest)

    def swapped(i: int) -> Scene:
        scene, donor = scenes[i], scenes[int(donors[i])]
        fx, fy = scene.width / donor.width, scene.height / donor.height
        return scene.replace(instances=tuple(_stretched(x, fx, fy) for x in donor.instances))

    return Made(len(donors), swapped)


def _stretched(instance: Instance, fx: float, fy: float) -> Instance:
    if fx == fy == 1:
        return instance
    hbb = tuple(v * (fx, fy)[i % 2] for i, v in enumerate(instance.hbb))
    corners = tuple(v * (fx, fy)[i % 2] for i, v in enumerate(instance.corners))
    return dataclasses.replace(instance, hbb=hbb, corners=corners)  # type: ignore[arg-type]
