"""The stand-in for mmcv's compiled ops: against shapely, torchvision, brute force and finite differences."""

from __future__ import annotations

import importlib
import math
import sys
import types

import numpy as np
import pytest
import shapely
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ccdiff_cli.detectors import mmcv_ops as ops
from ccdiff_cli.geometry import le90_to_corners

numbers = st.floats(-30, 30, width=32)
sides = st.floats(0.5, 60, width=32)
boxes = st.tuples(numbers, numbers, sides, sides, st.floats(-4, 4, width=32))


def random_boxes(n: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    made = np.column_stack((rng.uniform(0, 100, (n, 2)), rng.uniform(2, 60, (n, 2)), rng.uniform(-3, 3, n)))
    return torch.tensor(made, dtype=torch.float32)


def shapely_iou(a, b) -> float:
    p, q = (shapely.Polygon(np.reshape(le90_to_corners([float(v) for v in box]), (4, 2))) for box in (a, b))
    inter = p.intersection(q).area
    return inter / (p.area + q.area - inter)


def test_corners_are_those_of_the_geometry_module():
    some = random_boxes(20, 0).double()
    expected = [le90_to_corners(box) for box in some.tolist()]
    assert torch.allclose(ops.rotated_corners(some).flatten(1), torch.tensor(expected, dtype=torch.float64))


@settings(deadline=None, max_examples=150)
@given(boxes, boxes)
@example((0, 0, 10, 4, 0.3), (0, 0, 10, 4, 0.3))  # the same
@example((0, 0, 10, 4, 0.3), (0, 0, 10, 4, 0.3 + math.pi))  # the same, turned by half
@example((0, 0, 10, 4, 0), (2, 0, 4, 4, 0))  # inside, two sides shared
@example((0, 0, 10, 4, 0), (10, 0, 10, 4, 0))  # side by side
@example((0, 0, 10, 4, 0), (10, 4, 10, 4, 0))  # corner to corner
@example((0, 0, 10, 4, 0.2), (0, 0, 2, 1, 1.0))  # wholly inside
@example((0, 0, 40, 1, 0), (0, 0, 40, 1, math.pi / 2))  # a cross
def test_iou_is_shapelys(a, b):
    found = ops.paired_iou(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))
    assert float(found) == pytest.approx(shapely_iou(a, b), abs=1e-7)


@pytest.mark.skipif(not ops.TORCHVISION_HAS_IOU, reason="this torchvision has no rotated IoU")
def test_iou_of_all_with_all_is_torchvisions(monkeypatch):
    a, b = random_boxes(60, 1), random_boxes(50, 2)
    theirs, theirs_first = ops.pairwise_iou(a, b), ops.pairwise_iou(a, b, over_first=True)
    monkeypatch.setattr(ops, "TORCHVISION_HAS_IOU", False)
    assert torch.allclose(ops.pairwise_iou(a, b), theirs, atol=3e-5)
    assert torch.allclose(ops.pairwise_iou(a, b, over_first=True), theirs_first, atol=1e-4)
    assert float((theirs > 0).float().mean()) > 0.1


def test_iou_far_from_the_origin_and_of_boxes_without_area():
    a = torch.tensor([[10.0, 10.0, 8.0, 4.0, 0.5]], dtype=torch.float64)
    far = a + torch.tensor([1e6, 1e6, 0, 0, 0], dtype=torch.float64)
    shift = torch.tensor([1.0, 1.0, 0, 0, 0], dtype=torch.float64)
    assert float(ops.paired_iou(far, far + shift)) == pytest.approx(float(ops.paired_iou(a, a + shift)), abs=1e-6)
    flat = torch.tensor([[10.0, 10.0, 0.0, 4.0, 0.5]])
    assert float(ops.paired_iou(flat, a.float())) == 0 and ops.pairwise_iou(flat[:0], flat).shape == (0, 1)


def test_iou_through_mmcvs_argument_lists():
    a, b = random_boxes(7, 3), random_boxes(7, 4)
    every, pairs = torch.zeros(49), torch.zeros(7)
    ops.box_iou_rotated(a, b, every, mode_flag=0, aligned=False)
    ops.box_iou_rotated(a, b, pairs, mode_flag=1, aligned=True)
    assert torch.allclose(every.view(7, 7), ops.pairwise_iou(a, b))
    assert torch.allclose(pairs, ops.paired_iou(a, b, over_first=True).float())


def plain_suppression(some, scores, threshold, labels=None):
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        rivals = [j for j in kept if labels is None or labels[i] == labels[j]]
        if all(shapely_iou(some[i], some[j]) <= threshold for j in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize("labelled", [False, True])
def test_suppression_is_the_plain_loop(labelled, monkeypatch):
    monkeypatch.setattr(ops, "NMS_BLOCK", 16)  # several blocks
    some, generator = random_boxes(80, 5), torch.Generator().manual_seed(0)
    scores, labels = torch.rand(80, generator=generator), torch.randint(0, 3, (80,), generator=generator)
    expected = plain_suppression(some, scores, 0.2, labels if labelled else None)
    table = torch.cat((some, labels[:, None].float()), 1) if labelled else some
    order = scores.argsort(descending=True)
    found = ops.nms_rotated(table, scores, order, table[order], labels, 0.2, labelled)
    assert found.tolist() == expected and len(expected) < 80
    assert ops.nms_rotated(some[:0], scores[:0], order[:0], some[:0]).tolist() == []


def test_suppression_of_upright_boxes_is_torchvisions():
    some = random_boxes(60, 6)
    upright = torch.cat((some[:, :2] - some[:, 2:4] / 2, some[:, :2] + some[:, 2:4] / 2), 1)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(1))
    expected = torchvision.ops.nms(upright, scores, 0.3)
    assert torch.equal(ops.nms(upright, scores, 0.3), expected)
    some[:, 4] = 0
    assert torch.equal(ops.suppress(some, scores, 0.3), expected)
    apart = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])  # IoU 4/14 without, 5/15 with the last pixel
    assert len(ops.nms(apart, torch.tensor([2.0, 1.0]), 0.3)) == 2 and len(ops.nms(apart, torch.tensor([2.0, 1.0]), 0.3, offset=1)) == 1


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_upright_rotated_roi_align_is_torchvisions(samples, aligned):
    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0, 20.0, 24, 22, 10, 0], [1, 30, 20, 30, 26, 0], [0, 2, 3, 20, 9, 0]])  # the last leaves the map
    found = ops.align_rotated(x, rois, (4, 5), 0.5, samples, aligned=aligned)
    upright = torch.cat((rois[:, :1], rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2), 1)
    expected = torchvision.ops.roi_align(x, upright, (4, 5), 0.5, samples, aligned)
    assert torch.allclose(found, expected, atol=1e-5)


def test_rotated_roi_align_turns_with_the_picture():
    """A box turned by a quarter on a picture turned by a quarter sees the same."""
    x = torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    upright = ops.align_rotated(x, torch.tensor([[0, 8.0, 11, 10, 6, 0]]), (3, 5), 1.0, 2)
    turned = torch.rot90(x, -1, (2, 3))  # clockwise on the screen: (x, y) -> (20 - y, x)
    clockwise = torch.tensor([[0, 9.0, 8, 10, 6, math.pi / 2]])
    assert torch.allclose(ops.align_rotated(turned, clockwise, (3, 5), 1.0, 2), upright, atol=1e-5)
    other = clockwise * torch.tensor([1, 1, 1, 1, 1, -1])
    assert torch.allclose(ops.align_rotated(turned, other, (3, 5), 1.0, 2, clockwise=False), upright, atol=1e-5)


def test_rotated_roi_align_of_a_slope_is_the_slope_at_the_bins():
    """On a picture whose values are 3 x + 5 y, bilinear samples are exact, so a bin holds the value at its centre."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    x = (3 * (columns + 0.5) + 5 * (rows + 0.5))[None, None]  # pixel centres lie at half coordinates
    box = (20.0, 18.0, 12.0, 8.0, 0.6)
    found = ops.align_rotated(x, torch.tensor([[0, *box]]), (4, 6), 1.0, 2)[0, 0]
    v, u = torch.meshgrid((torch.arange(4) + 0.5) / 4 * 8 - 4, (torch.arange(6) + 0.5) / 6 * 12 - 6, indexing="ij")
    px, py = 20 + u * math.cos(0.6) - v * math.sin(0.6), 18 + u * math.sin(0.6) + v * math.cos(0.6)
    assert torch.allclose(found, 3 * px + 5 * py, atol=1e-3)


class _Through(torch.autograd.Function):
    """Calls an op's forward and backward with mmcv's argument lists, as mmcv's own Functions do."""

    @staticmethod
    def forward(ctx, x, out_shape, forward, backward, *arguments):
        ctx.shape, ctx.call, ctx.arguments = x.shape, backward, arguments
        out = x.new_zeros(out_shape)
        forward(x, out, *arguments)
        return out

    @staticmethod
    def backward(ctx, grad):
        made = grad.new_zeros(ctx.shape)
        ctx.call(grad.contiguous(), made, *ctx.arguments)
        return made, None, None, None, *([None] * len(ctx.arguments))


def test_gradients_of_roi_align_agree_with_finite_differences():
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rois = torch.tensor([[0, 5.0, 6, 9, 4, 0.5], [1, 7, 5, 8, 8, -1.1]], dtype=torch.float64)

    def rotated(x):
        return _Through.apply(
            x,
            (2, 2, 2, 3),
            lambda x, out: ops.roi_align_rotated_forward(x, rois, out, 2, 3, 0.5, 2, True, True),
            lambda grad, made: ops.roi_align_rotated_backward(grad, rois, made, 2, 3, 0.5, 2, True, True),
        )

    upright, none = torch.tensor([[0, 1.0, 2, 9, 8], [1, 3, 1, 12, 9]], dtype=torch.float64), torch.zeros(0)

    def plain(x):
        return _Through.apply(
            x,
            (2, 2, 2, 3),
            lambda x, out: ops.roi_align_forward(x, upright, out, none, none, 2, 3, 0.5, 2, 1, True),
            lambda grad, made: ops.roi_align_backward(grad, upright, none, none, made, 2, 3, 0.5, 2, 1, True),
        )

    assert torch.autograd.gradcheck(rotated, x) and torch.autograd.gradcheck(plain, x)
    with pytest.raises(NotImplementedError, match="max pooling"):
        ops.roi_align_forward(x, upright, x, none, none, 2, 3, 0.5, 2, 0, True)


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_and_its_gradient(weighted):
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([0, 2, 3, 1, 3])  # 3: background
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else torch.zeros(0, dtype=torch.float64)
    found = torch.zeros_like(x)
    ops.sigmoid_focal_loss_forward(x, target, weight, found, 2.0, 0.25)
    p, wanted = x.detach().sigmoid(), F.one_hot(target, 4)[:, :3]
    expected = torch.where(wanted == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    if weighted:
        expected = expected * torch.tensor([0.5, 2.0, 1.0, 1.0, 1.0])[:, None]
    assert torch.allclose(found, expected)

    def loss(x):
        return _Through.apply(
            x,
            (),
            lambda x, out: out.copy_(ops._focal_loss(x, target, weight, 2.0, 0.25).sum()),
            lambda grad, made: (ops.sigmoid_focal_loss_backward(x, target, weight, made, 2.0, 0.25), made.mul_(grad)),
        )

    assert torch.autograd.gradcheck(loss, x)


def test_vertices_are_sorted_around_and_closed():
    vertices, mask = torch.zeros(1, 2, 24, 2), torch.zeros(1, 2, 24, dtype=torch.bool)
    square = {0: (1.0, 1.0), 5: (-1.0, -1.0), 9: (-1.0, 1.0), 20: (1.0, -1.0)}
    for place, point in square.items():
        vertices[0, 0, place], mask[0, 0, place] = torch.tensor(point), True
    mask[0, 1, :2] = True  # two points: no area
    index = ops.diff_iou_rotated_sort_vertices_forward(vertices, mask, mask.sum(2).int())
    assert index[0, 0, :5].tolist() == [5, 20, 0, 9, 5] and index.dtype == torch.int32
    assert not mask[0, 0][index[0, 0, 5:].long()].any() and not mask[0, 1][index[0, 1].long()].any()


# ---------------------------------------------------------------- with mmcv


def test_a_compiled_mmcv_wins(monkeypatch, tmp_path):
    """The finder stands last: where mmcv._ext exists, it is the one that is imported."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    for name in [n for n in sys.modules if n == "mmcv" or n.startswith("mmcv.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if type(f).__module__ != ops.__name__])
    importlib.invalidate_caches()
    try:
        assert ops.install() is True
        extension = sys.modules["mmcv._ext"]
        assert extension.__spec__ is not None and extension.nms_rotated is ops.nms_rotated
        with pytest.raises(NotImplementedError, match="deform_conv_forward"):
            extension.deform_conv_forward(1)
        assert ops.install() is True and type(sys.meta_path[-1]).__module__ == ops.__name__
        assert sum(type(f).__module__ == ops.__name__ for f in sys.meta_path) == 1
        del sys.modules["mmcv._ext"]
        (tmp_path / "mmcv" / "_ext.py").write_text("compiled = True\n")
        importlib.invalidate_caches()
        assert ops.install() is False and sys.modules["mmcv._ext"].compiled
    finally:
        for name in ("mmcv", "mmcv._ext"):
            sys.modules.pop(name, None)


def test_rotated_iou_loss_has_the_gradient_of_the_iou():
    pytest.importorskip("mmrotate", reason="the extra mmrotate is not installed: pip install 'ccdiff[mmrotate]'")
    from ccdiff_cli.detectors import mm_models

    mm_models.backend()
    module: types.ModuleType = importlib.import_module("mmcv.ops.diff_iou_rotated")
    a = torch.tensor([[[10.0, 10, 8, 4, 0.3], [20, 20, 12, 6, -0.8]]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[[11.0, 9, 7, 5, 0.5], [22, 19, 10, 7, -0.2]]], dtype=torch.float64)
    expected = ops.paired_iou(a[0].detach(), b[0])
    assert torch.allclose(module.diff_iou_rotated_2d(a, b)[0].double(), expected, atol=1e-5)
    module.diff_iou_rotated_2d(a, b).sum().backward()
    step = 1e-6
    for i in range(2):
        for j in range(5):
            moved = a.detach().clone()
            moved[0, i, j] += step
            slope = (ops.paired_iou(moved[0], b[0]) - expected).sum() / step
            assert float(a.grad[0, i, j]) == pytest.approx(float(slope), abs=1e-4)
