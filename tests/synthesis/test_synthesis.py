"""synthesize: the same bytes however the work is shared and however often it is interrupted; refusals; the set that comes out."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ccdiff_cli.files
import ccdiff_cli.synthesis as room
from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import read_json, sha256_file, write_json
from ccdiff_cli.synthesis import starting, verify_set
from tests.synthesis.grouped import make_set

FAKE = "tests.synthesis.fake:load"
ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are started afresh")


def make(generator, layouts, out, n=10, **options):
    return make_set(generator, layouts, out, n, **{"batch_size": 4, "pipeline": FAKE, "num_processes": 1, **options})


def files_of(root):
    return {p.relative_to(root).as_posix(): sha256_file(p) for p in sorted(Path(root).rglob("*")) if p.is_file()}


@pytest.fixture
def reference(generator, layouts, tmp_path):
    """What an uninterrupted run in one process makes."""
    out = tmp_path / "reference"
    make(generator, layouts, out)
    return files_of(out)


def start(generator, layouts, out, *, n=10, processes=1, environment=None, prefix=()):
    """The same run as a real process of its own."""
    code = (
        "from tests.synthesis.grouped import make_set; import sys; "
        f"make_set({str(generator)!r}, {str(layouts)!r}, {str(out)!r}, {n}, batch_size=4, num_processes={processes}, pipeline={FAKE!r})"
    )
    command = [sys.executable, *prefix, "-c", code] if not prefix else [sys.executable, *prefix, write_script(out, code)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)


def write_script(out, code):
    path = Path(out).parent / "script.py"
    path.write_text(code)
    return str(path)


def children(pid):
    return subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True).stdout.split()


def wait_for_pictures(out, count, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (Path(out) / "images").is_dir() and len(list((Path(out) / "images").glob("0*.png"))) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"fewer than {count} pictures after {seconds} s")


# ---- what comes out ----


def test_the_set_is_complete_and_its_labels_are_the_plan(generator, layouts, tmp_path):
    stages = []
    made = make(generator, layouts, tmp_path / "s", progress=lambda *a: stages.append(a))
    pictures = read_set(tmp_path / "s")
    assert len(pictures.scenes) == made["pictures"] == made["made"] == 10 and made["kept"] == 0
    assert pictures.manifest["kind"] == "synthetic" and pictures.manifest["content"] == made["content"]
    assert made["layouts"]["without_objects"] == 1 and made["layouts"]["source"] == "augmented"
    assert ("synthesize", 10, 10) in stages and ("write", 1, 1) in stages
    lines = [json.loads(line) for line in (tmp_path / "s" / "plan.jsonl").read_text().splitlines()]
    for scene, line in zip(pictures.scenes, lines, strict=True):
        layout = line["layout"]
        assert [i["corners"] for i in layout["instances"]] == [list(i.corners) for i in scene.instances]
        assert layout["caption"] == scene.caption != ""
        assert scene.provenance["seed"] == line["seed"] and scene.provenance["layout"]["picture"].startswith("p")
        pixels = np.asarray(Image.open(scene.path))
        for number, instance in enumerate(scene.instances):  # the pipeline drew this very box
            x1, y1, x2, y2 = (round(v) for v in instance.hbb)
            assert number > 2 or pixels[y1:y2, x1:x2, number].min() > 245
    assert not (tmp_path / "s" / "records").exists() and not (tmp_path / "s" / ".lock").exists()
    assert Image.open(tmp_path / "s" / "contact_sheet.png").width > 200
    assert verify_set(tmp_path / "s")["ok"]


def test_pictures_differ_with_number_and_seed(generator, layouts, tmp_path):
    make(generator, layouts, tmp_path / "a")
    make(generator, layouts, tmp_path / "b", seed=1)
    a, b = ({h for n, h in files_of(tmp_path / x).items() if n.startswith("images/")} for x in "ab")
    assert len(a) == len(b) == 10 and not a & b


def test_a_dry_run_writes_nothing(generator, layouts, tmp_path):
    shown = make(generator, layouts, tmp_path / "s", dry_run=True)
    assert not (tmp_path / "s").exists()
    assert shown["pictures"] == 10 and sum(shown["per_class"].values()) == shown["objects"] > 10
    assert make(generator, layouts, tmp_path / "s")["plan"] == shown["plan"], "the plan it showed is the one that is carried out"


def test_a_floor_set_is_drawn_from_other_layouts(generator, layouts, tmp_path):
    made = make(generator, layouts, tmp_path / "floor", shuffle_layouts=True)
    make(generator, layouts, tmp_path / "s")
    floor, true = read_set(tmp_path / "floor"), read_set(tmp_path / "s")
    assert floor.manifest["kind"] == "floor" and made["objects"] == true.manifest["counts"]["objects"]
    assert [s.instances for s in floor.scenes] == [s.instances for s in true.scenes], "labels are the same ..."
    assert [s.provenance["drawn_from"] for s in floor.scenes] == [*range(1, 10), 0]
    for k in range(10):  # ... but every picture shows the next layout
        instance = floor.scenes[(k + 1) % 10].instances[0]
        x1, y1, x2, y2 = (round(v) for v in instance.hbb)
        assert np.asarray(Image.open(floor.scenes[k].path))[y1:y2, x1:x2, 0].min() > 245
    with pytest.raises(CCDiffError, match="at least two"):
        make(generator, layouts, tmp_path / "one", n=1, shuffle_layouts=True)


# ---- the same bytes, however it is made ----


def test_the_same_command_again_does_nothing(generator, layouts, tmp_path, reference):
    again = make(generator, layouts, tmp_path / "reference")
    assert again["made"] == 0 and again["kept"] == 10
    assert files_of(tmp_path / "reference") == reference


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_same_set(generator, layouts, tmp_path, reference, processes):
    made = make(generator, layouts, tmp_path / "s", num_processes=processes)
    assert made["made"] == 10 and files_of(tmp_path / "s") == reference


@linux
@pytest.mark.parametrize("forks", [True, False])
def test_forked_workers_make_what_fresh_ones_make(generator, layouts, tmp_path, monkeypatch, forks):
    begun = []
    begin = starting.Starter._begin
    monkeypatch.setattr(starting.Starter, "_begin", lambda self: (begun.append(self), begin(self)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not forks:
        made = starting.Starter.__init__
        monkeypatch.setattr(starting.Starter, "__init__", lambda self, threads: (made(self, threads), setattr(self, "forks", False))[0])
    make(generator, layouts, tmp_path / "one", threads=2, shard_size=4, batch_size=2)
    make(generator, layouts, tmp_path / "two", threads=2, shard_size=4, batch_size=2, num_processes=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(begun) == forks, "once, for all shards"


@linux
def test_of_what_could_not_be_forked_nothing_is_killed_or_waited_for():
    starter = starting.Starter(1)
    worker = starting.Forked(None, None, None, starter)
    worker.kill()
    assert worker.wait() == -9 and starter.ask(kill=0) == {}, "there is nobody to ask"
    starter.close()


@linux
def test_a_process_that_never_forks_is_not_waited_for_where_memory_is_limited(monkeypatch):
    """As OpenBLAS does not come back where the limit leaves it no memory."""
    monkeypatch.setattr(starting, "PATIENCE", 0.5)
    monkeypatch.setattr(starting, "limited", lambda: True)
    monkeypatch.setattr(starting, "FORKING", "import time; time.sleep({} + 600)")
    starter = starting.Starter(1)
    first, second = starter.start(["x"]), starter.start(["x"])
    assert first.wait() == second.wait() == -9 and first.stdout.read() == ""
    assert starter._process is not None and starter._process.wait(timeout=10) == -9, "it does not go on alone"
    starter.close()


def test_torchrun_makes_the_same_set(generator, layouts, tmp_path, reference):
    out = tmp_path / "s"
    run = start(generator, layouts, out, prefix=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert files_of(out) == reference


def test_kill_and_run_again(generator, layouts, tmp_path, reference):
    out = tmp_path / "s"
    for pictures in (1, 5):
        run = start(generator, layouts, out, environment={"FAKE_SECONDS": "0.3"})
        wait_for_pictures(out, pictures)
        run.kill()  # SIGKILL
        run.communicate()
        assert not (out / "manifest.json").exists()
    made = make(generator, layouts, out)
    assert made["kept"] >= 4, "whole blocks are kept"
    assert files_of(out) == reference


def test_kill_with_workers_and_run_again(generator, layouts, tmp_path, reference):
    out = tmp_path / "s"
    run = start(generator, layouts, out, processes=2, environment={"FAKE_SECONDS": "3"})
    wait_for_pictures(out, 1)
    forking = children(run.pid)
    workers = [pid for parent in forking for pid in children(parent)] if sys.platform == "linux" else forking
    run.kill()
    run.communicate()
    assert len(workers) == 2
    workers += forking
    end = time.monotonic() + 60
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.02)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "no worker outlives the process that started it"
    assert make(generator, layouts, out)["kept"] < 10
    assert files_of(out) == reference


@linux
def test_kill_what_forks_the_workers_and_run_again(generator, layouts, tmp_path, reference):
    out = tmp_path / "s"
    run = start(generator, layouts, out, processes=2, environment={"FAKE_SECONDS": "3"})
    wait_for_pictures(out, 1)
    os.kill(int(children(run.pid)[0]), signal.SIGKILL)
    _, errors = run.communicate(timeout=120)
    assert re.search("blocks of pictures are missing: worker [01] ended with exit code -9", errors), errors
    assert make(generator, layouts, out, num_processes=2)["kept"] < 10
    assert files_of(out) == reference


def test_kill_between_two_pictures_of_a_block(generator, layouts, tmp_path, reference, monkeypatch):
    out = tmp_path / "s"
    written = []
    real = room.worker.write_bytes

    def stop_after_six(path, data, **options):
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(path)
        real(path, data, **options)

    monkeypatch.setattr(room.worker, "write_bytes", stop_after_six)
    with pytest.raises(KeyboardInterrupt):
        make(generator, layouts, out)
    monkeypatch.undo()
    (out / "images" / ".partial-left").write_bytes(b"half a picture")
    (out / ".partial-left").write_bytes(b"half a plan")
    assert make(generator, layouts, out)["kept"] == 4
    assert files_of(out) == reference


def test_the_block_of_a_dead_worker_is_taken_up(generator, layouts, tmp_path, reference, monkeypatch):
    monkeypatch.setenv("FAKE_DEATH", "00000000.png")
    monkeypatch.setenv("FAKE_MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    try:
        made = make(generator, layouts, tmp_path / "s", num_processes=2)
    except CCDiffError as error:  # the other worker had nothing left to do just then
        assert "exit code 9" in str(error)
        made = make(generator, layouts, tmp_path / "s", num_processes=2)
    assert (tmp_path / "mark").exists() and made["pictures"] == 10
    assert files_of(tmp_path / "s") == reference


@pytest.mark.parametrize("damage", ["delete", "alter"])
def test_a_damaged_picture_of_a_finished_set_is_made_again(generator, layouts, tmp_path, reference, damage):
    picture = tmp_path / "reference" / "images" / "00000005.png"
    picture.unlink() if damage == "delete" else picture.write_bytes(b"not a picture")
    assert make(generator, layouts, tmp_path / "reference")["made"] == 4, "its block"
    assert files_of(tmp_path / "reference") == reference


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 7}, "seed was 0, now 7"),
        ({"n": 11}, "n was 10, now 11"),
        ({"batch_size": 5}, "batch_size was 4, now 5"),
        ({"steps": 4}, "steps was 3, now 4"),
        ({"guidance_scale": 3.0}, "guidance_scale was 2.0, now 3.0"),
        ({"layout_source": "set"}, "layouts.source was augmented, now set"),
        ({"shuffle_layouts": True}, "shuffle_layouts was False, now True"),
    ],
)
def test_a_changed_option_is_refused_and_named(generator, layouts, tmp_path, reference, options, said):
    with pytest.raises(CCDiffError, match=said):
        make(generator, layouts, tmp_path / "reference", **options)
    assert files_of(tmp_path / "reference") == reference


def test_a_changed_generator_or_set_is_refused(generator, layouts, tmp_path, reference):
    (generator / "README.md").write_text("a model card may change")
    make(generator, layouts, tmp_path / "reference")
    (generator / "unet" / "weights.safetensors").write_text("1.6")
    with pytest.raises(CCDiffError, match=r"changed: generator\.key was"):
        make(generator, layouts, tmp_path / "reference")


def test_a_foreign_folder_is_refused(generator, layouts, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(CCDiffError, match=r"not empty \(thesis\.tex\)"):
        make(generator, layouts, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(CCDiffError, match="not empty"):
        make(generator, layouts, layouts)


def test_a_second_run_on_the_same_folder_is_refused(generator, layouts, tmp_path):
    out = tmp_path / "s"
    run = start(generator, layouts, out, environment={"FAKE_SECONDS": "1"})
    wait_for_pictures(out, 4)
    with pytest.raises(CCDiffError, match=f"another run is working on this folder .process {run.pid}"):
        make(generator, layouts, out)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert verify_set(out)["ok"]


def test_a_lock_left_by_a_killed_run_does_not_hold(generator, layouts, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".lock").write_text("1")  # a process that lives, but does not hold it
    assert make(generator, layouts, tmp_path / "s")["made"] == 10


def test_bad_generators_are_refused(generator, layouts, tmp_path):
    with pytest.raises(CCDiffError, match="no such generator folder"):
        make(tmp_path / "nowhere", layouts, tmp_path / "s")
    (tmp_path / "started" / "train").mkdir(parents=True)
    with pytest.raises(CCDiffError, match="training is unfinished"):
        make(tmp_path / "started", layouts, tmp_path / "s")
    with pytest.raises(CCDiffError, match="not a generator folder"):
        make(layouts, layouts, tmp_path / "s")
    description = read_json(generator / "ccdiff.json")
    write_json(generator / "ccdiff.json", {"classes": ["ship"]})
    with pytest.raises(CCDiffError, match="picture size"):
        make(generator, layouts, tmp_path / "s")
    write_json(generator / "ccdiff.json", description)
    (generator / "unet" / "weights.safetensors").write_text("rubbish")
    for processes in (1, 2):
        with pytest.raises(CCDiffError, match="cannot be loaded") as caught:
            make(generator, layouts, tmp_path / "s", num_processes=processes)
        assert caught.value.fix == "copy it again", "the worker's own message arrives"


def test_layouts_that_do_not_fit_the_generator_are_refused(generator, layouts, tmp_path):
    description = read_json(generator / "ccdiff.json")
    write_json(generator / "ccdiff.json", {**description, "classes": ["ship", "court"]})
    with pytest.raises(CCDiffError, match=r"not trained on the class 'airplane'"):
        make(generator, layouts, tmp_path / "s")
    write_json(generator / "ccdiff.json", {**description, "picture_size": 64})
    with pytest.raises(CCDiffError, match="32x32 px, the generator makes 64x64"):
        make(generator, layouts, tmp_path / "s")
    write_json(generator / "ccdiff.json", description)
    with pytest.raises(CCDiffError, match="no pictures in its val split"):
        make(generator, layouts, tmp_path / "s", split="val")
    assert not (tmp_path / "s").exists(), "nothing is written before everything is checked"


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"batch_size": 0}, {"steps": 0}, {"guidance_scale": 0.5}, {"precision": "int4"}, {"num_processes": 0}]
)
def test_options_out_of_range_are_refused(generator, layouts, tmp_path, options):
    with pytest.raises(CCDiffError):
        make(generator, layouts, tmp_path / "s", **options)


def test_a_full_disk_ends_in_one_message_and_nothing_half_written(generator, layouts, tmp_path, monkeypatch, reference):
    out = tmp_path / "s"
    real, count = os.fsync, []

    def full(handle):
        count.append(handle)
        if len(count) > 7:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(ccdiff_cli.files.os, "fsync", full)
    with pytest.raises(CCDiffError, match=r"No space left on device[\s\S]*it resumes"):
        make(generator, layouts, out)
    monkeypatch.undo()
    assert not [p for p in files_of(out) if ".partial-" in p] and not (out / "manifest.json").exists()
    make(generator, layouts, out)
    assert files_of(out) == reference


def test_an_output_that_cannot_be_a_folder_is_refused(generator, layouts, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CCDiffError, match="cannot make the folder"):
        make(generator, layouts, tmp_path / "file" / "s")


def test_numbers_that_are_not_finite_never_become_a_picture(generator, layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_NAN", "1")
    with pytest.raises(CCDiffError, match="not finite"):
        make(generator, layouts, tmp_path / "s")
    assert not list((tmp_path / "s").glob("images/*.png"))


# ---- verify ----


def test_verify_finds_every_kind_of_damage(generator, layouts, tmp_path):
    out = tmp_path / "s"
    make(generator, layouts, out)
    assert verify_set(out) == {**verify_set(out), "ok": True, "problems": [], "pictures": 10, "kind": "synthetic"}
    picture, extra = out / "images" / "00000003.png", out / "images" / "extra.png"
    whole = picture.read_bytes()

    def problems():
        found = verify_set(out)
        assert found["ok"] is (not found["problems"])
        return " / ".join(found["problems"])

    picture.write_bytes(whole[:-20])
    assert "00000003.png: the picture was changed" in problems()
    picture.unlink()
    assert "00000003.png: the picture is missing" in problems()
    picture.write_bytes(whole)
    extra.write_bytes(whole)
    assert "extra.png: does not belong to the set" in problems()
    extra.unlink()
    labels = (out / "annotations.json").read_text()
    coco = json.loads(labels)
    coco["annotations"][0]["bbox"][0] = 31.0
    write_json(out / "annotations.json", coco)
    assert "leaves the picture" in problems() and "content key differs" in problems()
    (out / "annotations.json").write_text(labels)
    plan = (out / "plan.jsonl").read_text()
    (out / "plan.jsonl").write_text(plan[1:])
    assert "plan.jsonl" in problems()
    (out / "plan.jsonl").write_text(plan)
    assert problems() == ""
    (out / "manifest.json").unlink()
    with pytest.raises(CCDiffError, match="unfinished"):
        verify_set(out)


def test_verify_passes_a_prepared_set(layouts):
    assert verify_set(layouts)["ok"]
