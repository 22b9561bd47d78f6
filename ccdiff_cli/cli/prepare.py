"""``ccdiff prepare`` and ``merge-tiles``: a data set in, detections on its tiles out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import MOST_PROCESSES
from ..prepare.options import PrepareOptions
from .app import app
from .binding import verb
from .common import Json, Out, finite
from .stage import At, follow


@verb(
    app,
    epilog="Example: ccdiff prepare NWPU_VHR10 --tile 256 --overlap 64 --size 128 --out runs/vhr10",
    at=At("prepare"),
)
def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            help="A data set as it lies on disk: DIOR, DIOR-RSVG, DOTA, FAIR1M, HRSC2016, VHR-10, SODA-A, VisDrone, COCO, YOLO, VOC, CVAT, "
            "labelme, Hugging Face, webdataset, metadata.jsonl."
        ),
    ],
    out: Out,
    options: PrepareOptions,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, help="Worker processes; one per core, at most 8, unless given.", rich_help_panel="Work"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a data set into a prepared set: pictures, COCO labels with OBB, captions, reference bank, manifest."""
    from ..console import finish, progress_bars, ranks
    from ..prepare import prepare_dataset

    with progress_bars(as_json=as_json) as progress:
        made = prepare_dataset(source, out, options, processes=processes or min(8, os.cpu_count() or 1), progress=progress)
    counts = made.manifest["counts"]
    lines: list[Any] = [f"{split}: {c['pictures']} pictures, {c['objects']} objects" for split, c in counts["per_split"].items()]
    bank = made.manifest["references"]
    lines.append(f"reference crops: {bank['instances']}; masks: {', '.join(f'{k} {v}' for k, v in bank.get('masks', {}).items())}")
    lines += ranks(made.manifest)
    lines += [f"prepared set: {out}", follow(_next(made, out))]
    said = {
        key: made.manifest.get(key) for key in ("changes", "skipped", "places", "notes", "cutting", "pixels", "quarantined", "references")
    }
    finish({"set": str(out), **counts, **said}, as_json=as_json, lines=lines)


def _next(made: Any, out: Path) -> str:
    """How to train on the set: from the model that ships, as ``init`` proposes, unless a published recipe is of its size."""
    from ..recipes import recipe_of_size

    sizes = {(scene.width, scene.height) for scene in made.scenes}
    size = next(iter(sizes))[0] if len(sizes) == 1 and len(set(*sizes)) == 1 else None
    recipe = recipe_of_size(size, str(made.manifest["prepare"].get("format", "")))
    how = f"--recipe {recipe} --base STABLE_DIFFUSION_FOLDER"
    if recipe in (None, "tiny"):
        how = "--from tiny" + (f" --set picture_size={size}" if recipe is None and size and size % 8 == 0 else "")
    return f"next: ccdiff train {how} --data {out} --out runs/generator"


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
