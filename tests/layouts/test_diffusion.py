"""Layouts by diffusion: numbers and boxes are each other's inverse, outliers are left out and counted, a training is kept."""

import numpy as np
import pytest
import torch

from ccdiff_cli.geometry import corners_inside, le90_to_corners, rotated_iou
from ccdiff_cli.layouts import LayoutOptions, diffusion, plan_layouts
from ccdiff_cli.layouts.augment import cut_sides
from ccdiff_cli.layouts.diffusion import NUMBERS, Code, DiffusionLayouts, Likely, symmetric
from ccdiff_cli.layouts.planning import TOGETHER
from ccdiff_cli.layouts.repair import no_overlap
from ccdiff_cli.scene import Instance, Scene, symmetric_scene
from tests.layouts.test_sampler import harbours


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A model after a few steps, kept in a folder of the test's own."""
    monkeypatch.setenv("CCDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(diffusion, "STEPS", 3)
    monkeypatch.setattr(diffusion, "BATCH", 8)
    monkeypatch.setattr(diffusion, "DRAW_STEPS", 2)
    monkeypatch.setitem(TOGETHER, "diffusion", 8)
    return tmp_path / "layouts"


class Fixed(DiffusionLayouts):
    """A model whose layouts are given: for each call those of the next scene."""

    def __init__(self, pool, *answers):
        self.code, self.likely, self.fill, self.allowed = Code(pool), Likely(pool), {}, no_overlap
        self.answers = list(answers)

    def _numbers(self, scenes, rngs):
        return [self.code.numbers(self.answers.pop(0)) for _ in scenes]


DIFFUSION = LayoutOptions(source="diffusion")
CUT = [  # x, y, w, h, angle: beyond a border, two, opposite ones, along one
    (4, 60, 30, 12, 0.4), (125, 126, 30, 20, -0.3), (64, 30, 140, 10, 0.0), (40, 3, 30, 6, 0.0)
]  # fmt: skip


@pytest.mark.parametrize("box", [(66.3, 60.8, 40, 12, 0.7), (30, 90, 30, 28, -1.1), (60, 20, 30, 10, 0.0), *CUT])
@pytest.mark.parametrize("width", [128, 256])
def test_boxes_come_back_from_their_numbers(box, width):
    ship = Instance.from_corners("ship", le90_to_corners(box))
    scene = Scene("a.png", width, 128, (ship,))
    code = Code([scene, *harbours().scenes])
    back = code.instance(code.numbers(scene)[0], "ship", scene, 1.0)
    assert back.oriented and rotated_iou(np.array([ship.corners]), np.array([back.corners]))[0, 0] > 0.999
    assert cut_sides(back, width, 128) == cut_sides(ship, width, 128)
    assert corners_inside(np.reshape(np.array(back.hbb)[[0, 1, 2, 1, 2, 3, 0, 3]], 8), (0, 0, width, 128))


def test_a_border_is_reached_where_the_numbers_say_so_and_nowhere_else():
    pool = harbours().scenes
    code, scene = Code(pool), Scene("a.png", 128, 128, (Instance.from_corners("ship", le90_to_corners((20, 60, 20, 8, 0.2))),))
    row = code.numbers(scene)[0]
    row[6] = 1.0  # cut on the left, but it lies inside
    moved = code.instance(row, "ship", scene, 1.0)
    assert cut_sides(moved, 128, 128) == (True, False, False, False)
    row[6], row[0] = -1.0, -2.0  # inside, but it lies beyond the left border
    assert cut_sides(code.instance(row, "ship", scene, 1.0), 128, 128) == (False,) * 4
    upright = code.instance(row, "court", scene, 1.0)
    assert not upright.oriented, "a class without orientations has none"


@pytest.mark.parametrize("flips", range(8))
def test_numbers_of_a_flipped_layout_are_flipped_numbers(flips):
    boxes = [(66.3, 60.8, 40, 12, 0.7), *CUT]
    scene = Scene("a.png", 128, 128, tuple(Instance.from_corners("ship", le90_to_corners(b)) for b in boxes))
    code = Code([scene])
    turned = [code.numbers(symmetric_scene(scene, k)) for k in range(8)]
    found = symmetric(code.numbers(scene), flips)
    assert sum(np.allclose(found, numbers, atol=1e-4) for numbers in turned) == 1


def test_outliers_are_left_out_and_layouts_that_lose_objects_drawn_again():
    pool = list(harbours().scenes)
    ships = [s for s in pool if "ship" in s.categories()]
    likely = Likely(pool)
    usual, harbor = (next(i for i in ships[0].instances if i.category == name) for name in ("ship", "harbor"))
    assert likely.box(usual, ships[0]) and likely.box(harbor, ships[0])
    huge = Instance.from_corners("ship", le90_to_corners((64, 64, 90, 30, 0.0)))
    long = Instance.from_corners("ship", le90_to_corners((64, 64, 80, 1, 0.0)))
    assert not likely.box(huge, ships[0]) and not likely.box(long, ships[0])

    court = Instance.from_hbb("court", (50, 50, 70, 80))
    small = Instance.from_corners("ship", le90_to_corners((20, 20, 20, 4, 0.0)))
    first, second = (Scene("c.png", 128, 128, (court, ship)) for ship in (huge, small))
    streams = [np.random.default_rng(k) for k in (0, 1)]
    # the first loses a ship and is drawn again alone, the second loses none
    one, two = Fixed(pool, first, second, second).draw([second, second], streams)
    assert len(one.instances) == len(two.instances) == 2
    unchanged = {"moved": 0, "shrunk": 0, "left_out": 0}
    assert one.provenance["layout"] == {"rejected": 1, "outliers": 0, **unchanged}
    assert two.provenance["layout"] == {"rejected": 0, "outliers": 0, **unchanged}
    (best,) = Fixed(pool, *[first] * diffusion.TRIES).draw([second], streams[:1])
    assert best.categories() == ["court"] and best.provenance["layout"]["outliers"] == 1
    alone = Scene("d.png", 128, 128, (huge,))
    (kept,) = Fixed(pool, *[alone] * diffusion.TRIES).draw([alone], streams[:1])
    assert kept.instances == alone.instances
    assert kept.provenance["layout"] == {"rejected": diffusion.TRIES, "outliers": 0, "instead_of": "diffusion"}
    two_in_one = Scene("e.png", 128, 128, (court, Instance.from_hbb("court", (52, 50, 72, 80))))
    (parted,) = Fixed(pool, two_in_one).draw([two_in_one], streams[:1])
    assert parted.provenance["layout"]["moved"] and not rotated_iou(*(np.array([i.corners]) for i in parted.instances)).any()


def test_layout_k_depends_on_set_seed_and_k_alone(small):
    block = TOGETHER["diffusion"]
    few, many = (plan_layouts(harbours(), n, 3, DIFFUSION) for n in (4, block + 5))
    assert many[:4] == few and plan_layouts(harbours(), 3, 3, DIFFUSION, start=block - 1) == many[block - 1 : block + 2]
    assert plan_layouts(harbours(), 4, 4, DIFFUSION) != few
    assert len(list(small.iterdir())) == 1, "one training for all"


def test_a_training_is_kept_and_made_again_where_it_is_damaged(small):
    first = plan_layouts(harbours(), 3, 0, DIFFUSION)
    (file,) = small.iterdir()
    data, steps = file.read_bytes(), []
    plan_layouts(harbours(), 3, 0, DIFFUSION, progress=lambda stage, done, total: steps.append(stage))
    assert "layout model" not in steps
    file.write_bytes(data[: len(data) // 2])
    threads = torch.get_num_threads()
    assert plan_layouts(harbours(), 3, 0, DIFFUSION) == first and file.read_bytes() == data, "the same bytes again"
    assert torch.get_num_threads() == threads
    plan_layouts(harbours(12), 3, 0, DIFFUSION)
    assert len(list(small.iterdir())) == 2, "another set, another training"


def test_training_lowers_the_loss_and_a_crowd_is_seen_in_part(small, monkeypatch):
    monkeypatch.setattr(diffusion, "STEPS", 40)
    monkeypatch.setattr(diffusion, "MOST", 6)
    pool = list(harbours().scenes)
    assert max(len(s.instances) for s in pool) > 6
    torch.manual_seed(0)
    trained, untrained = DiffusionLayouts(pool), diffusion.LayoutDenoiser(3)
    known = [(trained.code.numbers(s), trained.code.classes_of(s), True) for s in pool]
    losses = [diffusion._loss(model, diffusion._schedule(), known, np.random.default_rng(9)).item() for model in (untrained, trained.model)]
    assert losses[1] < 0.8 * losses[0], losses


def test_rows_of_padding_change_nothing(small):
    model = diffusion.LayoutDenoiser(3).eval()
    torch.manual_seed(1)
    x, time, classes = torch.randn(1, 3, NUMBERS), torch.tensor([300]), torch.tensor([[0, 2, 1]])
    alone = model(x, time, classes, torch.zeros(1, 3, dtype=torch.bool))
    wide = torch.cat([x, torch.randn(1, 4, NUMBERS)], dim=1)
    padded = model(wide, time, torch.cat([classes, torch.ones(1, 4, dtype=torch.int64)], 1), torch.arange(7)[None] > 2)
    assert torch.allclose(padded[:, :3], alone, atol=1e-5)
