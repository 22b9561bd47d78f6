"""What goes wrong on machines: kills at any moment, signals, memory, parts of a cluster, odd clocks, folders that cannot be written."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ccdiff_cli.files
import ccdiff_cli.synthesis as room
from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError, Stopped
from ccdiff_cli.files import read_json, sha256_file
from ccdiff_cli.synthesis import verify_set
from tests.synthesis.grouped import make_set
from tests.synthesis.test_synthesis import ROOT, files_of, make, reference, start, wait_for_pictures  # noqa: F401

FAKE = "tests.synthesis.fake:load"


def pictures_of(root):
    return {p.name: sha256_file(p) for p in (Path(root) / "images").iterdir()}


def child(generator, layouts, out, options):
    os.setpgid(0, 0)  # its workers die with it
    make_set(generator, layouts, out, 24, **options)


def kill_and_go_on(generator, layouts, out, kills, longest, **options):
    """24 pictures.  Kill the run so often at random moments; a set that is finished before that is damaged, and made whole again."""
    rng, context = random.Random(0), multiprocessing.get_context("fork")
    killed = 0
    while killed < kills:
        process = context.Process(target=child, args=(generator, layouts, out, options))
        process.start()
        process.join(rng.uniform(0, longest))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0
            rng.choice(sorted((out / "images").iterdir())).unlink()
    return make_set(generator, layouts, out, 24, **options)["content"]


def test_kills_at_random_moments_leave_one_hash_whatever_the_batch(generator, layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_EXACT", "1")
    monkeypatch.setenv("FAKE_SECONDS", "0.02")
    whole = make_set(generator, layouts, tmp_path / "whole", 24, pipeline=FAKE, num_processes=1)["content"]
    for batch in (1, 8):
        options = {"batch_size": batch, "num_processes": 1, "pipeline": FAKE}
        assert kill_and_go_on(generator, layouts, tmp_path / str(batch), 12, 0.6, **options) == whole
        assert pictures_of(tmp_path / str(batch)) == pictures_of(tmp_path / "whole")
        assert verify_set(tmp_path / str(batch))["ok"]


@pytest.mark.slow
def test_fifty_kills_in_one_two_and_three_processes_leave_one_hash(generator, layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_EXACT", "1")
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    whole = make_set(generator, layouts, tmp_path / "whole", 24, pipeline=FAKE, num_processes=1)["content"]
    for processes, kills in ((1, 18), (2, 16), (3, 16)):
        for batch in (1, 8):
            out = tmp_path / f"{processes}-{batch}"
            options = {"batch_size": batch, "num_processes": processes, "pipeline": FAKE}
            assert kill_and_go_on(generator, layouts, out, kills // 2, 8.0, **options) == whole
            assert verify_set(out)["ok"]


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_finishes_the_batch_and_leaves(generator, layouts, tmp_path, reference, processes):  # noqa: F811
    out = tmp_path / "s"
    run = start(generator, layouts, out, processes=processes, environment={"FAKE_SECONDS": "1"})
    wait_for_pictures(out, 1)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=120)
    if run.returncode == 0:  # two processes had only the last block left to make
        assert processes == 2 and (out / "manifest.json").exists()
        return
    assert "Stopped" in errors and "run the same command again" in errors
    made = {e["file_name"] for p in (out / "records").iterdir() for e in read_json(p)["pictures"]}
    assert made == {p.name for p in (out / "images").iterdir()}, "no block was left in the middle"
    make(generator, layouts, out)
    assert files_of(out) == reference


def test_the_command_line_says_that_it_was_stopped(generator, layouts, tmp_path):
    code = (
        "import ccdiff_cli.synthesis as s, sys; real = s.synthesize\n"
        f"s.synthesize = lambda *a, **k: real(*a, **{{**k, 'pipeline': {FAKE!r}}})\n"
        "from ccdiff_cli.cli import main; main(sys.argv[1:])"
    )
    arguments = ["synthesize", "-n", "24", "-c", str(generator), "-l", str(layouts), "-o", str(tmp_path / "s"), "--num-processes", "1"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_SECONDS": "0.5"}
    run = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True)
    wait_for_pictures(tmp_path / "s", 1)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 143 and "stopped by a signal after" in errors.splitlines()[-1] and "Traceback" not in errors


def test_a_device_without_memory_makes_half_batches(generator, layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_EXACT", "1")
    make(generator, layouts, tmp_path / "whole")
    monkeypatch.setenv("FAKE_ROOM", "2")
    made = make(generator, layouts, tmp_path / "s", batch_size=8)
    assert made["made"] == 10 and pictures_of(tmp_path / "s") == pictures_of(tmp_path / "whole")
    assert read_set(tmp_path / "s").manifest["made_in_smaller_batches"] == {"2": 2}
    monkeypatch.setenv("FAKE_ROOM", "0")
    with pytest.raises(CCDiffError, match="one picture alone is too much"):
        make(generator, layouts, tmp_path / "t")


def test_parts_of_a_cluster_make_the_same_set(generator, layouts, tmp_path, reference):  # noqa: F811
    out = tmp_path / "s"
    first = make(generator, layouts, out, part=(0, 2))
    assert first["made"] == 6 and first["left_to_other_parts"] == 4 and not (out / "manifest.json").exists()
    assert make(generator, layouts, out, part=(0, 2))["made"] == 0, "a part resumes"
    second = make(generator, layouts, out, part=(1, 2))
    assert second["made"] == 4 and second["left_to_other_parts"] == 0
    assert make(generator, layouts, out)["made"] == 0
    assert files_of(out) == reference
    with pytest.raises(CCDiffError, match="counted from 0"):
        make(generator, layouts, out, part=(2, 2))


def test_parts_run_at_once_and_the_whole_does_not(generator, layouts, tmp_path, reference):  # noqa: F811
    out = tmp_path / "s"
    code = (
        "from tests.synthesis.grouped import make_set; import sys; "
        f"make_set({str(generator)!r}, {str(layouts)!r}, {str(out)!r}, 10, batch_size=4, pipeline={FAKE!r}, num_processes=1, "
        "part=(int(sys.argv[1]), 3))"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FAKE_SECONDS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(k)], cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)
        for k in (0, 1, 2)
    ]
    while not (out / ".lock-0-of-3").exists() and runs[0].poll() is None:
        time.sleep(0.01)
    with pytest.raises(CCDiffError, match="another run is working"):
        make(generator, layouts, out, part=(0, 3))
    with pytest.raises(CCDiffError, match="another run is working"):
        make(generator, layouts, out)
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    assert make(generator, layouts, out)["kept"] == 10
    assert files_of(out) == reference


@pytest.mark.parametrize(("format", "suffix"), [("jpeg", ".jpg"), ("webp", ".webp")])
def test_other_picture_formats(generator, layouts, tmp_path, format, suffix):
    make(generator, layouts, tmp_path / "png")
    made = make(generator, layouts, tmp_path / "s", format=format)
    assert made["pictures"] == 10 and verify_set(tmp_path / "s")["ok"]
    for scene in read_set(tmp_path / "s").scenes:
        assert scene.file_name.endswith(suffix)
        with Image.open(scene.path) as picture:
            assert picture.format == format.upper()
            other = Image.open(tmp_path / "png" / "images" / scene.file_name.replace(suffix, ".png"))
            difference = np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(other, int))
            assert difference.max() == 0 if format == "webp" else 0 < difference.mean() < 30


def test_a_clock_that_jumps_changes_nothing(generator, layouts, tmp_path, monkeypatch, reference):  # noqa: F811
    jumps = iter([1e9, 0.0, -1e6] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    make(generator, layouts, tmp_path / "s")
    assert files_of(tmp_path / "s") == reference


def test_a_read_only_folder_is_one_message(generator, layouts, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(ccdiff_cli.files.tempfile, "mkstemp", refuse)
    with pytest.raises(CCDiffError, match=r"Read-only file system[\s\S]*choose another output folder"):
        make(generator, layouts, tmp_path / "s")


def test_a_part_of_the_pictures_goes_to_a_val_split(generator, layouts, tmp_path):
    make(generator, layouts, tmp_path / "s", n=24, val_share=0.4)
    splits = {}
    for scene in read_set(tmp_path / "s").scenes:
        splits.setdefault(scene.source, set()).add(scene.split)
    assert all(len(found) == 1 for found in splits.values()), "layouts of one picture stand in one split"
    assert {s for found in splits.values() for s in found} == {"train", "val"}
    with pytest.raises(CCDiffError, match="val split"):
        make(generator, layouts, tmp_path / "t", val_share=1.0)


def test_a_dry_run_times_a_batch(generator, layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    shown = make(generator, layouts, tmp_path / "s", dry_run=True)
    assert shown["seconds_per_batch"] >= 0.05 and shown["estimated_seconds"] == pytest.approx(3 * shown["seconds_per_batch"], abs=0.06)
    assert shown["processes"] == 1 and not (tmp_path / "s").exists()


def test_the_card_says_what_the_set_is(generator, layouts, tmp_path):
    make(generator, layouts, tmp_path / "s", layout_source="sampled", balance="classes")
    text = (tmp_path / "s" / "README.md").read_text()
    head = text.split("---\n")[1]
    assert "object-detection" in head and "size_categories" in head
    for said in ("10 pictures of 32 x 32", "statistical model", "balance: classes", "Nothing was filtered", "contact_sheet.png", "Terms"):
        assert said in text
    make(generator, layouts, tmp_path / "floor", shuffle_layouts=True)
    assert "This is a floor set" in (tmp_path / "floor" / "README.md").read_text()


def test_verify_knows_what_was_planned(generator, layouts, tmp_path):
    make(generator, layouts, tmp_path / "s")
    lines = (tmp_path / "s" / "plan.jsonl").read_text().splitlines()
    (tmp_path / "s" / "plan.jsonl").write_text("".join(line + "\n" for line in [*lines, lines[0].replace("00000000.png", "00000010.png")]))
    header = read_json(tmp_path / "s" / "plan.json")
    header["lines"] = sha256_file(tmp_path / "s" / "plan.jsonl")
    (tmp_path / "s" / "plan.json").write_text(json.dumps(header))
    assert "00000010.png: planned, but not in the set" in verify_set(tmp_path / "s")["problems"]


def test_a_signal_within_this_process(generator, layouts, tmp_path, monkeypatch, reference):  # noqa: F811
    real = room.worker.save_block

    def raise_after(*arguments):
        real(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(room.worker, "save_block", raise_after)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by a signal after"):
        make(generator, layouts, tmp_path / "s", n=40)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(room.worker, "save_block", real)
    assert make(generator, layouts, tmp_path / "s", n=40)["kept"] >= 4


@pytest.mark.parametrize("processes", [1, 2])
def test_each_worker_is_accounted_for(generator, layouts, tmp_path, processes):
    notes = []

    def progress(stage, done, total):
        pass

    progress.note = lambda stage, text: notes.append((stage, text))
    made = make(generator, layouts, tmp_path / "s", num_processes=processes, progress=progress)
    assert sum(w["pictures"] for w in made["workers"]) == 10 and all(w["memory_mib"] > 50 for w in made["workers"])
    assert notes and notes[-1][0] == "synthesize" and "MiB" in notes[-1][1] and "0:" in notes[-1][1]
