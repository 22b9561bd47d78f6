"""CVAT's XML: turned boxes, outlines, ellipses, masks, attributes, subsets, tracks of a video, broken shapes."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats import TWINS, detect_format, read_raw
from ccdiff_cli.formats.common import of_bitmap
from ccdiff_cli.geometry import union
from tests.rawsets import cvat_xml, picture

BOX = '<box label="ship" occluded="0" xtl="12.0" ytl="28.0" xbr="52.0" ybr="36.0" z_order="0"></box>'


def one(root, shapes, **more):
    picture(root / "images" / "a.png")
    (root / "annotations.xml").write_text(
        cvat_xml([f'<image id="0" name="a.png" width="96" height="64">{"".join(shapes)}</image>'], **more)
    )
    return root


@pytest.mark.parametrize("degrees", [45.0, 30.0, 90.0, 123.4, 359.5, -45.0, 405.0])
def test_turned_boxes(tmp_path, degrees):
    """Clockwise on the screen about the centre, checked with shapely (whose angles run the other way where y points up)."""
    root = one(tmp_path / "r", [BOX.replace("z_order", f'rotation="{degrees}" z_order')])
    assert detect_format(root) == "cvat"
    (instance,) = read_raw(root).scenes[0].instances
    expected = shapely.affinity.rotate(shapely.box(12, 28, 52, 36), degrees, origin=(32, 32))
    found = shapely.Polygon(np.reshape(instance.corners, (4, 2)))
    assert instance.oriented and found.symmetric_difference(expected).area < 1e-6
    assert instance.hbb == pytest.approx(expected.bounds)


def test_other_shapes(tmp_path):
    shapes = [
        BOX,
        '<polygon label="car" points="10.5,10;20,12;18,20;9,18" occluded="1"></polygon>',
        '<polygon label="car" points="10,10;20,12;18,20;9,18;8,14" occluded="0"></polygon>',
        '<ellipse label="car" cx="50" cy="30" rx="20" ry="5" rotation="30.0"></ellipse>',
        '<mask label="car" rle="1, 2, 2, 2, 5" left="10" top="20" width="4" height="3"></mask>',
    ]
    raw = read_raw(one(tmp_path / "r", shapes))
    box, four, five, ellipse, mask = raw.scenes[0].instances
    assert box.hbb == (12, 28, 52, 36) and not box.oriented
    assert four.corners == (10.5, 10, 20, 12, 18, 20, 9, 18) and four.extra == {"occluded": True} and five.mask
    turn = math.radians(30)
    half = math.hypot(20 * math.cos(turn), 5 * math.sin(turn))
    assert ellipse.oriented and (ellipse.hbb[0], ellipse.hbb[2]) == pytest.approx((50 - half, 50 + half))
    outline = shapely.Polygon(np.reshape(ellipse.mask[0], (-1, 2)))
    assert outline.area == pytest.approx(math.pi * 20 * 5, rel=0.01)
    assert shapely.Polygon(np.reshape(ellipse.corners, (4, 2))).buffer(1e-6).contains(outline)
    assert mask.hbb == (11, 20, 13, 22) and union(mask.mask).area == pytest.approx(4)  # rows .XX. .XX. ....
    assert len(raw.scenes[0].instances) == 5 and not raw.skipped


def test_what_is_left_out_is_counted(tmp_path):
    shapes = [
        BOX, '<polyline label="car" points="1,1;5,5"/>', '<points label="car" points="1,1"/>', '<tag label="car"/>',
        '<cuboid label="car"/>', BOX.replace("z_order", 'outside="1" z_order'),
    ]  # fmt: skip
    raw = read_raw(one(tmp_path / "r", shapes))
    kinds = ("polyline", "points", "tag", "cuboid")
    assert raw.skipped == {
        **{f"shapes of the kind {kind!r}, which is no box or outline": 1 for kind in kinds},
        "shapes outside their picture, as the file says": 1,
    }
    assert len(raw.scenes[0].instances) == 1 and list(raw.classes) == ["ship", "car"]


def test_attributes(tmp_path):
    attributes = '<attribute name="Difficult">true</attribute><attribute name="color">red</attribute>'
    crowd = '<attribute name="iscrowd">1</attribute><attribute name="difficult">false</attribute>'
    raw = read_raw(one(tmp_path / "r", [BOX.replace("></box>", f">{attributes}</box>"), BOX.replace("></box>", f">{crowd}</box>"), BOX]))
    hard, group, plain = raw.scenes[0].instances
    assert hard.difficult and hard.extra == {"attributes": {"color": "red"}} and group.difficult and not plain.difficult
    assert raw.notes == {"groups (iscrowd) kept as difficult": 1, TWINS: 2}


def test_a_project_with_subsets_and_pictures_in_folders(tmp_path):
    images = []
    for k, (subset, folder) in enumerate([("Train", "Train"), ("Validation", "x"), ("Test", "Test"), ("default", "y"), ("Extra", "z")]):
        picture(tmp_path / "images" / folder / "a.png", seed=k)
        images.append(f'<image id="{k}" name="{folder}/a.png" subset="{subset}" width="96" height="64">{BOX * k}</image>')
    (tmp_path / "annotations.xml").write_text(cvat_xml(images, kind="project", meta="<subsets>Train\nTest</subsets>"))
    raw = read_raw(tmp_path)
    assert {s.file_name: (s.split, len(s.instances)) for s in raw.scenes} == {
        "images/Train/a.png": ("train", 0), "images/x/a.png": ("val", 1), "images/Test/a.png": ("test", 2), "images/y/a.png": ("", 3),
        "images/z/a.png": ("", 4),
    }  # fmt: skip
    assert raw.notes == {"pictures of the subset 'Extra', which names no split": 1, TWINS: 1 + 2 + 3}


def test_several_tasks_and_one_subset_each(tmp_path):
    for subset, label in (("Train", "ship"), ("Test", "car")):
        picture(tmp_path / subset / "images" / f"{subset}.png")
        image = f'<image id="0" name="{subset}.png" width="96" height="64">{BOX.replace("ship", label)}</image>'
        (tmp_path / subset / "annotations.xml").write_text(cvat_xml([image], labels=(label,), meta=f"<subset>{subset}</subset>"))
    raw = read_raw(tmp_path)
    assert list(raw.classes) == ["car", "ship"] and [(s.split, s.categories()) for s in raw.scenes] == [
        ("test", ["car"]),
        ("train", ["ship"]),
    ]
    (only,) = read_raw(tmp_path / "Train" / "annotations.xml").scenes  # the file itself
    assert only.file_name == "Train.png"


def test_tracks_of_a_video(tmp_path):
    for k in range(3):
        picture(tmp_path / "images" / f"frame_{k:06d}.PNG", seed=k)
    boxes = "".join(
        f'<box frame="{k}" keyframe="1" outside="{int(k == 2)}" occluded="0" xtl="{k}" ytl="2" xbr="30" ybr="20"></box>' for k in range(3)
    )
    other = '<track id="1" label="car"><box frame="1" outside="0" xtl="1" ytl="2" xbr="3" ybr="4" rotation="20"></box></track>'
    (tmp_path / "annotations.xml").write_text(cvat_xml([f'<track id="0" label="ship">{boxes}</track>', other]))
    raw = read_raw(tmp_path)
    assert [(s.file_name, s.categories()) for s in raw.scenes] == [
        ("frame_000000.PNG", ["ship"]), ("frame_000001.PNG", ["ship", "car"]), ("frame_000002.PNG", []),
    ]  # fmt: skip
    assert raw.scenes[1].instances[1].oriented and raw.skipped == {"shapes outside their picture, as the file says": 1}


def test_a_picture_that_stands_there_twice(tmp_path):
    root = one(tmp_path / "r", [BOX])
    image = '<image id="{}" name="a.png" width="96" height="64"></image>'
    (root / "annotations.xml").write_text(cvat_xml([image.format(0), image.format(1)]))
    with pytest.raises(CCDiffError, match="has labels in"):
        read_raw(root)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (BOX.replace("12.0", "x"), "shape 2: xtl: expected a number, found 'x'"),
        (BOX.replace('xtl="12.0" ', ""), "xtl: expected a number"),
        (BOX.replace("z_order", 'rotation="inf" z_order'), "rotation: expected a finite number"),
        (BOX.replace("ship", "boat"), "unknown class 'boat'"),
        ('<polygon label="car" points="1,1;2,2;3"></polygon>', "points: expected x,y;x,y"),
        ('<polygon label="car" points="1,1;2,2"></polygon>', "an outline of 2 points"),
        ('<mask label="car" rle="1, 200" left="1" top="1" width="4" height="3"></mask>', "its runs do not add up to 4 x 3"),
        ('<mask label="car" rle="12" left="1" top="1" width="4" height="3"></mask>', "a mask without a single pixel"),
        ('<mask label="car" rle="1,2" left="1" top="1" width="40000" height="30000"></mask>', "a mask of 40000 x 30000 pixels"),
        (BOX.replace("></box>", '><attribute name="difficult">perhaps</attribute></box>'), "attribute difficult: expected"),
    ],
)
def test_broken_shapes(tmp_path, broken, message):
    root = one(tmp_path / "r", [BOX, broken, *[BOX] * 200])
    with pytest.raises(CCDiffError, match=message):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert len(raw.scenes[0].instances) == 201 and sum(raw.skipped.values()) == 1


def test_xml_of_something_else(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "annotations.xml").write_text("<page><image/></page>")
    with pytest.raises(CCDiffError, match="expected the element <annotations>, found <page>"):
        read_raw(tmp_path, "cvat")
    (tmp_path / "annotations.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations><image name="&b;"/></annotations>')
    with pytest.raises(CCDiffError, match="document type or entities"):
        read_raw(tmp_path, "cvat", strict=False)


@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_outlines_of_bitmaps_cover_their_pixels(height, width, data):
    bits = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))).reshape(height, width)
    if not bits.any():
        with pytest.raises(CCDiffError, match="single pixel"):
            of_bitmap("ship", bits, (3, 5), where="x")
        return
    instance = of_bitmap("ship", bits, (3, 5), where="x")
    rows, columns = np.nonzero(bits)
    assert instance.hbb == (columns.min() + 3, rows.min() + 5, columns.max() + 4, rows.max() + 6)
    covered = union(instance.mask)
    pixels = shapely.union_all([shapely.box(x + 3, y + 5, x + 4, y + 6) for y, x in zip(rows, columns, strict=True)])
    assert covered.buffer(1e-9).contains(pixels)  # and no more than holes
    assert covered.area == pytest.approx(binary_fill_holes(bits).sum(), rel=1e-6)
