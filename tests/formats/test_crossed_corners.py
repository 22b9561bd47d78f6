"""Corners written row by row, so that two sides cross: every reader of corners gives the box they mean, and it is counted as altered."""

import json

import numpy as np
import pytest

from ccdiff_cli.formats import read_raw
from ccdiff_cli.geometry import le90_to_corners, polygon_iou
from tests.rawsets import coco, cvat_xml, fair1m_xml, labelme_file, obb_xml, picture, sodaa_file, voc_xml

RIGHT = tuple(round(v, 2) for v in le90_to_corners((48, 32, 40, 12, 0.5)))
ORDERS = [(0, 1, 3, 2), (0, 2, 1, 3), (2, 0, 1, 3)]


def _dota(root, corners):
    picture(root / "images" / "a.png")
    (root / "labelTxt").mkdir()
    (root / "labelTxt" / "a.txt").write_text(" ".join(map(str, corners)) + " ship 0\n")


def _voc(root, corners):
    picture(root / "JPEGImages" / "a.png")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text(voc_xml([obb_xml("ship", corners)], size=(96, 64)))


def _yolo_obb(root, corners):
    picture(root / "images" / "train" / "a.png")
    (root / "labels" / "train").mkdir(parents=True)
    shares = [v / (64 if k % 2 else 96) for k, v in enumerate(corners)]
    (root / "labels" / "train" / "a.txt").write_text("0 " + " ".join(map(str, shares)) + "\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [ship]\n")


def _metadata(root, corners):
    picture(root / "a.png")
    shares = [v / (64 if k % 2 else 96) for k, v in enumerate(corners)]
    entry = {"file_name": "a.png", "caption": ["", "ship"], "bndboxes": [[0.1, 0.1, 0.9, 0.9]], "obboxes": [shares]}
    (root / "metadata.jsonl").write_text(json.dumps(entry) + "\n")


def _coco(root, corners):
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [28, 16, 40, 32], "segmentation": [list(corners)]}
    coco(root, [one])


def _fair1m(root, corners):
    picture(root / "images" / "a.png")
    (root / "labelXml").mkdir()
    points = list(zip(corners[0::2], corners[1::2], strict=True))
    (root / "labelXml" / "a.xml").write_text(fair1m_xml([("Warship", [*points, points[0]])]))


def _sodaa(root, corners):
    picture(root / "Images" / "a.jpg")
    sodaa_file(root / "Annotations" / "a.json", [{"poly": list(corners), "category_id": 4}])


def _labelme(root, corners):
    picture(root / "a.png")
    points = np.reshape(corners, (4, 2)).tolist()
    labelme_file(root / "a.json", [{"label": "ship", "shape_type": "rotation", "points": points}])


def _cvat(root, corners):
    picture(root / "images" / "a.png")
    points = ";".join(f"{x},{y}" for x, y in np.reshape(corners, (4, 2)))
    (root / "annotations.xml").write_text(cvat_xml([f'<image id="0" name="a.png"><polygon label="ship" points="{points}"/></image>']))


def _huggingface(root, corners):
    picture(root / "a.png")
    objects = {"bbox": [[28, 16, 40, 32]], "category": ["ship"], "corners": [list(corners)]}
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "objects": objects}) + "\n")


BUILD = {
    "dota": _dota, "voc": _voc, "yolo-obb": _yolo_obb, "metadata": _metadata, "coco": _coco, "fair1m": _fair1m, "sodaa": _sodaa,
    "labelme": _labelme, "cvat": _cvat, "huggingface": _huggingface,
}  # fmt: skip


@pytest.mark.parametrize("format", sorted(BUILD))
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), *ORDERS])
def test_every_reader_of_corners(tmp_path, format, order):
    corners = [v for k in order for v in RIGHT[2 * k : 2 * k + 2]]
    BUILD[format](tmp_path, corners)
    raw = read_raw(tmp_path)
    (instance,) = raw.scenes[0].instances
    assert raw.format == format and instance.oriented and polygon_iou(instance.corners, RIGHT) == pytest.approx(1)
    crossed = order in ORDERS
    assert raw.changes == ({"boxes whose sides crossed, untangled": 1} if crossed else {})
    assert instance.corners[:2] == pytest.approx(corners[:2])  # the first stays the first
    if not crossed:
        assert instance.corners == pytest.approx(corners)
