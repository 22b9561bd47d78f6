"""Shards of webdataset."""

import json
import tarfile

from ccdiff_cli.export import ExportOptions, export_set
from tests.export.sets import SLANTED


def test_webdataset_shards(data, tmp_path, monkeypatch):
    monkeypatch.setattr("ccdiff_cli.export.webdataset.SHARD_PICTURES", 1)
    done = export_set(data, tmp_path / "out", ExportOptions(format="webdataset"))
    shards = sorted(p.name for p in done.root.glob("*.tar"))
    assert shards == ["test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar"]
    with tarfile.open(done.root / "train-000001.tar") as shard:
        assert shard.getnames() == ["00000001.jpg", "00000001.json"]
        assert shard.extractfile("00000001.jpg").read() == (data.root / "images" / "b.jpg").read_bytes()
    with tarfile.open(done.root / "train-000000.tar") as shard:
        label = json.loads(shard.extractfile("00000000.json").read())
    assert label["file_name"] == "a.png" and label["objects"]["name"] == ["ship", "storage tank", "ship"]
    assert label["objects"]["mask"] == [[list(SLANTED[:6])], [], []] and done.lost == {}
    assert not list(done.root.glob("*.png"))
