"""The typed settings of a detector: what a recipe writes under ``detector:``.

Notable: the defaults are the CPU case (tiles of about 128 px, two cores, minutes a training).  The published protocol (Faster R-CNN
R50-FPN, 800 px, 1x schedule) is :meth:`DetectorConfig.published`.  A training is counted in optimizer steps, never in epochs, so every
arm of a comparison gets the same number whatever the size of its set.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EXECUTION_FIELDS = frozenset({"device", "workers", "checkpoint_every"})
"""Settings that change how fast a training runs but not what it learns: left out of the cache key."""


class DetectorConfig(BaseModel):
    """A horizontal-box detector and its training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["faster-rcnn"] = Field("faster-rcnn", description="Detector family. faster-rcnn: torchvision's Faster R-CNN with FPN.")
    backbone: Literal["efficientnet-lite0", "resnet50"] = Field(
        "efficientnet-lite0", description="Backbone. resnet50 as published; efficientnet-lite0 (3.4 M parameters) for a CPU."
    )
    backbone_weights: str = Field(
        "auto",
        min_length=1,
        description="ImageNet weights: a file (or a folder with one), auto (efficientnet-lite0: those of the extra ccdiff[cpu-detector] "
        "if installed; resnet50: none) or none (from scratch). Never downloaded; said in the report.",
    )
    frozen_stages: int = Field(
        2,
        ge=0,
        le=5,
        description="Stages of a pretrained backbone that stay as they are (1: the stem, 2: up to stride 4).",
    )
    fpn_channels: int = Field(64, ge=8, le=1024, description="Channels of the feature pyramid. Published: 256.")
    head_width: int = Field(256, ge=16, le=4096, description="Width of the two fully connected layers of the box head. Published: 1024.")
    input_size: int = Field(
        192, ge=32, le=4096, description="Pictures are resized: their shorter side gets this many pixels. Published: 800."
    )
    anchor_sizes: tuple[int, ...] = Field(
        (16, 32, 64, 128),
        min_length=4,
        max_length=5,
        description="Anchor side per pyramid level (strides 4, 8, 16, 32 and, with a fifth, 64), pixels of the resized picture.",
    )
    anchor_ratios: tuple[float, ...] = Field((0.5, 1.0, 2.0), min_length=1, description="Height / width of the anchors.")
    proposals: int = Field(200, ge=10, le=10000, description="Region proposals kept per picture after suppression. Published: 1000.")
    roi_samples: int = Field(64, ge=8, le=4096, description="Proposals per picture that train the box head. Published: 512.")
    steps: int = Field(500, ge=1, description="Optimizer steps of one training: the same for every arm.")
    batch: int = Field(8, ge=1, description="Pictures per step.")
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="Optimizer; sgd has momentum 0.9, as published.")
    lr: float = Field(0.001, gt=0, description="Peak learning rate. Published: 0.02 (sgd, batch 16).")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay. Published: 0.0001 (sgd).")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warmup.")
    schedule: Literal["cosine", "step"] = Field(
        "cosine", description="cosine: to zero; step (1x): a tenth at 8/12 and at 11/12 of the steps."
    )
    clip_gradient: float = Field(10.0, gt=0, description="Largest gradient norm.")
    augment: Literal["turns", "flip", "none"] = Field(
        "turns", description="turns: flips and quarter turns (aerial pictures have no up); flip: left-right only, as published; none."
    )
    score_threshold: float = Field(0.01, ge=0, lt=1, description="Detections below this score are dropped.")
    nms_iou: float = Field(0.5, gt=0, le=1, description="IoU above which the weaker of two detections of a class is suppressed.")
    detections_per_picture: int = Field(300, ge=1, le=1000, description="Most detections kept per picture; aerial scenes are dense.")
    device: str = Field("auto", description="auto (cuda where there is one), cpu, cuda, cuda:1, ...")
    workers: int = Field(0, ge=0, description="Processes that load pictures; any number gives the same result.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints, from which a stopped training goes on.")

    @model_validator(mode="after")
    def _consistent(self) -> DetectorConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        if any(size <= 0 for size in self.anchor_sizes) or any(ratio <= 0 for ratio in self.anchor_ratios):
            raise ValueError("anchor_sizes and anchor_ratios must be positive")
        if len(self.anchor_sizes) != (5 if self.backbone == "resnet50" else 4):
            raise ValueError("anchor_sizes needs one size per level: 4 for efficientnet-lite0, 5 for resnet50")
        return self

    @classmethod
    def published(cls, train_pictures: int, **changes: Any) -> DetectorConfig:
        """The published protocol: Faster R-CNN R50-FPN, 800 px, 1x (12 epochs of ``train_pictures`` at batch 16), SGD.

        Needs a GPU and ``backbone_weights`` naming a file of ImageNet weights.
        """
        steps = 12 * -(-train_pictures // 16)
        return cls.model_validate({**PUBLISHED, "steps": steps, "warmup_steps": min(500, steps - 1), **changes})

    def training_record(self) -> dict[str, Any]:
        """The settings that decide the result, JSON-able: part of the cache key."""
        return self.model_dump(mode="json", exclude=set(EXECUTION_FIELDS | {"backbone_weights"}))


PUBLISHED: dict[str, Any] = {
    "backbone": "resnet50",
    "frozen_stages": 2,
    "fpn_channels": 256,
    "head_width": 1024,
    "input_size": 800,
    "anchor_sizes": (32, 64, 128, 256, 512),
    "proposals": 1000,
    "roi_samples": 512,
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
"""The published protocol without its number of steps, which follows from the set (:meth:`DetectorConfig.published`)."""
