"""The typed settings of a trainability experiment: what a recipe ``recipes/trainability-*.yaml`` writes.

Notable: an experiment is arms x fractions of the real training split x seeds, over one detector.  The arm of real pictures alone is always
there: every other arm's gain is taken against it, at the same fraction, seed by seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ..detectors import DetectorConfig
from ..errors import CCDiffError
from ..options import checked_options
from ..recipes import find_recipe
from ..settings import overrides as overrides_of
from ..settings import read_yaml
from .options import ExperimentOptions, TrainabilityOptions

SYNTHETIC, SYNTHETIC_ONLY, PRETRAIN, COPY_PASTE = "synthetic", "synthetic-only", "pretrain", "copy-paste"
MOSAIC, HELD_OUT, JITTERED = "mosaic", "held-out", "jittered"
KINDS = {
    SYNTHETIC: "real + synthetic pictures",
    SYNTHETIC_ONLY: "synthetic pictures alone",
    PRETRAIN: "first synthetic pictures, then real ones",
    COPY_PASTE: "real + real pictures with crops of the reference bank pasted in at the layouts of the synthetic pictures, or where "
    "there are none at augmented layouts of the real ones",
    MOSAIC: "real + mosaics of four of them: common augmentation (flips and quarter turns are in every arm)",
    HELD_OUT: "real + real pictures that the fraction leaves out: what a perfect generator would bring",
    JITTERED: "the same with boxes moved and scaled at random: what imprecise labels cost",
}
"""Arm -> what it is trained on; besides these any name given by ``--other NAME=SET``."""
ALL: Literal["all"] = "all"


def _listed(value: Any) -> Any:
    """One value stands for a list of one; nothing for ``all``."""
    if value is None or value is True:
        return (ALL,)
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _ladder(value: Any) -> Any:
    """One value stands for a list of one."""
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


Ratio = Annotated[float, Field(gt=0, le=1000)] | Literal["all"]
Ratios = Annotated[tuple[Ratio, ...], BeforeValidator(_listed), Field(min_length=1, max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class ExperimentConfig(BaseModel):
    """Everything that makes an experiment, but the sets."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field("trainability", min_length=1, description="Name of the recipe.")
    description: str = Field("", description="What the recipe is for.")
    arms: dict[str, Ratios] = Field(
        {SYNTHETIC: (ALL,)},
        description=f"Arm -> pictures added for each real one, or all (the whole set). Arms: {', '.join(KINDS)}, or the name of an "
        "other set. real is always there.",
    )
    fractions: Annotated[tuple[float, ...], BeforeValidator(_listed)] = Field(
        (100.0,),
        min_length=1,
        max_length=100,
        description="Percent of the real training split, by source picture; a smaller one lies within a larger one.",
    )
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed)] = Field(
        (0, 1, 2),
        min_length=1,
        max_length=1000,
        description="Seeds of the trainings, the same for every arm: gains are taken seed by seed.",
    )
    match: Literal["both", "steps", "epochs"] = Field(
        "both",
        description="What arms of one fraction have in common. steps: optimizer steps (fair); epochs: as published, so an arm with "
        "twice the pictures is trained twice as long, beside the real pictures alone trained as long; both: side by side.",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=10**6,
        description="Steps of a training as epochs of the whole real training split; takes the place of detector.steps.",
    )
    pretrain_share: float = Field(0.5, gt=0, lt=1, description="Share of the steps that the arm pretrain spends on synthetic pictures.")
    draw: int = Field(0, ge=0, lt=2**31, description="Seed of what is drawn once: fractions, parts of a set, pasted objects.")
    label_jitter: float = Field(
        0.1, gt=0, le=1, description="Arm jittered: deviation of a box's centre and of the logarithm of its size, as a share of its sides."
    )
    paste_overlap: float = Field(
        0.1, ge=0, le=1, description="Largest share of an object (the smaller of two) that a pasted one may cover, or be covered by."
    )
    calibrate_steps: Annotated[tuple[int, ...] | None, BeforeValidator(_ladder)] = Field(
        None, description="Steps that --calibrate tries, from few to many: doublings; a quarter to four times detector.steps unless given."
    )
    samples: int = Field(400, ge=50, le=10000, description="Bootstrap samples of the intervals.")
    detector: DetectorConfig = Field(DetectorConfig(), description="The detector and its training.")

    @field_validator("fractions")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) != len(values) or min(values) <= 0 or max(values) > 100:
            raise ValueError("expected different percentages above 0 and up to 100, for example [25, 100]")
        return tuple(sorted(values))

    @field_validator("calibrate_steps")
    @classmethod
    def _rising(cls, values: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if values is not None and (not values or values[0] < 2 or any(b < 2 * a for a, b in itertools.pairwise(values))):
            raise ValueError("expected numbers of steps from 2, each at least twice the one before, for example [125, 250, 500]")
        return values

    @field_validator("seeds")
    @classmethod
    def _different(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(values)) != len(values):
            raise ValueError("expected different whole numbers from 0, for example [0, 1, 2]")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        for name, ratios in self.arms.items():
            if not name.strip() or name == "real":
                raise ValueError(f"arms: {name!r} cannot be an arm's name (real is always there)")
            if len(set(ratios)) != len(ratios):
                raise ValueError(f"arms.{name}: a ratio is there twice")
        return self

    def with_steps(self, train_pictures: int) -> ExperimentConfig:
        """The same with ``detector.steps`` in place of ``epochs``."""
        if self.epochs is None:
            return self
        steps = max(1, math.ceil(self.epochs * train_pictures / self.detector.batch))
        return self.model_copy(update={"epochs": None, "detector": with_steps(self.detector, steps)})


class TrainabilitySection(TrainabilityOptions):
    """An experiment: a recipe, and what takes the place of its keys (see ``trainability.config.ExperimentConfig``)."""

    recipe: str | None = Field(None, description="An experiment: the name of a shipped one, or the path of a file (./mine.yaml).")
    arms: dict[str, Any] | None = Field(None, description=ExperimentConfig.model_fields["arms"].description)
    fractions: Any = Field(None, description=ExperimentConfig.model_fields["fractions"].description)
    seeds: Any = Field(None, description=ExperimentConfig.model_fields["seeds"].description)
    match: Any = Field(None, description=ExperimentConfig.model_fields["match"].description)
    epochs: float | None = Field(None, description=ExperimentConfig.model_fields["epochs"].description)
    samples: int | None = Field(None, description=ExperimentConfig.model_fields["samples"].description)
    draw: int | None = Field(None, description=ExperimentConfig.model_fields["draw"].description)
    detector: dict[str, Any] = Field({}, description="Settings of the detector: kind, input_size, anchor_sizes, steps, ...")

    def experiment(self) -> dict[str, Any]:
        """What it says in place of the recipe's keys, by dotted key."""
        own = [key for key in TrainabilitySection.model_fields if key in ExperimentConfig.model_fields and key != "detector"]
        said = {key: getattr(self, key) for key in own if getattr(self, key) is not None}
        return said | {f"detector.{key}": value for key, value in self.detector.items()}


def with_steps(detector: DetectorConfig, steps: int) -> DetectorConfig:
    """The detector's settings with other steps; a warm-up that would not fit is shortened in proportion."""
    if steps == detector.steps:
        return detector
    warmup = detector.warmup_steps
    if warmup >= steps:
        warmup = min(steps - 1, round(warmup * steps / detector.steps))
    return detector.model_copy(update={"steps": steps, "warmup_steps": warmup})


def load_experiment(recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """An experiment from a recipe (its name or file) and overrides, by dotted keys; defaults for the rest.

    Raises:
        CCDiffError: naming file, key, what was found and what was expected.
    """
    path = find_recipe(recipe, experiment=True) if recipe is not None else None
    values = _read(path) if path is not None else {}
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        node = values
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise CCDiffError(f"{key}: {part} is not a group of keys", where=path)
        node[last] = value
    if values.get("epochs") is not None and isinstance(values.get("detector"), dict):
        values["detector"].setdefault("steps", 1_000_000)  # replaced when the set is known
    return checked_options(ExperimentConfig, values, where=path or "experiment settings")


def experiment_of(options: ExperimentOptions) -> ExperimentConfig:
    """The experiment of a command line: a recipe, and options that take the place of its keys.

    ``settings`` are keys of the experiment, or of the detector with or without ``detector.``; ``arms`` are ``NAME`` or
    ``NAME=RATIO,RATIO``.

    Raises:
        CCDiffError: naming file, key or option, what was found and what was expected.
    """
    own = set(ExperimentConfig.model_fields) - {"detector"}
    values: dict[str, Any] = {}
    if options.detector is not None:
        read = _read(options.detector)
        values["detector"] = read.get("detector", read)
    for key, value in overrides_of(options.settings).items():
        first = key.split(".")[0]
        values[key if first in own or first == "detector" else f"detector.{key}"] = value
    if options.arms:
        named = (text.partition("=") for text in options.arms)
        values["arms"] = {name.strip(): _numbers("--arm", ratios) if equals else (ALL,) for name, equals, ratios in named}
    if options.fractions is not None:
        values["fractions"] = _numbers("--fractions", options.fractions)
    if options.seeds is not None:
        values["seeds"] = _numbers("--seeds", options.seeds)
    if options.match is not None:
        values["match"] = options.match
    return load_experiment(options.recipe, values)


def _numbers(option: str, text: str) -> tuple[Any, ...]:
    """Numbers, and words that are left to the check of the settings."""
    found: list[Any] = []
    for part in (p.strip() for p in text.split(",")):
        try:
            found.append(int(part) if part.lstrip("-").isdigit() else float(part))
        except ValueError:
            found.append(part)
    if any(isinstance(v, str) and v != ALL for v in found) or "" in found:
        example = {"--arm": "--arm synthetic=0.5,1,2", "--fractions": "--fractions 25,100"}.get(option, "--seeds 0,1,2")
        raise CCDiffError(f"{option} {text!r} is not a list of numbers", fix=f"for example {example}")
    return tuple(found)


def load_detector_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> DetectorConfig:
    """Detector settings from a YAML file (their keys, alone or under ``detector:``) and overrides; defaults for the rest.

    Raises:
        CCDiffError: naming file, key, what was found and what was expected.
    """
    values = _read(path) if path is not None else {}
    values = values.get("detector", values)
    if not isinstance(values, dict):
        raise CCDiffError(f"detector settings are a mapping of keys, found {type(values).__name__}", where=path)
    return checked_options(DetectorConfig, {**values, **(overrides or {})}, where=path or "detector settings")


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "the settings")
    if values is not None and not isinstance(values, dict):
        raise CCDiffError(f"settings are a mapping of keys, found {type(values).__name__}", where=path)
    return values or {}
