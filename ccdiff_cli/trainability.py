"""Does a detector gain?  The same detector on real and on real + synthetic pictures, tested on real ones.

Notable:

* Both arms get the same number of optimizer steps, the same first weights and the same seeds, so gains are taken pair by pair.
* Every training and every prediction is filed under the key of what it depends on: an interrupted comparison goes on where it
  stopped, and one with more seeds trains only the new ones.
* Layout adherence comes for free: the detectors of the real arm look for the layouts in the synthetic pictures.  Its ceiling is the
  same on real test pictures; its floor is the same pictures with one another's labels.
* Leak guard: a comparison is refused when pictures of the test split (or their sources) went into the synthetic set.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from .dataset import MANIFEST, PictureSet, read_set, versions
from .detectors import Detections, Detector, DetectorConfig, Progress, fit, seconds_per_step, training_key
from .detectors.store import read_detections, write_detections
from .errors import CCDiffError
from .files import content_key, write_json, write_text
from .metrics.average_precision import METRICS, Evaluation, evaluate, paired_bootstrap
from .scene import ClassList, Scene

REAL, BOTH = "real", "real + synthetic"
EXAMPLES = 8
SAMPLES = 16
"""Test pictures with detections, and synthetic pictures, that the report shows."""


def load_detector_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> DetectorConfig:
    """Detector settings from a YAML file (their keys, alone or under ``detector:``) and overrides; defaults for the rest.

    Raises:
        CCDiffError: naming file, key, what was found and what was expected.
    """
    where = str(path) if path is not None else "detector settings"
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CCDiffError(f"cannot read the detector settings: {error}", where=path) from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise CCDiffError(f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}") from error
        values = {} if values is None else values
        values = values.get("detector", values) if isinstance(values, dict) else values
        if not isinstance(values, dict):
            raise CCDiffError(f"detector settings are a mapping of keys, found {type(values).__name__}", where=path)
    try:
        return DetectorConfig.model_validate({**values, **(overrides or {})})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(DetectorConfig.model_fields)
            raise CCDiffError(f"{key}: unknown key", where=where, fix=f"known keys: {known}") from error
        found = f" (found {first['input']!r:.80})" if key else ""
        message = f"{key + ': ' if key else ''}{first['msg']}{found}"
        raise CCDiffError(message, where=where, fix=_described(key)) from error


def _described(key: str) -> str | None:
    field = DetectorConfig.model_fields.get(key.split(".")[0])
    return f"{key}: {field.description}" if field is not None else None


def eval_trainability(
    real: str | Path,
    synthetic: str | Path,
    out: str | Path,
    config: DetectorConfig | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    floor: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a detector trained on real pictures with one trained on real + synthetic ones.

    Writes ``out/results.json`` and ``out/report.html``; trainings lie in ``out/trainings``, predictions in ``out/predictions``.

    Args:
        real: a prepared set with the splits "train" and "test".
        synthetic: a synthetic set of the same classes (its split "train").
        config: detector and training; None: the small detector for a CPU.
        seeds: one pair of trainings each.
        floor: a set generated from shuffled layouts, for the floor of layout adherence.
        dry_run: train nothing and write nothing; return the plan and its cost, from two timed steps.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What ``results.json`` holds (all AP in percent), with ``"verdict"``; for a dry run the plan.

    Raises:
        CCDiffError: classes differ, a split or the synthetic set is empty, test pictures leaked, a training diverged, ...
    """
    config = config if config is not None else load_detector_config()
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise CCDiffError(f"seeds {list(seeds)}: expected different whole numbers from 0", fix="for example --seeds 0,1,2")
    sets = {"real": read_set(real), "synthetic": _read_synthetic(synthetic)}
    if floor is not None:
        sets["floor"] = _read_synthetic(floor)
    _check_classes(sets)
    train, test = sets["real"].split("train"), sets["real"].split("test")
    extra = sets["synthetic"].split("train")
    _check_splits(sets["real"], train, test, sets["synthetic"], extra)
    leaks = check_leaks(sets["real"], sets["synthetic"])
    classes = sets["real"].classes
    arms = {REAL: train, BOTH: (*train, *extra)}
    if dry_run:
        return _plan(arms, test, extra, classes, config, seeds, Path(out), leaks)

    looked_at = {"test": test, "synthetic": extra, **({"floor": sets["floor"].split("train")} if floor is not None else {})}
    out = Path(out)
    detectors: dict[tuple[str, int], Detector] = {}
    found: dict[tuple[str, int, str], list[Detections]] = {}
    for seed in seeds:  # pairs first: an early stop leaves whole pairs
        for arm, scenes in arms.items():
            name = f"{arm}, seed {seed}"
            detector = fit(scenes, classes, config, out / "trainings", seed, _staged(progress, f"train {name}"))
            detectors[arm, seed] = detector
            for what in looked_at if arm == REAL else ("test",):
                key = content_key([detector.info["key"], sets["real" if what == "test" else what].key(), what])
                found[arm, seed, what] = _predict(
                    detector,
                    looked_at[what],
                    out / "predictions" / f"{key}.safetensors",
                    _staged(progress, f"look at {what} pictures, {name}"),
                )
    if progress:
        progress("compare", 0, 1)
    evaluations = {arm: [evaluate(test, found[arm, seed, "test"], classes) for seed in seeds] for arm in arms}
    adherence = _adherence(looked_at, {seed: {w: found[REAL, seed, w] for w in looked_at} for seed in seeds}, evaluations[REAL], classes)
    results = _results(sets, arms, seeds, config, evaluations, adherence, leaks, detectors)
    from .report import Example, trainability_page

    examples = [
        Example(test[i], found[REAL, seeds[0], "test"][i], found[BOTH, seeds[0], "test"][i])
        for i in _spread([i for i, scene in enumerate(test) if scene.instances], EXAMPLES)
    ]
    samples = [extra[i] for i in _spread(range(len(extra)), SAMPLES)]
    page = trainability_page(results, classes, examples, samples)
    write_text(out / "report.html", page)
    write_json(out / "results.json", results)
    if progress:
        progress("compare", 1, 1)
    return results


def layout_adherence(detector: Detector, scenes: Sequence[Scene], classes: ClassList, progress: Progress | None = None) -> dict[str, Any]:
    """How well a detector trained on real pictures finds the layouts that synthetic pictures were made from.

    Returns:
        ``{"synthetic": summary, "shuffled labels": summary or None}``, summaries as :func:`..metrics.average_precision.evaluate` makes
        them; the floor scores the same pictures against one another's labels (:func:`swap_labels`).
    """
    found = detector.predict(scenes, progress)
    swapped = swap_labels(scenes)
    return {
        "synthetic": evaluate(scenes, found, classes).summary,
        "shuffled labels": evaluate(swapped, found, classes).summary if swapped is not None else None,
    }


def swap_labels(scenes: Sequence[Scene], seed: int = 0) -> list[Scene] | None:
    """The scenes with one another's labels: a fixed permutation under which no picture gets a layout equal to its own.

    Layouts of another picture size are stretched.  None where over half of the pictures share one layout, so no such permutation exists.
    """
    rng = np.random.default_rng([seed, len(scenes)])
    groups: dict[str, list[int]] = {}
    for i, scene in enumerate(scenes):
        groups.setdefault(content_key(sorted([x.category, list(x.hbb)] for x in scene.instances)), []).append(i)
    names = sorted(groups)
    largest = max((len(g) for g in groups.values()), default=0)
    if not scenes or 2 * largest > len(scenes):
        return None
    # Equal layouts stand together; turning the row by the length of its longest run moves every picture out of its own run.
    order = [i for k in rng.permutation(len(names)) for i in groups[names[int(k)]]]
    given: list[Scene] = list(scenes)
    for place, i in enumerate(order):
        donor = scenes[order[(place + largest) % len(order)]]
        fx, fy = scenes[i].width / donor.width, scenes[i].height / donor.height
        given[i] = scenes[i].replace(instances=tuple(_stretched(x, fx, fy) for x in donor.instances))
    return given


def check_leaks(real: PictureSet, synthetic: PictureSet) -> dict[str, Any]:
    """What of the test split could have gone into the synthetic set.

    Looked through: the sources of train and test pictures; the source and the whole provenance (layout, references) of every synthetic
    picture; what the synthetic set's manifest says its generator was trained on.

    Returns:
        ``{"checks": [sentence, ...], "unknown": [sentence, ...]}``.

    Raises:
        CCDiffError: a test picture, or another tile of its source, was used.
    """
    test = real.split("test")
    names = {scene.source for scene in test} | {scene.file_name for scene in test} | {PurePath(scene.file_name).stem for scene in test}
    shared = sorted({scene.source for scene in real.split("train")} & {scene.source for scene in test})
    if shared:
        raise CCDiffError(
            f"{len(shared)} source pictures have tiles in both the train and the test split (first: {shared[0]})",
            where=real.root,
            fix="prepare the set again: `ccdiff prepare` never splits a source picture",
        )
    checks = ["no source picture has tiles in both the train and the test split of the real set"]
    for scene in synthetic.scenes:
        used = [scene.source, *_texts(scene.provenance)]
        leaked = [text for text in used if text in names or PurePath(text).name in names]
        if leaked:
            raise CCDiffError(
                f"the synthetic picture {scene.file_name} was made from {leaked[0]}, which belongs to the real set's test split",
                where=synthetic.root,
                fix="synthesize from the layouts and references of the train split",
            )
    checks.append("no synthetic picture names a layout or a reference from a test picture or its source")
    unknown = []
    generator = synthetic.manifest.get("generator")
    generator = generator if isinstance(generator, dict) else {}
    sources = generator.get("sources")
    if isinstance(sources, list):
        leaked = sorted(str(s) for s in sources if s in names)
        if leaked:
            raise CCDiffError(
                f"the generator was trained on {len(leaked)} source pictures of the real set's test split (first: {leaked[0]})",
                where=synthetic.root / MANIFEST,
                fix="train the generator on the train split alone, and synthesize again",
            )
        checks.append("none of the generator's training pictures comes from a source of the test split")
    elif generator.get("trained_on") is not None and generator["trained_on"] == real.key():
        checks.append("the generator was trained on the train split of this very set")
    else:
        unknown.append("the synthetic set does not say which pictures its generator was trained on")
    return {"checks": checks, "unknown": unknown}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _read_synthetic(root: str | Path) -> PictureSet:
    made = read_set(root)
    if not made.split("train"):
        raise CCDiffError("the synthetic set holds no training pictures", where=root, fix="run `ccdiff synthesize` first")
    return made


def _check_classes(sets: Mapping[str, PictureSet]) -> None:
    real = sets["real"]
    for name, other in sets.items():
        if set(other.classes) != set(real.classes):
            lacking = [c for c in real.classes if c not in other.classes]
            surplus = [c for c in other.classes if c not in real.classes]
            what = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(surplus)} besides"] * bool(surplus)
            raise CCDiffError(
                f"the classes differ: the {name} set {' and '.join(what)}",
                where=other.root,
                fix=f"use a generator trained on the classes of {real.root}",
            )


def _check_splits(real: PictureSet, train: Sequence[Scene], test: Sequence[Scene], synthetic: PictureSet, extra: Sequence[Scene]) -> None:
    for name, scenes in (("train", train), ("test", test)):
        if not scenes:
            raise CCDiffError(
                f"the real set has no {name} split",
                where=real.root,
                fix="prepare it with one: `ccdiff prepare --splits FOLDER` (train.txt, val.txt, test.txt)",
            )
    if all(i.difficult for scene in test for i in scene.instances):
        raise CCDiffError("no test picture holds an object that counts: there is nothing to measure", where=real.root)
    if not any(scene.instances for scene in extra):
        raise CCDiffError("the synthetic set holds no labelled object", where=synthetic.root, fix="run `ccdiff synthesize` with layouts")


def _predict(detector: Detector, scenes: Sequence[Scene], path: Path, progress: Progress | None) -> list[Detections]:
    if path.is_file() and (known := read_detections(path, len(scenes))) is not None:
        return known
    found = detector.predict(scenes, progress)
    write_detections(path, found)
    return found


def _staged(progress: Progress | None, stage: str) -> Progress | None:
    return (lambda _, done, total: progress(stage, done, total)) if progress else None


def _plan(
    arms: Mapping[str, Sequence[Scene]],
    test: Sequence[Scene],
    extra: Sequence[Scene],
    classes: ClassList,
    config: DetectorConfig,
    seeds: Sequence[int],
    out: Path,
    leaks: Mapping[str, Any],
) -> dict[str, Any]:
    finished = sum(
        (out / "trainings" / training_key(scenes, classes, config, seed) / "detector.json").is_file()
        for scenes in arms.values()
        for seed in seeds
    )
    step = seconds_per_step(arms[REAL], classes, config)
    left = len(arms) * len(seeds) - finished
    looks = len(seeds) * (len(arms) * len(test) + len(extra)) * step / config.batch / 3  # finding takes about a third of training
    return {
        "arms": {arm: {"pictures": len(s), "epochs": round(config.steps * config.batch / len(s), 2)} for arm, s in arms.items()},
        "seeds": list(seeds),
        "test pictures": len(test),
        "trainings": len(arms) * len(seeds),
        "trainings already finished": finished,
        "steps of each": config.steps,
        "pictures per step": config.batch,
        "pictures per second": round(config.batch / step, 1),
        "estimated minutes": round((left * config.steps * step + looks) / 60, 1),
        "detector": config.model_dump(mode="json"),
        "leak check": dict(leaks),
    }


def _adherence(
    looked_at: Mapping[str, Sequence[Scene]],
    found: Mapping[int, Mapping[str, list[Detections]]],
    ceiling: Sequence[Evaluation],
    classes: ClassList,
) -> dict[str, Any]:
    """mAP and AP50 of the real arm's detectors on real test pictures, synthetic ones, and the floors; per seed, mean and sd."""
    swapped = swap_labels(looked_at["synthetic"])
    scores: dict[str, list[dict[str, Any]]] = {
        "real test pictures (ceiling)": [e.summary for e in ceiling],
        "synthetic pictures": [evaluate(looked_at["synthetic"], f["synthetic"], classes).summary for f in found.values()],
    }
    if swapped is not None:
        scores["synthetic pictures, labels shuffled (floor)"] = [evaluate(swapped, f["synthetic"], classes).summary for f in found.values()]
    if "floor" in looked_at:
        scores["pictures from shuffled layouts (floor)"] = [
            evaluate(looked_at["floor"], f["floor"], classes).summary for f in found.values()
        ]
    per_class = {name: _spread_of([s["per_class"][name]["AP50"] for s in scores["synthetic pictures"]]) for name in classes}
    rows = {
        name: {"pictures": summaries[0]["pictures"], **{m: _spread_of([s[m] for s in summaries]) for m in METRICS}}
        for name, summaries in scores.items()
    }
    return {"scores": rows, "per_class_AP50": per_class}


def _results(
    sets: Mapping[str, PictureSet],
    arms: Mapping[str, Sequence[Scene]],
    seeds: Sequence[int],
    config: DetectorConfig,
    evaluations: Mapping[str, list[Evaluation]],
    adherence: Mapping[str, Any],
    leaks: Mapping[str, Any],
    detectors: Mapping[tuple[str, int], Detector],
) -> dict[str, Any]:
    test, classes = sets["real"].split("test"), sets["real"].classes
    before, after = evaluations[REAL], evaluations[BOTH]
    found = max(e.summary["detections"] for e in (*before, *after))
    samples = int(min(400, max(100, 2e7 // max(1, found))))  # fewer on very large sets, where the interval needs fewer
    intervals = paired_bootstrap(before, after, [s.source for s in test], samples=samples)
    gain: dict[str, Any] = {}
    for metric in METRICS:
        values = [_difference(b.summary[metric], a.summary[metric]) for b, a in zip(before, after, strict=True)]
        gain[metric] = {**_spread_of(values), "interval": intervals.get(metric)}
    per_class_gain = {
        name: {
            metric: _spread_of(
                [
                    _difference(b.summary["per_class"][name][metric], a.summary["per_class"][name][metric])
                    for b, a in zip(before, after, strict=True)
                ]
            )
            for metric in METRICS
        }
        for name in classes
    }
    warnings = _warnings(sets, test, seeds, before[0].summary, leaks, detectors[REAL, seeds[0]].info)
    return {
        "verdict": verdict(gain["AP50"], gain["mAP"], len(seeds)),
        "warnings": warnings,
        "gain": gain,
        "per_class_gain": per_class_gain,
        "arms": {arm: _arm(arm, scenes, seeds, config, evaluations[arm], classes, detectors) for arm, scenes in arms.items()},
        "adherence": dict(adherence),
        "protocol": {
            "detector": config.model_dump(mode="json"),
            "backbone_weights": detectors[REAL, seeds[0]].info["backbone_weights"],
            "seeds": list(seeds),
            "steps": config.steps,
            "evaluation": "COCO average precision of horizontal boxes (pycocotools), percent; mAP over IoU 0.50 to 0.95",
            "max_dets": before[0].summary["max_dets"],
            "difficult": "trained on as normal objects; in the evaluation neither right nor wrong",
            "test": {k: before[0].summary[k] for k in ("pictures", "objects", "difficult_ignored", "not_evaluated")},
            "interval": f"95 %, {samples} bootstrap samples over test pictures (by source) and seeds, paired",
        },
        "leak_check": dict(leaks),
        "sets": {
            name: {"folder": str(s.root), "content": s.key(), "kind": s.manifest.get("kind"), "pictures": len(s.scenes)}
            for name, s in sets.items()
        },
        "versions": versions(),
    }


def _arm(
    arm: str,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    config: DetectorConfig,
    evaluations: Sequence[Evaluation],
    classes: ClassList,
    detectors: Mapping[tuple[str, int], Detector],
) -> dict[str, Any]:
    summaries = [e.summary for e in evaluations]
    infos = [detectors[arm, seed].info for seed in seeds]
    return {
        "pictures": len(scenes),
        "objects": sum(len(s.instances) for s in scenes),
        "objects_unusable": infos[0]["objects_unusable"],
        "epochs": round(config.steps * config.batch / len(scenes), 2),
        **{metric: _spread_of([s[metric] for s in summaries]) for metric in METRICS},
        "per_class": {
            name: {
                **{metric: _spread_of([s["per_class"][name][metric] for s in summaries]) for metric in METRICS},
                "test_objects": summaries[0]["per_class"][name]["objects"],
            }
            for name in classes
        },
        "trainings": [
            {"seed": seed, **{k: info[k] for k in ("key", "seconds", "pictures_per_second", "device", "losses")}}
            for seed, info in zip(seeds, infos, strict=True)
        ],
        "precision_at_recall": {
            name: [round(float(v), 4) for v in np.mean([e.curves[name] for e in evaluations], axis=0)]
            for name in classes
            if name in evaluations[0].curves
        },
    }


def verdict(ap50: Mapping[str, Any], mean_ap: Mapping[str, Any], seeds: int) -> str:
    """The gain as a plain sentence."""
    if ap50["mean"] is None:
        return "no gain could be measured: no class has objects in the test pictures"
    spread = f"sd {ap50['sd']:.1f}, {seeds} seeds" if ap50["sd"] is not None else "1 seed"
    interval = ap50.get("interval")
    if interval:
        spread += f"; 95 % interval {_signed(interval['low'])} to {_signed(interval['high'])}"
    sentence = f"gain {_signed(ap50['mean'])} mAP50 ({spread}), {_signed(mean_ap['mean'])} mAP"
    if not interval:
        return sentence
    if interval["low"] > 0:
        return f"{sentence}: the synthetic pictures help"
    if interval["high"] < 0:
        return f"{sentence}: the synthetic pictures hurt"
    return f"{sentence}: the interval holds zero, so neither gain nor loss is shown"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # adding zero turns -0.0 into 0.0


def _warnings(
    sets: Mapping[str, PictureSet],
    test: Sequence[Scene],
    seeds: Sequence[int],
    summary: Mapping[str, Any],
    leaks: Mapping[str, Any],
    info: Mapping[str, Any],
) -> list[str]:
    warnings = []
    if len(seeds) < 3:
        warnings.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)}: too few to tell a gain from chance; use 3 or more")
    sources = len({s.source for s in test})
    if sources < 50 or summary["objects"] < 200:
        warnings.append(
            f"the test split is small ({sources} source pictures, {summary['objects']} objects): gains of a few points are noise"
        )
    rare = [name for name, c in summary["per_class"].items() if 0 < c["objects"] < 20]
    if rare:
        warnings.append(f"classes with fewer than 20 test objects, whose AP says little: {', '.join(rare)}")
    if summary["not_evaluated"]:
        warnings.append(f"not evaluated, for lack of test objects: {', '.join(summary['not_evaluated'])}")
    made = Counter(c for s in sets["synthetic"].split("train") for c in s.categories())
    if absent := [name for name in sets["real"].classes if not made[name]]:
        warnings.append(f"the synthetic pictures hold no {', '.join(absent)}")
    if sets["synthetic"].manifest.get("kind") == "floor":
        warnings.append("the synthetic set was made from shuffled layouts: its labels do not belong to its pictures")
    if empty := sum(not s.instances for s in test):
        warnings.append(f"{empty} test pictures have no labels: whatever is found in them counts as wrong")
    if info["backbone_weights"]["sha256"] is None:
        warnings.append(info["backbone_weights"]["note"])
    return warnings + [f"not checked for leaks: {text}" for text in leaks["unknown"]]


def _spread_of(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, sample standard deviation, extremes and the values themselves; all None where a value is missing."""
    known = [v for v in values if v is not None]
    if len(known) != len(values) or not known:
        return {"mean": None, "sd": None, "min": None, "max": None, "per_seed": list(values)}
    return {
        "mean": round(statistics.fmean(known), 3),
        "sd": round(statistics.stdev(known), 3) if len(known) > 1 else None,
        "min": min(known),
        "max": max(known),
        "per_seed": known,
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return round(after - before, 3) if before is not None and after is not None else None


def _spread(items: Sequence[int], n: int) -> list[int]:
    """``n`` of the items, evenly spaced: what is shown is not chosen by hand."""
    if not items:
        return []
    return [items[int(k)] for k in np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).astype(int))]


def _stretched(instance: Any, fx: float, fy: float) -> Any:
    import dataclasses

    if fx == fy == 1:
        return instance
    hbb = tuple(v * (fx, fy)[i % 2] for i, v in enumerate(instance.hbb))
    corners = tuple(v * (fx, fy)[i % 2] for i, v in enumerate(instance.corners))
    return dataclasses.replace(instance, hbb=hbb, corners=corners)
