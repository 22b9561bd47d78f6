"""Inner levels of a trained denoiser as the start of another one, whose latents or widths differ.

Levels are counted from the innermost: a UNet of three levels takes the three innermost of one of four.  A tensor of the same shape is
copied.  Where the new one is larger, what is there is put into its first rows and columns and the columns that read the rest start at zero,
so that what was copied computes what it did, up to normalisation, whose groups grow with the width.  The columns of a layer on the way up
that reads two things, what comes from below and what was kept on the way down, are those of each by itself.  The ends (first and last
convolution, normalisation before the last) belong to the latents: they are new where these differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

_ENDS = ("conv_in.", "conv_out.", "conv_norm_out.")
_TWO = re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(?:norm1\.|(?:conv1|conv_shortcut)\.weight)")


def transplant(target: nn.Module, source: nn.Module, *, shift: int = 0, same_latents: bool = False) -> dict[str, list[str]]:
    """Copy what fits from ``source`` into ``target``, in place.

    Args:
        shift: how many levels ``source`` has more than ``target``; ``down_blocks.k`` of the target is ``down_blocks.(k + shift)`` there.
        same_latents: the ends are copied, too.

    Returns:
        names of the target's tensors: "copied", "in part" and "new".
    """
    found, mine = source.state_dict(), target.state_dict()
    told: dict[str, list[str]] = {"copied": [], "in part": [], "new": []}
    with torch.no_grad():
        for name, tensor in mine.items():
            there = found.get(re.sub(r"^down_blocks\.(\d+)", lambda m: f"down_blocks.{int(m[1]) + shift}", name))
            if there is None or (name.startswith(_ENDS) and not same_latents):
                told["new"].append(name)
            else:
                told[_take(name, tensor, there, (_from_below(name, mine), _from_below(name, found)))].append(name)
    return told


def _take(name: str, tensor: torch.Tensor, there: torch.Tensor, below: tuple[int, int]) -> str:
    """Copy one tensor; ``below``: how many of the channels that it reads come from below, in it and in ``there``."""
    if there.dim() != tensor.dim():
        return "new"
    if there.shape == tensor.shape and below[0] == below[1]:
        tensor.copy_(there)
        return "copied"
    if any(a > b for a, b in zip(there.shape, tensor.shape, strict=True)) or there.shape[2:] != tensor.shape[2:] or below[1] > below[0]:
        return "new"
    read = 0 if tensor.dim() == 1 else 1
    more, known = tensor.shape[read] - below[0], there.shape[read] - below[1]
    if more < known:
        return "new"
    rows, columns = there.shape[0], there.shape[read]
    if tensor.dim() == 1:
        tensor[: below[1]] = there[: below[1]]
        tensor[below[0] : below[0] + known] = there[below[1] :]
        return "in part"
    tensor[:rows] = 0
    if name == "time_embedding.linear_1.weight" and tensor.shape[1] % columns == 0:
        # sines and cosines of more frequencies: every second (third, ...) one is one of the old
        tensor[:rows, :: tensor.shape[1] // columns] = there
    else:
        tensor[:rows, : below[1]] = there[:, : below[1]]
        tensor[:rows, below[0] : below[0] + known] = there[:, below[1] :]
    return "in part"


def _from_below(name: str, weights: Mapping[str, torch.Tensor]) -> int:
    """How many channels a layer on the way up reads from below; 0 of every other layer."""
    if not (found := _TWO.match(name)):
        return 0
    block, layer = int(found[1]), int(found[2])
    giver = f"up_blocks.{block}" if layer else f"up_blocks.{block - 1}" if block else "mid_block"
    return len(weights.get(f"{giver}.resnets.0.conv2.weight", ()))
