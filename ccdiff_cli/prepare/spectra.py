"""What a picture's channels show, told by its colours: natural colour, colour-infrared or panchromatic.

A false-colour composite shows the near infrared in one of its channels, where healthy plants are several times brighter than in visible
light: they come out a red or a green that no natural colour picture has.  In red (the usual order) roads and roofs are cyan beside them.
Whole pictures are judged, not tiles: a tile of nothing but road says little.

NOTE: the limits were read off NWPU VHR-10, whose infrared pictures they tell apart without an error, and off natural pictures of RSICD and
HRSC2016, where green sea beside red roofs comes nearest; see docs/log.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..scene import Scene

COLOUR_INFRARED = "colour-infrared"
PANCHROMATIC = "panchromatic"
SPECTRA = (COLOUR_INFRARED, PANCHROMATIC)
"""What a caption can name; natural colour has no word."""
_BLOCK, _SIDE = 8, 64  # means of so many pixels a side are looked at, of larger ones where there would be more than so many
_GREY = 6  # largest difference of two channels of a pixel without colour (JPEG leaves a little)


def colour_counts(image: Image.Image) -> np.ndarray:
    """How many blocks of pixels are of the telling kinds, int64: all, infrared in red, cyan, infrared in green, without colour.

    Counts of the tiles of one picture can be added.
    """
    factor = min(max(_BLOCK, max(image.size) // _SIDE), min(image.size))
    pixels = np.asarray(image.convert("RGB").reduce(factor)).astype(np.int16)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    kinds = (
        (red - np.maximum(green, blue) > 40) & (blue > green - 12),
        np.minimum(green, blue) - red > 25,
        green - np.maximum(red, blue) > 60,
        pixels.max(-1) - pixels.min(-1) <= _GREY,
    )
    return np.array([red.size, *(int(kind.sum()) for kind in kinds)], np.int64)


def spectrum_of(counts: Sequence[int] | np.ndarray) -> str:
    """One of :data:`SPECTRA`, or "" for natural colour, from the :func:`colour_counts` of a picture."""
    total, infrared_red, cyan, infrared_green, grey = (int(n) for n in counts)
    if total == 0:
        return ""
    if grey >= 0.995 * total:
        return PANCHROMATIC
    in_red = (infrared_red >= 0.02 * total and cyan >= 0.12 * total) or infrared_red >= 0.3 * total
    return COLOUR_INFRARED if in_red or infrared_green >= 0.02 * total else ""


def usual_spectrum(scenes: Sequence[Scene]) -> str:
    """What more than half of the pictures are by their ``provenance["spectrum"]``; "" where that is natural colour, or nothing."""
    [(name, count)] = Counter(str(scene.provenance.get("spectrum", "")) for scene in scenes).most_common(1) or [("", 0)]
    return name if 2 * count > len(scenes) else ""


def asks_for_infrared(scene: Scene) -> bool:
    """Whether a picture of this scene is to be colour-infrared: its provenance or its caption says so."""
    return scene.provenance.get("spectrum") == COLOUR_INFRARED or "infrared" in scene.caption.casefold()
