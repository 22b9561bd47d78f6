"""A generator of a few hundred thousand random weights, and layouts for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BitImageProcessor, CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

from ccdiff_cli.methods.ccdiff.pipeline import CCDiffPipeline
from ccdiff_cli.models.conditioning import ConditionedUNet, ConditioningConfig, install_conditioning
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.models.resamplers import CoResampler, DualResampler
from ccdiff_cli.scene import Instance, Scene

TEXT, TOKENS, IMAGE = 24, 8, 20  # widths of text and image tokens, text tokens a caption
PLACES = ("mid_block", "up_blocks.1")
UNET = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    layers_per_block=1,
    block_out_channels=(16, 32, 32),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=TEXT,
    attention_head_dim=4,
    norm_num_groups=8,
)
RESAMPLER = dict(dim=32, depth=2, dim_head=8, embedding_dim=IMAGE, output_dim=TEXT, ff_mult=2)


def make_resampler(variant: str = "ccdiff++") -> CoResampler | DualResampler:
    if variant == "ccdiff++":
        return CoResampler(**RESAMPLER, heads=4, num_queries=3)
    resampler = DualResampler(**RESAMPLER, num_queries=(4, 3, 2))
    torch.nn.init.constant_(resampler.coherent_bridge.alpha_attn, 0.6)
    torch.nn.init.constant_(resampler.coherent_bridge.alpha_dense, -0.4)
    return resampler


def make_unet(variant: str = "ccdiff++", **options) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**UNET)
    options = {"places": PLACES, "zero_init": False} | options
    install_conditioning(unet, ConditioningConfig(variant=variant, **options))
    return unet


def make_batch(counts: list[int], size: tuple[int, int] = (128, 128), *, scale: int = 8, pad: int = 0, seed: int = 0) -> LayoutBatch:
    """Random rotated boxes; each picture's content depends on its place in ``counts`` only."""
    width_n = max(counts) + pad
    parts = []
    for b, count in enumerate(counts):
        g = torch.Generator().manual_seed(1000 * seed + b)
        centre = 0.15 + 0.7 * torch.rand(count, 2, generator=g)
        long, short = 0.05 + 0.2 * torch.rand(count, 1, generator=g), 0.03 + 0.1 * torch.rand(count, 1, generator=g)
        angle = math.pi * torch.rand(count, 1, generator=g)
        e1, e2 = long * torch.cat([angle.cos(), angle.sin()], 1), short * torch.cat([-angle.sin(), angle.cos()], 1)
        corners = torch.stack([centre - e1 - e2, centre + e1 - e2, centre + e1 + e2, centre - e1 + e2], 1)  # n, 4, 2
        hbb = torch.cat([corners.amin(1), corners.amax(1)], 1)
        index = torch.randint(0, 3, (count,), generator=g)
        reference = torch.randint(-1, 4, (count,), generator=g)
        caption = torch.randn(TOKENS + 1, TEXT, generator=g)
        parts.append((hbb, corners.transpose(1, 2).reshape(count, 8), index, reference, caption))

    def padded(k: int, fill: float = 0) -> torch.Tensor:
        shape = parts[0][k].shape[1:]
        out = torch.full((len(counts), width_n, *shape), fill, dtype=parts[0][k].dtype)
        for b, part in enumerate(parts):
            out[b, : counts[b]] = part[k]
        return out

    g = torch.Generator().manual_seed(7)
    return LayoutBatch(
        hbb=padded(0),
        obb=padded(1),
        valid=torch.arange(width_n)[None] < torch.tensor(counts)[:, None],
        class_index=padded(2),
        class_tokens=torch.randn(3, TOKENS, TEXT, generator=g),
        class_pooled=torch.randn(3, TEXT, generator=g),
        caption_tokens=torch.stack([p[4][1:] for p in parts]),
        caption_pooled=torch.stack([p[4][0] for p in parts]),
        features=torch.randn(4, 5, IMAGE, generator=g),
        instance_reference=padded(3, -1),
        background_reference=torch.arange(len(counts)) % 5 - 1,
        image_size=size,
        latent_size=(size[0] // scale, size[1] // scale),
    )


WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "an", "aerial", "picture", "with", "ship", "plane", "court", "and", "two"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>", model_max_length=TOKENS
    )


def make_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS), hidden_size=TEXT, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
    )


def make_image_encoder() -> tuple[Dinov2Model, BitImageProcessor]:
    encoder = Dinov2Model(
        Dinov2Config(hidden_size=IMAGE, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14)
    )
    return encoder, BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def make_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")


def make_pipeline(variant: str = "ccdiff++") -> CCDiffPipeline:
    torch.manual_seed(3)
    encoder, extractor = make_image_encoder()
    config = ConditioningConfig(variant=variant, places=PLACES, zero_init=False)
    pipe = CCDiffPipeline(
        vae=make_vae().eval(),
        text_encoder=make_text_encoder().eval(),
        tokenizer=make_tokenizer(),
        unet=ConditionedUNet(**UNET, conditioning=config.to_dict()).eval(),
        scheduler=make_scheduler(),
        resampler=make_resampler(variant).eval(),
        image_encoder=encoder.eval(),
        feature_extractor=extractor,
        num_inference_steps=3,
        guidance_scale=2.5,
        negative_prompt="two",
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass
class DrawnReference:
    key: str

    def image(self) -> Image.Image:
        rng = np.random.default_rng(sum(self.key.encode()))
        return Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))


@dataclass
class DrawnReferences:
    instances: tuple[DrawnReference | None, ...]
    background: DrawnReference | None


def make_scenes(counts: list[int], size: tuple[int, int] = (128, 128)) -> tuple[list[Scene], list[DrawnReferences]]:
    """(height, width) in ``size``; picture b is the same whatever the others are."""
    height, width = size
    scenes, references = [], []
    for b, count in enumerate(counts):
        rng = np.random.default_rng(b)
        instances = []
        for _ in range(count):
            x, y, w, h = rng.uniform(0, width * 0.8), rng.uniform(0, height * 0.8), rng.uniform(4, 40), rng.uniform(4, 40)
            name = ("ship", "plane", "court")[rng.integers(3)]
            instances.append(Instance.from_corners(name, (x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2)))
        scenes.append(Scene(f"{b}.png", width, height, tuple(instances), caption=f"an aerial picture with {'two' * (b % 2)} ship"))
        keys = [DrawnReference(f"r{rng.integers(5)}") if rng.random() < 0.8 else None for _ in range(count)]
        references.append(DrawnReferences(tuple(keys), DrawnReference(f"b{b}") if b != 1 else None))
    return scenes, references


def training_batch(pipe: Any, count: int = 4) -> dict[str, Any]:
    """A batch as a stage sees it: cached features and the real pictures."""
    layout = make_batch([1] * count)
    return {
        "latents": torch.randn(count, pipe.unet.config.in_channels, *layout.latent_size),
        "layout": layout,
        "dropped": torch.zeros(count, dtype=torch.bool),
        "empty_tokens": torch.randn(1, TOKENS, TEXT),
        "pixels": torch.rand(count, 3, *layout.image_size) * 2 - 1,
    }
