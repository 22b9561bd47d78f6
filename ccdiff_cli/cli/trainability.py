"""``ccdiff eval-trainability``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import MOST_PROCESSES
from ..trainability.options import ExperimentOptions, TrainabilityOptions
from .app import app
from .binding import OUTPUT, verb
from .common import Json, Out
from .stage import At


@verb(
    app,
    "eval-trainability",
    epilog="Example: ccdiff eval-trainability --real runs/vhr10 --synthetic runs/synthetic --out runs/trainability",
    at=At("trainability", aside="calibrate"),
)
def eval_trainability(  # wide: what a verb is given stands in its signature
    real: Annotated[Path, typer.Option(help="A prepared set with train and test splits.")],
    out: Out,
    experiment: ExperimentOptions,
    options: TrainabilityOptions,
    synthetic: Annotated[
        Path | None, typer.Option(help="A synthetic set of the same classes; --calibrate, copy-paste and other sets need none.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Trainings at a time; one a GPU, or one on a CPU, unless given.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Look for a part of the real pictures and steps (--set calibrate_steps=[125,250,500]) in which more real pictures bring a "
            "clear gain, on validation pictures, cheapest first; writes OUT/regime.yaml for --recipe.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print the plan, its cost and whether it can answer; train nothing.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a detector on real pictures, and on those with synthetic (or other) pictures added; test all on the real test split; report
    the gains, and first whether the experiment can show any. Resumes by itself: what was trained once is never trained again."""
    from ..console import finish, progress_bars
    from ..trainability import calibrate as search
    from ..trainability import eval_trainability as run
    from ..trainability.config import experiment_of
    from ..trainability.console import result_lines

    config = experiment_of(experiment)
    with progress_bars(as_json=as_json) as progress:
        if calibrate:
            made = search(real, out, config, processes=processes, dry_run=dry_run, progress=progress)
        else:
            made = run(real, synthetic, out, config, options, processes=processes, dry_run=dry_run, progress=progress)
    finish(made, as_json=as_json, lines=result_lines(made, out))
