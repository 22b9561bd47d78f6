"""Faster R-CNN with FPN (Ren et al. 2015, Lin et al. 2017), torchvision's, and its training.

Notable:

* A training is a folder ``<out>/<key>``: ``checkpoint.pt`` while it runs, ``model.safetensors`` and ``detector.json`` (written
  last) when it is done.  The random state of a step is derived from (seed, step), so a resumed training equals an uninterrupted one.
* NOTE: on CUDA, torchvision's RoIAlign adds gradients in no fixed order: there two trainings agree closely, not to the bit.
* Difficult objects are trained on as normal ones, as mmrotate does on DOTA; only the evaluation ignores them.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from ..dataset import scene_record, versions
from ..errors import CCDiffError, os_errors
from ..files import content_key, read_json, sha256_file, write_bytes, write_json
from ..scene import ClassList, Scene
from . import Detections, Progress
from .backbones import build_backbone, find_weights
from .config import DetectorConfig
from .samples import Draws, collate, count_unusable, load_picture

REVISION = 1
"""Raised when a change of this room changes what a training learns, so that older trainings are not taken for it."""
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
LITE = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])  # EfficientNet-Lite0 was trained on [-1, 1]
LOSS_EVERY = 10  # steps averaged into one point of the loss curve


class FasterRCNNDetector:
    """A trained Faster R-CNN (see :class:`ccdiff_cli.detectors.Detector`)."""

    def __init__(self, model: FasterRCNN, classes: ClassList, config: DetectorConfig, info: dict[str, Any], device: torch.device) -> None:
        self.model, self.classes, self.config, self.info, self.device = model, classes, config, info, device

    @torch.no_grad()
    def predict(self, scenes: Sequence[Scene], progress: Progress | None = None) -> list[Detections]:
        """Detections for every scene, in pixels of the scene's labels."""
        self.model.eval()
        found: list[Detections] = []
        for start in range(0, len(scenes), self.config.batch):
            some = scenes[start : start + self.config.batch]
            pictures = [load_picture(scene) for scene in some]
            outputs = self.model([p.to(self.device).float() / 255 for p in pictures])
            for scene, picture, output in zip(some, pictures, outputs, strict=True):
                stretch = np.array([scene.width / picture.shape[2], scene.height / picture.shape[1]] * 2, dtype=np.float32)
                boxes, scores, labels = (output[k].cpu().numpy() for k in ("boxes", "scores", "labels"))
                found.append(Detections((boxes * stretch).astype(np.float32), scores.astype(np.float32), labels.astype(np.int64) - 1))
            if progress:
                progress("predict", len(found), len(scenes))
        return found

    def save(self, folder: str | Path) -> None:
        """Write the weights, then the description: a folder without ``detector.json`` is unfinished."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        write_bytes(Path(folder) / "model.safetensors", safetensors_save(state))
        write_json(
            Path(folder) / "detector.json", {"classes": list(self.classes), "config": self.config.model_dump(mode="json"), **self.info}
        )


def build_model(config: DetectorConfig, classes: ClassList, weights: dict[str, Any]) -> FasterRCNN:
    """An untrained Faster R-CNN; the background is class 0."""
    backbone = build_backbone(config, weights)
    levels = [str(i) for i in range(4)]
    mean, std = LITE if config.backbone == "efficientnet-lite0" else IMAGENET
    sizes, ratios = tuple((s,) for s in config.anchor_sizes), (config.anchor_ratios,) * len(config.anchor_sizes)
    model = FasterRCNN(
        backbone,
        num_classes=len(classes) + 1,
        min_size=config.input_size,
        max_size=math.ceil(config.input_size * 1333 / 800),
        image_mean=mean,
        image_std=std,
        rpn_anchor_generator=AnchorGenerator(sizes, ratios),
        rpn_pre_nms_top_n_train=2 * config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_pre_nms_top_n_test=config.proposals,
        rpn_post_nms_top_n_test=config.proposals,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        box_batch_size_per_image=config.roi_samples,
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_iou,
        box_detections_per_img=config.detections_per_picture,
    )
    if config.head_width != 1024:
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

        model.roi_heads.box_head = TwoMLPHead(config.fpn_channels * 49, config.head_width)
        model.roi_heads.box_predictor = FastRCNNPredictor(config.head_width, len(classes) + 1)
    return model


def training_key(scenes: Sequence[Scene], classes: ClassList, config: DetectorConfig, seed: int, start: str | None = None) -> str:
    """See :func:`ccdiff_cli.detectors.training_key`."""
    records = [[scene_record(s.replace(caption="", provenance={})), sha256_file(str(s.path))] for s in scenes]
    libraries = {name: version for name, version in versions().items() if name in ("torch", "torchvision")}
    weights = find_weights(config)["sha256"]
    identity = [REVISION, records, list(classes), config.training_record(), weights, seed, libraries]
    return content_key(identity if start is None else [*identity, start])


def fit(
    scenes: Sequence[Scene],
    classes: ClassList,
    config: DetectorConfig,
    out: Path,
    seed: int,
    progress: Progress | None = None,
    start: str | None = None,
) -> FasterRCNNDetector:
    """See :func:`ccdiff_cli.detectors.fit`."""
    _check(scenes)
    weights = find_weights(config)
    key = training_key(scenes, classes, config, seed, start)
    folder = out / key
    if (folder / "detector.json").is_file():
        return load(folder, config.device)

    device = _device(config.device)
    with torch.random.fork_rng(devices=_devices(device)):
        torch.manual_seed(_step_seed(seed, -1))
        model = build_model(config, classes, weights).to(device)
    if start is not None:
        model.load_state_dict(load(out / start, config.device).model.state_dict())
    optimizer = _optimizer(model, config)
    first, losses, seconds, drawn = _resume(folder / "checkpoint.pt", model, optimizer, device)
    draws = Draws(scenes, classes, seed, config.steps * config.batch, config.augment)
    model.train()
    since: list[list[float]] = []
    clock = time.monotonic()
    for step, (pictures, targets) in zip(range(first, config.steps), _batches(draws, config, first), strict=True):
        parts = _step(model, optimizer, config, seed, step, pictures, targets, device)
        since.append(parts)
        if (step + 1) % LOSS_EVERY == 0 or step + 1 == config.steps:
            losses.append([step + 1, *(round(float(v), 5) for v in np.mean(since, axis=0))])
            since = []
        drawn += len(pictures)
        if (step + 1) % (LOSS_EVERY * max(1, config.checkpoint_every // LOSS_EVERY)) == 0 and step + 1 < config.steps:
            state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
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
        "objects_unusable": count_unusable(scenes, classes),
        "losses": {"columns": ["step", "total", "class", "box", "objectness", "rpn box"], "rows": losses},
        "seconds": round(seconds, 1),
        "pictures_per_second": round(drawn / max(seconds, 1e-9), 2),
        "device": str(device),
        "versions": versions(),
    }
    detector = FasterRCNNDetector(model.eval(), classes, config, info, device)
    detector.save(folder)
    with contextlib.suppress(OSError):
        (folder / "checkpoint.pt").unlink()
    return detector


def load(folder: Path, device: str = "auto") -> FasterRCNNDetector:
    """See :func:`ccdiff_cli.detectors.load_detector`."""
    where = folder / "detector.json"
    description = read_json(where)
    try:
        config = DetectorConfig.model_validate(description["config"])
        classes = ClassList(tuple(description["classes"]))
        info = {k: v for k, v in description.items() if k not in ("config", "classes")}
        pretrained = info["backbone_weights"]["sha256"] is not None
    except (KeyError, TypeError, ValidationError) as error:
        raise CCDiffError(f"not a detector of this version: {error}", where=where, fix="delete the folder and train again") from error
    model = _empty_model(config, classes, pretrained=pretrained)
    path = folder / "model.safetensors"
    with os_errors(path, "read the detector"):
        data = path.read_bytes()
    try:
        model.load_state_dict(safetensors_load(data))
    except Exception as error:  # torn file or another architecture: safetensors and torch raise their own kinds
        raise CCDiffError(
            f"cannot load the detector: {str(error).splitlines()[0]}", where=path, fix="delete the folder and train again"
        ) from error
    target = _device(device)
    return FasterRCNNDetector(model.to(target).eval(), classes, config, info, target)


def seconds_per_step(scenes: Sequence[Scene], classes: ClassList, config: DetectorConfig) -> float:
    """See :func:`ccdiff_cli.detectors.seconds_per_step`."""
    _check(scenes)
    device = _device(config.device)
    with torch.random.fork_rng(devices=_devices(device)):
        model = build_model(config, classes, find_weights(config)).to(device).train()
        optimizer = _optimizer(model, config)
        draws = Draws(scenes, classes, 0, 3 * config.batch, config.augment)
        times = []
        for step in range(3):
            batch = collate([draws[step * config.batch + i] for i in range(config.batch)])
            start = time.monotonic()
            _step(model, optimizer, config, 0, step, *batch, device)
            times.append(time.monotonic() - start)
    return min(times)


def _step(
    model: FasterRCNN,
    optimizer: torch.optim.Optimizer,
    config: DetectorConfig,
    seed: int,
    step: int,
    pictures: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    device: torch.device,
) -> list[float]:
    """One optimizer step; returns the total loss and its four parts."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * learning_rate_factor(step, config)
    with torch.random.fork_rng(devices=_devices(device)):
        torch.manual_seed(_step_seed(seed, step))  # the sampling of anchors and proposals
        parts = model([p.to(device).float() / 255 for p in pictures], [{k: v.to(device) for k, v in t.items()} for t in targets])
    ordered = [parts[k] for k in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")]
    total = torch.stack(ordered).sum()
    values = [float(v) for v in torch.stack([total, *ordered]).detach().cpu()]
    if not math.isfinite(values[0]):
        raise CCDiffError(
            f"the detector's loss became {values[0]} at step {step + 1} of {config.steps} (learning rate {config.lr:g})",
            fix=f"lower detector.lr (say to {config.lr / 4:g}) or raise detector.warmup_steps; finished trainings are kept",
        )
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.clip_gradient)
    optimizer.step()
    return values


def learning_rate_factor(step: int, config: DetectorConfig) -> float:
    """Learning rate of a step over the peak: linear warmup, then cosine to zero or a tenth at 8/12 and 11/12 of the steps."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / (config.steps - config.warmup_steps)))
    return 0.1 ** sum(step >= config.steps * part // 12 for part in (8, 11))


def _optimizer(model: FasterRCNN, config: DetectorConfig) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
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
    path: Path, model: FasterRCNN, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[int, list[list[float]], float, int]:
    """Load a checkpoint if there is one; returns the next step, the loss curve so far, the seconds spent and the pictures drawn."""
    if not path.is_file():
        return 0, [], 0.0, 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), state["losses"], float(state["seconds"]), int(state["drawn"])
    except Exception as error:  # a foreign or torn file: torch raises many kinds
        raise CCDiffError(
            f"cannot resume from the checkpoint: {str(error).splitlines()[0]}", where=path, fix="delete the file: the training starts anew"
        ) from error


def _empty_model(config: DetectorConfig, classes: ClassList, *, pretrained: bool) -> FasterRCNN:
    """A model to load weights into: with frozen batch norms exactly where training had them."""
    with torch.random.fork_rng(devices=[]):
        return build_model(config, classes, {"file": None, "frozen": pretrained})


def _check(scenes: Sequence[Scene]) -> None:
    if not scenes:
        raise CCDiffError("there are no pictures to train a detector on")
    if not any(scene.instances for scene in scenes):
        raise CCDiffError(f"none of the {len(scenes)} training pictures holds an object", fix="check the labels of the training split")


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, 3, step + 1]).generate_state(1)[0])


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CCDiffError(
            f"the device {name!r} cannot be used: {str(error).splitlines()[0]}", fix="set detector.device to auto or cpu"
        ) from error
    return device


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
