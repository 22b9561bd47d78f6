"""Average precision of 100,000 detections: our evaluator against pycocotools and, where installed, hotcoco and faster-coco-eval.

    python -m benchmarks.evaluators [--detections 100000] [--pictures 1000] [--repeats 3] [--boxes hbb obb]

Drawn scenes of 20 classes (objects on top of one another, a tenth of the objects missed, half of the detections near an object, the
rest anywhere), no difficult objects, so that every evaluator measures the same.  Each is given what it takes (ours: scenes and
detections; the others: their COCO objects, whose building is timed too) and runs in turn; the figures are the smallest wall and
processor times over the repeats.  Ours makes more of it (VOC's AP, seven sizes, matches for the bootstrap); the others COCO's table at
one size.  For OBB hotcoco takes cx, cy, w, h, angle.  ``difference`` is the largest from pycocotools (HBB) or from ours (OBB), in
points of mAP.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ccdiff_cli.detectors import Detections
from ccdiff_cli.geometry import corners_to_le90, hbb_of, le90_to_corners
from ccdiff_cli.metrics.average_precision import IOU_THRESHOLDS, evaluate
from ccdiff_cli.scene import ClassList, Instance, Scene

CLASSES = ClassList(tuple(f"class {k}" for k in range(20)))
SIDE = 800.0


def drawn(pictures: int, detections: int, seed: int = 0) -> tuple[list[Scene], list[Detections]]:
    """Scenes with half as many objects as there are detections."""
    rng = np.random.default_rng(seed)
    per_picture = detections // pictures
    scenes, found = [], []
    for p in range(pictures):
        boxes = np.column_stack([rng.uniform(20, SIDE - 20, (per_picture // 2, 2)), rng.uniform(8, 90, (per_picture // 2, 2))])
        boxes[:, 2:] = -np.sort(-boxes[:, 2:], axis=1)
        boxes = np.column_stack([boxes, rng.uniform(-np.pi / 2, np.pi / 2, len(boxes))])
        labels = rng.integers(len(CLASSES), size=len(boxes))
        instances = [Instance.from_corners(CLASSES.names[k], le90_to_corners(b)) for k, b in zip(labels, boxes, strict=True)]
        near = boxes + rng.normal(0, 1, boxes.shape) * [1.5, 1.5, 2, 2, 0.05]
        elsewhere = boxes.copy()
        elsewhere[:, :2] = rng.uniform(20, SIDE - 20, (len(boxes), 2))
        missed = rng.random(len(boxes)) < 0.1
        near[missed] = elsewhere[missed] + 1
        every = np.concatenate([near, elsewhere])
        every[:, 2:4] = np.clip(every[:, 2:4], 3, None)
        scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(2, 4, len(elsewhere))])
        corners = np.array([le90_to_corners(b) for b in every])
        order = np.argsort(-scores)
        hbb = np.array([hbb_of(c) for c in corners])
        classes = np.concatenate([labels, rng.integers(len(CLASSES), size=len(elsewhere))])
        scenes.append(Scene(f"{p}.png", int(SIDE), int(SIDE), tuple(instances), split="test", source=f"{p}"))
        found.append(Detections(hbb[order].astype(np.float32), scores[order].astype(np.float32), classes[order], corners[order]))
    return scenes, found


def coco_dictionaries(scenes: list[Scene], found: list[Detections], boxes: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def shape(hbb: Any, corners: Any) -> dict[str, Any]:
        x1, y1, x2, y2 = (float(v) for v in hbb)
        entry: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        if boxes == "obb":
            entry["obb"] = [float(v) for v in corners_to_le90(corners)]
            entry["area"] = entry["obb"][2] * entry["obb"][3]
        return entry

    annotations = [
        {"image_id": p, "category_id": CLASSES.index(i.category) + 1, **shape(i.hbb, i.corners)}
        for p, s in enumerate(scenes, start=1)
        for i in s.instances
    ]
    truth = {
        "info": {},
        "images": [{"id": p, "width": s.width, "height": s.height, "file_name": s.file_name} for p, s in enumerate(scenes, start=1)],
        "annotations": [{"id": n} | a for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)],
    }
    results = [
        {"image_id": p, "category_id": int(d.labels[k]) + 1, "score": float(d.scores[k]), **shape(d.boxes[k], d.corners[k])}  # type: ignore[index]
        for p, d in enumerate(found, start=1)
        for k in range(len(d))
    ]
    return truth, results


def pycocotools_like(coco: Any, evaluator: Any, truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> float:
    """mAP in percent by a library with pycocotools' interface."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco(truth) if kind == "obb" or coco.__module__.startswith("hotcoco") else coco()
        if not getattr(gt, "anns", None) and hasattr(gt, "createIndex"):
            gt.dataset = truth
            gt.createIndex()
        dt = (gt.load_res if hasattr(gt, "load_res") else gt.loadRes)(results)
        run = evaluator(gt, dt, kind)
        run.params.maxDets = [1, 100, 1000]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
        precision = np.asarray(run.eval["precision"])[..., 0, -1]
    return 100 * float(precision[precision > -1].mean())


def timed(work: Callable[[], float]) -> tuple[float, tuple[float, float]]:
    """mAP, and wall and processor seconds (of all threads)."""
    wall, processor = time.perf_counter(), time.process_time()
    value = work()
    return value, (time.perf_counter() - wall, time.process_time() - processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--boxes", nargs="+", choices=("hbb", "obb"), default=["hbb", "obb"])
    arguments = parser.parse_args()
    scenes, found = drawn(arguments.pictures, arguments.detections)
    rows: dict[str, Any] = {}
    for boxes in arguments.boxes:
        truth, results = coco_dictionaries(scenes, found, boxes)
        runs: dict[str, Callable[[], float]] = {
            "ours": lambda boxes=boxes: evaluate(scenes, found, CLASSES, boxes).summary["mAP"]  # type: ignore[misc]
        }
        kind = "bbox" if boxes == "hbb" else "obb"
        for name, module, coco, evaluator in (
            ("pycocotools", "pycocotools", "coco.COCO", "cocoeval.COCOeval"),
            ("hotcoco", "hotcoco", "COCO", "COCOeval"),
            ("faster-coco-eval", "faster_coco_eval", "COCO", "COCOeval_faster"),
        ):
            if boxes == "obb" and name != "hotcoco":
                continue
            try:
                classes = [_attribute(module, path) for path in (coco, evaluator)]
            except ImportError:
                continue
            runs[name] = lambda classes=classes, truth=truth, results=results, kind=kind: pycocotools_like(*classes, truth, results, kind)  # type: ignore[misc]
        best: dict[str, tuple[float, float]] = {}
        value: dict[str, float] = {}
        for _ in range(arguments.repeats):
            for name, work in runs.items():
                value[name], seconds = timed(work)
                best[name] = tuple(map(min, seconds, best.get(name, seconds)))  # type: ignore[assignment]
        reference = value["pycocotools" if "pycocotools" in value else "ours"]
        rows[boxes] = {
            name: {
                "wall": round(best[name][0], 3),
                "processor": round(best[name][1], 3),
                "mAP": round(value[name], 4),
                "difference": float(f"{abs(value[name] - reference):.1e}"),
            }
            for name in runs
        }
    print(json.dumps({"pictures": len(scenes), "detections": sum(map(len, found)), "objects": sum(len(s.instances) for s in scenes),
                      "thresholds": len(IOU_THRESHOLDS), "machine": platform.machine(), **rows}, indent=1))  # fmt: skip


def _attribute(module: str, path: str) -> Any:
    *inner, name = path.split(".")
    return getattr(importlib.import_module(".".join([module, *inner])), name)


if __name__ == "__main__":
    main()
