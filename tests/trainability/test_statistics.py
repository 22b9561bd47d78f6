"""Intervals: their coverage of a known effect in simulated experiments, with seeds as random effects and pictures in clusters."""

from __future__ import annotations

import numpy as np
import pytest

from ccdiff_cli.detectors import Detections
from ccdiff_cli.metrics.average_precision import Evaluation, Matches, evaluate
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.trainability.statistics import compare, interval, over_classes, resample, spread, verdict

CLASSES = ClassList(("ship", "plane"))


def simulated(rng, *, effect, seeds=3, sources=40, sd_seed=1.0, sd_source=4.0, tiles=4):
    """Per-source gains of one experiment: effect + seed + source + noise; tiles of a source share its part. (seeds, sources)"""
    seed = rng.normal(0, sd_seed, seeds)
    source = rng.normal(0, sd_source, sources)
    noise = rng.normal(0, 2.0, (seeds, sources, tiles)).mean(axis=2)
    return effect + seed[:, None] + source[None] + noise


def bootstrapped(rng, gains, samples=100):
    weights = rng.multinomial(gains.shape[1], np.full(gains.shape[1], 1 / gains.shape[1]), size=samples) / gains.shape[1]
    return weights @ gains.T  # (samples, seeds)


@pytest.mark.parametrize(("sd_seed", "sd_source"), [(1.0, 4.0), (2.0, 1.0), (0.0, 6.0)])
def test_the_interval_covers_a_known_effect(sd_seed, sd_source):
    """95 % of 200 experiments of three seeds, give or take what chance allows."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        gains = simulated(rng, effect=1.0, sd_seed=sd_seed, sd_source=sd_source)
        found = interval(gains.mean(axis=1).tolist(), bootstrapped(rng, gains))
        covered += found["low"] <= 1.0 <= found["high"]
    assert 0.91 <= covered / 200 <= 1


def test_drawing_three_seeds_again_would_cover_far_too_little():
    """Why seeds are not bootstrapped: where they decide, such an interval misses the effect three times as often as it says, and more."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(150):
        gains = simulated(rng, effect=1.0, sd_seed=2.0, sd_source=1.0)
        draws = bootstrapped(rng, gains)
        again = rng.integers(3, size=(len(draws), 3))
        low, high = np.percentile(np.take_along_axis(draws, again, axis=1).mean(axis=1), [2.5, 97.5])
        covered += low <= 1.0 <= high
    assert covered / 150 < 0.85


def test_no_effect_is_rarely_called_a_gain():
    rng, called = np.random.default_rng(2), 0
    for _ in range(150):
        gains = simulated(rng, effect=0.0, sd_seed=1.0, sd_source=4.0)
        found = interval(gains.mean(axis=1).tolist(), bootstrapped(rng, gains))
        called += found["low"] > 0 or found["high"] < 0
    assert called / 150 < 0.09


def test_the_probability_of_a_gain_is_even_without_one_and_near_one_with_a_large_one():
    rng = np.random.default_rng(3)
    none, large = ([], [])
    for _ in range(100):
        for effect, kept in ((0.0, none), (15.0, large)):
            gains = simulated(rng, effect=effect)
            kept.append(interval(gains.mean(axis=1).tolist(), bootstrapped(rng, gains))["above_zero"])
    assert 0.4 < np.mean(none) < 0.6 and min(large) > 0.9
    assert interval([0.0, 0.0], np.zeros((50, 2)))["above_zero"] == 0.5


def test_more_seeds_narrow_the_interval_and_one_seed_speaks_of_pictures_alone():
    rng = np.random.default_rng(4)
    gains = simulated(rng, effect=1.0, seeds=12, sd_seed=2.0, sd_source=1.0)
    gains = np.tile(gains[:3], (4, 1))
    wide, narrow = (interval(g.mean(axis=1).tolist(), bootstrapped(rng, g)) for g in (gains[:3], gains))
    assert narrow["high"] - narrow["low"] < 0.6 * (wide["high"] - wide["low"]) and wide["by_seeds"] > wide["by_pictures"]
    one = interval([float(gains[0].mean())], bootstrapped(rng, gains[:1]))
    assert one["by_seeds"] is None and one["high"] - one["low"] == pytest.approx(2 * one["by_pictures"], rel=0.1)


def simulated_matches(rng, *, skill, sources, tiles=2):
    """Matches of one class as a detector of some skill would make: objects of a source are found or missed together more often."""
    pictures = sources * tiles
    ease = np.repeat(rng.normal(0, 1.0, sources), tiles)
    objects = rng.poisson(2, pictures) + 1
    picture = np.repeat(np.arange(pictures), objects)
    return ease, objects, picture


def evaluation_of(rng, scene, skill):
    """An evaluation whose AP is the share of objects found, at ten IoUs of growing difficulty, with a few wrong detections."""
    ease, objects, picture = scene
    quality = ease[picture] + skill + rng.normal(0, 1.0, len(picture))
    hit = quality[None] > np.linspace(-1, 1.5, 10)[:, None]
    wrong = rng.integers(len(objects), size=len(picture) // 3)
    both = np.concatenate([picture, wrong])
    hits = np.concatenate([hit, np.zeros((10, len(wrong)), bool)], axis=1)
    scores = np.concatenate([quality, rng.normal(-1, 1, len(wrong))])
    order = np.argsort(-scores)
    matches = Matches(both[order], hits[:, order], np.zeros_like(hits), objects.astype(float))
    from ccdiff_cli.metrics.average_precision import average_precision

    ap = 100 * average_precision(matches, np.ones(len(objects)))
    summary = {"mAP": ap.mean(), "AP50": ap[0], "AP75": ap[5]}
    return Evaluation({**summary, "per_class": {"ship": summary}, "detections": len(order)}, {}, {"ship": matches})


def experiment(rng, sources, seeds, effect, samples):
    scene = simulated_matches(rng, skill=0, sources=sources)
    skills = rng.normal(0, 0.1, (seeds, 2))
    before = [evaluation_of(rng, scene, s) for s, _ in skills]
    after = [evaluation_of(rng, scene, effect + s) for _, s in skills]
    groups = [str(k // 2) for k in range(len(scene[0]))]
    drawn = resample({"a": before, "b": after}, groups, samples=samples, seed=int(rng.integers(1 << 30))) if samples else None
    return before, after, drawn


@pytest.mark.slow
def test_coverage_of_a_gain_in_average_precision():
    """The whole way, from matches over sources to the interval, against the gain measured on a test set of 4,000 sources and 40 seeds."""
    rng = np.random.default_rng(5)
    before, after, _ = experiment(rng, 4000, 40, 0.3, 0)
    truth = np.mean([a.summary["mAP"] - b.summary["mAP"] for b, a in zip(before, after, strict=True)])
    assert truth > 3
    covered = 0
    for _ in range(60):
        before, after, drawn = experiment(rng, 40, 3, 0.3, 60)
        gain, per_class = compare(before, after, drawn["a"], drawn["b"])
        assert per_class["ship"]["mAP"]["mean"] == gain["mAP"]["mean"]
        covered += gain["mAP"]["interval"]["low"] <= truth <= gain["mAP"]["interval"]["high"]
    assert covered >= 53


def labelled(n):
    rng = np.random.default_rng(6)
    scenes, found = [], []
    for k in range(n):
        boxes = rng.uniform(0, 40, (3, 4))
        boxes[:, 2:] = boxes[:, :2] + rng.uniform(8, 20, (3, 2))
        names = [CLASSES.names[int(v)] for v in rng.integers(2, size=3)]
        scenes.append(Scene(str(k), 64, 64, tuple(Instance.from_hbb(c, b) for c, b in zip(names, boxes, strict=True)), source=str(k // 3)))
        labels = np.array([CLASSES.index(c) for c in names])
        found.append(Detections((boxes + rng.normal(0, 2, boxes.shape)).astype(np.float32), rng.random(3).astype(np.float32), labels))
    return scenes, found


def test_pictures_of_a_source_are_drawn_together_and_alike_for_all_arms():
    scenes, found = labelled(12)
    e = evaluate(scenes, found, CLASSES)
    sources = [s.source for s in scenes]
    drawn = resample({"a": [e, e], "b": [e]}, sources, samples=50)
    assert drawn["a"].shape == (50, 2, 2, 3) and drawn["b"].shape == (50, 1, 2, 3)
    assert np.array_equal(drawn["a"][:, 0], drawn["b"][:, 0], equal_nan=True) and np.array_equal(
        resample({"a": [e]}, sources, samples=50)["a"], drawn["b"], equal_nan=True
    )
    by_source, by_picture = sources, [s.file_name for s in scenes]
    wide, narrow = (np.nanstd(over_classes(resample({"a": [e]}, g, samples=100)["a"])[:, 0, 0]) for g in (by_source, by_picture))
    assert wide != pytest.approx(narrow, rel=0.01)
    assert len(np.unique(np.round(over_classes(resample({"a": [e]}, ["x"] * 12, samples=20)["a"]), 3))) <= 3  # one source: no choice


@pytest.mark.parametrize("boxes", ["hbb", "obb"])
def test_detections_that_find_more_have_a_gain_and_equal_ones_none(boxes):
    scenes, found = labelled(30)
    good = [Detections(d.boxes, d.scores, d.labels, d.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]]) for d in found]
    poor = [Detections(d.boxes[1:], d.scores[1:], d.labels[1:], d.corners[1:]) for d in good]
    before, after = evaluate(scenes, poor, CLASSES, boxes), evaluate(scenes, good, CLASSES, boxes)
    drawn = resample({"a": [before], "b": [after]}, [s.source for s in scenes], samples=60)
    gain, _ = compare([before], [after], drawn["a"], drawn["b"])
    found_gain = gain["AP50"]["interval"]
    assert found_gain["low"] < after.summary["AP50"] - before.summary["AP50"] < found_gain["high"] and found_gain["above_zero"] > 0.9
    none, _ = compare([after], [after], drawn["b"], drawn["b"])
    assert (none["mAP"]["mean"], none["mAP"]["interval"]["low"], none["mAP"]["interval"]["high"]) == (0, 0, 0)


def test_a_draw_without_a_class_leaves_the_class_out_of_its_mean():
    draws = np.array([[[[1.0, 2, 3], [np.nan] * 3]], [[[np.nan] * 3, [np.nan] * 3]]])
    mean = over_classes(draws)
    assert mean[0, 0].tolist() == [1, 2, 3] and np.isnan(mean[1]).all()
    assert interval([1.0], mean[..., 0])["low"] == 1 and interval([1.0], np.full((5, 1), np.nan)) is None


def test_the_same_figures_every_time():
    draws = np.random.default_rng(0).normal(size=(100, 3))
    assert interval([1.0, 2.0, 4.0], draws) == interval([1.0, 2.0, 4.0], draws)


def test_a_missing_value_is_missing_in_the_mean():
    assert spread([1.0, None])["mean"] is None and spread([])["mean"] is None
    assert spread([1.0, 2.0])["sd"] == 0.707 and spread([1.0])["sd"] is None


def test_verdict_is_a_plain_sentence():
    def gain(mean, low, high, above):
        return {"mean": mean, "interval": {"low": low, "high": high, "above_zero": above}}

    assert verdict(gain(1.93, 0.4, 3.3, 0.99), 3) == "+1.9 mAP [+0.4, +3.3], 3 seeds: the detector gains from the synthetic pictures"
    assert verdict(gain(1.2, -0.2, 2.5, 0.94), 3) == (
        "+1.2 mAP [-0.2, +2.5], 3 seeds: neither gain nor loss is shown (probability of a gain 94 %)"
    )
    assert "less than 1 %" in verdict(gain(-1.2, -5, 0.1, 0.004), 3)
    assert "loses by the copy-paste pictures" in verdict(gain(-2, -3, -0.5, 0.0), 3, "the copy-paste pictures")
    assert verdict(gain(1.0, 0.5, 1.5, 1.0), 1).endswith("; one seed cannot tell it from the chance of a training")
    assert "no class has objects" in verdict({"mean": None}, 3)
    assert verdict({"mean": -0.01, "interval": None}, 2) == "+0.0 mAP, 2 seeds"


def test_detectors_that_have_learned_nothing_are_no_comparison():
    gain = {"mean": 0.0, "interval": {"low": 0.0, "high": 0.0, "above_zero": 0.01}}
    without, some = {"mAP": {"mean": 0.01}}, {"mAP": {"mean": 0.06}}
    said = verdict(gain, 1, arms=(without, without))
    assert said.startswith("the detectors have learned nothing (mAP 0 with and without the synthetic pictures, 1 seed): train them longer")
    assert "probability" in verdict(gain, 1, arms=(without, some)), "one of them has learned something"
