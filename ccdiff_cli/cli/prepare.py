"""``ccdiff prepare`` and ``merge-tiles``: a data set in, detections on its tiles out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app
from .binding import verb
from .common import MOST_PIXELS, MOST_PROCESSES, MOST_SEED, Json, Out, SourcePattern, VocOrigin, finite


@verb(app, epilog="Example: ccdiff prepare NWPU_VHR10 --tile 256 --overlap 64 --size 128 --out runs/vhr10")
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
        float, typer.Option(min=0, max=1, callback=finite, help="An object is kept where at least this share of it is inside the tile.")
    ] = 0.7,
    difficult_share: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Down to this share it is kept as difficult; below, left out and counted.")
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
    from ..console import finish, progress_bars, ranks
    from ..prepare import prepare_dataset

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


@verb(
    app,
    "merge-tiles",
    epilog="Example: ccdiff merge-tiles runs/detector/results.json --data runs/dota_tiles --out runs/detector/scenes.json",
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
        float, typer.Option(min=0, max=1, callback=finite, help="Detections of one class that overlap more than this are one object.")
    ] = 0.5,
    as_json: Json = False,
) -> None:
    """Bring detections on tiles back to the scenes that the tiles were cut from, each object once."""
    from ..console import finish
    from ..prepare.merging import merge_file

    made = merge_file(detections, data, out, iou=iou, format=format)
    lines = ["{detections} detections on {tiles} tiles are {objects} objects on {scenes} scenes: {file}".format(**made)]
    if "source_crs" in made:
        lines.insert(0, f"longitude and latitude (WGS 84, RFC 7946) from {', '.join(made['source_crs'])}")
    finish(made, as_json=as_json, lines=lines)
