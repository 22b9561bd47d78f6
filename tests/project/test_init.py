"""``ccdiff init``: what is proposed for sets of several kinds, and that the file reads back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ccdiff_cli.doctor import examine
from ccdiff_cli.drawn import draw_dataset
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.project import init_project, read_project
from ccdiff_cli.project.propose import (
    CPU,
    GPU,
    Cut,
    Sight,
    choose_cut,
    detector_of,
    look,
    made_pictures,
    splits_of,
    training_pictures,
    training_steps,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("raw") / "drawn", pictures=16)


def sight(sides: tuple[int, int], objects: tuple[float, float], pictures: int = 100, **changes: Any) -> Sight:
    """A set of pictures of one size with objects from small to large, twice as long as wide."""
    areas = np.linspace(*objects, 40)
    splits, boxes = {"train": ("a",) * pictures}, np.array([(k % pictures, 5, 5, 15, 15) for k in range(40)], float)
    found = Sight(Path("x"), "dota", pictures, {"ship": 40}, splits, np.array([sides]), areas, areas * 1.4, boxes, 1.0, {})
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("sides", "objects", "tile"),
    [((256, 256), (24, 70), None), ((800, 800), (100, 300), None), ((4000, 4000), (20, 60), 128), ((1000, 800), (32, 100), 256)],
)
def test_small_objects_ask_for_tiles_and_large_ones_for_whole_pictures(
    sides: tuple[int, int], objects: tuple[float, float], tile: int | None
) -> None:
    seen = sight(sides, objects)
    cut = choose_cut(seen)
    assert cut.size == 128
    if tile is None:
        assert cut.tile is None
    else:
        assert cut.tile is not None and tile / 2 <= cut.tile <= tile * 1.5
        assert 0 <= cut.overlap < cut.tile
    side = cut.tile or max(sides)
    assert np.percentile(seen.sides, 25) * cut.size / side >= 12, "three quarters of the objects can be seen"


def test_long_thin_objects_get_a_larger_picture_or_are_said_to_be_cut() -> None:
    areas = np.linspace(20, 40, 40)
    cut = choose_cut(replace(sight((1000, 1000), (20, 40)), lengths=areas * 12))
    assert cut.size == 256 and "cut by a tile" in cut.why


def test_the_detector_fits_the_objects() -> None:
    seen = sight((256, 256), (24, 70))
    cut = choose_cut(seen)
    settings = detector_of(seen, cut, training_pictures(seen, cut))
    assert settings["anchor_sizes"].value == [16, 32, 64, 128]
    assert settings["warmup_steps"].value < settings["steps"].value


def test_how_many_pictures_will_be_trained_on() -> None:
    whole, tiles = Cut(None, 0, 128, ""), Cut(256, 64, 128, "")
    seen = sight((640, 448), (30, 60))
    three_fifths = {"train": ("a",) * 60, "val": ("b",) * 40}
    assert training_pictures(seen, whole) == 100
    assert training_pictures(replace(seen, splits=three_fifths), whole) == 60
    assert training_pictures(replace(seen, splits={"": ("a",) * 100}), whole) == 70  # drawn by the seed
    assert training_pictures(replace(seen, splits={"train": ("a",)}, count=1000), whole) == 1  # never none

    def at(*centres: tuple[int, int, int]) -> int:
        return training_pictures(replace(seen, boxes=np.array([(k, x - 5, y - 5, x + 5, y + 5) for k, x, y in centres], float)), tiles)

    assert at((0, 10, 10)) == 1 and at((0, 10, 10), (0, 30, 40)) == 1 and at((0, 10, 10), (1, 10, 10)) == 2
    assert at((0, 220, 10)) == 2 and at((0, 220, 220)) == 4  # where tiles overlap an object is in several
    assert at((0, 639, 447)) == 1  # the last tiles end at the picture's border
    grid = [(0, x, y) for x in range(8, 640, 8) for y in range(8, 448, 8)]
    assert at(*grid) == 3 * 2
    large = np.array([[0, 100, 100, 240, 240]], float)  # the second tile begins at 192
    assert training_pictures(replace(seen, boxes=large), tiles) == 4
    assert training_pictures(replace(seen, boxes=large - [0, 40, 40, 40, 40]), tiles) == 1


def test_a_val_split_stands_in_for_a_test_split_that_is_not_there() -> None:
    assert splits_of(sight((9, 9), (1, 2), splits={"train": ("a",), "val": ("b",)})).value == {"train": "train", "test": "val"}
    assert splits_of(sight((9, 9), (1, 2), splits={"train": ("a",), "test": ("b",)})).value is None
    assert splits_of(sight((9, 9), (1, 2), splits={"": ("a", "b")})).value is None


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"": ("a", "b")}, "the set has none"),
        ({"": ("a",), "test": ("b",)}, "the set's own: test 1; those of the other 1 pictures are drawn"),
        ({"test": ("a",), "train": ("b", "c")}, "the set's own: train 2, test 1"),
        ({"train": ("b", "c")}, "without test the chain does not get to its end"),
    ],
)
def test_what_becomes_of_splits_is_said(splits: dict[str, tuple[str, ...]], said: str) -> None:
    assert said in splits_of(sight((9, 9), (1, 2), splits=splits)).why


def test_a_large_set_asks_for_what_the_machine_can_do_and_says_what_is_short() -> None:
    seen = sight((800, 800), (24, 70), pictures=70_000)
    cut = choose_cut(seen)
    for machine, share in ((CPU, "0.2 times"), (GPU, "2.3 times")):
        detector, made = detector_of(seen, cut, 70_000, machine), made_pictures(70_000, machine)
        assert detector["steps"].value == machine.steps and share in detector["steps"].why and "105,000 steps" in detector["steps"].why
        assert made.value == (machine.made if machine is CPU else None)
        assert training_steps(70_000, 16, machine).value * 16 == machine.seen
    assert "long" not in detector_of(seen, cut, 500)["steps"].why and made_pictures(500).value is None


def test_the_file_reads_back_and_says_why(drawn: Path, tmp_path: Path) -> None:
    made = init_project(drawn, tmp_path / "ccdiff.yaml")
    project = read_project(tmp_path / "ccdiff.yaml")
    assert project.data_path == drawn and project.values("prepare") == {"size": 128}
    assert project.values("train")["overrides"] == made["proposed"]["train.set"]
    text = (tmp_path / "ccdiff.yaml").read_text()
    assert all(" ".join(why.split())[:30] in " ".join(text.replace("#", "").split()) for why in made["why"].values() if why)
    schema = json.loads((tmp_path / "ccdiff.schema.json").read_text())
    assert {"data", "prepare", "trainability"} <= set(schema["properties"]) and "from" in schema["$defs"]["TrainOptions"]["properties"]


def test_the_folder_may_move_with_its_data(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "one/raw")
    init_project(tmp_path / "one/raw", tmp_path / "one/ccdiff.yaml")
    assert yaml.safe_load((tmp_path / "one/ccdiff.yaml").read_text())["data"] == "raw"


def test_a_project_file_that_is_there_stays(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "ccdiff.yaml").write_text("data: mine\n")
    with pytest.raises(CCDiffError, match="already"):
        init_project(drawn, tmp_path / "ccdiff.yaml")
    assert (tmp_path / "ccdiff.yaml").read_text() == "data: mine\n"


def test_a_set_without_objects_or_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CCDiffError, match="no such folder"):
        init_project(tmp_path / "none", tmp_path / "ccdiff.yaml")
    assert not (tmp_path / "ccdiff.yaml").exists()


def test_what_names_say_stays_in_its_comment(drawn: Path, tmp_path: Path) -> None:
    seen = look(drawn)
    odd = replace(seen, classes={"ship": 3, "x\ndata: elsewhere": 0}, skipped={"a\nruns: /etc": 2})
    from ccdiff_cli.project.init import _choices, _lines

    choices = _choices(odd, choose_cut(odd), splits_of(odd), CPU, named=False)
    text = "\n".join(_lines("raw", odd, choices, examine()))
    assert yaml.safe_load(text)["data"] == "raw" and "runs" not in yaml.safe_load(text)
    assert "no object of 1 of the 2 classes" in text
