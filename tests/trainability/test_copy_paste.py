"""Copy-paste pictures: labels where the pixels are, no real object covered, the same every time, counted when left out."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import hbb_of
from ccdiff_cli.references import write_bank
from ccdiff_cli.scene import Instance, Scene
from ccdiff_cli.synthesis import verify_set
from ccdiff_cli.trainability import copy_paste
from ccdiff_cli.trainability.copy_paste import make_copy_paste, paste_picture

from ..detectors.small import make_set

GREEN = (0, 255, 0)


def crop(width, height, masked, angle=0.0):
    """A green rectangle (turned) on full or masked ground."""
    image = Image.new("RGBA", (width, height), (*GREEN, 255 if not masked else 0))
    if masked:
        y, x = np.mgrid[:height, :width] + 0.5
        u = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
        v = -(x - width / 2) * np.sin(angle) + (y - height / 2) * np.cos(angle)
        alpha = (np.abs(u) < width * 0.45) & (np.abs(v) < height * 0.2)
        image.putalpha(Image.fromarray((alpha * 255).astype(np.uint8)))
    return image


@pytest.fixture
def real(tmp_path):
    """Twelve real pictures with a bank: of every class four crops of each source, one masked and turned."""
    made = make_set(tmp_path / "real", {"train": 12, "test": 2})
    entries = []
    for source in sorted({s.source for s in made.split("train")}):
        for name in made.classes:
            for k, (w, h) in enumerate(((24, 12), (12, 24), (20, 20), (30, 10))):
                file = f"{name}/{source}_{k}.png"
                buffer = io.BytesIO()
                crop(w, h, masked=k == 2, angle=0.6).save(buffer, "PNG")
                path = made.root / "references" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(buffer.getvalue())
                record = {"class": name, "width": w, "height": h, "masked": k == 2, "difficult": False}
                entries.append({"file": file, **record, "source": source, "sha256": f"{source}{name}{k}"})
    write_bank(made.root, entries, made.scenes)
    return made


def layouts(n=5):
    rng = np.random.default_rng(3)
    scenes = []
    for k in range(n):
        boxes = [(x, y, x + 20, y + 10) for x, y in rng.integers(0, 44, (2, 2)).tolist()]
        scenes.append(Scene(f"s{k}.png", 64, 64, tuple(Instance.from_hbb("ship", b) for b in boxes)))
    return scenes


def test_a_set_like_any_other_made_once_and_the_same_every_time(real, tmp_path, monkeypatch):
    train, seen = real.split("train"), []
    made = make_copy_paste(tmp_path / "a", real, train, layouts(), 8, progress=lambda *a: seen.append(a))
    assert verify_set(made.root)["ok"], verify_set(made.root)["problems"]
    assert made.manifest["kind"] == "copy-paste" and len(made.split("train")) == 8 and seen[-1] == ("copy-paste pictures", 8, 8)
    again = make_copy_paste(tmp_path / "b", real, train, layouts(), 8)
    assert again.key() == made.key() and again.root.name == made.root.name
    more = make_copy_paste(tmp_path / "b", real, train, layouts(), 10)
    assert more.scenes[:8] == tuple(s.replace(path=p.path) for s, p in zip(made.scenes, more.scenes, strict=False))
    monkeypatch.setattr(copy_paste, "paste_picture", lambda *a: pytest.fail("made again"))
    assert make_copy_paste(tmp_path / "a", real, train, layouts(), 8).key() == made.key()


def test_an_unfinished_set_is_made_whole(real, tmp_path):
    made = make_copy_paste(tmp_path, real, real.split("train"), layouts(), 4)
    before = {p.name: p.read_bytes() for p in made.root.rglob("*.png")}
    (made.root / "manifest.json").unlink()
    next(made.root.rglob("*.png")).unlink()
    make_copy_paste(tmp_path, real, real.split("train"), layouts(), 4)
    assert {p.name: p.read_bytes() for p in made.root.rglob("*.png")} == before


def test_labels_are_the_backgrounds_own_and_the_pasted_ones_where_the_pixels_changed(real):
    train = real.split("train")
    from ccdiff_cli.references import ReferenceBank

    bank = ReferenceBank.read(real.root).instances
    pasted = 0
    for k in range(12):
        scene, picture, _ = paste_picture(k, train, layouts()[k % 5], bank, 0, 0.1)
        background = next(s for s in train if s.file_name == scene.provenance["background"])
        assert scene.instances[: len(background.instances)] == background.instances and scene.source == background.source
        changed = (np.array(picture) != np.array(Image.open(background.path))).any(axis=2)
        for instance in scene.instances[len(background.instances) :]:
            x1, y1, x2, y2 = (int(v) for v in instance.hbb)
            assert changed[y1:y2, x1:x2].mean() > 0.3
            changed[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3] = False
            around = hbb_of(instance.corners)
            assert np.allclose(around, instance.hbb, atol=3) and (instance.oriented or around == instance.hbb)
            assert min(instance.corners) >= 0 and max(instance.corners) <= 64
            pasted += 1
        assert not changed.any()  # nothing but the pasted objects
        assert len(scene.provenance["crops"]) == len(scene.instances) - len(background.instances)
    assert pasted > 10


def test_no_object_is_covered_beyond_the_threshold(real, tmp_path):
    made = make_copy_paste(tmp_path, real, real.split("train"), layouts(), 24, overlap=0.1)
    for scene in made.scenes:
        real_ones = len(scene.instances) - len(scene.provenance["crops"])
        for j, new in enumerate(scene.instances[real_ones:], start=real_ones):
            for other in scene.instances[:j]:
                a, b = np.array(new.hbb), np.array(other.hbb)
                wide = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
                assert wide.prod() <= 0.1 * min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])) + 1e-6


def test_what_finds_no_room_or_no_crop_is_counted(real, tmp_path):
    full = real.split("train")[0]
    full = full.replace(instances=(Instance.from_hbb("ship", (0, 0, 64, 64)),))
    made = make_copy_paste(tmp_path, real, [full], layouts(1), 2)
    assert made.manifest["left_out"] == {"no room": 4} and made.manifest["pasted"] == 0
    planes = [s.replace(instances=tuple(Instance.from_hbb("plane", i.hbb) for i in s.instances)) for s in layouts(1)]
    bank = json.loads((real.root / "references" / "references.json").read_text())
    bank["instances"] = [e for e in bank["instances"] if e["class"] == "ship"]
    (real.root / "references" / "references.json").write_text(json.dumps(bank))
    mixed = [planes[0].replace(instances=(*planes[0].instances, *layouts(1)[0].instances))]
    assert make_copy_paste(tmp_path, real, real.split("train"), mixed, 3).manifest["left_out"]["no crop of the class"] == 6
    with pytest.raises(CCDiffError, match="no crop of plane from these training pictures"):
        make_copy_paste(tmp_path, real, real.split("train"), planes, 3)


def test_crops_come_from_the_given_sources_alone(real, tmp_path):
    train = real.split("train")[:4]
    made = make_copy_paste(tmp_path, real, train, layouts(), 12)
    sources = {s.source for s in train}
    assert {key[: len("a-train-0")] for s in made.scenes for key in s.provenance["crops"]} <= sources
    assert {s.source for s in made.scenes} <= sources


def test_a_set_without_a_bank(tmp_path):
    bare = make_set(tmp_path / "bare", {"train": 3})
    with pytest.raises(CCDiffError, match="no reference bank"):
        make_copy_paste(tmp_path / "out", bare, bare.split("train"), layouts(), 3)


def test_a_layout_of_another_size_is_stretched(real):
    from ccdiff_cli.references import ReferenceBank

    layout = Scene("s.png", 640, 640, (Instance.from_hbb("ship", (400, 400, 600, 500)),))
    bare = [real.split("train")[0].replace(instances=())]
    scene, _, _ = paste_picture(0, bare, layout, ReferenceBank.read(real.root).instances, 0, 0.1)
    x1, y1, x2, y2 = scene.instances[0].hbb
    assert abs((x1 + x2) / 2 - 50) < 2 and abs((y1 + y2) / 2 - 45) < 2 and 8 < x2 - x1 < 32
