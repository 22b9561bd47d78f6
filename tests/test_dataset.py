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
        ({"mask": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 1: the mask is not made of points"),
        ({"mask": [[1, 2, 3, 4, 5, float("inf")]]}, "annotation 1: the mask is not made of points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "annotation 1: the box is not made of finite numbers"),
        ({"bbox": [1, 2, float("nan"), 3]}, "annotation 1: the box is not made of finite numbers"),
        ({"bbox": [1, 2, 3]}, "the labels are broken: ValueError"),
        ({"category_id": 7}, "the labels are broken: KeyError"),
    ],
)
def test_changed_labels(changes, message):
    coco = labels()
    coco["annotations"][0] |= changes
    with pytest.raises(CCDiffError, match=message):
        scenes_of_coco(coco, where="x")
