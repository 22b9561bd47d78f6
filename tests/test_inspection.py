"""What `inspect` finds is what was put in: every suspicion planted once, leaks planted across splits, counts known beforehand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli import duplicates
from ccdiff_cli.cli import main
from ccdiff_cli.dataset import write_set
from ccdiff_cli.duplicates import Look, alike, look_at
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import sha256_file
from ccdiff_cli.geometry import corners_to_le90, hbb_of, le90_to_corners
from ccdiff_cli.inspection import facts as counted
from ccdiff_cli.inspection import inspect_set
from ccdiff_cli.inspection.facts import APART, NO_AREA, OUTSIDE, REACHES_OUT, SUSPICIONS, TINY, TWICE
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests import rawsets
from tests.rawsets import files_of

CLASSES = ClassList(("<b>ship</b>", "pla$ne", "harbor"))
SHIP, PLANE, HARBOR = CLASSES


def landscape(seed: int, size: int = 96) -> Image.Image:
    """A picture with large shapes, as aerial pictures have: its thumbnail is not noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def made(root, scenes, pictures):
    hashes = {}
    for scene, picture in zip(scenes, pictures, strict=True):
        path = root / "images" / scene.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        hashes[scene.file_name] = sha256_file(path)
    return write_set(root, scenes, CLASSES, kind="prepared", details={"skipped": {"odd things": 3}}, picture_hashes=hashes)


def obb(*box, category=SHIP, **said):
    return Instance.from_corners(category, le90_to_corners(box), **said)


@pytest.fixture
def plain(tmp_path):
    """Three pictures, four objects, nothing wrong."""
    scenes = [
        Scene("a.png", 96, 96, (obb(40, 40, 40, 10, 0.5), obb(70, 70, 12, 11, 0.3, difficult=True)), split="train", source="a"),
        Scene("b.png", 96, 96, (Instance.from_hbb(PLANE, (10, 10, 60, 90)),), split="train", source="b"),
        Scene("c.png", 96, 96, (obb(50, 50, 30, 8, -1.4),), split="test", source="c"),
    ]
    return made(tmp_path / "plain", scenes, [landscape(k) for k in range(3)])


def test_counts_sizes_and_angles(plain, tmp_path):
    facts = inspect_set(plain.root, tmp_path / "out")
    assert (facts["pictures"], facts["objects"], facts["kind"]) == (3, 4, "prepared")
    assert facts["per_class"][SHIP]["per_split"] == {"train": 2, "test": 1} and facts["per_class"][SHIP]["difficult"] == 1
    assert facts["per_class"][PLANE]["oriented"] == 0 and facts["per_class"][HARBOR]["objects"] == 0
    train = facts["per_split"]["train"]
    assert (train["pictures"], train["objects"], train["difficult"], train["pictures_without_objects"]) == (2, 3, 1, 0)
    assert train["objects_per_picture"] == {"mean": 1.5, "median": 1.5, "max": 2, "histogram": {"1": 1, "2": 1}}
    assert facts["picture_sizes"] == {"96 x 96": 3}
    # square roots of the areas: 20, 11.5, 63.2, 15.5
    assert facts["sizes"]["bins"] == {"< 16 px": 2, "16 to 32 px": 1, "32 to 96 px": 1, "> 96 px": 0}
    assert facts["sizes"]["coco"] == {"small": 3, "medium": 1, "large": 0} and sum(facts["sizes"]["histogram"]["counts"]) == 4
    counted = dict(zip(facts["angles"]["centres"], facts["angles"]["counts"], strict=True))
    assert {k: v for k, v in counted.items() if v} == {30: 1, -80: 1}  # 0.5 and -1.4 radians
    assert (facts["angles"]["too_square"], facts["angles"]["without_orientation"]) == (1, 1)
    assert facts["warnings"] == [f"classes without an object: {HARBOR}", f"classes without an object in test: {PLANE}"]
    assert facts["reader"]["skipped"] == {"odd things": 3}
    assert json.loads((tmp_path / "out" / "inspection.json").read_text()) == facts


def test_angles_are_those_of_le90():
    rng = np.random.default_rng(3)
    boxes = [le90_to_corners((50, 50, 30 + k, 10, a)) for k, a in enumerate([*rng.uniform(-4, 4, 50), np.pi / 2, -np.pi / 2, 0.0])]
    boxes += [(*c[2:], *c[:2]) for c in boxes] + [(*c[6:], *c[4:6], *c[2:4], *c[:2])[0:8] for c in boxes]
    found = counted.boxes_of([Scene("a", 9, 9, tuple(Instance.from_corners(SHIP, c) for c in boxes))], CLASSES)
    expected = np.array([corners_to_le90(c) for c in boxes])
    apart = (found.angle - np.degrees(expected[:, 4]) + 90) % 180 - 90
    np.testing.assert_allclose(apart, 0, atol=1e-6)
    assert (found.angle >= -90).all() and (found.angle < 90).all()
    np.testing.assert_allclose(found.sides, expected[:, 2:4], rtol=1e-9)
    np.testing.assert_allclose(found.size**2, expected[:, 2] * expected[:, 3], rtol=1e-9)


def test_every_suspicion_is_found_where_it_was_planted(tmp_path):
    good = obb(48, 48, 40, 20, 0.4)
    near = obb(48.4, 48.2, 40, 20, 0.41)
    crossed = obb(48, 48, 40, 20, 0.4 + np.pi / 2)  # nearly the same HBB at 45 degrees, another object
    instances = (
        good,
        Instance.from_hbb(SHIP, (30, 30, 30, 40)),
        Instance.from_hbb(SHIP, (97, 3, 120, 30)),
        Instance.from_hbb(PLANE, (80, 70, 104, 90)),
        Instance.from_hbb(SHIP, (4, 4, 30, 6)),
        Instance.from_corners(SHIP, le90_to_corners((20, 70, 12, 8, 0.1)), (60, 5, 80, 20)),
        near,
        Instance.from_corners(PLANE, good.corners),
        crossed,
        Instance.from_hbb(PLANE, hbb_of(le90_to_corners((95.3, 60, 1.2, 30, 0)))),
    )
    scenes = [Scene("a.png", 96, 96, instances, split="train", source="a"), Scene("b.png", 96, 96, (good,), split="train", source="b")]
    facts = inspect_set(made(tmp_path / "set", scenes, [landscape(1), landscape(2)]).root, tmp_path / "out")
    found = {(b["reason"], b["object"], b.get("other_object")) for b in facts["suspicious"]["boxes"]}
    assert found == {
        (NO_AREA, 1, None), (OUTSIDE, 2, None), (REACHES_OUT, 3, None), (TINY, 4, None), (TINY, 9, None), (APART, 5, None), (TWICE, 0, 6),
    }  # fmt: skip
    assert facts["suspicious"]["counts"] == {reason: 2 if reason == TINY else 1 for reason in SUSPICIONS}
    assert all(b["picture"] == "a.png" for b in facts["suspicious"]["boxes"])
    page = (tmp_path / "out" / "inspection.html").read_text()
    assert all(f"<h3>{reason}: ".replace("'", "&#39;").replace(">", "&gt;").replace("<h3&gt;", "<h3>") in page for reason in SUSPICIONS)


def test_a_crowd_labelled_twice_is_found_without_comparing_all_with_all(tmp_path):
    rng = np.random.default_rng(0)
    boxes = [(x, y, x + 5, y + 5) for x in range(0, 600, 8) for y in range(0, 600, 8)]
    again = [boxes[k] for k in rng.choice(len(boxes), 40, replace=False)]
    scene = Scene("a.png", 600, 600, tuple(Instance.from_hbb(SHIP, b) for b in boxes + again))
    assert len(list(counted.labelled_twice(counted.boxes_of([scene], CLASSES)))) == 40


def test_leaks_across_splits(tmp_path):
    """A copy, a smaller JPEG copy and a brighter one in another split; a copy within a split; tiles of one source in two splits."""
    base = landscape(5, 128)
    brighter = base.point(lambda v: min(255, int(v * 0.9 + 12)))
    scenes, pictures = [], []
    for name, split, source, image in (
        ("a.png", "train", "a", base),
        ("b.png", "test", "b", base),
        ("c.jpg", "val", "c", base.resize((80, 80))),
        ("d.png", "test", "d", brighter),
        ("e.png", "train", "e", landscape(6)),
        ("f.png", "train", "f", landscape(6)),
        ("g1.png", "train", "g", landscape(7)),
        ("g2.png", "test", "g", landscape(8)),
        ("h1.png", "train", "h", landscape(9)),
        ("h2.png", "train", "h", landscape(9)),
        ("i.png", "train", "i", base.transpose(Image.Transpose.ROTATE_90)),
        ("sea1.png", "train", "j", Image.new("RGB", (96, 96), (20, 40, 70))),
        ("sea2.png", "test", "k", Image.new("RGB", (96, 96), (20, 40, 71))),
    ):
        scenes.append(Scene(name, *image.size, (obb(40, 40, 20, 8, 0.2),), split=split, source=source))
        pictures.append(image)
    facts = inspect_set(made(tmp_path / "set", scenes, pictures).root, tmp_path / "out")["duplicates"]
    across = {tuple(p["pictures"]) for p in facts["across_splits"]}
    assert across == {("a.png", "b.png"), ("a.png", "c.jpg"), ("b.png", "c.jpg"), ("a.png", "d.png"), ("c.jpg", "d.png")} - {
        ("b.png", "c.jpg")  # b.png equals a.png, which stands for both
    }
    assert [p["pictures"] for p in facts["within_a_split"]] == [["e.png", "f.png"]]
    assert facts["alike_tiles_of_one_source"] == 1 and facts["sources_in_two_splits"] == ["g"] and facts["too_plain_to_compare"] == 2


def test_a_leak_is_the_first_warning_and_drawn(tmp_path):
    scenes = [Scene(f"{s}.png", 96, 96, (obb(40, 40, 20, 8, 0.2),), split=s, source=s) for s in ("train", "test")]
    facts = inspect_set(made(tmp_path / "set", scenes, [landscape(1)] * 2).root, tmp_path / "out")
    assert (
        facts["warnings"][0].startswith("leak, pairs of alike pictures in different splits: 1,")
        and "train.png (train) and test.png (test)" in facts["warnings"][0]
    )
    page = (tmp_path / "out" / "inspection.html").read_text()
    assert "In different splits" in page and page.count('alt="train.png"') == 2  # a sample, and one of the pair


def test_of_a_picture_with_tiny_objects_the_most_crowded_part_is_shown(tmp_path):
    crowd = [obb(500 + 20 * x, 700 + 20 * y, 12, 6, 0.3) for x in range(5) for y in range(5)]
    scene = Scene("a.png", 1000, 900, (obb(30, 30, 12, 6, 0.3), *crowd), source="a")
    data = made(
        tmp_path / "set",
        [scene, Scene("b.png", 96, 96, (obb(40, 40, 20, 8, 0.2),), source="b")],
        [landscape(1, 1000).crop((0, 0, 1000, 900)), landscape(2)],
    )
    inspect_set(data.root, tmp_path / "out")
    page = (tmp_path / "out" / "inspection.html").read_text()
    ((side, other, x, y),) = re.findall(r"(\d+) x (\d+) px at (\d+), (\d+)<", page)
    assert side == other == str(round(300 * (12 * 6) ** 0.5 / 24)) and int(x) < 495 and int(y) < 695
    assert int(x) + int(side) > 585 and int(y) + int(side) > 785  # all of the crowd


def test_copies_through_a_third_split_are_not_hidden(tmp_path):
    """Two equal pictures in the test split and one in train: the leak is found whichever comes first."""
    for order in (("test", "test", "train"), ("train", "test", "test"), ("test", "train", "test")):
        scenes = [Scene(f"{k}.png", 96, 96, split=s, source=str(k)) for k, s in enumerate(order)]
        looks = [look_at(str(p)) for p in _saved(tmp_path, [landscape(4)] * 3)]
        facts = counted.duplicates_of(scenes, looks)
        assert len(facts["across_splits"]) + len(facts["within_a_split"]) >= 2 and facts["across_splits"]


def _saved(folder, pictures):
    paths = [folder / f"saved{k}.png" for k in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return paths


def test_alike_is_what_comparing_all_pairs_one_by_one_finds(monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    rng = np.random.default_rng(2)
    looks = []
    for k in range(40):
        grey = landscape(k % 12).convert("L").resize((32, 32))
        noisy = np.clip(np.asarray(grey, float) + rng.normal(0, 1 + k / 4, (32, 32)), 0, 255).astype(np.uint8)
        looks.append(Look((96, 96), noisy, duplicates.difference_hash(Image.fromarray(noisy))))
    expected = []
    for i in range(40):
        for j in range(i + 1, 40):
            r = np.corrcoef(looks[i].thumbnail.ravel(), looks[j].thumbnail.ravel())[0, 1]
            if bin(looks[i].bits ^ looks[j].bits).count("1") <= duplicates.MAX_BITS and r >= duplicates.MIN_CORRELATION:
                expected.append((i, j))
    pairs, plain = alike(looks)
    assert [(i, j) for i, j, _ in pairs] == expected and len(expected) > 10 and plain == 0
    assert alike([]) == ([], 0)


def test_a_large_picture_is_looked_at_band_by_band(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 200, 3), np.uint8)).resize((200, 300)).save(tmp_path / "a.png")
    before = look_at(str(tmp_path / "a.png"))
    monkeypatch.setattr("ccdiff_cli.prepare.windows.WHOLE", 1000)
    monkeypatch.setattr("ccdiff_cli.prepare.windows.BAND", 16 * 200)
    after = look_at(str(tmp_path / "a.png"))
    assert after.size == before.size and np.abs(after.thumbnail.astype(int) - before.thumbnail).max() <= 1


def test_pictures_that_do_not_decode_or_lie_about_their_size(plain, tmp_path):
    path = plain.root / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:200])
    landscape(1, 80).save(plain.root / "images" / "c.png")
    facts = inspect_set(plain.root, tmp_path / "out")
    assert [u["picture"] for u in facts["unreadable"]] == ["b.png"] and facts["declared_size_wrong"] == ["c.png"]
    assert "pictures that do not decode: 1, first b.png" in facts["warnings"]


def test_the_page_needs_nothing_else_and_is_the_same_every_time(plain, tmp_path):
    before = files_of(plain.root)
    inspect_set(plain.root, tmp_path / "out")
    page = (tmp_path / "out" / "inspection.html").read_text()
    inspect_set(plain.root, tmp_path / "out")
    assert (tmp_path / "out" / "inspection.html").read_text() == page and files_of(plain.root) == before
    assert "<b>ship" not in page and "&lt;b&gt;ship&lt;/b&gt;" in page and "pla$ne" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page


def test_a_raw_folder_and_a_set_without_objects(tmp_path):
    root = rawsets.vhr10(tmp_path / "raw", {"001": [("ship", (5, 5, 40, 30))], "002": []}, splits={"train": ["001"], "test": ["002"]})
    facts = inspect_set(root, tmp_path / "out")
    assert facts["kind"] == "raw (vhr10)" and facts["per_split"]["test"]["pictures_without_objects"] == 1
    assert facts["picture_sizes"] == {"96 x 64": 2} and facts["objects"] == 1
    empty = made(tmp_path / "empty", [Scene("a.png", 96, 96)], [landscape(1)])
    assert inspect_set(empty.root, tmp_path / "out2")["objects"] == 0


def test_refusals(plain, tmp_path):
    with pytest.raises(CCDiffError, match="the output folder is the set itself"):
        inspect_set(plain.root, plain.root)
    with pytest.raises(CCDiffError, match="the output folder lies around the set itself"):
        inspect_set(plain.root, plain.root.parent)
    with pytest.raises(CCDiffError, match="no such folder"):
        inspect_set(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CCDiffError):
        inspect_set(plain.root, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_verb(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(plain.root)])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "page: runs/inspect-plain/inspection.html" and (tmp_path / "runs" / "inspect-plain" / "inspection.html").is_file()
    assert any(SHIP in line for line in lines) and f"warning: classes without an object: {HARBOR}" in lines
    with pytest.raises(SystemExit):
        main(["inspect", str(plain.root), "--out", "x", "--json"])
    assert json.loads(capsys.readouterr().out)["objects"] == 4
