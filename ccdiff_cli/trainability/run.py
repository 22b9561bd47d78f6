"""An experiment from the sets to the report: leaks, headroom, trainings, comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataset import read_set
from ..detectors import Detections, Progress
from ..detectors.config import BackboneWeights, Losses
from ..errors import CCDiffError
from ..files import clear_partials, read_json, write_json
from ..locks import locked
from ..metrics.average_precision import evaluate
from ..stored import Count, Number, Stored, Text, checked
from .adherence import adherence_scores
from .arms import REAL, Arm, Training, make_arms, write_split_lists
from .config import SYNTHETIC, ExperimentConfig
from .experiment import Experiment, Plan, open_experiment, pools_of, read_sets, with_arms, yardstick_of
from .leaks import check_leaks
from .options import TrainabilityOptions
from .planning import plan_of
from .results import headline_of, object_changes, summarise
from .shown import SHOWN_SCORE, changes_of, examples_of, objects_found, write_report
from .trainings import TRAININGS, Look, Task, carry_out, found_in

BOTH = f"{REAL} + {SYNTHETIC}"
SPLITS, YARDSTICK = "splits", "yardstick.json"


@locked("eval-trainability")
def eval_trainability(
    real: str | Path,
    synthetic: str | Path | None,
    out: str | Path,
    config: ExperimentConfig = ExperimentConfig(),
    options: TrainabilityOptions = TrainabilityOptions(),
    *,
    processes: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare detectors trained on real pictures with others trained on real + synthetic ones, or any other arms.

    Writes ``out/yardstick.json`` as soon as the real arms are finished, then ``out/results.json``, ``out/report.html``, ``out/table.md``
    and ``out/table.tex``; trainings lie in ``out/trainings``, predictions in ``out/predictions``, copy-paste
    sets in ``out/copy-paste``, mosaics in ``out/mosaic``, lists of the pictures of each part of the real set in ``out/splits``.

    Args:
        real: a prepared set with the splits "train" and "test".
        synthetic: a synthetic set of the same classes (its split "train"); None: the experiment has no arm of synthetic pictures.
        config: the experiment; unless given real and real + synthetic with the small detector for a CPU.
        options: ``others`` are added at the synthetic arm's ratios, unless the experiment has an arm of that name.
        processes: how many at once; None: one a GPU, one on a CPU.
        dry_run: train nothing and write nothing; return the plan and its cost, from two timed steps.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What ``results.json`` holds (all AP in percent), with ``"verdict"``; for a dry run the plan.

    Raises:
        CCDiffError: classes differ, a split or the synthetic set is empty, test pictures leaked, a set is too small for a ratio, a training
            failed (the others are finished first, and kept), ...
    """
    config = with_arms(config, options.others, with_synthetic=synthetic is not None)
    sets = read_sets(real, synthetic, options.others, options.floor)
    experiment = open_experiment(config, sets, Path(out), processes, progress)
    leaks = check_leaks(
        experiment.sets["real"],
        experiment.added,
        generator_data=read_set(options.generator_data) if options.generator_data is not None else None,
        allow=options.allow_leaks,
        progress=progress,
    )
    if dry_run:
        return plan_of(experiment, leaks)
    clear_partials(experiment.out)
    arms = make_arms(experiment.config, experiment.train, pools_of(experiment))
    for arm in (a for a in arms if a.kind == REAL and a.fraction < 100):
        write_split_lists(experiment.sets["real"], arm.scenes, experiment.out / SPLITS / f"{arm.fraction:g}")
    chosen, baseline = headline_of(arms)
    plan = experiment.trainings(sorted(arms, key=lambda a: a.kind != REAL))
    failed = _train(experiment, arms, plan)
    arms, failures = _without_failures(arms, plan, failed, chosen, baseline)
    if progress:
        progress("compare", 0, 1)
    results = _compare(experiment, arms, plan, {"leak_check": leaks, "failed": failures})
    if progress:
        progress("compare", 1, 1)
    if failures:
        first = failures[0]
        raise CCDiffError(
            f"{len(failures)} of {len(plan)} trainings failed (first: {first['training']}: {first['error']}); the others are kept, "
            f"and the report leaves these arms out: {experiment.out / 'report.html'}",
            where=experiment.out,
            fix=first["fix"] or "run the same command again",
        )
    return results


def _train(experiment: Experiment, arms: Sequence[Arm], plan: Plan) -> dict[str, CCDiffError]:
    """Train and look, the real arms first: they say whether the experiment can answer.  Key of a training that failed -> why."""
    real = {a.name for a in arms if a.kind == REAL}
    chosen, baseline = headline_of(arms)
    failed: dict[str, CCDiffError] = {}
    for alone in (True, False):
        tasks = []
        for (name, _), trainings in plan.items():
            if (name in real) == alone:
                looks = [experiment.on_test, *(experiment.for_adherence if name == baseline.name else ())]
                tasks += [Task(t, ()) for t in trainings[:-1]] + [Task(trainings[-1], tuple(looks))]
        failed |= carry_out(tasks, experiment.classes, experiment.out, processes=experiment.processes, progress=experiment.progress)
        if alone and (answer := yardstick_of(experiment, arms, plan, chosen.fraction)) is not None:
            write_json(experiment.out / YARDSTICK, answer)
    return failed


def _compare(experiment: Experiment, arms: Sequence[Arm], plan: Plan, known: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate what the arms' detectors found, and write the report; ``known`` enters the results as it is."""
    out, config, test, classes, boxes = experiment.out, experiment.config, experiment.test, experiment.classes, experiment.boxes
    chosen, baseline = headline_of(arms)
    look = experiment.on_test
    on_test = {arm.name: [_found(out, plan[arm.name, seed], look) for seed in config.seeds] for arm in arms}
    evaluations = {name: [evaluate(test, seen, classes, boxes) for seen in per_seed] for name, per_seed in on_test.items()}
    objects = [objects_found(test, on_test[a.name], classes, boxes) for a in (baseline, chosen)]
    changes = object_changes(test, classes, *objects)
    adherence = None
    if experiment.for_adherence:
        seen = {seed: {k.what: _found(out, plan[baseline.name, seed], k) for k in experiment.for_adherence} for seed in config.seeds}
        pictures = {k.what: k.scenes for k in experiment.for_adherence}
        adherence = adherence_scores(pictures, seen, evaluations[baseline.name], classes, boxes)
    details = {
        **known,
        "adherence": adherence,
        "horizontal": {
            name: [evaluate(test, seen, classes).summary for seen in per_seed] for name, per_seed in on_test.items() if boxes == "obb"
        },
        "objects": {"score": SHOWN_SCORE, "per_class": changes["per_class"]},
    }
    trained = {a.name: [_account(out, plan[a.name, seed]) for seed in config.seeds] for a in arms}
    results = summarise(experiment.sets, arms, config, evaluations, details, trained)
    examples = examples_of(test, on_test[baseline.name][0], on_test[chosen.name][0])
    if SYNTHETIC in experiment.sets:
        samples: Sequence[Any] = experiment.sets[SYNTHETIC].split("train")
    else:
        samples = [s for s in chosen.scenes if s not in baseline.scenes]
    write_report(out, results, classes, examples, samples, changes_of(examples, changes["examples"], objects))
    return results


def _found(out: Path, trainings: Sequence[Training], look: Look) -> list[Detections]:
    """What the detector at the end of an arm's trainings found."""
    made = found_in(look, out, trainings[-1].key)
    if made is None:  # removed since
        raise CCDiffError("a prediction is gone", where=look.path(out, trainings[-1].key), fix="run the same command again")
    return made


def _without_failures(
    arms: Sequence[Arm],
    plan: Plan,
    failed: Mapping[str, CCDiffError],
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


class _Account(Stored):
    """What is read of a ``detector.json`` here."""

    key: Text
    device: Text
    seconds: Number
    pictures_per_second: Number
    objects_unusable: Count
    backbone_weights: BackboneWeights
    losses: Losses


def _said(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path)
    checked(_Account, found, where=path, fix="delete its folder, and run the same command again: it is trained again")
    return found


def _account(out: Path, trainings: Sequence[Any]) -> dict[str, Any]:
    """What the last training says of itself, with the seconds of all stages."""
    infos = [_said(out / TRAININGS / t.key / "detector.json") for t in trainings]
    return {**infos[-1], "seconds": round(sum(i["seconds"] for i in infos), 1)}
