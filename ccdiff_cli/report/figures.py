"""The figures of the trainability page, as SVG text, and the style of all figures.

NOTE: drawn on ``Figure`` objects, never through pyplot, so nothing global is touched; a fixed hash salt and no date keep the bytes
the same.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REAL, BOTH = "#7a869a", "#1f6feb"
GAIN, LOSS = "#1a7f5a", "#c2410c"
WIDTH = 10.3  # inches: the width of the page
INK, FAINT = "#1c2430", "#e3e8ef"
COLOURS = {"real": REAL, "real + synthetic": BOTH}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "ccdiff",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b6c0cd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
}


def class_gains(results: Mapping[str, Any]) -> str:
    """Gain of AP50 per class: a bar for the mean, a dot for every seed."""
    gains = {name: g["AP50"] for name, g in results["per_class_gain"].items() if g["AP50"]["mean"] is not None}
    order = sorted(gains, key=lambda name: gains[name]["mean"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.34 * max(3, len(order)) + 0.9))
        axes = figure.add_subplot()
        for y, name in enumerate(order):
            gain = gains[name]
            axes.barh(y, gain["mean"], height=0.62, color=GAIN if gain["mean"] >= 0 else LOSS, alpha=0.8)
            if len(gain["per_seed"]) > 1:
                axes.scatter(gain["per_seed"], [y] * len(gain["per_seed"]), s=16, color=INK, zorder=3, linewidths=0)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(order)), [literal(name) for name in order])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=FAINT, zorder=0)
        axes.set_axisbelow(True)
        axes.set_xlabel("gain in AP50, points (dots: seeds)")
        axes.margins(x=0.08)
        return svg_text(figure)


def adherence(results: Mapping[str, Any]) -> str:
    """AP50 of the real arm's detectors on synthetic pictures, between floor and ceiling."""
    scores = results["adherence"]["scores"]
    order = sorted(scores, key=lambda name: ("floor" in name, "ceiling" not in name), reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.42 * len(order) + 0.9))
        axes = figure.add_subplot()
        for y, name in enumerate(order):
            value = scores[name]["AP50"]
            if value["mean"] is None:
                continue
            colour = REAL if "ceiling" in name else "#c9d1dc" if "floor" in name else BOTH
            axes.barh(
                y,
                value["mean"],
                xerr=value["sd"] or None,
                height=0.6,
                color=colour,
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
            axes.text(value["mean"] + (value["sd"] or 0) + 1.2, y, f"{value['mean']:.1f}", va="center")
        axes.set_yticks(range(len(order)), order)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 105)
        axes.grid(axis="x", color=FAINT)
        axes.set_axisbelow(True)
        axes.set_xlabel("mAP50 of the detectors trained on real pictures")
        return svg_text(figure)


def precision_recall(results: Mapping[str, Any]) -> str:
    """Precision over recall at IoU 0.5, one small plot a class, mean over the seeds."""
    arms = results["arms"]
    names = list(next(iter(arms.values()))["precision_at_recall"])
    columns = 5
    rows = max(1, -(-len(names) // columns))
    recall = np.linspace(0, 1, 101)
    with matplotlib.rc_context(STYLE | {"font.size": 8.5, "axes.titlesize": 9}):
        figure = Figure(figsize=(WIDTH, 1.85 * rows + 0.35), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for k, axes in enumerate(grid.flat):
            if k >= len(names):
                axes.set_visible(False)
                continue
            for arm, entry in arms.items():
                axes.plot(recall, entry["precision_at_recall"][names[k]], color=COLOURS[arm], linewidth=1.5, label=arm)
            axes.set_title(literal(names[k]), loc="left")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.03)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.grid(color=FAINT)
        figure.supxlabel("recall", fontsize=9)
        figure.supylabel("precision", fontsize=9)
        return svg_text(figure)


def losses(results: Mapping[str, Any]) -> str:
    """Training loss over steps: thin lines are seeds, the thick one is their mean."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6))
        axes: Axes = figure.add_subplot()
        for arm, entry in results["arms"].items():
            runs = [np.array(t["losses"]["rows"]) for t in entry["trainings"]]
            for run in runs if len(runs) > 1 else ():
                axes.plot(run[:, 0], run[:, 1], color=COLOURS[arm], linewidth=0.7, alpha=0.35)
            mean = np.mean([run[:, 1] for run in runs], axis=0)
            axes.plot(runs[0][:, 0], mean, color=COLOURS[arm], linewidth=1.8, label=arm)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)
        axes.grid(color=FAINT)
        return svg_text(figure)


def literal(name: str) -> str:
    return name.replace("$", r"\$")  # a lone dollar is a letter, not mathematics


def svg_text(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.04, transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
