"""``ccdiff import-checkpoint`` and ``export-checkpoint``: generators from and for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .binding import verb
from .common import Json, Out


@verb(
    app,
    "import-checkpoint",
    epilog="Example: ccdiff import-checkpoint CCDIFF_RELEASE --stable-diffusion SD14 --image-encoder DINOV2_L --out runs/generator",
)
def import_checkpoint(
    released: Annotated[Path, typer.Argument(help="A released checkpoint, folder or file.")],
    out: Out,
    stable_diffusion: Annotated[
        Path | None, typer.Option(help="A Stable Diffusion folder in the diffusers layout, of the version the checkpoint was trained on.")
    ] = None,
    image_encoder: Annotated[Path | None, typer.Option(help="A DINOv2 ViT-L/14 folder; without it no references can be encoded.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Of which method the checkpoint is; by default CC-Diff or CC-Diff++, whichever it is.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line, for checkpoints that know classes by number alone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a released checkpoint into a generator folder."""
    from ..console import finish
    from ..methods import import_checkpoint as run

    made = run(released, out, method=method, stable_diffusion=stable_diffusion, image_encoder=image_encoder, classes=classes)
    finish(
        made,
        as_json=as_json,
        lines=[f"generator: {out}", f"next: ccdiff synthesize --n 100 --checkpoint {out} --layouts PREPARED --out runs/synthetic"],
    )


@verb(app, "export-checkpoint", epilog="Example: ccdiff export-checkpoint runs/generator --out runs/released_form")
def export_checkpoint(
    generator: Annotated[Path, typer.Argument(help="A generator folder.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write a generator's weights as a released checkpoint: what `import-checkpoint` reads."""
    from ..console import finish
    from ..methods import export_checkpoint as run

    files = [str(path) for path in run(generator, out)]
    finish({"out": str(out), "files": files}, as_json=as_json, lines=[f"checkpoint: {', '.join(files)}"])
