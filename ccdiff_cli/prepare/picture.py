"""One source picture: cut into tiles, resized, written, with the reference crops of its objects.

A job holds all that decides its outputs, so that it may run in any process; nothing that is already written is written again, and nothing
stays of a picture that fails.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..dataset import IMAGES
from ..errors import CCDiffError
from ..files import inside, write_bytes
from ..geometry import FITTED, TURNED, WHOLE
from ..pictures import AS_STORED, UnreadablePicture, is_flat, read_header
from ..references import REFERENCES, cut_reference, reference_window
from ..scene import Instance, Scene
from .captions import caption_of
from .labels import stem_of
from .masks import COCO, MASKS, NONE, read_masks
from .metadata import located
from .options import PrepareOptions
from .pixels import of_window
from .spectra import colour_counts, spectrum_of
from .tiling import cut_scene, pad_and_resize, tile_origins
from .windows import read_windows
from .workers import count_crop

COPIED = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""Files of these kinds go into a set of whole pictures as they are; others (GIF, PPM, MPO, JPEG 2000) become PNG, which everybody reads."""


@dataclass(frozen=True)
class Job:
    """A picture, the stem of its outputs' names, its user's sentence ("" for none), and where and how it is written."""

    scene: Scene
    stem: str
    sentence: str
    out: Path
    options: PrepareOptions

    @property
    def mask_file(self) -> Path:
        """Where a model's masks of the picture's objects are kept until the set is finished."""
        return self.out / MASKS / f"{self.stem}.npz"


@dataclass
class Result:
    """The tiles of a picture, hashes by file name, rows of the reference bank, and what was counted; or why it does not decode."""

    scenes: list[Scene] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    references: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    failure: str = ""


def named_jobs(scenes: Sequence[Scene], out: Path, said: Mapping[str, str], options: PrepareOptions) -> list[Job]:
    """One job a picture, with a stem for its outputs that no other picture has."""
    stems = [_safe(stem_of(s)) for s in scenes]
    repeated = {stem for stem, count in Counter(s.lower() for s in stems).items() if count > 1}
    named = [_safe(s.file_name) if stem.lower() in repeated else stem for s, stem in zip(scenes, stems, strict=True)]
    taken: dict[str, str] = {}
    for scene, name in zip(scenes, named, strict=True):
        if (other := taken.setdefault(name, scene.file_name)) != scene.file_name:
            raise CCDiffError(
                f"the pictures {other} and {scene.file_name} would both be written as {name!r}",
                where=scene.path,
                fix="rename one of them and its labels: what is no letter, digit, point, dash or underscore becomes an underscore",
            )
    for scene in scenes:
        inside(out, scene.file_name, where=str(scene.path))
    return [Job(scene, stem, said.get(scene.file_name, ""), out, options) for scene, stem in zip(scenes, named, strict=True)]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name.replace("/", "__"))


def prepare_picture(job: Job) -> Result:
    """Cut, resize and write one source picture; nothing that is already written is written again, and nothing stays of one that fails."""
    result = Result()
    written: list[Path] = []
    try:
        _cut_and_write(job, result, written)
    except UnreadablePicture as error:  # a large scene may fail after some of its tiles
        for path in written:
            path.unlink(missing_ok=True)
        return Result(failure=error.what)
    return result


def _cut_and_write(job: Job, result: Result, written: list[Path]) -> None:
    scene = job.scene
    side = job.options.tile or max(scene.width, scene.height)
    size = job.options.size or side
    copied = job.options.tile is None and job.options.size is None
    scale = 1.0 if copied else size / side
    header = read_header(str(scene.path))
    # a file goes on as it is only where its pixels are what is meant, whoever reads it
    stored_rgb = copied and header.plain and header.mode == "RGB" and not header.tagged and scene.reading in (None, AS_STORED)
    stored_rgb = stored_rgb and header.format in COPIED and header.pages == 1
    tiles = _tiles_of(job, side, scale, result)
    objects = scene.instances if scene.split == "train" else ()
    windows = [(x, y, min(x + side, scene.width), min(y + side, scene.height)) for (x, y), _ in tiles]
    windows += [reference_window(i, scene.width, scene.height) for i in objects]
    made: dict[int, tuple[Scene, str]] = {}
    crops: dict[int, dict[str, Any]] = {}
    masks = read_masks(job.mask_file) if job.options.masks not in (COCO, NONE) else None
    flat, colours = bool(windows), np.zeros(5, np.int64)
    for k, cut in read_windows(str(scene.path), windows, scene.reading):
        flat = flat and is_flat(cut)
        if k >= len(tiles):
            index = k - len(tiles)
            mask = masks[index] if masks is not None else None
            data, record = cut_reference(cut, windows[k][:2], objects[index], scale, masks=job.options.masks.partition(":")[0], mask=mask)
            name = f"{_safe(objects[index].category)}/{job.stem}_{index:04d}.png"
            written.append(job.out / REFERENCES / name)
            digest = _write_once(written[-1], data)
            count_crop()
            crops[index] = {"file": name, **record, "source": scene.source, "picture": scene.file_name, "instance": index, "sha256": digest}
            continue
        (x, y), instances = tiles[k]
        colours += colour_counts(cut)
        provenance = _carried(scene.provenance, (x, y), scale) | {
            "picture": scene.file_name,
            "offset": [x, y],
            "side": side,
            "scale": scale,
        }
        if copied:
            data = Path(str(scene.path)).read_bytes() if stored_rgb else _png(cut)
        else:
            cut, padding = pad_and_resize(cut, (x, y), side, size, scene.instances)
            if padding:
                padded = [max(0, x + side - scene.width), max(0, y + side - scene.height)]
                provenance["padded"] = {"right": padded[0], "below": padded[1], "how": padding}
                result.counts[f"pictures padded ({padding})"] += 1
            data = _png(cut)
        suffix = Path(scene.file_name).suffix.lower() if stored_rgb else ".png"
        name = f"{job.stem}{suffix}" if job.options.tile is None else f"{job.stem}__x{x:05d}_y{y:05d}.png"
        written.append(job.out / IMAGES / name)
        if job.sentence:
            provenance["sentence"] = job.sentence
        width, height = (scene.width, scene.height) if copied else (size, size)
        provenance = located(provenance, (width, height))
        prepared = Scene(name, width, height, tuple(instances), split=scene.split, source=scene.source, provenance=provenance)
        made[k] = prepared, _write_once(written[-1], data)
    if flat:
        result.notes["pictures without contrast (as good as one grey level)"] += 1
    spectrum = str(scene.provenance.get("spectrum", "")) or ("" if flat else spectrum_of(colours))
    if spectrum and made:
        result.notes[f"pictures that are {spectrum}"] += 1
    for k in sorted(made):
        prepared, digest = made[k]
        if spectrum:
            prepared = prepared.replace(provenance={**prepared.provenance, "spectrum": spectrum})
        if job.sentence or not scene.caption:
            caption = caption_of(prepared, job.options.caption_style, sentence=job.sentence)
        else:
            caption = scene.caption
        prepared = prepared.replace(caption=caption)
        result.scenes.append(prepared)
        result.hashes[prepared.file_name] = digest
    result.references += [crops[index] for index in sorted(crops)]


def _carried(provenance: Mapping[str, Any], origin: tuple[int, int], scale: float) -> dict[str, Any]:
    """What the source said of a picture; its ``gsd`` (metres a pixel) and ``georeference`` being those of the output's pixels."""
    carried = dict(provenance)
    if scale != 1.0 and type(carried.get("gsd")) in (int, float):
        carried["gsd"] = carried["gsd"] / scale
    if "georeference" in carried:
        carried["georeference"] = of_window(carried["georeference"], origin, scale)
    return carried


def _tiles_of(job: Job, side: int, scale: float, result: Result) -> list[tuple[tuple[int, int], list[Instance]]]:
    """The tiles of a picture that are kept: their origins, row by row, and their objects."""
    scene, tiles, counts = job.scene, [], result.counts
    boxes = np.array([i.hbb for i in scene.instances]).reshape(-1, 4)
    for x, y in [(0, 0)] if job.options.tile is None else tile_origins(scene.width, scene.height, side, job.options.overlap):
        near = (boxes[:, :2] < (x + side, y + side)).all(1) & (boxes[:, 2:] > (x, y)).all(1)
        instances, found = cut_scene(
            scene,
            (x, y),
            side,
            scale,
            keep=job.options.keep_share,
            difficult=job.options.difficult_share,
            among=np.flatnonzero(near).tolist(),
        )
        reaching = {how: found.pop(how) for how in (WHOLE, FITTED, TURNED)}
        counts.update({f"objects {k}": v for k, v in found.items()})
        if not instances and not job.options.keep_empty:
            counts["pictures or tiles without objects left out"] += 1
        elif instances and not found["kept"] and not job.options.keep_partial:
            counts["tiles with only parts of objects left out"] += 1
        else:
            tiles.append(((x, y), instances))
            result.notes.update({how: count for how, count in reaching.items() if count})
    lost = len(scene.instances) - len({i.extra["object"] for _, instances in tiles for i in instances})
    if lost and job.options.tile is not None:  # the counts above are of pieces: an object may lie in several tiles
        counts["objects of the source that are in no tile"] += lost
    return tiles


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=3)  # higher levels take three times as long for 1 % less
    return stream.getvalue()


def _write_once(path: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    if not (path.is_file() and path.read_bytes() == data):
        write_bytes(path, data, durable=False)
    return digest
