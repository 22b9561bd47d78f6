"""What is drawn: one function per kind of place, each on an empty canvas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .canvas import UNITS, Canvas, Points, Spot, box, mask_units, turned
from .grounds import building, ground, scatter_trees, slabs, stains, trees, wood
from .objects import airplane, basketball_court, ship, tank, tennis_court, vehicle


def _strip(c: Canvas, centre: Spot, angle: float, offset: float, width: float) -> Points:
    """A band across the whole picture, parallel to ``angle``, its middle ``offset`` units to the side of ``centre``."""
    return turned(box(500, width, 0, offset), centre, angle)


def _apron(c: Canvas) -> None:
    """Aircraft on a concrete apron, with taxi lines, a grass verge and now and then a terminal."""
    rng, angle, middle = c.rng, c.theta, (128.0, 128.0)
    c.cover(ground(c, c.pick(["concrete", "concrete", "asphalt"], [0.5, 0.3, 0.2])))
    slabs(c, angle, rng.uniform(11, 18), rng.uniform(0.2, 0.45))
    stains(c, 14, angle)
    edge = rng.uniform(70, 125)
    style = c.pick(["verge", "terminal", "open"], [0.4, 0.35, 0.25])
    if style == "verge":
        c.region(_strip(c, middle, angle, -edge - 100, 200), ground(c, c.pick(["grass", "soil"])), rough=1.5)
        c.line(turned([(-250, -edge + 3), (250, -edge + 3)], middle, angle), (212, 208, 196), 1.0, opacity=0.8)
        c.taken |= mask_units(_strip(c, middle, angle, -edge - 100, 200))
    elif style == "terminal":
        deep = rng.uniform(28, 50)
        building(
            c, turned([(rng.uniform(-40, 40), -edge)], middle, angle)[0], angle, rng.uniform(120, 210), deep, height=rng.uniform(12, 20)
        )
    yellow = (198, 168, 62)
    taxi = rng.uniform(38, 80)
    c.line(turned([(-250, taxi), (250, taxi)], middle, angle), yellow, 1.1, opacity=0.8)
    heading = angle - math.pi / 2 + (math.pi if rng.random() < 0.2 else 0)
    kind, length = c.pick(["jet", "heavy", "prop"], [0.55, 0.27, 0.18]), rng.uniform(68, 104)
    pitch = length * rng.uniform(1.12, 1.3)
    if rng.random() < 0.65:  # a parked row
        start, line_y = rng.uniform(-0.5, 0.5) * pitch, rng.uniform(-15, 15)
        lean = rng.choice([0.0, 0.0, 0.5]) * rng.choice([-1, 1])
        for i in range(-2, 3):
            spot = turned([(start + i * pitch, line_y)], middle, angle)[0]
            c.line(np.stack([spot, turned([(start + i * pitch, taxi)], middle, angle)[0]]), yellow, 0.9, opacity=0.75)
            if rng.random() < 0.88:
                airplane(c, spot, heading + lean, length * rng.uniform(0.97, 1.03), kind)
        if rng.random() < 0.4:
            airplane(c, turned([(rng.uniform(-60, 60), taxi)], middle, angle)[0], angle + rng.choice([0, math.pi]), length, kind)
    else:
        for _ in range(14):
            if len(c.objects) >= 4:
                break
            kind = c.pick(["jet", "heavy", "prop"], [0.5, 0.25, 0.25])
            airplane(c, rng.uniform(40, 216, 2), rng.uniform(0, 2 * math.pi), length * rng.uniform(0.85, 1.05), kind)
    for _ in range(12):  # a second rank, or a lone visitor
        if len(c.objects) >= 3:
            break
        airplane(c, rng.uniform(36, 220, 2), heading + rng.choice([0, math.pi, 0.5, -0.9]), length * rng.uniform(0.75, 1.0), kind)
    if not c.objects:
        for _ in range(60):
            if airplane(c, rng.uniform(55, 200, 2), rng.uniform(0, 2 * math.pi), 72, kind):
                break


def _sea(c: Canvas) -> None:
    """Ships under way on open water."""
    rng = c.rng
    c.cover(ground(c, "water"))
    wanted = int(rng.integers(2, 6))
    heading = rng.uniform(0, 2 * math.pi)
    for _ in range(60):
        if len(c.objects) >= wanted:
            break
        big = rng.random() < 0.55
        angle = heading + rng.normal(0, 0.25) if rng.random() < 0.6 else rng.uniform(0, 2 * math.pi)
        kind = c.pick(["container", "tanker", "bulk"]) if big else "boat"
        ship(c, rng.uniform(24, 232, 2), angle, rng.uniform(62, 108) if big else rng.uniform(28, 48), kind, wake=rng.random() < 0.85)


def _quay(c: Canvas) -> None:
    """A quay with ships beside it, goods ashore; or a marina's jetties with boats."""
    rng, angle, middle = c.rng, c.theta, (128.0, 128.0)
    c.cover(ground(c, "water"))
    shore = rng.uniform(-40, 10)
    land = _strip(c, middle, angle, shore - 150, 300)
    c.cast(land, 5)
    c.region(land, ground(c, c.pick(["concrete", "asphalt", "soil"], [0.6, 0.25, 0.15])))
    c.line(turned([(-250, shore - 1), (250, shore - 1)], middle, angle), (206, 202, 192), 2.2)
    c.line(turned([(-250, shore - 6), (250, shore - 6)], middle, angle), (120, 118, 112), 0.7, opacity=0.6)
    c.taken |= mask_units(land)
    if rng.random() < 0.55:
        for x in np.arange(-170, 170, 14.0):  # containers and sheds ashore
            for y in np.arange(shore - 22, shore - 150, -13.0):
                if rng.random() < 0.62:
                    spot = turned(box(11.5, rng.choice([4.6, 9.4]), x, y), middle, angle)
                    c.cast(spot, rng.uniform(2, 6))
                    c.fill(
                        spot, c.vary(c.pick([(160, 62, 52), (58, 90, 140), (186, 186, 182), (76, 122, 96), (196, 140, 66), (120, 78, 60)]))
                    )
        position = -130.0 + rng.uniform(0, 30)
        while position < 130:
            length = rng.uniform(70, 112)
            kind = c.pick(["container", "tanker", "bulk"])
            gap = length * 0.1 + 5.5
            spot = turned([(position + length / 2, shore + gap)], middle, angle)[0]
            ship(c, spot, angle + math.pi * int(rng.integers(2)), length, kind, wake=False)
            position += length + rng.uniform(8, 40)
        for _ in range(12):
            if len(c.objects) >= 5:
                break
            ship(c, rng.uniform(20, 236, 2), angle + rng.normal(0, 0.4), rng.uniform(28, 46), "boat", wake=True)
    else:
        c.taken &= 0
        c.taken |= mask_units(land)
        for x in np.arange(-150 + rng.uniform(0, 40), 150, rng.uniform(78, 100)):
            long = rng.uniform(90, 150)
            jetty = turned(box(5, long, x, shore + long / 2), middle, angle)
            c.cast(jetty, 2.5)
            c.fill(jetty, c.vary((176, 168, 152)))
            for t in np.arange(2, long, 3.0):
                c.line(turned([(x - 2.5, shore + t), (x + 2.5, shore + t)], middle, angle), (130, 122, 108), 0.4, opacity=0.5)
            c.taken |= mask_units(jetty)
            berth = rng.uniform(15.5, 19)
            for t in np.arange(14, long - 4, berth):
                for side in (-1, 1):
                    if rng.random() < 0.72:
                        length = rng.uniform(29, 38)
                        spot = turned([(x + side * (5.5 + length / 2), shore + t)], middle, angle)[0]
                        ship(c, spot, angle + (0 if side > 0 else math.pi), length, "boat", wake=False)
        for _ in range(int(rng.integers(1, 4))):
            building(
                c,
                turned([(rng.uniform(-110, 110), shore - rng.uniform(30, 80))], middle, angle)[0],
                angle,
                rng.uniform(30, 60),
                rng.uniform(18, 30),
            )
    if not c.objects:
        for _ in range(60):
            if ship(c, rng.uniform(20, 236, 2), angle, 34, "boat", wake=False):
                break


def _tank_farm(c: Canvas) -> None:
    """Storage tanks in their bunds, with pipes and roads."""
    rng, angle, middle = c.rng, c.theta, (128.0, 128.0)
    c.cover(ground(c, c.pick(["grass", "soil", "concrete"], [0.35, 0.35, 0.3])))
    radius = rng.uniform(14, 38)
    pitch = radius * rng.uniform(2.7, 3.3) + 8
    shift = rng.uniform(-0.5, 0.5, 2) * pitch
    inner = ground(c, c.pick(["concrete", "soil", "grass", "asphalt"]))
    road = (128, 126, 122)
    cells = math.ceil(190 / pitch)
    for i in range(-cells, cells + 1):
        for j in range(-cells, cells + 1):
            bund = turned(box(pitch - 6, pitch - 6, shift[0] + i * pitch, shift[1] + j * pitch), middle, angle)
            if bund.min() < -90 or bund.max() > UNITS + 90:
                continue
            c.region(bund, inner)
            c.line(bund, c.vary((182, 176, 164), 4), 1.8, closed=True)
            c.line(bund + c.sun * 1.3, (60, 58, 54), 0.8, closed=True, opacity=0.4)
    for i in range(-cells, cells + 1, 2):
        c.line(turned([(shift[0] + (i + 0.5) * pitch, -260), (shift[0] + (i + 0.5) * pitch, 260)], middle, angle), c.vary(road, 4), 4.5)
    colour = c.pick(
        [(238, 239, 240), (226, 228, 228), (214, 206, 190), (196, 204, 206), (176, 150, 128), (150, 176, 160)],
        [0.4, 0.2, 0.14, 0.12, 0.07, 0.07],
    )
    floating, height = rng.random() < 0.3, radius * rng.uniform(0.5, 1.1)
    for i in range(-cells, cells + 1):
        for j in range(-cells, cells + 1):
            local = np.array([shift[0] + i * pitch, shift[1] + j * pitch])
            spot = turned([local], middle, angle)[0]
            if spot.min() < -20 or spot.max() > UNITS + 20 or rng.random() > 0.86:
                continue
            for k in range(3):  # pipes to the road
                start, end = local + np.array([radius * 0.9, -3 + k * 2.2]), local + np.array([pitch / 2 + 2, -3 + k * 2.2])
                line = turned([start, end], middle, angle)
                c.line(line + c.sun * 0.9, (50, 50, 50), 0.7, opacity=0.5)
                c.line(line, (196, 196, 194), 0.8)
            r = radius * rng.uniform(0.93, 1.0)
            tank(c, spot, r, c.vary(colour, 5), floating=bool(floating) ^ bool(rng.random() < 0.12), height=height)
    if not c.objects:
        for _ in range(60):
            if tank(c, rng.uniform(40, 216, 2), min(radius, 24), colour, floating=False, height=height):
                break
    scatter_trees(c, int(rng.integers(0, 9)), (4, 8))


_TENNIS_PAINT = (
    ((44, 92, 82), (58, 120, 92)), ((54, 84, 128), (72, 118, 84)), ((164, 88, 64), (80, 116, 82)),
    ((70, 92, 132), (84, 112, 150)), ((88, 122, 88), (150, 92, 74)), ((150, 86, 62), (166, 104, 78)),
)  # fmt: skip
_BASKETBALL_PAINT = (
    ((120, 118, 116), (108, 106, 106)), ((148, 88, 74), (84, 112, 90)), ((78, 104, 136), (120, 70, 62)),
    ((88, 120, 100), (100, 104, 104)), ((166, 128, 92), (92, 110, 98)),
)  # fmt: skip


def _courts(c: Canvas) -> None:
    """Tennis and basketball courts on their surrounds, in a park."""
    rng, angle, middle = c.rng, c.theta, (128.0, 128.0)
    c.cover(ground(c, c.pick(["grass", "grass", "concrete", "soil"], [0.4, 0.3, 0.15, 0.15])))
    if rng.random() < 0.6:
        c.region(_strip(c, middle, angle, rng.choice([-1, 1]) * rng.uniform(96, 125), rng.uniform(9, 22)), ground(c, "asphalt"), rough=0.8)
    if rng.random() < 0.55:
        wood(c, _strip(c, middle, angle + rng.normal(0, 0.2), rng.choice([-1, 1]) * rng.uniform(105, 135), rng.uniform(30, 70)))
    first = bool(rng.random() < 0.5)
    for tennis in (first, not first):  # both kinds in most pictures
        inner, surround = c.pick(_TENNIS_PAINT if tennis else _BASKETBALL_PAINT)
        length = rng.uniform(74, 98) if tennis else rng.uniform(58, 80)
        width = length * (10.97 / 23.77 if tennis else 15 / 28)
        pad_x, pad_y = length * (0.16 if tennis else 0.08), length * (0.1 if tennis else 0.06)
        for _ in range(40):
            count = int(rng.integers(1, 4))
            turn = angle + (math.pi / 2 if rng.random() < 0.3 else 0)
            pitch = width + pad_y * rng.uniform(1.3, 1.9)
            hall = box(length + 2 * pad_x, pitch * (count - 1) + width + 2 * pad_y)
            centre = rng.uniform(45, 211, 2)
            outline = turned(hall, centre, turn)
            if not c.free(outline, 5):
                continue
            c.line(outline + c.sun * 1.5, (30, 34, 34), 1.0, closed=True, opacity=0.45)  # the fence's shadow
            c.region(outline, c.textured(c.vary(surround, 5), 3.5, (1.2, 4, 14, 40)))
            c.line(outline, (150, 152, 150), 0.7, closed=True, opacity=0.7)
            inner, worn = c.vary(inner, 5), rng.uniform(0.6, 0.95)
            key = np.clip(np.asarray(c.pick([surround, np.asarray(inner) * 0.8, (150, 70, 58)]), float), 0, 255)
            for i in range(count):
                spot = turned([(0, (i - (count - 1) / 2) * pitch)], centre, turn)[0]
                if tennis:
                    tennis_court(c, spot, turn, length, inner, worn=worn)
                else:
                    basketball_court(c, spot, turn, length, inner, key, worn=worn)
            break
    for _ in range(int(rng.integers(0, 3))):
        building(c, rng.uniform(10, 246, 2), angle, rng.uniform(24, 50), rng.uniform(16, 30))
    scatter_trees(c, int(rng.integers(16, 60)))


def _road(c: Canvas) -> None:
    """Vehicles on a road with lanes, pavements, trees and houses beside it."""
    rng, angle = c.rng, c.theta
    middle = turned([(0, rng.uniform(-25, 25))], (128, 128), angle)[0]
    c.cover(ground(c, c.pick(["grass", "soil", "concrete"], [0.5, 0.2, 0.3])))
    lanes, lane = int(rng.choice([2, 4, 4])), rng.uniform(26, 31)
    width = lanes * lane
    c.region(_strip(c, middle, angle, 0, width + 22), ground(c, "concrete"), rough=0.5)
    c.region(_strip(c, middle, angle, 0, width), ground(c, "asphalt"))
    c.taken |= mask_units(_strip(c, middle, angle, 0, width + 22))
    stains(c, 8, angle)
    for side in (-1, 1):
        c.line(turned([(-250, side * width / 2), (250, side * width / 2)], middle, angle), (196, 194, 188), 1.4)
        c.line(turned([(-250, side * (width / 2 - 4)), (250, side * (width / 2 - 4))], middle, angle), (220, 220, 216), 1.0, opacity=0.75)
    for i in range(1, lanes):
        y = -width / 2 + i * lane
        if i == lanes / 2:
            for d in (-1.4, 1.4):
                c.line(turned([(-250, y + d), (250, y + d)], middle, angle), (206, 178, 84), 1.0, opacity=0.85)
        else:
            for x in np.arange(-250 + rng.uniform(0, 30), 250, 34.0):
                c.line(turned([(x, y), (x + 15, y)], middle, angle), (224, 224, 220), 1.1, opacity=0.85)
    for i in range(lanes):  # wheel tracks
        for d in (-0.24, 0.24):
            y = -width / 2 + (i + 0.5 + d) * lane
            c.veil(_strip(c, middle, angle, y, 4), (54, 54, 56), 0.12, blur=1.5)
    if rng.random() < 0.3:
        x = rng.uniform(-70, 70)
        for y in np.arange(-width / 2 + 4, width / 2 - 3, 7.0):
            c.fill(turned(box(22, 3.6, x, y + 1.5), middle, angle), (214, 214, 210))
    room = c.taken.copy()
    c.taken[:] = 0
    for i in range(lanes):
        y = -width / 2 + (i + 0.5) * lane
        direction = angle if i >= lanes / 2 else angle + math.pi
        x = -200 + rng.uniform(0, 60)
        while x < 200:
            kind = c.pick(["car", "van", "lorry"], [0.8, 0.13, 0.07])
            length = rng.uniform(36, 43)
            vehicle(c, turned([(x, y + rng.normal(0, 1.2))], middle, angle)[0], direction + rng.normal(0, 0.015), length, kind)
            x += length * 1.7 + rng.exponential(50)
    c.taken |= room
    _at_least_one_vehicle(c, lambda: (turned([(rng.uniform(-60, 60), lane / 2)], middle, angle)[0], angle))
    for _ in range(7):
        building(
            c,
            turned([(rng.uniform(-150, 150), rng.choice([-1, 1]) * (width / 2 + rng.uniform(30, 90)))], middle, angle)[0],
            angle,
            rng.uniform(40, 80),
            rng.uniform(26, 44),
        )
    scatter_trees(c, int(rng.integers(20, 50)), (7, 17))


def _at_least_one_vehicle(c: Canvas, spot: Callable[[], tuple[Points, float]]) -> None:
    taken = c.taken.copy()
    for _ in range(40):
        if c.objects:
            return
        c.taken[:] = 0
        centre, angle = spot()
        vehicle(c, centre, angle, 38)
        c.taken |= taken


def _car_park(c: Canvas) -> None:
    """Rows of parked vehicles between bay markings."""
    rng, angle = c.rng, c.theta
    middle = turned([(0, rng.uniform(-30, 30))], (128, 128), angle)[0]
    c.cover(ground(c, "asphalt"))
    stains(c, 16, angle)
    bay, deep, aisle = rng.uniform(24, 28), rng.uniform(47, 53), rng.uniform(48, 60)
    period = 2 * deep + aisle
    full = rng.uniform(0.35, 0.9)
    paint = c.pick([(220, 220, 216), (214, 190, 96)], [0.75, 0.25])
    islands = []
    for row in range(-3, 4):
        base = row * period
        if rng.random() < 0.35:
            islands.append(base)
        for side in (-1, 1):
            for x in np.arange(-220, 220, bay):
                c.line(turned([(x, base + side * 1.5), (x, base + side * deep)], middle, angle), paint, 1.0, opacity=0.85)
        c.line(turned([(-220, base), (220, base)], middle, angle), paint, 1.0, opacity=0.85)
    for base in islands:
        c.region(turned(box(500, 7, 0, base), middle, angle), ground(c, "grass"), rough=0.4)
    for row in range(-3, 4):
        for side in (-1, 1):
            for x in np.arange(-220, 220, bay):
                if rng.random() < full:
                    spot = turned([(x + bay / 2, row * period + side * (deep / 2 + 2) + rng.normal(0, 1.5))], middle, angle)[0]
                    nose = angle + (math.pi / 2 if rng.random() < 0.5 else -math.pi / 2) + rng.normal(0, 0.03)
                    vehicle(c, spot, nose, rng.uniform(36, 43), c.pick(["car", "van"], [0.86, 0.14]))
    for row in range(-3, 4):
        if rng.random() < 0.5:
            y = row * period + period / 2 + rng.choice([-1, 1]) * aisle * 0.22
            vehicle(c, turned([(rng.uniform(-90, 90), y)], middle, angle)[0], angle + rng.choice([0, math.pi]), rng.uniform(36, 43))
    _at_least_one_vehicle(c, lambda: (rng.uniform(50, 206, 2), angle))
    spots = []
    for base in islands:
        for x in np.arange(-160, 160, bay * 2):
            spot = turned([(x, base)], middle, angle)[0]
            spots.append((float(spot[0]), float(spot[1]), float(rng.uniform(5, 8))))
    trees(c, spots)
    if rng.random() < 0.4:
        scatter_trees(c, 8, (8, 15))


SCENES: tuple[Callable[[Canvas], None], ...] = (_apron, _road, _courts, _tank_farm, _sea, _apron, _car_park, _courts, _quay)
"""What is drawn, in turn.  9 places against the 8 of the splits' pattern, so every split sees every kind; what comes in small numbers
(aircraft, courts) comes twice."""
