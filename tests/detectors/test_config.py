"""Detector settings: checked when read, every one described."""

from __future__ import annotations

import pytest

from ccdiff_cli.detectors import FAMILIES, DetectorConfig
from ccdiff_cli.detectors.config import PUBLISHED, SETTINGS, SMALL
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.trainability import load_detector_config


def test_every_setting_is_described():
    assert all(field.description for field in DetectorConfig.model_fields.values())


def test_published_protocol():
    config = DetectorConfig.published(5862, backbone_weights="r50.pth")
    assert (config.backbone, config.input_size, config.lr, config.batch, config.schedule) == ("resnet50", 800, 0.02, 16, "step")
    assert config.steps == 12 * 367 and config.warmup_steps == 500


def test_settings_from_a_file_and_overrides(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text("detector:\n  steps: 70\n  anchor_sizes: [8, 16, 32, 64]\n")
    config = load_detector_config(path, {"lr": 0.002})
    assert (config.steps, config.anchor_sizes, config.lr) == (70, (8, 16, 32, 64), 0.002)
    assert load_detector_config() == DetectorConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", r"stepz: unknown key\n  fix: did you mean steps\? known keys: kind, "),
        ("batch_size: 3", r"batch_size: unknown key\n  fix: did you mean batch\?"),
        ("backbone_weight: x", r"did you mean backbone_weights\?"),
        ("steps: many", "steps: .*found 'many'"),
        ("steps: 0", "steps: .*greater than or equal to 1"),
        (
            "steps: 10",
            "warmup_steps .50. must be smaller than steps .10.\n  fix: set both, --set steps=10 --set warmup_steps=1, or more than 50",
        ),
        ("backbone: vgg", "backbone: "),
        ("anchor_sizes: [8, 16, 32, 64, 128]", "one size per level"),
        ("kind: cascade", "kind: .*'faster-rcnn'"),
        ("kind: [fcos]", "kind: "),
        ("kind: fcos\nanchor_sizes: [8]", "anchor_sizes: fcos has no such setting; it has: kind, preset, backbone, "),
        ("kind: faster-rcnn\nboxes: obb", "boxes: faster-rcnn has no such setting"),
        ("kind: yolo\nbackbone: resnet50", "backbone: yolo has no such setting"),
        ("kind: fcos\nfpn_channels: 48", "must be 64, 96"),
        ("kind: retinanet\nanchor_sizes: [8, 16, 32, 64]", "one size per level: 5 for retinanet"),
        ("backbone: cspnext", "cspnext belongs to rtmdet-r"),
        ("preset: published", "steps: the published preset needs them: 12 epochs"),
        ("[1, 2]", "a mapping of keys, found list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_settings_name_the_key(tmp_path, text, message):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(CCDiffError, match=message) as caught:
        load_detector_config(path)
    assert str(path) in str(caught.value)
    with pytest.raises(CCDiffError, match="cannot read"):
        load_detector_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("kind", FAMILIES)
def test_both_presets_of_every_family(kind):
    """They are whole, they go to a file and back, and hold nothing that the family does not use."""
    assert set(SMALL[kind]) <= SETTINGS[kind] and set(PUBLISHED[kind]) <= SETTINGS[kind]
    small = DetectorConfig(kind=kind)
    published = DetectorConfig.published(1000, kind=kind)
    for config in (small, published):
        record = config.model_dump(mode="json")
        assert set(record) == SETTINGS[kind] and DetectorConfig.model_validate(record) == config
        assert "preset" not in config.training_record() and "device" not in config.training_record()
    assert published.input_size == 800 and published.steps == {"rtmdet-r": 36, "yolo": 50}.get(kind, 12) * -(-1000 // published.batch)
    assert DetectorConfig(kind=kind, preset="published", steps=3).warmup_steps == 2
    assert small.oriented == (kind in ("oriented-rcnn", "rotated-faster-rcnn", "rtmdet-r", "yolo"))
    assert not DetectorConfig(kind="yolo", boxes="hbb").oriented
