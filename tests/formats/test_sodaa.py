"""SODA-A: corners, ignored regions, folders, categories, broken files."""

import json

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import detect_format, read_raw
from ccdiff_cli.formats.classes import CLASS_LISTS, read_class_file
from tests.rawsets import picture, sodaa_file

OBB = [40.5, 10.0, 60.0, 12.0, 58.0, 30.0, 38.0, 28.0]


def one(root, annotations, **more):
    picture(root / "Images" / "train" / "00001.jpg")
    sodaa_file(root / "Annotations" / "train" / "00001.json", annotations, **more)
    return root


def test_objects_and_regions(tmp_path):
    annotations = [
        {"poly": OBB, "category_id": 2, "id": 0},
        {"poly": OBB, "category_id": 6, "ignore": 1},
        {"poly": [0, 0, 50, 0, 50, 50, 0, 50], "category_id": 9},
        {"poly": [OBB[k : k + 2] for k in range(0, 8, 2)], "category_id": 0},
        {"poly": [*OBB, 37, 20], "category_id": 4},
    ]
    root = one(tmp_path / "r", annotations)
    assert detect_format(root) == "sodaa"
    raw = read_raw(root)
    assert raw.classes == CLASS_LISTS["sodaa"] and len(raw.classes) == 9
    (scene,) = raw.scenes
    assert (scene.file_name, scene.split, scene.width) == ("00001.jpg", "train", 96)
    assert scene.categories() == ["small vehicle", "storage tank", "airplane", "ship"]
    first, flagged, pairs, many = scene.instances
    assert first.oriented and first.corners == tuple(OBB) == pairs.corners and not first.difficult and flagged.difficult
    assert many.mask == ((*OBB, 37, 20),)
    assert raw.skipped == {"regions of the category 'ignore', which is no class": 1}
    assert raw.notes["objects to be ignored, kept as difficult"] == 1


def test_regions_are_kept_for_those_who_name_them(tmp_path):
    raw = read_raw(one(tmp_path / "r", [{"poly": OBB, "category_id": 9}]), classes=read_class_file("ignore=crowd"))
    assert raw.scenes[0].categories() == ["crowd"] and not raw.skipped


@pytest.mark.parametrize("labels", ["{}/Annotations", "Annotations/{}"])
def test_folders(tmp_path, labels):
    for k, split in enumerate(("train", "val", "test")):
        picture(tmp_path / "Images" / f"{k:05d}.jpg", seed=k)
        sodaa_file(tmp_path / labels.format(split) / f"{k:05d}.json", [{"poly": OBB, "category_id": k}])
        sodaa_file(tmp_path / split / "AnnsWithIgnore" / f"{k:05d}.json", [{"poly": OBB, "category_id": 9}])
    raw = read_raw(tmp_path)
    assert [(s.split, s.categories()) for s in raw.scenes] == [
        ("train", ["airplane"]),
        ("val", ["helicopter"]),
        ("test", ["small vehicle"]),
    ]


def test_categories_of_ones_own(tmp_path):
    root = one(tmp_path / "r", [{"poly": OBB, "category_id": 1}], categories=("boat", "car", "ignore"))
    raw = read_raw(root)
    assert list(raw.classes) == ["boat", "car"] and raw.scenes[0].categories() == ["car"]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"poly": OBB, "category_id": 12}, r"annotation 1: unknown category 12"),
        ({"poly": OBB[:7], "category_id": 1}, "poly: expected x1 y1"),
        ({"poly": OBB[:4], "category_id": 1}, "an outline of 2 points"),
        ({"poly": [*OBB[:7], "a"], "category_id": 1}, "poly: expected a number"),
        ({"category_id": 1}, "poly: expected x1 y1"),
        ([1], "expected an object with poly and category_id"),
    ],
)
def test_broken_objects(tmp_path, annotation, message):
    good = {"poly": OBB, "category_id": 1}
    root = one(tmp_path / "r", [annotation, good, good])
    with pytest.raises(CCDiffError, match=message):
        read_raw(root, "sodaa")
    raw = read_raw(root, "sodaa", strict=False)
    assert len(raw.scenes[0].instances) == 2 and sum(raw.skipped.values()) == 1


def test_broken_files_and_missing_pictures(tmp_path):
    root = one(tmp_path / "r", [{"poly": OBB, "category_id": 1}])
    (root / "Annotations" / "train" / "2.json").write_text(json.dumps({"images": [{}, {}], "annotations": []}))
    sodaa_file(root / "Annotations" / "train" / "3.json", [])
    raw = read_raw(root, strict=False)
    assert len(raw.scenes) == 1 and raw.skipped["pictures that are missing"] == 1 and sum(raw.skipped.values()) == 2
    with pytest.raises(CCDiffError, match=r"2\.json: images: expected the entry of one picture"):
        read_raw(root)


def test_category_numbers_of_any_json_type(tmp_path):
    root = one(tmp_path / "r", [{"poly": OBB, "category_id": k} for k in (1, 1.0, "1")])
    assert read_raw(root).scenes[0].categories() == ["helicopter"] * 3
