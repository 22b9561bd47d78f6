"""labelme and X-AnyLabeling: kinds of shapes, flags, foreign paths, classes, splits, broken files."""

import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import polygon_area
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import TWINS, detect_format, read_raw
from tests.rawsets import labelme_file, picture

OBB = [[40.5, 10.0], [60.0, 12.0], [58.0, 30.0], [38.0, 28.0]]
FLAT = tuple(v for point in OBB for v in point)


def shape(kind, points, label="ship", **more):
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, "group_id": None, **more}


def one(root, shapes, **more):
    picture(root / "a.png")
    labelme_file(root / "a.json", shapes, **more)
    return root


@pytest.mark.parametrize("points", [[[5, 6], [30, 20]], [[30, 20], [5, 6]], [[30, 6], [5, 20]], [[5, 6], [30, 6], [30, 20], [5, 20]]])
def test_rectangles_by_any_corners(tmp_path, points):
    root = one(tmp_path / "r", [shape("rectangle", points)])
    assert detect_format(root) == "labelme"
    (instance,) = read_raw(root).scenes[0].instances
    assert instance.hbb == (5, 6, 30, 20) and not instance.oriented and not instance.mask


def test_turned_shapes_and_outlines(tmp_path):
    outline = [[1.0, 1.0], [9.0, 2.0], [8.0, 9.0], [5.0, 12.0], [2.0, 9.0]]
    shapes = [
        shape("rotation", OBB, direction=0.1022),
        shape("polygon", OBB),
        shape("polygon", outline),
        shape(None, [*outline, outline[0]]),
        shape("rectangle", OBB),
    ]
    del shapes[3]["shape_type"]
    raw = read_raw(one(tmp_path / "r", shapes))
    turned, four, five, closed, slanted = raw.scenes[0].instances
    assert turned.corners == four.corners == slanted.corners == FLAT and turned.oriented and slanted.oriented
    assert turned.extra == {"direction": 0.1022}
    assert five == closed and five.mask == (tuple(v for point in outline for v in point),) and five.hbb == (1, 1, 9, 12)
    assert raw.notes[TWINS] == 3 and sum(raw.notes.values()) == 5 and not raw.skipped


def test_masks_at_their_box(tmp_path):
    bits = np.zeros((5, 8), np.uint8)
    bits[1:4, 2:7] = 255
    data = io.BytesIO()
    Image.fromarray(bits).save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    (instance,) = read_raw(one(tmp_path / "r", [shape("mask", [[10, 20], [17, 24]], mask=text)])).scenes[0].instances
    assert instance.hbb == pytest.approx((12, 21, 17, 24)) and len(instance.mask) == 1 and instance.oriented
    for change in ({"mask": "x"}, {"mask": None}, {"mask": text, "points": [[10, 20], [80, 60]]}):
        with pytest.raises(CCDiffError, match="mask"):
            read_raw(one(tmp_path / "r", [{**shape("mask", [[10, 20], [17, 24]]), **change}]))


def test_a_circle_is_its_square_and_its_outline(tmp_path):
    (instance,) = read_raw(one(tmp_path / "r", [shape("circle", [[30, 40], [33, 44]])])).scenes[0].instances
    assert instance.hbb == pytest.approx((25, 35, 35, 45)) and not instance.oriented and len(instance.mask[0]) == 64
    assert polygon_area(instance.mask[0]) == pytest.approx(math.pi * 25, rel=0.01)
    with pytest.raises(CCDiffError, match="a circle of 3 points"):
        read_raw(one(tmp_path / "r2", [shape("circle", [[30, 40], [33, 44], [1, 1]])]))


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    kinds = {"ellipse": 2, "line": 1, "linestrip": 1, "point": 3}
    shapes = [shape(kind, [[1, 2], [3, 4]], label="storage tank") for kind, n in kinds.items() for _ in range(n)]
    raw = read_raw(one(tmp_path / "r", [*shapes, shape("rectangle", [[1, 2], [3, 4]]), shape("rectangle", [[1, 2], [3, 4]], "__ignore__")]))
    assert raw.skipped == {
        **{f"shapes of the kind {kind!r}, which is no box or outline": n for kind, n in kinds.items()},
        "shapes labelled __ignore__, which is no class": 1,
    }
    assert list(raw.classes) == ["ship"] and len(raw.scenes[0].instances) == 1


@pytest.mark.parametrize(
    ("more", "difficult"),
    [({"difficult": True}, True), ({"difficult": "false"}, False), ({"difficult": "true"}, True), ({"flags": {"Difficult": True}}, True),
     ({"flags": {"difficult": False}}, False), ({"attributes": {"difficult": "yes"}}, True), ({"difficult": 0}, False)],
)  # fmt: skip
def test_difficult(tmp_path, more, difficult):
    (instance,) = read_raw(one(tmp_path / "r", [{**shape("rectangle", [[1, 2], [3, 4]]), **more}])).scenes[0].instances
    assert instance.difficult is difficult


def test_what_else_is_said_is_kept(tmp_path):
    more = {
        "description": "the left one",
        "group_id": 3,
        "flags": {"truncated": True, "x": False},
        "attributes": {"kind": "tug"},
        "score": 0.5,
    }
    root = one(tmp_path / "r", [{**shape("rectangle", [[1, 2], [3, 4]]), **more}], flags={"night": True, "fog": False})
    (scene,) = read_raw(root).scenes
    assert scene.instances[0].extra == {**more, "flags": ["truncated"]} and scene.provenance == {"flags": ["night"]}


@pytest.mark.parametrize(
    "name", ["a.png", "..\\pictures\\a.png", "C:\\Users\\me\\a.png", "/home/me/set/a.png", "./a.PNG", "a.jpg", "../../a.png", ""]
)
def test_foreign_paths(tmp_path, name):
    root = one(tmp_path / "r", [shape("rectangle", [[1, 2], [3, 4]])], imagePath=name)
    assert [s.path for s in read_raw(root).scenes] == [str(root / "a.png")]


def test_nothing_outside_the_folder_is_read(tmp_path):
    root = one(tmp_path / "r", [shape("rectangle", [[1, 2], [3, 4]])], imagePath="../secret.png")
    (root / "a.png").rename(tmp_path / "secret.png")
    with pytest.raises(CCDiffError, match="the picture a is missing"):
        read_raw(root)


def test_a_picture_that_only_the_file_holds(tmp_path):
    root = one(tmp_path / "r", [shape("rectangle", [[1, 2], [3, 4]])], imageData="A" * 300_000)
    assert detect_format(root) == "labelme" and len(read_raw(root).scenes) == 1  # megabytes of it do not hide what the file is
    (root / "a.png").unlink()
    with pytest.raises(CCDiffError, match="imageData"):
        read_raw(root)


def test_splits_classes_and_files_apart_from_their_pictures(tmp_path):
    for k, split in enumerate(("train", "valid")):
        picture(tmp_path / split / "images" / "a.png", seed=k)
        labelme_file(tmp_path / split / "labels" / "a.json", [shape("rectangle", [[k, 2], [30, 4]])], image="../images/a.png")
    picture(tmp_path / "train" / "images" / "b.png")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncar\nship\n")
    raw = read_raw(tmp_path)
    assert list(raw.classes) == ["car", "ship"] and raw.skipped == {"pictures without annotations": 1}
    assert [(s.file_name, s.split, s.instances[0].hbb[0]) for s in raw.scenes] == [
        ("train/images/a.png", "train", 0), ("valid/images/a.png", "val", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape("rectangle", [[1, 2], [3, 4], [5, 6]]), "a rectangle of 3 points"),
        (shape("rotation", [[1, 2], [3, 4]]), "a rotation of 2 points"),
        (shape("polygon", [[1, 2], [3, 4]]), "an outline of 2 points"),
        (shape("polygon", [[1, 2], [3, float("nan")], [3, 3]]), "points: expected a finite number"),
        (shape("polygon", "1 2 3"), r"points: expected \[\[x, y\]"),
        (shape("rectangle", [[1, 2], [3, 4]], difficult="perhaps"), "difficult: expected"),
        (shape("rectangle", [[1, 2], [3, 4]], label=None), "expected a class name"),
        ("x", "expected an object with label and points"),
    ],
)
def test_broken_shapes(tmp_path, broken, message):
    root = one(tmp_path / "r", [shape("rectangle", [[1, 2], [3, 4]]), broken, shape("rectangle", [[1, 2], [3, 4]])])
    with pytest.raises(CCDiffError, match=message):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert len(raw.scenes[0].instances) == 2 and sum(raw.skipped.values()) >= 1


def test_two_files_of_one_picture(tmp_path):
    root = one(tmp_path / "r", [shape("rectangle", [[1, 2], [3, 4]])])
    labelme_file(root / "copy.json", [shape("rectangle", [[1, 2], [3, 4]])], image="a.png")
    with pytest.raises(CCDiffError, match=r"copy\.json: the picture a\.png has labels in .*a\.json too"):
        read_raw(root)
    assert len(read_raw(root, strict=False).scenes) == 1


def test_other_json_files_are_counted(tmp_path):
    root = one(tmp_path / "r", [shape("rectangle", [[1, 2], [3, 4]])])
    (root / "z.json").write_text(json.dumps({"name": "settings"}))
    assert sum(read_raw(root, strict=False).skipped.values()) == 1


def test_one_file(tmp_path):
    root = one(tmp_path / "r", [shape("rectangle", [[1, 2], [3, 4]])])
    picture(root / "b.png")
    raw = read_raw(root / "a.json")
    assert raw.format == "labelme" and [s.file_name for s in raw.scenes] == ["a.png"] and not raw.skipped


def test_shapes_of_one_group_are_said_to_be_kept_apart(tmp_path):
    shapes = [shape("polygon", OBB, group_id=1), shape("polygon", OBB, group_id=1), shape("polygon", OBB, label="boat", group_id=1)]
    raw = read_raw(one(tmp_path, shapes))
    assert len(raw.scenes[0].instances) == 3 and raw.notes["groups of shapes of one label, each kept as an object of its own"] == 1
