"""The reference bank: the rule, no leaks, draws by seed."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli import references
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.prepare import prepare_dataset
from ccdiff_cli.references import LARGEST, CaptionSimilarity, Reference, ReferenceBank
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.rawsets import vhr10

CLASSES = ClassList(("ship", "vehicle"))


def crop(k, width, height, source=None, category="ship"):
    return Reference(f"{k:04d}.png", category, width, height, source or f"s{k}", "instance", f"k{k}")


def bank(instances, captions=()):
    backgrounds = [Reference(f"b{k}.png", "", 64, 64, f"s{k}", "background", f"b{k}") for k in range(len(captions))]
    return ReferenceBank(CLASSES, instances, backgrounds, CaptionSimilarity(captions))


def scene(*boxes, source="own", caption=""):
    return Scene("a.png", 100, 100, tuple(Instance.from_hbb(c, b) for c, b in boxes), source=source, caption=caption)


def test_the_published_rule_takes_the_nearest_aspect_ratio():
    b = bank([crop(0, 30, 10), crop(1, 10, 10), crop(2, 20, 10), crop(3, 21, 10, category="vehicle")])
    found = b.choose(scene(("ship", (0, 0, 40, 20)), ("vehicle", (0, 0, 1, 9))), seed=0, top_k=1)
    assert [r.key for r in found.instances if r] == ["k2", "k3"] and found.background is None


def test_only_the_largest_crops_count():
    small_but_perfect = crop(999, 10, 10)
    b = bank([*(crop(k, 40, 20) for k in range(LARGEST)), small_but_perfect])
    box = ("ship", (0, 0, 10, 10))
    assert b.choose(scene(box), seed=0, top_k=1).instances[0].width == 40
    # a source left out makes room: the largest 200 of those that may be used
    assert b.choose(scene(box, source="s7"), seed=0, top_k=1).instances[0] == small_but_perfect


def test_never_of_its_own_source_and_none_where_nothing_is_left():
    b = bank([crop(0, 10, 10, "own"), crop(1, 90, 10)], ["This is ships.", "This is cars."])
    own = scene(("ship", (0, 0, 9, 9)), ("vehicle", (0, 0, 9, 9)), source="own")
    for seed in range(20):
        first, second = b.choose(own, seed=seed).instances
        assert first.key == "k1" and second is None
        assert b.choose(own, seed=seed, exclude_source="s1").instances[0].key == "k0"
        assert b.choose(scene(source="s0"), seed=seed).background.key == "b1"
    assert b.choose(scene(("ship", (0, 0, 9, 9)), source="s1"), seed=0, top_k=1, exclude_source="").instances[0].key == "k0"


def test_draws_depend_on_seed_and_instance_alone():
    b = bank([crop(k, 10 + k % 3, 10) for k in range(40)], [f"This is scene {'x' * k}" for k in range(5)])
    box = ("ship", (0, 0, 10, 10))
    assert b.choose(scene(box, box, box), seed=3) == b.choose(scene(box, box, box), seed=3)
    assert b.choose(scene(box, box, box), seed=3).instances[:2] == b.choose(scene(box, box), seed=3).instances
    drawn = Counter(r.key for s in range(200) for r in b.choose(scene(box), seed=s, top_k=8).instances)
    assert len(drawn) == 8 and min(drawn.values()) > 5
    with pytest.raises(CCDiffError, match="top_k 0"):
        b.choose(scene(box), seed=0, top_k=0)


def test_backgrounds_by_caption():
    head = "This is an aerial image of "
    captions = [head + "ships. center: 3 ships", head + "vehicles. left: 2 vehicles", head + "bridges. top: 1 bridge east-west"]
    b = bank([], captions)
    for k, caption in enumerate(captions):
        assert b.choose(scene(caption=caption.replace("3", "4"), source="x"), seed=0, top_k=1).background.key == f"b{k}"
    similar = CaptionSimilarity(captions).scores(scene(caption=captions[0]))
    assert similar[0] == pytest.approx(1, abs=1e-6) and similar[1] == pytest.approx(0, abs=1e-6)  # the common head weighs nothing
    assert (CaptionSimilarity(captions).scores(scene(caption="")) == 0).all()


@pytest.mark.parametrize("spectra", [("",), ("", "infrared"), ("infrared",)])
def test_a_large_bank_is_searched_by_a_tree_that_finds_what_looking_at_all_finds(monkeypatch, spectra):
    rng = np.random.default_rng(0)
    words = ["ships", "vehicles", "bridges", "left", "right", "center", "top", "tennis", "court", "dam"]

    def said():
        return "An image of " + " ".join(rng.choice(words, rng.integers(1, 6)))

    backgrounds = [Reference(f"{k}.png", "", 64, 64, f"s{k // 3}", "background", f"b{k}", spectra[k % len(spectra)]) for k in range(1500)]
    captions = [said() for _ in backgrounds]
    asked = [scene(source=f"s{k}", caption=said() if k % 9 else ("An image" if k else captions[0])) for k in range(120)]
    asked += [s.replace(provenance={"spectrum": "infrared"}) for s in asked[:40]]

    def drawn():
        similarity = CaptionSimilarity(captions)

        def exact(s):  # the tree adds up in float64
            calls.append(s)
            return np.round(similarity._table[2].astype(np.float64) @ similarity._vector(s.caption), 7)

        monkeypatch.setattr(similarity, "scores", exact)
        b = ReferenceBank(CLASSES, [], backgrounds, similarity)
        return [b.choose(s, seed=k, top_k=top).background.key for k, s in enumerate(asked) for top in (1, 3, 8, 50)]

    calls = []
    all_of_them = drawn()
    assert len(calls) == len(all_of_them) and len(set(all_of_them)) > 100
    calls.clear()
    monkeypatch.setattr(references, "SCANNED", 100)
    assert drawn() == all_of_them
    assert 0 < len(calls) < len(all_of_them) / 4, "words that no background knows are the only ones that all are asked for"


def test_another_similarity_can_take_its_place():
    b = bank([], ["one", "two", "three"])

    class Last:
        def scores(self, scene):
            return np.array([0.0, 0.0, 1.0])

    b.similarity = Last()
    assert b.choose(scene(caption="one"), seed=0, top_k=1).background.key == "b2"


def test_image_blacks_out_the_background(tmp_path):
    pixels = np.full((4, 6, 4), 200, np.uint8)
    pixels[..., 3] = 255
    pixels[:, :3, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "c.png")
    image = np.asarray(Reference(str(tmp_path / "c.png"), "ship", 6, 4, "s", "instance", "k").image())
    assert image.shape == (4, 6, 3) and (image[:, :3] == 0).all() and (image[:, 3:] == 200).all()
    with pytest.raises(CCDiffError, match="does not open"):
        Reference(str(tmp_path / "none.png"), "ship", 6, 4, "s", "instance", "k").image()


@pytest.fixture
def prepared(tmp_path):
    boxes = {f"{k:03d}": [("ship", (5, 5, 30 + k, 30))] for k in range(4)}
    prepare_dataset(vhr10(tmp_path / "raw", boxes, splits={"train": ["000", "001", "002"], "test": ["003"]}), tmp_path / "out")
    return tmp_path / "out"


def test_reading_and_keys(prepared):
    b = ReferenceBank.read(prepared)
    assert {r.source for r in b.instances["ship"]} == {r.source for r in b.backgrounds} == {"000", "001", "002"}
    keys = [r.key for r in (*b.instances["ship"], *b.backgrounds)]
    assert len(set(keys)) == 6 and all(len(k) == 16 for k in keys)
    assert b.instances["ship"][0].source == "002"  # largest first
    assert ReferenceBank.read(prepared).instances == b.instances


def test_broken_banks(prepared):
    path = prepared / "references" / "references.json"
    found = json.loads(path.read_text())
    for change, message in (
        ({"file": "../x.png"}, "leaves its folder"),
        ({"width": 0}, "greater than or equal to 1"),
        ({"file": "ship/none.png"}, "is missing"),
    ):
        path.write_text(json.dumps({"instances": [{**found["instances"][0], **change}]}))
        with pytest.raises(CCDiffError, match=message):
            ReferenceBank.read(prepared)
    path.write_text("{}")
    with pytest.raises(CCDiffError, match="instances: the key is missing"):
        ReferenceBank.read(prepared)
    path.unlink()
    with pytest.raises(CCDiffError, match="no reference bank"):
        ReferenceBank.read(prepared)
