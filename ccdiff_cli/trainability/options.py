"""What a user may decide about ``eval-trainability`` beside the experiment (:class:`.config.ExperimentConfig`): sets that join it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..options import Option, Options, Unfit


def _named(value: Any) -> Any:
    """``NAME=PATH`` texts, as a command line gives them, as a mapping."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    found: dict[str, str] = {}
    for pair in value:
        name, equals, path = str(pair).partition("=")
        if not equals or not name.strip() or not path or name.strip() in found:
            raise Unfit(f"{pair!r}: expected a new NAME=PATH", fix="for example --other theirs=runs/theirs")
        found[name.strip()] = path
    return found


EXPERIMENT = "Experiment"


class ExperimentOptions(Options):
    """An experiment as a command line says it: a recipe, and what takes the place of its keys (``config.experiment_of``)."""

    recipe: Annotated[str | None, Option(names=("--recipe", "-r"), panel=EXPERIMENT, first=True, complete="experiments")] = Field(
        None, description="An experiment: the name of a shipped one (trainability-vhr10-cpu), or the path of a file. Options win."
    )
    arms: Annotated[tuple[str, ...], Option(names=("--arm",), panel=EXPERIMENT, first=True)] = Field(
        (),
        description="What to compare with real pictures alone: synthetic, synthetic-only, pretrain, copy-paste, mosaic, held-out, "
        "jittered (the last two: real pictures that the fraction leaves out, as they are or with imprecise labels) or the NAME of an "
        "other set; =0.5,1,2: so many pictures for each real one (the whole set unless given).",
    )
    fractions: Annotated[str | None, Option(panel=EXPERIMENT, first=True)] = Field(
        None, description="Percentages of the real training set, by source picture, nested: 10,25,50,100. Default: 100."
    )
    seeds: Annotated[str | None, Option(panel=EXPERIMENT, first=True)] = Field(
        None, description="Seeds of the paired trainings, comma separated. Default: 0,1,2."
    )
    match: Annotated[Literal["steps", "epochs", "both"] | None, Option(panel=EXPERIMENT, first=True)] = Field(
        None, description="What arms have in common with the real one: steps, epochs (as published), or both (default)."
    )
    detector: Annotated[Path | None, Option(panel=EXPERIMENT, first=True)] = Field(
        None, description="YAML file of detector settings; a small Faster R-CNN unless given."
    )
    settings: Annotated[tuple[str, ...], Option(names=("--set",), panel=EXPERIMENT, first=True)] = Field(
        (), description="Replace a setting of the detector (steps=800) or of the experiment (samples=1000)."
    )


class TrainabilityOptions(Options):
    """Sets beside the real and the synthetic one, and what is done about leaks."""

    others: Annotated[
        dict[str, Path], BeforeValidator(_named), Option(names=("--other",), panel="Sets", metavar="NAME=SET", kind=list[str])
    ] = Field({}, description="NAME=SET: another generator's set, or any other, to be added instead.")
    floor: Annotated[Path | None, Option(panel="Sets")] = Field(
        None, description="A set made with --shuffle-layouts: the floor of layout adherence."
    )
    generator_data: Annotated[Path | None, Option(panel="Sets")] = Field(
        None, description="For the leak check: the prepared set the generator was trained on, where it is not --real."
    )
    allow_leaks: Annotated[bool, Option(panel="Sets")] = Field(
        False, description="Go on although test pictures leaked into training; the report says so."
    )


class MissesOptions(Options):
    """How ``ccdiff misses`` looks for what a detector gets wrong."""

    folds: Annotated[int, Option(first=True)] = Field(
        3, ge=2, le=100, description="Parts of the training sources; a detector is trained without each, and looks at it."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the folds and of the trainings.")
    added: Annotated[tuple[Path, ...], Option(names=("--added",), first=True, metavar="SET")] = Field(
        (),
        max_length=100,
        description="A synthetic set that is trained on, too (may be given again): the next round. Its pictures whose layouts come from "
        "the fold left out are not.",
    )
    detector: Annotated[Path | None, Option(first=True)] = Field(
        None, description="YAML file of detector settings, or of an experiment with them; a small Faster R-CNN unless given."
    )
    settings: Annotated[tuple[str, ...], Option(names=("--set",), first=True)] = Field(
        (), description="Replace a setting of the detector (steps=800)."
    )
