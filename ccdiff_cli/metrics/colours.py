"""Colour statistics of pictures: mean and deviation of the channels, and the radial power spectrum of the grey values.

Notable: the spectrum is the mean over pictures of the power at equal spatial frequency, of the grey picture (Rec. 601) under a Hann
window; a blurred generator loses power at high frequencies, one with a grid of artefacts has a peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..scene import Scene
from .features import Column, read_scene

BANDS = 32


COLOUR_ROWS = {"mean": Column(axes=2), "deviation": Column(axes=2), "spectrum": Column(axes=2)}


def colour_rows(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Per picture: ``mean``, ``deviation`` (N, 3) of R, G, B in 0..255; ``spectrum`` (N, 32), power by band up to half a cycle a pixel."""
    means, deviations, spectra = [], [], []
    for scene in scenes:
        pixels = np.asarray(read_scene(scene), np.float32)
        means.append(pixels.mean((0, 1)))
        deviations.append(pixels.std((0, 1)))
        grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
        band, window, number = _bands(*grey.shape)
        power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2 / (window**2).sum()
        spectra.append(np.bincount(band.ravel(), power.ravel(), minlength=BANDS + 1)[:BANDS] / number)
    return {
        "mean": np.array(means, np.float32),
        "deviation": np.array(deviations, np.float32),
        "spectrum": np.array(spectra, np.float32),
    }


def colour_summary(rows: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over the pictures, and how far they are from those of real ones.

    Returns:
        JSON-able: ``mean`` and ``deviation`` of R, G, B (0..255), ``spectrum`` (dB per band), ``colour_difference`` (root mean square over
        the channels' means), ``contrast_ratio`` (deviation over the real one), ``spectrum_difference`` (dB, root mean square over the
        bands) and ``high_frequency_ratio`` (power above a quarter cycle a pixel over the real one).
    """
    own, other = ({name: value.astype(np.float64).mean(axis=0) for name, value in some.items()} for some in (rows, real))
    decibels = [10 * np.log10(np.maximum(x["spectrum"], 1e-9)) for x in (own, other)]
    half = BANDS // 2
    return {
        "mean": [round(float(v), 2) for v in own["mean"]],
        "deviation": [round(float(v), 2) for v in own["deviation"]],
        "spectrum": [round(float(v), 3) for v in decibels[0]],
        "colour_difference": round(float(np.sqrt(((own["mean"] - other["mean"]) ** 2).mean())), 3),
        "contrast_ratio": round(float(own["deviation"].mean() / max(other["deviation"].mean(), 1e-9)), 4),
        "spectrum_difference": round(float(np.sqrt(((decibels[0] - decibels[1]) ** 2).mean())), 3),
        "high_frequency_ratio": round(float(own["spectrum"][half:].sum() / max(other["spectrum"][half:].sum(), 1e-9)), 4),
    }


@lru_cache(maxsize=8)
def _bands(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Band of every frequency of ``rfft2``, the window, and how many frequencies a band has."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    band = np.minimum((radius / 0.5 * BANDS).astype(np.int64), BANDS)  # beyond half a cycle: the corners, left out
    number = np.maximum(np.bincount(band.ravel(), minlength=BANDS + 1)[:BANDS], 1)
    return band, np.outer(np.hanning(height), np.hanning(width)), number
