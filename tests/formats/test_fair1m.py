"""FAIR1M: corners with and without the closing point, names, classes, splits, pictures, broken objects."""

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import TWINS, detect_format, read_raw
from ccdiff_cli.formats.classes import CLASS_LISTS, FAIR1M_GROUPS, read_class_file
from ccdiff_cli.geometry import polygon_iou
from tests.rawsets import fair1m_xml, picture

OBB = [(40.0, 10.0), (60.0, 12.0), (58.0, 30.0), (38.0, 28.0)]
FLAT = tuple(v for point in OBB for v in point)


def fair1m(root, files, *, labels="labelXml", pictures="images", suffix=".tif", **more):
    for k, (stem, objects) in enumerate(sorted(files.items())):
        picture(root / pictures / f"{stem}{suffix}", seed=k)
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"{stem}.xml").write_text(fair1m_xml(objects, filename=f"{stem}.tif", **more))
    return root


def test_closed_and_open_corners_in_either_direction_from_any_of_them(tmp_path):
    rings = [[*OBB, OBB[0]], OBB, [*OBB[2:], *OBB[:2], OBB[2]], [*OBB[::-1], OBB[-1]]]
    root = fair1m(tmp_path / "r", {"0": [("Dry Cargo Ship", ring) for ring in rings]})
    assert detect_format(root) == "fair1m"
    raw = read_raw(root)
    (scene,) = raw.scenes
    assert raw.classes == CLASS_LISTS["fair1m"] and (scene.file_name, scene.width, scene.height, scene.split) == ("0.tif", 96, 64, "")
    assert scene.provenance == {"imagesource": "GF2/GF3"} and scene.categories() == ["dry cargo ship"] * 4
    for instance, ring in zip(scene.instances, rings, strict=True):
        assert instance.oriented and instance.corners == tuple(v for point in ring[:4] for v in point) and instance.extra == {}
        assert polygon_iou(instance.corners, FLAT) == pytest.approx(1) and instance.hbb == (38, 10, 60, 30) and not instance.mask
    assert raw.notes == {TWINS: 3} and not raw.skipped


def test_the_37_classes_their_spellings_and_their_groups(tmp_path):
    assert len(CLASS_LISTS["fair1m"]) == 37 and [len(m) for m in FAIR1M_GROUPS.values()] == [11, 9, 10, 4, 3]
    spelled = ["Boeing737", "other-airplane", "Airbus A220", "COMAC C919", "Liquid Cargo Ship", "truck tractor", "Football Field", "Bridge"]
    root = fair1m(tmp_path / "r", {"0": [(name, OBB) for name in spelled]})
    fine = ["Boeing 737", "other airplane", "A220", "C919", "liquid cargo ship", "truck tractor", "football field", "bridge"]
    assert read_raw(root).scenes[0].categories() == fine
    coarse = read_raw(root, classes=read_class_file("fair1m5"))
    assert list(coarse.classes) == ["airplane", "ship", "vehicle", "court", "road"]
    assert coarse.scenes[0].categories() == ["airplane"] * 4 + ["ship", "vehicle", "court", "road"]


def test_classes_of_ones_own(tmp_path):
    """The case fair1m_xml: FAIR1M's XML with a class that FAIR1M has not, beside pictures in VOC's folders."""
    folders = {"labels": "Annotations", "pictures": "JPEGImages", "suffix": ".png"}
    root = fair1m(tmp_path / "r", {"0": [("Cargo Ship", OBB)], "1": [("Dredger", OBB)]}, **folders)
    raw = read_raw(root)
    assert raw.format == "fair1m" and list(raw.classes) == ["Cargo Ship", "Dredger"] and sum(len(s.instances) for s in raw.scenes) == 2
    (root / "classes.txt").write_text("Dredger\nCargo Ship\nTug\n")
    assert list(read_raw(root).classes) == ["Dredger", "Cargo Ship", "Tug"]
    many = fair1m(tmp_path / "many", {str(k): [("Bridge", OBB)] * 60 for k in range(3)} | {"x": [("Brigde", OBB)]})
    raw = read_raw(many, strict=False)
    assert raw.classes == CLASS_LISTS["fair1m"] and raw.skipped == {"objects of the unknown class 'Brigde'": 1}


def test_parts_and_splits_with_the_same_numbers(tmp_path):
    root = tmp_path / "r"
    for k, (split, images, labels) in enumerate(
        [("train/part1", "images", "labelXml"), ("train/part2", "images-1", "labelXmls"), ("validation", "images", "labelXml")]
    ):
        fair1m(root / split, {"0": [("Bus", [(x + k, y) for x, y in OBB])], "1": []}, pictures=images, labels=labels)
    picture(root / "test" / "images" / "0.tif")
    raw = read_raw(root)
    assert [(s.file_name, s.split, s.source, len(s.instances)) for s in raw.scenes] == [
        (f"{folder}/{n}.tif", split, f"{folder}/{n}", 1 - n)
        for folder, split in [("train/part1/images", "train"), ("train/part2/images-1", "train"), ("validation/images", "val")]
        for n in (0, 1)
    ]
    assert [s.instances[0].corners[0] for s in raw.scenes if s.instances] == [40, 41, 42]  # each with its own labels
    assert raw.skipped == {"pictures without annotations": 1}


def test_a_set_of_pictures_without_objects_is_recognised(tmp_path):
    assert detect_format(fair1m(tmp_path / "r", {"0": []})) == "fair1m"


def test_more_corners_are_an_outline(tmp_path):
    raw = read_raw(fair1m(tmp_path / "r", {"0": [("Intersection", [*OBB, (39.0, 20.0), OBB[0]])]}))
    (instance,) = raw.scenes[0].instances
    assert len(instance.mask[0]) == 10 and instance.oriented and sum(raw.notes.values()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<point>60.0,12.0</point>", "<point>60.0;12.0</point>"), r"object 1: <point>: expected x,y, found '60\.0;12\.0'"),
        (("<point>60.0,12.0</point>", "<point>nan,12.0</point>"), "<point>: expected a finite number"),
        (("<point>60.0,12.0</point><point>58.0,30.0</point>", ""), "expected the four corners, found 2 points"),
        (("<coordinate>pixel", "<coordinate>geodegree"), "<coordinate>: expected pixel, found 'geodegree'"),
        (("<name>Bus</name>", "<name></name>"), "expected a class name"),
        (("</objects>", ""), r"0\.xml:2:\d+: not valid XML"),
    ],
)
def test_broken_files(tmp_path, change, message):
    root = fair1m(tmp_path / "r", {"0": [("Bus", OBB), ("Van", OBB)], "1": [("Bus", OBB)] * 9})
    path = root / "labelXml" / "0.xml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(CCDiffError, match=message):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert sum(len(s.instances) for s in raw.scenes) == (9 if "valid" in message else 10) and sum(raw.skipped.values()) >= 1


def test_missing_pictures(tmp_path):
    root = fair1m(tmp_path / "r", {"0": [("Bus", OBB)], "1": [("Bus", OBB)]})
    (root / "images" / "1.tif").unlink()
    with pytest.raises(CCDiffError, match=r"the picture 1\.tif is missing"):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert [s.file_name for s in raw.scenes] == ["0.tif"] and raw.skipped == {"pictures that are missing": 1}


def test_objects_outside_of_objects_are_not_passed_over(tmp_path):
    root = fair1m(tmp_path / "r", {str(k): [("Bus", OBB)] for k in range(12)})
    path = root / "labelXml" / "3.xml"
    path.write_text(path.read_text().replace("<objects>", "").replace("</objects>", ""))
    with pytest.raises(CCDiffError, match=r"3\.xml: objects stand outside of <objects>"):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert len(raw.scenes) == 11 and sum(raw.skipped.values()) == 1  # its picture is not counted a second time
