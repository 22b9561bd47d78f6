"""DOTA's label files, read by mmrotate, and its files of results."""

from pathlib import Path

import numpy as np
import pytest

from ccdiff_cli.detectors import mmcv_ops
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.geometry import visible_hbbs
from ccdiff_cli.prepare import prepare_dataset
from ccdiff_cli.scene import ClassList, Instance
from tests.export.sets import OUTSIDE, SLANTED, one_scene

SPACES = "spaces in class names (written as dashes)"


def test_dota_lines(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="dota"))
    text = (done.root / "train" / "labelTxt" / "a.txt").read_text()
    lines = text.splitlines()
    assert lines[:2] == ["imagesource:ccdiff", "gsd:null"] and text.endswith("\n") and len(lines) == 5
    fields = lines[2].split()
    assert len(fields) == 10 and [float(v) for v in fields[:8]] == pytest.approx(SLANTED, abs=1e-3) and fields[8:] == ["ship", "0"]
    assert lines[3] == "5.0 5.0 25.5 5.0 25.5 25.25 5.0 25.25 storage-tank 1"
    assert (done.root / "train" / "labelTxt" / "b.txt").read_text().splitlines() == lines[:2]
    assert (done.root / "train" / "annfiles" / "a.txt").read_text().splitlines() == lines[2:]
    assert (done.root / "train" / "images" / "b.jpg").is_file() and (done.root / "classes.txt").read_text() == "ship\nstorage-tank\n"
    assert done.lost == {
        SPACES: 1, "captions": 4, "horizontal boxes other than the OBB's": 3, "marks that an orientation is unknown": 3, "masks": 3,
    }  # fmt: skip
    assert done.said[0] == "1 pictures are no .png, which mmrotate's reader asks for (--picture-format png)"


def test_dota_is_read_by_mmrotate(data, tmp_path):
    pytest.importorskip("mmrotate")
    mmcv_ops.install()  # mmrotate imports compiled parts of mmcv
    from mmrotate.datasets import DOTADataset

    done = export_set(data, tmp_path / "out", ExportOptions(format="dota"))
    classes = tuple((done.root / "classes.txt").read_text().split())
    read = DOTADataset(data_root=str(done.root / "train"), ann_file="annfiles", data_prefix={"img_path": "images"},
                       metainfo={"classes": classes}, pipeline=[], serialize_data=False)  # fmt: skip
    found = {info["img_id"]: info for info in read.load_data_list()}
    assert {name: [i["bbox_label"] for i in info["instances"]] for name, info in found.items()} == {"a": [0, 1, 0], "b": []}
    assert Path(found["a"]["img_path"]) == done.root / "train" / "images" / "a.png" and Path(found["a"]["img_path"]).is_file()
    boxes = [i["bbox"] for i in found["a"]["instances"]]
    assert boxes[0] == pytest.approx(SLANTED, abs=1e-3) and boxes[2] == pytest.approx(OUTSIDE, abs=1e-3)


def test_dota_header_says_what_the_source_said(tmp_path):
    header = {"imagesource": "GoogleEarth\nx", "gsd": 0.146343590398}
    done = export_set(one_scene(tmp_path / "set", provenance=header), tmp_path / "out", ExportOptions(format="dota"))
    lines = (done.root / "train" / "labelTxt" / "a.txt").read_text().splitlines()
    assert lines == ["imagesource:GoogleEarth x", "gsd:0.146343590398"] and done.lost.keys() == {SPACES}


def test_task1_results_are_the_labels_with_a_score(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="dota-task1"))
    names = sorted(p.name for p in done.root.iterdir())
    assert names == ["Task1_ship.txt", "Task1_storage-tank.txt", "classes.txt", "export.json", "imagesets"]
    tanks = (done.root / "Task1_storage-tank.txt").read_text().splitlines()
    assert tanks == [f"{stem} 1.0 5.0 5.0 25.5 5.0 25.5 25.25 5.0 25.25" for stem in ("a", "c", "d")]
    first = (done.root / "Task1_ship.txt").read_text().splitlines()[0].split()
    assert first[:2] == ["a", "1.0"] and [float(v) for v in first[2:]] == pytest.approx(SLANTED, abs=1e-3)
    assert {p.name: p.read_text() for p in (done.root / "imagesets").iterdir()} == {
        "train.txt": "a\nb\n", "val.txt": "c\n", "test.txt": "d\n",
    }  # fmt: skip
    assert (done.root / "classes.txt").read_text() == "ship\nstorage tank\n"
    assert done.lost["difficult flags"] == 3 and "orientations" not in done.lost and any("hold none" in line for line in done.said)


def test_task1_keeps_scores_and_refuses_names_that_its_lines_or_files_cannot_hold(tmp_path):
    box = Instance.from_corners("ship", SLANTED, extra={"score": 0.25})
    done = export_set(one_scene(tmp_path / "set", instances=(box,)), tmp_path / "out", ExportOptions(format="dota-task1"))
    assert (done.root / "Task1_ship.txt").read_text().split()[1] == "0.25"
    with pytest.raises(CCDiffError, match=r"'a b\.png' has a space"):
        export_set(one_scene(tmp_path / "set2", name="a b.png"), tmp_path / "out2", ExportOptions(format="dota-task1"))
    with pytest.raises(CCDiffError, match="2 classes would both be written as 'a_b'"):
        export_set(one_scene(tmp_path / "set3", ClassList(("a/b", "A:b"))), tmp_path / "out2", ExportOptions(format="dota-task1"))
    slashes = export_set(one_scene(tmp_path / "set4", ClassList(("../a/b",))), tmp_path / "out3", ExportOptions(format="dota-task1"))
    assert (slashes.root / "Task1_.._a_b.txt").is_file() and not (tmp_path / "out2").exists()


def test_dashes_for_spaces_are_counted(tmp_path):
    made = one_scene(tmp_path / "set", ClassList(("ship", "storage tank", "small-vehicle")))
    assert export_set(made, tmp_path / "out", ExportOptions(format="dota")).lost[SPACES] == 1


def test_task1_refuses_a_class_whose_file_no_file_system_takes(tmp_path):
    fits, too_long = "\u8239" * 81 + "ab", "\u8239" * 82  # 245 and 246 bytes
    done = export_set(one_scene(tmp_path / "set", ClassList((fits,))), tmp_path / "out", ExportOptions(format="dota-task1"))
    assert (tmp_path / "out" / f"Task1_{fits}.txt").is_file() and done.pictures == 1
    with pytest.raises(CCDiffError, match="file name of 256 bytes") as caught:
        export_set(one_scene(tmp_path / "set2", ClassList((too_long,))), tmp_path / "out2", ExportOptions(format="dota-task1"))
    assert "shorter class names" in caught.value.fix and not list((tmp_path / "out2").glob("Task1*"))


def test_the_hbb_of_a_box_that_reaches_beyond_is_no_other_hbb(tmp_path):
    """Its HBB is that of the visible part, which every reader of ours makes of the corners again."""
    (seen,) = visible_hbbs(np.array([OUTSIDE]), (0, 0, 96, 64)).tolist()
    box = Instance.from_corners("ship", OUTSIDE, seen)
    done = export_set(one_scene(tmp_path / "set", instances=(box,)), tmp_path / "out", ExportOptions(format="dota"))
    assert not any("horizontal boxes" in what for what in done.lost)
    back = prepare_dataset(tmp_path / "out", tmp_path / "back")
    assert back.scenes[0].instances[0].hbb == pytest.approx(seen, abs=2e-3)
