"""What the crop of an object shows: a classifier of a real set's crops, a judge of generated ones (AeroGen's layout consistency).

As published (Tang et al., CVPR 2025; not released) but for the network: EfficientNet-Lite0, with ImageNet weights where the extra
``ccdiff[cpu-detector]`` is installed, in place of ResNet-101, so that it is trained on a CPU in minutes.  NOTE: it knows the classes of the
set and nothing else: a crop without an object looks like one of them, too, if not very.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from ..console import remark
from ..dataset import PictureSet
from ..detectors import DetectorConfig, training_key
from ..detectors.backbones import CHANNELS, EfficientNetLite0, build_body, find_weights, torch_device
from ..detectors.samples import turned
from ..errors import CCDiffError
from ..files import cache_folder, content_key, read_bytes, write_bytes
from ..pictures import read_rgb
from ..references import reference_window
from ..scene import Scene
from ..threads import THREADS, Threads, restored

SIDE, BATCH, STEPS, PEAK_LR = 64, 32, 300, 1e-3
REVISION = 1
"""Raised when a change of this module changes what a training learns."""

Progress = Callable[[str, int, int], None]


class CropNet(nn.Module):
    """``(B, 3, 64, 64)`` crops in [-1, 1] -> ``(B, classes)`` logits."""

    def __init__(self, classes: int, weights: dict[str, object]) -> None:
        super().__init__()
        self.body = build_body(DetectorConfig(), weights)
        self.head = nn.Linear(CHANNELS[EfficientNetLite0][-1], classes)

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.body(crops)["3"].mean((2, 3)))


class CropJudge:
    """The classifier of a set's crops: from the cache folder, or trained on the objects of its train split and kept there.

    Attributes:
        file: where its weights lie.
    """

    def __init__(self, real: PictureSet, device: str = "auto", progress: Progress | None = None) -> None:
        self.classes, self.device = tuple(real.classes), torch_device(device, "--cpu")
        self.file = crops_file(real)
        weights = find_weights(DetectorConfig())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = CropNet(len(self.classes), weights).to(self.device)
        try:
            self.net.load_state_dict(safetensors_load(read_bytes(self.file)))
        except (CCDiffError, SafetensorError, RuntimeError):  # none yet, or a damaged one
            with restored():
                threads = Threads(self.file.with_suffix(f".{THREADS}"), device=self.device.type, say=remark)
                _train(self.net, real, self.device, threads, progress)
            state = {name: value.detach().cpu().contiguous() for name, value in self.net.state_dict().items()}
            write_bytes(self.file, safetensors_save(state))
        self.net.eval()

    @torch.no_grad()
    def scores(self, scene: Scene) -> list[float]:
        """For every object of a labelled picture how likely its crop shows its class rather than another one."""
        if not scene.instances:
            return []
        shares = self.net(_tensor(_crops(scene)).to(self.device)).softmax(1).cpu()
        return [float(row[self.classes.index(i.category)]) for row, i in zip(shares, scene.instances, strict=True)]


def crops_file(real: PictureSet) -> Path:
    """Where the classifier of a set lies; named by all that its training depends on."""
    base = training_key(real.split("train"), real.classes, DetectorConfig(), 0)  # pictures, labels, first weights, versions
    return cache_folder() / "crops" / f"{content_key([REVISION, SIDE, BATCH, STEPS, PEAK_LR, base])}.safetensors"


def _crops(scene: Scene) -> list[np.ndarray]:
    """The objects' crops, (64, 64, 3) uint8 each."""
    picture = read_rgb(str(scene.path))
    windows = [reference_window(instance, picture.width, picture.height) for instance in scene.instances]
    return [np.asarray(picture.crop(window).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for window in windows]


def _tensor(crops: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _train(net: CropNet, real: PictureSet, device: torch.device, threads: Threads, progress: Progress | None) -> None:
    """Cross-entropy on crops flipped and turned by quarters, every class as often as every other; a step, tried, chooses the threads."""
    crops: list[np.ndarray] = []
    labels: list[int] = []
    for scene in real.split("train"):
        if scene.instances:
            crops += _crops(scene)
            labels += [real.classes.index(name) for name in scene.categories()]
    if not crops:
        raise CCDiffError(
            "the set has no labelled objects in its train split to learn crops from", where=real.root, fix="give a prepared set"
        )
    members = [np.flatnonzero(np.array(labels) == k) for k in sorted(set(labels))]
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=PEAK_LR, weight_decay=0.01)
    net.train()

    def loss_of(net: CropNet, step: int) -> Tensor:
        rng = np.random.default_rng((0, step))
        chosen = [int(rng.choice(members[k % len(members)])) for k in range(step * BATCH, (step + 1) * BATCH)]
        codes = rng.integers(8, size=BATCH).tolist()
        batch = torch.stack(
            [turned(c, bool(code & 1), code >> 1) for c, code in zip(_tensor([crops[k] for k in chosen]), codes, strict=True)]
        )
        return nn.functional.cross_entropy(net(batch.to(device)), torch.tensor([labels[k] for k in chosen], device=device))

    other = copy.deepcopy(net)  # running means change as it is tried
    threads.choose("crop classifier", lambda: loss_of(other, 0).backward())
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, 10 * (step + 1) / STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        loss = loss_of(net, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress("crop classifier", step + 1, STEPS)
