"""The pictures of an export: copied, linked, or encoded anew.

Copies share nothing with the set: a tool that rewrites a picture in place (some resize or repair the pictures they train on) leaves the
set whole.  Where the file system can, a copy is a reflink, which takes no room until one of the two is changed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from ..errors import CCDiffError, os_errors
from ..files import copy_file, link_file, write_bytes
from ..pictures import open_picture, read_header, read_rgb
from .common import PICTURE_FORMATS, Job

_MOST = {"jpeg": 65_535, "webp": 16_383}
"""The longest side that the format can say."""


def place_picture(job: Job, picture: Path, target: Path) -> bool:
    """Bring a picture to its place in the export, whole or not at all; one that stands there already stays.

    Returns:
        Whether it shares its file with the set.

    Raises:
        CCDiffError: it cannot be read, or not be written.
    """
    encoded = _encoded(job, picture)
    if target.exists():
        return os.path.samefile(picture, target)
    if encoded is None and job.options.link:
        return link_file(picture, target)
    if encoded is None:
        copy_file(picture, target)
    else:
        write_bytes(target, encoded, durable=False)
    return False


def picture_bytes(job: Job, picture: Path) -> bytes:
    """A picture as it is written, where it is no file of its own."""
    encoded = _encoded(job, picture)
    if encoded is not None:
        return encoded
    with os_errors(picture, "read the picture"):
        return picture.read_bytes()


def _encoded(job: Job, picture: Path) -> bytes | None:
    """The picture in the format that the user chose; None where its own bytes are that already, or none is chosen."""
    if read_header(picture).tagged:  # only in sets of versions that copied the tag
        raise CCDiffError(
            "the picture has an EXIF orientation, by which programs that obey it would turn it away under its labels",
            where=picture,
            fix="prepare the set again: the picture is turned, or kept as it is stored (--exif keep), and the tag dropped",
        )
    format = job.options.picture_format
    if format is None:
        return None
    with open_picture(picture) as image:
        if image.format == format.upper():
            return None
        if max(image.size) > _MOST.get(format, max(image.size)):
            raise CCDiffError(
                f"{image.width} x {image.height} pixels do not fit into a {format} file",
                where=picture,
                fix=f"at most {_MOST[format]} a side: choose another --picture-format",
            )
    stream = io.BytesIO()
    read_rgb(picture).save(stream, format.upper(), **_settings(job))
    lossless = format == "png" or (format == "webp" and job.options.quality is None)
    job.lost[f"pixels of pictures encoded as {format} (quality {_settings(job).get('quality')})"] += not lossless
    return stream.getvalue()


def _settings(job: Job) -> dict[str, Any]:
    quality = job.options.quality
    if job.options.picture_format == "jpeg":
        return {"quality": quality or 95, "subsampling": 0}
    if job.options.picture_format == "webp":
        return {"lossless": True} if quality is None else {"quality": quality}
    return {}


def suffix_of(job: Job, picture: Path) -> str:
    """The extension of a picture's name in the export."""
    return PICTURE_FORMATS[job.options.picture_format] if job.options.picture_format else picture.suffix
