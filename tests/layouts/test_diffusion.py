"""Layouts by diffusion: maps and boxes are each other's inverse, outliers are left out and counted, a training is kept."""

import numpy as np
import pytest
import torch

from ccdiff_cli.geometry import corners_to_le90, hbb_corners, le90_to_corners, rotated_iou
from ccdiff_cli.layouts import LayoutOptions, diffusion, plan_layouts
from ccdiff_cli.layouts.diffusion import SIDE, DiffusionLayouts, Likely, box_around, maps_of
from ccdiff_cli.layouts.planning import TOGETHER
from ccdiff_cli.scene import Instance, Scene
from tests.layouts.test_sampler import harbours


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A model after a few steps, kept in a folder of the test's own."""
    monkeypatch.setenv("CCDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(diffusion, "STEPS", 3)
    monkeypatch.setattr(diffusion, "DRAW_STEPS", 2)
    return tmp_path / "layouts"


class Fixed(DiffusionLayouts):
    """A model whose maps are given: for each call those of the next scene."""

    def __init__(self, pool, *answers):
        self.classes = sorted({name for scene in pool for name in scene.categories()})
        self.likely, self.fill, self.oriented = Likely(pool), {}, {"ship": True, "court": False, "harbor": False}
        self.answers = list(answers)

    def _maps(self, scenes, rngs):
        return np.stack([maps_of(self.answers.pop(0), self.classes) * 2.0 - 1 for _ in scenes])


DIFFUSION = LayoutOptions(source="diffusion")


def test_a_cell_belongs_to_the_object_that_its_centre_lies_in():
    scene = Scene("a.png", 128, 64, (Instance.from_hbb("court", (4, 2, 10, 5)), Instance.from_hbb("ship", (65, 33, 65.4, 33.1))))
    maps = maps_of(scene, ["court", "harbor", "ship"])
    assert maps.shape == (3, SIDE, SIDE)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[2:5, 2:5] = True  # cells of 2 x 1 px
    assert (maps[0] == expected).all() and not maps[1].any()
    assert maps[2].sum() == 1 and maps[2, 33, 32], "one too small for a centre has the cell it stands in"


@pytest.mark.parametrize("angle", [0.0, 0.2, 0.7, -1.1])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (256, 128)])
def test_boxes_come_back_from_their_maps(angle, width, height):
    pool = harbours().scenes
    for w, h in ((40, 12), (30, 28)):
        ship = Instance.from_corners("ship", le90_to_corners((66.3, 60.8, w, h, angle)))
        scene = Scene("a.png", width, height, (ship, Instance.from_hbb("court", (4, 100, 24, 120))))
        likely = Fixed([scene, *pool], scene)
        likely.likely.box = likely.likely.number = lambda *given: True
        (made,) = likely.draw([scene.replace(instances=())], [np.random.default_rng(0)])
        court, back = made.instances
        assert (court.category, back.category) == ("court", "ship") and back.oriented and not court.oriented
        overlap = rotated_iou(np.array([ship.corners]), np.array([back.corners]))[0, 0]
        assert overlap > (0.85 if width == 128 else 0.72), (w, h, overlap)
        assert corners_to_le90(back.corners)[2] * corners_to_le90(back.corners)[3] == pytest.approx(w * h, rel=0.15), (
            "no larger for the steps"
        )


def test_an_upright_box_of_cells_is_taken_as_it_is():
    ring = np.reshape(hbb_corners((10, 20, 40, 26)), (4, 2))
    assert box_around(ring, 2.0) == pytest.approx(hbb_corners((10, 20, 40, 26)))


def test_outliers_are_left_out_and_unlikely_layouts_drawn_again():
    pool = list(harbours().scenes)
    ships = [s for s in pool if "ship" in s.categories()]
    likely = Likely(pool)
    usual, harbor = (next(i for i in ships[0].instances if i.category == name) for name in ("ship", "harbor"))
    assert likely.box(usual, ships[0]) and likely.box(harbor, ships[0])
    huge = Instance.from_corners("ship", le90_to_corners((64, 64, 90, 30, 0.0)))
    long = Instance.from_corners("ship", le90_to_corners((64, 64, 80, 1, 0.0)))
    assert not likely.box(huge, ships[0]) and not likely.box(long, ships[0])
    assert likely.number(4) and not likely.number(0) and not likely.number(400)

    court = Scene("c.png", 128, 128, (Instance.from_hbb("court", (50, 50, 70, 80)),))
    nothing, both = court.replace(instances=()), court.replace(instances=(*court.instances, huge))
    # the first of two is empty at first, the second has an outlier; what is drawn again is the first alone
    first, second = Fixed(pool, nothing, both, court).draw([court, court], [np.random.default_rng(k) for k in (0, 1)])
    assert first.provenance["layout"] == {"rejected": 1, "outliers": 0} and len(first.instances) == 1
    assert second.provenance["layout"] == {"rejected": 0, "outliers": 1} and len(second.instances) == 1
    (kept,) = Fixed(pool, *[nothing] * diffusion.TRIES).draw([court], [np.random.default_rng(0)])
    assert kept.instances == court.instances
    assert kept.provenance["layout"] == {"rejected": diffusion.TRIES, "outliers": 0, "instead_of": "diffusion"}


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


def test_training_lowers_the_loss(small, monkeypatch):
    monkeypatch.setattr(diffusion, "STEPS", 20)
    pool = list(harbours().scenes)
    torch.manual_seed(0)
    untrained = diffusion.LayoutDenoiser(3)
    trained = DiffusionLayouts(pool)
    losses = [
        diffusion._loss(model, diffusion._schedule(), pool, trained.classes, np.random.default_rng(9)).item()
        for model in (untrained, trained.model)
    ]
    assert losses[1] < 0.7 * losses[0], losses
