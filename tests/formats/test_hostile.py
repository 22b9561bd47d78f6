"""Damaged, huge and hostile label files: every reader ends in scenes that can be trusted or in a CCDiffError."""

import base64
import io
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import READERS, read_raw
from tests.fuzz.seeds import EDITS, SEEDS, TOKENS, damaged, read_damaged, read_sound
from tests.rawsets import coco, cvat_xml, hbb_xml, labelme_file, picture

edits = st.lists(
    st.tuples(st.sampled_from(EDITS), st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.integers(0, len(TOKENS) - 1)),
    min_size=1,
    max_size=4,
)


def test_there_is_a_seed_for_every_reader():
    assert set(SEEDS) == set(READERS)


@pytest.fixture(scope="module")
def sound():
    """Format -> (folder, its label files with their bytes)."""
    with tempfile.TemporaryDirectory() as top:
        found = {}
        for name, build in SEEDS.items():
            root = Path(top) / name
            labels = {root / label: b"" for label in build(root)}
            found[name] = root, {path: path.read_bytes() for path in labels}
        yield found


@pytest.mark.parametrize("format", sorted(SEEDS))
def test_seed(sound, format):
    read_sound(sound[format][0], format)


@pytest.mark.parametrize("format", sorted(SEEDS))
@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_labels(sound, format, data):
    root, labels = sound[format]
    path = data.draw(st.sampled_from(sorted(labels)))
    changed = data.draw(st.one_of(edits.map(lambda e: damaged(labels[path], e)), st.binary(max_size=200)))
    try:
        path.write_bytes(changed)
        read_damaged(root, format)
    finally:
        path.write_bytes(labels[path])


@pytest.mark.parametrize("format", sorted(SEEDS))
def test_every_token_in_place_of_every_kind_of_word(sound, format):
    """What hypothesis reaches by chance: each hostile word once, in a word of the file that goes round."""
    root, labels = sound[format]
    for path, text in labels.items():
        for k in range(len(TOKENS)):
            path.write_bytes(damaged(text, [("swap word", (k * 0.6180339887) % 1, 0, k)]))
            read_damaged(root, format)
        path.write_bytes(text)


@pytest.mark.parametrize("format", sorted(SEEDS))
def test_label_files_that_are_no_files(sound, format):
    root, labels = sound[format]
    for path, text in labels.items():
        path.unlink()
        os.mkfifo(path)  # reading it would wait for ever
        try:
            read_damaged(root, format)
        finally:
            path.unlink()
            path.write_bytes(text)


@pytest.mark.parametrize("format", sorted(SEEDS))
def test_label_files_of_absurd_size(sound, format):
    """A sparse file of a terabyte takes no room on the disk and more than the memory when it is read."""
    root, labels = sound[format]
    for path, text in labels.items():
        if path.suffix == ".tar":  # read member by member to its end mark, whatever follows
            continue
        try:
            with open(path, "r+b") as stream:
                stream.truncate(10**12)
        except OSError:
            pytest.skip("the file system has no sparse files of a terabyte")
        with pytest.raises(CCDiffError, match="bytes"):
            READERS[format](root, None)
        path.write_bytes(text)


def quickly(root, match):
    before = time.process_time()
    with pytest.raises(CCDiffError, match=match):
        read_raw(root)
    assert time.process_time() - before < 10


def test_masks_that_would_fill_the_memory(tmp_path):
    side = 20_000
    for k, counts in enumerate(([0, side * side], [side, side * side - side])):
        segmentation = {"size": [side, side], "counts": counts}
        one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": segmentation}
        quickly(coco(tmp_path / str(k), [one]), "RLE mask whose object covers")
    small = {"size": [side, side], "counts": [side * 19_990 + 5, 10, side - 10, 10, side * 9 - 15]}
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [19_990, 5, 2, 10], "segmentation": small}
    (scene,) = read_raw(coco(tmp_path / "small", [one])).scenes
    assert scene.instances[0].mask and min(scene.instances[0].mask[0][::2]) == 19_990


def test_bitmaps_that_would_fill_the_memory(tmp_path):
    """labelme's and CVAT's: huge ones, and ones of a million single pixels."""
    for k, (side, step) in enumerate(((20_000, 0), (2_000, 2))):
        bits = io.BytesIO()
        image = Image.new("1", (side, side))
        if step:
            image.putdata([255 if x % step else 0 for _ in range(side) for x in range(side)])
        image.save(bits, "PNG")
        shape = {
            "label": "ship",
            "shape_type": "mask",
            "points": [[0, 0], [side, side]],
            "mask": base64.b64encode(bits.getvalue()).decode(),
        }
        picture(tmp_path / f"l{k}" / "a.png")
        labelme_file(tmp_path / f"l{k}" / "a.json", [shape])
        quickly(tmp_path / f"l{k}", "a mask of")
    runs = ",".join(["1"] * 4_000_000)
    picture(tmp_path / "c" / "a.png")
    mask = f'<mask label="ship" rle="{runs}" left="0" top="0" width="2000" height="2000"/>'
    (tmp_path / "c" / "annotations.xml").write_text(cvat_xml([f'<image id="0" name="a.png">{mask}</image>']))
    quickly(tmp_path / "c", "runs of pixels, more than")


def test_deep_and_long_files(tmp_path):
    root = coco(tmp_path / "deep", [])
    (root / "instances.json").write_text('{"images": "annotations", "categories": ' + "[" * 200_000)
    with pytest.raises(CCDiffError, match="not valid JSON"):
        read_raw(root, "coco")
    voc = tmp_path / "voc"
    picture(voc / "JPEGImages" / "a.jpg")
    (voc / "Annotations").mkdir()
    path = voc / "Annotations" / "a.xml"
    path.write_text("<annotation>" + "<a>" * 50_000 + "</a>" * 50_000 + f"<object>{hbb_xml('ship', (1, 2, 3, 4))}</object></annotation>")
    assert len(read_raw(voc).scenes[0].instances) == 1
    path.write_text("<annotation>" + "<object>" * 50_000)
    quickly(voc, "not valid XML")


def test_many_objects_on_one_spot(tmp_path):
    """No cap: ten thousand equal boxes are ten thousand objects."""
    many = [{"id": k, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]} for k in range(10_000)]
    assert len(read_raw(coco(tmp_path / "r", many)).scenes[0].instances) == 10_000


def test_repeated_annotation_ids_and_names(tmp_path):
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    images = [{"id": k, "file_name": "a.png", "width": 96, "height": 64} for k in (1, 2)]
    with pytest.raises(CCDiffError, match=r"a\.png"):
        read_raw(coco(tmp_path / "names", [one], images=images))
    raw = read_raw(coco(tmp_path / "ids", [one, dict(one, bbox=[2, 2, 5, 5])]))
    assert len(raw.scenes[0].instances) == 2 and raw.notes == {"annotations whose id repeats (all kept)": 1}


def test_extra_must_be_writable_again(tmp_path):
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    for k, extra in enumerate((json.loads("[1]"), {"score": float("nan")})):
        with pytest.raises(CCDiffError, match="extra"):
            read_raw(coco(tmp_path / str(k), [dict(one, extra=extra)]))
