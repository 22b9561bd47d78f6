"""COCO and Roboflow's folders of it, read by pycocotools and torchvision."""

import contextlib
import json

import pytest
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection

from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.formats import read_raw
from tests.export.sets import CLASSES, SLANTED


def test_coco_is_read_by_pycocotools_and_torchvision(data, tmp_path):
    done = export_set(data.root, tmp_path / "out", ExportOptions(format="coco"))
    assert done.pictures == 4 and done.objects == 9 and done.lost == {} and done.entry == tmp_path / "out" / "annotations"
    with contextlib.redirect_stdout(None):
        coco = COCO(str(done.entry / "instances_train.json"))
        read = CocoDetection(str(done.root / "images" / "train"), str(done.entry / "instances_train.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == 3 and coco.annToMask(annotations[0]).sum() == pytest.approx(annotations[0]["area"], rel=0.2)
    assert annotations[0]["obb"] == pytest.approx(SLANTED) and annotations[1]["difficult"] == 1
    image, targets = read[0]
    assert image.size == (96, 64) and len(targets) == 3 and len(read[1][1]) == 0
    back = read_raw(done.root)  # and by our own reader: nothing is lost
    assert {s.file_name: (s.split, len(s.instances)) for s in back.scenes} == {
        "a.png": ("train", 3), "b.jpg": ("train", 0), "c.png": ("val", 3), "d.png": ("test", 3),
    }  # fmt: skip


def test_coco_says_what_its_readers_may_overlook(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="coco"))
    assert done.lost == {} and done.apart == {"captions": 4, "difficult flags": 3, "orientations": 6}


def test_roboflow_folders_have_pictures_and_labels_side_by_side(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="roboflow-coco"))
    found = sorted(p.relative_to(done.root).as_posix() for p in done.root.rglob("*") if p.is_file())
    assert found == [
        "export.json", "test/_annotations.coco.json", "test/d.png", "train/_annotations.coco.json", "train/a.png", "train/b.jpg",
        "valid/_annotations.coco.json", "valid/c.png",
    ]  # fmt: skip
    train = json.loads((done.root / "train" / "_annotations.coco.json").read_text())
    assert [c["name"] for c in train["categories"]] == list(CLASSES) and [i["file_name"] for i in train["images"]] == ["a.png", "b.jpg"]
    with contextlib.redirect_stdout(None):
        read = CocoDetection(str(done.root / "valid"), str(done.root / "valid" / "_annotations.coco.json"))
    image, targets = read[0]
    assert image.size == (96, 64) and targets[1]["bbox"] == [5, 5, 20.5, 20.25] and targets[0]["obb"] == pytest.approx(SLANTED)
    assert done.apart == {"captions": 4, "difficult flags": 3, "orientations": 6}
