"""Layout sources: what never may happen to a label, and that layout k depends on (set, seed, k) alone."""

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.dataset import PictureSet
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import le90_to_corners, rotated_iou
from ccdiff_cli.layouts import SOURCES, LayoutOptions, layouts_of_set, plan_layouts
from ccdiff_cli.layouts.augment import augment_layout, moved, touches_border
from ccdiff_cli.layouts.options import Source
from ccdiff_cli.options import checked_options
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.scene import ClassList, Instance, Scene

CLASSES = ClassList(("ship", "airplane", "court"))


@st.composite
def scenes(draw, width=128, height=128):
    """Layouts with oriented and horizontal objects, some at the border, some on top of each other; all inside."""
    instances = []
    for _ in range(draw(st.integers(0, 8))):
        cx, cy = draw(st.floats(0, width)), draw(st.floats(0, height))
        w, h, angle = draw(st.floats(4, 60)), draw(st.floats(4, 60)), draw(st.floats(-1.57, 1.57))
        corners = np.array(le90_to_corners((cx, cy, w, h, angle))).reshape(4, 2)
        shift = np.clip(corners, 0, (width, height)) - corners
        corners = corners + np.where(np.abs(shift.max(0)) > np.abs(shift.min(0)), shift.max(0), shift.min(0))
        if corners.min() < 0 or (corners > (width, height)).any():
            continue
        name = draw(st.sampled_from(CLASSES.names))
        outline = tuple(float(v) for v in corners[:3].ravel())
        if draw(st.booleans()):
            instances.append(Instance.from_corners(name, corners.ravel().tolist(), mask=(outline,)))
        else:
            instances.append(Instance.from_hbb(name, (*corners.min(0), *corners.max(0))))
    return Scene("s.png", width, height, tuple(instances), source="s")


def overlaps(scene):
    corners = np.array([i.corners for i in scene.instances]).reshape(-1, 8)
    return rotated_iou(corners, corners)


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 2**31))
def test_augmentation_never_leaves_the_picture_and_makes_no_overlap_worse(scene, seed):
    made = augment_layout(scene, np.random.default_rng(seed))
    assert (made.width, made.height) == (128, 128)
    assert made.categories() == scene.categories(), "every object stays, in order"
    for instance in made.instances:
        values = np.array([*instance.hbb, *instance.corners])
        assert values.min() >= -1e-9 and values.max() <= 128 + 1e-9
    assert (overlaps(made) <= overlaps(scene) + 1e-5).all()
    for before, after in zip(scene.instances, made.instances, strict=True):
        assert touches_border(before, 128, 128) == touches_border(after, 128, 128), "an object cut by the border stays there"


@settings(max_examples=25, deadline=None)
@given(scenes(96, 64), st.integers(0, 2**31))
def test_oblong_pictures_keep_their_size(scene, seed):
    made = augment_layout(scene, np.random.default_rng(seed))
    assert (made.width, made.height) == (96, 64) and made.provenance["layout"]["symmetry"] in (0, 2, 4, 6)
    for instance in made.instances:
        assert max(instance.corners[0::2]) <= 96 + 1e-9 and max(instance.corners[1::2]) <= 64 + 1e-9


def test_boxes_outline_and_horizontal_box_move_together():
    ship = Instance.from_corners("ship", (10, 10, 30, 10, 30, 20, 10, 20), mask=((10.0, 10.0, 30.0, 10.0, 20.0, 20.0),))
    after = moved(ship, 2.0, (5.0, -1.0), (20.0, 15.0))
    assert after.hbb == (5.0, 4.0, 45.0, 24.0)
    assert after.corners == (5.0, 4.0, 45.0, 4.0, 45.0, 24.0, 5.0, 24.0)
    assert after.mask == ((5.0, 4.0, 45.0, 4.0, 25.0, 24.0),)


def test_augmentation_does_change_layouts():
    scene = Scene("s.png", 128, 128, (Instance.from_hbb("ship", (20, 20, 40, 30)), Instance.from_hbb("court", (70, 60, 90, 100))))
    made = [augment_layout(scene, np.random.default_rng(k)) for k in range(32)]
    assert len({tuple(i.corners for i in m.instances) for m in made}) == 32
    assert {m.provenance["layout"]["symmetry"] for m in made} == set(range(8))
    assert any(m.provenance["layout"]["scale"] > 1.05 for m in made) and any(m.provenance["layout"]["scale"] < 0.95 for m in made)
    assert all(0 <= m.provenance["layout"]["jittered"] <= 2 for m in made) and any(m.provenance["layout"]["jittered"] == 2 for m in made)


def test_objects_cut_by_one_border_move_along_it():
    scene = Scene("s.png", 96, 64, (Instance.from_hbb("ship", (0, 20, 20, 30)), Instance.from_hbb("court", (40, 20, 60, 40))))
    made = [augment_layout(scene, np.random.default_rng(k)) for k in range(16)]
    assert all(0 in m.instances[0].hbb[0::2] or 96 in m.instances[0].hbb[0::2] for m in made)
    assert len({m.instances[0].hbb[1] for m in made}) == 16
    assert all(m.provenance["layout"]["scale"] == 1 and m.provenance["layout"]["shift"][0] == 0 for m in made)


def picture_set(count=5, *, empty=0):
    made = []
    for k in range(count + empty):
        box = Instance.from_hbb(CLASSES.names[k % 3], (10 + k, 10, 30 + k, 40), extra={"id": k}, mask=((1.0, 2.0, 3.0, 4.0, 5.0, 6.0),))
        made.append(Scene(f"p{k}.png", 64, 64, (box,) if k < count else (), source=f"src{k}", caption=f"stored {k}", path=f"/p{k}.png"))
    return PictureSet(Path("D"), CLASSES, tuple(made), {"content": "x"})


@pytest.mark.parametrize("source", ["set", "augmented"])
def test_layout_k_depends_on_set_seed_and_k_alone(source):
    pictures = picture_set()
    few, many = plan_layouts(pictures, 4, 3, LayoutOptions(source=source)), plan_layouts(pictures, 23, 3, LayoutOptions(source=source))
    assert many[:4] == few
    assert plan_layouts(pictures, 2, 3, LayoutOptions(source=source), start=11) == many[11:13]
    assert plan_layouts(pictures, 23, 4, LayoutOptions(source=source)) != many


def test_every_picture_is_used_before_one_is_used_again():
    pictures = picture_set(5, empty=2)
    used = [s.provenance["layout"]["picture"] for s in plan_layouts(pictures, 12, 0, LayoutOptions(source="set"))]
    assert set(used[:5]) == set(used[5:10]) == {f"p{k}.png" for k in range(5)}, "pictures without objects give no layout"
    assert used[:5] != used[5:10], "in a new order each time (with this seed)"


def test_planned_layouts_are_bare_and_captioned_anew():
    for scene in plan_layouts(picture_set(), 6, 0):
        assert scene.path is None and scene.split == "train" and scene.caption == caption_of(scene)
        assert all(not i.mask and not i.extra for i in scene.instances)
        assert scene.provenance["layout"]["picture"] == f"p{scene.source[3:]}.png"
    assert [s.file_name for s in plan_layouts(picture_set(), 2, 0)] == ["00000000.png", "00000001.png"]


def test_stored_captions_go_with_unchanged_layouts_only():
    planned = plan_layouts(picture_set(), 5, 0, LayoutOptions(source="set"), caption_style="stored")
    assert {s.caption for s in planned} == {f"stored {k}" for k in range(5)}
    with pytest.raises(CCDiffError, match="stored captions"):
        plan_layouts(picture_set(), 5, 0, LayoutOptions(source="augmented"), caption_style="stored")


def test_horizontal_boxes_that_stick_out_are_brought_in_and_oriented_ones_reach_out():
    out = Instance.from_corners("ship", (-10, 20, 20, 20, 20, 30, -10, 30))
    gone = Instance.from_corners("ship", (-10, 20, -5, 20, -5, 30, -10, 30))
    scene = Scene("a.png", 64, 64, (out, gone, Instance.from_hbb("court", (1, 1, 5, 5)), Instance.from_hbb("court", (60, 1, 70, 5))))
    (layout,) = layouts_of_set(PictureSet(Path("D"), CLASSES, (scene,), {}))
    assert len(layout.instances) == 3
    assert layout.instances[0].corners == out.corners and layout.instances[0].hbb == (0.0, 20.0, 20.0, 30.0)
    assert layout.instances[2].corners == (60, 1, 64, 1, 64, 5, 60, 5) and layout.instances[2].hbb == (60, 1, 64, 5)
    assert layout.instances[1] == scene.instances[2]


def test_wrong_requests_are_refused():
    with pytest.raises(CCDiffError, match=r"--layout-source: expected 'set', 'augmented'.*found 'dreams'"):
        checked_options(LayoutOptions, {"source": "dreams"}, where="--layout-source", place=lambda path: "--layout-source")
    assert set(get_args(Source)) == set(SOURCES)
    with pytest.raises(CCDiffError, match="no labelled objects"):
        plan_layouts(picture_set(0, empty=2), 1, 0)
    with pytest.raises(CCDiffError, match="val split"):
        plan_layouts(picture_set(), 1, 0, LayoutOptions(split="val"))


def test_a_crowded_layout_is_quick():
    boxes = tuple(Instance.from_hbb("ship", (4 * i + 1.5, 8 * j + 1.5, 4 * i + 5, 8 * j + 8)) for i in range(30) for j in range(14))
    scene = Scene("a.png", 128, 128, boxes)
    made = augment_layout(scene, np.random.default_rng(0))
    assert len(made.instances) == 420 and made.provenance["layout"]["jittered"] > 0
    assert dataclasses.replace(scene, provenance=made.provenance) != made


@pytest.mark.parametrize("source", ["set", "augmented"])
def test_place_and_date_stay_and_the_gsd_follows_the_scale(source):
    box = Instance.from_hbb("ship", (40, 40, 80, 70))
    said = {"gsd": 0.5, "metadata": {"lat": 48.0, "sensor": "x"}, "offset": [0, 0]}
    pictures = PictureSet(Path("d"), CLASSES, (Scene("a.png", 128, 128, (box,), source="a", provenance=said),), {})
    made = plan_layouts(pictures, 8, 0, LayoutOptions(source=source), caption_style="measured")
    for layout in made:
        assert layout.provenance["metadata"] == said["metadata"] and layout.provenance.keys() == {"gsd", "metadata", "layout"}
        gsd = layout.provenance["gsd"]
        assert gsd == pytest.approx(0.5 / layout.provenance["layout"].get("scale", 1)) and f"{gsd:.2g} m per pixel" in layout.caption
    assert (len({layout.provenance["gsd"] for layout in made}) > 1) == (source == "augmented")


@pytest.mark.parametrize("source", ["set", "augmented"])
def test_a_scene_sentence_stays_with_every_layout(source):
    box = Instance.from_hbb("ship", (20, 20, 60, 50))
    said = {"sentence": "A quay in fog.", "offset": [0, 0]}
    pictures = PictureSet(Path("d"), CLASSES, (Scene("a.png", 128, 128, (box,), source="a", provenance=said),), {})
    for layout in plan_layouts(pictures, 3, 0, LayoutOptions(source=source), caption_style="short"):
        assert layout.caption == "A quay in fog. 1 ship." and layout.provenance["sentence"] == "A quay in fog."
        assert layout.provenance.keys() == {"sentence", "layout"}
