"""The comparison end to end on tiny sets: resuming, caching, what is refused, what is written."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest

from ccdiff_cli import trainability
from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import fit
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.metrics.average_precision import METRICS
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.trainability import BOTH, REAL, check_leaks, eval_trainability, layout_adherence, swap_labels, verdict

from .detectors.small import CLASSES, TINY, make_set


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
        sets / "real", sets / "synthetic", out, TINY, seeds=(0, 1), floor=sets / "floor", progress=lambda s, d, t: stages.append((s, d, t))
    )
    return out, results, stages


def test_results_hold_both_arms_all_seeds_and_classes(compared):
    out, results, stages = compared
    assert json.loads((out / "results.json").read_text()) == results
    assert results["arms"][REAL]["pictures"] == 6 and results["arms"][BOTH]["pictures"] == 12
    assert {t["losses"]["rows"][-1][0] for arm in results["arms"].values() for t in arm["trainings"]} == {TINY.steps}
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
    assert len(results["adherence"]["scores"]) == 4
    assert [s for s, d, t in stages if d == t][-1] == "compare" and ("train real, seed 1", 4, 4) in stages


def test_report_stands_alone(compared):
    out, results, _ = compared
    page = (out / "report.html").read_text()
    assert results["verdict"] in html.unescape(page)
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page) and "<script" not in page and "url(" not in re.sub(r"url\(#", "", page)
    assert page.count("data:image/jpeg") == 5 + 6  # every test picture and every synthetic one, each once
    assert page.count("<svg") >= 4 + 3 * 5 + 6


def test_again_trains_and_predicts_nothing_and_gives_the_same_bytes(compared, sets, monkeypatch):
    out, results, _ = compared
    page = (out / "report.html").read_bytes()
    monkeypatch.setattr("ccdiff_cli.detectors.training._step", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr("ccdiff_cli.detectors.training.TrainedDetector.predict", lambda *a: pytest.fail("looked again"))
    assert eval_trainability(sets / "real", sets / "synthetic", out, TINY, seeds=(0, 1), floor=sets / "floor") == results
    assert (out / "report.html").read_bytes() == page


def test_a_stopped_comparison_goes_on_and_gives_the_same_figures(compared, sets, tmp_path):
    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("train real + synthetic, seed 0") and done == 2:
            raise Killed

    with pytest.raises(Killed):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path, TINY, seeds=(0, 1), progress=kill)
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "report.html").exists()
    stages = []
    results = eval_trainability(
        sets / "real", sets / "synthetic", tmp_path, TINY, seeds=(0, 1), progress=lambda stage, *_: stages.append(stage)
    )
    assert "train real, seed 0" not in stages  # that one was finished
    assert results["gain"] == compared[1]["gain"] and results["per_class_gain"] == compared[1]["per_class_gain"]


def test_dry_run_writes_nothing_and_knows_what_is_finished(compared, sets, tmp_path):
    plan = eval_trainability(sets / "real", sets / "synthetic", tmp_path / "new", TINY, seeds=(0, 1, 2), dry_run=True)
    assert not (tmp_path / "new").exists()
    assert plan["trainings"] == 6 and plan["trainings already finished"] == 0 and plan["estimated minutes"] >= 0
    assert plan["arms"][BOTH] == {"pictures": 12, "epochs": round(TINY.steps * TINY.batch / 12, 2)}
    plan = eval_trainability(sets / "real", sets / "synthetic", compared[0], TINY, seeds=(0, 1, 2), dry_run=True)
    assert plan["trainings already finished"] == 4
    json.dumps(plan)


def refused(message: str, real, synthetic, out, **kwargs) -> None:
    with pytest.raises(CCDiffError, match=message):
        eval_trainability(real, synthetic, out, TINY, **{"seeds": (0,), **kwargs})
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
    results = eval_trainability(sets / "real", tmp_path / "ships", tmp_path / "out", TINY, seeds=(0,))
    assert any("hold no plane" in w for w in results["warnings"])
    assert any("does not say which pictures its generator was trained on" in w for w in results["warnings"])
    assert results["gain"]["AP50"]["sd"] is None and "1 seed" in results["verdict"]


def test_a_class_without_test_objects_is_not_evaluated(sets, tmp_path):
    make_set(tmp_path / "real", {"train": 4, "test": 4}, only=("ship",))
    results = eval_trainability(tmp_path / "real", sets / "synthetic", tmp_path / "out", TINY, seeds=(0,))
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
        eval_trainability(sets / "real", tmp_path / "nowhere", tmp_path / "out", TINY)
    refused("expected different whole numbers", sets / "real", sets / "synthetic", tmp_path / "out", seeds=(1, 1))


@pytest.mark.parametrize(
    ("provenance", "details"),
    [
        ({"layout": {"picture": "a-test-000.png"}}, {}),
        ({"references": {"instances": [None, {"source": "a-test-1"}]}}, {}),
        ({}, {"generator": {"sources": ["a-train-0", "a-test-0"]}}),
    ],
)
def test_leaks_of_test_pictures_are_refused(sets, tmp_path, provenance, details):
    make_set(tmp_path / "s", {"train": 2}, kind="synthetic", tag="s", provenance=provenance, details=details)
    refused("test split", sets / "real", tmp_path / "s", tmp_path / "out")


def test_a_synthetic_picture_of_a_test_source_and_shared_sources_are_refused(sets, tmp_path):
    real = read_set(sets / "real")
    tiles = make_set(tmp_path / "again", {"test": 2})
    with pytest.raises(CCDiffError, match="belongs to the real set's test split"):
        check_leaks(real, tiles)
    mixed = real.scenes[0].replace(source=real.split("test")[0].source)
    with pytest.raises(CCDiffError, match="both the train and the test split"):
        check_leaks(type(real)(real.root, real.classes, (mixed, *real.scenes[1:]), real.manifest), read_set(sets / "synthetic"))


def scene(name: str, *boxes: tuple[float, ...], size: int = 64) -> Scene:
    return Scene(name, size, size, tuple(Instance.from_hbb("ship", b) for b in boxes))


def test_swapped_labels_are_a_permutation_without_fixed_points():
    scenes = [scene(str(k), (0, 0, 10 + k // 2, 9)) for k in range(9)]  # layouts come in equal pairs
    swapped = swap_labels(scenes)
    assert swapped == swap_labels(scenes)
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


def test_verdict_is_a_plain_sentence():
    def gain(mean, sd, low, high):
        return {"mean": mean, "sd": sd, "interval": {"low": low, "high": high}}

    assert verdict(gain(1.23, 0.8, 0.2, 2.5), gain(0.7, 0.2, 0, 1), 3) == (
        "gain +1.2 mAP50 (sd 0.8, 3 seeds; 95 % interval +0.2 to +2.5), +0.7 mAP: the synthetic pictures help"
    )
    assert "neither gain nor loss is shown" in verdict(gain(1.2, 0.8, -0.2, 2.5), gain(0.7, 0.2, 0, 1), 3)
    assert "hurt" in verdict(gain(-2, 0.8, -3, -0.5), gain(-1, 0.2, 0, 1), 3)
    assert "no class has objects" in verdict({"mean": None}, {"mean": None}, 3)


def test_a_full_disk_is_one_clear_message(sets, tmp_path, monkeypatch):
    import errno

    def full(*a, **k):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CCDiffError, match=r"No space left on device(.|\n)*free some space"):
        eval_trainability(sets / "real", sets / "synthetic", tmp_path / "out", TINY, seeds=(0,))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_module_has_the_arms_the_report_knows():
    from ccdiff_cli.report import figures

    assert list(figures.COLOURS) == [trainability.REAL, trainability.BOTH]
