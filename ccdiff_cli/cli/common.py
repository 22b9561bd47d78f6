"""What several verbs share: kinds of options, values that are texts on the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

MOST_PROCESSES, MOST_SEED = 1024, 2**63 - 1
"""Bounds of options: more would be a slip of the hand."""


def finite(value: float | None) -> float | None:
    """The bounds of an option let NaN through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output; no progress bars.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write. An interrupted run is finished by the same command.")]
SOURCE_HELP = (
    "set: as they are; augmented: flipped, turned, shifted, jittered; mixed: of two; sampled: by a model of the set; "
    "diffusion: by a small diffusion model of it; "
    "llm: by a language model."
)
BALANCE_HELP = "none; rare: pictures with rare classes more often; classes: every class as often as every other."
LlmUrl = Annotated[
    str | None, typer.Option(help="Of source llm: an OpenAI-compatible endpoint; its key is read from the environment (CCDIFF_LLM_KEY).")
]
LlmModel = Annotated[
    str | None, typer.Option(help="Of source llm: the endpoint's model, or a local one: a transformers folder, a .gguf file, smollm2.")
]
LlmCaptions = Annotated[
    Path | None, typer.Option(help="Of source llm: a text file of captions, one a line; those of the set unless given.")
]


def shipped(name: str) -> Path:
    from ..generator import SHIPPED, shipped_generator

    return shipped_generator() if name == SHIPPED else Path(name)


def overrides_of(pairs: list[str] | None) -> dict[str, Any]:
    from ..settings import overrides

    return overrides(pairs or [])
