"""How good is a synthetic set?  The published quality table (CLIP-L, CLIP-G, FID, YOLOScore) and what one needs to trust it.

Notable:

* Every figure stands between a ceiling (real pictures) and, for what depends on layouts, a floor (labels exchanged among the pictures,
  and a set made from shuffled layouts where one is given).
* Feature distances depend on the number of pictures, so all generators, and the real training pictures that serve as ceiling, are judged
  on the same number of them: that of the smallest synthetic set, drawn by a fixed seed.
* What was encoded, trained or found lies under a key of what it depends on, so an interrupted run goes on, and a second generator costs
  its own pictures alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .comparison import check_classes, read_added
from .dataset import PictureSet, read_set, versions
from .detectors import DetectorConfig, Progress, fit, seconds_per_step, training_key
from .detectors.store import write_detections
from .errors import CCDiffError
from .files import write_json, write_text
from .locks import locked
from .metrics.average_precision import evaluate as average_precision
from .metrics.clip_score import Clip, Crops, clip_rows, find_clip
from .metrics.colours import colour_rows, colour_summary
from .metrics.distances import compare, mean_interval, nearest
from .metrics.features import Extractor, cached, features_of, find_extractor
from .metrics.published import published_quality
from .scene import ClassList, Scene
from .trainability.adherence import swap_labels
from .trainability.config import SYNTHETIC, load_detector_config
from .trainability.published import published_rows
from .trainability.trainings import TRAININGS, Look, found_in

REAL = "real pictures"
FEW = 2000
"""Fewer pictures than this, and FID says little."""
CLOSEST = 12
SAMPLES = 12
"""Pairs of nearest pictures, and pictures of each set, that the page shows."""
FEATURE_FIGURES = ("FID", "KID", "precision", "recall", "density", "coverage")


@locked("evaluate", also="share")
def evaluate(
    real: str | Path,
    synthetic: Sequence[str | Path],
    out: str | Path,
    *,
    floor: str | Path | None = None,
    reference: str = "test",
    extractors: Sequence[str] = ("efficientnet-lite0",),
    clip: str | None = None,
    crops: Crops = "hbb",
    detector: DetectorConfig | None = None,
    yoloscore: bool = True,
    share: str | Path | None = None,
    bootstrap: int = 100,
    batch: int = 32,
    device: str = "auto",
    seed: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge synthetic sets against a real one.

    Writes ``out/results.json``, ``out/report.html``, ``out/table.md`` and ``out/table.tex``.

    Args:
        real: a prepared set with a train split and the ``reference`` split.
        synthetic: one set or more of the same classes and picture size (their split "train").
        floor: a set made from shuffled layouts.
        reference: the real split that pictures are compared with.
        extractors: picture encoders, see :func:`.metrics.features.find_extractor`.
        clip: CLIP model and weights, see :func:`.metrics.clip_score.find_clip`; None: no CLIP scores.
        detector: settings of the detector behind YOLOScore; None: the small one for a CPU.
        yoloscore: whether to train (or load) it at all.
        share: output folder of ``eval-trainability``, whose trainings and finds are used and added to; None: ``out``.
        bootstrap: samples behind the intervals; 0 for none.
        dry_run: make and write nothing; return the plan and its cost.

    Returns:
        What ``results.json`` holds.

    Raises:
        CCDiffError: classes or picture sizes differ, a split is missing, too few pictures, missing weights, ...
    """
    out = Path(out)
    sets = _read_sets(real, synthetic, floor)
    train, test = sets[REAL].split("train"), sets[REAL].split(reference)
    _check(sets, train, test, reference)
    made = {name: some.split("train") for name, some in sets.items() if name != REAL}
    judges = {e.name: e for e in (find_extractor(text, device) for text in extractors)}
    speaker = find_clip(clip, device) if clip else None
    config = (detector if detector is not None else load_detector_config()) if yoloscore else None
    share = Path(share) if share is not None else out
    if dry_run:
        return _plan(sets, train, test, made, judges, speaker, config, share, bootstrap, seed)

    classes = sets[REAL].classes
    floors = {name for name in made if floor is not None and name == list(made)[-1]}
    rows: dict[str, dict[str, Any]] = {
        name: {"role": role, "pictures": len(some)}
        for name, role, some in [
            (REAL, "ceiling", test),
            *((n, "floor" if n in floors else "generator", s) for n, s in made.items()),
        ]
    }
    judged = min(len(s) for n, s in made.items() if n not in floors)
    closest = _judge_features(sets, train, test, made, floors, judges, rows, out, judged, bootstrap, batch, seed, progress)
    if speaker is not None:
        _judge_clip({REAL: test, **made}, sets, speaker, crops, rows, out, bootstrap, batch, progress)
    colours = {
        name: cached(some, [sets[name].key(), "colours"], out / "colours", colour_rows, progress=progress, stage=f"colours, {name}")
        for name, some in {REAL: test, **made}.items()
    }
    for name, found in colours.items():
        rows[name]["colours"] = colour_summary(found, colours[REAL])
    info = _judge_layouts(sets, train, test, made, floors, classes, config, rows, share, seed, progress) if config is not None else None

    results = {
        "warnings": _warnings(sets, test, made, rows, judged, info, floors),
        "rows": rows,
        "published": published_quality(
            known["data_set"],
            reference=reference,
            sides={side for s in test for side in (s.width, s.height)},
            extractors=list(judges),
            clip=speaker.name if speaker else None,
            crops=crops,
        )
        if (known := published_rows(sets[REAL]))
        else None,
        "protocol": {
            "real pictures": f"{len(test)} of the {reference} split, {len({s.source for s in test})} source pictures",
            "layouts of the synthetic pictures": {name: _layout_splits(s, sets[REAL]) for name, s in made.items()},
            "extractors": {e.name: e.note for e in judges.values()},
            "pictures judged by features": judged,
            "ceiling of the feature figures": f"as many real training pictures ({min(judged, len(train))})",
            "KID": "in thousandths, unbiased, over all pairs",
            "clip": speaker.name if speaker else None,
            "crops": crops,
            "detector": config.model_dump(mode="json") if config else None,
            "detector_training": {k: info[k] for k in ("key", "seed", "steps", "pictures", "backbone_weights") if k in info}
            if info
            else None,
            "interval": f"95 %, {bootstrap} bootstrap samples" if bootstrap else None,
            "seed": seed,
        },
        "classes": list(classes),
        "sets": {
            name: {"folder": str(s.root), "content": s.key(), "kind": s.manifest.get("kind"), "pictures": len(s.scenes)}
            for name, s in sets.items()
        },
        "versions": versions(),
    }
    from .report.evaluation import evaluation_page, latex_table, markdown_table

    samples = {name: _spread(some, SAMPLES) for name, some in {REAL: test, **made}.items()}
    write_text(out / "report.html", evaluation_page(results, classes, samples, closest))
    write_text(out / "table.md", markdown_table(results))
    write_text(out / "table.tex", latex_table(results))
    write_json(out / "results.json", results)
    return results


def _read_sets(real: str | Path, synthetic: Sequence[str | Path], floor: str | Path | None) -> dict[str, PictureSet]:
    """The sets by the name of their folder; the real one first, the floor last."""
    if not synthetic:
        raise CCDiffError("no synthetic set is given", fix="--synthetic FOLDER, as often as there are generators")
    sets = {REAL: read_set(real)}
    folders = [*synthetic, *([floor] if floor is not None else [])]
    names = [Path(f).resolve().name for f in folders]
    for folder, name in zip(folders, names, strict=True):
        name = name if names.count(name) == 1 and name != REAL else str(folder)
        if name in sets:
            raise CCDiffError("the set is given twice", where=folder, fix="name every set once")
        sets[name] = read_added(folder, "synthetic" if folder != floor else "floor")
    check_classes(sets | {"real": sets[REAL]})
    return sets


def _check(sets: Mapping[str, PictureSet], train: Sequence[Scene], test: Sequence[Scene], reference: str) -> None:
    for split, scenes in (("train", train), (reference, test)):
        if len(scenes) < 2:
            what = f"has no {split} split" if not scenes else f"has one picture only in its {split} split"
            raise CCDiffError(
                f"the real set {what}", where=sets[REAL].root, fix="prepare it with more pictures, or choose another split with --reference"
            )
    size = (test[0].width, test[0].height)
    for name, some in sets.items():
        scenes = (*train, *test) if name == REAL else some.split("train")
        if len(scenes) < 2:
            raise CCDiffError(
                f"the set {name} has one picture only: nothing can be compared", where=some.root, fix="synthesize more pictures"
            )
        for scene in scenes:
            if (scene.width, scene.height) != size:
                raise CCDiffError(
                    f"pictures of different sizes: {scene.file_name} has {scene.width} x {scene.height} pixels, "
                    f"{test[0].file_name} of {sets[REAL].root} has {size[0]} x {size[1]}",
                    where=some.root,
                    fix=f"prepare the real set with --size {scene.width}" if name != REAL else "prepare the real set with --size",
                )


def _judge_features(
    sets: Mapping[str, PictureSet],
    train: Sequence[Scene],
    test: Sequence[Scene],
    made: Mapping[str, Sequence[Scene]],
    floors: set[str],
    judges: Mapping[str, Extractor],
    rows: dict[str, dict[str, Any]],
    out: Path,
    judged: int,
    bootstrap: int,
    batch: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, list[tuple[Scene, Scene, float]]]:
    """Feature distances and nearest training pictures of every set; returns the closest pairs by the first extractor."""
    closest: dict[str, list[tuple[Scene, Scene, float]]] = {}
    sources = [s.source for s in test]
    for judge in judges.values():

        def encoded(name: str, scenes: Sequence[Scene], what: str, judge: Extractor = judge) -> np.ndarray:
            stage = f"{judge.name}: {what}"
            return features_of(scenes, sets[name].key(), judge, out / "features", batch=batch, progress=progress, stage=stage)

        real, known = encoded(REAL, test, "real pictures"), encoded(REAL, train, "training pictures")
        yardstick = nearest(real, known)[1]
        for name in (REAL, *made):
            own = known if name == REAL else encoded(name, made[name], name)
            chosen = np.sort(np.random.default_rng([seed, 13]).permutation(len(own))[:judged])
            stage = f"{judge.name}: compare {name}"
            figures = compare(real, own[chosen], sources, samples=bootstrap, seed=seed, progress=progress, stage=stage)
            rows[name].setdefault("features", {})[judge.name] = {"pictures": len(chosen), **figures}
            if name == REAL:
                rows[name].setdefault("nearest", {})[judge.name] = _distances(yardstick, yardstick)
                continue
            index, distance = nearest(own, known)
            rows[name].setdefault("nearest", {})[judge.name] = _distances(distance, yardstick)
            if judge is next(iter(judges.values())) and name not in floors:
                first = np.argsort(distance, kind="stable")[:CLOSEST]
                closest[name] = [(made[name][i], train[index[i]], float(distance[i])) for i in first.tolist()]
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


def _judge_clip(
    looked_at: Mapping[str, Sequence[Scene]],
    sets: Mapping[str, PictureSet],
    clip: Clip,
    crops: Crops,
    rows: dict[str, dict[str, Any]],
    out: Path,
    bootstrap: int,
    batch: int,
    progress: Progress | None,
) -> None:
    for name, scenes in looked_at.items():
        found = cached(
            scenes,
            [sets[name].key(), clip.key, crops],
            out / "clip",
            lambda some: clip_rows(some, clip, crops, batch),
            progress=progress,
            stage=f"CLIP, {name}",
        )
        with_caption = ~np.isnan(found["global"])
        lengths = [clip.tokens(s.caption) for s in scenes]
        rows[name]["clip"] = {
            "CLIP-G": mean_interval(found["global"][with_caption], np.arange(int(with_caption.sum())), samples=bootstrap),
            "CLIP-L": mean_interval(found["local"], np.repeat(np.arange(len(scenes)), found["objects"]), samples=bootstrap),
            "pictures without a caption": int((~with_caption).sum()),
            "captions cut at 77 tokens": sum(n > 77 for n in lengths),
            "crops": len(found["local"]),
            "objects outside the picture": int(found["lost"].sum()),
        }


def _judge_layouts(
    sets: Mapping[str, PictureSet],
    train: Sequence[Scene],
    test: Sequence[Scene],
    made: Mapping[str, Sequence[Scene]],
    floors: set[str],
    classes: ClassList,
    config: DetectorConfig,
    rows: dict[str, dict[str, Any]],
    share: Path,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """YOLOScore of every set and its floor; returns the account of the detector's training."""

    def staged(stage: str) -> Progress | None:
        return (lambda _, done, total: progress(stage, done, total)) if progress else None

    detector = fit(train, classes, config, share / TRAININGS, seed, staged("train the detector on real pictures"))
    for name, scenes in {REAL: test, **made}.items():
        look = Look(scenes[0].split if name == REAL else "floor" if name in floors else SYNTHETIC, sets[name].key(), tuple(scenes))
        found = found_in(look, share, detector.info["key"])
        if found is None:
            found = detector.predict(scenes, staged(f"look for the layouts, {name}"))
            write_detections(look.path(share, detector.info["key"]), found)
        kinds = ["hbb", *(["obb"] if any(d.corners is not None for d in found) else [])]
        swapped = swap_labels(scenes, seed) if name != REAL else None
        for kind in kinds:
            rows[name].setdefault("yoloscore", {})[kind] = average_precision(scenes, found, classes, kind).summary  # type: ignore[arg-type]
            if swapped is not None:
                floor = average_precision(swapped, found, classes, kind).summary  # type: ignore[arg-type]
                rows[name].setdefault("yoloscore_floor", {})[kind] = {k: floor[k] for k in ("mAP", "AP50", "AP75")}
    return detector.info


def _layout_splits(scenes: Sequence[Scene], real: PictureSet) -> str:
    """Which real splits the layouts come from, where the pictures say so."""
    split_of = {PurePath(s.file_name).stem: s.split for s in real.scenes}
    found: Counter[str] = Counter()
    for scene in scenes:
        layout = scene.provenance.get("layout")
        picture = layout.get("picture") if isinstance(layout, Mapping) else None
        found[split_of.get(PurePath(str(picture)).stem, "unknown") if picture is not None else "unknown"] += 1
    return ", ".join(f"{split} {count}" for split, count in sorted(found.items()))


def _warnings(
    sets: Mapping[str, PictureSet],
    test: Sequence[Scene],
    made: Mapping[str, Sequence[Scene]],
    rows: Mapping[str, Mapping[str, Any]],
    judged: int,
    info: Mapping[str, Any] | None,
    floors: set[str],
) -> list[str]:
    warnings = []
    least = min(judged, len(test))
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
        missing = [c for c in sets[REAL].classes if not any(c in s.categories() for s in some)]
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


def _plan(
    sets: Mapping[str, PictureSet],
    train: Sequence[Scene],
    test: Sequence[Scene],
    made: Mapping[str, Sequence[Scene]],
    judges: Mapping[str, Extractor],
    clip: Clip | None,
    config: DetectorConfig | None,
    share: Path,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """What would be done, and what it costs where nothing lies there already, from a few timed pictures and steps."""
    from .metrics.features import read_scene

    looked_at = len(test) + sum(len(s) for s in made.values())
    some = [read_scene(s) for s in test[:8]]
    seconds = {judge.name: _seconds(lambda judge=judge: judge.encode(some)) / len(some) for judge in judges.values()}  # type: ignore[misc]
    total = sum(seconds.values()) * (looked_at + len(train))
    plan: dict[str, Any] = {
        "real pictures": len(test),
        "training pictures": len(train),
        "synthetic pictures": {name: len(s) for name, s in made.items()},
        "extractors": {name: f"{1 / s:.1f} pictures/s" for name, s in seconds.items()},
        "bootstrap samples": bootstrap,
        "clip": clip.name if clip else "not measured: --clip names no weights",
    }
    if clip is not None:
        crops = len(some) + sum(len(s.instances) for s in test[:8])
        each = _seconds(lambda: clip.pictures(some)) / len(some)
        total += each * looked_at * crops / len(some)
        plan["clip pictures per second"] = round(1 / each, 1)
    if config is not None:
        finished = (share / TRAININGS / training_key(train, sets[REAL].classes, config, seed) / "detector.json").is_file()
        step = seconds_per_step(train, sets[REAL].classes, config)
        total += (0 if finished else config.steps * step) + looked_at * step / config.batch / 3  # finding: about a third of training
        plan |= {"detector": config.kind, "detector steps": config.steps, "detector already trained": finished}
    return plan | {"estimated minutes": round(total / 60, 1)}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)


def _spread(scenes: Sequence[Scene], n: int) -> list[Scene]:
    """``n`` scenes, evenly spaced, those with objects first choice: what is shown is not chosen by hand."""
    full = [s for s in scenes if s.instances] or list(scenes)
    return [full[int(k)] for k in np.unique(np.linspace(0, len(full) - 1, min(n, len(full))).astype(int))]
