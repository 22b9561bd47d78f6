"""A prepared set and a generator folder, as small as can be."""

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import write_set
from ccdiff_cli.files import sha256_file, write_json
from ccdiff_cli.scene import ClassList, Instance, Scene

CLASSES = ClassList(("ship", "airplane"))


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """Seven labelled pictures of 32 px, one of them without objects; no reference bank."""
    root = tmp_path_factory.mktemp("layouts")
    (root / "images").mkdir()
    scenes, hashes = [], {}
    for k in range(7):
        name = f"p{k}.png"
        Image.fromarray(np.full((32, 32, 3), 30 * k, np.uint8)).save(root / "images" / name)
        hashes[name] = sha256_file(root / "images" / name)
        boxes = [Instance.from_hbb(CLASSES.names[(k + j) % 2], (3 + k, 4 + 8 * j, 10 + k, 10 + 8 * j)) for j in range(k % 3 + 1)]
        scenes.append(Scene(name, 32, 32, tuple(boxes) if k < 6 else (), split="train", source=f"s{k}"))
    write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
    return root


@pytest.fixture
def generator(tmp_path):
    folder = tmp_path / "generator"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.safetensors").write_text("1.5")
    recipe = {"name": "fake", "caption_style": "short", "sampling": {"steps": 3, "guidance_scale": 2.0}, "denoiser": {"top_k": 2}}
    write_json(folder / "ccdiff.json", {"picture_size": 32, "classes": list(CLASSES), "recipe": recipe, "steps": 5})
    return folder
