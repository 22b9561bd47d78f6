"""Released MIGC checkpoints: the authors' names for the module's parameters and back.

The authors' file is a pickle whose entry ``state_dict`` holds the module alone, under CompVis block names; a copy in safetensors has
diffusers' names.  The UNet itself is Stable Diffusion 1.4's.

Notable here:
- the number of a block is read as the authors' program does, for the two layers a block that Stable Diffusion has; what stands
  between it and ``migc`` is not looked at.
- MIGC++ is another module and refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from ...errors import CCDiffError
from ...files import sha256_file
from ...locks import locked
from ...models.checkpoints import (
    check_empty,
    imported,
    load_weights,
    part,
    picture_size_of,
    read_pickle,
    read_safetensors,
    write_generator,
    write_tensors,
)
from ...models.pipeline import PUBLISHED_NEGATIVE_PROMPT
from .network import MIGCConfig, MIGCUNet, install_migc
from .pipeline import MIGCPipeline

RELEASED_FILE = "MIGC_SD14.ckpt"

_OURS = re.compile(
    r"(?:unet\.)?((?:down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)|mid_block\.attentions\.0)\.transformer_blocks\.0\.attn2\.processor\.(migc\..+)"
)
_THEIRS = re.compile(r"model\.diffusion_model\.(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:.+\.)?(migc\..+)")
_CHANNELS, _SLOTS, _POSITION = "sac.cbam1.ChannelGate.mlp.1", "sac.cbam2.ChannelGate.mlp.1", "pos_net.linears_position.0"
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
    weights = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path, "state_dict")
    if any(".gamma" in name for name in weights) and not any(".sac.conv1." in name for name in weights):
        raise CCDiffError("this is a checkpoint of MIGC++, another module", where=path, fix=_FIX)
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        if our_name(name) in ours:
            raise CCDiffError(f"{our_name(name)} occurs twice, the second time as {name}", where=path, fix=_FIX)
        ours[our_name(name)] = value
    return ours


def config_of(weights: Mapping[str, Tensor], where: Path | str) -> MIGCConfig:
    """Places and sizes of the module, from its weights by our names.

    Raises:
        CCDiffError: they are of no such module.
    """
    places = {".".join(name.split(".")[: 1 if name.startswith("mid_block") else 2]) for name in weights if _OURS.fullmatch(name)}

    def shape(end: str) -> tuple[int, ...]:
        return next((tuple(value.shape) for name, value in weights.items() if name.endswith(end) and value.ndim == 2 and value.numel()), ())

    channels, slots, position = (shape(f"migc.{end}.weight") for end in (_CHANNELS, _SLOTS, _POSITION))
    if not (places and channels and slots and position):
        raise CCDiffError("no weights of MIGC's module", where=where, fix=_FIX)
    return MIGCConfig(
        places=tuple(sorted(places)), slots=slots[0], position_width=position[0], reduction=max(1, channels[1] // channels[0])
    )


def module_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The module's weights by our names."""
    return {name: value for name, value in unet.state_dict().items() if ".processor.migc." in name}


def to_released(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The module's weights under the authors' names: what stands in their file under ``state_dict``."""
    return {released_name(name): value for name, value in module_weights(unet).items()}


def load_released(unet: UNet2DConditionModel, weights: Mapping[str, Tensor], where: Path) -> None:
    """Put the module into a plain UNet, with weights by our names.

    Raises:
        CCDiffError: missing, surplus and wrongly shaped weights, all listed.
    """
    plain = dict(unet.state_dict())
    install_migc(unet, config_of(weights, where))
    load_weights(unet, {**plain, **weights}, where)


@locked("import-checkpoint", whole=True)
def import_checkpoint(released: str | Path, stable_diffusion: str | Path, out: str | Path) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        released: ``MIGC_SD14.ckpt``, its copy in safetensors, or a folder that holds one of them.
        stable_diffusion: Stable Diffusion 1.4, or another 1.x, in the diffusers layout.
        out: the generator folder; must not exist, or be empty.

    Returns:
        the generator's description, as in its ``ccdiff.json``.

    Raises:
        CCDiffError: a file or part is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    path, out = _file_of(Path(released)), Path(out)
    check_empty(out)
    base = Path(stable_diffusion)
    weights = read_released(path)
    unet = part(UNet2DConditionModel, base, "unet")
    load_released(unet, weights, path)
    pipe = MIGCPipeline(
        vae=part(AutoencoderKL, base, "vae"),
        text_encoder=part(CLIPTextModel, base, "text_encoder"),
        tokenizer=part(AutoTokenizer, base, "tokenizer"),
        unet=unet,
        scheduler=part(EulerDiscreteScheduler, base, "scheduler"),
        num_inference_steps=50,
        guidance_scale=7.5,
        negative_prompt=PUBLISHED_NEGATIVE_PROMPT,
    )
    hashes = {path.name: sha256_file(path)}
    description = imported(
        "migc", ["migc", hashes, str(stable_diffusion)], picture_size_of(pipe), hashes, places=list(unet.config.migc["places"])
    )
    description["method"] = "migc"
    write_generator(pipe, out, description)
    return description


def _file_of(released: Path) -> Path:
    if not released.is_dir():
        return released
    found = sorted(p for p in released.iterdir() if p.suffix in (".ckpt", ".safetensors"))
    found = [p for p in found if p.name == RELEASED_FILE] or found
    if len(found) != 1:
        raise CCDiffError(
            f"expected one checkpoint, found {', '.join(p.name for p in found) or 'none'}",
            where=released,
            fix=f"give {RELEASED_FILE} itself",
        )
    return found[0]


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's module as the authors' file; the file written.  Its UNet must be Stable Diffusion's to serve there."""
    unet, target = part(MIGCUNet, Path(generator), "unet"), Path(out) / RELEASED_FILE
    write_tensors({"state_dict": to_released(unet)}, target)
    return [target]
