"""What real exporters write and a reader could misread without a word: turns, corners in another order, twins, units, formats not read."""

import json

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import TWINS, detect_format, read_raw
from tests.fuzz.seeds import SEEDS
from tests.rawsets import coco, cvat_xml, hbb_xml, labelme_file, picture, vhr10, voc_xml

ORDER = "boxes whose two corners stood in another order, put in order"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def annotation(**more):
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 25, 15], **more}


def voc(root, *objects):
    picture(root / "JPEGImages" / "a.png")
    write(root / "Annotations" / "a.xml", voc_xml(list(objects), size=(96, 64)))
    return root


def cvat(root, shape):
    picture(root / "images" / "a.png")
    write(root / "annotations.xml", cvat_xml([f'<image id="0" name="a.png" width="96" height="64">{shape}</image>']))
    return root


def yolo(root, text, description="names: [ship, car]\n"):
    picture(root / "images" / "train" / "a.png")
    write(root / "labels" / "train" / "a.txt", text)
    write(root / "data.yaml", f"train: images/train\nval: images/train\n{description}")
    return root


# ---- the same object twice

SHAPE = {"label": "ship", "points": [[5, 5], [30, 20]], "shape_type": "rectangle"}
TWICE = {
    "coco": lambda root: coco(root, [annotation(), annotation(id=2, bbox=[5.0, 5, 25, 15]), annotation(id=3, category_id=7)]),
    "yolo": lambda root: yolo(root, "0 0.5 0.5 0.25 0.25\n1 0.5 0.5 0.25 0.25\n0 0.50 0.5 0.25 0.25\n"),
    "voc": lambda root: voc(root, *[hbb_xml("boat", (5, 5, 30, 20))] * 2, hbb_xml("boat", (5, 5, 30, 21))),
    "labelme": lambda root: (picture(root / "a.png"), labelme_file(root / "a.json", [SHAPE, SHAPE])),
    "vhr10": lambda root: vhr10(root, {"001": [("ship", (5, 5, 30, 20))] * 2}),
}


@pytest.mark.parametrize("format", sorted(TWICE))
def test_objects_that_stand_twice_are_said_and_kept(tmp_path, format):
    TWICE[format](tmp_path / "r")
    raw = read_raw(tmp_path / "r", format)
    assert raw.notes[TWINS] == 1 and len(raw.scenes[0].instances) == (2 if format in ("labelme", "vhr10") else 3)
    assert "2 times" in raw.places[TWINS][0]["what"]


@pytest.mark.parametrize("format", sorted(SEEDS))
def test_sound_sets_have_no_twins(tmp_path, format):
    SEEDS[format](tmp_path / "r")
    assert TWINS not in read_raw(tmp_path / "r").notes


# ---- corners in another order


def test_corners_in_another_order_are_put_in_order_and_said(tmp_path):
    metadata = {"file_name": "a.png", "caption": ["a port", "ship"], "bndboxes": [[0.4, 0.5, 0.1, 0.1]]}
    picture(tmp_path / "metadata" / "a.png", 100, 100)
    write(tmp_path / "metadata" / "metadata.jsonl", json.dumps(metadata) + "\n")
    sets = {
        "voc": voc(tmp_path / "voc", hbb_xml("boat", (30, 20, 5, 5))),
        "cvat": cvat(tmp_path / "cvat", '<box label="ship" xtl="30" ytl="5" xbr="5" ybr="20"></box>'),
        "vhr10": vhr10(tmp_path / "vhr10", {"001": [("ship", (30, 20, 5, 5))]}),
        "metadata": tmp_path / "metadata",
    }
    for name, root in sets.items():
        raw = read_raw(root)
        assert raw.format == name and raw.changes == {ORDER: 1} and raw.places[ORDER][0]["where"]
        x1, y1, x2, y2 = raw.scenes[0].instances[0].hbb
        assert x1 < x2 and y1 < y2


def test_negative_sides_are_no_box(tmp_path):
    anns = [annotation(bbox=[30, 20, -25, -15]), annotation(id=2)]
    raw = read_raw(coco(tmp_path / "r", anns), strict=False)
    assert sum(raw.skipped.values()) == 1 and len(raw.scenes[0].instances) == 1
    with pytest.raises(CCDiffError, match=r"annotation 1: bbox: expected a width and a height that are not negative"):
        read_raw(tmp_path / "r")


def test_an_object_of_two_boxes_is_refused(tmp_path):
    box = "<bndbox><xmin>40</xmin><ymin>40</ymin><xmax>50</xmax><ymax>50</ymax></bndbox>"
    with pytest.raises(CCDiffError, match="object 1: the object has 2 <bndbox>"):
        read_raw(voc(tmp_path / "r", hbb_xml("boat", (5, 5, 30, 20)) + box))


# ---- turns that nobody reads


@pytest.mark.parametrize(
    "more", [{"angle": 45}, {"theta": "0.5"}, {"rbox": [20, 15, 20, 10, 45]}, {"attributes": {"Angle": 30.0}}], ids=lambda m: next(iter(m))
)
def test_a_turn_that_is_not_read_is_said(tmp_path, more):
    raw = read_raw(coco(tmp_path / "r", [annotation(**more)]))
    (said,) = [what for what in raw.notes if "which is not read" in what]
    assert raw.notes[said] == 1 and not raw.scenes[0].instances[0].oriented


@pytest.mark.parametrize("more", [{"angle": 0}, {"angle": None}, {"theta": "none"}, {"angle": True}, {"attributes": {"colour": 3}}])
def test_no_turn_is_no_note(tmp_path, more):
    assert not read_raw(coco(tmp_path / "r", [annotation(**more)])).notes


def test_turns_of_voc_and_cvat_that_are_not_read(tmp_path):
    within = hbb_xml("boat", (5, 5, 30, 20)).replace("</bndbox>", "<angle>0.5</angle></bndbox>")
    raw = read_raw(voc(tmp_path / "voc", within, hbb_xml("boat", (40, 5, 60, 20)) + "<angle>12</angle>"))
    assert [n for what, n in raw.notes.items() if "'angle', which is not read" in what] == [2]
    shape = '<box label="ship" xtl="5" ytl="5" xbr="30" ybr="20"><attribute name="angle">30</attribute></box>'
    raw = read_raw(cvat(tmp_path / "cvat", shape))
    assert [n for what, n in raw.notes.items() if "'angle', which is not read" in what] == [1]


def test_degrees_among_radians_stop(tmp_path):
    """A set in degrees has small angles, too, which pass for radians: that some are broken says that all are wrong."""
    turned = "<name>boat</name><robndbox><cx>40</cx><cy>30</cy><w>30</w><h>8</h><angle>{}</angle></robndbox>"
    angles = [5] * 30 + [45]
    root = voc(tmp_path / "r", *(turned.format(angle) for angle in angles))
    with pytest.raises(CCDiffError, match=r"expected radians, found 45(.|\n)*the smaller ones are, too"):
        read_raw(root, strict=False)


def test_keypoints_without_their_shape_are_no_outline(tmp_path):
    line = "0 0.5 0.5 0.2 0.1 0.45 0.5 2 0.55 0.5 1\n"
    with pytest.raises(CCDiffError, match=r"box with keypoints(.|\n)*kpt_shape: \[2, 3\]"):
        read_raw(yolo(tmp_path / "r", line))
    raw = read_raw(yolo(tmp_path / "r", line, "names: [ship, car]\nkpt_shape: [2, 3]\n"))
    assert raw.notes["keypoints of boxes, passed over"] == 1
    whole = "0 0 0 1 0 1 1 0 1 0 0\n"  # an outline of the whole picture, closed
    assert read_raw(yolo(tmp_path / "whole", whole)).scenes[0].instances[0].hbb == (0, 0, 96, 64)


def test_header_lines_of_dota_in_quotes(tmp_path):
    picture(tmp_path / "images" / "P1.png")
    write(tmp_path / "labelTxt" / "P1.txt", "'imagesource':GoogleEarth\n'gsd':0.5\n10 10 30 10 30 20 10 20 ship 0\n")
    assert read_raw(tmp_path).scenes[0].provenance == {"imagesource": "GoogleEarth", "gsd": 0.5}


# ---- formats that are not read

RECTANGLE = {"x": 1, "y": 1, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["ship"]}
VIA = {"name": "rect", "x": 1, "y": 1, "width": 5, "height": 5}
UNREAD = {
    "Label Studio": ("project.json", [{"id": 1, "data": {"image": "a"}, "annotations": [{"result": [{"value": RECTANGLE}]}]}]),
    "VIA": ("via.json", {"a.png12": {"filename": "a.png", "regions": [{"shape_attributes": VIA, "region_attributes": {"t": "ship"}}]}}),
    "CreateML": (
        "train/_annotations.createml.json",
        [{"image": "a.png", "annotations": [{"label": "s", "coordinates": {"x": 1, "y": 2, "width": 3, "height": 4}}]}],
    ),
    "Supervisely": ("ds/ann/a.png.json", {"size": {"width": 96}, "objects": [{"classTitle": "ship", "geometryType": "rectangle"}]}),
    "FiftyOne": ("samples.json", {"samples": [{"filepath": "data/a.png"}]}),
    "results of a detector": ("res.json", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]),
    "GeoJSON": ("xView_train.geojson", {"type": "FeatureCollection", "features": []}),
    "a table of VIA": ("via.csv", b"filename,file_size,file_attributes,region_count\na.png,12,{},1\n"),
    "a table of boxes": ("train/_annotations.csv", b"filename,width,height,class,xmin,ymin,xmax,ymax\na.png,96,64,ship,1,2,30,40\n"),
    "a table of boxes (": ("annotations.csv", b"a.png,1,2,3,4,ship\n"),
    "a table of Open Images": ("boxes.csv", b"ImageID,Source,LabelName,Confidence\na,x,/m/01,1\n"),
    "metadata.csv": ("train/metadata.csv", b"file_name,objects\na.png,x\n"),
    "TFRecord": ("train/x.tfrecord", b"abc"),
    "a shapefile": ("a.shp", b"\0\0\x27\x0a"),
    "Parquet with pictures": ("data/train-00000-of-00001.parquet", b"PAR1xxxxPAR1"),
    "KITTI": (
        "label_2/0.txt",
        b"Car 0.00 0 -1.8 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n",
    ),
}


@pytest.mark.parametrize("name", sorted(UNREAD))
def test_a_format_that_is_not_read_is_told_by_name(tmp_path, name):
    file, content = UNREAD[name]
    picture(tmp_path / "train" / "a.png")
    if not file.endswith((".tfrecord", ".shp")):  # told by their names alone, and labels beside them count for more
        write(tmp_path / "classes.txt", "ship\n")
    write(tmp_path / file, content if isinstance(content, bytes) else json.dumps(content))
    with pytest.raises(CCDiffError) as said:
        detect_format(tmp_path)
    assert f"this is {name}" in said.value.what and "not read" in said.value.what and said.value.fix
    assert said.value.where == str(tmp_path / file)


def test_a_table_beside_labels_that_are_read_changes_nothing(tmp_path):
    root = coco(tmp_path / "r", [annotation()])
    write(root / "a.csv", "filename,width\n")
    write(root / "labels.shp", "x")
    assert detect_format(root) == "coco"
