"""Recipes: every shipped one loads; a wrong one says file, key, found, expected."""

from pathlib import Path

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.recipes import find_recipe, load_recipe

EVERY = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
RECIPES = [path for path in EVERY if not path.stem.startswith("trainability-")]  # those: trainability/test_config.py


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_is_named_after_its_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_a_recipe_is_found_by_name() -> None:
    assert find_recipe("tiny").name == "tiny.yaml"


def test_every_key_of_the_shipped_recipes_is_commented() -> None:
    for path in EVERY:
        seen = set()
        for line in path.read_text().splitlines():
            key = line.strip().split(":")[0]
            if ":" in line and not line.strip().startswith("#") and key not in seen:
                seen.add(key)
                # keys of a second `train` group are explained in the first
                assert "#" in line, f"{path.name}: {line.strip()} has no comment"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unet.chanels": [1]}, "unet.chanels: unknown key"),
        ({"denoiser.train.steps": -1}, "denoiser.train.steps"),
        ({"denoiser.train.steps": "many"}, "denoiser.train.steps"),
        ({"autoencoder.source": None, "autoencoder.train": None}, "autoencoder"),
        ({"encoders.train": None}, "encoders"),
        ({"unet.train_all": False}, "unet.train_all"),
        ({"caption_style": "stored"}, "denoiser.symmetries"),
        ({"name.x": 1}, "name is not a group"),
    ],
)
def test_wrong_values_name_their_key(overrides: dict, message: str) -> None:
    with pytest.raises(CCDiffError, match=message) as caught:
        load_recipe("tiny", overrides)
    assert "tiny.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "", "\x00"])
def test_what_is_not_a_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(CCDiffError, match=r"broken\.yaml"):
        load_recipe(path)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(CCDiffError, match="tiny"):
        load_recipe("no-such-recipe")
    with pytest.raises(CCDiffError, match="no such recipe file"):
        load_recipe("missing.yaml")
