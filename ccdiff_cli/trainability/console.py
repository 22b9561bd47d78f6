"""What ``eval-trainability`` prints (the plan of a dry run, the arms and the verdict, the regimes of a calibration), and ``misses``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from .statistics import signed


def result_lines(made: Mapping[str, Any], out: Path) -> list[RenderableType]:
    """The lines and tables that a person sees at the end."""
    if "regimes" in made or "tried" in made:
        return _calibration(made, out)
    return _results(made, out) if "verdict" in made else _plan(made, out)


def _calibration(made: Mapping[str, Any], out: Path) -> list[RenderableType]:
    """What a calibration tried, or would try."""
    rows = made["regimes"] if "regimes" in made else made["tried"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "real pictures",
        "steps",
        *(("trainings", "minutes") if "regimes" in made else ("mAP", "of all", "gain [95 %]", "converged")),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row['pictures']:,} ({row['fraction']:g} %)", f"{row['steps']:,}"]
        if "regimes" in made:
            table.add_row(*cells, str(row["trainings"]), f"{row['minutes']:.1f}")
            continue
        gain = row["yardstick"]["gain"]["mAP"]
        within = gain["interval"]
        said = f"{signed(gain['mean'])} [{signed(within['low'])}, {signed(within['high'])}]" if within else "-"
        table.add_row(
            *cells, _mean(row["mAP"]), _mean(row["mAP_all"]), said, {True: "yes", False: "no", None: "not known"}[row["converged"]]
        )
    looked = made["validation"]
    where = f"looked at: {looked['pictures']:,} validation pictures with {looked['objects']:,} objects ({looked['what']}); no test picture"
    parts = [f"left out: {part['fraction']:g} %, for they lack {', '.join(part['lacking'])}" for part in made["left_out"]]
    incomplete = {row["fraction"]: row["lacking"] for row in rows if row["lacking"]}
    parts += [f"no part holds every class: {fraction:g} % lack {', '.join(names)}" for fraction, names in incomplete.items()]
    if "regimes" in made:
        end = [f"at most {made['estimated minutes']:.0f} minutes, fewer where an early regime will do",
               f"nothing was trained or written (--dry-run); the same command without it writes {out}"]  # fmt: skip
    else:
        end = [str(made["sentence"])]
        end += [f"recipe: {made['recipe']} (eval-trainability --recipe {made['recipe']})"] if made["recipe"] else []
    return [table, *parts, where, *end]


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
        str(plan["yardstick"]["sentence"]),
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
    sentences = [str(made["yardstick"]["sentence"]), str(made["protocols_sentence"]), str(made["verdict"])]
    return [
        table,
        *over,
        *warnings,
        *sentences,
        f"report: {out}/report.html (tables: {out}/table.md, {out}/table.tex; figures: {out}/results.json)",
    ]


def _mean(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")


def misses_lines(made: Mapping[str, Any], real: Path, out: Path, file: Path) -> list[RenderableType]:
    """What ``misses`` found, or would do."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    if "threshold" not in made:
        for name in ("fold", "pictures", "trained on", "synthetic left out", "finished"):
            table.add_column(name, justify="right")
        for k, row in enumerate(made["folds"], start=1):
            table.add_row(str(k), *(f"{row[n]:,}" for n in ("pictures", "trained_on", "left_out")), "yes" if row["finished"] else "no")
        end = f"nothing was trained or written (--dry-run); the same command without it writes {out}"
        return [table, f"{made['steps']:,} steps each; about {made['estimated minutes']:.0f} minutes", end]
    table.add_column("")
    for name in ("objects", "missed", "missed %", "false alarms"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("classes", "sizes", "crowding"):
        for row, found in made[name].items():
            if not any(found.values()):
                continue
            share = f"{100 * found['missed'] / found['objects']:.0f}" if found["objects"] else "-"
            table.add_row(row, f"{found['objects']:,}", f"{found['missed']:,}", share, f"{found['false_alarms']:,}")
        table.add_section()
    pictures = made["pictures"]
    clean = sum(not p["missed"] and not p["false_alarms"] for p in pictures)
    left = "".join(
        f"; left out of fold {k}, for their layouts: {n:,} of {sum(a['pictures'] for a in made['added']):,} synthetic pictures"
        for k, n in enumerate(made["left_out"], start=1)
        if made["added"]
    )
    return [
        table,
        f"score from {made['threshold']:.2f} on (best F1 over {made['folds']} folds of {len(pictures):,} training pictures); "
        f"{clean:,} pictures without an error{left}",
        f"misses: {file}",
        f"next: ccdiff synthesize --n {len(pictures)} --checkpoint runs/generator --layouts {real} --balance misses --misses {file} "
        "--out runs/aimed",
    ]
