"""Mosaics of four training pictures: every pixel and every label is of one of them, the same every time, what is cut off is counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.scene import Instance
from ccdiff_cli.synthesis import verify_set
from ccdiff_cli.trainability import mosaic as module
from ccdiff_cli.trainability.mosaic import make_mosaics, mosaic, shares_of

from ..detectors.small import make_set

SHARES = 0.7, 0.2


@pytest.fixture
def real(tmp_path):
    return make_set(tmp_path / "real", {"train": 12, "test": 2})


def quadrants(scene):
    (x, y), width, height = scene.provenance["meet"], scene.width, scene.height
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]


def place_of(part, whole):
    """Where a part lies in a picture, by its pixels."""
    h, w = part.shape[:2]
    spots = [
        (x, y)
        for y in range(whole.shape[0] - h + 1)
        for x in range(whole.shape[1] - w + 1)
        if np.array_equal(whole[y : y + h, x : x + w], part)
    ]
    return spots


def test_every_quadrant_is_a_part_of_its_picture_with_the_labels_that_lie_in_it(real):
    train = real.split("train")
    by_name = {scene.file_name: scene for scene in train}
    objects = 0
    for k in range(16):
        made, picture, happened = mosaic(k, train, 0, SHARES)
        pixels = np.asarray(picture)
        assert (made.width, made.height) == picture.size == (train[0].width, train[0].height)
        expected = []
        for name, (x1, y1, x2, y2) in zip(made.provenance["pictures"], quadrants(made), strict=True):
            assert made.width / 4 - 1 <= min(x2 - x1, made.width - x2 + x1) and made.height / 4 - 1 <= min(y2 - y1, made.height - y2 + y1)
            source = by_name[name]
            spots = place_of(pixels[y1:y2, x1:x2], np.asarray(Image.open(source.path).convert("RGB")))
            assert spots, (k, name)
            shown = {
                (round(i.hbb[0] - u + x1, 3), round(i.hbb[1] - v + y1, 3), i.category)
                for u, v in spots[:1]
                for i in source.instances
                if u <= i.hbb[0] and i.hbb[2] <= u + x2 - x1 and v <= i.hbb[1] and i.hbb[3] <= v + y2 - y1
            }
            expected.append(shown)
            found = {(round(i.hbb[0], 3), round(i.hbb[1], 3), i.category) for i in made.instances}
            assert len(spots) > 1 or shown <= found  # whole objects are labelled where they are drawn
        for instance in made.instances:
            a, b, c, d = instance.hbb
            assert sum(x1 <= a and c <= x2 and y1 <= b and d <= y2 for x1, y1, x2, y2 in quadrants(made)) == 1
        objects += len(made.instances)
        assert set(happened) <= {"cut off by a quadrant"}
        assert sum(i.difficult for i in made.instances) >= made.provenance["difficult"]
    assert objects > 16


def test_a_set_made_once_and_the_same_every_time(real, tmp_path, monkeypatch):
    train, seen = real.split("train"), []
    made = make_mosaics(tmp_path / "a", real, train, 8, progress=lambda *a: seen.append(a))
    assert verify_set(made.root)["ok"], verify_set(made.root)["problems"]
    assert made.manifest["kind"] == "mosaic" and len(made.split("train")) == 8 and seen[-1] == ("mosaic pictures", 8, 8)
    assert make_mosaics(tmp_path / "b", real, train, 8).key() == made.key() != make_mosaics(tmp_path / "b", real, train, 8, draw=1).key()
    more = make_mosaics(tmp_path / "b", real, train, 10)
    assert more.scenes[:8] == tuple(s.replace(path=p.path) for s, p in zip(made.scenes, more.scenes, strict=False))
    counted = sum((mosaic(k, train, 0, SHARES)[2] for k in range(8)), start=Counter())
    assert made.manifest["left_out"] == dict(counted)
    assert made.manifest["difficult"] == sum(i.difficult for s in made.scenes for i in s.instances)
    assert {s.provenance["pictures"][0] for s in made.scenes} == {s.provenance["pictures"][0] for s in more.scenes[:8]}
    monkeypatch.setattr(module, "mosaic", lambda *a: pytest.fail("made again"))
    assert make_mosaics(tmp_path / "a", real, train, 8).key() == made.key()


def test_an_oriented_box_stays_in_its_quadrant_and_is_counted(real):
    first = real.split("train")[0]
    turned = Instance.from_corners("ship", (32.0, 2.0, 62.0, 32.0, 32.0, 62.0, 2.0, 32.0), (2.0, 2.0, 62.0, 62.0))
    scene = first.replace(instances=(turned,))
    fitted = objects = 0
    for k in range(24):
        made, _, _ = mosaic(k, [scene], 0, SHARES)
        for instance in made.instances:
            inside = [
                min(instance.corners[::2]) >= x1 - 0.5 and max(instance.corners[::2]) <= x2 + 0.5
                and min(instance.corners[1::2]) >= y1 - 0.5 and max(instance.corners[1::2]) <= y2 + 0.5
                for x1, y1, x2, y2 in quadrants(made)
            ]  # fmt: skip
            assert sum(inside) == 1
        fitted, objects = fitted + made.provenance["fitted"], objects + len(made.instances)
    assert 0 < fitted <= objects


def test_shares_are_those_that_the_set_was_made_with():
    assert shares_of({}) == shares_of({"prepare": None}) == SHARES
    assert shares_of({"prepare": {"options": {"keep_share": 0.5, "difficult_share": 0.5}}}) == (0.5, 0.5)


def test_a_smaller_picture_leaves_grey_and_its_labels_stay_in_it(real, tmp_path):
    big = real.split("train")[0]
    path = tmp_path / "small.png"
    Image.fromarray(np.full((12, 10, 3), 200, np.uint8)).save(path)
    small = big.replace(file_name="small.png", path=path, width=10, height=12, instances=(Instance.from_hbb("ship", (1, 2, 6, 7)),))
    for k in range(1, 40):
        made, picture, _ = mosaic(k, [big, small], 0, SHARES)
        names = made.provenance["pictures"]
        if names[0] == big.file_name and names[3] == "small.png":
            break
    (x, y), pixels = made.provenance["meet"], np.asarray(picture)
    corner = pixels[y:, x:]
    assert corner.shape[0] > 12 and corner.shape[1] > 10
    assert (corner[:12, :10] == 200).all() and (corner[12:] == module.GREY).all() and (corner[:, 10:] == module.GREY).all()
    assert any(i.hbb == (x + 1, y + 2, x + 6, y + 7) for i in made.instances)
