"""The index of embeddings: what it holds, that it is kept, no leaks, the published way, the generator's own encoders."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from ccdiff_cli import retrieval
from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.pretrained import Clip
from ccdiff_cli.references import Reference, ReferenceBank
from ccdiff_cli.retrieval import EmbeddingSimilarity, OwnEncoders, linear_map, open_similarity
from ccdiff_cli.scene import ClassList, Scene
from tests.foreign import tiny_clip
from tests.models.small import make_pipeline
from tests.rawsets import vhr10

WIDE = [("ship", (5, 5, 35, 30)), ("vehicle", (100, 20, 140, 60)), ("ship", (150, 5, 180, 40))]
BOXES = {f"{k:03d}": WIDE[: 1 + k % 3] for k in range(6)}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five train pictures of up to five overlapping tiles each."""
    splits = {"train": [f"{k:03d}" for k in range(5)], "test": ["005"]}
    raw = vhr10(tmp_path_factory.mktemp("raw") / "raw", BOXES, size=(192, 64), splits=splits)
    return prepare_dataset(raw, tmp_path_factory.mktemp("set") / "d", PrepareOptions(tile=64, overlap=32, keep_empty=True)).root


def test_scores_are_clips_cosines(root, clip_folder):
    prepared = read_set(root)
    similarity = open_similarity(str(clip_folder), prepared)
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    pictures = [Image.open(str(s.path)) for s in prepared.split("train")]
    for caption in (prepared.scenes[0].caption, "no caption of the set"):
        inputs = processor(text=[caption], images=pictures, return_tensors="pt", padding="max_length", max_length=77, truncation=True)
        with torch.no_grad():
            out = model(**inputs)
        cosine = (out.image_embeds @ out.text_embeds[0]).numpy()
        assert similarity.scores(Scene("a.png", 64, 64, (), caption=caption)) == pytest.approx(cosine, abs=2e-3)  # float16 on disk


def test_the_index_is_made_once_and_again_where_it_does_not_fit(root, clip_folder, tmp_path, monkeypatch):
    prepared, seen, pictures = read_set(root), [], Clip.pictures
    monkeypatch.setattr(Clip, "pictures", lambda self, images: seen.append(len(images)) or pictures(self, images))

    def opened(source=clip_folder, **options):
        seen.clear()
        similarity = open_similarity(str(source), prepared, **options)
        return similarity, root / "references" / f"index-{similarity.key}.safetensors"

    first, path = opened()
    whole = path.read_bytes()
    again, _ = opened()
    assert not seen and (again.pictures == first.pictures).all() and again.key == first.key
    for damage in (whole[:-40], b"", b"\xff" * 200):
        path.write_bytes(damage)
        assert opened()[0].key == first.key and sum(seen) == len(prepared.split("train")) and path.read_bytes() == whole
    assert opened(style="short")[0].key != first.key and opened(tiny_clip(tmp_path / "other", seed=1))[0].key != first.key
    assert opened(tiny_clip(tmp_path / "same"))[0].key == first.key  # the same weights in another folder


def test_an_interrupted_index_goes_on(root, clip_folder, monkeypatch):
    monkeypatch.setattr(retrieval, "ROWS", 10)
    prepared, seen, pictures = read_set(root), [], Clip.pictures

    def stop(stage, done, total):
        if (stage, done) == ("indexing pictures", 20):
            raise KeyboardInterrupt

    def opened(**options):
        return open_similarity(str(clip_folder), prepared, style="short", **options)

    whole = opened()
    path = root / "references" / f"index-{whole.key}.safetensors"
    data = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(Clip, "pictures", lambda self, images: seen.append(len(images)) or pictures(self, images))
    with pytest.raises(KeyboardInterrupt):
        opened(progress=stop)
    assert opened().key == whole.key and path.read_bytes() == data
    assert sum(seen) == len(prepared.split("train")) == 25 and not path.with_suffix("").exists()


def test_never_the_picture_itself_or_a_tile_of_its_source(root, clip_folder):
    prepared, bank = read_set(root), ReferenceBank.read(root)
    bank.similarity = open_similarity(str(clip_folder), prepared)
    assert len({s.source for s in prepared.split("train")}) == 5 and len(prepared.split("train")) == 25
    for scene in prepared.scenes:
        for seed in range(8):
            for top_k in (1, 8, 100):
                chosen = bank.choose(scene, seed=seed, top_k=top_k)
                assert chosen.background is not None and chosen.background.source != scene.source
                assert all(r is None or r.source != scene.source for r in chosen.instances)


def test_the_published_way_takes_the_best_and_ours_draws_among_the_best(root, clip_folder):
    prepared, bank = read_set(root), ReferenceBank.read(root)
    bank.similarity = open_similarity(str(clip_folder), prepared)
    scene = prepared.split("test")[0]
    order = np.argsort(-bank.similarity.scores(scene), kind="stable")
    assert {bank.choose(scene, seed=s, top_k=1).background for s in range(9)} == {bank.backgrounds[order[0]]}
    drawn = {bank.choose(scene, seed=s, top_k=3).background.key for s in range(60)}
    assert drawn == {bank.backgrounds[k].key for k in order[:3]}
    assert bank.choose(scene, seed=5, top_k=3) == bank.choose(scene, seed=5, top_k=3)
    words = ReferenceBank.read(root).choose(scene, seed=5, top_k=3)
    assert words.instances == bank.choose(scene, seed=5, top_k=3).instances  # crops are found as ever


@pytest.mark.filterwarnings("ignore:a text of")
def test_own_encoders_are_joined_by_a_linear_map(root):
    prepared, pipe = read_set(root), make_pipeline()
    similarity = open_similarity("own", prepared, pipe=pipe, style="short")
    train, own = prepared.split("train"), OwnEncoders(pipe)
    pictures = own.pictures([Image.open(str(s.path)).convert("RGB") for s in train])
    texts = np.stack([own.text(caption_of(s, "short")) for s in train])
    mapped = pictures @ linear_map(pictures, texts)
    expected = mapped @ texts[3] / np.linalg.norm(mapped, axis=1)
    assert similarity.scores(train[3].replace(caption=caption_of(train[3], "short"))) == pytest.approx(expected, abs=2e-3)


def test_the_linear_map_recovers_one():
    rng = np.random.default_rng(0)
    pictures, truth = rng.normal(size=(400, 12)), rng.normal(size=(12, 7))
    found = linear_map(pictures, pictures @ truth + 0.01 * rng.normal(size=(400, 7)))
    assert np.abs(found - truth).max() < 0.05 * np.abs(truth).max()


def test_texts_are_encoded_once_whatever_the_order():
    calls = []

    def encode(text):
        calls.append(text)
        return np.array([len(text), 1.0]) / np.hypot(len(text), 1.0)

    similarity = EmbeddingSimilarity(np.eye(2, dtype=np.float32), {"known": np.ones(2, np.float32)}, encode, "key")
    similarity.remember(["b", "known", "a", "b"])
    similarity.text("a")
    assert calls == ["b", "a"] and (similarity.text("known") == 1).all()


def test_what_cannot_be_retrieved_with(root, tmp_path, monkeypatch):
    prepared = read_set(root)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CCDiffError, match=r"no such folder, and not a hub name .*'runs/clip'"):  # no network is asked
        open_similarity("runs/clip", prepared)
    with pytest.raises(CCDiffError, match=r"recipe key retrieval: no such folder"):
        open_similarity(str(tmp_path / "none"), prepared, where="recipe key retrieval")
    with pytest.raises(CCDiffError, match="no generator"):
        open_similarity("own", prepared)
    pipe = make_pipeline()
    pipe.image_encoder = None
    with pytest.raises(CCDiffError, match="no image encoder"):
        open_similarity("own", prepared, pipe=pipe)


def test_an_index_of_another_set_of_backgrounds_is_noticed():
    backgrounds = [Reference(f"b{k}.png", "", 64, 64, f"s{k}", "background", f"b{k}") for k in range(3)]
    similarity = EmbeddingSimilarity(np.eye(2, dtype=np.float32), {"": np.ones(2, np.float32)}, lambda text: np.ones(2), "key")
    bank = ReferenceBank(ClassList(("ship",)), [], backgrounds, similarity)
    with pytest.raises(CCDiffError, match="2 scores for 3 backgrounds"):
        bank.choose(Scene("a.png", 9, 9, ()), seed=0)
