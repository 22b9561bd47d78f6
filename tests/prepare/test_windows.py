"""Windows of large pictures: the same pixels as the whole picture, from bands; what cannot be parted; what is broken."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ccdiff_cli import pictures
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.pictures import UnreadablePicture, picture_size, read_rgb
from ccdiff_cli.prepare import windows as w

SIZE = (150, 230)
"""Width and height of the pictures here; a band has 16 rows, so there are 15 of them."""


@pytest.fixture(autouse=True)
def small_bands(monkeypatch):
    monkeypatch.setattr(w, "WHOLE", 1000)
    monkeypatch.setattr(w, "BAND", 16 * SIZE[0])


def pixels(mode: str) -> Image.Image:
    """Smooth and noisy parts, so that PNG's encoder uses all of its filters."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    smooth = np.stack([x + y, 2 * x, 255 - y], axis=2) % 256
    rgb = np.where((x // 32 + y // 32)[..., None] % 2, rng.integers(0, 256, smooth.shape), smooth).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) + rgb[..., 1])
    image = Image.fromarray(rgb)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rgb[..., 2]))
    return image.quantize(200) if mode == "P" else image.convert(mode)


def bands_of(path) -> list[tuple[int, Image.Image]]:
    return [(y, band.copy()) for y, band in w.read_bands(path)]


def check(path, *, parted: bool) -> None:
    """Bands, put together, and windows are what Pillow makes of the whole picture."""
    expected = np.asarray(read_rgb(path))
    found = bands_of(path)
    assert (len(found) > 5) == parted and (parted or len(found) == 1)
    assert [y for y, _ in found] == np.cumsum([0, *(b.height for _, b in found[:-1])]).tolist()
    assert all(b.mode == "RGB" for _, b in found)
    assert (np.concatenate([np.asarray(b) for _, b in found]) == expected).all()
    asked = [(0, 0, 150, 230), (10, 5, 20, 9), (100, 100, 150, 228), (3, 15, 50, 17), (0, 229, 1, 230), (10, 5, 20, 9)]
    got = dict(w.read_windows(path, asked))
    assert sorted(got) == list(range(len(asked)))
    for k, (x1, y1, x2, y2) in enumerate(asked):
        assert (np.asarray(got[k]) == expected[y1:y2, x1:x2]).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16"])
def test_png(tmp_path, mode):
    pixels(mode).save(tmp_path / "a.png")
    check(tmp_path / "a.png", parted=True)


def test_png_with_a_transparent_colour_and_many_small_chunks(tmp_path):
    pixels("RGB").save(tmp_path / "a.png", transparency=(0, 0, 0))
    data = (tmp_path / "a.png").read_bytes()
    out, place = data[:8], 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        for k in range(0, max(1, length), 100) if kind == b"IDAT" else [0]:
            part = body[k : k + 100] if kind == b"IDAT" else body
            out += struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        place += 12 + length
    (tmp_path / "a.png").write_bytes(out)
    check(tmp_path / "a.png", parted=True)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_tiff_in_strips(tmp_path, compression, mode):
    if compression == "jpeg" and mode == "I;16":
        pytest.skip("JPEG holds 8 bits")
    info = {278: 8} if compression != "raw" else {}
    pixels(mode).save(tmp_path / "a.tif", compression=compression, tiffinfo=info)
    check(tmp_path / "a.tif", parted=True)


def test_tiff_with_a_predictor_palette_or_alpha(tmp_path):
    for mode in ("RGBA", "P", "CMYK"):
        pixels(mode).save(tmp_path / f"{mode}.tif", compression="tiff_lzw", tiffinfo={317: 2 if mode != "P" else 1, 278: 8})
        check(tmp_path / f"{mode}.tif", parted=True)


def tiled_tiff(path, order: str, compressed: bool, side: int = 32) -> None:
    """An RGB TIFF in tiles, which Pillow reads but does not write."""
    image = np.asarray(pixels("RGB"))
    across, down = -(-SIZE[0] // side), -(-SIZE[1] // side)
    padded = np.zeros((down * side, across * side, 3), np.uint8)
    padded[: SIZE[1], : SIZE[0]] = image
    tiles = [padded[y * side : (y + 1) * side, x * side : (x + 1) * side].tobytes() for y in range(down) for x in range(across)]
    tiles = [zlib.compress(t) for t in tiles] if compressed else tiles
    places, at = [], 8
    for tile in tiles:
        places.append(at)
        at += len(tile)
    n = len(tiles)
    at += at % 2
    entries = [(256, 4, [SIZE[0]]), (257, 4, [SIZE[1]]), (258, 3, [8, 8, 8]), (259, 3, [8 if compressed else 1]), (262, 3, [2])]
    entries += [(277, 3, [3]), (284, 3, [1]), (322, 3, [side]), (323, 3, [side]), (324, 4, places), (325, 4, [len(t) for t in tiles])]
    beyond, listed, extra = at + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, values in entries:
        data = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'L'}", *values)
        if len(data) > 4:
            data, extra = struct.pack(f"{order}L", beyond + len(extra)), extra + data + b"\0" * (len(data) % 2)
        listed += struct.pack(f"{order}HHL", tag, kind, len(values)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, at)
    body = b"".join(tiles).ljust(at - 8, b"\0")
    path.write_bytes(head + body + struct.pack(f"{order}H", len(entries)) + listed + struct.pack(f"{order}L", 0) + extra)
    assert n > 8


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_in_tiles(tmp_path, order, compressed):
    tiled_tiff(tmp_path / "a.tif", order, compressed)
    assert (np.asarray(read_rgb(tmp_path / "a.tif")) == np.asarray(pixels("RGB"))).all()
    check(tmp_path / "a.tif", parted=True)


def test_what_cannot_be_parted_is_decoded_whole(tmp_path):
    image = pixels("RGB")
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "a.bmp")
    image.save(tmp_path / "one_strip.tif", compression="tiff_lzw", tiffinfo={278: 230})
    pixels("1").save(tmp_path / "bits.png")
    for name in ("a.jpg", "a.bmp", "one_strip.tif", "bits.png"):
        check(tmp_path / name, parted=False)


@given(st.lists(st.tuples(st.integers(0, 149), st.integers(0, 229), st.integers(1, 150), st.integers(1, 230)), max_size=12))
@settings(max_examples=30, deadline=None)
def test_any_windows(tmp_path_factory, boxes):
    path = tmp_path_factory.getbasetemp() / "windows.png"
    if not path.exists():
        pixels("RGB").save(path)
    asked = [(x, y, min(150, x + dx), min(230, y + dy)) for x, y, dx, dy in boxes]
    got = list(w.read_windows(path, asked))
    assert sorted(k for k, _ in got) == list(range(len(asked)))
    expected = np.asarray(pixels("RGB"))
    for k, image in got:
        x1, y1, x2, y2 = asked[k]
        assert (np.asarray(image) == expected[y1:y2, x1:x2]).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.95])
def test_truncated_files(tmp_path, name, share):
    """A cut file must not decode to anything, neither whole nor in bands."""
    path = tmp_path / name
    pixels("RGB").save(path, **({"compression": "tiff_lzw", "tiffinfo": {278: 8}} if name == "a.tif" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadablePicture, match=r"does not decode"):
        list(w.read_windows(path, [(0, 0, 150, 230)]))


@given(st.integers(20, 4000), st.integers(0, 255), st.sampled_from(["PNG", "TIFF"]))
@settings(max_examples=50, deadline=None)
def test_a_changed_byte_is_a_picture_or_our_error(tmp_path_factory, place, value, kind):
    path = tmp_path_factory.getbasetemp() / f"changed.{kind}"
    good = path.with_suffix(".good")
    if not good.exists():
        pixels("RGB").save(good, kind, **({"compression": "tiff_lzw", "tiffinfo": {278: 8}} if kind == "TIFF" else {}))
    data = bytearray(good.read_bytes())
    data[-place if kind == "TIFF" else place] = value  # Pillow writes the directory of a TIFF at its end
    path.write_bytes(data)
    try:
        size = picture_size(path)
        total = sum(band.height for _, band in w.read_bands(path))
        assert total == size[1]
    except UnreadablePicture:
        pass


def test_bombs_and_foreign_formats_are_refused_by_their_header(tmp_path, monkeypatch):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 90000, 90000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    for read in (picture_size, read_rgb, lambda path: list(w.read_bands(path))):
        with pytest.raises(UnreadablePicture, match="claims 90000 x 90000 pixels, more than 500,000,000 in all") as caught:
            read(tmp_path / "bomb.png")
        assert "decompression bomb" in str(caught.value)
    (tmp_path / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadablePicture, match="cannot identify"):
        picture_size(tmp_path / "program.jpg")
    with pytest.raises(CCDiffError, match="does not exist"):
        picture_size(tmp_path / "none.png")
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("L", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own guard would refuse a large scene
    assert picture_size(tmp_path / "a.png") == (300, 300) and Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.undo()
    assert limit == Image.MAX_IMAGE_PIXELS and pictures.MAX_PIXELS >= 20_000**2
