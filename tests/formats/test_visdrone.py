"""VisDrone-DET: lines, ignored regions and others, scores of 0, folders, broken lines."""

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import detect_format, read_raw
from ccdiff_cli.formats.classes import CLASS_LISTS, read_class_file
from tests.rawsets import picture

LINES = "10,20,30,8,1,4,0,1\n0,0,20,20,0,0,0,0\n50,20,10,8,0,1,1,2,\n5,5,4,4,1,11,0,0\n\n"


def visdrone(root, files):
    for k, (stem, text) in enumerate(sorted(files.items())):
        picture(root / "images" / f"{stem}.jpg", seed=k)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{stem}.txt").write_text(text)
    return root


def test_lines(tmp_path):
    root = visdrone(tmp_path / "VisDrone2019-DET-train", {"0001": LINES, "0002": ""})
    assert detect_format(root) == "visdrone"
    raw = read_raw(root)
    assert raw.classes == CLASS_LISTS["visdrone"] and len(raw.classes) == 10 and [s.split for s in raw.scenes] == ["train", "train"]
    car, pedestrian = raw.scenes[0].instances
    assert (car.category, car.hbb, car.oriented, car.difficult, car.extra) == ("car", (10, 20, 40, 28), False, False, {"occlusion": 1})
    assert pedestrian.category == "pedestrian" and pedestrian.difficult and pedestrian.extra == {"truncation": 1, "occlusion": 2}
    assert raw.skipped == {
        "boxes of the category 'ignored regions', which is no class": 1,
        "boxes of the category 'others', which is no class": 1,
    }
    assert raw.notes == {"boxes of score 0 (not to be evaluated), kept as difficult": 1}


def test_others_are_kept_for_those_who_name_them(tmp_path):
    root = visdrone(tmp_path / "r", {"0001": LINES})
    raw = read_raw(root, classes=read_class_file("others=vehicle,car=vehicle"))
    assert raw.scenes[0].categories() == ["vehicle", "pedestrian", "vehicle"] and sum(raw.skipped.values()) == 1


@pytest.mark.parametrize(
    "names", [("VisDrone2019-DET-train", "VisDrone2019-DET-val", "VisDrone2019-DET-test-dev"), ("train", "val", "test")]
)
def test_a_folder_of_releases(tmp_path, names):
    for name in names:
        visdrone(tmp_path / name, {"0001": LINES})
    picture(tmp_path / names[2] / "images" / "9.jpg")
    raw = read_raw(tmp_path)
    assert {s.file_name: (s.split, len(s.instances)) for s in raw.scenes} == {
        f"{name}/images/0001.jpg": (split, 2) for name, split in zip(names, ("train", "val", "test"), strict=True)
    }
    assert len({s.source for s in raw.scenes}) == 3
    assert raw.skipped["pictures without annotations"] == 1


def test_archives_unpacked_into_folders_of_their_names_and_other_cases(tmp_path):
    visdrone(tmp_path / "raw" / "VisDrone2019-DET-val" / "VisDrone2019-DET-val", {"1": LINES})
    base = visdrone(tmp_path / "raw" / "VisDrone2019-DET-train", {"2": LINES})
    (base / "annotations").rename(base / "Annotations")
    (base / "images").rename(base / "Images")
    assert detect_format(tmp_path) == "visdrone"
    assert [(s.file_name, s.split) for s in read_raw(tmp_path).scenes] == [("1.jpg", "val"), ("2.jpg", "train")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,1,4,0", "found 7 fields"),
        ("0,1,1,2,3,4,1,4,0,1", "found 10 fields"),
        ("1,2,x,4,1,4,0,1", "width: expected a number, found 'x'"),
        ("1,2,-3,4,1,4,0,1", "not negative"),
        ("1,2,3,4,1,12,0,1", "category: expected 0 to 11, found '12'"),
    ],
)
def test_broken_lines(tmp_path, line, message):
    root = visdrone(tmp_path / "r", {"0001": f"10,20,30,8,1,4,0,1\n{line}\n10,20,30,8,1,5,0,1\n"})
    with pytest.raises(CCDiffError, match=f"0001.txt:2: .*{message}"):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert raw.scenes[0].categories() == ["car", "van"] and sum(raw.skipped.values()) == 1
