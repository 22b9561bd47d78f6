"""Training samples of a detector: picture and boxes (horizontal, and oriented where asked) of the k-th draw.

Notable: draw k depends on (seed, k) alone - the epoch's order, the flip and the quarter turn are all derived from it, and nothing random
is carried from one draw to the next.  So a training resumes exactly from any step, and any number of loading processes gives the same
pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..geometry import corners_to_le90, le90_to_corners
from ..pictures import read_rgb
from ..scene import ClassList, Scene

CACHE_BYTES = 1 << 30
"""Decoded pictures kept in memory; beyond that they are decoded again."""


class Draws(Dataset):
    """Draw k -> (picture (3, H, W) uint8, {"boxes": (N, 4) float32, "labels": (N,) int64 from 1, "corners": (N, 4, 2) float32}).

    Every epoch is a permutation of the scenes; a set smaller than a batch simply repeats within it.  The corners, always of rectangles,
    come with ``oriented`` alone.
    """

    def __init__(self, scenes: Sequence[Scene], classes: ClassList, seed: int, draws: int, augment: str, *, oriented: bool = False) -> None:
        self.scenes, self.seed, self.draws, self.augment, self.oriented = list(scenes), seed, draws, augment, oriented
        self.targets = [scene_targets(scene, classes, oriented=oriented) for scene in self.scenes]
        self._pictures: dict[int, Tensor] = {}
        self._bytes = 0
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, k: int) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, place = divmod(k, len(self.scenes))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.scenes)))
        index = int(self._order[1][place])
        targets = self.targets[index]
        picture = self._picture(index)
        scene = self.scenes[index]
        sx, sy = picture.shape[2] / scene.width, picture.shape[1] / scene.height  # labels of another resolution than the file: not one
        flip, turns = draw_turn(self.seed, k, self.augment)
        moved = {"labels": targets["labels"]}
        for name in ("boxes", "corners") if self.oriented else ("boxes",):
            points = targets[name]
            if (sx, sy) != (1, 1):
                points = points * points.new_tensor([sx, sy] * (points.shape[-1] // 2))
            moved[name] = turned_points(points, picture.shape[2], picture.shape[1], flip, turns)
        return turned(picture, flip, turns), moved

    def _picture(self, index: int) -> Tensor:
        if (known := self._pictures.get(index)) is not None:
            return known
        picture = load_picture(self.scenes[index])
        if self._bytes + picture.numel() <= CACHE_BYTES:
            self._pictures[index] = picture
            self._bytes += picture.numel()
        return picture


def load_picture(scene: Scene) -> Tensor:
    """The picture of a scene, (3, H, W) uint8 RGB."""
    assert scene.path is not None, f"{scene.file_name}: a layout without a picture"
    return torch.from_numpy(np.array(read_rgb(scene.path))).permute(2, 0, 1).contiguous()


def scene_targets(scene: Scene, classes: ClassList, *, oriented: bool = False) -> dict[str, Tensor]:
    """Boxes (N, 4), clipped to the picture, labels (N,) from 1 and, if ``oriented``, corners (N, 4, 2) of the objects' rectangles.

    Difficult objects are trained on like all others.  Boxes under a pixel wide or high after clipping, and rectangles under a pixel
    wide, are left out: see :func:`count_unusable`.
    """
    boxes = torch.tensor([i.hbb for i in scene.instances], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([classes.index(i.category, where=scene.file_name) + 1 for i in scene.instances], dtype=torch.int64)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, scene.width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, scene.height)
    usable = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    if not oriented:
        return {"boxes": boxes[usable], "labels": labels[usable]}
    rectangles = [corners_to_le90(i.corners) for i in scene.instances]
    usable &= torch.tensor([min(r[2:4]) >= 1 for r in rectangles], dtype=torch.bool)
    corners = torch.tensor([le90_to_corners(r) for r in rectangles], dtype=torch.float32).reshape(-1, 4, 2)
    return {"boxes": boxes[usable], "labels": labels[usable], "corners": corners[usable]}


def count_unusable(scenes: Sequence[Scene], classes: ClassList, *, oriented: bool = False) -> int:
    """Objects that training leaves out because less than a pixel of them lies in the picture."""
    return sum(len(scene.instances) - len(scene_targets(scene, classes, oriented=oriented)["labels"]) for scene in scenes)


def draw_turn(seed: int, k: int, augment: str) -> tuple[bool, int]:
    """Whether draw k is flipped left-right, and its number of quarter turns."""
    if augment == "none":
        return False, 0
    code = int(np.random.default_rng([seed, 2, k]).integers(8))
    return bool(code & 1), (code >> 1) if augment == "turns" else 0


def turned(picture: Tensor, flip: bool, turns: int) -> Tensor:
    """The picture (3, H, W), first flipped left-right, then turned counter-clockwise ``turns`` times."""
    return torch.rot90(picture.flip(2) if flip else picture, turns, (1, 2)).contiguous()


def turned_points(points: Tensor, width: int, height: int, flip: bool, turns: int) -> Tensor:
    """Boxes (N, 4) or corners (N, 4, 2) after :func:`turned` of their picture of ``width`` x ``height``."""
    x, y = points[..., 0::2], points[..., 1::2]
    if flip:
        x = width - x
    for _ in range(turns):
        x, y = y, width - x
        width, height = height, width
    if points.shape[-1] == 2:
        return torch.cat((x, y), dim=-1)
    return torch.stack((x.amin(1), y.amin(1), x.amax(1), y.amax(1)), dim=1)


def rectangles_to_le90(corners: Tensor) -> Tensor:
    """le90 (N, 5) of the corners (N, 4, 2) of rectangles, as :func:`ccdiff_cli.geometry.corners_to_le90` but for many at once."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1]
    a, b = first.norm(dim=1), second.norm(dim=1)
    side = torch.where((a >= b)[:, None], first, second)
    angle = torch.atan2(side[:, 1], side[:, 0])
    half_turn = torch.pi
    angle = (angle + half_turn / 2) % half_turn - half_turn / 2
    return torch.cat((corners.mean(1), torch.stack((torch.maximum(a, b), torch.minimum(a, b), angle), 1)), 1)


def collate(batch: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Lists, not stacks: pictures may differ in size."""
    return [picture for picture, _ in batch], [target for _, target in batch]
