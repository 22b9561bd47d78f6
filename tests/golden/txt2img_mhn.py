"""Golden files of Txt2Img-MHN: text ids, picture tokenizer, the transformer's logits and loss, and sampled codes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ccdiff_cli.methods.txt2img_mhn.checkpoints import split_weights
from ccdiff_cli.methods.txt2img_mhn.network import PrototypeTransformer
from ccdiff_cli.methods.txt2img_mhn.pictures import VQGAN, VQVAE, gumbel_noise
from ccdiff_cli.methods.txt2img_mhn.tokenizer import CaptionPieces

from . import part


def picture_tokenizer(metadata: Mapping[str, str]) -> VQVAE | VQGAN:
    """An untrained one, as the file describes it."""
    config = json.loads(metadata["vae_config"])
    if metadata["tokenizer"] == "vqvae":
        return VQVAE(
            codes=config["num_tokens"], code_width=config["codebook_dim"], halvings=config["num_layers"],
            residual_blocks=config["num_resnet_blocks"], hidden=config["hidden_dim"], channels=config.get("channels", 3),
        )  # fmt: skip
    net = config["ddconfig"]
    return VQGAN(
        codes=config["n_embed"], code_width=config["embed_dim"], latent_channels=net["z_channels"], width=net["ch"],
        multiples=net["ch_mult"], residual_blocks=net["num_res_blocks"], resolution=net["resolution"],
        attention_sides=net["attn_resolutions"], channels=net.get("in_channels", 3), out_channels=net.get("out_ch", 3),
        double_latent=net.get("double_z", False),
    )  # fmt: skip


def text_of(metadata: Mapping[str, str], given: Mapping[str, Tensor], length: int) -> tuple[Tensor, dict[str, list[list[int]]]]:
    """The file's ids in T places, and what our tokenizer makes of the file's texts as they stand.

    Raises:
        ValueError: our ids differ from the file's.
    """
    found: dict[str, list[list[int]]] = {}
    if "bpe_model" in metadata and "texts" in metadata:
        pieces = CaptionPieces(length=length, text=metadata["bpe_model"])
        texts = json.loads(metadata["texts"])
        found["ours"] = [(pieces.encode(text) + [0] * length)[:length] for text in texts]
        if "text_ids" in metadata:
            for text, ids, expected in zip(texts, found["ours"], json.loads(metadata["text_ids"]), strict=True):
                if ids != (expected + [0] * length)[:length]:
                    raise ValueError(f"{text!r} became {ids}, expected {expected}")
    text = given["text"] if "text" in given else torch.tensor(found["ours"])
    return torch.nn.functional.pad(text[:, :length], (0, max(0, length - text.shape[1]))), found


@torch.no_grad()
def outputs(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What our modules make of the file's inputs with its weights, by the names behind ``out.``.

    Raises:
        ValueError: our text tokenizer makes other ids of the file's texts than the file has.
    """
    given = part(tensors, "in.")
    own, pictures, _ = split_weights({k: v.float() for k, v in tensors.items() if not k.startswith(("in.", "out."))})
    vae = picture_tokenizer(metadata).eval()
    vae.load_state_dict(pictures)
    config = json.loads(metadata["mhn_config"])
    length, grid = config["text_seq_len"], (own["image_pos_emb.weights_0"].shape[1], own["image_pos_emb.weights_1"].shape[2])
    mhn = PrototypeTransformer(
        width=config["dim"], blocks=config["n_block"], heads=config["heads"], head_width=config["dim_head"],
        prototypes=config["num_prototype"], text_ids=config["num_text_tokens"], text_length=length, codes=vae.codes, grid=grid,
    ).eval()  # fmt: skip
    mhn.load_state_dict(own)
    text, _ = text_of(metadata, given, length)

    image = given["image"]
    codes = vae.encode(image)
    ours = {"indices": codes.flatten(1), "decoded": vae.raw(codes)}
    if isinstance(vae, VQVAE):
        ours["encoder_logits"] = vae.logits(image)
        if "gumbel" in given:
            tau = float(metadata["gumbel_tau"])
            ours["reconstruction"] = vae.reconstruct(image, given["gumbel"], tau)
            ours["reconstruction_loss"] = vae.loss(image, given["gumbel"], tau).reshape(1)
        elif "gumbel_uniform" in given:
            ours["reconstruction"] = vae.reconstruct(image, gumbel_noise(given["gumbel_uniform"]), float(metadata["gumbel_tau"]))
    else:
        ours["encoder_output"] = vae.latents(image)
        ours["reconstruction"], loss = vae.reconstruct(image)
        ours["codebook_loss"] = loss.reshape(1)

    flat = codes.flatten(1)
    if len(text) == len(flat):
        logits = mhn(text, flat)
        ours["text_logits"] = logits[:, :length, : mhn.all_text]
        ours["image_logits"] = logits[:, length:, mhn.all_text :]
        ours["loss"] = mhn.loss(text, flat).reshape(1)
        prefix = re.search(r"first (\d+) image tokens", metadata.get("notes", ""))
        ours["prefix_logits"] = mhn(text, flat[:, : int(prefix[1]) if prefix else 5])[:, -1, mhn.all_text :]
    if "uniform" in given:
        sampled = mhn.sample(
            text, given["uniform"],
            filter_threshold=float(metadata.get("filter_thres", 0.9)), temperature=float(metadata.get("temperature", 1.0)),
        )  # fmt: skip
        ours["sampled_tokens"] = sampled
        grid_of = sampled.unflatten(1, grid)
        ours["sampled_image"] = vae.raw(grid_of) if isinstance(vae, VQVAE) else vae.decode(grid_of)
    return ours
