"""Sets that an arm makes of the real pictures: written once, read where they are there already."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from ..dataset import IMAGES, MANIFEST, PictureSet, read_set, write_set
from ..detectors import Progress
from ..errors import CCDiffError
from ..files import write_bytes
from ..scene import ClassList, Scene

Made = tuple[Scene, Image.Image, Counter[str]]
"""The labels of a picture, the picture, and what was left out of it, by reason."""


def made_set(
    root: Path,
    kind: str,
    classes: ClassList,
    count: int,
    make: Callable[[int], Made],
    details: Callable[[list[Scene]], Mapping[str, Any]],
    progress: Progress | None = None,
) -> PictureSet:
    """The set of pictures ``make(0)`` to ``make(count - 1)`` in ``root``, which is named by everything that they depend on.

    Args:
        details: of the manifest, which also counts what was left out.
    """
    if (root / MANIFEST).is_file():
        with contextlib.suppress(CCDiffError):  # what is damaged is made again
            if not (made := read_set(root)).edited():
                return made
    (root / IMAGES).mkdir(parents=True, exist_ok=True)

    def write(k: int) -> tuple[Scene, str, Counter[str]]:
        scene, picture, left_out = make(k)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=3)
        write_bytes(root / IMAGES / scene.file_name, buffer.getvalue(), durable=False)
        return scene, sha256(buffer.getvalue()).hexdigest(), left_out

    scenes, hashes, left_out = [], {}, Counter[str]()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for scene, digest, missing in pool.map(write, range(count)):
            scenes.append(scene)
            hashes[scene.file_name] = digest
            left_out += missing
            if progress is not None:
                progress(f"{kind} pictures", len(scenes), count)
    os.sync()
    told = {**details(scenes), "left_out": dict(sorted(left_out.items()))}
    return write_set(root, scenes, classes, kind=kind, details=told, picture_hashes=hashes)
