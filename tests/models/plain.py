"""The published computation of the conditional generation module, written as plainly as its description.

One picture, a loop over instances, double precision where it is cheap; nothing is cached, packed, tiled or skipped.  What is
tested against it: ``tests/models/test_conditioning.py``.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """(n, C), (m, C), (m, C) -> (n, C)."""
    out = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = a @ b.T / math.sqrt(a.shape[-1])
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        out.append(scores.softmax(-1) @ c)
    return torch.cat(out, -1)


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))


def cross(w: dict[str, Tensor], name: str, x: Tensor, context: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    q, k, v = linear(w, name + ".to_q", x), linear(w, name + ".to_k", context), linear(w, name + ".to_v", context)
    return linear(w, name + ".to_out.0", attention(q, k, v, heads, allowed))


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])


def point_net(w: dict[str, Tensor], name: str, corners: Tensor) -> Tensor:
    code = []
    for i in range(8):
        code += [math.sin(100 ** (i / 8) * float(c)) for c in corners] + [math.cos(100 ** (i / 8) * float(c)) for c in corners]
    x = torch.tensor(code, dtype=corners.dtype)
    for k in (0, 2):
        x = F.silu(linear(w, f"{name}.linears_position.{k}", x))
    return linear(w, f"{name}.linears_position.4", x)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def ellipse(hbb: Tensor, latent: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = (float(v) for v in hbb)
    gate = torch.zeros(latent)
    if x2 > x1 and y2 > y1:
        for row in range(latent[0]):
            for column in range(latent[1]):
                a = (column / latent[1] - (x1 + x2) / 2) / ((x2 - x1) / 2)
                b = (row / latent[0] - (y1 + y2) / 2) / ((y2 - y1) / 2)
                gate[row, column] = 1 / (1 + math.exp(min(700, -10 * (1 - a * a - b * b))))
    return resize(gate, grid).flatten()


def allowed_pairs(obb: Tensor, image: tuple[int, int], latent: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    regions = []
    for corners in obb:
        polygon = np.stack([corners[:4].numpy() * image[1], corners[4:].numpy() * image[0]], 1).astype(np.int32)
        regions.append(torch.from_numpy(cv2.fillPoly(np.zeros(image, np.float32), [polygon], 1.0)))
    rest = torch.ones(image)
    for region in regions:
        rest[region > 0] = 0
    weights = torch.stack([resize(resize(region, latent), grid).flatten() for region in [*regions, rest]])
    return (weights.T @ weights) != 0


class PlainProcessor:
    """An attention processor for one conditional picture."""

    def __init__(self, weights: dict[str, Tensor], layout: dict, variant: str):
        self.w, self.layout, self.variant = weights, layout, variant

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        (x,), (caption,) = hidden_states, encoder_hidden_states
        w, given, heads = self.w, self.layout, attn.heads
        own = {k: v for k, v in attn.state_dict().items() if "processor" not in k}

        def frozen(context: Tensor) -> Tensor:
            q, k, v = F.linear(x, own["to_q.weight"]), F.linear(context, own["to_k.weight"]), F.linear(context, own["to_v.weight"])
            return F.linear(attention(q, k, v, attn.heads), own["to_out.0.weight"], own["to_out.0.bias"])

        frozen_caption, heads = frozen(caption), given["heads"] or heads
        grid = given["grids"][x.shape[0]]
        total = torch.zeros_like(x)
        for n in range(len(given["hbb"])):
            gate = ellipse(given["hbb"][n], given["latent"], grid)[:, None]
            place = point_net(w, "pos_net", given["obb"][n])
            context = torch.cat([given["class_pooled"][n][None], given["foreground"][n], place[None]])
            total = total + gate * (frozen(given["class_tokens"][n]) + cross(w, "ea_obj", norm(w, "norm_obj", x), context, heads))
        context = torch.cat([given["caption_pooled"][None], given["background"]])
        source = x if self.variant == "ccdiff++" else total
        s = frozen_caption + cross(w, "ea2", norm(w, "norm2", source), context, heads) + total
        if self.variant == "ccdiff++":
            s = s + cross(w, "ea_rel", norm(w, "norm_rel", s), given["relation"], heads)
        pairs = allowed_pairs(given["obb"], given["image"], given["latent"], grid)
        return (s + cross(w, "la", x, x, heads, pairs))[None]


@torch.no_grad()
def plain_denoise(unet: UNet2DConditionModel, latents: Tensor, timestep: Tensor, batch, tokens, b: int, variant: str) -> Tensor:
    """What the published form computes for picture ``b`` of a batch, as conditional branch; the UNet's processors are put back."""
    valid = batch.valid[b]
    count = [int(v.sum()) for v in batch.valid]
    start = sum(count[:b])
    index = batch.class_index[b][valid]
    grids, size = {}, batch.latent_size
    for _ in unet.config.down_block_types:
        grids[size[0] * size[1]] = size
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    layout = {
        "hbb": batch.hbb[b][valid], "obb": batch.obb[b][valid], "image": batch.image_size, "latent": batch.latent_size, "grids": grids,
        "heads": unet.config.conditioning["heads"],
        "class_tokens": batch.class_tokens[index], "class_pooled": batch.class_pooled[index], "caption_pooled": batch.caption_pooled[b],
        "foreground": tokens.foreground[start : start + count[b]], "background": tokens.background[b],
        "relation": None if tokens.relation is None else tokens.relation[b],
    }  # fmt: skip
    kept = unet.attn_processors
    plain = {}
    for name, processor in kept.items():
        if hasattr(processor, "fusion"):
            plain[name] = PlainProcessor(dict(processor.fusion.state_dict()), layout, variant)
        else:
            plain[name] = processor
    unet.set_attn_processor(dict(plain))
    try:
        return unet(latents[b : b + 1], timestep, batch.caption_tokens[b : b + 1]).sample[0]
    finally:
        unet.set_attn_processor(dict(kept))


def plain_co_resampler(resampler, features: Tensor, background: Tensor, obb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The Co-Resampler of one picture: (n, T, E), (T, E), (n, 8) -> (n, q, D), (q, D), (q, D), by one masked attention over all queries."""
    w = dict(resampler.state_dict())
    heads, n = resampler.config.heads, len(features)
    tokens = [features[i] + point_net(w, "point_net", obb[i]) for i in range(n)] + [background]
    tokens = [linear(w, "proj_in", t) for t in tokens]
    q = w["latents"].shape[1]
    queries = torch.cat([w["latents"][0]] * n + [w["latents"][1], w["latents"][2]])
    group = torch.arange(n + 2).repeat_interleave(q)
    for layer in range(resampler.config.depth):
        name = f"layers.{layer}.0"
        normed = norm(w, name + ".norm2", queries)
        keys, owner = [], []
        for i, t in enumerate(tokens):
            keys += [norm(w, name + ".norm1", t), normed[group == i]]
            owner += [torch.full((len(t) + q,), i)]
        kv = linear(w, name + ".to_kv", torch.cat(keys))
        k, v = kv.chunk(2, -1)
        allowed = (group[:, None] == torch.cat(owner)[None]) | (group[:, None] == n + 1)
        queries = queries + linear(w, name + ".to_out", attention(linear(w, name + ".to_q", normed), k, v, heads, allowed))
        hidden = norm(w, f"layers.{layer}.1.0", queries)
        queries = queries + linear(w, f"layers.{layer}.1.3", F.gelu(linear(w, f"layers.{layer}.1.1", hidden)))
    out = norm(w, "norm_out", linear(w, "proj_out", queries))
    return out[group < n].view(n, q, out.shape[-1]), out[group == n], out[group == n + 1]


def plain_perceiver(w: dict[str, Tensor], config, features: Tensor, queries: Tensor) -> Tensor:
    """(T, E), (q, dim) -> (q, D)."""
    tokens = linear(w, "proj_in", features)
    heads = config.heads or config.dim // config.dim_head
    for layer in range(config.depth):
        name = f"layers.{layer}.0"
        normed = norm(w, name + ".norm2", queries)
        k, v = linear(w, name + ".to_kv", torch.cat([norm(w, name + ".norm1", tokens), normed])).chunk(2, -1)
        queries = queries + linear(w, name + ".to_out", attention(linear(w, name + ".to_q", normed), k, v, heads))
        hidden = norm(w, f"layers.{layer}.1.0", queries)
        queries = queries + linear(w, f"layers.{layer}.1.3", F.gelu(linear(w, f"layers.{layer}.1.1", hidden)))
    return norm(w, "norm_out", linear(w, "proj_out", queries))


def plain_dual_resampler(resampler, features: Tensor, background: Tensor, obb: Tensor) -> tuple[Tensor, Tensor]:
    """The Dual Resampler of one picture, its bridge computed by diffusers' own GLIGEN layer."""
    config, every = resampler.config, dict(resampler.state_dict())

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in every.items() if k.startswith(prefix)}

    fg, bg = part("fg_resampler."), part("bg_resampler.")
    foreground = torch.stack([plain_perceiver(fg, config, f, fg["latents"][0]) for f in features])
    objects = torch.cat([tokens + point_net(every, "point_net", obb[i]) for i, tokens in enumerate(foreground)])
    heads = config.dim // config.dim_head
    bridge = GatedSelfAttentionDense(config.dim, config.output_dim, heads, config.dim // heads)
    bridge.load_state_dict(part("coherent_bridge."))
    more = bridge(every["coherent_queries"], objects[None])[0]
    return foreground, plain_perceiver(bg, config, background, torch.cat([bg["latents"][0], more]))
