"""DIOR: HBB and OBB files matched by overlap, sizes that lie, splits, hostile XML."""

import math
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import read_raw
from ccdiff_cli.formats.dior import match_boxes, read_dior
from ccdiff_cli.geometry import hbb_of, le90_to_corners
from ccdiff_cli.scene import Instance
from tests.rawsets import dior, hbb_xml, obb_xml


def ints(values):
    return [round(v) for v in values]


def test_boxes_are_matched_by_overlap_whatever_their_order(tmp_path):
    turned = [le90_to_corners((20 + 30 * k, 30, 24, 8, 0.4 * k)) for k in range(3)]
    horizontal = [hbb_xml("vehicle", ints(hbb_of(c))) for c in turned]
    root = dior(tmp_path / "r", {"00001": (horizontal, [obb_xml("vehicle", ints(c)) for c in reversed(turned)])})
    raw = read_raw(root)
    assert raw.format == "dior" and raw.notes == {"objects with HBB and OBB": 3}
    for instance, corners in zip(raw.scenes[0].instances, turned, strict=True):
        assert instance.oriented and list(instance.corners) == ints(corners) and list(instance.hbb) == ints(hbb_of(corners))


def test_unmatched_objects_are_kept_and_counted(tmp_path):
    horizontal = [hbb_xml("Expressway-toll-station", (5, 5, 20, 20)), hbb_xml("golffield", (40, 5, 60, 20))]
    oriented = [obb_xml("vehicle", (70, 5, 85, 5, 85, 20, 70, 20)), obb_xml("golffield", (40, 5, 60, 5, 60, 20, 40, 20))]
    raw = read_raw(dior(tmp_path / "r", {"00001": (horizontal, oriented)}))
    assert raw.notes == {"objects with HBB and OBB": 1, "objects with an HBB alone": 1, "objects with an OBB alone": 1}
    assert [(i.category, i.oriented) for i in raw.scenes[0].instances] == [
        ("expressway toll station", False),  # the names on disk are spelt in odd ways
        ("golf field", True),
        ("vehicle", True),
    ]


def test_what_overlap_does_not_match_is_paired_by_place_then_by_class(tmp_path):
    def square(x, y, side=12):
        return (x, y, x + side, y, x + side, y + side, x, y + side)

    horizontal = [
        hbb_xml("bridge", (0, 0, 60, 40)),  # a slanted thing, boxed with its banks
        hbb_xml("ship", (70, 5, 70, 5)),  # a point
        hbb_xml("harbor", (5, 45, 17, 57)),  # these two have their classes exchanged
        hbb_xml("ship", (30, 45, 42, 57)),
        hbb_xml("vehicle", (80, 50, 90, 60)),  # drawn in another place
    ]
    oriented = [
        obb_xml("ship", square(5, 45)),
        obb_xml("harbor", square(30, 45)),
        obb_xml("vehicle", square(80, 20, 10)),
        obb_xml("ship", square(70, 5, 0)),
        obb_xml("bridge", square(24, 14)),
    ]
    raw = read_raw(dior(tmp_path / "r", {"00001": (horizontal, oriented)}))
    instances = raw.scenes[0].instances
    assert [(i.category, i.oriented) for i in instances] == [
        ("bridge", True),
        ("ship", True),
        ("harbor", True),  # the HBB file's class
        ("ship", True),
        ("vehicle", False),
    ]
    assert instances[0].corners == square(24, 14) and instances[0].hbb == (0, 0, 60, 40) and instances[2].corners == square(5, 45)
    assert instances[4].hbb == (80, 50, 90, 60) and instances[4].extra == {"obb_elsewhere": list(square(80, 20, 10))}
    assert raw.notes == {
        "objects with HBB and OBB": 4,
        "objects whose HBB and OBB overlap little": 2,
        "objects whose class differs in the OBB file (the HBB's kept)": 2,
        "objects with an HBB alone, whose OBB lies elsewhere (kept in extra)": 1,
    }


box_lists = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(2, 30), st.integers(2, 30)), max_size=6)


@given(box_lists, box_lists)
@settings(max_examples=100, deadline=None)
def test_matching_is_one_to_one_and_as_good_as_trying_everything(a, b):
    from itertools import permutations

    from ccdiff_cli.geometry import hbb_iou

    first, second = ([Instance.from_hbb("ship", (x, y, x + w, y + h)) for x, y, w, h in boxes] for boxes in (a, b))
    matched = match_boxes(first, second)
    assert len(set(matched.values())) == len(matched)
    if len(first) > len(second):
        first, second, matched = second, first, {v: k for k, v in matched.items()}
    if not first or len(second) > 5:
        return
    iou = hbb_iou([i.hbb for i in first], [i.hbb for i in second])
    iou[iou < 0.1] = 0
    best = max(sum(iou[k, c] for k, c in enumerate(p)) for p in permutations(range(len(second)), len(first)))
    assert sum(iou[k, c] for k, c in matched.items()) == pytest.approx(best)


def test_splits_and_the_test_folder(tmp_path):
    objects = ([hbb_xml("ship", (5, 5, 20, 20))], [])
    root = dior(tmp_path / "r", {k: objects for k in ("00001", "00002", "00003")})
    (root / "JPEGImages-test").mkdir()
    (root / "JPEGImages-trainval" / "00003.jpg").rename(root / "JPEGImages-test" / "00003.jpg")
    assert [s.split for s in read_raw(root).scenes] == ["", "", "test"]  # no lists: only the test folder is known
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, name in (("train", "00001"), ("val", "00002"), ("test", "00003")):
        (lists / f"{split}.txt").write_text(f"{name}\n")
    assert [s.split for s in read_raw(root).scenes] == ["train", "val", "test"]


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>
<annotation><object><name>&c;</name></object></annotation>"""
EXTERNAL = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&a;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object><name>ship", r"00001\.xml:1:\d+: not valid XML"),
        ("", "not valid XML"),
        (BOMB, "declares a document type or entities"),
        (EXTERNAL, "declares a document type or entities"),
        ("<html></html>", "expected the element <annotation>"),
        ("<annotation><object><name>zeppelin</name></object></annotation>", "unknown class 'zeppelin'[^$]*known classes: airplane"),
        (f"<annotation><object>{hbb_xml('ship', (1, 2, 'nan', 4))}</object></annotation>", "object 1: <xmax>: expected a finite number"),
        (f"<annotation><object>{hbb_xml('ship', (1, 2, '1e300', 4))}</object></annotation>", "expected a finite number"),
        (f"<annotation><object>{hbb_xml('ship', (1, 2, 'x', 4))}</object></annotation>", "expected a number, found 'x'"),
        ("<annotation><object><name>ship</name></object></annotation>", "has no <bndbox>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid XML"),
    ],
)
def test_broken_and_hostile_xml(tmp_path, text, message):
    root = dior(tmp_path / "r", {"00001": ([hbb_xml("ship", (5, 5, 20, 20))], [])})
    (root / "Annotations" / "Horizontal Bounding Boxes" / "00001.xml").write_text(text)
    with pytest.raises(CCDiffError, match=message):
        read_raw(root)


def test_missing_picture(tmp_path):
    root = dior(tmp_path / "r", {"00001": ([hbb_xml("ship", (5, 5, 20, 20))], [])})
    (root / "JPEGImages-trainval" / "00001.jpg").unlink()
    with pytest.raises(CCDiffError, match="the picture 00001 is missing"):
        read_raw(root)
    assert len(read_dior(root, pictures=False).scenes) == 1


@pytest.mark.slow
@pytest.mark.skipif("CCDIFF_SHARED" not in os.environ, reason="CCDIFF_SHARED does not point to the data")
def test_all_of_dior(tmp_path):
    with tarfile.open(Path(os.environ["CCDIFF_SHARED"]) / "data" / "dior_annotations.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    raw = read_dior(tmp_path / "DIOR", pictures=False)
    assert len(raw.scenes) == 23463 and sum(len(s.instances) for s in raw.scenes) == 192518
    assert raw.notes == {
        "objects with HBB and OBB": 192449,
        "objects whose HBB and OBB overlap little": 57,
        "objects whose class differs in the OBB file (the HBB's kept)": 18,
        "objects with an HBB alone, whose OBB lies elsewhere (kept in extra)": 69,
    }
    assert sum(i.oriented for s in raw.scenes for i in s.instances) == 192449
    assert {k: sum(s.split == k for s in raw.scenes) for k in ("train", "val", "test")} == {"train": 5862, "val": 5863, "test": 11738}
    assert all(math.isfinite(v) for s in raw.scenes for i in s.instances for v in i.corners)
