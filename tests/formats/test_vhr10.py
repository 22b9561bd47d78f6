"""NWPU VHR-10: odd spaces, masks matched to boxes, splits, broken files."""

import math

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import read_raw
from ccdiff_cli.geometry import corners_to_le90, le90_to_corners
from tests.rawsets import vhr10


def test_odd_spaces_and_blank_lines(tmp_path):
    root = vhr10(tmp_path / "r", {"001": []})
    (root / "ground truth" / "001.txt").write_bytes(b"\n( 5, 6),(30,  40), 10 \r\n(  1,2),( 3, 4),1\n\n(50,20),(40,10),2")
    raw = read_raw(root)
    assert raw.format == "vhr10"
    assert [(i.category, i.hbb) for i in raw.scenes[0].instances] == [
        ("vehicle", (5, 6, 30, 40)),
        ("airplane", (1, 2, 3, 4)),
        ("ship", (40, 10, 50, 20)),  # corners in the wrong order
    ]
    assert not any(i.oriented for i in raw.scenes[0].instances)


def test_masks_are_matched_one_to_one_and_bring_the_obb(tmp_path):
    turned = le90_to_corners((40, 30, 30, 8, math.pi / 6))
    xs, ys = turned[0::2], turned[1::2]
    box = (round(min(xs)), round(min(ys)), round(max(xs)), round(max(ys)))
    root = vhr10(
        tmp_path / "r",
        {"001": [("ship", box), ("ship", (70, 5, 90, 20)), ("vehicle", (2, 2, 10, 10))]},
        masks={
            "001": [
                ("ship", [70, 5, 90, 5, 90, 20, 70, 20]),
                ("ship", list(turned)),
                ("ship", [71, 6, 91, 6, 91, 21, 71, 21]),  # a second mask on one box
                ("airplane", [2, 2, 10, 2, 10, 10, 2, 10]),  # another class
            ]
        },
    )
    raw = read_raw(root)
    first, second, third = raw.scenes[0].instances
    assert first.oriented and corners_to_le90(first.corners) == pytest.approx((40, 30, 30, 8, math.pi / 6), abs=1e-2)
    assert first.hbb == box  # the ground truth's box stays
    assert second.mask == ((70, 5, 90, 5, 90, 20, 70, 20),)
    assert not third.oriented and third.mask == ()
    assert raw.notes == {"objects with a mask": 2, "objects without a mask": 1} and raw.skipped == {"masks without an object": 2}


def test_split_lists(tmp_path):
    boxes = {k: [("ship", (5, 5, 20, 20))] for k in ("001", "002", "003", "004")}
    raw = read_raw(vhr10(tmp_path / "r", boxes, splits={"train": ["001"], "val": ["003.jpg"], "test": ["002"]}))
    assert {s.source: s.split for s in raw.scenes} == {"001": "train", "002": "test", "003": "val"}
    assert raw.skipped == {"pictures in no split list": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("(1,2),(3,4),11", "001.txt:2: unknown class 11"),
        ("(1,2),(3,4)", "001.txt:2: expected"),
        ("(1,2),(3,4),1.5", "001.txt:2: expected"),
        ("(1,2),(3,4),1,(5,6)", "001.txt:2: expected"),
        ("(1,2),(3,1e999),1", "001.txt:2: the box is not made of finite numbers"),
        ("(1,2),(3,nan),1", "001.txt:2: expected"),
        ("(1,2),(3,--4),1", "001.txt:2: expected"),
    ],
)
def test_broken_lines(tmp_path, line, message):
    root = vhr10(tmp_path / "r", {"001": [("ship", (5, 5, 20, 20))]})
    path = root / "ground truth" / "001.txt"
    path.write_text(f"(1,2),(3,4),1\n{line}\n")
    with pytest.raises(CCDiffError, match=".*" + message.replace("(", r"\(").replace(".", r"\.")):
        read_raw(root)


def test_missing_picture_and_lists_that_leak(tmp_path):
    boxes = {k: [("ship", (5, 5, 20, 20))] for k in ("001", "002")}
    root = vhr10(tmp_path / "r", boxes, splits={"train": ["001"], "test": ["002", "001"]})
    with pytest.raises(CCDiffError, match="stands in two lists"):
        read_raw(root)
    (root / "splits" / "test.txt").write_text("007\n")
    with pytest.raises(CCDiffError, match=r"test\.txt:1: no picture is called '007'"):
        read_raw(root)
    (root / "splits" / "test.txt").write_text("002\n")
    (root / "positive image set" / "002.jpg").unlink()
    with pytest.raises(CCDiffError, match=r"002\.txt: the picture 002 is missing from positive image set"):
        read_raw(root)


def test_text_that_is_not_utf8(tmp_path):
    root = vhr10(tmp_path / "r", {"001": []})
    (root / "ground truth" / "001.txt").write_bytes(b"\xff\xfe(\x001")
    with pytest.raises(CCDiffError, match="not UTF-8"):
        read_raw(root)
