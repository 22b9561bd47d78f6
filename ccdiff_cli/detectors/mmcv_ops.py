"""The compiled part of mmcv (``mmcv._ext``), as far as our detectors need it, in torch and torchvision: no compiler, CPU and CUDA alike.

Notable:

* :func:`install` puts a finder LAST on ``sys.meta_path``: a compiled mmcv is found first and wins.  It must run before the first
  ``import mmcv.ops``, in every process (``mm.backend`` does).
* The functions below the banner have mmcv's names and argument lists, because mmcv's Python calls them; they write into the tensors they
  are given.  An op that is not here raises with its name when it is called.
* Rotated boxes are (cx, cy, w, h, angle): pixels and radians, from the x axis towards the y axis, as in :mod:`ccdiff_cli.geometry`.
* torchvision 0.27 and newer holds an exact rotated IoU, some 8 times faster than ours; it is used where it is there.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

PAIRS_AT_ONCE = 1 << 17
NMS_BLOCK = 256
TORCHVISION_HAS_IOU = "torchvision::box_iou_rotated" in torch._C._dispatch_get_all_op_names()


# ---------------------------------------------------------------- geometry of rotated boxes


def rotated_corners(boxes: Tensor) -> Tensor:
    """Rotated boxes (N, 5) to corners (N, 4, 2), in the order of :func:`ccdiff_cli.geometry.le90_to_corners`; differentiable."""
    centre, half, angle = boxes[:, None, :2], boxes[:, 2:4] / 2, boxes[:, 4]
    cos, sin = angle.cos(), angle.sin()
    along = (torch.stack((cos, sin), 1) * half[:, :1])[:, None]
    across = (torch.stack((-sin, cos), 1) * half[:, 1:])[:, None]
    return torch.cat((centre - along - across, centre + along - across, centre + along + across, centre - along + across), 1)


def intersection_areas(a: Tensor, b: Tensor) -> Tensor:
    """Area of the intersection of rotated box ``a[k]`` with ``b[k]``: (P, 5) and (P, 5) to (P,), in double precision.

    The intersection of two rectangles is convex; its corners are the corners of one inside the other and the crossings of their sides.
    Sorted by angle around their mean they give the area by the shoelace formula.
    """
    a, b = a.double(), b.double()
    middle = (a[:, :2] + b[:, :2]) / 2  # far from the origin the products below would lose digits
    a, b = (torch.cat((boxes[:, :2] - middle, boxes[:, 2:]), 1) for boxes in (a, b))
    corners_a, corners_b = rotated_corners(a), rotated_corners(b)
    side_a, side_b = corners_a.roll(-1, 1) - corners_a, corners_b.roll(-1, 1) - corners_b
    # side i of a: corners_a[i] + t side_a[i]; side j of b: corners_b[j] + u side_b[j]
    apart = corners_b[:, None] - corners_a[:, :, None]
    turn = _cross(side_a[:, :, None], side_b[:, None])
    lengths = side_a.norm(dim=2)[:, :, None] * side_b.norm(dim=2)[:, None]
    crossing = turn.abs() > 1e-12 * lengths  # parallel sides meet nowhere or in corners, which are counted anyway
    turn = torch.where(crossing, turn, torch.ones_like(turn))
    t, u = _cross(apart, side_b[:, None]) / turn, _cross(apart, side_a[:, :, None]) / turn
    slack = 1e-9
    crossing &= (t > -slack) & (t < 1 + slack) & (u > -slack) & (u < 1 + slack)
    crossings = corners_a[:, :, None] + t[..., None] * side_a[:, :, None]

    points = torch.cat((corners_a, corners_b, crossings.flatten(1, 2)), 1)  # (P, 24, 2), of which at most 8 different ones count
    valid = torch.cat((_inside(corners_a, b, slack), _inside(corners_b, a, slack), crossing.flatten(1)), 1)
    count = valid.sum(1)
    mean = torch.where(valid[..., None], points, torch.zeros_like(points)).sum(1) / count.clamp(min=1)[:, None]
    points = points - mean[:, None]
    angle = torch.where(valid, torch.atan2(points[..., 1], points[..., 0]), torch.full_like(points[..., 0], 10.0))  # 10: behind all others
    order = angle.argsort(1)
    points, valid = points.gather(1, order[..., None].expand(-1, -1, 2)), valid.gather(1, order)
    points = torch.where(valid[..., None], points, points[:, :1])  # the rest repeats the first: no area
    area = _cross(points, points.roll(-1, 1)).sum(1).abs() / 2
    return torch.where(count > 2, area, torch.zeros_like(area))


def paired_iou(a: Tensor, b: Tensor, *, over_first: bool = False) -> Tensor:
    """IoU of box ``a[k]`` with ``b[k]``, (P,) double; ``over_first``: intersection over the area of ``a[k]`` instead. 0 without an area."""
    found = [a.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(a), PAIRS_AT_ONCE):
        x, y = (boxes[start : start + PAIRS_AT_ONCE].double() for boxes in (a, b))
        inter, area_x, area_y = intersection_areas(x, y), x[:, 2] * x[:, 3], y[:, 2] * y[:, 3]
        iou = inter / (area_x if over_first else area_x + area_y - inter).clamp(min=1e-14)
        found.append(torch.where((area_x < 1e-14) | (area_y < 1e-14), torch.zeros_like(iou), iou))
    return torch.cat(found)


def pairwise_iou(a: Tensor, b: Tensor, *, over_first: bool = False) -> Tensor:
    """IoU of every box of (N, 5) with every one of (M, 5): (N, M) float32; ``over_first``: over the area of the first."""
    a, b = a.detach().float(), b.detach().float()
    if not len(a) or not len(b):
        return a.new_zeros(len(a), len(b))
    if not TORCHVISION_HAS_IOU:
        return _pairwise_iou_slow(a, b, over_first=over_first)
    degrees = a.new_tensor([1, 1, 1, 1, -180 / math.pi])  # torchvision: degrees, counter-clockwise on the screen
    iou: Tensor = torch.ops.torchvision.box_iou_rotated((a * degrees).contiguous(), (b * degrees).contiguous())
    if over_first:
        area_a, area_b = (a[:, 2] * a[:, 3])[:, None], (b[:, 2] * b[:, 3])[None]
        iou = iou * (area_a + area_b) / (1 + iou) / area_a.clamp(min=1e-14)
    return iou


def _pairwise_iou_slow(a: Tensor, b: Tensor, *, over_first: bool) -> Tensor:
    """:func:`pairwise_iou` without torchvision's op: only pairs whose circumscribed circles meet are worked out."""
    iou = a.new_zeros(len(a), len(b))
    radius_a, radius_b = a[:, 2:4].norm(dim=1) / 2, b[:, 2:4].norm(dim=1) / 2
    rows = max(1, (1 << 22) // len(b))
    for start in range(0, len(a), rows):
        some = slice(start, start + rows)
        near = torch.cdist(a[some, :2], b[:, :2]) <= 1.001 * (radius_a[some, None] + radius_b[None]) + 1e-3
        i, j = near.nonzero(as_tuple=True)
        iou[start + i, j] = paired_iou(a[start + i], b[j], over_first=over_first).float()
    return iou


def suppress(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Indices, best first, of the boxes (N, 5) that no better box (of the same label, where given) overlaps by more than ``threshold``.

    Ties of the scores keep the order of the boxes.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order] if labels is not None else None

    def overlaps(i: Tensor, j: Tensor) -> Tensor:
        hit = pairwise_iou(boxes[i], boxes[j]) > threshold
        return hit if labels is None else hit & (labels[i, None] == labels[None, j])

    alive, kept = torch.arange(len(boxes), device=boxes.device), []
    while len(alive):  # the best block among itself, then against the rest
        block, alive = alive[:NMS_BLOCK], alive[NMS_BLOCK:]
        hit = overlaps(block, block).triu(1).cpu().numpy()
        gone = np.zeros(len(block), dtype=bool)
        for i in range(len(block)):
            if not gone[i]:
                gone |= hit[i]
        block = block[torch.as_tensor(~gone, device=block.device)]
        kept.append(block)
        alive = alive[~overlaps(block, alive).any(0)]
    return order[torch.cat(kept)] if kept else order


def align_rotated(
    x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, samples: int, *, aligned: bool = True, clockwise: bool = True
) -> Tensor:
    """Rotated RoI align (Ding et al. 2019; sampling as in Mask R-CNN): feature maps and boxes to (R, C, *size); differentiable in ``x``.

    Args:
        x: (B, C, H, W).
        rois: (R, 6) picture index, then a rotated box in pixels of the picture.
        scale: of the feature map to the picture, 1/4, 1/8, ...
        samples: points per bin and direction; 0: about one per feature cell.
        aligned: pixel centres lie at half coordinates.
        clockwise: the angles turn from x to y.
    """
    rows, columns = size
    height, width = x.shape[-2:]
    out = x.new_zeros(len(rois), x.shape[1], rows, columns)
    if not len(rois):
        return out
    rois = rois.to(x.dtype)
    shift = 0.5 if aligned else 0.0
    cx, cy, w, h = rois[:, 1] * scale - shift, rois[:, 2] * scale - shift, rois[:, 3] * scale, rois[:, 4] * scale
    if not aligned:
        w, h = w.clamp(min=1), h.clamp(min=1)
    angle = rois[:, 5] if clockwise else -rois[:, 5]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    if samples > 0:
        down = across = torch.full_like(w, samples, dtype=torch.long)
    else:
        down, across = (h / rows).ceil().long(), (w / columns).ceil().long()
    kinds, kind_of = torch.stack((rois[:, 0].long(), down, across), 1).unique(dim=0, return_inverse=True)
    for kind, (picture, n_down, n_across) in enumerate(kinds.tolist()):  # one picture and one grid of points at a time
        if picture < 0 or n_down < 1 or n_across < 1:
            continue
        chosen = (kind_of == kind).nonzero().squeeze(1)
        v = (torch.arange(rows * n_down, device=x.device, dtype=x.dtype) + 0.5) / (rows * n_down) - 0.5
        u = (torch.arange(columns * n_across, device=x.device, dtype=x.dtype) + 0.5) / (columns * n_across) - 0.5
        v, u = (v[None] * h[chosen, None])[:, :, None], (u[None] * w[chosen, None])[:, None, :]
        px = u * cos[chosen] - v * sin[chosen] + cx[chosen, None, None]
        py = u * sin[chosen] + v * cos[chosen] + cy[chosen, None, None]
        counts = (px >= -1) & (px <= width) & (py >= -1) & (py <= height)  # points farther out count as zero
        grid = torch.stack((2 * px.clamp(0, width - 1) / max(width - 1, 1) - 1, 2 * py.clamp(0, height - 1) / max(height - 1, 1) - 1), -1)
        grid = grid.reshape(1, len(chosen) * rows * n_down, columns * n_across, 2)
        values = F.grid_sample(x[picture : picture + 1], grid, mode="bilinear", padding_mode="border", align_corners=True)
        shape = (len(chosen), rows, n_down, columns, n_across)
        values = values.reshape(-1, *shape) * counts.reshape(1, *shape).to(values.dtype)
        out = out.index_copy(0, chosen, values.mean((3, 5)).transpose(0, 1))
    return out


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _inside(points: Tensor, boxes: Tensor, slack: float) -> Tensor:
    """Whether points (P, K, 2) lie in their box (P, 5), borders included: (P, K)."""
    offset = points - boxes[:, None, :2]
    cos, sin = boxes[:, 4, None].cos(), boxes[:, 4, None].sin()
    along, across = offset[..., 0] * cos + offset[..., 1] * sin, offset[..., 1] * cos - offset[..., 0] * sin
    reach = boxes[:, 2:4] * (0.5 + slack)
    return (along.abs() <= reach[:, :1]) & (across.abs() <= reach[:, 1:])


# ---------------------------------------------------------------- mmcv's ops, by mmcv's names and arguments


def box_iou_rotated(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int = 0, aligned: bool = False) -> None:
    """IoU (``mode_flag`` 0) or intersection over the first (1), of pairs (``aligned``) or of all with all."""
    a, b, over_first = bboxes1.detach()[:, :5], bboxes2.detach()[:, :5], bool(mode_flag)
    iou = paired_iou(a, b, over_first=over_first) if aligned else pairwise_iou(a, b, over_first=over_first)
    ious.copy_(iou.reshape(ious.shape))


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Suppression of horizontal boxes; ``offset`` 1: boxes include their last pixel."""
    if offset:
        bboxes = torch.cat((bboxes[:, :2], bboxes[:, 2:] + offset), 1)
    return torchvision.ops.nms(bboxes.float(), scores.float(), iou_threshold)


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.5,
    multi_label: bool = False,
) -> Tensor:
    """Suppression of rotated boxes, per label where ``multi_label`` (dets then has the label as its sixth column)."""
    return suppress(dets.detach()[:, :5], scores, iou_threshold, dets[:, 5] if multi_label else None)


# wide: mmcv calls it so
def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """:func:`align_rotated` into ``output``."""
    with torch.no_grad():
        size = (pooled_height, pooled_width)
        output.copy_(align_rotated(input, rois, size, spatial_scale, sampling_ratio, aligned=aligned, clockwise=clockwise))


# wide: mmcv calls it so
def roi_align_rotated_backward(
    top_grad: Tensor,
    rois: Tensor,
    bottom_grad: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Adds the gradient to ``bottom_grad``.  The op is linear in its input, so the gradient is the same at any input."""
    with torch.enable_grad():
        x = torch.zeros_like(bottom_grad).requires_grad_()
        size = (pooled_height, pooled_width)
        y = align_rotated(x, rois, size, spatial_scale, sampling_ratio, aligned=aligned, clockwise=clockwise)
        if y.requires_grad:
            bottom_grad.add_(torch.autograd.grad(y, x, top_grad)[0])


# wide: mmcv calls it so
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """torchvision's RoI align; only averaging (``pool_mode`` 1)."""
    if pool_mode != 1:
        raise NotImplementedError("roi_align with max pooling is not in ccdiff's stand-in for mmcv's compiled ops")
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(input, rois.to(input.dtype), size, spatial_scale, sampling_ratio, aligned))


# wide: mmcv calls it so
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds the gradient of :func:`roi_align_forward` to ``grad_input``."""
    size, bins = tuple(grad_input.shape), (aligned_height, aligned_width)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.contiguous(), rois.to(grad_output.dtype), spatial_scale, *bins, *size, sampling_ratio, aligned
        )
    )


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float) -> None:
    """Focal loss of every logit (N, K); targets (N,) are class numbers, K stands for background; ``weight`` (K,) or empty."""
    with torch.no_grad():
        output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float) -> None:
    """Gradient of the sum of :func:`sigmoid_focal_loss_forward`."""
    with torch.enable_grad():
        x = input.detach().requires_grad_()
        grad_input.copy_(torch.autograd.grad(_focal_loss(x, target, weight, gamma, alpha).sum(), x)[0])


def _focal_loss(x: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = x.shape[1]
    wanted = F.one_hot(target, classes + 1)[:, :classes].to(x.dtype)
    loss: Tensor = torchvision.ops.sigmoid_focal_loss(x, wanted, alpha, gamma)
    if weight.numel():
        loss = loss * torch.cat((weight, weight.new_ones(1)))[target][:, None]
    return loss


def diff_iou_rotated_sort_vertices_forward(vertices: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """The order of the corners of intersections, for RotatedIoULoss: (B, N, 24, 2) to indices (B, N, 9).

    The valid corners by angle, then the first again, then an index that is not valid (mmcv keeps zeros there).
    """
    places = 9
    angle = torch.atan2(vertices[..., 1], vertices[..., 0])
    angle = torch.where(mask, angle, torch.full_like(angle, 10.0))
    order = angle.argsort(-1)
    spare = 8 + mask[..., 8:].to(torch.int8).argmin(-1, keepdim=True)  # a crossing that does not count: its vertex is zero
    first, count = order[..., :1], num_valid.long()[..., None]
    place = torch.arange(places, device=vertices.device)
    index = torch.where(place < count, order[..., :places], torch.where(place == count, first, spare))
    return torch.where(count < 3, spare, index).int()


def get_compiler_version() -> str:
    """What ``mmcv.ops.get_compiler_version`` says."""
    return "none (ccdiff's stand-in)"


def get_compiling_cuda_version() -> str:
    """What ``mmcv.ops.get_compiling_cuda_version`` says."""
    return "none (ccdiff's stand-in)"


OPS: tuple[Callable[..., Any], ...] = (
    box_iou_rotated,
    nms,
    nms_rotated,
    roi_align_rotated_forward,
    roi_align_rotated_backward,
    roi_align_forward,
    roi_align_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    diff_iou_rotated_sort_vertices_forward,
    get_compiler_version,
    get_compiling_cuda_version,
)


# ---------------------------------------------------------------- the module that stands in


class StandIn(types.ModuleType):
    """``mmcv._ext`` made of :data:`OPS`; any other op raises when it is called, for mmcv asks for all of them when it is imported."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"the op {name!r} is not in ccdiff's stand-in for mmcv's compiled ops: build mmcv to use it")

        return missing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == "mmcv._ext" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        for op in OPS:
            setattr(module, op.__name__, op)


def install() -> bool:
    """Make ``mmcv._ext`` importable; True where the stand-in serves, False where a compiled mmcv does.  Needs mmcv or mmcv-lite."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
    return isinstance(importlib.import_module("mmcv._ext"), StandIn)
