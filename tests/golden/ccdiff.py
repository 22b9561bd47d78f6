"""Golden files of CC-Diff and CC-Diff++: resampler, context and both branches of a denoising step."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ccdiff_cli.models.conditioning import ConditioningConfig, install_conditioning, prepare_context
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.models.resamplers import RESAMPLERS

from . import part


def places_of(names: list[str]) -> list[str]:
    """The blocks that hold a conditional generation module, from the names of its parameters."""
    places = []
    for name in names:
        if ".attn2.processor.fusion." in name:
            block = ".".join(name.split(".")[: 1 if name.startswith("mid_block") else 2])
            if block not in places:
                places.append(block)
    return places


@torch.no_grad()
def outputs(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], gate_threshold: float | None = None) -> dict[str, Tensor]:
    """What our modules make of the file's inputs with its weights, by the names behind ``out.``."""
    given = part(tensors, "in.")
    resampler = RESAMPLERS[metadata["model"]](**json.loads(metadata["resampler_config"])).eval()
    resampler.load_state_dict({k: v for k, v in part(tensors, "resampler.").items() if not k.startswith("to_latents")})
    unet = UNet2DConditionModel(**json.loads(metadata["unet_config"])).eval()
    weights = part(tensors, "unet.")
    point = next((v for k, v in weights.items() if k.endswith("fusion.pos_net.linears_position.0.weight")), torch.empty(512, 0))
    places = tuple(places_of(list(weights)))
    install_conditioning(unet, ConditioningConfig(variant=metadata["model"], places=places, point_width=len(point), heads=8))
    unet.load_state_dict(weights)

    # as published, padding counts as instances: all places of the file are valid
    count = len(given["hbb"])
    caption, classes = given["text_tokens"][:1], given["text_tokens"][1:]
    size = (
        int(metadata["image_size"]) if "," not in metadata["image_size"] else tuple(json.loads(f"[{metadata['image_size'].strip('[]()')}]"))
    )
    image_size = (size, size) if isinstance(size, int) else size
    latent_size = (given["latents"].shape[-2], given["latents"].shape[-1])
    batch = LayoutBatch(
        hbb=given["hbb"][None],
        obb=given["obb"].view(-1, 4, 2).transpose(1, 2).reshape(1, -1, 8),  # the files hold x1 y1 x2 y2 x3 y3 x4 y4
        valid=torch.ones(1, count, dtype=torch.bool),
        class_index=torch.arange(count)[None],
        class_tokens=classes,
        class_pooled=given["text_pooled"][1:, 0],
        caption_tokens=caption,
        caption_pooled=given["text_pooled"][:1, 0],
        features=torch.cat([given["instance_features"], given["background_features"]]),
        instance_reference=torch.arange(count)[None],
        background_reference=torch.tensor([count]),
        image_size=image_size,
        latent_size=latent_size,
    )
    tokens = resampler(batch)
    ours = {"foreground_tokens": tokens.foreground, "background_tokens": tokens.background}
    if tokens.relation is not None:
        ours["relation_tokens"] = tokens.relation
    latents, timestep = given["latents"], given["timestep"]

    def denoise(guidance: bool) -> Tensor:
        context = prepare_context(unet, batch, tokens, guidance=guidance, gate_threshold=gate_threshold)
        text = torch.cat([given["negative_text_tokens"], caption]) if guidance else caption
        x = torch.cat([latents] * len(text))
        return unet(x, timestep, text, cross_attention_kwargs={"conditioning": context}).sample

    ours["noise_conditional"] = denoise(guidance=False)
    ours["noise_guided_pair"] = denoise(guidance=True)
    return ours
