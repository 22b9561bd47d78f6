"""Sets as other tools and machines leave them: litter, paths, folders, words, encodings; each reads right or says what is wrong."""

import json
import math

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import TWINS, detect_format, read_raw
from ccdiff_cli.geometry import corners_to_le90, le90_to_corners, polygon_iou
from tests.fuzz.seeds import SEEDS
from tests.rawsets import coco, dior, hbb_xml, obb_xml, picture, vhr10, voc_xml

BOX = "0 0.5 0.5 0.25 0.5\n"
HBB = (36, 16, 60, 48)
BOAT = hbb_xml("boat", (5, 5, 30, 20))
LITTER = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\xb0" * 40


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def boxes(root, **options):
    """File name -> split, and class with box of every object; the set as a person has it on disk must read strictly."""
    raw = read_raw(root, strict=True, **options)
    return {s.file_name: (s.split, [(i.category, tuple(round(v, 3) for v in i.hbb)) for i in s.instances]) for s in raw.scenes}


# ---- litter of macOS and Windows


@pytest.mark.parametrize("format", sorted(SEEDS))
def test_what_macos_and_windows_leave_is_passed_over(tmp_path, format):
    root = tmp_path / "r"
    SEEDS[format](root)
    before = read_raw(root)
    files = [p for p in root.rglob("*") if p.is_file()]
    for path in files:
        write(path.with_name(f"._{path.name}"), LITTER)
        write(root / "__MACOSX" / path.relative_to(root).parent / path.name, LITTER)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        write(files[0].parent / name, LITTER)
    raw = read_raw(root)
    assert raw.format == format and raw.scenes == before.scenes and raw.classes == before.classes and raw.skipped == before.skipped
    found = {what: n for what, n in raw.notes.items() if what.startswith("files that macOS or Windows left")}
    assert list(found.values()) == [2 * len(files) + 3]


def test_litter_in_lists_is_passed_over_too(tmp_path):
    root = yolo(tmp_path / "r", "a", "b")
    write(root / "splits" / "train.txt", "._a.png\na\n")
    write(root / "splits" / "test.txt", ".DS_Store\nb.png\n")
    assert {name: split for name, (split, _) in boxes(root).items()} == {"a.png": "train", "b.png": "test"}
    root = coco(tmp_path / "c", [], images=[{"id": k, "file_name": name} for k, name in enumerate(("._a.png", "a.png"))])
    raw = read_raw(root)
    assert [s.file_name for s in raw.scenes] == ["a.png"] and raw.skipped == {"files that macOS or Windows left, named as pictures": 1}


# ---- YOLO


def yolo(root, *stems, pictures="images", labels="labels", names="classes.txt"):
    for k, stem in enumerate(stems):
        picture(root / pictures / f"{stem}.png", seed=k)
        write(root / labels / f"{stem}.txt", BOX)
    if names:
        write(root / names, "ship\n")
    return root


@pytest.mark.parametrize(
    ("pictures", "labels", "names", "split"),
    [
        (".", ".", "classes.txt", ""),  # labelImg
        (".", ".", "obj.names", ""),
        ("images", "images", "images/classes.txt", ""),
        ("train", "train", "train/_darknet.labels", "train"),  # Roboflow's darknet
        ("Images/Train", "Labels/Train", "Classes.txt", "train"),
        ("valid/images", "valid/labels", "labels.txt", "val"),
    ],
)
def test_yolo_folders(tmp_path, pictures, labels, names, split):
    root = yolo(tmp_path / "r", "a", "b", pictures=pictures, labels=labels, names=names)
    assert detect_format(root) == "yolo"
    assert boxes(root) == {f"{k}.png": (split, [("ship", HBB)]) for k in "ab"}


@pytest.mark.parametrize("description", ["names: [ship]\n", "names: {0: ship}\n", "names: {'0': ship}\nnc: 1\n"])
def test_flat_yolo_with_a_description_of_the_names_alone(tmp_path, description):
    root = yolo(tmp_path / "r", "a", pictures=".", labels=".", names=None)
    write(root / "data.yaml", description)
    assert boxes(root) == {"a.png": ("", [("ship", HBB)])}


@pytest.mark.parametrize("top", ["", "data"])
def test_darknet(tmp_path, top):
    root = tmp_path / "r"
    base = yolo(root / top, "a", "b", pictures="obj", labels="obj", names="obj.names")
    write(base / "obj.data", "classes = 1\ntrain  = data/train.txt\nvalid = data/test.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(base / "train.txt", "data/obj/a.png\n")
    write(base / "test.txt", "data/obj/b.png\n")
    right = {"a.png": ("train", [("ship", HBB)]), "b.png": ("val", [("ship", HBB)])}
    assert boxes(root) == boxes(base) == boxes(base / "obj.data") == right


@pytest.mark.parametrize("prefix", ["data/", ""])
@pytest.mark.parametrize(
    "subsets",
    [
        {"train": ("train.txt", "obj_train_data", "train")},
        {"train": ("Train.txt", "obj_Train_data", "train"), "valid": ("Validation.txt", "obj_Validation_data", "val")},
        {"train": ("train.txt", "obj_train_data", "train"), "test": ("test.txt", "obj_test_data", "test")},
        {"default": ("default.txt", "obj_default_data", "")},
    ],
)
def test_yolo_1_1_as_cvat_exports_it(tmp_path, subsets, prefix):
    described, right = "classes = 1\n", {}
    for k, (key, (name, folder, split)) in enumerate(subsets.items()):
        picture(tmp_path / "r" / folder / f"{k}.png", seed=k)
        write(tmp_path / "r" / folder / f"{k}.txt", BOX)
        write(tmp_path / "r" / name, f"{prefix}{folder}/{k}.png\n")
        described += f"{key} = {prefix}{name}\n"
        right[f"{k}.png"] = (split, [("ship", HBB)])
    write(tmp_path / "r" / "obj.data", f"{described}names = {prefix}obj.names\nbackup = backup/\n")
    write(tmp_path / "r" / "obj.names", "ship\n")
    assert detect_format(tmp_path / "r") == "yolo" and boxes(tmp_path / "r") == right


def test_lists_at_the_top_without_a_description(tmp_path):
    root = yolo(tmp_path / "r", "a", "b", "c")
    write(root / "train.txt", "C:\\sets\\mine\\images\\a.png\r\n")
    write(root / "val.txt", "./images/b.png\n")
    raw = read_raw(root)
    assert {s.file_name: s.split for s in raw.scenes} == {"a.png": "train", "b.png": "val"}
    assert raw.skipped == {"pictures in no split list": 1}  # c has labels, and no line


def test_labels_whose_name_differs_in_case(tmp_path):
    root = yolo(tmp_path / "r", "a")
    (root / "labels" / "a.txt").rename(root / "labels" / "A.TXT")
    assert boxes(root) == {"a.png": ("", [("ship", HBB)])}


def test_pictures_that_all_lack_labels_are_no_set_without_objects(tmp_path):
    root = yolo(tmp_path / "r", "a")
    (root / "labels" / "a.txt").unlink()
    with pytest.raises(CCDiffError, match="none of the 1 pictures has a label file in labels/"):
        read_raw(root)


def test_outlines_of_which_the_first_has_four_corners(tmp_path):
    root = yolo(tmp_path / "r", "a")
    write(root / "labels" / "a.txt", "0 .1 .1 .5 .1 .5 .5 .1 .5\n0 .1 .1 .5 .1 .5 .5 .3 .75 .1 .5\n" + BOX)
    assert boxes(root) == {"a.png": ("", [("ship", (9.6, 6.4, 48, 32)), ("ship", (9.6, 6.4, 48, 48)), ("ship", HBB)])}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_encodings_that_say_themselves(tmp_path, encoding):
    root = yolo(tmp_path / "r", "a")
    write(root / "labels" / "a.txt", BOX, encoding)
    write(root / "classes.txt", "船\n", encoding)
    assert boxes(root) == {"a.png": ("", [("船", HBB)])}


def test_other_encodings_are_named_with_the_cure(tmp_path):
    root = yolo(tmp_path / "r", "a")
    path = write(root / "classes.txt", "飞机\n", "gbk")
    with pytest.raises(CCDiffError, match=r"not UTF-8 text \(byte 0\)(.|\n)*iconv -f GBK") as caught:
        read_raw(root, strict=False)
    assert caught.value.where == str(path)


def test_a_long_list_of_classes_does_not_fill_the_screen(tmp_path):
    root = yolo(tmp_path / "r", "a")
    write(root / "classes.txt", "".join(f"c{k}\n" for k in range(3000)))
    write(root / "labels" / "a.txt", "3000 .5 .5 .1 .1\n")
    with pytest.raises(CCDiffError, match=r"39 c39 and 2960 more") as caught:
        read_raw(root)
    assert len(str(caught.value)) < 1000
    write(root / "classes.txt", "船" * 100)
    with pytest.raises(CCDiffError, match="a class name of 100 characters"):
        read_raw(root)


# ---- what a folder that is nearly of a format is told


def test_the_recognition_names_the_file_that_is_broken(tmp_path):
    root = tmp_path / "voc"
    picture(root / "JPEGImages" / "a.jpg")
    write(root / "Annotations" / "a.xml", "<anno")
    with pytest.raises(CCDiffError, match=r"not recognised; it looks like voc, but: not valid XML") as caught:
        read_raw(root)
    assert "a.xml" in str(caught.value.where)
    write(tmp_path / "c" / "labels.json", '{"shapes": []}')
    with pytest.raises(CCDiffError, match="looks like coco, but: no COCO file"):
        read_raw(tmp_path / "c")
    picture(tmp_path / "other" / "photo" / "a.png")
    with pytest.raises(CCDiffError, match=r"not recognised \(it holds photo\)"):
        read_raw(tmp_path / "other")


def test_a_broken_first_file_does_not_hide_the_format(tmp_path):
    root = tmp_path / "r"
    for k in range(4):
        picture(root / "JPEGImages" / f"{k}.jpg", seed=k)
        write(root / "Annotations" / f"{k}.xml", voc_xml([BOAT], size=(96, 64)) if k else "<annotation><object>")
    raw = read_raw(root, strict=False)
    assert raw.format == "voc" and len(raw.scenes) == 3 and sum(raw.skipped.values()) == 1


# ---- VOC


def voc(root, pictures, labels, objects=(BOAT,), stem="a"):
    picture(root / pictures / f"{stem}.jpg", seed=len(stem))
    write(root / labels / f"{stem}.xml", voc_xml(list(objects), size=(96, 64)))
    return root


@pytest.mark.parametrize(
    ("pictures", "labels", "split"),
    [
        ("images", "annotations", ""),  # Kaggle
        ("data", "labels", ""),  # FiftyOne
        ("JPEGIMAGES", "ANNOTATIONS", ""),
        ("fotos", "beschriftung", ""),
        ("test", "test", "test"),  # Roboflow
        ("validation/JPEGImages", "validation/Annotations", "val"),
        ("images/val", "annotations/val", "val"),
        ("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/Annotations", ""),
    ],
)
def test_voc_folders(tmp_path, pictures, labels, split):
    root = voc(tmp_path / "r", pictures, labels)
    assert detect_format(root) == "voc"
    assert boxes(root) == {"a.jpg": (split, [("boat", (5, 5, 30, 20))])}


def test_voc_splits_whose_pictures_share_their_names(tmp_path):
    for split in ("train", "valid"):
        voc(tmp_path / "r", split, split)
    found = boxes(tmp_path / "r")
    assert {name: split for name, (split, _) in found.items()} == {"train/a.jpg": "train", "valid/a.jpg": "val"}
    assert len({s.source for s in read_raw(tmp_path / "r").scenes}) == 2


def test_a_listed_picture_that_nobody_annotated(tmp_path):
    root = voc(tmp_path / "r", "JPEGImages", "Annotations")
    picture(root / "JPEGImages" / "b.jpg", seed=3)
    write(root / "ImageSets" / "Main" / "train.txt", "a  1\n")
    write(root / "ImageSets" / "Main" / "test.txt", "b -1\n")
    raw = read_raw(root)
    assert {s.file_name: (s.split, len(s.instances)) for s in raw.scenes} == {"a.jpg": ("train", 1), "b.jpg": ("test", 0)}
    reason = "pictures that a split list names and nobody annotated, taken as without objects"
    assert raw.notes[reason] == 1 and raw.places[reason][0]["where"].endswith("b.jpg")
    write(root / "ImageSets" / "Main" / "test.txt", "b\nzz\n")
    with pytest.raises(CCDiffError, match=r"test\.txt:2: no picture is called 'zz'"):
        read_raw(root)
    assert read_raw(root, strict=False).skipped == {"pictures that are missing": 1}


def test_dior_and_hrsc_lists_that_name_unannotated_pictures(tmp_path):
    root = dior(tmp_path / "d", {"00001": ([hbb_xml("ship", (5, 5, 30, 20))], [])})
    picture(root / "JPEGImages-trainval" / "00002.jpg", seed=2)
    write(root / "ImageSets" / "Main" / "train.txt", "00001\n00002\n")
    assert {name: len(found) for name, (_, found) in boxes(root).items()} == {"00001.jpg": 1, "00002.jpg": 0}
    SEEDS["hrsc"](tmp_path / "h")
    picture(tmp_path / "h" / "AllImages" / "100000002.bmp")
    write(tmp_path / "h" / "ImageSets" / "test.txt", "100000001\n100000002\n")
    assert {name: len(found) for name, (_, found) in boxes(tmp_path / "h").items()} == {"100000001.bmp": 1, "100000002.bmp": 0}


WORDS = {"Unspecified": 0, "false": 0, "False": 0, "no": 0, "0": 0, "": 0, "0.0": 0, "None": 0, "1": 1, "true": 1, "TRUE": 1, "yes": 1}


@pytest.mark.parametrize(("word", "difficult"), WORDS.items())
def test_difficult_as_a_word(tmp_path, word, difficult):
    flag = f"<difficult>{word}</difficult>"
    voc_set = voc(tmp_path / "v", "JPEGImages", "Annotations", [BOAT + flag])
    dior_set = dior(tmp_path / "d", {"00001": ([hbb_xml("ship", (5, 5, 30, 20)) + flag], [])})
    SEEDS["hrsc"](tmp_path / "h")
    path = tmp_path / "h" / "Annotations" / "100000001.xml"
    path.write_text(path.read_text().replace("<difficult>0</difficult>", f"{flag}<truncated>{word}</truncated>"))
    sets = [voc_set, dior_set, tmp_path / "h"]
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 10]}
    sets += [coco(tmp_path / key, [{**one, key: word}]) for key in ("difficult", "iscrowd")]
    if word and word != "0.0" and word not in ("Unspecified", "None"):
        picture(tmp_path / "dota" / "images" / "P1.png")
        write(tmp_path / "dota" / "labelTxt" / "P1.txt", f"5 5 30 5 30 20 5 20 ship {word}\n")
        sets.append(tmp_path / "dota")
    for root in sets:
        (scene,) = read_raw(root).scenes
        assert [i.difficult for i in scene.instances] == [bool(difficult)], root
    assert read_raw(tmp_path / "h").scenes[0].instances[0].extra.get("truncated", False) == bool(difficult)


def test_a_word_that_is_no_flag(tmp_path):
    root = voc(tmp_path / "v", "JPEGImages", "Annotations", [BOAT, BOAT + "<difficult>perhaps</difficult>"])
    with pytest.raises(CCDiffError, match=r"a\.xml: object 2: <difficult>: expected 0 or 1 .*, found 'perhaps'"):
        read_raw(root)


def test_objects_where_voc_has_none(tmp_path):
    root = voc(tmp_path / "r", "JPEGImages", "Annotations")
    picture(root / "JPEGImages" / "b.jpg", seed=5)
    other = "<annotation><items><object><label>x</label><points><point>1,2</point></points></object></items></annotation>"
    write(root / "Annotations" / "b.xml", other)
    with pytest.raises(CCDiffError, match=r"b\.xml: the objects stand in <\w+>, where VOC has none"):
        read_raw(root, "voc", strict=False)


def test_voc_polygons(tmp_path):
    numbered = "".join(
        f"<{axis}{k}>{v}</{axis}{k}>" for k, xy in enumerate([(5, 5), (31, 6), (28, 20)], 1) for axis, v in zip("xy", xy, strict=True)
    )
    turned = le90_to_corners((50, 30, 30, 10, 0.5))
    points = "".join(f"<pt><x>{turned[k]}</x><y>{turned[k + 1]}</y></pt>" for k in (0, 2, 4, 6, 0))  # closed
    objects = [
        f"{BOAT}<polygon>{numbered}</polygon>",  # Roboflow
        f"<name>boat</name><deleted>0</deleted><polygon><username>me</username>{points}</polygon>",  # LabelMe
        f"<name>boat</name><deleted>1</deleted><polygon>{points}</polygon>",
    ]
    raw = read_raw(voc(tmp_path / "r", "JPEGImages", "Annotations", objects))
    first, second = raw.scenes[0].instances
    assert first.mask == ((5, 5, 31, 6, 28, 20),) and first.hbb == (5, 5, 30, 20) and first.oriented
    assert second.corners == pytest.approx(turned) and second.oriented and not second.mask
    assert raw.skipped == {"objects marked as deleted": 1}


def test_xml_in_the_encoding_it_declares(tmp_path):
    root = voc(tmp_path / "r", "JPEGImages", "Annotations")
    text = voc_xml([BOAT.replace("boat", "船")], size=(96, 64))
    path = write(root / "Annotations" / "a.xml", f"<?xml version='1.0' encoding='gbk'?>{text}", "gbk")
    assert boxes(root) == {"a.jpg": ("", [("船", (5, 5, 30, 20))])}
    write(path, text, "gbk")
    with pytest.raises(CCDiffError, match=r"not valid XML(.|\n)*say its encoding in the first line"):
        read_raw(root)


def test_picture_names_of_windows_in_voc(tmp_path):
    root = voc(tmp_path / "r", "JPEGImages", "Annotations")
    text = (root / "Annotations" / "a.xml").read_text().replace("<size>", "<filename>C:\\work\\set\\a.jpg</filename><size>")
    (root / "Annotations" / "a.xml").unlink()
    write(root / "Annotations" / "other.xml", text)
    assert list(boxes(root)) == ["a.jpg"]


def test_folder_names_in_another_case(tmp_path):
    root = dior(tmp_path / "d", {"00001": ([hbb_xml("ship", (5, 5, 30, 20))], [obb_xml("ship", (5, 5, 30, 5, 30, 20, 5, 20))])})
    (root / "JPEGImages-trainval").rename(root / "jpegimages-trainval")
    (root / "Annotations").rename(root / "annotations")
    assert read_raw(root).format == "dior" and list(boxes(root)) == ["00001.jpg"]
    root = vhr10(tmp_path / "v", {"001": [("ship", (5, 5, 20, 20))]})
    (root / "positive image set").rename(root / "Positive Image Set")
    (root / "ground truth").rename(root / "Ground Truth")
    picture(root / "negative image set" / "001.jpg", seed=7)
    raw = read_raw(root)
    assert raw.format == "vhr10" and len(raw.scenes) == 1
    assert raw.skipped == {"pictures of the negative image set, which show no object": 1}
    for name, (old, new) in {
        "dota": ("labelTxt", "LABELTXT"),
        "hrsc": ("AllImages", "allimages"),
        "rsvg": ("Annotations", "annotations"),
    }.items():
        SEEDS[name](tmp_path / name)
        (tmp_path / name / old).rename(tmp_path / name / new)
        assert read_raw(tmp_path / name).format == name


# ---- CVAT


@pytest.mark.parametrize(("degrees", "angle"), [(45.0, math.pi / 4), ("30", math.pi / 6), (300, -math.pi / 3), (0.0, None), (360, None)])
def test_cvat_writes_boxes_before_their_turn(tmp_path, degrees, angle):
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 28, 40, 8], "attributes": {"occluded": False, "rotation": degrees}}
    attribute = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    for root in (
        coco(tmp_path / "c", [one]),
        coco(tmp_path / "s", [{**one, "segmentation": [[20, 28, 60, 28, 60, 36, 20, 36]]}]),
        voc(tmp_path / "v", "JPEGImages", "Annotations", [hbb_xml("ship", (20, 28, 60, 36)) + attribute]),
    ):
        raw = read_raw(root)
        (found,) = raw.scenes[0].instances
        if angle is None:
            assert found.hbb == (20, 28, 60, 36) and not raw.changes
            continue
        assert found.oriented and raw.changes == {"boxes turned by their attribute rotation": 1}
        assert corners_to_le90(found.corners) == pytest.approx((40, 32, 40, 8, angle))
        assert polygon_iou(found.corners, le90_to_corners((40, 32, 40, 8, angle))) > 0.999


def test_a_segmentation_that_is_turned_already_is_not_turned_again(tmp_path):
    turned = list(le90_to_corners((40, 32, 40, 8, 0.7)))
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 28, 40, 8], "attributes": {"rotation": 40.1}, "segmentation": [turned]}
    (found,) = read_raw(coco(tmp_path / "c", [one])).scenes[0].instances
    assert found.corners == pytest.approx(turned)


# ---- COCO


def annotation(**more):
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 10], **more}


SHIP = ("ship", (5, 5, 25, 15))


def coco_file(root, file, *, folder, name="a.png", categories=None, seed=0, annotations=None):
    categories = categories or [{"id": 1, "name": "ship"}]
    found = {"images": [{"id": 1, "file_name": name}], "annotations": [annotation()] if annotations is None else annotations}
    picture(root / folder / name, seed=seed)
    write(root / file, json.dumps({**found, "categories": categories}))


@pytest.mark.parametrize(
    "name",
    [
        "images\\a b.png", "C:\\sets\\x\\images\\a b.png", "/home/someone/images/a b.png", "file:///home/someone/a%20b.png",
        "https://host/data/upload/3/a%20b.png?token=1", "images/a%20b.png", "./images/a b.png", "../images/a b.png",
        "..\\..\\x\\images\\a b.png", "data/local-files/a b.png", "A B.PNG",
    ],
)  # fmt: skip
def test_paths_of_other_machines(tmp_path, name):
    root = tmp_path / "r"
    coco_file(root, "instances.json", folder="images", name="a b.png")
    picture(root / "images" / "b.png", seed=4)
    text = (root / "instances.json").read_text()
    write(root / "instances.json", text.replace('"a b.png"', json.dumps(name)))
    (scene,) = read_raw(root).scenes
    assert scene.path == str(root / "images" / "a b.png") and scene.file_name in ("a b.png", "images/a b.png")


def test_a_path_says_which_of_two_pictures_it_means_or_is_refused(tmp_path):
    root = tmp_path / "r"
    for split in ("train", "val"):
        picture(root / "images" / split / "1.png", seed=len(split))
    images = [{"id": 1, "file_name": "D:\\x\\train\\1.png"}, {"id": 2, "file_name": "/x/val/1.png"}]
    write(root / "a.json", json.dumps({"images": images, "annotations": [annotation()], "categories": [{"id": 1, "name": "ship"}]}))
    found = {s.file_name: (s.path, len(s.instances)) for s in read_raw(root).scenes}
    assert found == {f"{split}/1.png": (str(root / "images" / split / "1.png"), n) for split, n in (("train", 1), ("val", 0))}
    images[0]["file_name"] = "1.png"
    write(root / "a.json", json.dumps({"images": images, "annotations": [annotation()], "categories": [{"id": 1, "name": "ship"}]}))
    with pytest.raises(CCDiffError, match=r"the picture 1\.png lies in 2 places"):
        read_raw(root)


def test_roboflow_coco(tmp_path):
    root = tmp_path / "r"
    project = [{"id": 0, "name": "ships-x1", "supercategory": "none"}, {"id": 1, "name": "ship", "supercategory": "ships-x1"}]
    for k, split in enumerate(("train", "valid", "test")):
        coco_file(root, f"{split}/_annotations.coco.json", folder=split, categories=project, seed=k)
    assert detect_format(root) == "coco"
    right = {f"{split}/a.png": ("val" if split == "valid" else split, [SHIP]) for split in ("train", "valid", "test")}
    assert boxes(root) == right and list(read_raw(root).classes) == ["ship"]


def test_a_category_0_with_objects_is_a_class(tmp_path):
    root = tmp_path / "r"
    categories = [{"id": 0, "name": "ship", "supercategory": "none"}, {"id": 1, "name": "tug", "supercategory": "ship"}]
    coco_file(root, "a.json", folder="images", categories=categories, annotations=[annotation(category_id=0)])
    assert list(read_raw(root).classes) == ["ship", "tug"] and boxes(root) == {"a.png": ("", [SHIP])}


def test_what_a_download_of_coco_holds_beside_the_instances(tmp_path):
    root = tmp_path / "r"
    for k, split in enumerate(("train", "val")):
        coco_file(root, f"annotations/instances_{split}2017.json", folder=f"{split}2017", seed=k)
    beside = {
        "captions": [{"id": 1, "image_id": 1, "caption": "a ship"}], "person_keypoints": [annotation(keypoints=[1] * 51)],
        "panoptic": [{"image_id": 1, "segments_info": []}], "stuff": [annotation()], "image_info": [],
    }  # fmt: skip
    for name, annotations in beside.items():
        coco_file(root, f"annotations/{name}_train2017.json", folder="train2017", annotations=annotations)
    raw = read_raw(root)
    assert boxes(root) == {f"{split}2017/a.png": (split, [SHIP]) for split in ("train", "val")}
    assert sorted(raw.notes.values()) == [1] * 5 and all(any(f"{name}_train" in what for what in raw.notes) for name in beside)
    for path in (root / "annotations").glob("instances*"):
        path.unlink()
    assert len(boxes(root)) == 1  # the keypoints have boxes, too


def test_captions_above_the_folders_of_splits(tmp_path):
    """Roboflow's folders, and captions at the top: the objects are looked for where they are."""
    for split in ("train", "valid"):
        coco_file(tmp_path / "r" / split, "_annotations.coco.json", folder=".")
    coco_file(tmp_path / "r", "captions.json", folder=".", annotations=[{"id": 1, "image_id": 1, "caption": "a ship"}])
    raw = read_raw(tmp_path / "r")
    assert {s.split for s in raw.scenes} == {"train", "val"} and all(len(s.instances) == 1 for s in raw.scenes)
    assert raw.notes["files without objects, passed over (captions.json: captions)"] == 1


def test_a_file_of_captions_alone(tmp_path):
    coco_file(tmp_path / "r", "captions.json", folder="images", annotations=[{"id": 1, "image_id": 1, "caption": "a ship"}])
    with pytest.raises(CCDiffError, match=r"no file with boxes: captions\.json holds captions"):
        read_raw(tmp_path / "r")


IDS = ["0000001_02999_d_0000005", 1.0, 0, -3, 12345678901234567890, "7"]


def test_ids_of_any_kind(tmp_path):
    images = [{"id": key, "file_name": f"{k}.png"} for k, key in enumerate(IDS)]
    annotations = [annotation(id=f"a{k}", image_id=key, category_id="ship-id") for k, key in enumerate(IDS)]
    annotations += [annotation(id="x", image_id=7, category_id="ship-id"), annotation(id="y", image_id=1, category_id="ship-id")]
    root = coco(tmp_path / "r", annotations, images=images, categories=[{"id": "ship-id", "name": "ship"}])
    assert {name: len(found) for name, (_, found) in boxes(root).items()} == {f"{k}.png": 2 if k in (1, 5) else 1 for k in range(len(IDS))}


@pytest.mark.parametrize("key", [None, True, [1], {"a": 1}, math.nan])
def test_what_is_no_id(tmp_path, key):
    images = [{"id": key, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    root = coco(tmp_path / "r", [annotation(image_id=key), annotation(image_id=2)], images=images)
    with pytest.raises(CCDiffError, match="expected an id, found"):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert [(s.file_name, len(s.instances)) for s in raw.scenes] == [("b.png", 1)] and sum(raw.skipped.values()) == 2


def test_an_id_that_two_pictures_have_says_nothing(tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}, {"id": 2, "file_name": "c.png"}]
    root = coco(tmp_path / "r", [annotation(), annotation(id=2, image_id=2)], images=images)
    with pytest.raises(CCDiffError, match="two pictures have the id 1"):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert [(s.file_name, len(s.instances)) for s in raw.scenes] == [("c.png", 1)]
    assert raw.skipped == {"broken pictures: two pictures have the id ...": 2, "broken annotations: no picture has the id ...": 1}


def test_categories_are_matched_by_name(tmp_path):
    root = tmp_path / "r"
    two = [annotation(), annotation(id=2, category_id=2)]
    coco_file(root, "train.json", folder="images", categories=[{"id": 1, "name": "ship"}, {"id": 2, "name": "car"}], annotations=two)
    other = [{"id": 1, "name": "Car"}, {"id": 2, "name": "ship"}, {"id": 3, "name": "bus"}]
    coco_file(root, "val.json", folder="images", name="b.png", categories=other, annotations=two)
    raw = read_raw(root)
    assert list(raw.classes) == ["ship", "car", "bus"] and [s.categories() for s in raw.scenes] == [["ship", "car"], ["car", "ship"]]
    assert raw.notes == {"category ids that differ between the files (matched by name)": 2}


EMPTY = "annotations without a box or a mask"
BOXES = [
    ([], EMPTY), (None, EMPTY), ({}, EMPTY), ("", EMPTY), ([1, 2, 3], "expected x, y"), ([1, 2, 3, 4, 5], "expected x, y"),
    (["a", 2, 3, 4], "expected a number"), ([1, 2, math.nan, 4], "finite number"), ("1,2,3,4", "expected x, y"), (7, "expected x, y"),
]  # fmt: skip


@pytest.mark.parametrize(("box", "reason"), BOXES)
def test_boxes_that_are_none(tmp_path, box, reason):
    raw = read_raw(coco(tmp_path / "r", [annotation(bbox=box), annotation(id=2), annotation(id=3)]), strict=False)
    assert len(raw.scenes[0].instances) == 2
    ((what, count),) = raw.skipped.items()
    assert count == 1 and reason in what


def test_boxes_that_are_there_all_the_same(tmp_path):
    outline = [[1, 1, 20, 1, 20, 9, 1, 9]]
    root = coco(tmp_path / "r", [annotation(bbox=["1", "2", "3", "4.5"]), annotation(id=2, bbox=[], segmentation=outline)])
    assert boxes(root) == {"a.png": ("", [("ship", (1, 2, 4, 6.5)), ("ship", (1, 1, 20, 9))])}


def test_coco_in_utf_16_and_of_fiftyone(tmp_path):
    coco_file(tmp_path / "r", "labels.json", folder="data")
    text = (tmp_path / "r" / "labels.json").read_text()
    write(tmp_path / "r" / "labels.json", text, "utf-16")
    assert boxes(tmp_path / "r") == {"a.png": ("", [SHIP])}


# ---- DOTA


def dota(root, *lines):
    picture(root / "images" / "P1.png")
    write(root / "labelTxt" / "P1.txt", "".join(f"5 5 30 5 30 20 5 20 {line}\n" for line in lines))
    return root


def test_dota_classes_with_spaces(tmp_path):
    raw = read_raw(dota(tmp_path / "r", "storage tank 0", "Large Vehicle 1", "ground track field", "ship", "storage-tank 0"))
    found = [(i.category, i.difficult) for i in raw.scenes[0].instances]
    assert found == [
        ("storage tank", False), ("large vehicle", True), ("ground track field", False), ("ship", False), ("storage tank", False),
    ]  # fmt: skip
    assert raw.notes == {"objects without a difficult flag": 2, TWINS: 1}


def test_dota_classes_of_ones_own(tmp_path):
    root = dota(tmp_path / "r", "insulator 0", "insulator string 1", "Insulator 0")
    raw = read_raw(root)
    assert list(raw.classes) == ["insulator", "insulator string"]
    assert [(i.category, i.difficult) for i in raw.scenes[0].instances] == [
        ("insulator", False), ("insulator string", True), ("insulator", False),
    ]  # fmt: skip
    dota(root, "insulator 0", "ship 0")
    with pytest.raises(CCDiffError, match=r"P1\.txt:1: unknown class 'insulator'"):
        read_raw(root)
    write(root / "classes.txt", "ship\ninsulator\n")
    assert list(read_raw(root).classes) == ["ship", "insulator"]
