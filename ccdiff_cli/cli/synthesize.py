"""``ccdiff synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..synthesis.options import SynthesisOptions, WorkOptions
from .app import app
from .binding import OUTPUT, WHAT, verb
from .common import Json, Out
from .completion import generators, sets
from .stage import At, follow


@verb(
    app,
    epilog="Example: ccdiff synthesize --n 20000 --checkpoint runs/generator --layouts runs/vhr10 --out runs/synthetic",
    at=At("synthesize"),
)
def synthesize(
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            "-c",
            help="A generator folder, or the shipped model: tiny (./tiny: a folder).",
            rich_help_panel=WHAT,
            autocompletion=generators,
        ),
    ],
    layouts: Annotated[
        Path,
        typer.Option(
            "--layouts",
            "-l",
            help="The prepared set whose layouts (and reference bank) are used.",
            rich_help_panel=WHAT,
            autocompletion=sets,
        ),
    ],
    out: Out,
    options: SynthesisOptions,
    work: WorkOptions,
    dry_run: Annotated[
        bool, typer.Option(help="Write nothing; show the plan, and how long it takes by a timed batch.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Synthesize a labelled set. Resumes by itself; the same set comes out whatever the number of processes."""
    from ..console import finish, progress_bars
    from ..generator import generator_folder
    from ..synthesis import synthesize as run

    with progress_bars(as_json=as_json) as progress:
        made = run(generator_folder(checkpoint), layouts, out, options, work=work, progress=progress, dry_run=dry_run)
    finish(made, as_json=as_json, lines=_synthesis_lines(made, layouts, out, dry_run))


def _account_lines(made: dict[str, Any]) -> list[str]:
    """How many, at what cost, in plain words; a run in shards says less than one in a single folder."""
    lines = []
    if "pictures" in made:
        shards = f" in {made['shards']:,} shards" if "shards" in made else ""
        lines.append(f"pictures: {made['pictures']:,}{shards}, with {made['objects']:,} objects")
    if "references" in made:
        lines.append(f"references: {made['references']}")
    if "estimated" in made:
        count, memory = made["processes"], made["memory_mib_per_process"]
        lines.append(f"takes: {made['estimated']} with {count} process{'es' * (count > 1)}, {made['seconds_per_batch']:.1f} s a batch")
        each = f", {memory:,.0f} MiB in each process" if memory else ""
        lines.append(f"needs: {made['disk']} of disk; memory: {made['memory_of_the_plan']} for the plan{each}")
    if "made" in made:
        speed = f" in {made['seconds']:.0f} s, {made['pictures_per_second']:.2f}/s" if made.get("pictures_per_second") else ""
        lines.append(f"made: {made['made']:,} pictures{speed}; {made['kept']:,} were there")
    return lines


def _synthesis_lines(made: dict[str, Any], layouts: Path, out: Path, dry_run: bool) -> list[str]:
    shown = _account_lines(made)
    drawn = made["layouts"]
    if beyond := drawn.get("more_objects_than_usual"):
        shown.append(
            f"{beyond['pictures']} pictures have up to {beyond['most']} objects; the method was published with {beyond['usual']} at most"
        )
    if "boxes_unlike_the_real_ones" in drawn:
        shown.append(
            f"layouts by diffusion: {drawn['boxes_unlike_the_real_ones']} boxes unlike the real ones and "
            f"{drawn['boxes_without_a_place']} without a place left out, "
            f"{drawn['layouts_drawn_again']} layouts drawn again, {drawn['not_by_diffusion']} taken from the set"
        )
    if "filter" in made:
        pictures, objects = made["filter"]["pictures"], made["filter"]["objects"]
        if made["filter"]["not_judged"]:
            shown.append(f"not judged, for the detector misses too many real ones: {', '.join(made['filter']['not_judged'])}")
        kept = ", ".join(f"{name} {o['kept']} of {o['planned']}" for name, o in objects.items())
        shown += [
            f"filter: {pictures['rejected']} of {pictures['planned']} pictures rejected, {pictures['left_out']} left out",
            *(
                f"judge {name}: {j['objects_failed']} objects failed in {j['in_pictures']} pictures"
                for name, j in made["filter"].get("judges", {}).items()
            ),
            f"kept: {kept}",
        ]
    if again := made.get("colours", {}).get("redrawn"):
        still = made["colours"]["infrared"]
        shown.append(f"colours: {again} pictures came out colour-infrared and were drawn again, {still} are so all the same")
    if dry_run:
        per_class = ", ".join(f"{name} {count}" for name, count in made["per_class"].items())
        return [*shown, f"objects: {per_class}", "nothing was written (--dry-run)"]
    if "part" in made:
        left = f"{made['left_to_other_parts']} pictures are left to the other parts"
        return [*shown, f"part {made['part']} is done; {left}", "next, when all parts are done: the same command without --part"]
    return [
        *shown,
        f"synthetic set: {out}",
        follow(f"next: ccdiff eval-trainability --real {layouts} --synthetic {out} --out runs/trainability"),
    ]
