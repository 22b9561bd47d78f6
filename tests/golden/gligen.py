"""Golden files of GLIGEN: grounding tokens, single fusers, and both branches of a denoising step with grounding on and off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ccdiff_cli.methods.gligen.checkpoints import load_released
from ccdiff_cli.methods.gligen.network import GLIGENConfig, GroundedUNet, fusers, grounding_scale, grounding_slots
from ccdiff_cli.models.layout import LayoutBatch

from . import part


@torch.no_grad()
def outputs(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What our modules make of the file's inputs with its weights, by the names behind ``out.``."""
    given = part(tensors, "in.")
    slots = int(metadata["slots"])
    unet = GroundedUNet(**json.loads(metadata["unet_config"]), grounding=GLIGENConfig(slots=slots).to_dict()).eval()
    load_released(unet, part(tensors, "unet.") or part(tensors, "model."), Path("golden file"))

    size, count = given["valid"].shape
    batch = LayoutBatch(
        hbb=given["hbb"],
        obb=torch.zeros(size, count, 8),
        valid=given["valid"].bool(),
        class_index=torch.arange(size * count).view(size, count),
        class_tokens=torch.zeros(size * count, 1, 1),
        class_pooled=given["text_pooled"].flatten(0, 1),
        caption_tokens=given["text_tokens"],
        caption_pooled=torch.zeros(size, 1),
        features=torch.zeros(0, 1, 1),
        instance_reference=torch.full((size, count), -1),
        background_reference=torch.full((size,), -1),
        image_size=(0, 0),  # the network does not ask
        latent_size=(given["latents"].shape[-2], given["latents"].shape[-1]),
    )
    conditional = grounding_slots(batch, slots)["gligen"]
    empty = grounding_slots(batch, slots, torch.zeros(size, dtype=torch.bool))["gligen"]
    ours = {"grounding_tokens": unet.position_net(**conditional), "grounding_tokens_null": unet.position_net(**empty)[:1]}
    layers = fusers(unet)
    for key in given:
        if key.startswith("layer."):
            name = key.removeprefix("layer.").removesuffix(".x")
            ours[f"layer.{name}.fuser"] = layers[f"{name}.transformer_blocks.0.fuser"](given[key], ours["grounding_tokens"])
    text = torch.cat([given["negative_text_tokens"].expand(size, -1, -1), given["text_tokens"]])
    for name, scale in (("", 1.0), ("_module_off", 0.0)):
        with grounding_scale(unet, scale):
            kwargs = grounding_slots(batch, slots, guidance=True)
            ours[f"noise_guided_pair{name}"] = unet(
                torch.cat([given["latents"]] * 2), given["timestep"], text, cross_attention_kwargs=kwargs
            ).sample
    return ours
