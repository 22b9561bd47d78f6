"""Released LayoutDiffusion checkpoints: a plain dictionary of weights under the names that the network here has too.

Early files say ``obj_box_embedding`` for ``obj_bbox_embedding``.  Sizes come from the weights but for what they cannot show: the width of
an attention head (64 or 32 as published), the number of the encoder's heads (8), the number of slots (12 for the 180 classes of Visual
Genome, 10 for others), and the size of the pictures: the lowest grid of every published configuration is 8 x 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from ...errors import CCDiffError
from ...files import sha256_file
from ...locks import locked
from ...models.checkpoints import (
    check_empty,
    checkpoint_file,
    imported,
    load_weights,
    numbered,
    odd_sizes,
    part,
    read_pickle,
    read_safetensors,
    write_generator,
    write_tensors,
)
from ..method import Given
from .diffusion import training_schedule
from .network import LayoutDiffusionUNet
from .pipeline import LayoutDiffusionPipeline

_LOWEST_GRID = 8
FIX = "give the released .pt file"
_EARLY, _NOW = "layout_encoder.obj_box_embedding.", "layout_encoder.obj_bbox_embedding."


def with_present_names(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a released file; those of early ones under the later names."""
    return {_NOW + k.removeprefix(_EARLY) if k.startswith(_EARLY) else k: v for k, v in released.items()}


def sizes_of(weights: Mapping[str, Tensor], *, head_width: int, layout_heads: int = 8) -> dict[str, Any]:
    """The arguments of :class:`LayoutDiffusionUNet` of a checkpoint's weights; of others' it raises whatever comes (``odd_sizes``)."""
    first = weights["input_blocks.0.0.weight"]
    channels = len(weights["time_embed.0.weight"]) // 4
    classes, width = weights["layout_encoder.obj_class_embedding.weight"].shape
    widths: list[int] = []  # of each level's residual blocks; a level's last input block halves the grid
    attends: list[int] = []
    blocks = numbered(weights, "input_blocks.")
    per_level = _blocks_per_level(weights, blocks)
    levels = (blocks - 1 + 1) // (per_level + 1)
    for level in range(levels):
        at = 1 + level * (per_level + 1)
        widths.append(len(weights[f"input_blocks.{at}.0.out_layers.3.weight"]))
        if f"input_blocks.{at}.1.qkv_projector.weight" in weights:
            attends.append(2**level)
    return {
        "image_size": _LOWEST_GRID << (levels - 1),
        "in_channels": first.shape[1],
        "model_channels": channels,
        "channel_mult": [w // channels for w in widths],
        "num_res_blocks": per_level,
        "attention_ds": attends,
        "num_head_channels": head_width,
        "classes": classes,
        "slots": 12 if classes == 180 else 10,
        "layout_width": width,
        "layout_layers": numbered(weights, "layout_encoder.transform.resblocks."),
        "layout_heads": layout_heads,
    }


def _blocks_per_level(weights: Mapping[str, Tensor], blocks: int) -> int:
    """Residual blocks of a level: the decoder has one more block a level than the encoder, and one level ends where the grid doubles."""
    up = [
        int(k.split(".")[1])
        for k in weights
        if k.startswith("output_blocks.") and k.endswith(".in_layers.0.weight") and k.split(".")[2] != "0"
    ]
    return min(up) if up else blocks - 1


@locked("import-checkpoint", whole=True)
def import_checkpoint(released: str | Path, out: str | Path, given: Given) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        released: the ``.pt`` file, or a folder with one.
        out: the generator folder; must not exist, or be empty.
        given: ``classes``: the names of classes 1 to K - 2; ``stable_diffusion``: a folder with a ``vae``, for a network of latents.

    Raises:
        CCDiffError: a file or part is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    out = Path(out)
    check_empty(out)
    path = checkpoint_file(Path(released), "*.pt")
    weights = with_present_names(read_pickle(path))
    with odd_sizes("a LayoutDiffusion network", path, FIX):
        sizes = sizes_of(weights, head_width=given.head_width)
    if len(given.classes) + 2 != sizes["classes"]:
        raise CCDiffError(
            f"the checkpoint knows {sizes['classes'] - 2} classes by number, {len(given.classes)} names were given",
            where=path,
            fix="give the names of its classes, in its order (the first is number 1)",
        )
    with odd_sizes("a LayoutDiffusion network", path, FIX):
        model = LayoutDiffusionUNet(**sizes, class_names=given.classes)
    load_weights(model, weights, path)
    vae = None
    if sizes["in_channels"] != 3:
        if given.stable_diffusion is None:
            raise CCDiffError("the checkpoint denoises latents", where=path, fix="give a folder with their `vae` by --stable-diffusion")
        vae = part(AutoencoderKL, given.stable_diffusion, "vae")
    pipe = LayoutDiffusionPipeline(unet=model, scheduler=training_schedule(), vae=vae)
    digest = sha256_file(path)
    identity = [digest, str(given.stable_diffusion) if vae is not None else None]
    description = imported("layoutdiffusion", identity, sizes["image_size"] * pipe.vae_scale_factor, {path.name: digest})
    description |= {"method": "layoutdiffusion", "classes": list(given.classes)}
    write_generator(pipe, out, description)
    return description


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's network as a released ``.pt``; the file written."""
    target = Path(out) / "layoutdiffusion.pt"
    write_tensors(read_safetensors(Path(generator) / "unet" / "diffusion_pytorch_model.safetensors"), target)
    return [target]
