"""Exports are read back by other programs' rules (pycocotools, torchvision, mmrotate's DOTA lines, the YOLO description) and by ours."""

import contextlib
import json
import os
import tarfile
from pathlib import Path

import defusedxml.ElementTree
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection, VOCDetection

from ccdiff_cli.dataset import write_set
from ccdiff_cli.detectors import mmcv_ops
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import WRITERS, export_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.formats import READERS, detect_format, read_raw
from ccdiff_cli.formats.classes import ClassMap
from ccdiff_cli.geometry import hbb_of, le90_to_corners, polygon_iou
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
    assert (done.root / "train" / "annfiles" / "a.txt").read_text().splitlines() == lines[2:]
    assert (done.root / "train" / "images" / "b.jpg").is_file() and (done.root / "classes.txt").read_text() == "ship\nstorage-tank\n"
    assert done.lost == {
        "captions": 4, "horizontal boxes other than the OBB's": 3, "marks that an orientation is unknown": 3, "masks": 3,
        "pictures that are no PNG (DOTA's tools take them, mmrotate's reader does not)": 1,
    }  # fmt: skip


def test_dota_is_read_by_mmrotate(data, tmp_path):
    pytest.importorskip("mmrotate")
    mmcv_ops.install()  # mmrotate imports compiled parts of mmcv
    from mmrotate.datasets import DOTADataset

    done = export_set(data, tmp_path / "out", "dota")
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
    done = export_set(one_scene(tmp_path / "set", provenance=header), tmp_path / "out", "dota")
    lines = (done.root / "train" / "labelTxt" / "a.txt").read_text().splitlines()
    assert lines == ["imagesource:GoogleEarth x", "gsd:0.146343590398"] and done.lost == {}


def one_scene(root: Path, classes: ClassList = CLASSES, name: str = "a.png", size=(96, 64), **fields):
    hashes = {name: sha256_file(picture(root / "images" / name, *size))}
    scene = Scene(name, *size, **{"source": name, **fields})
    return write_set(root, [scene], classes, kind="prepared", details={}, picture_hashes=hashes)


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
    assert done.lost == {"captions": 4, "difficult flags": 3, "masks": 3, "orientations": 6}  # and nothing that never was there


def test_yolo_leaves_no_object_out_unsaid(tmp_path):
    boxes = [(-5, 10, 20, 30), (100, 10, 120, 30), (3, 3, 3, 9)]  # reaches out, outside, no area
    made = one_scene(tmp_path / "set", instances=tuple(Instance.from_hbb("ship", b) for b in boxes))
    done = export_set(made, tmp_path / "out", "yolo")
    assert len((done.root / "labels" / "train" / "a.txt").read_text().splitlines()) == 1
    assert done.lost == {"horizontal boxes reaching out of the picture": 1, "objects without an area inside the picture": 2}


def test_yolo_obb(data, tmp_path):
    done = export_set(data, tmp_path / "out", "yolo-obb")
    lines = yolo_lines(done.root, done.root / "images" / "val" / "c.png")
    assert all(len(line) == 9 and all(0 <= v <= 1 for v in line[1:]) for line in lines)
    found = np.array(lines[0][1:]) * np.tile([96, 64], 4)
    assert polygon_iou(found, SLANTED) > 0.999
    assert done.lost["corners outside the picture"] == 3 and done.lost["difficult flags"] == 3 and "orientations" not in done.lost


def test_voc_is_read_by_torchvision(data, tmp_path):
    export_set(data, tmp_path / "VOCdevkit" / "VOC2012", "voc", splits=["train"])
    for path in (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.png"):
        path.rename(path.with_suffix(".jpg"))  # torchvision asks for this suffix, whatever the file
    read = VOCDetection(str(tmp_path), year="2012", image_set="train")
    assert len(read) == 2 and [Path(p).stem for p in read.images] == ["a", "b"]
    image, target = read[0]
    annotation = target["annotation"]
    assert image.size == (96, 64) and annotation["size"] == {"width": "96", "height": "64", "depth": "3"}
    ship, tank, outside = annotation["object"]
    assert annotation["filename"] == "a.png" and [o["name"] for o in annotation["object"]] == ["ship", "storage tank", "ship"]
    assert tank["bndbox"] == {"xmin": "5", "ymin": "5", "xmax": "25.5", "ymax": "25.25"} and tank["difficult"] == "1"
    assert "robndbox" not in tank and len(ship["robndbox"]) == 8  # DIOR-R's element only where the orientation is known
    assert [float(v) for v in ship["robndbox"].values()] == pytest.approx(SLANTED, abs=1e-3)
    assert list(outside["bndbox"].values()) == ["70", "2", "96", "20"]
    assert not read[1][1]["annotation"]["object"]


def test_voc_lists_and_what_is_lost(data, tmp_path):
    done = export_set(data, tmp_path / "out", "voc")
    lists = {p.name: p.read_text() for p in (done.root / "ImageSets" / "Main").iterdir()}
    assert lists == {"train.txt": "a\nb\n", "val.txt": "c\n", "trainval.txt": "a\nb\nc\n", "test.txt": "d\n"}
    assert done.lost == {"captions": 4, "masks": 3}


def test_voc_escapes_names(tmp_path):
    name = '<ship> & "co"'
    instances = (Instance.from_hbb(name, (1, 2, 30, 40)),)
    done = export_set(one_scene(tmp_path / "set", ClassList((name,)), "a&b.png", instances=instances), tmp_path / "out", "voc")
    tree = defusedxml.ElementTree.parse(done.root / "Annotations" / "a&b.xml")
    assert tree.findtext("object/name") == name and tree.findtext("filename") == "a&b.png"


def test_metadata_lines(data, tmp_path):
    done = export_set(data, tmp_path / "out", "metadata")
    lines = [json.loads(line) for line in (done.root / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["a.png", "b.jpg"] and all(
        (done.root / "train" / x["file_name"]).is_file() for x in lines
    )
    first, empty = lines
    assert first["caption"] == ["This is it.", "ship", "storage tank", "ship", "", "", ""]
    assert first["bndboxes"][1:] == [
        pytest.approx(v) for v in ([5 / 96, 5 / 64, 25.5 / 96, 25.25 / 64], [70 / 96, 2 / 64, 1, 20 / 64])
    ] + 3 * [[0] * 4]
    assert np.array(first["obboxes"][0]) * np.tile([96, 64], 4) == pytest.approx(SLANTED, abs=1e-5) and first["obboxes"][3:] == 3 * [
        [0] * 8
    ]
    assert all(0 <= v <= 1 for box in first["obboxes"] for v in box)
    assert empty["caption"] == ["This is it.", *[""] * 6] and empty["bndboxes"] == 6 * [[0] * 4]
    assert (done.root / "classes.txt").read_text() == "ship\nstorage tank\n"
    assert done.lost == {
        "corners outside the picture": 3, "difficult flags": 3, "marks that an orientation is unknown": 3, "masks": 3,
    }  # fmt: skip


def test_metadata_keeps_objects_beyond_the_sixth_and_says_so(tmp_path):
    instances = tuple(Instance.from_corners("ship", le90_to_corners((48, 32, 9 + k, 5, 0.1))) for k in range(8))
    done = export_set(one_scene(tmp_path / "set", instances=instances), tmp_path / "out", "metadata")
    line = json.loads(done.entry.read_text())
    assert len(line["caption"]) == 9 and len(line["bndboxes"]) == len(line["obboxes"]) == 8
    assert [(what.split(" (")[0], count) for what, count in done.lost.items()] == [("objects beyond CC-Diff's 6 a picture", 2)]


TO_3_DECIMALS, TO_6_OF_THE_SIDE = 6e-4, 1e-4
HELD = {  # format -> (how far a coordinate may move, what comes back as it was)
    "coco": (1e-12, {"hbb", "corners", "oriented", "difficult", "mask", "extra", "caption", "source", "provenance"}),
    "dota": (TO_3_DECIMALS, {"corners", "difficult", "provenance"}),
    "voc": (TO_3_DECIMALS, {"hbb", "corners", "oriented", "difficult"}),
    "yolo": (TO_6_OF_THE_SIDE, {"hbb"}),
    "yolo-obb": (TO_6_OF_THE_SIDE, {"corners"}),
    "metadata": (TO_6_OF_THE_SIDE, {"hbb", "corners", "caption"}),
}


@pytest.fixture
def rich(tmp_path):
    """Everything a scene can say; all boxes inside, as in every prepared set; masks that are not their OBB's, and one that is it."""
    rng, scenes, hashes = np.random.default_rng(5), [], {}
    for k, split in enumerate(("train", "train", "val", "test")):
        instances = []
        for n in range((4, 0, 9, 1)[k]):
            box = le90_to_corners((*rng.uniform(25, 60, 2), rng.uniform(12, 30), rng.uniform(3, 11), rng.uniform(-1.5, 1.5)))
            middle = [(a + b) / 2 for a, b in zip(box, (*box[2:], *box[:2]), strict=True)]
            outline = box if n == 3 else (*box[:2], *middle[:2], *box[2:4], *middle[4:6])
            hbb = (hbb_of(box)[0] - 0.75, hbb_of(box)[1] - 0.5, hbb_of(box)[2] + 0.25, hbb_of(box)[3])
            said = {"mask": (outline,) if n % 3 == 0 else (), "difficult": n % 4 == 1, "extra": {"id": n} if n % 2 else {}}
            instances.append(Instance.from_corners(CLASSES.names[n % 2], box, hbb, **said))
            if n == 2:
                instances.append(Instance.from_hbb("ship", tuple(round(v, 2) for v in hbb)))
        name = f"p{k}.png"
        hashes[name] = sha256_file(picture(tmp_path / "rich" / "images" / name, 96, 96, seed=k))
        scenes.append(Scene(name, 96, 96, tuple(instances), split=split, source=f"scene {k // 2}", caption=f"Picture {k}.",
                            provenance={"imagesource": "GF", "gsd": k + 0.25} if k else {}))  # fmt: skip
    return write_set(tmp_path / "rich", scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)


def test_huggingface_folders(data, tmp_path):
    done = export_set(data, tmp_path / "out", "huggingface")
    lines = [json.loads(line) for line in (done.root / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["a.png", "b.jpg"] and lines[0]["text"] == "This is it."
    objects = lines[0]["objects"]
    assert objects["bbox"][1] == [5, 5, 20.5, 20.25] and objects["category"] == [0, 1, 0] and objects["difficult"] == [False, True, False]
    assert objects["corners"][0] == list(SLANTED) and lines[1]["objects"]["bbox"] == []
    assert {p.name for p in (done.root / "val").iterdir()} == {"c.png", "metadata.jsonl"}
    assert done.lost == {"masks": 3}
    for line in lines:  # the rule of `imagefolder`: every picture has its line, every line its picture
        assert (done.root / "train" / line["file_name"]).is_file()


@pytest.mark.slow
def test_huggingface_datasets_reads_the_folder_and_webdataset_the_shards(data, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    export_set(data, tmp_path / "hf", "huggingface")
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "validation": 1, "test": 1}
    row = found["train"][0]
    assert row["image"].size == (96, 64) and row["objects"]["category"] == [0, 1, 0]
    export_set(data, tmp_path / "wds", "webdataset")
    samples = list(webdataset.WebDataset(str(tmp_path / "wds" / "train-000000.tar"), shardshuffle=False).decode("pil"))
    assert len(samples) == 2 and samples[0]["png"].size == (96, 64) and samples[0]["json"]["objects"]["category"] == [0, 1, 0]


def test_webdataset_shards(data, tmp_path, monkeypatch):
    monkeypatch.setattr("ccdiff_cli.export.webdataset.SHARD_PICTURES", 1)
    done = export_set(data, tmp_path / "out", "webdataset")
    shards = sorted(p.name for p in done.root.glob("*.tar"))
    assert shards == ["test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar"]
    with tarfile.open(done.root / "train-000001.tar") as shard:
        assert shard.getnames() == ["00000001.jpg", "00000001.json"]
        assert shard.extractfile("00000001.jpg").read() == (data.root / "images" / "b.jpg").read_bytes()
    with tarfile.open(done.root / "train-000000.tar") as shard:
        label = json.loads(shard.extractfile("00000000.json").read())
    assert label["file_name"] == "a.png" and label["objects"]["name"] == ["ship", "storage tank", "ship"]
    assert not list(done.root.glob("*.png"))


@pytest.mark.parametrize("format", sorted(WRITERS.keys() & READERS.keys()))
def test_round_trip_through_our_own_reader(rich, tmp_path, format):
    done = export_set(rich, tmp_path / "out", format)
    assert detect_format(done.root) == format
    back = read_raw(done.root, format, ClassMap.of(CLASSES))
    tolerance, held = HELD[format]
    assert not +back.skipped and len(back.scenes) == len(rich.scenes)
    by_stem = {Path(s.file_name).stem: s for s in back.scenes}
    for before in rich.scenes:
        after = by_stem[Path(before.file_name).stem]
        assert Path(str(after.path)).read_bytes() == Path(str(before.path)).read_bytes()
        assert after.split == before.split and after.categories() == before.categories()
        for what in held & {"caption", "source"}:
            assert getattr(after, what) == getattr(before, what)
        if "provenance" in held:
            assert after.provenance == (before.provenance or {"imagesource": "ccdiff"} if format == "dota" else before.provenance)
        for a, b in zip(before.instances, after.instances, strict=True):
            for what in held & {"oriented", "difficult", "extra"}:
                assert getattr(b, what) == getattr(a, what), what
            for what in held & {"hbb", "corners"}:
                np.testing.assert_allclose(getattr(b, what), getattr(a, what), rtol=1e-12, atol=tolerance, err_msg=what)
            if "mask" in held:
                assert b.mask == a.mask
    everything = {
        "caption": "captions", "source": "sources", "corners": "orientations", "difficult": "difficult flags", "mask": "masks",
        "extra": "extra fields", "provenance": "provenance",
    }  # fmt: skip
    assert {said for what, said in everything.items() if what not in held} <= done.lost.keys()  # what did not come back was said
    assert not {said for what, said in everything.items() if what in held} & done.lost.keys()


def test_a_set_itself_is_read_as_coco(rich):
    raw = read_raw(rich.root)
    assert raw.format == "coco" and raw.classes == rich.classes and not +raw.skipped and not +raw.notes
    assert raw.scenes == list(rich.scenes)


@pytest.mark.parametrize("format", sorted(WRITERS.keys() - {"webdataset"}))
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
    monkeypatch.setattr("ccdiff_cli.export.run.os.link", lambda *a: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    export_set(data, tmp_path / "out", "yolo")
    assert (tmp_path / "out" / "images" / "val" / "c.png").read_bytes() == (data.root / "images" / "c.png").read_bytes()


@pytest.mark.parametrize("format", sorted(WRITERS))
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


def test_names_that_label_files_cannot_hold(tmp_path):
    broken = one_scene(tmp_path / "set", ClassList(("ship\n1",)))
    for format in sorted(WRITERS):
        with pytest.raises(CCDiffError, match=r"'ship\\n1' holds a character"):
            export_set(broken, tmp_path / "out", format)
    alike = one_scene(tmp_path / "set2", ClassList(("storage tank", "storage-tank")))
    with pytest.raises(CCDiffError, match="2 classes would both be written as 'storage-tank'"):
        export_set(alike, tmp_path / "out", "dota")
    assert not (tmp_path / "out").exists()
    assert export_set(alike, tmp_path / "out", "voc").lost == {}


def test_labels_that_would_overwrite_each_other(tmp_path):
    root = tmp_path / "set"
    hashes = {name: sha256_file(picture(root / "images" / name)) for name in ("a.png", "a.jpg")}
    scenes = [Scene(name, 96, 64, split="train", source=name) for name in hashes]
    data = write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
    with pytest.raises(CCDiffError, match="2 pictures are called 'a'"):
        export_set(data, tmp_path / "out", "yolo")
    assert json.loads((root / "manifest.json").read_text())["kind"] == "prepared"
