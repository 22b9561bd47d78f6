"""YOLO and YOLO-OBB, read by the rules of their description."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.export.common import CORNERS_OUTSIDE
from ccdiff_cli.geometry import polygon_iou
from ccdiff_cli.scene import Instance
from tests.export.sets import SLANTED, one_scene


def yolo_lines(root: Path, image: Path) -> list[list[float]]:
    """As the format says: the label lies where the last /images/ becomes /labels/."""
    head, _, tail = image.relative_to(root).as_posix().rpartition("images/")
    path = root / f"{head}labels/{tail}"
    return [[float(v) for v in line.split()] for line in path.with_suffix(".txt").read_text().splitlines()]


def test_yolo(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="yolo"))
    description = yaml.safe_load(done.entry.read_text())
    assert description == {"train": "images/train", "val": "images/val", "test": "images/test", "names": {0: "ship", 1: "storage tank"}}
    lines = yolo_lines(done.root, done.root / description["train"] / "a.png")
    assert lines[1] == pytest.approx([1, 15.25 / 96, 15.125 / 64, 20.5 / 96, 20.25 / 64], abs=1e-6)
    assert all(0 <= v <= 1 for line in lines for v in line[1:]) and [line[0] for line in lines] == [0, 1, 0]
    assert yolo_lines(done.root, done.root / "images" / "train" / "b.jpg") == []
    assert done.lost == {"captions": 4, "difficult flags": 3, "masks": 3, "orientations": 6}  # and nothing that never was there


def test_yolo_leaves_no_object_out_unsaid(tmp_path):
    boxes = [(-5, 10, 20, 30), (100, 10, 120, 30), (3, 3, 3, 9)]  # reaches out, outside, no area
    made = one_scene(tmp_path / "set", instances=tuple(Instance.from_hbb("ship", b) for b in boxes))
    done = export_set(made, tmp_path / "out", ExportOptions(format="yolo"))
    assert len((done.root / "labels" / "train" / "a.txt").read_text().splitlines()) == 1
    assert done.lost == {"horizontal boxes reaching out of the picture": 1, "objects without an area inside the picture": 2}


def test_yolo_obb(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="yolo-obb"))
    lines = yolo_lines(done.root, done.root / "images" / "val" / "c.png")
    assert all(len(line) == 9 and all(0 <= v <= 1 for v in line[1:]) for line in lines)
    found = np.array(lines[0][1:]) * np.tile([96, 64], 4)
    assert polygon_iou(found, SLANTED) > 0.999
    assert done.lost[CORNERS_OUTSIDE] == 3 and done.lost["difficult flags"] == 3 and "orientations" not in done.lost
