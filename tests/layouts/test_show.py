"""``ccdiff layout``: a source shown, and the sources compared with real layouts that they have not seen."""

import json

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import sha256_file
from ccdiff_cli.layouts import LayoutOptions
from ccdiff_cli.layouts.llm import Writer
from ccdiff_cli.layouts.show import compare_layouts, show_layouts
from ccdiff_cli.layouts.statistics import MEASURES
from tests.layouts.test_sampler import CLASSES, harbour


@pytest.fixture(autouse=True)
def untrained(monkeypatch, tmp_path):
    """The diffusion model after a step, nowhere else kept."""
    monkeypatch.setattr("ccdiff_cli.layouts.diffusion.STEPS", 1)
    monkeypatch.setattr("ccdiff_cli.layouts.diffusion.DRAW_STEPS", 2)
    monkeypatch.setenv("CCDIFF_CACHE", str(tmp_path / "kept"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """48 harbours: see test_sampler."""
    root = tmp_path_factory.mktemp("harbours")
    (root / "images").mkdir()
    scenes, hashes = [harbour(k).replace(split="train") for k in range(48)], {}
    for scene in scenes:
        Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(root / "images" / scene.file_name)
        hashes[scene.file_name] = sha256_file(root / "images" / scene.file_name)
    write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
    return root


class OneShip:
    """A language model that knows one answer."""

    name = "one ship"

    def answer(self, messages, seed, temperature):
        return "ship: [256, 256, 80, 16, 0]"


def test_sources_are_compared_with_layouts_they_have_not_seen(prepared, tmp_path):
    made = compare_layouts(prepared, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text()) == made and made["pictures"] == [24, 24]
    table = made["distances"]
    assert list(table) == ["real", "set", "augmented", "mixed", "sampled", "diffusion"] and all(
        set(row) == set(MEASURES) for row in table.values()
    )
    assert table["mixed"]["together"] > table["set"]["together"], "two pictures at once put classes together that seldom are"
    assert table["mixed"]["counts"] > table["sampled"]["counts"]
    assert all((tmp_path / f"{source}.png").is_file() for source in table)
    assert compare_layouts(prepared, tmp_path) == made and len(list((tmp_path / "kept").rglob("*.safetensors"))) == 1


def test_as_many_of_each_as_asked_for_and_a_language_model_among_them(prepared, tmp_path):
    writer = Writer(OneShip(), captions=["one ship"], cache=tmp_path / "cache")
    made = compare_layouts(prepared, tmp_path, n=7, sources=["set", "llm"], writer=writer)
    assert made["llm"]["written"] == 7 and made["n"] == 7
    rows = made["distances"]
    assert rows["llm"]["counts"] > rows["set"]["counts"] and rows["llm"]["classes"] > rows["set"]["classes"]
    whole = compare_layouts(prepared, tmp_path, sources=["set"])
    assert whole["llm"] is None and whole["distances"]["real"] != rows["real"], "the yardstick has seven layouts, too"


def test_layouts_are_shown_with_their_numbers(prepared, tmp_path):
    made = show_layouts(prepared, tmp_path, 5, LayoutOptions(source="sampled"))
    assert len((tmp_path / "layouts.jsonl").read_text().splitlines()) == 5 and (tmp_path / "layouts.png").is_file()
    assert made["layouts"].keys() == made["real"].keys() and made["llm"] is None
    with pytest.raises(CCDiffError, match="need a language model"):
        show_layouts(prepared, tmp_path, 5, LayoutOptions(source="llm"))
