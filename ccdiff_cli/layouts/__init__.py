"""Where new layouts come from: a set's own labels as they are, augmented or mixed, a sampler fitted to them, a diffusion model of
them, or a language model.

* A layout is a :class:`.scene.Scene` without a picture; its ``provenance["layout"]`` says which picture it came from and what was changed.
* Layout k depends on (set, seed, k) alone: asking for more layouts never changes the first ones.
* A source is a function ``(scenes, rngs) -> scenes``, one random stream a layout, made for a pool of layouts by an entry of
  :data:`.planning.SOURCES`; every source is given the same seeded order of pictures.
* NOTE: outlines (``Instance.mask``) and what the data set said of an object (``Instance.extra``) are true of the real object only; they
  do not enter a planned layout.

``planning`` makes them, by balance "misses" as often as ``misses`` reads; ``augment``, ``sampler``, ``diffusion`` and ``llm`` are the
sources, ``repair`` what they share, ``show`` and ``statistics`` hold them beside real ones.
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import LayoutOptions

if TYPE_CHECKING:
    from .llm import Writer, writer_of
    from .planning import SOURCES, layouts_of_set, plan_layouts
else:
    __getattr__ = offered(__name__, planning="SOURCES layouts_of_set plan_layouts", llm="Writer writer_of")

__all__ = ["SOURCES", "LayoutOptions", "Writer", "layouts_of_set", "plan_layouts", "writer_of"]
