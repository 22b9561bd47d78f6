"""A statistical sampler of layouts, fitted to a set: new layouts that follow the set's habits without copying one of its pictures.

What is learned, and how a layout is drawn from it:

* **Which classes, how many**: those of a picture; how many of each, about how large and how close together is taken from one real
  picture of the same classes (they go together: a crowded harbour has small ships), and varied.
* **Sizes and shapes**: the objects of a class, sorted by size.  The sizes of one picture go together (Gaussian copula with the
  class's intraclass correlation); shape, and the border that cuts the object, if any, come from a real object of about that size.  A cut
  object's OBB reaches as far beyond its borders, over its own extent, as the real one's: whole or fitted, see ``geometry``.
* **Where, which way**: the first object stands where one of its size did.  Every further one stands beside one that is there already:
  offset, in the frame and the size of its neighbour, and difference of angles are those of a real object and its nearest neighbour, of
  its own class or another.  So ships lie side by side along a pier and tanks form rows.
* **Overlap**: as much and as often as the two classes do (``repair.Overlaps``); what finds no place is pushed to one, or left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtr, ndtri

from ..geometry import clip, clip_hbb, corners_inside, corners_to_le90, hbb_of, le90_to_corners, polygon, visible_hbbs
from ..scene import Instance, Scene
from .augment import BORDER, cut_sides, fill_of, hbb_within, touches_border
from .repair import Overlaps, overlap_shares, repair

TRIES = 24
"""Places tried for an object before it is put somewhere and pushed."""
WINDOW = 0.04
"""Shapes are taken from objects within this share of the class next in size."""
NEAR_LAST = 0.5
"""Chance that the neighbour is the object placed last: rows go on."""
SIZE_JITTER, RATIO_JITTER, OFFSET_JITTER, PLACE_JITTER = 0.05, 0.05, 0.05, 0.06
COUNT_JITTER, COUNT_FROM = 0.15, 5
"""Counts from COUNT_FROM on are spread by this deviation of their logarithm."""
STRAIGHT = math.radians(0.2)
"""Boxes nearer to an axis than this are left straight; the others are turned by up to a few degrees."""
ANGLE_JITTER = math.radians(2)
SIDES = (1, 2, 4, 8)
"""Bits of the borders: left, top, right, bottom."""


@dataclass(frozen=True)
class _Objects:
    """The objects of a class in order of size: lengths over the square root of the picture's area, places over its sides, what reaches
    beyond the left, top, right and lower border over the box's own extent."""

    size: np.ndarray
    ratio: np.ndarray
    angle: np.ndarray
    place: np.ndarray
    border: np.ndarray
    oriented: np.ndarray
    difficult: np.ndarray
    reach: np.ndarray


@dataclass(frozen=True)
class _Pairs:
    """Objects of one class and the nearest object of each: the neighbour's class, the offset from it in its frame and over its size, and
    the angle less the neighbour's."""

    anchor: np.ndarray
    offset: np.ndarray
    turn: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[str, float, float, float]]) -> _Pairs:
        return cls(np.array([r[0] for r in rows], object), np.array([r[1:3] for r in rows]), np.array([r[3] for r in rows]))


@dataclass(frozen=True)
class _Habits:
    """Of one real picture: how many of each class, how large (mean normal score of the sizes), how they stand to their neighbours."""

    counts: Counter[str]
    level: dict[str, float]
    pairs: dict[str, _Pairs]


class Sampler:
    """Fitted to the layouts of a set; ``draw`` is a layout source.

    Raises:
        ValueError: no objects.
    """

    def __init__(self, pool: Sequence[Scene]) -> None:
        if not any(scene.instances for scene in pool):
            raise ValueError("no objects to learn from")
        self.allowed, self.fill = Overlaps(pool), fill_of(pool)
        counts: dict[int, Counter[str]] = {}
        own_pairs: dict[int, dict[str, _Pairs]] = {}
        rows: dict[str, list[tuple[float, ...]]] = {}
        pairs: dict[str, list[tuple[str, float, float, float]]] = {}
        member: dict[str, list[int]] = {}
        for number, scene in enumerate(pool):
            if not scene.instances:
                continue
            counts[number] = Counter(scene.categories())
            boxes = np.array([corners_to_le90(i.corners) for i in scene.instances])
            unit = math.sqrt(scene.width * scene.height)
            for instance, (cx, cy, w, h, angle) in zip(scene.instances, boxes, strict=True):
                size = math.sqrt(max(w * h, 1e-6)) / unit
                border = _border(instance, scene)
                flags = float(instance.oriented), float(instance.difficult)
                rows.setdefault(instance.category, []).append(
                    (size, w / max(h, 1e-6), angle, cx / scene.width, cy / scene.height, border, *flags, *_reach(instance, border, scene))
                )
                member.setdefault(instance.category, []).append(number)
            found_pairs = _pairs_of(scene, boxes)
            own_pairs[number] = {name: _Pairs.of(some) for name, some in found_pairs.items()}
            for key, some in found_pairs.items():
                pairs.setdefault(key, []).extend(some)
        level: dict[int, dict[str, float]] = {}
        self.objects: dict[str, _Objects] = {}
        self.correlation: dict[str, float] = {}
        for name, found in rows.items():
            table, pictures = np.array(found), np.array(member[name])
            order = np.argsort(table[:, 0], kind="stable")
            scores = np.empty(len(order))
            scores[order] = ndtri((np.arange(len(order)) + 0.5) / len(order))
            self.correlation[name] = _intraclass(scores, pictures)
            for number in np.unique(pictures).tolist():
                level.setdefault(number, {})[name] = float(scores[pictures == number].mean())
            t = table[order]
            self.objects[name] = _Objects(t[:, 0], t[:, 1], t[:, 2], t[:, 3:5], t[:, 5].astype(int), t[:, 6] > 0, t[:, 7] > 0, t[:, 8:])
        self.pairs = {key: _Pairs.of(v) for key, v in pairs.items()}
        self.habits: dict[tuple[str, ...], list[_Habits]] = {}
        for number, counted in counts.items():
            habits = _Habits(counted, level[number], own_pairs[number])
            self.habits.setdefault(tuple(sorted(counted)), []).append(habits)
        self.typical = {name: float(np.median(o.size)) for name, o in self.objects.items()}

    def draw(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """A layout with the classes of ``scene`` (nothing else is taken from it but the picture's size)."""
        size = np.array([scene.width, scene.height], np.float64)
        known = tuple(sorted(set(scene.categories()) & self.objects.keys()))
        like = self.habits.get(known) or [h for names, some in self.habits.items() if set(known) <= set(names) for h in some]
        habits = like[int(rng.integers(len(like)))] if like else _Habits(Counter(scene.categories()), {}, {})
        placed: list[Instance] = []
        squeezed = 0
        for name in sorted(known, key=lambda n: (-self.typical[n], n)):
            count, effect = habits.counts[name], self._effect(name, habits, rng)
            spread = math.exp(COUNT_JITTER * float(rng.normal()))
            count = max(1, round(count * spread)) if count >= COUNT_FROM else count
            for _ in range(count):
                made, free = self._place(name, placed, effect, habits.pairs.get(name), size, rng)
                placed.append(made)
                squeezed += not free
        layout = scene.replace(instances=tuple(placed))
        if squeezed:
            cut = [k for k, i in enumerate(placed) if touches_border(i, scene.width, scene.height)]
            layout, counts = repair(layout, allowed=self.allowed, cut=cut)
        else:
            counts = {"moved": 0, "shrunk": 0, "left_out": 0}
        return layout.replace(provenance={**scene.provenance, "layout": counts})

    def _effect(self, name: str, habits: _Habits, rng: np.random.Generator) -> float:
        """How large the objects of this class are in this layout: a normal score whose variance is the class's correlation.

        The level of the real picture, shrunk as far as its few objects make it uncertain, and that uncertainty (best linear prediction).
        """
        rho, count = self.correlation[name], max(1, habits.counts[name])
        trust = rho / max(rho + (1 - rho) / count, 1e-9)
        return trust * habits.level.get(name, 0.0) + math.sqrt(rho * (1 - trust)) * float(rng.normal())

    def _place(
        self,
        name: str,
        placed: Sequence[Instance],
        effect: float,
        habit: _Pairs | None,
        size: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[Instance, bool]:
        """An object of a class beside those that stand already, and whether its place is free.

        Its size, shape and border are drawn once, whatever becomes of the places tried: what fits easily would else be drawn too often.
        """
        objects = self.objects[name]
        anchor, offset, angle = self._beside(name, placed, habit, rng)
        model, (w, h) = self._shape(name, effect, angle, math.sqrt(float(size.prod())), rng)
        border = int(objects.border[model])
        if border or angle is None or not objects.oriented[model]:
            angle = float(objects.angle[model])
            if not border and objects.oriented[model] and _off_axis(angle) > STRAIGHT:
                angle += ANGLE_JITTER * float(np.clip(rng.normal(), -2, 2))
        usual = {
            other: self.allowed(name, other) if rng.random() < self.allowed.rate(name, other) else 0.0
            for other in sorted({i.category for i in placed})
        }
        made: Instance | None = None
        for attempt in range(TRIES):
            if border or anchor is None:
                centre = objects.place[model] * size + rng.normal(0, PLACE_JITTER, 2) * size
            else:
                if attempt:
                    anchor, offset, _ = self._beside(name, placed, habit, rng)
                assert anchor is not None  # there was one at first
                centre = _offset_from(anchor, offset * math.exp(OFFSET_JITTER * float(rng.normal())), rng)
                if attempt < TRIES // 2 and any(_nearer(centre, other, anchor) for other in placed):
                    continue  # the anchor would not be its nearest neighbour
            if attempt >= 2 * TRIES // 3:
                centre = rng.random(2) * size
            corners = np.array(le90_to_corners((*centre, w, h, angle))).reshape(4, 2)
            if border:
                fitted = against_border(corners, border, objects.reach[model], size)
            elif corners.min() < BORDER or (corners > size - BORDER).any():
                fitted = None if attempt < 2 * TRIES // 3 else moved_in(corners, size)
            else:
                fitted = corners
            if fitted is None:
                continue
            made = self._instance(objects, model, name, fitted, size)
            if self._free(made, placed, usual):
                return made, True
        if made is None:  # it cannot reach its borders
            made = self._instance(objects, model, name, moved_in(corners, size), size)
        return made, False

    def _shape(
        self, name: str, effect: float, angle: float | None, unit: float, rng: np.random.Generator
    ) -> tuple[int, tuple[float, float]]:
        """The real object that lends its shape and its border, and the sides of the new one, pixels."""
        objects, rho = self.objects[name], self.correlation[name]
        last = len(objects.size) - 1
        rank = float(ndtr(effect + math.sqrt(1 - rho) * float(rng.normal()))) * last
        side = float(np.interp(rank, np.arange(last + 1), objects.size)) * unit * math.exp(SIZE_JITTER * float(rng.normal()))
        reach = max(1, round(WINDOW * last))
        near = np.arange(max(0, round(rank) - reach), min(last, round(rank) + reach) + 1)
        model = int(near[int(rng.integers(len(near)))])
        if objects.border[model] and angle is not None:  # of those cut by a border, the one that lies as the neighbours do
            cut = near[objects.border[near] > 0]
            model = int(cut[np.argmin([_between(float(objects.angle[m]), angle) for m in cut])])
        ratio = max(1.0, float(objects.ratio[model]) * math.exp(RATIO_JITTER * float(rng.normal())))
        return model, (side * math.sqrt(ratio), side / math.sqrt(ratio))

    def _beside(
        self, name: str, placed: Sequence[Instance], habit: _Pairs | None, rng: np.random.Generator
    ) -> tuple[Instance | None, np.ndarray, float | None]:
        """An object to stand beside, the offset from it (see :class:`_Pairs`), and the angle that it suggests; None where there is none."""
        present = {i.category for i in placed}
        for pairs in (habit, self.pairs.get(name)):
            usable = np.flatnonzero([a in present for a in pairs.anchor]) if pairs is not None else np.zeros(0, int)
            if pairs is None or not len(usable):
                continue
            pick = int(usable[int(rng.integers(len(usable)))])
            like = [i for i in placed if i.category == pairs.anchor[pick]]
            anchor = like[-1] if rng.random() < NEAR_LAST else like[int(rng.integers(len(like)))]
            return anchor, pairs.offset[pick], corners_to_le90(anchor.corners)[4] + float(pairs.turn[pick])
        return None, np.zeros(2), None

    def _instance(self, objects: _Objects, model: int, name: str, corners: np.ndarray, size: np.ndarray) -> Instance:
        oriented, difficult = bool(objects.oriented[model]), bool(objects.difficult[model])
        return instance_at(name, corners, size, self.fill.get(name, 1.0), oriented=oriented, difficult=difficult)

    def _free(self, made: Instance, placed: Sequence[Instance], usual: Mapping[str, float]) -> bool:
        x1, y1, x2, y2 = hbb_of(made.corners)
        for other in placed:
            a1, b1, a2, b2 = hbb_of(other.corners)
            if a1 >= x2 or x1 >= a2 or b1 >= y2 or y1 >= b2:
                continue
            _, _, shares = overlap_shares(np.array([made.corners, other.corners]))
            if len(shares) and shares[0] > usual[other.category] + 1e-3:
                return False
        return True


def instance_at(
    name: str, corners: np.ndarray, size: np.ndarray, fill: float, *, oriented: bool = True, difficult: bool = False
) -> Instance:
    """The object with these corners (4, 2), its HBB around what is visible of it.

    Args:
        fill: how it fills its box (:func:`augment.fill_of`); ``oriented``: whether it has one, or its HBB alone.
    """
    window = (0.0, 0.0, float(size[0]), float(size[1]))
    if corners_inside(corners.ravel().tolist(), window):  # by rounding at most it sticks out
        corners = np.clip(corners, 0, size)
    flat = tuple(float(v) for v in corners.ravel())
    seen = tuple(visible_hbbs(corners.reshape(1, 8), window)[0].tolist())
    if not oriented:
        return Instance.from_hbb(name, seen, difficult=difficult)
    return Instance.from_corners(name, flat, clip_hbb(hbb_within(flat, fill), seen) or seen, difficult=difficult)


def _border(instance: Instance, scene: Scene) -> int:
    """Which borders cut the object: 1 left, 2 top, 4 right, 8 bottom, added up."""
    return sum(bit for bit, cut in zip(SIDES, cut_sides(instance, scene.width, scene.height), strict=True) if cut)


def _reach(instance: Instance, border: int, scene: Scene) -> tuple[float, ...]:
    """How far the oriented box reaches beyond the borders that cut it, over its extent along the axis: left, top, right, bottom."""
    x1, y1, x2, y2 = hbb_of(instance.corners)
    extent = max(x2 - x1, 1e-6), max(y2 - y1, 1e-6)
    beyond = (-x1, -y1, x2 - scene.width, y2 - scene.height)
    return tuple(max(0.0, v) / extent[k % 2] if border & bit else 0.0 for k, (bit, v) in enumerate(zip(SIDES, beyond, strict=True)))


def against_border(corners: np.ndarray, border: int, reach: np.ndarray, size: np.ndarray) -> np.ndarray | None:
    """The box shifted so that it reaches so far beyond the borders named, and scaled where these are opposite; None where it does not fit.

    Args:
        corners: (4, 2); ``reach`` (4,): see :func:`_reach`; 0 where it only touches the border.
    """
    spans = [axis for axis, both in enumerate((5, 10)) if border & both == both]
    if spans:
        inside = [max(np.ptp(corners[:, axis]) * (1 - reach[axis] - reach[axis + 2]), 1e-9) for axis in spans]
        ratio = max(float(size[axis] / part) for axis, part in zip(spans, inside, strict=True))
        corners = corners.mean(0) + (corners - corners.mean(0)) * ratio
    made = corners.copy()
    strip = [-1e6, -1e6, 1e6, 1e6]  # what the borders that cut it leave of the plane
    for axis in (0, 1):
        low, high = float(made[:, axis].min()), float(made[:, axis].max())
        near, far = bool(border & SIDES[axis]), bool(border & SIDES[axis + 2])
        if near:
            made[:, axis] -= low + reach[axis] * (high - low)
        elif far:
            made[:, axis] += size[axis] - high + reach[axis + 2] * (high - low)
        if near or far:
            strip[axis], strip[axis + 2] = 0.0, float(size[axis])
    left = clip(polygon(made.ravel().tolist()), strip)
    if left.area <= 0:
        return None
    for axis in (0, 1):
        if not border & (SIDES[axis] | SIDES[axis + 2]):
            low, high = left.bounds[axis], left.bounds[axis + 2]
            if high - low > size[axis] - 2.1 * BORDER:
                return None
            shift = max(0.0, 1.05 * BORDER - low)
            made[:, axis] += shift - max(0.0, high + shift - (size[axis] - 1.05 * BORDER))
    seen = visible_hbbs(made.reshape(1, 8), (0, 0, *size))[0]
    if min(seen[2:] - seen[:2]) < BORDER:
        return None
    beyond = np.concatenate([-made.min(0), made.max(0) - size]) > 1e-6
    there = np.concatenate([seen[:2] <= 0, seen[2:] >= size])  # what reaches beyond elsewhere does so outside of the picture alone
    return None if any(not border & bit for bit, bad in zip(SIDES, beyond & there, strict=True) if bad) else made


def moved_in(corners: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The box inside the picture, touching no border; shrunk where it is too large."""
    room = size - 2.1 * BORDER
    ratio = float(min(1.0, (room / np.maximum(np.ptp(corners, axis=0), 1e-9)).min()))
    made = corners.mean(0) + (corners - corners.mean(0)) * ratio
    made = made + np.maximum(0, 1.05 * BORDER - made.min(0))
    return made - np.maximum(0, made.max(0) - (size - 1.05 * BORDER))


def _offset_from(anchor: Instance, offset: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The centre that lies so from the anchor: along and across its long side, in units of its size."""
    x, y, w, h, angle = corners_to_le90(anchor.corners)
    side = 1.0 if rng.random() < 0.5 else -1.0  # le90 has no front: both ways are alike
    dx, dy = side * offset * math.sqrt(w * h)
    return np.array([x + math.cos(angle) * dx - math.sin(angle) * dy, y + math.sin(angle) * dx + math.cos(angle) * dy])


def _nearer(centre: np.ndarray, other: Instance, anchor: Instance) -> bool:
    """Whether another object is clearly nearer than the anchor (its own distance to it is 0)."""
    distances = [float(np.hypot(*(centre - np.array(i.corners).reshape(4, 2).mean(0)))) for i in (other, anchor)]
    return distances[0] < 0.9 * distances[1]


def _between(one: float, other: float) -> float:
    """The angle between two directions that have no front."""
    return abs((one - other + math.pi / 2) % math.pi - math.pi / 2)


def _off_axis(angle: float) -> float:
    return abs((angle + math.pi / 4) % (math.pi / 2) - math.pi / 4)


def _pairs_of(scene: Scene, boxes: np.ndarray) -> dict[str, list[tuple[str, float, float, float]]]:
    """For every whole object of a picture its nearest whole neighbour: rows of :class:`_Pairs` by class."""
    pairs: dict[str, list[tuple[str, float, float, float]]] = {}
    whole = np.array([k for k, i in enumerate(scene.instances) if not touches_border(i, scene.width, scene.height)], int)
    if len(whole) < 2:
        return pairs
    _, near = cKDTree(boxes[whole, :2]).query(boxes[whole, :2], k=2)
    for place, k in enumerate(whole.tolist()):
        j = int(whole[near[place, 0] if near[place, 0] != place else near[place, 1]])
        angle, unit = boxes[j, 4], math.sqrt(max(boxes[j, 2] * boxes[j, 3], 1e-6))
        dx, dy = (boxes[k, :2] - boxes[j, :2]) / unit
        along, across = math.cos(angle) * dx + math.sin(angle) * dy, math.cos(angle) * dy - math.sin(angle) * dx
        row = (scene.instances[j].category, along, across, float(boxes[k, 4] - angle))
        pairs.setdefault(scene.instances[k].category, []).append(row)
    return pairs


def _intraclass(scores: np.ndarray, pictures: np.ndarray) -> float:
    """Intraclass correlation of normal scores: how alike the objects of one picture are (one-way ANOVA)."""
    n = len(scores)
    groups, index, sizes = np.unique(pictures, return_inverse=True, return_counts=True)
    if n <= len(groups) or len(groups) < 2:
        return 0.5
    means = np.bincount(index, scores) / sizes
    within = float(((scores - means[index]) ** 2).sum()) / (n - len(groups))
    between = float((sizes * (means - scores.mean()) ** 2).sum()) / (len(groups) - 1)
    usual = (n - float((sizes**2).sum()) / n) / (len(groups) - 1)
    spread = max(0.0, (between - within) / max(usual, 1e-9))
    return float(np.clip(spread / max(spread + within, 1e-9), 0.0, 0.99))
