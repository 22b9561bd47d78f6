"""VOC: the devkit's way of counting, read by torchvision."""

from pathlib import Path

import defusedxml.ElementTree
import pytest
from torchvision.datasets import VOCDetection

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.formats import read_raw
from ccdiff_cli.options import checked_options
from ccdiff_cli.scene import ClassList, Instance
from tests.export.sets import SLANTED, one_scene


def test_voc_is_read_by_torchvision(data, tmp_path):
    # torchvision asks for .jpg
    export_set(data, tmp_path / "VOCdevkit" / "VOC2012", ExportOptions(format="voc", picture_format="jpeg"), splits=["train"])
    read = VOCDetection(str(tmp_path), year="2012", image_set="train")
    assert len(read) == 2 and [Path(p).stem for p in read.images] == ["a", "b"]
    image, target = read[0]
    annotation = target["annotation"]
    assert image.size == (96, 64) and annotation["size"] == {"width": "96", "height": "64", "depth": "3"}
    ship, tank, outside = annotation["object"]
    assert annotation["filename"] == "a.jpg" and [o["name"] for o in annotation["object"]] == ["ship", "storage tank", "ship"]
    assert tank["bndbox"] == {"xmin": "6", "ymin": "6", "xmax": "25.5", "ymax": "25.25"} and tank["difficult"] == "1"
    assert "robndbox" not in tank and len(ship["robndbox"]) == 8  # DIOR-R's element only where the orientation is known
    assert [float(v) for v in ship["robndbox"].values()] == pytest.approx(SLANTED, abs=1e-3)
    assert list(outside["bndbox"].values()) == ["71", "3", "96", "20"]
    assert not read[1][1]["annotation"]["object"]


def test_voc_lists_and_what_is_lost(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="voc"))
    lists = {p.name: p.read_text() for p in (done.root / "ImageSets" / "Main").iterdir()}
    assert lists == {"train.txt": "a\nb\n", "val.txt": "c\n", "trainval.txt": "a\nb\nc\n", "test.txt": "d\n"}
    assert done.lost == {"captions": 4, "masks": 3}
    assert done.apart == {"orientations": 6, "decimals of boxes (read by supervision and by us, cut off by mmdet)": 6}
    assert done.said[0] == "3 pictures are no .jpg, which torchvision's and mmdet's readers ask for (--picture-format jpeg)"


def test_voc_boxes_that_reach_out_are_written_and_counted(tmp_path):
    boxes = ((-5, 10, 20, 30), (90, 10, 99, 30), (0, 0, 96, 64))
    made = one_scene(tmp_path / "set", instances=tuple(Instance.from_hbb("ship", b) for b in boxes))
    for origin in (0, 1):
        done = export_set(made, tmp_path / f"out{origin}", ExportOptions(format="voc", voc_origin=origin))
        assert done.apart == {"boxes reaching out of the picture (written whole)": 2}
        assert [i.hbb for i in read_raw(done.root).scenes[0].instances] == [tuple(map(float, b)) for b in boxes]


def test_voc_escapes_names(tmp_path):
    name = '<ship> & "co"'
    instances = (Instance.from_hbb(name, (1, 2, 30, 40)),)
    done = export_set(
        one_scene(tmp_path / "set", ClassList((name,)), "a&b.png", instances=instances), tmp_path / "out", ExportOptions(format="voc")
    )
    tree = defusedxml.ElementTree.parse(done.root / "Annotations" / "a&b.xml")
    assert tree.findtext("object/name") == name and tree.findtext("filename") == "a&b.png"


def bndboxes(path: Path) -> list[list[str]]:
    return [[side.text for side in box] for box in defusedxml.ElementTree.parse(path).iter("bndbox")]


@pytest.mark.parametrize(("origin", "written"), [(1, ["11", "9", "26", "20"]), (0, ["10", "8", "26", "20"])])
def test_what_pixels_count_from_is_written_said_and_read_back(tmp_path, origin, written):
    boxes = ((10, 8, 26, 20), (0, 0, 96, 64), (3.25, 4.5, 30.125, 50))
    made = one_scene(tmp_path / "set", instances=tuple(Instance.from_hbb("ship", b) for b in boxes))
    done = export_set(made, tmp_path / "out", ExportOptions(format="voc", voc_origin=origin))
    assert bndboxes(done.root / "Annotations" / "a.xml")[0] == written
    assert any(line.startswith(("bndbox: pixels counted from 1", "bndbox: edges counted from 0")[1 - origin]) for line in done.said)
    for asked in (None, 0, 1):  # what a file says of itself wins
        raw = read_raw(done.root, "voc", voc_origin=asked)
        assert [i.hbb for i in raw.scenes[0].instances] == [pytest.approx(b) for b in boxes]
        assert raw.notes == {f"boxes counted from {origin}, as their files say": 3}


def test_the_corners_of_oriented_objects_count_from_0(tmp_path):
    box = Instance.from_corners("ship", SLANTED)
    done = export_set(one_scene(tmp_path / "set", instances=(box,)), tmp_path / "out", ExportOptions(format="voc"))
    (back,) = read_raw(done.root).scenes[0].instances
    assert back.corners == pytest.approx(SLANTED, abs=1e-3) and back.hbb == pytest.approx(box.hbb, abs=1e-3)
    (written,) = bndboxes(done.root / "Annotations" / "a.xml")
    assert float(written[0]) == pytest.approx(box.hbb[0] + 1, abs=1e-3) and float(written[2]) == pytest.approx(box.hbb[2], abs=1e-3)


def test_boxes_narrower_than_a_pixel_are_made_one_wide_and_counted(tmp_path):
    boxes = ((10.2, 8, 10.7, 20), (95.5, 63.5, 96, 64), (10, 8, 11 - 1e-9, 9))
    made = one_scene(tmp_path / "set", instances=tuple(Instance.from_hbb("ship", b) for b in boxes))
    done = export_set(made, tmp_path / "out", ExportOptions(format="voc"))
    assert bndboxes(done.root / "Annotations" / "a.xml") == [["11.2", "9", "11.2", "20"], ["96", "64", "96", "64"], ["11", "9", "11", "9"]]
    assert done.lost == {"boxes narrower than a pixel, made one wide": 2}
    assert [i.hbb for i in read_raw(done.root).scenes[0].instances][1:] == [(95, 63, 96, 64), (10, 8, 11, 9)]
    exact = export_set(made, tmp_path / "edges", ExportOptions(format="voc", voc_origin=0))
    assert exact.lost == {} and bndboxes(exact.root / "Annotations" / "a.xml")[0] == ["10.2", "8", "10.7", "20"]


def test_exports_of_two_origins_are_two_exports(tmp_path):
    made = one_scene(tmp_path / "set")
    export_set(made, tmp_path / "out", ExportOptions(format="voc"))
    with pytest.raises(CCDiffError, match="another export"):
        export_set(made, tmp_path / "out", ExportOptions(format="voc", voc_origin=0))
    with pytest.raises(CCDiffError, match="voc_origin: expected less than or equal to 1, found 2"):
        checked_options(ExportOptions, {"format": "voc", "voc_origin": 2}, where=None)
