"""The typed settings of a detector: what a recipe writes under ``detector:``.

Notable: one flat list of settings serves all families.  A family refuses the settings it has no use for (:data:`SETTINGS`) and brings its
own values for the others, in two presets: ``small`` (tiles of about 128 px, two cores, minutes a training) and ``published`` (800 px,
the schedule of its authors, a GPU).  A training is counted in optimizer steps, never in epochs, so every arm of a comparison gets the
same number whatever the size of its set.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..options import Unfit
from ..stored import Number, Stored, Text

EXECUTION_FIELDS = frozenset({"device", "workers", "checkpoint_every"})
"""Settings that change how fast a training runs but not what it learns: left out of the cache key."""

Kind = Literal["faster-rcnn", "retinanet", "fcos", "oriented-rcnn", "rotated-faster-rcnn", "rtmdet-r", "mmdet-faster-rcnn", "yolo"]


class DetectorConfig(BaseModel):
    """A detector and its training."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind = Field(
        "faster-rcnn",
        description="Detector family. Horizontal boxes: faster-rcnn, retinanet, fcos (torchvision), mmdet-faster-rcnn (extra mmrotate). "
        "Oriented boxes: oriented-rcnn, rotated-faster-rcnn, rtmdet-r (extra mmrotate). Either: yolo (extra ultralytics, AGPL-3.0).",
    )
    preset: Literal["small", "published"] = Field(
        "small",
        description="Where the settings that are not given come from. small: for a CPU; published: 800 px and the schedule of the "
        "family's authors, for a GPU (then steps must be given, and backbone_weights should be).",
    )
    backbone: Literal["efficientnet-lite0", "resnet50", "cspnext"] = Field(
        "efficientnet-lite0",
        description="Backbone. resnet50 as published (rtmdet-r: cspnext, its tiny one); efficientnet-lite0 (3.4 M parameters) for a CPU.",
    )
    backbone_weights: str = Field(
        "auto",
        min_length=1,
        description="ImageNet weights: a file (or a folder with one), a hub name (timm/resnet50.tv_in1k), auto (efficientnet-lite0: those "
        "of the extra ccdiff[cpu-detector] if installed; else none; never downloads) or none (from scratch). Said in the report.",
    )
    frozen_stages: int = Field(
        2,
        ge=0,
        le=5,
        description="Stages of a pretrained backbone that stay as they are (1: the stem, 2: up to stride 4).",
    )
    boxes: Literal["hbb", "obb"] = Field("obb", description="yolo: horizontal or oriented boxes.")
    yolo_size: Literal["n", "s", "m", "l", "x"] = Field("n", description="yolo: size of YOLO11.")
    fpn_channels: int = Field(64, ge=8, le=1024, description="Channels of the feature pyramid. Published: 256 (rtmdet-r: 96).")
    head_width: int = Field(256, ge=16, le=4096, description="Width of the two fully connected layers of the box head. Published: 1024.")
    input_size: int = Field(
        192, ge=32, le=4096, description="Pictures are resized: their shorter side gets this many pixels. Published: 800."
    )
    anchor_sizes: tuple[Annotated[int, Field(gt=0, le=65_500)], ...] = Field(
        (16, 32, 64, 128),
        min_length=4,
        max_length=5,
        description="Anchor side per pyramid level (strides 4, 8, 16, 32 and, with resnet50, 64; retinanet: 8 to 128), pixels of the "
        "resized picture.",
    )
    anchor_ratios: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, max_length=16, description="Height / width of the anchors."
    )
    proposals: int = Field(200, ge=10, le=10000, description="Region proposals kept per picture after suppression. Published: 1000.")
    roi_samples: int = Field(64, ge=8, le=4096, description="Proposals per picture that train the box head. Published: 512.")
    steps: int = Field(500, ge=1, le=10**9, description="Optimizer steps of one training: the same for every arm.")
    batch: int = Field(8, ge=1, le=65_536, description="Pictures per step.")
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="Optimizer; sgd has momentum 0.9, as published.")
    lr: float = Field(0.001, gt=0, le=10, description="Peak learning rate. Published: 0.02 (faster-rcnn: sgd, batch 16).")
    weight_decay: float = Field(0.01, ge=0, le=10, description="Weight decay. Published: 0.0001 (sgd).")
    warmup_steps: int = Field(50, ge=0, le=10**9, description="Steps of linear warmup.")
    schedule: Literal["cosine", "step", "flat-cosine"] = Field(
        "cosine",
        description="cosine: to zero; step (1x): a tenth at 8/12 and at 11/12 of the steps; flat-cosine: to 1/20 in the second half.",
    )
    clip_gradient: float = Field(10.0, gt=0, le=1e9, description="Largest gradient norm.")
    augment: Literal["turns", "flip", "none"] = Field(
        "turns", description="turns: flips and quarter turns (aerial pictures have no up); flip: left-right only, as published; none."
    )
    score_threshold: float = Field(0.01, ge=0, lt=1, description="Detections below this score are dropped.")
    nms_iou: float = Field(
        0.5,
        gt=0,
        le=1,
        description="IoU above which the weaker of two detections of a class is suppressed; oriented boxes: 0.1, as published.",
    )
    detections_per_picture: int = Field(300, ge=1, le=1000, description="Most detections kept per picture; aerial scenes are dense.")
    device: str = Field("auto", description="auto (cuda where there is one), cpu, cuda, cuda:1, ...")
    workers: int = Field(0, ge=0, le=256, description="Processes that load pictures; any number gives the same result.")
    checkpoint_every: int = Field(100, ge=1, le=10**9, description="Steps between checkpoints, from which a stopped training goes on.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        """Refuse what the family does not know; fill in its preset."""
        if not isinstance(values, dict):
            return values
        kind, preset = values.get("kind", "faster-rcnn"), values.get("preset", "small")
        if not isinstance(kind, str) or kind not in SETTINGS or preset not in ("small", "published"):
            return values  # the check of the types says what is known
        for name in values:
            if name in cls.model_fields and name not in SETTINGS[kind]:
                known = ", ".join(n for n in cls.model_fields if n in SETTINGS[kind])
                raise ValueError(f"{name}: {kind} has no such setting; it has: {known}")
        if preset == "small":
            return {**SMALL[kind], **values}
        if "steps" not in values:
            epochs = PUBLISHED_EPOCHS.get(kind, 12)
            raise ValueError(
                f"steps: the published preset needs them: {epochs} epochs, {epochs} x training pictures / {PUBLISHED[kind]['batch']}"
            )
        if isinstance(values["steps"], int) and "warmup_steps" not in values:
            values = {**values, "warmup_steps": max(0, min(500, values["steps"] - 1))}
        return {**PUBLISHED[kind], **values}

    @model_validator(mode="after")
    def _consistent(self) -> DetectorConfig:
        if self.warmup_steps >= self.steps:
            fewer = f"warmup_steps={min(self.steps - 1, self.steps // 10)}"
            raise Unfit(
                f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})",
                fix=f"set both, --set steps={self.steps} --set {fewer}, or more than {self.warmup_steps} steps",
            )
        if self.batch == 1 and self.input_size <= 32:
            raise ValueError(f"input_size ({self.input_size}) must be larger than 32 where batch is 1: one value cannot be normalised")
        if self.backbone == "cspnext" and self.kind != "rtmdet-r":
            raise ValueError(f"backbone cspnext belongs to rtmdet-r; {self.kind} has resnet50 or efficientnet-lite0")
        if self.kind == "fcos" and (self.fpn_channels % 32 or self.fpn_channels < 64):
            raise ValueError(f"fpn_channels ({self.fpn_channels}) must be 64, 96, ... for fcos, whose head normalises 32 groups")
        if "anchor_sizes" in SETTINGS[self.kind]:
            levels = 5 if self.kind == "retinanet" or self.backbone == "resnet50" else 4
            if len(self.anchor_sizes) != levels:
                raise ValueError(f"anchor_sizes needs one size per level: {levels} for {self.kind} with {self.backbone}")
        return self

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in SETTINGS[self.kind]}

    @property
    def oriented(self) -> bool:
        """Whether the detector finds oriented boxes."""
        return self.kind in ("oriented-rcnn", "rotated-faster-rcnn", "rtmdet-r") or (self.kind == "yolo" and self.boxes == "obb")

    @classmethod
    def published(cls, train_pictures: int, **changes: Any) -> DetectorConfig:
        """The published protocol of a family (``kind``; Faster R-CNN R50-FPN unless given): 800 px, its optimizer, its number of epochs.

        Needs a GPU and ``backbone_weights`` naming a file of ImageNet weights.
        """
        kind = changes.get("kind", "faster-rcnn")
        batch = changes.get("batch", PUBLISHED[kind]["batch"])
        steps = PUBLISHED_EPOCHS.get(kind, 12) * -(-train_pictures // batch)
        return cls.model_validate({"preset": "published", "steps": steps, **changes})

    def training_record(self) -> dict[str, Any]:
        """The settings that decide the result, JSON-able: part of the cache key."""
        return self.model_dump(mode="json", exclude=set(EXECUTION_FIELDS | {"backbone_weights", "preset"}))


_SPECIAL = {"backbone", "frozen_stages", "boxes", "yolo_size", "fpn_channels"}
_ANCHORS = {"anchor_sizes", "anchor_ratios"}
_TWO_STAGES = {"head_width", "proposals", "roi_samples"} | _ANCHORS
_EVERYWHERE = set(DetectorConfig.model_fields) - _SPECIAL - _TWO_STAGES
_PYRAMID = _EVERYWHERE | {"backbone", "frozen_stages", "fpn_channels"}

SETTINGS: dict[str, frozenset[str]] = {
    "faster-rcnn": frozenset(_PYRAMID | _TWO_STAGES),
    "retinanet": frozenset(_PYRAMID | _ANCHORS),
    "fcos": frozenset(_PYRAMID),
    "oriented-rcnn": frozenset(_PYRAMID | _TWO_STAGES),
    "rotated-faster-rcnn": frozenset(_PYRAMID | _TWO_STAGES),
    "rtmdet-r": frozenset(_PYRAMID),
    "mmdet-faster-rcnn": frozenset(_PYRAMID | _TWO_STAGES),
    "yolo": frozenset(_EVERYWHERE | {"boxes", "yolo_size"}),
}
"""Family -> the settings it has."""

SMALL: dict[str, dict[str, Any]] = {
    "faster-rcnn": {},
    "retinanet": {"anchor_sizes": (16, 32, 64, 96, 128)},
    "fcos": {},
    "oriented-rcnn": {"nms_iou": 0.1},
    "rotated-faster-rcnn": {"nms_iou": 0.1},
    "rtmdet-r": {"nms_iou": 0.1, "weight_decay": 0.05},
    "mmdet-faster-rcnn": {},
    "yolo": {},
}
"""Family -> where its small preset differs from the defaults above."""

_R50: dict[str, Any] = {
    "backbone": "resnet50",
    "frozen_stages": 2,
    "fpn_channels": 256,
    "input_size": 800,
    "batch": 16,
    "optimizer": "sgd",
    "lr": 0.02,
    "weight_decay": 1e-4,
    "schedule": "step",
    "clip_gradient": 35.0,
    "augment": "flip",
    "score_threshold": 0.05,
    "detections_per_picture": 100,
    "workers": 4,
    "checkpoint_every": 1000,
}
_R50_TWO_STAGES = {**_R50, "head_width": 1024, "anchor_sizes": (32, 64, 128, 256, 512), "proposals": 1000, "roi_samples": 512}
_ORIENTED = {"batch": 2, "lr": 0.005, "nms_iou": 0.1, "detections_per_picture": 1000}

PUBLISHED: dict[str, dict[str, Any]] = {
    "faster-rcnn": _R50_TWO_STAGES,
    "retinanet": {**_R50, "lr": 0.01, "anchor_sizes": (32, 64, 128, 256, 512)},
    "fcos": {**_R50, "lr": 0.01, "nms_iou": 0.6},
    "mmdet-faster-rcnn": _R50_TWO_STAGES,
    "oriented-rcnn": {**_R50_TWO_STAGES, **_ORIENTED, "proposals": 2000},
    "rotated-faster-rcnn": {**_R50_TWO_STAGES, **_ORIENTED, "proposals": 2000},
    "rtmdet-r": {
        **_R50,
        **_ORIENTED,
        "backbone": "cspnext",
        "frozen_stages": 0,
        "fpn_channels": 96,
        "batch": 8,
        "optimizer": "adamw",
        "lr": 0.00025,
        "weight_decay": 0.05,
        "schedule": "flat-cosine",
    },
    "yolo": {
        **{k: v for k, v in _R50.items() if k not in ("backbone", "frozen_stages", "fpn_channels")},
        "lr": 0.01,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "clip_gradient": 10.0,
        "score_threshold": 0.001,
        "nms_iou": 0.7,
        "detections_per_picture": 300,
    },
}
"""The published protocols without their number of steps, which follows from the set (:meth:`DetectorConfig.published`)."""
PUBLISHED_EPOCHS = {"rtmdet-r": 36, "yolo": 50}
"""Epochs of the published schedule where they are not 12 (1x)."""


class BackboneWeights(Stored):
    """What ``detector.json`` says of the weights that its backbone began with."""

    name: Text = ""
    sha256: Text | None
    note: Text = ""


class Losses(Stored):
    """Of its training: a row for each step that was kept."""

    columns: list[Text]
    rows: list[list[Number]]
