"""torchvision's detectors of horizontal boxes: Faster R-CNN (Ren et al. 2015), RetinaNet (Lin et al. 2017), FCOS (Tian et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from ..scene import ClassList
from .backbones import build_backbone
from .config import DetectorConfig
from .training import NORMALISATION, Found, normalisation_of

LOSSES = {
    "faster-rcnn": {
        "loss_classifier": "class",
        "loss_box_reg": "box",
        "loss_objectness": "objectness",
        "loss_rpn_box_reg": "rpn box",
    },
    "retinanet": {"classification": "class", "bbox_regression": "box"},
    "fcos": {"classification": "class", "bbox_regression": "box", "bbox_ctrness": "centre"},
}
"""Family -> torchvision's name of each loss and ours."""


class TorchvisionNetwork:
    """One of torchvision's detectors (see :class:`.training.Network`); the background is class 0 in Faster R-CNN and nothing elsewhere."""

    def __init__(self, config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> None:
        self.net = _BUILDERS[config.kind](config, classes, weights)
        self.columns = tuple(LOSSES[config.kind].values())
        self._losses = tuple(LOSSES[config.kind])
        self._first_label = 1 if config.kind == "faster-rcnn" else 0

    def losses(self, pictures: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """See :class:`.training.Network`."""
        wanted = [{"boxes": t["boxes"], "labels": t["labels"] - 1 + self._first_label} for t in targets]
        parts = self.net([p.float() / 255 for p in pictures], wanted)
        return [parts[name] for name in self._losses]

    def find(self, pictures: Sequence[Tensor]) -> list[Found]:
        """See :class:`.training.Network`."""
        outputs = self.net([p.float() / 255 for p in pictures])
        return [Found(o["boxes"], o["scores"], o["labels"] - self._first_label) for o in outputs]


def _common(config: DetectorConfig) -> dict[str, Any]:
    mean, std = NORMALISATION[normalisation_of(config)]
    longest = math.ceil(config.input_size * 1333 / 800)
    return {"min_size": config.input_size, "max_size": longest, "image_mean": mean, "image_std": std}


def _single_stage(config: DetectorConfig) -> dict[str, Any]:
    kept = config.detections_per_picture
    found = {"score_thresh": config.score_threshold, "nms_thresh": config.nms_iou, "detections_per_img": kept}
    return {**_common(config), **found, "topk_candidates": max(1000, kept)}


def _faster_rcnn(config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> FasterRCNN:
    sizes, ratios = tuple((s,) for s in config.anchor_sizes), (config.anchor_ratios,) * len(config.anchor_sizes)
    model = FasterRCNN(
        build_backbone(config, weights),
        num_classes=len(classes) + 1,
        rpn_anchor_generator=AnchorGenerator(sizes, ratios),
        rpn_pre_nms_top_n_train=2 * config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_pre_nms_top_n_test=config.proposals,
        rpn_post_nms_top_n_test=config.proposals,
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(4)], output_size=7, sampling_ratio=2),
        box_batch_size_per_image=config.roi_samples,
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_iou,
        box_detections_per_img=config.detections_per_picture,
        **_common(config),
    )
    if config.head_width != 1024:
        model.roi_heads.box_head = TwoMLPHead(config.fpn_channels * 49, config.head_width)
        model.roi_heads.box_predictor = FastRCNNPredictor(config.head_width, len(classes) + 1)
    return model


def _retinanet(config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> RetinaNet:
    octaves = tuple(tuple(round(s * 2 ** (i / 3)) for i in range(3)) for s in config.anchor_sizes)
    anchors = AnchorGenerator(octaves, (config.anchor_ratios,) * len(octaves))
    return RetinaNet(build_backbone(config, weights), len(classes), anchor_generator=anchors, **_single_stage(config))


def _fcos(config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> FCOS:
    return FCOS(build_backbone(config, weights), len(classes), **_single_stage(config))


_BUILDERS = {"faster-rcnn": _faster_rcnn, "retinanet": _retinanet, "fcos": _fcos}
build = TorchvisionNetwork
