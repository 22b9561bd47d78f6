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
from ccdiff_cli.inspection import InspectOptions, inspect_set
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.scene import Instance
from ccdiff_cli.synthesis import accept_set, verify_set
from tests.export.sets import OUTSIDE, SLANTED, one_scene
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


@pytest.fixture
def three(tmp_path):
    """One picture of 96x64 px: an HBB alone, a slanted OBB, one that reaches out, whose HBB is that of the visible part."""
    boxes = (
        Instance.from_hbb("ship", (5, 5, 25, 20)),
        Instance.from_corners("ship", SLANTED),
        Instance.from_corners("ship", OUTSIDE, (76, 2, 96, 22)),
    )
    return one_scene(tmp_path / "three", instances=boxes).root


BBOX, CROSSED = {"bbox": [0, 0, 6, 6]}, r"two sides of its segmentation .* cross"
APART = (r"its bbox \[0, 0, 6, 6\] and its segmentation .* have no part in common", "oriented 0 and segmentation")
NOT_OF = r"its segmentation .* is not that of its bbox \[5, 5, 20, 15\]: expected"
CANNOT_BE = [
    (
        0,
        BBOX,
        r"its segmentation \[\[5, 5, 25, .*bbox \[0, 0, 6, 6\]: expected",
        r"\[\[0, 0, 6, 0, 6, 6, 0, 6\]\], or bbox \[5, 5, 20, 15\]",
    ),
    (0, {"segmentation": [SLANTED]}, NOT_OF, "or oriented 1 where"),
    (0, {"segmentation": [[5, 5, 25, 5, 25, 20, 25, 5]]}, NOT_OF, r"write segmentation \[\[5, 5, 25, 5, 25, 20, 5, 20\]\]"),
    (0, {"segmentation": [[5, 5, 25, 5, 5, 20, 25, 20]]}, CROSSED, r"in order around the box: \[\[5, 5, 25, 5, 25, 20, 5, 20"),
    (1, {"segmentation": [[30, 20, 60, 20, 30, 40, 60, 40]]}, CROSSED, r"in order around the box: \[\[30, 20, 60, 20, 60, 40, 30"),
    (1, BBOX, *APART),
    (2, BBOX, *APART),
]


@pytest.mark.parametrize(("index", "changes", "what", "fix"), CANNOT_BE)
@pytest.mark.filterwarnings("ignore::ccdiff_cli.errors.EditedSet")
def test_two_boxes_that_cannot_be_one_objects_are_neither_read_nor_accepted(three, tmp_path, index, changes, what, fix):
    edit(three, lambda coco: coco["annotations"][index].update(changes))
    before = files_of(three)
    with pytest.raises(CCDiffError, match=rf"annotations\[{index}\] \(id {index + 1}, of a\.png\): {what}[\s\S]*fix: .*{fix}"):
        export_set(three, tmp_path / "x", ExportOptions(format="yolo"))
    assert not (tmp_path / "x").exists()
    assert [p for p in verify_set(three)["problems"] if f"object {index} (ship)" in p and "segmentation" in p]
    with pytest.raises(CCDiffError, match=rf"a\.png: object {index} \(ship\): {what}"):
        accept_set(three)
    assert files_of(three) == before
    inspect_set(three, tmp_path / "seen", InspectOptions())


@pytest.mark.parametrize(
    ("index", "changes"),
    [
        (0, {"bbox": [5.02, 5, 20, 15.01]}),
        (0, {"segmentation": [[25, 20, 25, 5, 5, 5, 5, 20]]}),
        (0, {"bbox": [6, 6, 4, 4], "segmentation": [[6, 6, 10, 6, 10, 10, 6, 10]]}),
        (0, {"segmentation": [SLANTED], "oriented": 1, "bbox": [30, 15, 40, 30]}),
        (1, {"bbox": [45, 25, 5, 5]}),
        (1, {"bbox": [30, 15, 40, 30], "segmentation": [SLANTED[2:] + SLANTED[:2]]}),
        (2, {"bbox": [80, 2, 10, 10]}),
    ],
)
@pytest.mark.filterwarnings("ignore::ccdiff_cli.errors.EditedSet")
def test_edits_that_can_be_are_used_as_they_stand(three, index, changes):
    edit(three, lambda coco: coco["annotations"][index].update(changes))
    now = read_set(three)
    x, y, w, h = changes.get("bbox", [5, 5, 20, 15])
    assert now.edited() and now.scenes[0].instances[index].hbb == (x, y, x + w, y + h)
    accept_set(three)
    assert verify_set(three)["ok"] and read_set(three).scenes == now.scenes


def test_what_was_made_so_is_no_edit(tmp_path):
    """Sources may hold two boxes of one object that lie apart, and older sets what is refused today."""
    crossed = (30.0, 20.0, 60.0, 20.0, 30.0, 40.0, 60.0, 40.0)
    boxes = (Instance.from_corners("ship", SLANTED, (0, 0, 6, 6)), Instance("ship", (60.0, 40.0, 80.0, 60.0), crossed, oriented=False))
    root = one_scene(tmp_path / "set", instances=boxes).root
    assert read_set(root).scenes[0].instances == boxes and "cross" not in str(verify_set(root)["problems"])


@pytest.mark.parametrize("format", ["yolo", "dota-task1"])
@pytest.mark.filterwarnings("ignore::ccdiff_cli.errors.EditedSet")
def test_an_edited_size_that_is_not_the_pictures_is_not_exported(prepared, tmp_path, format):
    edit(prepared, lambda coco: coco["images"][1].update(width=4000))
    name = json.loads((prepared / "annotations.json").read_text())["images"][1]["file_name"]
    with pytest.raises(CCDiffError, match=rf"annotations\.json: images: {name} is 32x32 px, its labels say 4000x32\n  fix: write width 32"):
        export_set(prepared, tmp_path / "x", ExportOptions(format=format))
    assert not (tmp_path / "x").exists()


@pytest.mark.filterwarnings("ignore::ccdiff_cli.errors.EditedSet")
def test_only_headers_of_edited_pictures_are_read(prepared, monkeypatch):
    seen = []
    real = dataset.picture_size
    monkeypatch.setattr(dataset, "picture_size", lambda path: (seen.append(path.name), real(path))[1])
    assert len(read_set(prepared).scenes) > 1 and seen == []
    edit(prepared, lambda coco: coco["images"][1].update(caption="Another one."))
    assert seen == [] and read_set(prepared).scenes[1].file_name == seen[0] and len(seen) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda coco: "{", r"annotations\.json:1:2: not valid JSON[\s\S]*fix: correct the file, restore it"),
        (
            lambda coco: json.dumps(coco | {"images": [*coco["images"], coco["images"][0]]}),
            r"two pictures share an id: 1\n  fix: give each",
        ),
        (lambda coco: json.dumps(coco | {"categories": coco["categories"] * 2}), r"two classes share an id: 1\n  fix: give each"),
        (
            lambda coco: json.dumps(coco | {"annotations": [coco["annotations"][0] | {"image_id": 999}]}),
            r"image_id: nothing has the id 999\n  fix: write the id of an entry of `images`",
        ),
    ],
)
def test_broken_labels_of_our_own_sets_come_with_a_fix(prepared, tmp_path, text, message):
    path = prepared / "annotations.json"
    path.write_text(text(json.loads(path.read_text())))
    with pytest.raises(CCDiffError, match=message):
        export_set(prepared, tmp_path / "x", ExportOptions(format="yolo"))


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


@pytest.mark.parametrize("name", dataset.BEGUN)
def test_a_set_that_was_only_begun_is_unfinished(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CCDiffError, match=r"the set is unfinished.*\n.*run the command that makes it again"):
        read_set(tmp_path)
