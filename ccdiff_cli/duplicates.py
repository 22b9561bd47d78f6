"""Pictures that show the same thing: a perceptual hash finds candidates, the pictures' thumbnails decide.

* The hash is the 64-bit difference hash (dHash): is each cell of a 9 x 8 grid brighter than the next?  It survives another size, another
  compression, more light; not a turn, nor a shift by more than a few pixels, so overlapping tiles of one picture are not taken for copies.
* All pairs are compared, in blocks of one matrix product: 20,000 pictures take seconds, and nothing depends on how alike they are.
* NOTE: a picture without any structure (open water, a black border tile) is like every other one; such pictures are counted, not compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .pictures import AS_STORED, Reading, UnreadablePicture, decoded, open_picture, read_header, to_rgb, turned
from .prepare import windows

SIDE = 32
"""Side of the thumbnails, pixels."""
MAX_BITS = 8
"""Hashes that differ in more of their 64 bits are those of different pictures."""
MIN_CORRELATION = 0.97
"""Of the thumbnails' grey levels; candidates below it only share their hash."""
MIN_CONTRAST = 4.0
"""Standard deviation of the thumbnail's grey levels, below which a picture has no structure to compare."""
_BLOCK = 1024


@dataclass(frozen=True)
class Look:
    """A picture at a glance.

    Attributes:
        size: width and height in pixels; (0, 0) where it does not decode.
        thumbnail: (SIDE, SIDE) grey levels, uint8.
        bits: the difference hash.
        failure: why it does not decode; "" where it does.
    """

    size: tuple[int, int]
    thumbnail: np.ndarray
    bits: int
    failure: str = ""


def look_at(path: str, reading: Reading | None = None) -> Look:
    """Size, thumbnail and hash of a picture, read as ``reading`` says; one that does not decode has a ``failure`` instead.

    Raises:
        CCDiffError: there is no such file.
    """
    try:
        reading = reading or AS_STORED
        header = read_header(path)
        if reading.raster or (header.size[0] * header.size[1] > windows.WHOLE and header.format not in ("JPEG", "MPO")):
            narrow = [band.resize((SIDE, band.height), Image.Resampling.BOX) for _, band in windows.read_bands(path, reading)]
            small = Image.fromarray(np.concatenate([np.asarray(part) for part in narrow]))
        else:
            with open_picture(path) as image:
                image.draft("L", (2 * SIDE, 2 * SIDE))  # JPEG decodes at a reduced scale, several times as fast
                small = decoded(image)
                small = small if small.mode in ("L", "RGB") and not reading.bands else to_rgb(small, reading)
        grey = turned(small.resize((SIDE, SIDE), Image.Resampling.BOX).convert("L"), reading)
        size = header.size if reading.orientation == 1 else header.shown()
    except UnreadablePicture as error:
        return Look((0, 0), np.zeros((SIDE, SIDE), np.uint8), 0, error.what)
    return Look(size, np.asarray(grey), difference_hash(grey))


def look_at_all(
    paths: Sequence[str], progress: Callable[[str, int, int], None] | None = None, *, readings: Sequence[Reading | None] = ()
) -> list[Look]:
    """:func:`look_at` for many pictures, in threads: the picture library works outside Python's lock."""
    looks = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for look in pool.map(look_at, paths, readings or [None] * len(paths), chunksize=1):
            looks.append(look)
            if progress is not None:
                progress("looking at pictures", len(looks), len(paths))
    return looks


def difference_hash(grey: Image.Image) -> int:
    """The 64-bit dHash of a grey picture."""
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits(cells[:, 1:] > cells[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def alike(looks: Sequence[Look]) -> tuple[list[tuple[int, int, float]], int]:
    """Pairs of pictures that show the same.

    Of pictures with equal thumbnails only the pairs with the first of them are listed, so a thousand copies of one picture are 999 pairs.

    Returns:
        ``[(i, j, correlation), ...]`` with i < j, sorted, and how many pictures were too plain to compare.
    """
    readable = [k for k, look in enumerate(looks) if not look.failure]
    if not readable:
        return [], 0
    thumbnails = np.stack([looks[k].thumbnail for k in readable]).reshape(len(readable), -1)
    contrast = thumbnails.std(axis=1)
    kept = np.flatnonzero(contrast >= MIN_CONTRAST)
    index = np.array(readable)[kept]
    plain = len(readable) - len(kept)
    if not len(kept):
        return [], plain
    _, first, copy_of = np.unique(thumbnails[kept], axis=0, return_index=True, return_inverse=True)
    copy_of = first[copy_of.reshape(-1)]
    pairs = [(int(index[f]), int(index[k]), 1.0) for k, f in enumerate(copy_of) if f != k]

    first = np.sort(first)
    signs = _signs([looks[k].bits for k in index[first]])
    unit = _unit(thumbnails[kept][first])
    for start in range(0, len(first), _BLOCK):
        agreement = signs[start : start + _BLOCK] @ signs[start:].T  # 64 - 2 x differing bits
        rows, columns = np.nonzero(agreement >= 64 - 2 * MAX_BITS)
        rows, columns = rows[columns > rows], columns[columns > rows]
        for part in range(0, len(rows), 1 << 16):  # a bounded number at a time, however alike the pictures are
            r, c = rows[part : part + (1 << 16)] + start, columns[part : part + (1 << 16)] + start
            correlation = np.einsum("ij,ij->i", unit[r], unit[c])
            same = correlation >= MIN_CORRELATION
            found = zip(index[first[r[same]]], index[first[c[same]]], correlation[same], strict=True)
            pairs.extend((int(i), int(j), round(float(value), 4)) for i, j, value in found)
    return sorted(pairs), plain


def alike_across(looks: Sequence[Look], others: Sequence[Look]) -> list[tuple[int, int, float]]:
    """The others that show the same as one of the looks, also flipped or turned by quarters.

    Returns:
        ``[(i, j, correlation), ...]``, ascending by j: for each of the others that is alike, the look it is most like.
    """
    known = [k for k, look in enumerate(looks) if _has_structure(look)]
    tried = [k for k, look in enumerate(others) if _has_structure(look)]
    if not known or not tried:
        return []
    views = np.stack([np.rot90(looks[k].thumbnail, n)[:, :: 1 - 2 * f] for n in range(4) for f in range(2) for k in known])
    signs, unit = _signs([difference_hash(Image.fromarray(v)) for v in views]), _unit(views)
    other_signs, other_unit = _signs([others[k].bits for k in tried]), _unit(np.stack([others[k].thumbnail for k in tried]))
    found = []
    for start in range(0, len(tried), _BLOCK):
        rows, columns = np.nonzero(other_signs[start : start + _BLOCK] @ signs.T >= 64 - 2 * MAX_BITS)
        best: dict[int, tuple[float, int]] = {}
        for part in range(0, len(rows), 1 << 16):
            r, c = rows[part : part + (1 << 16)], columns[part : part + (1 << 16)]
            correlation = np.einsum("ij,ij->i", other_unit[r + start], unit[c])
            for k in np.flatnonzero(correlation >= MIN_CORRELATION):
                j, pair = int(r[k]), (float(correlation[k]), -known[int(c[k]) % len(known)])
                best[j] = max(best.get(j, pair), pair)
        found += [(-i, tried[start + j], round(value, 4)) for j, (value, i) in sorted(best.items())]
    return found


def _has_structure(look: Look) -> bool:
    return not look.failure and float(look.thumbnail.std()) >= MIN_CONTRAST


def _signs(bits: Sequence[int]) -> np.ndarray:
    """(N, 64) of -1 and 1: the product of two rows is 64 - 2 x the bits that differ."""
    return np.unpackbits(np.array(bits, ">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32) * 2 - 1


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """(N, SIDE^2) of mean 0 and length 1: the product of two rows is their correlation."""
    unit = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    unit -= unit.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit
