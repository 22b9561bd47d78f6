"""Released AeroGen checkpoints to generator folders and back; CompVis' names of Stable Diffusion 1.x behind ``model.diffusion_model.``.

Notable here:
- class vectors are projected text features of CLIP ViT-L/14, whose projection neither Stable Diffusion nor the checkpoint holds: the
  folder of the CLIP is asked for.  The authors' own table of 20 vectors is a file of their program, its prompt is not stated.
- some released weights never influence a picture (``UNUSED``): they are read over, and written as zeros, norms as ones.
- autoencoder and text encoder of a checkpoint are those of Stable Diffusion 1.5, which the published training freezes: not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from ...errors import CCDiffError
from ...files import sha256_file
from ...locks import locked
from ...models.accounting import account_for
from ...models.checkpoints import check_empty, checkpoint_file, imported, part, picture_size_of, read_pickle, write_generator, write_tensors
from ...models.compvis import diffusers_unet_names, renamed
from ...sources import Source
from ..method import Given
from .network import AeroGenUNet
from .pipeline import AeroGenPipeline, projecting_text_encoder
from .sampling import ddim

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


# wide: CompVis' names of a UNet's sizes
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
    needed = {k: v for k, v in released.items() if k not in set(unused)}
    account_for({theirs: own[ours] for ours, theirs in names.items()}, needed, where, "give the AeroGen checkpoint and its sizes")
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


def layout_sizes(released: Mapping[str, Tensor], where: str | Path = "checkpoint") -> dict[str, int]:
    """The sizes of a :class:`LayoutConfig` that a checkpoint's weights show."""
    needed = [ENCODER + name for name in ("linears.0.weight", "null_text_feature", "null_position_feature")]
    if missing := [name for name in needed if name not in released]:
        raise CCDiffError(f"no AeroGen checkpoint: {missing[0]} is missing", where=where, fix="give the released AeroGen checkpoint")
    first = released[ENCODER + "linears.0.weight"]
    return {
        "class_width": len(released[ENCODER + "null_text_feature"]),
        "frequencies": released[ENCODER + "null_position_feature"].numel() // 16,
        "hidden": len(first),
    }


@locked("import-checkpoint", whole=True)
def import_checkpoint(released: str | Path, out: str | Path, given: Given) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        released: the ``.ckpt`` file, or a folder with one.
        out: the generator folder; must not exist, or be empty.
        given: ``stable_diffusion``: Stable Diffusion 1.5 in the diffusers layout; ``image_encoder``: the folder of CLIP ViT-L/14.

    Returns:
        the generator's description; ``unused_keys`` lists what of the checkpoint is not needed.

    Raises:
        CCDiffError: a file or part is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    out = Path(out)
    check_empty(out)
    if given.stable_diffusion is None:
        raise CCDiffError("AeroGen stands on Stable Diffusion 1.5", fix="give its folder by --stable-diffusion")
    if given.image_encoder is None:
        raise CCDiffError("AeroGen's class vectors need the text projection of CLIP ViT-L/14", fix="give its folder by --image-encoder")
    path = checkpoint_file(Path(released), "*.ckpt")
    weights = read_pickle(path, "state_dict")
    base = part(UNet2DConditionModel, given.stable_diffusion, "unet", config_only=True)
    sizes = {key: value for key, value in base.config.items() if not key.startswith("_")}
    unet = AeroGenUNet(layout=layout_sizes(weights, path), **sizes)
    unused = load_released(unet, weights, path)
    unet.eval()
    text_encoder = part(CLIPTextModel, given.stable_diffusion, "text_encoder")
    projecting = projecting_text_encoder(Source(str(given.image_encoder), where="--image-encoder"), text_encoder)
    for what, width, expected in (
        ("text tokens", text_encoder.config.hidden_size, unet.config.cross_attention_dim),
        ("class vectors", projecting.config.projection_dim, unet.layout_config.class_width),
    ):
        if width != expected:
            raise CCDiffError(
                f"{what} are {width} wide, the network expects {expected}",
                where=given.stable_diffusion,
                fix="give Stable Diffusion 1.5 and the CLIP of its text encoder",
            )
    pipe = AeroGenPipeline(
        vae=part(AutoencoderKL, given.stable_diffusion, "vae"),
        text_encoder=projecting,
        tokenizer=part(AutoTokenizer, given.stable_diffusion, "tokenizer"),
        unet=unet,
        scheduler=ddim(),
    )
    digest = sha256_file(path)
    identity = [digest, str(given.stable_diffusion), str(given.image_encoder)]
    description = imported("aerogen", identity, picture_size_of(pipe), {path.name: digest}, unused=unused)
    description |= {"method": "aerogen", "recipe": {"caption_style": "phrases"}}  # the captions that the weights know
    write_generator(pipe, out, description)
    return description


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's UNet as a released ``.ckpt``; the file written."""
    generator, target = Path(generator), Path(out) / "aerogen.ckpt"
    unet = part(AeroGenUNet, generator, "unet")
    write_tensors({"state_dict": to_released(unet)}, target)
    return [target]
