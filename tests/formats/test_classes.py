"""Frozen class lists and the user's class file."""

import json

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import read_raw
from ccdiff_cli.formats.classes import CLASS_LISTS, ClassMap, read_class_file
from ccdiff_cli.scene import ClassList
from tests.rawsets import dior, hbb_xml


def test_lists_have_the_published_lengths():
    assert {k: len(v) for k, v in CLASS_LISTS.items()} == {
        "dior": 20,
        "vhr10": 10,
        "dota10": 15,
        "dota15": 16,
        "dota20": 18,
        "hrsc": 1,
        "hrsc2": 5,
        "hrsc3": 31,
        "fair1m": 37,
        "fair1m5": 5,
        "sodaa": 9,
        "visdrone": 10,
    }


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "- boat\n- ship = boat\n- vehicle\n- car = vehicle\n"),
        ("c.json", '["boat", "ship = boat", "vehicle", "car=vehicle"]'),
        ("c.txt", "\ufeffboat\r\nship=boat\r\nvehicle\r\ncar = vehicle"),
    ],
)
def test_the_same_list_in_every_kind_of_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_class_file(tmp_path / name)
    assert list(found.classes) == ["boat", "vehicle"] and not found.adds
    assert [found.name(s, where="x") for s in ("Ship", "boat", "car")] == ["boat", "boat", "vehicle"]


@pytest.mark.parametrize("name", ["c.yml", "c.json", None])
def test_pairs_are_laid_over_the_classes_of_the_source(tmp_path, name):
    objects = [hbb_xml(n, (5, 5, 20, 20)) for n in ("ship", "sedan", "windmill", "chimney", "dam")]
    root = dior(tmp_path / "r", {"00001": (objects, [])})
    with pytest.raises(CCDiffError, match=r"unknown class 'sedan'[^$]*known classes: airplane, airport"):
        read_raw(root)
    pairs = {"ship": "boat", "sedan": "Vehicle", "chimney": "tower", "windmill": "tower"}
    source = ",".join(f"{k}={v}" for k, v in pairs.items())
    if name:
        source = tmp_path / name
        source.write_text(json.dumps(pairs) if name == "c.json" else "".join(f"{k}: {v}\n" for k, v in pairs.items()))
    raw = read_raw(root, classes=read_class_file(source))
    assert raw.scenes[0].categories() == ["boat", "vehicle", "tower", "tower", "dam"]
    assert len(raw.classes) == 19 and list(raw.classes)[5:7] == ["tower", "dam"] and list(raw.classes)[13] == "boat"


def test_names_that_cannot_be_told_apart():
    with pytest.raises(CCDiffError, match="'small car' and 'Small-Car' cannot be told apart"):
        ClassMap.of(ClassList(("small car", "Small-Car")))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "ship: boat\nship: vessel\n", r"a\.yaml:2: 'ship' is mapped to both 'boat' and 'vessel'"),
        ("a.json", '{"ship": "boat",\n "ship": "vessel"}', r"a\.json:2: 'ship' is mapped to both"),
        ("a.json", '{"ship": ["boat"]}', "expected a class name, found a list"),
        ("a.yaml", "ship:\n", r"a\.yaml:1: expected NAME or FOUND = NAME"),
        ("a.yaml", "a: [b\n", "not valid YAML or JSON"),
        ("a.yaml", "ship", "expected a list of classes, or a mapping"),
        ("a.yaml", "&a [*a]", "found a list or a mapping"),
        ("a.yaml", "[" * 3000, "not valid YAML or JSON"),
        ("a.json", "", "expected a list of classes"),
    ],
)
def test_broken_yaml_and_json(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CCDiffError, match=message):
        read_class_file(tmp_path / name)


@pytest.mark.parametrize(("text", "message"), [("", "names no class"), ("a = b\na = c\n", "mapped to both"), ("= b\n", "expected NAME")])
def test_broken_class_files(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(CCDiffError, match=message):
        read_class_file(path)
    with pytest.raises(CCDiffError, match=r"does not exist[^$]*dota15"):
        read_class_file(tmp_path / "none.txt")
