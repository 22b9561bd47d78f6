"""Names of released AeroGen checkpoints (CompVis' of Stable Diffusion 1.x, behind ``model.diffusion_model.``) and ours, both ways.

Notable here:
- some released weights never influence a picture (``UNUSED``): they are read over, and written as zeros, norms as ones.
- autoencoder and text encoder of a checkpoint are those of Stable Diffusion 1.5, which the published training freezes: not read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CCDiffError
from ...models.compvis import diffusers_unet_names, renamed
from .network import AeroGenUNet

UNET, ENCODER = "model.diffusion_model.", "condition_tokenizer."
UNUSED = re.compile(r"\.attn1\.to_[kv]_control\.|^model\.diffusion_model\.maskcrossattention\.(crossattn\.to_[qk]|norm[12])\.")
OTHERS = re.compile(
    r"(first_stage_model|cond_stage_model|model_ema)\.|(betas|alphas_cumprod.*|sqrt_.*|log_one_minus_.*|posterior_.*|logvar|lvlb_weights)$"
)
"""What of a training state is no part of the network: frozen parts, averages that published generation does not use, the noise schedule."""


def released_names(unet: AeroGenUNet) -> dict[str, str]:
    """Our names of a UNet's weights -> the released ones.

    Raises:
        CCDiffError: its levels differ in their number of layers.
    """
    prefixes = {ours: UNET + theirs for theirs, ours in diffusers_unet_names(unet.config).items()}
    prefixes |= {"mask_attention": f"{UNET}maskcrossattention", "layout_encoder": ENCODER.rstrip(".")}
    return {name: renamed(name, prefixes).replace(".processor.", ".") for name in unet.state_dict()}


def unet_config(
    *,
    model_channels: int = 320,
    channel_mult: tuple[int, ...] = (1, 2, 4, 4),
    num_res_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (1, 2, 4),
    num_heads: int = 8,
    context_dim: int = 768,
    in_channels: int = 4,
    out_channels: int = 4,
    sample_size: int | tuple[int, int] = 64,
    transformer_depth: int = 1,
) -> dict[str, Any]:
    """Arguments of ``UNet2DConditionModel`` of CompVis' names of them; the defaults are Stable Diffusion 1.x."""
    attends = [2**level in attention_resolutions for level in range(len(channel_mult))]
    return {
        "sample_size": sample_size,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": tuple(model_channels * m for m in channel_mult),
        "layers_per_block": num_res_blocks,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "attention_head_dim": num_heads,  # diffusers' name for the number of heads
        "cross_attention_dim": context_dim,
        "transformer_layers_per_block": transformer_depth,
    }


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released ``.ckpt``, by their released names.

    Raises:
        CCDiffError: not a file of tensors and plain values alone.
    """
    path = Path(path)
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the released AeroGen checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CCDiffError(
            f"not a file of tensors alone: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=path,
            fix="a checkpoint that needs other objects than tensors is not opened, because it could run programs",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CCDiffError("expected a dictionary of names and tensors, or one under state_dict", where=path)
    return dict(state)


def load_released(unet: AeroGenUNet, released: Mapping[str, Tensor], where: str | Path = "checkpoint") -> list[str]:
    """Load a UNet's weights of their released names; every key must be accounted for.

    Returns:
        the released keys that are not needed.

    Raises:
        CCDiffError: listing all missing and surplus keys and wrong shapes.
    """
    names, own = released_names(unet), unet.state_dict()
    known = set(names.values())
    unused = sorted(k for k in released if k not in known and (UNUSED.search(k) or OTHERS.match(k)))
    missing = sorted(known - set(released))
    surplus = sorted(set(released) - known - set(unused))
    odd = [
        f"{theirs} {tuple(released[theirs].shape)} instead of {tuple(own[ours].shape)}"
        for ours, theirs in names.items()
        if theirs in released and released[theirs].shape != own[ours].shape
    ]
    if missing or surplus or odd:
        lists = [
            f"{kind} ({len(keys)}): {', '.join(keys)}"
            for kind, keys in (("missing keys", missing), ("surplus keys", surplus), ("shapes", odd))
            if keys
        ]
        raise CCDiffError(
            "the weights do not fit the model; " + "; ".join(lists), where=where, fix="give the AeroGen checkpoint and its sizes"
        )
    unet.load_state_dict({ours: released[theirs].to(own[ours].dtype) for ours, theirs in names.items()})
    return unused


def to_released(unet: AeroGenUNet) -> dict[str, Tensor]:
    """A UNet's weights by their released names, with what no picture depends on filled in."""
    names = released_names(unet)
    out = {names[ours]: value for ours, value in unet.state_dict().items()}
    for name, value in list(out.items()):
        if re.search(r"\.attn1\.to_[kv]\.weight$", name):
            out[name.replace(".weight", "_control.weight")] = torch.zeros_like(value)
    mask = UNET + "maskcrossattention."
    out[mask + "crossattn.to_q.weight"] = torch.zeros_like(out[mask + "proj_in.weight"])
    out[mask + "crossattn.to_k.weight"] = torch.zeros_like(out[mask + "crossattn.to_v.weight"])
    for norm in ("norm1", "norm2"):
        out[f"{mask}{norm}.weight"] = torch.ones_like(out[mask + "norm3.weight"])
        out[f"{mask}{norm}.bias"] = torch.zeros_like(out[mask + "norm3.bias"])
    return out


def layout_sizes(released: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of a :class:`LayoutConfig` that a checkpoint's weights show."""
    first = released[ENCODER + "linears.0.weight"]
    return {
        "class_width": len(released[ENCODER + "null_text_feature"]),
        "frequencies": released[ENCODER + "null_position_feature"].numel() // 16,
        "hidden": len(first),
    }
