"""mmrotate's and mmdetection's detectors: Oriented R-CNN (Xie et al. 2021), Rotated Faster R-CNN, RTMDet-R (Lyu et al. 2022), Faster R-CNN.

Notable:

* The libraries bring the networks alone; data, loop, resuming and files are ours (:mod:`.training`), so nothing of mmengine's Runner
  runs and no checkpoint of theirs is read.
* They have not been released since 2023.  :func:`backend` makes them work on today's Python and torch: the compiled ops by
  :mod:`.mmcv_ops` where mmcv is not compiled, a name that Python 3.10 took away, and threads for processes in mmrotate's evaluation
  (spawned processes would lack the ops and wait for ever).
* Oriented boxes are le90: (cx, cy, w, h, angle), as in :mod:`ccdiff_cli.geometry`.
* Backbones are those of :mod:`.backbones`, so that the same ImageNet weights serve all families; RTMDet's own CSPNeXt besides.
  Unlike mmdetection's, a pretrained ResNet-50 keeps the scales and shifts of its batch norms as they are, as torchvision does.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import functools
import importlib
import importlib.util
import logging
import multiprocessing.pool
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CCDiffError
from ..scene import ClassList
from . import mmcv_ops
from .backbones import CHANNELS, build_body, load_weights, read_weights
from .config import DetectorConfig
from .samples import rectangles_to_le90
from .training import Found, normalisation_of, picture_transform

NEEDS = ("mmcv", "mmengine", "mmdet", "mmrotate")
CSPNEXT = (96, 192, 384)
"""Channels of the tiny CSPNeXt at strides 8, 16 and 32."""


# ---------------------------------------------------------------- the libraries


@functools.cache
def backend() -> types.ModuleType:
    """The module ``mmrotate``, ready to build models from; imported once a process.

    Raises:
        CCDiffError: the extra is not installed, or its libraries do not fit together.
    """
    if lacking := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise CCDiffError(
            f"this detector needs the extra mmrotate, which is not installed (missing: {', '.join(lacking)})",
            fix="pip install 'ccdiff[mmrotate]' (a minute, nothing is compiled), or set detector.kind to faster-rcnn",
        )
    try:
        with warnings.catch_warnings(), _collections_of_old():
            warnings.simplefilter("ignore")
            mmcv_ops.install()
            mmrotate = importlib.import_module("mmrotate")
            importlib.import_module("mmrotate.utils").register_all_modules(init_default_scope=False)
            importlib.import_module("mmdet.utils").register_all_modules(init_default_scope=False)
    except (ImportError, AssertionError, AttributeError) as error:  # mmdet and mmrotate assert the versions of one another
        raise CCDiffError(
            f"the libraries of the extra mmrotate do not work together: {str(error).splitlines()[0]}",
            fix="pip install --force-reinstall --no-deps mmcv-lite==2.0.1 mmengine==0.11.0rc3 mmdet==3.1.0 mmrotate==1.0.0rc1",
        ) from error
    evaluation = importlib.import_module("mmrotate.evaluation.functional.mean_ap")
    vars(evaluation)["get_context"] = lambda method: types.SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    importlib.import_module("mmengine.logging").MMLogger.get_current_instance().setLevel(logging.WARNING)
    return mmrotate


@contextlib.contextmanager
def _collections_of_old() -> Iterator[None]:
    """mmrotate takes ``Sequence`` from :mod:`collections`, where it was until Python 3.10."""
    names = vars(collections)
    if "Sequence" in names:  # somebody else's cure
        yield
        return
    names["Sequence"] = collections.abc.Sequence
    try:
        yield
    finally:
        del names["Sequence"]


# ---------------------------------------------------------------- the network


class MMNetwork:
    """A detector of mmdetection or mmrotate (see :class:`.training.Network`)."""

    def __init__(self, config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> None:
        backend()
        from mmengine.config import ConfigDict
        from mmengine.registry import DefaultScope
        from mmrotate.registry import MODELS

        described, self.columns = MODEL_CONFIGS[config.kind](config, len(classes), weights)
        with warnings.catch_warnings(), DefaultScope.overwrite_default_scope("mmrotate"):
            warnings.simplefilter("ignore")
            self.net: Any = MODELS.build(ConfigDict(described))
            self.net.init_weights()
        self.oriented = config.oriented
        self.transform = picture_transform(config, normalisation_of(config))

    def losses(self, pictures: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """See :class:`.training.Network`."""
        images, samples, scales = self._samples(pictures)
        for sample, target, (sx, sy) in zip(samples, targets, scales, strict=True):
            sample.gt_instances = self._instances(target, sx, sy)
        parts = self.net.loss(images, samples)
        return [_total(parts[name]) for name in self._loss_names(parts)]

    def find(self, pictures: Sequence[Tensor]) -> list[Found]:
        """See :class:`.training.Network`."""
        images, samples, scales = self._samples(pictures)
        found = []
        for output, (sx, sy) in zip(self.net.predict(images, samples, rescale=False), scales, strict=True):
            instances = output.pred_instances
            boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
            if self.oriented:
                corners = mmcv_ops.rotated_corners(boxes) / boxes.new_tensor([sx, sy])
                hull = torch.cat((corners.amin(1), corners.amax(1)), 1)
                found.append(Found(hull, instances.scores, instances.labels, corners))
            else:
                found.append(Found(boxes / boxes.new_tensor([sx, sy, sx, sy]), instances.scores, instances.labels))
        return found

    def _samples(self, pictures: Sequence[Tensor]) -> tuple[Tensor, list[Any], list[tuple[float, float]]]:
        """The padded batch, mmdetection's description of each picture, and by how much each was resized in x and y."""
        from mmdet.structures import DetDataSample

        images, _ = self.transform([p.float() / 255 for p in pictures])
        padded = tuple(images.tensors.shape[-2:])
        samples, scales = [], []
        for picture, (height, width) in zip(pictures, images.image_sizes, strict=True):
            shape = {"img_shape": (height, width), "ori_shape": tuple(picture.shape[1:]), "scale_factor": (1.0, 1.0)}
            samples.append(DetDataSample(metainfo={**shape, "pad_shape": padded, "batch_input_shape": padded}))
            scales.append((width / picture.shape[2], height / picture.shape[1]))
        return images.tensors, samples, scales

    def _instances(self, target: Mapping[str, Tensor], sx: float, sy: float) -> Any:
        from mmengine.structures import InstanceData
        from mmrotate.structures.bbox import RotatedBoxes

        if not self.oriented:
            return InstanceData(bboxes=target["boxes"] * target["boxes"].new_tensor([sx, sy, sx, sy]), labels=target["labels"] - 1)
        rectangles = rectangles_to_le90(target["corners"] * target["corners"].new_tensor([sx, sy]))
        return InstanceData(bboxes=RotatedBoxes(rectangles), labels=target["labels"] - 1)

    def _loss_names(self, parts: Mapping[str, Any]) -> list[str]:
        names = sorted(name for name in parts if "loss" in name)
        assert len(names) == len(self.columns), f"{names} are not {self.columns}"
        return names


def _total(value: Any) -> Tensor:
    """A loss, or the sum of one per pyramid level."""
    return sum(v.sum() for v in value) if isinstance(value, (list, tuple)) else value.sum()


build = MMNetwork


# ---------------------------------------------------------------- backbones


class Body(nn.Module):
    """A backbone of :mod:`.backbones` as mmdetection wants it: (B, 3, H, W) -> a tuple of maps, finest first."""

    def __init__(self, config: DetectorConfig, weights: dict[str, Any], first: int) -> None:
        super().__init__()
        self.body, self.first = build_body(config, weights), first

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.body(x).values())[self.first :]


def _backbone(config: DetectorConfig, weights: dict[str, Any], first: int) -> tuple[dict[str, Any], list[int]]:
    """The description of the backbone and the channels of its maps; ``first`` 0: from stride 4, 1: from stride 8."""
    body = Body(config, weights, first)
    return {"type": lambda: body}, list(CHANNELS[type(body.body)][first:])


class PretrainedCSPNeXt(nn.Module):
    """The tiny CSPNeXt of RTMDet, with the weights of a file of mmdetection's where one is given."""

    def __init__(self, config: DetectorConfig, weights: dict[str, Any]) -> None:
        super().__init__()
        from mmdet.models.backbones import CSPNeXt

        self.body = CSPNeXt(arch="P5", expand_ratio=0.5, deepen_factor=0.167, widen_factor=0.375, **_norm_and_activation())
        self.body.init_weights()
        if weights["file"] is not None:
            state = {name.removeprefix("backbone."): value for name, value in read_weights(weights).items()}
            load_weights(self.body, state, weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.body(x)


def _norm_and_activation() -> dict[str, Any]:
    return {"norm_cfg": {"type": "BN"}, "act_cfg": {"type": "SiLU"}}


# ---------------------------------------------------------------- descriptions of the models, as the papers give them


def _forms(oriented: bool, midpoint: bool) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """How proposals and boxes are coded, what is pooled for them, and how they are compared with objects."""
    box_type = {"use_box_type": True} if oriented else {}
    proposal_coder: dict[str, Any]
    box_coder: dict[str, Any]
    if midpoint:  # proposals: a horizontal box and where two corners lie on its sides; boxes: in the proposal's own frame
        spread = {"target_means": [0.0] * 6, "target_stds": [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]}
        proposal_coder = {"type": "MidpointOffsetCoder", "angle_version": "le90", **spread}
        pooling = {"type": "RoIAlignRotated", "out_size": 7, "sample_num": 2, "clockwise": True}
        box_coder = {"type": "DeltaXYWHTRBBoxCoder", "norm_factor": None, "proj_xy": True}
    else:
        name = "DeltaXYWHHBBoxCoder" if oriented else "mmdet.DeltaXYWHBBoxCoder"
        proposal_coder = {"type": name, "target_means": [0.0] * 4, "target_stds": [1.0] * 4, **box_type}
        pooling = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}
        box_coder = {"type": "DeltaXYWHTHBBoxCoder", "norm_factor": 2}
    if oriented:
        spread = {"target_means": [0.0] * 5, "target_stds": [0.1, 0.1, 0.2, 0.2, 0.1]}
        box_coder |= {"angle_version": "le90", "edge_swap": True, **spread}
    else:
        box_coder = {"type": "mmdet.DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
    overlap = {"rpn": {"type": "mmdet.BboxOverlaps2D"}, "rcnn": {"type": "mmdet.BboxOverlaps2D"}}
    if oriented:  # proposals and boxes are compared as what they are, anchors with the horizontal boxes around the objects
        overlap = {"rpn": {"type": "RBbox2HBboxOverlaps2D"}, "rcnn": {"type": "RBboxOverlaps2D" if midpoint else "RBbox2HBboxOverlaps2D"}}
    return proposal_coder, box_coder, pooling, overlap


def _training(config: DetectorConfig, proposals: dict[str, Any], overlap: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Which anchors and proposals are taken for objects, and how many of them are trained on."""

    def assigner(stage: str, positive: float, negative: float, keep_best: bool) -> dict[str, Any]:
        limits = {"pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": negative, "ignore_iof_thr": -1}
        return {"type": "mmdet.MaxIoUAssigner", **limits, "match_low_quality": keep_best, "iou_calculator": overlap[stage]}

    def sampler(number: int, share: float, with_truth: bool) -> dict[str, Any]:
        parts = {"num": number, "pos_fraction": share, "neg_pos_ub": -1, "add_gt_as_proposals": with_truth}
        return {"type": "mmdet.RandomSampler", **parts}

    return {
        "rpn": {
            "assigner": assigner("rpn", 0.7, 0.3, True),
            "sampler": sampler(256, 0.5, False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": proposals,
        "rcnn": {
            "assigner": assigner("rcnn", 0.5, 0.5, False),
            "sampler": sampler(config.roi_samples, 0.25, True),
            "pos_weight": -1,
            "debug": False,
        },
    }


def _two_stages(config: DetectorConfig, classes: int, weights: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Faster R-CNN in three forms: horizontal, oriented from horizontal proposals, oriented from oriented ones (Oriented R-CNN).

    Anchors that cross the picture's border are trained on; mmrotate leaves them out, but on a small tile nearly all large ones do.
    """
    oriented, midpoint = config.oriented, config.kind == "oriented-rcnn"
    backbone, channels = _backbone(config, weights, 0)
    levels, width = len(config.anchor_sizes), config.fpn_channels
    strides = [4 * 2**i for i in range(levels)]
    box_type = {"use_box_type": True} if oriented else {}
    proposal_coder, box_coder, pooling, overlap = _forms(oriented, midpoint)
    proposals: dict[str, Any] = {
        "nms_pre": max(config.proposals, min(2 * config.proposals, 2000)),
        "max_per_img": config.proposals,
        "min_bbox_size": 0,
    }
    proposals["nms"] = {"type": "nms", "iou_threshold": 0.8 if midpoint else 0.7}

    rpn_smooth, box_smooth = ({"type": "mmdet.SmoothL1Loss", "beta": beta, "loss_weight": 1.0} for beta in (1 / 9, 1.0))
    model = {
        "type": "mmdet.FasterRCNN",
        "backbone": backbone,
        "neck": {"type": "mmdet.FPN", "in_channels": channels, "out_channels": width, "num_outs": levels},
        "rpn_head": {
            "type": "OrientedRPNHead" if midpoint else "mmdet.RPNHead",
            "in_channels": width,
            "feat_channels": width,
            "anchor_generator": {
                "type": "mmdet.AnchorGenerator",
                "base_sizes": list(config.anchor_sizes),
                "scales": [1.0],
                "ratios": list(config.anchor_ratios),
                "strides": strides,
                **box_type,
            },
            "bbox_coder": proposal_coder,
            "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": rpn_smooth if oriented else {"type": "mmdet.L1Loss", "loss_weight": 1.0},
        },
        "roi_head": {
            "type": "mmdet.StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "RotatedSingleRoIExtractor" if midpoint else "mmdet.SingleRoIExtractor",
                "roi_layer": pooling,
                "out_channels": width,
                "featmap_strides": strides[:4],
            },
            "bbox_head": {
                "type": "mmdet.Shared2FCBBoxHead",
                "in_channels": width,
                "fc_out_channels": config.head_width,
                "roi_feat_size": 7,
                "num_classes": classes,
                "bbox_coder": box_coder,
                "reg_class_agnostic": oriented,
                "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": box_smooth if oriented else {"type": "mmdet.L1Loss", "loss_weight": 1.0},
                "predict_box_type": "rbox" if oriented else "hbox",
                "reg_predictor_cfg": {"type": "mmdet.Linear"},
                "cls_predictor_cfg": {"type": "mmdet.Linear"},
            },
        },
        "train_cfg": _training(config, proposals, overlap),
        "test_cfg": {"rpn": proposals, "rcnn": _testing(config)},
    }
    return model, ("box", "class", "rpn box", "objectness")


def _rtmdet(config: DetectorConfig, classes: int, weights: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """RTMDet-R: a single stage at strides 8, 16 and 32, trained on the rotated IoU itself.

    Its authors test an average of the weights over the training (EMA); here the last ones are kept, as in all families.
    """
    if config.backbone == "cspnext":
        own, channels = PretrainedCSPNeXt(config, weights), list(CSPNEXT)
        backbone: dict[str, Any] = {"type": lambda: own}
    else:
        backbone, channels = _backbone(config, weights, 1)
    width = config.fpn_channels
    neck = {"in_channels": channels, "out_channels": width, "num_csp_blocks": 1, "expand_ratio": 0.5}
    model = {
        "type": "mmdet.RTMDet",
        "backbone": backbone,
        "neck": {"type": "mmdet.CSPNeXtPAFPN", **neck, **_norm_and_activation()},
        "bbox_head": {
            "type": "RotatedRTMDetSepBNHead",
            "num_classes": classes,
            "in_channels": width,
            "feat_channels": width,
            "stacked_convs": 2,
            "pred_kernel_size": 1,
            "share_conv": True,
            "with_objectness": False,
            "exp_on_reg": False,
            "angle_version": "le90",
            "scale_angle": False,
            "use_hbbox_loss": False,
            "anchor_generator": {"type": "mmdet.MlvlPointGenerator", "offset": 0, "strides": [8, 16, 32]},
            "bbox_coder": {"type": "DistanceAnglePointCoder", "angle_version": "le90"},
            "loss_cls": {"type": "mmdet.QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
            "loss_bbox": {"type": "RotatedIoULoss", "mode": "linear", "loss_weight": 2.0},
            "loss_angle": None,
            **_norm_and_activation(),
        },
        "train_cfg": {
            "assigner": {"type": "mmdet.DynamicSoftLabelAssigner", "topk": 13, "iou_calculator": {"type": "RBboxOverlaps2D"}},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": _testing(config),
    }
    return model, ("box", "class")


def _testing(config: DetectorConfig) -> dict[str, Any]:
    """What happens to the detections of a picture."""
    suppression = {"type": "nms_rotated" if config.oriented else "nms", "iou_threshold": config.nms_iou}
    limits = {"score_thr": config.score_threshold, "max_per_img": config.detections_per_picture}
    return {"nms_pre": 2000, "min_bbox_size": 0, "nms": suppression, **limits}


MODEL_CONFIGS = {
    "oriented-rcnn": _two_stages,
    "rotated-faster-rcnn": _two_stages,
    "mmdet-faster-rcnn": _two_stages,
    "rtmdet-r": _rtmdet,
}
"""Family -> function of (config, number of classes, weights) that describes the model in mmdetection's terms, with names of the losses
in the alphabetical order of mmdetection's."""
