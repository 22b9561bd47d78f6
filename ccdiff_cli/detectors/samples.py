"""Training samples of a detector: picture and boxes of the k-th draw.

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

from ..pictures import read_rgb
from ..scene import ClassList, Scene

CACHE_BYTES = 1 << 30
"""Decoded pictures kept in memory; beyond that they are decoded again."""


class Draws(Dataset):
    """Draw k -> (picture (3, H, W) uint8, {"boxes": (N, 4) float32, "labels": (N,) int64 from 1}).

    Every epoch is a permutation of the scenes; a set smaller than a batch simply repeats within it.
    """

    def __init__(self, scenes: Sequence[Scene], classes: ClassList, seed: int, draws: int, augment: str) -> None:
        self.scenes, self.seed, self.draws, self.augment = list(scenes), seed, draws, augment
        self.targets = [scene_targets(scene, classes) for scene in self.scenes]
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
        boxes, labels = self.targets[index]
        picture = self._picture(index)
        scene = self.scenes[index]
        if (picture.shape[2], picture.shape[1]) != (scene.width, scene.height):  # labels of another resolution than the file
            boxes = boxes * boxes.new_tensor([picture.shape[2] / scene.width, picture.shape[1] / scene.height] * 2)
        flip, turns = draw_turn(self.seed, k, self.augment)
        picture, boxes = turned(picture, boxes, flip, turns)
        return picture, {"boxes": boxes, "labels": labels}

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


def scene_targets(scene: Scene, classes: ClassList) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4), clipped to the picture, and labels (N,) from 1; difficult objects are trained on like all others.

    Boxes under a pixel wide or high after clipping are left out: see :func:`count_unusable`.
    """
    boxes = torch.tensor([i.hbb for i in scene.instances], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([classes.index(i.category, where=scene.file_name) + 1 for i in scene.instances], dtype=torch.int64)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, scene.width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, scene.height)
    usable = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    return boxes[usable], labels[usable]


def count_unusable(scenes: Sequence[Scene], classes: ClassList) -> int:
    """Objects that training leaves out because less than a pixel of them lies in the picture."""
    return sum(len(scene.instances) - len(scene_targets(scene, classes)[1]) for scene in scenes)


def draw_turn(seed: int, k: int, augment: str) -> tuple[bool, int]:
    """Whether draw k is flipped left-right, and its number of quarter turns."""
    if augment == "none":
        return False, 0
    code = int(np.random.default_rng([seed, 2, k]).integers(8))
    return bool(code & 1), (code >> 1) if augment == "turns" else 0


def turned(picture: Tensor, boxes: Tensor, flip: bool, turns: int) -> tuple[Tensor, Tensor]:
    """The picture (3, H, W) and its boxes (N, 4), first flipped left-right, then turned counter-clockwise ``turns`` times."""
    if flip:
        picture = picture.flip(2)
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack((picture.shape[2] - x2, y1, picture.shape[2] - x1, y2), dim=1)
    for _ in range(turns):
        width = picture.shape[2]
        picture = torch.rot90(picture, 1, (1, 2))
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack((y1, width - x2, y2, width - x1), dim=1)
    return picture.contiguous(), boxes


def collate(batch: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Lists, not stacks: pictures may differ in size."""
    return [picture for picture, _ in batch], [target for _, target in batch]
