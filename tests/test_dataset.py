"""The set on disk: what is read back is what was written; labels that somebody has changed."""

import pytest

from ccdiff_cli.dataset import coco_of_scenes, scenes_of_coco
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.scene import ClassList, Instance, Scene

CORNERS = (1.0, 1.0, 9.0, 2.0, 8.0, 7.0, 0.5, 6.0)


def labels() -> dict:
    boxes = (Instance.from_corners("ship", CORNERS, mask=((1.0, 1.0, 5.0, 1.0, 3.0, 4.0),)), Instance.from_hbb("ship", (1, 2, 3, 4)))
    return coco_of_scenes([Scene("a.png", 10, 10, boxes, source="s", provenance={"gsd": 0.5})], ClassList(("ship",)))


def test_there_and_back():
    scenes, classes = scenes_of_coco(labels(), where="x")
    assert coco_of_scenes(scenes, classes) == labels() and scenes[0].instances[0].corners == CORNERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": [[1, 2, 3, 4, 5, 6, 7]]}, r"annotations\[0\].mask\[0\]: expected points, x and y in turn, found a list of 7"),
        ({"mask": [[1, 2, 3, 4, 5, float("inf")]]}, r"annotations\[0\].mask\[0\]\[5\]: expected a finite number, found inf"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, r"annotations\[0\].segmentation\[0\]\[6\]: the key is missing"),
        ({"bbox": [1, 2, float("nan"), 3]}, r"annotations\[0\].bbox\[2\]: expected a finite number, found nan"),
        ({"bbox": [1, 2, 3]}, r"annotations\[0\].bbox\[3\]: the key is missing"),
        ({"bbox": [1, 2, -3, 4]}, r"annotations\[0\].bbox\[2\]: expected greater than or equal to 0, found -3"),
        ({"bbox": [True, 2, 3, 4]}, r"annotations\[0\].bbox\[0\]: expected a number, found True"),
        ({"category_id": 7}, r"annotations\[0\].category_id: nothing has the id 7"),
        ({"category_id": 1.0}, r"annotations\[0\].category_id: expected a whole number, found 1.0"),
        ({"image_id": 10**400}, r"annotations\[0\].image_id: .*found 1000"),
        ({"extra": "boo"}, r"annotations\[0\].extra: expected an object, found 'boo'"),
        ({"oriented": "yes"}, r"annotations\[0\].oriented: expected 0 or 1, found 'yes'"),
    ],
)
def test_changed_labels(changes, message):
    coco = labels()
    coco["annotations"][0] |= changes
    with pytest.raises(CCDiffError, match=message):
        scenes_of_coco(coco, where="x")
