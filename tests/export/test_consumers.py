"""Round trips through programs that others wrote: they find the boxes of our exports to 0.1 pixel, and we find those of theirs.

Each is left out, with the reason, where its package is not installed.  ``make consumers`` makes an environment that has them all (they pull
an OpenCV of their own, so they do not join that of the program) and runs this file in it.
"""

import contextlib
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import write_set
from ccdiff_cli.detectors import mmcv_ops
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.formats import read_raw
from ccdiff_cli.geometry import hbb_of, le90_to_corners, polygon_iou
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.rawsets import picture

slow = pytest.mark.slow
CLASSES = ClassList(("ship", "storage tank", 'A/B: "c" & d'))
NAMES = ("a.png", "B 2.png", "é#1,%20.png", "x.y.png", "empty.png", "val0.png", "test0.png")
CLOSE = 0.1


def need(package: str):
    return pytest.importorskip(package, reason=f"the package {package} is not installed (make consumers)")


@pytest.fixture
def world(tmp_path):
    """Seven pictures of two sizes and odd names, OBBs inside them, one without objects, whole-numbered HBBs among them."""
    rng, scenes, hashes = np.random.default_rng(3), [], {}
    for k, name in enumerate(NAMES):
        width, height = (128, 96) if k % 2 else (96, 160)
        instances = []
        for n in range(0 if name == "empty.png" else 5):
            box = le90_to_corners((*rng.uniform(30, 60, 2), rng.uniform(12, 30), rng.uniform(4, 11), rng.uniform(-1.5, 1.5)))
            whole = [round(v) for v in hbb_of(box)]
            category, difficult = CLASSES.names[n % 3], n == 1
            if n == 4:
                instances.append(Instance.from_hbb(category, whole))
            else:
                instances.append(Instance.from_corners(category, box, difficult=difficult))
        hashes[name] = sha256_file(picture(tmp_path / "set" / "images" / name, width, height, seed=k))
        split = name[:-5] if name[:-5] in ("val", "test") else "train"
        scenes.append(Scene(name, width, height, tuple(instances), split=split, source=name, caption="From above."))
    return write_set(tmp_path / "set", scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)


def whole(data, root):
    """The same with HBBs of whole pixels alone, for what is written in them."""
    scenes = []
    for scene in data.scenes:
        boxes = [(i.category, [round(v) for v in i.hbb]) for i in scene.instances]
        scenes.append(scene.replace(instances=tuple(Instance.from_hbb(name, box) for name, box in boxes)))
        picture(root / "images" / scene.file_name, scene.width, scene.height)
    return write_set(
        root,
        scenes,
        CLASSES,
        kind="prepared",
        details={},
        picture_hashes={s.file_name: sha256_file(root / "images" / s.file_name) for s in scenes},
    )


def labels(scenes, corners=False, stem=lambda name: Path(name).stem):
    """Stem -> [(class, coordinates)], sorted, so that the order does not matter."""
    return {stem(s.file_name): in_order((i.category, i.corners if corners else i.hbb) for i in s.instances) for s in scenes}


def in_order(found):
    return sorted((str(name), tuple(round(float(v), 3) for v in np.ravel(box))) for name, box in found)


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, objects in expected.items():
        assert len(found[key]) == len(objects), key
        left = list(found[key])
        for name, box in objects:  # rounding may change the order of two boxes
            best = min(left, key=lambda one: (one[0] != name, np.abs(np.subtract(one[1], box)).max()))
            assert best[0] == name and np.abs(np.subtract(best[1], box)).max() < CLOSE, (key, name, box, best)
            left.remove(best)


# -------------------------------------------------------------------------------------------------------------------- supervision


def of_supervision(read, corners=False):
    found = {}
    for path, _, detections in read:
        boxes = detections.data.get("xyxyxyxy", np.zeros((0, 4, 2))) if corners else detections.xyxy
        found[Path(path).stem] = in_order((read.classes[k], box) for k, box in zip(detections.class_id, boxes, strict=True))
    return found


@slow
def test_supervision_coco(world, tmp_path):
    supervision = need("supervision")
    done = export_set(world, tmp_path / "coco", ExportOptions(format="coco"), splits=["train"])
    read = supervision.DetectionDataset.from_coco(str(done.root / "images" / "train"), str(done.entry))
    same(of_supervision(read), labels(world.split("train")))
    assert read.classes == list(CLASSES)
    read.as_coco(str(tmp_path / "theirs" / "images"), str(tmp_path / "theirs" / "instances_train.json"))
    same(labels(read_raw(tmp_path / "theirs").scenes), labels(world.split("train")))


@slow
def test_supervision_roboflow_coco(world, tmp_path):
    supervision = need("supervision")
    root = export_set(world, tmp_path / "roboflow", ExportOptions(format="roboflow-coco")).root
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        read = supervision.DetectionDataset.from_coco(str(root / folder), str(root / folder / "_annotations.coco.json"))
        same(of_supervision(read), labels(world.split(split)))
    same(labels(read_raw(root).scenes), labels(world.scenes))


@slow
@pytest.mark.parametrize("corners", [False, True])
def test_supervision_yolo(world, tmp_path, corners):
    supervision = need("supervision")
    done = export_set(world, tmp_path / "yolo", ExportOptions(format="yolo-obb" if corners else "yolo"))
    read = supervision.DetectionDataset.from_yolo(
        str(done.root / "images" / "train"), str(done.root / "labels" / "train"), str(done.entry), is_obb=corners
    )
    same(of_supervision(read, corners), labels(world.split("train"), corners))
    theirs = tmp_path / "theirs"
    read.as_yolo(str(theirs / "images"), str(theirs / "labels"), str(theirs / "data.yaml"), is_obb=corners)
    same(labels(read_raw(theirs, "yolo-obb" if corners else "yolo").scenes, corners), labels(world.split("train"), corners))


@slow
def test_supervision_voc(world, tmp_path):
    supervision = need("supervision")
    root = export_set(world, tmp_path / "voc", ExportOptions(format="voc"), splits=["train"]).root
    read = supervision.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    same(of_supervision(read), labels(world.split("train")))
    pixels = whole(world, tmp_path / "whole")
    root = export_set(pixels, tmp_path / "voc2", ExportOptions(format="voc"), splits=["train"]).root
    read = supervision.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    read.as_pascal_voc(str(tmp_path / "theirs" / "JPEGImages"), str(tmp_path / "theirs" / "Annotations"))
    same(labels(read_raw(tmp_path / "theirs", "voc", voc_origin=1).scenes), labels(pixels.split("train")))


# -------------------------------------------------------------------------------------------------------------------- ultralytics


@slow
@pytest.mark.parametrize("task", ["detect", "obb"])
@pytest.mark.parametrize("encoded", [None, "jpeg", "webp"])
def test_ultralytics_checks_the_description_and_loads_the_labels(world, tmp_path, monkeypatch, task, encoded):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    need("ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    options = ExportOptions(format="yolo-obb" if task == "obb" else "yolo", picture_format=encoded)
    done = export_set(world, tmp_path / "yolo", options)
    description = check_det_dataset(str(done.entry), autodownload=False)
    assert description["names"] == dict(enumerate(CLASSES))
    for split in ("train", "val", "test"):
        read = YOLODataset(img_path=description[split], data=description, task=task, augment=False, cache=False)
        found = {}
        for label in read.labels:
            height, width = label["shape"]
            if task == "obb":
                boxes = [np.asarray(s) * (width, height) for s in label["segments"]]
            else:
                cx, cy, w, h = (np.asarray(label["bboxes"]).reshape(-1, 4) * (width, height, width, height)).T
                boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
            names = [CLASSES.names[int(k)] for k in label["cls"].ravel()]
            found[Path(label["im_file"]).stem] = in_order(zip(names, boxes, strict=True))
        same(found, labels(world.split(split), corners=task == "obb"))


@slow
def test_ultralytics_converts_our_coco_to_yolo(world, tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    need("ultralytics")
    from ultralytics.data.converter import convert_coco

    done = export_set(world, tmp_path / "coco", ExportOptions(format="coco"), splits=["train"])
    convert_coco(str(done.root / "annotations"), save_dir=str(tmp_path / "theirs"), cls91to80=False)
    (folder,) = [p for p in (tmp_path / "theirs" / "labels").iterdir() if p.is_dir()]
    (tmp_path / "yolo" / "images").mkdir(parents=True)
    os.rename(done.root / "images" / "train", tmp_path / "yolo" / "images" / "train")
    (tmp_path / "yolo" / "labels").mkdir()
    os.rename(folder, tmp_path / "yolo" / "labels" / "train")
    (tmp_path / "yolo" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    same(labels(read_raw(tmp_path / "yolo", "yolo").scenes), labels(world.split("train")))


# --------------------------------------------------------------------------------------------------------------------------- SAHI


@slow
def test_sahi_slices_our_coco_and_we_read_the_slices(world, tmp_path):
    need("sahi")
    from sahi.slicing import slice_coco

    done = export_set(world, tmp_path / "coco", ExportOptions(format="coco"), splits=["train"])
    with contextlib.redirect_stdout(io.StringIO()):
        sliced, _ = slice_coco(
            str(done.entry), str(done.root / "images" / "train"), "sliced", str(tmp_path / "theirs"), slice_height=80, slice_width=80,
            overlap_height_ratio=0.25, overlap_width_ratio=0.25, min_area_ratio=0.99,
        )  # fmt: skip
    assert len(sliced["images"]) > len(world.split("train"))
    back = read_raw(tmp_path / "theirs")
    assert sum(len(s.instances) for s in back.scenes) == len(sliced["annotations"]) > 10
    whole_ones = {Path(s.file_name).stem: s for s in world.split("train")}
    matched = 0
    for scene in back.scenes:  # SAHI names a slice NAME_NUMBER_X1_Y1_X2_Y2, and rounds boxes to whole pixels
        stem, _, x, y, _, _ = Path(scene.file_name).stem.rsplit("_", 5)
        for instance in scene.instances:
            moved = np.add(instance.hbb, [int(x), int(y)] * 2)
            boxes = [i.hbb for i in whole_ones[stem].instances if i.category == instance.category]
            matched += min(np.abs(np.subtract(moved, box)).max() for box in boxes) <= 1.5
    assert matched == sum(len(s.instances) for s in back.scenes)


# ------------------------------------------------------------------------------------------------------------------- Hugging Face


EMPTY = ((), ("test",), ("train", "val", "test"), ("train",))


@slow
@pytest.mark.parametrize("without", EMPTY)
@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train",), ("test",)])
@pytest.mark.parametrize("masked", [False, True])
def test_datasets_imagefolder(world, tmp_path, without, splits, masked):
    datasets = need("datasets")
    scenes = [s.replace(instances=(), caption="") if s.split in without else s for s in world.scenes if s.split in splits]
    if masked:
        scenes = [s.replace(instances=tuple(replace(i, mask=(i.corners[:6],)) for i in s.instances[:2])) for s in scenes]
    made = write_set(world.root, scenes, CLASSES, kind="prepared", details={}, picture_hashes={})
    done = export_set(made, tmp_path / "hf", ExportOptions(format="huggingface"))
    read = datasets.load_dataset("imagefolder", data_dir=str(done.root), cache_dir=str(tmp_path / "cache"))
    names = {"train": "train", "val": "validation", "test": "test"}
    assert {k: len(v) for k, v in read.items()} == {names[s]: len(made.split(s)) for s in splits}
    for split in splits:
        rows = list(read[names[split]])
        for row, scene in zip(rows, made.split(split), strict=True):
            objects = row["objects"]
            boxes = [(x, y, x + w, y + h) for x, y, w, h in objects["bbox"]]
            categories = [CLASSES.names[k] for k in objects["category"]]
            same({Path(scene.file_name).stem: in_order(zip(categories, boxes, strict=True))}, labels([scene]))
            same(
                {"": in_order(zip(objects["name"], objects["corners"], strict=True))},
                {"": labels([scene], True)[Path(scene.file_name).stem]},
            )
            assert row["image"].size == (scene.width, scene.height) and row["text"] == scene.caption


@slow
def test_webdataset(world, tmp_path):
    webdataset = need("webdataset")
    done = export_set(world, tmp_path / "wds", ExportOptions(format="webdataset"))
    samples = list(webdataset.WebDataset(str(done.root / "train-000000.tar"), shardshuffle=False).decode("pil"))
    found = {}
    for sample in samples:
        objects = sample["json"]["objects"]
        found[Path(sample["json"]["file_name"]).stem] = in_order(zip(objects["name"], objects["corners"], strict=True))
        assert sample["png"].size == (sample["json"]["width"], sample["json"]["height"])
    same(found, labels(world.split("train"), corners=True))


# -------------------------------------------------------------------------------------------------------------------------- globox


def of_globox(annotations, names=None):
    boxes = {
        a.image_id: [(names[int(b.label)] if names else b.label, (b.xmin, b.ymin, b.xmax, b.ymax)) for b in a.boxes] for a in annotations
    }
    return {Path(key).stem if "." in key else key: in_order(found) for key, found in boxes.items()}


@slow
def test_globox(world, tmp_path):
    globox = need("globox").AnnotationSet
    coco = export_set(world, tmp_path / "coco", ExportOptions(format="coco"), splits=["train"])
    expected = {key: found for key, found in labels(world.split("train")).items()}
    read = globox.from_coco(str(coco.entry))
    same(of_globox(read), expected)
    (tmp_path / "theirs").mkdir()
    read.save_coco(str(tmp_path / "theirs" / "instances_train.json"), auto_ids=True)
    os.rename(coco.root / "images", tmp_path / "theirs" / "images")
    same(labels(read_raw(tmp_path / "theirs").scenes), expected)
    yolo = export_set(world, tmp_path / "yolo", ExportOptions(format="yolo"), splits=["train"]).root
    read = globox.from_yolo_v5(str(yolo / "labels" / "train"), image_folder=str(yolo / "images" / "train"), image_extension=".png")
    same(of_globox(read, CLASSES.names), expected)
    voc = export_set(world, tmp_path / "voc", ExportOptions(format="voc", voc_origin=0), splits=["train"]).root
    same(of_globox(globox.from_pascal_voc(str(voc / "Annotations"))), expected)  # it takes edges from 0


# ------------------------------------------------------------------------------------------- pycocotools, torchvision, OpenMMLab


def test_torchvision_and_pycocotools(world, tmp_path):
    from pycocotools.coco import COCO
    from torchvision.datasets import CocoDetection, VOCDetection

    done = export_set(world, tmp_path / "coco", ExportOptions(format="coco"), splits=["train"])
    with contextlib.redirect_stdout(None):
        coco = COCO(str(done.entry))
        pictures = CocoDetection(str(done.root / "images" / "train"), str(done.entry))
    found = {}
    for (image, targets), key in zip(pictures, pictures.ids, strict=True):
        info = coco.loadImgs(key)[0]
        assert image.size == (info["width"], info["height"])
        boxes = [(coco.cats[t["category_id"]]["name"], np.add(t["bbox"], (0, 0, *t["bbox"][:2]))) for t in targets]
        found[Path(info["file_name"]).stem] = in_order(boxes)
        for target in targets:
            assert polygon_iou(target["segmentation"][0], target["obb"]) == pytest.approx(1)
    same(found, labels(world.split("train")))
    export_set(world, tmp_path / "VOCdevkit" / "VOC2012", ExportOptions(format="voc", picture_format="jpeg"), splits=["train"])
    read, found = VOCDetection(str(tmp_path), year="2012", image_set="train"), {}
    for path, (image, target) in zip(read.images, read, strict=True):
        boxes = [(o["name"], [float(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")]) for o in target["annotation"]["object"]]
        found[Path(path).stem] = in_order((name, np.subtract(box, (1, 1, 0, 0))) for name, box in boxes)
        assert image.size == Image.open(path).size
    same(found, labels(world.split("train")))


def test_mmdet(world, tmp_path):
    need("mmdet")
    mmcv_ops.install()
    from mmdet.datasets import CocoDataset, VOCDataset

    metainfo = {"classes": tuple(CLASSES)}
    root = export_set(world, tmp_path / "coco", ExportOptions(format="coco")).root
    read = CocoDataset(data_root=str(root), ann_file="annotations/instances_train.json", data_prefix={"img": "images/train"},
                       metainfo=metainfo, pipeline=[], serialize_data=False, test_mode=True)  # fmt: skip
    found = {Path(i["img_path"]).stem: in_order((CLASSES.names[o["bbox_label"]], o["bbox"]) for o in i["instances"]) for i in read}
    same(found, labels(world.split("train")))
    assert all(Path(info["img_path"]).is_file() for info in read)
    pixels = whole(world, tmp_path / "whole")  # it cuts decimals off, and takes the last pixel itself as the edge
    root = export_set(pixels, tmp_path / "voc", ExportOptions(format="voc", picture_format="jpeg")).root
    read = VOCDataset(data_root=str(root), ann_file="ImageSets/Main/train.txt", data_prefix={"sub_data_root": ""},
                      metainfo=metainfo, pipeline=[], serialize_data=False, test_mode=True)  # fmt: skip
    found = {i["img_id"]: in_order((CLASSES.names[o["bbox_label"]], np.add(o["bbox"], (0, 0, 1, 1))) for o in i["instances"]) for i in read}
    same(found, labels(pixels.split("train")))
    assert all(Path(info["img_path"]).is_file() for info in read)


def test_mmrotate(world, tmp_path):
    need("mmrotate")
    mmcv_ops.install()
    from mmrotate.datasets import DOTADataset

    root = export_set(world, tmp_path / "dota", ExportOptions(format="dota")).root
    names = (root / "classes.txt").read_text().splitlines()
    read = DOTADataset(data_root=str(root / "train"), ann_file="annfiles", data_prefix={"img_path": "images"},
                       metainfo={"classes": tuple(names)}, pipeline=[], serialize_data=False, test_mode=True)  # fmt: skip
    found = {i["img_id"]: in_order((CLASSES.names[o["bbox_label"]], o["bbox"]) for o in i["instances"]) for i in read}
    same(found, labels(world.split("train"), corners=True))
    assert all(Path(info["img_path"]).is_file() for info in read)
