"""The one form of a method: names found in generators of every version, pipelines, recipes, imports; what each says of itself holds."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.generator import generator_key, shipped_generator
from ccdiff_cli.methods import METHODS, export_checkpoint, import_checkpoint, load_pipeline, method_of, published_sampling
from ccdiff_cli.methods.method import TAKES
from ccdiff_cli.methods.recipe import Recipe
from ccdiff_cli.recipes import load_recipe, recipe_of


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ({}, "ccdiff++"),
        ({"recipe": None}, "ccdiff++"),
        ({"recipe": {"name": "old"}}, "ccdiff++"),
        ({"recipe": {"conditioning": {"variant": "ccdiff"}}}, "ccdiff"),
        ({"imported": {"model": "ccdiff"}}, "ccdiff"),
        ({"method": "ccdiff", "recipe": {"conditioning": {"variant": "ccdiff++"}}}, "ccdiff"),
        ({"recipe": {"method": "ccdiff"}}, "ccdiff"),
    ],
)
def test_the_method_of_a_generator_of_any_version(description: dict, name: str) -> None:
    assert method_of(description) is METHODS[name]


def test_a_method_that_this_version_does_not_have() -> None:
    with pytest.raises(CCDiffError, match="there is no method 'newer'") as caught:
        method_of({"method": "newer"}, where="g/ccdiff.json")
    assert "ccdiff++" in str(caught.value) and "g/ccdiff.json" in str(caught.value)


def test_the_shipped_generator_loads_without_saying_its_method(tmp_path: Path) -> None:
    pipe = load_pipeline(shipped_generator())
    assert type(pipe).__name__ == "CCDiffPipeline" and "method" not in json.loads((shipped_generator() / "ccdiff.json").read_text())
    lost = Path(shutil.copytree(shipped_generator(), tmp_path / "g"))
    description = json.loads((lost / "ccdiff.json").read_text())
    (lost / "ccdiff.json").write_text(json.dumps({**description, "method": "another"}))
    with pytest.raises(CCDiffError, match="there is no method 'another'"):
        load_pipeline(lost)


def test_the_key_of_a_generator_does_not_say_where_its_parts_lay(tmp_path: Path) -> None:
    keys = set()
    for place in ("here", "another place"):
        source = Path(shutil.copytree(shipped_generator(), tmp_path / place / "g"))
        pipe = load_pipeline(source)
        pipe.save_pretrained(tmp_path / f"saved {place}")
        keys.add(generator_key(tmp_path / f"saved {place}"))
        assert not any(place in path.read_text() for path in (tmp_path / f"saved {place}").rglob("*.json"))
    assert len(keys) == 1
    again = load_pipeline(tmp_path / "saved here")
    assert (
        sorted(again.unet.state_dict()) == sorted(pipe.unet.state_dict())
        and again.config["guidance_scale"] == pipe.config["guidance_scale"]
    )


def test_programs_of_earlier_versions_find_their_pipeline() -> None:
    from ccdiff_cli.methods.ccdiff.pipeline import CCDiffPipeline
    from ccdiff_cli.models import pipeline

    assert pipeline.CCDiffPipeline is CCDiffPipeline
    with pytest.raises(AttributeError):
        _ = pipeline.AnotherPipeline


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_says_fits_its_pipeline(name: str) -> None:
    method = METHODS[name]
    assert method.name == name and method.takes and method.takes <= set(TAKES) and issubclass(method.recipe, Recipe)
    pipeline = method.pipeline()
    components = inspect.signature(pipeline.__init__).parameters
    assert set(pipeline.TRAINED) <= set(pipeline.PARTS) <= set(components)
    assert {"num_inference_steps", "guidance_scale", "negative_prompt"} <= set(components)
    assert all(stage.sees in ("features", "pixels") for stage in method.stages)
    assert len({stage.name for stage in method.stages}) == len(method.stages) > 0
    fields = method.recipe.model_fields
    own = [key for key in fields if key not in Recipe.model_fields]
    assert all(hasattr(fields[key].annotation, "model_fields") for key in own), "its own settings are sections"


def test_a_recipe_is_read_without_torch() -> None:
    code = "import sys; from ccdiff_cli.recipes import load_recipe; load_recipe('tiny'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "newer"}, "there is no method 'newer'"),
        ({"method": 3}, "there is no method 3"),
        ({"method": "ccdiff", "conditioning.variant": "ccdiff++"}, "name one of them"),
        ({"conditioning.variant": "other"}, "conditioning.variant"),
        ({"unet": None}, "unet"),
        ({"migc.slots": 9}, "migc: unknown key"),
    ],
)
def test_wrong_methods_name_their_key(overrides: dict, message: str) -> None:
    with pytest.raises(CCDiffError, match=message) as caught:
        load_recipe("tiny", overrides)
    assert "tiny.yaml" in str(caught.value)


def test_a_recipe_of_the_predecessor_said_either_way_is_one_recipe() -> None:
    by_variant = load_recipe("tiny", {"conditioning.variant": "ccdiff"})
    values = by_variant.model_dump(mode="json")
    del values["conditioning"]["variant"]
    by_method = recipe_of({**values, "method": "ccdiff"}, where="here")
    assert by_variant.method == "ccdiff" and "method" not in by_variant.model_dump()
    assert by_method.model_dump() == by_variant.model_dump()
    again = recipe_of(by_variant.model_dump(mode="json"), where="ccdiff.json")
    assert again == by_variant and list(again.model_dump()) == list(by_variant.model_dump())


def test_imports_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CCDiffError, match="there is no method 'newer'"):
        import_checkpoint(tmp_path, tmp_path / "g", method="newer")
    with pytest.raises(CCDiffError, match="a Stable Diffusion folder is needed") as caught:
        import_checkpoint(tmp_path, tmp_path / "g", method="ccdiff++")
    assert "--stable-diffusion" in str(caught.value)
    with pytest.raises(CCDiffError, match="no such generator folder"):
        export_checkpoint(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "g").exists()


def test_a_generator_of_another_method_is_no_start(tmp_path: Path) -> None:
    from ccdiff_cli.training.run import _check_start

    with pytest.raises(CCDiffError, match=r"of the method ccdiff\+\+, recipe 'ccdiff-tiny' is of ccdiff"):
        _check_start(shipped_generator(), load_recipe("ccdiff-tiny"), False)
    _check_start(shipped_generator(), load_recipe("ccdiff-tiny"), True)
    _check_start(shipped_generator(), load_recipe("tiny"), False)


def test_sampling_that_the_method_does_not_know_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from tests.synthesis.grouped import make_set

    assert published_sampling(shipped_generator()) == {"steps": 50, "guidance_scale": 7.5, "scheduler": "euler"}
    with pytest.raises(CCDiffError, match="does not sample by 'heun'"):
        make_set(shipped_generator(), tmp_path, tmp_path / "s", 2, scheduler="heun")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("takes", "words"), [({"caption"}, "takes no boxes"), ({"hbb", "caption"}, "drawn as its HBB"), ({"obb"}, None), ({"hbb", "obb"}, None)]
)
def test_what_is_said_of_boxes(takes: set[str], words: str | None) -> None:
    said = dataclasses.replace(METHODS["ccdiff"], takes=frozenset(takes)).of_boxes()
    assert said is None if words is None else said is not None and words in said and said.startswith("CC-Diff takes")
