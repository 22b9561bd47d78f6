"""Golden files of LayoutDiffusion: layout encoder, both branches, one attention, both samplers and the losses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ccdiff_cli.methods.layoutdiffusion import diffusion, sampling
from ccdiff_cli.methods.layoutdiffusion.network import Layout, LayoutDiffusionUNet
from ccdiff_cli.models.checkpoints import load_weights

from . import part


def make_model(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> LayoutDiffusionUNet:
    """The network of a file's sizes with its weights."""
    unet, encoder = json.loads(metadata["unet_config"]), json.loads(metadata["layout_encoder_config"])
    shared = ("image_size", "in_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_ds", "dropout")
    same = (*shared, "num_head_channels", "num_heads")
    model = LayoutDiffusionUNet(
        **{k: unet[k] for k in same if k in unet},
        classes=encoder["num_classes_for_layout_object"],
        slots=encoder["layout_length"],
        layout_width=encoder["hidden_dim"],
        layout_layers=encoder["num_layers"],
        layout_heads=encoder["num_heads"],
    ).eval()
    load_weights(model, part(tensors, "model."), Path("golden file"))
    return model


@torch.no_grad()
def outputs(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What our modules make of the file's inputs with its weights, by the names behind ``out.``."""
    given = part(tensors, "in.")
    model = make_model(metadata, tensors)
    # as published: every slot of the file is one, padding too
    layout = Layout(given["obj_class"], given["obj_bbox"], torch.ones(given["obj_class"].shape))
    conditional, unconditional = model.prepare(layout), model.prepare(layout.without_objects(model.padding))
    _, _, tokens, whole = model.layout_encoder(layout)
    x, times, scale = given["x"], given["timestep"], float(metadata["guidance"])
    ours = {
        "layout_tokens": tokens.transpose(1, 2),
        "layout_global": whole,
        "prediction_conditional": model(x, times, conditional),
        "prediction_unconditional": model(x, times, unconditional),
        "object_aware_attention": model.get_submodule(metadata["attention_module"])(
            given["feature"], conditional.layers[metadata["attention_module"]]
        ),
    }
    predict = sampling.guided(model, conditional, unconditional, scale)
    ours["noise_guided"] = predict(x, times)[0]

    solver, asked = json.loads(metadata["dpm_solver"]), []

    def noise(y: Tensor, t: Tensor) -> Tensor:
        asked.append(t[0])
        return predict(y, t)[0]

    ours["dpm_sample"] = sampling.dpm_sample(noise, x, solver["steps"], solver["eps"])
    ours["dpm_times"] = sampling.dpm_times(len(sampling.dpm_orders(solver["steps"])), solver["eps"])
    ours["dpm_model_times"] = torch.stack(asked)

    chain = json.loads(metadata["ancestral"])
    short, index = sampling.respaced(chain["steps"]), torch.full((len(x),), chain["index"])
    ours["ancestral_timestep"] = short.times[index]
    moments = sampling.ancestral_moments(x, *predict(x, ours["ancestral_timestep"]), short.chain, index)
    ours["ancestral_mean"], ours["ancestral_log_variance"] = moments

    start, added, full = given["x_start"], given["noise"], diffusion.training_chain()
    for name, at in (("", times), ("_t0", torch.zeros_like(times))):
        at = at.expand(len(start))
        prediction = model(full.noised(start, added, at), at, conditional)
        squared, bound = diffusion.losses(full, prediction, start, added, at)
        ours |= {f"loss_mse{name}": squared.mean((1, 2)), f"loss_vb{name}": bound.mean((1, 2))}
    return ours
