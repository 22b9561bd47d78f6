"""mmrotate's own mAP of oriented boxes beside ours, on the same detections.

    python -m tests.detectors.mmrotate_map SET DETECTIONS [SPLIT]

DETECTIONS is a file of :mod:`ccdiff_cli.detectors.store`, made on the pictures of SPLIT ("test" unless given).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch

from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import Detections, mm_models
from ccdiff_cli.detectors.samples import rectangles_to_le90
from ccdiff_cli.detectors.store import read_detections
from ccdiff_cli.geometry import corners_to_le90
from ccdiff_cli.metrics.average_precision import evaluate
from ccdiff_cli.scene import ClassList, Scene


def mmrotate_ap(
    scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList, *, voc07: bool, iou: float = 0.5
) -> dict[str, float]:
    """AP in percent of every class with objects, by mmrotate's ``eval_rbbox_map``; difficult objects go in as ``bboxes_ignore``.

    NOTE: mmrotate 1.0.0rc1 forgets the ignored objects of a picture that has no other ones (``get_cls_results``), so every picture
    gets one object of a class that is not evaluated.
    """
    mm_models.backend()
    from mmrotate.evaluation import eval_rbbox_map

    found = []
    for d in detections:
        assert d.corners is not None
        boxes = rectangles_to_le90(torch.from_numpy(d.corners).double().reshape(-1, 4, 2)).numpy()
        table = np.column_stack((boxes, d.scores)).reshape(-1, 6)
        found.append([table[d.labels == k] for k in range(len(classes))])
    truth = []
    for scene in scenes:
        boxes = np.array([corners_to_le90(i.corners) for i in scene.instances]).reshape(-1, 5)
        labels = np.array([classes.index(i.category) for i in scene.instances], dtype=np.int64)
        hard = np.array([i.difficult for i in scene.instances], dtype=bool)
        counted = {"bboxes": np.vstack((boxes[~hard], [[0, 0, 1, 1, 0]])), "labels": np.append(labels[~hard], len(classes))}
        truth.append({**counted, "bboxes_ignore": boxes[hard], "labels_ignore": labels[hard]})
    _, per_class = eval_rbbox_map(found, truth, iou_thr=iou, use_07_metric=voc07, box_type="rbox", logger="silent")
    return {name: 100 * float(c["ap"]) for name, c in zip(classes, per_class, strict=True) if c["num_gts"] > 0}


def compare(scenes: Sequence[Scene], detections: Sequence[Detections], classes: ClassList) -> list[tuple[str, float, float, float, float]]:
    """Rows (class, mmrotate's VOC07, ours, mmrotate's VOC12, ours), percent, IoU 0.5; the mean last."""
    ours = evaluate(scenes, detections, classes, boxes="obb").summary["per_class"]
    theirs07, theirs12 = (mmrotate_ap(scenes, detections, classes, voc07=flag) for flag in (True, False))
    rows = [(name, theirs07[name], ours[name]["AP50_voc07"], theirs12[name], ours[name]["AP50_voc12"]) for name in theirs07]
    return [*rows, ("mean", *(float(np.mean([row[k] for row in rows])) for k in range(1, 5)))]


if __name__ == "__main__":
    tested = read_set(sys.argv[1])
    pictures = tested.split(sys.argv[3] if len(sys.argv) > 3 else "test")
    made = read_detections(sys.argv[2], len(pictures))
    if made is None:
        raise SystemExit(f"{sys.argv[2]} does not hold detections of {len(pictures)} pictures")
    print("class: VOC07 by mmrotate, by ccdiff; VOC12 by mmrotate, by ccdiff")
    for name, *values in compare(pictures, made, tested.classes):
        print(f"{name}: " + " ".join(f"{v:.3f}" for v in values))
