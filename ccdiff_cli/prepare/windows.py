"""Windows of pictures too large to hold: a picture is decoded in bands from top to bottom, and every window is given out when whole.

Notable here:

* A band of a large PNG or TIFF is wrapped as a small picture of its own and given to Pillow, so it decodes to the pixels that the whole
  picture would.  For PNG the rows are inflated as they come, and the last row of the band before goes first, for the filters of the next
  row refer to it; for TIFF the strips or tiles of the band are picked out of the file.
* In memory are a band and, of the windows, the rows that came: a row of tiles, and what the next row shares with it.
* What a :class:`Reading` gives to the raster library comes in bands from there.  Other formats (JPEG, BMP, WebP, interlaced PNG, TIFF in
  one compressed strip or with separate planes) have no bands that can be reached this way: they are decoded whole, 4 bytes a pixel, and
  :func:`held_whole` says so beforehand.
* A picture that its EXIF data turn is never turned as a whole: windows are cut out of the stored pixels, then turned.
* The whole picture is decoded even where no window is asked for: whether it does decode must not depend on what is cut from it.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..files import open_file
from ..pictures import (
    AS_STORED,
    Reading,
    decoded,
    open_picture,
    opened,
    picture_of_values,
    picture_size,
    stored_point,
    stored_size,
    to_rgb,
    turned,
    values_of,
)
from ..rasters import read_values

WHOLE = 32_000_000
"""Pictures of up to so many pixels are decoded whole, whatever their format: 128 MB, and faster."""
BAND = 4_000_000
"""Pixels of a band, as near as the file's own strips or tiles allow."""

Window = tuple[int, int, int, int]
"""x1 y1 x2 y2, whole pixels inside the picture."""


def read_windows(path: str | Path, windows: Sequence[Window], reading: Reading | None = None) -> Iterator[tuple[int, Image.Image]]:
    """Cut windows out of a picture: yields (index of the window, its pixels as 8-bit RGB) as the windows become whole.

    Args:
        windows: in pixels of the picture as ``reading`` turns it.
        reading: how the stored pixels become the picture; as they are when None.

    Raises:
        CCDiffError: the file is missing; a raster library is needed and not installed.
        UnreadablePicture: it does not decode, or only in part: then some windows may have been given out before.
    """
    reading = reading or AS_STORED
    if reading.orientation != 1:
        size = picture_size(path)
        windows = [_stored_window(window, reading.orientation, size) for window in windows]
    waiting = sorted(range(len(windows)), key=lambda k: (windows[k][1], k))[::-1]
    begun: dict[int, list[np.ndarray]] = {}
    for top, band in read_bands(path, reading):
        bottom = top + band.height
        while waiting and windows[waiting[-1]][1] < bottom:
            begun[waiting.pop()] = []
        for k in list(begun):
            x1, y1, x2, y2 = windows[k]
            part = band.crop((x1, max(y1, top) - top, x2, min(y2, bottom) - top))
            if y1 >= top and y2 <= bottom:
                del begun[k]
                yield k, turned(part, reading)
                continue
            begun[k].append(np.asarray(part))  # only the rows that came: of the next row of tiles, what they share with this one
            if y2 <= bottom:
                yield k, turned(Image.fromarray(np.concatenate(begun.pop(k))), reading)
        del band  # before the next is made


def _stored_window(window: Window, orientation: int, size: tuple[int, int]) -> Window:
    a, b = (stored_point(orientation, size, *window[k : k + 2]) for k in (0, 2))
    return int(min(a[0], b[0])), int(min(a[1], b[1])), int(max(a[0], b[0])), int(max(a[1], b[1]))


def read_bands(path: str | Path, reading: Reading | None = None) -> Iterator[tuple[int, Image.Image]]:
    """A picture's stored pixels from top to bottom: yields (first row, RGB picture of the full width); one band where it cannot be parted.

    Raises: as :func:`read_windows`.
    """
    reading = reading or AS_STORED
    if reading.raster:
        for top, values in read_values(path, reading.bands, pixels=BAND):
            yield top, picture_of_values(values, reading)
        return
    for top, band in _stored_bands(path):
        rgb = band if band.mode == "RGB" and not reading.bands else to_rgb(band, reading)  # `convert` would copy what is RGB already
        del band  # before the next is made
        yield top, rgb
        del rgb


def read_value_bands(path: str | Path, reading: Reading) -> Iterator[tuple[int, np.ndarray]]:
    """The same as (rows, width, bands) values before they become 8 bits. Raises as :func:`read_windows`."""
    if reading.raster:
        yield from read_values(path, reading.bands, pixels=BAND)
    else:
        for top, band in _stored_bands(path):
            yield top, values_of(band, reading.bands)


def _stored_bands(path: str | Path) -> Iterator[tuple[int, Image.Image]]:
    with open_picture(path) as image:
        bands = _bands(image, Path(path))
        if bands is None:
            bands = iter((decoded(image),))
        top = 0
        while (band := next(bands, None)) is not None:
            rows = band.height
            yield top, band
            top += rows
            del band  # before the next is made


def held_whole(image: Image.Image, path: str | Path) -> bool:
    """Whether an opened picture is too large to be decoded whole, and will be, because its file has no bands."""
    return image.width * image.height > WHOLE and _bands(image, Path(path)) is None


def _bands(image: Image.Image, path: Path) -> Iterator[Image.Image] | None:
    """The bands of a large picture; None for a small one, and for one that has none."""
    if image.width * image.height <= WHOLE:
        return None
    return {"PNG": _png_bands, "TIFF": _tiff_bands}.get(str(image.format), lambda image, path: None)(image, path)


# ---------------------------------------------------------------------------------------------------------------- PNG

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png_bands(image: Image.Image, path: Path) -> Iterator[Image.Image] | None:
    with open_file(path) as stream:
        stream.seek(len(_SIGNATURE))
        length, kind = _chunk(stream)
        header = stream.read(length)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if kind != b"IHDR" or interlaced or (width, height) != image.size or not (depth == 8 or (depth == 16 and colour == 0)):
        return None
    return _inflated(path, width, height, depth, colour)


def _inflated(path: Path, width: int, height: int, depth: int, colour: int) -> Iterator[Image.Image]:
    stride = 1 + width * _CHANNELS[colour] * depth // 8
    with open_file(path) as stream:
        palette, compressed = _to_pixels(stream)
        inflate, before = zlib.decompressobj(), b""
        at_once = max(1, BAND // width)
        for top in range(0, height, at_once):
            rows = min(at_once, height - top)
            raw = bytearray(before)
            wanted = len(before) + rows * stride
            while len(raw) < wanted:
                data = inflate.unconsumed_tail or next(compressed, b"")
                got = inflate.decompress(data, wanted - len(raw))
                if not got and not data:
                    raise OSError(f"the file ends in row {top + len(raw) // stride} of {height}")
                raw += got
            band = _png_of(raw, width, depth, colour, palette)
            last = band.crop((0, band.height - 1, width, band.height))
            stored = last.tobytes() if depth == 8 else np.asarray(last).astype(">u2").tobytes()
            band = band.crop((0, 1, width, band.height)) if before else band
            before = b"\0" + stored  # filter 0: the bytes as they are
            yield band
            del raw, band  # before the next are made


def _png_of(raw: bytes | bytearray, width: int, depth: int, colour: int, palette: bytes) -> Image.Image:
    """The picture of some rows as they lie in a PNG, each with its filter."""
    height = len(raw) // (1 + width * _CHANNELS[colour] * depth // 8)
    header = _written(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    parts = [_SIGNATURE, header, palette, _written(b"IDAT", zlib.compress(raw, 0)), _written(b"IEND", b"")]
    with opened(io.BytesIO(b"".join(parts))) as image:
        image.load()
    return image


def _to_pixels(stream: IO[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The chunks that decide how pixels are read (as bytes to copy), and the compressed pixels piece by piece."""
    stream.seek(len(_SIGNATURE))
    kept = b""
    while True:
        length, kind = _chunk(stream)
        if kind == b"IDAT":
            break
        if kind in (b"PLTE", b"tRNS") and length <= 768:
            kept += _written(kind, stream.read(length))
            stream.seek(4, io.SEEK_CUR)
        else:
            stream.seek(length + 4, io.SEEK_CUR)

    def pieces() -> Iterator[bytes]:
        left, of = length, b"IDAT"
        while of == b"IDAT":
            while left:
                data = stream.read(min(left, 1 << 20))
                if not data:
                    return
                left -= len(data)
                yield data
            stream.seek(4, io.SEEK_CUR)  # Pillow does not look at these checksums either
            left, of = _chunk(stream)

    return kept, pieces()


def _chunk(stream: IO[bytes]) -> tuple[int, bytes]:
    head = stream.read(8)
    if len(head) < 8:
        raise OSError("the file ends before its pixels do")
    length, kind = struct.unpack(">I4s", head)
    return length, kind


def _written(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---------------------------------------------------------------------------------------------------------------- TIFF

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 256, 257, 258, 259, 262, 277, 284
_STRIPS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_COPIED = (_BITS, _COMPRESSION, _PHOTOMETRIC, 266, _SAMPLES, _PLANAR, 317, 320, _TILE_WIDTH, _TILE_HEIGHT, 338, 339, 347, 530)
"""Tags that decide how pixels are read: also FillOrder, Predictor, ColorMap, ExtraSamples, SampleFormat, JPEGTables, YCbCrSubSampling."""
_YCBCR, _JPEG = 6, 7


def _tiff_bands(image: Any, path: Path) -> Iterator[Image.Image] | None:
    tags = {int(k): image.tag_v2[k] for k in (*_COPIED, _STRIPS, _ROWS_PER_STRIP, _STRIP_BYTES, _TILES, _TILE_BYTES)
            if k in image.tag_v2}  # fmt: skip
    bits = tags.get(_BITS, (1,))
    if tags.get(_PLANAR, 1) != 1 and len(bits) > 1:
        return None
    if tags.get(_COMPRESSION, 1) == 6 or (tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_COMPRESSION) != _JPEG):
        return None  # these need further tags, or the neighbouring strip
    tiled = _TILES in tags
    offsets, sizes = (tags.get(k, ()) for k in ((_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)))
    width, height = stored_size(image)
    unit = int(tags.get(_TILE_HEIGHT, 0) if tiled else min(tags.get(_ROWS_PER_STRIP, height), height))
    across = math.ceil(width / tags[_TILE_WIDTH]) if tiled and tags.get(_TILE_WIDTH) else 1
    if unit < 1 or not len(offsets) == len(sizes) == across * math.ceil(height / unit):
        return None
    if not tiled and unit * width > BAND and tags.get(_COMPRESSION, 1) == 1:  # uncompressed rows can be reached one by one
        row = math.ceil(width * sum(bits) / 8)
        offsets = [offsets[y // unit] + (y % unit) * row for y in range(height)]
        sizes, unit = [row] * height, 1
    if unit >= height:
        return None
    return _picked(path, (width, height), tags, image.tag_v2.prefix, offsets, sizes, unit, across)


def _picked(
    path: Path, size: tuple[int, int], tags: dict[int, Any], order: bytes, offsets: Any, sizes: Any, unit: int, across: int
) -> Iterator[Image.Image]:
    units = max(1, BAND // (unit * size[0]))
    with open_file(path) as stream:
        for first in range(0, math.ceil(size[1] / unit), units):
            last = min(first + units, math.ceil(size[1] / unit))
            blocks = []
            for k in range(first * across, last * across):
                stream.seek(offsets[k])
                blocks.append(stream.read(sizes[k]))
            rows = min(size[1], last * unit) - first * unit
            with opened(io.BytesIO(_small_tiff(tags, order, size[0], rows, unit, blocks))) as band:
                band.load()
            yield band


def _small_tiff(tags: dict[int, Any], order: bytes, width: int, height: int, unit: int, blocks: list[bytes]) -> bytes:
    sign = "<" if order == b"II" else ">"
    places, position = [], 8
    for block in blocks:
        places.append(position)
        position += len(block)
    values: dict[int, Any] = {k: v for k, v in tags.items() if k in _COPIED} | {_WIDTH: width, _HEIGHT: height}
    sizes = [len(b) for b in blocks]
    values |= {_TILES: places, _TILE_BYTES: sizes} if _TILES in tags else {_STRIPS: places, _STRIP_BYTES: sizes, _ROWS_PER_STRIP: unit}
    wide = {_WIDTH, _HEIGHT, _STRIPS, _STRIP_BYTES, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES}
    directory = position + position % 2
    beyond = directory + 2 + 12 * len(values) + 4
    entries, extra = b"", b""
    for tag, value in sorted(values.items()):
        if isinstance(value, bytes):
            kind, count, data = 7, len(value), value
        else:
            numbers = [value] if isinstance(value, int) else list(value)
            kind, count = (4, len(numbers)) if tag in wide else (3, len(numbers))
            data = struct.pack(f"{sign}{count}{'L' if kind == 4 else 'H'}", *numbers)
        if len(data) > 4:
            place = beyond + len(extra)
            extra += data + b"\0" * (len(data) % 2)
            data = struct.pack(f"{sign}L", place)
        entries += struct.pack(f"{sign}HHL", tag, kind, count) + data.ljust(4, b"\0")
    head = order + struct.pack(f"{sign}HL", 42, directory)
    return b"".join(
        [head, *blocks, b"\0" * (position % 2), struct.pack(f"{sign}H", len(values)), entries, struct.pack(f"{sign}L", 0), extra]
    )
