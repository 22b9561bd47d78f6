"""Every writer followed by our own reader: what a format holds comes back as it was, what it does not was counted."""

from pathlib import Path

import numpy as np
import pytest
import shapely

from ccdiff_cli.export import WRITERS, ExportOptions, export_set
from ccdiff_cli.formats import READERS, detect_format, read_raw
from ccdiff_cli.formats.classes import ClassMap
from ccdiff_cli.geometry import le90_to_corners, polygon
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.scene import Instance
from tests.export.sets import CLASSES, one_scene

TO_3_DECIMALS, TO_6_OF_THE_SIDE = 6e-4, 1e-4
HELD = {  # format -> (how far a coordinate may move, what comes back as it was)
    "coco": (1e-12, {"hbb", "corners", "oriented", "difficult", "mask", "extra", "caption", "source", "provenance"}),
    "roboflow-coco": (1e-12, {"hbb", "corners", "oriented", "difficult", "mask", "extra", "caption", "source", "provenance"}),
    "huggingface": (1e-12, {"hbb", "corners", "oriented", "difficult", "mask", "caption", "source"}),
    "webdataset": (1e-12, {"hbb", "corners", "oriented", "difficult", "mask", "caption", "source"}),
    "dota": (TO_3_DECIMALS, {"corners", "difficult", "provenance"}),
    "voc": (TO_3_DECIMALS, {"hbb", "corners", "oriented", "difficult"}),
    "yolo": (TO_6_OF_THE_SIDE, {"hbb"}),
    "yolo-obb": (TO_6_OF_THE_SIDE, {"corners"}),
    "metadata": (TO_6_OF_THE_SIDE, {"hbb", "corners", "caption"}),
}


READ_BY = {name: {"roboflow-coco": "coco"}.get(name, name) for name in WRITERS}


@pytest.mark.parametrize("format", sorted(name for name in WRITERS if READ_BY[name] in READERS))
def test_round_trip_through_our_own_reader(rich, tmp_path, format):
    done = export_set(rich, tmp_path / "out", ExportOptions(format=format))
    assert detect_format(done.root) == READ_BY[format]
    back = read_raw(done.root, READ_BY[format], ClassMap.of(CLASSES))
    tolerance, held = HELD[format]
    assert not +back.skipped and len(back.scenes) == len(rich.scenes)
    by_stem = {Path(s.file_name).stem: s for s in back.scenes}
    for before in rich.scenes:
        after = by_stem[Path(before.file_name).stem]
        assert Path(str(after.path)).read_bytes() == Path(str(before.path)).read_bytes()
        assert after.split == before.split and after.categories() == before.categories()
        for what in held & {"caption", "source"}:
            assert getattr(after, what) == getattr(before, what)
        if "provenance" in held:
            assert after.provenance == (before.provenance or {"imagesource": "ccdiff"} if format == "dota" else before.provenance)
        for a, b in zip(before.instances, after.instances, strict=True):
            for what in held & {"oriented", "difficult", "extra"}:
                assert getattr(b, what) == getattr(a, what), what
            for what in held & {"hbb", "corners"}:
                np.testing.assert_allclose(getattr(b, what), getattr(a, what), rtol=1e-12, atol=tolerance, err_msg=what)
            if "mask" in held:
                assert b.mask == a.mask
    everything = {
        "caption": "captions", "source": "sources", "corners": "orientations", "difficult": "difficult flags", "mask": "masks",
        "extra": "extra fields", "provenance": "provenance",
    }  # fmt: skip
    assert {said for what, said in everything.items() if what not in held} <= done.lost.keys()  # what did not come back was said
    assert not {said for what, said in everything.items() if what in held} & done.lost.keys()


def test_a_set_itself_is_read_as_coco(rich):
    raw = read_raw(rich.root)
    assert raw.format == "coco" and raw.classes == rich.classes and not +raw.skipped and not +raw.notes
    assert raw.scenes == list(rich.scenes)


WHOLE = {
    "captions",
    "sources",
    "provenance",
    "orientations",
    "marks that an orientation is unknown",
    "difficult flags",
    "masks",
    "extra fields",
}


@pytest.mark.parametrize("format", sorted(name for name in WRITERS if READ_BY[name] in READERS))
def test_boxes_of_any_place_and_angle_come_back_or_are_counted(tmp_path, format):
    """IoU with the whole box above 0.98 where the format takes it, else with the part inside the picture, but for what was counted."""
    rng = np.random.default_rng(11)
    drawn = [((-5, 133), (10, 70), 300), ((-60, 190), (4, 260), 150)]  # in the second, centres outside and boxes over all of the picture
    boxes = [
        le90_to_corners((*rng.uniform(*places, 2), *rng.uniform(*sizes, 2), rng.uniform(-np.pi / 2, np.pi / 2)))
        for places, sizes, count in drawn
        for _ in range(count)
    ]
    picture_corners = (0, 0, 128, 0, 128, 128, 0, 128)
    visible = [shapely.intersection(polygon(box), polygon(picture_corners)) for box in boxes]
    boxes, visible = zip(*((b, v) for b, v in zip(boxes, visible, strict=True) if v.area > max(16, 0.05 * polygon(b).area)), strict=True)
    assert sum(v.area < 0.99 * polygon(b).area for b, v in zip(boxes, visible, strict=True)) > 80  # are cut
    instances = tuple(Instance.from_corners("ship", b, v.bounds) for b, v in zip(boxes, visible, strict=True))
    done = export_set(
        one_scene(tmp_path / "set", CLASSES, size=(128, 128), instances=instances), tmp_path / "out", ExportOptions(format=format)
    )
    back = read_raw(done.root, READ_BY[format], ClassMap.of(CLASSES)).scenes[0].instances
    assert len(back) == len(boxes)
    bad = 0
    for box, part, after in zip(boxes, visible, back, strict=True):
        found = polygon(after.corners)
        if format == "yolo":
            bad += np.abs(np.subtract(after.hbb, part.bounds)).max() > 0.01
        else:
            bad += max(_iou(found, polygon(box)), _iou(shapely.intersection(found, polygon(picture_corners)), part)) < 0.98
    counted = sum(count for what, count in done.lost.items() if what not in WHOLE)
    assert bad <= counted and (bad == 0 or format in ("yolo-obb", "metadata")), (bad, counted, done.lost)


def _iou(a, b):
    return shapely.intersection(a, b).area / shapely.union(a, b).area


@pytest.mark.parametrize("format", sorted(name for name in WRITERS if READ_BY[name] in READERS))
def test_prepare_gives_back_the_boxes_of_an_export(rich, tmp_path, format):
    """To what two roundings (1/1000 px each, one of them of the export) leave."""
    done = export_set(rich, tmp_path / "out", ExportOptions(format=format))
    back = prepare_dataset(done.root, tmp_path / "prepared", PrepareOptions(keep_empty=True))
    held = HELD[format][1]
    assert back.manifest["skipped"] == {} and back.manifest["changes"] == {}
    assert {s.file_name: s.split for s in back.scenes} == {s.file_name: s.split for s in rich.scenes}
    by_name = {s.file_name: s for s in back.scenes}
    for before in rich.scenes:
        after = by_name[before.file_name]
        assert after.categories() == before.categories()
        for a, b in zip(before.instances, after.instances, strict=True):
            for what in held & {"hbb", "corners"}:
                np.testing.assert_allclose(getattr(b, what), getattr(a, what), atol=2e-3, err_msg=what)
