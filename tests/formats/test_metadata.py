"""metadata.jsonl of CC-Diff: padding, shares to pixels, more than six objects, splits by folder; broken lines."""

import json
import math

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import detect_format, read_raw
from tests.rawsets import picture


def line(name="a.png", captions=("a harbor", "ship"), boxes=((0.25, 0.25, 0.5, 0.75),), corners=None, pad=6, **changes):
    corners = corners if corners is not None else [(b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3]) for b in boxes]
    empty = max(0, pad - len(boxes))
    return {
        "file_name": name,
        "caption": [*captions, *[""] * empty],
        "bndboxes": [*map(list, boxes), *[[0] * 4] * empty],
        "obboxes": [*map(list, corners), *[[0] * 8] * empty],
        **changes,
    }


def metadata(folder, lines, size=(96, 64)):
    for k, entry in enumerate(lines):
        name = str(entry.get("file_name")) if isinstance(entry, dict) else ""
        if name.endswith(".png") and not name.startswith(("/", "..")) and len(name) < 100:
            picture(folder / name, *size, seed=k)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join((json.dumps(entry) if not isinstance(entry, str) else entry) + "\n" for entry in lines)
    (folder / "metadata.jsonl").write_text(text)
    return folder


def test_shares_become_pixels_and_padding_vanishes(tmp_path):
    turned = (0.5, 0.25, 0.75, 0.5, 0.5, 0.75, 0.25, 0.5)
    entry = line(
        captions=("a harbor", "ship", "small vehicle"), boxes=((0.25, 0.25, 0.75, 0.75), (0, 0, 0.5, 0.5)), corners=(turned, (0,) * 8)
    )
    raw = read_raw(metadata(tmp_path / "r", [entry, "", line("sub/b.png", boxes=(), captions=("nothing",))]))
    assert raw.format == "metadata" and list(raw.classes) == ["ship", "small vehicle"]
    first, second = raw.scenes
    assert (first.file_name, first.width, first.height, first.caption, first.split) == ("a.png", 96, 64, "a harbor", "")
    ship, vehicle = first.instances
    assert ship.hbb == (24, 16, 72, 48) and ship.corners == (48, 16, 72, 32, 48, 48, 24, 32) and ship.oriented
    assert vehicle.hbb == (0, 0, 48, 32) and not vehicle.oriented and vehicle.category == "small vehicle"
    assert second.instances == () and second.source == "sub/b"


def test_more_than_six_objects_and_no_obboxes(tmp_path):
    entry = line(captions=("x", *["ship"] * 9), boxes=[(0.1, 0.1, 0.2, 0.2)] * 9)
    del entry["obboxes"]
    (scene,) = read_raw(metadata(tmp_path / "r", [entry])).scenes
    assert len(scene.instances) == 9 and not any(i.oriented for i in scene.instances)


def test_split_folders_and_the_class_file(tmp_path):
    root = tmp_path / "r"
    for split in ("train", "test"):
        metadata(root / split, [line("1.png"), line("2.png")])
    (root / "classes.txt").write_text("airplane\nship\n")
    assert detect_format(root) == "metadata"
    raw = read_raw(root)
    assert [(s.file_name, s.split) for s in raw.scenes] == [
        ("1.png", "train"), ("2.png", "train"), ("test/1.png", "test"), ("test/2.png", "test"),
    ]  # fmt: skip
    assert list(raw.classes) == ["airplane", "ship"]
    for one in (root / "test", root / "test" / "metadata.jsonl"):
        raw = read_raw(one)
        assert {s.split for s in raw.scenes} == {"test"} and list(raw.classes) == ["airplane", "ship"]


def test_a_picture_that_does_not_decode_is_left_to_prepare(tmp_path):
    root = metadata(tmp_path / "r", [line()])
    (root / "a.png").write_bytes(b"no picture")
    (scene,) = read_raw(root).scenes
    assert (scene.width, scene.height, len(scene.instances)) == (0, 0, 1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", r"metadata\.jsonl:2: not valid JSON"),
        ("[1]", "expected an object with file_name"),
        ("[" * 100_000, "not valid JSON"),
        ('{"file_name": ' + "9" * 5000 + "}", "not valid JSON"),
        (line("b.png", captions=("\ud800", "ship")), "surrogate"),
        (line(7), "file_name: expected a text, found int"),
        (line("none.jpg"), r"the picture none\.jpg is missing"),
        (line("n" * 400 + ".png"), "is missing"),
        (line("../a.png"), "leaves its folder"),
        (line("/etc/passwd"), "leaves its folder"),
        (line(), r"stands in .*metadata\.jsonl:1 too"),
        (line("b.png", caption="a harbor"), "caption: expected a list of texts"),
        (line("b.png", caption=[]), "caption: expected a list of texts"),
        (line("b.png", captions=("x", "ship", "ship")), r"bndboxes: expected 7 lists \(as many as caption has classes\) of 4"),
        (line("b.png", bndboxes=None), "bndboxes: expected 6 lists .* found NoneType"),
        (line("b.png", obboxes=[[0] * 7] * 6), "obboxes: expected 6 lists"),
        (line("b.png", boxes=((0, 0, math.nan, 1),)), "bndboxes: expected a finite number"),
        (line("b.png", boxes=((0, 0, 1e300, 1),)), "bndboxes: expected a finite number"),
        (line("b.png", boxes=((10, 10, 200, 100),)), "expected shares from 0 to 1, found 10"),
        (line("b.png", boxes=((0, 0, "a", 1),)), "expected a number, found 'a'"),
        (line("b.png", captions=("x", "")), "object 1 has a box and no class"),
        (line("b.png", boxes=((0, 0, 0, 0),)), "object 1, 'ship', has a class and no box"),
        (line("b.png", captions=("x", "a\u0007b")), "expected a class name"),
    ],
)
def test_broken_lines(tmp_path, entry, message):
    root = metadata(tmp_path / "r", [line(), entry])
    with pytest.raises(CCDiffError, match=message):
        read_raw(root, "metadata")
