"""Drawing: boxes land where the labels say, colours are fixed, sheets have the size that their cells ask for."""

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.drawing import GROUND, PALETTE, class_colour, comparison_grid, contact_sheet, draw_scene, layout_image, legend, picture_of
from ccdiff_cli.scene import ClassList, Instance, Scene

CLASSES = ClassList(("ship", "airplane", "storage tank"))


def scene(width=64, height=48):
    return Scene(
        "a.png",
        width,
        height,
        (Instance.from_hbb("ship", (10, 10, 30, 20)), Instance.from_corners("airplane", (40, 30, 50, 20, 60, 30, 50, 40))),
    )


def changed(before, after):
    return np.argwhere((np.asarray(before) != np.asarray(after)).any(axis=2))[:, ::-1]


def test_lines_lie_on_the_boxes_and_nowhere_else():
    plain = Image.new("RGB", (64, 48), (128, 128, 128))
    only_ship = scene().replace(instances=scene().instances[:1])
    points = changed(plain, draw_scene(plain, only_ship, classes=CLASSES, width=1))
    assert 7 <= points[:, 0].min() <= 9 and 30 <= points[:, 0].max() <= 33
    assert 7 <= points[:, 1].min() <= 9 and 20 <= points[:, 1].max() <= 23
    assert not ((points[:, 0] > 13) & (points[:, 0] < 27) & (points[:, 1] > 13) & (points[:, 1] < 17)).any(), "the inside is untouched"


def test_scale_magnifies_picture_and_boxes_together():
    plain = Image.new("RGB", (64, 48), (128, 128, 128))
    big = draw_scene(plain, scene(), 4, classes=CLASSES)
    assert big.size == (256, 192)
    points = changed(Image.new("RGB", (256, 192), (128, 128, 128)), big)
    assert abs(points[:, 0].max() - 240) < 8


def test_a_colour_belongs_to_the_place_in_the_class_list():
    assert class_colour("ship", CLASSES) == PALETTE[0] and class_colour("storage tank", CLASSES) == PALETTE[2]
    assert class_colour("ship") == class_colour("ship")
    assert len(set(PALETTE)) == len(PALETTE) == 20
    picture = np.asarray(draw_scene(Image.new("RGB", (64, 48)), scene(), 4, classes=CLASSES, width=3))
    assert (picture == PALETTE[0]).all(axis=2).any() and (picture == PALETTE[1]).all(axis=2).any()


def test_layout_image_fills_boxes_on_a_plain_ground():
    picture = np.asarray(layout_image(scene(), classes=CLASSES, labels=False))
    assert tuple(picture[2, 2]) == GROUND and tuple(picture[15, 20]) != GROUND and tuple(picture[30, 50]) != GROUND
    assert layout_image(Scene("e.png", 10, 10)).size == (10, 10), "an empty layout is a plain ground"


def test_arrays_of_every_usual_kind_are_pictures():
    for array in (np.zeros((4, 6), np.uint8), np.zeros((4, 6, 1)), np.ones((4, 6, 3)), np.zeros((4, 6, 4), np.uint8)):
        assert picture_of(array).size == (6, 4) and picture_of(array).mode == "RGB"
    assert picture_of(np.ones((2, 2, 3))).getpixel((0, 0)) == (255, 255, 255)


def test_contact_sheet_has_its_cells():
    sheet = contact_sheet([Image.new("RGB", (10, 10), (k, 0, 0)) for k in range(5)], columns=2, gap=2)
    assert sheet.size == (2 * 10 + 3 * 2, 3 * 10 + 4 * 2)
    assert sheet.getpixel((7, 7))[0] == 0 and sheet.getpixel((19, 7))[0] == 1 and sheet.getpixel((7, 31))[0] == 4
    with pytest.raises(ValueError):
        contact_sheet([])
    with pytest.raises(ValueError):
        contact_sheet([sheet], titles=["a", "b"])


def test_names_outside_the_picture_and_odd_boxes_do_not_fail():
    odd = Scene("a.png", 20, 20, (Instance.from_hbb("a very long class name", (-5, -5, 400, 3)), Instance.from_hbb("ship", (5, 5, 5, 5))))
    assert draw_scene(Image.new("RGB", (20, 20)), odd, labels=True).size == (20, 20)


def test_grid_accepts_scenes_pictures_and_blanks():
    real = Image.new("RGB", (64, 48), (9, 9, 9))
    grid = comparison_grid([(scene(), real, None), (scene(), None, real), (scene(), real, real)], classes=CLASSES, cell=50, across=2)
    assert grid.width == 2 * (3 * 54 - 4) + 16 + 8
    plain = comparison_grid([(real, real)], titles=("a", "b"), cell=50)
    assert plain.height < grid.height
    assert (np.asarray(grid) == PALETTE[0]).all(axis=2).any(), "the legend shows the class colour"
    with pytest.raises(ValueError):
        comparison_grid([(real,)])


def test_legend_wraps():
    one, many = legend(["ship"], 200), legend([f"class number {k}" for k in range(12)], 200)
    assert one.width == many.width == 200 and many.height > 3 * one.height
