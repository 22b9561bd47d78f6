"""What lies and stands without a label: grounds of procedural texture, trees, buildings, pavements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from .canvas import SHIFT, UNITS, Canvas, Points, Spot, arc, box, mask_units, turned


def ground(c: Canvas, kind: str) -> np.ndarray:
    """A texture (n, n, 3) of some ground."""
    if kind == "grass":
        return c.textured(
            c.vary(c.pick([(92, 108, 62), (78, 98, 58), (112, 118, 76), (84, 104, 72)])),
            9,
            (1.2, 3, 9, 40),
            weights=(1, 1, 0.8, 0.6),
            tint=4,
        )
    if kind == "field":
        base = c.pick([(150, 134, 96), (122, 112, 74), (104, 122, 66), (166, 152, 112)])
        rows = c.textured(c.vary(base), 8, (1.5, 4, 30), tint=4, angle=c.theta + 0.4, stretch=9.0)
        return cv2.addWeighted(rows, 0.75, c.textured(base, 8, (2, 8, 30)), 0.25, 0)
    if kind == "soil":
        return c.textured(
            c.vary(c.pick([(158, 136, 108), (172, 154, 126), (140, 120, 98)])),
            9,
            (1.2, 3, 8, 25, 60),
            weights=(1, 1, 0.8, 0.7, 0.6),
            tint=4,
        )
    if kind == "concrete":
        return c.textured(c.vary(c.pick([(176, 173, 165), (160, 158, 152), (188, 184, 174), (150, 150, 150)])), 4, (1.2, 4, 14, 50), tint=2)
    if kind == "asphalt":
        return c.textured(c.vary(c.pick([(92, 92, 94), (78, 79, 83), (112, 110, 108), (100, 102, 106)])), 4.5, (1.2, 3, 10, 45), tint=2)
    if kind == "water":
        base = c.vary(c.pick([(38, 62, 78), (30, 52, 62), (52, 76, 78), (24, 44, 66), (64, 84, 80)]), 5)
        wind = c.rng.uniform(0, math.pi)
        waves = c.textured(base, 4.5, (1.2, 2.5, 5), tint=3, angle=wind, stretch=3.2)
        swell = c.textured(base, 5, (14, 45, 90), tint=4, angle=wind + 0.3, stretch=2.0)
        return cv2.addWeighted(waves, 0.6, swell, 0.4, 0)
    raise KeyError(kind)


def canopy(c: Canvas) -> np.ndarray:
    """The texture of tree crowns: noise in relief, lit from the sun's side."""
    relief = c.noise((2.2, 4.5, 9), weights=(0.7, 1, 1))
    step = -c.sun * c.k * 1.6
    lit = relief - cv2.warpAffine(relief, np.array([[1, 0, step[0]], [0, 1, step[1]]]), (c.n, c.n), borderMode=cv2.BORDER_REFLECT)
    base = np.asarray(c.vary(c.pick([(58, 78, 46), (48, 68, 42), (72, 88, 52), (66, 76, 48)])), np.float32)
    shade = 1 + 0.26 * lit[..., None] + 0.14 * relief[..., None]
    return np.clip(base * np.clip(shade, 0.35, 1.9) + c.noise((25,))[..., None] * np.array([5, 2, 0], np.float32), 0, 255).astype(np.uint8)


def trees(c: Canvas, spots: Sequence[tuple[float, float, float]]) -> None:
    """Tree crowns (x, y, radius), with their shadows, clear of whatever stands."""
    rng, crowns = c.rng, []
    for x, y, radius in spots:
        lobes = [
            arc(x + rng.normal(0, radius * 0.35), y + rng.normal(0, radius * 0.35), radius * rng.uniform(0.45, 0.75), n=14)
            for _ in range(5)
        ]
        probe = np.zeros_like(c.taken)
        cv2.circle(probe, (round(x), round(y)), round(radius * 1.5), 1, -1)
        if not (probe & c.taken).any():
            crowns.append((lobes, radius))
    if not crowns:
        return
    shadow, mask = np.zeros((c.n, c.n), np.uint8), np.zeros((c.n, c.n), np.uint8)
    for lobes, radius in crowns:
        shift = c.sun * radius * 1.1 * c.reach
        for lobe in lobes:
            for t in (0.0, 0.5, 1.0):
                cv2.fillPoly(shadow, [c.fixed(lobe + shift * t)], 255.0, cv2.LINE_AA, SHIFT)
            cv2.fillPoly(mask, [c.fixed(lobe)], 255.0, cv2.LINE_AA, SHIFT)
    c.blend((0, 0), (shadow * c.darkness).astype(np.uint8), (14, 18, 24))
    c.blend((0, 0), mask, canopy(c))


def wood(c: Canvas, points: Points) -> None:
    """A closed canopy over an area, with the shadow of its edge."""
    c.taken |= mask_units(points)
    for t in (3.0, 6.0, 9.0):
        c.veil(points + c.sun * t * c.reach, (14, 18, 24), 0.35, blur=3)
    c.region(points, canopy(c), rough=5)


def scatter_trees(c: Canvas, count: int, radius: tuple[float, float] = (5, 13)) -> None:
    rng = c.rng
    spots: list[tuple[float, float, float]] = []
    while len(spots) < count:  # in groups and short rows
        x, y = rng.uniform(0, UNITS, 2)
        along = np.array([math.cos(c.theta), math.sin(c.theta)]) * rng.uniform(0.9, 1.6)
        size, row = rng.uniform(*radius), rng.random() < 0.35
        for i in range(int(rng.integers(1, 7))):
            step = along * i * size * 1.7 if row else rng.normal(0, 1.3 * size, 2)
            spots.append((float(x + step[0]), float(y + step[1]), float(size * rng.uniform(0.75, 1.2))))
    trees(c, spots)


def building(c: Canvas, centre: Spot, angle: float, length: float, width: float, *, height: float | None = None) -> bool:
    """A building with its shadow, where there is room; flat or gabled roof."""
    outline = turned(box(length, width), centre, angle)
    middle = np.asarray(centre)
    probe = np.zeros_like(c.taken)
    cv2.fillPoly(probe, [np.round(outline).astype(np.int32)], 1)
    grown: np.ndarray = cv2.dilate(probe, np.ones((7, 7), np.uint8))
    if (grown & c.taken).any():
        return False
    c.taken |= probe
    height = height or c.rng.uniform(8, 16)
    c.cast(outline, height)
    colour = c.vary(c.pick([(186, 184, 180), (150, 92, 74), (132, 128, 124), (206, 204, 200), (122, 110, 100), (168, 150, 130)]))
    if c.rng.random() < 0.45 and width < 45:  # gabled: one side faces the sun
        normal = np.array([-math.sin(angle), math.cos(angle)])
        for side in (-1, 1):
            lit = 1 - 0.2 * float(normal @ c.sun) * side
            c.fill(turned(box(length, width / 2, 0, side * width / 4), centre, angle), np.clip(np.asarray(colour) * lit, 0, 255))
        c.line(turned([[-length / 2, 0], [length / 2, 0]], centre, angle), np.asarray(colour) * 0.8, 0.7)
        for t in np.arange(-length / 2 + 2, length / 2, 3.0):
            c.line(turned([[t, -width / 2], [t, width / 2]], centre, angle), np.asarray(colour) * 0.88, 0.35, opacity=0.6)
    else:
        c.fill(outline, np.clip(np.asarray(colour) * 1.12, 0, 255))
        c.fill(turned(box(length - 3, width - 3), centre, angle), colour)
        for _ in range(int(c.rng.integers(2, 7))):  # plant on the roof
            a, b = c.rng.uniform(2.5, 6, 2)
            x, y = c.rng.uniform(-0.38, 0.38, 2) * [length, width]
            spot = turned(box(a, b, x, y), middle, angle)
            c.cast(spot, 2.5)
            c.fill(spot, c.vary((200, 200, 200), 20))
        for t in np.arange(-length / 2 + 6, length / 2 - 2, 11.0):
            c.line(turned([[t, -width / 2 + 1.5], [t, width / 2 - 1.5]], centre, angle), np.asarray(colour) * 0.93, 0.5, opacity=0.6)
    return True


def slabs(c: Canvas, angle: float, pitch: float, strength: float = 0.5) -> None:
    """Joints of a concrete pavement over the whole picture, and slabs of slightly different age."""
    cells = math.ceil(1.5 * UNITS / pitch) + 2
    tone = c.rng.normal(0, 3.2, (cells, cells)).astype(np.float32)
    step, cos, sin = pitch * c.k, math.cos(angle), math.sin(angle)
    linear = np.array([[cos * step, -sin * step], [sin * step, cos * step]])
    offset = np.array([c.n / 2, c.n / 2]) - linear @ (np.array([cells, cells]) / 2 - 0.5)
    patches = cv2.warpAffine(
        tone, np.concatenate([linear, offset[:, None]], axis=1), (c.n, c.n), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
    )
    c.img = np.clip(c.img.astype(np.float32) + patches[..., None], 0, 255).astype(np.uint8)
    half = cells * pitch / 2
    mask = np.zeros((c.n, c.n), np.uint8)
    for i in range(cells + 1):
        t = -half + i * pitch
        for a, b in (((t, -half), (t, half)), ((-half, t), (half, t))):
            cv2.polylines(mask, [c.fixed(turned([a, b], (128, 128), angle))], False, 255.0 * strength, 1, cv2.LINE_AA, SHIFT)
    c.blend((0, 0), mask, (84, 82, 78))


def stains(c: Canvas, count: int, angle: float) -> None:
    """Tyre rubber, oil and patches."""
    for _ in range(count):
        x, y = c.rng.uniform(0, UNITS, 2)
        shape = turned(box(c.rng.uniform(8, 60), c.rng.uniform(1, 5)), (x, y), angle + c.rng.normal(0, 0.15))
        c.veil(
            shape,
            c.pick([(60, 58, 56), (70, 70, 72), (200, 198, 190)], [0.5, 0.3, 0.2]),
            c.rng.uniform(0.08, 0.25),
            blur=c.rng.uniform(0.5, 2.5),
        )
