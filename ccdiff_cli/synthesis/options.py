"""What a synthetic set is made of (``SynthesisOptions``), and by whom (``WorkOptions``, which changes no byte of it)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from ..layouts.options import LayoutOptions
from ..options import MOST_PROCESSES, MOST_SEED, Option, Options, Unfit

Format = Literal["png", "jpeg", "webp"]
Precision = Literal["float32", "bfloat16", "float16"]
JudgeName = Literal["detector", "clip", "crops"]


class SamplingOptions(Options):
    """How pictures are drawn; what is not given is as the generator's recipe says."""

    steps: Annotated[int | None, Option(first=True)] = Field(
        None, ge=1, le=1000, description="Denoising steps; the generator's own unless given."
    )
    guidance_scale: float | None = Field(
        None, ge=1, le=1000, description="Classifier-free guidance, 1: none; the generator's own unless given."
    )
    negative_prompt: str | None = Field(
        None, max_length=10_000, description="Caption of the unconditional branch; the generator's own unless given."
    )
    scheduler: str | None = Field(
        None,
        max_length=200,
        description="Sampler in place of the generator's own: a name that its method knows, as euler, dpmsolver++, dpmsolver++-karras.",
    )
    published: Annotated[bool, Option(names=("--published",))] = Field(
        False, description="Sample as its method was published, in its steps, sampler and guidance."
    )
    precision: Precision | None = Field(None, description="Of the generator's arithmetic; the generator's own unless given.")
    channels_last: Annotated[bool | None, Option(names=("--channels-last/--no-channels-last",))] = Field(
        None, description="Memory layout that GPUs like better; the generator's own unless given."
    )
    compile: Annotated[bool | None, Option(names=("--compile/--no-compile",))] = Field(
        None, description="Compile the repeated blocks of the denoiser, minutes at the start; the generator's own unless given."
    )

    @model_validator(mode="after")
    def _fits(self) -> SamplingOptions:
        if self.published and (self.steps is not None or self.guidance_scale is not None):
            raise Unfit("--published says steps and guidance itself", key="published", fix="leave --steps and --guidance-scale out")
        return self


def _listed(value: Any) -> Any:
    """Names with commas as a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return () if value is None else value


class FilterOptions(Options):
    """Whether pictures are looked at before they are kept; see ``filtering``."""

    mode: Annotated[Literal["objects", "pictures"] | None, Option(names=("--filter",), first=True)] = Field(
        None,
        description="A detector trained on the real set looks for every object; pictures that fail are made again, at last `objects`: the "
        "labels of missing objects are left out, or `pictures`: the picture is.",
    )
    recall: Annotated[float, Option(names=("--filter-recall",))] = Field(
        0.9, gt=0, lt=1, description="Thresholds: what this share of the real validation objects pass."
    )
    retries: Annotated[int, Option(names=("--filter-retries",))] = Field(
        2, ge=0, le=1000, description="How often a rejected picture is made again."
    )
    detector: Annotated[Path | None, Option(names=("--filter-detector",))] = Field(
        None, description="Folder of a trained detector; one is trained and kept in ~/.cache/ccdiff unless given."
    )
    clip: Annotated[Path | None, Option(names=("--filter-clip",))] = Field(
        None, description="Folder of a transformers CLIP model that judges the crops, too."
    )

    judges: Annotated[tuple[JudgeName, ...], BeforeValidator(_listed), Option(names=("--filter-judges",), kind=str | None)] = Field(
        (),
        max_length=3,
        description="Who judges, with commas: detector, clip (needs --filter-clip), crops (a classifier of the real crops, trained and "
        "kept, which every object must pass); detector, and clip where given, unless said.",
    )

    @model_validator(mode="after")
    def _fits(self) -> FilterOptions:
        if self.mode is None and (self.detector is not None or self.clip is not None or self.judges):
            raise Unfit("a judge without a filter", key="mode", fix="choose --filter objects or --filter pictures")
        chosen = self.chosen_judges()
        if ("clip" in chosen) != (self.clip is not None) or (self.detector is not None and "detector" not in chosen):
            fix = "name clip and give --filter-clip; likewise the detector's folder"
            raise Unfit(f"the judges are {', '.join(chosen)}", key="judges", fix=fix)
        return self

    def usual_judges(self) -> list[JudgeName]:
        """Those of whom nothing needs to be said."""
        return ["detector", "clip"] if self.clip is not None else ["detector"]

    def chosen_judges(self) -> list[JudgeName]:
        """Who judges, each once, in one order."""
        return [judge for judge in get_args(JudgeName) if judge in self.judges] or self.usual_judges()


class SynthesisOptions(Options):
    """Everything but the generator and the set that decides the bytes of a synthetic set."""

    n: Annotated[int, Option(names=("--n", "-n"), panel="What", first=True)] = Field(ge=1, le=10**15, description="How many pictures.")
    seed: Annotated[int, Option(panel="What", first=True)] = Field(
        0, ge=0, le=MOST_SEED, description="Seed of the set; picture k depends on it, on k and on the plan alone."
    )
    format: Annotated[Format, Option(names=("--format", "-f"), panel="What")] = Field(
        "png", description="Of the pictures: png, jpeg (quality 95) or webp (lossless)."
    )
    val_share: Annotated[float, Option(panel="What")] = Field(
        0.0, ge=0, lt=1, description="Share of the real pictures whose layouts go to a val split."
    )
    shuffle_layouts: Annotated[bool, Option(panel="What")] = Field(
        False, description="Draw each picture from another picture's layout: the floor of layout adherence."
    )
    layouts: Annotated[LayoutOptions, Option(panel="Layouts", renamed=(("source", ("--layout-source",)),))] = LayoutOptions()
    references: Annotated[Path | None, Option(panel="Layouts", complete="sets")] = Field(
        None, description="The set whose reference bank is used; that of the layouts unless given."
    )
    retrieval: Annotated[str | None, Option(panel="Layouts")] = Field(
        None,
        min_length=1,
        description="How background references are found: words (of captions), own (the generator's encoders), or a CLIP folder or hub "
        "name; as in training unless given.",
    )
    top_k: Annotated[int | None, Option(panel="Layouts")] = Field(
        None, ge=1, le=10**6, description="Draw references from so many best ones; 1: the best, as published; as in training unless given."
    )
    sampling: Annotated[SamplingOptions, Option(panel="Sampling")] = SamplingOptions()
    filter: Annotated[FilterOptions, Option(panel="Filter")] = FilterOptions()
    batch_size: Annotated[int, Option(panel="Work")] = Field(
        8, ge=1, le=65_536, description="Pictures per forward pass; another number changes pictures by rounding, now and then."
    )
    shard_size: Annotated[int, Option(panel="Work")] = Field(
        20_000,
        ge=1,
        le=1_000_000,
        description="A set of more pictures is written as shards of so many (of whole batches), each a set by itself.",
    )
    threads: Annotated[int, Option(panel="Work")] = Field(
        1,
        ge=1,
        le=10_000,
        description="Processor threads of each process; pictures depend on it by rounding, as on batches.",
    )

    def at_once(self) -> int:
        """Pictures of a shard, which ends where a batch ends; of the whole set where it has no shards."""
        return max(self.batch_size, self.shard_size - self.shard_size % self.batch_size) if self.n > self.shard_size else self.n

    def shards(self) -> Iterator[tuple[int, int]]:
        """Number of the first picture and number of pictures of every shard."""
        return ((first, min(self.at_once(), self.n - first)) for first in range(0, self.n, self.at_once()))

    @model_validator(mode="after")
    def _fits(self) -> SynthesisOptions:
        if self.shuffle_layouts and self.n < 2:
            raise Unfit("one picture has no other layout to be drawn from", key="shuffle_layouts", fix="ask for at least two")
        if self.shuffle_layouts and self.filter.mode is not None:
            raise Unfit("a floor set is not filtered: nothing would be left", key="filter.mode", fix="leave one of the two options out")
        return self


def _part(value: Any) -> Any:
    """``I/N`` as (I, N)."""
    if isinstance(value, str):
        first, slash, count = value.partition("/")
        if not slash or not (first.isdecimal() and count.isdecimal() and len(value) < 40):
            raise Unfit("not of the form I/N", fix="for example --part 0/8 on the first of eight machines")
        value = int(first), int(count)
    if isinstance(value, (tuple, list)) and len(value) == 2 and not 0 <= value[0] < value[1]:
        raise Unfit(f"part {value[0]} of {value[1]}", fix="parts are counted from 0: 0/8 to 7/8")
    return value


class WorkOptions(Options):
    """Who makes the pictures: the same come out in any case."""

    num_processes: int | None = Field(
        None, ge=1, le=MOST_PROCESSES, description="Worker processes on this machine; one per GPU, or per core, unless given."
    )
    part: Annotated[tuple[int, int] | None, BeforeValidator(_part), Option(kind=str | None, metavar="I/N")] = Field(
        None, description="I/N: make every N-th block from the I-th on (0/8 to 7/8), beside other machines; see docs/cluster.md."
    )
    ray: int | None = Field(
        None, ge=1, le=MOST_PROCESSES, description="Make the pictures by so many Ray actors (one a GPU); see docs/cluster.md."
    )


def _changes(value: Any) -> Any:
    """Names with commas; all of them where none is said."""
    return _listed(value) or get_args(Change)


Change = Literal["shift", "drop", "add"]


class RepairOptions(Options):
    """What ``ccdiff repair`` may change, and who looks."""

    detector: Annotated[Path | None, Option(first=True)] = Field(
        None, description="Folder of a trained detector; one is trained on the real set and kept in ~/.cache/ccdiff unless given."
    )
    changes: Annotated[tuple[Change, ...], BeforeValidator(_changes), Option(first=True, kind=str | None)] = Field(
        get_args(Change),
        max_length=3,
        description="With commas: shift (a label to where it is surely seen, nearby), drop (what is not seen), add (what is surely seen "
        "and has no label); all unless said.",
    )
    precision: float = Field(
        0.95, gt=0, le=1, description="Sure: the score from which on so many detections on real val pictures are right."
    )
    recall: float = Field(0.9, gt=0, lt=1, description="Not seen: a score below that of this share of the real val objects.")
