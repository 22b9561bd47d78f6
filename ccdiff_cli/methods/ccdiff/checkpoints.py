"""Released CC-Diff and CC-Diff++ checkpoints to generator folders and back.

A released checkpoint is ``unet/diffusion_pytorch_model.safetensors`` (a whole UNet with the conditional generation module) and
``ImageProjModel.pth`` (the resampler).  Everything else comes from a Stable Diffusion 1.4 folder.

Notable here:
- sizes are read from the weights; the width of an attention head cannot be, and is 64 as published unless said.
- the pickle is opened with ``weights_only=True``, so that it can hold tensors and nothing that runs.
- every key must be accounted for: missing and surplus ones are listed, and refused but for the released resampler's unused ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPImageProcessor, CLIPTextModel, Dinov2Model

from ...errors import CCDiffError
from ...files import sha256_file
from ...locks import locked
from ...models.checkpoints import (
    check_empty,
    imported,
    load_weights,
    odd_sizes,
    part,
    picture_size_of,
    read_pickle,
    read_safetensors,
    write_generator,
    write_tensors,
)
from ...models.conditioning import ConditioningConfig, install_conditioning
from ...models.pipeline import PUBLISHED_NEGATIVE_PROMPT
from ...models.resamplers import CoResampler, DualResampler
from .pipeline import CCDiffPipeline

UNET_FILE = Path("unet") / "diffusion_pytorch_model.safetensors"
RESAMPLER_FILE = Path("ImageProjModel.pth")
_UNUSED = re.compile(r"to_latents")  # in released resamplers, never computed with
_FUSION = ".attn2.processor.fusion."


@locked("import-checkpoint", whole=True)
def import_checkpoint(
    released: str | Path,
    stable_diffusion: str | Path,
    out: str | Path,
    *,
    image_encoder: str | Path | None = None,
    head_width: int = 64,
    method: str | None = None,
) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        released: folder with ``unet/diffusion_pytorch_model.safetensors`` and ``ImageProjModel.pth``.
        stable_diffusion: Stable Diffusion 1.4 in the diffusers layout.
        out: the generator folder; must not exist, or be empty.
        image_encoder: folder of the DINOv2 ViT-L/14; None: the generator works without references only.
        head_width: of the resampler's attention.
        method: which of the two it must be; None: whichever it is.

    Returns:
        the generator's description, as in its ``ccdiff.json``; ``unused_keys`` lists what of the checkpoint is not needed.

    Raises:
        CCDiffError: a file or part is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    released, stable_diffusion, out = Path(released), Path(stable_diffusion), Path(out)
    check_empty(out)
    unet_weights = read_safetensors(released / UNET_FILE)
    resampler_weights, unused = _read_resampler(released / RESAMPLER_FILE)

    places = _places(unet_weights)
    if not places:
        raise CCDiffError(
            f"no key holds {_FUSION!r}: a plain UNet", where=released / UNET_FILE, fix="give a released CC-Diff or CC-Diff++ checkpoint"
        )
    variant = "ccdiff++" if any(".fusion.ea_rel." in key for key in unet_weights) else "ccdiff"
    if method is not None and method != variant:
        raise CCDiffError(f"the checkpoint is of {variant}, not of {method}", where=released / UNET_FILE, fix=f"give --method {variant}")
    resampler = _make_resampler(resampler_weights, head_width, released / RESAMPLER_FILE)
    if isinstance(resampler, CoResampler) != (variant == "ccdiff++"):
        raise CCDiffError(
            f"the UNet is of {variant}, the resampler of the other model", where=released, fix="take both files from one checkpoint"
        )
    load_weights(resampler, resampler_weights, released / RESAMPLER_FILE)

    point = next(value for key, value in unet_weights.items() if key.endswith("pos_net.linears_position.0.weight"))
    unet = part(UNet2DConditionModel, stable_diffusion, "unet", config_only=True)
    install_conditioning(unet, ConditioningConfig(variant=variant, places=places, point_width=point.shape[0], heads=8))
    load_weights(unet, unet_weights, released / UNET_FILE)

    text_encoder = part(CLIPTextModel, stable_diffusion, "text_encoder")
    for name, width in (("UNet", unet.config.cross_attention_dim), ("resampler", resampler.config.output_dim)):
        if width != text_encoder.config.hidden_size:
            raise CCDiffError(
                f"text tokens are {text_encoder.config.hidden_size} wide, the {name} expects {width}",
                where=stable_diffusion,
                fix="give the Stable Diffusion version that the checkpoint was trained on (1.4)",
            )
    encoder = processor = None
    if image_encoder is not None:
        encoder = part(Dinov2Model, Path(image_encoder))
        if encoder.config.hidden_size != resampler.config.embedding_dim:
            raise CCDiffError(
                f"image tokens are {encoder.config.hidden_size} wide, the resampler expects {resampler.config.embedding_dim}",
                where=image_encoder,
                fix="give the DINOv2 ViT-L/14 folder",
            )
        # as released: CLIP's preprocessing, at the size of the encoder where one is given, and ImageNet's normalisation on top
        own = part(AutoImageProcessor, Path(image_encoder))
        crop = dict(getattr(own, "crop_size", None) or {"height": 224, "width": 224})
        processor = CLIPImageProcessor(size={"shortest_edge": crop["height"]}, crop_size=crop)

    pipe = CCDiffPipeline(
        vae=part(AutoencoderKL, stable_diffusion, "vae"),
        text_encoder=text_encoder,
        tokenizer=part(AutoTokenizer, stable_diffusion, "tokenizer"),
        unet=unet,
        scheduler=part(EulerDiscreteScheduler, stable_diffusion, "scheduler"),
        resampler=resampler,
        image_encoder=encoder,
        feature_extractor=processor,
        num_inference_steps=50,
        guidance_scale=7.5,
        negative_prompt=PUBLISHED_NEGATIVE_PROMPT,
        renormalise_references=True,
    )
    hashes = {str(name): sha256_file(released / name) for name in (UNET_FILE, RESAMPLER_FILE)}
    description = imported(variant, [hashes, str(stable_diffusion)], picture_size_of(pipe), hashes, unused=unused, places=list(places))
    write_generator(pipe, out, description)
    return description


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's UNet and resampler as a released checkpoint folder.

    Returns:
        the two files written.
    """
    generator, out = Path(generator), Path(out)
    unet, resampler = read_safetensors(generator / UNET_FILE), read_safetensors(generator / "resampler" / UNET_FILE.name)
    write_tensors(unet, out / UNET_FILE, {"format": "pt"})
    write_tensors(resampler, out / RESAMPLER_FILE)
    return [out / UNET_FILE, out / RESAMPLER_FILE]


def _read_resampler(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The resampler's tensors, and the names of those that are never used."""
    weights = read_pickle(path)
    unused = sorted(key for key in weights if _UNUSED.search(key))
    return {key: value for key, value in weights.items() if key not in unused}, unused


def _places(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Blocks of the UNet that hold the module, from the names."""
    found = {".".join(key.split(".")[: 1 if key.startswith("mid_block") else 2]) for key in weights if _FUSION in key}
    return tuple(sorted(found))


def _make_resampler(weights: Mapping[str, Tensor], head_width: int, where: Path) -> CoResampler | DualResampler:
    """An untrained resampler of the sizes of the weights."""

    def count_layers(prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[1] for key in weights if key.startswith(f"{prefix}layers.")})

    with odd_sizes("a resampler of CC-Diff or CC-Diff++", where, "give the released ImageProjModel.pth"):
        dual = "coherent_queries" in weights
        prefix = "fg_resampler." if dual else ""
        dim, embedding = weights[f"{prefix}proj_in.weight"].shape
        inner = weights[f"{prefix}layers.0.0.to_q.weight"].shape[0]
        if inner % head_width:
            raise CCDiffError(f"attention of width {inner} cannot have heads of width {head_width}", where=where)
        sizes: dict[str, Any] = {
            "dim": dim,
            "embedding_dim": embedding,
            "depth": count_layers(prefix),
            "dim_head": head_width,
            "heads": inner // head_width,
            "output_dim": weights[f"{prefix}proj_out.weight"].shape[0],
            "ff_mult": weights[f"{prefix}layers.0.1.1.weight"].shape[0] // dim,
            "point_width": weights["point_net.linears_position.0.weight"].shape[0],
        }
        if not dual:
            return CoResampler(num_queries=weights["latents"].shape[1], **sizes)
        queries = [weights[key].shape[1] for key in ("fg_resampler.latents", "bg_resampler.latents", "coherent_queries")]
        return DualResampler(num_queries=queries, **sizes)
