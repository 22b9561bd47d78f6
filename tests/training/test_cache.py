"""Feature stores: rows come back under their keys; nothing is encoded twice; a lost shard is made again."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ccdiff_cli.training.cache import ROWS, build_store

KEYS = [f"key {n}" for n in range(ROWS + 10)]


def encoder(calls: list[int]):
    def encode(indices: list[int]) -> torch.Tensor:
        calls.extend(indices)
        return torch.tensor(indices, dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.5])

    return encode


def test_rows_under_their_keys_made_once(tmp_path: Path) -> None:
    calls: list[int] = []
    store = build_store(tmp_path, "kind", KEYS, "weights", encoder(calls), Accelerator(cpu=True))
    assert sorted(calls) == list(range(len(KEYS)))
    assert store.tensor(["key 3", f"key {ROWS + 2}"]).tolist() == [[3, 1.5], [ROWS + 2, (ROWS + 2) / 2]]
    assert "key 3" in store and "key x" not in store
    again: list[int] = []
    build_store(tmp_path, "kind", KEYS, "weights", encoder(again), Accelerator(cpu=True))
    assert again == []
    (store.folder / "000001.npy").unlink()
    build_store(tmp_path, "kind", KEYS, "weights", encoder(again), Accelerator(cpu=True))
    assert sorted(again) == list(range(ROWS, len(KEYS)))


@pytest.mark.parametrize(("kind", "made_from"), [("other", "weights"), ("kind", "other weights")])
def test_another_origin_is_another_store(tmp_path: Path, kind: str, made_from: str) -> None:
    build_store(tmp_path, "kind", KEYS[:3], "weights", encoder([]), Accelerator(cpu=True))
    calls: list[int] = []
    build_store(tmp_path, kind, KEYS[:3], made_from, encoder(calls), Accelerator(cpu=True))
    assert calls == [0, 1, 2]
