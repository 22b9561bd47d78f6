"""Which generator is trained, and from what: options of ``ccdiff train``.  The recipe itself is typed in ``methods.recipe``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from ..options import MOST_PROCESSES, Option, Options, Unfit
from ..settings import overrides


def _overrides(value: Any) -> Any:
    """``KEY=VALUE`` texts as a mapping."""
    if isinstance(value, (list, tuple)) and not all(isinstance(pair, str) for pair in value):
        raise Unfit("expected keys with their values, found a list", fix="for example {denoiser.train.steps: 2000}")
    return overrides(value) if isinstance(value, (list, tuple)) else {} if value is None else value


class TrainOptions(Options):
    """A recipe, what is changed of it, and where the training starts."""

    recipe: Annotated[str, Option(names=("--recipe", "-r"), panel="What", first=True, complete="recipes")] = Field(
        "tiny", min_length=1, description="The name of a shipped recipe, or the path of a file: ./mine.yaml."
    )
    base: Annotated[str | None, Option(names=("--base",), panel="What", first=True)] = Field(
        None,
        min_length=1,
        description="Autoencoder, tokenizer, text encoder and UNet in one: a folder of Stable Diffusion 1.4, 1.5, 2.1 or a fine-tune, or a "
        "hub name, OWNER/NAME or OWNER/NAME@REVISION.",
    )
    start: Annotated[str | None, Option(names=("--from",), panel="What", first=True, complete="generators")] = Field(
        None, min_length=1, description="Go on from a generator folder, or from the shipped model: tiny (./tiny: a folder)."
    )
    transplant: Annotated[bool, Option(names=("--transplant",), panel="What")] = Field(
        False,
        description="With --from: take its encoders and of its denoiser what fits (ends only where both have the same autoencoder), the "
        "rest by the recipe.",
    )
    overrides: Annotated[
        dict[str, JsonValue], BeforeValidator(_overrides), Option(names=("--set",), panel="What", first=True, kind=list[str] | None)
    ] = Field({}, description="Replace a key of the recipe: denoiser.train.steps=2000.")
    cpu: Annotated[bool, Option(panel="Work")] = Field(False, description="Do not use a GPU.")
    threads: Annotated[int | None, Option(panel="Work")] = Field(
        None,
        ge=1,
        le=MOST_PROCESSES,
        description="Processor threads; on a CPU every stage tries one, half and all at its start unless given (or OMP_NUM_THREADS is "
        "set), and a training that goes on takes those it was begun with.",
    )

    @model_validator(mode="after")
    def _fits(self) -> TrainOptions:
        if self.transplant and self.start is None:
            raise Unfit("a transplant without a generator to take from", key="transplant", fix="give --from GENERATOR too")
        return self
