"""Inner levels of a trained denoiser as the start of another one, whose latents or widths differ.

Levels are counted from the innermost: a UNet of three levels takes the three innermost of one of four.  A tensor of the same shape is
copied.  Where the new one is larger, what is there is put into its first rows and columns and the columns that read the rest start at zero,
so that what was copied computes what it did.  The ends (first and last convolution, normalisation before the last) belong to the latents
and are new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

_ENDS = ("conv_in.", "conv_out.", "conv_norm_out.")


def transplant(target: nn.Module, source: nn.Module, *, shift: int = 0) -> dict[str, list[str]]:
    """Copy what fits from ``source`` into ``target``, in place.

    Args:
        shift: how many levels ``source`` has more than ``target``; ``down_blocks.k`` of the target is ``down_blocks.(k + shift)`` there.

    Returns:
        names of the target's tensors: "copied", "in part" and "new".
    """
    found = source.state_dict()
    told: dict[str, list[str]] = {"copied": [], "in part": [], "new": []}
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            told[_take(name, tensor, found, shift)].append(name)
    return told


def _take(name: str, tensor: torch.Tensor, found: Mapping[str, torch.Tensor], shift: int) -> str:
    there = found.get(re.sub(r"^down_blocks\.(\d+)", lambda m: f"down_blocks.{int(m[1]) + shift}", name))
    if there is None or name.startswith(_ENDS) or there.dim() != tensor.dim():
        return "new"
    if there.shape == tensor.shape:
        tensor.copy_(there)
        return "copied"
    if any(a > b for a, b in zip(there.shape, tensor.shape, strict=True)) or there.shape[2:] != tensor.shape[2:]:
        return "new"
    rows = there.shape[0]
    if tensor.dim() == 1:
        tensor[:rows] = there
        return "in part"
    columns = there.shape[1]
    tensor[:rows] = 0
    if name == "time_embedding.linear_1.weight" and tensor.shape[1] % columns == 0:
        # sines and cosines of more frequencies: every second (third, ...) one is one of the old
        tensor[:rows, :: tensor.shape[1] // columns] = there
    else:
        tensor[:rows, :columns] = there
    return "in part"
