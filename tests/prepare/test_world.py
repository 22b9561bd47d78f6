"""World files beside pictures give the place that a GeoTIFF has in itself."""

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli import rasters
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from tests.prepare.test_pixels import ground, raw_coco

rasterio = pytest.importorskip("rasterio")
UTM = rasterio.crs.CRS.from_epsg(32632)
TRANSFORM = (0.5, 0.1, 500000.0, 0.05, -0.5, 5600000.0)


def world_text(t=TRANSFORM, comma=False):
    a, b, c, d, e, f = t
    text = "\n".join(f"{v:.10f}" for v in (a, d, b, e, c + a / 2 + b / 2, f + d / 2 + e / 2))
    return text.replace(".", ",") if comma else text


def png(path):
    Image.fromarray(ground()).save(path)


@pytest.mark.parametrize(
    ("name", "world", "side", "comma"),
    [("a.png", "a.pgw", "a.prj", False), ("a.png", "a.PGW", "a.png.aux.xml", False), ("a.png", "a.pngw", "a.prj", True),
     ("a.png", "a.wld", "a.prj", False), ("a.jpg", "a.jgw", "a.prj", False), ("a.tif", "a.tfw", "a.prj", False),
     ("a.jpg", "a.jpgw", "a.jpg.aux.xml", False)],
)  # fmt: skip
def test_the_place_is_that_of_a_geotiff(tmp_path, name, world, side, comma):
    raw = raw_coco(tmp_path / "raw", {name: png if name.endswith("png") else lambda path: Image.fromarray(ground()).save(path)})
    (raw / "images" / world).write_text(world_text(comma=comma))
    wkt = UTM.to_wkt(version="WKT1_ESRI" if side == "a.prj" else "WKT2_2018")
    (raw / "images" / side).write_text(wkt if side == "a.prj" else f"<PAMDataset><SRS>{wkt.replace(chr(34), '&quot;')}</SRS></PAMDataset>")

    def geotiff(path):
        h, w, count = ground().shape
        with rasterio.open(path, "w", driver="GTiff", width=w, height=h, count=count, dtype="uint8", crs=UTM,
                           transform=rasterio.Affine(*TRANSFORM)) as out:  # fmt: skip
            out.write(np.moveaxis(ground(), 2, 0))

    wanted = prepare_dataset(
        raw_coco(tmp_path / "tif", {"a.tif": geotiff}), tmp_path / "wanted", PrepareOptions(tile=32, overlap=8, size=64)
    )
    made = prepare_dataset(raw, tmp_path / "made", PrepareOptions(tile=32, overlap=8, size=64))
    for one, other in zip(made.scenes, wanted.scenes, strict=True):
        place, right = one.provenance["georeference"], other.provenance["georeference"]
        assert place["transform"] == pytest.approx(right["transform"], abs=1e-6) and place["crs"] == right["crs"] == "EPSG:32632"
        assert one.provenance["gsd"] == pytest.approx(other.provenance["gsd"])


def test_without_a_coordinate_system_it_is_noted(tmp_path):
    raw = raw_coco(tmp_path / "raw", {"a.png": png})
    (raw / "images" / "a.pgw").write_text(world_text())
    data = prepare_dataset(raw, tmp_path / "set")
    assert "georeference" not in data.scenes[0].provenance
    assert [n for what, n in data.manifest["notes"].items() if "world file" in what] == [1]


@pytest.mark.parametrize(
    ("world", "side"),
    [("1 2 3", "x"), ("a b c d e f", ""), ("0 0 0 0 1 1", ""), ("nan 0 0 -1 1 1", ""), ("", ""), ("\x00" * 99, ""),
     (world_text(), "no WKT"), (world_text(), 'PROJCS["broken"'), (world_text(), "PROJCS[" * 500)],
)  # fmt: skip
def test_files_that_say_nothing_are_passed_over(tmp_path, world, side):
    raw = raw_coco(tmp_path / "raw", {"a.png": png})
    (raw / "images" / "a.pgw").write_text(world)
    (raw / "images" / "a.prj").write_text(side)
    (raw / "images" / "a.png.aux.xml").write_text('<!DOCTYPE x [<!ENTITY y "z">]><PAMDataset><SRS>&y;</SRS></PAMDataset>')
    data = prepare_dataset(raw, tmp_path / "set")
    assert len(data.scenes) == 1 and "georeference" not in data.scenes[0].provenance


def test_the_pictures_own_place_goes_first(tmp_path):
    def geotiff(path):
        h, w, count = ground().shape
        with rasterio.open(path, "w", driver="GTiff", width=w, height=h, count=count, dtype="uint8", crs=UTM,
                           transform=rasterio.Affine(*TRANSFORM)) as out:  # fmt: skip
            out.write(np.moveaxis(ground(), 2, 0))

    raw = raw_coco(tmp_path / "raw", {"a.tif": geotiff})
    (raw / "images" / "a.tfw").write_text(world_text((9.0, 0, 0, 0, -9.0, 0)))
    (raw / "images" / "a.prj").write_text(rasterio.crs.CRS.from_epsg(32633).to_wkt())
    place = prepare_dataset(raw, tmp_path / "set").scenes[0].provenance["georeference"]
    assert place == {"crs": "EPSG:32632", "transform": pytest.approx(list(TRANSFORM))}


def test_without_the_extra_the_text_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "installed", lambda: False)
    raw = raw_coco(tmp_path / "raw", {"a.png": png})
    (raw / "images" / "a.pgw").write_text(world_text())
    (raw / "images" / "a.prj").write_text(UTM.to_wkt())
    provenance = prepare_dataset(raw, tmp_path / "set").scenes[0].provenance
    assert provenance["georeference"]["crs"] == UTM.to_wkt() and "gsd" not in provenance


def test_transparency_of_a_tiff_is_counted(tmp_path):
    rgba = np.concatenate([ground(), ground()[..., :1] // 2], axis=2)
    raw = raw_coco(tmp_path / "raw", {"a.tif": lambda path: Image.fromarray(rgba, "RGBA").save(path)})
    data = prepare_dataset(raw, tmp_path / "set")
    assert [n for what, n in data.manifest["notes"].items() if "transparency" in what] == [1]
    chosen = prepare_dataset(raw, tmp_path / "chosen", PrepareOptions(bands="4"))
    assert (np.asarray(Image.open(chosen.scenes[0].path))[..., 0] == rgba[..., 3]).all()
    assert not any("transparency" in what for what in chosen.manifest["notes"])
