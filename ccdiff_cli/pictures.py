"""Opening pictures: every failure to decode becomes one error type, and every picture becomes 8-bit RGB.

EXIF orientation is not applied: annotations of aerial sets are made on the stored pixels.

NOTE: Pillow's own guard against decompression bombs starts at a third of an aerial scene's size.  Ours (``MAX_PIXELS``) takes its place
while a file is opened, and refuses by what the header says, before a pixel is decoded.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from .errors import CCDiffError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 500_000_000
"""A scene of 20,000 x 20,000 pixels and some room."""
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What a picture file may hold, whatever its name; Pillow also opens formats that start other programs."""
_OPENING = threading.Lock()
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


class UnreadablePicture(CCDiffError):
    """A picture that exists but does not decode."""


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises:
        CCDiffError: the file is missing.
        UnreadablePicture: it is not a picture, or larger than ``MAX_PIXELS``.
    """
    with open_picture(path) as image:
        return image.size


def stored_mode(path: str | Path) -> str:
    """Pillow's name of what the file stores ("RGB", "L", "I;16", ...), from the header alone. Raises as :func:`picture_size`."""
    with open_picture(path) as image:
        return image.mode


def read_rgb(path: str | Path) -> Image.Image:
    """The whole picture as 8-bit RGB; 16-bit pictures are scaled to 8 bits, alpha is dropped.

    Raises:
        CCDiffError: the file is missing.
        UnreadablePicture: it does not decode (truncated, not a picture, a decompression bomb).
    """
    with open_picture(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy as 8-bit RGB."""
    if image.mode.startswith("I"):  # 16-bit grey levels
        return image.point(lambda v: v / 256).convert("L").convert("RGB")
    return image.convert("RGB")


@contextlib.contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """An opened picture; what goes wrong while it is used counts as its failure to decode.

    Raises: as :func:`read_rgb`.
    """
    if not Path(path).is_file():
        raise CCDiffError("the picture does not exist", where=path, fix="restore the file, or take it out of the labels")
    try:
        with warnings.catch_warnings(), opened(path) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MAX_PIXELS:
                raise UnreadablePicture(
                    f"the picture does not decode: it claims {image.width} x {image.height} pixels, more than {MAX_PIXELS:,} in all",
                    where=path,
                    fix="cut it into scenes of at most 20,000 x 20,000 pixels; a small file that claims so much is a decompression bomb",
                )
            yield image
    except _UNREADABLE as error:
        raise UnreadablePicture(f"the picture does not decode: {error}", where=path, fix="replace the file") from error


def opened(file: str | Path | IO[bytes]) -> Image.Image:
    """``Image.open`` without Pillow's own limits on size, and of known formats alone."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before
