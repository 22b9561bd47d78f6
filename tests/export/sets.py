"""Sets that the tests of exports write: two classes, slanted and cut boxes."""

from pathlib import Path

from ccdiff_cli.dataset import write_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.geometry import le90_to_corners
from ccdiff_cli.scene import ClassList, Scene
from tests.rawsets import picture

CLASSES = ClassList(("ship", "storage tank"))
SLANTED = le90_to_corners((50, 30, 40, 10, 0.5))
OUTSIDE = le90_to_corners((90, 10, 30, 12, 0.4))


def one_scene(root: Path, classes: ClassList = CLASSES, name: str = "a.png", size=(96, 64), **fields):
    hashes = {name: sha256_file(picture(root / "images" / name, *size))}
    scene = Scene(name, *size, **{"source": name, **fields})
    return write_set(root, [scene], classes, kind="prepared", details={}, picture_hashes=hashes)
