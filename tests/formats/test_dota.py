"""DOTA: headers, flags, corner orders, versions and their class lists, the published folders, our exporter's folder."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.dataset import write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.formats import TWINS, detect_format, read_raw
from ccdiff_cli.formats.classes import CLASS_LISTS, ClassMap, read_class_file
from ccdiff_cli.formats.dota import tile_source
from ccdiff_cli.geometry import le90_to_corners, polygon_iou, untangled
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.scene import Instance, Scene
from tests.rawsets import picture

SHIP = "10.0 5.0 40.0 15.0 37.0 24.0 7.0 14.0 ship 0"
SQUARE = (10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0)


def dota(root: Path, files: dict[str, str], *, labels: str = "labelTxt", pictures: bool = True) -> Path:
    """A folder with ``images/`` and a label folder: stem -> text."""
    for k, (stem, text) in enumerate(sorted(files.items())):
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"{stem}.txt").write_bytes(text.encode())
        if pictures:
            picture(root / "images" / f"{stem}.png", seed=k)
    return root


def read_one(root: Path, text: str) -> tuple[Scene, dict[str, int]]:
    raw = read_raw(dota(root, {"P0001": text}))
    assert raw.format == "dota" and not raw.skipped
    return raw.scenes[0], {**raw.notes, **raw.changes}


def test_headers_crlf_float_corners_and_difficult(tmp_path):
    text = f"\ufeffimagesource:GoogleEarth\r\ngsd:0.272604708179\r\n\r\n{SHIP}\r\n 1 2 3.25 2 3.25 9 1 9 storage-tank 1 \r\n"
    scene, notes = read_one(tmp_path / "r", text)
    assert scene.provenance == {"imagesource": "GoogleEarth", "gsd": 0.272604708179} and notes == {}
    ship, tank = scene.instances
    assert ship.corners == (10, 5, 40, 15, 37, 24, 7, 14) and ship.hbb == (7, 5, 40, 24) and ship.oriented and not ship.difficult
    assert tank.category == "storage tank" and tank.difficult and tank.hbb == (1, 2, 3.25, 9)
    assert (scene.file_name, scene.source, scene.split, scene.width) == ("P0001.png", "P0001", "", 0)


@pytest.mark.parametrize(
    ("header", "provenance", "notes"),
    [
        ("gsd:null\n", {}, {}),
        ("imagesource:GF\ngsd:1\n", {"imagesource": "GF", "gsd": 1}, {}),
        ("gsd: 0.5 \nimagesource:\n", {"gsd": 0.5}, {}),
        ("ImageSource:GoogleEarth\nGSD:None\n", {"imagesource": "GoogleEarth"}, {}),
        ("gsd:-3\n", {}, {"pictures whose gsd is not a length": 1}),
        ("gsd:inf\n", {}, {"pictures whose gsd is not a length": 1}),
        ("gsd:half a metre\n", {}, {"pictures whose gsd is not a length": 1}),
        ("acquisition dates:2016-05-04\n", {}, {"header lines other than imagesource and gsd": 1}),
        ("", {}, {}),
    ],
)
def test_header_variants(tmp_path, header, provenance, notes):
    scene, found = read_one(tmp_path / "r", header + SHIP)
    assert scene.provenance == provenance and found == notes and len(scene.instances) == 1


def test_missing_difficult_flag_and_flags_above_one(tmp_path):
    scene, notes = read_one(tmp_path / "r", f"{SHIP[:-2]}\n{SHIP[:-1]}2\n{SHIP}\n")
    assert [i.difficult for i in scene.instances] == [False, True, False]
    assert notes == {"objects without a difficult flag": 1, "difficult flags above 1 kept as 1": 1, TWINS: 2}


def test_a_picture_without_objects_is_a_scene(tmp_path):
    raw = read_raw(dota(tmp_path / "r", {"P0001": "imagesource:GoogleEarth\ngsd:null\n", "P0002": ""}))
    assert [s.instances for s in raw.scenes] == [(), ()]


def test_any_corner_order(tmp_path):
    a, b, c, d = ((SQUARE[k], SQUARE[k + 1]) for k in (0, 2, 4, 6))
    orders = [(a, b, c, d), (c, d, a, b), (d, c, b, a), (a, c, b, d), (a, b, d, c)]
    lines = [" ".join(f"{v}" for p in order for v in p) + " plane 0" for order in orders]
    scene, notes = read_one(tmp_path / "r", "\n".join(lines))
    assert notes == {"boxes whose sides crossed, untangled": 2, TWINS: 4}
    for instance, order in zip(scene.instances, orders, strict=True):
        assert polygon_iou(instance.corners, SQUARE) == pytest.approx(1.0)
        assert instance.corners[:2] == order[0]  # the head of the object stays the first corner
    assert [i.corners for i in scene.instances[:3]] == [tuple(v for p in order for v in p) for order in orders[:3]]


@settings(max_examples=50, deadline=None)
@given(
    box=st.tuples(st.floats(-50, 900), st.floats(-50, 900), st.floats(2, 300), st.floats(2, 300), st.floats(-1.5, 1.5)),
    order=st.permutations(range(4)),
)
def test_untangled_is_the_same_rectangle_in_any_order(box, order):
    corners = le90_to_corners(box)
    shuffled = [v for k in order for v in corners[2 * k : 2 * k + 2]]
    found, crossed = untangled(shuffled)
    assert polygon_iou(found, corners) > 0.999 and list(found[:2]) == shuffled[:2]
    assert crossed == (abs(order[0] - order[1]) == 2 or abs(order[1] - order[2]) == 2)
    assert untangled(found) == (found, False)


def test_versions_have_their_class_lists(tmp_path):
    crane, airport = (SHIP.replace("ship", name) for name in ("container-crane", "airport"))
    for k, (text, family) in enumerate(((SHIP, "dota10"), (crane, "dota15"), (airport, "dota20"))):
        assert read_raw(dota(tmp_path / f"r{k}", {"P0001": text})).classes == CLASS_LISTS[family]
    # the folder's name says more than its contents: an ordinary scene of v2.0 stays one of v2.0
    for name, family in (("labelTxt-v1.0/labelTxt", "dota10"), ("labelTxt-v1.5/DOTA-v1.5_train", "dota15"), ("labelTxt-v2.0", "dota20")):
        assert read_raw(dota(tmp_path / name, {"P0001": SHIP}, labels=name)).classes == CLASS_LISTS[family]
    assert read_raw(dota(tmp_path / "DOTA-v1.5" / "data" / "DOTA-v1.5", {"P0001": SHIP})).classes == CLASS_LISTS["dota15"]
    with pytest.raises(CCDiffError, match=r"P0001\.txt:1: unknown class 'airport'"):
        read_raw(dota(tmp_path / "old", {"P0001": airport}, labels="labelTxt-v1.0"))


def test_a_users_classes(tmp_path):
    root = dota(tmp_path / "r", {"P0001": f"{SHIP}\n{SHIP.replace('ship', 'small-vehicle')}\n{SHIP.replace('ship', 'drone')}"})
    with pytest.raises(CCDiffError, match=r"P0001\.txt:3: unknown class 'drone'"):
        read_raw(root)
    raw = read_raw(root, classes=read_class_file("small vehicle=vehicle,large vehicle=vehicle,drone=Helicopter"))
    assert raw.scenes[0].categories() == ["ship", "vehicle", "helicopter"]
    assert len(raw.classes) == 14 and {*raw.scenes[0].categories()} <= set(raw.classes)  # v1.0 with two classes made one
    (tmp_path / "classes.txt").write_text("ship\nother\nsmall-vehicle = other\ndrone = other\n")
    raw = read_raw(root, classes=read_class_file(tmp_path / "classes.txt"))
    assert list(raw.classes) == ["ship", "other"] and raw.scenes[0].categories() == ["ship", "other", "other"]


def test_published_folders(tmp_path):
    root = tmp_path / "DOTA"
    dota(root / "train", {"P0001": SHIP}, labels="labelTxt-v1.5/DOTA-v1.5_train")
    dota(root / "train", {"P0001": "7 5 40 5 40 24 7 24 ship 0"}, labels="labelTxt-v1.5/DOTA-v1.5_train_hbb", pictures=False)
    dota(root / "train", {"P0001": "7 5 40 5 40 24 7 24 ship 0"}, labels="labelTxt-v1.5/trainset_reclabelTxt", pictures=False)
    dota(root / "val", {"P0003": SHIP, "P0004": SHIP}, labels="labelTxt-v1.5/DOTA-v1.5_val")
    (root / "val" / "images" / "part1").mkdir()
    (root / "val" / "images" / "P0003.png").rename(root / "val" / "images" / "part1" / "P0003.png")  # archives unpacked side by side
    (root / "val" / "images" / "P0004.png").unlink()
    picture(root / "test" / "images" / "P0006.png")
    assert detect_format(root) == "dota"
    with pytest.raises(CCDiffError, match="the picture P0004 is missing from images/"):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert [(s.file_name, s.split, s.instances[0].corners[:2]) for s in raw.scenes] == [
        ("P0001.png", "train", (10, 5)),
        ("P0003.png", "val", (10, 5)),
    ]
    assert raw.skipped == {"pictures that are missing": 1, "pictures without a label file": 1}


def test_two_versions_side_by_side(tmp_path):
    root = dota(tmp_path / "r", {"P0001": SHIP}, labels="labelTxt-v1.0")
    dota(root, {"P0001": f"{SHIP}\n{SHIP}"}, labels="labelTxt-v1.5", pictures=False)
    with pytest.raises(CCDiffError, match=r"labels of several versions: labelTxt-v1\.0, labelTxt-v1\.5"):
        read_raw(root)
    assert len(read_raw(root, classes=ClassMap.frozen("dota10")).scenes[0].instances) == 1
    assert len(read_raw(root, classes=ClassMap.frozen("dota15")).scenes[0].instances) == 2


def test_split_lists_and_tile_names(tmp_path):
    tiles = {"P0001__1__0___0": SHIP, "P0001__1024__824___-8": SHIP, "P0002__x00000_y00412": SHIP, "a__b": SHIP}
    root = dota(tmp_path / "r", tiles, labels="annfiles")
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("".join(f"{k}\n" for k in list(tiles)[:3]))
    raw = read_raw(root)
    assert [(s.source, s.split) for s in raw.scenes] == [("P0001", "train"), ("P0001", "train"), ("P0002", "train")]
    assert raw.skipped == {"pictures in no split list": 1} and tile_source("a__b") == "a__b"


def test_our_export_is_read_back(tmp_path):
    root = tmp_path / "set"
    classes = CLASS_LISTS["vhr10"]
    slanted = le90_to_corners((50, 30, 40, 10, 0.5))
    instances = (Instance.from_corners("storage tank", slanted), Instance.from_hbb("ship", (5, 5, 25.5, 25.25), difficult=True))
    scenes, hashes = [], {}
    for k, (name, split, provenance) in enumerate(
        (("a.png", "train", {"imagesource": "GF", "gsd": 0.5}), ("b.png", "val", {}), ("c.png", "test", {"gsd": 1}))
    ):
        hashes[name] = sha256_file(picture(root / "images" / name, seed=k))
        scenes.append(Scene(name, 96, 64, instances if k != 1 else (), split, name, provenance=provenance))
    export_set(
        write_set(root, scenes, classes, kind="prepared", details={}, picture_hashes=hashes), tmp_path / "out", ExportOptions(format="dota")
    )
    raw = read_raw(tmp_path / "out")
    assert raw.format == "dota" and raw.classes == classes and not raw.skipped and not raw.notes
    assert {s.file_name: s.split for s in raw.scenes} == {s.file_name: s.split for s in scenes}
    back = {s.file_name: s for s in raw.scenes}
    for scene in scenes:
        found = back[scene.file_name]
        assert found.provenance == {"imagesource": "ccdiff", **scene.provenance}
        assert [(i.category, i.difficult) for i in found.instances] == [(i.category, i.difficult) for i in scene.instances]
        for a, b in zip(found.instances, scene.instances, strict=True):
            assert a.corners == pytest.approx(b.corners, abs=6e-4)


@pytest.mark.parametrize(("options", "gsd"), [({}, 1), ({"tile": 64, "size": 64}, 1), ({"tile": 64, "size": 32}, 2.0)])
def test_the_header_goes_through_tiles_and_out_again(tmp_path, options, gsd):
    """Of pixels twice as large the gsd is twice as long."""
    raw = dota(tmp_path / "r", {"P0001": f"imagesource:GoogleEarth\ngsd:1\n{SHIP}", "P0002": SHIP})
    made = prepare_dataset(raw, tmp_path / "set", PrepareOptions(**options))
    assert len(made.scenes) == 2 * (1 if not options else 2) and all("offset" in s.provenance for s in made.scenes)
    export_set(made, tmp_path / "out", ExportOptions(format="dota"))
    for scene in read_raw(tmp_path / "out").scenes:
        said = {"imagesource": "GoogleEarth", "gsd": gsd} if scene.source == "P0001" else {"imagesource": "ccdiff"}
        assert scene.provenance == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{SHIP}\n1 2 3 4 5 6 7 8", r"P0001\.txt:2: expected x1 y1 .* found 8 fields"),
        (f"{SHIP} 5", r"P0001\.txt:1: expected x1 y1 .* found 11 fields"),
        (SHIP.replace("40.0", "4O.0"), r"P0001\.txt:1: corner coordinate 3: expected a number, found '4O\.0'"),
        (SHIP.replace("40.0", "nan"), r"P0001\.txt:1: corner coordinate 3: expected a finite number"),
        (SHIP.replace("40.0", "1e300"), r"P0001\.txt:1: corner coordinate 3: expected a finite number"),
        (f"{SHIP}\n{SHIP.replace('ship', 'zeppelin')}", r"P0001\.txt:2: unknown class 'zeppelin'"),
        (f"{SHIP[:-1]}x", r"P0001\.txt:1: difficult flag: expected 0 or 1 .*, found 'x'"),
        (f"{SHIP[:-1]}-1", r"P0001\.txt:1: difficult flag"),
        (f"{SHIP}\ngsd:0.5", r"P0001\.txt:2: expected x1 y1"),
    ],
)
def test_broken_lines(tmp_path, text, message):
    with pytest.raises(CCDiffError, match=message):
        read_raw(dota(tmp_path / "r", {"P0001": text}))


def test_folders_that_cannot_be_read(tmp_path):
    root = dota(tmp_path / "r", {"P0001": SHIP}, pictures=False)
    (root / "images").mkdir()
    with pytest.raises(CCDiffError, match="none of the 1 label files has its picture"):
        read_raw(root, strict=False)
    picture(root / "images" / "P0001.png")
    picture(root / "images" / "sub" / "P0001.jpg")
    with pytest.raises(CCDiffError, match="two pictures are called 'P0001'"):
        read_raw(root)
    with pytest.raises(CCDiffError, match="no label files"):
        read_raw(tmp_path, "dota")
    (root / "images" / "sub" / "P0001.jpg").unlink()
    (root / "labelTxt" / "P0001.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(CCDiffError, match="not UTF-8"):
        read_raw(root)


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("0123456789.-e: \n\r\tshipgdnul\ufeff\u2028"), max_size=120))
def test_any_text_is_a_scene_or_our_error(tmp_path_factory, text):
    root = dota(tmp_path_factory.mktemp("r"), {"P0001": text})
    try:
        raw = read_raw(root)
    except CCDiffError as error:
        assert str(root) in str(error)
    else:
        assert all(i.is_finite() for i in raw.scenes[0].instances)


@pytest.mark.skipif("CCDIFF_SHARED" not in os.environ, reason="needs the published samples")
def test_published_samples():
    raw = read_raw(Path(os.environ["CCDIFF_SHARED"]) / "data" / "samples" / "DOTA", strict=False)
    assert {s.source: len(s.instances) for s in raw.scenes} == {"P0248": 47, "P0706": 536, "P1888": 64}
    assert raw.skipped == {"pictures that are missing": 5} and raw.scenes[0].provenance["gsd"] == 0.272604708179


@pytest.mark.parametrize(
    ("line", "category", "difficult"),
    [("1,1,20,1,20,9,1,9,ship,0", "ship", False), ("1, 1, 20, 1, 20, 9, 1, 9, ship, 1", "ship", True),
     ("1.5,1.5,20,1.5,20,9,1.5,9,storage tank", "storage tank", False), ("1,1,20,1,20,9,1,9,large-vehicle 1", "large vehicle", True)],
)  # fmt: skip
def test_commas_between_the_fields(tmp_path, line, category, difficult):
    picture(tmp_path / "r" / "images" / "a.png")
    (tmp_path / "r" / "labelTxt").mkdir()
    (tmp_path / "r" / "labelTxt" / "a.txt").write_text(f"imagesource:x\ngsd:null\n{line}\n")
    ((instance,),) = (s.instances for s in read_raw(tmp_path / "r").scenes)
    assert (instance.category, instance.difficult) == (category, difficult) and instance.hbb[2:] == (20, 9)


def test_an_unknown_class_says_how_to_list_ones_own(tmp_path):
    picture(tmp_path / "r" / "images" / "a.png")
    (tmp_path / "r" / "labelTxt").mkdir()
    (tmp_path / "r" / "labelTxt" / "a.txt").write_text("1 1 20 1 20 9 1 9 ship 0\n30 1 40 1 40 9 30 9 insulator 0\n")
    with pytest.raises(CCDiffError, match="unknown class 'insulator'") as caught:
        read_raw(tmp_path / "r")
    assert "lists all classes, one a line" in caught.value.fix and "insulator = NAME" in caught.value.fix


def test_a_flag_that_nobody_set_is_no_part_of_ones_own_class_name(tmp_path):
    scene, _ = read_one(tmp_path / "r", "1 2 3.25 2 3.25 9 1 9 solar panel Unspecified\n1 2 3 2 3 9 1 9 solar panel 1\n")
    assert scene.categories() == ["solar panel"] * 2 and [i.difficult for i in scene.instances] == [False, True]
