"""What a user may decide about ``prepare``; :func:`.run.prepare_dataset` says what each means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PrepareOptions:
    """How a set is prepared."""

    format: str | None = None
    tile: int | None = None
    overlap: int = 0
    size: int | None = None
    splits: Path | None = None
    classes: str | Path | None = None
    seed: int = 0
    keep_share: float = 0.7
    difficult_share: float = 0.2
    keep_empty: bool = False
    keep_partial: bool = True
    caption_style: str = "plain"
    sentences: Path | None = None
    scene_clip: str | Path | None = None
    places: Path | None = None
    masks: str = "coco"
    exif: str | None = None
    bands: str | None = None
    stretch: str = "set"
    resized: str = "stop"
    metadata: Path | None = None
    leaks: str | None = None
    source_pattern: str | None = None
    strict: bool = False
    voc_origin: int | None = None
