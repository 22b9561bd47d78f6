"""Released DiffusionSat UNets to our two parts and back: the names of a UNet, and ``metadata_embedding.{i}.linear_{1,2}.*`` beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from ...errors import CCDiffError
from ...files import read_json, sha256_file, write_json
from ...generator import read_generator
from ...locks import locked
from ...models.accounting import account_for
from ...models.checkpoints import check_empty, imported, part, read_pickle, read_safetensors, write_generator, write_tensors
from .network import MetadataEmbedding, make_unet
from .pipeline import DiffusionSatPipeline

METADATA = "metadata_embedding."


def joined_weights(unet: Mapping[str, Tensor], embedding: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of both parts under released names."""
    return dict(unet) | {METADATA + name: value for name, value in embedding.items()}


def load_released(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str | Path
) -> tuple[UNet2DConditionModel, MetadataEmbedding]:
    """Both parts of a released UNet's configuration and weights, in the precision the weights are stored in.

    Raises:
        CCDiffError: a UNet without metadata; missing, surplus and wrongly shaped weights, all listed.
    """
    count = len({name.split(".")[1] for name in weights if name.startswith(METADATA)})
    if not count:
        raise CCDiffError(
            f"no weight is called {METADATA}...: a plain UNet", where=where, fix="give a released DiffusionSat checkpoint folder"
        )
    unet, embedding = make_unet(dict(config) | {"num_metadata": config.get("num_metadata") or count})
    own = joined_weights(unet.state_dict(), embedding.state_dict())
    account_for(own, weights, where, "give the unet or unet_ema folder of a released single-picture DiffusionSat checkpoint, whole")
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(kinds) == 1:
        kind = kinds.pop()
        unet.to(kind), embedding.to(kind)
    embedding.load_state_dict({name.removeprefix(METADATA): v for name, v in weights.items() if name.startswith(METADATA)})
    unet.load_state_dict({name: v for name, v in weights.items() if not name.startswith(METADATA)})
    return unet.eval(), embedding.eval()


@locked("import-checkpoint", whole=True)
def import_checkpoint(released: str | Path, stable_diffusion: str | Path, out: str | Path) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        released: a released archive's folder (of its newest ``checkpoint-N``, the averaged UNet where there is one), or a UNet's folder.
        stable_diffusion: Stable Diffusion 2.1 in the diffusers layout; a released archive serves, too.
        out: the generator folder; must not exist, or be empty.

    Returns:
        the generator's description, as in its ``ccdiff.json``.

    Raises:
        CCDiffError: a file or part is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    base, out = Path(stable_diffusion), Path(out)
    check_empty(out)
    folder = _unet_folder(Path(released))
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CCDiffError("expected a UNet's configuration", where=folder / "config.json")
    path = next((p for p in (folder / f"diffusion_pytorch_model{end}" for end in (".safetensors", ".bin")) if p.is_file()), None)
    if path is None:
        raise CCDiffError("no weights there", where=folder, fix="give the folder that holds diffusion_pytorch_model.bin or .safetensors")
    weights = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    unet, embedding = load_released(config, weights, path)
    pipe = DiffusionSatPipeline(
        vae=part(AutoencoderKL, base, "vae"),
        text_encoder=part(CLIPTextModel, base, "text_encoder"),
        tokenizer=part(AutoTokenizer, base, "tokenizer"),
        unet=unet,
        metadata_embedding=embedding,
        scheduler=part(DDIMScheduler, base, "scheduler"),
    )
    if unet.config.cross_attention_dim != pipe.text_encoder.config.hidden_size:
        raise CCDiffError(
            f"text tokens are {pipe.text_encoder.config.hidden_size} wide, the UNet expects {unet.config.cross_attention_dim}",
            where=base,
            fix="give the Stable Diffusion version that the checkpoint was trained on (2.1)",
        )
    hashes = {path.name: sha256_file(path)}
    size = 64 * pipe.vae_scale_factor  # of the larger of the two released ones: its configuration says another
    description = imported("diffusionsat", ["diffusionsat", hashes, str(base)], size, hashes)
    description |= {"method": "diffusionsat", "recipe": {"caption_style": "quadrants"}}  # of its captions the one that says a layout
    write_generator(pipe, out, description)
    return description


def _unet_folder(released: Path) -> Path:
    """Where the UNet lies in what was given."""
    if (released / "config.json").is_file():
        return released
    steps = [(int(found[1]), p) for p in released.glob("checkpoint-*") if (found := re.fullmatch(r"checkpoint-(\d{1,9})", p.name))]
    for folder in (*(p for _, p in sorted(steps, reverse=True)), released):
        for name in ("unet_ema", "unet"):
            if (folder / name / "config.json").is_file():
                return folder / name
    raise CCDiffError("no UNet there", where=released, fix="give a released archive's folder, or its checkpoint-N/unet_ema or unet folder")


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator's UNet and embedding as a released ``unet`` folder; the files written."""
    read_generator(generator)
    generator, target = Path(generator), Path(out) / "unet"
    unet, embedding = part(UNet2DConditionModel, generator, "unet"), part(MetadataEmbedding, generator, "metadata_embedding")
    path = target / "diffusion_pytorch_model.safetensors"
    write_tensors({k: v.contiguous() for k, v in joined_weights(unet.state_dict(), embedding.state_dict()).items()}, path)
    config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_") and k != "class_embed_type"}
    own = {"_class_name": "SatUNet", "use_metadata": True, "num_metadata": embedding.config.num_metadata}
    write_json(target / "config.json", config | own)
    return [path, target / "config.json"]
