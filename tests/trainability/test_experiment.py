"""The experiment end to end on tiny sets: resuming, caching, arms, processes, what is refused, what fails, what is written."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ccdiff_cli.dataset import read_set, write_set
from ccdiff_cli.detectors import fit, training_key
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.metrics.average_precision import METRICS
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.references import write_bank
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.trainability import BOTH, REAL, ExperimentConfig, TrainabilityOptions, eval_trainability, layout_adherence, swap_labels
from ccdiff_cli.trainability.arms import Training, fraction_of
from ccdiff_cli.trainability.jitter import jitter_labels
from ccdiff_cli.trainability.published import METHODS, PUBLISHED, published_rows
from ccdiff_cli.trainability.trainings import Task
from ccdiff_cli.trainability.yardstick import answer_of

from ..detectors.small import CLASSES, TINY, make_set
from ..rawsets import vhr10
from .fake import FakeFits
from .test_copy_paste import crop


def tiny(*seeds: int) -> ExperimentConfig:
    return ExperimentConfig(detector=TINY, seeds=seeds)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    real = make_set(root / "real", {"train": 6, "test": 5})
    layout = {"layout": {"source": "augmented", "picture": "a-train-001.png"}, "references": {"instances": ["k1"]}}
    details = {"generator": {"key": "g", "trained_on": real.key()}}
    make_set(root / "synthetic", {"train": 6}, kind="synthetic", tag="s", seed=1, provenance=layout, details=details)
    make_set(root / "floor", {"train": 4}, kind="floor", tag="f", seed=2, provenance=layout)
    return root


@pytest.fixture(scope="module")
def compared(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    stages = []
    results = eval_trainability(
        sets / "real",
        sets / "synthetic",
        out,
        tiny(0, 1),
        TrainabilityOptions(floor=sets / "floor"),
        progress=lambda s, d, t: stages.append((s, d, t)),
    )
    return out, results, stages


def test_results_hold_both_arms_all_seeds_and_classes(compared):
    out, results, stages = compared
    assert json.loads((out / "results.json").read_text()) == results
    assert results["arms"][REAL]["pictures"] == 6 and results["arms"][BOTH]["pictures"] == 12
    steps = {name: {t["losses"]["rows"][-1][0] for t in arm["trainings"]} for name, arm in results["arms"].items()}
    assert steps == {"50 % of real": {4}, REAL: {4}, "real, longer (8 steps)": {8}, BOTH: {4}, f"{BOTH}, equal epochs": {8}}
    for metric in METRICS:
        gain = results["gain"][metric]
        before, after = (results["arms"][arm][metric]["per_seed"] for arm in (REAL, BOTH))
        assert gain["per_seed"] == pytest.approx([a - b for a, b in zip(after, before, strict=True)], abs=2e-3)
        assert gain["mean"] == pytest.approx(np.mean(gain["per_seed"]), abs=2e-3) and gain["sd"] == pytest.approx(
            np.std(gain["per_seed"], ddof=1), abs=2e-3
        )
    assert list(results["per_class_gain"]) == ["ship", "plane"]
    assert any("2 seeds: too few" in w for w in results["warnings"]) and any("test split is small" in w for w in results["warnings"])
    assert any("backbone weights: none" in w for w in results["warnings"])
    assert results["leak_check"]["unknown"] == [] and "this very set" in " ".join(results["leak_check"]["checks"])
    assert results["headline"] == {"arm": BOTH, "baseline": REAL} and results["arms"][BOTH]["gain"] == results["gain"]
    assert (
        sum(results["objects"]["per_class"]["ship"][k] for k in ("both", "learned", "lost", "neither"))
        == (results["objects"]["per_class"]["ship"]["objects"])
    )
    assert results["arms"][REAL]["per_size"]["COCO small"]["test_objects"] > 0 and results["published"] is None
    assert len(results["adherence"]["scores"]) == 4
    assert [s for s, d, t in stages if d == t][-1] == "compare" and ("train real, seed 1", 4, 4) in stages


def test_report_stands_alone(compared):
    out, results, _ = compared
    page = (out / "report.html").read_text()
    assert results["verdict"] in html.unescape(page)
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page) and "<script" not in page and "url(" not in re.sub(r"url\(#", "", page)
    changes = re.findall(r'<image id="(?:learned|lost)', page)
    assert page.count("data:image/jpeg") == 5 + 6 + len(changes)  # every test picture and every synthetic one, each once
    assert page.count("<svg") >= 4 + 3 * 5 + 6


def test_again_trains_and_predicts_nothing_and_gives_the_same_bytes(compared, sets, monkeypatch):
    out, results, _ = compared
    page = (out / "report.html").read_bytes()
    monkeypatch.setattr("ccdiff_cli.detectors.training._step", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr("ccdiff_cli.detectors.training.TrainedDetector.predict", lambda *a: pytest.fail("looked again"))
    assert eval_trainability(sets / "real", sets / "synthetic", out, tiny(0, 1), TrainabilityOptions(floor=sets / "floor")) == results
    assert (out / "report.html").read_bytes() == page


def test_a_stopped_experiment_goes_on_and_gives_the_same_figures(compared, sets, tmp_path):
    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("train real + synthetic, seed 0") and done == 2:
            raise Killed

    with pytest.raises(Killed):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path, tiny(0, 1), progress=kill)
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "report.html").exists()
    stages = []
    half = tmp_path / "predictions" / ".partial-x"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"x")
    results = eval_trainability(sets / "real", sets / "synthetic", tmp_path, tiny(0, 1), progress=lambda stage, *_: stages.append(stage))
    assert not half.exists(), "what a kill left half written"
    assert "train real, seed 0" not in stages  # that one was finished
    assert results["gain"] == compared[1]["gain"] and results["per_class_gain"] == compared[1]["per_class_gain"]


def test_dry_run_writes_nothing_and_knows_what_is_finished(compared, sets, tmp_path):
    plan = eval_trainability(sets / "real", sets / "synthetic", tmp_path / "new", tiny(0, 1, 2), dry_run=True)
    assert not (tmp_path / "new").exists()
    assert plan["trainings"] == 15 and plan["trainings already finished"] == 0 and plan["estimated minutes"] >= 0
    assert plan["yardstick"]["can_answer"] is None and "6 trainings on real pictures alone" in plan["yardstick"]["sentence"]
    row = plan["arms"][BOTH]
    assert (row["pictures"], row["epochs"], row["steps"], row["trainings"], row["finished"]) == (12, round(8 / 12, 2), TINY.steps, 3, 0)
    plan = eval_trainability(sets / "real", sets / "synthetic", compared[0], tiny(0, 1, 2), dry_run=True)
    assert plan["trainings already finished"] == 10 and "2 trainings on real pictures" in plan["yardstick"]["sentence"]
    json.dumps(plan)
    plan = eval_trainability(sets / "real", sets / "synthetic", compared[0], tiny(0, 1), dry_run=True)
    assert plan["yardstick"]["sentence"] == compared[1]["yardstick"]["sentence"]  # known without training anything


def refused(message: str, real, synthetic, out, **options) -> None:
    with pytest.raises(CCDiffError, match=message):
        eval_trainability(real, synthetic, out, tiny(0), TrainabilityOptions(**options))
    assert not out.exists()


def test_classes_that_differ(sets, tmp_path):
    make_set(tmp_path / "one", {"train": 3}, classes=ClassList(("ship",)), kind="synthetic")
    refused("the synthetic set lacks plane", sets / "real", tmp_path / "one", tmp_path / "out")
    make_set(tmp_path / "three", {"train": 3}, classes=ClassList(("ship", "plane", "tank")), kind="synthetic")
    refused("has tank besides", sets / "real", tmp_path / "three", tmp_path / "out")
    refused("the floor set has tank", sets / "real", sets / "synthetic", tmp_path / "out", floor=tmp_path / "three")


def test_a_class_that_only_one_set_holds_objects_of(sets, tmp_path):
    """The class lists agree, but no synthetic picture shows a plane: said, not refused."""
    make_set(tmp_path / "ships", {"train": 4}, kind="synthetic", only=("ship",), tag="s")
    results = eval_trainability(sets / "real", tmp_path / "ships", tmp_path / "out", tiny(0))
    assert any("hold no plane" in w for w in results["warnings"])
    assert any("does not say which pictures its generator was trained on" in w for w in results["warnings"])
    assert results["gain"]["AP50"]["sd"] is None and "1 seed" in results["verdict"]


def test_a_class_without_test_objects_is_not_evaluated(sets, tmp_path):
    make_set(tmp_path / "real", {"train": 4, "test": 4}, only=("ship",))
    results = eval_trainability(tmp_path / "real", sets / "synthetic", tmp_path / "out", tiny(0))
    assert results["per_class_gain"]["plane"]["AP50"]["mean"] is None
    assert results["protocol"]["test"]["not_evaluated"] == ["plane"]
    assert "<td>\N{EN DASH}</td>" in (tmp_path / "out" / "report.html").read_text()


def test_missing_splits_and_empty_sets(sets, tmp_path):
    make_set(tmp_path / "no_test", {"train": 3})
    refused("no test split", tmp_path / "no_test", sets / "synthetic", tmp_path / "out")
    make_set(tmp_path / "no_train", {"test": 3})
    refused("no train split", tmp_path / "no_train", sets / "synthetic", tmp_path / "out")
    refused("holds no training pictures", sets / "real", tmp_path / "no_train", tmp_path / "out")
    make_set(tmp_path / "bare", {"train": 3}, kind="synthetic", labelled=False)
    refused("no labelled object", sets / "real", tmp_path / "bare", tmp_path / "out")
    with pytest.raises(CCDiffError, match="holds no pictures"):
        make_set(tmp_path / "none", {}, kind="synthetic")
    refused("holds no pictures", sets / "real", tmp_path / "none", tmp_path / "out")
    with pytest.raises(CCDiffError, match="no such folder"):
        eval_trainability(sets / "real", tmp_path / "nowhere", tmp_path / "out", tiny(0))


def scene(name: str, *boxes: tuple[float, ...], size: int = 64) -> Scene:
    return Scene(name, size, size, tuple(Instance.from_hbb("ship", b) for b in boxes))


def test_swapped_labels_are_a_permutation_without_fixed_points():
    scenes = [scene(str(k), (0, 0, 10 + k // 2, 9)) for k in range(9)]  # layouts come in equal pairs
    swapped = swap_labels(scenes)
    assert list(swapped) == list(swap_labels(scenes))
    assert sorted(s.instances[0].hbb for s in swapped) == sorted(s.instances[0].hbb for s in scenes)
    assert all(a.instances != b.instances and a.file_name == b.file_name for a, b in zip(scenes, swapped, strict=True))


def test_swapped_labels_are_stretched_and_impossible_swaps_are_none():
    small, large = scene("a", (0, 0, 10, 10)), scene("b", (0, 0, 64, 64), size=128)
    assert [s.instances[0].hbb for s in swap_labels([small, large])] == [(0, 0, 32, 32), (0, 0, 20, 20)]
    assert swap_labels([small, small, large]) is None and swap_labels([]) is None


def test_layout_adherence_tells_right_labels_from_swapped_ones(sets, tmp_path):
    """A stand-in that finds exactly what the labels say scores 100, and next to nothing on swapped labels."""
    from ccdiff_cli.detectors import Detections

    class Perfect:
        classes, info = CLASSES, {}

        def predict(self, scenes, progress=None):
            found = []
            for s in scenes:
                boxes = np.array([i.hbb for i in s.instances], dtype=np.float32).reshape(-1, 4)
                labels = np.array([CLASSES.index(c) for c in s.categories()], dtype=np.int64)
                found.append(Detections(boxes, np.ones(len(boxes), np.float32), labels))
            return found

    scenes = make_set(tmp_path, {"train": 20}).split("train")
    adherence = layout_adherence(Perfect(), scenes, CLASSES)
    assert adherence["synthetic"]["AP50"] == 100 and adherence["shuffled labels"]["AP50"] < 30
    real = read_set(sets / "real")
    trained = layout_adherence(fit(real.split("train"), CLASSES, TINY, tmp_path / "t", 0), real.split("train"), CLASSES)
    assert set(trained) == {"synthetic", "shuffled labels"}


def test_a_full_disk_is_one_clear_message(sets, tmp_path, monkeypatch):
    import errno

    def full(*a, **k):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CCDiffError, match=r"No space left on device(.|\n)*free some space"):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path / "out", tiny(0))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


ARMS = {"synthetic": [0.5, 1], "copy-paste": [1], "pretrain": [1], "synthetic-only": [1]}


@pytest.fixture(scope="module")
def banked(sets):
    """The real set with a reference bank of one crop for each class and source."""
    real, entries = read_set(sets / "real"), []
    for source in sorted({s.source for s in real.split("train")}):
        for name in CLASSES:
            file = f"{name}/{source}.png"
            (real.root / "references" / name).mkdir(parents=True, exist_ok=True)
            crop(16, 10, masked=True).save(real.root / "references" / file)
            record = {"class": name, "width": 16, "height": 10, "difficult": False, "source": source, "sha256": f"{source}{name}"}
            entries.append({"file": file, **record})
    write_bank(real.root, entries, real.scenes)
    return sets


def fakes(monkeypatch, **kwargs) -> FakeFits:
    return FakeFits(**kwargs).install(monkeypatch)


def experiment(**values) -> ExperimentConfig:
    return ExperimentConfig(detector=TINY, samples=50, **{"seeds": (0, 1), "match": "steps", **values})


def test_all_arms_at_two_fractions_and_nothing_is_trained_twice(banked, tmp_path, monkeypatch):
    fake = fakes(monkeypatch)
    theirs = make_set(tmp_path / "theirs", {"train": 6}, kind="synthetic", tag="t", seed=5)
    given = TrainabilityOptions(others={"theirs": theirs.root}, floor=banked / "floor")
    config, out = experiment(arms=ARMS, fractions=[50, 100]), tmp_path / "out"
    results = eval_trainability(banked / "real", banked / "synthetic", out, config, given)
    arms = results["arms"]
    assert len(arms) == 2 * (1 + 2 + 1 + 1 + 1 + 2) and "real + 0.5x theirs" in arms  # theirs: at the synthetic arm's ratios
    assert results["headline"] == {"arm": "real + 1x synthetic", "baseline": "real"}
    assert {r["over"] for r in results["rivals"] if r["arm"] == "real + 1x synthetic"} == {
        "real + 1x copy-paste", "1x synthetic, then real", "real + 1x theirs"
    }  # fmt: skip
    assert len({t["key"] for a in arms.values() for t in a["trainings"]}) == 2 * len(arms)
    assert len(fake.log) == 2 * (len(arms) + 2)  # and a first stage of the pretraining at either fraction
    assert {entry["steps"] for entry in arms.values()} == {TINY.steps}
    assert any("whether the generator of the synthetic set saw the rest" in w for w in results["warnings"])
    assert any("gains are looked at" in w for w in results["warnings"])
    page = (out / "report.html").read_text()
    assert "<h2>Dose</h2>" in page and "<h2>Fewer real pictures</h2>" in page and "Against the other ways" in page
    done = len(fake.log)
    assert eval_trainability(banked / "real", banked / "synthetic", out, config, given) == results
    assert len(fake.log) == done
    more = experiment(arms={**ARMS, "synthetic": [0.5, 1, 0.75]}, fractions=[50, 100], seeds=(0, 1, 2))
    eval_trainability(banked / "real", banked / "synthetic", out, more)
    new = fake.log[done:]
    assert sum(seed < 2 for _, _, seed, _ in new) == 2 * 2  # for the old seeds the new ratio alone, at either fraction


def test_a_training_that_two_fractions_share_is_trained_once(sets, tmp_path, monkeypatch):
    fake = fakes(monkeypatch)
    config = experiment(arms={"synthetic-only": ["all"]}, fractions=[50, 100], seeds=(0,))
    eval_trainability(sets / "real", sets / "synthetic", tmp_path, config)
    assert sorted(n for n, *_ in fake.log) == [4, 6, 6]  # two real arms, one synthetic


def test_a_part_of_the_real_set_and_a_generator_that_saw_the_rest(sets, tmp_path, monkeypatch):
    fakes(monkeypatch)
    details = {"generator": {"key": "g", "sources": ["a-train-0", "a-train-1", "a-train-2"]}}
    make_set(tmp_path / "s", {"train": 6}, kind="synthetic", tag="s", seed=1, details=details)
    results = eval_trainability(sets / "real", tmp_path / "s", tmp_path / "out", experiment(fractions=[34, 100]))
    assert any(
        "34 % of real: the generator of the synthetic set was trained on 2 of the 2 source pictures" in w for w in results["warnings"]
    )
    assert results["sets"]["synthetic"]["generator"]["training_sources"] == 3


def test_more_real_pictures_are_the_yardstick_of_added_ones(sets, tmp_path, monkeypatch):
    fakes(monkeypatch)
    results = eval_trainability(sets / "real", sets / "synthetic", tmp_path, experiment(fractions=[34, 67, 100]))
    arms, rows = results["arms"], results["more_real"]
    assert [(r["over"], r["times"]) for r in rows] == [("34 % of real", 3.0), ("67 % of real", 1.5)]
    for row in rows:
        per_seed = [b - a for a, b in zip(*(arms[n]["mAP"]["per_seed"] for n in (row["over"], row["arm"])), strict=True)]
        assert row["gain"]["mAP"]["per_seed"] == pytest.approx(per_seed, abs=2e-3) and row["arm"] == "real"
    assert [r["clear"] for r in rows] == [r["gain"]["mAP"]["interval"]["low"] > 0 for r in rows]
    assert results["yardstick"]["over"] == "67 % of real"  # the headline adds to all real pictures: nothing larger is there
    said = [results["yardstick"]["sentence"], *(w for w in results["warnings"] if w.startswith("This experiment cannot answer"))]
    assert sum("not even" in w for w in said) == sum(not r["clear"] for r in rows) > 0
    assert "What more real pictures bring" in (tmp_path / "report.html").read_text()


def test_the_published_gain_is_training_time_and_what_the_pictures_keep(sets, tmp_path, monkeypatch):
    fakes(monkeypatch)
    results = eval_trainability(sets / "real", sets / "synthetic", tmp_path, experiment(match="both", arms={"synthetic": [1]}))
    (row,) = results["protocols"]
    names = [row[k]["arm"] for k in ("fair", "published", "longer")]
    assert names == ["real + 1x synthetic", "real + 1x synthetic, equal epochs", "real, longer (8 steps)"]
    for metric in METRICS:
        published, time, left = row["published"]["gain"][metric], row["longer"]["gain"][metric], row["over_longer"][metric]
        assert published["per_seed"] == pytest.approx([a + b for a, b in zip(time["per_seed"], left["per_seed"], strict=True)], abs=2e-3)
        assert row["fair"]["gain"][metric] == results["gain"][metric]  # the headline is at equal steps
    said = results["protocols_sentence"]
    assert "at equal steps (4)" in said and "at equal epochs (8 steps)" in said and "training the real pictures alone as long" in said
    assert html.escape(said, quote=False) in (tmp_path / "report.html").read_text().replace("&#39;", "'")
    assert "equal epochs (as published)" in (tmp_path / "table.md").read_text()
    assert r"\end{tabular}" in (tmp_path / "table.tex").read_text()
    one = eval_trainability(sets / "real", sets / "synthetic", tmp_path, experiment(match="epochs", arms={"synthetic": [1]}))
    assert (
        one["protocols"][0]["fair"] is None
        and one["headline"]["arm"] == names[1]
        and "left out (match: epochs)" in one["protocols_sentence"]
    )


def test_headroom_is_known_before_any_other_arm_is_trained(sets, tmp_path, monkeypatch):
    def fail(scenes, seed):
        return any(s.file_name[0] == "s" for s in scenes)

    fake = fakes(monkeypatch, fail=fail)
    config = experiment(match="both", fractions=[34], arms={"synthetic": [1]}, seeds=(0, 1, 2))
    with pytest.raises(CCDiffError, match="no gain to report"):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path, config)
    answer = json.loads((tmp_path / "yardstick.json").read_text())
    assert answer["over"] == "34 % of real" and answer["more_real"][0]["gain"]["mAP"]["interval"] and "3 seeds" in answer["sentence"]
    assert [n for n, *_ in fake.log[:6]] == [2, 6] * 3  # the real arms of all seeds, then the rest
    plan = eval_trainability(sets / "real", sets / "synthetic", tmp_path, config, dry_run=True)
    assert plan["yardstick"]["sentence"] == answer["sentence"]


def test_the_answer_is_one_plain_sentence_either_way():
    def row(low, high):
        gain = {"mAP": {"mean": (low + high) / 2, "interval": {"low": low, "high": high}}}
        found = {"clear": low > 0, "learned": True, "gain": gain}
        return {"arm": "real", "over": "10 % of real", "fraction": 10.0, "times": 9.9, "steps": 400, **found}

    clear, not_clear = answer_of([row(8, 16)], 10, 3), answer_of([row(-2.7, 4.5)], 10, 3)
    assert clear["can_answer"] is True and clear["sentence"] == (
        "This experiment can answer: 9.9 times as many real pictures (real over 10 % of real) bring +12.0 mAP [+8.0, +16.0] in 400 steps, "
        "3 seeds, which is clear of zero."
    )
    assert not_clear["can_answer"] is False and "cannot answer: not even 9.9 times" in not_clear["sentence"]
    assert "--calibrate" in not_clear["sentence"] and "One seed says nothing" in answer_of([row(8, 16)], 10, 1)["sentence"]
    assert answer_of([], 100, 3)["can_answer"] is None
    nothing = answer_of([row(0, 0) | {"learned": False}], 10, 3)
    assert nothing["can_answer"] is False and "have learned nothing in 400 steps" in nothing["sentence"]
    assert "train them longer" in nothing["sentence"] and "more real" not in nothing["sentence"]


def test_without_a_synthetic_set_copy_paste_takes_augmented_layouts_of_the_part_alone(banked, tmp_path, monkeypatch):
    fakes(monkeypatch)
    results = eval_trainability(banked / "real", None, tmp_path, experiment(arms={"copy-paste": [1]}, fractions=[34]))
    assert list(results["arms"]) == ["34 % of real", "34 % of real + 1x copy-paste", "real"] and results["adherence"] is None
    made = read_set(next(p for p in (tmp_path / "copy-paste").iterdir()))
    part = {s.file_name for s in fraction_of(read_set(banked / "real").split("train"), 34, 0)}
    assert {s.provenance["background"] for s in made.scenes} <= part
    assert all(s.provenance["layout"]["picture"].endswith(".png") for s in made.scenes) and len(made.scenes) == len(part)
    assert "Layout adherence" not in (tmp_path / "report.html").read_text()
    with pytest.raises(CCDiffError, match=r"arms.synthetic: there is no synthetic set(.|\n)*--synthetic SET"):
        eval_trainability(banked / "real", None, tmp_path / "none", experiment())
    assert not (tmp_path / "none").exists()


def test_mosaics_are_of_the_part_alone(sets, tmp_path, monkeypatch):
    fakes(monkeypatch)
    results = eval_trainability(sets / "real", None, tmp_path, experiment(arms={"mosaic": [1]}, fractions=[34]))
    assert list(results["arms"]) == ["34 % of real", "34 % of real + 1x mosaic", "real"]
    made = read_set(next(p for p in (tmp_path / "mosaic").iterdir()))
    part = {s.file_name for s in fraction_of(read_set(sets / "real").split("train"), 34, 0)}
    assert len(made.split("train")) == len(part) and {name for s in made.scenes for name in s.provenance["pictures"]} <= part
    assert "mosaic (34 %)" in json.loads((tmp_path / "results.json").read_text())["sets"]


def test_oracles_are_the_pictures_a_fraction_leaves_out_as_they_are_and_with_jittered_labels(sets, tmp_path, monkeypatch):
    fakes(monkeypatch)
    config = experiment(arms={"synthetic": [1], "held-out": [1], "jittered": [1]}, fractions=[34])
    results = eval_trainability(sets / "real", sets / "synthetic", tmp_path, config)
    name = "34 % of real + 1x "
    assert [results["arms"][name + k]["pictures"] for k in ("held-out", "jittered")] == [4, 4]
    assert {(r["arm"], r["over"]) for r in results["rivals"]} == {
        (name + "synthetic", name + "held-out"), (name + "synthetic", name + "jittered"), (name + "jittered", name + "held-out")
    }  # fmt: skip
    with pytest.raises(CCDiffError, match=r"arms.held-out: 100 % of the real pictures leave none out(.|\n)*--fractions 10"):
        eval_trainability(sets / "real", None, tmp_path / "none", experiment(arms={"held-out": [1]}))


def test_jittered_labels_move_a_little_and_the_same_way_every_time():
    scene = Scene("a.png", 200, 200, tuple(Instance.from_corners("ship", (50, 60, 90, 60, 90, 80, 50, 80)) for _ in range(200)))
    moved = jitter_labels(scene, 0.1, 0)
    assert moved == jitter_labels(scene, 0.1, 0) != jitter_labels(scene, 0.1, 1)
    boxes = np.array([i.hbb for i in moved.instances])
    centre, width, height = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert np.allclose(width, 2 * height)  # scaled evenly
    assert centre.std(axis=0) == pytest.approx((4, 2), rel=0.2) and np.log(width / 40).std() == pytest.approx(0.1, rel=0.2)
    assert all(i.hbb == pytest.approx((i.corners[0], i.corners[1], i.corners[4], i.corners[5])) for i in moved.instances)


def test_a_diverging_training_leaves_the_others_finished_and_the_report_made(banked, tmp_path, monkeypatch):
    def fail(scenes, seed):
        return seed == 1 and any(s.provenance.get("crops") is not None for s in scenes)

    fake = fakes(monkeypatch, fail=fail)
    config = experiment(arms={"synthetic": [1], "copy-paste": [1]})
    with pytest.raises(CCDiffError, match=r"1 of 8 trainings failed \(first: real \+ 1x copy-paste, seed 1: the detector's loss") as caught:
        eval_trainability(banked / "real", banked / "synthetic", tmp_path, config)
    assert "lower detector.lr" in str(caught.value) and "kept" in str(caught.value)
    assert len(fake.log) == 7
    results = json.loads((tmp_path / "results.json").read_text())
    assert (
        list(results["arms"]) == ["50 % of real", "real", "real + 1x synthetic"]
        and results["failed"][0]["training"] == "real + 1x copy-paste, seed 1"
    )
    assert "failed and left out" in (tmp_path / "report.html").read_text()
    fake.fail = lambda scenes, seed: False
    eval_trainability(banked / "real", banked / "synthetic", tmp_path, config)
    assert len(fake.log) == 8  # the failed one alone


def test_without_the_real_arm_there_is_no_report_but_what_is_finished_is_kept(sets, tmp_path, monkeypatch):
    fake = fakes(monkeypatch, fail=lambda scenes, seed: len(scenes) == 6)
    with pytest.raises(CCDiffError, match=r"2 of 6 trainings failed \(first: real, seed 0(.|\n)*no gain to report"):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path, experiment())
    assert len(fake.log) == 4 and not (tmp_path / "results.json").exists() and not (tmp_path / "yardstick.json").exists()


def test_a_first_stage_that_fails_takes_the_second_with_it(sets, tmp_path, monkeypatch):
    fake = fakes(monkeypatch, fail=lambda scenes, seed: {s.file_name[0] for s in scenes} == {"s"})
    with pytest.raises(CCDiffError, match=r"first stage"):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path, experiment(arms={"synthetic": [1], "pretrain": [1]}))
    assert len(fake.log) == 6 and all(start is None for *_, start in fake.log)


def test_oriented_detectors_are_evaluated_by_oriented_boxes_and_by_horizontal_ones(sets, tmp_path, monkeypatch):
    fakes(monkeypatch, oriented=True)
    monkeypatch.setattr(type(TINY), "oriented", property(lambda self: True))
    results = eval_trainability(sets / "real", sets / "synthetic", tmp_path, experiment())
    arm = results["arms"][BOTH]
    assert results["protocol"]["boxes"] == "obb" and arm["AP50_voc12"]["mean"] > 0 and arm["HBB"]["AP50"]["mean"] > 0
    assert "OBB, AP50 (VOC07)" in (tmp_path / "report.html").read_text()


def test_leaks_stop_the_run_unless_allowed_and_stand_in_the_report(sets, tmp_path, monkeypatch):
    fakes(monkeypatch)
    make_set(tmp_path / "s", {"train": 2}, kind="synthetic", tag="s", provenance={"layout": {"picture": "a-test-000.png"}})
    refused("the test split leaked", sets / "real", tmp_path / "s", tmp_path / "out")
    results = eval_trainability(sets / "real", tmp_path / "s", tmp_path / "out", tiny(0), TrainabilityOptions(allow_leaks=True))
    assert results["leak_check"]["leaks"][0]["count"] == 2 and results["warnings"][0].startswith("LEAK, allowed")
    assert "a-test" in (tmp_path / "out" / "report.html").read_text()


def test_arms_and_ratios_that_cannot_be(sets, tmp_path):
    for config, others, message in (
        (experiment(arms={"synthetic": [2]}), {}, "ratio 2 asks for 12 pictures beside 6 real ones, but the set has 6"),
        (experiment(arms={"migc": [1]}), {}, "arms.migc: no such arm and no such set"),
        (experiment(), {"synthetic": sets / "floor"}, "cannot name an other set"),
        (experiment(arms={}), {}, "no arm besides real"),
        (experiment(arms={"copy-paste": [1]}), {}, None),
    ):
        if message:
            with pytest.raises(CCDiffError, match=message):
                eval_trainability(sets / "real", sets / "synthetic", tmp_path, config, TrainabilityOptions(others=others))
    assert not list(tmp_path.iterdir())


def test_unlabelled_test_pictures_and_classes_missing_in_a_part_are_said(sets, tmp_path, monkeypatch):
    fakes(monkeypatch)
    real = make_set(tmp_path / "real", {"train": 6, "test": 5})
    scenes = [s.replace(instances=()) if s.file_name == "a-test-001.png" else s for s in real.scenes]
    scenes = [
        s.replace(instances=tuple(i for i in s.instances if i.category == "ship")) if s.split == "train" and s.source != "a-train-0" else s
        for s in scenes
    ]
    write_set(real.root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=real.manifest["pictures"])
    results = eval_trainability(real.root, sets / "synthetic", tmp_path / "out", experiment(fractions=[33, 100], draw=1))
    assert any("1 of 5 test pictures have no labels" in w for w in results["warnings"])
    assert any("the real training pictures (33 % of real) hold no plane" in w for w in results["warnings"])


def test_dry_run_of_every_arm_counts_shared_trainings_once_and_makes_no_copy_paste(sets, tmp_path):
    config = experiment(arms={**ARMS, "synthetic-only": ["all"]}, fractions=[50, 100])
    plan = eval_trainability(sets / "real", sets / "synthetic", tmp_path / "new", config, dry_run=True)
    assert not (tmp_path / "new").exists()
    assert plan["trainings"] == 2 * (2 * (1 + 2 + 1 + 2) + 1)
    assert sum(row["trainings"] for row in plan["arms"].values()) == 2 * 2 * (1 + 2 + 1 + 2 + 1)


@pytest.mark.slow
def test_processes_give_the_same_figures_as_one_and_resume_the_same_folder(sets, tmp_path, monkeypatch):
    """With the threads of each process fixed, to the bit; two stages are run one after the other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = experiment(arms={"synthetic": [1], "pretrain": [1]}, seeds=(0, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stages = []
        two = eval_trainability(
            sets / "real", sets / "synthetic", tmp_path / "two", config, processes=2, progress=lambda *a: stages.append(a)
        )
        one = eval_trainability(sets / "real", sets / "synthetic", tmp_path / "one", config, processes=1)
    finally:
        torch.set_num_threads(threads)
    assert two["gain"] == one["gain"] and two["per_class_gain"] == one["per_class_gain"] and two["rivals"] == one["rivals"]
    assert ("train real, seed 1", TINY.steps, TINY.steps) in stages
    for path in sorted((tmp_path / "one" / "trainings").glob("*/model.safetensors")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_processes_whose_pictures_are_loaded_by_processes(sets, tmp_path, monkeypatch):
    from ccdiff_cli.trainability import trainings

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scenes = tuple(read_set(sets / "real").split("train"))
    config = TINY.model_copy(update={"workers": 2})
    tasks = [Task(Training(f"real, seed {s}", training_key(scenes, CLASSES, config, s), scenes, config, s), ()) for s in (0, 1)]
    assert trainings.carry_out(tasks, CLASSES, tmp_path, processes=2) == {}
    assert all(trainings.is_done(task, tmp_path) for task in tasks)


def test_all_trainings_of_an_experiment_have_one_number_of_threads(sets, tmp_path, monkeypatch):
    from ccdiff_cli import threads
    from ccdiff_cli.trainability import trainings

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "ROUNDS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    answers = [1, 2, 2]
    monkeypatch.setattr(threads, "best", lambda taken: answers.pop(0))
    scenes = tuple(read_set(sets / "real").split("train"))
    tasks = [Task(Training(f"real, seed {s}", training_key(scenes, CLASSES, TINY, s), scenes, TINY, s), ()) for s in range(5)]

    def numbers(out):
        return {json.loads(p.read_text())["threads"] for p in (out / "trainings").glob("*/detector.json")}

    with threads.restored():
        torch.set_num_threads(2)
        trainings.carry_out(tasks[:1], CLASSES, tmp_path / "a")
        trainings.carry_out(tasks[1:3], CLASSES, tmp_path / "a")  # not timed again
        assert torch.get_num_threads() == 2
        trainings.carry_out(tasks[3:], CLASSES, tmp_path / "a", processes=2)  # nor shared out
        assert numbers(tmp_path / "a") == {1} and len(answers) == 2
        trainings.carry_out(tasks[:1], CLASSES, tmp_path / "b", processes=2)  # a lone one: others will be two at once
        assert numbers(tmp_path / "b") == {3} and len(answers) == 2
    assert json.loads((tmp_path / "b" / "trainings" / "threads.json").read_text()) == {"detector": 3}


def test_a_process_that_is_killed_takes_only_its_training_with_it(sets, tmp_path, monkeypatch):
    from ccdiff_cli.trainability import trainings

    monkeypatch.setattr(trainings, "_work", dying_worker)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # a command that ran before in this process left the folder
    done = [Task(Training(name, name, (), TINY, 0), ()) for name in ("a", "killed", "b", "c")]
    failed = trainings.carry_out(done, CLASSES, tmp_path, processes=2)
    assert set(failed) == {"killed"} and "ended with code -9" in failed["killed"].what and "--processes" in str(failed["killed"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "trainings"]


def dying_worker(pipe, classes, out, device, threads):
    """Writes a file a task, and is killed by the one of that name."""
    import os
    import signal

    while True:
        key = pipe.recv().training.key
        if key == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        (out / key).write_text("")
        pipe.send(("end", None))


def test_published_rows_stand_beside_the_same_data_set_alone(sets):
    from ccdiff_cli.dataset import PictureSet
    from ccdiff_cli.formats.classes import DIOR, DOTA10, HRSC, VHR10

    def of(format, classes):
        return published_rows(PictureSet(sets, classes, (), {"source": {"format": format}}))

    assert of("rsvg", DIOR)["rows"]["CC-Diff++"] == {"mAP": 52.62, "AP50": 77.51, "AP75": 58.09}
    assert (of("dota", DOTA10)["data_set"], of("hrsc", HRSC)["data_set"]) == ("DOTA v1.0", "HRSC2016")
    assert not any((of("dior", DIOR), of("dota", VHR10), of("coco", DOTA10), published_rows(read_set(sets / "real"))))
    assert all(len(rows) == len(METHODS) for rows in PUBLISHED.values())
    best = {name: max(rows)[0] for name, rows in PUBLISHED.items()}
    assert best == {"DIOR-RSVG": 52.62, "DOTA v1.0": 37.57, "HRSC2016": 46.69}


def test_the_command_line_compares_arms_and_prints_the_verdict(banked, tmp_path, monkeypatch, capsys):
    from ccdiff_cli.cli import main

    fakes(monkeypatch)
    (tmp_path / "mine.yaml").write_text("arms: {synthetic: [1]}\nseeds: [0]\nsamples: 50\n")
    common = ["eval-trainability", "--real", str(banked / "real"), "--synthetic", str(banked / "synthetic"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main([*common, "--recipe", str(tmp_path / "mine.yaml"), "--arm", "synthetic=0.5,1", "--arm", "copy-paste=1", "--seeds", "0,1",
              "--other", f"theirs={banked / 'floor'}", "--fractions", "50", "--set", "steps=60"])  # fmt: skip
    assert end.value.code in (0, None)
    said = capsys.readouterr().out
    assert "50 % of real + 1x copy-paste" in said and "50 % of real + 0.5x theirs" in said
    assert "2 seeds: neither" in said and said.rstrip().splitlines()[-1].startswith("report: ")
    for wrong, message in (
        ("--other", "expected a new NAME=PATH"),
        ("--arm", "arms.nonsense: no such arm"),
        ("--match", "is not one of 'steps', 'epochs', 'both'"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*common, wrong, "nonsense"])
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_the_lists_of_a_part_prepare_a_set_of_it_alone(sets, tmp_path, monkeypatch):
    boxes = {f"{k:03d}": [("ship", (10, 10, 30, 40)), ("airplane", (50, 20, 80, 50))] for k in range(1, 9)}
    splits = {"train": [f"{k:03d}" for k in range(1, 6)], "test": ["006", "007", "008"]}
    raw = vhr10(tmp_path / "raw", boxes, splits=splits)
    whole = prepare_dataset(raw, tmp_path / "whole", PrepareOptions(tile=64, overlap=16, size=64))
    made = make_set(tmp_path / "s", {"train": 4}, classes=whole.classes, kind="synthetic", tag="s", only=("ship",))
    fakes(monkeypatch)
    eval_trainability(whole.root, made.root, tmp_path / "out", experiment(fractions=[40, 100]))
    part = prepare_dataset(raw, tmp_path / "part", PrepareOptions(tile=64, overlap=16, size=64, splits=tmp_path / "out" / "splits" / "40"))
    names = {s.file_name for s in part.split("train")}
    assert names == {s.file_name for s in fraction_of(whole.split("train"), 40, 0)} and 0 < len(names) < len(whole.split("train"))
    assert [s.file_name for s in part.split("test")] == [s.file_name for s in whole.split("test")]
    assert part.manifest["skipped"]["pictures in no split list"] == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone_weights", "x"),
        ("backbone_weights", None),
        ("losses", {"columns": ["step"], "rows": [["x"]]}),
        ("seconds", "1"),
        ("key", 1),
    ],
)
def test_a_damaged_description_of_a_finished_training_is_named(sets, tmp_path, monkeypatch, key, value):
    FakeFits().install(monkeypatch)
    eval_trainability(sets / "real", sets / "synthetic", tmp_path, tiny(0))
    for path in sorted((tmp_path / "trainings").glob("*/detector.json")):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, key: value}))
    with pytest.raises(CCDiffError, match=rf"detector\.json: {key}(.|\n)*it is trained again"):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path, tiny(0))
