"""A plain form of the published computation, to compare speed with: uncached, one picture at a time, every cell of every instance.

Written from the description of the published models for this purpose.  At every step and in every enhanced layer it draws the region
masks and gates on the CPU, makes keys and values of every context anew, and runs the class text and instance attention of all N
instances over all cells (batched over the instances of the picture, which is kinder than a loop).  It has no cap on N.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from ccdiff_cli.models.conditioning import Fusion, FusionProcessor
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.models.resamplers import ContextTokens


class PublishedProcessor:
    """For a guidance pair ``[unconditional, conditional]`` of one picture; ``layout`` is set before each step."""

    def __init__(self, fusion: Fusion):
        self.fusion = fusion
        self.layout: dict = {}

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        plain = AttnProcessor2_0()
        unconditional = plain(attn, hidden_states[:1], encoder_hidden_states[:1])
        x, caption = hidden_states[1:], encoder_hidden_states[1:]
        fusion, given = self.fusion, self.layout
        hbb, obb, count = given["hbb"], given["obb"], len(given["hbb"])
        height, width = given["latent"]
        factor = int((height * width / x.shape[1]) ** 0.5 + 0.5)
        grid = (height // factor, width // factor)

        text = plain(attn, x.expand(count + 1, -1, -1), torch.cat([caption, given["class_tokens"]]))
        gates = gates_of(hbb, (height, width), grid).to(x)
        context = torch.cat([given["class_pooled"][:, None], given["foreground"], fusion.pos_net(obb)[:, None]], dim=1)
        normed = fusion.norm_obj(x).expand(count, -1, -1)
        instances = fusion.ea_obj.attend(normed, *fusion.ea_obj.keys_values(context))
        foreground = (gates * (text[1:] + instances)).sum(0, keepdim=True)
        behind = torch.cat([given["caption_pooled"][:, None], given["background"]], dim=1)
        source = x if fusion.relation else foreground
        result = text[:1] + foreground + fusion.ea2.attend(fusion.norm2(source), *fusion.ea2.keys_values(behind))
        if fusion.relation:
            result = result + fusion.ea_rel.attend(fusion.norm_rel(result), *fusion.ea_rel.keys_values(given["relation"]))
        mask = mask_of(obb, given["image"], (height, width), grid).to(x.device)
        result = result + fusion.la.attend(x, *fusion.la.keys_values(x), mask=mask)
        return torch.cat([unconditional, result])


def gates_of(hbb: Tensor, latent: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """``(N, cells, 1)`` on the CPU."""
    height, width = latent
    maps = np.zeros((len(hbb), height, width), np.float32)
    u, v = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    for n, (x1, y1, x2, y2) in enumerate(hbb.cpu().numpy()):
        if x2 != x1 and y2 != y1:
            r = ((u - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((v - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2
            maps[n] = 1 / (1 + np.exp(np.minimum(-10 * (1 - r), 80)))
    return F.interpolate(torch.from_numpy(maps)[:, None], size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def mask_of(obb: Tensor, image: tuple[int, int], latent: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """``(cells, cells)`` bool on the CPU."""
    corners = obb.cpu().numpy()
    regions = np.zeros((len(corners) + 1, *image), np.float32)
    for n, c in enumerate(corners):
        polygon = np.stack([c[:4] * image[1], c[4:] * image[0]], axis=1).astype(np.int32)
        cv2.fillPoly(regions[n], [polygon], 1.0)
    regions[-1] = 1 - regions[:-1].max(axis=0, initial=0)
    weights = torch.from_numpy(regions)[:, None]
    for size in (latent, grid):
        weights = F.interpolate(weights, size=size, mode="bilinear", align_corners=False)
    flat = weights.flatten(1)
    return (flat.T @ flat) != 0


@torch.no_grad()
def published_step(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor, batch: LayoutBatch, tokens: ContextTokens) -> Tensor:
    """One step of a guidance pair of B pictures, one after the other; x and text are ``[unconditional x B, conditional x B]``."""
    kept = unet.attn_processors
    mine = {n: PublishedProcessor(p.fusion) if isinstance(p, FusionProcessor) else AttnProcessor2_0() for n, p in kept.items()}
    unet.set_attn_processor(dict(mine))
    size, out, start = batch.batch_size, [], 0
    try:
        for b in range(size):
            valid = batch.valid[b]
            index = batch.class_index[b][valid]
            layout = {
                "hbb": batch.hbb[b][valid], "obb": batch.obb[b][valid], "image": batch.image_size, "latent": batch.latent_size,
                "class_tokens": batch.class_tokens[index], "class_pooled": batch.class_pooled[index],
                "caption_pooled": batch.caption_pooled[b : b + 1], "background": tokens.background[b : b + 1],
                "foreground": tokens.foreground[start : start + len(index)],
                "relation": None if tokens.relation is None else tokens.relation[b : b + 1],
            }  # fmt: skip
            start += len(index)
            for processor in mine.values():
                if isinstance(processor, PublishedProcessor):
                    processor.layout = layout
            rows = torch.tensor([b, size + b], device=x.device)
            out.append(unet(x[rows], t, text[rows]).sample)
    finally:
        unet.set_attn_processor(dict(kept))
    return torch.stack(out, dim=1).flatten(0, 1)
