"""CC-Diff's `metadata.jsonl`."""

import json

import numpy as np
import pytest

from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.export.common import CORNERS_OUTSIDE
from ccdiff_cli.geometry import le90_to_corners
from ccdiff_cli.scene import Instance
from tests.export.sets import SLANTED, one_scene


def test_metadata_lines(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="metadata"))
    lines = [json.loads(line) for line in (done.root / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["a.png", "b.jpg"] and all(
        (done.root / "train" / x["file_name"]).is_file() for x in lines
    )
    first, empty = lines
    assert first["caption"] == ["This is it.", "ship", "storage tank", "ship", "", "", ""]
    assert first["bndboxes"][1:] == [
        pytest.approx(v) for v in ([5 / 96, 5 / 64, 25.5 / 96, 25.25 / 64], [70 / 96, 2 / 64, 1, 20 / 64])
    ] + 3 * [[0] * 4]
    assert np.array(first["obboxes"][0]) * np.tile([96, 64], 4) == pytest.approx(SLANTED, abs=1e-5) and first["obboxes"][3:] == 3 * [
        [0] * 8
    ]
    assert all(0 <= v <= 1 for box in first["obboxes"] for v in box)
    assert empty["caption"] == ["This is it.", *[""] * 6] and empty["bndboxes"] == 6 * [[0] * 4]
    assert (done.root / "classes.txt").read_text() == "ship\nstorage tank\n"
    assert done.lost == {
        CORNERS_OUTSIDE: 3, "difficult flags": 3, "marks that an orientation is unknown": 3, "masks": 3,
    }  # fmt: skip


def test_metadata_keeps_objects_beyond_the_sixth_and_says_so(tmp_path):
    instances = tuple(Instance.from_corners("ship", le90_to_corners((48, 32, 9 + k, 5, 0.1))) for k in range(8))
    done = export_set(one_scene(tmp_path / "set", instances=instances), tmp_path / "out", ExportOptions(format="metadata"))
    line = json.loads(done.entry.read_text())
    assert len(line["caption"]) == 9 and len(line["bndboxes"]) == len(line["obboxes"]) == 8
    assert [(what.split(" (")[0], count) for what, count in done.lost.items()] == [("objects beyond CC-Diff's 6 a picture", 2)]
