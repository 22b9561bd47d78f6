"""Hugging Face imagefolders and webdataset shards that others wrote: shapes of `objects`, category numbers, folders, broken entries.

What our own exporter writes is read back in ``tests/export/test_round_trips.py``.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import detect_format, read_raw, webdataset
from ccdiff_cli.formats.classes import read_class_file
from ccdiff_cli.formats.webdataset import forget_unpacked, unpacked
from tests.rawsets import picture, shard

BOX = [5.5, 6, 20, 10]


def folder(root, entries, *, split="train", classes="ship\ncar\n"):
    (root / split).mkdir(parents=True)
    for k, entry in enumerate(entries):
        picture(root / split / f"{k}.png", seed=k)
        entry.setdefault("file_name", f"{k}.png")
    (root / split / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


@pytest.mark.parametrize(
    "objects",
    [
        {"bbox": [BOX], "categories": [1]},
        {"bbox": [BOX], "category": ["car"], "area": [200], "id": [7]},
        {"bbox": [BOX], "label": [1.0]},
        [{"bbox": BOX, "category_id": 1}],
    ],
)
def test_objects_as_datasets_spell_them(tmp_path, objects):
    root = folder(tmp_path / "r", [{"objects": objects, "image_id": 3}, {"objects": {"bbox": [], "categories": []}}, {"objects": None}])
    assert detect_format(root) == "huggingface"
    raw = read_raw(root)
    assert list(raw.classes) == ["ship", "car"] and [len(s.instances) for s in raw.scenes] == [1, 0, 0]
    (instance,) = raw.scenes[0].instances
    assert instance.category == "car" and instance.hbb == (5.5, 6, 25.5, 16) and not instance.oriented


def test_splits_names_and_classes(tmp_path):
    for split in ("train", "validation", "test"):
        folder(tmp_path / "data", [{"objects": {"bbox": [BOX], "category": [split]}, "text": f"a {split}"}], split=split, classes="")
    raw = read_raw(tmp_path)
    assert list(raw.classes) == ["test", "train", "validation"]
    assert {s.file_name: (s.split, s.caption) for s in raw.scenes} == {
        "data/test/0.png": ("test", "a test"), "data/train/0.png": ("train", "a train"), "data/validation/0.png": ("val", "a validation"),
    }  # fmt: skip
    numbers = folder(tmp_path / "n", [{"objects": {"bbox": [BOX], "category": [1]}}], classes="")
    with pytest.raises(CCDiffError, match="nothing names the classes"):
        read_raw(numbers)
    (tmp_path / "classes.txt").write_text("boat\nvan\n")
    assert read_raw(numbers, classes=read_class_file(tmp_path / "classes.txt")).scenes[0].categories() == ["van"]


def test_parquet(tmp_path):
    picture(tmp_path / "train" / "a.png")
    rows = [{"file_name": "a.png", "objects": {"bbox": [BOX], "category": [0]}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train" / "metadata.parquet")
    (tmp_path / "classes.txt").write_text("ship\n")
    assert detect_format(tmp_path) == "huggingface"
    assert read_raw(tmp_path).scenes[0].instances[0].hbb == (5.5, 6, 25.5, 16)
    data = (tmp_path / "train" / "metadata.parquet").read_bytes()
    for broken in (data[:-20], data[: len(data) // 2], b"PAR1" + data[-100:], b"PAR1objects"):
        (tmp_path / "train" / "metadata.parquet").write_bytes(broken)
        with pytest.raises(CCDiffError, match="not a Parquet file"):
            read_raw(tmp_path, "huggingface")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"objects": {"bbox": [BOX], "category": [0, 1]}}, r"metadata\.jsonl:2: objects: category: expected a list of 1"),
        ({"objects": {"bbox": [BOX[:3]], "category": [0]}}, "object 1: bbox: expected x, y, width, height"),
        ({"objects": {"bbox": [[5, 6, -1, 3]], "category": [0]}}, "not negative"),
        ({"objects": {"bbox": [BOX], "category": [True]}}, "expected a class name"),
        ({"objects": {"bbox": [BOX], "category": [0], "corners": [[1, 2]]}}, "corners: expected x1 y1"),
        ({"objects": {"bbox": [BOX], "category": [0], "mask": [[[1, 2, 3]]]}}, "mask: expected polygons"),
        ({"objects": "many"}, "objects: expected lists"),
        ({"objects": {"bbox": []}, "file_name": "x.png"}, r"the picture x\.png is missing"),
        ({"objects": {"bbox": []}, "file_name": "0.png"}, r"the picture 0\.png stands in"),
        ({"objects": {"bbox": []}, "file_name": 3}, "file_name: expected a text"),
    ],
)
def test_broken_entries(tmp_path, entry, message):
    good = {"objects": {"bbox": [BOX, BOX], "category": [0, 1]}}
    root = folder(tmp_path / "r", [dict(good), entry, dict(good)])
    with pytest.raises(CCDiffError, match=message):
        read_raw(root, "huggingface")
    raw = read_raw(root, "huggingface", strict=False)
    unnamed = raw.skipped.pop("pictures without annotations", 0)  # of an entry that names no picture of its own
    assert sum(len(s.instances) for s in raw.scenes) == 4 and sum(raw.skipped.values()) == 1 and unnamed <= 1


def test_categories_that_count_from_1_stop_rather_than_shift(tmp_path):
    root = folder(tmp_path / "r", [{"objects": {"bbox": [BOX, BOX, BOX], "category": [1, 1, 2]}}])
    with pytest.raises(CCDiffError, match=r"unknown category 2(.|\n)*known categories: 0 ship, 1 car"):
        read_raw(root, "huggingface", strict=False)


def test_names_that_leave_the_folder(tmp_path):
    root = folder(tmp_path / "r", [{"objects": {"bbox": []}}, {"objects": {"bbox": []}, "file_name": "../../secret.png"}])
    with pytest.raises(CCDiffError, match="leaves its folder"):
        read_raw(root, strict=False)


# --------------------------------------------------------------------------------------------------------------------------- webdataset


def label(name, **more):
    return json.dumps({"file_name": name, "objects": {"bbox": [BOX], "category": [1], **more}}).encode()


def test_shards(tmp_path):
    data = picture(tmp_path / "x.png").read_bytes()
    root = tmp_path / "r"
    shard(
        root / "train-000000.tar",
        [("a/0001.png", data), ("a/0001.json", label("a.png")), ("b/0001.json", label("b.png")), ("b/0001.PNG", data)],
    )
    shard(root / "val-000000.tar", [("0.jpg", data), ("0.json", label("a.png")), ("1.cls", b"3")])
    (root / "classes.txt").write_text("ship\ncar\n")
    assert detect_format(root) == "webdataset"
    raw = read_raw(root)
    assert [(s.split, s.categories()) for s in raw.scenes] == [("train", ["car"]), ("train", ["car"]), ("val", ["car"])]
    assert len({s.file_name for s in raw.scenes}) == 3 and raw.scenes[1].file_name == "b.png"
    for scene in raw.scenes:
        with open(scene.path, "rb") as stream:
            assert stream.read() == data
    assert raw.notes == {"pictures unpacked from shards into a temporary folder": 3}
    assert read_raw(root).scenes == raw.scenes and len(unpacked) >= 1  # the same folder
    forget_unpacked()
    assert not unpacked


def test_shards_whose_labels_name_no_pictures(tmp_path):
    """Each is its own source; a word that all shards have in their names says nothing of their splits."""
    nameless = json.dumps({"objects": {"bbox": [BOX], "category": ["ship"]}}).encode()
    data = picture(tmp_path / "x.png").read_bytes()
    root = tmp_path / "r"
    for split in ("train", "val"):
        shard(
            root / f"test_area_{split}-000000.tar",
            [(f"{k}.{end}", part) for k in range(3) for end, part in (("png", data), ("json", nameless))],
        )
    raw = read_raw(root)
    assert [s.split for s in raw.scenes] == ["train"] * 3 + ["val"] * 3
    assert len({s.source for s in raw.scenes}) == len({s.file_name for s in raw.scenes}) == 6 and all(s.source for s in raw.scenes)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_what_a_killed_process_unpacked_is_removed_by_the_next(tmp_path, monkeypatch):
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(webdataset, "FRESH_SECONDS", 0.0)
    forget_unpacked()
    roots = [tmp_path / name for name in "abc"]
    for root in roots:
        root.mkdir()
        shard(root / "train-000000.tar", [("0.png", picture(tmp_path / "x.png").read_bytes()), ("0.json", label("0.png"))])
        (root / "classes.txt").write_text("ship\ncar\n")
    code = "import os, sys; from ccdiff_cli.formats import read_raw; read_raw(sys.argv[1]); os.kill(os.getpid(), 9)"
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(Path(webdataset.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(roots[0])], env=environment, check=False)
    (left,) = place.iterdir()
    mine = [Path(read_raw(root).scenes[0].path) for root in roots[1:]]
    assert not left.exists() and all(path.is_file() for path in mine), "of living processes they stay"
    forget_unpacked()
    assert not list(place.iterdir())


def test_names_in_shards_lead_nowhere(tmp_path):
    data = picture(tmp_path / "x.png").read_bytes()
    root = tmp_path / "r"
    shard(root / "train-000000.tar", [("../../../evil.png", data), ("../../../evil.json", label("/etc/passwd"))])
    (root / "classes.txt").write_text("ship\ncar\n")
    (scene,) = read_raw(root, "webdataset").scenes
    assert scene.file_name == "train-000000-00000000.png" and "ccdiff-webdataset-" in scene.path and not list(tmp_path.rglob("evil*"))
    with tarfile.open(root / "train-000001.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "1.png"), (tarfile.FIFOTYPE, "2.png")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    assert len(read_raw(root).scenes) == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.json", label("a.png"))], r"the picture a\.png is missing"),
        ([("0.json", b"\xff"), ("0.png", b"x")], "not UTF-8"),
        ([("0.json", b"[1]"), ("0.png", b"x")], "expected an object with objects, found list"),
        ([("0.json", b"{"), ("0.png", b"x")], r"0\.json:?.*not valid JSON"),
    ],
)
def test_broken_shards(tmp_path, members, message):
    data = picture(tmp_path / "x.png").read_bytes()
    root = tmp_path / "r"
    shard(root / "train-0.tar", [("9.png", data), ("9.json", label("b.png")), *members])
    (root / "classes.txt").write_text("ship\ncar\n")
    with pytest.raises(CCDiffError, match=message):
        read_raw(root, "webdataset")
    raw = read_raw(root, "webdataset", strict=False)
    assert [s.file_name for s in raw.scenes] == ["b.png"] and sum(raw.skipped.values()) == 1


def test_a_shard_that_is_none(tmp_path):
    data = picture(tmp_path / "x.png").read_bytes()
    root = tmp_path / "r"
    shard(root / "train-0.tar", [("9.png", data), ("9.json", label("b.png"))])
    (root / "train-1.tar").write_bytes(b"no tar" * 200)
    (root / "classes.txt").write_text("ship\ncar\n")
    with pytest.raises(CCDiffError, match=r"train-1\.tar: not a whole tar file"):
        read_raw(root)
    assert len(read_raw(root, strict=False).scenes) == 1


def test_names_of_another_machine_and_pictures_that_no_line_names(tmp_path):
    root = folder(tmp_path / "r", [{"objects": {"bbox": [BOX], "category": [0]}, "file_name": "C:\\set\\train\\0.png"}])
    picture(root / "train" / "1.png")
    picture(root / "test" / "2.png")
    text = (root / "train" / "metadata.jsonl").read_text()
    (root / "train" / "metadata.jsonl").write_text(text, encoding="utf-16")  # with its mark: recognised and read all the same
    assert detect_format(root) == "huggingface"
    raw = read_raw(root)
    assert [(s.file_name, s.source) for s in raw.scenes] == [("0.png", "0")] and raw.skipped == {"pictures without annotations": 2}
