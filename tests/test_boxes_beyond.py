"""Oriented boxes that reach beyond their picture (docs/labels.md) through everything that takes boxes."""

import math
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.affinity
import torch
from PIL import Image

from ccdiff_cli.dataset import PictureSet
from ccdiff_cli.detectors import Detections
from ccdiff_cli.detectors.samples import scene_targets
from ccdiff_cli.detectors.training import Found, _detections
from ccdiff_cli.drawing import draw_scene, layout_image
from ccdiff_cli.geometry import area_inside, corners_to_le90, fitted_corners, le90_to_corners, rotated_iou, visible_hbbs
from ccdiff_cli.inspection.facts import APART, REACHES_OUT, boxes_of, suspicious_boxes
from ccdiff_cli.layouts import LayoutOptions, layouts_of_set, plan_layouts
from ccdiff_cli.layouts.augment import augment_layout, cut_sides, touches_border
from ccdiff_cli.layouts.llm import _size_ranges, answer_of, read_answer
from ccdiff_cli.layouts.repair import no_overlap, repair
from ccdiff_cli.layouts.sampler import Sampler
from ccdiff_cli.layouts.statistics import Statistics, distances
from ccdiff_cli.metrics.average_precision import evaluate
from ccdiff_cli.metrics.clip_score import crop
from ccdiff_cli.models.layers import fourier_code
from ccdiff_cli.models.layout import boxes_of_scenes, region_masks, soft_ellipses
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.prepare.merging import merge_tiles
from ccdiff_cli.prepare.tiling import cut_scene, tile_origins
from ccdiff_cli.references import reference_window
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.synthesis.filtering import object_scores

CLASSES = ClassList(("ship", "court"))
W, H = 96, 64
BOXES = {
    "left": (2, 30, 20, 8, 0.3), "right": (95, 32, 24, 10, -0.7), "top": (48, 3, 16, 12, 1.2), "bottom": (50, 62, 20, 10, 0.1),
    "corner": (3, 3, 20, 12, 0.8), "far": (-60, 20, 150, 10, 0.05), "centre outside": (-4, 40, 30, 10, 0.5),
    "all of it": (48, 32, 300, 300, 0.4), "across": (48, 32, 200, 12, 0.6),
}  # fmt: skip


def reaching(box, width=W, height=H, name="ship"):
    corners = le90_to_corners(box)
    return Instance.from_corners(name, corners, visible_hbbs(np.array([corners]), (0, 0, width, height))[0].tolist())


def scene(*names, width=W, height=H):
    return Scene("a.png", width, height, tuple(reaching(BOXES[n]) for n in names or BOXES), source="a")


def visible_share(instance, width, height):
    return area_inside(instance.corners, width, height) / shapely.Polygon(np.reshape(instance.corners, (4, 2))).area


def has_the_hbb_of_what_is_visible(instance, width, height, tolerance=1e-3):
    return np.abs(np.array(instance.hbb) - visible_hbbs(np.array([instance.corners]), (0, 0, width, height))[0]).max() < tolerance


def test_the_hbb_of_what_is_visible_is_shapelys():
    rng = np.random.default_rng(0)
    boxes = [(*rng.uniform(-60, 160, 2), *rng.uniform(5, 200, 2), rng.uniform(-1.5, 1.5)) for _ in range(300)]
    corners = np.array([le90_to_corners(b) for b in boxes])
    for made, four in zip(visible_hbbs(corners, (0, 0, W, H)), corners, strict=True):
        part = shapely.Polygon(four.reshape(4, 2)).intersection(shapely.box(0, 0, W, H))
        if part.area > 1e-9:
            assert made == pytest.approx(part.bounds, abs=1e-9)
    windows = np.tile([0.0, 0.0, W, H], (300, 1))
    assert np.array_equal(visible_hbbs(corners, windows), visible_hbbs(corners, (0, 0, W, H)))


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("shape", ["hbb", "obb"])
def test_gates_and_regions_cover_what_is_visible_and_nothing_else(name, shape):
    picture = scene(name)
    boxes = boxes_of_scenes([picture], ["ship"])
    gate = soft_ellipses(boxes.hbb[0], boxes.obb[0], (H, W), shape=shape, centred=True)[0].numpy()
    assert np.isfinite(gate).all() and gate.max() > 0.9
    outline = shapely.Polygon(np.reshape(picture.instances[0].corners, (4, 2)))
    visible = outline.intersection(shapely.box(0, 0, W, H))
    x, y = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    inside = shapely.contains_xy(visible, x, y)
    soft = shapely.affinity.scale(shapely.box(*visible.bounds) if shape == "hbb" else outline, 1.25, 1.25).buffer(1)
    around = shapely.contains_xy(soft, x, y)
    assert gate[~around].max(initial=0) < 0.02 and gate[inside].max() > 0.9
    region = region_masks(boxes.obb[0].numpy(), (H, W), (H, W))
    assert region[0][inside].mean() > 0.93 and not region[0][~shapely.contains_xy(visible.buffer(2), x, y)].any()
    assert region[1].sum() == (~region[0]).sum()
    assert torch.isfinite(fourier_code(boxes.obb)).all()


def pool(count=12, size=64):
    """Two ships cut by the left border at every place along it, whole (80 % visible), and a court in the middle."""
    rng, made = np.random.default_rng(0), []
    for k in range(count):
        ships = [reaching((6, y + rng.uniform(-3, 3), 20, 6, rng.uniform(-0.1, 0.1)), size, size) for y in (20, 44)]
        made.append(Scene(f"p{k}.png", size, size, (*ships, Instance.from_hbb("court", (30, 24, 42, 38))), source=f"s{k}"))
    return PictureSet(Path("D"), CLASSES, tuple(made), {})


@pytest.mark.parametrize("source", ["set", "augmented", "mixed", "sampled"])
def test_layouts_of_every_source_keep_cut_objects_cut(source):
    real = pool()
    made = plan_layouts(real, 60, 0, LayoutOptions(source=source))
    ships = [(i, s) for s in made for i in s.instances if i.category == "ship"]
    assert len(ships) > 60
    assert all(has_the_hbb_of_what_is_visible(i, 64, 64) for i, _ in ships)
    cut = [visible_share(i, 64, 64) for i, _ in ships if touches_border(i, 64, 64)]
    assert len(cut) > 0.95 * len(ships), "in the set every ship is cut"
    assert np.mean(cut) == pytest.approx(0.8, abs=0.04) and min(cut) > 0.65, "as much of them is visible as in the set"
    if source in ("augmented", "mixed"):
        assert len({round(i.hbb[1], 1) for i, _ in ships}) > 40, "they move along their border"


def test_a_layout_moves_along_the_borders_that_do_not_cut_it():
    before = Scene("a.png", 64, 64, (reaching((6, 30, 20, 6, 0.5), 64, 64),))
    shifts = []
    for k in range(20):
        made = augment_layout(before, np.random.default_rng(k))
        change, (ship,) = made.provenance["layout"], made.instances
        assert change["scale"] == 1 and sum(abs(v) > 1e-9 for v in change["shift"]) <= 1
        assert has_the_hbb_of_what_is_visible(ship, 64, 64)
        assert visible_share(ship, 64, 64) == pytest.approx(visible_share(before.instances[0], 64, 64), abs=1e-6)
        shifts.append(max(map(abs, change["shift"])))
    assert np.median(shifts) > 3


def test_a_border_that_only_the_part_outside_crosses_does_not_cut():
    slanting = reaching((1, 12, 60, 6, math.pi / 4), 64, 64)  # down to the right; above the picture where it is left of it
    assert min(slanting.corners[1::2]) < -5 and cut_sides(slanting, 64, 64)[:2] == (True, False)


@pytest.mark.parametrize("name", BOXES)
def test_flips_and_turns_carry_the_part_outside_along(name):
    square = Scene("a.png", 64, 64, (reaching(BOXES[name], 64, 64),))
    for k in range(12):
        (made,) = augment_layout(square, np.random.default_rng(k)).instances
        assert has_the_hbb_of_what_is_visible(made, 64, 64)
        assert area_inside(made.corners, 64, 64) == pytest.approx(area_inside(square.instances[0].corners, 64, 64), rel=1e-6)


def test_repair_leaves_cut_objects_and_pushes_the_others():
    cut, inside = reaching((4, 30, 20, 6, 0.2), 64, 64), Instance.from_corners("ship", le90_to_corners((12, 33, 10, 6, 0.2)))
    made, counts = repair(Scene("a.png", 64, 64, (inside, cut)), cut=[1])
    assert made.instances[1] == cut and counts == {"moved": 1, "shrunk": 0, "left_out": 0}
    assert rotated_iou(np.array([made.instances[0].corners]), np.array([cut.corners])).max() < 1e-6
    made, counts = repair(Scene("a.png", 64, 64, (cut, cut)), cut=[0, 1])
    assert made.instances == (cut,) and counts["left_out"] == 1
    made, _ = repair(Scene("a.png", 64, 64, (cut,)), allowed=no_overlap)
    assert min(made.instances[0].corners) >= 0, "nothing says that it is cut: it comes in"


@pytest.mark.parametrize("border", [1, 2, 4, 8, 3, 12, 5, 15])
def test_sampled_objects_reach_as_far_beyond_the_same_borders(border):
    """Every object of the set is cut alike: so is every one that is drawn."""
    x = {1: 3, 4: 61}.get(border & 5, 32)
    y = {2: 2, 8: 62}.get(border & 10, 32)
    long = 150 if border in (5, 15) else 24
    rng, scenes = np.random.default_rng(1), []
    for k in range(12):
        box = (x, y + (0 if border & 10 else rng.uniform(-15, 15)), long, long if border == 15 else 9, 0.0 if border & 5 else 1.57)
        if border in (2, 8):
            box = (x + rng.uniform(-15, 15), *box[1:])
        if border in (3, 12):
            box = (*box[:2], 24, 14, 0.4)
        scenes.append(Scene(f"p{k}.png", 64, 64, (reaching(box, 64, 64),), source=f"s{k}"))
    real = [visible_share(s.instances[0], 64, 64) for s in scenes]
    sides = cut_sides(scenes[0].instances[0], 64, 64)
    sampler = Sampler(scenes)
    made = [sampler.draw(scenes[0], np.random.default_rng(k)).instances[0] for k in range(40)]
    assert all(has_the_hbb_of_what_is_visible(i, 64, 64) for i in made)
    assert sum(cut_sides(i, 64, 64) == sides for i in made) >= 38
    assert np.median([visible_share(i, 64, 64) for i in made]) == pytest.approx(np.median(real), abs=0.05)


def test_layout_statistics_see_centres_outside():
    scenes = list(layouts_of_set(PictureSet(Path("D"), CLASSES, (scene("centre outside", "left"),), {})))
    stats = Statistics(scenes, CLASSES)
    assert distances(stats, stats)["places"] == 0 and stats.summary()["cut_by_the_border"] == 1


@pytest.mark.parametrize("name", BOXES)
def test_a_language_model_is_shown_boxes_that_it_may_write(name):
    picture = scene(name)
    fitted = fitted_corners(picture.instances[0].corners, (0, 0, W, H))
    sizes = _size_ranges([Scene("b.png", W, H, (Instance.from_corners("ship", fitted),))])
    ((category, box),) = read_answer(answer_of(picture), picture, sizes)
    assert category == "ship"
    assert area_inside(le90_to_corners(box), W, H) > 0.85 * area_inside(picture.instances[0].corners, W, H)


def test_detector_targets_and_perfect_detections_of_either_kind():
    picture = scene("left", "right", "top", "bottom", "corner", "across", "centre outside")
    targets = scene_targets(picture, CLASSES, oriented=True)
    assert len(targets["labels"]) == 7 and targets["boxes"].min() >= 0
    assert (targets["boxes"][:, 2] <= W).all() and (targets["boxes"][:, 3] <= H).all()
    truth = np.array([i.corners for i in picture.instances])
    assert np.diag(rotated_iou(targets["corners"].reshape(-1, 8).numpy(), truth)).min() > 0.999
    corners = torch.tensor(truth, dtype=torch.float32).reshape(-1, 4, 2)
    hull = torch.cat([corners.amin(1), corners.amax(1)], 1)
    output = Found(hull, torch.ones(7), torch.zeros(7, dtype=torch.int64), corners)
    found = _detections(picture, torch.zeros(3, H, W), output)
    assert np.abs(found.boxes - [i.hbb for i in picture.instances]).max() < 1e-3
    for boxes in ("hbb", "obb"):
        assert evaluate([picture], [found], CLASSES, boxes).summary["mAP"] == pytest.approx(100)
    assert object_scores(picture, found, CLASSES) == [1.0] * 7


@pytest.mark.parametrize("name", BOXES)
def test_crops_captions_and_drawings(name):
    picture = scene(name)
    (instance,) = picture.instances
    x1, y1, x2, y2 = reference_window(instance, W, H)
    assert 0 <= x1 < x2 <= W and 0 <= y1 < y2 <= H and x1 <= instance.hbb[0] and x2 >= instance.hbb[2]
    assert "1 ship" in caption_of(picture)
    plain = np.full((H, W, 3), 90, np.uint8)
    shown = fitted_corners(instance.corners, (0, 0, W, H))
    piece = crop(Image.fromarray(plain), instance.corners)
    assert piece is not None and piece.size == tuple(max(1, round(v)) for v in corners_to_le90(shown)[2:4])
    filled = np.asarray(layout_image(picture, labels=False, classes=CLASSES)).astype(int)
    x, y = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    outline = shapely.Polygon(np.reshape(instance.corners, (4, 2)))
    ground = np.array(filled[~shapely.contains_xy(outline.buffer(3), x, y)])
    assert not len(ground) or (ground == ground[0]).all()
    inner = filled[shapely.contains_xy(outline.buffer(-3), x, y)]
    assert len(inner) and (inner != [236, 236, 232]).any(axis=1).all()
    lines = (np.asarray(draw_scene(Image.fromarray(plain), picture, classes=CLASSES, labels=True, width=1)) != 90).any(axis=2)
    edge = shapely.contains_xy(outline.exterior.buffer(0.5), x, y)
    assert lines[edge].mean() > 0.9 if edge.any() else name == "all of it"


@pytest.mark.parametrize(("long", "apart", "least"), [(34, 48, 0.99), (110, 110, 0.9)])  # the overlap of tiles is 40
def test_labels_of_tiles_as_detections_come_back_as_the_scenes_boxes(long, apart, least):
    rng = np.random.default_rng(3)
    centres = [(x + rng.uniform(-6, 6), y + rng.uniform(-6, 6)) for y in range(0, 320, apart) for x in range(0, 420, apart)]
    whole = Scene("s.png", 400, 300, tuple(
        reaching((*c, rng.uniform(long - 14, long), rng.uniform(8, 14), rng.uniform(-1.5, 1.5)), 400, 300) for c in centres
        if -3 < c[0] < 403 and -3 < c[1] < 303
    ))  # fmt: skip
    tiles, found = [], []
    for x, y in tile_origins(400, 300, 128, 40):
        instances, _ = cut_scene(whole, (x, y), 128, 1.0, keep=0.7, difficult=0.3)
        place = {"picture": "s.png", "offset": [x, y], "side": 128, "scale": 1.0}
        tiles.append(Scene(f"{x}_{y}.png", 128, 128, tuple(instances), provenance=place))
        found.append(
            Detections(
                np.array([i.hbb for i in instances], np.float32).reshape(-1, 4),
                np.full(len(instances), 0.9, np.float32),
                np.zeros(len(instances), np.int64),
                np.array([i.corners for i in instances], np.float32).reshape(-1, 8),
            )
        )
    merged = merge_tiles(tiles, found)["s.png"]
    truth = np.array([i.corners for i in whole.instances])
    overlap = rotated_iou(truth, merged.corners)
    assert len(merged) == len(whole.instances)
    for one, k in zip(truth, overlap.argmax(axis=1), strict=True):
        a, b = (shapely.Polygon(c.reshape(4, 2)).intersection(shapely.box(0, 0, 400, 300)) for c in (one, merged.corners[k]))
        assert a.intersection(b).area > least * a.union(b).area
    assert merged.boxes.min() >= 0 and merged.boxes[:, 2].max() <= 400 and merged.boxes[:, 3].max() <= 300
    hbbs = np.array([i.hbb for i in whole.instances])
    assert np.abs(merged.boxes[overlap.argmax(axis=1)] - hbbs).max() < 2


def test_inspect_finds_nothing_wrong_with_the_boxes_that_prepare_makes(tmp_path):
    for name in ("left", "right", "top", "bottom", "corner", "across"):
        Image.new("RGB", (W, H), (90, 90, 90)).save(tmp_path / f"{name}.png")
    scenes = []
    for name in ("left", "right", "top", "bottom", "corner", "across"):
        instances, _ = cut_scene(Scene("a.png", W, H, (reaching(BOXES[name]),)), (0, 0), W, 1.0, keep=0.7, difficult=0.2)
        scenes.append(Scene(f"{name}.png", W, H, tuple(instances), path=str(tmp_path / f"{name}.png")))
    counts = suspicious_boxes(scenes, CLASSES, boxes_of(scenes, CLASSES))["counts"]
    assert sum(len(s.instances) for s in scenes) == 6 and not any(counts.values()), counts


def test_a_wild_box_is_still_suspicious():
    apart = Instance.from_corners("ship", le90_to_corners((10, 10, 20, 8, 0.0)), (60, 40, 80, 60))
    slanting = Instance.from_corners("ship", le90_to_corners((0, 12, 60, 6, math.pi / 4)), (0, 0, 22, 36))  # its hull's part inside
    scenes = [Scene("a.png", W, H, (apart, slanting, reaching(BOXES["far"])))]  # a centre outside is looked at
    counts = suspicious_boxes(scenes, CLASSES, boxes_of(scenes, CLASSES))["counts"]
    assert counts[APART] == 1 and counts[REACHES_OUT] == 1
