"""Released MIGC checkpoints: the authors' names for the module's parameters and back.

The authors' file is a pickle whose entry ``state_dict`` holds the module alone, under CompVis block names; a copy in safetensors has
diffusers' names.  The UNet itself is Stable Diffusion 1.4's.

Notable here:
- the number of a block is read as the authors' program does, for the two layers a block that Stable Diffusion has; what stands
  between it and ``migc`` is not looked at.
- MIGC++ is another module and refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import CCDiffError

_OURS = re.compile(
    r"(?:unet\.)?((?:down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)|mid_block\.attentions\.0)\.transformer_blocks\.0\.attn2\.processor\.(migc\..+)"
)
_THEIRS = re.compile(r"model\.diffusion_model\.(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:.+\.)?(migc\..+)")
_FIX = "give MIGC_SD14.ckpt, and Stable Diffusion 1.4"


def our_name(name: str) -> str:
    """The UNet's name of a released parameter; one that is no parameter of MIGC stays as it is."""
    if found := _OURS.fullmatch(name):
        return name.removeprefix("unet.")
    if not (found := _THEIRS.fullmatch(name)):
        return name
    side, number, rest = found[1], int(found[2]), found[3]
    if side == "middle_block":
        block = "mid_block.attentions.0"
    elif side == "output_blocks":
        block = f"up_blocks.{number // 3}.attentions.{number % 3}"
    elif number % 3:
        block = f"down_blocks.{number // 3}.attentions.{number % 3 - 1}"
    else:
        return name  # a downsampler, or the first convolution
    return f"{block}.transformer_blocks.0.attn2.processor.{rest}"


def released_name(name: str) -> str:
    """The authors' name of a parameter of the module."""
    found = _OURS.fullmatch(name)
    if found is None:
        raise CCDiffError(f"{name} is no parameter of MIGC that a released checkpoint can hold")
    side, rest = found[1], found[4]
    if side.startswith("mid_block"):
        block = "middle_block.1"
    elif side.startswith("up_blocks"):
        block = f"output_blocks.{3 * int(found[2]) + int(found[3])}.1"
    else:
        block = f"input_blocks.{3 * int(found[2]) + int(found[3]) + 1}.1"
    return f"model.diffusion_model.{block}.transformer_blocks.0.attn2.{rest}"


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The module's weights by our names, of the authors' file or of a safetensors file.

    Raises:
        CCDiffError: the file does not exist, is damaged, holds other objects than tensors, or is of MIGC++.
    """
    path = Path(path)
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the file of the checkpoint")
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CCDiffError(
            f"not a file of tensors alone: {str(error).splitlines()[0] if str(error) else 'unknown'}",
            where=path,
            fix="a checkpoint that needs other objects than tensors is not opened, because it could run programs",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise CCDiffError(f"cannot read it: {' '.join(str(error).split())[:300]}", where=path, fix="copy the file again") from error
    weights = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(weights, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise CCDiffError("expected the module's weights under 'state_dict'", where=path, fix=_FIX)
    if any(".gamma" in name for name in weights) and not any(".sac.conv1." in name for name in weights):
        raise CCDiffError("this is a checkpoint of MIGC++, another module", where=path, fix=_FIX)
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        if our_name(name) in ours:
            raise CCDiffError(f"{our_name(name)} occurs twice, the second time as {name}", where=path, fix=_FIX)
        ours[our_name(name)] = value
    return ours


def places(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Blocks of the UNet that hold the module, from the names."""
    found = {".".join(name.split(".")[: 1 if name.startswith("mid_block") else 2]) for name in weights if _OURS.fullmatch(name)}
    return tuple(sorted(found))


def module_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The module's weights by our names."""
    return {name: value for name, value in unet.state_dict().items() if ".processor.migc." in name}


def load_released(unet: UNet2DConditionModel, weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Load the module's weights by our names into a UNet that has it.

    Raises:
        CCDiffError: missing, surplus and wrongly shaped weights, all listed.
    """
    own = module_weights(unet)
    missing, surplus = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    odd = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(weights))
        if weights[name].shape != own[name].shape
    ]
    if lists := [
        f"{title} ({len(keys)}): {', '.join(keys)}"
        for title, keys in (("missing keys", missing), ("surplus keys", surplus), ("shapes", odd))
        if keys
    ]:
        raise CCDiffError("the weights do not fit the model; " + "; ".join(lists), where=where, fix=_FIX)
    nn.Module.load_state_dict(unet, dict(weights), strict=False)


def to_released(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The module's weights under the authors' names: what stands in their file under ``state_dict``."""
    return {released_name(name): value for name, value in module_weights(unet).items()}
