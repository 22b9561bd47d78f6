"""Round trips through programs that others wrote; each is left out, with the reason, where its package is not installed."""

import pytest

from ccdiff_cli.export import export_set


@pytest.mark.slow
def test_huggingface_datasets_reads_the_folder_and_webdataset_the_shards(data, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    export_set(data, tmp_path / "hf", "huggingface")
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "validation": 1, "test": 1}
    row = found["train"][0]
    assert row["image"].size == (96, 64) and row["objects"]["category"] == [0, 1, 0]
    export_set(data, tmp_path / "wds", "webdataset")
    samples = list(webdataset.WebDataset(str(tmp_path / "wds" / "train-000000.tar"), shardshuffle=False).decode("pil"))
    assert len(samples) == 2 and samples[0]["png"].size == (96, 64) and samples[0]["json"]["objects"]["category"] == [0, 1, 0]
