"""The labelled objects: each is painted from outlines in its own frame, casts its shadow and labels what was painted.

Functions return False, having painted nothing, where the object does not fit wholly into the picture or the place is taken.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from .canvas import SHIFT, Canvas, Colour, Spot, arc, box, mirror, rounded, turned


def airplane(c: Canvas, centre: Spot, angle: float, length: float, kind: str) -> bool:
    """An aircraft seen from above, nose along ``angle``; its outline is the union of fuselage, wings and tailplane."""
    rng = c.rng
    span = {"jet": 0.94, "heavy": 0.98, "prop": 1.12}[kind]
    body = {"jet": 0.058, "heavy": 0.056, "prop": 0.06}[kind]
    half = [
        (0.5, 0.0),
        (0.49, 0.35 * body),
        (0.465, 0.68 * body),
        (0.42, 0.93 * body),
        (0.36, body),
        (-0.2, body),
        (-0.36, 0.7 * body),
        (-0.5, 0.14 * body),
    ]
    fuselage = mirror(half)
    if kind == "prop":
        wing = [(0.13, 0), (0.12, 0.5 * span), (0.04, 0.5 * span), (0.0, 0.0)]
        tail = [(-0.38, 0), (-0.4, 0.2), (-0.47, 0.2), (-0.49, 0)]
        engines = [(0.17, 0.17), (0.17, -0.17)]
    else:
        wing = [(0.15, 0.0), (0.1, body), (-0.15, 0.5 * span), (-0.205, 0.5 * span), (-0.1, 0.16), (-0.11, 0.0)]
        tail = [(-0.37, 0.0), (-0.385, 0.4 * body), (-0.475, 0.185), (-0.515, 0.185), (-0.49, 0.0)]
        engines = [(0.055, 0.165), (0.055, -0.165)] if kind == "jet" else [(0.06, 0.15), (0.06, -0.15), (-0.05, 0.29), (-0.05, -0.29)]
    shape = {
        name: turned(points, centre, angle, length) for name, points in (("body", fuselage), ("wing", mirror(wing)), ("tail", mirror(tail)))
    }
    pod = mirror([(0.05, 0), (0.045, 0.024), (-0.05, 0.02), (-0.06, 0)])
    pods = [turned(pod + np.array(place), centre, angle, length) for place in engines]
    outline = np.concatenate([*shape.values(), *pods])
    local = turned(outline - np.asarray(centre), angle=-angle)
    (x1, y1), (x2, y2) = local.min(axis=0), local.max(axis=0)
    if not c.free(turned([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], centre, angle), 2):
        return False
    for part in (*shape.values(), *pods):
        c.cast(part, 0.085 * length)
    paint = np.asarray(c.pick([(236, 237, 238), (222, 225, 228), (240, 238, 232), (198, 203, 208)]), float)
    livery = c.pick([(36, 62, 120), (170, 40, 44), (40, 110, 120), (230, 150, 40), (60, 60, 66), (232, 234, 236)])
    across = np.array([-math.sin(angle), math.cos(angle)])
    sunward = -float(np.sign(across @ c.sun)) or 1.0
    for pod in pods:
        c.fill(pod, paint * 0.72)
    c.fill(shape["wing"], paint * 0.9)
    if kind != "prop":  # flaps and the leading edge
        for side in (-1, 1):
            c.line(turned([(-0.1, 0.16 * side), (-0.19, 0.5 * span * side)], centre, angle, length), paint * 0.66, 0.6)
            c.line(turned([(0.1, body * side), (-0.15, 0.5 * span * side)], centre, angle, length), np.minimum(paint * 1.06, 255), 0.7)
    c.fill(shape["tail"], paint * 0.9)
    c.fill(shape["body"], paint)
    shaded = np.array(
        [(0.44, 0.92), (0.36, 1.0), (-0.2, 1.0), (-0.36, 0.7), (-0.5, 0.14), (-0.5, 0.0), (-0.36, 0.35), (-0.2, 0.42), (0.36, 0.42)]
    ) * [1, body]
    c.veil(turned(shaded * [1, -sunward], centre, angle, length), (90, 96, 108), 0.55)
    if rng.random() < 0.5:
        c.veil(turned(box(0.12, 2 * body * 0.9, -0.32), centre, angle, length), livery, 0.75)
    fin = turned([(-0.32, 0.0), (-0.51, 0.012), (-0.51, -0.012)], centre, angle, length)
    c.cast(fin, 0.12 * length)
    c.fill(fin, np.asarray(livery, float))
    c.fill(
        turned([(0.468, 0.4 * body), (0.468, -0.4 * body), (0.452, -0.55 * body), (0.452, 0.55 * body)], centre, angle, length),
        (46, 50, 58),
    )
    c.label("airplane", outline, centre, angle)
    return True


def ship(c: Canvas, centre: Spot, angle: float, length: float, kind: str, *, wake: bool) -> bool:
    """A ship, bow along ``angle``: a boat, a container carrier, a tanker or a bulk carrier."""
    rng = c.rng
    beam = length * (rng.uniform(0.26, 0.34) if kind == "boat" else rng.uniform(0.15, 0.2))
    b = beam / 2 / length
    hull = turned(
        mirror([(0.5, 0.0), (0.47, 0.35 * b), (0.42, 0.68 * b), (0.33, 0.95 * b), (0.25, b), (-0.44, b), (-0.5, 0.8 * b)]),
        centre,
        angle,
        length,
    )
    if not c.free(turned(box(length, beam), centre, angle), 1 if kind == "boat" else 3):
        return False
    if wake:
        foam = (206, 216, 220)
        tail, strength = rng.uniform(0.8, 2.2), rng.uniform(0.5, 1.0)
        for i in range(9):  # the wash astern widens and fades
            x = -0.4 - tail * i / 9
            wash = mirror([(x, (0.6 + 0.1 * i) * b), (x - 1.25 * tail / 9, (0.7 + 0.1 * i) * b)])
            c.veil(
                turned(wash, centre, angle, length), foam, strength * 0.5 * (1 - i / 9) ** 1.5 * rng.uniform(0.75, 1.2), blur=0.9 + 0.2 * i
            )
        for side in (-1, 1):  # the bow wave's two arms
            for i in range(7):
                x, y = 0.44 - 0.26 * i, (0.45 + 0.42 * i) * b
                arm = [(x, side * y), (x - 0.3, side * (y + 0.5 * b)), (x - 0.3, side * (y + 0.3 * b)), (x, side * (y - 0.2 * b))]
                c.veil(
                    turned(arm, centre, angle, length),
                    foam,
                    strength * 0.6 * (1 - i / 7) ** 1.3 * rng.uniform(0.7, 1.2),
                    blur=0.6 + 0.1 * i,
                )
    else:
        c.veil(hull, (20, 28, 34), 0.5, blur=1.0)
    c.cast(hull, 0.06 * length if kind != "boat" else 0.08 * length)

    def part(points: Any, colour: Colour, height: float = 0.0) -> None:
        placed = turned(points, centre, angle, length)
        if height:
            c.cast(placed, height * length)
        c.fill(placed, colour)

    if kind == "boat":
        paint = c.vary(c.pick([(236, 238, 240), (222, 226, 230), (190, 198, 206), (232, 224, 206)]), 6)
        c.fill(hull, paint)
        part(mirror([(0.36, 0), (0.28, 0.6 * b), (-0.4, 0.66 * b), (-0.42, 0)]), np.asarray(paint) * 0.86)
        part(mirror([(0.2, 0), (0.16, 0.5 * b), (-0.14, 0.6 * b), (-0.16, 0)]), c.vary((244, 245, 246), 4), 0.05)
        part(mirror([(0.17, 0), (0.13, 0.44 * b), (0.07, 0.5 * b), (0.08, 0)]), (52, 62, 76))
        part(box(0.2, 1.1 * b, -0.32), c.pick([(150, 118, 84), (186, 186, 184), (60, 84, 120)]))
    else:
        dark = np.asarray(c.pick([(140, 52, 44), (52, 62, 76), (96, 40, 38), (60, 96, 82), (112, 118, 124), (34, 60, 100)]), float)
        c.fill(hull, dark * 0.8)
        inner = mirror([(0.47, 0.0), (0.44, 0.32 * b), (0.32, 0.74 * b), (0.24, 0.84 * b), (-0.44, 0.84 * b), (-0.48, 0.6 * b)])
        deck = c.pick([(150, 84, 70), (116, 122, 120), (96, 120, 104), (162, 158, 148)])
        part(inner, c.vary(deck))
        if kind == "container":
            for x in np.arange(-0.26, 0.36, 0.075):
                rows = 5
                for j in range(rows):
                    if rng.random() < 0.9:
                        y = (j - (rows - 1) / 2) * 1.5 * b / rows
                        part(
                            box(0.066, 1.4 * b / rows, x, y),
                            c.vary(c.pick([(170, 60, 52), (54, 92, 146), (196, 196, 192), (70, 124, 96), (204, 140, 60), (120, 70, 56)])),
                        )
        elif kind == "tanker":
            part(box(0.66, 0.12 * b, 0.06), (196, 188, 176))
            for x in (-0.12, 0.04, 0.2):
                part(box(0.02, 1.3 * b, x), (200, 196, 186))
            part(box(0.07, 0.9 * b, 0.06), (176, 170, 160))
        else:
            for x in np.arange(-0.2, 0.36, 0.135):
                part(box(0.1, 1.1 * b, x), c.vary((186, 176, 160), 6), 0.012)
        part(box(0.1, 1.5 * b, -0.36), c.vary((232, 233, 232), 4), 0.07)
        part(box(0.04, 1.0 * b, -0.34), c.vary((206, 208, 208), 4))
        part(box(0.05, 0.5 * b, -0.44), c.pick([(60, 60, 64), (170, 60, 44), (40, 70, 120)]), 0.06)
    c.label("ship", hull, centre, angle)
    return True


def tank(c: Canvas, centre: Spot, radius: float, colour: Colour, *, floating: bool, height: float) -> bool:
    """A cylindrical storage tank with a cone roof or a floating one."""
    x, y = centre
    rim = arc(x, y, radius, n=64)[:-1]
    if not c.free(arc(x, y, radius * 1.05), 3):
        return False
    paint = np.asarray(colour, float)
    c.cast(rim, height)
    c.fill(rim, paint * 0.8)
    toward = -c.sun
    if floating:
        c.fill(arc(x, y, radius * 0.93), paint * 0.72)
        sink = min(height, radius * 0.55)  # the wall's own shadow lies on the sunken roof
        lit_x, lit_y = np.asarray(centre) + c.sun * sink * 0.8
        window = arc(lit_x, lit_y, radius * 0.93)
        c.veil(arc(x, y, radius * 0.93), (30, 34, 42), 0.5)
        inside = np.zeros((c.n, c.n), np.uint8)
        other = np.zeros((c.n, c.n), np.uint8)
        cv2.fillPoly(inside, [c.fixed(arc(x, y, radius * 0.92))], 255.0, cv2.LINE_AA, SHIFT)
        cv2.fillPoly(other, [c.fixed(window)], 255.0, cv2.LINE_AA, SHIFT)
        c.blend((0, 0), cv2.min(inside, other), paint * 0.86)
        c.line(arc(x, y, radius * 0.7), paint * 0.7, 0.6, closed=True, opacity=0.5)
    else:
        steps = 16
        start = math.atan2(toward[1], toward[0])
        for i in range(steps):  # sectors of the cone, lit by where they face
            a, b = start + 2 * math.pi * i / steps, start + 2 * math.pi * (i + 1.1) / steps
            lit = 0.9 + 0.1 * math.cos((a + b) / 2 - start)
            c.fill(np.concatenate([[[x, y]], arc(x, y, radius * 0.95, a, b, 6)]), np.clip(paint * lit, 0, 255))
        c.line(arc(x, y, radius * 0.95), np.minimum(paint * 1.05, 255), 0.7, closed=True, opacity=0.7)
        c.fill(arc(x, y, max(1.0, radius * 0.07)), paint * 0.66)
        spot = np.asarray(centre) + radius * 0.75 * np.array([math.cos(c.theta), math.sin(c.theta)])
        c.fill(arc(spot[0], spot[1], max(0.8, radius * 0.05)), paint * 0.6)
    stair = arc(x, y, radius * 1.02, c.theta + 1, c.theta + 2.1, 12)
    c.line(stair, (120, 120, 120), 0.8)
    c.label("storagetank", rim, centre, 0.0)  # round: its box has no direction of its own
    return True


def tennis_court(c: Canvas, centre: Spot, angle: float, length: float, inner: Colour, *, worn: float) -> None:
    """The marked court: its outline is the doubles rectangle (23.77 m x 10.97 m)."""
    m = length / 23.77
    width = 10.97 * m
    outline = turned(box(length, width), centre, angle)
    c.fill(outline, inner)
    white, thick = np.asarray((238, 240, 238)) * worn + np.asarray(inner) * (1 - worn), 0.9

    def mark(points: Any) -> None:
        c.line(turned(points, centre, angle, m), white, thick)

    inset = thick / 2 / m
    border = box(23.77 - 2 * inset, 10.97 - 2 * inset)
    mark(np.concatenate([border, border[:1]]))
    for y in (-4.115, 4.115):
        mark([(-11.885, y), (11.885, y)])
    for x in (-6.4, 6.4):
        mark([(x, -4.115), (x, 4.115)])
    mark([(-6.4, 0), (6.4, 0)])
    net = turned([(0, -6.0), (0, 6.0)], centre, angle, m)
    c.line(net + c.sun * 0.8, (20, 24, 26), 0.7, opacity=0.5)
    c.line(net, (52, 56, 58), 0.7)
    c.label("tenniscourt", outline, centre, angle)


def basketball_court(c: Canvas, centre: Spot, angle: float, length: float, floor: Colour, key: Colour, *, worn: float) -> None:
    """The marked court: its outline is the boundary (28 m x 15 m)."""
    m = length / 28.0
    outline = turned(box(length, 15 * m), centre, angle)
    c.fill(outline, floor)
    white, thick = np.asarray((236, 237, 234)) * worn + np.asarray(floor) * (1 - worn), 0.85

    def mark(points: Any, closed: bool = False) -> None:
        c.line(turned(points, centre, angle, m), white, thick, closed=closed)

    for side in (-1, 1):
        c.fill(turned(box(5.8, 4.9, side * (14 - 2.9)), centre, angle, m), key)
    c.fill(turned(arc(0, 0, 1.8), centre, angle, m), key)
    inset = thick / 2 / m
    mark(box(28 - 2 * inset, 15 - 2 * inset), closed=True)
    mark([(0, -7.5), (0, 7.5)])
    mark(arc(0, 0, 1.8), closed=True)
    for side in (-1, 1):
        mark(box(5.8, 4.9, side * (14 - 2.9)), closed=True)
        three_points = arc(12.425, 0, 6.75, math.radians(102), math.radians(258), 30)
        mark(np.concatenate([[[14.0, 6.6]], three_points, [[14.0, -6.6]]]) * [side, 1])
        mark(arc(8.2, 0, 1.8, math.radians(90), math.radians(270), 16) * [side, 1])
        board = turned(box(0.5, 1.8, side * 12.9), centre, angle, m)
        c.cast(board, 3.2 * m)
        c.fill(board, (226, 226, 226))
    c.label("basketballcourt", outline, centre, angle)


_CAR_PAINT = [
    (232, 233, 234),
    (196, 198, 202),
    (150, 154, 160),
    (36, 38, 42),
    (62, 66, 72),
    (140, 34, 36),
    (42, 66, 116),
    (176, 164, 140),
    (46, 80, 66),
]
_CAR_SHARE = [0.26, 0.17, 0.14, 0.14, 0.09, 0.08, 0.07, 0.03, 0.02]


def vehicle(c: Canvas, centre: Spot, angle: float, length: float, kind: str = "car") -> bool:
    """A car, van or lorry, front along ``angle``; ``length`` is a car's, others are longer."""
    stretch, breadth, height = {"car": (1.0, 0.43, 0.26), "van": (1.16, 0.46, 0.42), "lorry": (1.75, 0.5, 0.6)}[kind]
    width, length = length * breadth, length * stretch
    outline = turned(rounded(length, width, min(length, width) * (0.22 if kind == "car" else 0.1)), centre, angle)
    if not c.free(turned(box(length, width), centre, angle), 1):
        return False
    c.veil(outline, (12, 13, 16), 0.45, blur=0.7)
    c.cast(outline, length / stretch * height)
    paint = np.asarray(c.vary(c.pick(_CAR_PAINT, _CAR_SHARE), 6))
    across = np.array([-math.sin(angle), math.cos(angle)])

    def part(points: Any, colour: Colour) -> None:
        c.fill(turned(np.asarray(points) * [length, width], centre, angle), np.clip(colour, 0, 255))

    glass = np.array((34, 42, 52)) + 18 * (1 - paint.mean() / 255)
    c.fill(outline, paint * 0.94)
    side = -1.0 if float(across @ c.sun) < 0 else 1.0  # the flank away from the sun
    if kind == "lorry":
        part(box(0.68, 0.98, -0.155), np.asarray(c.vary(c.pick([(226, 226, 224), (178, 182, 186), (150, 120, 84), (60, 92, 130)]), 6)))
        part(box(0.68, 0.12, -0.155, side * 0.43), np.array((120, 122, 126)))
        part(box(0.035, 0.98, 0.2), np.array((30, 32, 36)))
        part(box(0.06, 0.8, 0.42), glass)
    else:
        part(box(0.28, 0.86, 0.34), paint)
        part([(0.24, -0.42), (0.24, 0.42), (0.12, 0.36), (0.12, -0.36)], glass)
        rear = -0.44 if kind == "van" else -0.36
        part([(rear, -0.38), (rear, 0.38), (rear + 0.09, 0.35), (rear + 0.09, -0.35)], glass)
        for flank in (-1, 1):
            part([(0.19, 0.43 * flank), (rear + 0.06, 0.42 * flank), (rear + 0.1, 0.355 * flank), (0.12, 0.355 * flank)], glass * 1.1)
        part(box(0.12 - rear - 0.09, 0.7, (0.12 + rear + 0.09) / 2), np.minimum(paint * 1.06 + 6, 255))
        part(box(0.12 - rear - 0.09, 0.14, (0.12 + rear + 0.09) / 2, side * 0.28), paint * 0.82)
    c.label("vehicle", outline, centre, angle)
    return True
