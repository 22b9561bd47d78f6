"""Detectors behind one interface: ``fit`` on scenes, ``predict`` on scenes, save, load.

Notable: a family is one entry in :data:`FAMILIES` (a module whose ``build`` makes its network); :mod:`.training` trains them all alike, and
the rest of the program knows only the :class:`Detector` protocol and :class:`Detections`.  ``fit`` files every training under a key of
all it depends on, so an interrupted one goes on from its checkpoint and a finished one is never trained again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import CCDiffError
from ..files import read_json
from ..scene import ClassList, Scene
from .config import DetectorConfig

if TYPE_CHECKING:
    from ..threads import Threads
    from .training import Network

__all__ = ["STAGE", "Detections", "Detector", "DetectorConfig", "Progress", "fit", "load_detector", "seconds_per_step", "training_key"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""

FAMILIES = {
    **dict.fromkeys(("faster-rcnn", "retinanet", "fcos"), "torchvision_models"),
    **dict.fromkeys(("oriented-rcnn", "rotated-faster-rcnn", "rtmdet-r", "mmdet-faster-rcnn"), "mm_models"),
    "yolo": "yolo",
}
"""Family -> the module of this package with its ``build``; imported when first used."""
STAGE = "detector"
"""What the number of threads of a training is kept under."""
LIBRARIES = {
    kind: {"mm_models": ("mmcv", "mmcv-lite", "mmdet", "mmrotate"), "yolo": ("ultralytics", "ultralytics-opencv-headless")}.get(module, ())
    for kind, module in FAMILIES.items()
}
"""Family -> distributions whose versions decide a training besides those of torch and torchvision."""


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture, best first.

    Attributes:
        boxes: (N, 4) float32, HBB x1 y1 x2 y2 in pixels of the picture.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64, index into the class list.
        corners: (N, 8) float32 oriented boxes, from detectors that find them (``boxes`` are then those around them); else None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    corners: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


class Detector(Protocol):
    """A trained detector.

    Attributes:
        classes: the classes it knows.
        info: JSON-able account of its training (key, config, seed, backbone weights, steps, losses, pictures per second, ...).
    """

    classes: ClassList
    info: dict[str, Any]

    def predict(self, scenes: Sequence[Scene], progress: Progress | None = None) -> list[Detections]:
        """Detections for every scene, in order."""

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``detector.json`` into ``folder``."""


def fit(
    scenes: Sequence[Scene],
    classes: ClassList,
    config: DetectorConfig,
    out: str | Path,
    seed: int,
    progress: Progress | None = None,
    start: str | None = None,
    threads: Threads | None = None,
) -> Detector:
    """Train a detector, or go on with an interrupted training, or load the finished one.

    Args:
        scenes: the training pictures; ``scene.path`` must be set.
        out: folder of trainings; this one lies in ``out / key``.
        progress: called with the stage "train" and steps.
        start: key of a finished training in ``out`` whose weights this one goes on from (fine-tuning).
        threads: chooses the number of threads of several trainings; None: of this one alone.  What was chosen stands in the info.

    Raises:
        CCDiffError: no scenes, no boxes, an unreadable picture, a missing extra, a loss that is not finite.
    """
    from . import training

    return training.fit(scenes, classes, config, Path(out), seed, progress, start, threads)


def training_key(scenes: Sequence[Scene], classes: ClassList, config: DetectorConfig, seed: int, start: str | None = None) -> str:
    """The key a training is filed under: pictures, labels, settings, first weights, seed and library versions."""
    from . import training

    return training.training_key(scenes, classes, config, seed, start)


def seconds_per_step(scenes: Sequence[Scene], classes: ClassList, config: DetectorConfig) -> float:
    """What one optimizer step costs on this machine, seconds: two are run and timed."""
    from . import training

    return training.seconds_per_step(scenes, classes, config)


def load_detector(folder: str | Path, device: str = "auto") -> Detector:
    """The detector that :meth:`Detector.save` wrote into ``folder``.

    Raises:
        CCDiffError: not such a folder, or written by another version.
    """
    description = read_json(Path(folder) / "detector.json")
    config = description.get("config") if isinstance(description, dict) else None
    kind = config.get("kind") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CCDiffError(f"unknown detector family {kind!r}", where=Path(folder) / "detector.json", fix=f"known: {', '.join(FAMILIES)}")
    from . import training

    return training.load(Path(folder), device)


def build_network(config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> Network:
    """An untrained network of the family; ``weights`` as :func:`.backbones.find_weights` describes them.

    Raises:
        CCDiffError: the extra that brings the family is not installed; the weights do not fit.
    """
    made: Network = importlib.import_module(f".{FAMILIES[config.kind]}", __package__).build(config, classes, weights)
    return made
