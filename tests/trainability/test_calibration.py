"""The search for a regime: cheapest first, on validation pictures alone, resumed, written as a recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import Detections
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.trainability import ExperimentConfig, calibrate, calibration, eval_trainability, load_experiment, trainings
from ccdiff_cli.trainability.arms import fraction_of

from ..detectors.small import CLASSES, TINY, make_set
from .fake import FakeFits

SEEDS = (0, 1, 2)


class Learner:
    """Finds an object of every picture where a coin, the same for every detector, falls below ``skill``."""

    def __init__(self, skill: float, seen: list[str]) -> None:
        self.skill, self.seen, self.info = skill, seen, {}

    def predict(self, scenes, progress=None):
        self.seen += [s.file_name for s in scenes]
        found = []
        for k, scene in enumerate(scenes):
            coins = (np.random.default_rng(k).random() + np.arange(len(scene.instances)) / max(1, len(scene.instances))) % 1
            mine = [x for x, coin in zip(scene.instances, coins, strict=True) if coin < self.skill]
            boxes = np.array([x.hbb for x in mine], np.float32).reshape(-1, 4)
            labels = np.array([CLASSES.index(x.category) for x in mine], np.int64)
            found.append(Detections(boxes, np.full(len(mine), 0.9, np.float32), labels))
        return found


class Learning(FakeFits):
    """Detectors that have learned all that their pictures hold after ``enough`` steps."""

    def __init__(self, enough: int, headroom: float = 0.4) -> None:
        super().__init__()
        self.enough, self.headroom, self.seen = enough, headroom, []

    def fit(self, scenes, classes, config, out, seed, progress=None, start=None, threads=None):
        super().fit(scenes, classes, config, out, seed, progress, start)
        most = 0.5 + self.headroom * (len(scenes) > 12)
        return Learner(most * min(1.0, 0.2 + 0.8 * config.steps / self.enough), self.seen)


@pytest.fixture
def real(tmp_path):
    return make_set(tmp_path / "real", {"train": 24, "val": 40, "test": 6}, tag="r").root


def config(**values) -> ExperimentConfig:
    return ExperimentConfig(detector=TINY, samples=50, seeds=SEEDS, **values)


def test_the_cheapest_clear_and_converged_regime_is_taken(real, tmp_path, monkeypatch):
    fake = Learning(enough=4).install(monkeypatch)
    found = calibrate(real, tmp_path / "out", config(fractions=[10, 25], calibrate_steps=[2, 4, 8, 16]))
    assert found["regime"] == {"fraction": 10, "steps": 4, "converged": True}  # 2: not converged; 8 brings nothing over 4
    assert [(t["fraction"], t["steps"], t["converged"]) for t in found["tried"]] == [
        (10, 2, False), (25, 2, False), (10, 4, True), (25, 4, None)
    ]  # fmt: skip
    assert all(t["yardstick"]["can_answer"] for t in found["tried"])
    assert {steps for _, steps, *_ in fake.log} == {2, 4, 8}  # nothing dearer was trained
    assert [n for n, steps, *_ in fake.log if steps == 8] == [2, 2, 2]  # of the doubled steps the part alone
    assert "10 % of the real pictures (2 of 24), 4 steps" in found["sentence"] and "seen to converge" not in found["sentence"]
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == found


def test_only_validation_pictures_are_looked_at(real, tmp_path, monkeypatch):
    fake = Learning(enough=4).install(monkeypatch)
    calibrate(real, tmp_path, config(fractions=[10], calibrate_steps=[2, 4, 8]))
    assert {name.split("-")[1] for name in fake.seen} == {"val"}


def test_without_a_val_split_training_sources_are_held_out(tmp_path, monkeypatch):
    fake = Learning(enough=4).install(monkeypatch)
    real = make_set(tmp_path / "real", {"train": 40, "test": 6}, tag="r")
    found = calibrate(real.root, tmp_path / "out", config(fractions=[10], calibrate_steps=[2, 4, 8]))
    held = set(fake.seen)
    assert len(held) == 8 and all("-train-" in name for name in held) and "held out" in found["validation"]["what"]
    assert max(n for n, *_ in fake.log) == 32  # all training pictures but those
    sources = {s.source for s in read_set(real.root).scenes if s.file_name in held}
    assert sum(s.source in sources for s in real.split("train")) == 8  # whole sources
    small = make_set(tmp_path / "small", {"train": 4, "test": 2}, tag="q")
    with pytest.raises(CCDiffError, match=r"2 training sources are too few(.|\n)*--splits"):
        calibrate(small.root, tmp_path / "none", config())
    assert not (tmp_path / "none").exists()


def test_a_search_that_was_interrupted_goes_on(real, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    wanted = config(fractions=[10], calibrate_steps=[2, 4, 8])
    fake = Learning(enough=4).install(monkeypatch)
    fit = fake.fit

    def dying(*args, **kwargs):
        if len(fake.log) == 7:
            raise Killed
        return fit(*args, **kwargs)

    monkeypatch.setattr(trainings, "fit", dying)
    with pytest.raises(Killed):
        calibrate(real, tmp_path / "out", wanted)
    so_far = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert [t["steps"] for t in so_far["tried"]] == [2] and so_far["regime"] is None and not (tmp_path / "out" / "regime.yaml").exists()
    monkeypatch.setattr(trainings, "fit", fit)
    found = calibrate(real, tmp_path / "out", wanted)
    assert len(fake.log) == 3 * (2 + 2 + 1)  # nothing twice
    again = calibrate(real, tmp_path / "out", wanted)
    assert again == found and len(fake.log) == 15
    whole = calibrate(real, tmp_path / "whole", wanted)
    assert (whole["tried"], whole["regime"]) == (found["tried"], found["regime"])


def test_the_recipe_is_an_experiment_that_shares_its_trainings(real, tmp_path, monkeypatch):
    fake = Learning(enough=4).install(monkeypatch)
    out = tmp_path / "out"
    found = calibrate(real, out, config(fractions=[10], calibrate_steps=[2, 4, 8], arms={"held-out": [1]}))
    made = load_experiment(out / "regime.yaml")
    assert (made.fractions, made.detector.steps, made.seeds, made.arms, made.match) == ((10,), 4, SEEDS, {"held-out": (1,)}, "both")
    assert made.description == found["sentence"] and made.detector.fpn_channels == TINY.fpn_channels
    before = len(fake.log)
    monkeypatch.setattr(trainings, "load_detector", lambda folder, device="auto": Learner(0.5, fake.seen))
    results = eval_trainability(real, None, out, made)
    assert "10 % of real + 1x held-out" in results["arms"]
    assert sorted((n, steps) for n, steps, *_ in fake.log[before:]) == [(4, 4)] * 3 + [(4, 8)] * 3  # no real arm but the longer


def test_where_nothing_is_clear_no_recipe_is_written_and_it_is_said(real, tmp_path, monkeypatch):
    Learning(enough=4, headroom=0.0).install(monkeypatch)
    (tmp_path / "regime.yaml").write_text("name: of an earlier search\n")
    found = calibrate(real, tmp_path, config(fractions=[10], calibrate_steps=[2, 4, 8]))
    assert found["regime"] is None and found["recipe"] is None and not (tmp_path / "regime.yaml").exists()
    assert found["sentence"].startswith("No regime was found: in none of 3 tried")
    assert [t["yardstick"]["can_answer"] for t in found["tried"]] == [False] * 3


def test_a_clear_regime_that_never_converges_is_taken_last_and_said(real, tmp_path, monkeypatch):
    Learning(enough=1000).install(monkeypatch)
    found = calibrate(real, tmp_path, config(fractions=[10], calibrate_steps=[100, 200, 400]))
    assert found["regime"]["steps"] == 400 and found["regime"]["converged"] is None and "not been seen to converge" in found["sentence"]


def test_dry_run_and_command_line(real, tmp_path, monkeypatch, capsys):
    from ccdiff_cli.cli import main

    plan = calibrate(real, tmp_path / "out", config(fractions=[10, 25]), dry_run=True)
    assert not (tmp_path / "out").exists()
    assert [(r["steps"], r["fraction"], r["trainings"]) for r in plan["regimes"]][:4] == [(2, 10, 6), (2, 25, 3), (4, 10, 6), (4, 25, 3)]
    assert [r["steps"] for r in plan["regimes"]][::2] == [2, 4, 8, 16]  # a quarter (at least 2) to four times the detector's 4
    Learning(enough=4).install(monkeypatch)
    (tmp_path / "detector.yaml").write_text(json.dumps(TINY.model_dump(mode="json")))
    common = ["eval-trainability", "--calibrate", "--real", str(real), "--out", str(tmp_path / "out"), "--fractions", "10",
              "--seeds", "0,1,2", "--detector", str(tmp_path / "detector.yaml"),
              "--set", "calibrate_steps=[2,4,8]", "--set", "samples=50"]  # fmt: skip
    for more, wanted in ((["--dry-run"], "nothing was trained"), ([], "regime.yaml")):
        with pytest.raises(SystemExit) as end:
            main([*common, *more])
        said, complaint = capsys.readouterr()
        assert end.value.code in (0, None), complaint
        assert wanted in said and "no test picture" in said
    with pytest.raises(SystemExit):
        main([*common, "--json"])
    assert json.loads(capsys.readouterr().out)["regime"] == {"fraction": 10, "steps": 4, "converged": True}


def main_says(capsys, real, out, fractions, wanted):
    from ccdiff_cli.cli import main

    with pytest.raises(SystemExit):
        main(["eval-trainability", "--calibrate", "--real", str(real.root), "--out", str(out), "--fractions", fractions, "--dry-run"])
    return wanted in capsys.readouterr().out


def test_a_part_that_lacks_a_class_is_left_out_and_said_or_tried_and_said(tmp_path, capsys, monkeypatch):
    real = make_set(tmp_path / "real", {"train": 24, "val": 8}, tag="r")
    scenes = real.split("train")
    rare = next(s for s in scenes if s not in fraction_of(scenes, 10, 0) and s in fraction_of(scenes, 50, 0))
    everything = json.loads((real.root / "annotations.json").read_text())
    image = next(i["id"] for i in everything["images"] if i["file_name"].endswith(rare.file_name.split("/")[-1]))
    for box in everything["annotations"]:
        box["category_id"] = 2 if box["image_id"] == image else 1
    (real.root / "annotations.json").write_text(json.dumps(everything))
    second = list(CLASSES)[1]
    lacking = [second]
    plan = calibrate(real.root, tmp_path / "out", config(fractions=[10, 50]), dry_run=True)
    assert {r["fraction"] for r in plan["regimes"]} == {50} and plan["left_out"] == [{"fraction": 10, "lacking": lacking}]
    assert main_says(capsys, real, tmp_path / "o", "10,50", f"left out: 10 %, for they lack {second}")
    assert main_says(capsys, real, tmp_path / "o", "10", f"no part holds every class: 10 % lack {second}")
    Learning(enough=4).install(monkeypatch)
    made = calibrate(real.root, tmp_path / "out", config(fractions=[10], calibrate_steps=[4]))
    assert made["left_out"] == [] and [(t["fraction"], t["lacking"]) for t in made["tried"]] == [(10, lacking)]
    chosen = {**made["tried"][0], "yardstick": {"gain": {"mAP": {"mean": 4.0, "interval": {"low": 1.0, "high": 7.0}}}}}
    search = calibration._Search(real, real.split("train"), real.split("val"), False, config(fractions=[10]), tmp_path / "out", None, None)
    assert f"the part has no {second}, and some of the gain is theirs" in calibration._result(search, [chosen], chosen)["sentence"]


def test_parts_that_hold_nothing_are_refused(tmp_path):
    real = make_set(tmp_path / "real", {"train": 6, "val": 4}, tag="r", labelled=True)
    with pytest.raises(CCDiffError, match=r"no part of the real training pictures can be tried: 99 %(.|\n)*--fractions"):
        calibrate(real.root, tmp_path / "out", config(fractions=[99]))
    bare = make_set(tmp_path / "bare", {"val": 4}, tag="r")
    with pytest.raises(CCDiffError, match="no train split"):
        calibrate(bare.root, tmp_path / "out", config())
