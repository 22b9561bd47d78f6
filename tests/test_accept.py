"""Sets that somebody changed by hand: their key follows, pictures are faults, `verify --accept` takes them as they are."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli import dataset, unchanged
from ccdiff_cli.dataset import read_set
from ccdiff_cli.drawn import CLASSES, draw_dataset
from ccdiff_cli.errors import CCDiffError, EditedSet
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.synthesis import accept_set, verify_set
from tests.rawsets import files_of


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "raw", pictures=12, size=48)


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    prepare(drawn, out)
    return out


@pytest.fixture
def prepared(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


def prepare(drawn, out):
    return prepare_dataset(drawn, out, PrepareOptions(size=32, classes=drawn / CLASSES))


def edit(root, change):
    path = root / "annotations.json"
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


def halve_a_box(coco):
    x, y, w, h = coco["annotations"][0]["bbox"]
    w, h = w / 2, h / 2
    coco["annotations"][0] |= {"bbox": [x, y, w, h], "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}


def take_out(root, name):
    def change(coco):
        gone = next(i["id"] for i in coco["images"] if i["file_name"] == name)
        coco["images"] = [i for i in coco["images"] if i["id"] != gone]
        coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != gone]

    edit(root, change)
    (root / "images" / name).unlink()


def test_an_untouched_set_has_the_key_of_its_manifest_wherever_it_lies(prepared):
    was = read_set(prepared)
    assert was.key() == was.manifest["content"] and not was.edited()
    for path in prepared.rglob("*"):
        os.utime(path, (1, 1))
    assert read_set(prepared).key() == was.key(), "times are not what a set is"


def test_the_key_follows_edited_labels_and_every_read_says_so(prepared):
    before = read_set(prepared).key()
    edit(prepared, halve_a_box)
    with pytest.warns(EditedSet, match="labels of 1 pictures changed"):
        now = read_set(prepared)
    assert now.edited() and now.key() != before and now.ancestors() == {before}
    found = verify_set(prepared)
    assert not found["ok"] and found["content"] == now.key() and "verify --accept" in found["fix"]
    said = accept_set(prepared)
    assert said["labels_changed"] == 1 and said["objects"][0] == said["objects"][1]
    after = read_set(prepared)
    assert after.key() == now.key() and not after.edited() and before in after.ancestors() and verify_set(prepared)["ok"]
    assert accept_set(prepared)["lines"] == ["nothing was changed since the set was made"]


@pytest.mark.parametrize("change", ["content", "rewritten"])
def test_a_changed_picture_is_a_fault(prepared, change):
    name = read_set(prepared).scenes[0].file_name
    path = prepared / "images" / name
    status = path.stat()
    if change == "content":
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(bytes(data))
    else:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CCDiffError, match=rf"{name} was changed after[\s\S]*verify --accept"):
        read_set(prepared)
    if change == "rewritten":
        assert accept_set(prepared)["pictures_changed"] == [name] and read_set(prepared).hashes[name] and verify_set(prepared)["ok"]


def test_a_lost_picture_is_no_dead_end(prepared):
    was = read_set(prepared)
    scene = next(s for s in was.split("train") if s.instances)
    (prepared / "images" / scene.file_name).unlink()
    with pytest.raises(CCDiffError, match=r"is missing from[\s\S]*verify --accept"):
        read_set(prepared)
    said = accept_set(prepared)
    assert said["taken_out"] == [scene.file_name] and said["labels_left_out"] == len(scene.instances)
    assert said["objects"][0] - said["objects"][1] == len(scene.instances) and said["crops"] == len(scene.instances)
    assert len(read_set(prepared).scenes) == len(was.scenes) - 1 and verify_set(prepared)["ok"]
    bank = ReferenceBank.read(prepared)
    assert scene.source not in {r.source for refs in bank.instances.values() for r in refs}


def test_pictures_taken_out_and_added_with_their_labels(prepared):
    was = read_set(prepared)
    take_out(prepared, was.scenes[0].file_name)
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(prepared / "images" / "new.png")
    image = {"id": 999, "file_name": "new.png", "width": 32, "height": 32, "split": "train", "source": "new"}
    edit(prepared, lambda coco: coco["images"].append(image))
    with pytest.warns(EditedSet, match="1 pictures taken out, 1 pictures added"):
        now = read_set(prepared).key()
    said = accept_set(prepared)
    assert (said["taken_out"], said["added"]) == ([was.scenes[0].file_name], ["new.png"])
    assert read_set(prepared).key() == now and verify_set(prepared)["ok"]
    assert read_set(prepared).manifest["counts"]["pictures"] == len(was.scenes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: edit(root, lambda c: c["annotations"][0].update(bbox=[1, 1, 500, 5])), "leaves the picture"),
        (lambda root: edit(root, lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5])), "has no area"),
        (lambda root: (root / "images" / "odd.png").write_bytes(b"x"), r"odd\.png: it has no labels"),
        (lambda root: edit(root, lambda c: c["images"][0].update(width=31)), "its labels say 31x32"),
    ],
)
def test_what_cannot_be_used_is_not_accepted(prepared, change, message):
    change(prepared)
    before = files_of(prepared)
    with pytest.raises(CCDiffError, match=message):
        accept_set(prepared)
    assert files_of(prepared) == before


def test_prepare_again_makes_lost_and_changed_files_again(drawn, prepared):
    whole = files_of(prepared)
    pictures, crops = sorted((prepared / "images").iterdir()), sorted((prepared / "references").glob("*/*.png"))
    pictures[0].unlink()
    pictures[1].write_bytes(b"torn")
    crops[0].unlink()
    crops[1].write_bytes(crops[1].read_bytes()[:40])
    prepare(drawn, prepared)
    assert files_of(prepared) == whole
    for name in ("annotations.json", "references/references.json"):
        (prepared / name).write_text("{")
        prepare(drawn, prepared)
        assert files_of(prepared) == whole
        (prepared / name).unlink()
        prepare(drawn, prepared)
        assert files_of(prepared) == whole


def test_prepare_again_never_undoes_an_edit(drawn, prepared):
    edit(prepared, halve_a_box)
    edited = files_of(prepared)
    with pytest.warns(EditedSet):
        prepare(drawn, prepared)
    assert files_of(prepared) == edited
    next((prepared / "images").iterdir()).unlink()
    with pytest.raises(CCDiffError, match="undo the edit"):
        prepare(drawn, prepared)
    accept_set(prepared)
    accepted = files_of(prepared)
    prepare(drawn, prepared)
    assert files_of(prepared) == accepted
    (prepared / "images" / "other.png").write_bytes(b"x")
    with pytest.raises(CCDiffError, match=r"other\.png does not belong"):
        prepare(drawn, prepared)


@pytest.mark.parametrize("format", ["yolo", "coco", "webdataset"])
def test_an_export_is_whole_or_made_whole_and_follows_an_edit(prepared, tmp_path, format):
    out = tmp_path / "x"
    export_set(prepared, out, ExportOptions(format=format))
    whole = files_of(out)
    assert export_set(prepared, out, ExportOptions(format=format)).resumed
    for name in [n for n in whole if n != "export.json"][:4]:
        (out / name).write_bytes(b"torn") if len(name) % 2 else (out / name).unlink()
        again = export_set(prepared, out, ExportOptions(format=format))
        assert not again.resumed and files_of(out) == whole and "written again: 1" in again.said[-1]
    (out / "labels.cache").write_bytes(b"of a trainer")
    assert "labels.cache" in export_set(prepared, out, ExportOptions(format=format)).said[-1]
    (out / "labels.cache").unlink()
    edit(prepared, halve_a_box)
    export_set(prepared, tmp_path / "fresh", ExportOptions(format=format))
    again = export_set(prepared, out, ExportOptions(format=format))
    assert not again.resumed and "brought up to date" in again.said[-1]
    assert files_of(out) == files_of(tmp_path / "fresh") != whole
    accept_set(prepared)
    assert export_set(prepared, out, ExportOptions(format=format)).resumed, "accepting changes no key"


def test_an_export_with_files_changed_by_hand_is_not_overwritten_by_another_state(prepared, tmp_path):
    export_set(prepared, tmp_path / "x", ExportOptions(format="yolo"))
    next((tmp_path / "x" / "labels" / "train").iterdir()).write_text("0 0.5 0.5 0.1 0.1\n")
    edit(prepared, halve_a_box)
    with pytest.raises(CCDiffError, match="was changed in it since"):
        export_set(prepared, tmp_path / "x", ExportOptions(format="yolo"))


def test_of_large_sets_sizes_and_times_are_remembered_outside_of_the_set(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("CCDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(unchanged, "SMALL", 1000)
    hashed = []
    real = unchanged.sha256_file
    monkeypatch.setattr(unchanged, "sha256_file", lambda path: (hashed.append(path), real(path))[1])
    before, pictures = files_of(prepared), len(read_set(prepared).scenes)
    assert len(hashed) == pictures, "a copy, seen for the first time"
    read_set(prepared)
    assert len(hashed) == pictures and files_of(prepared) == before
    path = prepared / "images" / dataset.read_set(prepared).scenes[0].file_name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CCDiffError, match="was changed after"):
        read_set(prepared)
    assert len(hashed) == pictures + 1
    for damage in ("{", "[]", '{"a": 1}'):
        for memory in (tmp_path / "cache" / "seen").iterdir():
            memory.write_text(damage)
        with pytest.raises(CCDiffError, match="was changed after"):
            read_set(prepared)


def test_hashing_many_files_and_reading_large_labels_is_told(made, monkeypatch, capsys):
    from ccdiff_cli.console import progress_bars

    monkeypatch.setattr(unchanged, "MANY", 2)
    monkeypatch.setattr(dataset, "LARGE", 10)
    with progress_bars():
        count = len(dataset.read_set(made).hashes)
    said = capsys.readouterr().err
    assert "reading labels: 1 of 1" in said and f"hashing files: {count} of {count}" in said
    dataset.read_set(made)
    assert capsys.readouterr().err == "", "nobody watches"
