"""Inner levels of one denoiser in another: what is copied, what is new, and that what was copied computes what it did."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from ccdiff_cli.models.autoencoder import PatchAutoencoder, TinyAutoencoder, decoder_parameters
from ccdiff_cli.training.parts import same_latents_of
from ccdiff_cli.training.transplant import transplant


def blocks(*widths: int) -> nn.Module:
    made = nn.Module()
    made.conv_in = nn.Conv2d(3, widths[0], 3)
    made.down_blocks = nn.ModuleList(nn.Linear(w, w) for w in widths)
    made.mid_block = nn.Linear(widths[-1], widths[-1])
    return made


def test_levels_are_counted_from_the_innermost() -> None:
    source, target = blocks(4, 8, 16), blocks(8, 16)
    before = target.conv_in.weight.clone()
    told = transplant(target, source, shift=1)
    assert torch.equal(target.down_blocks[0].weight, source.down_blocks[1].weight)
    assert torch.equal(target.down_blocks[1].bias, source.down_blocks[2].bias)
    assert torch.equal(target.mid_block.weight, source.mid_block.weight)
    assert torch.equal(target.conv_in.weight, before), "the ends belong to the latents"
    assert told["new"] == ["conv_in.weight", "conv_in.bias"] and len(told["copied"]) == 6 and not told["in part"]


def test_ends_of_the_same_latents_are_copied() -> None:
    source, target = blocks(4, 8), blocks(6, 8)
    told = transplant(target, source, same_latents=True)
    assert torch.equal(target.conv_in.weight[:4], source.conv_in.weight) and not told["new"]


@pytest.mark.parametrize("widths", [(16, 12), (8, 20), (16, 20)])
def test_what_comes_from_below_and_what_was_kept_are_told_apart(widths: tuple[int, int]) -> None:
    """Without normalisation a wider UNet computes exactly what the narrow one did."""
    source, target = unet(8, 12), unet(*widths)
    told = transplant(target, source, same_latents=True)
    assert not told["new"]
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 500])
    with torch.no_grad():
        torch.testing.assert_close(target(x, t).sample, source(x, t).sample)


def unet(*widths: int) -> nn.Module:
    made = UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=["DownBlock2D"] * len(widths),
        up_block_types=["UpBlock2D"] * len(widths),
        add_attention=False,
        norm_num_groups=4,
        attention_head_dim=4,
        time_embedding_type="positional",
    )
    for block in (m for m in made.modules() if isinstance(m, nn.Module)):
        for name, child in block.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(block, name, Scale(child.num_channels))
    return made.eval()


class Scale(nn.Module):
    """The weights of a normalisation, without its groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) / 4), nn.Parameter(torch.rand(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def test_a_wider_layer_computes_what_the_narrow_one_did() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(5, 4)
    told = transplant(target, source)
    x = torch.randn(7, 5)
    torch.testing.assert_close(target(x)[:, :2], source(x[:, :3]))
    assert told["in part"] == ["weight", "bias"]
    assert target.weight[2:].abs().min() > 0, "further outputs keep their random start"


def test_a_wider_time_embedding_reads_the_frequencies_it_knew() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    steps = torch.tensor([0.0, 3.0, 500.0, 999.0])
    narrow, wide = (get_timestep_embedding(steps, d, flip_sin_to_cos=True, downscale_freq_shift=0) for d in (32, 64))

    def embedding(width: int) -> nn.Module:
        made = nn.Module()
        made.time_embedding = nn.Module()
        made.time_embedding.linear_1 = nn.Linear(width, 4 * width)
        return made

    source, target = embedding(32), embedding(64)
    transplant(target, source)
    torch.testing.assert_close(target.time_embedding.linear_1(wide)[:, :128], source.time_embedding.linear_1(narrow))


def test_a_narrower_layer_is_new() -> None:
    target = nn.Linear(3, 2)
    before = target.weight.clone()
    assert transplant(target, nn.Linear(5, 4))["new"] == ["weight", "bias"] and torch.equal(target.weight, before)


@pytest.mark.parametrize("make", [lambda: PatchAutoencoder((8, 8, 16), 4), lambda: TinyAutoencoder((8,) * 4, 4)])
def test_a_decoder_of_its_own_leaves_latents_what_they_are(make) -> None:
    one, other = make(), make()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        for parameter in decoder_parameters(other):
            parameter.add_(1)
    assert same_latents_of(one, other) and not same_latents_of(None, one)
    other.register_to_config(latent_scale=[2.0] * 4)
    assert not same_latents_of(one, other)
    other.register_to_config(latent_scale=one.config.get("latent_scale"))
    assert same_latents_of(one, other)
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if name.startswith("encoder")).add_(1)
    assert not same_latents_of(one, other)
