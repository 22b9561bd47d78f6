"""Sets in shards: the pictures of one folder, whoever makes them and however often; every verb takes them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.files import read_json, sha256_file, write_json
from ccdiff_cli.inspection import InspectOptions, inspect_set
from ccdiff_cli.synthesis import accept_set, verify_set
from ccdiff_cli.synthesis import shards as room
from tests.synthesis.test_synthesis import ROOT, files_of, make, write_script


def sharded(generator, layouts, out, **options):
    """Ten pictures as shards of four, four and two; 5 is no whole number of batches."""
    return make(generator, layouts, out, **{"shard_size": 5, **options})


@pytest.fixture
def whole(generator, layouts, tmp_path):
    sharded(generator, layouts, tmp_path / "whole")
    return tmp_path / "whole"


def test_the_pictures_and_labels_are_those_of_one_folder(generator, layouts, tmp_path, whole):
    made = make(generator, layouts, tmp_path / "flat")
    assert sorted(p.name for p in (whole / "shards").iterdir()) == ["00000", "00001", "00002"]
    one, many = read_set(tmp_path / "flat"), read_set(whole)
    assert one.hashes == many.hashes and len(many.hashes) == 10 and many.classes == one.classes
    assert [s.replace(path=None) for s in one.scenes] == [s.replace(path=None) for s in many.scenes]
    assert many.content == many.manifest["content"] and not many.edited()
    assert many.manifest["counts"] == one.manifest["counts"] and many.manifest["kind"] == "synthetic"
    again = sharded(generator, layouts, whole)
    assert again["made"] == 0 and again["kept"] == 10 and again["content"] == many.content and again["objects"] == made["objects"]
    assert verify_set(whole) == {**verify_set(whole), "ok": True, "pictures": 10, "content": many.content}
    for folder in (whole / "shards").iterdir():
        assert verify_set(folder)["ok"], "a shard is a set by itself"


def test_a_set_no_larger_than_a_shard_has_none(generator, layouts, tmp_path):
    make(generator, layouts, tmp_path / "a")
    make(generator, layouts, tmp_path / "b", shard_size=10)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") and not (tmp_path / "b" / "shards").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_lost_and_damaged_shards_are_made_again_alone(generator, layouts, tmp_path, whole, monkeypatch, processes):
    out, expected, real = tmp_path / "s", files_of(whole), room._is_done

    def stop_at_the_second(folder, *rest):
        if folder.name == "00001":
            raise KeyboardInterrupt
        return real(folder, *rest)

    monkeypatch.setattr(room, "_is_done", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        sharded(generator, layouts, out, num_processes=processes)
    monkeypatch.undo()
    with pytest.raises(CCDiffError, match="unfinished"):
        read_set(out)
    assert sharded(generator, layouts, out, num_processes=processes)["made"] == 6 and files_of(out) == expected
    shutil.rmtree(out / "shards" / "00001")
    (out / "shards" / "00002" / "images" / "00000009.png").write_bytes(b"damaged")
    assert any("00001" in text for text in verify_set(out)["problems"]) and len(verify_set(out)["problems"]) > 1
    before = (out / "shards" / "00000" / "manifest.json").stat().st_mtime_ns
    assert sharded(generator, layouts, out, num_processes=processes)["made"] == 6 and files_of(out) == expected
    assert (out / "shards" / "00000" / "manifest.json").stat().st_mtime_ns == before


def test_parts_make_whole_shards(generator, layouts, tmp_path, whole):
    out = tmp_path / "s"
    first = sharded(generator, layouts, out, part="1/2")
    assert (first["made"], first["left_to_other_parts"]) == (4, 6) and read_set(out / "shards" / "00001").hashes
    assert sharded(generator, layouts, out, part="0/2")["left_to_other_parts"] == 0 and not (out / "manifest.json").exists()
    assert sharded(generator, layouts, out)["made"] == 0
    assert files_of(out) == files_of(whole)


def test_a_floor_set_and_a_filterless_dry_run(generator, layouts, tmp_path):
    shown = sharded(generator, layouts, tmp_path / "s", dry_run=True)
    assert shown["pictures"] == 10 and shown["shards"] == 3 and not (tmp_path / "s").exists()
    sharded(generator, layouts, tmp_path / "floor", shuffle_layouts=True)
    floor = read_set(tmp_path / "floor")
    assert [s.provenance["drawn_from"] for s in floor.scenes] == [1, 2, 3, 0, 5, 6, 7, 4, 9, 8]
    instance = floor.scenes[5].instances[0]
    x1, y1, x2, y2 = (round(v) for v in instance.hbb)
    assert np.asarray(Image.open(floor.scenes[4].path))[y1:y2, x1:x2, 0].min() > 245


def test_another_run_is_refused_and_a_set_begun_in_one_folder_stays_there(generator, layouts, tmp_path, whole):
    with pytest.raises(CCDiffError, match="shard_size was 4, now 8"):
        sharded(generator, layouts, whole, shard_size=8)
    with pytest.raises(CCDiffError, match="seed was 0, now 1"):
        sharded(generator, layouts, whole, seed=1)
    make(generator, layouts, tmp_path / "flat")
    before = files_of(tmp_path / "flat")
    assert sharded(generator, layouts, tmp_path / "flat")["made"] == 0 and files_of(tmp_path / "flat") == before


def test_what_does_not_belong_together_is_found(whole):
    manifest = read_json(whole / "manifest.json")
    (whole / "shards" / "00003").mkdir()
    assert verify_set(whole)["problems"] == ["shards/00003: does not belong to the set"]
    (whole / "shards" / "00003").rmdir()
    write_json(whole / "manifest.json", {**manifest, "shards": manifest["shards"][:2]})
    assert "shards: not those" in verify_set(whole)["problems"][0]
    with pytest.raises(CCDiffError, match="shards: not those"):
        read_set(whole)
    write_json(whole / "manifest.json", {**manifest, "shards": [{"name": "../..", "content": ""}]})
    with pytest.raises(CCDiffError, match=r"shards\.0\.name|shards\[0\]\.name"):
        read_set(whole)
    write_json(whole / "manifest.json", manifest)
    assert verify_set(whole)["ok"]


def test_edits_are_taken_shard_by_shard(whole):
    path = whole / "shards" / "00001" / "annotations.json"
    labels = json.loads(path.read_text())
    labels["annotations"][0]["difficult"] = 1
    write_json(path, labels)
    assert not verify_set(whole)["ok"]
    done = accept_set(whole)
    assert done["labels_changed"] == 1 and done["lines"] == [f"00001: {line.partition(': ')[2]}" for line in done["lines"]]
    assert verify_set(whole)["ok"] and read_set(whole).content == verify_set(whole)["content"]


def test_an_export_has_a_folder_a_shard(whole, tmp_path):
    made = export_set(whole, tmp_path / "coco", ExportOptions(format="coco"))
    assert made.pictures == 10 and not made.resumed and "3 shards" in made.said[0]
    found = [p for k in range(3) for p in (tmp_path / "coco" / f"0000{k}" / "images" / "train").iterdir()]
    assert len(found) == 10 and {sha256_file(p) for p in found} == set(read_set(whole).hashes.values())
    assert export_set(whole, tmp_path / "coco", ExportOptions(format="coco")).resumed
    (tmp_path / "coco" / "notes.txt").write_text("mine")
    with pytest.raises(CCDiffError, match=r"not empty \(notes.txt\)"):
        export_set(whole, tmp_path / "coco", ExportOptions(format="coco"))


def test_inspect_looks_at_the_whole(whole, tmp_path):
    facts = inspect_set(whole, tmp_path / "page", InspectOptions(samples=2))
    assert sum(part["pictures"] for part in facts["per_split"].values()) == 10


def test_torchrun_makes_the_same_shards(generator, layouts, tmp_path, whole):
    out = tmp_path / "s"
    code = (
        "from tests.synthesis.test_shards import sharded\n"
        f"sharded({str(generator)!r}, {str(layouts)!r}, {str(out)!r}, num_processes=None)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", write_script(out, code)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert files_of(out) == files_of(whole)
