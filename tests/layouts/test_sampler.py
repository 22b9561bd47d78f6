"""The sampler, mixing and balance: habits of the set are kept, nothing leaves the picture, layout k depends on (set, seed, k) alone."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ccdiff_cli.dataset import PictureSet
from ccdiff_cli.geometry import corners_to_le90, hbb_of, le90_to_corners
from ccdiff_cli.layouts import LayoutOptions, plan_layouts
from ccdiff_cli.layouts.augment import augment_layout, fill_of, hbb_within, turned
from ccdiff_cli.layouts.repair import overlap_shares
from ccdiff_cli.layouts.sampler import Sampler
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.layouts.test_layouts import scenes

CLASSES = ClassList(("ship", "court", "harbor"))


def harbour(k):
    """Three to six ships side by side, 6 px apart, at one angle, beside a harbor; a court alone in every fourth picture."""
    rng = np.random.default_rng(k)
    if k % 4 == 3:
        return Scene(f"p{k}.png", 128, 128, (Instance.from_hbb("court", (50, 50, 70, 80)),), source=f"s{k}")
    angle, count = rng.uniform(-1.2, 1.2), int(rng.integers(3, 7))
    across = np.array([-math.sin(angle), math.cos(angle)])
    middle = np.array([64.0, 64.0])
    boxes = [Instance.from_hbb("harbor", (2, 100, 120, 126))]
    for j in range(count):
        x, y = middle + across * 6 * (j - count / 2)
        boxes.append(Instance.from_corners("ship", le90_to_corners((x, y, 20, 4, angle))))
    return Scene(f"p{k}.png", 128, 128, tuple(boxes), source=f"s{k}")


def harbours(count=24):
    return PictureSet(Path("D"), CLASSES, tuple(harbour(k) for k in range(count)), {})


def test_ships_lie_side_by_side_as_in_the_set():
    made = plan_layouts(harbours(), 60, 0, LayoutOptions(source="sampled"))
    with_ships = [m for m in made if "ship" in m.categories()]
    assert 30 < len(with_ships) < 60 and all(m.categories().count("ship") in range(3, 11) for m in with_ships)
    turns, gaps = [], []
    for layout in with_ships:
        ships = np.array([corners_to_le90(i.corners) for i in layout.instances if i.category == "ship"])
        for n, ship in enumerate(ships):
            others = np.delete(ships, n, 0)
            near = others[np.argmin(np.hypot(*(others[:, :2] - ship[:2]).T))]
            turns.append(abs((near[4] - ship[4] + math.pi / 2) % math.pi - math.pi / 2))
            gaps.append(float(np.hypot(*(near[:2] - ship[:2]))))
    assert np.median(turns) < math.radians(4) and np.median(gaps) == pytest.approx(6, rel=0.2)
    assert len({m.instances[0].corners for m in made}) > 40, "no copies"
    assert all(m.provenance["layout"]["source"] == "sampled" for m in made)


def test_sizes_and_counts_follow_the_set():
    made = plan_layouts(harbours(), 80, 0, LayoutOptions(source="sampled"))
    sides = [corners_to_le90(i.corners)[2:4] for m in made for i in m.instances if i.category == "ship"]
    assert np.median(sides, axis=0) == pytest.approx((20, 4), rel=0.1)
    share = np.mean(["court" in m.categories() for m in made])
    assert share == pytest.approx(0.25, abs=0.08)


@settings(max_examples=25, deadline=None)
@given(st.lists(scenes(), min_size=1, max_size=4), st.integers(0, 2**31))
def test_sampled_layouts_never_leave_the_picture(pool, seed):
    pool = [s for s in pool if s.instances]
    if not pool:
        return
    made = Sampler(pool).draw(pool[0], np.random.default_rng(seed))
    values = np.array([(*i.hbb, *i.corners) for i in made.instances]).reshape(-1, 12)
    if len(values):
        assert values.min() >= -1e-6 and values.max() <= 128 + 1e-6
        assert (values[:, 2] > values[:, 0]).all() and (values[:, 3] > values[:, 1]).all()
    assert set(made.categories()) <= set(pool[0].categories())


def test_objects_do_not_overlap_more_than_usual():
    for layout in plan_layouts(harbours(), 40, 1, LayoutOptions(source="sampled")):
        _, _, shares = overlap_shares(np.array([i.corners for i in layout.instances]))
        assert not (shares > 0.01).any()


@pytest.mark.parametrize("source", ["mixed", "sampled"])
@pytest.mark.parametrize("balance", ["none", "rare", "classes"])
def test_layout_k_depends_on_set_seed_and_k_alone(source, balance):
    options = LayoutOptions(source=source, balance=balance)
    few, many = plan_layouts(harbours(), 4, 3, options), plan_layouts(harbours(), 40, 3, options)
    assert many[:4] == few and plan_layouts(harbours(), 3, 3, options, start=30) == many[30:33]
    assert plan_layouts(harbours(), 40, 4, options) != many


def test_mixed_layouts_hold_objects_of_two_pictures():
    made = plan_layouts(harbours(), 60, 0, LayoutOptions(source="mixed"))
    mixed = [m for m in made if "mixed_with" in m.provenance["layout"]]
    assert len(mixed) > 10
    for layout in mixed:
        facts = layout.provenance["layout"]
        assert facts["mixed_with"] != facts["picture"] and 0 <= facts["added"] <= len(layout.instances)
        values = np.array([(*i.hbb, *i.corners) for i in layout.instances])
        assert values.min() >= 0 and values.max() <= 128


def test_rare_classes_come_more_often():
    def share(balance):
        made = plan_layouts(harbours(), 120, 0, LayoutOptions(source="set", balance=balance))
        return np.mean(["court" in m.categories() for m in made])

    assert share("none") == pytest.approx(0.25, abs=0.02)
    assert 0.28 < share("rare") < 0.5
    assert share("classes") == pytest.approx(1 / 3, abs=0.02)
    with pytest.raises(ValidationError, match="balance"):
        LayoutOptions(balance="fair")


def test_every_class_in_turn_and_every_picture_of_it_before_one_again():
    made = plan_layouts(harbours(8), 60, 0, LayoutOptions(source="set", balance="classes"))
    courts = Counter(m.provenance["layout"]["picture"] for m in made if m.categories() == ["court"])
    assert len(courts) == 2 and max(courts.values()) - min(courts.values()) <= 1


# ---- turns by any angle ----


def test_some_layouts_are_turned_by_any_angle():
    scene = Scene("s.png", 128, 128, (Instance.from_corners("ship", le90_to_corners((60, 60, 30, 8, 0.1))),))
    made = [augment_layout(scene, np.random.default_rng(k)) for k in range(60)]
    angles = [m.provenance["layout"]["turn"] for m in made]
    assert 15 < sum(a != 0 for a in angles) < 45 and len({round(a) for a in angles}) > 12
    for layout in made:
        facts, (box,) = layout.provenance["layout"], layout.instances
        base = 0.1 if facts["symmetry"] in (0, 2) else None
        if base is not None:
            difference = corners_to_le90(box.corners)[4] - base - math.radians(facts["turn"])
            assert abs((difference + math.pi / 2) % math.pi - math.pi / 2) < 1e-6
    flat = Scene("s.png", 128, 128, (Instance.from_hbb("ship", (20, 20, 60, 40)),))
    assert all(augment_layout(flat, np.random.default_rng(k)).provenance["layout"]["turn"] == 0 for k in range(30)), "no orientation"


def test_the_horizontal_box_of_a_turned_object_fits_its_shape():
    tank = Instance.from_corners("tank", le90_to_corners((64, 64, 40, 40, math.pi / 4 - 1e-3)), hbb=(44, 44, 84, 84))
    ship = Instance.from_corners("ship", le90_to_corners((30, 30, 20, 6, 0.5)))
    fill = fill_of([Scene("s.png", 128, 128, (tank, ship))])
    assert fill["tank"] == pytest.approx(0, abs=1e-6) and fill["ship"] == pytest.approx(1)
    after = turned(tank, 0.3, 1.0, (64, 64), fill["tank"])
    assert after.hbb == pytest.approx((44, 44, 84, 84), abs=0.01), "a round tank stays as wide as it is"
    after = turned(ship, 0.3, 1.0, (64, 64), fill["ship"])
    assert after.hbb == pytest.approx(hbb_of(after.corners)) and corners_to_le90(after.corners)[4] == pytest.approx(0.8)
    assert hbb_within(le90_to_corners((64, 64, 40, 10, 0.0)), 0.3) == pytest.approx((44, 59, 84, 69)), "straight boxes are full"
