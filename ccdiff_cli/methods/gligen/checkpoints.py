"""Released GLIGEN checkpoints: the authors' names for a UNet and back.

The authors' file is a pickle whose entry ``model`` is the UNet under CompVis names; its other entries are Stable Diffusion's own
text encoder, autoencoder and noise schedule.  The other source is a diffusers folder, whose names are ours.

Notable here:
- the pickle is opened with ``weights_only=True``.  Files of the training program also hold settings as OmegaConf objects, which
  that refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from ...errors import CCDiffError
from ...files import read_json, sha256_file
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
from ...models.compvis import diffusers_unet_names, renamed
from .network import GLIGENConfig, GroundedUNet, grounded_like
from .pipeline import GLIGENPipeline

RELEASED_FILE = "diffusion_pytorch_model.bin"
_FOLDER_FILE = "diffusion_pytorch_model.safetensors"
_NEGATIVE_PROMPT = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality"
)
_FIX = "give a GLIGEN checkpoint for boxes and text, and the Stable Diffusion version it was made of (1.4)"


def _names(unet: UNet2DConditionModel) -> dict[str, str]:
    """The authors' name of each of the UNet's parameters."""
    back = {ours: theirs for theirs, ours in diffusers_unet_names(unet.config).items()}
    return {name: renamed(name, back) for name in unet.state_dict()}


def to_released(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's weights under the authors' names: what stands in their file under ``model``."""
    names = _names(unet)
    return {names[name]: value for name, value in unet.state_dict().items()}


def load_released(unet: GroundedUNet, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load weights under the authors' or diffusers' names, in the precision they are stored in.

    Raises:
        CCDiffError: missing, surplus and wrongly shaped weights, all listed.
    """
    names = diffusers_unet_names(unet.config)
    ours = {renamed(name, names): value for name, value in weights.items()}
    first, own = ours.get("conv_in.weight"), unet.config.in_channels
    if first is not None and first.shape[1:2] != (own,):
        raise CCDiffError(f"the UNet takes {first.shape[1]} channels instead of {own}: an inpainting checkpoint?", where=where, fix=_FIX)
    load_weights(unet, ours, where)


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The UNet's weights of the authors' file or of a safetensors file.

    Raises:
        CCDiffError: the file does not exist, is damaged, or holds other objects than tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        return read_pickle(path, "model")
    except CCDiffError as error:
        if "tensors alone" not in str(error.what):
            raise
        raise CCDiffError(
            error.what,
            where=path,
            fix="files of GLIGEN's training program also hold settings, which are not opened because they could run programs: "
            "where the file can be trusted, load it there and save {'model': checkpoint['model']} alone",
        ) from error


@locked("import-checkpoint", whole=True)
def import_checkpoint(released: str | Path, stable_diffusion: str | Path, out: str | Path) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint for boxes and text.

    Args:
        released: the authors' file, a folder that holds it, or a folder in the diffusers layout.
        stable_diffusion: Stable Diffusion 1.4 in the diffusers layout; a released folder in that layout serves, too.
        out: the generator folder; must not exist, or be empty.

    Returns:
        the generator's description, as in its ``ccdiff.json``.

    Raises:
        CCDiffError: a file or part is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    released, out = Path(released), Path(out)
    check_empty(out)
    whole = (released / "unet").is_dir()
    base = Path(stable_diffusion)
    if whole:
        path = released / "unet" / _FOLDER_FILE
        kind = read_json(released / "unet" / "config.json").get("attention_type")
        if kind != "gated":
            raise CCDiffError(f"attention_type is {kind!r} instead of 'gated'", where=released / "unet" / "config.json", fix=_FIX)
    else:
        path = released / RELEASED_FILE if released.is_dir() else released
    weights = read_released(path)
    unet = grounded_like(part(UNet2DConditionModel, base, "unet", config_only=True).config, GLIGENConfig())
    load_released(unet, weights, path)
    pipe = GLIGENPipeline(
        vae=part(AutoencoderKL, base, "vae"),
        text_encoder=part(CLIPTextModel, base, "text_encoder"),
        tokenizer=part(AutoTokenizer, base, "tokenizer"),
        unet=unet,
        scheduler=part(PNDMScheduler, base, "scheduler"),
        num_inference_steps=50,
        guidance_scale=7.5,
        negative_prompt=_NEGATIVE_PROMPT,
    )
    hashes = {path.name: sha256_file(path)}
    description = imported("gligen", ["gligen", hashes, str(base)], picture_size_of(pipe), hashes)
    description["method"] = "gligen"
    write_generator(pipe, out, description)
    return description


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's UNet as the authors' file, without their copies of Stable Diffusion's other parts; the file written."""
    unet, target = part(GroundedUNet, Path(generator), "unet"), Path(out) / RELEASED_FILE
    write_tensors({"model": to_released(unet)}, target)
    return [target]
