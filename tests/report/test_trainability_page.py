"""The page: it escapes what a data set brings along, shows what is missing as missing, and is the same bytes every time."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
from defusedxml import ElementTree

from ccdiff_cli.detectors import Detections
from ccdiff_cli.report import Example, figures, trainability_page
from ccdiff_cli.scene import ClassList

from ..detectors.small import make_set

NASTY = ClassList(("<b>ship</b>", "pla$ne & co"))


def spread(*values):
    if None in values:
        return {"mean": None, "sd": None, "min": None, "max": None, "per_seed": list(values)}
    return {"mean": float(np.mean(values)), "sd": float(np.std(values)), "min": min(values), "max": max(values), "per_seed": list(values)}


def results():
    metrics = {m: spread(40.0, 42.0) for m in ("mAP", "AP50", "AP75")}
    none = {m: spread(None, None) for m in ("mAP", "AP50", "AP75")}
    rows = [[10, 2.0, 1, 0.5, 0.3, 0.2], [20, 1.0, 0.5, 0.2, 0.2, 0.1]]
    training = {"seed": 0, "key": "k", "seconds": 60.0, "pictures_per_second": 9.0, "device": "cpu", "losses": {"rows": rows}}
    arm = {
        "pictures": 10,
        "objects": 20,
        "epochs": 2.0,
        **metrics,
        "per_class": {NASTY.names[0]: {**metrics, "test_objects": 5}, NASTY.names[1]: {**none, "test_objects": 0}},
        "trainings": [training, training],
        "precision_at_recall": {NASTY.names[0]: list(np.linspace(1, 0, 101))},
    }
    gain = {**spread(-1.0, 3.0), "interval": {"low": -2.0, "high": 4.0, "above_zero": 0.7}}
    detector = {"kind": "faster-rcnn", "backbone": "efficientnet-lite0", "input_size": 64, "batch": 2, "optimizer": "adamw", "lr": 0.1}
    return {
        "verdict": "gain +1.0 mAP50",
        "warnings": ["classes <i>few</i>"],
        "gain": {m: gain for m in ("mAP", "AP50", "AP75")},
        "per_class_gain": {NASTY.names[0]: {m: spread(-1.0, 3.0) for m in ("mAP", "AP50", "AP75")}, NASTY.names[1]: none},
        "arms": {"real": arm, "real + synthetic": {**arm, "pictures": 14}},
        "adherence": {"scores": {"real test pictures (ceiling)": metrics, "synthetic pictures": metrics}},
        "protocol": {
            "detector": {**detector, "schedule": "cosine"},
            "backbone_weights": {"note": "backbone weights: none"},
            "seeds": [0, 1],
            "steps": 20,
            "evaluation": "AP",
            "max_dets": [1, 100, 1000],
            "difficult": "ignored",
            "test": {"pictures": 2, "objects": 5, "difficult_ignored": 0, "not_evaluated": [NASTY.names[1]]},
            "interval": "95 %",
        },
        "leak_check": {"checks": ["fine"], "unknown": ["not said"]},
        "sets": {"real": {"folder": "/a&b", "pictures": 12, "content": "c"}},
        "versions": {"ccdiff": "0"},
    }


@pytest.fixture
def page(tmp_path):
    scenes = make_set(tmp_path, {"test": 1, "train": 1}).scenes
    scenes = [s.replace(instances=tuple(i.__class__.from_hbb(NASTY.names[0], i.hbb) for i in s.instances)) for s in scenes]
    found = Detections(np.array([[1, 2, 30, 40], [5, 5, 9, 9]], np.float32), np.array([0.9, 0.2], np.float32), np.array([0, 1]))
    return trainability_page(results(), NASTY, [Example(scenes[0], found, found)], scenes[1:])


def test_names_from_the_data_set_are_escaped(page):
    assert "<b>" not in page and "<i>" not in page
    assert "&lt;b&gt;ship&lt;/b&gt;" in page and "pla$ne" in page


def test_shows_only_confident_detections_with_their_scores(page):
    assert "0.90</title>" in page and "0.20</title>" not in page
    assert 'points="1.0,2.0 30.0,2.0 30.0,40.0 1.0,40.0"' in page


def test_what_was_not_evaluated_is_a_dash_and_what_is_unknown_a_question_mark(page):
    assert "<td>\N{EN DASH}</td>" in page and "? not said" in page


def test_every_reference_leads_into_the_page(page):
    targets = set(re.findall(r'id="((?:example|sample)\d+)"', page))
    assert set(re.findall(r'<use href="#(\w+)"', page)) == targets == {"example1", "sample1"}


@pytest.mark.parametrize("draw", [figures.class_gains, figures.adherence, figures.precision_recall, figures.losses])
def test_figures_are_valid_svg_and_the_same_every_time(draw):
    first = draw(results())
    ElementTree.fromstring(first)
    assert draw(results()) == first


def test_one_seed_has_no_spread():
    one = copy.deepcopy(results())
    for arm in one["arms"].values():
        arm["trainings"] = arm["trainings"][:1]
        arm["AP50"] = {**spread(40.0), "sd": None}
    one["gain"]["AP50"]["per_seed"] = [1.0]
    one["protocol"]["seeds"] = [0]
    page = trainability_page(one, NASTY, [], [])
    assert "over 1 seed;" in page and "gain per seed" not in page
