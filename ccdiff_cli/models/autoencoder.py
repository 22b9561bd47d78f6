"""Our own small latent autoencoder, where no Stable Diffusion VAE is given.

Notable here:
- the encoder is the principal components of square patches, found in closed form: no training, no drift, and at the sizes of the tiny
  recipe better than a convolutional VAE that two CPU cores can train in an hour (measured: see docs/log.md).
- the decoder is the matching linear map plus a small convolutional network that removes the seams between patches.
- latents have mean 0 and the strongest channel deviation 1 over the training pictures, so ``scaling_factor`` is 1.  How far the
  weaker channels (fine texture) are raised to the same deviation is ``whitening``: a short diffusion training does better when they
  are not, because coarse structure is then settled before texture.
- to the pipeline it looks like diffusers' ``AutoencoderKL``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny, ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

SCALES = ("scaling_factor", "shift_factor", "latent_mean", "latent_scale")
"""Keys of an autoencoder's configuration that decide its latents beside its weights."""


def encoder_weights(vae: nn.Module) -> dict[str, Tensor]:
    """What of an autoencoder (one of ours, or an ``AutoencoderKL``) makes latents of pictures."""
    return {name: value for name, value in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}


def decoder_parameters(vae: nn.Module) -> list[nn.Parameter]:
    """What of it makes pictures of latents."""
    encoder = encoder_weights(vae)
    return [parameter for name, parameter in vae.named_parameters() if name not in encoder]


_LOG_VARIANCE = -20.0  # the latent is what the encoder says, without noise


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Principal components of patches, and a decoder that smooths their seams.

    Args:
        block_out_channels: widths of the decoder from full resolution down; the picture shrinks by ``2 ** (len - 1)``.  The first
            is that of half resolution (the last step to full resolution is a pixel shuffle).
        latent_channels: components kept.
        whitening: the deviation of a channel is that of its component, relative to the strongest, to the power ``1 - whitening``.
        scaling_factor, shift_factor: as in ``AutoencoderKL``; the identity.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (48, 48, 96, 192),
        latent_channels: int = 16,
        whitening: float = 1.0,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
    ):
        super().__init__()
        patch = 2 ** (len(block_out_channels) - 1)
        self.encoder = nn.Conv2d(3, latent_channels, patch, stride=patch)
        self.linear_decoder = nn.ConvTranspose2d(latent_channels, 3, patch, stride=patch)
        widths = list(reversed(block_out_channels[1:]))
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1), _Block(widths[0])]
        for before, after in zip(widths, [*widths[1:], 0], strict=True):
            layers.append(_Block(before))
            layers.append(nn.Conv2d(before, 4 * after, 1) if after else nn.Conv2d(before, 12, 3, padding=1))
            layers.append(nn.PixelShuffle(2))
        self.seams = nn.Sequential(*layers)
        nn.init.zeros_(layers[-2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]

    def encode(self, pixels: Tensor, return_dict: bool = True) -> Any:
        """``(B, 3, H, W)`` in [-1, 1] -> a distribution over ``(B, C, h, w)`` without spread."""
        mean = self.encoder(pixels)
        distribution = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, _LOG_VARIANCE)], dim=1))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> Any:
        """``(B, C, h, w)`` -> ``(B, 3, H, W)``."""
        pixels = self.linear_decoder(latents) + self.seams(latents)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    @torch.no_grad()
    def fit_components(self, patches: Tensor) -> None:
        """Set encoder and linear decoder from ``(n, 3 * patch * patch)`` patches in [-1, 1], in closed form."""
        patches = patches.double()
        mean = patches.mean(0)
        centred = patches - mean
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
        count, patch = self.config.latent_channels, self.encoder.kernel_size[0]
        variance, vectors = variance.flip(0)[:count].clamp(min=1e-10), vectors.flip(1)[:, :count]
        strongest = vectors.abs().argmax(0)
        vectors = vectors * vectors[strongest, torch.arange(count)].sign()  # an eigenvector's sign is arbitrary: fix it
        deviation = variance.sqrt()
        scale = deviation * (deviation[0] / deviation) ** (1 - self.config.whitening)
        into = (vectors / scale).T
        self.encoder.weight.copy_(into.reshape(count, 3, patch, patch))
        encoder_bias, decoder_bias = self.encoder.bias, self.linear_decoder.bias
        assert encoder_bias is not None and decoder_bias is not None
        encoder_bias.copy_(-into @ mean)
        self.linear_decoder.weight.copy_((vectors * scale).T.reshape(count, 3, patch, patch))
        # over all places in a picture the mean patch has one colour, so a bias per colour is enough
        decoder_bias.copy_(mean.reshape(3, -1).mean(1))


class TinyAutoencoder(AutoencoderTiny):
    """diffusers' ``AutoencoderTiny`` (Ollin Boer Bohan's TAESD) whose latents are normalised, with the face of an ``AutoencoderKL``.

    A channel's latent is what the network says, less ``latent_mean``, over ``latent_scale``; both are kept in the configuration.

    Args:
        block_out_channels: channels of every layer, four times the same number; the picture shrinks by 8.
        latent_channels: channels of the latent.
        latent_mean, latent_scale: one number for each channel of the latent; none: 0 and 1.
        scaling_factor, shift_factor: as in ``AutoencoderKL``; the identity.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (64, 64, 64, 64),
        latent_channels: int = 16,
        latent_mean: Sequence[float] | None = None,
        latent_scale: Sequence[float] | None = None,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
    ):
        own = dict(self.config)
        widths = tuple(block_out_channels)
        super().__init__(latent_channels=latent_channels, encoder_block_out_channels=widths, decoder_block_out_channels=widths)
        self._internal_dict = FrozenDict(own)  # without the settings of AutoencoderTiny that are always the same here

    @classmethod
    def of(cls, plain: AutoencoderTiny) -> TinyAutoencoder:
        """The same networks, not normalised yet.

        Raises:
            RuntimeError: the networks are not of the form of TAESD.
        """
        made = cls(plain.config.encoder_block_out_channels, plain.config.latent_channels)
        made.load_state_dict(plain.state_dict())
        return made

    @torch.no_grad()
    def normalise(self, latents: Tensor, whitening: float) -> None:
        """Set mean and scale from ``(n, C, h, w)`` latents of the network itself.

        Afterwards channels have mean 0, and the deviation of each is its own over the largest, to the power ``1 - whitening``.
        """
        values = latents.double().transpose(0, 1).flatten(1)
        deviation = values.std(1).clamp(min=1e-6)
        scale = deviation**whitening * deviation.max() ** (1 - whitening)
        rounded = [[round(float(v), 6) for v in row] for row in (values.mean(1), scale)]
        self.register_to_config(latent_mean=rounded[0], latent_scale=rounded[1])

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """``(B, 3, H, W)`` in [-1, 1] -> a distribution over ``(B, C, h, w)`` without spread."""
        mean, scale = self._normalisation(x)
        latents = (self.encoder(x) - mean) / scale
        distribution = DiagonalGaussianDistribution(torch.cat([latents, torch.full_like(latents, _LOG_VARIANCE)], dim=1))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True) -> Any:
        """``(B, C, h, w)`` -> ``(B, 3, H, W)``."""
        mean, scale = self._normalisation(x)
        pixels = self.decoder(x * scale + mean)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def _normalisation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        count = self.config.latent_channels
        mean, scale = self.config.latent_mean or [0.0] * count, self.config.latent_scale or [1.0] * count
        return like.new_tensor(mean).view(-1, 1, 1), like.new_tensor(scale).view(-1, 1, 1)
