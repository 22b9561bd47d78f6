"""DIOR-RSVG: descriptions, and split lists that count objects rather than pictures."""

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import read_raw
from tests.rawsets import hbb_xml, picture, voc_xml


def rsvg(root, files, lists=None):
    for k, (stem, phrases) in enumerate(sorted(files.items())):
        picture(root / "JPEGImages" / f"{stem}.jpg", seed=k)
        objects = [f"{hbb_xml('golffield', (5 + j, 5, 30 + j, 20))}<description>{text}</description>" for j, text in enumerate(phrases)]
        (root / "Annotations").mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(objects, size=(96, 64)))
    for split, numbers in (lists or {}).items():
        (root / f"{split}.txt").write_text("".join(f"{n}\n" for n in numbers))
    return root


FILES = {"00001": ["A green\n  golf field"], "00002": ["the left one", "the right one"], "00007": ["it"], "00008": []}


def test_descriptions_are_kept(tmp_path):
    raw = read_raw(rsvg(tmp_path / "r", FILES))
    assert raw.format == "rsvg" and raw.notes == {"objects with a description": 4} and len(raw.classes) == 20
    assert [i.extra["description"] for s in raw.scenes for i in s.instances] == [
        "A green golf field",
        "the left one",
        "the right one",
        "it",
    ]
    assert {s.split for s in raw.scenes} == {""} and raw.scenes[0].categories() == ["golf field"] and len(raw.scenes) == 4


def test_lists_count_objects_and_a_picture_goes_where_it_leaks_least(tmp_path):
    raw = read_raw(rsvg(tmp_path / "r", FILES, {"train": [0, 1], "val": [3], "test": [2]}))
    assert [(s.source, s.split, len(s.instances)) for s in raw.scenes] == [("00001", "train", 1), ("00002", "test", 2), ("00007", "val", 1)]
    assert [i.extra.get("listed") for i in raw.scenes[1].instances] == ["train", None]
    assert raw.changes["objects listed for another split than their picture's"] == 1
    assert raw.skipped == {"pictures with no object in a split list": 1}


def test_objects_in_no_list_stay_with_their_picture(tmp_path):
    raw = read_raw(rsvg(tmp_path / "r", FILES, {"train": [1], "test": [3]}))
    assert [(s.source, s.split, len(s.instances)) for s in raw.scenes] == [("00002", "train", 2), ("00007", "test", 1)]
    assert raw.notes["objects in no split list, kept with their picture"] == 1
    assert raw.skipped == {"pictures with no object in a split list": 2, "objects in no split list": 1}


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": [4]}, r"train\.txt:1: expected an object's number, 0 to 3, found '4'"),
        ({"train": ["-1"]}, "found '-1'"),
        ({"train": ["00001.jpg"]}, r"found '00001\.jpg'"),
        ({"train": ["9" * 5000]}, "expected an object's number"),
        ({"train": ["²"]}, "expected an object's number"),
        ({"train": [1], "test": [1]}, "object 1 stands in train and again in test"),
        ({"train": [1, 1]}, "object 1 stands in train and again in train"),
    ],
)
def test_broken_lists(tmp_path, lists, message):
    with pytest.raises(CCDiffError, match=message):
        read_raw(rsvg(tmp_path / "r", FILES, lists))


def test_missing_picture(tmp_path):
    root = rsvg(tmp_path / "r", FILES)
    (root / "JPEGImages" / "00007.jpg").unlink()
    with pytest.raises(CCDiffError, match="the picture 00007 is missing from JPEGImages"):
        read_raw(root)
