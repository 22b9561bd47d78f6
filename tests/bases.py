"""Folders of the form of published models (classes, layout, block types), with narrow random weights: for the code around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import (
    BitImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from tests.foreign import VOCABULARY

WIDTHS = {"1": 32, "2": 48}
"""Of the texts of Stable Diffusion 1 and 2, which are 768 and 1024 wide."""
UNETS: dict[str, dict[str, Any]] = {
    "1": {"cross_attention_dim": WIDTHS["1"], "attention_head_dim": 8},
    "2": {"cross_attention_dim": WIDTHS["2"], "attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True},
    "inpainting": {"cross_attention_dim": WIDTHS["1"], "attention_head_dim": 8, "in_channels": 9},
    "xl": {
        "cross_attention_dim": 64, "attention_head_dim": [2, 4, 8], "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80, "transformer_layers_per_block": [1, 1, 2],
        "block_out_channels": (16, 32, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}  # fmt: skip
"""Of a version, what is not as in all of them."""


def base(folder: Path, version: str = "1") -> Path:
    """Stable Diffusion 1.4 or 1.5 ("1"), 2.1 ("2"), 1.5 for inpainting, or XL ("xl"), in the layout of diffusers."""
    torch.manual_seed(0)
    unet = {"sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8}
    UNet2DConditionModel(**unet | UNETS[version]).save_pretrained(folder / "unet")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    scale = 0.13025 if version == "xl" else 0.18215
    AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, scaling_factor=scale).save_pretrained(
        folder / "vae"
    )
    width = WIDTHS["2" if version == "2" else "1"]
    ends = {"bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1, "pad_token_id": len(VOCABULARY) - 1}
    sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(VOCABULARY)}
    CLIPTextModel(CLIPTextConfig(**sizes, **ends)).save_pretrained(folder / "text_encoder")
    for name in ("tokenizer", "tokenizer_2") if version == "xl" else ("tokenizer",):
        tokenizer(folder / name)
    if version == "xl":
        CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **ends, projection_dim=16)).save_pretrained(folder / "text_encoder_2")
    prediction = "v_prediction" if version == "2" else "epsilon"
    PNDMScheduler(beta_schedule="scaled_linear", prediction_type=prediction).save_pretrained(folder / "scheduler")
    named = "StableDiffusionXLPipeline" if version == "xl" else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": named, "unet": ["diffusers", "UNet2DConditionModel"]}))
    return folder


def tokenizer(folder: Path) -> Path:
    """CLIP's, which spells words letter by letter."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, model_max_length=77).save_pretrained(folder)
    return folder


def dinov2(folder: Path, width: int = 24) -> Path:
    """A DINOv2 that sees 28 pixels."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(hidden_size=width, **sizes)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder
