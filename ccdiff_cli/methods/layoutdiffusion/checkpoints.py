"""Released LayoutDiffusion checkpoints: a plain dictionary of weights under the names that the network here has too.

Early files say ``obj_box_embedding`` for ``obj_bbox_embedding``.  Sizes come from the weights but for what they cannot show: the size of
the pictures, the width of an attention head and the number of the encoder's heads (published: 64 or 32, and 8).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CCDiffError
from .network import LayoutDiffusionUNet

_EARLY, _NOW = "layout_encoder.obj_box_embedding.", "layout_encoder.obj_bbox_embedding."


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released ``.pt``.

    Raises:
        CCDiffError: not a file of tensors alone.
    """
    path = Path(path)
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the released LayoutDiffusion checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CCDiffError(
            f"not a file of tensors alone: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=path,
            fix="a checkpoint that needs other objects than tensors is not opened, because it could run programs",
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CCDiffError("expected a dictionary of names and tensors", where=path)
    return {_NOW + k.removeprefix(_EARLY) if k.startswith(_EARLY) else k: v for k, v in state.items()}


def sizes_of(
    weights: Mapping[str, Tensor],
    *,
    image_size: int,
    head_width: int,
    layout_heads: int = 8,
    slots: int = 10,
    where: str | Path = "checkpoint",
) -> dict[str, Any]:
    """The arguments of :class:`LayoutDiffusionUNet` of a checkpoint's weights.

    Raises:
        CCDiffError: the weights are of no such network.
    """
    try:
        first = weights["input_blocks.0.0.weight"]
        channels = len(weights["time_embed.0.weight"]) // 4
        classes, width = weights["layout_encoder.obj_class_embedding.weight"].shape
        widths: list[int] = []  # of each level's residual blocks; a level's last input block halves the grid
        attends: list[int] = []
        blocks = _input_blocks(weights)
        per_level = _blocks_per_level(weights, blocks)
        levels = (blocks - 1 + 1) // (per_level + 1)
        for level in range(levels):
            at = 1 + level * (per_level + 1)
            widths.append(len(weights[f"input_blocks.{at}.0.out_layers.3.weight"]))
            if f"input_blocks.{at}.1.qkv_projector.weight" in weights:
                attends.append(2**level)
        return {
            "image_size": image_size,
            "in_channels": first.shape[1],
            "model_channels": channels,
            "channel_mult": [w // channels for w in widths],
            "num_res_blocks": per_level,
            "attention_ds": attends,
            "num_head_channels": head_width,
            "classes": classes,
            "slots": slots,
            "layout_width": width,
            "layout_layers": 1 + max(int(k.split(".")[3]) for k in weights if k.startswith("layout_encoder.transform.resblocks.")),
            "layout_heads": layout_heads,
        }
    except (KeyError, ValueError, IndexError) as error:
        raise CCDiffError(
            f"not a LayoutDiffusion network (missing or odd: {error})", where=where, fix="give the released .pt file"
        ) from error


def _input_blocks(weights: Mapping[str, Tensor]) -> int:
    return 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("input_blocks."))


def _blocks_per_level(weights: Mapping[str, Tensor], blocks: int) -> int:
    """Residual blocks of a level: the decoder has one more block a level than the encoder, and one level ends where the grid doubles."""
    up = [
        int(k.split(".")[1])
        for k in weights
        if k.startswith("output_blocks.") and k.endswith(".in_layers.0.weight") and k.split(".")[2] != "0"
    ]
    return min(up) if up else blocks - 1


def load_released(model: LayoutDiffusionUNet, released: Mapping[str, Tensor], where: str | Path = "checkpoint") -> None:
    """Load weights by their released names; every key must be accounted for.

    Raises:
        CCDiffError: listing all missing and surplus keys and wrong shapes.
    """
    own = model.state_dict()
    odd = [
        f"{k} {tuple(released[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted(set(own) & set(released))
        if released[k].shape != own[k].shape
    ]
    missing, surplus = sorted(set(own) - set(released)), sorted(set(released) - set(own))
    if missing or surplus or odd:
        lists = [
            f"{kind} ({len(keys)}): {', '.join(keys)}"
            for kind, keys in (("missing keys", missing), ("surplus keys", surplus), ("shapes", odd))
            if keys
        ]
        raise CCDiffError(
            "the weights do not fit the model; " + "; ".join(lists), where=where, fix="give the LayoutDiffusion checkpoint and its sizes"
        )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in released.items()})


def to_released(model: LayoutDiffusionUNet) -> dict[str, Tensor]:
    """A model's weights by their released names."""
    return dict(model.state_dict())
