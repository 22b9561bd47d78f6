"""Golden files of DiffusionSat: scaled metadata, embeddings, one step, sampling with guidance, and the training loss."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ccdiff_cli.methods.diffusionsat.network import keep_metadata, make_unet, scale_metadata
from ccdiff_cli.quantities import QUANTITIES

from . import part

_NOT_WEIGHTS = ("in.", "out.")


@torch.no_grad()
def outputs(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What our modules make of the file's inputs with its weights, by the names behind ``out.``."""
    given = part(tensors, "in.")
    weights = {k: v.float() for k, v in tensors.items() if not k.startswith(_NOT_WEIGHTS)}
    unet, embedding = make_unet(json.loads(metadata["unet_config"]))
    embedding.load_state_dict(part(weights, "metadata_embedding."))
    unet.load_state_dict({k: v for k, v in weights.items() if not k.startswith("metadata_embedding.")})
    unet.eval(), embedding.eval()
    schedule = DDIMScheduler.from_config(json.loads(metadata.get("scheduler_config", "{}")))

    count = max(len(v) for k, v in given.items() if k in ("latents", "text_tokens", "initial_noise", "train_latents"))

    def rows(x: Tensor) -> Tensor:
        return x.expand(count, *x.shape[1:]) if len(x) == 1 else x

    text, negative = rows(given["text_tokens"]), rows(given["negative_text_tokens"])
    raw = given.get("metadata_raw")
    scaled = scale_metadata(torch.full((1, len(QUANTITIES)), torch.nan) if raw is None else raw.reshape(-1, raw.shape[-1]))
    embedded = embedding(rows(scaled))
    nothing = embedding(torch.zeros_like(rows(scaled)))
    ours = {"metadata": scaled, "metadata_embedding": embedded}

    def denoise(x: Tensor, t: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        return unet(x, t, tokens, class_labels=labels).sample

    if "latents" in given:
        latents, timestep = rows(given["latents"]), given["timestep"].reshape(-1).expand(count)
        ours["time_embedding"] = unet.time_embedding(unet.time_proj(timestep))
        ours["prediction"] = denoise(latents, timestep, text, embedded)
        ours["prediction_unconditional"] = denoise(latents, timestep, negative, nothing)

    if "initial_noise" in given:
        guidance = float(metadata["guidance"])
        schedule.set_timesteps(int(metadata["steps"]))
        x = rows(given["initial_noise"])
        for t in schedule.timesteps:
            if guidance > 1:
                pair = denoise(torch.cat([x, x]), t, torch.cat([negative, text]), torch.cat([nothing, embedded]))
                without, with_ = pair.chunk(2)
                v = without + guidance * (with_ - without)
            else:
                v = denoise(x, t, text, embedded)
            x = schedule.step(v, t, x, eta=0.0).prev_sample
        ours["sampled_latents"] = x

    if "train_latents" in given:
        latents, noise, steps = rows(given["train_latents"]), rows(given["train_noise"]), given["train_timesteps"].reshape(-1).expand(count)
        keep = given.get("train_keep", torch.ones(1, scaled.shape[-1]))
        noisy, target = schedule.add_noise(latents, noise, steps), schedule.get_velocity(latents, noise, steps)
        predicted = denoise(noisy, steps, text, embedding(keep_metadata(rows(scaled), rows(keep))))
        share = schedule.alphas_cumprod[steps]
        snr = share / (1 - share)
        gamma = float(metadata.get("snr_gamma", 5.0))
        loss = ((predicted - target).square().flatten(1).mean(1) * snr.clamp(max=gamma) / snr).mean()
        ours |= {"train_noisy_latents": noisy, "train_target": target, "train_prediction": predicted, "train_loss": loss.reshape(1)}
    return ours
