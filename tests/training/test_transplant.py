"""Inner levels of one denoiser in another: what is copied, what is new, and that what was copied computes what it did."""

import torch
from torch import nn

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
