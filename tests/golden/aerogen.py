"""Golden files of AeroGen: layout tokens, masks, both branches of a denoising step, single modules and the sampler."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ccdiff_cli.methods.aerogen import checkpoints, sampling
from ccdiff_cli.methods.aerogen.network import AeroGenUNet, Layout, cell_corners, rasters

from . import part

_CONFIG = ("model_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "num_heads", "context_dim")
_OPTIONAL = ("in_channels", "out_channels", "transformer_depth")


def make_unet(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], latent_size: tuple[int, int]) -> AeroGenUNet:
    """The network of a file's sizes with its weights."""
    config = json.loads(metadata["unet_config"])
    sizes = {k: tuple(config[k]) if isinstance(config[k], list) else config[k] for k in _CONFIG}
    sizes |= {k: config[k] for k in _OPTIONAL if k in config}
    encoder = json.loads(metadata["encoder_config"])
    layout = {
        "class_width": encoder["in_dim"],
        "frequencies": encoder["fourier_freqs"],
        "hidden": encoder["hidden"],
        "slots": tensors["in.valid"].shape[1],
        "mask_strength": float(metadata["mask_strength"]),
        "mask_threshold": int(metadata["mask_threshold"]),
    }
    unet = AeroGenUNet(**checkpoints.unet_config(**sizes, sample_size=latent_size), layout=layout).eval()
    weights = {k: v.float() for k, v in tensors.items() if k.startswith((checkpoints.UNET, checkpoints.ENCODER))}
    checkpoints.load_released(unet, weights)
    return unet


@torch.no_grad()
def outputs(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What our modules make of the file's inputs with its weights, by the names behind ``out.``."""
    given = part(tensors, "in.")
    latents = given["latents"]
    grid = (latents.shape[-2], latents.shape[-1])
    unet = make_unet(metadata, tensors, grid)
    valid = given["valid"] > 0.5
    layout = Layout(given["obb"], given["category"], valid, grid)
    context = unet.prepare(layout)
    corners = cell_corners(layout.obb, grid)
    ours = {"boxes": corners, "layout_tokens": unet.layout_encoder(corners, layout.vectors, valid)}
    for name, how in (("mask", "opencv"), ("mask_quick", "pillow")):
        drawn = torch.zeros(*valid.shape, *grid)
        drawn[valid] = rasters(corners[valid], grid, how).float()
        ours[name] = drawn

    text, negative, times = given["text_tokens"], given["negative_text_tokens"], given["timestep"]
    scale = float(metadata["guidance"])

    def denoise(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return unet(x, t, tokens, cross_attention_kwargs={"layout": context}).sample

    def guided(x: Tensor, t: Tensor) -> Tensor:
        unconditional, conditional = denoise(x, t, negative), denoise(x, t, text)
        return unconditional + scale * (conditional - unconditional)

    ours["noise_conditional"] = denoise(latents, times, text)
    ours["noise_unconditional"] = denoise(latents, times, negative)
    ours["noise_guided"] = guided(latents, times)
    ours["noise_late"] = denoise(latents, given["timestep_late"], text)

    settings, scheduler = json.loads(metadata["ddim"]), sampling.ddim()
    scheduler.set_timesteps(settings["steps"], released_count=len(given["ddim_noise"]) != settings["steps"])
    x = latents
    for t, added in zip(scheduler.timesteps, given["ddim_noise"], strict=True):
        x = scheduler.step(guided(x, t), t, x, eta=settings["eta"], variance_noise=added).prev_sample
    rising = scheduler.timesteps.flip(0)
    alphas = scheduler.alphas_cumprod[rising]
    ours |= {"ddim_sample": x, "ddim_timesteps": rising, "ddim_sigmas": scheduler.sigmas(settings["eta"]).flip(0)}
    ours |= {"ddim_alphas": alphas, "ddim_alphas_prev": torch.cat([scheduler.final_alpha_cumprod[None], alphas[:-1]])}

    active = times.expand(len(latents)) >= unet.layout_config.mask_threshold
    ours["mask_attention"] = unet.mask_attention(given["feature"], context.vectors, context.picture, context.slot, context.cell, active)
    transformer = next(block.attentions[0] for block in unet.down_blocks if hasattr(block, "attentions"))
    keywords = {"layout": context}
    ours["transformer"] = transformer(given["feature"], encoder_hidden_states=text, cross_attention_kwargs=keywords).sample
    ours["dual_attention"] = transformer.transformer_blocks[0].attn2(given["hidden"], encoder_hidden_states=text, **keywords)
    return ours
