"""LayoutDiffusionPipeline: LayoutDiffusion as a :class:`~ccdiff_cli.models.pipeline.ScenePipeline`.

Notable here:
- no text is read; classes are those of the list the network keeps, boxes are horizontal (of an oriented one, its enclosing box).
- in the unconditional branch every object is a padding slot; a guidance scale of 2 is what the authors call 1.
- it samples by DPM-Solver-fast in its own continuous time, or by the ancestral chain; the diffusers scheduler is that of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from torch import Tensor

from ...errors import CCDiffError
from ...generator import CLASSES
from ...models.autoencoder import PatchAutoencoder, TinyAutoencoder
from ...models.layout import LayoutBatch
from ...models.pipeline import ScenePipeline
from . import sampling
from .network import Layout, LayoutContext, LayoutDiffusionUNet, pack_layout

SAMPLERS = ("dpmsolver-fast", "ancestral")


class LayoutDiffusionPipeline(ScenePipeline):
    """Generation from horizontal boxes of known classes.

    Args:
        unet: the network; scheduler: the noise schedule it was trained on.
        vae: of the latents; None: it works on pixels.
        num_inference_steps, guidance_scale, negative_prompt: what a call uses where it does not say (the last has no effect).
        sampler: "dpmsolver-fast" or "ancestral"; end_time: where the former stops.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012 - diffusers' name and form
    PARTS: ClassVar = {
        "vae": CLASSES["vae"],
        "unet": {"ccdiff_cli.methods.layoutdiffusion.network": ("LayoutDiffusionUNet",)},
        "scheduler": CLASSES["scheduler"],
    }

    def __init__(
        self,
        unet: LayoutDiffusionUNet,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | PatchAutoencoder | TinyAutoencoder | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.0,
        negative_prompt: str = "",
        sampler: str = "dpmsolver-fast",
        end_time: float = 1e-4,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            sampler=sampler,
            end_time=end_time,
        )
        self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def known_classes(self) -> list[str]:
        return list(self.unet.config.class_names)

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """``(n, 3, H, W)`` in [-1, 1]: themselves, or their latents."""
        return pixels.to(self._execution_device) if self.vae is None else super().encode_latents(pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """``(n, C, h, w)`` -> ``(n, 3, H, W)`` float32 in [0, 1]."""
        return (latents.float() / 2 + 0.5).clamp(0, 1) if self.vae is None else super().decode_latents(latents)

    def set_up(self, *, scheduler: str | None = None, channels_last: bool = False, compile: bool = False) -> None:
        if scheduler is not None and scheduler not in SAMPLERS:
            raise CCDiffError(
                f"LayoutDiffusion does not sample by {scheduler!r}", where="--scheduler", fix=f"choose one of {', '.join(SAMPLERS)}"
            )
        if scheduler is not None:
            self.register_to_config(sampler=scheduler)
        super().set_up(channels_last=channels_last, compile=compile)

    def condition(
        self, layout: LayoutBatch, empty: Tensor, *, dropped: Tensor | None = None, guided: bool = False, **options: Any
    ) -> LayoutContext:
        """What every layer needs of the objects; of rows of the unconditional branch, of padding in their place."""
        padding = self.unet.padding
        given = pack_layout(layout.class_index + 1, layout.hbb, layout.valid, self.unet.config.slots, padding)
        if dropped is not None or guided:
            without = given.without_objects(padding)
            if guided:
                given = Layout(*(torch.cat([getattr(without, k), getattr(given, k)]) for k in ("classes", "boxes", "weight")))
            else:
                assert dropped is not None
                rows = dropped[:, None]
                given = Layout(
                    torch.where(rows, without.classes, given.classes),
                    torch.where(rows[..., None], without.boxes, given.boxes),
                    given.weight,
                )
        return self.unet.prepare(given)

    def predict(self, x: Tensor, t: Tensor, condition: Any, share: float = 0.0) -> Tensor:
        """The noise; the variance is what only :meth:`sample` asks for."""
        return self.unet(x, t, condition).float().chunk(2, dim=1)[0]

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
        """The published samplers; ``steps`` are evaluations of the network."""
        if layout.latent_size != (self.unet.config.image_size,) * 2:
            side = self.unet.config.image_size * self.vae_scale_factor
            raise CCDiffError(
                f"LayoutDiffusion was built for pictures of {side}x{side}, asked for {layout.image_size[1]}x{layout.image_size[0]}",
                fix="take scenes of its size",
            )
        guided, device = scale != 1.0, self._execution_device
        condition = self.condition(layout, empty, guided=guided)
        noise = self.initial_noise(generators, layout) if latents is None else latents
        expected = (layout.batch_size, self.unet.config.in_channels, *layout.latent_size)
        if noise.shape != expected:
            raise CCDiffError(f"latents of shape {tuple(noise.shape)}, expected {expected}")
        x = noise.to(device=device, dtype=torch.float32)
        with self.progress_bar(total=steps) as bar:

            def both(y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
                rows = torch.cat([y, y]) if guided else y
                predicted, variance = self.unet(rows.to(self.arithmetic), t[:1], condition).float().chunk(2, dim=1)
                bar.update()
                if not guided:
                    return predicted, variance
                unconditional, conditional = predicted.chunk(2)
                return unconditional + scale * (conditional - unconditional), variance.chunk(2)[1]

            if self.config.sampler == "ancestral":

                def added(step: int) -> Tensor:
                    return self.initial_noise(generators, layout).to(device)

                x = sampling.ancestral_sample(both, x, steps, added, clamp=self.vae is None)
            else:
                x = sampling.dpm_sample(lambda y, t: both(y, t)[0], x, steps, self.config.end_time)
        return x.clamp(-1, 1) if self.vae is None else x
