"""`prepare` from a raw folder to a finished set: contents, determinism, resuming, refusing, quarantine."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import shapely
from PIL import Image

from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import FITTED, WHOLE, corners_inside, corners_to_le90, le90_to_corners, polygon
from ccdiff_cli.options import checked_options
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.synthesis import verify_set
from tests.rawsets import coco, dior, files_of, hbb_xml, obb_xml, picture, vhr10

BOXES = {
    "001": [("ship", (10, 10, 40, 30)), ("vehicle", (100, 90, 140, 110))],
    "002": [("airplane", (60, 40, 110, 90))],
    "003": [("ship", (150, 100, 190, 140))],
    "004": [("storage tank", (5, 5, 45, 45))],
}
SPLITS = {"train": ["001", "002"], "val": ["003"], "test": ["004"]}
OPTIONS = {"tile": 96, "overlap": 24, "size": 48}


@pytest.fixture
def raw(tmp_path):
    masks = {"001": [("ship", [10, 10, 40, 10, 25, 30])]}
    return vhr10(tmp_path / "raw", BOXES, size=(200, 150), splits=SPLITS, masks=masks)


def test_a_tiled_set(raw, tmp_path):
    data = prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS))
    assert {s.split for s in data.scenes} == {"train", "val", "test"}
    for scene in data.scenes:
        with Image.open(scene.path) as image:
            assert image.size == (48, 48) == (scene.width, scene.height) and image.mode == "RGB" and image.format == "PNG"
        x, y = scene.provenance["offset"]
        assert scene.file_name == f"{scene.source}__x{x:05d}_y{y:05d}.png" and scene.caption.startswith("This is an aerial image of")
        assert all(0 <= v <= 48 for i in scene.instances for points in (i.hbb, *i.mask) for v in points)
    split_of = {}
    for scene in data.scenes:
        assert split_of.setdefault(scene.source, scene.split) == scene.split
    manifest = data.manifest
    cutting = manifest["cutting"]
    assert cutting["objects kept"] + cutting["objects kept as difficult"] == manifest["counts"]["objects"]
    assert cutting["pictures or tiles without objects left out"] > 0
    reaching = sum(not corners_inside(i.corners, (0, 0, 48, 48)) for s in data.scenes for i in s.instances)
    assert reaching == 1 and manifest["notes"] == {"objects with a mask": 1, "objects without a mask": 4, WHOLE: 1}
    assert set(manifest["sources"]) == {f"{k}.jpg" for k in BOXES} and set(manifest["pictures"]) == {s.file_name for s in data.scenes}
    assert not list((tmp_path / "out").rglob("prepare.json"))


def test_pixels_and_boxes_move_together(tmp_path):
    """A white box on black is found again, at the place its label says, in every tile and scale."""
    source = tmp_path / "raw"
    vhr10(source, {"001": [("ship", (70, 50, 110, 90))]}, size=(200, 150))
    pixels = np.zeros((150, 200, 3), np.uint8)
    pixels[50:90, 70:110] = 255
    Image.fromarray(pixels).save(source / "positive image set" / "001.jpg", quality=100, subsampling=0)
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(tile=96, overlap=48, size=48))
    assert len(data.scenes) > 3
    for scene in data.scenes:
        white = np.argwhere(np.asarray(Image.open(scene.path).convert("L")) > 128)
        (y1, x1), (y2, x2) = white.min(0), white.max(0) + 1
        assert scene.instances[0].hbb == pytest.approx((x1, y1, x2, y2), abs=0.6)


def test_whole_pictures_are_copied_or_padded_to_a_square(raw, tmp_path):
    plain = prepare_dataset(raw, tmp_path / "plain")
    assert {s.file_name: (s.width, s.height) for s in plain.scenes} == {f"{k}.jpg": (200, 150) for k in BOXES}
    for scene in plain.scenes:
        assert (tmp_path / "plain" / "images" / scene.file_name).read_bytes() == (raw / "positive image set" / scene.file_name).read_bytes()
    resized = prepare_dataset(raw, tmp_path / "resized", PrepareOptions(size=50))
    first = resized.scenes[0]
    assert (first.width, first.height) == (50, 50) and first.provenance["padded"]["below"] == 50
    assert first.instances[0].hbb == pytest.approx((2.5, 2.5, 10, 7.5))


def test_same_bytes_whatever_the_number_of_processes(raw, tmp_path):
    (raw / "positive image set" / "003.jpg").write_bytes(b"not a picture")
    prepare_dataset(raw, tmp_path / "a", PrepareOptions(**OPTIONS))
    prepare_dataset(raw, tmp_path / "b", PrepareOptions(**OPTIONS), processes=2)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") and (tmp_path / "a" / "manifest.json").is_file()
    with pytest.raises(CCDiffError, match=r"003\.jpg: the picture does not decode"):
        prepare_dataset(raw, tmp_path / "c", PrepareOptions(**OPTIONS, strict=True), processes=2)


def test_a_killed_process_is_one_message_and_resumes(raw, tmp_path, monkeypatch):
    from ccdiff_cli.prepare import run

    with monkeypatch.context() as patched:
        patched.setattr(run, "prepare_picture", die)
        with pytest.raises(CCDiffError, match=r"(?s)a worker process was killed.*fewer --processes"):
            prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS), processes=2)
    prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS))
    prepare_dataset(raw, tmp_path / "whole", PrepareOptions(**OPTIONS))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_large_scenes_are_cut_in_bands_to_the_same_bytes(tmp_path, monkeypatch):
    """Tiles, references and padding of a PNG, whole and band by band; and nothing stays of a scene that fails below its first tiles."""
    import ccdiff_cli.prepare.windows as windows

    boxes = [[20, 20, 30, 20], [150, 5, 40, 190], [100, 180, 20, 60], [5, 230, 60, 15]]  # one is taller than three bands
    annotations = [{"id": k, "image_id": i, "category_id": 1, "bbox": b} for k, (i, b) in enumerate((i, b) for i in (1, 2) for b in boxes)]
    images = [{"id": k, "file_name": f"{k}.png", "width": 200, "height": 250} for k in (1, 2)]
    source = coco(tmp_path / "raw", annotations, images=images, size=(200, 250))
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("1\n2\n")
    options = {"tile": 96, "overlap": 20, "size": 64, "keep_empty": True, "splits": lists}
    prepare_dataset(source, tmp_path / "a", PrepareOptions(**options))
    prepare_dataset(source, tmp_path / "a_whole", PrepareOptions(size=64, splits=lists))
    monkeypatch.setattr(windows, "WHOLE", 1000)
    monkeypatch.setattr(windows, "BAND", 48 * 200)
    prepare_dataset(source, tmp_path / "b", PrepareOptions(**options))
    prepare_dataset(source, tmp_path / "b_whole", PrepareOptions(size=64, splits=lists))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") and files_of(tmp_path / "a_whole") == files_of(tmp_path / "b_whole")

    picture = source / "images" / "2.png"
    picture.write_bytes(picture.read_bytes()[:100_000])  # of 150,000
    made = prepare_dataset(source, tmp_path / "c", PrepareOptions(**options))
    assert [q["file"] for q in made.manifest["quarantined"]] == ["2.png"] and "the file ends in row" in made.manifest["quarantined"][0][
        "reason"
    ]
    assert made.manifest["skipped"]["objects of pictures that do not decode"] == 4
    assert {p.name.partition("_")[0] for folder in ("images", "references/ship") for p in (tmp_path / "c" / folder).iterdir()} == {"1"}


def test_a_large_picture_that_has_no_bands_is_said_to_be_held_whole(raw, tmp_path, monkeypatch):
    import ccdiff_cli.prepare.windows as windows

    with Image.open(raw / "positive image set" / "004.jpg") as image:
        image.save(tmp_path / "004.png")
    (raw / "positive image set" / "004.jpg").unlink()
    (tmp_path / "004.png").rename(raw / "positive image set" / "004.png")
    monkeypatch.setattr(windows, "WHOLE", 200 * 150 - 1)
    stages = []
    made = prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS), progress=lambda stage, done, total: stages.append(stage))
    assert made.manifest["notes"]["large pictures decoded whole, since their files have no bands"] == 3
    assert any(s.startswith("decoding pictures whole: up to 0.0 GB a process (store large scenes as PNG or as TIFF") for s in stages)
    monkeypatch.undo()
    notes = prepare_dataset(raw, tmp_path / "small", PrepareOptions(**OPTIONS)).manifest["notes"]
    assert notes.keys() == {"objects with a mask", "objects without a mask", WHOLE}


def test_scene_sentences(raw, tmp_path):
    (tmp_path / "said.csv").write_text(
        'file_name,sentence\n001.jpg,"A port,  seen from above"\n002,An airfield in the snow!\n099.jpg,Elsewhere.\n'
    )
    made = prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS, sentences=tmp_path / "said.csv"))
    plain = prepare_dataset(raw, tmp_path / "plain", PrepareOptions(**OPTIONS))
    for scene, without in zip(made.scenes, plain.scenes, strict=True):
        head, _, account = without.caption.partition(". ")
        heads = {"001": "A port, seen from above.", "002": "An airfield in the snow!"}
        assert scene.caption == f"{heads.get(scene.source, head + '.')} {account}"
    notes = made.manifest["notes"]
    assert notes["pictures without a scene sentence"] == 2 and notes["scene sentences for pictures that the set has not"] == 1
    (tmp_path / "said.csv").write_text("file_name,sentence\n001.jpg,Another one\n")
    with pytest.raises(CCDiffError, match="sentences: "):
        prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS, sentences=tmp_path / "said.csv"))
    (tmp_path / "said.json").write_text('{"x.jpg": "Nowhere."}')
    with pytest.raises(CCDiffError, match=r"(?s)none of its 1 file names is a picture of the set.*001.jpg"):
        prepare_dataset(raw, tmp_path / "none", PrepareOptions(**OPTIONS, sentences=tmp_path / "said.json"))


def test_the_command_takes_every_policy(raw, tmp_path):
    from typer.testing import CliRunner

    from ccdiff_cli.cli import app

    (tmp_path / "said.json").write_text('{"001.jpg": "A port."}')
    command = [
        "prepare",
        str(raw),
        "--out",
        str(tmp_path / "out"),
        "--tile",
        "96",
        "--overlap",
        "24",
        "--size",
        "48",
        "--keep-share",
        "0.5",
    ]
    command += ["--difficult-share", "0.1", "--keep-empty", "--drop-partial", "--caption-style", "short", "--processes", "1", "--strict"]
    run = CliRunner().invoke(app, [*command, "--sentences", str(tmp_path / "said.json"), "--json"])
    assert run.exit_code == 0, run.output
    said = PrepareOptions(
        **OPTIONS, keep_share=0.5, difficult_share=0.1, keep_empty=True, keep_partial=False, caption_style="short",
        sentences=tmp_path / "said.json", strict=True,
    )  # fmt: skip
    made = prepare_dataset(raw, tmp_path / "same", said)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "same")
    assert made.manifest["prepare"]["options"]["keep_share"] == 0.5 and made.manifest["prepare"]["options"]["keep_partial"] is False


def test_running_again_writes_nothing_and_says_so(raw, tmp_path):
    out = tmp_path / "out"
    prepare_dataset(raw, out, PrepareOptions(**OPTIONS))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    stages = []
    again = prepare_dataset(raw, out, PrepareOptions(**OPTIONS), progress=lambda stage, done, total: stages.append(stage))
    assert stages[-1] == "already prepared" and len(again.scenes) == len(read_set(out).scenes)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


@pytest.mark.parametrize("finished", [True, False])
def test_another_configuration_is_refused(raw, tmp_path, finished):
    out = tmp_path / "out"
    prepare_dataset(raw, out, PrepareOptions(**OPTIONS))
    if not finished:
        plan = json.loads((out / "manifest.json").read_text())["prepare"]
        (out / "prepare.json").write_text(json.dumps(plan))
        (out / "manifest.json").unlink()
    before = files_of(out)
    with pytest.raises(CCDiffError, match="tile: 96 before, 80 now"):
        prepare_dataset(raw, out, PrepareOptions(tile=80, overlap=24, size=48))
    picture(raw / "positive image set" / "001.jpg", 200, 150, seed=99)
    with pytest.raises(CCDiffError, match="the source's pictures, labels or splits changed"):
        prepare_dataset(raw, out, PrepareOptions(**OPTIONS))
    assert files_of(out) == before


def test_foreign_folders_are_refused(raw, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(CCDiffError, match="not empty"):
        prepare_dataset(raw, out)
    with pytest.raises(CCDiffError, match="a file, not a folder"):
        prepare_dataset(raw, out / "thesis.txt")
    assert files_of(out) == {"thesis.txt": b"precious"}


def test_an_interrupted_run_is_completed_to_the_same_bytes(raw, tmp_path):
    prepare_dataset(raw, tmp_path / "whole", PrepareOptions(**OPTIONS))

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if stage == "preparing pictures" and done == 2:
            raise Stop

    with pytest.raises(Stop):
        prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS), progress=stop)
    with pytest.raises(CCDiffError):
        read_set(tmp_path / "out")
    (tmp_path / "out" / "images" / ".partial-xyz").write_bytes(b"half")
    prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_killed_and_run_again(raw, tmp_path):
    """kill -9 in the middle, then the same command."""
    code = (
        "import sys, time; from ccdiff_cli.prepare import PrepareOptions, prepare_dataset\n"
        "def slow(stage, done, total):\n"
        "    if stage == 'preparing pictures' and done: print(done, flush=True); time.sleep(0.3)\n"
        f"prepare_dataset(sys.argv[1], sys.argv[2], PrepareOptions(**{OPTIONS!r}), progress=slow)\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(raw), str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "1"
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (out / "prepare.json").is_file() and not (out / "manifest.json").exists()
    prepare_dataset(raw, out, PrepareOptions(**OPTIONS))
    prepare_dataset(raw, tmp_path / "whole", PrepareOptions(**OPTIONS))
    assert files_of(out) == files_of(tmp_path / "whole")


def test_seeded_splits(tmp_path):
    source = vhr10(tmp_path / "raw", {f"{k:03d}": [("ship", (5, 5, 30, 30))] for k in range(20)})
    splits = [
        {s.source: s.split for s in prepare_dataset(source, tmp_path / f"o{k}", PrepareOptions(seed=k // 2)).scenes} for k in range(4)
    ]
    assert splits[0] == splits[1] != splits[2] == splits[3]
    assert sorted(splits[0].values()).count("train") == 14 and sorted(splits[0].values()).count("test") == 4


def test_split_folder_overrides(raw, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("004\n")
    (lists / "test.txt").write_text("001\n002\n")
    data = prepare_dataset(raw, tmp_path / "out", PrepareOptions(splits=lists))
    assert {s.source: s.split for s in data.scenes} == {"004": "train", "001": "test", "002": "test"}
    assert data.manifest["skipped"]["pictures in no split list"] == 1


def test_pictures_that_do_not_decode_are_quarantined_or_stop_the_run(raw, tmp_path):
    broken = raw / "positive image set" / "002.jpg"
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) // 2])  # a good header, half the pixels
    (raw / "positive image set" / "003.jpg").write_bytes(b"not a picture")
    done = prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS))
    assert [q["file"] for q in done.manifest["quarantined"]] == ["003.jpg", "002.jpg"]
    assert (
        done.manifest["skipped"]["pictures that do not decode"] == 2
        and done.manifest["skipped"]["objects of pictures that do not decode"] == 2
    )
    assert {s.source for s in done.scenes} == {"001", "004"}
    for kind in ("003.jpg", "002.jpg"):
        with pytest.raises(CCDiffError, match=kind + ": the picture does not decode"):
            prepare_dataset(raw, tmp_path / "strict", PrepareOptions(**OPTIONS, strict=True))
        assert not (tmp_path / "strict").exists() or files_of(tmp_path / "strict") == {}
        picture(raw / "positive image set" / kind, 200, 150)
    assert len(prepare_dataset(raw, tmp_path / "strict", PrepareOptions(**OPTIONS, strict=True)).manifest["sources"]) == 4


def test_empty_tiles_and_tiles_of_parts(tmp_path):
    source = vhr10(tmp_path / "raw", {"001": [("ship", (30, 10, 90, 50))]}, size=(120, 60))  # half in each of two tiles
    parts = prepare_dataset(source, tmp_path / "parts", PrepareOptions(tile=60))
    assert [i.difficult for s in parts.scenes for i in s.instances] == [True, True]
    with pytest.raises(CCDiffError, match="no picture with objects is left"):
        prepare_dataset(source, tmp_path / "none", PrepareOptions(tile=60, keep_partial=False))
    empty = vhr10(tmp_path / "raw2", {"001": [("ship", (5, 5, 50, 50))], "002": []}, size=(120, 60))
    assert len(prepare_dataset(empty, tmp_path / "few", PrepareOptions(tile=60)).scenes) == 1
    kept = prepare_dataset(empty, tmp_path / "all", PrepareOptions(tile=60, keep_empty=True))
    assert len(kept.scenes) == 4 and kept.manifest["counts"]["objects"] == 1


def test_boxes_that_are_out_of_the_picture_or_flat(tmp_path):
    boxes = [("ship", (-10, -10, 20, 20)), ("ship", (500, 10, 520, 20)), ("ship", (30, 30, 30, 40)), ("ship", (50, 40, 300, 60))]
    source = vhr10(tmp_path / "raw", {"001": boxes}, size=(96, 64))
    data = prepare_dataset(source, tmp_path / "out")
    assert [i.hbb for i in data.scenes[0].instances] == [(0, 0, 20, 20), (50, 40, 96, 60)]
    assert data.manifest["skipped"] == {"objects outside the picture": 1, "objects whose box has no area": 1}
    assert data.manifest["changes"]["boxes clipped to the picture"] == 2


def test_oriented_boxes_that_reach_beyond_the_picture(tmp_path):
    """Whole where seven tenths are in the picture, else fitted to what is; the HBB always clipped, around the visible part; all counted."""
    inside, whole = le90_to_corners((48, 30, 30, 10, 0.4)), le90_to_corners((88, 30, 40, 12, 0.7))
    little, beside = le90_to_corners((96, 10, 40, 8, 0.5)), le90_to_corners((98, -4, 16, 4, 0.785))
    objects = [obb_xml("ship", [round(v, 2) for v in corners]) for corners in (inside, whole, little, beside)]
    raw = dior(tmp_path / "raw", {"00001": ([], objects)})
    data = prepare_dataset(raw, tmp_path / "out")
    first, second, third = data.scenes[0].instances
    assert (first.corners, second.corners) == (pytest.approx(inside, abs=0.01), pytest.approx(whole, abs=0.01))
    picture = shapely.box(0, 0, 96, 64)
    for found, drawn in ((second, whole), (third, little)):
        visible = polygon(drawn).intersection(picture)
        part = polygon(found.corners).intersection(picture)
        assert part.intersection(visible).area / part.union(visible).area > 0.98
        assert found.hbb == pytest.approx(visible.bounds, abs=0.02) and found.oriented and not found.difficult
        assert corners_to_le90(found.corners)[4] == pytest.approx(corners_to_le90(drawn)[4], abs=0.002)
    assert max(third.corners[0::2]) > 96 and corners_to_le90(third.corners)[2] < 30  # it reaches out, and is shorter than the whole
    notes = data.manifest["notes"]
    changes = data.manifest["changes"]
    assert (notes[WHOLE], changes[FITTED], changes["boxes clipped to the picture"]) == (1, 1, 2)
    assert data.manifest["skipped"] == {"objects outside the picture": 1}
    assert verify_set(tmp_path / "out")["problems"] == []
    areas = [a["area"] for a in json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"]]
    assert areas == pytest.approx([300, polygon(whole).intersection(picture).area, polygon(little).intersection(picture).area], rel=0.01)


def test_a_declared_size_that_lies_is_corrected(tmp_path):
    objects = ([hbb_xml("ship", (5, 5, 20, 20))], [obb_xml("ship", (5, 5, 20, 5, 20, 20, 5, 20))])
    data = prepare_dataset(dior(tmp_path / "raw", {"00001": objects}, declared=(8, 8)), tmp_path / "out")
    assert (data.scenes[0].width, data.scenes[0].height) == (96, 64)
    assert data.manifest["changes"]["declared sizes that cannot be right, replaced by the pictures' own"] == 1


def test_pictures_with_one_stem_or_in_subfolders(tmp_path):
    images = [{"id": k, "file_name": name, "width": 96, "height": 64} for k, name in enumerate(("x/a.png", "y/a.png", "b.png", "b.jpg"))]
    annotations = [{"id": k, "image_id": k, "category_id": 1, "bbox": [5, 5, 20, 20]} for k in range(4)]
    data = prepare_dataset(coco(tmp_path / "raw", annotations, images=images), tmp_path / "out", PrepareOptions(tile=64))
    assert {s.file_name.partition("__x0")[0] for s in data.scenes} == {"x__a", "y__a", "b.png", "b.jpg"}


def test_grey_and_16_bit_pictures_become_rgb(tmp_path):
    source = coco(tmp_path / "raw", [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}])
    deep = (np.arange(96 * 64, dtype=np.uint32).reshape(64, 96) * 10).astype(np.uint16)
    Image.fromarray(deep).save(source / "images" / "a.png")
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(stretch="none"))
    stored = np.asarray(Image.open(data.scenes[0].path))
    assert stored.shape == (64, 96, 3) and abs(int(stored[60, 90, 0]) - int(deep[60, 90]) // 256) <= 1


def test_a_prepared_set_can_be_prepared_again(raw, tmp_path):
    first = prepare_dataset(raw, tmp_path / "a")
    second = prepare_dataset(tmp_path / "a", tmp_path / "b", PrepareOptions(size=48))
    assert {s.source: s.split for s in second.scenes} == {s.source: s.split for s in first.scenes}
    assert [len(s.instances) for s in second.scenes] == [len(s.instances) for s in first.scenes]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 4}, "tile: expected greater than or equal to 8, found 4"),
        ({"overlap": 8}, "without tiles"),
        ({"tile": 64, "overlap": 64}, "overlap 64 with tile 64"),
        ({"size": 1}, "size: expected greater than or equal to 8, found 1"),
        ({"keep_share": 0.1}, "keep share"),
        ({"caption_style": "baroque"}, "caption_style: expected 'plain', 'short', 'measured', 'phrases' or 'quadrants', found 'baroque'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CCDiffError, match=message):
        checked_options(PrepareOptions, options, where=None)


def test_a_set_without_a_box_that_can_be_kept_says_why(tmp_path):
    source = vhr10(tmp_path / "raw", {"001": [("ship", (500, 10, 520, 20)), ("ship", (5, 5, 5, 9)), ("ship", (6, 5, 6, 9))]})
    with pytest.raises(CCDiffError, match=r"is left; objects whose box has no area: 2; objects outside the picture: 1;"):
        prepare_dataset(source, tmp_path / "out")


def test_empty_sets(tmp_path):
    source = vhr10(tmp_path / "raw", {"001": []})
    with pytest.raises(CCDiffError, match="no picture with objects is left"):
        prepare_dataset(source, tmp_path / "out")
    (source / "ground truth" / "001.txt").unlink()
    with pytest.raises(CCDiffError, match="no label files"):
        prepare_dataset(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == {}


def test_a_full_disk_is_one_message_and_resumes(raw, tmp_path, monkeypatch):
    import ccdiff_cli.files as files

    calls = 0
    real = os.replace

    def full(old, new):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(28, "No space left on device")
        real(old, new)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(CCDiffError, match=r"(?s)No space left on device.*free some space"):
        prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS))
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob(".partial-*"))
    prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS))
    prepare_dataset(raw, tmp_path / "whole", PrepareOptions(**OPTIONS))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_the_bank_of_a_prepared_set(raw, tmp_path):
    prepare_dataset(raw, tmp_path / "out", PrepareOptions(**OPTIONS))
    bank = ReferenceBank.read(tmp_path / "out")
    assert {k: len(v) for k, v in bank.instances.items() if v} == {"ship": 1, "vehicle": 1, "airplane": 1}  # the train split alone
    ship = bank.instances["ship"][0]
    assert (ship.width, ship.height) == (15, 10)  # 30 x 20 source pixels at half scale
    pixels = np.asarray(ship.image())
    assert (pixels[-1, 0] == 0).all() and (pixels[-1, -1] == 0).all() and pixels[1, 7].any()  # a triangle pointing down
    assert np.asarray(bank.instances["vehicle"][0].image()).all(axis=2).mean() > 0.9  # no mask: all of it


@pytest.mark.parametrize("processes", [1, 2])
def test_crowded_pictures_tell_their_progress_while_they_are_worked_on(tmp_path, monkeypatch, processes):
    from ccdiff_cli.drawn import CLASSES, draw_dataset
    from ccdiff_cli.prepare import workers

    monkeypatch.setattr(workers, "TELL_EVERY", 0.001)
    raw, told = draw_dataset(tmp_path / "raw", pictures=8, size=64), []
    for crowded, out in ((1, "told"), (10_000, "not")):
        monkeypatch.setattr(workers, "CROWDED", crowded)
        told.clear()
        made = prepare_dataset(
            raw, tmp_path / out, PrepareOptions(classes=raw / CLASSES), processes=processes, progress=lambda *a: told.append(a)
        )
        crops = [(done, total) for stage, done, total in told if stage == "cutting reference crops"]
        assert bool(crops) == (crowded == 1)
        assert crops == sorted(crops) and all(total == made.manifest["references"]["instances"] >= done for done, total in crops)


def test_boxes_that_are_two_corners_where_the_format_has_a_size_stop(tmp_path):
    images = [{"id": k, "file_name": f"{k}.png", "width": 96, "height": 64} for k in range(3)]
    boxes = [[50, 30, 90, 60], [60, 40, 80, 55], [10, 5, 30, 20]]

    def made(name, boxes):
        annotations = [{"id": k, "image_id": k, "category_id": 1, "bbox": box} for k, box in enumerate(boxes)]
        return prepare_dataset(coco(tmp_path / name, annotations, images=images), tmp_path / f"{name}-out")

    with pytest.raises(CCDiffError, match=r"0\.png: 2 of 3 boxes reach out of their pictures(.|\n)*bbox is x, y, width, height in coco"):
        made("corners", boxes)
    assert not (tmp_path / "corners-out" / "manifest.json").exists()
    assert made("sizes", [*boxes[:2], [60, 40, 20, 10]]).manifest["changes"]  # one box fits as a size alone: these are sizes


def test_a_set_of_which_no_picture_decodes_says_why(tmp_path):
    root = coco(tmp_path / "raw", [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 30, 20]}])
    (root / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(CCDiffError, match=r"no picture of the set decodes; a\.png: the picture does not decode: "):
        prepare_dataset(root, tmp_path / "out")


def test_names_that_would_be_written_alike_are_both_named(tmp_path):
    boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [10, 10, 20, 20]} for k in (1, 2)]
    root = coco(tmp_path / "r", boxes, images=[{"id": 1, "file_name": "img (1).png"}, {"id": 2, "file_name": "img(1).png"}])
    with pytest.raises(CCDiffError, match=r"the pictures img \(1\)\.png and img\(1\)\.png would both be written as 'img_1_\.png'"):
        prepare_dataset(root, tmp_path / "set")


def test_objects_that_are_in_no_tile_are_counted(tmp_path):
    boxes = [{"id": k, "image_id": 1, "category_id": 1, "bbox": box} for k, box in enumerate([[5, 5, 20, 20], [20, 20, 200, 200]])]
    root = coco(tmp_path / "r", boxes, images=[{"id": 1, "file_name": "a.png"}], size=(256, 256))
    cutting = prepare_dataset(root, tmp_path / "set", PrepareOptions(tile=64, overlap=16)).manifest["cutting"]
    assert cutting["objects of the source that are in no tile"] == 1 and cutting["objects cut off"] > 1  # pieces of it
    whole = prepare_dataset(root, tmp_path / "whole", PrepareOptions(size=64)).manifest["cutting"]
    assert "objects of the source that are in no tile" not in whole
