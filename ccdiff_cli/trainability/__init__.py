"""Does a detector gain?  The same detector on real pictures, and on those with others added, tested on real ones.

    arms x fractions of the real set x seeds -> trainings -> detections -> gains with intervals -> report

Notable:

* All arms get the same first weights and the same seeds, so gains are taken pair by pair; each is trained for as many optimizer steps as
  the real one, and for as many epochs (as published), beside real pictures trained as long.
* Headroom first: the real arms of every seed are trained before any other, and say whether the experiment can answer (:mod:`.yardstick`).
* Every training and every prediction is filed under the key of what it depends on: an interrupted experiment goes on where it
  stopped, and one with more seeds, arms or fractions trains only what is new.
* Layout adherence comes for free: the detectors of the real arm look for the layouts in the synthetic pictures.
* Leak guard: an experiment is refused when test pictures, or what shows the same, went into anything that is trained on (:mod:`.leaks`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..comparison import check_classes, read_added
from ..dataset import PictureSet, read_set
from ..detectors import Detections, DetectorConfig, Progress, seconds_per_step
from ..errors import CCDiffError
from ..files import read_json, write_json, write_text
from ..geometry import hbb_iou, rotated_iou
from ..layouts import plan_layouts
from ..locks import locked
from ..metrics.average_precision import Boxes, evaluate
from ..report import Change, Example, trainability_page
from ..report.trainability import latex_table, markdown_table
from ..scene import ClassList, Scene
from .adherence import adherence_scores, layout_adherence, swap_labels
from .arms import REAL, Arm, copies_wanted, fraction_of, make_arms, source_of, split_lists, trainings_of
from .calibration import calibrate
from .config import (
    ALL,
    COPY_PASTE,
    HELD_OUT,
    JITTERED,
    KINDS,
    PRETRAIN,
    SYNTHETIC,
    SYNTHETIC_ONLY,
    ExperimentConfig,
    load_detector_config,
    load_experiment,
)
from .copy_paste import make_copy_paste
from .jitter import jitter_labels
from .leaks import check_leaks
from .results import epochs_of, headline_of, object_changes, summarise
from .statistics import resample, verdict
from .trainings import TRAININGS, Look, Task, carry_out, found_in, is_finished
from .yardstick import answer_of, more_real, unknown

__all__ = [
    "BOTH",
    "REAL",
    "ExperimentConfig",
    "calibrate",
    "check_leaks",
    "eval_trainability",
    "layout_adherence",
    "load_detector_config",
    "load_experiment",
    "swap_labels",
    "verdict",
]

BOTH = f"{REAL} + {SYNTHETIC}"
EXAMPLES, CHANGES = 8, 8
SAMPLES = 16
"""Test pictures with detections, objects learned and as many lost, and synthetic pictures, that the report shows."""
SPLITS, YARDSTICK = "splits", "yardstick.json"
SHOWN_SCORE = 0.5
"""A detection with this score counts as an object found, where single objects are shown or counted."""


@locked("eval-trainability")
def eval_trainability(
    real: str | Path,
    synthetic: str | Path | None,
    out: str | Path,
    config: ExperimentConfig | DetectorConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    others: Mapping[str, str | Path] | None = None,
    floor: str | Path | None = None,
    generator_data: str | Path | None = None,
    allow_leaks: bool = False,
    processes: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare detectors trained on real pictures with others trained on real + synthetic ones, or any other arms.

    Writes ``out/yardstick.json`` as soon as the real arms are finished, then ``out/results.json``, ``out/report.html``, ``out/table.md``
    and ``out/table.tex``; trainings lie in ``out/trainings``, predictions in ``out/predictions``, copy-paste
    sets in ``out/copy-paste``, lists of the pictures of each part of the real set in ``out/splits``.

    Args:
        real: a prepared set with the splits "train" and "test".
        synthetic: a synthetic set of the same classes (its split "train"); None: the experiment has no arm of synthetic pictures.
        config: the experiment, or its detector alone; None: real and real + synthetic with the small detector for a CPU.
        seeds: in place of the experiment's: one training of each arm each.
        others: name -> any other set of the same classes to be added to the real pictures; at the synthetic arm's ratios, unless the
            experiment has an arm of that name.
        floor: a set generated from shuffled layouts, for the floor of layout adherence.
        generator_data: the set the generator was trained on, for the leak guard, where it is not ``real``.
        allow_leaks: report leaks instead of refusing.
        processes: how many at once; None: one a GPU, one on a CPU.
        dry_run: train nothing and write nothing; return the plan and its cost, from two timed steps.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What ``results.json`` holds (all AP in percent), with ``"verdict"``; for a dry run the plan.

    Raises:
        CCDiffError: classes differ, a split or the synthetic set is empty, test pictures leaked, a set is too small for a ratio, a training
            failed (the others are finished first, and kept), ...
    """
    out = Path(out)
    config = _experiment(config, seeds, others or {}, with_synthetic=synthetic is not None)
    sets = _read_sets(real, synthetic, others or {}, floor)
    train, test = sets["real"].split("train"), sets["real"].split("test")
    config = config.with_steps(len(train))
    added_sets = {name: made for name, made in sets.items() if name not in ("real", "floor")}
    leaks = check_leaks(
        sets["real"],
        added_sets,
        generator_data=read_set(generator_data) if generator_data is not None else None,
        allow=allow_leaks,
        progress=progress,
    )
    classes = sets["real"].classes
    if dry_run:
        return _plan(config, sets, train, test, out, leaks, processes)

    arms = make_arms(config, train, _pools(config, sets, train, out, progress))
    for arm in (a for a in arms if a.kind == REAL and a.fraction < 100):
        for name, text in split_lists(sets["real"], arm.scenes).items():
            write_text(out / SPLITS / f"{arm.fraction:g}" / name, text)
    looked_at = [Look("test", sets["real"].key(), test)]
    for_adherence = [Look(name, sets[name].key(), sets[name].split("train")) for name in (SYNTHETIC, "floor") if name in sets]
    for_adherence = for_adherence if SYNTHETIC in sets else []
    chosen, baseline = headline_of(arms)
    ordered = sorted(arms, key=lambda a: a.kind != REAL)
    plan = {(arm.name, seed): trainings_of(arm, classes, config, seed) for seed in config.seeds for arm in ordered}
    failed: dict[str, CCDiffError] = {}
    for alone in (True, False):  # headroom first; then seed by seed: an early stop leaves whole pairs
        tasks = []
        for (name, _), trainings in plan.items():
            if (name in {a.name for a in arms if a.kind == REAL}) == alone:
                looks = [*looked_at, *(for_adherence if name == baseline.name else ())]
                tasks += [Task(t, ()) for t in trainings[:-1]] + [Task(trainings[-1], tuple(looks))]
        failed |= carry_out(tasks, classes, out, processes=processes, progress=progress)
        if alone and (answer := _yardstick(arms, config, plan, looked_at[0], classes, out, chosen.fraction)) is not None:
            write_json(out / YARDSTICK, answer)
    arms, failures = _without_failures(arms, plan, failed, config.seeds, chosen, baseline)

    if progress:
        progress("compare", 0, 1)
    last = {key: trainings[-1].key for key, trainings in plan.items()}

    def found(name: str, seed: int, look: Look) -> list[Detections]:
        made = found_in(look, out, last[name, seed])
        if made is None:  # removed since
            raise CCDiffError("a prediction is gone", where=look.path(out, last[name, seed]), fix="run the same command again")
        return made

    boxes: Boxes = "obb" if config.detector.oriented else "hbb"
    on_test = {arm.name: [found(arm.name, seed, looked_at[0]) for seed in config.seeds] for arm in arms}
    evaluations = {name: [evaluate(test, seen, classes, boxes) for seen in per_seed] for name, per_seed in on_test.items()}
    horizontal = {
        name: [evaluate(test, seen, classes).summary for seen in per_seed] for name, per_seed in on_test.items() if boxes == "obb"
    }
    seen = {seed: {look.what: found(baseline.name, seed, look) for look in for_adherence} for seed in config.seeds}
    pictures = {look.what: look.scenes for look in for_adherence}
    objects = [_objects_found(test, on_test[a.name], classes, boxes) for a in (baseline, chosen)]
    changes = object_changes(test, classes, *objects)
    details = {
        "adherence": adherence_scores(pictures, seen, evaluations[baseline.name], classes, boxes) if for_adherence else None,
        "leak_check": leaks,
        "failed": failures,
        "horizontal": horizontal,
        "objects": {"score": SHOWN_SCORE, "per_class": changes["per_class"]},
    }
    trained = {a.name: [_account(out, plan[a.name, seed]) for seed in config.seeds] for a in arms}
    results = summarise(sets, arms, config, evaluations, details, trained)

    both = [Example(test[i], on_test[baseline.name][0][i], on_test[chosen.name][0][i]) for i in range(len(test))]
    examples = [both[i] for i in _spread([i for i, scene in enumerate(test) if scene.instances], EXAMPLES)]
    changed = {
        state: [
            Change(both[i], test[i].instances[j], (int(objects[0][i][:, j].sum()), int(objects[1][i][:, j].sum())))
            for i, j in _one_class_after_the_other(test, found)[:CHANGES]
        ]
        for state, found in changes["examples"].items()
    }
    shown = sets[SYNTHETIC].split("train") if SYNTHETIC in sets else [s for s in chosen.scenes if s not in baseline.scenes]
    samples = [shown[i] for i in _spread(range(len(shown)), SAMPLES)]
    page = trainability_page(results, classes, examples, samples, changed)
    write_text(out / "report.html", page)
    write_text(out / "table.md", markdown_table(results))
    write_text(out / "table.tex", latex_table(results))
    write_json(out / "results.json", results)
    if progress:
        progress("compare", 1, 1)
    if failures:
        first = failures[0]
        raise CCDiffError(
            f"{len(failures)} of {len(plan)} trainings failed (first: {first['training']}: {first['error']}); the others are kept, "
            f"and the report leaves these arms out: {out / 'report.html'}",
            where=out,
            fix=first["fix"] or "run the same command again",
        )
    return results


def _read_sets(
    real: str | Path, synthetic: str | Path | None, others: Mapping[str, str | Path], floor: str | Path | None
) -> dict[str, PictureSet]:
    """Name -> set, all of the same classes, none without what it is needed for."""
    sets = {"real": read_set(real)}
    if synthetic is not None:
        sets[SYNTHETIC] = read_added(synthetic, SYNTHETIC)
    for name, root in others.items():
        if name in ("real", "floor", *KINDS):
            raise CCDiffError(f"{name!r} cannot name an other set", fix="choose another name: --other NAME=SET")
        sets[name] = read_added(root, name)
    if floor is not None:
        sets["floor"] = read_added(floor, "floor")
    check_classes(sets)
    _check_splits(sets, sets["real"].split("train"), sets["real"].split("test"))
    return sets


def _experiment(
    config: ExperimentConfig | DetectorConfig | None, seeds: Sequence[int] | None, others: Mapping[str, Any], *, with_synthetic: bool
) -> ExperimentConfig:
    """The experiment with the other sets as arms and the seeds given."""
    if config is None or isinstance(config, DetectorConfig):
        config = ExperimentConfig(detector=config or DetectorConfig())
    ratios = config.arms.get(SYNTHETIC, (ALL,))
    arms = {**config.arms, **{name: ratios for name in others if name not in config.arms}}
    if unknown := [name for name in arms if name not in KINDS and name not in others]:
        raise CCDiffError(
            f"arms.{unknown[0]}: no such arm and no such set",
            fix=f"arms: {', '.join(KINDS)}; any other set is named by --other {unknown[0]}=SET",
        )
    if not arms:
        raise CCDiffError("the experiment has no arm besides real", fix="for example --arm synthetic=1")
    if not with_synthetic and (needing := [name for name in arms if name in (SYNTHETIC, SYNTHETIC_ONLY, PRETRAIN)]):
        raise CCDiffError(
            f"arms.{needing[0]}: there is no synthetic set", fix="give one with --synthetic SET, or other arms: --arm copy-paste=1"
        )
    if seeds is not None and (not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0):
        raise CCDiffError(f"seeds {list(seeds)}: expected different whole numbers from 0", fix="for example --seeds 0,1,2")
    return config.model_copy(update={"arms": arms, **({"seeds": tuple(seeds)} if seeds is not None else {})})


def _yardstick(
    arms: Sequence[Arm],
    config: ExperimentConfig,
    plan: Mapping[tuple[str, int], Sequence[Any]],
    look: Look,
    classes: ClassList,
    out: Path,
    fraction: float,
) -> dict[str, Any] | None:
    """Whether the experiment can answer, from the real arms alone; None while one of their trainings is not finished."""
    real = [a for a in arms if a.kind == REAL]
    boxes: Boxes = "obb" if config.detector.oriented else "hbb"
    evaluations = {}
    for arm in real:
        found = [found_in(look, out, plan[arm.name, seed][-1].key) for seed in config.seeds]
        if any(f is None for f in found):
            return None
        evaluations[arm.name] = [evaluate(look.scenes, f, classes, boxes) for f in found if f is not None]
    drawn = resample(evaluations, [source_of(s) for s in look.scenes], samples=config.samples)
    rows = more_real(real, evaluations, drawn)
    return {**answer_of(rows, fraction, len(config.seeds)), "more_real": rows}


def _pools(
    config: ExperimentConfig,
    sets: dict[str, PictureSet],
    train: Sequence[Scene],
    out: Path | None,
    progress: Progress | None = None,
) -> dict[tuple[str, float], Sequence[Scene]]:
    """(arm, fraction) -> the pictures it can add; copy-paste sets are made here, and join ``sets``.

    Without ``out`` nothing is made: training pictures stand in for the copy-paste ones, as many as there would be.
    """
    pools: dict[tuple[str, float], Sequence[Scene]] = {}
    synthetic = sets[SYNTHETIC].split("train") if SYNTHETIC in sets else ()
    for percent in config.fractions:
        here = fraction_of(train, percent, config.draw)
        for kind in config.arms:
            if kind in (HELD_OUT, JITTERED):
                pools[kind, percent] = _held_out(config, train, here, kind, percent)
                continue
            if kind != COPY_PASTE:
                pools[kind, percent] = sets[kind if kind in sets else SYNTHETIC].split("train")
                continue
            count = copies_wanted(config, len(here), len(synthetic) or len(here))
            if out is None:
                pools[kind, percent] = [here[k % len(here)].replace(file_name=f"copy-paste-{k}") for k in range(count)]
                continue
            layouts = synthetic
            if not synthetic:
                own = PictureSet(sets["real"].root, sets["real"].classes, tuple(here), {})
                layouts = tuple(plan_layouts(own, count, config.draw))
            made = make_copy_paste(
                out / COPY_PASTE,
                sets["real"],
                here,
                layouts,
                count,
                draw=config.draw,
                overlap=config.paste_overlap,
                progress=progress,
            )
            sets[COPY_PASTE if percent == 100 else f"{COPY_PASTE} ({percent:g} %)"] = made
            pools[kind, percent] = made.split("train")
    return pools


def _held_out(config: ExperimentConfig, train: Sequence[Scene], here: Sequence[Scene], kind: str, percent: float) -> Sequence[Scene]:
    """The real pictures that a fraction leaves out, as they are or with jittered labels."""
    chosen = {s.file_name for s in here}
    rest = [s for s in train if s.file_name not in chosen]
    if not rest:
        raise CCDiffError(
            f"arms.{kind}: {percent:g} % of the real pictures leave none out", fix="look at a smaller part: for example --fractions 10"
        )
    return rest if kind == HELD_OUT else [jitter_labels(s, config.label_jitter, config.draw) for s in rest]


def _without_failures(
    arms: Sequence[Arm],
    plan: Mapping[tuple[str, int], Sequence[Any]],
    failed: Mapping[str, CCDiffError],
    seeds: Sequence[int],
    chosen: Arm,
    baseline: Arm,
) -> tuple[list[Arm], list[dict[str, Any]]]:
    """The arms all of whose trainings are finished, and what failed.

    Raises:
        CCDiffError: without the headline's two arms there is nothing to report.
    """
    failures: list[dict[str, Any]] = []
    bad: set[str] = set()
    for (name, _), trainings in plan.items():
        for training in trainings:
            if training.key in failed:
                error = failed[training.key]
                failures.append({"training": training.name, "error": error.what, "fix": error.fix})
                bad.add(name)
    kept = [a for a in arms if a.name not in bad]
    real = {a.fraction for a in kept if a.kind == REAL}
    kept = [a for a in kept if a.fraction in real]
    if not {chosen.name, baseline.name} <= {a.name for a in kept}:
        first = failures[0]
        raise CCDiffError(
            f"{len(failures)} of {len(plan)} trainings failed (first: {first['training']}: {first['error']}); the others are finished and "
            "kept, but without these there is no gain to report",
            fix=first["fix"] or "run the same command again",
        )
    return kept, failures


def _account(out: Path, trainings: Sequence[Any]) -> dict[str, Any]:
    """What the last training says of itself, with the seconds of all stages."""
    infos = [read_json(out / TRAININGS / t.key / "detector.json") for t in trainings]
    return {**infos[-1], "seconds": round(sum(i["seconds"] for i in infos), 1)}


def _objects_found(scenes: Sequence[Scene], per_seed: Sequence[Sequence[Detections]], classes: ClassList, boxes: Boxes) -> list[np.ndarray]:
    """For every picture (seeds, objects): is there a detection of its class with IoU 0.5 and the score shown?"""
    found = []
    for i, scene in enumerate(scenes):
        label = np.array([classes.index(c) for c in scene.categories()], np.int64)
        truth = np.array([x.hbb if boxes == "hbb" else x.corners for x in scene.instances], np.float64)
        rows = []
        for detections in per_seed:
            one = detections[i]
            sure = one.scores >= SHOWN_SCORE
            iou = hbb_iou(truth, one.boxes[sure]) if boxes == "hbb" else rotated_iou(truth, _corners(one)[sure])
            rows.append(((iou >= 0.5) & (label[:, None] == one.labels[sure][None])).any(axis=1))
        found.append(np.array(rows).reshape(len(per_seed), len(label)))
    return found


def _corners(found: Detections) -> np.ndarray:
    return found.corners if found.corners is not None else np.zeros((len(found), 8))  # a picture without any


def _one_class_after_the_other(scenes: Sequence[Scene], objects: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(picture, object) in the given order, but the first of every class before the second of any."""
    turn: Counter[str] = Counter()
    placed = []
    for k, (i, j) in enumerate(objects):
        category = scenes[i].instances[j].category
        placed.append((turn[category], k, i, j))
        turn[category] += 1
    return [(i, j) for _, _, i, j in sorted(placed)]


def _check_splits(sets: Mapping[str, PictureSet], train: Sequence[Scene], test: Sequence[Scene]) -> None:
    real = sets["real"]
    for name, scenes in (("train", train), ("test", test)):
        if not scenes:
            raise CCDiffError(
                f"the real set has no {name} split",
                where=real.root,
                fix="prepare it with one: `ccdiff prepare --splits FOLDER` (train.txt, val.txt, test.txt)",
            )
    if all(i.difficult for scene in test for i in scene.instances):
        raise CCDiffError("no test picture holds an object that counts: there is nothing to measure", where=real.root)
    for name, made in sets.items():
        if name != "real" and not any(scene.instances for scene in made.split("train")):
            raise CCDiffError(f"the {name} set holds no labelled object", where=made.root, fix="run `ccdiff synthesize` with layouts")


def _plan(
    config: ExperimentConfig,
    sets: dict[str, PictureSet],
    train: Sequence[Scene],
    test: Sequence[Scene],
    out: Path,
    leaks: Mapping[str, Any],
    processes: int | None,
) -> dict[str, Any]:
    """What would be trained, and what it would cost."""
    classes = sets["real"].classes
    pools = _pools(config, sets, train, None)
    arms = make_arms(config, train, pools)
    step = seconds_per_step(train, classes, config.detector)
    rows: dict[str, Any] = {}
    counted: set[str] = set()
    todo = 0.0
    for arm in arms:
        trainings, finished, steps = 0, 0, 0
        for seed in config.seeds:
            for training in trainings_of(arm, classes, config, seed):
                trainings += 1
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
            "trainings": trainings,
            "finished": finished,
            "minutes": round(steps * step / 60, 1),
        }
    looks = len(config.seeds) * (len(arms) * len(test) + (len(sets[SYNTHETIC].split("train")) if SYNTHETIC in sets else 0))
    todo += looks * step / config.detector.batch / 3  # finding takes about a third of training
    devices = processes or _gpus(config.detector.device)
    real = [rows[a.name] for a in arms if a.kind == REAL]
    keys = {(a.name, seed): trainings_of(a, classes, config, seed) for a in arms if a.kind == REAL for seed in config.seeds}
    answer = _yardstick(arms, config, keys, Look("test", sets["real"].key(), tuple(test)), classes, out, headline_of(arms)[0].fraction)
    return {
        "yardstick": answer or unknown(sum(r["trainings"] - r["finished"] for r in real), sum(r["minutes"] for r in real)),
        "arms": rows,
        "seeds": list(config.seeds),
        "test pictures": len(test),
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


def _spread(items: Sequence[int], n: int) -> list[int]:
    """``n`` of the items, evenly spaced: what is shown is not chosen by hand."""
    if not items:
        return []
    return [items[int(k)] for k in np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).astype(int))]
