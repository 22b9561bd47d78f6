"""A small set, and one that says everything a scene can say."""

import numpy as np
import pytest

from ccdiff_cli.dataset import write_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.geometry import hbb_of, le90_to_corners
from ccdiff_cli.scene import Instance, Scene
from tests.export.sets import CLASSES, OUTSIDE, SLANTED
from tests.rawsets import picture


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "set"
    instances = (
        Instance.from_corners("ship", SLANTED, mask=(SLANTED[:6],)),
        Instance.from_hbb("storage tank", (5, 5, 25.5, 25.25), difficult=True),
        Instance.from_corners("ship", OUTSIDE, (70, 2, 96, 20)),
    )
    scenes, hashes = [], {}
    for k, (name, split) in enumerate((("a.png", "train"), ("b.jpg", "train"), ("c.png", "val"), ("d.png", "test"))):
        hashes[name] = sha256_file(picture(root / "images" / name, 96, 64, seed=k))
        scenes.append(Scene(name, 96, 64, instances if k != 1 else (), split=split, source=name, caption="This is it."))
    return write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)


@pytest.fixture
def rich(tmp_path):
    """Everything a scene can say; all boxes inside, as in every prepared set; masks that are not their OBB's, and one that is it."""
    rng, scenes, hashes = np.random.default_rng(5), [], {}
    for k, split in enumerate(("train", "train", "val", "test")):
        instances = []
        for n in range((4, 0, 9, 1)[k]):
            box = le90_to_corners((*rng.uniform(25, 60, 2), rng.uniform(12, 30), rng.uniform(3, 11), rng.uniform(-1.5, 1.5)))
            middle = [(a + b) / 2 for a, b in zip(box, (*box[2:], *box[:2]), strict=True)]
            outline = box if n == 3 else (*box[:2], *middle[:2], *box[2:4], *middle[4:6])
            hbb = (hbb_of(box)[0] - 0.75, hbb_of(box)[1] - 0.5, hbb_of(box)[2] + 0.25, hbb_of(box)[3])
            said = {"mask": (outline,) if n % 3 == 0 else (), "difficult": n % 4 == 1, "extra": {"id": n} if n % 2 else {}}
            instances.append(Instance.from_corners(CLASSES.names[n % 2], box, hbb, **said))
            if n == 2:
                instances.append(Instance.from_hbb("ship", tuple(round(v, 2) for v in hbb)))
        name = f"p{k}.png"
        hashes[name] = sha256_file(picture(tmp_path / "rich" / "images" / name, 96, 96, seed=k))
        scenes.append(Scene(name, 96, 96, tuple(instances), split=split, source=f"scene {max(k, 1)}", caption=f"Picture {k}.",
                            provenance={"imagesource": "GF", "gsd": k + 0.25} if k else {}))  # fmt: skip
    return write_set(tmp_path / "rich", scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
