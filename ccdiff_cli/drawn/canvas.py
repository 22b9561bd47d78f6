"""The canvas that scenes are painted on: outlines in units, a painter's order, labels kept beside the paint, one sun, one camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

UNITS = 256
"""Side of the plane that a scene is composed on; one unit is one pixel of a picture of 256 px."""
SUPERSAMPLING = 2
SHIFT = 4
"""Fractional bits of the coordinates handed to OpenCV."""

Points = np.ndarray
"""(N, 2) float64 points in units."""
Outline = Sequence[Any] | np.ndarray
"""Points that need not be an array yet."""
Spot = Sequence[float] | np.ndarray
"""A point in units."""
Colour = Sequence[float] | np.ndarray
"""Red, green, blue in 0..255."""


def turned(points: Outline, centre: Spot = (0, 0), angle: float = 0.0, scale: float = 1.0) -> Points:
    """Points scaled, turned by ``angle`` (radians, from x to y) and moved to ``centre``."""
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    return np.asarray(points, dtype=np.float64) @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(centre, dtype=np.float64)


def box(length: float, width: float, x: float = 0.0, y: float = 0.0) -> Points:
    """The corners of a rectangle around (x, y), its length along x."""
    a, b = length / 2, width / 2
    return np.array([[x - a, y - b], [x + a, y - b], [x + a, y + b], [x - a, y + b]])


def arc(x: float, y: float, radius: float, start: float = 0.0, end: float = 2 * math.pi, n: int = 40) -> Points:
    t = np.linspace(start, end, n)
    return np.stack([x + radius * np.cos(t), y + radius * np.sin(t)], axis=1)


def rounded(length: float, width: float, radius: float, x: float = 0.0, y: float = 0.0) -> Points:
    """A rectangle with rounded corners."""
    a, b, q = length / 2 - radius, width / 2 - radius, math.pi / 2
    quarters = [
        arc(x + sx * a, y + sy * b, radius, start * q, (start + 1) * q, 6)
        for sx, sy, start in ((1, 1, 0), (-1, 1, 1), (-1, -1, 2), (1, -1, 3))
    ]
    return np.concatenate(quarters)


def mirror(points: Outline) -> Points:
    """A closed outline symmetric about the x axis, from its half with y >= 0 (first and last point on the axis or near it)."""
    half = np.asarray(points, dtype=np.float64)
    return np.concatenate([half, half[::-1] * [1, -1]])


def mask_units(outline: Points) -> np.ndarray:
    mask = np.zeros((UNITS, UNITS), np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask


class Canvas:
    """A picture in the making: painted in units, labels kept beside the paint."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.k = SUPERSAMPLING * size / UNITS
        self.n = SUPERSAMPLING * size
        self.img = np.zeros((self.n, self.n, 3), np.uint8)
        angle, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(35, 60))
        self.sun = np.array([math.cos(angle), math.sin(angle)])  # where shadows fall
        self.reach = 1 / math.tan(elevation)  # length of a shadow per height
        self.darkness = rng.uniform(0.5, 0.68)
        self.theta = rng.uniform(0, 2 * math.pi)  # the direction that what people built follows
        self.objects: list[dict[str, Any]] = []
        self.taken = np.zeros((UNITS, UNITS), np.uint8)

    # -- labels and room

    def free(self, outline: Points, margin: float = 3.0) -> bool:
        """Whether an outline lies wholly in the picture, on ground that nothing has claimed; claims it if so."""
        if outline.min() < 1.5 or outline.max() > UNITS - 1.5:
            return False
        mask = np.zeros_like(self.taken)
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
        grown: np.ndarray = cv2.dilate(mask, np.ones((2 * int(margin) + 1,) * 2, np.uint8)) if margin else mask
        if (grown & self.taken).any():
            return False
        self.taken |= mask
        return True

    def label(self, category: str, outline: Points, centre: Spot, angle: float) -> None:
        """Keep an object: its OBB is the extent of ``outline`` in the frame turned by ``angle``."""
        local = turned(np.asarray(outline) - np.asarray(centre), angle=-angle)
        (x1, y1), (x2, y2) = local.min(axis=0), local.max(axis=0)
        corners = turned([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], centre, angle)
        hbb = [*outline.min(axis=0), *outline.max(axis=0)]
        ratio = self.size / UNITS
        self.objects.append(
            {"category": category, "corners": [float(v * ratio) for v in corners.ravel()], "hbb": [float(v * ratio) for v in hbb]}
        )

    # -- paint

    def fixed(self, points: Points) -> np.ndarray:
        """Points in OpenCV's fixed-point raster coordinates (whose pixel centres are whole numbers)."""
        return np.round((points * self.k - 0.5) * (1 << SHIFT)).astype(np.int32)

    def fill(self, points: Points, colour: Colour) -> None:
        cv2.fillPoly(self.img, [self.fixed(points)], tuple(map(float, colour)), cv2.LINE_AA, SHIFT)

    def line(self, points: Points, colour: Colour, width: float, *, closed: bool = False, opacity: float = 1.0) -> None:
        """A line of ``width`` units; thinner than the raster's pixel it fades instead."""
        thick = width * self.k
        opacity *= min(1.0, thick)
        pixels = max(1, round(thick))
        if opacity > 0.95:
            cv2.polylines(self.img, [self.fixed(points)], closed, tuple(map(float, colour)), pixels, cv2.LINE_AA, SHIFT)
            return
        self._paint([points], 255.0 * opacity, width, colour, pixels=pixels, closed=closed)

    def veil(self, points: Points, colour: Colour, opacity: float, *, blur: float = 0.0) -> None:
        """A translucent area, its edge softened by ``blur`` units."""
        self._paint([points], 255.0 * opacity, 3 * blur + 1, colour, blur=blur)

    def cover(self, texture: np.ndarray) -> None:
        """Paint everything with a texture (n, n, 3)."""
        self.img[:] = texture

    def region(self, points: Points, texture: np.ndarray, *, rough: float = 0.0) -> None:
        """Fill an area with a texture (n, n, 3); ``rough`` units of noise on its edge."""
        if not rough:
            self._paint([points], 255.0, 1, texture)
            return
        mask = np.zeros((self.n, self.n), np.uint8)
        cv2.fillPoly(mask, [self.fixed(points)], 255.0, cv2.LINE_AA, SHIFT)
        soft = cv2.GaussianBlur(mask, (0, 0), rough * self.k).astype(np.float32) / 255 + 0.16 * self.noise((4, 8, 20))
        self.blend((0, 0), np.clip((soft - 0.5) * 255 * 3 + 127, 0, 255).astype(np.uint8), texture)

    def cast(self, points: Points, height: float) -> None:
        """The shadow of an outline that stands ``height`` units high."""
        shift = self.sun * height * self.reach
        steps = max(2, math.ceil(float(np.hypot(*shift)) * self.k / 2))
        swept = [points + shift * i / steps for i in range(steps + 1)]
        self._paint(swept, 255.0 * self.darkness, 2, (12, 17, 28), blur=0.5)  # the sky still lights a shadow, bluish

    def _paint(
        self, shapes: Sequence[Points], value: float, margin: float, paint: Any, *, blur: float = 0.0, pixels: int = 0, closed: bool = False
    ) -> None:
        """Paint the union of some shapes (lines of ``pixels``, else areas) through a mask no larger than they need."""
        low = np.clip(np.floor((np.min([s.min(axis=0) for s in shapes], axis=0) - margin) * self.k) - 1, 0, self.n).astype(int)
        high = np.clip(np.ceil((np.max([s.max(axis=0) for s in shapes], axis=0) + margin) * self.k) + 1, 0, self.n).astype(int)
        if (high <= low).any():
            return
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        origin = (low << SHIFT).astype(np.int32)
        for shape in shapes:
            if pixels:
                cv2.polylines(mask, [self.fixed(shape) - origin], closed, value, pixels, cv2.LINE_AA, SHIFT)
            else:
                cv2.fillPoly(mask, [self.fixed(shape) - origin], value, cv2.LINE_AA, SHIFT)
        self.blend((int(low[0]), int(low[1])), cv2.GaussianBlur(mask, (0, 0), blur * self.k) if blur else mask, paint)

    def blend(self, corner: tuple[int, int], mask: np.ndarray, paint: Any) -> None:
        """Mix a colour or a texture (n, n, 3) into the picture by a uint8 mask whose first pixel lies at ``corner`` (raster x, y)."""
        columns, rows = (slice(start, start + length) for start, length in zip(corner, mask.shape[::-1], strict=True))
        share = mask.astype(np.float32)[..., None] / 255
        base = self.img[rows, columns].astype(np.float32)
        top = (
            paint[rows, columns].astype(np.float32) if isinstance(paint, np.ndarray) and paint.ndim == 3 else np.asarray(paint, np.float32)
        )
        self.img[rows, columns] = np.clip(base + (top - base) * share + 0.5, 0, 255).astype(np.uint8)

    # -- textures

    def noise(
        self, sizes: Sequence[float], *, weights: Sequence[float] | None = None, angle: float = 0.0, stretch: float = 1.0
    ) -> np.ndarray:
        """(n, n) float32 noise of about unit variance: octaves of the given feature sizes in units, stretched along ``angle``."""
        total, power = np.zeros((self.n, self.n), np.float32), 0.0
        for i, feature in enumerate(sizes):
            weight = weights[i] if weights else 1.0
            if stretch == 1.0:
                cells = math.ceil(UNITS / feature) + 2
                side = math.ceil(self.n * cells * feature / UNITS)
                field = self.rng.standard_normal((cells, cells), dtype=np.float32)
                total += weight * cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC)[: self.n, : self.n]
            else:
                reach = 1.5 * UNITS
                shape = (math.ceil(reach / feature) + 3, math.ceil(reach / feature / stretch) + 3)
                field = self.rng.standard_normal(shape, dtype=np.float32)
                step = self.n * feature / UNITS
                cos, sin = math.cos(angle), math.sin(angle)
                linear = np.array([[cos * step * stretch, -sin * step], [sin * step * stretch, cos * step]])
                offset = np.array([self.n / 2, self.n / 2]) - linear @ (np.array(shape[::-1]) / 2)
                matrix = np.concatenate([linear, offset[:, None]], axis=1)
                total += weight * cv2.warpAffine(field, matrix, (self.n, self.n), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            power += weight**2 * 0.5
        return total / math.sqrt(power)

    def textured(
        self, colour: Colour, amount: float, sizes: Sequence[float] = (1.5, 4, 12, 40), *, tint: float = 3.0, **kwargs: Any
    ) -> np.ndarray:
        """(n, n, 3) uint8: a colour whose brightness varies by about ``amount`` and whose tint drifts over the picture."""
        light = self.noise(sizes, **kwargs)[..., None] * amount
        drift = self.noise((50,))[..., None] * np.array([0.7 * tint, 0, -0.7 * tint], np.float32)
        return np.clip(np.asarray(colour, np.float32) + light * (np.asarray(colour, np.float32) / 128 * 0.6 + 0.5) + drift, 0, 255).astype(
            np.uint8
        )

    def vary(self, colour: Colour, amount: float = 8) -> tuple[float, float, float]:
        """A colour near ``colour``: mostly lighter or darker, a little another tint."""
        change = self.rng.normal(0, amount) + self.rng.normal(0, amount / 3, 3)
        red, green, blue = np.clip(np.asarray(colour, float) + change, 0, 255)
        return float(red), float(green), float(blue)

    def pick(self, options: Sequence[Any], p: Sequence[float] | None = None) -> Any:
        return options[int(self.rng.choice(len(options), p=p))]

    # -- the camera

    def finish(self) -> np.ndarray:
        """The picture (size, size, 3) uint8: haze, light and contrast of the day, the lens' blur, the sensor's noise."""
        rng = self.rng
        blur = rng.uniform(0.35, 0.75) * SUPERSAMPLING
        small = cv2.resize(cv2.GaussianBlur(self.img, (0, 0), blur), (self.size, self.size), interpolation=cv2.INTER_AREA).astype(
            np.float32
        )
        light = cv2.resize(rng.normal(1, 0.03, (4, 4)).astype(np.float32), (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        balance = rng.normal(1, 0.025, 3).astype(np.float32) * rng.uniform(0.86, 1.08)
        haze = rng.uniform(0, 0.12)
        small = small * light[..., None] * balance * (1 - haze) + haze * np.array([150, 158, 166], np.float32)
        grain = rng.standard_normal((self.size, self.size, 3), dtype=np.float32)
        grain = 0.6 * grain + 0.8 * grain.mean(axis=2, keepdims=True)
        return np.clip(small + grain * rng.uniform(1.2, 3.2), 0, 255).astype(np.uint8)
