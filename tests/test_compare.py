"""`compare` from the file to the tables, with generators that draw at once; a real one, killed on the way, among the slow tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccdiff_cli.compare import compare, read_comparison, run
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods import METHODS
from ccdiff_cli.report.compare import sentences, tables_of

from .detectors.small import TINY, make_set
from .test_evaluation import small_extractor

FILE: dict[str, Any] = {
    "copy_paste": False,  # the small set has no reference bank
    "sets": {"one": "real"},
    "methods": {"first": None, "other": {"recipe": "layoutdiffusion-tiny", "set": {"picture_size": 64}}},
    "pictures": 64,
    "added": 0.5,
    "evaluate": {"extractors": ["a"], "bootstrap": 5},
    "trainability": {"seeds": [0], "match": "steps", "samples": 50, "detector": TINY.model_dump(mode="json", exclude_defaults=True)},
}


def written(folder: Path, **changed: Any) -> Path:
    values = {key: value for key, value in {**FILE, **changed}.items() if value is not ...}
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    make_set(folder / "real", {"train": 12, "val": 2, "test": 8})
    return folder


class Hand:
    """In place of training and synthesis: draws at once and remembers what was asked."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []
        self.made: list[tuple[str, int, bool]] = []
        self.broken: str | None = None

    def train(self, recipe: Any, data: Any, out: Path, **how: Any) -> dict[str, Any]:
        if recipe.name == self.broken:
            raise CCDiffError("no training today", where=out, fix="come again")
        self.trained.append((recipe.name, recipe.denoiser.train.steps))
        return {}

    def synthesize(self, generator: Path, layouts: Any, out: Path, options: Any, **how: Any) -> dict[str, Any]:
        self.made.append((out.name, options.n, options.shuffle_layouts))
        if not out.is_dir():
            drawn = {"layout": {"source": "set", "picture": f"a-{options.layouts.split}-001.png"}}
            kind = "floor" if options.shuffle_layouts else "synthetic"
            make_set(out, {"train": options.n}, kind=kind, tag=f"{out.parent.name[:3]}", seed=len(self.made), provenance=drawn)
        return {}


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    made = Hand()
    monkeypatch.setattr(run, "train", made.train)
    monkeypatch.setattr(run, "synthesize", made.synthesize)
    monkeypatch.setattr("ccdiff_cli.evaluation.run.find_extractor", small_extractor)
    return made


def test_a_comparison_ends_in_two_tables_and_goes_on_where_it_was(root: Path, hand: Hand, tmp_path: Path) -> None:
    # a name that is markup in every output, as far as a row may be called so
    config = read_comparison(written(root, methods={"CC (co)": {"set": {"picture_size": 64}}, "other": FILE["methods"]["other"]}))
    results = compare(config, tmp_path)
    assert hand.trained == [("tiny", 4), ("layoutdiffusion-tiny", 4)], "64 pictures in batches of 16"
    assert [(n, shuffled) for _, n, shuffled in hand.made] == [(8, False), (6, False), (8, True), (8, False), (6, False)]
    said = json.loads((tmp_path / "results.json").read_text())["sets"]["one"]
    (_, quality_head, quality), (_, head, trained) = tables_of(said)
    assert [row[0] for row in quality] == ["real pictures (ceiling)", "CC (co)", "other", "floor: pictures drawn from each other's layouts"]
    assert [c.split(" ")[0] for c in quality_head[1:]] == ["FID", "KID", "mAP50", "mAP50:95"]
    assert [row[0] for row in trained] == ["50 % of real", "real", "real + 0.5x CC (co)", "real + 0.5x other"]
    assert "gain in mAP, equal steps" in head and not any("epochs" in c for c in head), "the other protocol was not asked for"
    assert any("cannot answer" in text or "can answer" in text for text in sentences(said))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 3 and "layoutdiffusion-tiny" in page
    assert (
        METHODS["layoutdiffusion"].licence in (tmp_path / "table.md").read_text()
        and r"\begin{tabular}" in (tmp_path / "table.tex").read_text()
    )
    trainings = [p for p in (tmp_path / "one" / "trainability" / "trainings").iterdir() if p.is_dir()]
    assert len(trainings) == 4, "evaluate takes the real arm's detector"

    before = {p: p.read_bytes() for p in (tmp_path / "results.json", tmp_path / "report.html", tmp_path / "table.tex")}
    assert compare(config, tmp_path) == results
    assert {p: p.read_bytes() for p in before} == before


def test_a_change_reaches_what_depends_on_it_alone(root: Path) -> None:
    first = read_comparison(written(root))
    folders = {}
    for name, changed in {"as it is": {}, "steps": {"synthesize": {"sampling": {"steps": 3}}}, "budget": {"pictures": 128}}.items():
        config = read_comparison(written(root, **changed))
        row = run._row(config, "other", run.read_set(config.sets["one"]), Path("out"))
        folders[name] = row.generator, row.made("training", run._options(config, row.real, "training"))
    assert first == read_comparison(written(root))
    assert folders["steps"][0] == folders["as it is"][0] != folders["budget"][0]
    assert len({made for _, made in folders.values()}) == 3


def test_a_length_in_epochs_is_one_in_pictures(root: Path) -> None:
    row = {"recipe": "layoutdiffusion-tiny", "set": {"denoiser.train.epochs": 2, "denoiser.train.batch_size": 5}}
    config = read_comparison(written(root, methods={"own length": row}))
    assert run._row(config, "own length", run.read_set(config.sets["one"]), Path("out")).seen == 25, "12 pictures twice, in batches of 5"


def test_a_row_that_fails_is_said_and_the_others_are_finished(root: Path, hand: Hand, tmp_path: Path) -> None:
    hand.broken = "layoutdiffusion-tiny"
    config = read_comparison(written(root, methods={"first": {"set": {"picture_size": 64}}, "other": FILE["methods"]["other"]}))
    with pytest.raises(CCDiffError, match=r"1 of 2 rows failed \(first: one, other: .*no training today") as caught:
        compare(config, tmp_path)
    assert caught.value.fix == "come again"
    said = json.loads((tmp_path / "results.json").read_text())["sets"]["one"]
    assert list(said["rows"]) == ["first"] and "other is missing" in (tmp_path / "table.md").read_text()


def test_a_dry_run_writes_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ccdiff_cli.cli import main

    path = written(root, methods={"other": FILE["methods"]["other"]})
    with pytest.raises(SystemExit) as end:
        main(["compare", str(path), "--out", str(tmp_path / "out"), "--dry-run"])
    told = capsys.readouterr().out
    assert end.value.code == 0 and not (tmp_path / "out").exists()
    assert "one / other: recipe layoutdiffusion-tiny, 64 pictures seen, generator to do" in told and "2 arms x 1 seeds" in told


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"sets": ...}, "sets: the key is missing"),
        ({"sets": {"one": "nowhere"}}, "nowhere"),
        ({"methods": {"../x": None}}, "expected letters, digits"),
        ({"methods": {"copy-paste": None}}, "expected letters, digits"),
        ({"methods": {"a": None, "A": None}}, "the same but for their case"),
        ({"methods": {"a": {"recipe": "nothing"}}}, "no recipe named 'nothing'"),
        ({"methods": {"a": {"from": "tiny", "start": "tiny"}}}, "are the same option"),
        (
            {"methods": {"ccdiff++": "ccdiff-tiny"}},
            "methods.ccdiff++: expected options of ccdiff train, found 'ccdiff-tiny'\n"
            "  fix: name its options, for example methods: {ccdiff++: {recipe: ccdiff-tiny}}",
        ),
        ({"methods": {"a": [1]}, "sets": ...}, "found a list of 1\n  fix: name its options, for example methods: {a: {recipe: tiny}}"),
        ({"pictures": 0}, "pictures: "),
        ({"trainability": {"arms": {"synthetic": [1]}}}, "the arms of a comparison are its rows"),
        ({"trainability": {"detector": {"wheels": 4}}}, "wheels"),
        ({"evaluate": {"floor": "x"}}, "a comparison sees to that itself"),
        ({"synthesize": {"shuffle_layouts": True}}, "a floor is made beside the rows"),
        ({"budget": 3}, "unknown key"),
    ],
)
def test_a_file_that_does_not_fit_is_one_message(root: Path, tmp_path: Path, changed: dict[str, Any], what: str) -> None:
    with pytest.raises(CCDiffError) as caught:
        compare(read_comparison(written(root, **changed)), tmp_path / "out", dry_run=True)
    assert what in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_methods_say_of_themselves_is_what_the_readme_says() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").replace("`", "")
    for name, method in METHODS.items():
        row = next(line for line in readme.splitlines() if line.startswith("| ") and f"({name})" in line)
        assert [method.licence, method.exact, method.differs] == [cell.strip() for cell in row.split(" | ")[2:5]], name


@pytest.mark.slow
def test_a_comparison_that_is_killed_again_and_again_ends_as_one_left_alone(tmp_path: Path) -> None:
    from ccdiff_cli.drawn import CLASSES, draw_dataset
    from ccdiff_cli.prepare import PrepareOptions, prepare_dataset

    draw_dataset(tmp_path / "drawn", pictures=24, seed=0)
    prepare_dataset(tmp_path / "drawn", tmp_path / "real", PrepareOptions(size=128, classes=tmp_path / "drawn" / CLASSES))
    steps = {"denoiser.train.batch_size": 2, "denoiser.train.checkpoint_every": 2}
    small = {"steps": 2, "warmup_steps": 1, "input_size": 64, "anchor_sizes": [8, 16, 32, 64]}
    path = written(
        tmp_path,
        methods={"CC-Diff++": {"from": "tiny", "set": steps}, "MIGC": {"recipe": "migc-tiny", "set": steps}},
        pictures=8,
        synthesize={"sampling": {"steps": 1}},
        evaluate={"bootstrap": 5},
        copy_paste=True,
        trainability={"seeds": [0], "match": "steps", "samples": 50, "detector": small},
    )
    command = [sys.executable, "-m", "ccdiff_cli", "compare", str(path), "--processes", "1", "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    begun = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, **quiet)
    took = time.monotonic() - begun
    for share in (0.25, 0.4, 0.55, 0.7):
        process = subprocess.Popen([*command, str(tmp_path / "cut")], start_new_session=True, **quiet)
        try:
            process.wait(share * took)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    subprocess.run([*command, str(tmp_path / "cut")], check=True, **quiet)
    whole, cut = (
        json.loads((tmp_path / name / "results.json").read_text().replace(str(tmp_path / name), "OUT")) for name in ("whole", "cut")
    )
    for results in (whole, cut):
        for said in results["sets"].values():
            for arm in said["trainability"]["arms"].values():  # how long it took
                arm.pop("trainings")
    assert cut == whole
