"""What of an experiment is shown and written: pictures chosen by a rule, objects learned and lost, the report and the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..comparison import spread
from ..detectors import Detections
from ..files import write_json, write_text
from ..geometry import hbb_iou, rotated_iou
from ..metrics.average_precision import Boxes
from ..report.trainability import Change, Example, latex_table, markdown_table, trainability_page
from ..scene import ClassList, Scene

EXAMPLES, CHANGES = 8, 8
SAMPLES = 16
"""Test pictures with detections, objects learned and as many lost, and synthetic pictures, that the report shows."""
SHOWN_SCORE = 0.5
"""A detection with this score counts as an object found, where single objects are shown or counted."""


def objects_found(scenes: Sequence[Scene], per_seed: Sequence[Sequence[Detections]], classes: ClassList, boxes: Boxes) -> list[np.ndarray]:
    """For every picture (seeds, objects): is there a detection of its class with IoU 0.5 and the score shown?"""
    found = []
    for i, scene in enumerate(scenes):
        label = np.array([classes.index(c) for c in scene.categories()], np.int64)
        truth = np.array([x.hbb if boxes == "hbb" else x.corners for x in scene.instances], np.float64)
        rows = []
        for detections in per_seed:
            one = detections[i]
            sure = one.scores >= SHOWN_SCORE
            iou = hbb_iou(truth, one.boxes[sure]) if boxes == "hbb" else rotated_iou(truth, _corners(one)[sure])
            rows.append(((iou >= 0.5) & (label[:, None] == one.labels[sure][None])).any(axis=1))
        found.append(np.array(rows).reshape(len(per_seed), len(label)))
    return found


def _corners(found: Detections) -> np.ndarray:
    return found.corners if found.corners is not None else np.zeros((len(found), 8))  # a picture without any


def examples_of(test: Sequence[Scene], before: Sequence[Detections], after: Sequence[Detections]) -> list[Example]:
    """Every test picture with what the detectors of two arms found in it."""
    return [Example(*row) for row in zip(test, before, after, strict=True)]


def changes_of(
    examples: Sequence[Example], found: Mapping[str, Sequence[tuple[int, int]]], objects: Sequence[Sequence[np.ndarray]]
) -> dict[str, list[Change]]:
    """The objects that the report shows, class by class.

    Args:
        found: "learned", "lost" -> (picture, object), the clearest first.
        objects: of either arm, see :func:`objects_found`.
    """
    return {
        state: [
            Change(examples[i], examples[i].scene.instances[j], (int(objects[0][i][:, j].sum()), int(objects[1][i][:, j].sum())))
            for i, j in _one_class_after_the_other([e.scene for e in examples], places)[:CHANGES]
        ]
        for state, places in found.items()
    }


def write_report(
    out: Path,
    results: dict[str, Any],
    classes: ClassList,
    examples: Sequence[Example],
    samples: Sequence[Scene],
    changes: Mapping[str, Sequence[Change]],
) -> None:
    """``report.html``, ``table.md``, ``table.tex`` and, last, ``results.json``."""
    chosen, shown = spread([e for e in examples if e.scene.instances], EXAMPLES), spread(samples, SAMPLES)
    write_text(out / "report.html", trainability_page(results, classes, chosen, shown, changes))
    write_text(out / "table.md", markdown_table(results))
    write_text(out / "table.tex", latex_table(results))
    write_json(out / "results.json", results)


def _one_class_after_the_other(scenes: Sequence[Scene], objects: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(picture, object) in the given order, but the first of every class before the second of any."""
    turn: Counter[str] = Counter()
    placed = []
    for k, (i, j) in enumerate(objects):
        category = scenes[i].instances[j].category
        placed.append((turn[category], k, i, j))
        turn[category] += 1
    return [(i, j) for _, _, i, j in sorted(placed)]
