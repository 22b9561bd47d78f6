"""Frozen features on disk: VAE latents, text tokens, image tokens of references.

Each store is a folder of ``.npy`` shards (float16, 256 rows), named by what they were made from.  Shards appear whole, are made
by whichever process their number falls to, and are never made twice; reading maps them into memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ..files import content_key, write_bytes
from .loop import Progress

ROWS = 256


class FeatureStore:
    """Rows of one shape under string keys, in shards on disk."""

    def __init__(self, folder: Path, keys: Sequence[str], rows: int = ROWS) -> None:
        self.folder, self.of = folder, rows
        self.rows = {key: index for index, key in enumerate(keys)}
        self._shards: dict[int, np.ndarray] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> np.ndarray:
        shard, row = divmod(self.rows[key], self.of)
        if shard not in self._shards:
            self._shards[shard] = np.load(self.folder / f"{shard:06d}.npy", mmap_mode="r", allow_pickle=False)
        return self._shards[shard][row]

    def tensor(self, keys: Sequence[str]) -> torch.Tensor:
        """The rows of some keys, (len(keys), ...) float32."""
        return torch.from_numpy(np.stack([self[k] for k in keys]).astype(np.float32))


# wide: what a store holds, and how it is made
def build_store(
    root: Path,
    kind: str,
    keys: Sequence[str],
    made_from: object,
    encode: Callable[[list[int]], torch.Tensor],
    accelerator: Accelerator,
    *,
    batch_size: int = 16,
    rows: int = ROWS,
    progress: Progress | None = None,
) -> FeatureStore:
    """A store of ``encode(indices of keys)`` for all keys, encoding only the shards that are not there yet.

    Args:
        kind: name of the store, and of the stage in progress reports.
        made_from: JSON-able; with the keys it decides the folder (encoder weights, sizes, ...).
        rows: of a shard: what a process makes before another takes its turn, and what is lost when it is killed.
        encode: indices into ``keys`` -> (len, ...) tensor; must not depend on the order or the batch.
    """
    folder = root / f"{kind}-{content_key([made_from, list(keys)])}"
    shards = range((len(keys) + rows - 1) // rows)
    missing = [s for s in shards if not _is_whole(folder / f"{s:06d}.npy", min(rows, len(keys) - s * rows))]
    # by number, not by place among the missing ones: a process that looks a moment later may find fewer of them
    turn, processes = accelerator.process_index, accelerator.num_processes
    mine = {s: list(range(s * rows, min(len(keys), (s + 1) * rows))) for s in missing if s % processes == turn}
    done, total = 0, sum(map(len, mine.values()))
    for shard, indices in mine.items():
        made = []
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            with torch.no_grad():
                made.append(encode(part).to("cpu", torch.float16).numpy())
            done += len(part)
            if progress is not None:
                progress(kind, done, total)
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(made), allow_pickle=False)
        write_bytes(folder / f"{shard:06d}.npy", buffer.getvalue())
    accelerator.wait_for_everyone()
    return FeatureStore(folder, keys, rows)


def _is_whole(path: Path, rows: int) -> bool:
    """Whether a shard is there with all of its rows; a damaged one is made again."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError):  # the header is a Python literal
        return False
    return isinstance(found, np.ndarray) and found.dtype == np.float16 and found.ndim >= 1 and len(found) == rows
