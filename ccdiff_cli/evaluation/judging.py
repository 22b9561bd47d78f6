"""The measurements: each goes through the sets and adds its figures to their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..detectors import DetectorConfig, Progress, fit
from ..detectors.store import write_detections
from ..metrics.average_precision import evaluate as average_precision
from ..metrics.clip_score import CLIP_ROWS, Clip, clip_rows
from ..metrics.colours import COLOUR_ROWS, colour_rows, colour_summary
from ..metrics.distances import compare as distances
from ..metrics.distances import mean_interval, nearest
from ..metrics.features import Extractor, cached, features_of
from ..scene import Scene
from ..threads import as_trained
from ..trainability.adherence import swap_labels
from ..trainability.config import SYNTHETIC
from ..trainability.trainings import TRAININGS, Look, found_in, threads_of
from .compared import REAL, Compared

CLOSEST = 12
"""Pairs of nearest pictures that the page shows of each set."""


def judge_features(compared: Compared, judges: Mapping[str, Extractor]) -> dict[str, list[tuple[Scene, Scene, float]]]:
    """Feature distances and nearest training pictures of every set; returns the closest pairs by the first extractor."""
    closest: dict[str, list[tuple[Scene, Scene, float]]] = {}
    options, rows = compared.options, compared.rows
    sources = [s.source for s in compared.test]
    for judge in judges.values():

        def encoded(name: str, scenes: Sequence[Scene], what: str, judge: Extractor = judge) -> np.ndarray:
            stage = f"{judge.name}: {what}"
            return features_of(
                scenes,
                compared.sets[name].key(),
                judge,
                compared.out / "features",
                batch=options.batch_size,
                progress=compared.progress,
                stage=stage,
            )

        real, known = encoded(REAL, compared.test, "real pictures"), encoded(REAL, compared.train, "training pictures")
        yardstick = nearest(real, known)[1]
        for name in compared.looked_at:
            own = known if name == REAL else encoded(name, compared.made[name], name)
            chosen = np.sort(np.random.default_rng([options.seed, 13]).permutation(len(own))[: compared.judged])
            stage = f"{judge.name}: compare {name}"
            figures = distances(
                real, own[chosen], sources, samples=options.bootstrap, seed=options.seed, progress=compared.progress, stage=stage
            )
            rows[name].setdefault("features", {})[judge.name] = {"pictures": len(chosen), **figures}
            if name == REAL:
                rows[name].setdefault("nearest", {})[judge.name] = _distances(yardstick, yardstick)
                continue
            index, distance = nearest(own, known)
            rows[name].setdefault("nearest", {})[judge.name] = _distances(distance, yardstick)
            if judge is next(iter(judges.values())) and name not in compared.floors:
                first = np.argsort(distance, kind="stable")[:CLOSEST]
                closest[name] = [(compared.made[name][i], compared.train[index[i]], float(distance[i])) for i in first.tolist()]
    return closest


def _distances(distance: np.ndarray, yardstick: np.ndarray) -> dict[str, Any]:
    """Distances to the nearest training picture against those of real pictures that were not trained on."""
    near = float(np.percentile(yardstick, 1))
    return {
        "median": round(float(np.median(distance)), 5),
        "smallest": round(float(distance.min()), 5),
        "yardstick_median": round(float(np.median(yardstick)), 5),
        "yardstick_1_percent": round(near, 5),
        "share_below_yardstick_1_percent": round(float((distance < near).mean()), 4),
        "quantiles": [round(float(v), 5) for v in np.percentile(distance, np.arange(0, 101, 2))],
    }


def judge_clip(compared: Compared, clip: Clip) -> None:
    """CLIP-G of captions and CLIP-L of classes."""
    options = compared.options
    for name, scenes in compared.looked_at.items():
        found = cached(
            scenes,
            [compared.sets[name].key(), clip.key, options.crops],
            compared.out / "clip",
            lambda some: clip_rows(some, clip, options.crops, options.batch_size),
            CLIP_ROWS,
            progress=compared.progress,
            stage=f"CLIP, {name}",
        )
        with_caption = ~np.isnan(found["global"])
        lengths = [clip.tokens(s.caption) for s in scenes]
        compared.rows[name]["clip"] = {
            "CLIP-G": mean_interval(found["global"][with_caption], np.arange(int(with_caption.sum())), samples=options.bootstrap),
            "CLIP-L": mean_interval(found["local"], np.repeat(np.arange(len(scenes)), found["objects"]), samples=options.bootstrap),
            "pictures without a caption": int((~with_caption).sum()),
            "captions cut at 77 tokens": sum(n > 77 for n in lengths),
            "crops": len(found["local"]),
            "objects outside the picture": int(found["lost"].sum()),
        }


def judge_colours(compared: Compared) -> None:
    """Colours of every set, and how far they are from the real ones."""
    found = {
        name: cached(
            scenes,
            [compared.sets[name].key(), "colours", list(COLOUR_ROWS)],
            compared.out / "colours",
            colour_rows,
            COLOUR_ROWS,
            progress=compared.progress,
            stage=f"colours, {name}",
        )
        for name, scenes in compared.looked_at.items()
    }
    for name, rows in found.items():
        compared.rows[name]["colours"] = colour_summary(rows, found[REAL])


def judge_layouts(compared: Compared, config: DetectorConfig) -> dict[str, Any]:
    """YOLOScore of every set and its floor; returns the account of the detector's training."""
    seed, told = compared.options.seed, compared.progress

    def staged(stage: str) -> Progress | None:
        return (lambda _, done, total: told(stage, done, total)) if told else None

    detector = fit(
        compared.train,
        compared.classes,
        config,
        compared.share / TRAININGS,
        seed,
        staged("train the detector on real pictures"),
        threads=threads_of(compared.share, config),
    )
    for name, scenes in compared.looked_at.items():
        look = Look(
            scenes[0].split if name == REAL else "floor" if name in compared.floors else SYNTHETIC, compared.sets[name].key(), scenes
        )
        found = found_in(look, compared.share, detector.info["key"])
        if found is None:
            with as_trained(detector.info):
                found = detector.predict(scenes, staged(f"look for the layouts, {name}"))
            write_detections(look.path(compared.share, detector.info["key"]), found)
        kinds = ["hbb", *(["obb"] if any(d.corners is not None for d in found) else [])]
        swapped = swap_labels(scenes, seed) if name != REAL else None
        for kind in kinds:
            compared.rows[name].setdefault("yoloscore", {})[kind] = average_precision(scenes, found, compared.classes, kind).summary  # type: ignore[arg-type]
            if swapped is not None:
                floor = average_precision(swapped, found, compared.classes, kind).summary  # type: ignore[arg-type]
                compared.rows[name].setdefault("yoloscore_floor", {})[kind] = {k: floor[k] for k in ("mAP", "AP50", "AP75")}
    return detector.info
