"""Opening pictures: every failure to decode becomes one error type, and every picture becomes 8-bit RGB.

Notable here:

* What a file stores and what its labels mean may be two things: a :class:`Reading` says how the one becomes the other (turned by the EXIF
  orientation, which bands, which values are black and white).  `prepare` and `inspect` settle it for every picture of a raw set
  (``prepare.pixels``) and keep it in ``Scene.reading``; without one the stored pixels are read, as those of our own sets.
* Sizes here are those of the stored pixels, but for :func:`labelled_size`, which readers of raw sets use where labels are shares of the
  picture: people and their tools label the picture as it is shown.
* NOTE: Pillow turns a TIFF by its tag while it decodes it, and no other format; :func:`decoded` undoes that.
* NOTE: Pillow's own guard against decompression bombs starts at a third of an aerial scene's size.  Ours (``MAX_PIXELS``) takes its place
  while a file is opened, and refuses by what the header says, before a pixel is decoded.
* NOTE: Pillow opens colour pictures of 16 bits as "RGB" and drops the lower eight; a :class:`Header` tells them apart.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from .errors import CCDiffError, UnreadablePicture
from .files import open_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".j2k")
MAX_PIXELS = 500_000_000
"""A scene of 20,000 x 20,000 pixels and some room."""
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
"""What a picture file may hold, whatever its name; Pillow also opens formats that start other programs."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the stored pixels the picture as it is shown (CIPA DC-008, tag 274)."""
_BACK = {**TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_ORIENTATION = 274
_OPENING = threading.Lock()
_STORED: ContextVar[bool] = ContextVar("stored", default=False)
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    MemoryError,
    EOFError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    OverflowError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Reading:
    """How the stored pixels of a file become the picture that its labels mean.

    Attributes:
        orientation: the EXIF orientation by which the pixels are turned; 1: as they are stored.
        raster: read by the raster library (``rasters``), since Pillow does not read the file, or not all of it.
        bands: the file's bands, from 1, that become red, green and blue, or grey; (): all, by the rules of their colour space.
        ranges: a band's values (low, high) that become 0 and 255; (): 8 bits, as they are.
        nodata: the value of pixels that were not measured; they become black, as do those that are no number.
    """

    orientation: int = 1
    raster: bool = False
    bands: tuple[int, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    nodata: float | None = None


AS_STORED = Reading()


@dataclass(frozen=True)
class Header:
    """What a file says of its pixels before one is decoded.

    Attributes:
        size: width and height of the stored pixels.
        format: Pillow's name ("JPEG", "MPO", "TIFF", ...).
        mode: Pillow's name of the colour space; "" where Pillow does not read the file, so that it takes the raster library.
        bands: how many.
        kind: of their values, as numpy says it ("uint8", "uint16", "float32", ...).
        orientation: EXIF's, 1 to 8; 1 where there is none.
        tagged: whether there is a tag that asks for anything but the stored pixels, known or not.
        georeferenced: whether there seems to be a coordinate reference.
        pages: pictures in the file, of which the first is read; smaller copies of it and masks do not count.
    """

    size: tuple[int, int]
    format: str
    mode: str
    bands: int
    kind: str
    orientation: int = 1
    tagged: bool = False
    georeferenced: bool = False
    pages: int = 1

    @property
    def plain(self) -> bool:
        """Whether Pillow decodes all of it: 8 bits a band or fewer, in a colour space it knows."""
        return bool(self.mode) and self.kind == "uint8"

    def shown(self) -> tuple[int, int]:
        """Width and height of the picture as programs that obey the orientation show it."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_header(path: str | Path) -> Header:
    """What the file says of its pixels.

    Raises:
        CCDiffError: the file is missing.
        UnreadablePicture: it is not a picture, or larger than ``MAX_PIXELS``.
    """
    path = Path(path)
    log = logging.getLogger("PIL")
    if not log.handlers:
        log.addHandler(logging.NullHandler())  # Pillow's complaints become our errors; Python would print them as well
    with _failures(path):
        with open_file(path) as stream:
            head = stream.read(256)
            tags = _tiff_tags(stream, head) if head[:4] in _TIFF_HEADS else None
        try:
            with warnings.catch_warnings(), opened(path) as image:
                warnings.simplefilter("ignore")
                tag = _orientation_tag(image, path)
                size, form, mode, bands = image.size, str(image.format), image.mode, len(image.getbands())
                pages = _pages(image)
        except UnidentifiedImageError:  # bands that Pillow has no name for
            if tags is None:
                raise
            tag, size, form, mode, bands, pages = tags.get(_ORIENTATION, 1), (0, 0), "TIFF", "", 0, 1
        kind = "uint8"
        if tags is not None:
            size, kind, shown_bands, bands = (int(tags[256]), int(tags[257])), _tiff_kind(tags), bands, int(tags.get(277, 1))
            mode = mode if shown_bands >= bands or mode == "P" else ""  # of bands that it has no name for, Pillow reads the first
        elif form == "PNG":
            kind = "uint16" if head[24] == 16 else "uint8"
        elif form == "JPEG2000":
            kind, bands = _jp2_kind(head, bands)
        elif mode.startswith("I"):
            kind = "int32"
        _check_size(size, path)
        georeferenced = form == "JPEG2000" or any(k in (tags or ()) for k in (33550, 34264))
        orientation = tag if type(tag) is int and tag in TURNS else 1
        return Header(size, form, mode, bands, kind, orientation, tag != 1, georeferenced, pages)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the stored pixels, from the header alone. Raises as :func:`read_header`."""
    return read_header(path).size


def stored_size(image: Any) -> tuple[int, int]:
    """Width and height of an opened picture's stored pixels: of a TIFF, Pillow tells those of the turned picture."""
    return (int(image.tag_v2[256]), int(image.tag_v2[257])) if image.format == "TIFF" else image.size


def labelled_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the picture that labels mean: as it is shown, or as it is stored inside :func:`labels_of_stored_pixels`."""
    header = read_header(path)
    return header.size if _STORED.get() else header.shown()


@contextlib.contextmanager
def labels_of_stored_pixels(stored: bool = True) -> Iterator[None]:
    """Inside, labels are taken as those of the stored pixels, whatever orientation a file's EXIF data asks for (`prepare --exif keep`)."""
    token = _STORED.set(stored)
    try:
        yield
    finally:
        _STORED.reset(token)


def read_rgb(path: str | Path, reading: Reading | None = None) -> Image.Image:
    """The whole picture as 8-bit RGB; alpha is dropped.

    Raises:
        CCDiffError: the file is missing; a raster library is needed and not installed.
        UnreadablePicture: it does not decode (truncated, not a picture, a decompression bomb).
    """
    reading = reading or AS_STORED
    if reading.raster:
        from .rasters import read_values

        ((_, values),) = read_values(path, reading.bands)
        return turned(picture_of_values(values, reading), reading)
    with open_picture(path) as image:
        return turned(to_rgb(decoded(image), reading), reading)


def turned(image: Image.Image, reading: Reading) -> Image.Image:
    """The picture turned as ``reading`` says."""
    return image.transpose(TURNS[reading.orientation]) if reading.orientation in TURNS else image


def stored_point(orientation: int, size: tuple[int, int], x: float, y: float) -> tuple[float, float]:
    """Where a point of the turned picture lies in the stored one.

    Args:
        size: width and height of the stored pixels.
    """
    w, h = size
    return {
        2: (w - x, y), 3: (w - x, h - y), 4: (x, h - y), 5: (y, x), 6: (y, h - x), 7: (w - y, h - x), 8: (w - y, x)
    }.get(orientation, (x, y))  # fmt: skip


def to_rgb(image: Image.Image, reading: Reading = AS_STORED) -> Image.Image:
    """A copy as 8-bit RGB, not turned; without a range 16 bits lose the lower eight."""
    if reading.bands or reading.ranges:
        return picture_of_values(values_of(image, reading.bands), reading)
    if image.mode.startswith("I"):
        return image.point(lambda v: v / 256).convert("L").convert("RGB")
    return image.convert("RGB")


def values_of(image: Image.Image, bands: tuple[int, ...] = ()) -> np.ndarray:
    """(height, width, bands) of what a decoded picture stores; palettes and bits become colours."""
    if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "F", "I") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    return values[..., [b - 1 for b in bands]] if bands else values


def picture_of_values(values: np.ndarray, reading: Reading) -> Image.Image:
    """(height, width, 1 or 3) of any numbers as 8-bit RGB, by the reading's ranges."""
    if reading.ranges:
        low, high = np.array(reading.ranges, np.float64).T
        exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
        absent = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        if reading.nodata is not None:
            absent |= values == reading.nodata
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (values.astype(exact) - low.astype(exact)) * (255 / (high - low)).astype(exact)
            values = np.rint(np.clip(np.where(absent, 0, scaled), 0, 255)).astype(np.uint8)
    return Image.fromarray(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else np.ascontiguousarray(values))


FLAT = 8
"""Grey levels (of 255): a picture in which no colour varies by as many shows nothing."""


def is_flat(image: Image.Image) -> bool:
    """Whether an RGB picture has no contrast."""
    return all(high - low < FLAT for low, high in image.getextrema())  # type: ignore[misc]


@contextlib.contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """An opened picture; what goes wrong while it is used counts as its failure to decode.

    Raises: as :func:`read_rgb`.
    """
    with _failures(path), warnings.catch_warnings(), opened(path) as image:
        warnings.simplefilter("ignore")
        _check_size(image.size, path)
        yield image


def decoded(image: Image.Image) -> Image.Image:
    """The decoded pixels as they are stored."""
    asked = _orientation_tag(image) if image.format == "TIFF" else 1  # before it is decoded, which deletes the tag
    image.load()
    return image.transpose(_BACK[asked]) if asked in _BACK else image


def opened(file: str | Path | IO[bytes]) -> Image.Image:
    """``Image.open`` without Pillow's own limits on size, and of known formats alone."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _failures(path: str | Path) -> Iterator[None]:
    if not Path(path).is_file():
        raise CCDiffError("the picture does not exist", where=path, fix="restore the file, or take it out of the labels")
    try:
        yield
    except _UNREADABLE as error:
        raise UnreadablePicture(f"the picture does not decode: {error}", where=path, fix="replace the file") from error


def _check_size(size: tuple[int, int], path: str | Path) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UnreadablePicture(
            f"the picture does not decode: it claims {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,} in all",
            where=path,
            fix="cut it into scenes of at most 20,000 x 20,000 pixels; a small file that claims so much is a decompression bomb",
        )


# ---------------------------------------------------------------------------------------------------- what headers say of pixels


def _orientation_tag(image: Image.Image, path: str | Path = "") -> Any:
    """What the EXIF (or XMP) data says of the orientation; 1 where they say nothing or are broken."""
    try:
        # Pillow would decode a whole PNG to look for data behind its pixels
        found = Image.Image.getexif(image).get(_ORIENTATION)
        if found is None and image.format == "PNG" and path and (data := _png_exif(path)):
            exif = Image.Exif()
            exif.load(data)
            found = exif.get(_ORIENTATION)
    except _UNREADABLE:
        return 1
    return 1 if found is None else found


def _pages(image: Image.Image) -> int:
    """How many pictures a file holds; of a TIFF without overviews and masks (tag 254), and of an MPO one, whose others are previews."""
    if image.format == "MPO":
        return 1
    try:
        count = int(getattr(image, "n_frames", 1))
        if image.format != "TIFF" or count == 1:
            return count
        pages = 0
        for k in range(min(count, 1000)):
            image.seek(k)
            pages += not int(image.tag_v2.get(254, 0)) & 5  # type: ignore[attr-defined]
        return max(1, pages)
    except _UNREADABLE:
        return 1


def _png_exif(path: str | Path) -> bytes:
    """A PNG's eXIf chunk, wherever it lies."""
    with open_file(path) as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return stream.read(min(length, 1 << 20))
            stream.seek(length + 4, 1)
    return b""


_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Classic TIFF and BigTIFF, in both byte orders."""


def _tiff_tags(stream: IO[bytes], head: bytes) -> dict[int, Any]:
    """The tags of a TIFF's first directory that tell its size, bands and place."""
    directory: Any = TiffImagePlugin.ImageFileDirectory_v2(head[:16] if head[2:3] == b"+" or head[3:4] == b"+" else head[:8])
    stream.seek(directory.next)
    directory.load(stream)
    wanted = (256, 257, 258, 274, 277, 33550, 34264, 339)
    return {k: directory[k] for k in wanted if k in directory}


def _tiff_kind(tags: dict[int, Any]) -> str:
    """The kind of a TIFF's values by BitsPerSample and SampleFormat; of several kinds, the widest."""
    bits, formats = (v if isinstance(v, tuple) else (v,) for v in (tags.get(258, 1), tags.get(339, 1)))
    widest = int(max(bits))
    if set(formats) & {5, 6}:
        return "complex"
    if 3 in formats:
        return f"float{widest}"
    sign = "int" if 2 in formats else "uint"
    return f"{sign}{next((n for n in (8, 16, 32, 64) if widest <= n), 64)}"


def _jp2_kind(head: bytes, bands: int) -> tuple[str, int]:
    """Kind and number of bands of JPEG 2000: the image header box, or the SIZ marker of a bare codestream."""
    if (at := head.find(b"ihdr")) >= 0 and len(head) > at + 14:
        bands, depth = struct.unpack(">HB", head[at + 12 : at + 15])
    elif head[:4] == b"\xff\x4f\xff\x51" and len(head) > 42:
        bands, depth = struct.unpack(">HB", head[40:43])
    else:
        return "uint8", bands
    sign, bits = ("int" if depth & 0x80 else "uint"), (depth & 0x7F) + 1
    return ("uint16" if depth == 0xFF else f"{sign}{8 if bits <= 8 else 16 if bits <= 16 else 32}"), bands
