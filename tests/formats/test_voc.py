"""VOC: class list, splits, oriented boxes of both kinds, pictures found by stem or by name; broken files."""

import math

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import detect_format, read_raw
from ccdiff_cli.formats.classes import read_class_file
from ccdiff_cli.geometry import corners_to_le90, le90_to_corners
from tests.rawsets import coco, hbb_xml, obb_xml, picture, voc_xml

BOX = hbb_xml("boat", (5, 5, 20, 20))


def voc(root, files, *, pictures="JPEGImages", labels="Annotations", filename=None):
    for k, (stem, objects) in enumerate(sorted(files.items())):
        picture(root / pictures / f"{filename or stem}.jpg", seed=k)
        (root / labels).mkdir(parents=True, exist_ok=True)
        text = voc_xml(objects, size=(96, 64))
        if filename:
            text = text.replace("<size>", f"<filename>{filename}.jpg</filename><size>", 1)
        (root / labels / f"{stem}.xml").write_text(text)
    return root


def test_folder_with_lists(tmp_path):
    person = "<name>person</name><part><name>head</name><bndbox/></part>" + hbb_xml("x", (1, 2, 3, 4), 1).partition("</name>")[2]
    root = voc(tmp_path / "r", {"a": [BOX], "b": [person], "c": []})
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "boat_train.txt").write_text("a 1\n")
    raw = read_raw(root)
    assert raw.format == "voc" and list(raw.classes) == ["boat", "person"] and raw.skipped == {"pictures in no split list": 1}
    assert [(s.file_name, s.split, s.width, s.categories()) for s in raw.scenes] == [
        ("a.jpg", "train", 96, ["boat"]),
        ("b.jpg", "val", 96, ["person"]),
    ]
    assert raw.scenes[1].instances[0].difficult and raw.scenes[1].instances[0].hbb == (1, 2, 3, 4)


@pytest.mark.parametrize(("pictures", "labels", "split"), [("valid", "valid", "val"), (".", ".", ""), ("images", "Annotations", "")])
def test_other_layouts(tmp_path, pictures, labels, split):
    root = voc(tmp_path / "r", {"a": [BOX]}, pictures=pictures, labels=labels)
    assert detect_format(root) == "voc" and [s.split for s in read_raw(root).scenes] == [split]


def test_oriented_boxes(tmp_path):
    corners = tuple(round(v) for v in le90_to_corners((40, 30, 30, 8, 0.6)))
    both = hbb_xml("boat", (1, 2, 3, 4)) + obb_xml("boat", corners).partition("</name>")[2]
    turned = "<name>boat</name><robndbox><cx>40</cx><cy>30</cy><w>30</w><h>8</h><angle>2.5</angle></robndbox>"
    (scene,) = read_raw(voc(tmp_path / "r", {"a": [obb_xml("boat", corners), both, turned]})).scenes
    one, two, three = scene.instances
    assert one.corners == corners and two.corners == corners and two.hbb == (1, 2, 3, 4) and one.oriented and two.oriented
    assert corners_to_le90(three.corners) == pytest.approx((40, 30, 30, 8, 2.5 - math.pi))


def test_class_list_of_the_folder_and_of_the_user(tmp_path):
    root = voc(tmp_path / "r", {"a": [BOX]})
    (root / "classes.txt").write_text("airplane\nboat\n")
    assert list(read_raw(root).classes) == ["airplane", "boat"]
    raw = read_raw(root, classes=read_class_file("boat=ship"))
    assert list(raw.classes) == ["airplane", "ship"] and raw.scenes[0].categories() == ["ship"]
    (root / "classes.txt").write_text("airplane\n")
    with pytest.raises(CCDiffError, match=r"a\.xml: object 1: unknown class 'boat'[^$]*known classes: airplane"):
        read_raw(root)


def test_picture_named_in_the_file(tmp_path):
    raw = read_raw(voc(tmp_path / "r", {"a": [BOX]}, filename="other"))
    assert [s.file_name for s in raw.scenes] == ["other.jpg"]


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "x\\y", "n" * 300, "nothing"])
def test_picture_names_that_lead_nowhere(tmp_path, name):
    root = voc(tmp_path / "r", {"a": [BOX]})
    (root / "JPEGImages" / "a.jpg").rename(tmp_path / "secret.jpg")
    text = (root / "Annotations" / "a.xml").read_text().replace("<size>", f"<filename>{name}.jpg</filename><size>", 1)
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(CCDiffError, match=r"leaves its folder|is missing"):
        read_raw(root)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (["<name> </name>" + BOX.partition("</name>")[2]], "object 1: expected a class name"),
        ([BOX, "<name>boat</name>"], r"object 2: the object has no <bndbox>"),
        (["<name>boat</name><robndbox><cx>1</cx></robndbox>"], "<cy>: expected a number"),
        (["<name>boat</name><robndbox><cx>1</cx><cy>1</cy><w>-4</w><h>2</h><angle>0</angle></robndbox>"], "not negative"),
        (["<name>boat</name><robndbox><cx>1</cx><cy>1</cy><w>4</w><h>2</h><angle>45</angle></robndbox>"], "expected radians, found 45"),
        (["<name>boat</name><robndbox></robndbox>"], "<x_left_top>: expected a number"),
        ([hbb_xml("boat", (1, 2, 3, 4)), hbb_xml("Boat", (1, 2, 3, 4))], "cannot be told apart"),
        ([], "no object has a class"),
    ],
)
def test_broken_objects(tmp_path, objects, message):
    with pytest.raises(CCDiffError, match=message):
        read_raw(voc(tmp_path / "r", {"a": objects}))


@pytest.mark.parametrize(("origin", "box"), [(None, (11, 9, 26, 20)), (0, (11, 9, 26, 20)), (1, (10, 8, 26, 20))])
def test_what_pixels_count_from_where_files_do_not_say_it(tmp_path, origin, box):
    raw = read_raw(voc(tmp_path / "r", {"a": [hbb_xml("boat", (11, 9, 26, 20)), hbb_xml("boat", (26, 20, 11, 9))]}), voc_origin=origin)
    assert [i.hbb for i in raw.scenes[0].instances] == [box, box]
    (note,) = (what for what in raw.notes if what.startswith("boxes taken"))
    assert raw.notes[note] == 2 and (note.startswith("boxes taken as edges from 0") if origin is None else f"from {origin} (" in note)


def test_points_and_corners_of_a_set_that_counts_from_1(tmp_path):
    ring = (5, 5, 30, 5, 31, 20, 18, 25, 4, 20)
    points = "".join(f"<{a}{k}>{v}</{a}{k}>" for k in range(1, 6) for a, v in zip("xy", ring[2 * k - 2 : 2 * k], strict=True))
    outlined = f"<name>boat</name><polygon>{points}</polygon>" + hbb_xml("boat", (4, 5, 31, 25)).partition("</name>")[2]
    corners = (10, 10, 40, 12, 39, 20, 9, 18)
    raw = read_raw(voc(tmp_path / "r", {"a": [outlined, obb_xml("boat", corners)]}), voc_origin=1)
    one, two = raw.scenes[0].instances
    assert one.mask == (tuple(v - 1 for v in ring),) and one.hbb == (3, 4, 31, 25) and two.corners == corners


def test_a_set_that_may_count_from_1_is_said(tmp_path):
    boxes = [hbb_xml("boat", box) for box in ((1, 1, 20, 20), (1, 30, 20, 64), (40, 1, 96, 9))]
    assert any("3 begin at 1 and none at 0: give --voc-origin 1" in what for what in read_raw(voc(tmp_path / "r", {"a": boxes})).notes)
    zero = [*boxes, hbb_xml("boat", (0, 4, 20, 20))]
    assert not any("none at 0" in what for what in read_raw(voc(tmp_path / "s", {"a": zero})).notes)


def test_the_origin_is_an_option_of_voc_alone(tmp_path):
    with pytest.raises(CCDiffError, match="origin 2 of a voc set"):
        read_raw(voc(tmp_path / "r", {"a": [BOX]}), voc_origin=2)
    with pytest.raises(CCDiffError, match="origin 1 of a coco set"):
        read_raw(coco(tmp_path / "c", []), voc_origin=1)


def renamed(root, names):
    """Annotation stem -> stem of its picture."""
    voc(root, {stem: [BOX] for stem in names})
    for stem in names:
        (root / "JPEGImages" / f"{stem}.jpg").unlink()
    for k, (stem, name) in enumerate(names.items()):
        picture(root / "JPEGImages" / f"{name}.jpg", seed=k)
        path = root / "Annotations" / f"{stem}.xml"
        path.write_text(path.read_text().replace("<size>", f"<filename>{name}.jpg</filename><size>", 1))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    return root


@pytest.mark.parametrize("line", ["b", "b.jpg", "JPEGImages/b.jpg", "a", "a.xml", "B"])
def test_a_list_may_name_the_picture_of_an_annotation_of_another_name(tmp_path, line):
    root = renamed(tmp_path / "r", {"a": "b", "c": "c"})
    (root / "ImageSets" / "Main" / "val.txt").write_text(f"{line}\n")
    (root / "ImageSets" / "Main" / "train.txt").write_text("c\n")
    raw = read_raw(root)
    assert [(s.file_name, s.split, len(s.instances)) for s in raw.scenes] == [("b.jpg", "val", 1), ("c.jpg", "train", 1)]
    assert not raw.skipped
    assert any("by their own names" in what for what in raw.notes) == (line not in ("a", "a.xml"))


def test_a_name_in_a_list_means_the_annotation_before_the_picture(tmp_path):
    """ "b" is an annotation (of c.jpg) and the picture of the annotation a: the devkit's ids are those of annotations."""
    root = renamed(tmp_path / "r", {"a": "b", "b": "c"})
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    raw = read_raw(root)
    assert [(s.file_name, s.split) for s in raw.scenes] == [("c.jpg", "val")]
    assert raw.skipped == {"pictures in no split list": 1}


def test_an_annotation_and_its_picture_in_two_lists_is_refused(tmp_path):
    root = renamed(tmp_path / "r", {"a": "b"})
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    with pytest.raises(CCDiffError, match="two lists"):
        read_raw(root)


def test_trainval_is_the_training_list_where_there_is_no_other(tmp_path):
    root = voc(tmp_path, {"a": [BOX], "b": [BOX], "c": [BOX]})
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "test.txt").write_text("c\n")
    assert [s.split for s in read_raw(root).scenes] == ["train", "train", "test"]
    (lists / "val.txt").write_text("b\n")
    assert [s.split for s in read_raw(root).scenes] == ["train", "val", "test"]


def test_folders_in_the_folder_of_annotations_are_read_with_theirs_of_pictures(tmp_path):
    root = voc(tmp_path, {"0": [BOX], "1": [BOX]})
    voc(root, {"0": [BOX]}, pictures="JPEGImages/north", labels="Annotations/north")
    raw = read_raw(root)
    assert [s.file_name for s in raw.scenes] == ["JPEGImages/0.jpg", "1.jpg", "JPEGImages/north/0.jpg"]
    assert not raw.skipped


def test_split_folders_of_annotations_over_one_folder_of_pictures(tmp_path):
    root = voc(tmp_path, {"a": [BOX]}, labels="Annotations/training")
    voc(root, {"b": [BOX]}, labels="Annotations/validation")
    picture(root / "JPEGImages" / "c.jpg", seed=9)
    raw = read_raw(root)
    assert [(s.file_name, s.split) for s in raw.scenes] == [("a.jpg", "train"), ("b.jpg", "val")]
    assert raw.skipped == {"pictures without annotations": 1}


def test_annotation_files_that_are_in_no_split_are_counted(tmp_path):
    root = voc(tmp_path, {"a": [BOX]}, pictures="train", labels="train")
    voc(root, {"b": [BOX]}, pictures="unsorted", labels="unsorted")
    raw = read_raw(root)
    assert len(raw.scenes) == 1 and raw.skipped == {"annotation files in other folders, not read": 1}


@pytest.mark.parametrize(("points", "turned"), [("8 4 32 4 32 12 8 12", True), ("20 -4 24 4 20 12 16 4", False)])
def test_a_box_of_cvats_labelme_is_turned_and_a_turned_one_is_not(tmp_path, points, turned):
    v = points.split()
    ring = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in zip(v[0::2], v[1::2], strict=True))
    text = f"<name>boat</name><polygon>{ring}</polygon><attributes>colour=red, rotation=90.0</attributes>"
    raw = read_raw(voc(tmp_path, {"a": [text]}))
    assert raw.changes["boxes turned by their attribute rotation"] == turned
    assert raw.scenes[0].instances[0].hbb == pytest.approx((16, -4, 24, 20) if turned else (16, -4, 24, 12))
