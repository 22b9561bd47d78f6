"""What a user may decide about ``inspect``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..options import Option
from ..prepare.options import SourceOptions


class InspectOptions(SourceOptions):
    """How a set is looked through; how it is read, where it is a raw one."""

    samples: Annotated[int, Option(first=True)] = Field(24, ge=1, le=10_000, description="How many pictures the page shows.")
