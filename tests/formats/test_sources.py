"""Names that tell which scene a picture is a piece of."""

import pytest

from ccdiff_cli.formats.dota import tile_source
from ccdiff_cli.formats.raw import RawSet
from ccdiff_cli.formats.sources import by_corners, by_hints, name_sources
from ccdiff_cli.scene import ClassList, Scene

SAHI = ["0_0_64_48", "16_0_80_48", "0_8_64_56", "16_8_80_56"]


def test_sahi_counts_tiles_before_their_corners():
    names = [f"scene{s}_{k}_{corners}" for s in range(3) for k, corners in enumerate(SAHI)]
    assert by_corners(names) == {name: name.split("_")[0] for name in names}


def test_a_number_before_the_corners_may_be_the_scenes_own():
    names = [f"P_{scene}_{corners}" for scene in (7, 8) for corners in SAHI]
    assert by_corners(names) == {name: name.rsplit("_", 4)[0] for name in names}
    assert by_corners(["a_0_0_64_48", "a_64_0_128_48"]) == {"a_0_0_64_48": "a", "a_64_0_128_48": "a"}


@pytest.mark.parametrize("name", ["a_1_2_3_4", "2020_01_02_03_04", "a_64_48_0_0", "scene_0_0", "x"])
def test_what_is_no_corners_is_left_alone(name):
    assert by_corners([name]) == {}


@pytest.mark.parametrize(
    "pieces",
    [
        ["roma_r0_c0", "roma_r0_c1", "roma_r1_c0"],
        ["roma_row1_col2", "roma_row2_col1"],
        ["roma_x0_y0", "roma_x512_y0"],
        ["roma-tile-1", "roma-tile-2"],
        ["roma_patch_12", "roma_patch_13"],
        ["roma_crop3", "roma_crop4"],
        ["roma_0_0", "roma_0_1", "roma_1_0", "roma_1_1"],
        ["roma.rf.0a1b2c", "roma.rf.ffee01"],
        ["roma_aug_0", "roma_aug_1"],
    ],
)
def test_hints_of_rows_columns_offsets_words_and_augmented_copies(pieces):
    assert by_hints(pieces) == dict.fromkeys(pieces, "roma")


@pytest.mark.parametrize("names", [["img_2020_01", "img_2021_07"], ["roma_patch_1", "oslo_patch_1"], ["a", "b"], ["P0001", "P0002"]])
def test_dates_numbers_and_single_pieces_are_no_hints(names):
    assert by_hints(names) == {}


def raw_of(stems, split=""):
    return RawSet("coco", ClassList(("ship",)), [Scene(f"{s}.png", 8, 8, split=split, source=s) for s in stems])


def test_hints_count_for_splits_that_are_to_be_drawn_corners_always():
    names = ["roma_r0_c0", "roma_r0_c1", "oslo_0_0_64_48", "oslo_64_0_128_48", "alone"]
    drawn, given = raw_of(names), raw_of(names, "train")
    name_sources(drawn, None)
    name_sources(given, None)
    assert [s.source for s in drawn.scenes] == ["roma", "roma", "oslo", "oslo", "alone"]
    assert [s.source for s in given.scenes] == ["roma_r0_c0", "roma_r0_c1", "oslo", "oslo", "alone"]
    assert drawn.notes["pictures taken for pieces of a scene by their names"] == 4


def test_a_set_that_seems_one_scene_says_so():
    raw = raw_of(["roma_r0_c0", "roma_r0_c1"])
    name_sources(raw, None)
    assert any("all pictures are pieces of one scene" in what for what in raw.changes)


def test_a_pattern_goes_before_all_hints():
    raw = raw_of(["roma_r0_c0", "roma_r0_c1", "zz"])
    name_sources(raw, r"_(?P<source>r\d)_")
    assert [s.source for s in raw.scenes] == ["r0", "r0", "zz"]
    assert raw.notes["pictures that the pattern does not fit, each a source of its own"] == 1


def test_names_of_yolt_tell_the_scene():
    assert tile_source("roma__0_48_48_64_0_100_200") == tile_source("roma|512_0_416_416_0_4000_3000") == "roma"
