"""The verb on the command line: what a person is told at the end, and what a program reads."""

import json
import os

import pytest

from ccdiff_cli.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return left.value.code, " ".join(said.out.split()), " ".join(said.err.split())


def test_last_lines_say_what_is_lost_what_stands_apart_and_whether_files_are_shared(data, tmp_path, capsys):
    code, out, _ = run(capsys, "export", data.root, "--format", "yolo", "--out", tmp_path / "yolo")
    assert code == 0 and "yolo cannot hold: captions (4), difficult flags (3), masks (3), orientations (6)" in out
    assert "pictures are copies: the set does not change with them" in out and "data.yaml" in out
    code, out, _ = run(capsys, "export", data.root, "--format", "coco", "--link", "--out", tmp_path / "coco")
    assert code == 0 and "coco has these where not every reader looks: captions (4), difficult flags (3), orientations (6)" in out
    assert "4 pictures are hard links: whoever changes one of these files changes the set" in out
    assert os.path.samefile(tmp_path / "coco" / "images" / "val" / "c.png", data.root / "images" / "c.png")


def test_the_same_as_json(data, tmp_path, capsys):
    arguments = ("export", data.root, "--format", "voc", "--voc-origin", "0", "--picture-format", "jpeg", "--quality", "80", "--json")
    code, out, _ = run(capsys, *arguments, "--out", tmp_path / "voc")
    made = json.loads(out)
    assert code == 0
    assert made["lost"] == {"captions": 4, "masks": 3, "pixels of pictures encoded as jpeg (quality 80)": 3}
    assert made["apart"]["orientations"] == 6 and any(line.startswith("bndbox: edges counted from 0") for line in made["said"])
    assert (made["pictures"], made["objects"], made["resumed"]) == (4, 9, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "yolo", "--quality", "80"), "--quality: quality 80"),
        (("--format", "voc", "--picture-format", "webp"), "--picture-format: picture format 'webp' for voc"),
        (("--format", "webdataset", "--link"), "--link: webdataset has no picture files"),
        (("--format", "voc", "--voc-origin", "2"), "--voc-origin: expected less than or equal to 1"),
        (("--format", "tfrecord"), "unknown export format 'tfrecord'"),
    ],
)
def test_what_does_not_fit_ends_in_one_message(data, tmp_path, capsys, options, message):
    code, _, said = run(capsys, "export", data.root, *options, "--out", tmp_path / "out")
    assert code == 2 and message in said and "fix:" in said and not (tmp_path / "out").exists()


def test_prepare_is_told_what_voc_counts_from(data, tmp_path, capsys):
    run(capsys, "export", data.root, "--format", "voc", "--out", tmp_path / "voc")
    for path in (tmp_path / "voc" / "Annotations").iterdir():  # as another program would write it
        path.write_text(path.read_text().replace("PASCAL VOC, pixels counted from 1", "PASCAL VOC2012"))
    boxes = {}
    for origin in ("0", "1"):
        target = tmp_path / f"prepared{origin}"
        code, out, _ = run(capsys, "prepare", tmp_path / "voc", "--voc-origin", origin, "--out", target)
        assert code == 0 and f"boxes taken as counted from {origin} (--voc-origin): 9" in out
        (tank,) = [a["bbox"] for a in json.loads((target / "annotations.json").read_text())["annotations"] if a["category_id"] == 2][:1]
        boxes[origin] = tank
    assert boxes == {"0": [6, 6, 19.5, 19.25], "1": [5, 5, 20.5, 20.25]}
