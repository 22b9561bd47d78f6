"""Golden files of MIGC: masks, single layers, and both branches of a denoising step with the module and the plain fuser on or off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ccdiff_cli.methods.migc.network import (
    MIGC,
    MIGCConfig,
    MIGCContext,
    install_migc,
    instance_masks,
    instance_tokens,
    prepare_context,
)
from ccdiff_cli.models.layout import LayoutBatch

from . import part

_STEPS = 50  # as published
_ATTENTION = ".transformer_blocks.0.attn2"


def picture_size(text: str) -> tuple[int, int]:
    """(height, width) of ``256``, ``[192, 256]`` or ``192, 256``."""
    numbers = [int(number) for number in text.strip("[]() ").split(",")]
    return numbers[0], numbers[-1]


@torch.no_grad()
def outputs(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What our modules make of the file's inputs with its weights, by the names behind ``out.``."""
    given, weights = part(tensors, "in."), part(tensors, "unet.")
    module = json.loads(metadata["module_config"])
    unet = UNet2DConditionModel(**json.loads(metadata["unet_config"])).eval()
    last, step = (int(metadata[key]) / _STEPS for key in ("migc_steps", "step_index"))
    config = MIGCConfig(
        places=tuple(module["places"]),
        active=last,
        fuser=last,
        slots=module["slots"],
        heads=module["heads"],
        position_width=module["position_hidden"],
        reduction=module["cbam_reduction"],
    )
    install_migc(unet, config)
    unet.load_state_dict(weights)

    count = len(given["hbb"])
    image_size = picture_size(metadata["image_size"])
    latent_size = (given["latents"].shape[-2], given["latents"].shape[-1])
    batch = LayoutBatch(
        hbb=given["hbb"][None],
        obb=torch.zeros(1, count, 8),
        valid=torch.ones(1, count, dtype=torch.bool),  # as published, padding counts as instances
        class_index=torch.arange(count)[None],
        class_tokens=given["text_tokens"][1:],
        class_pooled=given["text_pooled"][1:, 0],
        caption_tokens=given["text_tokens"][:1],
        caption_pooled=given["text_pooled"][:1, 0],
        features=torch.zeros(0, 1, 1),
        instance_reference=torch.full((1, count), -1),
        background_reference=torch.tensor([-1]),
        image_size=image_size,
        latent_size=latent_size,
    )
    masks, background = instance_masks(given["hbb"], torch.zeros(count, dtype=torch.int64), 1, image_size, latent_size)
    ours = {"instance_masks": masks, "background_mask": background[0]}

    context = prepare_context(unet, batch, order=given["slot_order"])
    for name in sorted({key.split(".", 1)[1].rpartition(".")[0] for key in given if key.startswith("layer.")}):
        layer = {key.rpartition(".")[2]: value for key, value in given.items() if key.startswith(f"layer.{name}.")}
        ours |= {f"layer.{name}.{key}": value for key, value in _layer(unet, name, layer, given, context).items()}

    guided = prepare_context(unet, batch, guidance=True, order=given["slot_order"])
    at, off = guided.at(step, config), guided.at(last + 1 / _STEPS, config)
    for name, now in {
        "": dataclasses.replace(at, fuser=False) if at is not None else None,
        "_module_off": off,
        "_with_plain_fuser": at,
        "_plain_fuser_only": dataclasses.replace(guided, module=False, fuser=True),
    }.items():
        text = torch.cat([given["negative_text_tokens"], given["text_tokens"][:1]])
        latents = torch.cat([given["latents"]] * 2)
        noise = unet(latents, given["timestep"], text, cross_attention_kwargs=None if now is None else {"conditioning": now}).sample
        ours[f"noise_guided_pair{name}"] = noise
    return ours


def _layer(
    unet: UNet2DConditionModel, name: str, layer: Mapping[str, Tensor], given: Mapping[str, Tensor], context: MIGCContext
) -> dict[str, Tensor]:
    """One layer from its input and its attention to each text."""
    name += _ATTENTION
    migc: MIGC = unet.get_submodule(name).processor.migc
    x, seen = layer["x"][None], layer["cross_attention"]
    tokens = instance_tokens(migc, given["text_pooled"][1:, 0], given["hbb"])
    query = migc.ea.query(migc.norm(x))
    scores = query @ migc.ea.keys_values(tokens)[0].transpose(-1, -2) / query.shape[-1] ** 0.5
    result = {"enhancement_attention": scores.softmax(-1).mean(1)}
    if not len(context.rows):  # no instances: the layer is plain
        return result | {"fused": seen[0], "aggregation_weights": x.new_zeros(0)}
    grid = context.grids[context.grid_of[name]]
    words = seen[1:][grid.entry_instance, grid.entry_cell]
    fused, weights = migc(x, seen[:1], words, migc.ea.keys_values(tokens), grid)
    order = given["slot_order"].argsort()[: len(tokens)] + 1
    planes = torch.cat([weights[0, :1], weights[0, order], weights[0, -1:]])
    return result | {"fused": fused[0], "aggregation_weights": planes.unflatten(1, grid.size)}
