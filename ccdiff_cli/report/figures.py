"""The figures of the trainability page, as SVG text, and the style of all figures.

NOTE: drawn on ``Figure`` objects, never through pyplot, so nothing global is touched; a fixed hash salt and no date keep the bytes
the same.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REAL, BOTH = "#7a869a", "#1f6feb"
GAIN, LOSS = "#1a7f5a", "#c2410c"
WIDTH = 10.3  # inches: the width of the page
INK, FAINT = "#1c2430", "#e3e8ef"
COLOURS = {
    "real": REAL,
    "longer": "#a3aebd",
    "synthetic": BOTH,
    "synthetic-only": "#7fb2f5",
    "pretrain": "#7c3aed",
    "copy-paste": "#d97706",
    "mosaic": "#a16207",
    "held-out": GAIN,
    "jittered": "#b45309",
}
"""Kind of arm -> its colour; other sets take the spare ones."""
SPARE = ("#0f766e", "#be185d", "#65a30d", "#475569")
LINES = ("-", "--", ":", "-.")
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


def arm_colour(kind: str, kinds: Sequence[str] = ()) -> str:
    """The colour of an arm's kind; other sets take the spare ones in their order among ``kinds``."""
    if kind in COLOURS:
        return COLOURS[kind]
    others = [k for k in dict.fromkeys(kinds) if k not in COLOURS]
    return SPARE[others.index(kind) % len(SPARE)] if kind in others else SPARE[0]


def _kinds(results: Mapping[str, Any]) -> list[str]:
    return [arm["kind"] for arm in results["arms"].values()]


def gains(arms: Mapping[str, Any]) -> str:
    """The gain in mAP of every arm: a dot for the mean, a line for the interval, small marks for the seeds."""
    kinds = [arm["kind"] for arm in arms.values()]
    arms = {name: arm for name, arm in arms.items() if arm.get("gain") and arm["gain"]["mAP"]["mean"] is not None}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 * max(2, len(arms)) + 0.9))
        axes = figure.add_subplot()
        for y, arm in enumerate(reversed(arms.values())):
            gain, colour = arm["gain"]["mAP"], arm_colour(arm["kind"], kinds)
            if found := gain["interval"]:
                axes.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=3.2, alpha=0.45, solid_capstyle="round")
            if len(gain["per_seed"]) > 1:
                axes.scatter(gain["per_seed"], [y] * len(gain["per_seed"]), s=42, marker="|", color=INK, linewidths=1, zorder=3)
            axes.scatter([gain["mean"]], [y], s=52, color=colour, zorder=4, linewidths=0)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(arms)), [literal(name) for name in reversed(arms)])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=FAINT)
        axes.set_axisbelow(True)
        axes.margins(x=0.08)
        axes.set_xlabel("gain in mAP, points: mean, 95 % interval, seeds")
        return svg_text(figure)


def dose_curve(results: Mapping[str, Any]) -> str | None:
    """Gain in mAP over the pictures added for each real one; None where no arm has two ratios."""
    lines: dict[tuple[str, float], list[tuple[float, Mapping[str, Any]]]] = {}
    protocol = results["arms"][results["headline"]["arm"]]["protocol"]
    for arm in results["arms"].values():
        if arm["ratio"] and arm["protocol"] == protocol and arm.get("gain") and arm["gain"]["mAP"]["mean"] is not None:
            lines.setdefault((arm["kind"], arm["fraction"]), []).append((arm["ratio"], arm["gain"]["mAP"]))
    lines = {line: points for line, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    kinds, fractions = _kinds(results), sorted({f for _, f in lines})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4))
        axes = figure.add_subplot()
        ratios = sorted({r for points in lines.values() for r, _ in points})
        for n, ((kind, fraction), points) in enumerate(lines.items()):
            points.sort(key=lambda p: p[0])
            shift = 1.025 ** (n - (len(lines) - 1) / 2)  # so that bars of one ratio stand side by side
            x, y = [r * shift for r, _ in points], [g["mean"] for _, g in points]
            label = kind + (f", {fraction:g} % of real" if len(fractions) > 1 else "")
            style = LINES[(len(fractions) - 1 - fractions.index(fraction)) % len(LINES)]
            colour = arm_colour(kind, kinds)
            if all(g["interval"] for _, g in points):
                low = [g["mean"] - g["interval"]["low"] for _, g in points]
                high = [g["interval"]["high"] - g["mean"] for _, g in points]
                axes.errorbar(x, y, yerr=np.maximum([low, high], 0), color=colour, linestyle="none", capsize=3, linewidth=1.1)
            axes.plot(x, y, color=colour, linestyle=style, marker="o", markersize=5.5, label=literal(label))
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ratios, [f"{r:g}" for r in ratios])
        axes.minorticks_off()
        axes.grid(color=FAINT)
        axes.set_axisbelow(True)
        axes.set_xlabel("pictures added for each real one")
        axes.set_ylabel("gain in mAP, points")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return svg_text(figure)


def fraction_curve(results: Mapping[str, Any]) -> str | None:
    """mAP over the number of real pictures, a line for each kind of arm at the headline's ratio; None with one fraction alone."""
    lines: dict[tuple[str, float | None], list[tuple[int, Mapping[str, Any], float]]] = {}
    headline = results["arms"][results["headline"]["arm"]]
    ratio_of_headline, protocol = headline["ratio"], headline["protocol"]
    real = {arm["fraction"]: arm["pictures"] for arm in results["arms"].values() if arm["kind"] == "real"}
    for arm in results["arms"].values():
        shown = arm["kind"] == "real" or (arm["kind"] != "longer" and (arm["ratio"], arm["protocol"]) == (ratio_of_headline, protocol))
        if shown and arm["mAP"]["mean"] is not None and arm["fraction"] in real:
            lines.setdefault((arm["kind"], arm["ratio"]), []).append((real[arm["fraction"]], arm["mAP"], arm["fraction"]))
    if len(real) < 2:
        return None
    kinds = _kinds(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4))
        axes = figure.add_subplot()
        for (kind, ratio), points in lines.items():
            points.sort(key=lambda p: p[0])
            label = kind + (f", {ratio:g}x" if ratio else "")
            axes.errorbar(
                [n for n, *_ in points], [m["mean"] for _, m, _ in points], yerr=[m["sd"] or 0 for _, m, _ in points], capsize=3,
                color=arm_colour(kind, kinds), marker="o", markersize=5.5, label=literal(label),
            )  # fmt: skip
        ticks = sorted((n, fraction) for fraction, n in real.items())
        axes.set_xscale("log")
        axes.set_xticks([n for n, _ in ticks], [f"{n:,}\n{fraction:g} %" for n, fraction in ticks])
        axes.minorticks_off()
        axes.grid(color=FAINT)
        axes.set_axisbelow(True)
        axes.set_xlabel("real training pictures")
        axes.set_ylabel("mAP (bars: sd over seeds)")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return svg_text(figure)


def class_gains(results: Mapping[str, Any]) -> str:
    """Gain of AP50 per class: a bar for the mean, a line for the interval, a dot for every seed."""
    gains = {name: g["AP50"] for name, g in results["per_class_gain"].items() if g["AP50"]["mean"] is not None}
    order = sorted(gains, key=lambda name: gains[name]["mean"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.34 * max(3, len(order)) + 0.9))
        axes = figure.add_subplot()
        for y, name in enumerate(order):
            gain = gains[name]
            axes.barh(y, gain["mean"], height=0.62, color=GAIN if gain["mean"] >= 0 else LOSS, alpha=0.8)
            if found := gain.get("interval"):
                axes.plot([found["low"], found["high"]], [y, y], color=INK, linewidth=1, alpha=0.6, zorder=2)
            if len(gain["per_seed"]) > 1:
                axes.scatter(gain["per_seed"], [y] * len(gain["per_seed"]), s=16, color=INK, zorder=3, linewidths=0)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(order)), [literal(name) for name in order])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=FAINT, zorder=0)
        axes.set_axisbelow(True)
        axes.set_xlabel("gain in AP50, points (lines: 95 % interval, dots: seeds)")
        reach = 3 * max((abs(v) for gain in gains.values() for v in gain["per_seed"]), default=1.0) + 1  # long intervals leave the plot
        ends = [v for gain in gains.values() for v in _extent(gain) if abs(v) <= reach] or [-1.0, 1.0]
        axes.set_xlim(min(0.0, *ends) - 0.04 * reach, max(0.0, *ends) + 0.04 * reach)
        return svg_text(figure)


def _extent(gain: Mapping[str, Any]) -> list[float]:
    found = gain.get("interval")
    return [*gain["per_seed"], *((found["low"], found["high"]) if found else ())]


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


def precision_recall(results: Mapping[str, Any], shown: Sequence[str]) -> str:
    """Precision over recall at IoU 0.5 of some arms, one small plot a class, mean over the seeds."""
    arms, kinds = {name: results["arms"][name] for name in shown}, _kinds(results)
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
            for entry in arms.values():
                axes.plot(recall, entry["precision_at_recall"][names[k]], color=arm_colour(entry["kind"], kinds), linewidth=1.5)
            axes.set_title(literal(names[k]), loc="left")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.03)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.grid(color=FAINT)
        figure.supxlabel("recall", fontsize=9)
        figure.supylabel("precision", fontsize=9)
        return svg_text(figure)


def losses(results: Mapping[str, Any], shown: Sequence[str]) -> str:
    """Training loss of some arms over steps: thin lines are seeds, the thick one is their mean."""
    kinds = _kinds(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6))
        axes: Axes = figure.add_subplot()
        for name in shown:
            entry = results["arms"][name]
            colour = arm_colour(entry["kind"], kinds)
            runs = [np.array(t["losses"]["rows"]) for t in entry["trainings"]]
            for run in runs if len(runs) > 1 else ():
                axes.plot(run[:, 0], run[:, 1], color=colour, linewidth=0.7, alpha=0.35)
            mean = np.mean([run[:, 1] for run in runs], axis=0)
            axes.plot(runs[0][:, 0], mean, color=colour, linewidth=1.8)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)
        axes.grid(color=FAINT)
        return svg_text(figure)


def literal(name: str) -> str:
    return name.replace("$", r"\$")  # a lone dollar is a letter, not mathematics


def svg_text(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # text stays text: the browser's fonts have it
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", pad_inches=0.04, transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :]
