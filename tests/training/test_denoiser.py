"""The loss of the denoiser: a batch in pieces trains as the batch does, and crowded pictures do not multiply the memory."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from ccdiff_cli.methods.loss import DenoiserLoss, _pieces
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.recipes import Recipe, load_recipe
from tests.models.small import TEXT, TOKENS, make_batch, make_pipeline


@pytest.mark.parametrize(
    ("objects", "most", "pieces"),
    [
        ([1, 2, 3], 10, [(0, 3)]),
        ([5, 5, 5], 10, [(0, 2), (2, 3)]),
        ([50, 1, 1], 10, [(0, 1), (1, 3)]),  # a picture is never divided
        ([1, 50, 1], 10, [(0, 1), (1, 2), (2, 3)]),
        ([0, 0], 1, [(0, 2)]),
        ([7], 1, [(0, 1)]),
    ],
)
def test_pieces(objects: list[int], most: int, pieces: list[tuple[int, int]]) -> None:
    assert _pieces(objects, most) == pieces


def test_rows_keep_what_belongs_to_their_pictures() -> None:
    batch = make_batch([1, 4, 0, 2], pad=2).with_regions()
    alone = batch.rows(1, 3)
    assert alone.batch_size == 2 and alone.valid.shape[1] == 4 and alone.valid.sum() == 4
    assert alone.regions is not None and batch.regions is not None
    again = LayoutBatch(**{**vars(alone), "regions": None}).with_regions()
    assert again.regions is not None and torch.equal(alone.regions, again.regions)
    assert torch.equal(alone.hbb, batch.hbb[1:3, :4]) and torch.equal(alone.background_reference, batch.background_reference[1:3])
    assert batch.rows(2, 3).valid.shape == (1, 0)


def gradients(loss: DenoiserLoss, batch: dict[str, Any], most: int) -> tuple[int, float, list[torch.Tensor]]:
    loss.objects_at_once = most
    loss.zero_grad()
    torch.manual_seed(5)
    pieces, total = loss.parts(batch), 0.0
    for share, piece in pieces:
        value = loss(**piece) * share
        value.backward()
        total += float(value.detach())
    return len(pieces), total, [p.grad.clone() for p in loss.parameters() if p.grad is not None]


def test_gradients_of_the_pieces_add_up_to_those_of_the_batch(recipe_file) -> None:
    recipe: Recipe = load_recipe(recipe_file, {"denoiser.object_weight": 3.0})
    torch.manual_seed(0)
    pipe = make_pipeline()
    pipe.register_modules(scheduler=DDPMScheduler(prediction_type="v_prediction"))
    loss = DenoiserLoss(pipe, recipe)
    layout = make_batch([1, 6, 0, 3, 2]).with_regions()
    batch = {
        "latents": torch.randn(5, pipe.unet.config.in_channels, *layout.latent_size),
        "layout": layout,
        "dropped": torch.tensor([False, False, True, False, False]),
        "empty_tokens": torch.randn(1, TOKENS, TEXT),
    }
    whole, in_pieces = gradients(loss, batch, 100), gradients(loss, batch, 6)
    assert whole[0] == 1 and in_pieces[0] == 3
    assert in_pieces[1] == pytest.approx(whole[1], rel=1e-5)
    assert len(whole[2]) == len(in_pieces[2])
    for one, other in zip(whole[2], in_pieces[2], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
