"""Experiments: every shipped recipe loads; options win over it; a wrong one says file, key, found, expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccdiff_cli.detectors import DetectorConfig
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.trainability.config import ExperimentConfig, experiment_of, load_detector_config, load_experiment, with_steps
from ccdiff_cli.trainability.options import ExperimentOptions

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("trainability-*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_is_named_after_its_file(path: Path) -> None:
    loaded = load_experiment(path.stem)
    assert loaded.name == path.stem and loaded.description
    assert loaded.with_steps(1000).detector.steps > 0
    assert len(loaded.seeds) >= 3


def test_the_six_recipes_are_there() -> None:
    assert [p.stem.removeprefix("trainability-") for p in RECIPES] == ["dior-rsvg", "dota", "hrsc-cpu", "hrsc", "vhr10-cpu", "vhr10-gpu"]


def test_published_recipes_are_1x_with_equal_epochs() -> None:
    config = load_experiment("trainability-dior-rsvg")
    made = config.with_steps(5862)
    assert made.detector.steps == -(-12 * 5862 // 16) and made.detector.warmup_steps == 500 and made.detector.input_size == 800
    assert (config.match, config.arms) == ("both", {"synthetic": (1.0,)})
    assert load_experiment("trainability-dota").detector.oriented and load_experiment("trainability-hrsc").detector.oriented


def test_options_win_over_the_recipe(tmp_path: Path) -> None:
    detector = tmp_path / "d.yaml"
    detector.write_text("steps: 70\n")
    options = ExperimentOptions(
        recipe="trainability-vhr10-cpu", detector=detector, settings=["batch=2", "detector.lr=0.5", "samples=99"],
        arms=["synthetic=0.5,1", "pretrain", "migc=all"], fractions="25,100", seeds="3,4", match="epochs",
    )  # fmt: skip
    made = experiment_of(options)
    assert made.arms == {"synthetic": (0.5, 1), "pretrain": ("all",), "migc": ("all",)}
    assert (made.fractions, made.seeds, made.match, made.samples) == ((25, 100), (3, 4), "epochs", 99)
    assert (made.detector.steps, made.detector.batch, made.detector.lr) == (70, 2, 0.5)
    assert experiment_of(ExperimentOptions()) == ExperimentConfig()


def test_without_anything_it_is_real_against_all_synthetic_pictures() -> None:
    made = load_experiment()
    assert made.arms == {"synthetic": ("all",)} and made.fractions == (100,) and made.seeds == (0, 1, 2) and made.match == "both"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fractions: [0, 100]", r"fractions: expected different percentages(.|\n)*fix: fractions: Percent"),
        ("fractions: [50, 50]", "fractions: expected different"),
        ("seeds: [1, 1]", "seeds: expected different whole numbers"),
        ("seeds: []", "seeds"),
        ("arms: {synthetic: [0]}", "arms.synthetic"),
        ("arms: {synthetic: lots}", "arms.synthetic"),
        ("arms: {real: [1]}", "real is always there"),
        ("arms: {synthetic: [1, 1]}", "a ratio is there twice"),
        ("ratio: 1", r"ratio: unknown key(.|\n)*known keys: name"),
        ("detector: {stepz: 1}", r"detector.stepz: unknown key(.|\n)*steps"),
        ("detector: {steps: -1}", "detector.steps"),
        ("match: time", "match"),
        ("calibrate_steps: [100, 150]", "calibrate_steps: expected numbers of steps from 2, each at least twice"),
        ("calibrate_steps: []", "calibrate_steps"),
        ("label_jitter: 0", "label_jitter"),
        ("samples: 3", "samples"),
        ("detector: 3", "detector"),
        ("arms: [", "not valid YAML"),
        ("- 1", "mapping of keys, found list"),
    ],
)
def test_unusable_recipes_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(CCDiffError, match=message) as caught:
        load_experiment(path)
    assert "mine.yaml" in str(caught.value)


def test_unknown_names_list_the_experiments_alone() -> None:
    with pytest.raises(CCDiffError, match="trainability-vhr10-cpu") as caught:
        load_experiment("nothing")
    assert "tiny" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"seeds": "0,x"}, {"seeds": "0,0"}, {"seeds": ""}, {"fractions": "many"}, {"arms": ["synthetic=x"]}, {"arms": ["=1"]}]
)
def test_options_that_make_no_sense(options: dict) -> None:
    with pytest.raises(CCDiffError, match=r"seeds|fractions|arm"):
        experiment_of(ExperimentOptions(**options))


def test_a_detector_file_with_or_without_its_group(tmp_path: Path) -> None:
    for k, text in enumerate(("steps: 70", "detector:\n  steps: 70")):
        path = tmp_path / f"{k}.yaml"
        path.write_text(text)
        assert load_detector_config(path, {"batch": 2}).steps == 70
    with pytest.raises(CCDiffError, match="stepz: unknown key"):
        load_detector_config(None, {"stepz": 1})


def test_warm_up_is_shortened_with_the_steps() -> None:
    config = DetectorConfig(steps=500, warmup_steps=50)
    assert with_steps(config, 1000).warmup_steps == 50
    assert (with_steps(config, 20).warmup_steps, with_steps(config, 1).warmup_steps) == (2, 0)
