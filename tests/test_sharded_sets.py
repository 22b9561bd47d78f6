"""What takes a set of shards comes to what the same pictures in one folder give, without their labels in memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ccdiff_cli import bounds
from ccdiff_cli.dataset import PictureSet, in_memory, key_of_shards, read_set, sum_counts, write_manifest, write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.evaluation import EvaluateOptions, evaluate, run
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.inspection import InspectOptions, inspect_set
from ccdiff_cli.recipes import Recipe, load_recipe
from ccdiff_cli.spooled import Spooled
from ccdiff_cli.synthesis import accept_set
from ccdiff_cli.trainability import ExperimentConfig, eval_trainability, swap_labels
from ccdiff_cli.training.denoiser import training_items
from tests.rawsets import files_of

from .detectors.small import TINY, make_set
from .test_evaluation import OPTIONS, small_clip, small_extractor
from .trainability.fake import FakeFits

LAYOUT = {"layout": {"source": "augmented", "picture": "a-train-001.png"}}


def in_shards(flat: PictureSet, root: Path, size: int) -> Path:
    """The same pictures and labels in shards of so many."""
    shards, counts = [], []
    for start in range(0, len(flat.scenes), size):
        some = flat.scenes[start : start + size]
        folder = root / "shards" / f"{start // size:05d}"
        (folder / "images").mkdir(parents=True)
        for scene in some:
            os.link(str(scene.path), folder / "images" / scene.file_name)
        hashes = {scene.file_name: flat.hashes[scene.file_name] for scene in some}
        part = write_set(folder, some, flat.classes, kind="synthetic", details={}, picture_hashes=hashes)
        shards.append({"name": folder.name, "content": part.content})
        counts.append(part.manifest["counts"])
    told = {"kind": "synthetic", "classes": list(flat.classes), "counts": sum_counts(counts), "content": key_of_shards(shards)}
    write_manifest(root, {**told, "shards": shards, "pictures": {}})
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    make_set(root / "real", {"train": 8, "test": 6})
    flat = make_set(root / "flat" / "made", {"train": 9, "val": 2}, kind="synthetic", tag="s", seed=1, provenance=LAYOUT)
    in_shards(flat, root / "shards" / "made", 4)
    return root


def told(results: dict) -> dict:
    """Results without what names the set's key."""
    return {name: value for name, value in results.items() if name not in ("sets", "leak_check")}


def test_labels_are_read_as_they_are(sets):
    flat, whole = read_set(sets / "flat" / "made"), read_set(sets / "shards" / "made")
    assert isinstance(whole.scenes, Spooled) and whole.hashes == flat.hashes and whole.classes == flat.classes
    plain = [s.replace(path=None) for s in flat.scenes]
    assert [s.replace(path=None) for s in whole.scenes] == plain and all(Path(str(s.path)).is_file() for s in whole.scenes)
    assert [s.file_name for s in whole.split("val")] == [s.file_name for s in flat.split("val")] and not whole.split("test")
    assert in_memory(whole).scenes == tuple(whole.scenes) and in_memory(flat) is flat


def test_an_evaluation_comes_to_the_same(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_extractor", small_extractor)
    monkeypatch.setattr(run, "find_clip", small_clip)
    made = {
        name: evaluate(sets / "real", [sets / name / "made"], tmp_path / name, EvaluateOptions(**OPTIONS), detector=TINY)
        for name in ("flat", "shards")
    }
    assert told(made["flat"]) == told(made["shards"]) and made["shards"]["rows"]["made"]["pictures"] == 9
    for name in ("table.md", "report.html"):
        assert (tmp_path / "flat" / name).read_text().replace("flat", "") == (tmp_path / "shards" / name).read_text().replace("shards", "")


def test_an_experiment_draws_the_same_pictures(sets, tmp_path, monkeypatch):
    made, drawn = {}, {}
    config = ExperimentConfig(detector=TINY, seeds=(0, 1), samples=50, arms={"synthetic": [0.5, 1]})
    for name in ("flat", "shards"):
        fakes = FakeFits().install(monkeypatch)
        made[name] = eval_trainability(sets / "real", sets / name / "made", tmp_path / name, config)
        drawn[name] = fakes.log
    assert drawn["flat"] == drawn["shards"] and told(made["flat"]) == told(made["shards"])
    assert made["flat"]["leak_check"]["checks"] == made["shards"]["leak_check"]["checks"]


def test_labels_are_exchanged_and_turned_as_they_are_asked_for(sets):
    flat, whole = (read_set(sets / name / "made").split("train") for name in ("flat", "shards"))
    swapped = [swap_labels(scenes) for scenes in (flat, whole)]
    assert [[s.instances for s in some or ()] for some in swapped] == [[s.instances for s in (swapped[0] or ())]] * 2
    recipe: Recipe = load_recipe("tiny", {"denoiser.symmetries": 4, "denoiser.balance": 0.5})
    items = [training_items(scenes, recipe) for scenes in (flat, whole)]
    assert len(items[0]) >= 4 * len(flat) and [i.latent for i in items[0]] == [i.latent for i in items[1]]
    assert [(i.caption, i.scene.instances) for i in items[0]] == [(i.caption, i.scene.instances) for i in items[1]]


def test_what_needs_all_labels_at_once_says_what_to_do(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "free_memory", lambda: 1000)
    with pytest.raises(CCDiffError, match=r"looking at all 11 pictures together takes about .* of memory") as caught:
        inspect_set(sets / "shards" / "made", tmp_path, InspectOptions())
    assert str(sets / "shards" / "made" / "shards" / "00000") in str(caught.value)


def copied(sets, tmp_path):
    return shutil.copytree(sets / "shards" / "made", tmp_path / "made")


def test_a_shard_that_cannot_be_accepted_leaves_all_as_they_were(sets, tmp_path):
    root = copied(sets, tmp_path)
    for name, box in (("00000", [1, 1, 5, 5]), ("00001", [1, 1, 0, 5])):
        path = root / "shards" / name / "annotations.json"
        labels = json.loads(path.read_text())
        x, y, w, h = box
        labels["annotations"][0] |= {"bbox": box, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        path.write_text(json.dumps(labels))
    before = files_of(root)
    with pytest.raises(CCDiffError, match="has no area"):
        accept_set(root)
    assert files_of(root) == before


@pytest.mark.parametrize("counts", ["x", {}, {"pictures": 1}, {"pictures": 1, "objects": 1, "per_split": "x", "per_class": {}}, None])
@pytest.mark.parametrize("file", ["manifest.json", "shards/00001/manifest.json"])
def test_counts_that_are_none_are_refused(sets, tmp_path, file, counts):
    root = copied(sets, tmp_path)
    manifest = json.loads((root / file).read_text())
    (root / file).write_text(json.dumps({**manifest, "counts": counts}))
    with pytest.raises(CCDiffError, match=r"manifest\.json: counts"):
        accept_set(root)
    with pytest.raises(CCDiffError, match=r"manifest\.json: counts"):
        export_set(root, tmp_path / "out", ExportOptions(format="coco"))
