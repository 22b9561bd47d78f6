"""What a user may decide about ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..options import Option, Options


class EvaluateOptions(Options):
    """How synthetic sets are judged, but the detector's settings."""

    floor: Annotated[Path | None, Option(first=True)] = Field(None, description="A set made with --shuffle-layouts.")
    reference: Annotated[Literal["test", "val", "train"], Option(panel="Features", first=True)] = Field(
        "test", description="The real split that pictures are compared with: test (as published), val or train."
    )
    extractors: Annotated[tuple[str, ...], Option(names=("--extractor",), panel="Features", first=True)] = Field(
        ("efficientnet-lite0",),
        min_length=1,
        description="Features behind FID and KID: efficientnet-lite0 (offline, the usual), inception or inception@FILE (as published), "
        "timm:NAME@FILE, transformers:FOLDER; repeat it for several.",
    )
    clip: Annotated[str | None, Option(panel="Features", first=True)] = Field(
        None, description="CLIP scores by MODEL@FILE or MODEL@TAG; published: ViT-L-14@laion2b_s32b_b82k. None unless given."
    )
    crops: Annotated[Literal["hbb", "obb"], Option(panel="Features")] = Field(
        "hbb", description="Crops of CLIP-L: hbb (as published) or obb (turned upright)."
    )
    bootstrap: Annotated[int, Option(panel="Features")] = Field(
        100, ge=0, le=100_000, description="Bootstrap samples behind the intervals; 0: none."
    )
    yoloscore: Annotated[bool, Option(panel="Detector")] = Field(True, description="Train the detector and look for the layouts.")
    share: Annotated[Path | None, Option(panel="Detector")] = Field(
        None, description="Output folder of eval-trainability on the same set: its detector is not trained again."
    )
    batch_size: Annotated[int, Option(panel="Work")] = Field(32, ge=1, le=65_536, description="Pictures per forward pass.")
    device: Annotated[str, Option(panel="Work")] = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    seed: Annotated[int, Option(panel="Work")] = Field(
        0, ge=0, lt=2**31, description="Seed of the detector's training, the draws and the bootstrap."
    )


class EvaluateSection(EvaluateOptions):
    """Options of ``evaluate``, and the settings of its detector."""

    detector: dict[str, Any] | None = Field(
        None, description="Settings of the detector for YOLOScore (steps: 800); those of trainability.detector unless given."
    )
