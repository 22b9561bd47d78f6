"""Generator folders from others: whatever `ccdiff.json`, the index or the weights hold ends in one message."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ccdiff_cli
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.generator import generator_key, read_generator
from ccdiff_cli.synthesis.worker import load_pipeline

TINY = Path(ccdiff_cli.__file__).parent / "weights" / "tiny"


@pytest.fixture
def generator(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "g"))


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "x"}, "recipe: expected an object, found 'x'"),
        ({"recipe": {"sampling": [1]}}, "recipe.sampling: expected an object"),
        ({"recipe": {"sampling": {"steps": True}}}, "recipe.sampling.steps: expected a whole number, found True"),
        ({"recipe": {"sampling": {"guidance_scale": 0.5}}}, "recipe.sampling.guidance_scale: "),
        ({"recipe": {"denoiser": {"top_k": 10**30}}}, "recipe.denoiser.top_k: "),
        ({"recipe": {"caption_style": "loud"}}, "recipe.caption_style: expected 'plain', 'short', 'measured', 'phrases'"),
        ({"classes": [{}]}, r"classes\[0\]: expected a string, found an object of 0"),
        ({"classes": ["a", "a"]}, "a name stands there twice"),
        ({"classes": ["a\x1b[31m"]}, "printable"),
        ({"picture_size": 0}, "picture_size: "),
        ({"picture_size": 1e3}, "picture_size: expected a whole number"),
        ({"data": {"sources": [1]}}, r"data.sources\[0\]: expected a string"),
        ({"files": {"x": "y"}}, r"files.x: "),
    ],
)
def test_values_of_a_wrong_kind(generator, values, message):
    change(generator / "ccdiff.json", **values)
    with pytest.raises(CCDiffError, match=message):
        read_generator(generator)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": "\\ud800"}', "\xff"],
)
def test_no_json_at_all(generator, text):
    (generator / "ccdiff.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CCDiffError, match=r"ccdiff\.json"):
        read_generator(generator)


@pytest.mark.parametrize(
    ("part", "named", "message"),
    [
        ("unet", ["os", "system"], "system of os is no class that generators have"),
        ("unet", ["diffusers", "UNet2DConditionModel"], "no class that generators have"),
        ("tokenizer", ["ccdiff_cli.cli", "main"], "no class that generators have"),
        ("vae", 3, "vae: .*expected"),
        ("text_encoder", [None, None], "text_encoder"),
        ("another", ["os", "system"], "another: no part that generators have"),
    ],
)
def test_no_class_but_the_known_ones_is_imported(generator, part, named, message):
    change(generator / "model_index.json", **{part: named})
    with pytest.raises(CCDiffError, match=message):
        load_pipeline(str(generator), "cpu", "float32")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "image_encoder", "resampler"])
@pytest.mark.parametrize("damage", ["missing", "not a number", "another shape", "torn", "no weights"])
def test_weights(generator, part, damage):
    (path,) = (generator / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(n for n, value in tensors.items() if value.is_floating_point() and value.ndim > 1)[0]
    if damage == "missing":
        del tensors[name]
    elif damage == "not a number":
        tensors[name].view(-1)[-1] = float("nan")
    elif damage == "another shape":
        tensors[name] = torch.zeros(3, 5)
    save_file(tensors, path, metadata={"format": "pt"})
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no weights":
        path.unlink()
    with pytest.raises(CCDiffError, match=f"the part {part} lacks|of the part {part} holds|cannot (be )?load"):
        load_pipeline(str(generator), "cpu", "float32")


def test_files_that_changed_after_training(generator):
    from ccdiff_cli.generator import GENERATOR_FILE, part_hashes

    known = {name: digest for name, digest in part_hashes(generator).items() if name != GENERATOR_FILE}
    before = generator_key(generator)
    change(generator / GENERATOR_FILE, files=known)
    assert generator_key(generator) != before, "it holds its own description"
    change(generator / "scheduler" / "scheduler_config.json", beta_start=0.1)
    with pytest.raises(CCDiffError, match=r"scheduler_config\.json is changed"):
        generator_key(generator)
    (generator / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CCDiffError, match=r"scheduler_config\.json is missing"):
        generator_key(generator)


def test_the_shipped_generator_is_whole():
    load_pipeline(str(TINY), "cpu", "float32")
