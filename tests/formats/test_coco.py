"""Any COCO file: boxes, polygons, four corners, both kinds of RLE, crowds, splits by file; broken and hostile files."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import detect_format, read_raw
from ccdiff_cli.formats.coco import _runs
from ccdiff_cli.geometry import corners_to_le90, hbb_of, le90_to_corners, polygon
from tests.rawsets import coco, picture, vhr10


def annotation(**changes):
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 10], "iscrowd": 0, "area": 200, **changes}


def only(root):
    (scene,) = read_raw(root).scenes
    (instance,) = scene.instances
    return instance


def test_boxes_polygons_and_corners(tmp_path):
    box = only(coco(tmp_path / "box", [annotation()]))
    assert box.category == "ship" and box.hbb == (10, 10, 30, 20) and not box.oriented
    corners = le90_to_corners((40, 30, 30, 8, 0.6))
    four = only(coco(tmp_path / "four", [annotation(segmentation=[list(corners)])]))
    assert four.oriented and four.corners == pytest.approx(corners) and four.mask == ()
    outline = [*corners[:2], (corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2, *corners[2:]]  # five points
    many = only(coco(tmp_path / "many", [annotation(segmentation=[outline])]))
    assert corners_to_le90(many.corners) == pytest.approx((40, 30, 30, 8, 0.6), abs=1e-2) and many.mask == (tuple(outline),)
    no_box = annotation(segmentation=[outline])
    del no_box["bbox"]
    assert only(coco(tmp_path / "nobox", [no_box])).hbb == pytest.approx(
        (min(outline[::2]), min(outline[1::2]), max(outline[::2]), max(outline[1::2]))
    )


def test_what_our_own_files_say_beside_the_box(tmp_path):
    corners, ring = list(le90_to_corners((40, 30, 30, 8, 0.6))), [30, 20, 50, 22, 45, 40]
    said = {"difficult": 1, "extra": {"id": 7}}
    beside = only(coco(tmp_path / "a", [annotation(segmentation=[ring], obb=corners, oriented=1, **said)]))
    assert beside.corners == pytest.approx(corners) and beside.mask == (tuple(ring),) and beside.difficult and beside.extra == {"id": 7}
    same = only(coco(tmp_path / "b", [annotation(segmentation=[corners], obb=corners)]))
    assert same.corners == pytest.approx(corners) and same.mask == ()
    flat = only(coco(tmp_path / "c", [annotation(segmentation=[ring], obb=corners, oriented=0)]))
    assert not flat.oriented and flat.corners == (10, 10, 30, 10, 30, 20, 10, 20) and flat.mask == (tuple(ring),)
    no_box = annotation(obb=corners)
    del no_box["bbox"]
    assert only(coco(tmp_path / "d", [no_box])).hbb == pytest.approx(hbb_of(corners))
    image = {"id": 1, "file_name": "a.png", "width": 96, "height": 64, "split": "val", "source": "s", "caption": "A port.",
             "provenance": {"gsd": 0.5}}  # fmt: skip
    (scene,) = read_raw(coco(tmp_path / "e", [], images=[image])).scenes
    assert (scene.split, scene.source, scene.caption, scene.provenance) == ("val", "s", "A port.", {"gsd": 0.5})


@pytest.mark.parametrize("compressed", [True, False])
def test_run_length_masks(tmp_path, compressed):
    bitmap = np.zeros((64, 96), np.uint8)
    bitmap[20:30, 40:70] = 1
    if compressed:
        encoded = rle.encode(np.asfortranarray(bitmap))
        segmentation = {"size": [64, 96], "counts": encoded["counts"].decode()}
    else:
        flat, counts, value = bitmap.T.ravel(), [], 0
        while len(flat):
            run = int(np.argmax(flat != value)) if (flat != value).any() else len(flat)
            counts.append(run)
            flat, value = flat[run:], 1 - value
        segmentation = {"size": [64, 96], "counts": counts}
    found = only(coco(tmp_path / "r", [annotation(bbox=[40, 20, 30, 10], segmentation=segmentation)]))
    _, _, w, h, angle = corners_to_le90(found.corners)
    assert found.oriented and (w, h) == pytest.approx((30, 10), abs=1e-4) and angle == pytest.approx(0, abs=1e-3)
    assert found.mask == ((40, 20, 40, 30, 70, 30, 70, 20),)


@pytest.mark.parametrize(("width", "height"), [(2, 2), (5, 5), (8, 8), (20, 4), (1, 12), (1, 1)])
def test_the_obb_of_a_mask_is_as_large_as_the_mask(tmp_path, width, height):
    """The case rle_mask_small_objects: outlines ran through the pixels' centres, so that 5 x 5 became 4 x 4."""
    bitmap = np.zeros((64, 96), np.uint8)
    bitmap[10 : 10 + height, 14 : 14 + width] = 1
    segmentation = {"size": [64, 96], "counts": rle.encode(np.asfortranarray(bitmap))["counts"].decode()}
    found = only(coco(tmp_path / "r", [annotation(bbox=[14, 10, width, height], segmentation=segmentation)]))
    assert found.oriented and hbb_of(found.corners) == pytest.approx((14, 10, 14 + width, 10 + height), abs=1e-4)
    assert polygon(found.mask[0]).area == width * height


def test_a_slanted_line_of_single_pixels_keeps_its_direction(tmp_path):
    bitmap = np.eye(20, dtype=np.uint8)
    segmentation = {"size": [20, 20], "counts": rle.encode(np.asfortranarray(bitmap))["counts"].decode()}
    found = only(coco(tmp_path / "r", [annotation(bbox=[0, 0, 20, 20], segmentation=segmentation)]))
    _, _, w, h, angle = corners_to_le90(found.corners)
    assert (w, h, angle) == pytest.approx((20 * 2**0.5, 2**0.5, np.pi / 4), abs=1e-3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_runs_agree_with_pycocotools(height, width, seed):
    bitmap = (np.random.default_rng(seed).random((height, width)) < 0.5).astype(np.uint8)
    runs = _runs(rle.encode(np.asfortranarray(bitmap))["counts"].decode(), height * width, where="x")
    assert (bitmap == np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T).all()


def test_crowds_are_kept_as_difficult(tmp_path):
    raw = read_raw(coco(tmp_path / "r", [annotation(iscrowd=1)]))
    assert raw.scenes[0].instances[0].difficult and raw.notes == {"groups (iscrowd) kept as difficult": 1}


def test_one_file_a_split(tmp_path):
    root = coco(tmp_path / "r", [annotation()], name="instances_train.json")
    coco(root, [annotation()], images=[{"id": 1, "file_name": "b.png", "width": 96, "height": 64}], name="instances_val2017.json")
    raw = read_raw(root)
    assert {s.file_name: s.split for s in raw.scenes} == {"a.png": "train", "b.png": "val"} and list(raw.classes) == ["ship", "vehicle"]
    coco(root, [annotation()], name="instances_test.json")
    with pytest.raises(CCDiffError, match=r"a\.png stands in"):
        read_raw(root)


def test_a_word_that_all_files_share_says_nothing_of_their_splits(tmp_path):
    def of(*names):
        root = tmp_path / "-".join(names)
        for k, name in enumerate(names):
            coco(
                root,
                [annotation(bbox=[10, 10, 20, 20], image_id=k + 1)],
                images=[{"id": k + 1, "file_name": f"{k}.png"}],
                name=f"{name}.json",
            )
        return root

    parts = of("flight_test_2024_train", "flight_test_2024_val", "flight_test_2024_test")
    assert {s.file_name: s.split for s in read_raw(parts).scenes} == {"0.png": "train", "1.png": "val", "2.png": "test"}
    with pytest.raises(CCDiffError, match=r"test_train\.json: the name 'test_train' tells two splits, test and train\n.*rename it"):
        read_raw(of("test_train", "b_val"))
    assert read_raw(of("test_train")).scenes[0].split == ""  # one file is all of the set


def test_formats_are_recognised(tmp_path):
    assert detect_format(coco(tmp_path / "c", [annotation()])) == "coco"
    masks = {"001": [("ship", [1, 1, 5, 1, 5, 5])]}
    assert detect_format(vhr10(tmp_path / "v", {"001": []}, masks=masks)) == "vhr10"  # although it holds a COCO file
    (tmp_path / "empty").mkdir()
    with pytest.raises(CCDiffError, match="not recognised"):
        detect_format(tmp_path / "empty")
    with pytest.raises(CCDiffError, match="no such folder"):
        detect_format(tmp_path / "nowhere")
    with pytest.raises(CCDiffError, match="unknown format 'pascal'"):
        read_raw(tmp_path / "c", "pascal")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (annotation(category_id=9), "annotation 1: unknown category 9"),
        (annotation(image_id=5), "no picture has the id 5"),
        (annotation(bbox=[1, 2, math.nan, 4]), "bbox: expected a finite number"),
        (annotation(bbox=[1, 2, 1e300, 4]), "bbox: expected a finite number"),
        (annotation(bbox=[1, 2, 3]), "bbox: expected x, y, width, height"),
        (annotation(bbox=[1, 2, 3, 4, 30]), r"(?s)expected x, y, width, height, found \[1, 2, 3, 4, 30\].*segmentation of 4 corners"),
        (annotation(obb=[1, 2, 3]), "obb: expected x1 y1 ... x4 y4"),
        (annotation(obb=[1, 2, 3, 4, 5, 6, 7, math.inf]), "obb: expected a finite number"),
        (annotation(mask=[[1, 2, 3, 4, 5, 6, 7]]), "mask: an odd number of coordinates"),
        (annotation(mask=7), "mask: expected polygons"),
        (annotation(bbox=["a", 2, 3, 4]), "expected a number, found 'a'"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "odd number of coordinates"),
        (annotation(segmentation="x"), "expected polygons or an RLE"),
        (annotation(segmentation={"size": [64, 96], "counts": "zzzz~"}), "RLE mask"),
        (annotation(segmentation={"size": [64, 96], "counts": [5, 5]}), "runs do not add up"),
        (annotation(segmentation={"size": [9**9, 9**9], "counts": [5]}), "RLE mask of"),
        ({"id": 1}, "not a COCO annotation: no 'image_id'"),
    ],
)
def test_broken_annotations(tmp_path, broken, message):
    with pytest.raises(CCDiffError, match=message):
        read_raw(coco(tmp_path / "r", [broken]))


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "x/../../a.png", "a\\b.png"])
def test_names_that_leave_the_folder(tmp_path, name):
    root = coco(tmp_path / "r", [annotation()])
    text = json.loads((root / "instances.json").read_text())
    text["images"][0]["file_name"] = name
    (root / "instances.json").write_text(json.dumps(text))
    with pytest.raises(CCDiffError, match="leaves its folder" if ".." in name else "is missing"):
        read_raw(root)


def test_missing_picture_repeated_ids_and_truncated_json(tmp_path):
    root = coco(tmp_path / "r", [annotation()])
    text = (root / "instances.json").read_text()
    (root / "images" / "a.png").unlink()
    with pytest.raises(CCDiffError, match=r"the picture a\.png is missing"):
        read_raw(root)
    twice = json.loads(text)
    twice["images"] *= 2
    (root / "instances.json").write_text(json.dumps(twice))
    with pytest.raises(CCDiffError, match="two pictures have the id 1"):
        read_raw(root)
    (root / "instances.json").write_text(text[: len(text) // 2])
    with pytest.raises(CCDiffError, match="not valid JSON"):
        read_raw(root, "coco")


def test_litter_named_as_a_picture_is_passed_over_with_its_objects(tmp_path):
    images = [{"id": k, "file_name": name, "width": 96, "height": 64} for k, name in enumerate(("a.png", "._a.png"), start=1)]
    raw = read_raw(coco(tmp_path / "r", [annotation(), annotation(id=2, image_id=2)], images=images))
    assert [(s.file_name, len(s.instances)) for s in raw.scenes] == [("a.png", 1)]
    assert raw.skipped["files that macOS or Windows left, named as pictures"] == 1
    assert raw.skipped["objects of files that macOS or Windows left"] == 1


def test_an_rle_of_another_size_than_its_picture_is_broken_unless_the_box_agrees(tmp_path):
    """96 x 64 pixels: the same runs for 64 x 96 lie elsewhere, in columns of another height."""
    bitmap = np.zeros((64, 96), np.uint8)
    bitmap[10:15, 20:25] = 1
    right = {"size": [64, 96], "counts": rle.encode(np.asfortranarray(bitmap))["counts"].decode()}
    assert only(coco(tmp_path / "a", [annotation(bbox=[20, 10, 5, 5], segmentation=right)])).hbb == (20, 10, 25, 15)
    wrong = {**right, "size": [96, 64]}
    with pytest.raises(CCDiffError, match="RLE mask of 64 x 96 pixels in a picture of 96 x 64"):
        read_raw(coco(tmp_path / "b", [annotation(bbox=[20, 10, 5, 5], segmentation=wrong)]))
    taller = {"size": [70, 96], "counts": rle.encode(np.asfortranarray(np.pad(bitmap, ((0, 6), (0, 0)))))["counts"].decode()}
    found = only(coco(tmp_path / "c", [annotation(bbox=[20, 10, 5, 5], segmentation=taller)]))
    assert found.hbb == (20, 10, 25, 15) and sorted(found.corners) == [10, 10, 15, 15, 20, 20, 25, 25]


@pytest.mark.parametrize(
    "said", [{"rotation": 90.0, "attributes": {"occluded": False}}, {"attributes": {"Rotation": "90"}}, {"attributes": {"rotation": 90}}]
)
def test_a_rotation_is_read_wherever_it_stands(tmp_path, said):
    raw = read_raw(coco(tmp_path, [annotation(**said)]))
    assert raw.scenes[0].instances[0].hbb == pytest.approx((15, 5, 25, 25)) and raw.changes["boxes turned by their attribute rotation"] == 1


def test_objects_to_be_ignored_are_kept_as_difficult(tmp_path):
    raw = read_raw(coco(tmp_path, [annotation(ignore=1), annotation(id=2, ignore=0)]))
    assert [i.difficult for i in raw.scenes[0].instances] == [True, False]
    assert raw.notes["objects with the flag ignore kept as difficult"] == 1


def test_pictures_beside_the_others_that_the_file_does_not_name_are_counted(tmp_path):
    root = coco(tmp_path, [annotation()])
    picture(root / "images" / "b.png")
    picture(root / "references" / "c.png")  # of another folder: no part of the set
    raw = read_raw(root)
    assert len(raw.scenes) == 1 and raw.skipped == {"pictures without annotations": 1}


@pytest.mark.parametrize("width", ["96", 96.0, "96 px", None, "wide", 1e400])
def test_a_declared_size_that_is_no_number_costs_no_picture(tmp_path, width):
    image = {"id": 1, "file_name": "a.png", "width": width, "height": 64}
    raw = read_raw(coco(tmp_path, [annotation()], images=[image]))
    assert raw.scenes[0].width in (0, 96) and len(raw.scenes[0].instances) == 1


@pytest.mark.parametrize(
    "segmentation", [[10, 10, 30, 10, 30, 20, 10, 20], [[[10, 10], [30, 10], [30, 20], [10, 20]]], [[10.0, 10, 30, 10, 30, 20, 10, 20]]]
)
def test_one_ring_however_it_is_nested(tmp_path, segmentation):
    assert only(coco(tmp_path, [annotation(segmentation=segmentation)])).corners == (10, 10, 30, 10, 30, 20, 10, 20)


def test_a_segmentation_that_lies_elsewhere_than_its_box_is_said(tmp_path):
    what = "annotations whose segmentation covers less than half of their bbox (is one of them not in pixels?)"
    shares, part = [[0.1, 0.1, 0.3, 0.1, 0.3, 0.2, 0.1, 0.2]], [[10, 10, 18, 10, 18, 20, 10, 20]]
    assert read_raw(coco(tmp_path / "a", [annotation(segmentation=shares)])).notes[what] == 1
    assert read_raw(coco(tmp_path / "b", [annotation(segmentation=part)])).notes[what] == 1
    whole = [[0, 0, 60, 0, 60, 40, 0, 40]]  # the box is that of the visible part
    assert not read_raw(coco(tmp_path / "c", [annotation(segmentation=whole)])).notes
