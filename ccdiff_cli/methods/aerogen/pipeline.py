"""AeroGenPipeline: AeroGen as a :class:`~ccdiff_cli.models.pipeline.ScenePipeline`.

Notable here:
- the unconditional branch lacks the caption alone, as published: guidance strengthens the caption, not the layout.
- boxes enter as four corners from the left top one clockwise, whatever order a file or a turned picture has them in.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from ...errors import CCDiffError
from ...generator import CLASSES
from ...models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ...models.layout import LayoutBatch
from ...models.pipeline import ScenePipeline
from ...pretrained import SPARE_OF_CLIP
from ...sources import Source, check_model
from .network import AeroGenUNet, Layout, LayoutContext, clockwise
from .sampling import AeroGenDDIM, ddim


def projecting_text_encoder(source: Source, text_encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The text encoder of a CLIP with its projection, which must be that of ``text_encoder``.

    Raises:
        CCDiffError: it cannot be loaded, or is of another width.
    """
    kinds = {name: CLIPTextModelWithProjection for name in ("clip", "clip_text_model")}
    found = check_model(kinds, source, fits="the CLIP that the text encoder is of", spare=SPARE_OF_CLIP).load()
    if found.config.hidden_size != text_encoder.config.hidden_size:
        raise CCDiffError(
            f"its text tokens are {found.config.hidden_size} wide, those of the text encoder {text_encoder.config.hidden_size}",
            where=source.where,
            fix="give the CLIP that the text encoder is of",
        )
    return found  # type: ignore[no-any-return]


class AeroGenPipeline(ScenePipeline):
    """Generation from captions and oriented boxes.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the generator's parts.
        num_inference_steps, guidance_scale, negative_prompt: what a call uses where it does not say; saved with the generator.
        eta: noise of the DDIM sampler.
        class_prompt: the text whose pooled feature (projected, where the text encoder has a projection) stands for a ``{class}``.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    PARTS: ClassVar = {
        **{name: CLASSES[name] for name in ("vae", "tokenizer")},
        "text_encoder": {"transformers": ("CLIPTextModel", "CLIPTextModelWithProjection")},
        "unet": {"ccdiff_cli.methods.aerogen.network": ("AeroGenUNet",)},
        "scheduler": {**CLASSES["scheduler"], "ccdiff_cli.methods.aerogen.sampling": ("AeroGenDDIM",)},
    }

    # wide: the parts that its folder holds
    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder | TinyAutoencoder,
        text_encoder: CLIPTextModel | CLIPTextModelWithProjection,
        tokenizer: PreTrainedTokenizerBase,
        unet: AeroGenUNet,
        scheduler: AeroGenDDIM | SchedulerMixin,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        eta: float = 0.2,
        class_prompt: str = "an aerial photo of a {class}",
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            eta=eta,
            class_prompt=class_prompt,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``n`` texts -> tokens ``(n, L, D)`` of each as a caption, and ``(n, C)`` the feature of each as a class."""
        tokens = self._encoded(texts).last_hidden_state
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # captions get a class's prompt, too, and nobody asks for them
            out = self._encoded([self.config.class_prompt.replace("{class}", text) for text in texts])
        return tokens, out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output

    def set_up(self, *, scheduler: str | None = None, channels_last: bool = False, compile: bool = False) -> None:
        if scheduler == "ddim":
            self.scheduler = ddim(self.scheduler.config.prediction_type)
        super().set_up(scheduler=None if scheduler == "ddim" else scheduler, channels_last=channels_last, compile=compile)

    def condition(
        self, layout: LayoutBatch, empty: Tensor, *, dropped: Tensor | None = None, guided: bool = False, **options: Any
    ) -> tuple[Tensor, LayoutContext]:
        """Text tokens, and tokens and masks of the objects, which both branches have."""
        corners = layout.obb.unflatten(-1, (2, 4)).transpose(-1, -2)  # B, N, 4, 2
        vectors = (
            layout.class_pooled[layout.class_index]
            if len(layout.class_pooled)
            else layout.class_pooled.new_zeros(*layout.class_index.shape, self.unet.layout_config.class_width)
        )
        context = self.unet.prepare(Layout(clockwise(corners), vectors, layout.valid, layout.latent_size))
        return self.text_rows(layout, empty, dropped=dropped, guided=guided), context.repeated(2) if guided else context

    def predict(self, x: Tensor, t: Tensor, condition: Any, share: float = 0.0) -> Tensor:
        text, context = condition
        return self.unet(x, t, encoder_hidden_states=text, cross_attention_kwargs={"layout": context}, return_dict=False)[0].float()
