"""What a detector gets wrong by cross-validation: who is trained on what, the matching, the threshold, the file, the next layouts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ccdiff_cli.cli import main
from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import Detections, training_key
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import write_json
from ccdiff_cli.layouts import LayoutOptions, plan_layouts
from ccdiff_cli.layouts.misses import Misses
from ccdiff_cli.stored import read_as
from ccdiff_cli.trainability import MissesOptions, find_misses, trainings
from ccdiff_cli.trainability.misses import crowd_of, fold_of_sources, size_of

from ..detectors.small import TINY, make_set

BLIND = "plane"


class Blind:
    """Finds every ship at 0.9, no plane, and in pictures without a plane something at 0.7; at 0.2 it sees things everywhere."""

    def __init__(self, classes):
        self.classes, self.info = classes, {}

    def predict(self, scenes, progress=None):
        found = []
        for scene in scenes:
            rows = [(*x.hbb, 0.9, self.classes.index(x.category)) for x in scene.instances if x.category != BLIND]
            if BLIND not in scene.categories():
                rows.append((0, 0, 5, 5, 0.7, 1))
            rows += [(50 + k, 0, 53 + k, 3, 0.2, 0) for k in range(4)]
            values = np.array(rows, np.float32)
            found.append(Detections(values[:, :4], values[:, 4], values[:, 5].astype(np.int64)))
        return found


@pytest.fixture
def fits(monkeypatch):
    """Takes the place of training; holds the pictures that each one was given."""
    log = []

    def fit(scenes, classes, config, out, seed, progress=None, start=None, threads=None):
        log.append([s.file_name for s in scenes])
        write_json(Path(out) / training_key(scenes, classes, config, seed, start) / "detector.json", {})
        return Blind(classes)

    monkeypatch.setattr(trainings, "fit", fit)
    return log


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("misses") / "real", {"train": 12, "val": 2, "test": 2})


@pytest.fixture
def options(tmp_path):
    write_json(tmp_path / "detector.yaml", TINY.model_dump(mode="json"))
    return MissesOptions(detector=tmp_path / "detector.yaml")


def test_every_training_picture_is_seen_once_by_a_detector_that_saw_nothing_of_its_source(real, options, tmp_path, fits):
    made = find_misses(real.root, tmp_path / "out", options)
    train = {s.file_name: s for s in real.split("train")}
    assert len(fits) == 3 and all(name in train for names in fits for name in names), "no val and no test picture"
    unseen = [set(train) - set(names) for names in fits]
    assert Counter(name for part in unseen for name in part) == dict.fromkeys(train, 1)
    for part, names in zip(unseen, fits, strict=True):
        assert len(part) == 4 and not {train[n].source for n in part} & {train[n].source for n in names}
    assert [p["file_name"] for p in made["pictures"]] == list(train)
    assert json.loads((tmp_path / "out" / "misses.json").read_text()) == made
    assert read_as(Misses, tmp_path / "out" / "misses.json").set == real.key()


def test_what_is_wrong_is_counted_object_by_object(real, options, tmp_path, fits):
    made = find_misses(real.root, tmp_path / "out", options)
    assert made["threshold"] == pytest.approx(0.9), "what is seen from 0.7 on costs more than it brings"
    for picture, scene in zip(made["pictures"], real.split("train"), strict=True):
        assert picture["missed"] == [j for j, x in enumerate(scene.instances) if x.category == BLIND and not x.difficult]
        assert picture["false_alarms"] == 0, "finds of difficult ships do not count, nor what is below the threshold"
    counted = [x for s in real.split("train") for x in s.instances if not x.difficult]
    planes = sum(x.category == BLIND for x in counted)
    assert made["classes"]["plane"] == {"objects": planes, "missed": planes, "false_alarms": 0}
    assert made["classes"]["ship"] == {"objects": len(counted) - planes, "missed": 0, "false_alarms": 0}
    for table in ("sizes", "crowding"):
        assert sum(row["objects"] for row in made[table].values()) == len(counted)
        assert sum(row["missed"] for row in made[table].values()) == planes
    assert made["sizes"]["small"]["objects"] == len(counted) and made["crowding"]["over 20"]["objects"] == 0


def test_false_alarms_are_counted_with_the_threshold_at_the_best_f1(real, options, tmp_path, fits, monkeypatch):
    everywhere = Blind.predict
    monkeypatch.setattr(Blind, "predict", lambda self, scenes, progress=None: [
        Detections(d.boxes, np.where(d.scores > 0.8, 0.7, d.scores).astype(np.float32), d.labels) for d in everywhere(self, scenes)
    ])  # fmt: skip
    made = find_misses(real.root, tmp_path / "out", options)
    assert made["threshold"] == pytest.approx(0.7), "equal scores are above it together"
    wrong = [BLIND not in s.categories() for s in real.split("train")]
    assert [p["false_alarms"] for p in made["pictures"]] == [int(w) for w in wrong] and any(wrong)
    assert made["classes"]["plane"]["false_alarms"] == sum(wrong) and made["sizes"]["small"]["false_alarms"] == sum(wrong)


def test_again_trains_nothing_and_gives_the_same_bytes(real, options, tmp_path, fits):
    out = tmp_path / "out"
    find_misses(real.root, out, options)
    before = (out / "misses.json").read_bytes()
    (out / "misses.json").unlink()
    find_misses(real.root, out, options)
    assert len(fits) == 3 and (out / "misses.json").read_bytes() == before
    find_misses(real.root, out, options.model_copy(update={"seed": 1}))
    assert len(fits) == 6


def test_the_next_round_leaves_out_what_comes_from_the_fold(real, options, tmp_path, fits):
    def made_from(name, layout, seed):
        return make_set(tmp_path / name, {"train": 4}, kind="synthetic", tag=name, seed=seed, provenance={"layout": layout})

    theirs = made_from("s", {"source": "mixed", "picture": "a-train-000.png", "mixed_with": "a-train-011.png"}, 1)
    other = made_from("o", {"source": "set", "picture": "elsewhere.png"}, 2)
    made = find_misses(real.root, tmp_path / "out", options.model_copy(update={"added": (theirs.root, other.root)}))
    folds = fold_of_sources(real.split("train"), 3, 0)
    hit = {folds["a-train-0"], folds["a-train-5"]}
    assert made["left_out"] == [4 if k in hit else 0 for k in range(3)]
    assert made["added"] == [{"set": s.key(), "pictures": 4} for s in (theirs, other)]
    for k, names in enumerate(fits):
        assert len([n for n in names if n[0] == "s"]) == (0 if k in hit else 4) and len([n for n in names if n[0] == "o"]) == 4


def test_sources_fill_the_folds_evenly():
    from ccdiff_cli.scene import Scene

    train = [Scene(f"{k}-{j}.png", 8, 8, source=f"s{k}") for k in range(7) for j in range(k % 3 + 1)]
    folds = fold_of_sources(train, 3, 5)
    filled = Counter(folds[s.source] for s in train)
    assert max(filled.values()) - min(filled.values()) <= 3 and folds != fold_of_sources(train, 3, 6)
    assert folds == fold_of_sources(train[::-1], 3, 5), "the order of the pictures decides nothing"


def test_bins():
    assert [crowd_of(n) for n in (0, 1, 2, 5, 6, 20, 21)] == ["no objects", "1 object", "2 to 5", "2 to 5", "6 to 20", "6 to 20", "over 20"]
    assert [size_of(a) for a in (0, 32**2, 32**2 + 1, 96**2 + 1, 1e12)] == ["small", "small", "medium", "large", "large"]


def test_what_cannot_be_done_is_said(real, options, tmp_path, fits, monkeypatch):
    with pytest.raises(CCDiffError, match=r"6 training sources make no 7 folds(.|\n)*--folds"):
        find_misses(real.root, tmp_path / "out", options.model_copy(update={"folds": 7}))
    with pytest.raises(CCDiffError, match="no labelled training pictures"):
        find_misses(make_set(tmp_path / "bare", {"train": 4}, labelled=False).root, tmp_path / "out", options)
    strange = make_set(tmp_path / "strange", {"train": 2}, classes=type(real.classes)(("ship", "tank")), kind="synthetic")
    with pytest.raises(CCDiffError, match=r"classes differ.*lacks plane"):
        find_misses(real.root, tmp_path / "out", options.model_copy(update={"added": (strange.root,)}))
    assert not (tmp_path / "out").exists()
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    monkeypatch.setattr(Blind, "predict", lambda self, scenes, progress=None: [nothing] * len(scenes))
    with pytest.raises(CCDiffError, match=r"find none of the \d+ objects(.|\n)*--set steps=16"):
        find_misses(real.root, tmp_path / "out", options)
    assert not (tmp_path / "out" / "misses.json").exists()


def test_the_command_line_and_the_layouts_it_leads_to(real, options, tmp_path, fits, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    out, file = tmp_path / "out", tmp_path / "out" / "misses.json"
    command = ["misses", "--real", real.root, "--out", out, "--detector", options.detector, "--set", "detector.steps=6"]
    code, said, _ = run(*command, "--dry-run")
    assert code == 0 and "6 steps each" in said and not out.exists() and not fits
    code, said, _ = run(*command)
    assert code == 0 and f"--balance misses --misses {file}" in said.splitlines()[-1] and "plane" in said
    assert json.loads(file.read_text())["detector"]["steps"] == 6
    code, said, _ = run(*command, "--json")
    assert json.loads(said) == json.loads(file.read_text())
    layout = ["layout", real.root, "--out", tmp_path / "layouts", "--n", 4]
    code, said, _ = run(*layout, "--balance", "misses", "--misses", file)
    assert code == 0 and f"--balance misses --misses {file}" in said
    for more, complaint in (
        (("--balance", "misses"), r"--balance"),
        (("--misses", file), "--misses"),
        (("--balance", "misses", "--misses", out), "a folder, not the file"),
        (("--balance", "misses", "--misses", file, "--split", "val"), "train split"),
    ):
        code, _, err = run(*layout, *more)
        assert code == 2 and complaint in err and "fix: " in err


def test_a_real_detector_end_to_end(real, options, tmp_path):
    stages = set()
    made = find_misses(
        real.root, tmp_path / "out", MissesOptions(detector=options.detector, folds=2, settings=("steps=30", "score_threshold=0.01")),
        progress=lambda stage, done, total: stages.add(stage),
    )  # fmt: skip
    objects = sum(row["objects"] for row in made["classes"].values())
    missed = sum(len(p["missed"]) for p in made["pictures"])
    assert 0 < missed < objects and {"train fold 1 of 2", "look at left-out pictures, fold 2 of 2"} <= stages
    planned = plan_layouts(read_set(real.root), 24, 0, LayoutOptions(balance="misses", misses=tmp_path / "out" / "misses.json"))
    assert {s.provenance["layout"]["picture"] for s in planned} <= {s.file_name for s in real.split("train")}


def test_the_set_itself_is_no_output_folder(real, options, fits):
    before = sorted(real.root.iterdir())
    with pytest.raises(CCDiffError, match="the output folder is the real set itself"):
        find_misses(real.root, real.root, options)
    assert sorted(real.root.iterdir()) == before
