"""An evaluation from the sets to the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ..comparison import spread
from ..dataset import PictureSet, versions
from ..detectors import DetectorConfig, Progress
from ..files import clear_partials, write_json, write_text
from ..locks import locked
from ..metrics.clip_score import Clip, find_clip
from ..metrics.features import Extractor, find_extractor
from ..metrics.published import published_quality
from ..scene import Scene
from ..trainability.published import published_rows
from .compared import REAL, Compared, read_compared
from .judging import judge_clip, judge_colours, judge_features, judge_layouts
from .options import EvaluateOptions
from .planning import plan_of

FEW = 2000
"""Fewer pictures than this, and FID says little."""
SAMPLES = 12
"""Pictures of each set that the page shows."""


@locked("evaluate", also="options.share")
def evaluate(
    real: str | Path,
    synthetic: Sequence[str | Path],
    out: str | Path,
    options: EvaluateOptions = EvaluateOptions(),
    *,
    detector: DetectorConfig = DetectorConfig(),
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge synthetic sets against a real one.

    Writes ``out/results.json``, ``out/report.html``, ``out/table.md`` and ``out/table.tex``.

    Args:
        real: a prepared set with a train split and that of ``options.reference``.
        synthetic: one set or more of the same classes and picture size (their split "train").
        options: ``share`` may be the output folder of ``eval-trainability``, whose trainings and finds are used and added to.
        detector: settings of the detector behind YOLOScore.
        dry_run: make and write nothing; return the plan and its cost.

    Returns:
        What ``results.json`` holds.

    Raises:
        CCDiffError: classes or picture sizes differ, a split is missing, too few pictures, missing weights, ...
    """
    out = Path(out)
    compared = read_compared(real, synthetic, out, options, progress)
    judges = {e.name: e for e in (find_extractor(text, options.device) for text in options.extractors)}
    clip = find_clip(options.clip, options.device) if options.clip else None
    config = detector if options.yoloscore else None
    if dry_run:
        return plan_of(compared, judges, clip, config)
    clear_partials(out)
    closest = judge_features(compared, judges)
    if clip is not None:
        judge_clip(compared, clip)
    judge_colours(compared)
    training = judge_layouts(compared, config) if config is not None else None
    results = {
        "warnings": _warnings(compared, training),
        "rows": compared.rows,
        "published": _published(compared, judges, clip),
        "protocol": _protocol(compared, judges, clip, config, training),
        "classes": list(compared.classes),
        "sets": {
            name: {"folder": str(s.root), "content": s.key(), "kind": s.manifest.get("kind"), "pictures": len(s.scenes)}
            for name, s in compared.sets.items()
        },
        "versions": versions(),
    }
    _write(compared, results, closest)
    return results


def _published(compared: Compared, judges: Mapping[str, Extractor], clip: Clip | None) -> dict[str, Any] | None:
    """What the papers printed of this data set, where it was measured as here."""
    known = published_rows(compared.sets[REAL])
    if not known:
        return None
    return published_quality(
        known["data_set"],
        reference=compared.options.reference,
        sides={side for s in compared.test for side in (s.width, s.height)},
        extractors=list(judges),
        clip=clip.name if clip else None,
        crops=compared.options.crops,
    )


def _protocol(
    compared: Compared,
    judges: Mapping[str, Extractor],
    clip: Clip | None,
    config: DetectorConfig | None,
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """How it was measured."""
    options, test, judged = compared.options, compared.test, compared.judged
    said = ("key", "seed", "steps", "pictures", "backbone_weights")
    return {
        "real pictures": f"{len(test)} of the {options.reference} split, {len({s.source for s in test})} source pictures",
        "layouts of the synthetic pictures": {name: _layout_splits(s, compared.sets[REAL]) for name, s in compared.made.items()},
        "extractors": {e.name: e.note for e in judges.values()},
        "pictures judged by features": judged,
        "ceiling of the feature figures": f"as many real training pictures ({min(judged, len(compared.train))})",
        "KID": "in thousandths, unbiased, over all pairs",
        "clip": clip.name if clip else None,
        "crops": options.crops,
        "detector": config.model_dump(mode="json") if config else None,
        "detector_training": {k: training[k] for k in said if k in training} if training else None,
        "interval": f"95 %, {options.bootstrap} bootstrap samples" if options.bootstrap else None,
        "seed": options.seed,
    }


def _write(compared: Compared, results: dict[str, Any], closest: Mapping[str, list[tuple[Scene, Scene, float]]]) -> None:
    from ..report.evaluation import evaluation_page, latex_table, markdown_table  # matplotlib: not for a dry run

    samples = {}
    for name, some in compared.looked_at.items():
        labelled = [k for k, scene in enumerate(some) if scene.instances]
        samples[name] = [some[k] for k in spread(labelled or range(len(some)), SAMPLES)]
    write_text(compared.out / "report.html", evaluation_page(results, compared.classes, samples, closest))
    write_text(compared.out / "table.md", markdown_table(results))
    write_text(compared.out / "table.tex", latex_table(results))
    write_json(compared.out / "results.json", results)


def _layout_splits(scenes: Sequence[Scene], real: PictureSet) -> str:
    """Which real splits the layouts come from, where the pictures say so."""
    split_of = {PurePath(s.file_name).stem: s.split for s in real.scenes}
    found: Counter[str] = Counter()
    for scene in scenes:
        layout = scene.provenance.get("layout")
        picture = layout.get("picture") if isinstance(layout, Mapping) else None
        found[split_of.get(PurePath(str(picture)).stem, "unknown") if picture is not None else "unknown"] += 1
    return ", ".join(f"{split} {count}" for split, count in sorted(found.items()))


def _warnings(compared: Compared, info: Mapping[str, Any] | None) -> list[str]:
    sets, made, rows, floors, judged = compared.sets, compared.made, compared.rows, compared.floors, compared.judged
    warnings = []
    least = min(judged, len(compared.test))
    if least < FEW:
        warnings.append(
            f"FID, KID, precision and recall by {least} pictures: below {FEW:,} they are noisy and FID is too high; "
            "compare figures of the same numbers of pictures only"
        )
    larger = [f"{name} ({len(s)})" for name, s in made.items() if len(s) > judged and name not in floors]
    if larger:
        warnings.append(f"features: {judged} pictures judged of each set, drawn by a fixed seed, of {', '.join(larger)}")
    smaller = [f"{name} ({len(made[name])})" for name in floors if len(made[name]) < judged]
    if smaller:
        warnings.append(f"the floor is smaller than the other sets, so its FID is too high: {', '.join(smaller)}")
    for name, some in made.items():
        there = {category for s in some for category in s.categories()}
        missing = [c for c in sets[REAL].classes if c not in there]
        if missing:
            warnings.append(f"{name} holds no {', '.join(missing)}")
        for judge, row in rows[name].get("nearest", {}).items():
            if row["share_below_yardstick_1_percent"] > 0.05:
                share = 100 * row["share_below_yardstick_1_percent"]
                warnings.append(
                    f"{name}: {share:.0f} % of its pictures are nearer to a training picture than 99 % of the unseen real ones are "
                    f"({judge}): look at the closest pairs for copies"
                )
        cut = rows[name].get("clip", {}).get("captions cut at 77 tokens", 0)
        if cut:
            warnings.append(f"{name}: {cut} captions are longer than CLIP's 77 tokens and were cut")
    if info is not None and info.get("backbone_weights", {}).get("sha256") is None:
        warnings.append(str(info.get("backbone_weights", {}).get("note", "the detector's backbone started from scratch")))
    if "yoloscore" in rows[REAL]:
        summary = rows[REAL]["yoloscore"]["hbb"]
        rare = [name for name, c in summary["per_class"].items() if 0 < c["objects"] < 20]
        if rare:
            warnings.append(f"classes with fewer than 20 real objects, whose AP says little: {', '.join(rare)}")
    return warnings
