"""Names that break things: every writer keeps them or refuses them in one sentence, and every reader of ours finds them again."""

import unicodedata
from pathlib import Path

import pytest

from ccdiff_cli.dataset import write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import WRITERS, ExportOptions, export_set
from ccdiff_cli.formats import READERS, read_raw
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.export.sets import one_scene
from tests.rawsets import picture

PICTURES = (
    "a.png", "A.png", "photo.one.png", "with space.png", "two  spaces.png", "#hash.png", "100%.png", "a%20b.png", "comma,x.png",
    "ünï-文字.png", unicodedata.normalize("NFD", "é") + ".png", "L" * 246 + ".png", ".hidden.png", "-dash.png", "quote'\".png",
    "semi;colon:.png", "[x].png", "*.png", "$(x).png", "train.png", "images.png", "s__x00010_y00020.png", "a&b<c>.png", "classes.png",
    "metadata.png", "x.txt.png", "upper.JPG", "null.png", "1.png", "http:__x.png", "a|b.png", "trail..png",
)  # fmt: skip
NAMES_OF_CLASSES = (
    "storage tank", "a/b", ".dot", "..", 'quo"te', "it's", "co: lon", "amp & <x>", "yes", "null", "1e3", "2024:01", "ünï 文字", "{x}",
    "a, b", "*star", "&anchor", "!tag", "%", "|", "@", "x # y", "[z]", "~", "?", "imagesource:x", "0.5", "NaN", "a\\b", "L" * 200,
)  # fmt: skip
READ_BY = {name: {"roboflow-coco": "coco"}.get(name, name) for name in WRITERS}
READABLE = sorted(name for name, reader in READ_BY.items() if reader in READERS)


def labels_of(scenes, stem=False):
    return {Path(s.file_name).stem if stem else s.file_name: s.categories() for s in scenes}


@pytest.mark.parametrize("format", READABLE)
def test_names_of_pictures_come_back(tmp_path, format):
    scenes = []
    for k, name in enumerate(PICTURES):
        picture(tmp_path / "set" / "images" / name, 24, 24, seed=k)
        scenes.append(Scene(name, 24, 24, (Instance.from_hbb("ship", (2, 3, 12, 14)),) * (k % 3), source=name))
    made = write_set(tmp_path / "set", scenes, ClassList(("ship",)), kind="prepared", details={}, picture_hashes={})
    done = export_set(made, tmp_path / "out", ExportOptions(format=format))
    assert any("1 pictures differ from others in case alone" in line for line in done.said)
    back = read_raw(done.root, READ_BY[format])
    assert labels_of(back.scenes) == labels_of(scenes) and not +back.skipped
    for scene in back.scenes:
        assert Path(str(scene.path)).read_bytes() == (made.root / "images" / scene.file_name).read_bytes()


@pytest.mark.parametrize("format", READABLE)
def test_names_of_classes_come_back(tmp_path, format):
    classes = ClassList(("ship", *NAMES_OF_CLASSES))
    instances = tuple(Instance.from_hbb(name, (k, 2, k + 9, 14)) for k, name in enumerate(classes))
    done = export_set(one_scene(tmp_path / "set", classes, instances=instances), tmp_path / "out", ExportOptions(format=format))
    back = read_raw(done.root, READ_BY[format])
    assert back.classes == classes and [s.categories() for s in back.scenes] == [list(classes)]


@pytest.mark.parametrize("format", sorted(WRITERS))
@pytest.mark.parametrize("name", [" lead.png", "trail .png", "._litter.png", "folder/" + "x" * 244 + ".png"])
def test_names_of_pictures_that_no_label_file_can_hold_are_refused(tmp_path, format, name):
    made = one_scene(tmp_path / "set", name=name)
    with pytest.raises(CCDiffError, match="name"):
        export_set(made, tmp_path / "out", ExportOptions(format=format))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", sorted(WRITERS))
@pytest.mark.parametrize("name", ["#1", "a=b", "="])
def test_names_of_classes_that_a_class_file_reads_otherwise(tmp_path, format, name):
    classes = ClassList(("ship", name))
    made = one_scene(tmp_path / "set", classes, instances=(Instance.from_hbb(name, (2, 3, 12, 14)),))
    if WRITERS[format].plain_names:
        with pytest.raises(CCDiffError, match=r"would be read as a comment or a pair in classes\.txt"):
            export_set(made, tmp_path / "out", ExportOptions(format=format))
        assert not (tmp_path / "out").exists()
    elif format in READABLE:
        assert read_raw(export_set(made, tmp_path / "out", ExportOptions(format=format)).root, READ_BY[format]).classes == classes


def test_names_of_classes_that_become_one_file(tmp_path):
    for k, pair in enumerate((("a/b", "a:b"), ("Ship", "ship"), ("a b", "a-b"))):
        with pytest.raises(CCDiffError, match="2 classes would both be written as"):
            export_set(one_scene(tmp_path / f"set{k}", ClassList(pair)), tmp_path / "out", ExportOptions(format="dota-task1"))
    assert not (tmp_path / "out").exists()


def test_pictures_whose_names_differ_in_case_where_the_file_system_does_not(tmp_path, monkeypatch):
    root = tmp_path / "set"
    scenes = [Scene(name, 24, 24, source=name) for name in ("a.png", "A.png")]
    for scene in scenes:
        picture(root / "images" / scene.file_name, 24, 24)
    made = write_set(root, scenes, ClassList(("ship",)), kind="prepared", details={}, picture_hashes={})
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **more: exists(path.parent / path.name.lower(), **more))  # as macOS and Windows do
    with pytest.raises(CCDiffError, match="a file system that ignores case"):
        export_set(made, tmp_path / "out", ExportOptions(format="yolo"))
