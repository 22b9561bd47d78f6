"""Leak guards: whatever could have shown the test pictures to a detector or to its generator is found, named, and stops the run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import read_set, write_set
from ccdiff_cli.duplicates import Look, alike_across, difference_hash, look_at
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.references import write_bank
from ccdiff_cli.scene import Instance
from ccdiff_cli.trainability import check_leaks

from ..detectors.small import CLASSES, make_set


def structured(path, seed):
    """A picture that can be told from others at a glance."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def real(tmp_path):
    made = make_set(tmp_path / "real", {"train": 6, "test": 5})
    for k, scene in enumerate(made.scenes):
        structured(scene.path, k)
    return made


def synthetic(root, real, **kwargs):
    made = make_set(root, {"train": 3}, kind="synthetic", tag="s", **kwargs)
    for k, scene in enumerate(made.scenes):
        structured(scene.path, 100 + k)
    return made


def leaks_of(real, made, **kwargs):
    with pytest.raises(CCDiffError, match="leaked") as caught:
        check_leaks(real, {"synthetic": made}, **kwargs)
    assert "--allow-leaks" in str(caught.value)
    return check_leaks(real, {"synthetic": made}, allow=True, **kwargs)["leaks"]


def test_a_clean_experiment_says_what_was_looked_through(real, tmp_path):
    made = synthetic(tmp_path / "s", real, details={"generator": {"trained_on": real.key(), "sources": ["a-train-0", "a-train-1"]}})
    found = check_leaks(real, {"synthetic": made})
    assert found["leaks"] == [] and found["unknown"] == [] and len(found["checks"]) == 6


@pytest.mark.parametrize(
    ("provenance", "details", "what"),
    [
        ({"layout": {"picture": "a-test-000.png"}}, {}, "were made from"),
        ({"references": {"instances": [None, {"source": "a-test-1"}]}}, {}, "were made from"),
        ({}, {"generator": {"sources": ["a-train-0", "a-test-0"]}}, "was trained on 1 source pictures"),
    ],
)
def test_provenance_and_generator(real, tmp_path, provenance, details, what):
    (leak,) = leaks_of(real, synthetic(tmp_path / "s", real, provenance=provenance, details=details))
    assert what in leak["what"] and leak["count"] >= 1


def test_tiles_of_a_source_in_both_splits(real, tmp_path):
    mixed = real.scenes[0].replace(source=real.split("test")[0].source)
    broken = type(real)(real.root, real.classes, (mixed, *real.scenes[1:]), real.manifest)
    assert "both the train and the test split" in leaks_of(broken, synthetic(tmp_path / "s", real))[0]["what"]


def test_the_reference_bank_and_its_index(real, tmp_path):
    entries = [{"file": "ship/a.png", "source": "a-train-0"}, {"file": "ship/b.png", "source": "a-test-1"}]
    write_bank(real.root, entries, real.scenes)
    (real.root / "references" / "index-k.safetensors").write_bytes(b"")
    (leak,) = leaks_of(real, synthetic(tmp_path / "s", real))
    assert leak["pictures"] == ["ship/b.png"] and "retrieval index" in leak["what"]
    bank = json.loads((real.root / "references" / "references.json").read_text())
    bank["instances"], bank["backgrounds"] = [], ["images/a-test-000.png"]
    (real.root / "references" / "references.json").write_text(json.dumps(bank))
    assert leaks_of(real, synthetic(tmp_path / "t", real))[0]["pictures"] == ["images/a-test-000.png"]


@pytest.mark.parametrize("change", ["as it is", "resized", "flipped", "turned", "brighter"])
def test_a_synthetic_picture_that_shows_a_test_picture(real, tmp_path, change):
    made = synthetic(tmp_path / "s", real)
    with Image.open(real.split("test")[2].path) as image:
        seen = {
            "as it is": lambda i: i,
            "resized": lambda i: i.resize((90, 90)).resize((64, 64)),
            "flipped": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            "turned": lambda i: i.transpose(Image.Transpose.ROTATE_90),
            "brighter": lambda i: i.point(lambda v: min(255, v * 0.8 + 30)),
        }[change](image.convert("RGB"))
        seen.save(made.scenes[1].path)
    (leak,) = leaks_of(real, made)
    assert leak["pictures"] == [f"{made.scenes[1].file_name} shows {real.split('test')[2].file_name}"]


def test_a_training_picture_that_shows_a_test_picture(real, tmp_path):
    shutil.copy(real.split("test")[0].path, real.split("train")[1].path)
    (leak,) = leaks_of(real, synthetic(tmp_path / "s", real))
    assert "1 real training pictures nearly equal a test picture" in leak["what"]


def test_the_pictures_of_the_generators_own_training_set(real, tmp_path):
    made = synthetic(tmp_path / "s", real, details={"generator": {"sources": ["elsewhere"]}})
    assert (
        "1 of its generator's training sources are not in the real training split" in check_leaks(real, {"synthetic": made})["unknown"][0]
    )
    theirs = make_set(tmp_path / "g", {"train": 2}, tag="g")
    for scene in theirs.scenes:
        structured(scene.path, 50)
    assert check_leaks(real, {"synthetic": made}, generator_data=theirs)["unknown"] == []
    shutil.copy(real.split("test")[0].path, theirs.scenes[1].path)
    (leak,) = leaks_of(real, made, generator_data=theirs)
    assert "generator's training pictures" in leak["what"]


def test_an_unknown_generator_is_said(real, tmp_path):
    found = check_leaks(real, {"mine": synthetic(tmp_path / "s", real)})
    assert found["unknown"] == ["the mine set does not say which pictures its generator was trained on (--generator-data SET)"]


def test_pictures_without_structure_are_not_alike(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / f"{name}.png")
    looks = [look_at(str(tmp_path / f"{name}.png")) for name in ("a", "b")]
    assert alike_across(looks[:1], looks[1:]) == [] and alike_across([], looks) == []


def test_the_most_alike_is_named_whatever_the_order():
    rng = np.random.default_rng(0)

    def look(pixels):
        return Look((32, 32), pixels, difference_hash(Image.fromarray(pixels)))

    base = np.asarray(Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC))
    near = np.clip(base.astype(int) + rng.integers(-4, 5, base.shape), 0, 255).astype(np.uint8)
    other = np.asarray(Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC))
    assert [(i, j) for i, j, _ in alike_across([look(other), look(near), look(base)], [look(base), look(other[::-1])])] == [(2, 0), (0, 1)]


def test_a_set_whose_pictures_are_those_of_the_real_set(real, tmp_path):
    """The plainest leak: the whole test split given as synthetic pictures."""
    (tmp_path / "s" / "images").mkdir(parents=True)
    scenes = []
    for scene in real.split("test"):
        shutil.copy(scene.path, tmp_path / "s" / "images" / f"x{scene.file_name}")
        instance = Instance.from_hbb("ship", (1, 1, 20, 20))
        scenes.append(scene.replace(file_name=f"x{scene.file_name}", split="train", source="x", instances=(instance,)))
    write_set(tmp_path / "s", scenes, CLASSES, kind="synthetic", details={}, picture_hashes={})
    (leak,) = leaks_of(real, read_set(tmp_path / "s"))
    assert leak["count"] == 5
