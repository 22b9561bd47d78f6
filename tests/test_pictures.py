"""Pictures as their labels mean them: every EXIF orientation in every format, and what headers say of depth and bands."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ccdiff_cli.duplicates import look_at
from ccdiff_cli.pictures import (
    TURNS,
    Reading,
    labelled_size,
    labels_of_stored_pixels,
    picture_of_values,
    picture_size,
    read_header,
    read_rgb,
    stored_point,
)
from ccdiff_cli.prepare import windows as w

SIZE = (60, 40)
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "mpo": "MPO"}
_BACK = {**TURNS, 6: TURNS[8], 8: TURNS[6]}


def shown() -> Image.Image:
    """A picture without any symmetry, smooth enough to survive JPEG."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([x * 4, y * 6, (x + 2 * y)], axis=2).astype(np.uint8)
    pixels[5:15, 8:28] = (220, 40, 40)
    return Image.fromarray(pixels)


def save_turned(path, orientation: int, picture: Image.Image | None = None) -> None:
    """The file of a camera held askew: the tag tells how its pixels become the picture."""
    picture = picture or shown()
    stored = picture.transpose(_BACK[orientation]) if orientation in TURNS else picture
    exif = Image.Exif()
    exif[274] = orientation
    kind = FORMATS[path.suffix[1:]]
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}, "MPO": {"quality": 98, "save_all": True}}.get(
        kind, {}
    )
    if kind == "MPO":
        options["append_images"] = [stored.resize((8, 8))]
    stored.save(path, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_orientation_in_every_format(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    save_turned(path, orientation)
    header = read_header(path)
    assert header.orientation == orientation and header.plain and header.tagged == (orientation != 1)
    stored = SIZE[::-1] if orientation >= 5 else SIZE
    assert header.size == picture_size(path) == stored and header.shown() == labelled_size(path) == SIZE
    with labels_of_stored_pixels():
        assert labelled_size(path) == stored
    expected = np.asarray(shown(), int)
    turned = np.asarray(read_rgb(path, Reading(orientation=orientation)), int)
    assert turned.shape == expected.shape and np.abs(turned - expected).mean() < 3
    as_stored = np.asarray(read_rgb(path), int)
    assert as_stored.shape[:2] == stored[::-1]
    if orientation in TURNS:
        assert np.abs(as_stored - np.asarray(shown().transpose(_BACK[orientation]), int)).mean() < 3
    with Image.open(path) as image:  # what Pillow itself makes of it
        assert np.abs(np.asarray(ImageOps.exif_transpose(image).convert("RGB"), int) - expected).mean() < 3
    look = look_at(str(path), Reading(orientation=orientation))
    assert look.size == SIZE and np.abs(look.thumbnail.astype(int) - look_at_plain(tmp_path).thumbnail).mean() < 3


def look_at_plain(folder):
    shown().save(folder / "plain.png")
    return look_at(str(folder / "plain.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_windows_of_turned_pictures_are_those_of_the_whole(tmp_path, monkeypatch, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    save_turned(path, orientation)
    reading = Reading(orientation=orientation)
    whole = np.asarray(read_rgb(path, reading))
    monkeypatch.setattr(w, "WHOLE", 100)
    monkeypatch.setattr(w, "BAND", 300)
    asked = [(0, 0, 60, 40), (8, 5, 28, 15), (50, 30, 60, 40), (0, 39, 1, 40)]
    got = dict(w.read_windows(path, asked, reading))
    for k, (x1, y1, x2, y2) in enumerate(asked):
        assert (np.asarray(got[k]) == whole[y1:y2, x1:x2]).all()


@given(st.sampled_from(range(1, 9)), st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_points_follow_the_pixels(orientation, width, height, data):
    pixels = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    stored = Image.fromarray(pixels)
    turned = stored.transpose(TURNS[orientation]) if orientation in TURNS else stored
    x, y = data.draw(st.integers(0, turned.width - 1)), data.draw(st.integers(0, turned.height - 1))
    sx, sy = stored_point(orientation, stored.size, x + 0.5, y + 0.5)
    assert pixels[int(sy), int(sx)] == turned.getpixel((x, y))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_tag_behind_the_pixels_in_xmp_or_broken(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    shown().save(tmp_path / "late.png")
    data = (tmp_path / "late.png").read_bytes()
    end = data.index(b"IEND") - 4
    (tmp_path / "late.png").write_bytes(data[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[end:])
    assert read_header(tmp_path / "late.png").orientation == 6
    shown().save(tmp_path / "xmp.jpg", xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>')
    assert read_header(tmp_path / "xmp.jpg").orientation == 3
    shown().save(tmp_path / "broken.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert read_header(tmp_path / "broken.jpg").orientation == 1 and read_rgb(tmp_path / "broken.jpg").size == SIZE
    exif[274] = 9
    shown().save(tmp_path / "nine.jpg", exif=exif)
    header = read_header(tmp_path / "nine.jpg")
    assert header.orientation == 1 and header.tagged and header.shown() == SIZE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pictures_of_8_bits_and_fewer_are_plain(tmp_path, mode):
    image = shown().convert(mode) if mode != "LA" else shown().convert("RGBA").convert("LA")
    for suffix in ("png", "tif") if mode != "CMYK" else ("tif", "jpg"):
        image.save(tmp_path / f"a.{suffix}")
        header = read_header(tmp_path / f"a.{suffix}")
        assert header.plain and header.kind == "uint8" and header.size == SIZE
        assert read_rgb(tmp_path / f"a.{suffix}").mode == "RGB"


def test_deep_pictures_are_told_from_those_that_pillow_cuts_to_8_bits(tmp_path):
    cv2 = pytest.importorskip("cv2")
    deep = (np.asarray(shown()).astype(np.uint16) + 1) * 37
    cv2.imwrite(str(tmp_path / "rgb.png"), deep)
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.tif")
    Image.fromarray(deep[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(deep[..., 0].astype(np.int32)).save(tmp_path / "int.tif")
    kinds = {name: read_header(tmp_path / name) for name in ("rgb.png", "grey.png", "grey.tif", "float.tif", "int.tif")}
    assert {name: h.kind for name, h in kinds.items()} == {
        "rgb.png": "uint16", "grey.png": "uint16", "grey.tif": "uint16", "float.tif": "float32", "int.tif": "int32"
    }  # fmt: skip
    assert not any(h.plain for h in kinds.values()) and kinds["rgb.png"].mode == "RGB"  # Pillow would drop the lower bits


def test_values_become_grey_levels_by_their_range():
    values = np.array([[[0], [100], [1100], [2100], [9999]]], np.uint16)
    picture = picture_of_values(values, Reading(ranges=((100.0, 2100.0),)))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 128, 255, 255] and picture.mode == "RGB"
    odd = np.array([[[np.nan], [np.inf], [-np.inf], [-1.0], [0.25], [0.5]]], np.float64)
    picture = picture_of_values(odd, Reading(ranges=((0.0, 0.5),), nodata=-1.0))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 0, 0, 128, 255]
    three = np.array([[[10, 20, 30]]], np.int16)
    picture = picture_of_values(three, Reading(ranges=((0.0, 10.0), (0.0, 40.0), (-30.0, 30.0))))
    assert np.asarray(picture)[0, 0].tolist() == [255, 128, 255]
