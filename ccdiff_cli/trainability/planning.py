"""What would be trained, and what it would cost: the dry run of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..detectors import seconds_per_step
from .arms import REAL, make_arms
from .config import SYNTHETIC
from .experiment import Experiment, pools_of, yardstick_of
from .results import epochs_of, headline_of
from .trainings import is_finished
from .yardstick import unknown


def plan_of(experiment: Experiment, leaks: Mapping[str, Any]) -> dict[str, Any]:
    """Arms with their pictures, steps, trainings and minutes, from two timed steps; nothing is written.

    Args:
        leaks: of :func:`.leaks.check_leaks`.
    """
    config, out = experiment.config, experiment.out
    arms = make_arms(config, experiment.train, pools_of(experiment, dry_run=True))
    trainings = experiment.trainings(arms)
    step = seconds_per_step(experiment.train, experiment.classes, config.detector)
    rows: dict[str, Any] = {}
    counted: set[str] = set()
    todo = 0.0
    for arm in arms:
        mine = [training for seed in config.seeds for training in trainings[arm.name, seed]]
        finished, steps = 0, 0
        for training in mine:
            if is_finished(training, out):
                finished += 1
            elif training.key not in counted:
                steps += training.config.steps
            counted.add(training.key)
        todo += steps * step
        rows[arm.name] = {
            "pictures": len(arm.scenes) + len(arm.first),
            "epochs": epochs_of(arm, config),
            "steps": arm.total_steps,
            "trainings": len(mine),
            "finished": finished,
            "minutes": round(steps * step / 60, 1),
        }
    synthetic = len(experiment.sets[SYNTHETIC].split("train")) if SYNTHETIC in experiment.sets else 0
    looks = len(config.seeds) * (len(arms) * len(experiment.test) + synthetic)
    todo += looks * step / config.detector.batch / 3  # finding takes about a third of training
    devices = experiment.processes or _gpus(config.detector.device)
    real = [rows[a.name] for a in arms if a.kind == REAL]
    answer = yardstick_of(experiment, arms, trainings, headline_of(arms)[0].fraction)
    return {
        "yardstick": answer or unknown(sum(r["trainings"] - r["finished"] for r in real), sum(r["minutes"] for r in real)),
        "arms": rows,
        "seeds": list(config.seeds),
        "test pictures": len(experiment.test),
        "trainings": len(counted),
        "trainings already finished": sum(r["finished"] for r in rows.values()),
        "steps of each": config.detector.steps,
        "pictures per step": config.detector.batch,
        "pictures per second": round(config.detector.batch / step, 1),
        "processes": devices,
        "estimated minutes": round(todo / 60 / devices, 1),
        "experiment": config.model_dump(mode="json"),
        "leak check": dict(leaks),
    }


def _gpus(device: str) -> int:
    import torch

    return torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 1
