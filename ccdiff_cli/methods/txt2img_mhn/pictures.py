"""The two picture tokenizers of Txt2Img-MHN: pictures to a grid of codes and back.

Notable here:
- :class:`VQVAE` (a discrete VAE, 8 times smaller) and :class:`VQGAN` (taming-transformers, 16 times smaller as published) have one face:
  ``encode`` pictures in [0, 1] to codes, ``decode`` codes to pictures in [0, 1], ``reconstruct`` and ``loss`` for training.
- parameter names are those of the released checkpoints, without ``vae.`` and ``vae.model.``.
- both take pictures of any sides that the grid divides, though the transformer behind them knows one grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers import ModelMixin as ModelMixin  # diffusers looks it up here when it loads a saved tokenizer
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) -> Gumbel noise, finite at 0 too."""
    return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class VQVAE(ModelMixin, ConfigMixin):
    """A discrete VAE: one logit for each code and cell.

    Args:
        codes, code_width: of the codebook.
        halvings: the picture shrinks by ``2 ** halvings``.
        residual_blocks, hidden: depth and width of the networks.
        channels: of a picture.
    """

    @register_to_config
    def __init__(
        self, codes: int = 2048, code_width: int = 512, halvings: int = 3, residual_blocks: int = 2, hidden: int = 64, channels: int = 3
    ):
        super().__init__()
        self.codebook = nn.Embedding(codes, code_width)
        encoder: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(hidden if k else channels, hidden, 4, stride=2, padding=1), nn.ReLU()) for k in range(halvings)
        ]
        encoder += [_Residual(hidden) for _ in range(residual_blocks)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(hidden if halvings else channels, codes, 1))
        decoder: list[nn.Module] = [nn.Conv2d(code_width, hidden, 1)] if residual_blocks else []
        decoder += [_Residual(hidden) for _ in range(residual_blocks)]
        for k in range(halvings):
            first = code_width if k == 0 and not residual_blocks else hidden
            decoder.append(nn.Sequential(nn.ConvTranspose2d(first, hidden, 4, stride=2, padding=1), nn.ReLU()))
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(hidden, channels, 1))

    @property
    def codes(self) -> int:
        return self.config.codes

    @property
    def factor(self) -> int:
        """Pixels a cell."""
        return 2**self.config.halvings

    def logits(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, codes, h, w)``."""
        return self.encoder(2 * pixels - 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> codes ``(B, h, w)`` int64."""
        return self.logits(pixels).argmax(1)

    def raw(self, codes: Tensor) -> Tensor:
        """Codes ``(B, h, w)`` -> the decoder's output ``(B, 3, H, W)``, about [-1, 1]."""
        return self.decoder(self.codebook(codes).permute(0, 3, 1, 2))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(B, h, w)`` -> ``(B, 3, H, W)`` in [0, 1]."""
        return ((self.raw(codes) + 1) / 2).clamp(0, 1)

    def reconstruct(self, pixels: Tensor, noise: Tensor, tau: float) -> Tensor:
        """The decoder's output for a soft choice of codes with Gumbel noise ``(B, codes, h, w)`` at temperature ``tau``."""
        weights = ((self.logits(pixels) + noise) / tau).softmax(1)
        return self.decoder(torch.einsum("bchw,cd->bdhw", weights, self.codebook.weight))

    def loss(self, pixels: Tensor, noise: Tensor, tau: float) -> Tensor:
        """The mean squared error of :meth:`reconstruct`."""
        return F.mse_loss(self.reconstruct(pixels, noise, tau), 2 * pixels - 1)


class _ResBlock(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = _norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Attention(nn.Module):
    """One head over all cells."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x))


class _Middle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = _ResBlock(width, width), _Attention(width), _ResBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Down(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Residual blocks of one width, each followed by attention where the level has it, and a change of size at the end."""

    def __init__(self, before: int, after: int, blocks: int, attention: bool):
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(after if j else before, after) for j in range(blocks))
        self.attn = nn.ModuleList(_Attention(after) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[j](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, channels: int, width: int, multiples: Sequence[int], blocks: int, attention: Sequence[bool], out: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        widths = [width, *(width * m for m in multiples)]
        self.down = nn.ModuleList(_Level(widths[i], widths[i + 1], blocks, attention[i]) for i in range(len(multiples)))
        for level, own in zip(list(self.down)[:-1], widths[1:], strict=False):
            level.downsample = _Down(own)
        self.mid = _Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    def __init__(self, latent: int, width: int, multiples: Sequence[int], blocks: int, attention: Sequence[bool], channels: int):
        super().__init__()
        widths = [width * m for m in multiples]
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        above = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(_Level(above[i], widths[i], blocks + 1, attention[i]) for i in range(len(widths)))
        for level, own in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample = _Up(own)
        self.norm_out, self.conv_out = _norm(widths[0]), nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Codebook(nn.Module):
    def __init__(self, codes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, z: Tensor) -> Tensor:
        """``(B, D, h, w)`` -> the nearest codes ``(B, h, w)``."""
        cells, table = z.permute(0, 2, 3, 1), self.embedding.weight
        distance = cells.square().sum(-1, keepdim=True) + table.square().sum(-1) - 2 * cells @ table.T
        return distance.argmin(-1)


class VQGAN(ModelMixin, ConfigMixin):
    """The vector-quantised autoencoder of taming-transformers.

    Args:
        codes, code_width: of the codebook.
        latent_channels: of the networks on either side of it (``z_channels``).
        width, multiples: a level's width is ``width * multiples[i]``; the picture shrinks by ``2 ** (levels - 1)``.
        residual_blocks: of a level of the encoder; the decoder's have one more.
        resolution, attention_sides: levels whose side is one of the latter have attention, sides counted from ``resolution``.
        channels, out_channels: of a picture.
        double_latent: the encoder's last layer is twice as wide (``double_z``).
    """

    @register_to_config
    # wide: its saved configuration
    def __init__(
        self,
        codes: int = 1024,
        code_width: int = 256,
        latent_channels: int = 256,
        width: int = 128,
        multiples: Sequence[int] = (1, 1, 2, 2, 4),
        residual_blocks: int = 2,
        resolution: int = 256,
        attention_sides: Sequence[int] = (16,),
        channels: int = 3,
        out_channels: int = 3,
        double_latent: bool = False,
    ):
        super().__init__()
        attention = [resolution // 2**i in attention_sides for i in range(len(multiples))]
        into = latent_channels * (2 if double_latent else 1)
        self.encoder = _Encoder(channels, width, multiples, residual_blocks, attention, into)
        self.quant_conv = nn.Conv2d(into, code_width, 1)
        self.quantize = _Codebook(codes, code_width)
        self.post_quant_conv = nn.Conv2d(code_width, latent_channels, 1)
        self.decoder = _Decoder(latent_channels, width, multiples, residual_blocks, attention, out_channels)

    @property
    def codes(self) -> int:
        return self.config.codes

    @property
    def factor(self) -> int:
        """Pixels a cell."""
        return 2 ** (len(self.config.multiples) - 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, D, h, w)``, before the nearest codes are taken."""
        return self.quant_conv(self.encoder(2 * pixels - 1))

    def encode(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> codes ``(B, h, w)`` int64."""
        return self.quantize(self.latents(pixels))

    def raw(self, codes: Tensor) -> Tensor:
        """Codes ``(B, h, w)`` -> the decoder's output ``(B, 3, H, W)``, about [-1, 1]."""
        return self._decoded(self.quantize.embedding(codes).permute(0, 3, 1, 2))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(B, h, w)`` -> ``(B, 3, H, W)`` in [0, 1]."""
        return (self.raw(codes).clamp(-1, 1) + 1) / 2

    def quantised(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The codes' vectors ``(B, D, h, w)``, with the gradient of the latents, and the codebook loss."""
        z = self.latents(pixels)
        q = self.quantize.embedding(self.quantize(z)).permute(0, 3, 1, 2)
        loss = F.mse_loss(q.detach(), z) + 0.25 * F.mse_loss(q, z.detach())
        return z + (q - z).detach(), loss

    def reconstruct(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's output ``(B, 3, H, W)`` for the nearest codes, and the codebook loss."""
        q, loss = self.quantised(pixels)
        return self._decoded(q), loss

    def _decoded(self, q: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(q))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
