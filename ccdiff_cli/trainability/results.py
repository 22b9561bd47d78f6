"""From evaluations to ``results.json``: arms with their gains, the headline, comparisons of rivals, warnings.

Notable: the headline is chosen before anything is measured, never the best of the arms: the largest fraction, the first arm of the recipe,
the ratio nearest to one added picture for each real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..dataset import PictureSet, versions
from ..metrics.average_precision import METRICS, Evaluation
from ..scene import ClassList, Scene
from .arms import EPOCHS, LONGER, REAL, STEPS, Arm, source_of
from .config import COPY_PASTE, HELD_OUT, MOSAIC, PRETRAIN, SYNTHETIC, SYNTHETIC_ONLY, ExperimentConfig
from .published import published_rows
from .statistics import compare, resample, signed, spread, verdict
from .yardstick import answer_of, more_real

ALL_METRICS = (*METRICS, "AP50_voc07", "AP50_voc12")
WHAT = {
    **dict.fromkeys((SYNTHETIC, SYNTHETIC_ONLY, PRETRAIN), "the synthetic pictures"),
    COPY_PASTE: "the copy-paste pictures",
    MOSAIC: "the mosaics",
}


def headline_of(arms: Sequence[Arm]) -> tuple[Arm, Arm]:
    """The arm whose gain is the verdict (of two protocols at equal steps), and the real arm that it is measured against."""
    added = [a for a in arms if a.kind not in (REAL, LONGER)]
    fraction = max(a.fraction for a in added)
    real = next(a for a in arms if a.kind == REAL and a.fraction == fraction)
    rest = [a for a in added if a.fraction == fraction]
    first = [a for a in rest if a.kind == rest[0].kind and a.protocol == rest[0].protocol]
    return min(first, key=lambda a: abs(np.log(a.ratio)) if a.ratio else 0.0), real


def summarise(
    sets: Mapping[str, PictureSet],
    arms: Sequence[Arm],
    config: ExperimentConfig,
    evaluations: Mapping[str, Sequence[Evaluation]],
    details: Mapping[str, Any],
    trained: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """What ``results.json`` holds.

    Args:
        evaluations: arm -> evaluation on the test pictures, one a seed.
        details: ``adherence``, ``leak_check``, ``failed``, ``objects``: taken over as they are; ``horizontal``: arm -> summaries by
            horizontal boxes, of an oriented detector.
        trained: arm -> the account of its trainings, one a seed.
    """
    test, classes, seeds = sets["real"].split("test"), sets["real"].classes, config.seeds
    samples = _samples(config.samples, evaluations)
    drawn = resample(evaluations, [source_of(s) for s in test], samples=samples)
    baseline = {a.fraction: a.name for a in arms if a.kind == REAL}
    table: dict[str, Any] = {}
    gains: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for arm in arms:
        table[arm.name] = _arm(arm, evaluations[arm.name], classes, seeds, config, trained[arm.name])
        if arm.name in details["horizontal"]:
            table[arm.name]["HBB"] = {m: spread([s[m] for s in details["horizontal"][arm.name]]) for m in METRICS}
        if arm.kind != REAL:
            other = baseline[arm.fraction]
            gains[arm.name] = compare(evaluations[other], evaluations[arm.name], drawn[other], drawn[arm.name])
            table[arm.name] |= {"baseline": other, "gain": gains[arm.name][0]}
    chosen, base = headline_of(arms)
    gain, per_class_gain = gains[chosen.name]
    brought = more_real(arms, evaluations, drawn)
    yardstick = answer_of(brought, chosen.fraction, len(seeds))
    protocols = _protocols(arms, {name: found for name, (found, _) in gains.items()}, evaluations, drawn)
    mine = next(row for row in protocols if chosen.name in (row["fair"] or {}).values() or chosen.name in (row["published"] or {}).values())
    first = evaluations[base.name][0].summary
    return {
        "verdict": verdict(gain["mAP"], len(seeds), _what(chosen), arms=(table[base.name], table[chosen.name])),
        "headline": {"arm": chosen.name, "baseline": base.name},
        "yardstick": yardstick,
        "protocols_sentence": _protocols_sentence(mine, config.match),
        "warnings": _warnings(sets, arms, config, evaluations, details, trained)
        + [answer["sentence"] for answer in _other_answers(brought, arms, chosen.fraction, len(seeds)) if not answer["can_answer"]],
        "gain": gain,
        "per_class_gain": per_class_gain,
        "arms": table,
        "rivals": _rivals(arms, evaluations, drawn),
        "protocols": protocols,
        "more_real": brought,
        "failed": details["failed"],
        "objects": details["objects"],
        "adherence": details["adherence"],
        "published": published_rows(sets["real"]),
        "protocol": {
            "experiment": config.model_dump(mode="json", exclude={"detector"}),
            "detector": config.detector.model_dump(mode="json"),
            "backbone_weights": trained[base.name][0]["backbone_weights"],
            "seeds": list(seeds),
            "steps": config.detector.steps,
            "match": config.match,
            "boxes": first["boxes"],
            "evaluation": _evaluation_text(first["boxes"]),
            "max_dets": first["max_dets"],
            "difficult": "trained on as normal objects; in the evaluation neither right nor wrong",
            "test": {k: first[k] for k in ("pictures", "objects", "difficult_ignored", "not_evaluated")}
            | {"sources": len({source_of(s) for s in test})},
            "interval": f"95 %; {samples} bootstrap samples over the sources of the test pictures, paired over arms and seeds"
            + (f"; seeds as random effects (Student's t, {len(seeds) - 1} degrees of freedom)" if len(seeds) > 1 else ""),
        },
        "leak_check": details["leak_check"],
        "sets": {
            name: {
                "folder": str(s.root),
                "content": s.key(),
                "kind": s.manifest.get("kind"),
                "pictures": len(s.scenes),
                "generator": _generator(s),
                **({"left_out": s.manifest["left_out"]} if s.manifest.get("left_out") else {}),
            }
            for name, s in sets.items()
        },
        "versions": versions(),
    }


def _evaluation_text(boxes: str) -> str:
    return f"COCO average precision of {'oriented' if boxes == 'obb' else 'horizontal'} boxes, percent; mAP over IoU 0.50 to 0.95"


def _what(arm: Arm) -> str:
    return WHAT.get(arm.kind, f"the pictures of {arm.kind}" if arm.ratio is not None or arm.added else arm.name)


def _samples(wanted: int, evaluations: Mapping[str, Sequence[Evaluation]]) -> int:
    """Fewer on very large sets, where the interval needs fewer."""
    found = max(e.summary["detections"] for per_seed in evaluations.values() for e in per_seed)
    return int(min(wanted, max(100, 2e7 // max(1, found))))


def _arm(
    arm: Arm,
    evaluations: Sequence[Evaluation],
    classes: ClassList,
    seeds: Sequence[int],
    config: ExperimentConfig,
    trained: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    summaries = [e.summary for e in evaluations]
    return {
        "kind": arm.kind,
        "ratio": arm.ratio,
        "fraction": arm.fraction,
        "pictures": len(arm.scenes) + len(arm.first),
        "real": len(arm.scenes) + len(arm.first) - arm.added,
        "added": arm.added,
        "objects": sum(len(s.instances) for s in (*arm.scenes, *arm.first)),
        "objects_unusable": trained[0]["objects_unusable"],
        "protocol": arm.protocol,
        "steps": arm.total_steps,
        "epochs": epochs_of(arm, config),
        **{metric: spread([s[metric] for s in summaries]) for metric in ALL_METRICS},
        "per_size": {
            size: {
                **{metric: spread([s["per_size"][size][metric] for s in summaries]) for metric in ("mAP", "AP50")},
                "test_objects": entry["objects"],
            }
            for size, entry in summaries[0]["per_size"].items()
        },
        "per_class": {
            name: {
                **{metric: spread([s["per_class"][name][metric] for s in summaries]) for metric in ALL_METRICS},
                "test_objects": summaries[0]["per_class"][name]["objects"],
            }
            for name in classes
        },
        "trainings": [
            {"seed": seed, **{k: info[k] for k in ("key", "seconds", "pictures_per_second", "device", "losses")}}
            for seed, info in zip(seeds, trained, strict=True)
        ],
        "precision_at_recall": {
            name: [round(float(v), 4) for v in np.mean([e.curves[name] for e in evaluations], axis=0)]
            for name in classes
            if name in evaluations[0].curves
        },
    }


def epochs_of(arm: Arm, config: ExperimentConfig) -> float:
    """How often each picture is seen; of two stages the second's."""
    return round(arm.steps * config.detector.batch / max(1, len(arm.scenes)), 2)


def _rivals(arms: Sequence[Arm], evaluations: Mapping[str, Sequence[Evaluation]], drawn: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The synthetic arm against each other way of adding as many pictures to the same real ones, and each against real ones held out."""
    added = [a for a in arms if a.kind not in (REAL, LONGER, SYNTHETIC_ONLY)]
    found = []
    for ours in added:
        for other in added:
            same = (other.fraction, other.ratio, other.protocol) == (ours.fraction, ours.ratio, ours.protocol)
            if same and other.kind != ours.kind and other.kind != SYNTHETIC and (ours.kind == SYNTHETIC or other.kind == HELD_OUT):
                gain, _ = compare(evaluations[other.name], evaluations[ours.name], drawn[other.name], drawn[ours.name])
                found.append({"arm": ours.name, "over": other.name, "gain": gain})
    return found


def _protocols(
    arms: Sequence[Arm],
    gains: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[str, Sequence[Evaluation]],
    drawn: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Every way of adding pictures at both protocols: the gain at equal steps, and the published one with what training time brings of it.

    Returns:
        [{"kind", "ratio", "fraction", "name", "baseline", "fair", "published", "longer": {"arm", "steps", "gain"} or None, "over_longer":
        the published arm's gain over the real pictures trained as long, or None}, ...]; published gain = longer's + over_longer's.
    """
    rows: dict[tuple[str, float | None, float], dict[str, Arm]] = {}
    for arm in arms:
        if arm.kind not in (REAL, LONGER):
            rows.setdefault((arm.kind, arm.ratio, arm.fraction), {})[arm.protocol] = arm
    found = []
    for (kind, ratio, fraction), at in rows.items():
        real = next(a for a in arms if a.kind == REAL and a.fraction == fraction)
        fair, published = at.get(STEPS), at.get(EPOCHS)
        if published is None and fair is not None and _equal_epochs(fair, real):
            published = fair  # the two protocols are the same here
        longer = next(
            (a for a in arms if published and a.kind == LONGER and (a.fraction, a.steps) == (fraction, published.total_steps)), None
        )
        over = None
        if published is not None and longer is not None:
            over, _ = compare(evaluations[longer.name], evaluations[published.name], drawn[longer.name], drawn[published.name])
        said = {
            name: {"arm": a.name, "steps": a.total_steps, "gain": gains[a.name]} if a is not None else None
            for name, a in (("fair", fair), ("published", published), ("longer", longer))
        }
        name = (fair or published or real).name.removesuffix(", equal epochs")
        found.append({"kind": kind, "ratio": ratio, "fraction": fraction, "name": name, "baseline": real.name, **said, "over_longer": over})
    return found


def _equal_epochs(arm: Arm, real: Arm) -> bool:
    """Whether an arm of as many steps as the real one also sees its pictures as often."""
    return not arm.first and len(arm.scenes) == len(real.scenes)


def _protocols_sentence(row: Mapping[str, Any], match: str) -> str:
    """The headline's arm at both protocols, in words."""

    def said(gain: Mapping[str, Any]) -> str:
        within = gain["mAP"]["interval"]
        if gain["mAP"]["mean"] is None or within is None:
            return "not measured"
        return f"{signed(gain['mAP']['mean'])} mAP [{signed(within['low'])}, {signed(within['high'])}]"

    parts = []
    if row["fair"]:
        parts.append(f"at equal steps ({row['fair']['steps']:,}) {said(row['fair']['gain'])}")
    if row["published"]:
        text = f"as published, at equal epochs ({row['published']['steps']:,} steps), {said(row['published']['gain'])}"
        if row["longer"]:
            text += f"; training the real pictures alone as long brings {said(row['longer']['gain'])}"
            text += f", so of the published gain the added pictures keep {said(row['over_longer'])}"
        parts.append(text)
    sentence = f"{row['name']}: {'; '.join(parts)}."
    return sentence + ("" if match == "both" else f" The other protocol was left out (match: {match}).")


def _other_answers(rows: Sequence[Mapping[str, Any]], arms: Sequence[Arm], headline: float, seeds: int) -> list[dict[str, Any]]:
    """The yardstick at the other fractions that pictures are added to."""
    fractions = sorted({a.fraction for a in arms if a.kind not in (REAL, LONGER)} - {headline})
    said = answer_of(rows, headline, seeds)["over"]
    return [answer for fraction in fractions if (answer := answer_of(rows, fraction, seeds))["over"] != said]


def _generator(made: PictureSet) -> dict[str, Any] | None:
    generator = made.manifest.get("generator")
    if not isinstance(generator, dict):
        return None
    sources = generator.get("sources")
    return {k: generator.get(k) for k in ("key", "recipe", "trained_on", "steps")} | {
        "training_sources": len(sources) if isinstance(sources, list) else None
    }


def _warnings(
    sets: Mapping[str, PictureSet],
    arms: Sequence[Arm],
    config: ExperimentConfig,
    evaluations: Mapping[str, Sequence[Evaluation]],
    details: Mapping[str, Any],
    trained: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[str]:
    test, seeds, classes = sets["real"].split("test"), config.seeds, sets["real"].classes
    real = [a for a in arms if a.kind == REAL]
    summary = evaluations[real[-1].name][0].summary
    warnings = [f"LEAK, allowed by --allow-leaks: {leak['what']}" for leak in details["leak_check"]["leaks"]]
    warnings += [f"failed and left out: {f['training']}: {f['error']}" for f in details["failed"]]
    if len(seeds) < 3:
        warnings.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)}: too few to tell a gain from chance; use 3 or more")
    sources = len({source_of(s) for s in test})
    if sources < 50 or summary["objects"] < 200:
        warnings.append(
            f"the test split is small ({sources} source pictures, {summary['objects']} objects): gains of a few points are noise"
        )
    compared = sum(a.kind not in (REAL, LONGER) for a in arms)
    if compared > 3:
        warnings.append(f"{compared} gains are looked at: of intervals of 95 %, one in twenty misses by chance alone")
    rare = [name for name, c in summary["per_class"].items() if 0 < c["objects"] < 20]
    if rare:
        warnings.append(f"classes with fewer than 20 test objects, whose AP says little: {', '.join(rare)}")
    if summary["not_evaluated"]:
        warnings.append(f"not evaluated, for lack of test objects: {', '.join(summary['not_evaluated'])}")
    for arm in real:
        here = Counter(c for s in arm.scenes for c in s.categories())
        if absent := [name for name in classes if not here[name]]:
            warnings.append(f"the real training pictures ({arm.name}) hold no {', '.join(absent)}")
    for name, made in sets.items():
        if name in ("real", "floor"):
            continue
        there = Counter(c for s in made.split("train") for c in s.categories())
        if absent := [c for c in classes if not there[c]]:
            warnings.append(f"the {name} pictures hold no {', '.join(absent)}")
    if SYNTHETIC in sets and sets[SYNTHETIC].manifest.get("kind") == "floor":
        warnings.append("the synthetic set was made from shuffled layouts: its labels do not belong to its pictures")
    if empty := sum(not s.instances for s in test):
        warnings.append(f"{empty} of {len(test)} test pictures have no labels: whatever is found in them counts as wrong")
    added_to = {a.fraction for a in arms if a.kind not in (REAL, LONGER)}
    warnings += _unseen(sets, [a for a in real if a.fraction in added_to])
    weights = trained[real[0].name][0]["backbone_weights"]
    if weights["sha256"] is None:
        warnings.append(weights["note"])
    return warnings + [f"not checked for leaks: {text}" for text in details["leak_check"]["unknown"]]


def _unseen(sets: Mapping[str, PictureSet], real: Sequence[Arm]) -> list[str]:
    """At a part of the real set: did the generator know the rest of it?"""
    warnings = []
    every = {source_of(s) for s in sets["real"].split("train")}
    for arm in real:
        if arm.fraction == 100:
            continue
        rest = every - {source_of(s) for s in arm.scenes}
        for name, made in sets.items():
            generator = made.manifest.get("generator") if name != "floor" else None
            if not isinstance(generator, dict):
                continue
            sources = generator.get("sources")
            if not isinstance(sources, list):
                warnings.append(f"{arm.name}: whether the generator of the {name} set saw the rest of the real set is not known")
            elif seen := len(rest.intersection(str(s) for s in sources)):
                warnings.append(
                    f"{arm.name}: the generator of the {name} set was trained on {seen} of the {len(rest)} source pictures that this part "
                    "leaves out, so its gain is partly theirs; a fair one needs a generator trained on this part alone (`ccdiff prepare "
                    f"--splits` with the lists in splits/{arm.fraction:g} beside this report, then train and synthesize)"
                )
    return warnings


def object_changes(
    scenes: Sequence[Scene], classes: ClassList, found_before: Sequence[np.ndarray], found_after: Sequence[np.ndarray]
) -> dict[str, Any]:
    """What the detectors learned to find and what they lost, over the seeds.

    Args:
        found_before, found_after: for every picture (seeds, objects), whether an object was found.

    Returns:
        ``{"per_class": {class: {"objects", "both", "learned", "lost", "neither"}}, "examples": {"learned": [[picture, object], ...],
        "lost": ...}}``; an object counts as found where more than half of the seeds find it. Examples: the clearest
        changes first.
    """
    counts = {name: Counter[str]() for name in classes}
    changed: dict[str, list[tuple[float, int, int]]] = {"learned": [], "lost": []}
    for i, scene in enumerate(scenes):
        for j, instance in enumerate(scene.instances):
            if instance.difficult:
                continue
            before, after = float(found_before[i][:, j].mean()), float(found_after[i][:, j].mean())
            state = {(True, True): "both", (False, True): "learned", (True, False): "lost"}.get((before > 0.5, after > 0.5), "neither")
            counts[instance.category].update([state, "objects"])
            if state in changed:
                changed[state].append((-abs(after - before), i, j))
    return {
        "per_class": {name: {k: c[k] for k in ("objects", "both", "learned", "lost", "neither")} for name, c in counts.items()},
        "examples": {state: [[i, j] for _, i, j in sorted(found)] for state, found in changed.items()},
    }
