"""Gates, regions and tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.models.layers import make_tiles, tiled_attention
from ccdiff_cli.models.layout import boxes_of_scenes, may_attend, region_masks, resize_support, soft_ellipses

from .plain import allowed_pairs, ellipse
from .small import make_batch, make_scenes


@pytest.mark.parametrize("size", [(128, 128), (64, 160), (104, 72)])
def test_regions_equal_the_plain_form_at_every_grid(size):
    batch = make_batch([40], size)
    latent = batch.latent_size
    regions = torch.from_numpy(region_masks(batch.obb[0].numpy(), size, latent))
    grid = latent
    for _ in range(3):
        assert torch.equal(may_attend(resize_support(regions[None], grid))[0], allowed_pairs(batch.obb[0], size, latent, grid))
        grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)


@pytest.mark.parametrize(
    "corners",
    [
        [0] * 8,
        [0.5, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2],
        [-3, 4, 4, -3, -3, -3, 4, 4],
        [2, 3, 3, 2, 2, 2, 3, 3],
        [1e9, 2e9, 2e9, 1e9, 0, 0, 1, 1],
    ],
    ids=["zero", "a point", "covers all", "outside", "absurd"],
)
def test_degenerate_polygons(corners):
    obb = torch.tensor([corners], dtype=torch.float32)
    regions = region_masks(obb.numpy(), (64, 64), (8, 8))
    assert regions.shape == (2, 8, 8) and regions.any(0).all()  # every cell may at least attend to itself
    if corners != [1e9, 2e9, 2e9, 1e9, 0, 0, 1, 1]:
        assert torch.equal(may_attend(torch.from_numpy(regions)[None])[0], allowed_pairs(obb, (64, 64), (8, 8), (8, 8)))


def test_no_instances_let_every_cell_attend():
    regions = region_masks(np.zeros((0, 8), np.float32), (64, 64), (8, 8))
    assert regions.shape == (1, 8, 8) and regions.all()


def test_ellipses_equal_the_plain_form():
    batch = make_batch([9], (64, 160))
    batch.hbb[0, 3] = 0.5  # no area
    ours = soft_ellipses(batch.hbb[0], batch.obb[0], (8, 20))
    for n in range(9):
        assert torch.allclose(ours[n].flatten(), ellipse(batch.hbb[0, n], (8, 20), (8, 20)), atol=1e-5)
    assert not ours[3].any()


def test_oriented_ellipse_of_an_upright_box_is_the_horizontal_one():
    hbb = torch.tensor([[0.1, 0.3, 0.5, 0.9]])
    obb = torch.tensor([[0.1, 0.5, 0.5, 0.1, 0.3, 0.3, 0.9, 0.9]])
    assert torch.allclose(soft_ellipses(hbb, obb, (16, 16)), soft_ellipses(hbb, obb, (16, 16), shape="obb"), atol=1e-5)


def test_oriented_ellipse_of_a_diagonal_ship_leaves_the_corners_of_its_hbb():
    obb = torch.tensor([[0.1, 0.2, 0.9, 0.8, 0.2, 0.1, 0.8, 0.9]])
    hbb = torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    horizontal, oriented = (soft_ellipses(hbb, obb, (32, 32), shape=s, centred=True)[0] for s in ("hbb", "obb"))
    assert oriented[16, 16] > 0.99 and horizontal[22, 10] > 0.9 and oriented[22, 10] < 0.01
    assert oriented.sum() < horizontal.sum() / 2
    assert torch.allclose(oriented, oriented.T, atol=1e-4)


def test_small_objects_keep_a_cell():
    hbb = torch.tensor([[0.41, 0.41, 0.43, 0.43]])  # between two samples of an 8 x 8 grid
    obb = torch.tensor([[0.41, 0.43, 0.43, 0.41, 0.41, 0.41, 0.43, 0.43]])
    for shape in ("hbb", "obb"):
        assert soft_ellipses(hbb, obb, (8, 8), shape=shape).max() < 1e-3
        assert soft_ellipses(hbb, obb, (8, 8), shape=shape, min_cells=1.5).max() > 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 9), st.floats(0, 0.9), st.integers(0, 99))
def test_tiles_equal_dense_attention(contexts, cells, length, threshold, seed):
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(contexts, cells, generator=g, dtype=torch.float64)
    q = torch.randn(cells, 6, generator=g, dtype=torch.float64)
    k, v = torch.randn(2, contexts, 2, 4, 3, generator=g, dtype=torch.float64)
    start = torch.randn(cells, 6, generator=g, dtype=torch.float64)
    tiles = make_tiles(weights, None, threshold, length)
    expected = start.clone()
    for s in range(contexts):
        for h in range(2):
            part = slice(3 * h, 3 * h + 3)
            attended = (q[:, part] @ k[s, h].T / 3**0.5).softmax(-1) @ v[s, h]
            expected[:, part] += (weights[s] * (weights[s] > threshold))[:, None].float().double() * attended
    assert torch.allclose(tiled_attention(start, q, k, v, tiles), expected, atol=1e-6)
    assert len(tiles.cells) == len(tiles.source) * length


def test_boxes_of_scenes():
    scenes, _ = make_scenes([2, 0, 3], (64, 160))
    boxes = boxes_of_scenes(scenes, ["court", "plane", "ship"])
    assert boxes.valid.sum(1).tolist() == [2, 0, 3]
    instance = scenes[2].instances[1]
    x, y = boxes.obb[2, 1, :4] * 160, boxes.obb[2, 1, 4:] * 64
    assert torch.allclose(torch.stack([x, y], 1).flatten(), torch.tensor(instance.corners), atol=1e-4)
    assert boxes_of_scenes([scenes[1]], ["ship"]).hbb.shape == (1, 0, 4)
