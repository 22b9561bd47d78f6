"""Colour statistics of pictures: mean and deviation of the channels, and the radial power spectrum of the grey values.

Notable:

* The spectrum is the mean over pictures of the power at equal spatial frequency, of the grey picture (Rec. 601) under a Hann window; a
  blurred generator loses power at high frequencies.
* A network that enlarges by two, and by two again, leaves patterns that repeat every 2, 4 or 8 px; they count as fine detail, and networks
  that judge pictures hardly see them.  So the power at these frequencies is held against that of their neighbours, and this against the
  same of real pictures, which have patterns of their own (blocks of JPEG, edges along the axes).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..scene import Scene
from .features import Column, read_scene

BANDS = 32
Places = tuple[np.ndarray, np.ndarray]


LATTICE = tuple((a / 8, b / 8) for a in range(-3, 5) for b in range(5) if max(abs(a), b) >= 2 and (b or a > 0))
"""Cycles a pixel (down, across) of what repeats every 2, 4 or 8 px, with a period of at most 4 px in one direction."""

COLOUR_ROWS = {name: Column(axes=2) for name in ("mean", "deviation", "spectrum", "lattice", "around")}


def colour_rows(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Per picture: ``mean``, ``deviation`` (N, 3) of R, G, B in 0..255; ``spectrum`` (N, 32), power by band up to half a cycle a pixel;
    ``lattice``, ``around`` (N, M), power at the frequencies of :data:`LATTICE` and beside them."""
    means, deviations, spectra, lattices, arounds = [], [], [], [], []
    for scene in scenes:
        pixels = np.asarray(read_scene(scene), np.float32)
        means.append(pixels.mean((0, 1)))
        deviations.append(pixels.std((0, 1)))
        grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
        band, window, number = _bands(*grey.shape)
        power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2 / (window**2).sum()
        spectra.append(np.bincount(band.ravel(), power.ravel(), minlength=BANDS + 1)[:BANDS] / number)
        at, beside = _lattice(*grey.shape)
        lattices.append(power[at])
        arounds.append([power[places].mean() for places in beside])
    return {
        "mean": np.array(means, np.float32),
        "deviation": np.array(deviations, np.float32),
        "spectrum": np.array(spectra, np.float32),
        "lattice": np.array(lattices, np.float32).reshape(-1, len(LATTICE)),
        "around": np.array(arounds, np.float32).reshape(-1, len(LATTICE)),
    }


def colour_summary(rows: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over the pictures, and how far they are from those of real ones.

    Returns:
        JSON-able: ``mean`` and ``deviation`` of R, G, B (0..255), ``spectrum`` (dB per band), ``colour_difference`` (root mean square over
        the channels' means), ``contrast_ratio`` (deviation over the real one), ``spectrum_difference`` (dB, root mean square over the
        bands), ``high_frequency_ratio`` (power above a quarter cycle a pixel over the real one), ``pattern`` (the most that the power at a
        frequency of :data:`LATTICE` stands out of its neighbours', over what it does in real pictures) and ``pattern_period`` (of that
        frequency, pixels down and across; 0: none).
    """
    own, other = ({name: value.astype(np.float64).mean(axis=0) for name, value in some.items()} for some in (rows, real))
    decibels = [10 * np.log10(np.maximum(x["spectrum"], 1e-9)) for x in (own, other)]
    half = BANDS // 2
    standing = [x["lattice"] / np.maximum(x["around"], 1e-9) for x in (own, other)]
    pattern = standing[0] / np.maximum(standing[1], 1e-9)
    strongest = int(pattern.argmax())
    return {
        "mean": [round(float(v), 2) for v in own["mean"]],
        "deviation": [round(float(v), 2) for v in own["deviation"]],
        "spectrum": [round(float(v), 3) for v in decibels[0]],
        "colour_difference": round(float(np.sqrt(((own["mean"] - other["mean"]) ** 2).mean())), 3),
        "contrast_ratio": round(float(own["deviation"].mean() / max(other["deviation"].mean(), 1e-9)), 4),
        "spectrum_difference": round(float(np.sqrt(((decibels[0] - decibels[1]) ** 2).mean())), 3),
        "high_frequency_ratio": round(float(own["spectrum"][half:].sum() / max(other["spectrum"][half:].sum(), 1e-9)), 4),
        "pattern": round(float(pattern[strongest]), 3),
        "pattern_period": [round(1 / abs(f), 2) if f else 0 for f in LATTICE[strongest]],
    }


@lru_cache(maxsize=8)
def _bands(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Band of every frequency of ``rfft2``, the window, and how many frequencies a band has."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    band = np.minimum((radius / 0.5 * BANDS).astype(np.int64), BANDS)  # beyond half a cycle: the corners, left out
    number = np.maximum(np.bincount(band.ravel(), minlength=BANDS + 1)[:BANDS], 1)
    return band, np.outer(np.hanning(height), np.hanning(width)), number


@lru_cache(maxsize=8)
def _lattice(height: int, width: int) -> tuple[Places, list[Places]]:
    """Where the frequencies of :data:`LATTICE` stand in ``rfft2``, and the places beside each: around it, on an axis along it."""
    apart = max(2, min(height, width) // 24)  # beyond what the window spreads, nearer than the next of them
    ring = [(y, x) for y in range(-apart, apart + 1) for x in range(-apart, apart + 1) if max(abs(y), abs(x)) == apart]

    def places(spots: list[tuple[int, int]]) -> Places:
        down, across = (np.array(values) for values in zip(*spots, strict=True))
        across = across % width
        beyond = across > width // 2  # that half is the other's mirror image
        return np.where(beyond, -down, down) % height, np.where(beyond, width - across, across)

    at, beside = [], []
    for fy, fx in LATTICE:
        y, x = round(fy * height), round(fx * width)
        around = [(dy, dx) for dy, dx in ring if (fy or not dy) and (fx or not dx)]
        at.append((y, x))
        beside.append(places([(y + dy, x + dx) for dy, dx in around]))
    return places(at), beside
