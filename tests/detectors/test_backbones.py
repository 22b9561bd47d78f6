"""Backbones: shapes, weights that must be the known ones, and what is said when there are none."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from ccdiff_cli.detectors import DetectorConfig, backbones
from ccdiff_cli.detectors.backbones import build_backbone, find_weights
from ccdiff_cli.errors import CCDiffError

R50 = DetectorConfig(backbone="resnet50", anchor_sizes=(8, 16, 32, 64, 128), fpn_channels=32)
needs_extra = pytest.mark.skipif(
    importlib.util.find_spec(backbones.LITE0_PACKAGE) is None, reason="the extra cpu-detector is not installed"
)


def test_lite0_has_the_published_size_and_strides():
    body = build_backbone(DetectorConfig(), {"file": None}).body
    # 4.65 M of the classifier, less its head: 320 x 1280 + 2 x 1280, and 1281 x 1000
    assert sum(p.numel() for p in body.parameters()) == 4_652_008 - (320 * 1280 + 2 * 1280) - 1281 * 1000
    assert [tuple(v.shape) for v in body(torch.zeros(1, 3, 96, 64)).values()] == [
        (1, 24, 24, 16),
        (1, 40, 12, 8),
        (1, 112, 6, 4),
        (1, 320, 3, 2),
    ]


def test_same_padding_is_tensorflows():
    # TensorFlow pads one pixel, to the right and below, for kernel 3 and stride 2 on an even size; PyTorch's padding=1 differs.
    convolution = backbones.SameConv2d(1, 1, 3, 2, bias=False)
    x = torch.randn(1, 1, 8, 8)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    assert torch.equal(convolution(x), torch.nn.functional.conv2d(padded, convolution.weight, stride=2))


@needs_extra
def test_known_weights_load_and_freeze():
    config = DetectorConfig(frozen_stages=2)
    weights = find_weights(config)
    assert weights["sha256"] == backbones.LITE0_SHA256 and "ImageNet" in weights["note"]
    body = build_backbone(config, weights).body
    trained = [name for name, p in body.named_parameters() if p.requires_grad]
    assert not any(name.startswith(("conv_stem", "blocks.0.", "blocks.1.", "blocks.2.")) for name in trained)
    assert any(name.startswith("blocks.3.") for name in trained)
    # weights that were trained make a response that random ones do not: the deepest features stay of order one
    with torch.no_grad():
        assert 0.3 < float(body(torch.rand(1, 3, 128, 128) * 2 - 1)["3"].abs().mean()) < 5


@needs_extra
def test_changed_weights_are_refused(monkeypatch):
    monkeypatch.setattr(backbones, "LITE0_SHA256", "0" * 64)
    with pytest.raises(CCDiffError, match="not the known ones"):
        find_weights(DetectorConfig())


def test_without_the_extra_it_starts_from_scratch_and_says_so(monkeypatch):
    monkeypatch.setattr(backbones, "LITE0_PACKAGE", "a_package_that_is_not_there")
    weights = find_weights(DetectorConfig())
    assert weights["file"] is None and weights["note"].startswith("backbone weights: none") and "ccdiff[cpu-detector]" in weights["note"]
    assert "as asked" in find_weights(DetectorConfig(backbone_weights="none"))["note"]
    assert "resnet50" in find_weights(R50)["note"]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_resnet50_takes_torchvisions_file(tmp_path, suffix):
    model = resnet50()
    path = tmp_path / f"r50.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    for named in (path, tmp_path):  # the file, or the folder that holds it
        weights = find_weights(R50.model_copy(update={"backbone_weights": str(named)}))
    backbone = build_backbone(R50, weights)
    assert torch.equal(backbone.body.conv1.weight, model.conv1.weight) and isinstance(backbone.body.bn1, FrozenBatchNorm2d)
    assert not backbone.body.layer1[0].conv1.weight.requires_grad and backbone.body.layer2[0].conv1.weight.requires_grad
    assert len(backbone(torch.zeros(1, 3, 64, 64))) == 5


def test_a_hub_name_is_fetched_and_a_missing_file_is_not(tmp_path, monkeypatch):
    save_file(resnet50().state_dict(), tmp_path / "model.safetensors")
    asked = []

    def fetch(name: str, file: str) -> str:
        asked.append((name, file))
        if name != "timm/resnet50.tv_in1k":
            raise OSError("no network")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    weights = find_weights(R50.model_copy(update={"backbone_weights": "timm/resnet50.tv_in1k"}))
    assert weights["note"] == "backbone weights: timm/resnet50.tv_in1k (hub)" and build_backbone(R50, weights)
    with pytest.raises(CCDiffError, match=r"the hub gives no model.safetensors of 'no/one': no network"):
        find_weights(R50.model_copy(update={"backbone_weights": "no/one"}))
    for local in (str(tmp_path / "none.pth"), "tests/none.pth"):
        with pytest.raises(CCDiffError, match="does not exist"):
            find_weights(R50.model_copy(update={"backbone_weights": local}))
    assert len(asked) == 2


def test_weights_that_do_not_fit_or_hold_code_are_refused(tmp_path):
    def weights(name):
        return find_weights(R50.model_copy(update={"backbone_weights": str(tmp_path / name)}))

    with pytest.raises(CCDiffError, match="does not exist"):
        weights("none.pth")
    with pytest.raises(CCDiffError, match="found 0"):
        weights("")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "small.pth")
    with pytest.raises(CCDiffError, match=r"do not fit: .*conv1\.weight"):
        build_backbone(R50, weights("small.pth"))
    torch.save({"model": resnet50}, tmp_path / "code.pth")  # a pickled function
    with pytest.raises(CCDiffError, match="cannot read the backbone weights"):
        build_backbone(R50, weights("code.pth"))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(CCDiffError, match="cannot read the backbone weights"):
        build_backbone(R50, weights("torn.safetensors"))
