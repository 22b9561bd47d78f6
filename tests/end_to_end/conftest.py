"""A drawn set, a recipe small enough for seconds, and the command line as a subprocess."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccdiff_cli.drawn import CLASSES, draw_dataset

SIZE = 64
STAGE = {"steps": 3, "batch_size": 4, "learning_rate": 1.0e-3, "checkpoint_every": 2}
RECIPE: dict[str, Any] = {
    "name": "seconds",
    "picture_size": SIZE,
    "caption_style": "short",
    "autoencoder": {"width": 8, "latent_channels": 4, "crop": 32, "train": STAGE},
    "encoders": {
        "text_width": 16, "text_layers": 1, "image_width": 16, "image_layers": 1, "image_patch": 8, "image_size": 16, "train": STAGE,
    },
    "unet": {"channels": [16, 32], "heads": 2},
    "resampler": {"width": 16, "depth": 1, "head_width": 8, "heads": 2, "queries": 2, "ff_mult": 2},
    "conditioning": {"places": ["mid_block", "up_blocks.0"], "gate": "obb", "gate_centred": True, "point_width": 16},
    "denoiser": {"prediction": "v_prediction", "symmetries": 2, "top_k": 2, "sample_every": 100, "train": {**STAGE, "steps": 4}},
    "sampling": {"steps": 2, "guidance_scale": 2.0},
}  # fmt: skip
DETECTOR = {
    "steps": 3, "batch": 2, "input_size": 64, "anchor_sizes": [8, 16, 32, 64], "warmup_steps": 1, "fpn_channels": 8, "head_width": 16,
    "proposals": 20, "roi_samples": 8, "backbone_weights": "none",
}  # fmt: skip
SECRET = re.compile(r"Traceback|File \".*\", line \d+")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def ccdiff() -> Run:
    """``ccdiff(*arguments, **how)``: the command line in a process of its own, on one thread, without network, without a GPU."""

    def run(*arguments: Any, **how: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ccdiff_cli", *map(str, arguments)],
            env={**ENVIRONMENT, **how.pop("env", {})}, capture_output=True, text=True, timeout=how.pop("timeout", 600), check=False, **how,
        )  # fmt: skip

    return run


@pytest.fixture
def inline(capfd: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, which spares the seconds of importing PyTorch; an exception that is not the program's own comes through."""

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        from ccdiff_cli.cli import main

        capfd.readouterr()
        try:
            main([*map(str, arguments)])
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        said = capfd.readouterr()
        return subprocess.CompletedProcess([*map(str, arguments)], int(code), said.out, said.err)

    return run


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "",  # nobody answers there: no network
    "PYTHONPATH": str(Path(__file__).parents[2]),
}  # fmt: skip


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn pictures in DIOR layout: 15 train, 3 val, 6 test."""
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "set", pictures=24, size=SIZE)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "seconds.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detectors") / "seconds.yaml"
    path.write_text(yaml.safe_dump(DETECTOR, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Path:
    from ccdiff_cli.prepare import PrepareOptions, prepare_dataset

    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare_dataset(drawn, out, PrepareOptions(size=SIZE, classes=drawn / CLASSES))
    return out


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory, prepared: Path, recipe: Path) -> Path:
    """A generator after a handful of steps: every part is there and trained a little; its pictures are noise."""
    from ccdiff_cli.recipes import load_recipe
    from ccdiff_cli.training import train

    out = tmp_path_factory.mktemp("generators") / "seconds"
    train(load_recipe(recipe), prepared, out, cpu=True)
    return out


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory, prepared: Path, generator: Path) -> Path:
    """Four pictures of that generator."""
    from tests.synthesis.grouped import make_set

    out = tmp_path_factory.mktemp("synthetic") / "set"
    make_set(generator, prepared, out, 4, steps=1, num_processes=1)
    return out


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_one_clear_message(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, the message on standard error with every word expected in it, and no traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert not SECRET.search(done.stderr + done.stdout), done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)
