"""The drawn mini set: native DIOR layout, exact boxes, the same bytes for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely.geometry import Polygon

from ccdiff_cli.drawn import CLASS_MAP, CLASSES, draw_dataset, draw_picture
from ccdiff_cli.drawn.canvas import Canvas, box, turned
from ccdiff_cli.drawn.objects import airplane, tank
from ccdiff_cli.drawn.scenes import SCENES
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.formats.classes import DIOR, VHR10, plain_name, read_class_file
from ccdiff_cli.formats.dior import read_dior

ONE_OF_EACH = len(SCENES)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_native_layout_is_read_as_dior(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "set", pictures=16, size=64)
    raw = read_dior(root)
    assert [s.split for s in raw.scenes].count("train") == 10
    assert [s.split for s in raw.scenes].count("val") == 2
    assert [s.split for s in raw.scenes].count("test") == 4
    assert not raw.skipped
    assert all(i.oriented for s in raw.scenes for i in s.instances)  # HBB and OBB files match one to one
    for scene in raw.scenes:
        assert Path(str(scene.path)).parent.name == ("JPEGImages-test" if scene.split == "test" else "JPEGImages-trainval")
        assert cv2.imread(str(scene.path)).shape == (64, 64, 3)
        assert len(scene.instances) == len(draw_picture(int(scene.source) - 1, size=64)[1])


def test_class_names_are_those_of_dior_and_of_the_shipped_model(tmp_path: Path) -> None:
    dior = {plain_name(name) for name in DIOR}
    assert all(name in dior for name in CLASS_MAP)
    assert all(name in VHR10 for name in CLASS_MAP.values())
    classes = read_class_file(draw_dataset(tmp_path / "set", pictures=8, size=32) / CLASSES)
    assert tuple(classes.classes) == tuple(CLASS_MAP.values())


def test_deterministic_and_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    small, again = (files(draw_dataset(tmp_path / name, pictures=8, size=32, seed=3)) for name in "ab")
    assert small == again
    larger = files(draw_dataset(tmp_path / "c", pictures=9, size=32, seed=3))
    pictures = [name for name in small if name.endswith((".jpg", ".xml"))]
    assert len(pictures) == 24 and all(larger[name] == small[name] for name in pictures)
    other = files(draw_dataset(tmp_path / "d", pictures=8, size=32, seed=4))
    assert all(other[name] != small[name] for name in pictures if name.endswith(".jpg"))


def test_drawn_again_only_where_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = files(draw_dataset(tmp_path / "straight", pictures=8, size=32))

    def stop(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "set", pictures=8, size=32, progress=stop)
    (tmp_path / "set" / "Annotations" / ".partial-x").write_bytes(b"left by a kill")
    with pytest.raises(CCDiffError, match="other numbers"):
        draw_dataset(tmp_path / "set", pictures=9, size=32)
    assert files(draw_dataset(tmp_path / "set", pictures=8, size=32)) == straight
    monkeypatch.setattr("ccdiff_cli.drawn.draw_picture", None)  # finished: nothing is drawn any more
    draw_dataset(tmp_path / "set", pictures=8, size=32)


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(CCDiffError, match="something other"):
        draw_dataset(tmp_path / "mine", pictures=8)
    assert files(tmp_path / "mine") == {"thesis.txt": b"x"}
    for wrong in ({"pictures": 7}, {"size": 8}, {"size": 5000}):
        with pytest.raises(CCDiffError, match="expected"):
            draw_dataset(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", range(2 * ONE_OF_EACH))
def test_boxes_lie_in_the_picture_and_apart(number: int) -> None:
    _, objects = draw_picture(number, size=128, seed=5)
    assert objects
    shapes = []
    for item in objects:
        x, y = np.array(item["corners"][0::2]), np.array(item["corners"][1::2])
        x1, y1, x2, y2 = item["hbb"]
        assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 128
        # the outline lies in its OBB, so the HBB of the outline lies in the HBB of the OBB
        assert x.min() - 1e-6 <= x1 and x2 <= x.max() + 1e-6 and y.min() - 1e-6 <= y1 and y2 <= y.max() + 1e-6
        sides = np.hypot(np.diff([*x, x[0]]), np.diff([*y, y[0]]))
        assert sides[0] == pytest.approx(sides[2]) and sides[1] == pytest.approx(sides[3])
        shapes.append(Polygon(zip(x, y, strict=True)))
    for i, a in enumerate(shapes):
        for b in shapes[:i]:
            assert a.intersection(b).area < 0.25 * min(a.area, b.area)  # the boxes of neighbours may touch, what is in them does not


def test_every_class_comes_often_enough_in_every_split() -> None:
    seen: dict[str, Counter[str]] = {"train": Counter(), "val": Counter(), "test": Counter()}
    from ccdiff_cli.drawn import _SPLITS

    for number in range(160):
        seen[_SPLITS[number % 8]].update(item["category"] for item in draw_picture(number, size=32)[1])
    assert all(seen["train"][name] >= 20 and seen["test"][name] >= 8 and seen["val"][name] >= 1 for name in CLASS_MAP), seen


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.3, 2.9])
def test_the_label_is_what_was_painted(angle: float) -> None:
    """Paint one object on a plain ground and compare what changed (shadow and faint edge pixels aside) with its box."""
    canvas = Canvas(256, np.random.default_rng(0))
    canvas.img[:] = 120
    canvas.darkness = 0.0  # no shadow
    assert airplane(canvas, (128, 128), angle, 120, "jet")
    changed = (np.abs(canvas.img.astype(int) - 120) > 40).any(axis=2)
    rows, columns = np.nonzero(changed)
    (item,) = canvas.objects
    drawn = (np.stack([columns, rows], axis=1) + 0.5) / 2  # raster pixels -> pixels of the picture
    local = turned(drawn - 128, angle=-angle)
    corners = turned(np.array(item["corners"]).reshape(4, 2) - 128, angle=-angle)
    assert np.allclose(local.min(axis=0), corners.min(axis=0), atol=0.8)
    assert np.allclose(local.max(axis=0), corners.max(axis=0), atol=0.8)
    assert np.allclose([*drawn.min(axis=0), *drawn.max(axis=0)], item["hbb"], atol=0.8)


def test_shadows_fall_along_the_sun_and_grow_with_height() -> None:
    lengths = []
    for height in (8.0, 24.0):
        canvas = Canvas(256, np.random.default_rng(1))
        canvas.img[:] = 200
        assert tank(canvas, (128, 128), 20, (200, 200, 200), floating=False, height=height)
        dark = np.argwhere(canvas.img.sum(axis=2) < 330)[:, ::-1] / 2 - 128
        outside = dark[np.hypot(*dark.T) > 21]
        middle = outside.mean(axis=0)
        assert middle @ canvas.sun > 0.95 * np.hypot(*middle)
        lengths.append((outside @ canvas.sun).max())
    assert lengths[1] - lengths[0] == pytest.approx(16 * canvas.reach, abs=1.5)


def test_nothing_is_painted_over_a_taken_place_or_the_border() -> None:
    canvas = Canvas(128, np.random.default_rng(2))
    assert airplane(canvas, (128, 128), 0.0, 80, "heavy")
    before = canvas.img.copy()
    assert not airplane(canvas, (140, 140), 1.0, 80, "jet")
    assert not airplane(canvas, (20, 20), 1.0, 80, "jet")
    assert (canvas.img == before).all() and len(canvas.objects) == 1
    assert canvas.free(box(10, 10, 30, 30)) and not canvas.free(box(10, 10, 30, 30))


def test_pictures_look_like_photographs_to_a_ruler() -> None:
    """Not flat, not noise: most of the contrast is coarse, yet fine texture and colour are there."""
    for number in range(ONE_OF_EACH):
        picture = draw_picture(number, seed=7)[0].astype(np.float32)
        grey = picture.mean(axis=2)
        fine = grey - cv2.GaussianBlur(grey, (0, 0), 2)
        coarse = cv2.GaussianBlur(grey, (0, 0), 2).std()
        assert 1.0 < fine.std() < coarse < 80
        assert picture.std(axis=2).mean() > 1.0
        assert (picture <= 2).mean() < 0.05 and (picture >= 253).mean() < 0.2
