"""Names of a Stable Diffusion UNet's parameters in the CompVis layout, in which most authors release weights.

Everything inside an attention (its norm, projections and transformer blocks) has the same name on both sides, so the table is of
attentions, residual layers and samplers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CCDiffError

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def diffusers_unet_names(unet_config: Mapping[str, Any]) -> dict[str, str]:
    """CompVis prefixes and diffusers' prefixes of a UNet's parameters, for :func:`renamed`.

    Args:
        unet_config: the configuration of a ``UNet2DConditionModel``.

    Raises:
        CCDiffError: the blocks differ in their number of layers.
    """
    layers, downs, ups = (unet_config[key] for key in ("layers_per_block", "down_block_types", "up_block_types"))
    if not isinstance(layers, int):
        raise CCDiffError(f"a UNet of {layers} layers a block has no CompVis names", fix="take a UNet of Stable Diffusion")
    names = dict(_ENDS)

    def resnet(theirs: str, ours: str) -> None:
        names.update({f"{theirs}.{a}": f"{ours}.{b}" for a, b in _RESNET.items()})

    for i, kind in enumerate(downs):
        first = 1 + i * (layers + 1)
        for j in range(layers):
            resnet(f"input_blocks.{first + j}.0", f"down_blocks.{i}.resnets.{j}")
            if "Attn" in kind:
                names[f"input_blocks.{first + j}.1"] = f"down_blocks.{i}.attentions.{j}"
        if i + 1 < len(downs):
            names[f"input_blocks.{first + layers}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
    resnet("middle_block.0", "mid_block.resnets.0")
    names["middle_block.1"] = "mid_block.attentions.0"
    resnet("middle_block.2", "mid_block.resnets.1")
    for i, kind in enumerate(ups):
        first = i * (layers + 1)
        for j in range(layers + 1):
            resnet(f"output_blocks.{first + j}.0", f"up_blocks.{i}.resnets.{j}")
            if "Attn" in kind:
                names[f"output_blocks.{first + j}.1"] = f"up_blocks.{i}.attentions.{j}"
        if i + 1 < len(ups):
            names[f"output_blocks.{first + layers}.{2 if 'Attn' in kind else 1}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    return names


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """A parameter's name with the part that is a key of ``prefixes`` replaced; as it is where none is."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:length])
        if head in prefixes:
            return ".".join([prefixes[head], *parts[length:]])
    return name
