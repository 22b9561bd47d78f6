"""`evaluate` end to end on tiny sets: what is written, resumed, refused."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.evaluation import REAL, EvaluateOptions, evaluate, run
from ccdiff_cli.metrics.clip_score import Clip
from ccdiff_cli.metrics.features import Extractor
from ccdiff_cli.metrics.published import COLUMNS, published_quality
from ccdiff_cli.scene import ClassList

from .detectors.small import TINY, make_set

OPTIONS = {"extractors": ["a", "b"], "clip": "small", "crops": "obb", "bootstrap": 12}


def small_extractor(text: str, device: str = "auto") -> Extractor:
    """Means of a 4 x 4 grid: quick, and different for different pictures."""

    def encode(pictures):
        return np.stack([np.asarray(p.resize((4, 4), Image.Resampling.BOX), np.float32).ravel()[:20] / 255 for p in pictures])

    return Extractor(text, f"key of {text}", "a grid of means", encode)


def small_clip(text: str, device: str = "auto") -> Clip:
    """Two channels: brightness of a picture, length of a text."""

    def unit(values: list[float]) -> np.ndarray:
        return np.stack([np.cos(values), np.sin(values)], axis=1)

    return Clip(
        text, "key", lambda some: unit([np.asarray(p).mean() / 255 for p in some]), lambda some: unit([len(t) / 100 for t in some]), len
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    make_set(root / "real", {"train": 12, "test": 10})
    layout = {"layout": {"source": "augmented", "picture": "a-train-001.png"}}
    make_set(root / "good", {"train": 9}, kind="synthetic", tag="s", seed=1, provenance=layout)
    make_set(root / "other", {"train": 8}, kind="synthetic", tag="o", seed=3)
    make_set(root / "floor", {"train": 5}, kind="floor", tag="f", seed=2, provenance=layout)
    return root


@pytest.fixture(scope="module")
def judged(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "find_extractor", small_extractor)
        patch.setattr(run, "find_clip", small_clip)
        results = evaluate(
            sets / "real", [sets / "good", sets / "other"], out, EvaluateOptions(floor=sets / "floor", **OPTIONS), detector=TINY
        )
    return out, results


def test_every_set_has_a_row_with_its_role_and_figures(judged):
    out, results = judged
    assert json.loads((out / "results.json").read_text()) == results
    rows = results["rows"]
    assert {name: row["role"] for name, row in rows.items()} == {
        REAL: "ceiling",
        "good": "generator",
        "other": "generator",
        "floor": "floor",
    }
    assert list(rows["good"]["features"]) == ["a", "b"]
    assert [rows[n]["features"]["a"]["pictures"] for n in rows] == [8, 8, 8, 5]  # the smaller of the two generators decides
    for row in rows.values():
        figures = row["features"]["a"]
        assert figures["KID"]["low"] is not None and figures["FID"]["low"] <= figures["FID"]["value"] <= figures["FID"]["high"]
        assert row["yoloscore"]["hbb"]["objects"] > 0 and len(row["colours"]["spectrum"]) == 32
    assert (
        rows["good"]["clip"]["crops"] == rows["good"]["yoloscore"]["hbb"]["objects"] + rows["good"]["yoloscore"]["hbb"]["difficult_ignored"]
    )
    assert rows["good"]["clip"]["pictures without a caption"] == 9 and rows["good"]["clip"]["CLIP-G"]["value"] is None
    assert rows["good"]["clip"]["CLIP-L"]["low"] <= rows["good"]["clip"]["CLIP-L"]["value"] <= rows["good"]["clip"]["CLIP-L"]["high"]
    assert "yoloscore_floor" in rows["good"] and "yoloscore_floor" not in rows[REAL]
    assert rows[REAL]["colours"]["colour_difference"] == 0
    assert results["protocol"]["layouts of the synthetic pictures"]["good"] == "train 9"
    assert results["protocol"]["layouts of the synthetic pictures"]["other"] == "unknown 8"
    assert any("below 2,000" in w for w in results["warnings"]) and any("good (9)" in w for w in results["warnings"])


def test_tables_and_page_name_the_extractors_and_stand_alone(judged):
    out, results = judged
    markdown, latex, page = ((out / name).read_text() for name in ("table.md", "table.tex", "report.html"))
    assert (
        "CLIP-L (OBB crops)" in markdown
        and "FID [a]" in markdown
        and "FID [b]" in markdown
        and "good, labels exchanged (floor)" in markdown
    )
    assert latex.count(r"\\") == 1 + 4 + 2 and r"\begin{tabular}" in latex
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page) and "<script" not in page
    assert page.count("data:image/jpeg") == 10 + 9 + 8 + 5 + 2 * (9 + 8)
    assert all(w in html.unescape(page) for w in results["warnings"])
    assert "No published figures stand here" in page


def test_again_encodes_trains_and_finds_nothing_and_gives_the_same_bytes(judged, sets, monkeypatch):
    out, _ = judged
    before = {name: (out / name).read_bytes() for name in ("results.json", "report.html", "table.md", "table.tex")}

    def silent(text, device="auto"):
        known = small_extractor(text)
        return Extractor(known.name, known.key, known.note, lambda pictures: pytest.fail("encoded again"))

    monkeypatch.setattr(run, "find_extractor", silent)
    monkeypatch.setattr(run, "find_clip", small_clip)
    monkeypatch.setattr("ccdiff_cli.detectors.training.TrainedDetector.predict", lambda *a: pytest.fail("looked again"))
    evaluate(sets / "real", [sets / "good", sets / "other"], out, EvaluateOptions(floor=sets / "floor", **OPTIONS), detector=TINY)
    assert {name: (out / name).read_bytes() for name in before} == before


def test_dry_run_writes_nothing(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_extractor", small_extractor)
    plan = evaluate(sets / "real", [sets / "good"], tmp_path / "out", detector=TINY, dry_run=True)
    assert not (tmp_path / "out").exists()
    assert plan["synthetic pictures"] == {"good": 9} and plan["estimated minutes"] >= 0 and not plan["detector already trained"]
    json.dumps(plan)


def refused(message: str, real, synthetic, tmp_path, **options) -> None:
    with pytest.raises(CCDiffError, match=message):
        evaluate(real, synthetic, tmp_path / "out", EvaluateOptions(yoloscore=False, **options))
    assert not (tmp_path / "out").exists()


def test_broken_inputs_end_in_clear_errors(sets, tmp_path):
    make_set(tmp_path / "classes", {"train": 3}, classes=ClassList(("ship",)), kind="synthetic")
    refused("lacks plane", sets / "real", [tmp_path / "classes"], tmp_path)
    make_set(tmp_path / "one", {"train": 1}, kind="synthetic")
    refused("one picture only", sets / "real", [tmp_path / "one"], tmp_path)
    sizes = make_set(tmp_path / "sizes", {"train": 3}, kind="synthetic")
    large = [scene.replace(width=128, height=128) for scene in sizes.scenes]
    write_set(sizes.root, large, sizes.classes, kind="synthetic", details={}, picture_hashes=dict(sizes.hashes))
    refused("128 x 128 pixels.*64 x 64", sets / "real", [tmp_path / "sizes"], tmp_path)
    make_set(tmp_path / "single", {"train": 4, "test": 1})
    refused("one picture only in its test split", tmp_path / "single", [sets / "good"], tmp_path)
    refused("no val split", sets / "real", [sets / "good"], tmp_path, reference="val")
    refused("given twice", sets / "real", [sets / "good", sets / "good"], tmp_path)
    refused("no synthetic set", sets / "real", [], tmp_path)
    refused("unknown feature extractor", sets / "real", [sets / "good"], tmp_path, extractors=["vgg"])
    refused("weights of InceptionV3 do not exist", sets / "real", [sets / "good"], tmp_path, extractors=["inception@nowhere.pth"])


def test_the_detector_of_another_run_is_shared(judged, sets, tmp_path, monkeypatch):
    out, results = judged
    monkeypatch.setattr(run, "find_extractor", small_extractor)
    monkeypatch.setattr("ccdiff_cli.detectors.training.TrainedDetector.predict", lambda *a: pytest.fail("looked again"))
    other = evaluate(sets / "real", [sets / "other"], tmp_path, EvaluateOptions(share=out, extractors=["a"], bootstrap=0), detector=TINY)
    assert other["rows"]["other"]["yoloscore"] == results["rows"]["other"]["yoloscore"]
    assert not (tmp_path / "trainings").exists() and not (tmp_path / "predictions").exists()


def test_published_figures_stand_beside_ours_only_where_the_protocol_is_the_same():
    same = {"reference": "test", "sides": {512}, "extractors": ["inception"], "clip": "ViT-L-14 laion2b_s32b_b82k", "crops": "hbb"}
    made = published_quality("DOTA v1.0", **same)
    assert made["columns"] == ["CLIP-L", "CLIP-G", "FID"]  # YOLOv8 is no detector of ours
    assert made["rows"]["CC-Diff++"] == {"CLIP-L": 22.66, "CLIP-G": 30.93, "FID": 47.02}
    for change, columns in (
        ({"crops": "obb"}, ["CLIP-G", "FID"]),
        ({"clip": "ViT-B-32 laion2b_s32b_b82k"}, ["FID"]),
        ({"clip": "ViT-L-14 open_clip_model"}, ["FID"]),
        ({"extractors": ["efficientnet-lite0"]}, ["CLIP-L", "CLIP-G"]),
        ({"sides": {128}}, []),
        ({"reference": "val"}, []),
    ):
        made = published_quality("HRSC2016", **{**same, **change})
        assert made["columns"] == columns and set(made["left_out"]) == set(COLUMNS) - set(columns)


def test_a_set_that_is_judged_is_no_output_folder(sets):
    with pytest.raises(CCDiffError, match="the output folder is the good set itself"):
        evaluate(sets / "real", [sets / "good"], sets / "good", EvaluateOptions(**OPTIONS), detector=TINY, dry_run=True)
