"""The command line: one function per verb, no logic.  Heavy libraries are imported inside the verbs, so ``--help`` is instant."""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import __version__
from .errors import CCDiffError, EditedSet
from .startup import INTERRUPTED, Terminated, leave_current_folder

app = typer.Typer(
    name="ccdiff",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Multiply a labelled set of aerial pictures with layout-conditioned diffusion (CC-Diff++), and measure whether a detector gains."
    "\n\n"
    "The chain: **prepare** → **train** → **synthesize** → **export** / **eval-trainability**. Try `ccdiff demo` first.",
)

MOST_PIXELS, MOST_PROCESSES, MOST_SEED = 65_500, 1024, 2**63 - 1
"""Bounds of options: the longest side that JPEG holds; more would be a slip of the hand."""


def _finite(value: float | None) -> float | None:
    """The bounds of an option let NaN through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output; no progress bars.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write. An interrupted run is finished by the same command.")]
SOURCE_HELP = (
    "set: as they are; augmented: flipped, turned, shifted, jittered; mixed: of two; sampled: by a model of the set; "
    "llm: by a language model."
)
BALANCE_HELP = "none; rare: pictures with rare classes more often; classes: every class as often as every other."
LlmUrl = Annotated[
    str | None, typer.Option(help="Of source llm: an OpenAI-compatible endpoint; its key is read from the environment (CCDIFF_LLM_KEY).")
]
LlmModel = Annotated[
    str | None, typer.Option(help="Of source llm: the endpoint's model, or a local one: a transformers folder, a .gguf file, smollm2.")
]
LlmCaptions = Annotated[
    Path | None, typer.Option(help="Of source llm: a text file of captions, one a line; those of the set unless given.")
]

SourcePattern = Annotated[
    str | None,
    typer.Option(help=r"Regular expression for pieces of one scene, which never part: its group is the scene's name, ^(.+)_\d+_\d+$"),
]
VocOrigin = Annotated[
    int | None,
    typer.Option(
        help="Of VOC whose files do not say it. 1: boxes count pixels from 1, the last one inside, as VOC's devkit; "
        "0 (unless given): edges from 0, as most tools write them."
    ),
]


def _version(value: bool) -> None:
    if value:
        print(f"ccdiff {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    pass


@app.command(epilog="Example: ccdiff prepare NWPU_VHR10 --tile 256 --overlap 64 --size 128 --out runs/vhr10")
def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            help="A data set as it lies on disk: DIOR, DIOR-RSVG, DOTA, FAIR1M, HRSC2016, VHR-10, SODA-A, VisDrone, COCO, YOLO, VOC, CVAT, "
            "labelme, Hugging Face, webdataset, metadata.jsonl."
        ),
    ],
    out: Out,
    format: Annotated[
        str | None,
        typer.Option(
            help="dior, rsvg, dota, fair1m, hrsc, vhr10, sodaa, visdrone, coco, yolo, yolo-obb, voc, cvat, labelme, huggingface, "
            "webdataset or metadata; recognised from the folder unless given."
        ),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=8, max=MOST_PIXELS, help="Cut tiles of this side, source pixels; whole pictures unless given.")
    ] = None,
    overlap: Annotated[int, typer.Option(min=0, max=MOST_PIXELS, help="Overlap of neighbouring tiles, source pixels.")] = 0,
    size: Annotated[
        int | None, typer.Option(min=8, max=MOST_PIXELS, help="Resize every tile or picture to a square of this side, pixels.")
    ] = None,
    splits: Annotated[Path | None, typer.Option(help="Folder with train.txt, val.txt, test.txt; the data set's own unless given.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class file (one class a line, in the order wanted; `THEIRS = OURS` renames one), pairs such as car=vehicle, "
            "or a known list: dior, vhr10, dota10, dota15, dota20, hrsc, hrsc2, hrsc3, fair1m, fair1m5, sodaa, visdrone."
        ),
    ] = None,
    keep_share: Annotated[
        float, typer.Option(min=0, max=1, callback=_finite, help="An object is kept where at least this share of it is inside the tile.")
    ] = 0.7,
    difficult_share: Annotated[
        float, typer.Option(min=0, max=1, callback=_finite, help="Down to this share it is kept as difficult; below, left out and counted.")
    ] = 0.2,
    keep_empty: Annotated[bool, typer.Option(help="Keep pictures and tiles without objects (test scenes need them).")] = False,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial/--drop-partial", help="Keep or drop tiles in which every object is difficult.")
    ] = True,
    caption_style: Annotated[
        str,
        typer.Option(
            help="plain (what stands where, and its direction), short (how many of each) or measured (plain, with GSD, place, date)."
        ),
    ] = "plain",
    sentences: Annotated[
        Path | None, typer.Option(help="Your scene sentences: JSON {file name: sentence}, or CSV with columns file_name,sentence.")
    ] = None,
    scene_clip: Annotated[
        str | None, typer.Option(help="CLIP (folder or hub name) that finds the place a picture shows, where no sentence is given.")
    ] = None,
    places: Annotated[
        Path | None, typer.Option(help="Places it chooses from, one a line (a residential area); a list of our own unless given.")
    ] = None,
    masks: Annotated[
        str,
        typer.Option(
            help="What blacks out the ground of reference crops: coco (the data set's masks), none, u2netp (extra `masks`), "
            "or sam:FOLDER (or hub name)."
        ),
    ] = "coco",
    exif: Annotated[
        str | None,
        typer.Option(
            help="turn: labels are of the picture as its EXIF orientation shows it (done unless given); keep: of the pixels as stored "
            "(`--exif keep`). The tag is dropped either way."
        ),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Bands that become red, green, blue, from 1: `--bands 3,2,1`; one, `--bands 4`, becomes grey."),
    ] = None,
    stretch: Annotated[
        str,
        typer.Option(
            help="Which values of more than 8 bits become black and white: set (percentiles 0.5 and 99.5 of the set; `set:2,98`), picture "
            "(of each picture), `0,2047` or none."
        ),
    ] = "set",
    resized: Annotated[
        str,
        typer.Option(
            help="Pictures of another size than their labels declare: stop, scale (boxes by one factor: `--resized scale`), stretch (by a "
            "factor for each axis) or keep (boxes as they are)."
        ),
    ] = "stop",
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="What is known of each picture: CSV with columns file_name,gsd,sensor,..., or JSON {file name: {gsd: 0.3}} "
            "(`--metadata scenes.csv`)."
        ),
    ] = None,
    leaks: Annotated[
        str | None,
        typer.Option(
            help="The same picture in several splits: keep (and say so), drop or move (to the strictest of them: test, val, train), or "
            "refuse. Pieces of one scene in several splits are refused unless dropped or moved."
        ),
    ] = None,
    source_pattern: SourcePattern = None,
    strict: Annotated[
        bool, typer.Option(help="Stop at the first broken label, missing or broken picture, instead of leaving it out and counting it.")
    ] = False,
    voc_origin: VocOrigin = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Worker processes; one per core, at most 8, unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the split by picture, where the data set has none.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn a data set into a prepared set: pictures, COCO labels with OBB, captions, reference bank, manifest."""
    from .console import finish, progress_bars, ranks
    from .prepare import prepare_dataset

    with progress_bars(quiet=as_json) as progress:
        made = prepare_dataset(
            source, out, format=format, tile=tile, overlap=overlap, size=size, splits=splits, classes=classes,
            keep_share=keep_share, difficult_share=difficult_share, keep_empty=keep_empty, keep_partial=keep_partial,
            caption_style=caption_style, sentences=sentences, scene_clip=scene_clip, places=places, masks=masks, exif=exif, bands=bands,
            stretch=stretch, resized=resized, metadata=metadata, leaks=leaks, source_pattern=source_pattern, strict=strict, seed=seed,
            voc_origin=voc_origin, processes=processes or min(8, os.cpu_count() or 1), progress=progress,
        )  # fmt: skip
    counts = made.manifest["counts"]
    lines: list[Any] = [f"{split}: {c['pictures']} pictures, {c['objects']} objects" for split, c in counts["per_split"].items()]
    bank = made.manifest["references"]
    lines.append(f"reference crops: {bank['instances']}; masks: {', '.join(f'{k} {v}' for k, v in bank.get('masks', {}).items())}")
    lines += ranks(made.manifest)
    lines += [f"prepared set: {out}", f"next: ccdiff train --recipe tiny --data {out} --out runs/generator"]
    said = {
        key: made.manifest.get(key) for key in ("changes", "skipped", "places", "notes", "cutting", "pixels", "quarantined", "references")
    }
    finish({"set": str(out), **counts, **said}, as_json=as_json, lines=lines)


@app.command(
    "merge-tiles", epilog="Example: ccdiff merge-tiles runs/detector/results.json --data runs/dota_tiles --out runs/detector/scenes.json"
)
def merge_tiles(
    detections: Annotated[
        Path,
        typer.Argument(
            help="What was found on the tiles: COCO results (bbox, or segmentation with 4 corners), the folder of ultralytics' label files "
            "(`predict save_txt=True save_conf=True`), or of DOTA's `Task1_CLASS.txt`."
        ),
    ],
    data: Annotated[Path, typer.Option("--data", "-d", help="The prepared set whose tiles the detector was run on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: the same, by scene.")],
    format: Annotated[
        str,
        typer.Option(
            help="coco: results in scene pixels; geojson: polygons in longitude and latitude, of georeferenced scenes "
            "(`--format geojson --out ships.geojson`)."
        ),
    ] = "coco",
    iou: Annotated[
        float, typer.Option(min=0, max=1, callback=_finite, help="Detections of one class that overlap more than this are one object.")
    ] = 0.5,
    as_json: Json = False,
) -> None:
    """Bring detections on tiles back to the scenes that the tiles were cut from, each object once."""
    from .console import finish
    from .prepare.merging import merge_file

    made = merge_file(detections, data, out, iou=iou, format=format)
    lines = ["{detections} detections on {tiles} tiles are {objects} objects on {scenes} scenes: {file}".format(**made)]
    if "source_crs" in made:
        lines.insert(0, f"longitude and latitude (WGS 84, RFC 7946) from {', '.join(made['source_crs'])}")
    finish(made, as_json=as_json, lines=lines)


@app.command(epilog="Example: ccdiff train --recipe tiny --data runs/vhr10 --out runs/generator")
def train(
    data: Annotated[Path, typer.Option("--data", "-d", help="A prepared set.")],
    out: Out,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="The name of a shipped recipe, or the path of a file: ./mine.yaml.")
    ] = "tiny",
    start: Annotated[
        str | None, typer.Option("--from", help="Go on from a generator folder, or from the shipped model: tiny (./tiny: a folder).")
    ] = None,
    transplant: Annotated[
        bool,
        typer.Option("--transplant", help="With --from: take its encoders and the inner levels of its denoiser, the rest by the recipe."),
    ] = False,
    override: Annotated[list[str] | None, typer.Option("--set", help="Replace a key of the recipe: denoiser.train.steps=2000.")] = None,
    cpu: Annotated[bool, typer.Option(help="Do not use a GPU.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check recipe and data, print the plan, train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a generator. Resumes by itself; under `accelerate launch` it uses every GPU given."""
    from .console import finish, progress_bars
    from .recipes import load_recipe

    loaded = load_recipe(recipe, _overrides(override))
    from .training import plan
    from .training import train as run

    if dry_run:
        finish(
            described := plan(loaded, data, start=_shipped(start) if start else None, transplanted=transplant),
            as_json=as_json,
            lines=[f"{k}: {v}" for k, v in described.items()],
        )
        return
    with progress_bars(quiet=as_json) as progress:
        made = run(loaded, data, out, start=_shipped(start) if start else None, transplanted=transplant, progress=progress, cpu=cpu)
    lines = [
        f"generator: {out} ({made['steps']} steps, loss {made['final_loss']:.4f}); validation pictures in {out}/train/samples",
        f"next: ccdiff synthesize --n 1000 --checkpoint {out} --layouts {data} --out runs/synthetic",
    ]
    finish({"generator": str(out), **made}, as_json=as_json, lines=lines)


@app.command(epilog="Example: ccdiff layout runs/vhr10 --source sampled --n 60 --out runs/layouts")
def layout(
    data: Annotated[Path, typer.Argument(help="A prepared set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("runs/layouts"),
    source: Annotated[str, typer.Option("--source", "-s", help=SOURCE_HELP)] = "augmented",
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", min=1, max=10**15, help="How many layouts: 60, or to compare as many as half of the set, unless given."),
    ] = None,
    split: Annotated[str, typer.Option(help="The split that layouts come from.")] = "train",
    balance: Annotated[str, typer.Option(help=BALANCE_HELP)] = "none",
    compare: Annotated[
        bool, typer.Option("--compare", help="Fit every source to half of the set, and measure how far it is from the other half.")
    ] = False,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    llm_captions: LlmCaptions = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the layouts.")] = 0,
    as_json: Json = False,
) -> None:
    """Show the layouts of a source as pictures and in numbers; nothing is synthesized."""
    from .console import finish, progress_bars
    from .layouts.llm import writer_of
    from .layouts.show import compare_layouts, comparison_table, show_layouts, statistics_table

    writer = writer_of(llm_url, llm_model, llm_captions)
    with progress_bars(quiet=as_json) as progress:
        if compare:
            made = compare_layouts(data, out, split=split, seed=seed, n=n, writer=writer, progress=progress)
        else:
            made = show_layouts(
                data, out, n or 60, source=source, split=split, balance=balance, seed=seed, writer=writer, progress=progress
            )
    if compare:
        finish(
            made, as_json=as_json, lines=[comparison_table(made), f"comparison: {out}/comparison.json; layouts of each source: {out}/*.png"]
        )
        return
    llm = [f"language model: {', '.join(f'{k} {v}' for k, v in made['llm'].items() if k != 'reasons')}"] if made["llm"] else []
    follow = f"next: ccdiff synthesize --n 1000 --checkpoint runs/generator --layouts {data} --layout-source {source} --out runs/synthetic"
    finish(made, as_json=as_json, lines=[statistics_table(made), *llm, f"layouts: {made['sheet']}", follow])


@app.command(epilog="Example: ccdiff synthesize --n 20000 --checkpoint runs/generator --layouts runs/vhr10 --out runs/synthetic")
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
        float, typer.Option(min=0, max=1, callback=_finite, help="Thresholds: what this share of the real validation objects pass.")
    ] = 0.9,
    filter_retries: Annotated[int, typer.Option(min=0, max=1000, help="How often a rejected picture is made again.")] = 2,
    filter_detector: Annotated[
        Path | None, typer.Option(help="Folder of a trained detector; one is trained and kept in ~/.cache/ccdiff unless given.")
    ] = None,
    filter_clip: Annotated[Path | None, typer.Option(help="Folder of a transformers CLIP model that judges the crops, too.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps; the generator's own unless given.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, max=1000, callback=_finite, help="Classifier-free guidance; the generator's own unless given.")
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
        float, typer.Option(min=0, max=1, callback=_finite, help="Share of the real pictures whose layouts go to a val split.")
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
    from .console import finish, progress_bars
    from .layouts.llm import writer_of
    from .synthesis import synthesize as run

    sampling: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale}
    if published:
        if steps is not None or guidance_scale is not None:
            raise CCDiffError(
                "--published says steps and guidance itself", where="--published", fix="leave --steps and --guidance-scale out"
            )
        from .methods import published_sampling

        sampling = published_sampling(_shipped(checkpoint))
    writer = writer_of(llm_url, llm_model, llm_captions)
    with progress_bars(quiet=as_json) as progress:
        made = run(
            _shipped(checkpoint), layouts, out, n, seed=seed, batch_size=batch_size, **sampling,
            retrieval=retrieval, top_k=top_k,
            layout_source=layout_source, balance=balance, writer=writer,
            shuffle_layouts=shuffle_layouts, val_share=val_share, filter=filter, filter_recall=filter_recall,
            filter_retries=filter_retries, filter_detector=filter_detector, filter_clip=filter_clip, precision=precision,
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
    if "filter" in made:
        pictures, objects = made["filter"]["pictures"], made["filter"]["objects"]
        if made["filter"]["not_judged"]:
            shown.append(f"not judged, for the detector misses too many real ones: {', '.join(made['filter']['not_judged'])}")
        kept = ", ".join(f"{name} {o['kept']} of {o['planned']}" for name, o in objects.items())
        shown += [
            f"filter: {pictures['rejected']} of {pictures['planned']} pictures rejected, {pictures['left_out']} left out",
            f"kept: {kept}",
        ]
    if dry_run:
        per_class = ", ".join(f"{name} {count}" for name, count in made["per_class"].items())
        return [*shown, f"objects: {per_class}", "nothing was written (--dry-run)"]
    if "part" in made:
        left = f"{made['left_to_other_parts']} pictures are left to the other parts"
        return [*shown, f"part {made['part']} is done; {left}", "next, when all parts are done: the same command without --part"]
    return [*shown, f"synthetic set: {out}", f"next: ccdiff eval-trainability --real {layouts} --synthetic {out} --out runs/trainability"]


@app.command(epilog="Example: ccdiff export runs/synthetic --format yolo-obb --out runs/synthetic_yolo")
def export(
    source: Annotated[Path, typer.Argument(help="A prepared or synthetic set.")],
    out: Out,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="coco, roboflow-coco, dota, dota-task1 (labels as result files), yolo, yolo-obb, voc, metadata (CC-Diff's jsonl), "
            "huggingface or webdataset.",
        ),
    ],
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard links to the set's pictures: no room is taken, but a tool that rewrites them in place changes the set. "
            "Copies unless given (reflinks, where the file system can).",
        ),
    ] = False,
    picture_format: Annotated[
        str | None,
        typer.Option(help="Encode pictures as png, jpeg or webp; those that are it already, and all unless given, stay as they are."),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of jpeg (95 unless given) or webp (lossless unless given), 1 to 100.")
    ] = None,
    voc_origin: Annotated[
        int, typer.Option(help="VOC alone. 1: pixels counted from 1, the last one inside the box, as the devkit; 0: edges from 0.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Write a set in the folders that other tools read. The pictures are copied, so that no tool changes the set."""
    from dataclasses import asdict

    from .console import finish, progress_bars
    from .export import ExportOptions, export_set

    options = ExportOptions(link=link, picture_format=picture_format, quality=quality, voc_origin=voc_origin)
    with progress_bars(quiet=as_json) as progress:
        made = export_set(source, out, format, options=options, progress=progress)
    notes = []
    for title, counts in ((f"{format} cannot hold", made.lost), (f"{format} has these where not every reader looks", made.apart)):
        if counts:
            notes.append(f"{title}: {', '.join(f'{what} ({count})' for what, count in counts.items())}")
    already = "already exported, unchanged: " if made.resumed else ""
    finish(asdict(made), as_json=as_json, lines=[*notes, *made.said, f"{already}{format} export of {made.pictures} pictures: {made.entry}"])


@app.command(
    "eval-trainability", epilog="Example: ccdiff eval-trainability --real runs/vhr10 --synthetic runs/synthetic --out runs/trainability"
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
    from .console import finish, progress_bars
    from .trainability import calibrate as search
    from .trainability import eval_trainability as run
    from .trainability.config import experiment_of_options
    from .trainability.console import result_lines

    config = experiment_of_options(recipe, detector, _overrides(override), arms=arm, fractions=fractions, seeds=seeds, match=match)
    with progress_bars(quiet=as_json) as progress:
        if calibrate:
            made = search(real, out, config, processes=processes, dry_run=dry_run, progress=progress)
        else:
            made = run(
                real, synthetic, out, config, others=_named(other, "--other"), floor=floor, generator_data=generator_data,
                allow_leaks=allow_leaks, processes=processes, dry_run=dry_run, progress=progress,
            )  # fmt: skip
    finish(made, as_json=as_json, lines=result_lines(made, out))


@app.command(epilog="Example: ccdiff evaluate --real runs/vhr10 --synthetic runs/synthetic --floor runs/floor --out runs/evaluation")
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
    from .console import finish, progress_bars
    from .evaluation import evaluate as run
    from .report.evaluation import terminal_tables
    from .trainability import load_detector_config

    config = load_detector_config(detector, _overrides(override))
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


@app.command(epilog="Example: ccdiff demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; run again to continue.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole chain in minutes, without network: drawn pictures, a short training, synthesis, export, detector, report."""
    from .console import finish, progress_bars
    from .demo import run_demo

    with progress_bars(quiet=as_json) as progress:
        made = run_demo(out, seed=seed, progress=progress)
    finish(made, as_json=as_json, lines=made.get("lines", []))


@app.command(
    "import-checkpoint",
    epilog="Example: ccdiff import-checkpoint CCDIFF_RELEASE --stable-diffusion SD14 --image-encoder DINOV2_L --out runs/generator",
)
def import_checkpoint(
    released: Annotated[Path, typer.Argument(help="A released checkpoint, folder or file.")],
    out: Out,
    stable_diffusion: Annotated[
        Path | None, typer.Option(help="A Stable Diffusion folder in the diffusers layout, of the version the checkpoint was trained on.")
    ] = None,
    image_encoder: Annotated[Path | None, typer.Option(help="A DINOv2 ViT-L/14 folder; without it no references can be encoded.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Of which method the checkpoint is; by default CC-Diff or CC-Diff++, whichever it is.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line, for checkpoints that know classes by number alone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a released checkpoint into a generator folder."""
    from .console import finish
    from .methods import import_checkpoint as run

    made = run(released, out, method=method, stable_diffusion=stable_diffusion, image_encoder=image_encoder, classes=classes)
    finish(
        made,
        as_json=as_json,
        lines=[f"generator: {out}", f"next: ccdiff synthesize --n 100 --checkpoint {out} --layouts PREPARED --out runs/synthetic"],
    )


@app.command("export-checkpoint", epilog="Example: ccdiff export-checkpoint runs/generator --out runs/released_form")
def export_checkpoint(
    generator: Annotated[Path, typer.Argument(help="A generator folder.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write a generator's weights as a released checkpoint: what `import-checkpoint` reads."""
    from .console import finish
    from .methods import export_checkpoint as run

    files = [str(path) for path in run(generator, out)]
    finish({"out": str(out), "files": files}, as_json=as_json, lines=[f"checkpoint: {', '.join(files)}"])


@app.command(epilog="Example: ccdiff inspect runs/vhr10 --out runs/vhr10_inspected")
def inspect(
    source: Annotated[Path, typer.Argument(help="A prepared or synthetic set, or a raw data set as it lies on disk.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for inspection.html and inspection.json; runs/inspect-NAME unless given.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Of a raw data set; recognised from the folder unless given.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class file of a raw data set, as for `prepare`.")] = None,
    voc_origin: VocOrigin = None,
    source_pattern: SourcePattern = None,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="How many pictures the page shows.")] = 24,
    as_json: Json = False,
) -> None:
    """Look a set through: counts, sizes, angles, suspicious boxes, pictures in two splits, drawn samples on one page."""
    from .console import finish, progress_bars
    from .inspection import inspect_set, tables

    target = out if out is not None else Path("runs") / f"inspect-{source.resolve().name}"
    with progress_bars(quiet=as_json) as progress:
        made = inspect_set(
            source,
            target,
            format=format,
            classes=classes,
            voc_origin=voc_origin,
            source_pattern=source_pattern,
            samples=samples,
            progress=progress,
        )
    warnings = [f"warning: {text}" for text in made["warnings"]]
    finish(made, as_json=as_json, lines=[*tables(made), *warnings, f"page: {made['page']}"])


@app.command(epilog="Example: ccdiff verify runs/synthetic")
def verify(
    source: Annotated[Path, typer.Argument(help="A prepared or synthetic set.")],
    accept: Annotated[
        bool, typer.Option("--accept", help="Take labels edited by hand, and pictures taken out, added or changed, as the set's own.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove a set whole: hashes, labels inside pictures, nothing missing or extra."""
    from .console import finish
    from .synthesis import accept_set, verify_set

    lines = []
    if accept:
        edit = accept_set(source)
        lines = edit["lines"]
    made = verify_set(source)
    if not made["ok"]:
        found = made["problems"]
        more = f"; and {len(found) - 20} more" if len(found) > 20 else ""
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        raise CCDiffError(f"{count}: {'; '.join(found[:20])}{more}", where=source, fix=made["fix"])
    if accept:
        made = {**made, "accepted": edit}
    finish(made, as_json=as_json, lines=[*lines, f"{source} is whole: {made['pictures']} pictures, {made['objects']} objects"])


@app.command(epilog="Example: ccdiff doctor")
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what each missing piece costs and how to get it. Exit code 2 when the core does not work."""
    from .console import finish
    from .doctor import examine, lines

    state = examine()
    finish(state, as_json=as_json, lines=lines(state))
    if not state["ok"]:
        raise typer.Exit(2)


def _shipped(name: str) -> Path:
    from .generator import SHIPPED, shipped_generator

    return shipped_generator() if name == SHIPPED else Path(name)


def _named(pairs: list[str] | None, option: str) -> dict[str, Path]:
    values: dict[str, Path] = {}
    for pair in pairs or []:
        name, equals, path = pair.partition("=")
        if not equals or not name.strip() or not path or name in values:
            raise CCDiffError(f"{option} {pair!r}: expected a new NAME=PATH", fix=f"for example {option} migc=runs/migc")
        values[name.strip()] = Path(path)
    return values


def _overrides(pairs: list[str] | None) -> dict[str, Any]:
    from .settings import overrides

    return overrides(pairs or [])


def _show_once(show: Any) -> Any:
    """How a warning is shown: that a set was edited as a line of ours, and once, however often the set is read."""
    said: set[str] = set()

    def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, EditedSet):
            show(message, category, *place, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    return shown


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code: 0, 2 for bad input (one message), 130, 141, 143 after a signal, 1 for a bug."""
    leave_current_folder()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from .console import guarded_streams
    from .failures import check_surroundings, flush_streams, tell

    given = sys.argv[1:] if arguments is None else list(arguments)
    with guarded_streams(), warnings.catch_warnings():
        warnings.simplefilter("always", EditedSet)
        warnings.showwarning = _show_once(warnings.showwarning)
        try:
            check_surroundings(given)
            code = app(args=given, prog_name="ccdiff", standalone_mode=False)
            if code == INTERRUPTED:
                raise Terminated if Terminated.came else KeyboardInterrupt
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            code = tell(error, as_json="--json" in given)
    flush_streams()
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
