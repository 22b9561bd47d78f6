"""What a user may decide about ``prepare``: which data set it is, how it is cut, how its pixels are read, what is said of it."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..options import Option, Options, Unfit

SOURCE, TILES, PIXELS, SAID = "Data set", "Tiles", "Pixels", "Captions and references"
"""Panels of the help."""


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, PurePath) else value


PathOrName = Annotated[str, BeforeValidator(_as_text)]
"""A path, or something known by its name."""


class SourceOptions(Options):
    """How a raw data set is read."""

    format: Annotated[str | None, Option(panel=SOURCE, first=True, complete="formats")] = Field(
        None,
        description="dior, rsvg, dota, fair1m, hrsc, vhr10, sodaa, visdrone, coco, yolo, yolo-obb, voc, cvat, labelme, huggingface, "
        "webdataset or metadata; recognised from the folder unless given.",
    )
    classes: Annotated[PathOrName | None, Option(panel=SOURCE, first=True, kind=str | None)] = Field(
        None,
        description="Class file (one class a line, in the order wanted; `THEIRS = OURS` renames one), pairs such as car=vehicle, "
        "or a known list: dior, vhr10, dota10, dota15, dota20, hrsc, hrsc2, hrsc3, fair1m, fair1m5, sodaa, visdrone.",
    )
    source_pattern: Annotated[str | None, Option(panel=SOURCE)] = Field(
        None,
        description=r"Regular expression for pieces of one scene, which never part: its group is the scene's name, ^(.+)_\d+_\d+$",
    )
    voc_origin: Annotated[int | None, Option(panel=SOURCE)] = Field(
        None,
        description="Of VOC whose files do not say it. 1: boxes count pixels from 1, the last one inside, as VOC's devkit; "
        "0 (unless given): edges from 0, as most tools write them.",
    )


class PrepareOptions(SourceOptions):
    """How a set is prepared."""

    splits: Annotated[Path | None, Option(panel=SOURCE)] = Field(
        None, description="Folder with train.txt, val.txt, test.txt; the data set's own unless given."
    )
    seed: Annotated[int, Option(panel=SOURCE)] = Field(
        0, ge=0, lt=2**63, description="Seed of the split by picture (70 : 10 : 20), where the data set has none."
    )
    leaks: Annotated[Literal["keep", "drop", "move", "refuse"] | None, Option(panel=SOURCE)] = Field(
        None,
        description="The same picture in several splits: keep (and say so), drop or move (to the strictest of them: test, val, train), or "
        "refuse. Pieces of one scene in several splits are refused unless dropped or moved.",
    )
    metadata: Annotated[Path | None, Option(panel=SOURCE)] = Field(
        None,
        description="What is known of each picture: CSV with columns file_name,gsd,sensor,..., or JSON {file name: {gsd: 0.3}} "
        "(`--metadata scenes.csv`).",
    )
    strict: Annotated[bool, Option(panel=SOURCE)] = Field(
        False, description="Stop at the first broken label, missing or broken picture, instead of leaving it out and counting it."
    )

    tile: Annotated[int | None, Option(panel=TILES, first=True)] = Field(
        None, ge=8, le=65_500, description="Cut tiles of this side, source pixels; whole pictures unless given."
    )
    overlap: Annotated[int, Option(panel=TILES, first=True)] = Field(
        0, ge=0, le=65_500, description="Overlap of neighbouring tiles, source pixels."
    )
    size: Annotated[int | None, Option(panel=TILES, first=True)] = Field(
        None, ge=8, le=65_500, description="Resize every tile or picture to a square of this side, pixels."
    )
    keep_share: Annotated[float, Option(panel=TILES)] = Field(
        0.7, ge=0, le=1, description="An object is kept where at least this share of it is inside the tile."
    )
    difficult_share: Annotated[float, Option(panel=TILES)] = Field(
        0.2, ge=0, le=1, description="Down to this share it is kept as difficult; below, left out and counted."
    )
    keep_empty: Annotated[bool, Option(panel=TILES)] = Field(
        False, description="Keep pictures and tiles without objects (test scenes need them)."
    )
    keep_partial: Annotated[bool, Option(names=("--keep-partial/--drop-partial",), panel=TILES)] = Field(
        True, description="Keep or drop tiles in which every object is difficult."
    )

    exif: Annotated[Literal["turn", "keep"] | None, Option(panel=PIXELS)] = Field(
        None,
        description="turn: labels are of the picture as its EXIF orientation shows it (done unless given); keep: of the pixels as stored "
        "(`--exif keep`). The tag is dropped either way.",
    )
    bands: Annotated[str | None, Option(panel=PIXELS)] = Field(
        None, description="Bands that become red, green, blue, from 1: `--bands 3,2,1`; one, `--bands 4`, becomes grey."
    )
    stretch: Annotated[str, Option(panel=PIXELS)] = Field(
        "set",
        description="Which values of more than 8 bits become black and white: set (percentiles 0.5 and 99.5 of the set; `set:2,98`), "
        "picture (of each picture), `0,2047` or none.",
    )
    resized: Annotated[Literal["stop", "scale", "stretch", "keep"], Option(panel=PIXELS)] = Field(
        "stop",
        description="Pictures of another size than their labels declare: stop, scale (boxes by one factor: `--resized scale`), stretch (by "
        "a factor for each axis) or keep (boxes as they are).",
    )

    caption_style: Annotated[Literal["plain", "short", "measured", "phrases", "quadrants"], Option(panel=SAID)] = Field(
        "plain",
        description="plain (what stands where, and its direction), short (how many of each), measured (plain, with GSD, place, date); as "
        "released weights know them: phrases (AeroGen), quadrants (DiffusionSat).",
    )
    sentences: Annotated[Path | None, Option(panel=SAID)] = Field(
        None, description="Your scene sentences: JSON {file name: sentence}, or CSV with columns file_name,sentence."
    )
    scene_clip: Annotated[PathOrName | None, Option(panel=SAID, kind=str | None)] = Field(
        None, description="CLIP (folder or hub name) that finds the place a picture shows, where no sentence is given."
    )
    places: Annotated[Path | None, Option(panel=SAID)] = Field(
        None, description="Places it chooses from, one a line (a residential area); a list of our own unless given."
    )
    masks: Annotated[str, Option(panel=SAID)] = Field(
        "coco",
        description="What blacks out the ground of reference crops: coco (the data set's masks), none, u2netp (extra `masks`), "
        "or sam:FOLDER (or hub name).",
    )

    @model_validator(mode="after")
    def _consistent(self) -> PrepareOptions:
        if self.overlap and self.tile is None:
            raise Unfit(f"overlap {self.overlap} without tiles", key="overlap", fix="give a tile size too")
        if self.tile is not None and self.overlap >= self.tile:
            what = f"overlap {self.overlap} with tile {self.tile}"
            raise Unfit(what, key="overlap", fix="the overlap must be at least 0 and smaller than the tile")
        keep, difficult = self.keep_share, self.difficult_share
        if not 0 < difficult <= keep:
            what = f"keep share {keep}, difficult share {difficult}"
            raise Unfit(what, key="difficult_share", fix="0 < difficult share <= keep share <= 1")
        if self.places is not None and self.scene_clip is None:
            raise Unfit("places without a CLIP to choose among them", key="places", fix="give --scene-clip too")
        return self
