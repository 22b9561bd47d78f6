"""``ccdiff synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CCDiffError
from .app import app
from .binding import verb
from .common import BALANCE_HELP, MOST_PROCESSES, MOST_SEED, SOURCE_HELP, Json, LlmCaptions, LlmModel, LlmUrl, Out, finite, shipped


@verb(app, epilog="Example: ccdiff synthesize --n 20000 --checkpoint runs/generator --layouts runs/vhr10 --out runs/synthetic")
def synthesize(
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=10**15, help="How many pictures.")],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="A generator folder, or the shipped model: tiny (./tiny: a folder).")
    ],
    layouts: Annotated[Path, typer.Option("--layouts", "-l", help="The prepared set whose layouts (and reference bank) are used.")],
    out: Out,
    layout_source: Annotated[str | None, typer.Option(help=f"{SOURCE_HELP} Usually augmented.")] = None,
    balance: Annotated[str, typer.Option(help=BALANCE_HELP)] = "none",
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    llm_captions: LlmCaptions = None,
    shuffle_layouts: Annotated[
        bool, typer.Option(help="Draw each picture from another picture's layout: the floor of layout adherence.")
    ] = False,
    filter: Annotated[
        str | None,
        typer.Option(
            help="A detector trained on the real set looks for every object; pictures that fail are made again, at last "
            "`objects`: the labels of missing objects are left out, or `pictures`: the picture is."
        ),
    ] = None,
    filter_recall: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Thresholds: what this share of the real validation objects pass.")
    ] = 0.9,
    filter_retries: Annotated[int, typer.Option(min=0, max=1000, help="How often a rejected picture is made again.")] = 2,
    filter_detector: Annotated[
        Path | None, typer.Option(help="Folder of a trained detector; one is trained and kept in ~/.cache/ccdiff unless given.")
    ] = None,
    filter_clip: Annotated[Path | None, typer.Option(help="Folder of a transformers CLIP model that judges the crops, too.")] = None,
    filter_judges: Annotated[
        str | None,
        typer.Option(
            help="Who judges, with commas: detector, clip (needs --filter-clip), crops (a classifier of the real crops, trained and kept, "
            "which every object must pass); detector, and clip where given, unless said."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps; the generator's own unless given.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, max=1000, callback=finite, help="Classifier-free guidance; the generator's own unless given.")
    ] = None,
    retrieval: Annotated[
        str | None,
        typer.Option(
            help="How background references are found: words (of captions), own (the generator's encoders), or a CLIP folder or hub name; "
            "as in training unless given."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**6, help="Draw references from so many best ones; 1: the best, as published; as in training unless given."
        ),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Sample as its method was published (CC-Diff: 50 steps of Euler, guidance 7.5).")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the generator's own unless given.")] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option("--channels-last/--no-channels-last", help="Memory layout that GPUs like better; the generator's own unless given."),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the repeated blocks of the denoiser, minutes at the start; the generator's own unless given.",
        ),
    ] = None,
    format: Annotated[str, typer.Option("--format", "-f", help="Of the pictures: png, jpeg (quality 95) or webp (lossless).")] = "png",
    val_share: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Share of the real pictures whose layouts go to a val split.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, max=65_536, help="Pictures per forward pass.")] = 8,
    num_processes: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, help="Worker processes on this machine; one per GPU, or per core, unless given."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="I/N: make every N-th block from the I-th on (0/8 to 7/8), beside other machines; see docs/cluster.md."),
    ] = None,
    ray: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, help="Make the pictures by so many Ray actors (one a GPU); see docs/cluster.md."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of the set; picture k depends on it, on k and on the plan alone.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option(help="Write nothing; show the plan, and how long it takes by a timed batch.")] = False,
    as_json: Json = False,
) -> None:
    """Synthesize a labelled set. Resumes by itself; the same set comes out whatever the number of processes."""
    from ..console import finish, progress_bars
    from ..layouts.llm import writer_of
    from ..synthesis import synthesize as run

    sampling: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale}
    if published:
        if steps is not None or guidance_scale is not None:
            raise CCDiffError(
                "--published says steps and guidance itself", where="--published", fix="leave --steps and --guidance-scale out"
            )
        from ..methods import published_sampling

        sampling = published_sampling(shipped(checkpoint))
    writer = writer_of(llm_url, llm_model, llm_captions)
    with progress_bars(quiet=as_json) as progress:
        made = run(
            shipped(checkpoint), layouts, out, n, seed=seed, batch_size=batch_size, **sampling,
            retrieval=retrieval, top_k=top_k,
            layout_source=layout_source, balance=balance, writer=writer,
            shuffle_layouts=shuffle_layouts, val_share=val_share, filter=filter, filter_recall=filter_recall,
            filter_retries=filter_retries, filter_detector=filter_detector, filter_clip=filter_clip,
            filter_judges=tuple(filter_judges.split(",")) if filter_judges else (), precision=precision,
            channels_last=channels_last, compile=compile, format=format, num_processes=num_processes, part=_part(part), ray_actors=ray,
            progress=progress, dry_run=dry_run,
        )  # fmt: skip
    finish(made, as_json=as_json, lines=_synthesis_lines(made, layouts, out, dry_run))


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, count = text.partition("/")
    if not slash or not first.isdecimal() or not count.isdecimal():
        raise CCDiffError(f"--part {text!r} is not of the form I/N", fix="for example --part 0/8 on the first of eight machines")
    return int(first), int(count)


def _synthesis_lines(made: dict[str, Any], layouts: Path, out: Path, dry_run: bool) -> list[str]:
    shown = [f"{k}: {v}" for k, v in made.items() if isinstance(v, (str, int, float, bool))]
    drawn = made["layouts"]
    if beyond := drawn.get("more_objects_than_usual"):
        shown.append(
            f"{beyond['pictures']} pictures have up to {beyond['most']} objects; the method was published with {beyond['usual']} at most"
        )
    if "boxes_unlike_the_real_ones" in drawn:
        shown.append(
            f"layouts by diffusion: {drawn['boxes_unlike_the_real_ones']} boxes unlike the real ones left out, "
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
    if dry_run:
        per_class = ", ".join(f"{name} {count}" for name, count in made["per_class"].items())
        return [*shown, f"objects: {per_class}", "nothing was written (--dry-run)"]
    if "part" in made:
        left = f"{made['left_to_other_parts']} pictures are left to the other parts"
        return [*shown, f"part {made['part']} is done; {left}", "next, when all parts are done: the same command without --part"]
    return [*shown, f"synthetic set: {out}", f"next: ccdiff eval-trainability --real {layouts} --synthetic {out} --out runs/trainability"]
