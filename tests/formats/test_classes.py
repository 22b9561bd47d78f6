"""Frozen class lists and the user's class file."""

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import read_raw
from ccdiff_cli.formats.classes import CLASS_LISTS, ClassMap, read_class_file
from tests.rawsets import dior, hbb_xml


def test_lists_have_the_published_lengths():
    assert {k: len(v) for k, v in CLASS_LISTS.items()} == {"dior": 20, "vhr10": 10, "dota10": 15, "dota15": 16, "dota20": 18, "hrsc": 1}


def test_spellings():
    names = ClassMap.frozen("dior")
    for spelling in ("Expressway-Service-area", "groundtrackfield", "storagetank", "Storage_Tank", "trainstation"):
        assert names.name(spelling, where="x") in names.classes
    with pytest.raises(CCDiffError, match="unknown class 'zeppelin'"):
        names.name("zeppelin", where="x")


def test_class_file_maps_and_orders(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# mine\nboat\nship = boat\nvehicle\n\ncar = vehicle\n")
    root = dior(tmp_path / "r", {"00001": ([hbb_xml("ship", (5, 5, 20, 20)), hbb_xml("car", (30, 5, 50, 20))], [])})
    raw = read_raw(root, classes=read_class_file(path))
    assert list(raw.classes) == ["boat", "vehicle"] and raw.scenes[0].categories() == ["boat", "vehicle"]


@pytest.mark.parametrize(("text", "message"), [("", "names no class"), ("a = b\na = c\n", "mapped to both"), ("= b\n", "expected NAME")])
def test_broken_class_files(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(CCDiffError, match=message):
        read_class_file(path)
    with pytest.raises(CCDiffError, match="cannot read"):
        read_class_file(tmp_path / "none.txt")
