"""What ``eval-trainability`` prints: the plan of a dry run, or the arms and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from .statistics import signed


def result_lines(made: Mapping[str, Any], out: Path) -> list[RenderableType]:
    """The lines and tables that a person sees at the end."""
    return _results(made, out) if "verdict" in made else _plan(made, out)


def _plan(plan: Mapping[str, Any], out: Path) -> list[RenderableType]:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("arm")
    for name in ("pictures", "steps", "epochs", "trainings", "finished", "minutes"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in plan["arms"].items():
        table.add_row(name, *(f"{row[k]:,}" for k in ("pictures", "steps")), f"{row['epochs']:.1f}", str(row["trainings"]),
                      str(row["finished"]), f"{row['minutes']:.1f}")  # fmt: skip
    leaks = plan["leak check"]
    return [
        table,
        f"{plan['trainings']} trainings ({plan['trainings already finished']} finished), seeds {', '.join(map(str, plan['seeds']))}; "
        f"{plan['test pictures']} test pictures",
        f"{plan['pictures per second']} pictures/s here; about {plan['estimated minutes']:.0f} minutes in all with {plan['processes']} "
        f"process{'es' * (plan['processes'] > 1)}",
        *(f"leak, allowed: {leak['what']}" for leak in leaks["leaks"]),
        *(f"not checked for leaks: {text}" for text in leaks["unknown"]),
        f"nothing was trained or written (--dry-run); the same command without it writes {out}",
    ]


def _results(made: Mapping[str, Any], out: Path) -> list[RenderableType]:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("trained on")
    for name in ("pictures", "mAP", "AP50", "AP75", "mAP gain [95 %]"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, arm in made["arms"].items():
        gain = arm.get("gain", {}).get("mAP")
        found = gain and gain["interval"]
        table.add_row(
            name,
            f"{arm['pictures']:,}",
            *(_mean(arm[m]) for m in ("mAP", "AP50", "AP75")),
            (signed(gain["mean"]) + (f" [{signed(found['low'])}, {signed(found['high'])}]" if found else ""))
            if gain and gain["mean"] is not None
            else "",
        )
    over = [
        f"{r['arm']} over {r['over']}: {signed(r['gain']['mAP']['mean'])} mAP"
        + (f" [{signed(i['low'])}, {signed(i['high'])}]" if (i := r["gain"]["mAP"]["interval"]) else "")
        for r in (*made["rivals"], *made["more_real"])
        if r["gain"]["mAP"]["mean"] is not None
    ]
    warnings = [f"warning: {text}" for text in made["warnings"]]
    return [table, *over, *warnings, str(made["verdict"]), f"report: {out}/report.html (figures: {out}/results.json)"]


def _mean(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")
