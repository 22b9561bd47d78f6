"""Small raw data sets that tests of readers, `prepare` and `export` start from; every picture is drawn here."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASS_NUMBERS = {"airplane": 1, "ship": 2, "storage tank": 3, "vehicle": 10}


def picture(path: Path, width: int = 96, height: int = 64, seed: int = 0) -> Path:
    """A picture with texture, so that no two crops are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def vhr10(root: Path, boxes: dict[str, list[tuple[str, tuple[int, int, int, int]]]], *, size=(96, 64), splits=None, masks=None) -> Path:
    """An NWPU VHR-10 folder: stem -> [(class, hbb)]; masks: stem -> [(class, polygon)]."""
    (root / "ground truth").mkdir(parents=True)
    for k, (stem, objects) in enumerate(sorted(boxes.items())):
        picture(root / "positive image set" / f"{stem}.jpg", *size, seed=k)
        lines = [f"( {x1},{y1}),({x2}, {y2}),{CLASS_NUMBERS[name]} \r\n" for name, (x1, y1, x2, y2) in objects]
        (root / "ground truth" / f"{stem}.txt").write_text("".join(lines) + "\r\n")
    for split, stems in (splits or {}).items():
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{split}.txt").write_text("".join(f"{s}\n" for s in stems))
    if masks:
        annotations, images = [], []
        for k, (stem, objects) in enumerate(sorted(masks.items())):
            images.append({"id": k, "file_name": f"{stem}.jpg", "width": size[0], "height": size[1]})
            for name, outline in objects:
                annotations.append(
                    {"id": len(annotations), "image_id": k, "category_id": CLASS_NUMBERS[name], "segmentation": [outline], "iscrowd": 0}
                )
        categories = [{"id": v, "name": k.replace(" ", "_")} for k, v in CLASS_NUMBERS.items()]
        (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def voc_xml(objects: list[str], *, size=(800, 800)) -> str:
    inner = "\n".join(f"<object>{o}</object>" for o in objects)
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>\n{inner}\n</annotation>\n"


def hbb_xml(name: str, box, difficult: int | None = None) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    flag = f"<difficult>{difficult}</difficult>" if difficult is not None else ""
    return f"<name>{name}</name>{flag}<bndbox>{sides}</bndbox>"


def obb_xml(name: str, corners) -> str:
    keys = [f"{a}_{p}" for p in ("left_top", "right_top", "right_bottom", "left_bottom") for a in "xy"]
    return f"<name>{name}</name><robndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, corners, strict=True))}</robndbox>"


def dior(root: Path, files: dict[str, tuple[list[str], list[str]]], *, size=(96, 64), declared=(96, 64)) -> Path:
    """A DIOR folder: id -> (objects of the HBB file, objects of the OBB file)."""
    for k, (stem, (horizontal, oriented)) in enumerate(sorted(files.items())):
        picture(root / "JPEGImages-trainval" / f"{stem}.jpg", *size, seed=k)
        for folder, objects in (("Horizontal Bounding Boxes", horizontal), ("Oriented Bounding Boxes", oriented)):
            path = root / "Annotations" / folder / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(voc_xml(objects, size=declared))
    return root


def coco(root: Path, annotations: list[dict], *, images=None, categories=None, size=(96, 64), name="instances.json") -> Path:
    """A COCO folder with pictures in images/."""
    images = images if images is not None else [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}]
    for k, image in enumerate(images):
        if ".." not in image["file_name"] and not image["file_name"].startswith("/"):
            picture(root / "images" / image["file_name"], *size, seed=k)
    root.mkdir(parents=True, exist_ok=True)
    categories = categories or [{"id": 1, "name": "ship"}, {"id": 7, "name": "vehicle"}]
    (root / name).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def fair1m_xml(objects: list[tuple[str, list[tuple[float, float]]]], *, filename="0.tif", size=(96, 64), coordinate="pixel") -> str:
    """FAIR1M's XML: (class, points) of every object, points as they are to stand there."""
    inner = "".join(
        f"<object><coordinate>{coordinate}</coordinate><type>rectangle</type><description>None</description><possibleresult>"
        f"<name>{name}</name></possibleresult><points>{''.join(f'<point>{x},{y}</point>' for x, y in points)}</points></object>"
        for name, points in objects
    )
    head = f"<source><filename>{filename}</filename><origin>GF2/GF3</origin></source><research><version>1.0</version></research>"
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotation>{head}{sizes}<objects>{inner}</objects></annotation>\n'


SODAA_CATEGORIES = (
    "airplane", "helicopter", "small-vehicle", "large-vehicle", "ship", "container", "storage-tank", "swimming-pool", "windmill", "ignore",
)  # fmt: skip


def sodaa_file(path: Path, annotations: list[dict], *, categories=SODAA_CATEGORIES, name=None, size=(96, 64)) -> Path:
    """One file of SODA-A."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"id": 0, "file_name": name or f"{path.stem}.jpg", "width": size[0], "height": size[1]}
    listed = [{"id": k, "name": category} for k, category in enumerate(categories)]
    path.write_text(json.dumps({"images": about, "annotations": annotations, "categories": listed}))
    return path


def labelme_file(path: Path, shapes: list[dict], *, image: str | None = None, **more) -> Path:
    """One file of labelme; ``more`` are further keys of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image or f"{path.stem}.png", "imageData": None}
    path.write_text(json.dumps({**entry, "imageHeight": 64, "imageWidth": 96, **more}))
    return path


def cvat_xml(images: list[str], *, labels=("ship", "car"), kind="task", meta="") -> str:
    """CVAT's XML: ``<image>`` or ``<track>`` elements as they are to stand there."""
    named = "".join(f"<label><name>{name}</name><attributes></attributes></label>" for name in labels)
    head = f"<version>1.1</version><meta><{kind}><id>1</id><name>t</name>{meta}<labels>{named}</labels></{kind}></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{head}\n' + "\n".join(images) + "\n</annotations>\n"


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
