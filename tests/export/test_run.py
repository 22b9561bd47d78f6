"""What all exports share: copies and links, encoded pictures, interruptions, names, refusals."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import PictureSet, write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import WRITERS, ExportOptions, export_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.options import checked_options
from ccdiff_cli.scene import ClassList, Scene
from tests.export.sets import CLASSES, one_scene
from tests.rawsets import files_of, picture

WITH_FILES = sorted(name for name, writer in WRITERS.items() if writer.files)


def pictures_of(root):
    return sorted(p for p in root.rglob("*") if p.suffix in (".png", ".jpg", ".webp"))


@pytest.mark.parametrize("format", WITH_FILES)
@pytest.mark.parametrize("link", [False, True])
def test_pictures_are_copies_unless_links_are_asked_for_and_a_second_run_writes_nothing(data, tmp_path, format, link):
    options = ExportOptions(format=format, link=link)
    done = export_set(data, tmp_path / "out", options)
    assert len(pictures_of(done.root)) == 4
    for path in pictures_of(done.root):
        theirs = data.root / "images" / path.name
        assert path.read_bytes() == theirs.read_bytes() and os.path.samefile(path, theirs) == link
    assert any(("4 pictures are hard links" if link else "pictures are copies") in line for line in done.said)
    before = {p: p.stat().st_mtime_ns for p in done.root.rglob("*")}
    again = export_set(data, tmp_path / "out", options)
    assert again.resumed and (again.lost, again.apart, again.said, again.entry) == (done.lost, done.apart, done.said, done.entry)
    assert before == {p: p.stat().st_mtime_ns for p in done.root.rglob("*")}
    with pytest.raises(CCDiffError, match="another export"):
        export_set(data, tmp_path / "out", ExportOptions(format=format, link=not link))


@pytest.mark.parametrize("format", WITH_FILES)
def test_a_tool_that_rewrites_exported_pictures_leaves_the_set_whole(data, tmp_path, format):
    before = files_of(data.root)
    for path in pictures_of(export_set(data, tmp_path / "out", ExportOptions(format=format)).root):
        with open(path, "r+b") as stream:  # in place, as some tools save
            stream.write(b"other")
    assert files_of(data.root) == before


def test_pictures_are_copied_where_links_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("ccdiff_cli.files.os.link", lambda *a: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    done = export_set(data, tmp_path / "out", ExportOptions(format="yolo", link=True))
    assert (tmp_path / "out" / "images" / "val" / "c.png").read_bytes() == (data.root / "images" / "c.png").read_bytes()
    assert [line.partition(":")[0] for line in done.said] == ["0 pictures are hard links", "4 pictures are copies"]


@pytest.mark.parametrize("format", sorted(WRITERS))
@pytest.mark.parametrize("encoded", ["png", "jpeg", "webp"])
def test_pictures_are_encoded_where_the_readers_take_the_format(data, tmp_path, format, encoded):
    options = ExportOptions(format=format, picture_format=encoded)
    if encoded not in WRITERS[format].pictures:
        with pytest.raises(CCDiffError, match=f"picture format '{encoded}' for {format}"):
            export_set(data, tmp_path / "out", options)
        return
    done = export_set(data, tmp_path / "out", options)
    suffix = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[encoded]
    if WRITERS[format].files:
        assert {p.name for p in pictures_of(done.root)} == {f"{stem}{suffix}" for stem in "abcd"}
        for path in pictures_of(done.root):
            assert path.suffix == suffix and Image.open(path).format == encoded.upper()
    lossy = {what: count for what, count in done.lost.items() if what.startswith("pixels of pictures")}
    assert list(lossy.values()) == ([3] if encoded == "jpeg" else [])  # b.jpg is JPEG already, and keeps its bytes


def test_quality(data, tmp_path):
    sizes = {}
    for format, quality in (("jpeg", None), ("jpeg", 30), ("webp", None), ("webp", 30)):
        options = ExportOptions(format="yolo", picture_format=format, quality=quality)
        done = export_set(data, tmp_path / f"{format}{quality}", options)
        (path,) = (done.root / "images" / "val").iterdir()
        sizes[format, quality] = path.stat().st_size
        same = np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(data.root / "images" / "c.png")))
        assert same == (format == "webp" and quality is None)
    assert sizes["jpeg", 30] < sizes["jpeg", None] and sizes["webp", 30] < sizes["webp", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "yolo", "quality": 90}, "quality 90"),
        ({"format": "yolo", "picture_format": "png", "quality": 90}, "quality 90"),
        ({"format": "yolo", "picture_format": "jpeg", "quality": 0}, r"greater than or equal to 1, found 0"),
        ({"format": "yolo", "picture_format": "gif"}, "expected 'png', 'jpeg' or 'webp', found 'gif'"),
        ({"format": "voc", "picture_format": "webp"}, "its readers take: png, jpeg"),
        ({"format": "dota-task1", "picture_format": "png"}, "holds no pictures"),
        ({"format": "webdataset", "link": True}, "no picture files that could be links"),
        ({"format": "coco", "link": True, "picture_format": "png"}, "encoded anew"),
    ],
)
def test_options_that_do_not_fit(data, tmp_path, options, message):
    with pytest.raises(CCDiffError, match=message):
        export_set(data, tmp_path / "out", checked_options(ExportOptions, options, where=None))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", sorted(WRITERS))
@pytest.mark.parametrize("options", [{}, {"picture_format": "jpeg"}, {"link": True}])
def test_an_interrupted_export_is_completed_to_the_same_bytes(data, tmp_path, format, options):
    options = ExportOptions(format=format, **options)
    if (options.link and not WRITERS[format].files) or (options.picture_format and "jpeg" not in WRITERS[format].pictures):
        pytest.skip("the format does not take the option")
    whole = export_set(data, tmp_path / "whole", options)

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        export_set(data, tmp_path / "out", options, progress=stop)
    assert not (tmp_path / "out" / "export.json").exists()
    with pytest.raises(CCDiffError, match="beginning of another export"):
        export_set(data, tmp_path / "out", options, splits=["train"])
    (tmp_path / "out" / ".partial-x").write_bytes(b"half")
    done = export_set(data, tmp_path / "out", options)
    assert (done.lost, done.apart, done.said) == (whole.lost, whole.apart, whole.said)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_refusals(data, tmp_path):
    with pytest.raises(CCDiffError, match="unknown export format 'tfrecord'"):
        export_set(data, tmp_path / "out", ExportOptions(format="tfrecord"))
    with pytest.raises(CCDiffError, match="no pictures in the splits holdout"):
        export_set(data, tmp_path / "out", ExportOptions(format="yolo"), splits=["holdout"])
    assert not (tmp_path / "out").exists()
    export_set(data, tmp_path / "out", ExportOptions(format="yolo"))
    with pytest.raises(CCDiffError, match="holds another export"):
        export_set(data, tmp_path / "out", ExportOptions(format="coco"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(CCDiffError, match="not empty"):
        export_set(data, tmp_path / "mine", ExportOptions(format="coco"))
    with pytest.raises(CCDiffError, match="no such folder"):
        export_set(tmp_path / "nowhere", tmp_path / "out2", ExportOptions(format="coco"))


def test_names_that_label_files_cannot_hold(tmp_path):
    whole = one_scene(tmp_path / "set", ClassList(("ship",)))  # one that was read from a folder never has such a name
    broken = PictureSet(whole.root, ClassList(("ship\n1",)), (), whole.manifest)
    broken = replace(broken, scenes=tuple(s.replace(instances=()) for s in whole.scenes))
    for format in sorted(WRITERS):
        with pytest.raises(CCDiffError, match=r"'ship\\n1' holds a character"):
            export_set(broken, tmp_path / "out", ExportOptions(format=format))
    alike = one_scene(tmp_path / "set2", ClassList(("storage tank", "storage-tank")))
    with pytest.raises(CCDiffError, match="2 classes would both be written as 'storage-tank'"):
        export_set(alike, tmp_path / "out", ExportOptions(format="dota"))
    assert not (tmp_path / "out").exists()
    assert export_set(alike, tmp_path / "out", ExportOptions(format="voc")).lost == {}


def test_labels_that_would_overwrite_each_other(tmp_path):
    root = tmp_path / "set"
    hashes = {name: sha256_file(picture(root / "images" / name)) for name in ("a.png", "a.jpg")}
    scenes = [Scene(name, 96, 64, split="train", source=name) for name in hashes]
    data = write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
    with pytest.raises(CCDiffError, match="2 pictures are called 'a'"):
        export_set(data, tmp_path / "out", ExportOptions(format="yolo"))
    assert json.loads((root / "manifest.json").read_text())["kind"] == "prepared"


def test_pictures_with_an_exif_orientation_are_refused(data, tmp_path):
    """Sets of older versions may hold copies with the tag: whoever obeys it would turn the picture away under its labels."""
    path = data.root / "images" / data.scenes[0].file_name
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)
    with pytest.raises(CCDiffError, match=r"EXIF orientation(?s:.*)prepare the set again"):
        export_set(data, tmp_path / "out", ExportOptions(format="coco"))
