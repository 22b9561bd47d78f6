"""The trained parts of a generator as a recipe describes them: UNet, conditional generation module, resampler; with random weights."""

from __future__ import annotations

from diffusers import UNet2DConditionModel

from ..errors import CCDiffError
from ..models.conditioning import ConditionedUNet, ConditioningConfig
from ..models.resamplers import CoResampler, DualResampler
from ..recipes import Recipe


def own_unet(recipe: Recipe, latent_side: int, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """A plain UNet of the recipe's sizes, for square latents."""
    attention = recipe.unet.attention or (True,) * len(recipe.unet.channels)
    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=recipe.unet.layers_per_block,
        block_out_channels=recipe.unet.channels,
        down_block_types=["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attention],
        up_block_types=["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attention)],
        cross_attention_dim=text_width,
        attention_head_dim=recipe.unet.heads,
        norm_num_groups=min(16, recipe.unet.channels[0]),
    )


def with_conditioning(unet: UNet2DConditionModel, config: ConditioningConfig) -> ConditionedUNet:
    """A conditioned UNet with the weights of a plain one; its conditional generation module is new."""
    arguments = {key: value for key, value in unet.config.items() if not key.startswith("_") and key != "conditioning"}
    made = ConditionedUNet(conditioning=config.to_dict(), **arguments)
    missing, surplus = made.load_state_dict(unet.state_dict(), strict=False)
    if surplus or [key for key in missing if ".processor.fusion." not in key]:
        raise CCDiffError(f"the UNet's weights do not fit: missing {missing[:3]}, surplus {surplus[:3]}", where="recipe key unet.source")
    return made


def make_resampler(recipe: Recipe, image_width: int, text_width: int) -> CoResampler | DualResampler:
    """The resampler of the recipe's variant, between an image encoder and a text encoder of these widths."""
    r = recipe.resampler
    sizes = {
        "dim": r.width, "depth": r.depth, "dim_head": r.head_width, "embedding_dim": image_width,
        "output_dim": text_width, "ff_mult": r.ff_mult, "point_width": recipe.conditioning.point_width,
    }  # fmt: skip
    if recipe.conditioning.variant == "ccdiff++":
        return CoResampler(heads=r.heads, num_queries=r.queries, **sizes)
    return DualResampler(num_queries=(2 * r.queries, r.queries, r.queries), **sizes)
