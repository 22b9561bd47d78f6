"""What is broken in a set: left out, counted and named by default, an error at once where asked for, an error where it is the rule."""

import json

import pytest

from ccdiff_cli.console import progress_bars
from ccdiff_cli.errors import CCDiffError, UnsafeInput
from ccdiff_cli.formats import raw as raw_module
from ccdiff_cli.formats import read_raw
from ccdiff_cli.formats.raw import PLACES, Faults, UnknownClass, missing_picture, read_split_lists
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from tests.rawsets import coco, hbb_xml, picture, voc_xml


def broken(faults, kind, errors, sound=0):
    for error in [*errors, *[None] * sound]:
        with faults.leaving_out(kind):
            if error is not None:
                raise error


def test_a_fault_is_left_out_with_its_place_or_stops():
    error = CCDiffError("expected a number, found 'x'", where="a.txt:3")
    faults = Faults(strict=False)
    broken(faults, "lines", [error] * 30, sound=1_000_000 // 1000)
    faults.check()
    assert faults.counts == {"broken lines: expected a number, found ...": 30}
    assert faults.places == {"broken lines: expected a number, found ...": [{"where": "a.txt:3", "what": error.what}] * PLACES}
    with pytest.raises(CCDiffError, match=r"a\.txt:3: expected a number"):
        broken(Faults(), "lines", [error])
    with pytest.raises(UnsafeInput):
        broken(Faults(strict=False), "lines", [UnsafeInput("leaves its folder")])


@pytest.mark.parametrize(("bad", "sound", "stops"), [(1, 0, True), (2, 1, False), (5, 4, False), (6, 4, True), (5, 5, False)])
def test_what_is_mostly_broken_is_not_of_its_format(bad, sound, stops):
    faults = Faults(strict=False)
    broken(faults, "lines", [CCDiffError("too short", where=f"a.txt:{k}") for k in range(bad)], sound)
    if stops:
        with pytest.raises(CCDiffError, match=r"a\.txt:0: too short") as caught:
            faults.check()
        assert bad == 1 or (f"{bad} of {bad + sound} lines" in str(caught.value) and "a.txt:2" in str(caught.value))
    else:
        faults.check()


def test_missing_pictures_may_be_many_and_unknown_classes_must_be_rare():
    faults = Faults(strict=False)
    broken(faults, "pictures", [missing_picture(f"{k}", where="a.xml", looked="images") for k in range(50)], sound=1)
    faults.check()
    assert faults.counts == {"pictures that are missing": 50}
    for sound, rare in ((99, True), (98, False)):
        faults = Faults(strict=False)
        broken(faults, "objects", [UnknownClass("unknown class 'shp'", where="a.xml: object 1", fix="known classes: ship")], sound)
        assert faults.counts == {"objects of the unknown class 'shp'": 1}
        if rare:
            faults.check()
        else:
            with pytest.raises(CCDiffError, match="unknown class 'shp'"):
                faults.check()


def yolo(root, lines):
    picture(root / "images" / "a.png")
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("\n".join(lines))
    (root / "classes.txt").write_text("ship\n")
    return root


def test_one_bad_line_does_not_stop_a_set_and_a_person_sees_it(tmp_path):
    root = yolo(tmp_path / "r", ["0 0.5 0.5 0.2 0.2", "0 0.4 0.5 0.2 0.2", "0 0.3 0.5 0.2 0.2", "0 0.5 0,5 0.2 0.2"])
    made = prepare_dataset(root, tmp_path / "out")
    (reason,) = made.manifest["skipped"]
    assert reason.startswith("broken lines: field ...: expected a number") and made.manifest["skipped"][reason] == 1
    assert made.manifest["places"] == {reason: [{"where": f"{root}/labels/a.txt:4", "what": "field 3: expected a number, found '0,5'"}]}
    assert len(made.scenes[0].instances) == 3
    with pytest.raises(CCDiffError, match=r"a\.txt:4: field 3"):
        prepare_dataset(root, tmp_path / "strict", PrepareOptions(strict=True))
    assert not (tmp_path / "strict").exists()
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n" + "0 48 32 10 10\n" * 20)
    with pytest.raises(CCDiffError, match=r"a\.txt:2: .*20 of 21 lines are broken"):
        prepare_dataset(root, tmp_path / "pixels")


def test_the_three_ranks_for_people(tmp_path, capsys):
    from ccdiff_cli.cli import main

    root = yolo(tmp_path / "r", ["0 0.5 0.5 0.2 0.2", "0 0.9 0.9 0.4 0.4", "0 x 0.5 0.2 0.2"])
    picture(root / "images" / "b.png", seed=1)
    with pytest.raises(SystemExit) as left:
        main(["prepare", str(root), "--out", str(tmp_path / "out")])
    assert left.value.code == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    where = {word: next(k for k, line in enumerate(lines) if line.startswith(word)) for word in ("note:", "left out: broken", "warning:")}
    assert where["note:"] < where["left out: broken"] < where["warning:"] < len(lines) - 1
    assert "a.txt:3" in said.err.replace("\n", "") and "boxes clipped to the picture: 1" in said.err  # at once, too
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert facts["changes"] == {"boxes clipped to the picture": 1}


def test_a_direct_reading_is_strict(tmp_path):
    with pytest.raises(CCDiffError, match=r"a\.txt:1"):
        read_raw(yolo(tmp_path / "r", ["0 x 0.5 0.2 0.2", "0 0.5 0.5 0.2 0.2"]))


def test_reading_tells_how_far_it_is(tmp_path, monkeypatch, capsys):
    """One large label file is one file: what is told are the things in it, where nobody watches every half minute."""
    root, now = yolo(tmp_path / "raw", ["0 0.5 0.5 0.2 0.2"] * 50), [0.0]
    monkeypatch.setattr(raw_module, "TELL_EVERY", 10)
    monkeypatch.setattr("ccdiff_cli.console.time.monotonic", lambda: now.__setitem__(0, now[0] + 20) or now[0])
    with progress_bars() as progress:
        read_raw(root, progress=progress)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "reading labels: 0 of 1" and said[-1].startswith("reading labels: 1 of 1")
    assert "reading labels: 20 files, lines and objects" in said and len(said) < 7, "not every time"


@pytest.mark.parametrize("format", ["coco", "voc", "dota"])
def test_shares_where_a_format_counts_pixels_are_no_boxes_in_the_first_pixel(tmp_path, format):
    if format == "coco":
        coco(tmp_path, [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0.1, 0.2, 0.5, 0.25]}])
    elif format == "voc":
        picture(tmp_path / "JPEGImages" / "a.jpg")
        (tmp_path / "Annotations").mkdir()
        (tmp_path / "Annotations" / "a.xml").write_text(voc_xml([hbb_xml("ship", (0.1, 0.2, 0.6, 0.45))], size=(96, 64)))
    else:
        picture(tmp_path / "images" / "a.png")
        (tmp_path / "labelTxt").mkdir()
        (tmp_path / "labelTxt" / "a.txt").write_text("0.1 0.2 0.6 0.2 0.6 0.45 0.1 0.45 ship 0\n")
    for strict in (True, False):
        with pytest.raises(
            CCDiffError, match=rf"shares of the picture's size \(0 to 1\), where {format} counts pixels \(the first: 0.1, 0.2"
        ):
            read_raw(tmp_path, strict=strict)


def test_a_line_of_a_list_means_the_picture_of_that_name_alone(tmp_path):
    (tmp_path / "train.txt").write_text("a.PNG\nimages/b.jp2\nc.xml\n")
    assert read_split_lists(tmp_path, ["a", "b", "c"]) == {"a": "train", "b": "train", "c": "train"}
    (tmp_path / "train.txt").write_text("img.v2\n")  # what stands behind the point is no extension
    with pytest.raises(CCDiffError, match=r"train\.txt:1: no picture is called 'img\.v2'"):
        read_split_lists(tmp_path, ["img"])
    assert read_split_lists(tmp_path, ["img", "img.v2"]) == {"img.v2": "train"}
