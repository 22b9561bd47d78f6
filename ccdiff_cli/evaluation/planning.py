"""What an evaluation would cost: its dry run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..detectors import DetectorConfig, seconds_per_step, training_key
from ..metrics.clip_score import Clip
from ..metrics.features import Extractor, read_scene
from ..trainability.trainings import TRAININGS
from .compared import Compared


def plan_of(compared: Compared, judges: Mapping[str, Extractor], clip: Clip | None, config: DetectorConfig | None) -> dict[str, Any]:
    """What would be done, and what it costs where nothing lies there already, from a few timed pictures and steps."""
    looked_at = len(compared.test) + sum(len(s) for s in compared.made.values())
    some = [read_scene(s) for s in compared.test[:8]]
    seconds = {judge.name: _seconds(lambda judge=judge: judge.encode(some)) / len(some) for judge in judges.values()}  # type: ignore[misc]
    total = sum(seconds.values()) * (looked_at + len(compared.train))
    plan: dict[str, Any] = {
        "real pictures": len(compared.test),
        "training pictures": len(compared.train),
        "synthetic pictures": {name: len(s) for name, s in compared.made.items()},
        "extractors": {name: f"{1 / s:.1f} pictures/s" for name, s in seconds.items()},
        "bootstrap samples": compared.options.bootstrap,
        "clip": clip.name if clip else "not measured: --clip names no weights",
    }
    if clip is not None:
        crops = len(some) + sum(len(s.instances) for s in compared.test[:8])
        each = _seconds(lambda: clip.pictures(some)) / len(some)
        total += each * looked_at * crops / len(some)
        plan["clip pictures per second"] = round(1 / each, 1)
    if config is not None:
        key = training_key(compared.train, compared.classes, config, compared.options.seed)
        finished = (compared.share / TRAININGS / key / "detector.json").is_file()
        step = seconds_per_step(compared.train, compared.classes, config)
        total += (0 if finished else config.steps * step) + looked_at * step / config.batch / 3  # finding: about a third of training
        plan |= {"detector": config.kind, "detector steps": config.steps, "detector already trained": finished}
    return plan | {"estimated minutes": round(total / 60, 1)}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)
