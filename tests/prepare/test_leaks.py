"""The same picture, or pieces of one scene, in several splits: said, moved, dropped, refused; a split that we draw never parts them."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ccdiff_cli.cli import app
from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.inspection import InspectOptions, inspect_set
from ccdiff_cli.options import checked_options
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from tests.rawsets import coco, picture

SIZE = (32, 32)


def yolo(root, pictures):
    """``pictures``: (split, stem, seed of its pixels, suffix)."""
    for split, stem, seed, suffix in pictures:
        path = picture(root / "images" / split / f"{stem}.png", *SIZE, seed=seed)
        if suffix == ".bmp":
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
        label = root / "labels" / split / f"{stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.25 0.25\n")
    (root / "data.yaml").write_text("names: [ship]\ntrain: images/train\nval: images/val\ntest: images/test\n")
    return root


@pytest.fixture
def leaking(tmp_path):
    """In train, val and test one picture (in test in another format), and one of its own each."""
    same = [("train", "a", 1, ".png"), ("val", "b", 1, ".png"), ("test", "c", 1, ".bmp")]
    return yolo(tmp_path / "raw", [*same, ("train", "d", 2, ".png"), ("val", "e", 3, ".png"), ("test", "f", 4, ".png")])


def splits_of(data):
    return {s.file_name.partition(".")[0]: s.split for s in data.scenes}


@pytest.mark.parametrize("how", [None, "keep"])
def test_kept_copies_are_said(leaking, tmp_path, how):
    data = prepare_dataset(leaking, tmp_path / "set", PrepareOptions(leaks=how))
    assert splits_of(data) == {"a": "train", "b": "val", "c": "test", "d": "train", "e": "val", "f": "test"}
    (what, count), = data.manifest["changes"].items()  # fmt: skip
    assert "same picture in several splits" in what and count == 3
    assert data.manifest["places"][what][:1] == [{"where": "c.bmp (test)", "what": "the same as a.png (train)"}]


def test_moved_copies_go_to_the_strictest_split(leaking, tmp_path):
    data = prepare_dataset(leaking, tmp_path / "set", PrepareOptions(leaks="move"))
    assert splits_of(data) == {"a": "test", "b": "test", "c": "test", "d": "train", "e": "val", "f": "test"}
    assert sorted(data.manifest["changes"].values()) == [1, 1] and all("moved" in what for what in data.manifest["changes"])


def test_dropped_copies_are_counted(leaking, tmp_path):
    data = prepare_dataset(leaking, tmp_path / "set", PrepareOptions(leaks="drop"))
    assert splits_of(data) == {"c": "test", "d": "train", "e": "val", "f": "test"}
    assert [n for what, n in data.manifest["skipped"].items() if "stricter split" in what] == [2]


def test_refused_copies_name_the_first_pair_and_write_nothing(leaking, tmp_path):
    with pytest.raises(CCDiffError, match=r"c\.bmp \(test\) and a\.png \(train\) \(3 pictures") as caught:
        prepare_dataset(leaking, tmp_path / "set", PrepareOptions(leaks="refuse"))
    assert "--leaks" in caught.value.fix and not (tmp_path / "set" / "manifest.json").exists()
    with pytest.raises(CCDiffError, match="leaks: expected 'keep', 'drop', 'move' or 'refuse', found 'hide'"):
        checked_options(PrepareOptions, {"leaks": "hide"}, where=None)


def test_pictures_that_only_share_a_size_or_a_name_leak_nothing(tmp_path):
    root = yolo(tmp_path / "raw", [("train", "a", 1, ".png"), ("val", "b", 2, ".png"), ("test", "c", 3, ".png")])
    data = prepare_dataset(root, tmp_path / "set", PrepareOptions(leaks="refuse"))
    assert len(data.scenes) == 3 and not data.manifest["changes"]


def test_scenes_whose_pieces_stand_in_two_splits_are_refused_moved_or_dropped(tmp_path):
    names = [("train", "s0__1__0___0"), ("val", "s0__1__24___0"), ("train", "s1__1__0___0"), ("test", "t")]
    root = yolo(tmp_path / "raw", [(split, stem, k, ".png") for k, (split, stem) in enumerate(names)])
    with pytest.raises(CCDiffError, match="source 's0' stand in two splits"):
        prepare_dataset(root, tmp_path / "set")
    moved = prepare_dataset(root, tmp_path / "moved", PrepareOptions(leaks="move"))
    assert splits_of(moved)["s0__1__0___0"] == splits_of(moved)["s0__1__24___0"] == "val"
    dropped = prepare_dataset(root, tmp_path / "dropped", PrepareOptions(leaks="drop"))
    assert sorted(splits_of(dropped)) == ["s0__1__24___0", "s1__1__0___0", "t"]


def unsplit(root, stems, seeds):
    """A COCO set without splits."""
    images = [{"id": k, "file_name": f"{stem}.png", "width": 32, "height": 32} for k, stem in enumerate(stems, start=1)]
    annotations = [{"id": k, "image_id": k, "category_id": 1, "bbox": [8, 8, 10, 10]} for k in range(1, len(stems) + 1)]
    coco(root, annotations, images=images, categories=[{"id": 1, "name": "ship"}])
    for stem, seed in zip(stems, seeds, strict=True):
        picture(root / "images" / f"{stem}.png", *SIZE, seed=seed)
    return root


@pytest.mark.parametrize("seed", range(3))
def test_a_split_that_we_draw_never_parts_copies(tmp_path, seed):
    stems = [f"p{k}" for k in range(24)]
    root = unsplit(tmp_path / "raw", stems, [k // 3 for k in range(24)])
    Image.open(root / "images" / "p4.png").save(root / "images" / "p4.bmp")  # p4: the same pixels as p3 and p5 in another file
    (root / "images" / "p4.png").unlink()
    text = (root / "instances.json").read_text()
    (root / "instances.json").write_text(text.replace("p4.png", "p4.bmp"))
    data = prepare_dataset(root, tmp_path / "set", PrepareOptions(seed=seed))
    splits = splits_of(data)
    assert len(splits) == 24 and len(set(splits.values())) > 1
    assert all(len({splits[f"p{3 * k + j}"] for j in range(3)}) == 1 for k in range(8))
    noted = [n for what, n in data.manifest["notes"].items() if "the seed would have parted" in what]
    assert noted and not any("same picture" in what for what in data.manifest["changes"])
    again = prepare_dataset(root, tmp_path / "again", PrepareOptions(seed=seed, leaks="refuse"))
    assert splits_of(again) == splits


def test_a_copy_drags_the_other_pieces_of_its_scene_along(tmp_path):
    """p and its copy q0; q0 to q3 are pieces of one scene: all five stay together, whatever the seed."""
    root = unsplit(
        tmp_path / "raw", ["p", "q__1__0___0", "q__1__8___0", "q__1__16___0", *(f"x{k}" for k in range(8))], [0, 0, *range(1, 11)]
    )
    for seed in range(6):
        splits = splits_of(prepare_dataset(root, tmp_path / f"set{seed}", PrepareOptions(seed=seed)))
        assert len({split for stem, split in splits.items() if stem[0] in "pq"}) == 1


def test_a_drawn_picture_goes_where_the_list_puts_its_copy(tmp_path):
    root = unsplit(tmp_path / "raw", [f"p{k}" for k in range(10)], [0, 0, 0, *range(1, 8)])
    data = json.loads((root / "instances.json").read_text())
    parts = {"val": [0], "unknown": list(range(1, 10))}
    (root / "instances.json").unlink()
    for name, members in parts.items():
        some = {**data, "images": [data["images"][k] for k in members], "annotations": [data["annotations"][k] for k in members]}
        (root / f"instances_{name}.json").write_text(json.dumps(some))
    splits = splits_of(prepare_dataset(root, tmp_path / "set"))
    assert splits["p0"] == splits["p1"] == splits["p2"] == "val"
    assert Counter(splits.values())["train"] >= 4


def test_the_split_is_the_same_whatever_the_number_of_processes(tmp_path):
    root = unsplit(tmp_path / "raw", [f"p{k}" for k in range(12)], [k // 2 for k in range(12)])
    one = prepare_dataset(root, tmp_path / "one")
    two = prepare_dataset(root, tmp_path / "two", processes=2)
    assert splits_of(one) == splits_of(two) and one.manifest["notes"] == two.manifest["notes"]


def test_a_pattern_keeps_pieces_together_and_inspect_takes_it_too(tmp_path):
    stems = [f"{scene}-x{k}y{chr(97 + k)}" for scene in ("harbour", "field", "town", "quay", "wood") for k in range(4)]
    root = unsplit(tmp_path / "raw", stems, range(20))
    data = prepare_dataset(root, tmp_path / "set", PrepareOptions(source_pattern="^([a-z]+)-"))
    splits = splits_of(data)
    assert all(len({splits[s] for s in stems if s.startswith(scene)}) == 1 for scene in ("harbour", "field", "town", "quay", "wood"))
    assert {s.source for s in data.scenes} == {"harbour", "field", "town", "quay", "wood"}
    assert data.manifest["notes"]["pictures whose source the pattern gives"] == 20
    assert len({s.source for s in prepare_dataset(root, tmp_path / "plain").scenes}) == 20
    for pattern, said in (("^(", "not a regular expression"), ("^[a-z]+", "no group"), ("^(Q+)-", "fits no picture")):
        with pytest.raises(CCDiffError, match=said):
            prepare_dataset(root, tmp_path / "bad", PrepareOptions(source_pattern=pattern))

    shutil.copytree(root, tmp_path / "split")
    data = json.loads((root / "instances.json").read_text())
    (tmp_path / "split" / "instances.json").unlink()
    for name, part in (("train", slice(0, 10)), ("val", slice(10, 20))):
        some = {**data, "images": data["images"][part], "annotations": data["annotations"][part]}
        (tmp_path / "split" / f"instances_{name}.json").write_text(json.dumps(some))
    facts = inspect_set(tmp_path / "split", tmp_path / "page", InspectOptions(source_pattern="^([a-z]+)-", samples=1))
    assert facts["duplicates"]["sources_in_two_splits"] == ["town"]
    assert not inspect_set(tmp_path / "split", tmp_path / "page", InspectOptions(samples=1))["duplicates"]["sources_in_two_splits"]
    with pytest.raises(CCDiffError, match="knows the source"):
        inspect_set(tmp_path / "set", tmp_path / "page", InspectOptions(source_pattern="^([a-z]+)-"))
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "split"), "--out", str(tmp_path / "page"), "--source-pattern", "^([a-z]+)-"])
    assert done.exit_code == 0 and "leak, source pictures with tiles in different splits: 1, first town" in done.output


def test_a_warning_says_so_once(tmp_path):
    root = tmp_path / "raw"
    picture(root / "images" / "a.png", *SIZE)
    coco(root, [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [-9, 8, 20, 10]}],
         images=[{"id": 1, "file_name": "a.png", "width": 40, "height": 32}], categories=[{"id": 1, "name": "ship"}])  # fmt: skip
    done = CliRunner().invoke(app, ["inspect", str(root), "--out", str(tmp_path / "page")])
    assert done.exit_code == 0 and "warning: " in done.output and "warning: warning" not in done.output


def test_copies_are_found_by_their_pixels_and_jpegs_by_their_reduced_ones(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 255, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    root = yolo(tmp_path / "raw", [("train", "d", 2, ".png"), ("val", "e", 3, ".png")])
    for split, stem in (("train", "a"), ("test", "b")):
        path = root / "images" / split / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth).save(path, quality=90, comment=stem.encode())
        label = root / "labels" / split / f"{stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.25 0.25\n")
    assert (root / "images/train/a.jpg").read_bytes() != (root / "images/test/b.jpg").read_bytes()
    data = prepare_dataset(root, tmp_path / "set", PrepareOptions(leaks="move"))
    assert splits_of(read_set(tmp_path / "set")) == splits_of(data) and splits_of(data)["a"] == "test"


def test_blank_rims_join_no_scenes(tmp_path):
    """Every scene has a black piece, byte for byte the same: they are no copies, so scenes still get splits of their own."""
    stems = [f"s{k}__1__{x}___0" for k in range(10) for x in (0, 32)]
    root = unsplit(tmp_path / "raw", stems, range(20))
    for k in range(10):
        Image.new("RGB", SIZE).save(root / "images" / f"s{k}__1__32___0.png")
    data = prepare_dataset(root, tmp_path / "set")
    assert Counter(s.split for s in data.scenes) == {"train": 14, "val": 2, "test": 4}
    assert all(len({s.split for s in data.scenes if s.source == f"s{k}"}) == 1 for k in range(10))
    given = yolo(
        tmp_path / "given", [("train", "a", 1, ".png"), ("val", "b", 2, ".png"), ("train", "c", 3, ".png"), ("val", "d", 4, ".png")]
    )
    for name in ("train/c", "val/d"):
        Image.new("RGB", SIZE).save(given / "images" / f"{name}.png")
    assert not prepare_dataset(given, tmp_path / "set2", PrepareOptions(leaks="refuse")).manifest["changes"]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_copy_that_is_stored_turned_is_a_copy_as_it_is_shown(tmp_path, suffix):
    root = yolo(tmp_path / "raw", [("train", "a", 1, ".png"), ("val", "b", 2, ".png")])
    flat = np.kron(np.random.default_rng(0).integers(0, 255, (4, 4), np.uint8), np.ones((8, 8), np.uint8))
    pixels = np.stack([flat] * 3, axis=2)
    for split, stem, turned in (("train", "a", False), ("val", "b", True)):
        (root / "images" / split / f"{stem}.png").unlink()
        exif = Image.Exif()
        if turned:
            exif[274] = 3
        Image.fromarray(pixels[::-1, ::-1] if turned else pixels).save(root / "images" / split / f"{stem}{suffix}", exif=exif, quality=100)
    with pytest.raises(CCDiffError, match="the same picture stands in several splits"):
        prepare_dataset(root, tmp_path / "set", PrepareOptions(leaks="refuse"))
