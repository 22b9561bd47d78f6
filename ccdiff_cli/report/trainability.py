"""The page of a trainability comparison, and its tables as Markdown and LaTeX: the arms at both protocols, side by side.

Notable:

* The published protocol trains longer on more pictures.  Beside its gain stands what the real pictures alone gain by as much training, and
  what is left of the gain over them: the first is the sum of the other two.
* The page is made from ``results.json`` plus a few pictures, so it can be made again; the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ..detectors import Detections
from ..errors import markdown, visible
from ..scene import ClassList, Instance, Scene
from . import figures
from .evaluation import tabular
from .page import NO_VALUE, Box, hex_colour, labelled, labels_of, picture_address, points_of, render

SHOWN_SCORE = 0.5
"""Detections below this score are not drawn in the examples."""
COLUMNS = ("equal steps", "equal epochs (as published)", "longer training alone", "left of the published gain")
METRICS = ("mAP", "AP50", "AP75")


@dataclass(frozen=True)
class Example:
    """A test picture with what the detectors of the two arms found in it."""

    scene: Scene
    before: Detections
    after: Detections


@dataclass(frozen=True)
class Change:
    """An object that one arm's detectors find and the other's do not: ``found`` counts seeds, (before, after)."""

    example: Example
    instance: Instance
    found: tuple[int, int]


def trainability_page(
    results: Mapping[str, Any],
    classes: ClassList,
    examples: Sequence[Example],
    samples: Sequence[Scene],
    changes: Mapping[str, Sequence[Change]] | None = None,
) -> str:
    """The page of :func:`ccdiff_cli.trainability.eval_trainability`.

    Args:
        results: what ``results.json`` holds.
        examples: test pictures with the detections of the headline's two arms (first seed).
        samples: synthetic pictures, shown with their labels.
        changes: "learned" and "lost" -> objects.
    """
    arms, chosen, base = results["arms"], results["headline"]["arm"], results["headline"]["baseline"]
    kinds = [arm["kind"] for arm in arms.values()]
    shown = [base, *(n for n, a in arms.items() if a["fraction"] == arms[chosen]["fraction"] and n != base and _belongs(a, arms[chosen]))]
    names = [c for c in classes if any(i.category == c for s in (*samples, *(e.scene for e in examples)) for i in s.instances)]
    sizes = [s for s, v in arms[base]["per_size"].items() if v["test_objects"]]
    dose, by_fraction = figures.dose_curve(results), figures.fraction_curve(results)
    return render(
        "page.html",
        r=results,
        arms=arms,
        chosen=chosen,
        base=base,
        before=arms[base],
        after=arms[chosen],
        colours={name: figures.arm_colour(arm["kind"], kinds) for name, arm in arms.items()},
        shown=shown,
        sizes=sizes,
        protocol=results["protocol"],
        classes=list(classes),
        legend=[(name, hex_colour(name, classes)) for name in names],
        gains_figure=Markup(figures.gains(arms)),  # our own SVG; matplotlib escapes the names
        dose_figure=Markup(dose) if dose else None,
        fraction_figure=Markup(by_fraction) if by_fraction else None,
        class_figure=Markup(figures.class_gains(results)),
        adherence_figure=Markup(figures.adherence(results)) if results["adherence"] else None,
        protocol_columns=COLUMNS,
        protocol_rows=protocol_rows(results),
        curves_figure=Markup(figures.precision_recall(results, shown)),
        loss_figure=Markup(figures.losses(results, shown)),
        examples=[
            {
                "name": e.scene.file_name,
                "picture": picture_address(e.scene),
                "width": e.scene.width,
                "height": e.scene.height,
                "panels": [
                    ("labels", labels_of(e.scene, classes)),
                    (base, boxes_found(e.before, classes)),
                    (chosen, boxes_found(e.after, classes)),
                ],
            }
            for e in examples
        ],
        samples=[labelled(s, classes) for s in samples],
        changes={state: [_change(c, classes) for c in found] for state, found in (changes or {}).items()},
        shown_score=SHOWN_SCORE,
    )


def _belongs(arm: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Whether an arm is drawn beside the headline's: itself, and other ways of adding as many pictures at the same protocol."""
    return arm["ratio"] == chosen["ratio"] and arm["kind"] not in ("real", "longer") and arm["protocol"] == chosen["protocol"]


def _change(change: Change, classes: ClassList) -> dict[str, Any]:
    """A part of the picture around an object, with what either arm found there."""
    scene, (x1, y1, x2, y2) = change.example.scene, change.instance.hbb
    side = min(max(2.2 * max(x2 - x1, y2 - y1), 48.0), float(max(scene.width, scene.height)))
    left = min(max((x1 + x2 - side) / 2, 0.0), max(scene.width - side, 0.0))
    top = min(max((y1 + y2 - side) / 2, 0.0), max(scene.height - side, 0.0))
    window = (left, top, min(left + side, scene.width), min(top + side, scene.height))
    label = Box(points_of(change.instance.corners), "#ffffff", f"{change.instance.category} (label)", dashed=True)
    return {
        "class": change.instance.category,
        "name": scene.file_name,
        "picture": picture_address(scene, window),
        "x": round(window[0], 1),
        "y": round(window[1], 1),
        "width": round(window[2] - window[0], 1),
        "height": round(window[3] - window[1], 1),
        "panels": [[label, *boxes_found(found, classes)] for found in (change.example.before, change.example.after)],
        "found": change.found,
    }


def boxes_found(found: Detections, classes: ClassList) -> list[Box]:
    boxes = []
    corners = found.corners if found.corners is not None else np.asarray(found.boxes)[:, [0, 1, 2, 1, 2, 3, 0, 3]]
    for points, score, label in zip(corners.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if score >= SHOWN_SCORE:
            name = classes.names[label]
            boxes.append(Box(points_of(points), hex_colour(name, classes), f"{name} {score:.2f}"))
    return boxes


def protocol_rows(results: Mapping[str, Any], metric: str = "mAP") -> list[tuple[str, list[str]]]:
    """(arm, its gain in each of :data:`COLUMNS` as text) of every way of adding pictures."""
    rows = []
    for row in results["protocols"]:
        gains = [row[k]["gain"][metric] if row[k] else None for k in ("fair", "published", "longer")]
        gains.append(row["over_longer"][metric] if row["over_longer"] else None)
        rows.append((str(row["name"]), [gain_text(g) for g in gains]))
    return rows


def gain_text(gain: Mapping[str, Any] | None) -> str:
    """ "+1.9 [+0.4, +3.3]"; a dash where it was not measured."""
    if gain is None or gain["mean"] is None:
        return NO_VALUE
    within = gain["interval"]
    return _signed(gain["mean"]) + (f" [{_signed(within['low'])}, {_signed(within['high'])}]" if within else "")


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"


def spread_text(value: Mapping[str, Any]) -> str:
    """ "25.4 ± 1.7"; a dash where it was not measured."""
    if value["mean"] is None:
        return NO_VALUE
    return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")


def _arm_cells(arm: Mapping[str, Any]) -> list[str]:
    gain = arm["gain"]["mAP"] if "gain" in arm else None
    return [f"{arm['pictures']:,}", f"{arm['steps']:,}", *(spread_text(arm[m]) for m in METRICS), gain_text(gain) if gain else ""]


def _notes(results: Mapping[str, Any]) -> list[str]:
    p = results["protocol"]
    detector = f"{p['detector']['kind']} ({p['detector'].get('backbone', '')}, {p['detector'].get('input_size', '')} px)"
    return [
        results["yardstick"]["sentence"],
        results["protocols_sentence"],
        f"{detector}, batches of {p['detector']['batch']}, seeds {', '.join(map(str, p['seeds']))}; {p['evaluation']}",
        f"intervals: {p['interval']}",
    ]


def markdown_table(results: Mapping[str, Any]) -> str:
    """Arms, then the gains at both protocols, then what they say."""
    lines = ["| trained on | pictures | steps | mAP | AP50 | AP75 | gain in mAP |", "|---|" + "---:|" * 6]
    lines += [f"| {markdown(name)} | " + " | ".join(_arm_cells(arm)) + " |" for name, arm in results["arms"].items()]
    lines += ["", "| gain in mAP | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {markdown(name)} | " + " | ".join(cells) + " |" for name, cells in protocol_rows(results)]
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in _notes(results)), ""])


def latex_table(results: Mapping[str, Any]) -> str:
    """Two tabulars, to be pasted."""
    arms = [[name, *_arm_cells(arm)] for name, arm in results["arms"].items()]
    both = [[name, *cells] for name, cells in protocol_rows(results)]
    notes = [visible(f"% {note}", lines=False) for note in _notes(results)]
    return "\n".join(
        [
            *notes,
            *tabular(["trained on", "pictures", "steps", *METRICS, "gain in mAP"], arms),
            *tabular(["gain in mAP", *COLUMNS], both),
        ]
    )
