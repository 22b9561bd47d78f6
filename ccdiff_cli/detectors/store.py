"""Detections on disk: one safetensors file for a list of pictures (the same bytes for the same detections, and no pickle)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import CCDiffError
from ..files import read_bytes, write_bytes
from . import Detections


def write_detections(path: str | Path, found: Sequence[Detections]) -> None:
    """Write the detections of every picture, atomically; all with oriented boxes, or none."""
    tensors = {
        "counts": np.array([len(d) for d in found], dtype=np.int64),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(d.boxes for d in found)]),
        "scores": np.concatenate([np.zeros(0, np.float32), *(d.scores for d in found)]),
        "labels": np.concatenate([np.zeros(0, np.int64), *(d.labels for d in found)]),
    }
    corners = [d.corners for d in found if d.corners is not None]
    if corners:
        tensors["corners"] = np.concatenate(corners)
    write_bytes(path, save(tensors))


def read_detections(path: str | Path, pictures: int) -> list[Detections] | None:
    """The detections of a file; None where it is torn or of another number of pictures, so that they are made again."""
    try:
        tensors = load(read_bytes(path, limit=10**11))
        if not _is_sound(tensors):
            return None
        ends = np.cumsum(tensors["counts"])[:-1]
        names = ("boxes", "scores", "labels", *(["corners"] if "corners" in tensors else []))
        parts = [np.split(tensors[name], ends) for name in names]
    except (CCDiffError, SafetensorError, KeyError, ValueError):
        return None
    if len(tensors["counts"]) != pictures:
        return None
    return [Detections(*part) for part in zip(*parts, strict=True)]


def _is_sound(tensors: dict[str, np.ndarray]) -> bool:
    """Whether the arrays are those that are written: so many rows as are counted, of their kinds, all finite."""
    counts = tensors["counts"]
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "boxes": (np.float32, (4,)), "scores": (np.float32, ()), "labels": (np.int64, ()), "corners": (np.float32, (8,)),
    }  # fmt: skip
    if counts.ndim != 1 or counts.dtype != np.int64 or (counts < 0).any():
        return False
    rows = int(counts.sum())
    for name, (dtype, rest) in shapes.items():
        if name in tensors or name != "corners":
            found = tensors[name]
            if found.dtype != dtype or found.shape != (rows, *rest) or (dtype is np.float32 and not np.isfinite(found).all()):
                return False
    return not (tensors["labels"] < 0).any()
