"""``ccdiff evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .app import app
from .binding import verb
from .common import Json, Out, overrides_of


@verb(app, epilog="Example: ccdiff evaluate --real runs/vhr10 --synthetic runs/synthetic --floor runs/floor --out runs/evaluation")
def evaluate(
    real: Annotated[Path, typer.Option(help="A prepared set with a train and a test split.")],
    synthetic: Annotated[list[Path], typer.Option(help="A synthetic set of the same classes and picture size; repeat it for several.")],
    out: Out,
    floor: Annotated[Path | None, typer.Option(help="A set made with --shuffle-layouts.")] = None,
    reference: Annotated[
        str, typer.Option(help="The real split that pictures are compared with: test (as published), val or train.")
    ] = "test",
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            help="Features behind FID and KID: efficientnet-lite0 (offline, the usual), inception or inception@FILE (as published), "
            "timm:NAME@FILE, transformers:FOLDER; repeat it for several."
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP scores by MODEL@FILE or MODEL@TAG; published: ViT-L-14@laion2b_s32b_b82k. None unless given.")
    ] = None,
    crops: Annotated[Literal["hbb", "obb"], typer.Option(help="Crops of CLIP-L: hbb (as published) or obb (turned upright).")] = "hbb",
    detector: Annotated[
        Path | None, typer.Option(help="YAML file of detector settings for YOLOScore; a small Faster R-CNN unless given.")
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Replace a detector setting: steps=800.")] = None,
    yoloscore: Annotated[bool, typer.Option("--yoloscore/--no-yoloscore", help="Train the detector and look for the layouts.")] = True,
    share: Annotated[
        Path | None, typer.Option(help="Output folder of eval-trainability on the same set: its detector is not trained again.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, max=100_000, help="Bootstrap samples behind the intervals; 0: none.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, max=65_536, help="Pictures per forward pass.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the detector's training, the draws and the bootstrap.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and its cost; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """The published quality table: FID, KID, CLIP scores and YOLOScore of synthetic sets, with ceilings and floors."""
    from ..console import finish, progress_bars
    from ..evaluation import evaluate as run
    from ..report.evaluation import terminal_tables
    from ..trainability import load_detector_config

    config = load_detector_config(detector, overrides_of(override))
    with progress_bars(quiet=as_json) as progress:
        made = run(
            real, synthetic, out, floor=floor, reference=reference, extractors=extractor or ["efficientnet-lite0"], clip=clip,
            crops=crops, detector=config, yoloscore=yoloscore, share=share, bootstrap=bootstrap, batch=batch_size,
            device=device, seed=seed, dry_run=dry_run, progress=progress,
        )  # fmt: skip
    if dry_run:
        finish(made, as_json=as_json, lines=[*(f"{k}: {v}" for k, v in made.items()), "nothing was written (--dry-run)"])
        return
    lines: list[Any] = [*terminal_tables(made), *(f"warning: {text}" for text in made["warnings"])]
    lines += [f"report: {out}/report.html (rows: {out}/table.md, {out}/table.tex)"]
    lines += [f"next: ccdiff eval-trainability --real {real} --synthetic {synthetic[0]} --out runs/trainability"]
    finish(made, as_json=as_json, lines=lines)
