"""The formats that can be written, by the name a user gives."""

from __future__ import annotations

from . import coco, dota, huggingface, metadata, voc, webdataset, yolo
from .common import Writer

WRITERS: dict[str, Writer] = {
    "coco": coco.WRITER,
    "roboflow-coco": coco.ROBOFLOW_WRITER,
    "dota": dota.WRITER,
    "dota-task1": dota.TASK1_WRITER,
    "yolo": yolo.WRITER,
    "yolo-obb": yolo.OBB_WRITER,
    "voc": voc.WRITER,
    "metadata": metadata.WRITER,
    "huggingface": huggingface.WRITER,
    "webdataset": webdataset.WRITER,
}
