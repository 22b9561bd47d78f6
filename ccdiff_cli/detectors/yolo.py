"""YOLO11 of ultralytics, with horizontal or oriented boxes.

NOTE: ultralytics is under AGPL-3.0.  It is an extra of its own, imported here alone and only when ``detector.kind: yolo`` is chosen; what
you build on it and pass on, or offer as a service, falls under that licence.

Notable:

* The library brings the network and its loss; data, loop and files are ours (:mod:`.training`), and nothing is downloaded or reported.
* Its own suppression stops after some seconds and leaves the rest of the pictures without detections; ours takes its place
  (torchvision's for horizontal boxes, the exact rotated IoU for oriented ones).
* Its weight files are pickles with code in them and are refused: convert one to safetensors to start from it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ..errors import CCDiffError
from ..scene import ClassList
from ..settings import read_yaml
from .backbones import load_weights, read_weights
from .config import DetectorConfig
from .mmcv_ops import rotated_corners, suppress
from .samples import rectangles_to_le90
from .training import Found, picture_transform

CANDIDATES = 3000
"""Best boxes of a picture that suppression looks at."""


class YoloNetwork:
    """YOLO11 (see :class:`.training.Network`)."""

    def __init__(self, config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> None:
        if importlib.util.find_spec("ultralytics") is None:
            raise CCDiffError(
                "this detector needs the extra ultralytics, which is not installed",
                fix="pip install 'ccdiff[ultralytics]' (AGPL-3.0), or set detector.kind to another family",
            )
        os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # it would install what it misses
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import DetectionModel, OBBModel

        self.config = config
        network: Any = OBBModel if config.oriented else DetectionModel
        self.net = network(_description(config), nc=len(classes), verbose=False)
        self.net.args = get_cfg()  # weights of the losses
        self.columns = ("box", "class", "distribution", *(["angle"] if config.oriented else []))
        self.transform = picture_transform(config, "plain")
        if weights["file"] is not None:
            load_weights(self.net, read_weights(weights), weights, head=f"model.{len(self.net.model) - 1}.")

    def losses(self, pictures: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """See :class:`.training.Network`."""
        images, _ = self.transform([p.float() / 255 for p in pictures])
        height, width = images.tensors.shape[-2:]
        boxes = []
        for picture, target, (h, w) in zip(pictures, targets, images.image_sizes, strict=True):
            scale = target["boxes"].new_tensor([w / picture.shape[2], h / picture.shape[1]])
            unit = target["boxes"].new_tensor([width, height])
            if self.config.oriented:
                rectangles = rectangles_to_le90(target["corners"] * scale)
                boxes.append(torch.cat((rectangles[:, :2] / unit, rectangles[:, 2:4] / unit, rectangles[:, 4:]), 1))
            else:
                low, high = target["boxes"][:, :2] * scale / unit, target["boxes"][:, 2:] * scale / unit
                boxes.append(torch.cat(((low + high) / 2, high - low), 1))
        which = torch.cat([torch.full_like(t["labels"], i) for i, t in enumerate(targets)])
        labels = torch.cat([t["labels"] - 1 for t in targets])
        batch = {"img": images.tensors, "batch_idx": which.float(), "cls": labels.float()[:, None], "bboxes": torch.cat(boxes)}
        return list(self.net.loss(batch)[0])

    def find(self, pictures: Sequence[Tensor]) -> list[Found]:
        """See :class:`.training.Network`."""
        images, _ = self.transform([p.float() / 255 for p in pictures])
        predicted = self.net(images.tensors)
        predicted = (predicted[0] if isinstance(predicted, (tuple, list)) else predicted).transpose(1, 2)  # (B, N, 4 + classes [+ angle])
        found = []
        for picture, rows, (h, w) in zip(pictures, predicted, images.image_sizes, strict=True):
            scale = rows.new_tensor([w / picture.shape[2], h / picture.shape[1]])
            found.append(self._picked(rows, scale))
        return found

    def _picked(self, rows: Tensor, scale: Tensor) -> Found:
        config = self.config
        boxes, scores = rows[:, :4], rows[:, 4:-1] if config.oriented else rows[:, 4:]
        place, labels = (scores > config.score_threshold).nonzero(as_tuple=True)
        scores = scores[place, labels]
        best = scores.argsort(descending=True, stable=True)[:CANDIDATES]
        place, labels, scores = place[best], labels[best], scores[best]
        boxes = boxes[place]
        if config.oriented:
            rotated = torch.cat((boxes, rows[place, -1:]), 1)
            kept = suppress(rotated, scores, config.nms_iou, labels)[: config.detections_per_picture]
            corners = rotated_corners(rotated[kept]) / scale
            return Found(torch.cat((corners.amin(1), corners.amax(1)), 1), scores[kept], labels[kept], corners)
        upright = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
        kept = batched_nms(upright, scores, labels, config.nms_iou)[: config.detections_per_picture]
        return Found(upright[kept] / scale.repeat(2), scores[kept], labels[kept])


def _description(config: DetectorConfig) -> dict[str, Any]:
    """The network's description from the library's own file.

    NOTE: not by its name: the library would take a file of that name in the current folder first, and evaluate parts of it as Python.
    """
    import ultralytics

    path = Path(ultralytics.__file__).parent / "cfg" / "models" / "11" / f"yolo11{'-obb' if config.oriented else ''}.yaml"
    return {**read_yaml(path, "the network's description"), "scale": config.yolo_size, "yaml_file": path.name}


build = YoloNetwork
