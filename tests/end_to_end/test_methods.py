"""Every method on the whole chain: prepare, train, killed and resumed, synthesize in one process and in two, verify, export, adherence.

The recipes are the shipped tiny ones, at the smallest sizes; what a method needs smaller still stands in ``SMALL``.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from ccdiff_cli.dataset import read_set
from ccdiff_cli.detectors import Detector, DetectorConfig, fit, load_detector
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.generator import generator_key, read_generator
from ccdiff_cli.methods import METHODS, load_pipeline, method_of
from ccdiff_cli.methods.method import REFERENCES, TAKES
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.synthesis import verify_set
from ccdiff_cli.trainability import layout_adherence
from ccdiff_cli.training import plan, train
from tests.synthesis.grouped import make_set

from .conftest import DETECTOR, SIZE

STEPS, EVERY = 4, 2
COMMON: dict[str, Any] = {
    "picture_size": SIZE,
    "denoiser.train.steps": STEPS,
    "denoiser.train.batch_size": 2,
    "denoiser.train.warmup_steps": 0,
    "denoiser.train.checkpoint_every": EVERY,
    "denoiser.train.ema_decay": 0.0,
    "denoiser.symmetries": 1,
    "denoiser.balance": 0.0,
    "denoiser.sample_every": 100,
    "sampling.steps": 2,
}
SHIPPED = {"encoders.text_source": "tiny", "encoders.image_source": "tiny", "unet.source": "tiny"}
RECIPES = {"ccdiff++": "tiny"}
"""Where it is not called after the method."""
SMALL: dict[str, dict[str, Any]] = {
    "aerogen": {"unet.channels": [16, 32], "unet.attention": None, "aerogen.hidden": 16},
    "layoutdiffusion": {"layoutdiffusion.multipliers": [1, 2], "layoutdiffusion.layout_layers": 1},
    "diffusionsat": {"unet.source": None, "unet.channels": [16, 32]},
    "txt2img_mhn": {
        "txt2img_mhn.tokenizer_train.steps": 2,
        "txt2img_mhn.tokenizer_train.batch_size": 2,
        "txt2img_mhn.blocks": 1,
        "txt2img_mhn.hidden": 8,
        "txt2img_mhn.width": 32,
        "txt2img_mhn.codes": 32,
        "txt2img_mhn.prototypes": 16,
    },
    "ccdiff++": {**SHIPPED, "resampler.width": 32, "resampler.depth": 1},
    "ccdiff": {"unet.source": None, "unet.channels": [16, 32], "conditioning.places": ["mid_block", "up_blocks.0"], "resampler.width": 32},
}


class Killed(BaseException):
    """As sudden as a signal for all that catches ``Exception``."""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Detector:
    """A detector after three steps on the real pictures."""
    real, home = read_set(prepared), tmp_path_factory.mktemp("judge")
    key = fit(real.split("train"), real.classes, DetectorConfig(**DETECTOR), home, 0).info["key"]
    return load_detector(home / key, "cpu")


@pytest.mark.parametrize("name", METHODS)
def test_the_whole_chain(name: str, prepared: Path, judge: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS[name]
    recipe = load_recipe(RECIPES.get(name, f"{name}-tiny"), {**COMMON, **SMALL.get(name, {})})
    assert recipe.method == name == method.name and method.takes and method.takes <= set(TAKES)
    told = plan(recipe, prepared)
    assert all(stage.name in told for stage in method.stages)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    said = train(recipe, prepared, whole, cpu=True)
    assert said["steps"] == STEPS and math.isfinite(said["final_loss"])
    with monkeypatch.context() as patch:
        _kill_at(patch, cut / "train" / method.stages[-1].name / f"checkpoint-{EVERY:08d}.pt")
        with pytest.raises(Killed):
            train(recipe, prepared, cut, cpu=True)
    assert not (cut / "ccdiff.json").exists()
    train(recipe, prepared, cut, cpu=True)
    assert generator_key(cut) == generator_key(whole)
    assert method_of(read_generator(cut)) is method and type(load_pipeline(cut)) is method.pipeline()

    alone = make_set(whole, prepared, tmp_path / "alone", 2, batch_size=1, num_processes=1)
    shared = make_set(cut, prepared, tmp_path / "shared", 2, batch_size=1, num_processes=2)
    assert alone["content"] == shared["content"]
    assert (json.loads((tmp_path / "alone" / "plan.jsonl").read_text().splitlines()[0])["references"] is None) == (
        REFERENCES not in method.takes
    )
    assert verify_set(tmp_path / "shared")["pictures"] == 2

    export_set(tmp_path / "shared", tmp_path / "coco", ExportOptions(format="coco"))
    made = read_set(tmp_path / "shared")
    said_of = json.loads((tmp_path / "shared" / "manifest.json").read_text())["generator"]
    assert said_of["method"] == name and said_of.get("boxes") == method.of_boxes()
    assert method.title in (tmp_path / "shared" / "README.md").read_text()
    exported = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert len(exported["annotations"]) == sum(len(scene.instances) for scene in made.scenes) > 0
    figure = layout_adherence(judge, made.split("train"), made.classes)["synthetic"]["mAP"]
    assert 0 <= figure <= 1


def _kill_at(patch: pytest.MonkeyPatch, path: Path) -> None:
    """As soon as ``path`` is written, once."""
    real = os.replace

    def replace(source: object, target: object, **options: object) -> None:
        real(source, target, **options)  # type: ignore[arg-type]
        if Path(str(target)) == path:
            raise Killed

    patch.setattr(os, "replace", replace)
