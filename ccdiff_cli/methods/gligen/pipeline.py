"""GLIGENPipeline: GLIGEN as a :class:`~ccdiff_cli.models.pipeline.ScenePipeline`.

Notable here: both branches go through the gated layers, the unconditional one with empty slots; after the grounded steps both are
plain.  In training a picture's caption and grounding are dropped together, each picture by itself (published: the grounding of the whole
batch, and the caption more often).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers import AutoencoderKL, SchedulerMixin
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from ...generator import CLASSES
from ...models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ...models.layout import LayoutBatch
from ...models.pipeline import ScenePipeline
from .network import GroundedUNet, grounding_config, grounding_scale, grounding_slots


@dataclass
class Grounding:
    """``text``: tokens of every row; ``slots``: what the UNet takes; ``always``: in training, where the schedule does not count."""

    text: Tensor
    slots: dict[str, dict[str, Tensor]]
    always: bool


class GLIGENPipeline(ScenePipeline):
    """Pictures from a caption and boxes with class names.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the generator's parts.
        num_inference_steps, guidance_scale, negative_prompt: what a call uses where it does not say; saved with the generator.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    PARTS: ClassVar = {
        **{name: CLASSES[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")},
        "unet": {"ccdiff_cli.methods.gligen.network": ("GroundedUNet",)},
    }

    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder | TinyAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: GroundedUNet,
        scheduler: SchedulerMixin,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def condition(  # type: ignore[override]  # an unknown option is an error
        self,
        layout: LayoutBatch,
        empty: Tensor,
        *,
        dropped: Tensor | None = None,
        guided: bool = False,
    ) -> Grounding:
        """Text tokens and slots."""
        text = self.text_rows(layout, empty, dropped=dropped, guided=guided)
        slots = grounding_slots(layout, grounding_config(self.unet).slots, None if dropped is None else ~dropped, guidance=guided)
        return Grounding(text, slots, dropped is not None)

    def predict(self, x: Tensor, t: Tensor, condition: Any, share: float = 0.0) -> Tensor:
        scale = 1.0 if condition.always else self._scale(share)
        with grounding_scale(self.unet, scale):
            return self.unet(x, t, encoder_hidden_states=condition.text, cross_attention_kwargs=condition.slots, return_dict=False)[
                0
            ].float()

    def _scale(self, share: float) -> float:
        """Of the step after ``share`` of the network's passes.  PLMS, as published, has one pass more than steps, in the first."""
        steps, passes = self.scheduler.num_inference_steps, len(self.scheduler.timesteps)
        return grounding_config(self.unet).scale(max(0, round(share * passes) - (passes - steps)), steps)
