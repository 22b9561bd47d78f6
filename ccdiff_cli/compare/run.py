"""A comparison from the file to the tables."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..comparison import spread
from ..dataset import PictureSet, read_set, versions
from ..errors import CCDiffError
from ..evaluation import EvaluateOptions, evaluate
from ..files import content_key, is_file, write_json, write_text
from ..generator import GENERATOR_FILE, generator_folder, generator_key
from ..layouts.options import LayoutOptions
from ..locks import locked
from ..methods import Method, method_named
from ..methods.recipe import in_steps
from ..metrics.published import ROWS
from ..recipes import Recipe, load_recipe
from ..scene import Scene
from ..synthesis import FilterOptions, SynthesisOptions, WorkOptions, synthesize
from ..trainability import ExperimentConfig, eval_trainability, load_detector_config, load_experiment
from ..trainability.options import TrainabilityOptions
from ..trainability.published import published_rows
from ..training import plan, train
from .config import Comparison

Progress = Callable[[str, int, int], None]
QUALITY, TRAINING, FLOOR = "quality", "training", "floor"
"""The sets of a row."""
TRAINABILITY = "trainability"
SAMPLES = 8
"""Layouts that the page shows, as every row drew them."""


@dataclass(frozen=True)
class Row:
    """One generator to be: a row of the file on one of its sets.

    Attributes:
        start: the generator that its training starts from.
        folder: where its generator and sets lie.
    """

    name: str
    recipe: Recipe
    start: Path | None
    transplant: bool
    folder: Path
    real: PictureSet

    @property
    def method(self) -> Method:
        return method_named(self.recipe.method)

    @property
    def seen(self) -> int:
        """Pictures that the last of its method's own stages sees in training."""
        stage = self.method.stages[-1].config(self.recipe)
        return int(stage.steps * stage.pictures(1))

    @cached_property
    def generator(self) -> Path:
        """The folder of the generator; what it is made from is hashed once."""
        started = generator_key(self.start) if self.start is not None else None
        key = content_key([self.recipe.model_dump(mode="json"), self.real.key(), started, self.transplant])
        return self.folder / f"generator-{key[:8]}"

    def made(self, what: str, options: SynthesisOptions) -> Path:
        """The folder of one of its sets; its last part is the row's name, by which ``evaluate`` calls it."""
        key = content_key([self.generator.name, what, options.model_dump(mode="json")])
        return self.folder / f"{what}-{key[:8]}" / self.name


@locked("compare")
def compare(
    config: Comparison, out: str | Path, *, processes: int | None = None, dry_run: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Train, synthesize and measure every row on every set, or go on with it; write the tables.

    Writes ``out/results.json``, ``out/report.html``, ``out/table.md`` and ``out/table.tex``; of each set ``out/SET/evaluation`` and
    ``out/SET/trainability`` hold the reports of the two verbs, ``out/SET/ROW`` generators and synthetic sets.

    Args:
        processes: of synthesis and of the detectors' trainings; one a GPU, one on a CPU unless given.
        dry_run: check everything that can be checked and write nothing; return the plan.

    Returns:
        What ``results.json`` holds; for a dry run ``{"sets": {set: {row: plan}}, ...}``.

    Raises:
        CCDiffError: a set, recipe or section does not fit; rows failed (the others are finished first, and kept).
    """
    out = Path(out)
    sets = {name: _checked(read_set(folder), config) for name, folder in config.sets.items()}
    rows = {name: [_row(config, row, real, out / name) for row in config.methods] for name, real in sets.items()}
    if dry_run:
        return {
            "sets": {name: {row.name: _planned(row) for row in some} for name, some in rows.items()},
            "detectors": {name: _trainings(config) for name in sets},
            "pictures": {
                name: {"quality": len(_reference(real, config)), "training": _wanted(config, real)} for name, real in sets.items()
            },
        }
    told: dict[str, Any] = {}
    samples: dict[str, list[tuple[Scene, dict[str, Scene]]]] = {}
    for name, real in sets.items():
        told[name], samples[name] = _of_set(config, name, real, rows[name], out / name, processes, progress)
    results = {"methods": {r.name: _described(r) for r in next(iter(rows.values()))}, "budget": _budget(config), "sets": told}
    results["versions"] = versions()
    _write(out, results, sets, samples)
    failed = {f"{name}, {row}": why for name, said in told.items() for row, why in said["failed"].items()}
    if failed:
        place, why = next(iter(failed.items()))
        raise CCDiffError(
            f"{len(failed)} of {sum(map(len, rows.values()))} rows failed (first: {place}: {why['error']}); the others are in "
            f"{out / 'report.html'}",
            where=out,
            fix=why["fix"] or "mend it and run the same command again",
        )
    return results


def _checked(real: PictureSet, config: Comparison) -> PictureSet:
    for split in ("train", "test", config.evaluate.reference):
        if len(real.split(split)) < 2:
            raise CCDiffError(
                f"the set has fewer than two pictures in its {split} split", where=real.root, fix="prepare it with that split"
            )
    return real


def _row(config: Comparison, name: str, real: PictureSet, folder: Path) -> Row:
    """The row with its recipe at the budget."""
    options = config.methods[name]
    length = {"denoiser.train.steps", "denoiser.train.epochs"}
    recipe = load_recipe(options.recipe, options.overrides, base=options.base)
    if recipe.decoder is not None and recipe.decoder.alone:
        raise CCDiffError(
            f"the row {name} trains no denoiser: rows are compared at so many pictures seen by it",
            where="recipe key decoder.alone",
            fix="set it to false: the decoder is trained after the denoiser",
        )
    if config.pictures is not None and not length & set(options.overrides):
        stage = method_named(recipe.method).stages[-1].config(recipe)
        steps = math.ceil(config.pictures / stage.pictures(1))
        at_budget = {"steps": steps, "warmup_steps": min(stage.warmup_steps, steps // 4)}
        budget = {f"denoiser.train.{key}": value for key, value in at_budget.items()}
        recipe = load_recipe(options.recipe, {**options.overrides, **budget}, base=options.base)
    recipe = in_steps(recipe, len(real.split("train")), 1)  # the same length however many processes there are
    start = generator_folder(options.start) if options.start is not None else None
    return Row(name, recipe, start, options.transplant, folder / name, real)


def _planned(row: Row) -> dict[str, Any]:
    told = plan(row.recipe, row.real.root, start=row.start, transplanted=row.transplant)
    done = is_file(row.generator / GENERATOR_FILE)
    return {
        "recipe": row.recipe.name,
        "method": row.recipe.method,
        "pictures seen": row.seen,
        "generator": "done" if done else "to do",
        **told,
    }


def _trainings(config: Comparison) -> dict[str, Any]:
    experiment = _experiment(config)
    arms = 1 + len(config.arms())
    return {"arms": arms, "seeds": list(experiment.seeds), "match": experiment.match, "steps": experiment.detector.steps}


def _experiment(config: Comparison) -> ExperimentConfig:
    return load_experiment(config.trainability.recipe, config.trainability.experiment())


def _reference(real: PictureSet, config: Comparison) -> Sequence[Scene]:
    return real.split(config.evaluate.reference)


def _wanted(config: Comparison, real: PictureSet) -> int:
    """Pictures of each row that detectors are trained with."""
    return config.synthesize.n or max(2, math.ceil(config.added * len(real.split("train"))))


# ---- one set ----


def _of_set(
    config: Comparison, name: str, real: PictureSet, rows: list[Row], out: Path, processes: int | None, progress: Progress | None
) -> tuple[dict[str, Any], list[tuple[Scene, dict[str, Scene]]]]:
    """Everything of one set: what the results say of it, and the pictures that the page shows."""
    failed: dict[str, dict[str, Any]] = {}
    made: dict[str, tuple[Path, Path]] = {}
    floor: Path | None = None
    for row in rows:
        report = _reporter(progress, f"{name} / {row.name}")
        try:
            made[row.name] = _make_row(config, row, processes, report)
            if config.floor and floor is None:
                floor = _make(config, row, FLOOR, processes, report)
        except CCDiffError as error:
            failed[row.name] = {"error": f"{error.where}: {error.what}" if error.where else error.what, "fix": error.fix}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if not made:
        first = next(iter(failed.values()))
        raise CCDiffError(f"no row of {name} could be made (first: {first['error']})", where=out, fix=first["fix"])
    report = _reporter(progress, name)
    trained = _trainability(config, real, {row: pair[1] for row, pair in made.items()}, out, processes, report)
    quality = _quality(config, real, {row: pair[0] for row, pair in made.items()}, floor, out, report)
    known = published_rows(real)
    told = {
        "folder": str(real.root),
        "content": real.key(),
        "pictures": {split: len(real.split(split)) for split in ("train", "val", "test")},
        "rows": {row: {"quality": str(pair[0]), "training": str(pair[1])} for row, pair in made.items()},
        "quality": quality,
        "trainability": trained,
        "published": {"data_set": known["data_set"], "quality": ROWS[known["data_set"]], "trainability": known["rows"]} if known else None,
        "failed": failed,
    }
    return told, _samples(_reference(real, config), {row: pair[0] for row, pair in made.items()})


def _make_row(config: Comparison, row: Row, processes: int | None, progress: Progress | None) -> tuple[Path, Path]:
    """Train a row and make its two sets: from the layouts of the reference split, and those to train detectors with."""
    train(row.recipe, row.real.root, row.generator, start=row.start, transplanted=row.transplant, progress=progress)
    return _make(config, row, QUALITY, processes, progress), _make(config, row, TRAINING, processes, progress)


def _make(config: Comparison, row: Row, what: str, processes: int | None, progress: Progress | None) -> Path:
    """One set of a row, or of its generator: the floor."""
    options = _options(config, row.real, what)
    folder = row.made(what, options)
    folder = folder.with_name(FLOOR) if what == FLOOR else folder
    synthesize(row.generator, row.real.root, folder, options, work=WorkOptions(num_processes=processes), progress=progress)
    return folder


def _options(config: Comparison, real: PictureSet, what: str) -> SynthesisOptions:
    """What ``synthesize`` is told; a floor is not filtered."""
    said = config.synthesize.model_dump(exclude_defaults=True)
    if what == TRAINING:
        return SynthesisOptions(**said | {"n": _wanted(config, real)})
    layouts = LayoutOptions(source="set", split=config.evaluate.reference)
    said |= {"n": len(_reference(real, config)), "layouts": layouts}
    if what == FLOOR:
        said = {**said, "filter": FilterOptions(), "shuffle_layouts": True}
    return SynthesisOptions(**said)


def _quality(
    config: Comparison, real: PictureSet, made: Mapping[str, Path], floor: Path | None, out: Path, progress: Progress | None
) -> dict[str, Any]:
    section = config.evaluate
    detector = load_detector_config(overrides=section.detector) if section.detector is not None else _experiment(config).detector
    said = section.model_dump(exclude={"detector"}, exclude_defaults=True)
    options = EvaluateOptions(**said | {"floor": floor, "share": out / TRAINABILITY})  # where it is the same detector it is trained once
    judged = evaluate(real.root, list(made.values()), out / "evaluation", options, detector=detector, progress=progress)
    return {key: judged[key] for key in ("rows", "protocol", "published", "warnings")}


def _trainability(
    config: Comparison, real: PictureSet, made: Mapping[str, Path], out: Path, processes: int | None, progress: Progress | None
) -> dict[str, Any]:
    section = config.trainability
    arms = {name: ratios for name, ratios in config.arms().items() if name in made or name not in config.methods}
    experiment = _experiment(config).model_copy(update={"arms": arms})
    options = TrainabilityOptions(others=dict(made), allow_leaks=section.allow_leaks, generator_data=section.generator_data)
    found = eval_trainability(real.root, None, out / TRAINABILITY, experiment, options, processes=processes, progress=progress)
    return {key: found[key] for key in ("arms", "protocols", "yardstick", "protocol", "warnings")}


def _reporter(progress: Progress | None, prefix: str) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{prefix}: {what}", done, total)


# ---- what is told ----


def _described(row: Row) -> dict[str, Any]:
    method = row.method
    return {
        "method": method.name,
        "title": method.title,
        "recipe": row.recipe.name,
        "start": str(row.start) if row.start is not None else None,
        "takes": sorted(method.takes),
        "boxes": method.of_boxes(),
        "licence": method.licence,
        "exact": method.exact,
        "differs": method.differs,
        "pictures_seen": row.seen,
    }


def _budget(config: Comparison) -> dict[str, Any]:
    return {
        "pictures seen": config.pictures,
        "added": config.added,
        "synthesize": config.synthesize.model_dump(mode="json", exclude_defaults=True),
    }


def _samples(reference: Sequence[Scene], made: Mapping[str, Path]) -> list[tuple[Scene, dict[str, Scene]]]:
    """Real pictures, evenly spaced among those with objects, with what every row drew from the layout."""
    drawn: dict[str, dict[str, Scene]] = {}
    for row, folder in made.items():
        for scene in read_set(folder).split("train"):
            layout = scene.provenance.get("layout")
            if isinstance(layout, Mapping):
                drawn.setdefault(str(layout.get("picture")), {})[row] = scene
    full = [s for s in reference if s.instances and len(drawn.get(s.file_name, {})) == len(made)]
    return [(scene, drawn[scene.file_name]) for scene in spread(full, SAMPLES)]


def _write(
    out: Path, results: dict[str, Any], sets: Mapping[str, PictureSet], samples: Mapping[str, list[tuple[Scene, dict[str, Scene]]]]
) -> None:
    from ..report.compare import comparison_page, latex_tables, markdown_tables  # matplotlib: not for a dry run

    write_text(out / "report.html", comparison_page(results, {name: real.classes for name, real in sets.items()}, samples))
    write_text(out / "table.md", markdown_tables(results))
    write_text(out / "table.tex", latex_tables(results))
    write_json(out / "results.json", results)
