"""CCDiffPipeline: CC-Diff and CC-Diff++ as a :class:`~ccdiff_cli.models.pipeline.ScenePipeline`.

Notable here: the condition enters in the cross-attention of the UNet's chosen places (``models.conditioning``), from box, class text and
the tokens that a resampler makes of reference pictures; rows of the unconditional branch go through the plain cross-attention with
the negative prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import CCDiffError
from ...generator import CLASSES
from ...models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ...models.conditioning import ConditionedUNet, ConditioningContext, prepare_context
from ...models.layout import LayoutBatch
from ...models.pipeline import ScenePipeline
from ...models.resamplers import CoResampler, DualResampler

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CCDiffPipeline(ScenePipeline):
    """Layout-conditioned generation of aerial pictures.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, resampler: the generator's parts.
        image_encoder, feature_extractor: encode references; may be None where references are never given.
        num_inference_steps, guidance_scale, negative_prompt: what a call uses where it does not say; saved with the generator.
        renormalise_references: put ImageNet's mean and deviation on top of the feature extractor's own normalisation, as the
            released CC-Diff and CC-Diff++ checkpoints expect.
        published_padding: fill pictures up to so many all-zero instances (6 as published), see ``LayoutBatch.published_padding``.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->resampler->unet->vae"
    _optional_components = ["image_encoder", "feature_extractor"]  # noqa: RUF012 - diffusers' name and form
    PARTS: ClassVar = {
        **CLASSES,
        "unet": {"ccdiff_cli.models.conditioning": ("ConditionedUNet",)},
        "resampler": {"ccdiff_cli.models.resamplers": ("CoResampler", "DualResampler")},
    }
    TRAINED: ClassVar = ("unet", "resampler")

    # wide: the parts that its folder holds
    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder | TinyAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: ConditionedUNet,
        scheduler: SchedulerMixin,
        resampler: CoResampler | DualResampler,
        image_encoder: PreTrainedModel | None = None,
        feature_extractor: BaseImageProcessor | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        renormalise_references: bool = False,
        published_padding: int = 0,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            resampler=resampler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            renormalise_references=renormalise_references,
            published_padding=published_padding,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_references(self, images: Sequence[Image.Image]) -> Tensor:
        """``n`` RGB pictures -> image tokens ``(n, T, E)``.

        Raises:
            CCDiffError: the generator has no image encoder.
        """
        if self.image_encoder is None or self.feature_extractor is None:
            raise CCDiffError("this generator has no image encoder", fix="generate without references, or import the generator with one")
        pixels = self.feature_extractor(images=list(images), return_tensors="pt")["pixel_values"]
        if self.config.renormalise_references:
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
            pixels = (pixels - mean) / std
        dtype = next(self.image_encoder.parameters()).dtype
        return self.image_encoder(pixels.to(device=self._execution_device, dtype=dtype)).last_hidden_state

    def empty_features(self) -> Tensor:
        """``(0, T, E)``: a missing reference has as many zero tokens as a real one, whatever else is in the batch."""
        tokens = 1
        if self.image_encoder is not None:
            tokens = self._references.get(None, lambda: (self.encode_references([Image.new("RGB", (64, 64))]),))[0].shape[1]
        return torch.zeros(0, tokens, self.resampler.config.embedding_dim)

    def prepare_layout(self, layout: LayoutBatch) -> LayoutBatch:
        """Region masks drawn; padded as published where the generator says so."""
        if self.config.published_padding:
            layout = layout.published_padding(self.config.published_padding)
        return layout.with_regions()

    def condition(  # type: ignore[override]  # an unknown option is an error
        self,
        layout: LayoutBatch,
        empty: Tensor,
        *,
        dropped: Tensor | None = None,
        guided: bool = False,
        gate_threshold: float | None = None,
    ) -> tuple[Tensor, ConditioningContext]:
        """Text tokens, and keys, values, gates and masks of every enhanced layer (``gate_threshold``: see ``ConditioningConfig``)."""
        tokens = self.resampler(layout)
        self.bring_unet()
        conditional = None if dropped is None else ~dropped
        context = prepare_context(self.unet, layout, tokens, conditional, guidance=guided, gate_threshold=gate_threshold)
        return self.text_rows(layout, empty, dropped=dropped, guided=guided), context

    def predict(self, x: Tensor, t: Tensor, condition: Any, share: float = 0.0) -> Tensor:
        text, context = condition
        return self.unet(x, t, encoder_hidden_states=text, cross_attention_kwargs={"conditioning": context}, return_dict=False)[0].float()
