"""Frozen encoders leave the memory once what they see is cached; they are loaded again for validation pictures and for the generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..generator import SHIPPED
from ..models.pipeline import ScenePipeline
from ..retrieval import OWN
from .parts import Work


class Resting:
    """The encoders of a pipeline that can be loaded again as they are: from elsewhere, whole, and taught nothing.

    Attributes:
        names: of these parts.
    """

    def __init__(self, work: Work, pipe: ScenePipeline) -> None:
        self.pipe, self.sources, self.device = pipe, work.sources, work.accelerator.device
        enc = work.recipe.encoders
        taught = enc is not None and enc.text_source == SHIPPED  # the words of the set
        found = {name: getattr(pipe, name, None) for name in ("text_encoder", "image_encoder") if name in work.sources}
        self.names = [
            name
            for name, part in found.items()
            if work.recipe.retrieval != OWN and type(part) is self.sources[name].kind and not (taught and name == "text_encoder")
        ]

    def leave(self) -> None:
        """Out of the memory."""
        self.pipe.register_modules(**dict.fromkeys(self.names))

    def come_back(self) -> None:
        """Loaded again, where they had left."""
        for name in self.names:
            if getattr(self.pipe, name) is None:
                part = self.sources[name].load().eval().requires_grad_(False).to(self.device)
                self.pipe.register_modules(**{name: part})

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Here for a while."""
        self.come_back()
        try:
            yield
        finally:
            self.leave()
