"""HRSC2016: angles, the three levels of the class tree, splits, folders, pictures that nobody annotated."""

import math
import os
from pathlib import Path

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import detect_format, read_raw
from ccdiff_cli.formats.classes import CLASS_LISTS, HRSC_TREE, ClassMap, read_class_file
from ccdiff_cli.geometry import corners_to_le90
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.quantities import quantities_of
from tests.rawsets import picture

BOX = {"box_xmin": 20, "box_ymin": 10, "box_xmax": 80, "box_ymax": 50}
MBOX = {"mbox_cx": 50.5, "mbox_cy": 30.25, "mbox_w": 60, "mbox_h": 12, "mbox_ang": -0.5}


def ship(class_id: str = "100000013", **fields) -> str:
    inner = "".join(f"<{k}>{v}</{k}>" for k, v in {"Class_ID": class_id, "difficult": 0, **fields}.items())
    return f"<HRSC_Object>{inner}</HRSC_Object>"


def hrsc(root: Path, files: dict[str, list[str]], *, annotated: int = 1, size=(96, 64), pictures: bool = True) -> Path:
    """A folder with ``Annotations/`` and ``AllImages/``: stem -> objects."""
    for k, (stem, objects) in enumerate(sorted(files.items())):
        (root / "Annotations").mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<HRSC_Image>\n<Img_ID>{stem}</Img_ID><Img_FileName>{stem}</Img_FileName><Img_FileFmt>bmp</Img_FileFmt>"
            f"<Img_SizeWidth>{size[0]}</Img_SizeWidth><Img_SizeHeight>{size[1]}</Img_SizeHeight><Img_Resolution>1.07</Img_Resolution>"
            f"<Annotated>{annotated}</Annotated>\n<HRSC_Objects>{''.join(objects)}</HRSC_Objects>\n</HRSC_Image>"
        )
        if pictures:
            picture(root / "AllImages" / f"{stem}.bmp", seed=k)
    return root


def test_an_object(tmp_path):
    objects = [ship(**BOX, **MBOX, header_x=75, header_y=12), ship(**MBOX, difficult=1, truncated=1), ship(**BOX)]
    raw = read_raw(hrsc(tmp_path / "r", {"100000006": objects}))
    assert raw.format == "hrsc" and list(raw.classes) == ["ship"] and raw.notes == {"objects with an HBB alone": 1} and not raw.skipped
    scene = raw.scenes[0]
    assert (scene.file_name, scene.width, scene.height, scene.source, scene.split) == ("100000006.bmp", 96, 64, "100000006", "")
    assert scene.provenance == {"gsd": 1.07}
    first, second, third = scene.instances
    assert corners_to_le90(first.corners) == pytest.approx((50.5, 30.25, 60, 12, -0.5)) and first.hbb == (20, 10, 80, 50)
    # a negative angle rises to the right: y points down
    right_end = [(first.corners[2] + first.corners[4]) / 2, (first.corners[3] + first.corners[5]) / 2]
    assert right_end == pytest.approx([50.5 + 30 * math.cos(0.5), 30.25 - 30 * math.sin(0.5)])
    assert first.extra == {"class_id": "100000013", "header": [75, 12]} and not first.difficult
    assert second.difficult and second.extra["truncated"] is True and second.hbb[0] == pytest.approx(min(second.corners[0::2]))
    assert not third.oriented and third.hbb == (20, 10, 80, 50)


def test_levels_of_the_class_tree(tmp_path):
    ids = ["100000013", "100000007", "100000018", "100000027", "100000002", "100000001"]
    root = hrsc(tmp_path / "r", {"1": [ship(k, **MBOX) for k in ids]})
    assert read_raw(root).scenes[0].categories() == ["ship"] * 6
    second = read_raw(root, classes=read_class_file("hrsc2"))
    assert second.classes == CLASS_LISTS["hrsc2"]
    assert second.scenes[0].categories() == ["aircraft carrier", "warcraft", "merchant ship", "submarine", "aircraft carrier", "ship"]
    third = read_raw(root, classes=ClassMap.frozen("hrsc3"))
    assert third.scenes[0].categories() == ["Kuznetsov", "Arleigh Burke", "container", "submarine", "aircraft carrier", "ship"]


def test_a_class_file_decides_the_level_too(tmp_path):
    root = hrsc(tmp_path / "r", {"1": [ship("100000005", **MBOX), ship("100000011", **MBOX)]})
    path = tmp_path / "classes.txt"
    path.write_text("carrier\naircraft carrier = carrier\nTiconderoga\n")
    assert read_raw(root, classes=read_class_file(path)).scenes[0].categories() == ["carrier", "Ticonderoga"]
    assert read_raw(root, classes=read_class_file("Nimitz=big one")).scenes[0].categories() == ["big one", "ship"]
    path.write_text("Nimitz\n")
    with pytest.raises(CCDiffError, match=r"1\.xml: object 2: unknown class 'Ticonderoga'"):
        read_raw(root, classes=read_class_file(path))


def test_the_tree_is_a_tree():
    assert len(HRSC_TREE) == 31 and list(HRSC_TREE) == sorted(HRSC_TREE)
    assert [name for name, parent in HRSC_TREE.values() if parent is None] == ["ship"]

    def depth(key: str) -> int:
        parent = HRSC_TREE[key][1]
        return 1 if parent is None else 1 + depth(parent)

    assert {depth(key) for key in HRSC_TREE} == {1, 2, 3}
    assert [HRSC_TREE[key][0] for key in HRSC_TREE if depth(key) < 3] == list(CLASS_LISTS["hrsc2"])


def test_folders_and_splits(tmp_path):
    root = tmp_path / "HRSC2016"
    hrsc(root / "FullDataSet", {k: [ship(**MBOX)] for k in ("100000001", "100000002", "100000003", "100000004")})
    hrsc(root / "Test", {"100000003": [ship(**MBOX)]})  # the same once more
    (root / "ImageSets").mkdir()
    for split, ids in (("train", "100000001\n"), ("val", "100000002\r\n"), ("test", "100000003\n")):
        (root / "ImageSets" / f"{split}.txt").write_text(ids)
    assert detect_format(root) == "hrsc" and detect_format(root / "FullDataSet") == "hrsc"
    for folder in (root, root / "FullDataSet"):
        raw = read_raw(folder)
        assert [(s.source, s.split) for s in raw.scenes] == [("100000001", "train"), ("100000002", "val"), ("100000003", "test")]
        assert raw.skipped == {"pictures in no split list": 1}


def test_train_and_test_folders(tmp_path):
    root = tmp_path / "r"
    hrsc(root / "Train", {"1": [ship(**MBOX)]})
    hrsc(root / "Test", {"2": [ship(**MBOX)]})
    assert [(s.source, s.split) for s in read_raw(root).scenes] == [("1", "train"), ("2", "test")]


def test_a_number_that_stands_in_train_and_test_is_no_one_picture(tmp_path):
    root = hrsc(tmp_path / "r" / "Train", {"1": [ship(**MBOX)]}).parent
    hrsc(root / "Test", {"1": [ship(**MBOX), ship(**MBOX)]}, pictures=False)
    with pytest.raises(CCDiffError, match=r"two annotation files are called '1': .*Train.*Test"):
        read_raw(root)


def test_an_oriented_box_without_an_area_leaves_the_horizontal_one(tmp_path):
    """As tools write it that know none; it would be lost in the next format."""
    flat = {**MBOX, "mbox_h": 0}
    root = hrsc(tmp_path / "r", {"1": [ship(**BOX, **flat), ship(**BOX, **MBOX)]})
    made = prepare_dataset(root, tmp_path / "set", PrepareOptions(seed=1))
    first, second = made.scenes[0].instances
    assert (first.oriented, first.hbb) == (False, (20, 10, 80, 50)) and second.oriented
    assert made.manifest["changes"]["oriented boxes without an area, their horizontal ones kept"] == 1


def test_pictures_that_nobody_annotated(tmp_path):
    root = hrsc(tmp_path / "r", {"1": [ship(**MBOX)], "2": []})
    hrsc(root, {"3": []}, annotated=0)
    picture(root / "AllImages" / "4.bmp")
    raw = read_raw(root)
    assert [(s.source, len(s.instances)) for s in raw.scenes] == [("1", 1), ("2", 0)]
    assert raw.skipped == {"pictures that nobody annotated": 1, "pictures without an annotation file": 1}


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (ship("100000099", **MBOX), r"1\.xml: object 1: unknown <Class_ID> '100000099'"),
        (ship("", **MBOX), r"1\.xml: object 1: unknown <Class_ID> ''"),
        (ship(**{**MBOX, "mbox_ang": "nan"}), r"object 1: <mbox_ang>: expected a finite number"),
        (ship(**{**MBOX, "mbox_ang": 45}), r"object 1: <mbox_ang>: expected radians, found 45"),
        (ship(**{**MBOX, "mbox_w": -4}), r"object 1: <mbox_w>, <mbox_h>: expected positive"),
        (ship(**{k: v for k, v in MBOX.items() if k != "mbox_h"}), r"object 1: <mbox_h>: expected a number, found ''"),
        (ship(**{**BOX, "box_xmax": "wide"}), r"object 1: <box_xmax>: expected a number"),
        (ship(), r"object 1: the object has neither"),
    ],
)
def test_broken_objects(tmp_path, element, message):
    with pytest.raises(CCDiffError, match=message):
        read_raw(hrsc(tmp_path / "r", {"1": [element]}))


def test_broken_files(tmp_path):
    root = hrsc(tmp_path / "r", {"1": [ship(**MBOX)]})
    path = root / "Annotations" / "1.xml"
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(CCDiffError, match=r"1\.xml:\d+:\d+: not valid XML"):
        read_raw(root)
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + text)
    with pytest.raises(CCDiffError, match="document type or entities"):
        read_raw(root)
    path.write_text("<annotation/>")
    with pytest.raises(CCDiffError, match="expected the element <HRSC_Image>"):
        read_raw(root, "hrsc")
    path.write_text(text)
    (root / "AllImages" / "1.bmp").unlink()
    with pytest.raises(CCDiffError, match="the picture 1 is missing"):
        read_raw(root)
    with pytest.raises(CCDiffError, match="no annotation files"):
        read_raw(tmp_path, "hrsc")


def test_declared_sizes_that_are_none(tmp_path):
    assert [(s.width, s.height) for s in read_raw(hrsc(tmp_path / "r", {"1": []}, size=("", "many"))).scenes] == [(0, 0)]


@pytest.mark.skipif("CCDIFF_SHARED" not in os.environ, reason="needs the published samples")
def test_published_sample(tmp_path):
    sample = Path(os.environ["CCDIFF_SHARED"]) / "data" / "samples" / "HRSC2016" / "FullDataSet" / "Annotations" / "100000006.xml"
    root = tmp_path / "HRSC2016" / "FullDataSet"
    (root / "Annotations").mkdir(parents=True)
    (root / "Annotations" / sample.name).write_bytes(sample.read_bytes())
    picture(root / "AllImages" / "100000006.bmp", 1172, 816)
    scene = read_raw(root.parent, classes=ClassMap.frozen("hrsc3")).scenes[0]
    found = scene.instances[0]
    assert found.category == "Kuznetsov" and corners_to_le90(found.corners) == pytest.approx(
        (341.2143, 443.3325, 778.4297, 178.2595, -1.122944)
    )
    # the bow lies on a short side of the box
    bow = found.extra["header"]
    x1, y1, x4, y4 = *found.corners[0:2], *found.corners[6:8]
    assert abs((x4 - x1) * (y1 - bow[1]) - (x1 - bow[0]) * (y4 - y1)) / math.hypot(x4 - x1, y4 - y1) < 5


@pytest.mark.parametrize(
    ("location", "half", "expected"),
    [
        ("32.68,117.13", "W", {"longitude": -117.13, "latitude": 32.68}),
        ("32.68, -117.13", "west", {"longitude": -117.13, "latitude": 32.68}),
        ("44.4,33.5", "E", {"longitude": 33.5, "latitude": 44.4}),
        ("44.4,33.5", "", {}),
        ("0,0", "W", {}),
        ("95,33", "W", {}),
        ("somewhere", "E", {}),
    ],
)
def test_a_place_is_known_once_its_half_of_the_earth_is(tmp_path, location, half, expected):
    root = hrsc(tmp_path / "r", {"1": [ship(**MBOX)], "2": [ship(**MBOX)]})
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<Annotated>", f"<Img_Location>{location}</Img_Location><Annotated>"))
    (tmp_path / "m.csv").write_text(f"file_name,hemisphere,sensor\n1.bmp,{half},x\n")
    data = prepare_dataset(root, tmp_path / "out", PrepareOptions(metadata=tmp_path / "m.csv"))
    first, second = ({k: v for k, v in quantities_of(s).items() if k != "gsd"} for s in data.scenes)
    assert first == expected and second == {}
    readable = location not in ("0,0", "95,33", "somewhere")
    assert data.manifest["notes"].get("places of labels without a hemisphere, left unknown", 0) == readable * (1 if half else 2)
