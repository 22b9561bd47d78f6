"""Recipes: every shipped one loads; a wrong one says file, key, found, expected."""

from pathlib import Path

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods.recipe import in_steps
from ccdiff_cli.recipes import find_recipe, load_recipe, recipe_of_size

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


def test_a_file_of_the_current_folder_is_no_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    for name in ("tiny", "recipes/tiny", "recipes/mine"):
        (tmp_path / f"{name}.yaml").write_text("name: not ours\n")
    (tmp_path / "tiny").write_text("name: not ours\n")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("tiny") == EVERY[0].with_name("tiny.yaml")
    assert find_recipe("./tiny.yaml").read_text() == find_recipe("tiny.yaml").read_text() == "name: not ours\n"
    assert find_recipe("./tiny").read_text() == find_recipe("recipes/tiny.yaml").read_text() == "name: not ours\n"
    with pytest.raises(CCDiffError, match=r"no recipe named 'mine' is shipped\n  fix: \./recipes/mine\.yaml is a file .* by its path"):
        find_recipe("mine")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../tiny", "\0", "x" * 100_000, "recipes", "tiny/", "~/tiny.yaml"])
def test_what_names_no_recipe(name: str) -> None:
    with pytest.raises(CCDiffError, match="recipe"):
        find_recipe(name)


def test_the_shipped_generator_and_class_lists_are_not_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccdiff_cli.formats.classes import CLASS_LISTS, read_class_file
    from ccdiff_cli.generator import generator_folder, shipped_generator

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    for name in ("dior", "car=ship", "a=b.txt"):
        (tmp_path / name).write_text("submarine\n")
    assert generator_folder("tiny") == shipped_generator() and generator_folder("./tiny") == Path("tiny")
    assert list(read_class_file("dior").classes) == list(CLASS_LISTS["dior"])
    assert list(read_class_file("car=ship").classes) == ["ship"]
    assert list(read_class_file("./dior").classes) == list(read_class_file("a=b.txt").classes) == ["submarine"]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(CCDiffError, match="tiny"):
        load_recipe("no-such-recipe")
    with pytest.raises(CCDiffError, match="no such recipe file"):
        load_recipe("missing.yaml")


def test_a_base_sets_autoencoder_texts_and_unet_and_changes_come_after() -> None:
    recipe = load_recipe("ccdiffpp-sd14-dota", {"unet.source": "/models/finetuned"}, base="/models/sd14")
    assert (recipe.autoencoder.source, recipe.autoencoder.subfolder) == ("/models/sd14", "vae")
    assert (recipe.encoders.text_source, recipe.encoders.text_subfolder) == ("/models/sd14", "text_encoder")
    assert (recipe.unet.source, recipe.unet.subfolder) == ("/models/finetuned", "unet")
    assert recipe.encoders.image_source == "facebook/dinov2-large"
    with pytest.raises(CCDiffError, match="--base: the recipe 'txt2img_mhn-tiny' takes no parts"):
        load_recipe("txt2img_mhn-tiny", base="/models/sd14")


def test_a_length_in_epochs_is_shared_by_the_processes() -> None:
    recipe = load_recipe("ccdiffpp-sd14-dior")
    alone, eight = in_steps(recipe, 11725, 1), in_steps(recipe, 11725, 8)
    assert (alone.denoiser.train.steps, eight.denoiser.train.steps) == (29313, 3665)
    assert load_recipe("ccdiffpp-sd14-dior", {"denoiser.train.steps": 7}).denoiser.train.epochs == 0
    counted = load_recipe("tiny")
    assert in_steps(counted, 11725, 8) is counted  # steps are steps
    assert "epochs" not in counted.model_dump(mode="json")["denoiser"]["train"]  # generators made before have the same identity
    with pytest.raises(CCDiffError, match="give either `steps` or `epochs`"):
        load_recipe("tiny", {"denoiser.train": {"steps": 3, "epochs": 2, "batch_size": 1}})


@pytest.mark.parametrize(
    ("size", "layout", "recipe"),
    [(128, "dota", "tiny"), (512, "dota", "ccdiffpp-sd14-dota"), (512, "coco", "ccdiffpp-sd14-dior"), (99, "coco", None)],
)
def test_the_recipe_to_begin_with_is_of_the_sets_size(size: int, layout: str, recipe: str | None) -> None:
    assert recipe_of_size(size, layout) == recipe
    assert recipe is None or load_recipe(recipe).picture_size == size
