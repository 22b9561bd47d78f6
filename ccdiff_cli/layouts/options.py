"""What layouts are made of: options of ``ccdiff layout``, and those of ``ccdiff synthesize`` that choose its layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..options import Option, Options, Unfit

Source = Literal["set", "augmented", "mixed", "sampled", "diffusion", "llm"]
Balance = Literal["none", "rare", "classes", "misses"]


class LayoutOptions(Options):
    """Where layouts come from, and how often each picture is used."""

    source: Annotated[Source | None, Option(names=("--source", "-s"), first=True)] = Field(
        None,
        description="set: as they are; augmented: flipped, turned, shifted, jittered; mixed: of two; sampled: by a model of the set; "
        "diffusion: by a small diffusion model of it; llm: by a language model. "
        "augmented unless given (set, for a generator trained on stored captions).",
    )
    balance: Balance = Field(
        "none",
        description="none; rare: pictures with rare classes more often; classes: every class as often as every other; misses: what a "
        "detector gets wrong more often, of any source.",
    )
    misses: Path | None = Field(None, description="Of balance misses: misses.json of `ccdiff misses`.")
    split: str = Field("train", min_length=1, description="The split that layouts come from.")
    llm_url: str | None = Field(
        None, description="Of source llm: an OpenAI-compatible endpoint; its key is read from the environment (CCDIFF_LLM_KEY)."
    )
    llm_model: str | None = Field(
        None, description="Of source llm: the endpoint's model, or a local one: a transformers folder, a .gguf file, smollm2."
    )
    llm_captions: Path | None = Field(
        None, description="Of source llm: a text file of captions, one a line; those of the set unless given."
    )

    @model_validator(mode="after")
    def _fits(self) -> LayoutOptions:
        if self.balance == "misses" and self.misses is None:
            raise Unfit("balance misses needs what a detector misses", key="balance", fix="run `ccdiff misses`, and give --misses FILE")
        if self.misses is not None and self.balance != "misses":
            raise Unfit("misses are used by balance misses alone", key="misses", fix="--balance misses, or leave the option out")
        return self
