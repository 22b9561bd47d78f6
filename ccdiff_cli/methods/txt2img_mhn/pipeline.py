"""MHNPipeline: Txt2Img-MHN as a :class:`~ccdiff_cli.models.pipeline.ScenePipeline`.

Notable here: nothing is denoised.  What stands for latents are codes, drawn one after another, each picture's by its own generator; steps
have no meaning.  Guidance is of logits, against a caption of nothing, and off unless asked for, as in every released script.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import CCDiffError
from ...models.layout import LayoutBatch
from ...models.pipeline import ScenePipeline
from .network import PrototypeTransformer, uniform_of
from .pictures import VQGAN, VQVAE
from .tokenizer import CaptionPieces


class MHNPipeline(ScenePipeline):
    """Pictures from captions.

    Args:
        transformer, pictures: the generator's parts.
        vocabulary: of the captions, as the text of a released file.
        num_inference_steps, negative_prompt: without meaning here; guidance_scale: of logits, 1: none.
        left_out: share of the whole vocabulary that a code is not drawn from; temperature: of the draws.
    """

    PARTS: ClassVar = {
        "transformer": {"ccdiff_cli.methods.txt2img_mhn.network": ("PrototypeTransformer",)},
        "pictures": {"ccdiff_cli.methods.txt2img_mhn.pictures": ("VQVAE", "VQGAN")},
    }
    TRAINED: ClassVar = ("transformer", "pictures")

    def __init__(
        self,
        transformer: PrototypeTransformer,
        pictures: VQVAE | VQGAN,
        vocabulary: str = "",
        num_inference_steps: int = 1,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        left_out: float = 0.9,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, pictures=pictures)
        self.register_to_config(
            vocabulary=vocabulary,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            left_out=left_out,
            temperature=temperature,
        )
        self.pieces = CaptionPieces(length=transformer.config.text_length, text=vocabulary)
        self.vae_scale_factor = pictures.factor

    def ids_of(self, captions: Sequence[str]) -> Tensor:
        """Captions -> ids ``(B, T)``; one that is too long is cut, with a warning."""
        ids, counts = self.pieces(captions)
        for caption, count in zip(captions, counts, strict=True):
            if count > ids.shape[1]:
                warnings.warn(f"a caption of {count} pieces is cut to {ids.shape[1]}: {caption[:80]!r}...", stacklevel=2)
        return ids

    @torch.no_grad()
    def encode_latents(self, pixels: Tensor) -> Tensor:
        """``(n, 3, H, W)`` in [-1, 1] -> codes ``(n, h, w)``."""
        dtype = next(self.pictures.parameters()).dtype
        return self.pictures.encode((pixels.to(self._execution_device, dtype) + 1) / 2).float()

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Codes ``(n, h, w)`` -> ``(n, 3, H, W)`` float32 in [0, 1]."""
        return self.pictures.decode(latents.long()).float()

    def compile_blocks(self, **kwargs: Any) -> None:
        raise CCDiffError("Txt2Img-MHN has no blocks to compile: a code costs one row", where="--compile", fix="leave the option out")

    def sample(
        self,
        layout: LayoutBatch,
        empty: Tensor,
        generators: Sequence[torch.Generator | None],
        *,
        steps: int,
        scale: float,
        latents: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Codes ``(B, h, w)``, drawn one after another."""
        grid = tuple(self.transformer.config.grid)
        if layout.latent_size != grid:
            height, width = (side * self.vae_scale_factor for side in grid)
            raise CCDiffError(
                f"Txt2Img-MHN was trained on pictures of {width}x{height}, asked for {layout.image_size[1]}x{layout.image_size[0]}",
                fix="take scenes of its size",
            )
        if latents is not None or options:
            raise CCDiffError(f"Txt2Img-MHN takes no {'latents' if latents is not None else next(iter(options))}")
        vocabulary = self.transformer.all_text + self.transformer.config.codes
        text = self.ids_of(layout.captions).to(self._execution_device)
        settings = {"filter_threshold": self.config.left_out, "temperature": self.config.temperature, "guidance": scale}
        codes = self.transformer.sample(text, uniform_of(generators, vocabulary), **settings)
        return codes.unflatten(1, grid).float()
