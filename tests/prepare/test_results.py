"""What detectors write about tiles: ultralytics' label files and DOTA's tasks say the same as COCO results; GeoJSON puts it on the map."""

import json
import struct

import numpy as np
import pytest
from typer.testing import CliRunner

from ccdiff_cli import rasters
from ccdiff_cli.cli import app
from ccdiff_cli.dataset import ANNOTATIONS
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import read_json
from ccdiff_cli.geometry import le90_to_corners
from ccdiff_cli.pictures import read_rgb
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.prepare.merging import merge_file
from ccdiff_cli.prepare.pixels import PixelOptions, composed, look, of_window, settle
from ccdiff_cli.scene import Scene
from tests.prepare.test_pixels import ground, write_raster
from tests.rawsets import coco

CATEGORIES = [{"id": 1, "name": "ship"}, {"id": 2, "name": "small vehicle"}]
BOXES = {1: (60, 40, 40, 12, 0.4), 2: (150, 90, 20, 10, -0.7), 3: (30, 110, 24, 24, 0.2)}


def annotations():
    made = []
    for k, box in BOXES.items():
        corners = le90_to_corners(box)
        x, y = corners[0::2], corners[1::2]
        bbox = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        made.append({"id": k, "image_id": 1, "category_id": 1 + k % 2, "bbox": bbox, "segmentation": [corners], "iscrowd": 0})
    return made


@pytest.fixture
def tiles(tmp_path):
    images = [{"id": 1, "file_name": "scene.png", "width": 200, "height": 150}]
    source = coco(tmp_path / "raw", annotations(), images=images, categories=CATEGORIES, size=(200, 150))
    return prepare_dataset(source, tmp_path / "tiles", PrepareOptions(tile=96, overlap=48, size=144, keep_empty=True))


def found_on(data):
    """(tile, class index, score, corners): the labels of every tile, with scores that tell them apart."""
    for scene in data.scenes:
        for i in scene.instances:
            yield scene, data.classes.index(i.category), round(0.3 + 0.1 * (hash(i.hbb) % 7) / 10, 4), i.corners


def coco_results(data, path):
    ids = {image["file_name"]: image["id"] for image in read_json(data.root / ANNOTATIONS)["images"]}
    entries = [
        {"image_id": ids[s.file_name], "category_id": label + 1, "score": score, "segmentation": [list(c)]}
        for s, label, score, c in found_on(data)
    ]
    path.write_text(json.dumps(entries))
    return path


def label_files(data, folder, tracked=False):
    (folder / "labels").mkdir(parents=True)
    for scene, label, score, c in found_on(data):
        shares = " ".join(f"{v / (scene.width, scene.height)[k % 2]:.7g}" for k, v in enumerate(c))
        with open(folder / "labels" / f"{scene.file_name.rpartition('.')[0]}.txt", "a") as out:
            out.write(f"{label} {shares} {score}{' 17' if tracked else ''}\n")
    return folder


def task_files(data, folder):
    folder.mkdir()
    for scene, label, score, c in found_on(data):
        with open(folder / f"Task1_{data.classes.names[label].replace(' ', '-')}.txt", "a") as out:
            out.write(f"{scene.file_name.rpartition('.')[0]} {score} {' '.join(f'{v:.4f}' for v in c)}\n")
    return folder


def test_all_kinds_of_results_say_the_same(tiles, tmp_path):
    kinds = {
        "coco": coco_results(tiles, tmp_path / "r.json"),
        "ultralytics": label_files(tiles, tmp_path / "predict"),
        "tracked": label_files(tiles, tmp_path / "track", tracked=True),
        "labels": tmp_path / "predict" / "labels",
        "dota": task_files(tiles, tmp_path / "task1"),
    }
    made = {}
    for kind, path in kinds.items():
        counts = merge_file(path, tiles.root, tmp_path / f"{kind}.json")
        assert counts["detections"] == sum(len(s.instances) for s in tiles.scenes)
        made[kind] = json.loads((tmp_path / f"{kind}.json").read_text())
    assert len(made["coco"]) == 3 and {e["file_name"] for e in made["coco"]} == {"scene.png"}
    for entries in made.values():
        for one, other in zip(entries, made["coco"], strict=True):
            assert one["category_id"] == other["category_id"] and one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["segmentation"][0] == pytest.approx(other["segmentation"][0], abs=0.05)


def test_horizontal_boxes(tiles, tmp_path):
    tile = tiles.scenes[0]
    stem = tile.file_name.rpartition(".")[0]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"{stem}.txt").write_text("0 0.5 0.25 0.2 0.1 0.9\n")
    merge_file(tmp_path / "labels", tiles.root, tmp_path / "a.json")
    (tmp_path / "Task2_ship.txt").write_text(f"{stem} 0.9 57.6 28.8 86.4 43.2\n")
    merge_file(tmp_path / "Task2_ship.txt", tiles.root, tmp_path / "b.json")
    a, b = (json.loads((tmp_path / n).read_text()) for n in ("a.json", "b.json"))
    assert a == b and a[0]["bbox"] == pytest.approx([38.4, 19.2, 19.2, 9.6]) and "segmentation" not in a[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("TILE.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n", r"no confidence(?s:.*)save_conf=True"),
        ("TILE.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2 17\n", "no confidence"),
        ("TILE.txt", "0 0.1 0.1 0.2\n", "found 4 fields"),
        ("TILE.txt", "7 0.5 0.5 0.1 0.1 0.5\n", r"unknown class number 7(?s:.*)0 ship, 1 small vehicle"),
        ("TILE.txt", "0 50 50 10 10 0.5\n", "not given as shares"),
        ("TILE.txt", "0 nan 0.5 0.1 0.1 0.5\n", "field 2: expected a finite number"),
        ("other.txt", "0 0.5 0.5 0.1 0.1 0.5\n", "no picture other"),
        ("Task1_ship.txt", "TILE 0.5 1 2 3\n", "found 5 fields"),
        ("Task1_boat.txt", "TILE 0.5 1 2 3 4 5 6 7 8\n", "unknown class 'boat'"),
        ("Task1_ship.txt", "scene 0.5 1 2 3 4 5 6 7 8\n", "merged already"),
        ("Task1_ship.txt", "TILE high 1 2 3 4 5 6 7 8\n", "field 2: expected a number"),
    ],
)
def test_broken_results(tiles, tmp_path, name, text, message):
    stem = tiles.scenes[0].file_name.rpartition(".")[0]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name.replace("TILE", stem)).write_text(text.replace("TILE", stem))
    with pytest.raises(CCDiffError, match=message):
        merge_file(tmp_path / "r", tiles.root, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 1.7}, "expected an id, found 1.7"),
        ({"image_id": True}, "expected an id, found True"),
        ({"image_id": "nowhere"}, "the set has no picture nowhere"),
        ({"bbox": [0.1, 0.1, 0.3, 0.2]}, r"shares of the tiles' sizes, not pixels(.|\n)*multiply"),
        ({"bbox": [150, 10, 20, 10]}, r"a box \(150, 10, 170, 20\) lies beside its picture .* of 144 x 144 pixels"),
    ],
)
def test_broken_coco_results(tiles, tmp_path, changes, message):
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [10, 10, 20, 10], **changes}]))
    with pytest.raises(CCDiffError, match=message):
        merge_file(tmp_path / "r.json", tiles.root, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_coco_results_as_ultralytics_writes_them_and_corners_that_cross(tiles, tmp_path):
    tile = tiles.scenes[0]
    one = {"category_id": 1, "score": 0.9}
    made = []
    for k, entry in enumerate(
        (
            {"file_name": tile.file_name, "segmentation": [[30, 30, 60, 30, 60, 45, 30, 45]]},
            {"image_id": tile.file_name.rpartition(".")[0], "poly": [30, 30, 60, 30, 60, 45, 30, 45], "rbox": [45, 37.5, 30, 15, 0]},
            {"image_id": tile.file_name, "segmentation": [[30, 30, 60, 30, 30, 45, 60, 45]]},
        )
    ):
        (tmp_path / "r.json").write_text(json.dumps([{**one, **entry}]))
        merge_file(tmp_path / "r.json", tiles.root, tmp_path / f"{k}.json")
        made.append(json.loads((tmp_path / f"{k}.json").read_text()))
    assert made[0] == made[1] and len(made[0]) == 1
    assert sorted(made[2][0]["segmentation"][0]) == sorted(made[0][0]["segmentation"][0])
    x = made[2][0]["segmentation"][0][0::2]
    assert x[0] == x[3] or x[0] == x[1]  # around the box, not across it


def test_litter_of_macos_beside_label_files_is_passed_over(tiles, tmp_path):
    folder = label_files(tiles, tmp_path / "predict")
    (next(iter(folder.rglob("*.txt"))).parent / "._a.txt").write_bytes(b"\x00\x05\x16\x07")
    assert merge_file(folder, tiles.root, tmp_path / "out.json")["objects"] == 3


def test_folders_that_hold_no_results(tiles, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CCDiffError, match="no results in the folder"):
        merge_file(tmp_path / "empty", tiles.root, tmp_path / "out.json")
    (tmp_path / "both").mkdir()
    for k in (1, 2):
        (tmp_path / "both" / f"Task{k}_ship.txt").write_text("")
    with pytest.raises(CCDiffError, match="several kinds"):
        merge_file(tmp_path / "both", tiles.root, tmp_path / "out.json")
    with pytest.raises(CCDiffError, match="unknown format 'kml'"):
        merge_file(tmp_path / "empty", tiles.root, tmp_path / "out.json", format="kml")


# ---------------------------------------------------------------------------------------------------------------- on the map


PLACES = {
    "utm": ("EPSG:32632", (0.5, 0.0, 691_000.0, 0.0, -0.5, 5_335_000.0), 0.5),
    "turned": ("EPSG:32632", (0.3, 0.4, 691_000.0, 0.4, -0.3, 5_335_000.0), 0.5),
    "lonlat": ("EPSG:4326", (1e-5, 0.0, 11.5, 0.0, -1e-5, 48.1), None),
    "feet": ("EPSG:2263", (1.0, 0.0, 980_000.0, 0.0, -1.0, 200_000.0), 0.3048),
}


def georeferenced(root, place):
    rasterio = pytest.importorskip("rasterio")
    crs, transform, _ = PLACES[place]
    images = [{"id": 1, "file_name": "scene.tif", "width": 200, "height": 150}]
    (root / "images").mkdir(parents=True)
    write_raster(root / "images" / "scene.tif", ground((200, 150)), crs=crs, transform=rasterio.Affine(*transform))
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations(), "categories": CATEGORIES}))
    return root


@pytest.mark.parametrize("place", PLACES)
def test_from_scene_to_tile_to_map(tmp_path, place):
    crs, transform, gsd = PLACES[place]
    data = prepare_dataset(
        georeferenced(tmp_path / "raw", place), tmp_path / "tiles", PrepareOptions(tile=96, overlap=48, size=144, keep_empty=True)
    )
    for scene in data.scenes:
        known = scene.provenance["georeference"]
        a, _, c, _, _, f = known["transform"]
        x, y = scene.provenance["offset"]
        i, j = (x * transform[0] + y * transform[1] + transform[2], x * transform[3] + y * transform[4] + transform[5])
        assert known["crs"] == crs and (c, f) == pytest.approx((i, j)) and a == pytest.approx(transform[0] / 1.5)
        if gsd is not None:
            assert scene.provenance["gsd"] == pytest.approx(gsd / 1.5, rel=1e-5)
        else:  # at 48 degrees north a hundred-thousandth of a degree is 1.11 m by 0.74 m
            assert scene.provenance["gsd"] == pytest.approx(0.91 / 1.5, rel=0.01)
    made = merge_file(coco_results(data, tmp_path / "r.json"), data.root, tmp_path / "out.geojson", format="geojson")
    found = json.loads((tmp_path / "out.geojson").read_text())
    assert made["source_crs"] == found["source_crs"] == [crs] and found["type"] == "FeatureCollection" and len(found["features"]) == 3
    expected = {}
    for k, box in BOXES.items():
        corners = np.reshape(le90_to_corners(box), (4, 2))
        xs, ys = (corners @ np.array([[transform[0], transform[3]], [transform[1], transform[4]]]) + (transform[2], transform[5])).T
        lon, lat = rasters.to_wgs84(crs, xs.tolist(), ys.tolist(), where="test")
        expected[k] = np.stack([lon, lat], axis=1)
    degree = 1e-5 if place == "lonlat" else 0.5 / 111_320
    for feature in found["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert len(ring) == 5 and (ring[0] == ring[-1]).all() and feature["properties"]["picture"] == "scene.tif"
        area = (ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]).sum()
        assert area > 0  # counter-clockwise
        distance = {k: np.abs(e.mean(0) - ring[:-1].mean(0)).max() for k, e in expected.items()}
        k = min(distance, key=distance.get)
        assert distance[k] < 0.5 * degree and feature["properties"]["class"] == CATEGORIES[k % 2]["name"]
        own = np.abs(ring[:-1, None] - expected[k][None]).max(2).min(1)
        assert own.max() < 1.5 * degree


def test_transforms_of_windows():
    place = {"crs": "EPSG:32632", "transform": [0.5, 0, 100.0, 0, -0.5, 900.0]}
    moved = of_window(place, (10, 20), 2.0)["transform"]
    assert moved == pytest.approx((0.25, 0, 105.0, 0, -0.25, 890.0))
    assert composed(place["transform"], (1, 0, 0, 0, 1, 0)) == tuple(place["transform"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_geotiff_keeps_its_place(tmp_path, orientation):
    """The object's pixels lie at the same place on the ground, whichever way up they are shown."""
    rasterio = pytest.importorskip("rasterio")
    pixels, transform = ground((60, 40)), (0.5, 0.1, 100.0, 0.2, -0.5, 900.0)
    write_raster(tmp_path / "a.tif", pixels, crs="EPSG:32632", transform=rasterio.Affine(*transform))
    (tmp_path / "a.tif").write_bytes(with_orientation((tmp_path / "a.tif").read_bytes(), orientation))  # GDAL writes none
    found = look(str(tmp_path / "a.tif"))
    assert found.header.orientation == orientation and found.raster.crs == "EPSG:32632"
    settled = settle(
        [Scene("a.tif", 0, 0, path=str(tmp_path / "a.tif"))], [found], PixelOptions(), lambda work, items, stage: map(work, items)
    )
    (scene,) = settled.scenes
    a, b, c, d, e, f = scene.provenance["georeference"]["transform"]
    shown = np.asarray(read_rgb(scene.path, scene.reading).convert("L"))
    assert shown.shape == (scene.height, scene.width)
    rows, columns = np.nonzero(shown > 128)
    x, y = columns.mean() + 0.5, rows.mean() + 0.5
    stored = (18.0, 10.0)  # the middle of the object in the stored pixels
    at = (
        transform[0] * stored[0] + transform[1] * stored[1] + transform[2],
        transform[3] * stored[0] + transform[4] * stored[1] + transform[5],
    )
    assert (a * x + b * y + c, d * x + e * y + f) == pytest.approx(at, abs=1e-6)


def with_orientation(data: bytes, orientation: int) -> bytes:
    """A little-endian TIFF with one tag more, its directory written anew at the end."""
    (at,) = struct.unpack("<L", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2])
    entries = [data[at + 2 + 12 * k : at + 14 + 12 * k] for k in range(count)]
    entries = sorted([*entries, struct.pack("<HHLHH", 274, 3, 1, orientation, 0)], key=lambda e: struct.unpack("<H", e[:2]))
    end = len(data) + len(data) % 2
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<L", 0)
    return data[:4] + struct.pack("<L", end) + data[8:].ljust(end - 8, b"\0") + directory


def test_scenes_without_a_place_are_refused(tiles, tmp_path):
    results = coco_results(tiles, tmp_path / "r.json")
    with pytest.raises(CCDiffError, match=r"1 of 1 scenes have no coordinate reference, the first scene\.png(?s:.*)--format coco"):
        merge_file(results, tiles.root, tmp_path / "out.geojson", format="geojson")
    assert not (tmp_path / "out.geojson").exists()


def test_the_command_line(tmp_path):
    data = prepare_dataset(georeferenced(tmp_path / "raw", "utm"), tmp_path / "tiles", PrepareOptions(tile=96, overlap=48, keep_empty=True))
    results = coco_results(data, tmp_path / "r.json")
    command = ["merge-tiles", str(results), "--data", str(data.root), "--out", str(tmp_path / "o.geojson"), "--format", "geojson"]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0 and "from EPSG:32632" in made.output and (tmp_path / "o.geojson").is_file()


def test_without_the_extra_only_degrees_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "installed", lambda: False)
    assert rasters.to_wgs84("EPSG:4326", [1.0], [2.0], where="x") == ([1.0], [2.0])
    with pytest.raises(CCDiffError, match=r"EPSG:32632 is not WGS 84(?s:.*)ccdiff\[raster\]"):
        rasters.to_wgs84("EPSG:32632", [1.0], [2.0], where="x")
