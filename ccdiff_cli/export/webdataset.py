"""Shards of webdataset, after its README: tar files of pictures and their labels as JSON.

NOTE: they are for webdataset's own reader.  Hugging Face's `datasets` reads them too, but guesses types from the first five pictures of a
shard, and stops where lists are empty in these; for it there is the ``huggingface`` export.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from ..dataset import SPLITS
from ..files import atomic_write
from ..scene import Scene
from .common import Job, Writer, no_labels, write_classes
from .huggingface import HOLDS, example, have_masks
from .pictures import picture_bytes, suffix_of

SHARD_PICTURES = 1000


def _nowhere(scene: Scene) -> str:
    """Pictures stand in the shards alone."""
    return ""


def _finish(job: Job, scenes: Sequence[Scene]) -> str:
    """``SPLIT-000000.tar``, each of at most ``SHARD_PICTURES`` pictures: ``KEY.png`` (or as it is) and ``KEY.json``; ``classes.txt``.

    Keys are numbers, for a dot in a key would end it.  The bytes of a shard depend on its pictures and labels alone.
    """
    masks = have_masks(scenes)
    for split in SPLITS:
        members = [scene for scene in scenes if scene.split == split]
        for first in range(0, len(members), SHARD_PICTURES):
            with (
                atomic_write(job.out / f"{split}-{first // SHARD_PICTURES:06d}.tar") as stream,
                tarfile.open(fileobj=stream, mode="w") as shard,
            ):
                for number, scene in enumerate(members[first : first + SHARD_PICTURES], start=first):
                    picture = Path(str(scene.path))
                    data = picture_bytes(job, picture)
                    label = json.dumps(example(scene, job.classes, masks=masks), ensure_ascii=False).encode("utf-8")
                    for suffix, content in ((suffix_of(job, picture), data), (".json", label)):
                        entry = tarfile.TarInfo(f"{number:08d}{suffix}")
                        entry.size = len(content)
                        shard.addfile(entry, io.BytesIO(content))
    write_classes(job)
    return "."


WRITER = Writer(_nowhere, no_labels, _finish, HOLDS, files=False, plain_names=True)
