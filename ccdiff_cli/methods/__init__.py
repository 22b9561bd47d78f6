"""Methods: the ways to make pictures from scenes, each a folder of this room, all of the one form of ``method.Method``.

    pipe = load_pipeline("runs/generator")     # the right pipeline, whatever the generator's method
    method = method_of(read_generator(folder)) # what it says of itself

A new method is a folder with a :class:`Method` in its ``__init__`` and an entry in :data:`METHODS`; ``docs/architecture.md`` says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CCDiffError
from ..formats.raw import text_lines
from ..generator import GENERATOR_FILE, read_generator
from .aerogen import AEROGEN
from .ccdiff import CCDIFF, CCDIFFPP
from .diffusionsat import METHOD as DIFFUSIONSAT
from .gligen import METHOD as GLIGEN
from .layoutdiffusion import LAYOUTDIFFUSION
from .method import Base, Given, Method, Places, Stage
from .migc import METHOD as MIGC
from .recipe import DEFAULT_METHOD
from .txt2img_mhn import METHOD as TXT2IMG_MHN

if TYPE_CHECKING:
    from ..models.pipeline import ScenePipeline

__all__ = [
    "METHODS", "Base", "Given", "Method", "Places", "Stage",
    "export_checkpoint", "import_checkpoint", "load_pipeline", "method_named", "method_of", "published_sampling",
]  # fmt: skip

METHODS: dict[str, Method] = {
    method.name: method for method in (CCDIFFPP, CCDIFF, MIGC, GLIGEN, AEROGEN, LAYOUTDIFFUSION, DIFFUSIONSAT, TXT2IMG_MHN)
}
"""Name -> method."""


def method_named(name: str, *, where: str | Path | None = None) -> Method:
    """The method of a name.

    Raises:
        CCDiffError: there is none.
    """
    if name not in METHODS:
        raise CCDiffError(f"there is no method {name!r:.80}", where=where, fix=f"known methods: {', '.join(METHODS)}")
    return METHODS[name]


def method_of(description: Mapping[str, Any], *, where: str | Path | None = None) -> Method:
    """The method of a generator, from what ``ccdiff.json`` holds; generators of earlier versions name theirs elsewhere, or not.

    Raises:
        CCDiffError: it names one that this version does not have.
    """
    recipe, imported = (description.get(key) or {} for key in ("recipe", "imported"))
    group = recipe.get("conditioning")
    earlier = (group.get("variant") if isinstance(group, Mapping) else None) or imported.get("model")
    return method_named(description.get("method") or recipe.get("method") or earlier or DEFAULT_METHOD, where=where)


def published_sampling(folder: str | Path) -> dict[str, Any]:
    """How the method of a generator was published to sample, as arguments of a synthesis.

    Raises:
        CCDiffError: no generator; its method was published with a sampler that a synthesis cannot be told to take.
    """
    method = method_of(read_generator(folder), where=folder)
    if not method.published:
        raise CCDiffError(
            f"{method.title} has no published sampling to switch to",
            where="--published",
            fix="leave the option out, or set `sampling` in a recipe",
        )
    return dict(method.published)


def load_pipeline(folder: str | Path, **kwargs: Any) -> ScenePipeline:
    """The pipeline of a generator folder, of whatever method; ``kwargs`` (``dtype`` and the like) go to its ``from_pretrained``.

    Raises:
        CCDiffError: it is none, or a part of it is missing or damaged.
    """
    path = Path(folder) / GENERATOR_FILE
    description = read_generator(folder) if path.is_file() else {}
    return method_of(description, where=path).pipeline().from_pretrained(str(folder), **kwargs)


def import_checkpoint(
    released: str | Path,
    out: str | Path,
    *,
    method: str | None = None,
    stable_diffusion: str | Path | None = None,
    image_encoder: str | Path | None = None,
    classes: str | Path | None = None,
    head_width: int = 64,
) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        method: whose checkpoint it is; None: CC-Diff++'s or CC-Diff's, whichever the weights show.
        stable_diffusion, image_encoder: folders of what was not released with it.
        classes: file of class names, one a line, where the weights know them by number alone.

    Raises:
        CCDiffError: no such method, nothing was released of it; see the method's own import.
    """
    chosen = method_named(method or DEFAULT_METHOD, where="--method")
    if chosen.import_checkpoint is None:
        raise CCDiffError(f"{chosen.title} has no released checkpoints that are read here", where="--method")
    names: tuple[str, ...] = ()
    if classes is not None:
        names = tuple(line.strip() for line in text_lines(Path(classes)) if line.strip())
    encoder, base = (None if path is None else Path(path) for path in (image_encoder, stable_diffusion))
    return chosen.import_checkpoint(Path(released), Path(out), Given(base, encoder, head_width, names, method))


def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's weights as a released checkpoint of its method; the files written.

    Raises:
        CCDiffError: no generator; its method's weights were never released in another form.
    """
    method = method_of(read_generator(generator), where=generator)
    if method.export_checkpoint is None:
        raise CCDiffError(f"{method.title} has no released form to write", where=generator, fix="give a generator of another method")
    return method.export_checkpoint(Path(generator), Path(out))
