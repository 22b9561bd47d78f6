"""The layout of a batch of pictures as tensors, and what follows from it alone: soft ellipses and region masks.

Notable here:
- :class:`LayoutBatch` is padded outside (``(B, N, ...)`` with ``valid``) and packed inside: every computation runs over the V
  valid instances of the whole batch, so a padded place costs nothing and changes nothing.
- text of classes and features of references are held once each and pointed at by an index.
- regions are drawn by OpenCV once per picture (exactly the published rasters); :func:`region_masks` is cheap enough for a data
  loader, and only their support is kept: whether two cells share a region does not depend on the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..scene import Scene

_REGIONS_AT_ONCE = 32  # full-resolution rasters resized together; bounds memory to some 32 MB at 512 x 512


@dataclass
class LayoutBatch:
    """B pictures of one size with up to N instances each.

    Attributes:
        hbb: ``(B, N, 4)`` x_min, y_min, x_max, y_max divided by the picture's width and height.
        obb: ``(B, N, 8)`` x1 x2 x3 x4 y1 y2 y3 y4, normalised likewise.
        valid: ``(B, N)`` bool; False for padding.
        class_index: ``(B, N)`` int64 into ``class_tokens`` and ``class_pooled``.
        class_tokens: ``(U, L, D)`` text tokens of each class name that occurs.
        class_pooled: ``(U, D)`` pooled text of each class name.
        caption_tokens: ``(B, L, D)`` text tokens of the scene captions.
        caption_pooled: ``(B, D)`` pooled text of the scene captions.
        features: ``(R, T, E)`` image tokens of each reference picture that occurs; R may be 0, T must be the encoder's even so.
        instance_reference: ``(B, N)`` int64 into ``features``; -1 for an instance without a reference (it has T zero tokens, so
            that what enters the resampler is the learned bias of ``proj_in``).
        background_reference: ``(B,)`` int64 into ``features``; -1 for none.
        image_size: (height, width) of the pictures in pixels.
        latent_size: (height, width) of the latents.
        regions: ``(B, N + 1, h, w)`` bool, the supports of :func:`region_masks` (the last is the complement); None: drawn when needed.
        captions: the scene captions as texts, for methods that read them otherwise; () where nothing asks for them.
        metadata: ``(B, M)`` float64 of methods that ask for it (NaN: unknown); None otherwise.
    """

    hbb: Tensor
    obb: Tensor
    valid: Tensor
    class_index: Tensor
    class_tokens: Tensor
    class_pooled: Tensor
    caption_tokens: Tensor
    caption_pooled: Tensor
    features: Tensor
    instance_reference: Tensor
    background_reference: Tensor
    image_size: tuple[int, int]
    latent_size: tuple[int, int]
    regions: Tensor | None = None
    captions: tuple[str, ...] = ()
    metadata: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.hbb.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LayoutBatch:
        """A copy on ``device``; text and image tokens also become ``dtype`` (coordinates stay as they are)."""
        changes: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                encoded = f.name in ("class_tokens", "class_pooled", "caption_tokens", "caption_pooled", "features")
                changes[f.name] = value.to(device=device, dtype=dtype if encoded else None, non_blocking=True)
        return dataclasses.replace(self, **changes)

    def with_regions(self) -> LayoutBatch:
        """A copy whose regions are drawn."""
        if self.regions is not None:
            return self
        obb, valid = self.obb.float().cpu().numpy(), self.valid.cpu().numpy()
        batch, count = valid.shape
        regions = np.zeros((batch, count + 1, *self.latent_size), dtype=bool)
        for b in range(batch):
            drawn = region_masks(obb[b][valid[b]], self.image_size, self.latent_size)
            regions[b, :count][valid[b]] = drawn[:-1]
            regions[b, count] = drawn[-1]
        return dataclasses.replace(self, regions=torch.from_numpy(regions).to(self.hbb.device))

    def rows(self, first: int, last: int) -> LayoutBatch:
        """The pictures from ``first`` up to ``last``, without the padding that only others need."""
        part = slice(first, last)
        used = self.valid[part].any(0).nonzero()
        objects = slice(0, int(used.max()) + 1 if len(used) else 0)
        regions = self.regions
        if regions is not None:  # the last one is the complement
            regions = torch.cat([regions[part, :-1][:, objects], regions[part, -1:]], dim=1)
        changes: dict[str, Any] = {k: getattr(self, k)[part, objects] for k in ("hbb", "obb", "valid", "class_index", "instance_reference")}
        changes |= {k: getattr(self, k)[part] for k in ("caption_tokens", "caption_pooled", "background_reference")}
        metadata = None if self.metadata is None else self.metadata[part]
        return dataclasses.replace(self, regions=regions, captions=self.captions[part], metadata=metadata, **changes)

    def published_padding(self, count: int = 6) -> LayoutBatch:
        """A copy that treats padding as the published program does: pictures with fewer instances get all-zero ones up to ``count``.

        Their gates are zero, but they feed the relation tokens.
        """
        own = self.valid.sum(1)
        width = max(count, int(own.max()))
        grown = max(0, width - self.valid.shape[1])
        changes: dict[str, Any] = {name: F.pad(getattr(self, name), (0, 0, 0, grown)) for name in ("hbb", "obb")}
        changes |= {name: F.pad(getattr(self, name), (0, grown), value=v) for name, v in (("class_index", 0), ("instance_reference", -1))}
        valid = F.pad(self.valid, (0, grown))
        # the first padding places of a picture become valid
        free = (~valid).cumsum(1)
        added = ~valid & (free <= (count - own).clamp(min=0)[:, None])
        for name, empty in (("hbb", 0), ("obb", 0), ("class_index", 0), ("instance_reference", -1)):
            changes[name][added] = empty
        changed = dataclasses.replace(self, valid=valid | added, regions=None, **changes)
        if len(self.class_tokens) == 0:  # class 0 must exist; its gate is zero
            changed.class_tokens, changed.class_pooled = self.caption_tokens[:1], self.caption_pooled[:1]
        return changed


def region_masks(obb: np.ndarray, image_size: tuple[int, int], latent_size: tuple[int, int]) -> np.ndarray:
    """The cells that each instance's polygon, and what no polygon covers, reach into.

    The polygons are filled at picture resolution with corners truncated to whole pixels, then resized bilinearly.

    Args:
        obb: ``(n, 8)`` float32 x1..x4 y1..y4 normalised; no padding.
        image_size: (height, width) in pixels.
        latent_size: (height, width) of the result.

    Returns:
        ``(n + 1, h, w)`` bool; the last is the complement.
    """
    height, width = image_size
    obb = np.asarray(obb, dtype=np.float32).reshape(-1, 2, 4)
    scale = np.array([width, height], dtype=np.float32)[:, None]
    polygons = np.clip(obb * scale, -32000, 32000).astype(np.int32).transpose(0, 2, 1)
    covered = np.zeros((height, width), dtype=np.uint8)
    out = np.zeros((len(polygons) + 1, *latent_size), dtype=bool)
    for start in range(0, len(polygons), _REGIONS_AT_ONCE):
        part = polygons[start : start + _REGIONS_AT_ONCE]
        rasters = np.zeros((len(part), height, width), dtype=np.uint8)
        for raster, polygon in zip(rasters, part, strict=True):
            cv2.fillPoly(raster, [np.ascontiguousarray(polygon)], 1)
        np.maximum(covered, rasters.max(axis=0), out=covered)
        out[start : start + len(part)] = _support(rasters, latent_size)
    out[-1] = _support(1 - covered[None], latent_size)[0]
    return out


def _support(rasters: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = F.interpolate(torch.from_numpy(rasters).float()[:, None], size=size, mode="bilinear", align_corners=False)
    return (resized[:, 0] > 0).numpy()


def resize_support(regions: Tensor, size: tuple[int, int]) -> Tensor:
    """``(B, R, h, w)`` bool supports after another bilinear resize: ``(B, R, *size)`` bool."""
    if regions.shape[-2:] == torch.Size(size):
        return regions
    return F.interpolate(regions.float(), size=size, mode="bilinear", align_corners=False) > 0


def may_attend(regions: Tensor) -> Tensor:
    """Whether two cells share a region: ``(B, R, h, w)`` bool -> ``(B, h * w, h * w)`` bool."""
    flat = regions.flatten(2).float()
    return torch.bmm(flat.transpose(1, 2), flat) > 0


def soft_ellipses(
    hbb: Tensor, obb: Tensor, size: tuple[int, int], *, shape: str = "hbb", centred: bool = False, min_cells: float = 0.0
) -> Tensor:
    """Soft gate of each instance on a grid: ``sigmoid(10 (1 - r^2))`` with r = 1 on the ellipse inscribed in its box.

    Args:
        hbb: ``(V, 4)`` normalised; obb: ``(V, 8)`` normalised.
        size: (height, width) of the grid.
        shape: "hbb" as published, or "obb": the ellipse inscribed in the oriented box.
        centred: sample at the cells' centres rather than at their top left corners, as published.
        min_cells: widen ellipses to at least this many cells, so that a small object is not lost between two samples.

    Returns:
        ``(V, h, w)`` float32; zero for boxes without area.
    """
    height, width = size
    offset = 0.5 if centred else 0.0
    u = ((torch.arange(width, device=hbb.device, dtype=torch.float32) + offset) / width)[None, None, :]
    v = ((torch.arange(height, device=hbb.device, dtype=torch.float32) + offset) / height)[None, :, None]
    hbb, obb = hbb.float(), obb.float()
    w, h = hbb[:, 2] - hbb[:, 0], hbb[:, 3] - hbb[:, 1]
    there = ((w != 0) & (h != 0))[:, None, None]
    if shape == "hbb":
        cx, cy = (hbb[:, 0] + hbb[:, 2]) / 2, (hbb[:, 1] + hbb[:, 3]) / 2
        half_w = torch.where(w == 0, 1.0, w.clamp(min=min_cells / width) if min_cells else w) / 2
        half_h = torch.where(h == 0, 1.0, h.clamp(min=min_cells / height) if min_cells else h) / 2
        across = (u - cx[:, None, None]) / half_w[:, None, None]
        along = (v - cy[:, None, None]) / half_h[:, None, None]
    elif shape == "obb":
        corners = torch.stack([obb[:, :4] * width, obb[:, 4:] * height], dim=-1)  # in cells, where lengths can be compared
        centre = corners.mean(dim=1)
        side, other = (corners[:, 1] - corners[:, 0]) / 2, (corners[:, 2] - corners[:, 1]) / 2
        if min_cells:
            side, other = (e * (min_cells / 2 / e.norm(dim=-1, keepdim=True).clamp(min=1e-6)).clamp(min=1.0) for e in (side, other))
        det = side[:, 0] * other[:, 1] - side[:, 1] * other[:, 0]
        there = there & (det.abs() > 1e-9)[:, None, None]
        det = torch.where(det.abs() > 1e-9, det, 1.0)[:, None, None]
        dx, dy = u * width - centre[:, 0, None, None], v * height - centre[:, 1, None, None]
        across = (dx * other[:, 1, None, None] - dy * other[:, 0, None, None]) / det
        along = (dy * side[:, 0, None, None] - dx * side[:, 1, None, None]) / det
    else:
        raise ValueError(f"gate shape {shape!r}: expected 'hbb' or 'obb'")
    return torch.sigmoid(10 * (1 - across**2 - along**2)) * there


@dataclass
class Boxes:
    """The boxes of some scenes as padded tensors: the fields of the same names of :class:`LayoutBatch`."""

    hbb: Tensor
    obb: Tensor
    valid: Tensor
    class_index: Tensor


def boxes_of_scenes(scenes: Sequence[Scene], classes: Sequence[str]) -> Boxes:
    """Normalised boxes of B scenes, padded to the largest number of instances; class indices into ``classes``."""
    count = max((len(scene.instances) for scene in scenes), default=0)
    hbb, obb = torch.zeros(len(scenes), count, 4), torch.zeros(len(scenes), count, 8)
    valid = torch.zeros(len(scenes), count, dtype=torch.bool)
    class_index = torch.zeros(len(scenes), count, dtype=torch.int64)
    place = {name: index for index, name in enumerate(classes)}
    for b, scene in enumerate(scenes):
        if not scene.instances:
            continue
        n = len(scene.instances)
        size = torch.tensor([scene.width, scene.height], dtype=torch.float64)
        hbb[b, :n] = (torch.tensor([i.hbb for i in scene.instances], dtype=torch.float64) / size.repeat(2)).float()
        corners = torch.tensor([i.corners for i in scene.instances], dtype=torch.float64).view(n, 4, 2) / size
        obb[b, :n] = corners.transpose(1, 2).reshape(n, 8).float()
        valid[b, :n] = True
        class_index[b, :n] = torch.tensor([place[i.category] for i in scene.instances])
    return Boxes(hbb, obb, valid, class_index)
