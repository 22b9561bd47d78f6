"""Labels repaired by a detector: what is moved, dropped and added, that it is counted and can be undone, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ccdiff_cli.cli import app
from ccdiff_cli.dataset import read_set, write_set
from ccdiff_cli.detectors import Detections
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import sha256_file
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.synthesis import RepairOptions, repair_set, verify_set
from ccdiff_cli.synthesis.repair import repair_scene, sure_score

CLASSES = ClassList(("ship", "airplane"))
ALL = ("shift", "drop", "add")
LIMITS = {"ship": 0.3, "airplane": 0.0}


def found(*rows, corners=None):
    boxes = np.array([r[0] for r in rows], np.float32).reshape(-1, 4)
    labels = np.array([CLASSES.index(r[2]) for r in rows], np.int64)
    return Detections(boxes, np.array([r[1] for r in rows], np.float32), labels, corners)


def labelled(*boxes, **more):
    return Scene("a.png", 64, 64, tuple(b if isinstance(b, Instance) else Instance.from_hbb("ship", b) for b in boxes), **more)


def repaired(scene, detections, changes=ALL, sure=0.8):
    return repair_scene(scene, detections, CLASSES, sure, LIMITS, changes)


def test_a_label_moves_to_where_it_is_surely_seen():
    scene = labelled((10, 10, 20, 20), (40, 40, 50, 50))
    made = repaired(scene, found(((13, 10, 23, 20), 0.9, "ship"), ((41, 40, 51, 50), 0.9, "ship")))
    assert [i.hbb for i in made.instances] == [(13, 10, 23, 20), (40, 40, 50, 50)], "IoU 0.54 moves, 0.82 does not"
    assert made.instances[0].extra["repair"] == {
        "what": "shifted", "score": 0.9, "iou": 0.5385, "hbb": [10, 10, 20, 20], "corners": [10, 10, 20, 10, 20, 20, 10, 20],
    }  # fmt: skip
    assert made.instances[1] == scene.instances[1] and made.provenance["repair"] == {"shifted": 1, "dropped": [], "added": 0}
    unsure = repaired(scene, found(((13, 10, 23, 20), 0.7, "ship"), ((41, 40, 51, 50), 0.7, "ship")))
    assert unsure.instances == scene.instances, "seen, but not surely elsewhere"
    other = repaired(scene, found(((13, 10, 23, 20), 0.9, "airplane"), ((41, 40, 51, 50), 0.9, "ship")), ("shift",))
    assert other.instances == scene.instances, "another class"


def test_a_neighbour_does_not_take_the_detection_of_a_label_that_agrees():
    scene = labelled((10, 10, 20, 20), (15, 10, 25, 20))
    made = repaired(scene, found(((15, 10, 25, 20), 0.95, "ship"), ((10, 10, 20, 20), 0.4, "ship")))
    assert made.instances == scene.instances


def test_what_is_not_seen_is_dropped_and_kept_on_record():
    difficult = Instance.from_hbb("ship", (1, 1, 9, 9), difficult=True)
    plane = Instance.from_hbb("airplane", (50, 1, 60, 9))
    references = {"instances": ["a", "b", "c", "d"], "background": None}
    scene = labelled((10, 10, 20, 20), (40, 40, 50, 50), difficult, plane, provenance={"references": references})
    made = repaired(scene, found(((40, 40, 50, 50), 0.5, "ship"), ((20, 50, 30, 60), 0.9, "airplane")))
    assert [i.hbb for i in made.instances] == [(40, 40, 50, 50), (1, 1, 9, 9), (50, 1, 60, 9), (20, 50, 30, 60)]
    assert made.provenance["repair"]["dropped"] == [
        {"category": "ship", "hbb": [10, 10, 20, 20], "corners": [10, 10, 20, 10, 20, 20, 10, 20], "score": 0.0}
    ]
    assert made.provenance["references"]["instances"] == ["b", "c", "d", None], "one for each object"
    assert made.instances[-1].category == "airplane" and made.instances[-1].extra["repair"] == {"what": "added", "score": 0.9}
    assert repaired(scene, found(), ("shift", "add")).instances == scene.instances


def test_what_is_surely_seen_and_has_no_label_gets_one():
    rows = (
        ((30, 30, 40, 40), 0.9, "ship"),
        ((31, 30, 41, 40), 0.85, "airplane"),
        ((50, 50, 70, 60), 0.9, "ship"),
        ((1, 50, 9, 60), 0.7, "ship"),
    )
    scene = labelled((10, 10, 20, 20))
    made = repaired(scene, found(*rows, ((11, 10, 21, 20), 0.9, "airplane")), ("add",))
    assert [i.hbb for i in made.instances[1:]] == [(30, 30, 40, 40), (50, 50, 64, 60)], (
        "none twice, none on a label, none beyond the picture"
    )
    assert repaired(scene, found(*rows), sure=None, changes=("add", "shift")).instances == scene.instances
    swapped = repaired(scene, found(((11, 10, 21, 20), 0.9, "airplane")))
    assert [i.category for i in swapped.instances] == ["airplane"], "what is another class is dropped and added"


def test_oriented_labels():
    corners = (10, 14, 14, 10, 20, 16, 16, 20)
    scene = labelled(Instance.from_corners("ship", corners))
    made = repaired(scene, found(((13, 10, 23, 20), 0.9, "ship")))
    assert (
        made.instances[0].corners == (13, 14, 17, 10, 23, 16, 19, 20)
        and made.instances[0].hbb == (13, 10, 23, 20)
        and made.instances[0].oriented
    )
    turned = np.array([[13, 15, 18, 10, 23, 15, 18, 20]], np.float32)
    made = repaired(scene, found(((13, 10, 23, 20), 0.9, "ship"), corners=turned))
    assert made.instances[0].corners == tuple(turned[0].tolist())


class Seer:
    """In real pictures sees every label, and unsurely something wrong; in others all but the first, 3 px away, and one thing more."""

    classes, info = CLASSES, {}

    def predict(self, scenes, progress=None):
        made = []
        for scene in scenes:
            real = scene.file_name.startswith("p")
            rows = [((i.hbb[0] + 3 * (not real), i.hbb[1], i.hbb[2] + 3 * (not real), i.hbb[3]), 0.9, i.category) for i in scene.instances]
            made.append(
                found(*(rows if real else rows[1:]), *([((0, 24, 6, 30), 0.3, "ship")] if real else [((20, 20, 28, 28), 0.95, "airplane")]))
            )
        return made


@pytest.fixture
def sets(tmp_path, monkeypatch):
    def write(name, kind, prefix, splits):
        scenes, hashes = [], {}
        (tmp_path / name / "images").mkdir(parents=True)
        for k, split in enumerate(splits):
            file = f"{prefix}{k}.png"
            Image.fromarray(np.full((32, 32, 3), 40 * k, np.uint8)).save(tmp_path / name / "images" / file)
            hashes[file] = sha256_file(tmp_path / name / "images" / file)
            boxes = tuple(Instance.from_hbb(CLASSES.names[j % 2], (2, 1 + 8 * j, 10, 8 + 8 * j)) for j in range(2))
            scenes.append(Scene(file, 32, 32, boxes, split=split, source=f"s{k}"))
        details = {"generator": {"key": "g", "sources": ["s0"]}} if kind == "synthetic" else {}
        write_set(tmp_path / name, scenes, CLASSES, kind=kind, details=details, picture_hashes=hashes)
        return tmp_path / name

    folder = tmp_path / "detector"
    folder.mkdir()
    (folder / "detector.json").write_text("{}")
    (folder / "model.safetensors").write_text("x")
    monkeypatch.setattr("ccdiff_cli.synthesis.filtering.load_detector", lambda folder, device="auto": Seer())
    return write("real", "prepared", "p", ["train", "val", "val"]), write("made", "synthetic", "s", ["train"] * 3), folder


def test_a_set_is_repaired_and_the_old_one_stays(sets, tmp_path):
    real, synthetic, detector = sets
    before = {p: p.read_bytes() for p in synthetic.rglob("*") if p.is_file() and p.suffix != ".json"}
    made = repair_set(synthetic, real, tmp_path / "out", RepairOptions(detector=detector))
    assert made["sure"] == pytest.approx(0.9), "from 0.3 on too many are wrong"
    assert made["per_class"] == {
        "ship": {"before": 3, "shifted": 0, "dropped": 3, "added": 0, "after": 0},
        "airplane": {"before": 3, "shifted": 3, "dropped": 0, "added": 3, "after": 6},
    }
    new = read_set(tmp_path / "out")
    assert new.manifest["repair"] == made and new.manifest["generator"]["sources"] == ["s0"] and new.manifest["kind"] == "synthetic"
    assert [i.hbb for i in new.scenes[0].instances] == [(5, 9, 13, 16), (20, 20, 28, 28)]
    assert new.scenes[0].instances[0].extra["repair"]["hbb"] == [2, 9, 10, 16]
    assert new.scenes[0].provenance["repair"]["dropped"][0]["hbb"] == [2, 1, 10, 8]
    assert verify_set(tmp_path / "out")["ok"] and all(p.read_bytes() == data for p, data in before.items())
    files = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert "| airplane | 3 | 3 | 0 | 3 | 6 |" in files["README.md"].decode()
    assert repair_set(synthetic, real, tmp_path / "out", RepairOptions(detector=detector)) == made
    (tmp_path / "out" / "manifest.json").unlink()  # a run that was killed before the end
    repair_set(synthetic, real, tmp_path / "out", RepairOptions(detector=detector))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file() and not p.name.startswith(".")} == files


def test_what_cannot_be_repaired_is_said(sets, tmp_path):
    real, synthetic, detector = sets
    options = RepairOptions(detector=detector)
    with pytest.raises(CCDiffError, match="kind 'prepared', not synthetic"):
        repair_set(real, real, tmp_path / "out", options)
    repair_set(synthetic, real, tmp_path / "out", options)
    with pytest.raises(CCDiffError, match="was repaired already"):
        repair_set(tmp_path / "out", real, tmp_path / "again", options)
    with pytest.raises(CCDiffError, match="holds another set"):
        repair_set(synthetic, real, tmp_path / "out", options.model_copy(update={"changes": ("drop",)}))
    with pytest.raises(CCDiffError, match="is the synthetic set itself"):
        repair_set(synthetic, real, synthetic, options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(CCDiffError, match="something else"):
        repair_set(synthetic, real, tmp_path / "mine", options)


def test_the_command_line(sets, tmp_path):
    real, synthetic, detector = sets
    command = ["repair", str(synthetic), "--real", str(real), "--out", str(tmp_path / "out"), "--detector", str(detector)]
    done = CliRunner().invoke(app, [*command, "--changes", "drop, add"])
    assert done.exit_code == 0 and "--other repaired=" in done.output and "sure: from a score of 0.90 on" in done.output, done.output
    said = json.loads(CliRunner().invoke(app, [*command, "--changes", "drop,add", "--json"]).stdout)
    assert said["changes"] == ["drop", "add"] and said["per_class"]["airplane"]["shifted"] == 0


def test_no_score_is_sure_where_too_much_is_wrong(sets):
    real = read_set(sets[0])
    assert sure_score(Seer(), real, 0.95) == pytest.approx(0.9) and sure_score(Seer(), real, 0.5) == pytest.approx(0.3)

    class Blind(Seer):
        def predict(self, scenes, progress=None):
            return [found(((0, 24, 6, 30), 0.3, "ship"))] * len(scenes)

    assert sure_score(Blind(), real, 0.95) is None


def test_a_picture_that_the_manifest_does_not_know_is_repaired_as_it_lies_there(sets, tmp_path):
    real, synthetic, detector = sets
    manifest = json.loads((synthetic / "manifest.json").read_text())
    known = manifest["pictures"].pop("s0.png")
    (synthetic / "manifest.json").write_text(json.dumps(manifest))
    repair_set(synthetic, real, tmp_path / "out", RepairOptions(detector=detector))
    assert read_set(tmp_path / "out").manifest["pictures"]["s0.png"] == known and verify_set(tmp_path / "out")["ok"]
