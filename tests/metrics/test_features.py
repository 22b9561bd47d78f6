"""Extractors with locally made weight files of the real architectures; caching; weights that must be refused."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load, save
from safetensors.torch import load_file, save_file

from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.metrics.distances import compare
from ccdiff_cli.metrics.features import PART, Extractor, cached, features_of, find_extractor, read_scene

from ..detectors.small import make_set


def pictures(count: int, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file with random weights of torch-fidelity's InceptionV3, and the network itself."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        model = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(model.state_dict(), path)
    return path, model


def test_inception_is_torch_fidelitys(inception):
    path, model = inception
    judge = find_extractor(f"inception@{path}", "cpu")
    some = pictures(2, side=64)
    expected = model(torch.from_numpy(np.stack([np.array(p) for p in some])).permute(0, 3, 1, 2))[0].numpy()
    found = judge.encode(some)
    assert judge.name == "inception" and found.shape == (2, 2048)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    figures = compare(judge.encode(pictures(3)), judge.encode(pictures(4)), ["a", "b", "c"], samples=0)
    assert all(np.isfinite(row["value"]) for row in figures.values())


def test_inception_without_its_file_says_where_it_is(monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(CCDiffError, match=r"cannot be downloaded: no network[\s\S]*inception@FILE"):
        find_extractor("inception", "cpu")


def test_timm_models_by_name_and_file(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", pretrained=False)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    judge = find_extractor(f"timm:test_vit@{tmp_path / 'vit.safetensors'}", "cpu")
    assert judge.name == "timm:test_vit" and judge.encode(pictures(3)).shape == (3, model.num_features)
    with pytest.raises(CCDiffError, match="timm does not know the model 'nonsense'"):
        find_extractor(f"timm:nonsense@{tmp_path / 'vit.safetensors'}", "cpu")
    with pytest.raises(CCDiffError, match="do not fit test_resnet"):
        find_extractor(f"timm:test_resnet@{tmp_path / 'vit.safetensors'}", "cpu")
    with pytest.raises(CCDiffError, match="names no file"):
        find_extractor("timm:test_vit", "cpu")


def test_transformers_folders(tmp_path):
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    with pytest.raises(CCDiffError, match="cannot load the encoder"):
        find_extractor(f"transformers:{tmp_path / 'dino'}", "cpu")
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "dino")
    judge = find_extractor(f"transformers:{tmp_path / 'dino'}", "cpu")
    assert judge.name == "transformers:dino" and judge.encode(pictures(2)).shape == (2, 32)
    with pytest.raises(CCDiffError, match=r"no config\.json"):
        find_extractor(f"transformers:{tmp_path}", "cpu")


def test_weights_that_a_transformers_folder_lacks(tmp_path):
    """They would be random: refused, but for a pooler, whose place the mean of the tokens takes."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    folder, file = tmp_path / "vit", tmp_path / "vit" / "model.safetensors"
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)).save_pretrained(
        folder
    )
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    whole = load_file(file)
    pooled = find_extractor(f"transformers:{folder}", "cpu").encode(pictures(2))
    save_file({k: v for k, v in whole.items() if not k.startswith("pooler.")}, file, {"format": "pt"})
    twice = [find_extractor(f"transformers:{folder}", "cpu").encode(pictures(2)) for _ in range(2)]
    assert np.array_equal(*twice) and not np.allclose(twice[0], pooled)
    lacking = next(k for k in whole if k.endswith("layernorm_after.weight"))
    save_file({k: v for k, v in whole.items() if k != lacking}, file, {"format": "pt"})
    with pytest.raises(CCDiffError, match=r"the weights lack 1 tensors, first .*layernorm_after\.weight"):
        find_extractor(f"transformers:{folder}", "cpu")


class Runs:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("name", ["inception", "efficientnet-lite0"])
def test_weights_that_are_torn_foreign_or_hold_code_are_refused(name, tmp_path, monkeypatch):
    if name == "inception":
        pytest.importorskip("torch_fidelity")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Runs()}, tmp_path / "code.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    torch.save({"a": torch.zeros(2)}, tmp_path / "foreign.pth")
    for file in ("code", "torn", "foreign"):
        with pytest.raises(CCDiffError, match="weights"):
            find_extractor(f"{name}@{tmp_path / file}.pth", "cpu")
    assert not (tmp_path / "owned").exists()


def test_features_go_on_where_they_stopped_and_keep_their_order(tmp_path):
    made = make_set(tmp_path / "set", {"train": 7})
    scenes = read_set(made.root).scenes
    scenes = [scenes[i % 7] for i in range(2 * PART + 9)]
    seen: list[int] = []

    class Killed(BaseException):
        pass

    def encode(some):
        seen.append(len(some))
        if kill and sum(seen) > PART + 50:
            raise Killed
        return np.stack([np.asarray(p, np.float32).mean((0, 1)) for p in some])

    judge, kill = Extractor("mean", "mean", "", encode), True
    with pytest.raises(Killed):
        features_of(scenes, "key", judge, tmp_path / "features", batch=32, stage="")
    kill, before = False, sum(seen)
    found = features_of(scenes, "key", judge, tmp_path / "features", batch=32, stage="")
    assert sum(seen) - before == PART + 9  # the first part was finished
    assert found == pytest.approx(np.stack([np.asarray(read_scene(s), np.float32).mean((0, 1)) for s in scenes]))
    part = next((tmp_path / "features").rglob("0000000.safetensors"))
    whole = load(part.read_bytes())["features"]
    torn = [
        part.read_bytes()[:50],
        *(save({"features": a}) for a in (whole.reshape(-1), whole[:-1], whole * np.nan, whole == 0, whole.astype(np.int64) - 999)),
    ]
    for data in (*torn, save({"features": whole, "more": whole}), save({})):  # made again
        part.write_bytes(data)
        assert np.array_equal(features_of(scenes, "key", judge, tmp_path / "features", batch=32, stage=""), found)


def test_a_picture_of_another_size_than_its_labels_is_named(tmp_path):
    scenes = make_set(tmp_path / "set", {"train": 2}).scenes
    scene = scenes[0]
    Image.new("RGB", (20, 30)).save(tmp_path / "set" / "images" / scene.file_name)
    with pytest.raises(CCDiffError, match=rf"{scene.file_name}: the picture has 20 x 30 pixels"):
        cached(scenes, "k", tmp_path, lambda some: {"a": np.array(read_scene(some[0]))}, {}, progress=None, stage="")
