"""``ccdiff demo``: the whole chain in one command, in minutes on two cores, without network.

    drawn pictures -> prepare -> train (from the shipped model) -> synthesize -> export -> eval-trainability -> report

Notable here:
- a part of the drawn pictures plays the small labelled set that a user has: generator, layouts, pasted crops and detectors know those
  alone.  The rest says what more real pictures would bring, without which no verdict can be read (docs/log.md, "a demo that can answer").
- every stage is the function behind a verb, called as a user's command would call it, and resumes as that verb does; so a demo that
  was interrupted goes on where it stopped, and a finished one is only read.
- the amounts are fixed rather than fitted to the clock, so that the same seed gives the same pictures everywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CCDiffError
from .files import write_json
from .generator import shipped_generator
from .locks import locked

Progress = Callable[[str, int, int], None]

PICTURES = 160
"""Drawn pictures: 100 train, 20 val, 40 test."""
TRAIN_STEPS = 240
PERCENT = 20
"""Of the train pictures that are the small labelled set."""
DRAW = 0
"""Which of them: the draw of the experiment."""
SYNTHETIC = 100
"""To be looked at; the experiment adds one for each real picture, as published."""
SAMPLING_STEPS = 8
DETECTOR: dict[str, Any] = {"steps": 200, "input_size": 128, "anchor_sizes": [8, 16, 32, 64], "warmup_steps": 40}
FORMATS = ("yolo-obb", "coco", "dota")
STAGES = 6


@locked("demo")
# wide: each amount can be made small, for a test of the whole chain
def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    generator: str | Path | None = None,
    pictures: int = PICTURES,
    train_steps: int = TRAIN_STEPS,
    synthetic: int = SYNTHETIC,
    sampling_steps: int = SAMPLING_STEPS,
    detector: Mapping[str, Any] | None = None,
    detector_seeds: Sequence[int] = (0,),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the chain in the folder ``out``, or go on with it.

    Args:
        seed: of the drawn pictures, the training and the synthesis.
        generator: the generator to start from; the shipped one when None.
        pictures: how many are drawn.
        train_steps: steps of fine-tuning on them.
        synthetic: how many pictures are synthesized.
        sampling_steps: denoising steps of each.
        detector: detector settings that replace those of ``DETECTOR``.
        detector_seeds: one pair of detector trainings each.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        ``report`` (path of the HTML page), ``lines`` (what to show at the end), ``verdict`` and ``gain`` of the synthetic pictures,
        ``gain_of_pasted`` crops, ``yardstick`` (of more real pictures), ``adherence``, ``folders``, ``seconds`` of every stage.

    Raises:
        CCDiffError: whatever a stage raises (a full disk, a folder that belongs to another run, ...), or the shipped model is missing.
    """
    out = Path(out)
    start = Path(generator) if generator is not None else shipped_generator()
    if not start.is_dir():
        raise CCDiffError("the model that ships with the package is missing", where=start, fix="install the package again")
    folders = {name: out / name for name in ("drawn", "prepared", "few", "generator", "synthetic", "export", "trainability")}
    seconds: dict[str, float] = {}
    with _offline():
        from .drawn import CLASSES, draw_dataset
        from .export import ExportOptions, export_set
        from .generator import read_generator
        from .prepare import PrepareOptions, prepare_dataset
        from .synthesis import CONTACT_SHEET, SamplingOptions, SynthesisOptions, synthesize
        from .trainability import TrainabilityOptions, eval_trainability
        from .training import train

        known = read_generator(start)
        with _stage(1, "draw", progress, seconds) as report:
            draw_dataset(folders["drawn"], pictures=pictures, seed=seed, progress=report)
        with _stage(2, "prepare", progress, seconds) as report:
            whole = PrepareOptions(size=known["picture_size"], classes=folders["drawn"] / CLASSES)
            prepare_dataset(folders["drawn"], folders["prepared"], whole, progress=report)
            part = whole.model_copy(update={"splits": _part(folders["prepared"], out / "few.splits")})
            prepare_dataset(folders["drawn"], folders["few"], part, progress=report)
        with _stage(3, "train", progress, seconds) as report:
            trained = train(_recipe(known, train_steps, seed), folders["few"], folders["generator"], start=start, progress=report)
        with _stage(4, "synthesize", progress, seconds) as report:
            wanted = SynthesisOptions(n=synthetic, seed=seed, sampling=SamplingOptions(steps=sampling_steps))
            made = synthesize(folders["generator"], folders["few"], folders["synthetic"], wanted, progress=report)
        with _stage(5, "export", progress, seconds) as report:
            for format in FORMATS:
                export_set(folders["synthetic"], folders["export"] / format, ExportOptions(format=format), progress=report)
        with _stage(6, "eval-trainability", progress, seconds) as report:
            config = _experiment(detector or {}, detector_seeds)
            sets = TrainabilityOptions(generator_data=folders["few"])
            measured = eval_trainability(folders["prepared"], folders["synthetic"], folders["trainability"], config, sets, progress=report)
    page = folders["trainability"] / "report.html"
    pasted = _arm(measured, "copy-paste")
    result = {
        "report": str(page),
        "verdict": measured["verdict"],
        "gain": measured["gain"],
        "gain_of_pasted": pasted["gain"],
        "yardstick": measured["yardstick"],
        "adherence": measured["adherence"]["scores"],
        "training": {"steps": trained["steps"], "final_loss": trained["final_loss"]},
        "synthetic": {key: made[key] for key in ("pictures", "objects", "pictures_per_second")},
        "folders": {name: str(folder) for name, folder in folders.items()},
        "seconds": seconds,
    }
    if not (out / "demo.json").is_file():  # of the run that did the work; running it again measures nothing
        write_json(out / "demo.json", result)
    minutes = sum(seconds.values()) / 60
    return {
        **result,
        "lines": [
            f"done in {minutes:.1f} minutes: {pictures} pictures drawn, {made['pictures']} synthesized ({made['objects']} objects)",
            *_findings(measured, len(detector_seeds)),
            "(a demonstration on drawn pictures with a minute of training, one seed: whether your set gains is measured on your set)",
            f"synthetic pictures with their boxes: {folders['synthetic'] / CONTACT_SHEET}",
            f"the same set for other tools: {', '.join(str(folders['export'] / f) for f in FORMATS)}",
            f"report: {page}",
            "next, on your own data (a DIOR, NWPU VHR-10 or COCO folder): "
            "ccdiff prepare YOUR_DATA --tile 256 --overlap 64 --size 128 --out runs/mine",
        ],
    }


def _part(prepared: Path, lists: Path) -> Path:
    """The folder of split lists that hold the small labelled set, and val and test as they are."""
    from .dataset import read_set
    from .trainability.arms import fraction_of, write_split_lists

    everything = read_set(prepared)
    write_split_lists(everything, fraction_of(everything.split("train"), PERCENT, DRAW), lists)
    return lists


def _experiment(detector: Mapping[str, Any], seeds: Sequence[int]) -> Any:
    """The experiment, at equal steps alone: both protocols would take twice as long, and the report says so."""
    from .trainability import ExperimentConfig, load_detector_config

    return ExperimentConfig(
        detector=load_detector_config(overrides={**DETECTOR, **detector}),
        match="steps",
        seeds=tuple(seeds),
        fractions=(PERCENT,),
        draw=DRAW,
        arms={"synthetic": (1.0,), "copy-paste": (1.0,)},
    )


def _arm(measured: Mapping[str, Any], kind: str) -> Any:
    return next(arm for arm in measured["arms"].values() if arm["kind"] == kind)


def _findings(measured: Mapping[str, Any], seeds: int) -> list[str]:
    """What the experiment says of the synthetic pictures, of pasted crops, and of itself."""
    from .trainability import verdict

    made, pasted = _arm(measured, "synthetic"), _arm(measured, "copy-paste")
    return [
        f"{made['real']} real pictures + {made['added']} synthesized: {measured['verdict']}",
        f"{pasted['real']} real pictures + {pasted['added']} with pasted crops: "
        + verdict(pasted["gain"]["mAP"], seeds, "the copy-paste pictures", arms=(pasted, measured["arms"][pasted["baseline"]])),
        measured["yardstick"]["sentence"],
    ]


def _recipe(generator: Mapping[str, Any], steps: int, seed: int) -> Any:
    """The recipe of the generator, for a short training that starts from it."""
    from .recipes import AutoencoderConfig, recipe_of

    values = generator["recipe"]
    # the generator's own autoencoder is kept: keys that described it in earlier versions say nothing now
    own = values.get("autoencoder")
    autoencoder = own and {key: value for key, value in own.items() if key in AutoencoderConfig.model_fields}
    train = {
        **values["denoiser"]["train"],
        "steps": steps,
        "warmup_steps": min(20, steps // 4),
        "learning_rate": values["denoiser"]["train"]["learning_rate"] / 2,
        "ema_decay": 0.98,
        "checkpoint_every": 100,
    }
    # what is seen of pictures is not looked at: it takes twice as long, and an extra
    denoiser = {**values["denoiser"], "train": train, "sample_every": steps, "perceptual": 0.0}
    changed = {"name": "demo", "seed": seed, "autoencoder": autoencoder, "denoiser": denoiser}
    return recipe_of({**values, **changed}, where="the generator's recipe")


@contextmanager
def _stage(number: int, name: str, progress: Progress | None, seconds: dict[str, float]) -> Iterator[Progress]:
    """Time a stage and put its number before what it reports."""
    begun = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"{number}/{STAGES} {name}" + ("" if what == name else f": {what}"), done, total)

    yield report
    seconds[name] = round(time.monotonic() - begun, 2)


@contextmanager
def _offline() -> Iterator[None]:
    """Everything the demo needs is in the package: the model hub must not be asked, nor waited for."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
