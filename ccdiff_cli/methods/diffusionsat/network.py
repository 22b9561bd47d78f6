"""The network of DiffusionSat (Khanna et al., ICLR 2024): a Stable Diffusion UNet whose time embedding also says where, when and how a
picture was taken.

Notable here:
- the UNet is a plain ``UNet2DConditionModel`` of ``class_embed_type="identity"``: what :class:`MetadataEmbedding` makes of the seven
  quantities is its ``class_labels``.  It does not change over the denoising steps, so it is computed once for a picture.
- :func:`scale_metadata` is the one place where quantities are shifted and scaled, in double precision, rounded once.
- an unknown quantity is the number 0, which has an embedding like any other; the released weights want it so.  0 is also a true value
  (no cloud, longitude -180), which the network cannot tell from unknown.
- the sinusoids are in single precision whatever the precision of the weights: half rounds a year to steps of four.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, UNet2DConditionModel
from diffusers import ModelMixin as ModelMixin  # diffusers looks it up here when it loads a saved MetadataEmbedding
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor

from ...quantities import QUANTITIES

_SHIFT = (180.0, 90.0, 0.0, 0.0, -1980.0, 0.0, 0.0)
_RANGE = (360.0, 180.0, 1.0, 1.0, 120.0, 12.0, 31.0)


def scale_metadata(raw: Tensor) -> Tensor:
    """``(..., 7)`` of ``QUANTITIES`` as measured, NaN where unknown -> ``(..., 7)`` float32 as the network takes them, unknown ones 0."""
    shift, span = (torch.tensor(v, dtype=torch.float64, device=raw.device) for v in (_SHIFT, _RANGE))
    return torch.nan_to_num(1000 * (raw.double() + shift) / span, nan=0.0, posinf=torch.inf, neginf=-torch.inf).float()


class MetadataEmbedding(ModelMixin, ConfigMixin):
    """``sum_i M_i(e(s_i))`` with a small network M_i for each quantity; parameters are called ``{i}.linear_{1,2}.*``.

    Args:
        channels: width of the sinusoids: the UNet's first ``block_out_channels``.
        width: of the UNet's time embedding.
        num_metadata: quantities.
        flip_sin_to_cos, freq_shift: of the UNet's own sinusoids.
    """

    @register_to_config
    def __init__(self, channels: int = 320, width: int = 1280, num_metadata: int = 7, flip_sin_to_cos: bool = True, freq_shift: float = 0):
        super().__init__()
        self.sinusoids = Timesteps(channels, flip_sin_to_cos=flip_sin_to_cos, downscale_freq_shift=freq_shift)
        for i in range(num_metadata):
            self.add_module(str(i), TimestepEmbedding(channels, width))

    def forward(self, scaled: Tensor) -> Tensor:
        """``(B, 7)`` of :func:`scale_metadata` -> ``(B, width)``.

        Raises:
            ValueError: another number of quantities.
        """
        count = self.config.num_metadata
        if scaled.shape[-1] != count:
            raise ValueError(f"expected {count} quantities a picture, found {tuple(scaled.shape)}")
        codes = self.sinusoids(scaled.float().flatten()).view(*scaled.shape, -1).to(self.dtype)
        return torch.stack([self.get_submodule(str(i))(codes[..., i, :]) for i in range(count)]).sum(0)


def make_unet(config: Mapping[str, Any]) -> tuple[UNet2DConditionModel, MetadataEmbedding]:
    """An untrained UNet and its embedding, of a UNet's configuration; ``num_metadata`` of a released one is followed."""
    own = {k: v for k, v in config.items() if k not in ("use_metadata", "num_metadata")} | {"class_embed_type": "identity"}
    unet = UNet2DConditionModel.from_config(own)
    return unet, embedding_of(unet, int(config.get("num_metadata") or len(QUANTITIES)))


def embedding_of(unet: UNet2DConditionModel, num_metadata: int = len(QUANTITIES)) -> MetadataEmbedding:
    """An untrained embedding of the sizes of a UNet."""
    config = unet.config
    return MetadataEmbedding(
        channels=config.block_out_channels[0],
        width=unet.time_embedding.linear_2.out_features,
        num_metadata=num_metadata,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
    )


def with_metadata(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same UNet, its parameters untouched, made to add ``class_labels`` to its time embedding.

    Raises:
        ValueError: it has class labels of its own.
    """
    if unet.class_embedding is not None and unet.config.class_embed_type != "identity":
        raise ValueError(f"the UNet has class labels of its own ({unet.config.class_embed_type or 'a table'})")
    unet.class_embedding = torch.nn.Identity()
    unet.register_to_config(class_embed_type="identity")
    return unet


def keep_metadata(scaled: Tensor, keep: Tensor) -> Tensor:
    """``(B, 7)`` with the quantities that are not kept as unknown ones: ``keep`` is ``(B, 7)`` or ``(B, 1)``, bool or 0 and 1."""
    return torch.where(keep.bool(), scaled, torch.zeros_like(scaled))
