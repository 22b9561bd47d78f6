"""`prepare` on pictures whose stored pixels are not what the labels mean: turned, resized, deep, of many bands, with a place on the ground.

Every picture shows a bright box on dark ground, and each test asks whether the prepared labels lie on it.
"""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ccdiff_cli import rasters
from ccdiff_cli.cli import app
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.inspection import inspect_set
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.prepare import windows as w
from ccdiff_cli.prepare.pixels import PixelOptions, pixel_options
from ccdiff_cli.quantities import date_of, quantities_of
from tests.rawsets import coco, dior, files_of, hbb_xml, obb_xml
from tests.test_pictures import FORMATS, save_turned

SIZE, BOX = (60, 40), (8, 5, 28, 15)
"""Width and height of the picture as shown; x1 y1 x2 y2 of the object."""


def ground(size=SIZE, box=BOX, *, dark=40, bright=220, dtype=np.uint8, bands=3) -> np.ndarray:
    """(height, width, bands): a bright box on dark, slightly uneven ground."""
    rng = np.random.default_rng(0)
    pixels = dark + rng.random((size[1], size[0], bands)) * (bright - dark) * 0.1
    pixels[box[1] : box[3], box[0] : box[2]] += (bright - dark) * 0.9
    return pixels.astype(dtype)


def raw_coco(root, pictures: dict, *, size=SIZE, box=BOX, names=("1", "2", "3", "4", "5")) -> object:
    """A COCO folder: file name -> writer(path); one object each, at ``box`` of pictures of ``size`` (both as the labels say it)."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for k, (name, write) in enumerate(pictures.items(), start=1):
        write(root / "images" / name)
        images.append({"id": k, "file_name": name, "width": size[0], "height": size[1]})
        x1, y1, x2, y2 = box
        annotations.append({"id": k, "image_id": k, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0})
    (root / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]})
    )
    return root


def raw_yolo(root, suffix: str, orientation: int):
    """A YOLO folder whose labels are of the picture as shown."""
    for k in range(2):
        folder = root / "images" / "train"
        folder.mkdir(parents=True, exist_ok=True)
        save_turned(folder / f"{k}.{suffix}", orientation, Image.fromarray(ground()))
        label = root / "labels" / "train" / f"{k}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        x1, y1, x2, y2 = BOX
        numbers = ((x1 + x2) / 2 / SIZE[0], (y1 + y2) / 2 / SIZE[1], (x2 - x1) / SIZE[0], (y2 - y1) / SIZE[1])
        label.write_text("0 " + " ".join(str(v) for v in numbers) + "\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [ship]\n")
    return root


def check_boxes_lie_on_the_bright(data, *, off: float = 1.0) -> None:
    """Every label is the bounding box of what is bright in its picture."""
    assert data.scenes
    for scene in data.scenes:
        with Image.open(scene.path) as image:
            assert image.size == (scene.width, scene.height) and image.getexif().get(274) in (None, 1)
            grey = np.asarray(image.convert("L"))
        assert grey.max() > 150 and grey.min() < 100
        (y1, x1), (y2, x2) = (f(np.argwhere(grey > 128), axis=0) for f in (np.min, np.max))
        (instance,) = scene.instances
        assert instance.hbb == pytest.approx((x1, y1, x2 + 1, y2 + 1), abs=off)


# ---------------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", FORMATS)
def test_labels_of_the_picture_as_shown(tmp_path, suffix, orientation):
    if suffix == "mpo":
        pytest.skip("no reader looks for .mpo; the next test has one called .jpg")
    source = raw_yolo(tmp_path / "raw", suffix, orientation)
    data = prepare_dataset(source, tmp_path / "out")
    check_boxes_lie_on_the_bright(data)
    said = "pictures turned by their EXIF orientation (--exif keep if they were labelled as stored)"
    assert data.manifest["changes"].get(said, 0) == (2 if orientation != 1 else 0)
    assert data.manifest.get("pixels", {}) == ({"exif": {"choice": "turn", "pictures": 2}} if orientation != 1 else {})
    check_boxes_lie_on_the_bright(prepare_dataset(source, tmp_path / "resized", PrepareOptions(size=120)), off=2)
    for crop in (tmp_path / "out" / "references" / "ship").glob("*.png"):
        with Image.open(crop) as image:
            assert image.size == (20, 10) and np.asarray(image.convert("L")).min() > 150


def test_two_pictures_in_a_jpeg(tmp_path):
    source = raw_yolo(tmp_path / "raw", "jpg", 1)
    for k in range(2):
        save_turned(tmp_path / "a.mpo", 8, Image.fromarray(ground()))
        (source / "images" / "train" / f"{k}.jpg").write_bytes((tmp_path / "a.mpo").read_bytes())
    data = prepare_dataset(source, tmp_path / "out")
    check_boxes_lie_on_the_bright(data)
    assert all(s.file_name.endswith(".png") for s in data.scenes)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_labels_of_the_stored_pixels(tmp_path, suffix, orientation):
    """Labelled by a program that ignores the tag: the tag must go, the pixels stay."""
    source = raw_yolo(tmp_path / "raw", suffix, orientation)
    folder = source / "images" / "train"
    for path in list(folder.iterdir()):  # the stored pixels are those of the labels
        save_turned(path, 1, Image.fromarray(ground()))
        exif = Image.Exif()
        exif[274] = orientation
        with Image.open(path) as image:
            image.load()
            image.save(path, FORMATS[suffix], exif=exif)
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(exif="keep"))
    check_boxes_lie_on_the_bright(data)
    assert sum(count for what, count in data.manifest["changes"].items() if "read as they are stored (--exif keep)" in what) == 2


def test_declared_sizes_that_contradict_the_tag(tmp_path):
    pictures = {f"{k}.jpg": lambda path: save_turned(path, 6, Image.fromarray(ground())) for k in range(3)}
    shown = prepare_dataset(raw_coco(tmp_path / "shown", pictures), tmp_path / "a")
    check_boxes_lie_on_the_bright(shown)
    stored = raw_coco(tmp_path / "stored", pictures, size=SIZE[::-1])
    with pytest.raises(CCDiffError, match=r"3 of 3 pictures have an EXIF orientation.*declared 40 x 60, found 60 x 40(?s:.*)--exif keep"):
        prepare_dataset(stored, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    kept = prepare_dataset(stored, tmp_path / "b", PrepareOptions(exif="keep"))
    assert {(s.width, s.height) for s in kept.scenes} == {SIZE[::-1]} and len(kept.scenes) == 3
    turned = prepare_dataset(
        stored, tmp_path / "c", PrepareOptions(exif="turn")
    )  # who says so knows that only the declared size is of the stored pixels
    check_boxes_lie_on_the_bright(turned)
    assert turned.manifest["changes"]["pictures read with --exif turn although their labels declare the other size"] == 3
    with pytest.raises(CCDiffError, match="3 of 3 pictures have an EXIF orientation"):
        prepare_dataset(stored, tmp_path / "d", PrepareOptions(strict=True))


def test_inspect_shows_what_prepare_would_do(tmp_path):
    source = raw_yolo(tmp_path / "raw", "jpg", 6)
    facts = inspect_set(source, tmp_path / "page")
    assert facts["pixels"] == {"exif": {"choice": "turn", "pictures": 2}} and facts["picture_sizes"] == {"60 x 40": 2}
    assert any("turned by their EXIF orientation" in warning for warning in facts["warnings"])
    pictures = {"a.png": lambda path: Image.fromarray(ground((30, 20), (4, 3, 14, 8))).save(path)}
    facts = inspect_set(raw_coco(tmp_path / "small", pictures), tmp_path / "page2")
    assert facts["declared_size_wrong"] == ["a.png"] and any("resized after labelling" in warning for warning in facts["warnings"])


# ---------------------------------------------------------------------------------------------------------------- sizes


def half(path) -> None:
    Image.fromarray(ground((30, 20), (4, 3, 14, 8))).save(path)


def test_pictures_that_were_resized_after_they_were_labelled(tmp_path):
    source = raw_coco(tmp_path / "raw", {"a.png": half, "b.png": half})
    with pytest.raises(CCDiffError, match=r"2 of 2 pictures.*by one factor.*declared 60 x 40, found 30 x 20(?s:.*)--resized scale"):
        prepare_dataset(source, tmp_path / "out")
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(resized="scale"))
    assert [i.hbb for s in data.scenes for i in s.instances] == [(4, 2.5, 14, 7.5)] * 2
    assert data.manifest["changes"]["pictures resized after labelling: boxes scaled with them (--resized scale)"] == 2
    assert data.manifest["pixels"] == {"scaled": {"resized after labelling": 2}}
    assert data.scenes[0].provenance["labels_scaled"] == [0.5, 0.5]
    kept = prepare_dataset(source, tmp_path / "kept", PrepareOptions(resized="keep"))
    assert kept.scenes[0].instances[0].hbb == (8, 5, 28, 15) and "boxes left as they are" in str(kept.manifest["changes"])


def test_every_part_of_an_object_is_scaled(tmp_path):
    outline = [10, 10, 30, 12, 40, 20, 36, 32, 6, 22]
    made = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [6, 10, 34, 22], "segmentation": [outline], "iscrowd": 0}
    images = [{"id": 1, "file_name": "a.png", "width": 192, "height": 128}]
    source = coco(tmp_path / "raw", [made], images=images, size=(96, 64))
    whole = prepare_dataset(coco(tmp_path / "whole", [made], images=images, size=(192, 128)), tmp_path / "expected").scenes[0].instances[0]
    found = prepare_dataset(source, tmp_path / "out", PrepareOptions(resized="scale")).scenes[0].instances[0]
    for a, b in ((found.hbb, whole.hbb), (found.corners, whole.corners), (found.mask[0], whole.mask[0])):
        assert np.asarray(a) == pytest.approx(np.asarray(b) / 2, abs=0.01)
    assert found.oriented == whole.oriented and found.mask


@pytest.mark.parametrize(
    ("declared", "found"), [((1333, 800), (800, 480)), ((97, 65), (48, 32)), ((60, 40), (180, 120)), ((1000, 999), (500, 500))]
)
def test_factors_are_told_in_spite_of_rounding(tmp_path, declared, found):
    picture = {"a.png": lambda path: Image.fromarray(ground(found, (2, 2, 12, 12))).save(path)}
    source = raw_coco(tmp_path / "raw", picture, size=declared, box=(4, 4, 20, 20))
    with pytest.raises(CCDiffError, match="by one factor on both axes"):
        prepare_dataset(source, tmp_path / "out")
    scaled = prepare_dataset(source, tmp_path / "out", PrepareOptions(resized="scale")).scenes[0].instances[0].hbb
    assert scaled == pytest.approx([v * found[k % 2] / declared[k % 2] for k, v in enumerate((4, 4, 20, 20))], abs=0.002)


def test_stretched_pictures_stop_even_where_others_are_scaled(tmp_path):
    picture = {"a.png": lambda path: Image.fromarray(ground((30, 30), (4, 3, 14, 12))).save(path)}
    source = raw_coco(tmp_path / "raw", picture)
    for choice in ("stop", "scale"):
        with pytest.raises(CCDiffError, match=r"not by one factor(?s:.*)--resized stretch"):
            prepare_dataset(source, tmp_path / "out", PrepareOptions(resized=choice))
    stretched = prepare_dataset(source, tmp_path / "out", PrepareOptions(resized="stretch"))
    assert stretched.scenes[0].instances[0].hbb == pytest.approx((4, 3.75, 14, 11.25))


def test_exchanged_width_and_height(tmp_path):
    def write(path):
        Image.fromarray(ground()).save(path)

    proven = raw_coco(tmp_path / "proven", {"a.png": write, "b.png": write}, size=SIZE[::-1], box=(45, 5, 55, 15))
    data = prepare_dataset(proven, tmp_path / "a")  # the objects lie where the declared picture has ended
    assert data.scenes[0].instances[0].hbb == (45, 5, 55, 15)
    assert data.manifest["changes"]["declared width and height exchanged, replaced by the pictures' own"] == 2
    undecided = raw_coco(tmp_path / "undecided", {"a.png": write}, size=SIZE[::-1], box=(5, 5, 15, 15))
    with pytest.raises(CCDiffError, match=r"width and height exchanged.*fit both ways(?s:.*)--resized keep"):
        prepare_dataset(undecided, tmp_path / "b", PrepareOptions(resized="scale"))
    assert prepare_dataset(undecided, tmp_path / "b", PrepareOptions(resized="keep")).scenes[0].instances[0].hbb == (5, 5, 15, 15)
    turned = raw_coco(tmp_path / "turned", {"a.png": write}, size=SIZE[::-1], box=(5, 45, 15, 55))
    with pytest.raises(CCDiffError, match="turned by 90 degrees after they were labelled"):
        prepare_dataset(turned, tmp_path / "c")


def test_declared_sizes_that_cannot_be_right_or_are_off_by_a_pixel(tmp_path):
    def write(path):
        Image.fromarray(ground()).save(path)

    for k, (declared, said) in enumerate(
        [
            ((1, 1), "declared sizes that cannot be right"),
            ((-60, 40), "declared sizes that cannot be right"),
            ((60, 0), "declared sizes that cannot be right"),
            ((61, 39), "declared sizes off by a pixel"),
        ]
    ):
        data = prepare_dataset(raw_coco(tmp_path / f"{k}", {"a.png": write}, size=declared), tmp_path / f"out{k}")
        assert data.scenes[0].instances[0].hbb == BOX and data.manifest["changes"][f"{said}, replaced by the pictures' own"] == 1
    plain = prepare_dataset(raw_coco(tmp_path / "plain", {"a.png": write}, size=(0, 0)), tmp_path / "plain_out")
    assert plain.manifest["changes"] == {} and "pixels" not in plain.manifest


def test_other_formats_that_declare_sizes(tmp_path):
    objects = ([hbb_xml("ship", (10, 10, 40, 30))], [obb_xml("ship", (10, 10, 40, 10, 40, 30, 10, 30))])
    source = dior(tmp_path / "dior", {"00001": objects}, size=(48, 32), declared=(96, 64))
    with pytest.raises(CCDiffError, match=r"declared 96 x 64, found 48 x 32"):
        prepare_dataset(source, tmp_path / "out")
    found = prepare_dataset(source, tmp_path / "out", PrepareOptions(resized="scale")).scenes[0].instances[0]
    assert found.corners == pytest.approx((5, 5, 20, 5, 20, 15, 5, 15), abs=1) and found.oriented


# ---------------------------------------------------------------------------------------------------------------- values


def deep_writer(values):
    def write(path):
        single = values[..., 0] if values.shape[2] == 1 else values
        if path.suffix == ".png" and values.shape[2] == 3:
            import cv2

            cv2.imwrite(str(path), np.ascontiguousarray(single[..., ::-1]))
        elif values.shape[2] == 1 and values.dtype in (np.uint16, np.int32, np.float32) and path.suffix in (".png", ".tif"):
            Image.fromarray(single).save(path)
        else:
            write_raster(path, values)

    return write


def write_raster(path, values, driver="GTiff", **options):
    rasterio = pytest.importorskip("rasterio")
    import warnings

    profile = {"driver": driver, "width": values.shape[1], "height": values.shape[0], "count": values.shape[2], "dtype": values.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", **profile, **options) as out:
            out.write(np.moveaxis(values, 2, 0))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 3])
def test_deep_values_are_stretched_by_the_sets_own_range(tmp_path, dtype, bands):
    low, high = (0.05, 0.4) if dtype.startswith("float") else (-300, 900) if dtype.startswith("int") else (300, 1500)
    values = ground(dark=low, bright=high, dtype=dtype, bands=bands)
    source = raw_coco(tmp_path / "raw", {f"{k}.tif": deep_writer(values) for k in range(3)})
    data = prepare_dataset(source, tmp_path / "out")
    check_boxes_lie_on_the_bright(data)
    (what,) = (w for w in data.manifest["changes"] if "stretched to 8 bits" in w)
    assert f"{dtype} values" in what and data.manifest["changes"][what] == 3
    (told,) = data.manifest["pixels"]["stretch"]
    assert told["values"] == dtype and len(told["ranges"]) == bands and told["percentiles"] == [0.5, 99.5]
    for a, b in told["ranges"]:
        assert low <= a < low + 0.1 * (high - low) and high - 0.1 * (high - low) < b <= high
    assert data.scenes[0].provenance["reading"]["ranges"] == told["ranges"]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bands", [1, 3])
def test_eleven_bits_in_png_and_tiff_are_not_black(tmp_path, suffix, bands):
    if bands == 3:
        pytest.importorskip("rasterio")
    values = ground(dark=200, bright=1549, dtype=np.uint16, bands=bands)
    source = raw_coco(tmp_path / "raw", {f"{k}.{suffix}": deep_writer(values) for k in range(2)})
    check_boxes_lie_on_the_bright(prepare_dataset(source, tmp_path / "out"))
    black = prepare_dataset(source, tmp_path / "none", PrepareOptions(stretch="none"))
    assert max(np.asarray(Image.open(s.path)).max() for s in black.scenes) <= 6
    assert black.manifest["notes"]["pictures without contrast (as good as one grey level)"] == 2


def test_one_range_for_the_set_or_one_for_each_picture(tmp_path):
    dim, clear = (ground(dark=200, bright=b, dtype=np.uint16, bands=1) for b in (600, 1800))
    source = raw_coco(tmp_path / "raw", {"a.tif": deep_writer(dim), "b.tif": deep_writer(clear)})
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("a\nb\n")

    def brightest(**options):
        made = prepare_dataset(source, tmp_path / str(len(list(tmp_path.iterdir()))), PrepareOptions(splits=lists, **options))
        return [int(np.asarray(Image.open(s.path)).max()) for s in made.scenes]

    one, other = brightest()
    assert one < 100 and other == 255
    assert brightest(stretch="picture") == [255, 255]
    assert brightest(stretch="0,2000") == [round(int(v.max()) * 255 / 2000) for v in (dim, clear)]
    wide, narrow = brightest(stretch="set:0,100"), brightest(stretch="set:10,90")
    assert wide[1] == 255 and narrow[0] >= wide[0]
    (lists / "train.txt").write_text("a\n")
    (lists / "test.txt").write_text("b\n")  # the range is that of the training pictures
    assert brightest() == [255, 255]


def test_pixels_that_were_not_measured(tmp_path):
    pytest.importorskip("rasterio")
    values = ground(dark=0.1, bright=0.3, dtype=np.float32, bands=3)
    values[30:, :, :] = -9999.0
    values[25, 40:] = np.nan
    values[26, 40:] = np.inf
    source = raw_coco(tmp_path / "raw", {"a.tif": lambda path: write_raster(path, values, nodata=-9999.0)})
    data = prepare_dataset(source, tmp_path / "out")
    (told,) = data.manifest["pixels"]["stretch"]
    assert all(0.09 < low < 0.15 and 0.25 < high < 0.31 for low, high in told["ranges"])
    pixels = np.asarray(Image.open(data.scenes[0].path))
    assert pixels[30:].max() == 0 and pixels[25:27, 40:].max() == 0 and pixels[8, 12, 0] > 200


def test_8_bit_pictures_stay_untouched_beside_deep_ones(tmp_path):
    plain = ground()
    deep = ground(dark=300, bright=1500, dtype=np.uint16, bands=1)
    source = raw_coco(tmp_path / "raw", {"a.png": lambda path: Image.fromarray(plain).save(path), "b.tif": deep_writer(deep)})
    data = prepare_dataset(source, tmp_path / "out")
    assert (np.asarray(Image.open(tmp_path / "out" / "images" / "a.png")) == plain).all()
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == (source / "images" / "a.png").read_bytes()
    check_boxes_lie_on_the_bright(data)


def test_same_bytes_whatever_the_number_of_processes(tmp_path):
    rng = np.random.default_rng(1)
    pictures = {f"{k}.tif": deep_writer(ground(dark=200, bright=int(rng.integers(900, 2000)), dtype=np.uint16, bands=1)) for k in range(5)}
    source = raw_coco(tmp_path / "raw", pictures)
    prepare_dataset(source, tmp_path / "a", PrepareOptions(tile=32, overlap=8))
    prepare_dataset(source, tmp_path / "b", PrepareOptions(tile=32, overlap=8), processes=2)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    with pytest.raises(CCDiffError, match="made differently"):
        prepare_dataset(source, tmp_path / "a", PrepareOptions(tile=32, overlap=8, stretch="0,2000"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stretch": "sets"}, "--stretch"),
        ({"stretch": "5,1"}, "--stretch"),
        ({"stretch": "set:1,101"}, "--stretch"),
        ({"stretch": "nan,1"}, "--stretch"),
        ({"bands": "1,2"}, "--bands"),
        ({"bands": "0"}, "--bands"),
        ({"bands": "a"}, "--bands"),
        ({"exif": "rotate"}, "--exif"),
        ({"resized": "yes"}, "--resized"),
    ],
)
def test_choices_that_do_not_exist(options, message):
    with pytest.raises(CCDiffError, match=message):
        pixel_options(**options)


def test_choices():
    assert pixel_options("keep", "3,2,1", "picture:2,98", "scale") == PixelOptions("keep", (3, 2, 1), "picture", (2.0, 98.0), "scale")
    assert pixel_options(stretch="0, 2047").range == (0.0, 2047.0) and pixel_options(stretch="-25,5").stretch == "fixed"


# ---------------------------------------------------------------------------------------------------------------- bands


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "lzw", "predictor": 2},
        {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "zstd"},
        {"BIGTIFF": "YES"},
    ],
    ids=["striped", "tiled", "lzw", "deflate-tiled", "zstd", "big"],
)
def test_tiff_of_any_bands_and_form(tmp_path, count, interleave, options):
    pytest.importorskip("rasterio")
    values = ground(bands=count)
    form = {"interleave": interleave, **({"photometric": "RGB", "alpha": "NO"} if count == 4 else {})}
    source = raw_coco(tmp_path / "raw", {"a.tif": lambda path: write_raster(path, values, **form, **options)})
    data = prepare_dataset(source, tmp_path / "out")
    check_boxes_lie_on_the_bright(data)
    expected = values[..., :3] if count > 2 else np.repeat(values[..., :1], 3, axis=2)
    assert (np.asarray(Image.open(data.scenes[0].path)) == expected).all()
    assert any(f"pictures of {count} bands" in what and "--bands" in what for what in data.manifest["changes"])
    chosen = prepare_dataset(source, tmp_path / "chosen", PrepareOptions(bands=str(count)))
    assert (np.asarray(Image.open(chosen.scenes[0].path))[..., 0] == values[..., -1]).all()
    if count > 2:
        turned = prepare_dataset(source, tmp_path / "turned", PrepareOptions(bands="3,2,1"))
        assert (np.asarray(Image.open(turned.scenes[0].path)) == values[..., [2, 1, 0]]).all()
        assert turned.manifest["pixels"]["bands"] == [3, 2, 1]
    with pytest.raises(CCDiffError, match=f"has {count} bands, --bands asks for band 9"):
        prepare_dataset(source, tmp_path / "none", PrepareOptions(bands="9,1,1"))


def test_bands_of_plain_pictures_need_no_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "installed", lambda: False)
    values = ground()
    values[..., 0] //= 2
    source = raw_coco(tmp_path / "raw", {"a.png": lambda path: Image.fromarray(values).save(path)})
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(bands="3,2,1"))
    assert (np.asarray(Image.open(data.scenes[0].path)) == values[..., ::-1]).all()


def test_bands_that_the_file_names(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.enums import ColorInterp

    values = ground(bands=4)
    values[..., 2] //= 2

    def write(path):
        write_raster(path, values, photometric="minisblack")
        with rasterio.open(path, "r+") as out:
            out.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]

    data = prepare_dataset(raw_coco(tmp_path / "raw", {"a.tif": write}), tmp_path / "out")
    assert (np.asarray(Image.open(data.scenes[0].path)) == values[..., [2, 1, 0]]).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_jpeg_2000(tmp_path, dtype, count):
    pytest.importorskip("rasterio")
    values = ground((64, 48), dark=40, bright=200 if dtype == "uint8" else 1500, dtype=dtype, bands=count)

    def write(path):
        write_raster(path, values, "JP2OpenJPEG", REVERSIBLE="YES", QUALITY="100")

    data = prepare_dataset(raw_coco(tmp_path / "raw", {"a.jp2": write}, size=(64, 48)), tmp_path / "out")
    check_boxes_lie_on_the_bright(data)
    if dtype == "uint8" and count == 3:
        assert (np.asarray(Image.open(data.scenes[0].path)) == values).all()


def test_large_rasters_are_cut_block_by_block(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    values = rng.integers(100, 3000, (230, 150, 5), np.uint16)
    write_raster(tmp_path / "a.tif", values, tiled=True, blockxsize=16, blockysize=16, interleave="band", compress="deflate")
    boxes = [(5, 5, 40, 30), (100, 90, 140, 220), (0, 0, 150, 230)]
    reading = w.Reading(raster=True, bands=(5, 3, 1), ranges=((0.0, 255.0 * 16),) * 3)
    expected = np.rint(values[..., [4, 2, 0]] / 16).astype(np.uint8)
    monkeypatch.setattr(w, "BAND", 32 * 150)
    assert [top for top, _ in w.read_bands(tmp_path / "a.tif", reading)] == list(range(0, 230, 32))
    for k, cut in w.read_windows(tmp_path / "a.tif", boxes, reading):
        x1, y1, x2, y2 = boxes[k]
        assert np.abs(np.asarray(cut, int) - expected[y1:y2, x1:x2]).max() <= 1


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    values = ground(bands=5)
    source = raw_coco(tmp_path / "raw", {"a.tif": lambda path: write_raster(path, values, interleave="band")})
    deep = raw_coco(tmp_path / "deep", {"a.png": deep_writer(ground(dark=200, bright=1500, dtype=np.uint16))})
    grey = raw_coco(tmp_path / "grey", {"a.tif": deep_writer(ground(dark=200, bright=1500, dtype=np.uint16, bands=1))})
    monkeypatch.setattr(rasters, "installed", lambda: False)
    with pytest.raises(CCDiffError, match=r"a TIFF picture of 5 bands of uint8 values(?s:.*)pip install 'ccdiff\[raster\]'"):
        prepare_dataset(source, tmp_path / "out")
    with pytest.raises(CCDiffError, match=r"a PNG picture of 3 bands of uint16 values(?s:.*)ccdiff\[raster\]"):
        prepare_dataset(deep, tmp_path / "out")
    check_boxes_lie_on_the_bright(prepare_dataset(grey, tmp_path / "out"))  # one band of 16 bits: Pillow reads it


def test_a_broken_raster_is_left_out(tmp_path):
    values = ground(bands=5)
    source = raw_coco(tmp_path / "raw", {f"{k}.tif": lambda path: write_raster(path, values, compress="lzw") for k in range(3)})
    path = source / "images" / "1.tif"
    path.write_bytes(path.read_bytes()[:-200] if len(path.read_bytes()) < 1000 else path.read_bytes()[:700])
    data = prepare_dataset(source, tmp_path / "out")
    assert [q["file"] for q in data.manifest["quarantined"]] == ["1.tif"] and len(data.scenes) == 2


def test_rasters_that_name_other_files_are_refused(tmp_path):
    """A VRT in the clothes of a TIFF would make GDAL read any file."""
    write_raster(tmp_path / "secret.tif", ground(bands=5))
    vrt = f'<VRTDataset rasterXSize="60" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{tmp_path}/secret.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>'  # noqa: E501
    (tmp_path / "a.tif").write_text(vrt)
    with pytest.raises(CCDiffError, match="does not decode"):
        rasters.raster_header(tmp_path / "a.tif")
    good = raw_coco(tmp_path / "raw", {"a.tif": lambda p: write_raster(p, ground(bands=5)), "b.tif": lambda p: p.write_text(vrt)})
    data = prepare_dataset(good, tmp_path / "out")
    assert [q["file"] for q in data.manifest["quarantined"]] == ["b.tif"]


# ---------------------------------------------------------------------------------------------------------------- metadata and the shell


def test_metadata(tmp_path):
    pictures = {f"{k}.png": lambda path: Image.fromarray(ground()).save(path) for k in range(3)}
    source = raw_coco(tmp_path / "raw", pictures)
    (tmp_path / "m.csv").write_text("file_name,gsd,sensor,date\n0.png,0.5,GF-2,2021-03-04\n1,1.0,,\nother.png,2,,\n")
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(size=120, metadata=tmp_path / "m.csv"))
    by_name = {s.provenance["picture"]: s.provenance for s in data.scenes}
    assert by_name["0.png"]["gsd"] == pytest.approx(0.25) and by_name["0.png"]["metadata"] == {"sensor": "GF-2", "date": "2021-03-04"}
    assert by_name["1.png"]["gsd"] == pytest.approx(0.5) and "metadata" not in by_name["1.png"] and "gsd" not in by_name["2.png"]
    notes = data.manifest["notes"]
    assert notes["pictures that --metadata does not name"] == 1
    assert notes["entries of --metadata for pictures that the set has not"] == 1
    facts = inspect_set(tmp_path / "out", tmp_path / "page")
    assert facts["gsd"] == {"pictures": 2, "min": 0.25, "median": 0.375, "max": 0.5}
    (tmp_path / "m.json").write_text(json.dumps({"0.png": {"gsd": 0.3, "lat": 48.1, "lon": 11.5}}))
    again = prepare_dataset(source, tmp_path / "again", PrepareOptions(metadata=tmp_path / "m.json"))
    assert again.scenes[0].provenance["metadata"] == {"lat": 48.1, "lon": 11.5} and again.scenes[0].provenance["gsd"] == 0.3


def test_tiles_of_a_georeferenced_scene_have_their_own_place_date_and_clouds(tmp_path):
    """Degrees: a tile's middle lies where its pixels lie; the file's date and clouds go with it; what a user says comes first."""
    rasterio = pytest.importorskip("rasterio")

    def write(path):
        write_raster(path, ground(size=(80, 64)), crs="EPSG:4326", transform=rasterio.Affine(1e-5, 0, 11.0, 0, -1e-5, 48.0))
        with rasterio.open(path, "r+") as out:
            out.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2014-05-31 10:11:12", CLOUDCOVER="25")

    source = raw_coco(
        tmp_path / "raw",
        {"a.tif": write, "b.tif": write, "c.png": lambda path: Image.fromarray(ground(size=(80, 64))).save(path)},
        size=(80, 64),
    )
    (tmp_path / "m.json").write_text(json.dumps({"b": {"lon": -5, "lat": 1, "acquired": "2020-01", "sensor": "x"}}))
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(tile=32, size=64, keep_empty=True, metadata=tmp_path / "m.json"))
    seen = 0
    for scene in data.scenes:
        known = quantities_of(scene)
        if scene.provenance["picture"] == "a.tif":
            x, y = (v + 16 for v in scene.provenance["offset"])
            assert known["longitude"] == pytest.approx(11 + x * 1e-5, abs=2e-6) and known["latitude"] == pytest.approx(
                48 - y * 1e-5, abs=2e-6
            )
            assert date_of(known) == "2014-05-31" and known["cloud_cover"] == 0.25
            seen += 1
        elif scene.provenance["picture"] == "b.tif":
            assert (known["longitude"], known["latitude"]) == (-5, 1) and date_of(known) == "2020-01" and known["cloud_cover"] == 0.25
        else:
            assert known == {}
    assert seen > 2
    facts = inspect_set(tmp_path / "out", tmp_path / "page")["metadata"]
    assert facts["date"] == {"pictures": 2 * seen, "min": "2014-05-31", "median": "2014-05-31", "max": "2020-01"}
    assert facts["longitude"]["min"] == -5 and facts["cloud_cover"] == {"pictures": 2 * seen, "min": 0.25, "median": 0.25, "max": 0.25}


def test_the_gsd_of_labels_follows_pictures_that_were_resized(tmp_path):
    source = raw_coco(tmp_path / "raw", {"0.png": half}, names=("1",))
    (tmp_path / "m.csv").write_text("file_name,gsd\n0.png,0.5\n")
    data = prepare_dataset(source, tmp_path / "out", PrepareOptions(resized="scale", metadata=tmp_path / "m.csv"))
    assert quantities_of(data.scenes[0])["gsd"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "name,gsd\n0.png,1\n", "no column file_name"),
        ("m.csv", "file_name,gsd\n0.png,fine\n", "metres a pixel, found 'fine'"),
        ("m.csv", "file_name,gsd\n0.png,-1\n", "m.csv:2: gsd"),
        ("m.csv", "file_name,gsd\n0.png,1\n0.png,2\n", "stands there twice"),
        ("m.csv", "file_name,gsd\nx.png,1\n", "none of its 1 file names is a picture of the set"),
        ("m.csv", "file_name,lat\n0.png,95\n", "m.csv:2: lat: expected degrees north"),
        ("m.csv", "file_name,date\n0.png,31.5.2014\n", "m.csv:2: date: expected a date such as"),
        ("m.json", '{"0.png": {"cloud_cover": 25}}', "m.json: 0.png: cloud_cover"),
        ("m.csv", "file_name,hemisphere\n0.png,north\n", "m.csv:2: hemisphere: expected E or W"),
        ("m.json", "[1]", "expected an object of objects"),
        ("m.json", '[{"gsd": 1}]', "file_name: expected a text"),
    ],
)
def test_metadata_that_is_broken(tmp_path, name, text, message):
    source = raw_coco(tmp_path / "raw", {"0.png": lambda path: Image.fromarray(ground()).save(path)})
    (tmp_path / name).write_text(text)
    with pytest.raises(CCDiffError, match=message):
        prepare_dataset(source, tmp_path / "out", PrepareOptions(metadata=tmp_path / name))


def test_the_command_line(tmp_path):
    source = raw_coco(tmp_path / "raw", {"a.png": half, "b.png": half})
    stopped = CliRunner().invoke(app, ["prepare", str(source), "--out", str(tmp_path / "out"), "--processes", "1"])
    assert isinstance(stopped.exception, CCDiffError) and not (tmp_path / "out").exists()
    made = CliRunner().invoke(
        app, ["prepare", str(source), "--out", str(tmp_path / "out"), "--processes", "1", "--resized", "scale", "--json"]
    )
    assert made.exit_code == 0 and json.loads(made.stdout)["pixels"] == {"scaled": {"resized after labelling": 2}}


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".png", ".gif"])
def test_of_a_file_of_several_pictures_the_first_is_read_and_said(tmp_path, suffix):
    first, other = (Image.fromarray(ground(bright=value)) for value in (220, 120))
    name = f"1{suffix}" if suffix != ".gif" else "1.png"  # a GIF by another name

    def write(path):
        first.save(path, {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".tif": "TIFF"}[suffix], save_all=True, append_images=[other])

    made = prepare_dataset(raw_coco(tmp_path / "raw", {name: write}), tmp_path / "out")
    assert made.manifest["changes"]["files of several pictures (pages, frames), of which the first is read"] == 1
    (scene,) = made.scenes
    with Image.open(str(scene.path)) as image:
        assert getattr(image, "n_frames", 1) == 1 and np.asarray(image.convert("RGB"))[8, 12].min() > 180


def test_overviews_of_a_tiff_are_no_pictures_of_their_own(tmp_path):
    def write(path):
        image = Image.fromarray(ground())
        with Image.new("RGB", (30, 20)) as small:
            small.encoderinfo = {"tiffinfo": {254: 1}}
            image.save(path, save_all=True, append_images=[small])

    made = prepare_dataset(raw_coco(tmp_path / "raw", {"1.tif": write}), tmp_path / "out")
    assert not made.manifest["changes"]
