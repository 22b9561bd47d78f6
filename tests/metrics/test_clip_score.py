"""CLIP scores with a small model of OpenCLIP's architecture and a locally made weights file; crops; colour statistics."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import hbb_corners, le90_to_corners
from ccdiff_cli.metrics.clip_score import clip_rows, crop, find_clip
from ccdiff_cli.metrics.colours import colour_rows, colour_summary
from ccdiff_cli.scene import Instance, Scene

SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
"""ViT-L-14's configuration with small numbers: the same classes and the same tokenizer."""


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    open_clip = pytest.importorskip("open_clip")
    root = tmp_path_factory.mktemp("clip")
    (root / "ViT-tiny-test.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(root / "ViT-tiny-test.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model("ViT-tiny-test", pretrained=None).eval()
    torch.save(model.state_dict(), root / "weights.pt")
    return root, model


@pytest.fixture
def scenes(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        objects = [
            Instance.from_corners("ship", le90_to_corners((30, 24, 20, 8, 0.5 + k))),
            Instance.from_hbb("plane", (5, 5, 25, 30)),
            Instance.from_hbb("plane", (70, 5, 90, 30)),  # outside
        ][: k + 1]
        made.append(Scene(f"{k}.png", 64, 48, tuple(objects), caption="" if k == 2 else f"picture {k}", path=str(tmp_path / f"{k}.png")))
    return made


def test_scores_are_open_clips_cosines(small_clip, scenes):
    import open_clip

    root, model = small_clip
    clip = find_clip(f"ViT-tiny-test@{root / 'weights.pt'}", "cpu")
    rows = clip_rows(scenes, clip, "hbb", batch=2)
    assert clip.name == "ViT-tiny-test weights"
    assert rows["objects"].tolist() == [1, 2, 2] and rows["lost"].tolist() == [0, 0, 1] and len(rows["local"]) == 5
    assert np.isnan(rows["global"]).tolist() == [False, False, True]
    prepare, tokenizer = open_clip.create_model_and_transforms("ViT-tiny-test")[2], open_clip.get_tokenizer("ViT-tiny-test")
    with torch.no_grad():

        def cosine(picture: Image.Image, text: str) -> float:
            return 100 * float(torch.cosine_similarity(model.encode_image(prepare(picture)[None]), model.encode_text(tokenizer([text]))))

        picture = Image.open(scenes[0].path)
        assert rows["global"][0] == pytest.approx(cosine(picture, "picture 0"), abs=1e-3)
        box = scenes[0].instances[0].hbb
        piece = picture.crop((math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])))
        assert rows["local"][0] == pytest.approx(cosine(piece, "ship"), abs=1e-3)
    turned = clip_rows(scenes, clip, "obb", batch=2)
    assert turned["local"][0] != pytest.approx(rows["local"][0], abs=1e-3)
    assert turned["global"] == pytest.approx(rows["global"], nan_ok=True)
    assert clip.tokens("a ship") == 4


def test_a_folder_with_one_weights_file(small_clip):
    root, _ = small_clip
    assert find_clip(f"ViT-tiny-test@{root}", "cpu").key == find_clip(f"ViT-tiny-test@{root / 'weights.pt'}", "cpu").key


@pytest.mark.usefixtures("small_clip")
def test_models_and_weights_that_cannot_be_used(tmp_path):
    with pytest.raises(CCDiffError, match="does not know the model 'nonsense'"):
        find_clip("nonsense@file", "cpu")
    with pytest.raises(CCDiffError, match="names no weights"):
        find_clip("ViT-tiny-test", "cpu")
    with pytest.raises(CCDiffError, match="do not exist"):
        find_clip(f"ViT-tiny-test@{tmp_path / 'none.pt'}", "cpu")
    with pytest.raises(CCDiffError, match="one file of weights"):
        find_clip(f"ViT-tiny-test@{tmp_path}", "cpu")
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(CCDiffError, match="cannot load OpenCLIP's ViT-tiny-test"):
        find_clip(f"ViT-tiny-test@{tmp_path / 'foreign.pt'}", "cpu")


def test_an_oriented_crop_turns_the_object_upright():
    """A striped box drawn at an angle comes back upright; its HBB crop holds ground as well."""
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:, :20], upright[:, 20:] = (250, 0, 0), (0, 250, 0)
    corners = np.array(le90_to_corners((64, 64, 40, 20, 0.6)), np.float32).reshape(4, 2)
    move = cv2.getAffineTransform(np.array([[0, 0], [40, 0], [40, 20]], np.float32) - 0.5, corners[:3] - 0.5)
    picture = Image.fromarray(cv2.warpAffine(upright, move, (128, 128), flags=cv2.INTER_NEAREST))
    piece = np.asarray(crop(picture, corners.ravel().tolist()), float)
    assert piece.shape == (20, 40, 3)
    assert np.abs(piece[3:-3, 3:-3] - upright[3:-3, 3:-3]).mean() < 8
    assert (np.asarray(crop(picture, (40, 40, 90, 90))).sum(2) == 0).mean() > 0.3


def test_crops_at_the_border_and_outside():
    picture = Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint32).reshape(30, 40, 3).astype(np.uint8))
    assert crop(picture, (-5, -5, 10, 10)).size == (10, 10)
    assert crop(picture, (50, 5, 60, 10)) is None and crop(picture, hbb_corners((50, 5, 60, 10))) is None
    assert crop(picture, hbb_corners((5, 5, 5.2, 5.2))) is None
    upright = crop(picture, hbb_corners((4, 6, 24, 16)))
    assert np.array_equal(np.asarray(upright), np.asarray(picture.crop((4, 6, 24, 16))))


@pytest.mark.parametrize("size", [(48, 64), (100, 90), (128, 128)])
@pytest.mark.parametrize(("down", "across"), [(2, 4), (4, 4), (0, 2), (4, 0), (8, 4), (2, 2)])
def test_a_regular_pattern_stands_out_whatever_its_period(tmp_path, size, down, across):
    """Far below what anybody would call texture: its power is a hundredth of the noise's."""
    rng = np.random.default_rng(0)
    base = [cv2.GaussianBlur(rng.normal(120, 40, (*size, 3)).astype(np.float32), None, 0.7) for _ in range(12)]
    y, x = np.mgrid[: size[0], : size[1]]
    phase = 2 * np.pi * ((y / down if down else 0) + (x / across if across else 0))
    woven = [p + 2.5 * np.cos(phase + rng.uniform(0, 1)).astype(np.float32)[..., None] for p in base]
    found = {}
    for name, some in (("real", base), ("woven", woven), ("others", [p[::-1] for p in base])):
        scenes = []
        for k, p in enumerate(some):
            path = tmp_path / f"{name}{k}.png"
            Image.fromarray(np.clip(p, 0, 255).astype(np.uint8)).save(path)
            scenes.append(Scene(path.name, size[1], size[0], path=str(path)))
        found[name] = colour_rows(scenes)
    woven, others = (colour_summary(found[name], found["real"]) for name in ("woven", "others"))
    assert woven["pattern"] > 5 and woven["pattern_period"] == [down, across]
    assert woven["high_frequency_ratio"] < 1.5 and others["pattern"] < 5


def test_colour_statistics_see_tint_contrast_and_blur(tmp_path):
    rng = np.random.default_rng(0)
    base = [rng.integers(40, 200, (32, 32, 3)).astype(np.float32) for _ in range(4)]
    variants = {
        "real": base,
        "tinted": [p + np.array([20, 0, 0]) for p in base],
        "pale": [(p - p.mean()) / 2 + p.mean() for p in base],
        "blurred": [cv2.GaussianBlur(p, None, 1.5) for p in base],
    }
    found = {}
    for name, some in variants.items():
        scenes = []
        for k, p in enumerate(some):
            path = tmp_path / f"{name}{k}.png"
            Image.fromarray(np.clip(p, 0, 255).astype(np.uint8)).save(path)
            scenes.append(Scene(path.name, 32, 32, path=str(path)))
        found[name] = colour_rows(scenes)
    summary = {name: colour_summary(rows, found["real"]) for name, rows in found.items()}
    assert (
        summary["real"]["colour_difference"] == 0 and summary["real"]["contrast_ratio"] == 1 and summary["real"]["spectrum_difference"] == 0
    )
    assert summary["tinted"]["colour_difference"] == pytest.approx(20 / math.sqrt(3), abs=0.5)
    assert summary["pale"]["contrast_ratio"] == pytest.approx(0.5, abs=0.02)
    assert summary["pale"]["spectrum_difference"] == pytest.approx(20 * math.log10(2), abs=0.3)
    assert summary["real"]["pattern"] == 1 and summary["pale"]["pattern"] == pytest.approx(1, abs=0.05)
    assert summary["blurred"]["high_frequency_ratio"] < 0.1 < 0.9 < summary["tinted"]["high_frequency_ratio"]
