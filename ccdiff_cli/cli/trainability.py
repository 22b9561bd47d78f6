"""``ccdiff eval-trainability``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CCDiffError
from .app import app
from .binding import verb
from .common import MOST_PROCESSES, Json, Out, overrides_of


@verb(
    app,
    "eval-trainability",
    epilog="Example: ccdiff eval-trainability --real runs/vhr10 --synthetic runs/synthetic --out runs/trainability",
)
def eval_trainability(
    real: Annotated[Path, typer.Option(help="A prepared set with train and test splits.")],
    out: Out,
    synthetic: Annotated[
        Path | None, typer.Option(help="A synthetic set of the same classes; --calibrate, copy-paste and other sets need none.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", help="An experiment: the name of a shipped one (trainability-vhr10-cpu), or the path of a file. Options win."
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="What to compare with real pictures alone: synthetic, synthetic-only, pretrain, copy-paste, held-out or jittered (real "
            "pictures that the fraction leaves out, the second with imprecise labels) or the NAME of an other set; =0.5,1,2: so many "
            "pictures for each real one (the whole set unless given)."
        ),
    ] = None,
    other: Annotated[list[str] | None, typer.Option(help="NAME=SET: another generator's set, or any other, to be added instead.")] = None,
    fractions: Annotated[
        str | None, typer.Option(help="Percentages of the real training set, by source picture, nested: 10,25,50,100. Default: 100.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the paired trainings, comma separated. Default: 0,1,2.")] = None,
    match: Annotated[
        str | None, typer.Option(help="What arms have in common with the real one: steps, epochs (as published), or both (default).")
    ] = None,
    detector: Annotated[Path | None, typer.Option(help="YAML file of detector settings; a small Faster R-CNN unless given.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting of the detector (steps=800) or of the experiment (samples=1000).")
    ] = None,
    floor: Annotated[Path | None, typer.Option(help="A set made with --shuffle-layouts: the floor of layout adherence.")] = None,
    generator_data: Annotated[
        Path | None, typer.Option(help="For the leak check: the prepared set the generator was trained on, where it is not --real.")
    ] = None,
    allow_leaks: Annotated[bool, typer.Option(help="Go on although test pictures leaked into training; the report says so.")] = False,
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
    dry_run: Annotated[bool, typer.Option(help="Print the plan, its cost and whether it can answer; train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a detector on real pictures, and on those with synthetic (or other) pictures added; test all on the real test split; report
    the gains, and first whether the experiment can show any. Resumes by itself: what was trained once is never trained again."""
    from ..console import finish, progress_bars
    from ..trainability import calibrate as search
    from ..trainability import eval_trainability as run
    from ..trainability.config import experiment_of_options
    from ..trainability.console import result_lines

    config = experiment_of_options(recipe, detector, overrides_of(override), arms=arm, fractions=fractions, seeds=seeds, match=match)
    with progress_bars(quiet=as_json) as progress:
        if calibrate:
            made = search(real, out, config, processes=processes, dry_run=dry_run, progress=progress)
        else:
            made = run(
                real, synthetic, out, config, others=_named(other, "--other"), floor=floor, generator_data=generator_data,
                allow_leaks=allow_leaks, processes=processes, dry_run=dry_run, progress=progress,
            )  # fmt: skip
    finish(made, as_json=as_json, lines=result_lines(made, out))


def _named(pairs: list[str] | None, option: str) -> dict[str, Path]:
    values: dict[str, Path] = {}
    for pair in pairs or []:
        name, equals, path = pair.partition("=")
        if not equals or not name.strip() or not path or name in values:
            raise CCDiffError(f"{option} {pair!r}: expected a new NAME=PATH", fix=f"for example {option} migc=runs/migc")
        values[name.strip()] = Path(path)
    return values
