"""Opening pictures: every failure to decode becomes one error type, and every picture becomes 8-bit RGB.

EXIF orientation is not applied: annotations of aerial sets are made on the stored pixels.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .errors import CCDiffError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    MemoryError,
    EOFError,
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
        UnreadablePicture: it is not a picture.
    """
    return _open(path, lambda image: image.size)


def read_rgb(path: str | Path) -> Image.Image:
    """The whole picture as 8-bit RGB; 16-bit pictures are scaled to 8 bits, alpha is dropped.

    Raises:
        CCDiffError: the file is missing.
        UnreadablePicture: it does not decode (truncated, not a picture, a decompression bomb).
    """
    return _open(path, _to_rgb)


def read_stored(path: str | Path) -> tuple[Image.Image, bool]:
    """As :func:`read_rgb`, and whether the file itself stores 8-bit RGB, so that it can be copied as it is."""
    return _open(path, lambda image: (_to_rgb(image), image.mode == "RGB"))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey levels
        return image.point(lambda v: v / 256).convert("L").convert("RGB")
    return image.convert("RGB")


def _open(path: str | Path, use):
    if not Path(path).is_file():
        raise CCDiffError("the picture does not exist", where=path, fix="restore the file, or take it out of the labels")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large scenes are expected
            with Image.open(path) as image:
                return use(image)
    except _UNREADABLE as error:
        raise UnreadablePicture(f"the picture does not decode: {error}", where=path, fix="replace the file") from error
