"""One small sound set per reader, its label files to be damaged, and what must hold of whatever a reader makes of them.

Shared by ``tests/formats/test_hostile.py`` (damage drawn by hypothesis) and ``fuzz_readers.py`` (damage found by coverage, also of
pictures, prepared sets and detections: ``TARGETS``).
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ccdiff_cli.dataset import SPLITS, read_set, scene_record, write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import sha256_file
from ccdiff_cli.formats import detect_format, read_raw
from ccdiff_cli.formats.webdataset import forget_unpacked, unpacked
from ccdiff_cli.pictures import UnreadablePicture, picture_size
from ccdiff_cli.prepare import windows
from ccdiff_cli.prepare.merging import merge_file
from ccdiff_cli.prepare.tiling import cut_scene
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.rawsets import (
    coco,
    cvat_xml,
    dior,
    fair1m_xml,
    hbb_xml,
    labelme_file,
    obb_xml,
    picture,
    shard,
    sodaa_file,
    vhr10,
    voc_xml,
)

HBB, OBB = (5, 5, 30, 20), (40, 10, 60, 12, 58, 30, 38, 28)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _vhr10(root: Path) -> list[str]:
    masks = {"001": [("ship", [5, 5, 30, 5, 30, 20, 5, 20])]}
    vhr10(root, {"001": [("ship", HBB), ("vehicle", (40, 10, 60, 30))], "002": []}, splits={"train": ["001"], "test": ["002"]}, masks=masks)
    return ["ground truth/001.txt", "instances.json", "splits/train.txt"]


def _dior(root: Path) -> list[str]:
    dior(
        root, {"00001": ([hbb_xml("ship", HBB), hbb_xml("vehicle", (40, 10, 60, 30), 1)], [obb_xml("vehicle", OBB), obb_xml("ship", OBB)])}
    )
    _write(root / "ImageSets" / "Main" / "train.txt", "00001\n")
    folders = ("Horizontal Bounding Boxes", "Oriented Bounding Boxes")
    return [*(f"Annotations/{name}/00001.xml" for name in folders), "ImageSets/Main/train.txt"]


def _rsvg(root: Path) -> list[str]:
    picture(root / "JPEGImages" / "00001.jpg")
    objects = [hbb_xml("ship", HBB) + "<description>the left one</description>", hbb_xml("dam", HBB) + "<description>it</description>"]
    _write(root / "Annotations" / "00001.xml", voc_xml(objects, size=(96, 64)))
    _write(root / "train.txt", "0\n")
    _write(root / "test.txt", "1\n")
    return ["Annotations/00001.xml", "test.txt"]


def _voc(root: Path) -> list[str]:
    picture(root / "JPEGImages" / "b.jpg")
    turned = "<name>boat</name><robndbox><cx>40</cx><cy>30</cy><w>30</w><h>8</h><angle>2.5</angle></robndbox>"
    text = voc_xml([hbb_xml("boat", HBB, 0), obb_xml("car", OBB), turned]).replace("<size>", "<filename>b.jpg</filename><size>")
    _write(root / "Annotations" / "a.xml", text)
    _write(root / "classes.txt", "boat\ncar\nvan = car\n")
    _write(root / "ImageSets" / "Main" / "val.txt", "a\n")
    return ["Annotations/a.xml", "classes.txt", "ImageSets/Main/val.txt"]


def _metadata(root: Path) -> list[str]:
    picture(root / "a.png")
    picture(root / "b.png")
    boxes, corners = [[0.1, 0.1, 0.4, 0.5], [0, 0, 0, 0]], [[0.1, 0.2, 0.3, 0.1, 0.4, 0.4, 0.2, 0.5], [0] * 8]
    lines = [{"file_name": f"{k}.png", "caption": ["a port", "ship", ""], "bndboxes": boxes, "obboxes": corners} for k in "ab"]
    _write(root / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return ["metadata.jsonl"]


def _coco(root: Path) -> list[str]:
    bitmap = np.zeros((64, 96), np.uint8)
    bitmap[20:30, 40:70] = 1
    packed = rle.encode(np.asfortranarray(bitmap))["counts"].decode()
    annotations = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [5, 5, 25, 15],
            "iscrowd": 1,
            "segmentation": {"size": [64, 96], "counts": packed},
        },
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [5, 5, 25, 15], "segmentation": {"size": [64, 96], "counts": [325, 4, 5815]}},
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [40, 10, 20, 20], "segmentation": [list(OBB)], "extra": {"score": 0.5}},
        {"id": 4, "image_id": 1, "category_id": 7, "segmentation": [[1, 2, 30, 4, 9, 20]], "oriented": 0, "mask": [[1, 2, 3, 4, 5, 7]]},
    ]
    coco(root, annotations)
    return ["instances.json"]


def _dota(root: Path) -> list[str]:
    picture(root / "images" / "P0001.png")
    header = "imagesource:GoogleEarth\ngsd:0.146\n"
    _write(root / "labelTxt" / "P0001.txt", header + "40.0 10.0 60.0 12.0 58.0 30.0 38.0 28.0 small-vehicle 1\n5 5 30 5 30 20 5 20 ship\n")
    return ["labelTxt/P0001.txt"]


def _hrsc(root: Path) -> list[str]:
    picture(root / "AllImages" / "100000001.bmp")
    box = "<box_xmin>5</box_xmin><box_ymin>5</box_ymin><box_xmax>30</box_xmax><box_ymax>20</box_ymax>"
    turned = "<mbox_cx>20</mbox_cx><mbox_cy>12</mbox_cy><mbox_w>25</mbox_w><mbox_h>6</mbox_h><mbox_ang>0.3</mbox_ang>"
    head = "<difficult>0</difficult><header_x>30</header_x><header_y>15</header_y>"
    inner = f"<HRSC_Object><Class_ID>100000007</Class_ID>{box}{turned}{head}</HRSC_Object>"
    sizes = "<Img_SizeWidth>96</Img_SizeWidth><Img_SizeHeight>64</Img_SizeHeight><Img_Resolution>1.07</Img_Resolution>"
    text = f"<HRSC_Image><Img_ID>100000001</Img_ID>{sizes}<Annotated>1</Annotated><HRSC_Objects>{inner}</HRSC_Objects></HRSC_Image>"
    _write(root / "Annotations" / "100000001.xml", text)
    return ["Annotations/100000001.xml"]


def _yolo(root: Path, lines: str = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.4 0.1 0.4 0.5\n") -> list[str]:
    picture(root / "images" / "train" / "a.jpg")
    _write(root / "labels" / "train" / "a.txt", lines)
    _write(root / "data.yaml", "path: .\ntrain: images/train\nval: images/train\nnames:\n  0: ship\n  1: car\n")
    return ["labels/train/a.txt", "data.yaml"]


def _yolo_obb(root: Path) -> list[str]:
    return _yolo(root, "0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5\n")


def _fair1m(root: Path) -> list[str]:
    picture(root / "images" / "0.tif")
    corners = list(zip(OBB[0::2], OBB[1::2], strict=True))
    objects = [("Dry Cargo Ship", [*corners, corners[0]]), ("A220", corners), ("bridge", [*corners, (50, 40)])]
    _write(root / "labelXml" / "0.xml", fair1m_xml(objects))
    return ["labelXml/0.xml"]


def _sodaa(root: Path) -> list[str]:
    picture(root / "Images" / "train" / "00001.jpg")
    annotations = [{"poly": list(OBB), "category_id": k, "image_id": 0, "id": k, "ignore": k % 2} for k in (2, 3, 9)]
    sodaa_file(root / "Annotations" / "train" / "00001.json", [*annotations, {"poly": [1, 1, 9, 2, 5, 9], "category_id": 0}])
    return ["Annotations/train/00001.json"]


def _visdrone(root: Path) -> list[str]:
    picture(root / "images" / "0001.jpg")
    _write(root / "annotations" / "0001.txt", "10,20,30,8,1,4,0,1\n1,2,5,5,0,0,0,0\n50,20,10,8,0,10,1,2,\n")
    return ["annotations/0001.txt"]


def _labelme(root: Path) -> list[str]:
    picture(root / "a.png")
    bits = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(bits, "PNG")
    corners = [list(point) for point in zip(OBB[0::2], OBB[1::2], strict=True)]
    shapes = [
        {"label": "ship", "points": [[30, 20], [5, 5]], "shape_type": "rectangle", "flags": {"difficult": True}, "group_id": 1},
        {"label": "ship", "points": corners, "shape_type": "rotation", "direction": 0.1, "difficult": "false", "attributes": {"a": "b"}},
        {"label": "car", "points": [[1, 1], [9, 2], [5, 9]], "description": "x"},
        {"label": "car", "points": [[4, 5], [7, 8]], "shape_type": "mask", "mask": base64.b64encode(bits.getvalue()).decode()},
        {"label": "car", "points": [[4, 5], [7, 8]], "shape_type": "circle"},
    ]
    labelme_file(root / "a.json", shapes, image="..\\x\\a.png")
    return ["a.json"]


def _cvat(root: Path) -> list[str]:
    picture(root / "images" / "a.png")
    shapes = (
        '<box label="ship" occluded="1" xtl="12.0" ytl="28.0" xbr="52.0" ybr="36.0" rotation="45.0" z_order="0">'
        '<attribute name="difficult">true</attribute></box><polygon label="car" points="10,10;20,12;18,20"></polygon>'
        '<ellipse label="car" cx="50" cy="30" rx="20" ry="5" rotation="30"></ellipse><polyline label="car" points="1,1;5,5"/>'
        '<mask label="car" rle="3, 4, 5" left="10" top="10" width="4" height="3"></mask>'
    )
    _write(root / "annotations.xml", cvat_xml([f'<image id="0" name="a.png" subset="Train" width="96" height="64">{shapes}</image>']))
    return ["annotations.xml"]


_EXAMPLE = {
    "file_name": "a.png", "width": 96, "height": 64, "text": "a port", "source": "s",
    "objects": {
        "bbox": [[5, 5, 25, 15], [38, 10, 22, 20]], "category": [0, 1], "name": ["ship", "car"], "corners": [list(OBB), list(OBB)],
        "oriented": [False, True], "difficult": [True, False], "mask": [[], [list(OBB)]],
    },
}  # fmt: skip


def _huggingface(root: Path) -> list[str]:
    picture(root / "train" / "a.png")
    picture(root / "train" / "b.png")
    other = {"file_name": "b.png", "objects": [{"bbox": [5, 5, 25, 15], "category": 1}]}
    _write(root / "train" / "metadata.jsonl", f"{json.dumps(_EXAMPLE)}\n{json.dumps(other)}\n")
    _write(root / "classes.txt", "ship\ncar\n")
    return ["train/metadata.jsonl", "classes.txt"]


def _webdataset(root: Path) -> list[str]:
    data = picture(root.with_suffix(".png"), 8, 8).read_bytes()
    root.with_suffix(".png").unlink()
    shard(root / "train-000000.tar", [("0.png", data), ("0.json", json.dumps(_EXAMPLE).encode()), ("1.json", b"{}"), ("1.png", data)])
    _write(root / "classes.txt", "ship\ncar\n")
    return ["train-000000.tar", "classes.txt"]


SEEDS: dict[str, Callable[[Path], list[str]]] = {
    "vhr10": _vhr10, "dior": _dior, "rsvg": _rsvg, "voc": _voc, "metadata": _metadata, "coco": _coco, "dota": _dota, "hrsc": _hrsc,
    "yolo": _yolo, "yolo-obb": _yolo_obb, "fair1m": _fair1m, "sodaa": _sodaa, "visdrone": _visdrone, "labelme": _labelme, "cvat": _cvat,
    "huggingface": _huggingface, "webdataset": _webdataset,
}  # fmt: skip
"""Reader -> what builds a sound folder and names the label files in it."""


def read_damaged(root: Path, format: str) -> bool:
    """See :func:`_read_damaged`; what a reader unpacked is removed."""
    try:
        return _read_damaged(root, format)
    finally:
        forget_unpacked()


def _read_damaged(root: Path, format: str) -> bool:
    """Read a folder whose labels may be anything; whether scenes came of it rather than a :class:`CCDiffError`.

    Raises:
        AssertionError: scenes that the rest of the program cannot trust.  Any other error of the reader passes through.
    """
    with contextlib.suppress(CCDiffError):
        detect_format(root)
    try:
        lenient = read_raw(root, format, strict=False)
    except CCDiffError as error:
        str(error).encode("utf-8")  # a terminal must be able to print it
        with contextlib.suppress(CCDiffError):
            read_raw(root, format, strict=True)
            raise AssertionError("strict reads what lenient refuses") from error
        return False
    _check_scenes(lenient.scenes, lenient.classes, root)
    assert all(v > 0 for v in (*lenient.skipped.values(), *lenient.notes.values(), *lenient.changes.values()))
    json.dumps([lenient.skipped, lenient.places], ensure_ascii=False).encode("utf-8")
    try:
        raw = read_raw(root, format, strict=True)
    except CCDiffError as error:
        str(error).encode("utf-8")
        assert lenient.skipped, f"strict refuses, lenient says nothing: {error}"
        return False
    assert raw.scenes == lenient.scenes and raw.classes == lenient.classes  # nothing is broken: both read the same
    return bool(raw.scenes)


def _check_scenes(scenes: Sequence[Scene], classes: ClassList, root: Path) -> None:
    tops = [root.resolve(), *(Path(room.name).resolve() for room in unpacked.values())]
    for scene in scenes:
        assert scene.path is not None and any(Path(scene.path).resolve().is_relative_to(top) for top in tops), scene.path
        assert not Path(scene.file_name).is_absolute() and ".." not in Path(scene.file_name).parts, scene.file_name
        assert scene.split in ("", *SPLITS) and scene.width >= 0 and scene.height >= 0
        for instance in scene.instances:
            assert instance.category in classes and len(instance.corners) == 8
            numbers = [*instance.hbb, *instance.corners, *(v for p in instance.mask for v in p)]
            assert all(math.isfinite(v) and abs(v) < 1e11 for v in numbers), instance
        cut_scene(scene.replace(width=96, height=64), (10, 5), 40, 0.5, keep=0.7, difficult=0.2)  # what `prepare` does next
        json.dumps(scene_record(scene), allow_nan=False, ensure_ascii=False).encode("utf-8")
    assert len({s.file_name for s in scenes}) == len(scenes)


TOKENS: tuple[bytes, ...] = (
    b"NaN", b"nan", b"-inf", b"Infinity", b"1e300", b"1e999", b"-1", b"0", b"0.5", b"1e9", b"99999999999999999999", b"9" * 5000, b"0x10",
    b"1_000", b"-", b"+", b".", b"", b" ", b"\t", b"\n", b"\r\n", b"\r", b"\x00", b"\x0b", b"\x1c", b"\x85", b"\xff", b"\xef\xbb\xbf",
    b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", "²".encode(), "٣".encode(), "\u2028".encode(), b"../../../etc/passwd", b"/etc/passwd",
    b"..\\x", b"a" * 5000, b"a.png", b"null", b"true", b"[]", b"{}", b'""', b"[[", b"}", b'"', b",", b"\\ud800", b"\\u0000", b"<", b">",
    b"&a;", b"&#0;", b"<object>", b"</object>", b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b"<?xml version='1.0' encoding='utf-7'?>",
    b"<?xml version='1.0' encoding='cp037'?>", b"(", b")", b"=", b":", b"#", b"*a", b"&a ", b"!!python/object:os.system x",
)  # fmt: skip
_WORD = re.compile(rb"[\w.+-]+")
EDITS = ("cut", "drop", "double", "insert", "swap word", "flip", "recode")


def damaged(data: bytes, edits: list[tuple[str, float, float, int]]) -> bytes:
    """The bytes after some edits, each (kind, place in [0, 1), length in [0, 1), number of the token)."""
    for kind, place, length, token in edits:
        at = int(place * (len(data) + 1))
        end = min(len(data), at + 1 + int(length * 40))
        word = TOKENS[token % len(TOKENS)]
        if kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[end:]
        elif kind == "double":
            data = data[:end] + data[at:]
        elif kind == "insert":
            data = data[:at] + word + data[at:]
        elif kind == "swap word" and (words := list(_WORD.finditer(data))):
            match = words[int(place * len(words))]
            data = data[: match.start()] + word + data[match.end() :]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << token % 8)]) + data[at + 1 :]
        elif kind == "recode":
            data = data.decode("latin-1").encode(("utf-16", "utf-32", "utf-8-sig", "utf-16-le")[token % 4])
    return data


def read_sound(root: Path, format: str) -> None:
    """The seed itself reads, under its own name and recognised."""
    assert detect_format(root) == format
    assert read_raw(root).scenes


# ------------------------------------------------------------------------------------------- what else comes from outside


def _set(root: Path) -> list[str]:
    """A prepared set, and detections on it."""
    place = {"picture": "s.png", "offset": [0, 0], "side": 96, "scale": 1.0}
    instances = (Instance.from_corners("ship", OBB, difficult=True, mask=(OBB,)), Instance.from_hbb("car", HBB, extra={"id": 1}))
    scene = Scene("a.png", 96, 64, instances, source="s", caption="a port", provenance=place)
    hashes = {"a.png": sha256_file(picture(root / "images" / "a.png"))}
    write_set(root, [scene], ClassList(("ship", "car")), kind="prepared", details={}, picture_hashes=hashes)
    boxes = [{"image_id": 1, "bbox": [5, 5, 25, 15]}, {"file_name": "a.png", "segmentation": [list(OBB)]}]
    _write(root / "results.json", json.dumps([{"category_id": 1, "score": 0.5, **box} for box in boxes]))
    return ["annotations.json", "manifest.json", "results.json"]


def _read_set(root: Path, _: Path) -> None:
    with contextlib.suppress(CCDiffError):
        found = read_set(root)
        _check_scenes(found.scenes, found.classes, root)
        merge_file(root / "results.json", root, root / "merged.json")
        json.loads((root / "merged.json").read_text(), parse_constant=lambda text: (_ for _ in ()).throw(AssertionError(text)))


def _pictures(root: Path) -> list[str]:
    image = Image.open(picture(root / "a.png", 20, 30))
    image.save(root / "grey.png")
    image.convert("L").quantize(9).save(root / "palette.png", transparency=3)
    image.save(root / "strips.tif", compression="tiff_lzw", tiffinfo={278: 4, 317: 2})
    image.save(root / "raw.tif")
    image.save(root / "a.jpg")
    image.save(root / "a.bmp")
    return ["a.png", "palette.png", "strips.tif", "raw.tif", "a.jpg", "a.bmp"]


def _read_picture(_: Path, path: Path) -> None:
    """A picture in bands; one that decodes has all its rows."""
    whole, windows.WHOLE = windows.WHOLE, 0
    band, windows.BAND = windows.BAND, 160
    try:
        with contextlib.suppress(UnreadablePicture):
            width, height = picture_size(path)
            if width * height < 4_000_000:  # larger ones only cost time
                found = dict(windows.read_windows(path, [(0, 0, width, height), (0, height - 1, width, height)]))
                assert {k: f.size for k, f in found.items()} == {0: (width, height), 1: (width, 1)}
    finally:
        windows.WHOLE, windows.BAND = whole, band


def _read_raw(root: Path, _: Path) -> None:
    read_damaged(root, root.name)


TARGETS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path, Path], None]]] = {
    **{name: (build, _read_raw) for name, build in SEEDS.items()},
    "set": (_set, _read_set),
    "pictures": (_pictures, _read_picture),
}
"""What is fuzzed: what builds a sound folder and names its files, and what reads it after one of them (the second path) changed."""
