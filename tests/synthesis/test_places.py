"""How many objects a generator has places for is looked at when pictures are planned."""

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import read_json, write_json
from ccdiff_cli.methods import METHODS, Places
from tests.methods.small import make_pipeline, make_recipe
from tests.synthesis.grouped import make_set

FAKE = "tests.synthesis.fake:load"


def of_method(generator, name, **config):
    write_json(generator / "ccdiff.json", {**read_json(generator / "ccdiff.json"), "method": name})
    write_json(generator / "unet" / "config.json", config)
    return generator


def test_too_many_objects_are_one_message_and_nothing_is_written(generator, layouts, tmp_path):
    of_method(generator, "gligen", grounding={"slots": 2})
    for options in ({}, {"dry_run": True}):
        with pytest.raises(CCDiffError, match=r"4 of 12 planned pictures have more objects than the 2 .* GLIGEN .* up to 3") as caught:
            make_set(generator, layouts, tmp_path / "s", 12, layout_source="set", pipeline=FAKE, num_processes=1, **options)
        assert "gligen.slots at least 1 higher" in str(caught.value)
        assert not list((tmp_path / "s").glob("plan*"))
    of_method(generator, "gligen", grounding={"slots": 3})
    assert make_set(generator, layouts, tmp_path / "s", 12, layout_source="set", pipeline=FAKE, num_processes=1)["pictures"] == 12


def test_more_than_usual_are_drawn_and_counted(generator, layouts, tmp_path):
    of_method(generator, "aerogen", layout={"slots": 2})
    made = make_set(generator, layouts, tmp_path / "s", 12, layout_source="set", pipeline=FAKE, num_processes=1)
    expected = {"usual": 2, "pictures": 4, "most": 3}
    assert made["layouts"]["more_objects_than_usual"] == expected
    assert read_json(tmp_path / "s" / "manifest.json")["skipped_layouts"]["more_objects_than_usual"] == expected
    of_method(generator, "aerogen", layout={"slots": 15})
    made = make_set(generator, layouts, tmp_path / "t", 12, layout_source="set", pipeline=FAKE, num_processes=1)
    assert "more_objects_than_usual" not in made["layouts"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gligen", Places(most=30, key="gligen.slots")),
        ("migc", Places(most=28, key="migc.slots")),
        ("aerogen", Places(usual=15, key="aerogen.slots")),
        ("ccdiff++", Places()),
    ],
)
def test_a_generator_folder_says_its_places(name, expected, tmp_path):
    method = METHODS[name]
    if name != "ccdiff++":
        make_pipeline(method, make_recipe(method)).save_pretrained(tmp_path)
    assert method.places(tmp_path) == expected
    assert method.most_objects(make_recipe(method)) == expected.most if name != "ccdiff++" else True


def test_slots_that_hold_more_than_objects_are_no_places(tmp_path):
    write_json(tmp_path / "unet" / "config.json", {"slots": 10})
    assert METHODS["layoutdiffusion"].places(tmp_path) == Places(usual=9, key="layoutdiffusion.slots"), "one is the picture's"
