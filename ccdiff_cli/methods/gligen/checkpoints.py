"""Released GLIGEN checkpoints: the authors' names for a UNet and back.

The authors' file is a pickle whose entry ``model`` is the UNet under CompVis names; its other entries are Stable Diffusion's own
text encoder, autoencoder and noise schedule.  The other source is a diffusers folder, whose names are ours.

Notable here:
- the pickle is opened with ``weights_only=True``.  Files of the training program also hold settings as OmegaConf objects, which
  that refuses.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import CCDiffError
from ...models.compvis import diffusers_unet_names, renamed
from .network import GroundedUNet

_FIX = "give a GLIGEN checkpoint for boxes and text, and the Stable Diffusion version it was made of (1.4)"


def _names(unet: UNet2DConditionModel) -> dict[str, str]:
    """The authors' name of each of the UNet's parameters."""
    back = {ours: theirs for theirs, ours in diffusers_unet_names(unet.config).items()}
    return {name: renamed(name, back) for name in unet.state_dict()}


def to_released(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's weights under the authors' names: what stands in their file under ``model``."""
    names = _names(unet)
    return {names[name]: value for name, value in unet.state_dict().items()}


def load_released(unet: GroundedUNet, weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Load weights under the authors' or diffusers' names, in the precision they are stored in.

    Raises:
        CCDiffError: missing, surplus and wrongly shaped weights, all listed.
    """
    own = unet.state_dict()
    names = {name: name for name in own} if any(name.startswith("down_blocks.") for name in weights) else _names(unet)
    first = weights.get(names["conv_in.weight"])
    if first is not None and first.shape[1:2] != own["conv_in.weight"].shape[1:2]:
        raise CCDiffError(
            f"the UNet takes {first.shape[1]} channels instead of {own['conv_in.weight'].shape[1]}: an inpainting checkpoint?",
            where=where,
            fix=_FIX,
        )
    missing = sorted(theirs for theirs in names.values() if theirs not in weights)
    surplus = sorted(set(weights) - set(names.values()))
    odd = [
        f"{theirs} {tuple(weights[theirs].shape)} instead of {tuple(own[ours].shape)}"
        for ours, theirs in names.items()
        if theirs in weights and weights[theirs].shape != own[ours].shape
    ]
    if lists := [
        f"{title} ({len(keys)}): {', '.join(keys)}"
        for title, keys in (("missing keys", missing), ("surplus keys", surplus), ("shapes", odd))
        if keys
    ]:
        raise CCDiffError("the weights do not fit the model; " + "; ".join(lists), where=where, fix=_FIX)
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(kinds) == 1:
        nn.Module.to(unet, kinds.pop())  # diffusers' own warns of what is not so
    unet.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})


def read_released(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """The UNet's weights of the authors' file or of a safetensors file, and the entries of the former that are not needed.

    Raises:
        CCDiffError: the file does not exist, is damaged, or holds other objects than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the file of the checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), []
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CCDiffError(
            f"the file holds other objects than tensors: {str(error).splitlines()[0] if str(error) else 'unknown'}",
            where=path,
            fix="files of GLIGEN's training program also hold settings; where the file can be trusted, load it there and save "
            "{'model': checkpoint['model']} alone",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise CCDiffError(f"cannot read it: {' '.join(str(error).split())[:300]}", where=path, fix="copy the file again") from error
    if not isinstance(held, Mapping):
        raise CCDiffError(f"expected a dictionary, found {type(held).__name__}", where=path, fix=_FIX)
    inner = held.get("model", held)
    if not isinstance(inner, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in inner.items()):
        raise CCDiffError("expected the UNet's weights under 'model'", where=path, fix=_FIX)
    return dict(inner), sorted(str(key) for key in held if key != "model") if inner is not held else []
