"""MIGCPipeline: MIGC as a :class:`~ccdiff_cli.models.pipeline.ScenePipeline`.

Notable here: the unconditional branch never sees the module, and neither does any branch after the active steps; the order of the
slots is drawn anew in training, as published, and follows the boxes in sampling.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from ...generator import CLASSES
from ...models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ...models.layout import LayoutBatch
from ...models.pipeline import ScenePipeline
from .network import MIGCContext, MIGCUNet, migc_config, prepare_context


class MIGCPipeline(ScenePipeline):
    """Pictures from a caption and boxes with class names.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the generator's parts.
        num_inference_steps, guidance_scale, negative_prompt: what a call uses where it does not say; saved with the generator.
        published_padding: fill pictures up to so many all-zero instances, which take a share of every cell (6 in the authors' training).
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    PARTS: ClassVar = {
        **{name: CLASSES[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")},
        "unet": {"ccdiff_cli.methods.migc.network": ("MIGCUNet",)},
    }

    # wide: the parts that its folder holds
    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder | TinyAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: MIGCUNet,
        scheduler: SchedulerMixin,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        published_padding: int = 0,
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            published_padding=published_padding,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def prepare_layout(self, layout: LayoutBatch) -> LayoutBatch:
        """Padded as published where the generator says so."""
        return layout.published_padding(self.config.published_padding) if self.config.published_padding else layout

    def condition(  # type: ignore[override]  # an unknown option is an error
        self,
        layout: LayoutBatch,
        empty: Tensor,
        *,
        dropped: Tensor | None = None,
        guided: bool = False,
        slot_order: Tensor | None = None,
    ) -> tuple[Tensor, MIGCContext]:
        """Text tokens, and masks, keys and values of every layer with the module.

        Args:
            slot_order: see ``prepare_context``; a random one is what the authors' program has.
        """
        self.bring_unet()
        conditional = None
        if dropped is not None:
            conditional = ~dropped
            middle = migc_config(self.unet).slots - 2
            slot_order = torch.stack([torch.randperm(middle) for _ in range(layout.batch_size)]).to(layout.hbb.device)
        text = self.text_rows(layout, empty, dropped=dropped, guided=guided)
        return text, prepare_context(self.unet, layout, conditional, guidance=guided, order=slot_order)

    def predict(self, x: Tensor, t: Tensor, condition: Any, share: float = 0.0) -> Tensor:
        text, context = condition
        now = context.at(share, migc_config(self.unet))
        kwargs = None if now is None else {"conditioning": now}
        return self.unet(x, t, encoder_hidden_states=text, cross_attention_kwargs=kwargs, return_dict=False)[0].float()
