"""The classifier of crops: it learns what tells classes apart, is kept, and every object of a picture must pass it."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from ccdiff_cli import threads
from ccdiff_cli.dataset import read_set, write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import read_json, sha256_file
from ccdiff_cli.options import checked_options
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.synthesis import crops as module
from ccdiff_cli.synthesis.crops import CropJudge
from ccdiff_cli.synthesis.filtering import Judge, account, calibrate, failing, filter_identity, judges_of
from ccdiff_cli.synthesis.options import FilterOptions

COLOURS = {"tank": (220, 220, 220), "court": (200, 60, 40)}


def picture_set(root, count=12):
    """Pictures with a pale square, a tank, and a red one, a court; every fourth for validation."""
    (root / "images").mkdir(parents=True)
    scenes, hashes = [], {}
    for k in range(count):
        rng = np.random.default_rng(k)
        pixels = rng.integers(60, 110, (64, 64, 3)).astype(np.uint8)
        boxes = []
        for name, (x, y) in zip(COLOURS, ((4, 4), (34, 34)), strict=True):
            x, y = x + int(rng.integers(8)), y + int(rng.integers(8))
            pixels[y : y + 16, x : x + 16] = COLOURS[name]
            boxes.append(Instance.from_hbb(name, (x, y, x + 16, y + 16)))
        path = root / "images" / f"p{k}.png"
        Image.fromarray(pixels).save(path)
        split = "val" if k % 4 == 3 else "train"
        scenes.append(Scene(path.name, 64, 64, tuple(boxes), split=split, source=f"s{k}", path=str(path)))
        hashes[path.name] = sha256_file(path)
    write_set(root, scenes, ClassList(tuple(COLOURS)), kind="prepared", details={}, picture_hashes=hashes)
    return read_set(root)


@pytest.fixture
def real(tmp_path, monkeypatch):
    monkeypatch.setenv("CCDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "STEPS", 12)
    monkeypatch.setattr(module, "BATCH", 8)
    return picture_set(tmp_path / "real")


def test_its_threads_are_measured_by_a_step_of_which_nothing_stays(real, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        judge = CropJudge(real, "cpu")
        kept, weights = judge.file.with_suffix(".threads.json"), judge.file.read_bytes()
        chosen = read_json(kept)["crop classifier"]
        assert chosen in (1, 2) and torch.get_num_threads() == 2, "the number of before comes back"
        judge.file.unlink()  # as where it was killed: the same number again, whatever a clock says now
        monkeypatch.setattr(threads, "seconds_by_threads", lambda step, most: {3 - chosen: 0.0})
        CropJudge(real, "cpu")
        assert judge.file.read_bytes() == weights
        kept.unlink()
        judge.file.unlink()
        monkeypatch.setenv("OMP_NUM_THREADS", "x")  # whoever fixed the number: nothing is tried
        torch.set_num_threads(chosen)
        CropJudge(real, "cpu")
        assert judge.file.read_bytes() == weights
    finally:
        torch.set_num_threads(before)


def test_it_learns_the_classes_and_is_trained_once(real, tmp_path):
    told = []
    judge = CropJudge(real, "cpu", lambda stage, done, total: told.append(stage))
    scene = real.split("val")[0]
    swapped = scene.replace(
        instances=tuple(dataclasses.replace(i, category="court" if i.category == "tank" else "tank") for i in scene.instances)
    )
    right, wrong = judge.scores(scene), judge.scores(swapped)
    assert min(right) > max(wrong) and np.array(right) + np.array(wrong) == pytest.approx(1, abs=1e-5)
    assert set(told) == {"crop classifier"} and judge.scores(scene.replace(instances=())) == []
    data = judge.file.read_bytes()
    again = CropJudge(real, "cpu", lambda stage, done, total: pytest.fail("trained again"))
    assert again.scores(scene) == right
    judge.file.write_bytes(data[:100])
    assert CropJudge(real, "cpu").scores(scene) == right and judge.file.read_bytes() == data, "the same training again"


def test_the_least_object_of_a_picture_decides(real):
    judge = Judge(None, crops=real, recall=0.5)
    found = calibrate(judge, real, 0.5)
    limits = {limit["crops"] for limit in found["thresholds"].values()}
    least = sorted((min(e["crops"] for e in s) for s in judge.scores(real.split("val"))), reverse=True)
    assert limits == {least[1]} and all(set(limit) == {"crops"} for limit in found["thresholds"].values()), "half of three pictures: two"
    assert all(facts["found"] is None for facts in found["real"].values())

    judge.thresholds = {name: {"crops": 0.5} for name in COLOURS}
    scene = real.split("val")[0]
    assert judge.accepts(scene, [{"crops": 0.5}, {"crops": 0.9}])
    scores = [{"crops": 0.4}, {"crops": 0.9}]
    assert not judge.accepts(scene, scores) and judge.passed(scene, scores) == [False, True], "at recall 0.5 a detector could miss one"
    judge.thresholds = {name: {"crops": 0.5, "detector": 0.5} for name in COLOURS}
    assert judge.accepts(scene, [{"crops": 0.9, "detector": 0.1}, {"crops": 0.9, "detector": 0.9}])
    assert failing(scene, [{"crops": 0.4, "detector": 0.1}, {"crops": 0.9, "detector": 0.9}], judge.thresholds)[0] == {"crops", "detector"}
    hard = scene.replace(instances=tuple(dataclasses.replace(i, difficult=True) for i in scene.instances))
    assert judge.accepts(hard, scores)


def test_the_account_says_what_each_judge_did():
    scene = Scene("a.png", 64, 64, (Instance.from_hbb("tank", (0, 0, 9, 9)), Instance.from_hbb("court", (0, 0, 9, 9))))
    limits = {name: {"detector": 0.5, "crops": 0.5} for name in COLOURS}
    scores = [{"detector": 0.9, "crops": 0.1}, {"detector": 0.2, "crops": 0.3}]
    entry = {"attempt": 0, "accepted": False, "passed": [False, False], "scores": scores, "dropped": True}
    fine = {**entry, "accepted": True, "passed": [True, True], "scores": [{"detector": 0.9, "crops": 0.9}] * 2, "dropped": False}
    found = account([scene, scene], [entry, fine], "pictures", limits)
    assert found["judges"] == {
        "crops": {"objects_failed": 2, "in_pictures": 1},
        "detector": {"objects_failed": 1, "in_pictures": 1},
    }


def test_who_judges_is_part_of_the_plan_where_it_is_not_the_usual(real, tmp_path):
    def identity(**options):
        return filter_identity(real, checked_options(FilterOptions, {"mode": "pictures", **options}, where=None))

    usual = identity()
    assert "judges" not in usual and "crops" not in usual and judges_of(usual) == ["detector"]
    assert identity(judges="detector") == usual
    both = identity(judges="crops,detector")
    assert judges_of(both) == ["detector", "crops"] and both["detector"] == usual["detector"] and both["crops"]
    alone = identity(judges="crops")
    assert alone["detector"] is None and judges_of(alone) == ["crops"]
    for wrong in ("eyes", "clip"):
        with pytest.raises(CCDiffError, match="judge"):
            identity(judges=wrong)
    with pytest.raises(CCDiffError, match="judges are crops"):
        identity(detector=tmp_path, judges="crops")
    with pytest.raises(CCDiffError, match="without a filter"):
        identity(mode=None, judges="crops")
