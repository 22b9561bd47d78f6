"""DiffusionSatPipeline: DiffusionSat as a :class:`~ccdiff_cli.models.pipeline.ScenePipeline`.

Notable here: in the unconditional branch the caption is the negative prompt and every quantity is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from ...generator import CLASSES
from ...models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ...models.layout import LayoutBatch
from ...models.pipeline import ScenePipeline
from ...quantities import quantity_rows
from ...scene import Scene
from .network import MetadataEmbedding, keep_metadata, scale_metadata


class DiffusionSatPipeline(ScenePipeline):
    """Pictures from a caption and what is known of where, when and how sharply they would have been taken.

    Args:
        vae, text_encoder, tokenizer, unet, metadata_embedding, scheduler: the generator's parts.
        num_inference_steps, guidance_scale, negative_prompt: what a call uses where it does not say; saved with the generator.
        metadata_dropout: share of the pictures trained without a quantity, each by itself (see ``loss``).
    """

    model_cpu_offload_seq = "text_encoder->metadata_embedding->unet->vae"
    PARTS: ClassVar = {
        **{name: CLASSES[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")},
        "unet": {"diffusers": ("UNet2DConditionModel",)},
        "metadata_embedding": {"ccdiff_cli.methods.diffusionsat.network": ("MetadataEmbedding",)},
    }
    TRAINED: ClassVar = ("unet", "metadata_embedding")

    # wide: the parts that its folder holds
    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder | TinyAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNet2DConditionModel,
        metadata_embedding: MetadataEmbedding,
        scheduler: SchedulerMixin,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        metadata_dropout: float = 0.1,
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, metadata_embedding=metadata_embedding, scheduler=scheduler
        )
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            metadata_dropout=metadata_dropout,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def metadata_of(self, scenes: Sequence[Scene]) -> Tensor:
        """``(B, 7)`` float64 in the order of ``QUANTITIES``, NaN where unknown; what a scene knows stands in its provenance."""
        return torch.tensor(quantity_rows(scenes), dtype=torch.float64)

    def condition(  # type: ignore[override]  # an unknown option is an error
        self, layout: LayoutBatch, empty: Tensor, *, dropped: Tensor | None = None, guided: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Text tokens, and what the quantities add to the time embedding."""
        assert layout.metadata is not None
        scaled = scale_metadata(layout.metadata)
        if dropped is not None:
            scaled = keep_metadata(scaled, ~dropped[:, None])
        if guided:
            scaled = torch.cat([torch.zeros_like(scaled), scaled])
        return self.text_rows(layout, empty, dropped=dropped, guided=guided), self.metadata_embedding(scaled)

    def predict(self, x: Tensor, t: Tensor, condition: Any, share: float = 0.0) -> Tensor:
        text, labels = condition
        return self.unet(x, t, encoder_hidden_states=text, class_labels=labels, return_dict=False)[0].float()
