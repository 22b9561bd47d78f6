"""Recognition: every format's sample is taken for itself by its own test, and by no other that is asked before it."""

import shutil

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import READERS, RECOGNISE, detect_format, read_raw
from tests.fuzz.seeds import SEEDS
from tests.rawsets import coco, labelme_file, picture

MORE_GENERAL = {
    ("dior", "voc"), ("rsvg", "voc"), ("fair1m", "voc"), ("fair1m", "rsvg"), ("cvat", "voc"), ("sodaa", "coco"), ("vhr10", "coco"),
}  # fmt: skip
"""(sample, test) where a test that is asked later takes a sample as well: the XML of DIOR is VOC's."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    top = tmp_path_factory.mktemp("samples")
    for name, build in SEEDS.items():
        build(top / name)
    return top


def test_every_reader_has_a_test_of_recognition():
    assert list(READERS) == list(RECOGNISE)


@pytest.mark.parametrize("sample", sorted(SEEDS))
@pytest.mark.parametrize("test", sorted(RECOGNISE))
def test_every_pair(samples, sample, test):
    order = list(RECOGNISE)
    taken = RECOGNISE[test](samples / sample)
    if sample == test:
        assert taken
    elif (sample, test) in MORE_GENERAL:
        assert order.index(sample) < order.index(test)
    else:
        assert not taken, f"{sample} is taken for {test}"


@pytest.mark.parametrize("sample", ["fair1m", "sodaa", "visdrone", "labelme", "cvat", "huggingface", "webdataset"])
def test_macos_files_beside_the_real_ones_change_nothing(samples, sample, tmp_path):
    root = tmp_path / sample
    shutil.copytree(samples / sample, root)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    assert detect_format(root) == sample
    assert [s.instances for s in read_raw(root).scenes] == [s.instances for s in read_raw(samples / sample).scenes]


def test_an_empty_folder_and_one_of_pictures_alone_are_nothing(tmp_path):
    picture(tmp_path / "a.png")
    assert not [name for name, test in RECOGNISE.items() if test(tmp_path)]


def test_json_of_settings_beside_labelme_and_coco(tmp_path):
    root = coco(tmp_path / "coco", [])
    (root / "package.json").write_text('{"name": "x"}')
    assert detect_format(root) == "coco"
    labelme_file(tmp_path / "lm" / "b.json", [])
    (tmp_path / "lm" / "a.json").write_text('{"name": "x"}')
    assert detect_format(tmp_path / "lm") == "labelme"


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(CCDiffError, match=r"set\.zip: this is an archive(.|\n)*unpack it"):
        detect_format(tmp_path / "set.zip")
