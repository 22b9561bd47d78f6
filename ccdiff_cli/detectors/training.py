"""The training that all families share: one resumable loop of optimizer steps, one way to save, load and predict.

Notable:

* A training is a folder ``<out>/<key>``: ``checkpoint.pt`` while it runs, ``model.safetensors`` and ``detector.json`` (written
  last) when it is done.  The random state of a step is derived from (seed, step), so a resumed training equals an uninterrupted one.
* A family is a :class:`Network`: losses of a batch, boxes of a batch.  What libraries bring for training themselves is not used, so all
  families see the same draws in the same order, read the same set on disk, and resume alike.
* NOTE: on CUDA, RoIAlign adds gradients in no fixed order: there two trainings agree closely, not to the bit.
* Difficult objects are trained on as normal ones, as mmrotate does on DOTA; only the evaluation ignores them.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.metadata
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..console import remark
from ..dataset import scene_record, versions
from ..errors import CCDiffError
from ..files import content_key, read_bytes, read_json, sha256_file, write_bytes, write_json
from ..geometry import visible_hbbs
from ..options import MOST_PROCESSES
from ..scene import ClassList, Scene
from ..stored import ClassName, Count, Digest, Number, Stored, Text, checked
from ..threads import THREADS, Threads, restored
from . import STAGE, Detections, Progress, build_network
from .backbones import find_weights, torch_device
from .config import BackboneWeights, DetectorConfig, Losses
from .samples import Draws, collate, count_unusable, load_picture

REVISION = 1
"""Raised when a change of this room changes what a training learns, so that older trainings are not taken for it."""
DESCRIPTION, WEIGHTS = "detector.json", "model.safetensors"
log = logging.getLogger(__name__)
LOSS_EVERY = 10  # steps averaged into one point of the loss curve
NORMALISATION = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "lite": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),  # EfficientNet-Lite0 was trained on [-1, 1]
    "plain": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
}


@dataclass(frozen=True)
class Found:
    """What a network found in one picture, in pixels of the picture it was given.

    Attributes:
        boxes: (N, 4) x1 y1 x2 y2.
        scores, labels: (N,); labels from 0.
        corners: (N, 4, 2) of the oriented boxes; None from networks that find horizontal ones.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    corners: Tensor | None = None


class Network(Protocol):
    """A family's network.

    Attributes:
        net: the module whose tensors are trained and saved.
        columns: names of the losses, in the order of :meth:`losses`.
    """

    net: nn.Module
    columns: tuple[str, ...]

    def losses(self, pictures: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """The losses of a batch, whose sum is trained on.

        Args:
            pictures: (3, H, W) uint8 each, on the network's device.
            targets: of :class:`.samples.Draws`, on the same device; labels from 1.
        """

    def find(self, pictures: Sequence[Tensor]) -> list[Found]:
        """What is in the pictures, (3, H, W) uint8 each, in their order."""


class Description(Stored):
    """``detector.json``."""

    config: DetectorConfig
    classes: Annotated[list[ClassName], Field(min_length=1)]
    backbone_weights: BackboneWeights
    key: Text | None = None
    weights: Digest | None = None
    losses: Losses | None = None
    seconds: Number | None = None
    threads: Annotated[int, Field(strict=True, ge=1, le=MOST_PROCESSES)] | None = None
    pictures_per_second: Number | None = None
    steps: Count | None = None
    seed: Count | None = None
    pictures: Count | None = None
    objects: Count | None = None


class TrainedDetector:
    """A trained network (see :class:`ccdiff_cli.detectors.Detector`)."""

    def __init__(self, network: Network, classes: ClassList, config: DetectorConfig, info: dict[str, Any], device: torch.device) -> None:
        self.network, self.classes, self.config, self.info, self.device = network, classes, config, info, device

    @torch.no_grad()
    def predict(self, scenes: Sequence[Scene], progress: Progress | None = None) -> list[Detections]:
        """Detections for every scene, in pixels of the scene's labels."""
        self.network.net.eval()
        found: list[Detections] = []
        for start in range(0, len(scenes), self.config.batch):
            some = scenes[start : start + self.config.batch]
            pictures = [load_picture(scene) for scene in some]
            outputs = self.network.find([p.to(self.device) for p in pictures])
            found += [_detections(*three) for three in zip(some, pictures, outputs, strict=True)]
            if progress:
                progress("predict", len(found), len(scenes))
        return found

    def save(self, folder: str | Path) -> None:
        """Write the weights, then the description: a folder without ``detector.json`` is unfinished."""
        state = self.network.net.state_dict()  # some tensors may be one and the same: cloned, for safetensors wants them apart
        state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        data = safetensors_save(state)
        write_bytes(Path(folder) / WEIGHTS, data)
        description = {"classes": list(self.classes), "config": self.config.model_dump(mode="json"), **self.info}
        write_json(Path(folder) / DESCRIPTION, {**description, "weights": hashlib.sha256(data).hexdigest()})


def _detections(scene: Scene, picture: Tensor, output: Found) -> Detections:
    """From pixels of the picture to pixels of the scene's labels; horizontal boxes are around what is visible of oriented ones."""
    stretch = np.array([scene.width / picture.shape[2], scene.height / picture.shape[1]], dtype=np.float32)
    boxes, scores, labels = (v.cpu().numpy() for v in (output.boxes, output.scores, output.labels))
    boxes, corners = boxes * np.tile(stretch, 2), None
    if output.corners is not None:
        corners = (output.corners.cpu().numpy() * stretch).reshape(-1, 8).astype(np.float32)
        boxes = visible_hbbs(corners, (0, 0, scene.width, scene.height))
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64), corners)


def picture_transform(config: DetectorConfig, normalisation: str) -> GeneralizedRCNNTransform:
    """Resizing (shorter side ``input_size``, longer at most 1333/800 of it), normalising and padding to a batch; torchvision's."""
    mean, std = NORMALISATION[normalisation]
    return GeneralizedRCNNTransform(config.input_size, math.ceil(config.input_size * 1333 / 800), mean, std)


def normalisation_of(config: DetectorConfig) -> str:
    """The normalisation that the backbone's ImageNet weights were trained with."""
    return "lite" if config.backbone == "efficientnet-lite0" else "imagenet"


def training_key(scenes: Sequence[Scene], classes: ClassList, config: DetectorConfig, seed: int, start: str | None = None) -> str:
    """See :func:`ccdiff_cli.detectors.training_key`."""
    records = [[scene_record(s.replace(caption="", provenance={})), sha256_file(str(s.path))] for s in scenes]
    libraries = {name: version for name, version in versions().items() if name in ("torch", "torchvision")} | _extra_versions(config)
    weights = find_weights(config)["sha256"]
    identity = [REVISION, records, list(classes), config.training_record(), weights, seed, libraries]
    return content_key(identity if start is None else [*identity, start])


@restored()
def fit(
    scenes: Sequence[Scene],
    classes: ClassList,
    config: DetectorConfig,
    out: Path,
    seed: int,
    progress: Progress | None = None,
    start: str | None = None,
    threads: Threads | None = None,
) -> TrainedDetector:
    """See :func:`ccdiff_cli.detectors.fit`."""
    _check(scenes)
    weights = find_weights(config)
    key = training_key(scenes, classes, config, seed, start)
    folder = out / key
    if (folder / DESCRIPTION).is_file():
        try:
            return load(folder, config.device)
        except CCDiffError as error:
            if error.where is None or Path(error.where).name not in (DESCRIPTION, WEIGHTS):  # no such device, say
                raise
            log.warning("%s: trained again", str(error).partition("\n")[0])

    device = torch_device(config.device, "set detector.device to auto or cpu")
    with torch.random.fork_rng(devices=_devices(device)):
        torch.manual_seed(_step_seed(seed, -1))
        network = build_network(config, classes, weights)
        network.net.to(device)
    if start is not None:
        network.net.load_state_dict(load(out / start, config.device).network.net.state_dict())
    optimizer = _optimizer(network.net, config)
    first, losses, seconds, drawn = _resume(folder / "checkpoint.pt", network.net, optimizer, device)
    draws = Draws(scenes, classes, seed, config.steps * config.batch, config.augment, oriented=config.oriented)
    network.net.train()
    if threads is None:
        threads = Threads(folder / THREADS, device=device.type, say=remark)
    threads.choose(STAGE, _rehearsal(network, config, seed, draws, first, device))
    since: list[list[float]] = []
    clock = time.monotonic()
    for step, (pictures, targets) in zip(range(first, config.steps), _batches(draws, config, first), strict=True):
        since.append(_step(network, optimizer, config, seed, step, pictures, targets, device))
        if (step + 1) % LOSS_EVERY == 0 or step + 1 == config.steps:
            losses.append([step + 1, *(round(float(v), 5) for v in np.mean(since, axis=0))])
            since = []
        drawn += len(pictures)
        if (step + 1) % (LOSS_EVERY * max(1, config.checkpoint_every // LOSS_EVERY)) == 0 and step + 1 < config.steps:
            state = {"step": step + 1, "model": network.net.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
            state |= {"seconds": seconds + time.monotonic() - clock, "drawn": drawn}
            buffer = io.BytesIO()  # torch reports a full disk as an error of its own kind; our own write names it
            torch.save(state, buffer)
            write_bytes(folder / "checkpoint.pt", buffer.getvalue())
        if progress:
            progress("train", step + 1, config.steps)
    seconds += time.monotonic() - clock
    info = {
        "key": key,
        "revision": REVISION,
        "seed": seed,
        "backbone_weights": {k: weights[k] for k in ("name", "sha256", "note")},
        "steps": config.steps,
        "pictures": len(scenes),
        "objects": sum(len(s.instances) for s in scenes),
        "objects_unusable": count_unusable(scenes, classes, oriented=config.oriented),
        "losses": {"columns": ["step", "total", *network.columns], "rows": losses},
        "seconds": round(seconds, 1),
        "pictures_per_second": round(drawn / max(seconds, 1e-9), 2),
        "device": str(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": versions() | _extra_versions(config),
    }
    network.net.eval()
    detector = TrainedDetector(network, classes, config, info, device)
    detector.save(folder)
    for name in ("checkpoint.pt", THREADS):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    return detector


def load(folder: Path, device: str = "auto") -> TrainedDetector:
    """See :func:`ccdiff_cli.detectors.load_detector`."""
    where, fix = folder / DESCRIPTION, "delete the folder and train again"
    description: dict[str, Any] = read_json(where)
    described: Description = checked(Description, description, where=where, fix=fix)
    config, classes = described.config, ClassList(tuple(described.classes))
    info = {k: v for k, v in description.items() if k not in ("config", "classes", "weights")}
    pretrained = described.backbone_weights.sha256 is not None
    with torch.random.fork_rng(devices=[]):  # an untrained one to load into, its batch norms frozen exactly where training had them so
        network = build_network(config, classes, {"file": None, "frozen": pretrained})
    path = folder / WEIGHTS
    data = read_bytes(path, limit=10**11)
    if described.weights is not None and hashlib.sha256(data).hexdigest() != described.weights:
        raise CCDiffError("cannot load the detector: the weights are not those that the training ended with", where=path, fix=fix)
    try:
        network.net.load_state_dict(safetensors_load(data))
    except Exception as error:  # torn file or another architecture: safetensors and torch raise their own kinds
        raise CCDiffError(f"cannot load the detector: {str(error).splitlines()[0]}", where=path, fix=fix) from error
    for name, value in network.net.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CCDiffError(f"the tensor {name} holds what is no number", where=path, fix=fix)
    target = torch_device(device, "set detector.device to auto or cpu")
    network.net.to(target).eval()
    return TrainedDetector(network, classes, config, info, target)


def seconds_per_step(scenes: Sequence[Scene], classes: ClassList, config: DetectorConfig) -> float:
    """See :func:`ccdiff_cli.detectors.seconds_per_step`."""
    _check(scenes)
    device = torch_device(config.device, "set detector.device to auto or cpu")
    with torch.random.fork_rng(devices=_devices(device)):
        network = build_network(config, classes, find_weights(config))
        network.net.to(device).train()
        optimizer = _optimizer(network.net, config)
        draws = Draws(scenes, classes, 0, 3 * config.batch, config.augment, oriented=config.oriented)
        times = []
        for step in range(3):
            batch = collate([draws[step * config.batch + i] for i in range(config.batch)])
            start = time.monotonic()
            _step(network, optimizer, config, 0, step, *batch, device)
            times.append(time.monotonic() - start)
    return min(times)


def _step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    config: DetectorConfig,
    seed: int,
    step: int,
    pictures: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    device: torch.device,
) -> list[float]:
    """One optimizer step; returns the total loss and its parts."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * learning_rate_factor(step, config)
    parts = _losses(network, seed, step, pictures, targets, device)
    total = torch.stack(parts).sum()
    values = [float(v) for v in torch.stack([total, *parts]).detach().cpu()]
    _check_finite(values[0], "loss", step, config)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.clip_gradient)
    _check_finite(float(norm), "gradient", step, config)
    optimizer.step()
    return values


def _losses(
    network: Network, seed: int, step: int, pictures: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], device: torch.device
) -> list[Tensor]:
    with torch.random.fork_rng(devices=_devices(device)):
        torch.manual_seed(_step_seed(seed, step))  # the sampling of anchors and proposals
        return network.losses([p.to(device) for p in pictures], [{k: v.to(device) for k, v in t.items()} for t in targets])


def _rehearsal(network: Network, config: DetectorConfig, seed: int, draws: Draws, step: int, device: torch.device) -> Callable[[], object]:
    """A forward and backward pass of a step's batch; through a copy, for running means in a network change by it."""

    @functools.cache
    def made() -> tuple[Network, list[Tensor], list[dict[str, Tensor]]]:
        return copy.deepcopy(network), *collate([draws[step * config.batch + i] for i in range(config.batch)])

    def rehearse() -> None:
        other, pictures, targets = made()
        other.net.zero_grad(set_to_none=True)
        torch.stack(_losses(other, seed, step, pictures, targets, device)).sum().backward()

    return rehearse


def _check_finite(value: float, what: str, step: int, config: DetectorConfig) -> None:
    if not math.isfinite(value):
        raise CCDiffError(
            f"the detector's {what} became {value} at step {step + 1} of {config.steps} (learning rate {config.lr:g})",
            fix=f"lower detector.lr (say to {config.lr / 4:g}) or raise detector.warmup_steps; finished trainings are kept",
        )


def learning_rate_factor(step: int, config: DetectorConfig) -> float:
    """Learning rate of a step over the peak: linear warmup, then what ``config.schedule`` says."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "step":
        return 0.1 ** sum(step >= config.steps * part // 12 for part in (8, 11))
    start = config.warmup_steps if config.schedule == "cosine" else max(config.warmup_steps, config.steps // 2)
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - start) / (config.steps - start)))
    return cosine if config.schedule == "cosine" else 0.05 + 0.95 * cosine


def _optimizer(net: nn.Module, config: DetectorConfig) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},  # biases and norms
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.lr)


def _batches(draws: Draws, config: DetectorConfig, first: int) -> Iterator[Any]:
    numbers = range(first * config.batch, config.steps * config.batch)
    generator = torch.Generator().manual_seed(0)  # keeps the loader's hands off the caller's random state
    return iter(DataLoader(draws, config.batch, sampler=list(numbers), num_workers=config.workers, collate_fn=collate, generator=generator))


def _resume(
    path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[int, list[list[float]], float, int]:
    """Load a checkpoint if there is one; returns the next step, the loss curve so far, the seconds spent and the pictures drawn."""
    if not path.is_file():
        return 0, [], 0.0, 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), state["losses"], float(state["seconds"]), int(state["drawn"])
    except Exception as error:  # a foreign or torn file: torch raises many kinds
        raise CCDiffError(
            f"cannot resume from the checkpoint: {str(error).splitlines()[0]}", where=path, fix="delete the file: the training starts anew"
        ) from error


def _check(scenes: Sequence[Scene]) -> None:
    if not scenes:
        raise CCDiffError("there are no pictures to train a detector on")
    if not any(scene.instances for scene in scenes):
        raise CCDiffError(f"none of the {len(scenes)} training pictures holds an object", fix="check the labels of the training split")


def _extra_versions(config: DetectorConfig) -> dict[str, str]:
    """Versions of the libraries besides torch and torchvision that make the family."""
    from . import LIBRARIES

    found = {}
    for name in LIBRARIES[config.kind]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, 3, step + 1]).generate_state(1)[0])


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
