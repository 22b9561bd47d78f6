"""Exports are read back by other programs' rules: pycocotools, torchvision, the DOTA and YOLO descriptions."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection

from ccdiff_cli.dataset import write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import FORMATS, export_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.formats import read_raw
from ccdiff_cli.geometry import le90_to_corners, polygon_iou
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.rawsets import files_of, picture

CLASSES = ClassList(("ship", "storage tank"))
SLANTED = le90_to_corners((50, 30, 40, 10, 0.5))
OUTSIDE = le90_to_corners((90, 10, 30, 12, 0.4))


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "set"
    instances = (
        Instance.from_corners("ship", SLANTED, mask=(SLANTED[:6],)),
        Instance.from_hbb("storage tank", (5, 5, 25.5, 25.25), difficult=True),
        Instance.from_corners("ship", OUTSIDE, (70, 2, 96, 20)),
    )
    scenes, hashes = [], {}
    for k, (name, split) in enumerate((("a.png", "train"), ("b.jpg", "train"), ("c.png", "val"), ("d.png", "test"))):
        hashes[name] = sha256_file(picture(root / "images" / name, 96, 64, seed=k))
        scenes.append(Scene(name, 96, 64, instances if k != 1 else (), split=split, source=name, caption="This is it."))
    return write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)


def test_coco_is_read_by_pycocotools_and_torchvision(data, tmp_path):
    done = export_set(data.root, tmp_path / "out", "coco")
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


def test_dota_lines(data, tmp_path):
    done = export_set(data, tmp_path / "out", "dota")
    text = (done.root / "train" / "labelTxt" / "a.txt").read_text()
    lines = text.splitlines()
    assert lines[:2] == ["imagesource:ccdiff", "gsd:null"] and text.endswith("\n") and len(lines) == 5
    fields = lines[2].split()
    assert len(fields) == 10 and [float(v) for v in fields[:8]] == pytest.approx(SLANTED, abs=1e-3) and fields[8:] == ["ship", "0"]
    assert lines[3] == "5.0 5.0 25.5 5.0 25.5 25.25 5.0 25.25 storage-tank 1"
    assert (done.root / "train" / "labelTxt" / "b.txt").read_text().splitlines() == lines[:2]
    assert (done.root / "train" / "images" / "b.jpg").is_file() and (done.root / "classes.txt").read_text() == "ship\nstorage-tank\n"
    assert done.lost == {"captions": 4, "horizontal boxes other than the OBB's": 3, "masks": 3}


def yolo_lines(root: Path, image: Path) -> list[list[float]]:
    """As the format says: the label lies where the last /images/ becomes /labels/."""
    head, _, tail = image.relative_to(root).as_posix().rpartition("images/")
    path = root / f"{head}labels/{tail}"
    return [[float(v) for v in line.split()] for line in path.with_suffix(".txt").read_text().splitlines()]


def test_yolo(data, tmp_path):
    done = export_set(data, tmp_path / "out", "yolo")
    description = yaml.safe_load(done.entry.read_text())
    assert description == {"train": "images/train", "val": "images/val", "test": "images/test", "names": {0: "ship", 1: "storage tank"}}
    lines = yolo_lines(done.root, done.root / description["train"] / "a.png")
    assert lines[1] == pytest.approx([1, 15.25 / 96, 15.125 / 64, 20.5 / 96, 20.25 / 64], abs=1e-6)
    assert all(0 <= v <= 1 for line in lines for v in line[1:]) and [line[0] for line in lines] == [0, 1, 0]
    assert yolo_lines(done.root, done.root / "images" / "train" / "b.jpg") == []
    assert done.lost == {"captions": 4, "difficult flags": 3, "masks": 3, "orientations": 6}


def test_yolo_obb(data, tmp_path):
    done = export_set(data, tmp_path / "out", "yolo-obb")
    lines = yolo_lines(done.root, done.root / "images" / "val" / "c.png")
    assert all(len(line) == 9 and all(0 <= v <= 1 for v in line[1:]) for line in lines)
    found = np.array(lines[0][1:]) * np.tile([96, 64], 4)
    assert polygon_iou(found, SLANTED) > 0.999
    assert done.lost["corners outside the picture"] == 3 and done.lost["difficult flags"] == 3 and "orientations" not in done.lost


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_pictures_are_linked_and_a_second_run_writes_nothing(data, tmp_path, format):
    done = export_set(data, tmp_path / "out", format)
    linked = [p for p in done.root.rglob("*") if p.suffix in (".png", ".jpg")]
    assert len(linked) == 4
    for path in linked:
        assert path.read_bytes() == (data.root / "images" / path.name).read_bytes()
        assert os.stat(path).st_ino == os.stat(data.root / "images" / path.name).st_ino
    before = {p: p.stat().st_mtime_ns for p in done.root.rglob("*")}
    again = export_set(data, tmp_path / "out", format)
    assert again.resumed and (again.lost, again.entry, again.objects) == (done.lost, done.entry, done.objects)
    assert before == {p: p.stat().st_mtime_ns for p in done.root.rglob("*")}


def test_pictures_are_copied_where_links_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("ccdiff_cli.export.os.link", lambda *a: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    export_set(data, tmp_path / "out", "yolo")
    assert (tmp_path / "out" / "images" / "val" / "c.png").read_bytes() == (data.root / "images" / "c.png").read_bytes()


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_an_interrupted_export_is_completed_to_the_same_bytes(data, tmp_path, format):
    export_set(data, tmp_path / "whole", format)

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        export_set(data, tmp_path / "out", format, progress=stop)
    assert not (tmp_path / "out" / "export.json").exists()
    with pytest.raises(CCDiffError, match="beginning of another export"):
        export_set(data, tmp_path / "out", format, splits=["train"])
    (tmp_path / "out" / ".partial-x").write_bytes(b"half")
    export_set(data, tmp_path / "out", format)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_refusals(data, tmp_path):
    with pytest.raises(CCDiffError, match="unknown export format 'tfrecord'"):
        export_set(data, tmp_path / "out", "tfrecord")
    with pytest.raises(CCDiffError, match="no pictures in the splits holdout"):
        export_set(data, tmp_path / "out", "yolo", splits=["holdout"])
    assert not (tmp_path / "out").exists()
    export_set(data, tmp_path / "out", "yolo")
    with pytest.raises(CCDiffError, match="holds another export"):
        export_set(data, tmp_path / "out", "coco")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(CCDiffError, match="not empty"):
        export_set(data, tmp_path / "mine", "coco")
    with pytest.raises(CCDiffError, match="no such folder"):
        export_set(tmp_path / "nowhere", tmp_path / "out2", "coco")


def test_labels_that_would_overwrite_each_other(tmp_path):
    root = tmp_path / "set"
    hashes = {name: sha256_file(picture(root / "images" / name)) for name in ("a.png", "a.jpg")}
    scenes = [Scene(name, 96, 64, split="train", source=name) for name in hashes]
    data = write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
    with pytest.raises(CCDiffError, match="2 pictures are called 'a'"):
        export_set(data, tmp_path / "out", "yolo")
    assert json.loads((root / "manifest.json").read_text())["kind"] == "prepared"
