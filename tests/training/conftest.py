"""A drawn set prepared at 32 px, and a recipe that trains in a second."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ccdiff_cli.drawn import CLASSES, draw_dataset
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.recipes import Recipe, load_recipe

STAGE = {"steps": 4, "batch_size": 2, "learning_rate": 1.0e-3, "checkpoint_every": 2, "ema_decay": 0.5}
VALUES: dict[str, Any] = {
    "name": "second",
    "picture_size": 32,
    "caption_style": "short",
    "autoencoder": {"width": 8, "latent_channels": 4, "crop": 32, "train": STAGE},
    "encoders": {
        "text_width": 16, "text_layers": 1, "image_width": 16, "image_layers": 1, "image_patch": 8, "image_size": 16, "train": STAGE,
    },
    "unet": {"channels": [16, 16], "heads": 2},
    "resampler": {"width": 16, "depth": 1, "head_width": 8, "heads": 2, "queries": 2, "ff_mult": 2},
    "conditioning": {"places": ["mid_block", "up_blocks.0"], "gate": "obb", "point_width": 16},
    "denoiser": {"prediction": "v_prediction", "snr_gamma": 5, "symmetries": 2, "sample_every": 3, "train": {**STAGE, "steps": 6}},
    "sampling": {"steps": 2, "guidance_scale": 2.0},
}  # fmt: skip


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "second.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


@pytest.fixture(scope="session")
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    drawn = draw_dataset(root / "drawn", pictures=16, size=64)
    prepare_dataset(drawn, root / "set", PrepareOptions(size=32, classes=drawn / CLASSES))
    return root / "set"


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, prepared: Path) -> Path:
    from ccdiff_cli.training import train

    out = tmp_path_factory.mktemp("generator") / "g"
    train(recipe, prepared, out, cpu=True)
    return out
