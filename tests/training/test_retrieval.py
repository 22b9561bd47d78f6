"""Backgrounds by embedding through the chain: a recipe asks for it, training and synthesis use it, plan and manifest say so."""

from pathlib import Path

import pytest

from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import read_json
from ccdiff_cli.generator import read_generator
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.recipes import Recipe, load_recipe
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.retrieval import EmbeddingSimilarity
from ccdiff_cli.training import train
from tests.foreign import tiny_clip
from tests.synthesis.grouped import make_set


def background(prepared: Path, out: Path) -> list:
    """(source of the layout, source of its background) for every picture of a synthetic set."""
    sources = {r.key: r.source for r in ReferenceBank.read(prepared).backgrounds}
    return [(s.source, sources[s.provenance["references"]["background"]]) for s in read_set(out).scenes]


def test_recipes_without_the_key_have_the_identity_they_always_had(recipe: Recipe) -> None:
    assert recipe.retrieval == "words" and "retrieval" not in recipe.model_dump(mode="json")
    assert "retrieval" not in load_recipe("tiny").model_dump(mode="json")
    assert load_recipe("ccdiffpp-sd14-dior").model_dump(mode="json")["retrieval"] == "openai/clip-vit-large-patch14"


def test_by_words_nothing_changes(generator: Path, prepared: Path, tmp_path: Path) -> None:
    make_set(generator, prepared, tmp_path / "s", 3, num_processes=1)
    manifest = read_json(tmp_path / "s" / "manifest.json")
    assert sorted(manifest["references"]) == ["key", "top_k"] and manifest["references"]["top_k"] == 8
    assert not list((prepared / "references").glob("index-*"))


def test_by_own_encoders(recipe_file: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    choose = ReferenceBank.choose

    def watched(self, scene, **options):
        chosen = choose(self, scene, **options)
        asked.append((scene.caption, type(self.similarity).__name__))
        assert chosen.background is not None and chosen.background.source != scene.source
        return chosen

    monkeypatch.setattr(ReferenceBank, "choose", watched)
    out = tmp_path / "g"
    train(load_recipe(recipe_file, {"retrieval": "own", "denoiser.train.steps": 2}), prepared, out, cpu=True)
    assert read_generator(out)["recipe"]["retrieval"] == "own"
    styled = {caption_of(scene, "short") for scene in read_set(prepared).scenes}  # short captions do not change with symmetries
    assert {kind for _, kind in asked} == {EmbeddingSimilarity.__name__} and {caption for caption, _ in asked} <= styled
    monkeypatch.undo()

    made = make_set(out, prepared, tmp_path / "s", 6, num_processes=1)  # as in training, unless told otherwise
    manifest = read_json(tmp_path / "s" / "manifest.json")
    plan = read_json(tmp_path / "s" / "plan.json")["identity"]["references"]
    assert manifest["references"] == plan and plan["retrieval"] == "own"
    assert (prepared / "references" / f"index-{plan['index']}.safetensors").is_file()
    assert all(own != other for own, other in background(prepared, tmp_path / "s"))
    assert make_set(out, prepared, tmp_path / "s2", 6, num_processes=1)["content"] == made["content"]
    with pytest.raises(CCDiffError, match=r"references\.retrieval was own, now None"):
        make_set(out, prepared, tmp_path / "s", 6, num_processes=1, retrieval="words")
    for path in (prepared / "references").glob("index-*"):
        path.unlink()


def test_a_clip_that_is_not_there_is_noticed_before_anything_is_trained(recipe_file: Path, prepared: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, {"retrieval": str(tmp_path / "none")})
    with pytest.raises(CCDiffError, match="recipe key retrieval: no such folder"):
        train(recipe, prepared, tmp_path / "g", cpu=True)
    assert not list((tmp_path / "g" / "train").rglob("*.safetensors"))


def test_by_a_clip(generator: Path, prepared: Path, tmp_path: Path) -> None:
    clip = str(tiny_clip(tmp_path / "clip"))
    made = make_set(generator, prepared, tmp_path / "s", 4, num_processes=1, retrieval=clip, top_k=1)
    assert read_json(tmp_path / "s" / "manifest.json")["references"]["top_k"] == 1
    assert all(own != other for own, other in background(prepared, tmp_path / "s"))
    assert make_set(generator, prepared, tmp_path / "s", 4, num_processes=1, retrieval=clip, top_k=1)["content"] == made["content"]
    with pytest.raises(CCDiffError, match="--retrieval: no such folder"):
        make_set(generator, prepared, tmp_path / "t", 4, retrieval=str(tmp_path / "none"))
    with pytest.raises(CCDiffError, match="top_k: expected greater than or equal to 1"):
        make_set(generator, prepared, tmp_path / "t", 4, top_k=0)
    for path in (prepared / "references").glob("index-*"):
        path.unlink()
