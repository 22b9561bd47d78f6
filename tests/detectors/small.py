"""Sets that a detector can be tried on in seconds: 64 px pictures with bright ships (blue) and planes (red) on noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ccdiff_cli.dataset import PictureSet, write_set
from ccdiff_cli.detectors import DetectorConfig
from ccdiff_cli.files import sha256_file
from ccdiff_cli.scene import ClassList, Instance, Scene

CLASSES = ClassList(("ship", "plane"))
COLOURS = {"ship": (40, 60, 250), "plane": (250, 40, 40), "tank": (40, 250, 40)}
TINY = DetectorConfig(
    backbone_weights="none",
    fpn_channels=16,
    head_width=32,
    input_size=64,
    anchor_sizes=(8, 16, 32, 64),
    proposals=50,
    roi_samples=16,
    steps=4,
    batch=2,
    warmup_steps=1,
    checkpoint_every=10,
    device="cpu",
)


def make_set(
    root: Path,
    per_split: dict[str, int],
    *,
    classes: ClassList = CLASSES,
    kind: str = "prepared",
    seed: int = 0,
    tag: str = "a",
    provenance: dict | None = None,
    details: dict | None = None,
    labelled: bool = True,
    only: tuple[str, ...] | None = None,
) -> PictureSet:
    """Write a set of drawn pictures; ``tag`` goes into file names and sources."""
    rng = np.random.default_rng(seed)
    scenes, hashes = [], {}
    (root / "images").mkdir(parents=True, exist_ok=True)
    for split, count in per_split.items():
        for k in range(count):
            picture = rng.integers(60, 110, (64, 64, 3), dtype=np.uint8)
            instances = []
            for _ in range(int(rng.integers(1, 4))):
                name = str(rng.choice(only or classes.names))
                x, y, w, h = (int(v) for v in (*rng.integers(0, 40, 2), *rng.integers(12, 24, 2)))
                picture[y : y + h, x : x + w] = COLOURS[name]
                instances.append(Instance.from_hbb(name, (x, y, min(x + w, 64), min(y + h, 64)), difficult=bool(rng.random() < 0.1)))
            name = f"{tag}-{split}-{k:03d}.png"
            Image.fromarray(picture).save(root / "images" / name)
            hashes[name] = sha256_file(root / "images" / name)
            source = f"{tag}-{split}-{k // 2}"
            scenes.append(
                Scene(name, 64, 64, tuple(instances) if labelled else (), split=split, source=source, provenance=provenance or {})
            )
    return write_set(root, scenes, classes, kind=kind, details=details or {}, picture_hashes=hashes)
