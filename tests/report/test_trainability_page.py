"""The page: it escapes what a data set brings along, shows what is missing as missing, and is the same bytes every time."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
from defusedxml import ElementTree
from matplotlib.figure import Figure

from ccdiff_cli.detectors import Detections
from ccdiff_cli.report import figures
from ccdiff_cli.report.trainability import Change, Example, latex_table, markdown_table, trainability_page
from ccdiff_cli.scene import ClassList

from ..detectors.small import make_set

NASTY = ClassList(("<b>ship</b>", "pla$ne & co"))
REAL, ADDED = "real", "real + <i>1x</i> synthetic"


def spread(*values):
    if None in values:
        return {"mean": None, "sd": None, "min": None, "max": None, "per_seed": list(values)}
    return {"mean": float(np.mean(values)), "sd": float(np.std(values)), "min": min(values), "max": max(values), "per_seed": list(values)}


def arm(kind="real", ratio=None, fraction=100.0, pictures=10):
    metrics = {m: spread(40.0, 42.0) for m in ("mAP", "AP50", "AP75")}
    none = {m: spread(None, None) for m in ("mAP", "AP50", "AP75")}
    rows = [[10, 2.0, 1, 0.5, 0.3, 0.2], [20, 1.0, 0.5, 0.2, 0.2, 0.1]]
    training = {"seed": 0, "key": "k", "seconds": 60.0, "pictures_per_second": 9.0, "device": "cpu", "losses": {"rows": rows}}
    found = {
        "kind": kind, "ratio": ratio, "fraction": fraction, "pictures": pictures, "added": 0,
        "protocol": "" if kind == "real" else "steps", "objects": 20, "steps": 20, "epochs": 2.0,
        **metrics,
        "per_class": {NASTY.names[0]: {**metrics, "test_objects": 5}, NASTY.names[1]: {**none, "test_objects": 0}},
        "per_size": {"small": {**metrics, "test_objects": 4}, "large": {**none, "test_objects": 0}},
        "trainings": [training, training],
        "precision_at_recall": {NASTY.names[0]: list(np.linspace(1, 0, 101))},
    }  # fmt: skip
    return found if kind == "real" else {**found, "baseline": REAL, "gain": {m: gain() for m in ("mAP", "AP50", "AP75")}}


def gain(mean=1.0):
    return {
        **spread(mean - 2.0, mean + 2.0),
        "interval": {"low": -2.0, "high": 4.0, "above_zero": 0.7, "by_pictures": 0.5, "by_seeds": 1.5},
    }


def results():
    metrics = {m: spread(40.0, 42.0) for m in ("mAP", "AP50", "AP75")}
    none = {m: {**spread(None, None), "interval": None} for m in ("mAP", "AP50", "AP75")}
    detector = {"kind": "faster-rcnn", "backbone": "efficientnet-lite0", "input_size": 64, "batch": 2, "optimizer": "adamw", "lr": 0.1}
    counts = {"objects": 5, "both": 2, "learned": 1, "lost": 1, "neither": 1}
    return {
        "verdict": "+1.0 mAP",
        "yardstick": {"can_answer": False, "sentence": "This experiment cannot answer: <i>no</i>", "over": REAL},
        "protocols_sentence": "at equal steps +1.0 & more",
        "protocols": [
            {
                "kind": "synthetic",
                "ratio": 1.0,
                "fraction": 100.0,
                "name": ADDED,
                "baseline": REAL,
                "fair": {"arm": ADDED, "steps": 20, "gain": {m: gain() for m in ("mAP", "AP50", "AP75")}},
                "published": {"arm": ADDED + ", equal epochs", "steps": 40, "gain": {m: gain(3.0) for m in ("mAP", "AP50", "AP75")}},
                "longer": {"arm": "real, longer", "steps": 40, "gain": {m: gain(1.2) for m in ("mAP", "AP50", "AP75")}},
                "over_longer": {m: gain(1.8) for m in ("mAP", "AP50", "AP75")},
            }
        ],
        "headline": {"arm": ADDED, "baseline": REAL},
        "warnings": ["classes <i>few</i>"],
        "gain": {m: gain() for m in ("mAP", "AP50", "AP75")},
        "per_class_gain": {NASTY.names[0]: {m: gain() for m in ("mAP", "AP50", "AP75")}, NASTY.names[1]: none},
        "arms": {REAL: arm(), ADDED: arm("synthetic", 1.0, pictures=20)},
        "rivals": [],
        "more_real": [],
        "failed": [],
        "objects": {"score": 0.5, "per_class": {NASTY.names[0]: counts, NASTY.names[1]: counts}},
        "published": None,
        "adherence": {"scores": {"real test pictures (ceiling)": metrics, "synthetic pictures": metrics}},
        "protocol": {
            "experiment": {"name": "x"},
            "detector": {**detector, "schedule": "cosine"},
            "backbone_weights": {"note": "backbone weights: none"},
            "seeds": [0, 1],
            "steps": 20,
            "match": "steps",
            "boxes": "hbb",
            "evaluation": "AP",
            "difficult": "ignored",
            "test": {"pictures": 2, "sources": 2, "objects": 5, "difficult_ignored": 0, "not_evaluated": [NASTY.names[1]]},
            "interval": "95 %",
        },
        "leak_check": {"checks": ["fine"], "unknown": ["not said"], "leaks": [{"what": "2 leaked", "count": 2, "pictures": ["<u>p</u>"]}]},
        "sets": {"real": {"folder": "/a&b", "pictures": 12, "content": "c", "generator": None}},
        "versions": {"ccdiff": "0"},
    }


def many_arms():
    made = results()
    made["arms"] = {}
    for fraction in (25.0, 100.0):
        made["arms"][f"{fraction} real"] = arm(fraction=fraction, pictures=int(fraction))
        for kind in ("synthetic", "copy-paste", "mi$gc"):
            for ratio in (0.5, 1.0, 2.0):
                made["arms"][f"{fraction} {kind} {ratio}"] = arm(kind, ratio, fraction)
        for kind in ("pretrain", "synthetic-only"):
            made["arms"][f"{fraction} {kind}"] = arm(kind, None, fraction)
    made["headline"] = {"arm": "100.0 synthetic 1.0", "baseline": "100.0 real"}
    made["rivals"] = [{"arm": "100.0 synthetic 1.0", "over": "100.0 copy-paste 1.0", "gain": {m: gain() for m in ("mAP", "AP50")}}]
    made["more_real"] = [{"arm": "100.0 real", "over": "25.0 real", "times": 4.0, "gain": {m: gain() for m in ("mAP", "AP50")}}]
    made["protocol"]["boxes"] = "obb"
    for entry in made["arms"].values():
        entry |= {"AP50_voc07": spread(1.0), "AP50_voc12": spread(2.0), "HBB": {m: spread(3.0) for m in ("mAP", "AP50", "AP75")}}
    rows = {m: {"mAP": 50.0, "AP50": 75.0, "AP75": 54.0} for m in ("real only", "CC-Diff++")}
    made["published"] = {"data_set": "DIOR-RSVG", "rows": rows}
    return made


@pytest.fixture
def parts(tmp_path):
    scenes = make_set(tmp_path, {"test": 1, "train": 1}).scenes
    scenes = [s.replace(instances=tuple(i.__class__.from_hbb(NASTY.names[0], i.hbb) for i in s.instances)) for s in scenes]
    found = Detections(np.array([[1, 2, 30, 40], [5, 5, 9, 9]], np.float32), np.array([0.9, 0.2], np.float32), np.array([0, 1]))
    example = Example(scenes[0], found, found)
    return [example], scenes[1:], {"learned": [Change(example, scenes[0].instances[0], (0, 2))], "lost": []}


@pytest.fixture
def page(parts):
    return trainability_page(results(), NASTY, *parts)


def test_names_from_the_data_set_are_escaped(page):
    assert "<b>s" not in page and "<i>" not in page and "<u>" not in page
    assert "&lt;b&gt;ship&lt;/b&gt;" in page and "pla$ne" in page


def test_shows_only_confident_detections_with_their_scores(page):
    assert "0.90</title>" in page and "0.20</title>" not in page
    assert 'points="1.0,2.0 30.0,2.0 30.0,40.0 1.0,40.0"' in page


def test_oriented_detections_are_drawn_by_their_corners(parts):
    examples, samples, changes = parts
    corners = np.array([[10, 0, 20, 10, 10, 20, 0, 10], [0, 0, 1, 0, 1, 1, 0, 1]], np.float32)
    before = examples[0].before
    found = Detections(before.boxes, before.scores, before.labels, corners)
    page = trainability_page(results(), NASTY, [Example(examples[0].scene, found, found)], samples, changes)
    assert 'points="10.0,0.0 20.0,10.0 10.0,20.0 0.0,10.0"' in page


def test_what_was_not_evaluated_is_a_dash_and_what_leaked_is_named(page):
    assert "<td>\N{EN DASH}</td>" in page and "<b>?</b>not said" in page and "2 leaked: &lt;u&gt;p&lt;/u&gt; and 1 more" in page


def test_every_reference_leads_into_the_page(page):
    targets = set(re.findall(r'id="((?:example|sample|learned|lost)\d+)"', page))
    assert set(re.findall(r'<use href="#(\w+)"', page)) == targets == {"example1", "sample1", "learned1"}


def test_many_arms_have_curves_rivals_and_the_published_rows_of_their_set(parts):
    page = trainability_page(many_arms(), NASTY, *parts)
    for text in (
        "<h2>Dose</h2>",
        "<h2>Fewer real pictures</h2>",
        "Published on DIOR-RSVG",
        "OBB, AP50 (VOC07)",
        "100.0 synthetic 1.0 over 100.0 copy-paste 1.0",
        "100.0 real over 25.0 real</td><td>4.0</td>",
    ):
        assert text in page
    assert page.count("<tr") > 2 * (1 + 9 + 2)
    few = trainability_page(results(), NASTY, *parts)
    absent = ("<h2>Dose</h2>", "<h2>Fewer real pictures</h2>", "Published on", "Against the other ways", "VOC07")
    assert not any(text in few for text in absent)


def test_both_protocols_stand_in_page_markdown_and_latex(parts, page):
    made = results()
    for text in (
        "equal epochs (as published)",
        "+3.0 [-2.0, +4.0]",
        "+1.2 [-2.0, +4.0]",
        "+1.8 [-2.0, +4.0]",
        "&lt;i&gt;no&lt;/i&gt;",
        "equal steps +1.0 &amp; more",
    ):
        assert text in page, text
    table = markdown_table(made)
    assert table.count("\n| real + ") == 2 and "| +1.0 [-2.0, +4.0] | +3.0 [-2.0, +4.0] | +1.2 [-2.0, +4.0] | +1.8 [-2.0, +4.0] |" in table
    assert "cannot answer: \\<i\\>no" in table and "<i>" not in table.replace("\\<i", "")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("|")} == {8, 6}
    tex = latex_table(made)
    assert tex.count(r"\begin{tabular}") == 2 == tex.count(r"\end{tabular}") and r"pla\$ne" not in tex
    assert r"41.0 $\pm$ 1.0" in tex and "+1.8 [-2.0, +4.0]" in tex
    made["protocols"][0] |= {"published": None, "longer": None, "over_longer": None}
    assert "| +1.0 [-2.0, +4.0] | \N{EN DASH} | \N{EN DASH} | \N{EN DASH} |" in markdown_table(made)
    assert " & -- & -- & --" in latex_table(made)


def test_without_a_synthetic_set_there_is_no_adherence(parts):
    made = results() | {"adherence": None}
    page = trainability_page(made, NASTY, *parts)
    assert "Layout adherence" not in page and "Added pictures with their labels" in page


DRAWINGS = {
    "gains": lambda r: figures.gains(r["arms"]),
    "dose": figures.dose_curve,
    "fractions": figures.fraction_curve,
    "classes": figures.class_gains,
    "adherence": figures.adherence,
    "curves": lambda r: figures.precision_recall(r, list(r["arms"])),
    "losses": lambda r: figures.losses(r, list(r["arms"])),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_figures_are_valid_svg_and_the_same_every_time(name):
    first = DRAWINGS[name](many_arms())
    ElementTree.fromstring(first)
    assert DRAWINGS[name](many_arms()) == first


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_text_of_the_figure_without_a_warning():
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0, "\u8239</text><script>")
    text = figures.svg_text(figure)
    assert "\u8239&lt;/text&gt;&lt;script&gt;" in text and ElementTree.fromstring(text) is not None


def test_other_sets_get_colours_of_their_own():
    kinds = ["real", "synthetic", "a", "b"]
    assert len({figures.arm_colour(k, kinds) for k in kinds}) == 4


def test_one_seed_has_no_spread(parts):
    one = copy.deepcopy(results())
    for entry in one["arms"].values():
        entry["trainings"] = entry["trainings"][:1]
        for metric in ("mAP", "AP50", "AP75"):
            entry[metric] = {**spread(40.0), "sd": None}
    one["gain"]["mAP"] |= {"per_seed": [1.0], "interval": {**gain()["interval"], "by_seeds": None}}
    one["protocol"]["seeds"] = [0]
    page = trainability_page(one, NASTY, *parts)
    assert "over 1 seed. A gain" in page and "what the seed brings is not known from one" in page
