"""Folders for Hugging Face's datasets: labels in JSON where every split shows their types, else in parquet."""

import json
import sys

import pytest
from pyarrow import parquet

from ccdiff_cli.dataset import write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.scene import Instance, Scene
from tests.export.sets import CLASSES, SLANTED
from tests.rawsets import picture


def test_huggingface_folders(data, tmp_path):
    done = export_set(data, tmp_path / "out", ExportOptions(format="huggingface"))
    lines = parquet.read_table(done.root / "train" / "metadata.parquet").to_pylist()
    assert [line["file_name"] for line in lines] == ["a.png", "b.jpg"] and lines[0]["text"] == "This is it."
    objects = lines[0]["objects"]
    assert objects["bbox"][1] == [5, 5, 20.5, 20.25] and objects["category"] == [0, 1, 0] and objects["difficult"] == [False, True, False]
    assert objects["corners"][0] == list(SLANTED) and lines[1]["objects"]["bbox"] == []
    assert objects["mask"] == [[list(SLANTED[:6])], [], []]
    assert {p.name for p in (done.root / "val").iterdir()} == {"c.png", "metadata.parquet"}
    assert done.lost == {}
    for line in lines:  # the rule of `imagefolder`: every picture has its line, every line its picture
        assert (done.root / "train" / line["file_name"]).is_file()


def set_of(root, objects: dict[str, list[int]]):
    """Split -> how many objects its pictures have."""
    scenes, hashes = [], {}
    for split, counts in objects.items():
        for k, count in enumerate(counts):
            name = f"{split}{k}.png"
            hashes[name] = sha256_file(picture(root / "images" / name))
            instances = tuple(Instance.from_hbb("ship", (n, 2, n + 9, 12)) for n in range(count))
            scenes.append(Scene(name, 96, 64, instances, split=split, source=name))
    return write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)


EMPTY = [{"train": [1, 0], "val": [2], "test": [0, 0]}, {"train": [0], "val": [0]}, {"test": [0, 0]}, {"train": [0] * 600 + [1]}]


@pytest.mark.parametrize("objects", EMPTY)
def test_labels_are_typed_where_a_split_does_not_show_the_types(tmp_path, objects):
    done = export_set(set_of(tmp_path / "set", objects), tmp_path / "out", ExportOptions(format="huggingface"))
    assert any("metadata.parquet" in line for line in done.said) and not list(done.root.rglob("*.jsonl"))
    schemas = []
    for split, counts in objects.items():
        table = parquet.read_table(done.root / split / "metadata.parquet")
        schemas.append(table.schema.remove_metadata())
        rows = table.to_pylist()
        assert [len(row["objects"]["bbox"]) for row in rows] == counts and rows[0]["file_name"] == f"{split}0.png"
        assert all(row["objects"]["bbox"][:1] in ([], [[0, 2, 9, 10]]) for row in rows)
    assert all(schema == schemas[0] for schema in schemas) and "double" in str(schemas[0].field("objects").type)


def test_labels_are_json_where_every_split_shows_the_types(tmp_path):
    done = export_set(set_of(tmp_path / "set", {"train": [0, 1], "val": [2]}), tmp_path / "out", ExportOptions(format="huggingface"))
    assert sorted(p.name for p in done.root.rglob("metadata.*")) == ["metadata.jsonl"] * 2
    lines = [json.loads(line) for line in (done.root / "val" / "metadata.jsonl").read_text().splitlines()]
    assert lines[0]["objects"]["bbox"] == [[0, 2, 9, 10], [1, 2, 9, 10]] and "mask" not in lines[0]["objects"]


def test_what_is_missing_to_write_types_is_said(tmp_path, monkeypatch):
    made = set_of(tmp_path / "set", {"test": [0]})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(CCDiffError, match="pip install pyarrow"):
            export_set(made, tmp_path / "out", ExportOptions(format="huggingface"))
    assert export_set(made, tmp_path / "out", ExportOptions(format="huggingface")).pictures == 1  # the same command goes on
