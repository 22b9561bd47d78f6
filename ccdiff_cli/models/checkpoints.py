"""Released CC-Diff and CC-Diff++ checkpoints to generator folders and back.

A released checkpoint is ``unet/diffusion_pytorch_model.safetensors`` (a whole UNet with the conditional generation module) and
``ImageProjModel.pth`` (the resampler).  Everything else comes from a Stable Diffusion 1.4 folder.

Notable here:
- sizes are read from the weights; the width of an attention head cannot be, and is 64 as published unless said.
- the pickle is opened with ``weights_only=True``, so that it can hold tensors and nothing that runs.
- every key must be accounted for: missing and surplus ones are listed, and refused but for the released resampler's unused ones.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessor, CLIPTextModel

from .. import __version__
from ..errors import CCDiffError, os_errors
from ..files import content_key, sha256_file, write_json
from ..locks import locked
from .conditioning import ConditioningConfig, install_conditioning
from .pipeline import PUBLISHED_NEGATIVE_PROMPT, CCDiffPipeline
from .resamplers import CoResampler, DualResampler

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
) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        released: folder with ``unet/diffusion_pytorch_model.safetensors`` and ``ImageProjModel.pth``.
        stable_diffusion: Stable Diffusion 1.4 in the diffusers layout.
        out: the generator folder; must not exist, or be empty.
        image_encoder: folder of the DINOv2 ViT-L/14; None: the generator works without references only.
        head_width: of the resampler's attention.

    Returns:
        the generator's description, as in its ``ccdiff.json``; ``unused_keys`` lists what of the checkpoint is not needed.

    Raises:
        CCDiffError: a file or part is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    released, stable_diffusion, out = Path(released), Path(stable_diffusion), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CCDiffError("the output folder is not empty", where=out, fix="choose another --out folder")
    unet_weights = _read_safetensors(released / UNET_FILE)
    resampler_weights, unused = _read_resampler(released / RESAMPLER_FILE)

    places = _places(unet_weights)
    if not places:
        raise CCDiffError(
            f"no key holds {_FUSION!r}: a plain UNet", where=released / UNET_FILE, fix="give a released CC-Diff or CC-Diff++ checkpoint"
        )
    variant = "ccdiff++" if any(".fusion.ea_rel." in key for key in unet_weights) else "ccdiff"
    resampler = _make_resampler(resampler_weights, head_width, released / RESAMPLER_FILE)
    if isinstance(resampler, CoResampler) != (variant == "ccdiff++"):
        raise CCDiffError(
            f"the UNet is of {variant}, the resampler of the other model", where=released, fix="take both files from one checkpoint"
        )
    _load_weights(resampler, resampler_weights, released / RESAMPLER_FILE)

    point = next(value for key, value in unet_weights.items() if key.endswith("pos_net.linears_position.0.weight"))
    unet = _part(UNet2DConditionModel, stable_diffusion, "unet", config_only=True)
    install_conditioning(unet, ConditioningConfig(variant=variant, places=places, point_width=point.shape[0], heads=8))
    _load_weights(unet, unet_weights, released / UNET_FILE)

    text_encoder = _part(CLIPTextModel, stable_diffusion, "text_encoder")
    for name, width in (("UNet", unet.config.cross_attention_dim), ("resampler", resampler.config.output_dim)):
        if width != text_encoder.config.hidden_size:
            raise CCDiffError(
                f"text tokens are {text_encoder.config.hidden_size} wide, the {name} expects {width}",
                where=stable_diffusion,
                fix="give the Stable Diffusion version that the checkpoint was trained on (1.4)",
            )
    encoder = processor = None
    if image_encoder is not None:
        encoder = _part(AutoModel, Path(image_encoder))
        if encoder.config.hidden_size != resampler.config.embedding_dim:
            raise CCDiffError(
                f"image tokens are {encoder.config.hidden_size} wide, the resampler expects {resampler.config.embedding_dim}",
                where=image_encoder,
                fix="give the DINOv2 ViT-L/14 folder",
            )
        # as released: CLIP's preprocessing, at the size of the encoder where one is given, and ImageNet's normalisation on top
        own = _part(AutoImageProcessor, Path(image_encoder))
        crop = dict(getattr(own, "crop_size", None) or {"height": 224, "width": 224})
        processor = CLIPImageProcessor(size={"shortest_edge": crop["height"]}, crop_size=crop)

    pipe = CCDiffPipeline(
        vae=_part(AutoencoderKL, stable_diffusion, "vae"),
        text_encoder=text_encoder,
        tokenizer=_part(AutoTokenizer, stable_diffusion, "tokenizer"),
        unet=unet,
        scheduler=_part(EulerDiscreteScheduler, stable_diffusion, "scheduler"),
        resampler=resampler,
        image_encoder=encoder,
        feature_extractor=processor,
        num_inference_steps=50,
        guidance_scale=7.5,
        negative_prompt=PUBLISHED_NEGATIVE_PROMPT,
        renormalise_references=True,
    )
    hashes = {str(name): sha256_file(released / name) for name in (UNET_FILE, RESAMPLER_FILE)}
    sample = unet.config.sample_size
    description = {
        "format": "ccdiff generator 1",
        "identity": content_key([hashes, str(stable_diffusion)]),
        "picture_size": (sample if isinstance(sample, int) else sample[0]) * pipe.vae_scale_factor,
        "classes": [],  # any: class names go through the text encoder
        "imported": {"model": variant, "places": list(places), "files": hashes},
        "unused_keys": unused,
        "ccdiff": __version__,
    }
    _write_generator(pipe, out, description)
    return description


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's UNet and resampler as a released checkpoint folder.

    Returns:
        the two files written.
    """
    generator, out = Path(generator), Path(out)
    paths = []
    for source, target in ((generator / UNET_FILE, out / UNET_FILE), (generator / "resampler" / UNET_FILE.name, out / RESAMPLER_FILE)):
        weights = _read_safetensors(source)
        with os_errors(target, "write the checkpoint"):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(".partial-" + target.name)
            if target.suffix == ".pth":
                torch.save(weights, partial)
            else:
                save_file(weights, partial, metadata={"format": "pt"})
            os.replace(partial, target)
        paths.append(target)
    return paths


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the folder that holds it")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CCDiffError(f"not a safetensors file: {error}", where=path, fix="copy the file again") from error


def _read_resampler(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The resampler's tensors, and the names of those that are never used."""
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the folder that holds it")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CCDiffError(
            f"not a file of tensors alone: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=path,
            fix="a checkpoint that needs other objects than tensors is not opened, because it could run programs",
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise CCDiffError("expected a dictionary of names and tensors", where=path)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
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

    try:
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
    except (KeyError, ValueError, IndexError) as error:
        raise CCDiffError(
            f"not a resampler of CC-Diff or CC-Diff++ (missing or odd: {error})", where=where, fix="give the released ImageProjModel.pth"
        ) from error


def _load_weights(module: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Load every weight, in the precision it is stored in.

    Raises:
        CCDiffError: listing missing and surplus keys and wrong shapes.
    """
    own = module.state_dict()
    missing, surplus = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    odd = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted(set(own) & set(weights))
        if weights[k].shape != own[k].shape
    ]
    if missing or surplus or odd:
        lists = [
            f"{name} ({len(keys)}): {', '.join(keys)}"
            for name, keys in (("missing keys", missing), ("surplus keys", surplus), ("shapes", odd))
            if keys
        ]
        raise CCDiffError(
            "the weights do not fit the model; " + "; ".join(lists),
            where=where,
            fix="check that the checkpoint and the Stable Diffusion folder belong together",
        )
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtypes.pop())
    module.load_state_dict(weights)
    module.eval()


def _part(cls: Any, folder: Path, name: str = "", *, config_only: bool = False) -> Any:
    """One part of a diffusers or transformers folder; safetensors only."""
    where = folder / name if name else folder
    if not where.is_dir():
        raise CCDiffError("the folder does not exist", where=where, fix="give a folder in the diffusers / transformers layout")
    try:
        if config_only:
            return cls.from_config(cls.load_config(str(where)))
        kwargs = {"use_safetensors": True} if cls in (AutoencoderKL, CLIPTextModel, AutoModel) else {}
        return cls.from_pretrained(str(where), **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, AttributeError, TypeError) as error:
        raise CCDiffError(
            f"cannot load it: {' '.join(str(error).split())[:300]}",
            where=where,
            fix="give a folder in the diffusers / transformers layout with safetensors weights",
        ) from error


def _write_generator(pipe: CCDiffPipeline, out: Path, description: dict[str, Any]) -> None:
    """The folder appears whole or not at all."""
    partial = out.with_name(f".partial-{out.name}")
    with os_errors(out, "write the generator"):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            pipe.save_pretrained(partial)
            write_json(partial / "ccdiff.json", description)
            if out.exists():
                out.rmdir()  # empty, as checked
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
