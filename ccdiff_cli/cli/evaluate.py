"""``ccdiff evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..evaluation.options import EvaluateOptions
from .app import app
from .binding import OUTPUT, verb
from .common import Json, Out, overrides_of
from .stage import At, follow


@verb(
    app,
    epilog="Example: ccdiff evaluate --real runs/vhr10 --synthetic runs/synthetic --floor runs/floor --out runs/evaluation",
    at=At("evaluate"),
)
def evaluate(
    real: Annotated[Path, typer.Option(help="A prepared set with a train and a test split.")],
    synthetic: Annotated[list[Path], typer.Option(help="A synthetic set of the same classes and picture size; repeat it for several.")],
    out: Out,
    options: EvaluateOptions,
    detector: Annotated[
        Path | None, typer.Option(help="YAML file of detector settings for YOLOScore; a small Faster R-CNN unless given.")
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Replace a detector setting: steps=800.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and its cost; write nothing.", rich_help_panel=OUTPUT)] = False,
    as_json: Json = False,
) -> None:
    """The published quality table: FID, KID, CLIP scores and YOLOScore of synthetic sets, with ceilings and floors."""
    from ..console import finish, progress_bars
    from ..evaluation import evaluate as run
    from ..report.evaluation import terminal_tables
    from ..trainability import load_detector_config

    config = load_detector_config(detector, overrides_of(override))
    with progress_bars(as_json=as_json) as progress:
        made = run(real, synthetic, out, options, detector=config, dry_run=dry_run, progress=progress)
    if dry_run:
        finish(made, as_json=as_json, lines=_plan_lines(made))
        return
    lines: list[Any] = [*terminal_tables(made), *(f"warning: {text}" for text in made["warnings"])]
    lines += [f"report: {out}/report.html (rows: {out}/table.md, {out}/table.tex)"]
    lines += [follow(f"next: ccdiff eval-trainability --real {real} --synthetic {synthetic[0]} --out runs/trainability")]
    finish(made, as_json=as_json, lines=lines)


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    """What a dry run says."""
    made = ", ".join(f"{name} {count:,}" for name, count in plan["synthetic pictures"].items())
    speeds = ", ".join(f"{name} ({speed})" for name, speed in plan["extractors"].items())
    clip = f" ({plan['clip pictures per second']} pictures/s)" if "clip pictures per second" in plan else ""
    detector = "none, so no YOLOScore"
    if "detector" in plan:
        state = "trained already" if plan["detector already trained"] else "to be trained"
        detector = f"{plan['detector']}, {plan['detector steps']:,} steps, {state}"
    return [
        f"pictures: {plan['real pictures']:,} real to compare with, {plan['training pictures']:,} real for training; synthetic: {made}",
        f"features: {speeds}; {plan['bootstrap samples']:,} bootstrap samples",
        f"CLIP scores: {plan['clip']}{clip}",
        f"detector: {detector}",
        f"about {plan['estimated minutes']:g} minutes in all",
        "nothing was written (--dry-run)",
    ]
