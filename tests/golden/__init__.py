"""Golden files: weights, inputs and the outputs that published computations gave for them.  One module for each method: its
``outputs(metadata, tensors)`` runs our modules."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

MODULES = {
    "ccdiff": "ccdiff",
    "ccdiff++": "ccdiff",
    "aerogen": "aerogen",
    "layoutdiffusion": "layoutdiffusion",
    "gligen": "gligen",
    "migc": "migc",
    "diffusionsat": "diffusionsat",
    "txt2img_mhn": "txt2img_mhn",
}
"""Method as the file's metadata name it under ``model``, and the module here that runs it."""


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it, floats in single precision."""
    return {
        name[len(prefix) :]: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
