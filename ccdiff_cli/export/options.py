"""What a user may decide about ``export``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..options import Option, Options


class ExportOptions(Options):
    """The format, and how pictures are handed over."""

    format: Annotated[str, Option(names=("--format", "-f"), first=True, complete="export formats")] = Field(
        description="coco, roboflow-coco, dota, dota-task1 (labels as result files), yolo, yolo-obb, voc, metadata (CC-Diff's jsonl), "
        "huggingface or webdataset."
    )
    link: Annotated[bool, Option(panel="Pictures", first=True)] = Field(
        False,
        description="Hard links to the set's pictures: no room is taken, but a tool that rewrites them in place changes the set. "
        "Copies unless given (reflinks, where the file system can).",
    )
    picture_format: Annotated[Literal["png", "jpeg", "webp"] | None, Option(panel="Pictures", first=True)] = Field(
        None, description="Encode pictures as png, jpeg or webp; those that are it already, and all unless given, stay as they are."
    )
    quality: Annotated[int | None, Option(panel="Pictures", first=True)] = Field(
        None, ge=1, le=100, description="Of jpeg (95 unless given) or webp (lossless unless given), 1 to 100."
    )
    voc_origin: Annotated[int, Option(first=True)] = Field(
        1, ge=0, le=1, description="VOC alone. 1: pixels counted from 1, the last one inside the box, as the devkit; 0: edges from 0."
    )
