"""A statistical sampler of layouts, fitted to a set: new layouts that follow the set's habits without copying one of its pictures.

What is learned, and how a layout is drawn from it:

* **Which classes, how many**: the classes of one picture; of each a count that pictures with just these classes have.
* **Sizes and shapes**: the objects of a class, sorted by size.  The sizes of one picture go together (Gaussian copula with the
  class's intraclass correlation, one effect a picture: it stands for the ground sample distance); shape, and the border that cuts the
  object, if any, come from a real object of about that size.
* **Where, which way**: the first object of a class stands where one of its size did, or beside an object of another class as such pairs
  do.  Every further one stands beside one of its own class: offset, in the frame and the size of its neighbour, and difference of
  angles are those of a real pair of nearest neighbours.  So ships lie side by side in a harbour and tanks form rows.
* **Overlap**: no more than usual for the two classes (``repair.Overlaps``); what finds no place is pushed to one, or left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import norm

from ..geometry import corners_to_le90, hbb_of, le90_to_corners
from ..scene import Instance, Scene
from .augment import BORDER, fill_of, hbb_within, touches_border
from .repair import Overlaps, overlap_shares, repair

TRIES = 24
"""Places tried for an object before it is put somewhere and pushed."""
WINDOW = 0.04
"""Shapes are taken from objects within this share of the class next in size."""
NEAR_LAST = 0.5
"""Chance that the neighbour is the object placed last: rows go on."""
BESIDE_OTHER = 0.7
"""Chance that the first object of a class takes its place from an object of another class, where such pairs are known."""
ENOUGH_PAIRS = 5
SIZE_JITTER, RATIO_JITTER, PLACE_JITTER = 0.05, 0.05, 0.06
COUNT_JITTER, COUNT_FROM = 0.15, 5
"""Counts from COUNT_FROM on are spread by this deviation of their logarithm."""
STRAIGHT = math.radians(0.2)
"""Boxes nearer to an axis than this are left straight; the others are turned by up to a few degrees."""
ANGLE_JITTER = math.radians(2)


@dataclass(frozen=True)
class _Objects:
    """The objects of a class in order of size: lengths over the square root of the picture's area, places over its sides."""

    size: np.ndarray
    ratio: np.ndarray
    angle: np.ndarray
    place: np.ndarray
    border: np.ndarray
    oriented: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class _Pairs:
    """Nearest neighbours: offset in the frame of the first over its size, angle of the second less that of the first."""

    offset: np.ndarray
    turn: np.ndarray


class Sampler:
    """Fitted to the layouts of a set; ``draw`` is a layout source.

    Raises:
        ValueError: no objects.
    """

    def __init__(self, pool: Sequence[Scene]) -> None:
        if not any(scene.instances for scene in pool):
            raise ValueError("no objects to learn from")
        self.allowed, self.fill = Overlaps(pool), fill_of(pool)
        self.counts: dict[tuple[str, ...], list[Counter[str]]] = {}
        rows: dict[str, list[tuple[float, ...]]] = {}
        pairs: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        member: dict[str, list[int]] = {}
        for number, scene in enumerate(pool):
            if not scene.instances:
                continue
            counted = Counter(scene.categories())
            self.counts.setdefault(tuple(sorted(counted)), []).append(counted)
            boxes = np.array([corners_to_le90(i.corners) for i in scene.instances])
            unit = math.sqrt(scene.width * scene.height)
            for instance, (cx, cy, w, h, angle) in zip(scene.instances, boxes, strict=True):
                size = math.sqrt(max(w * h, 1e-6)) / unit
                border = _border(instance, scene)
                flags = float(instance.oriented), float(instance.difficult)
                rows.setdefault(instance.category, []).append(
                    (size, w / max(h, 1e-6), angle, cx / scene.width, cy / scene.height, border, *flags)
                )
                member.setdefault(instance.category, []).append(number)
            _collect_pairs(scene, boxes, pairs)
        self.objects: dict[str, _Objects] = {}
        self.correlation: dict[str, float] = {}
        for name, found in rows.items():
            table, pictures = np.array(found), np.array(member[name])
            order = np.argsort(table[:, 0], kind="stable")
            self.correlation[name] = _intraclass(order, pictures)
            t = table[order]
            self.objects[name] = _Objects(t[:, 0], t[:, 1], t[:, 2], t[:, 3:5], t[:, 5].astype(int), t[:, 6] > 0, t[:, 7] > 0)
        self.pairs = {key: _Pairs(np.array(v)[:, :2], np.array(v)[:, 2]) for key, v in pairs.items()}
        self.typical = {name: float(np.median(o.size)) for name, o in self.objects.items()}

    def draw(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """A layout with the classes of ``scene`` (nothing else is taken from it but the picture's size)."""
        size = np.array([scene.width, scene.height], np.float64)
        effect = float(rng.normal())
        placed: list[Instance] = []
        squeezed = 0
        for name, count in self._composition(scene, rng):
            for _ in range(count):
                made, free = self._place(name, placed, effect, size, rng)
                placed.append(made)
                squeezed += not free
        layout = scene.replace(instances=tuple(placed))
        if squeezed:
            layout, counts = repair(layout, allowed=self.allowed)
        else:
            counts = {"moved": 0, "shrunk": 0, "left_out": 0}
        return layout.replace(provenance={**scene.provenance, "layout": counts})

    def _composition(self, scene: Scene, rng: np.random.Generator) -> list[tuple[str, int]]:
        names = tuple(sorted(set(scene.categories())))
        like = self.counts.get(names) or [Counter(scene.categories())]
        chosen = []
        for name in sorted(names, key=lambda n: (-self.typical.get(n, 0.0), n)):
            if name not in self.objects:
                continue
            count = like[int(rng.integers(len(like)))][name]
            spread = math.exp(COUNT_JITTER * float(rng.normal()))
            chosen.append((name, max(1, round(count * spread)) if count >= COUNT_FROM else count))
        return chosen

    def _place(
        self, name: str, placed: Sequence[Instance], effect: float, size: np.ndarray, rng: np.random.Generator
    ) -> tuple[Instance, bool]:
        """An object of a class beside those that stand already, and whether its place is free.

        Its size, shape and border are drawn once, whatever becomes of the places tried: what fits easily would else be drawn too often.
        """
        objects, own = self.objects[name], [i for i in placed if i.category == name]
        anchor, pairs = self._anchor(name, own, placed, rng)
        angle: float | None = None  # that a neighbour of the class suggests
        if anchor is not None and pairs is not None and anchor.category == name:
            angle = corners_to_le90(anchor.corners)[4] + float(pairs.turn[int(rng.integers(len(pairs.turn)))])
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
            if border or anchor is None or pairs is None:
                centre = objects.place[model] * size + rng.normal(0, PLACE_JITTER, 2) * size
            else:
                if attempt and own:
                    anchor = own[int(rng.integers(len(own)))]
                centre = _beside(anchor, pairs.offset[int(rng.integers(len(pairs.turn)))], rng)
                if attempt < TRIES // 2 and any(_nearer(centre, other, anchor) for other in own):
                    continue  # the anchor would not be its nearest neighbour
            if attempt >= 2 * TRIES // 3:
                centre = rng.random(2) * size
            corners = np.array(le90_to_corners((*centre, w, h, angle))).reshape(4, 2)
            if border:
                fitted = _against_border(corners, border, size)
            elif corners.min() < BORDER or (corners > size - BORDER).any():
                fitted = None if attempt < 2 * TRIES // 3 else _moved_in(corners, size)
            else:
                fitted = corners
            if fitted is None:
                continue
            made = self._instance(objects, model, name, fitted, size)
            if self._free(made, placed, usual):
                return made, True
        if made is None:  # it cannot reach its borders
            made = self._instance(objects, model, name, _moved_in(corners, size), size)
        return made, False

    def _shape(
        self, name: str, effect: float, angle: float | None, unit: float, rng: np.random.Generator
    ) -> tuple[int, tuple[float, float]]:
        """The real object that lends its shape and its border, and the sides of the new one, pixels."""
        objects, rho = self.objects[name], self.correlation[name]
        last = len(objects.size) - 1
        rank = float(norm.cdf(math.sqrt(rho) * effect + math.sqrt(1 - rho) * float(rng.normal()))) * last
        side = float(np.interp(rank, np.arange(last + 1), objects.size)) * unit * math.exp(SIZE_JITTER * float(rng.normal()))
        reach = max(1, round(WINDOW * last))
        near = np.arange(max(0, round(rank) - reach), min(last, round(rank) + reach) + 1)
        model = int(near[int(rng.integers(len(near)))])
        if objects.border[model] and angle is not None:  # of those cut by a border, the one that lies as the neighbours do
            cut = near[objects.border[near] > 0]
            model = int(cut[np.argmin([_between(float(objects.angle[m]), angle) for m in cut])])
        ratio = max(1.0, float(objects.ratio[model]) * math.exp(RATIO_JITTER * float(rng.normal())))
        return model, (side * math.sqrt(ratio), side / math.sqrt(ratio))

    def _anchor(
        self, name: str, own: Sequence[Instance], placed: Sequence[Instance], rng: np.random.Generator
    ) -> tuple[Instance | None, _Pairs | None]:
        if own and (pairs := self.pairs.get((name, name))) is not None:
            return (own[-1] if rng.random() < NEAR_LAST else own[int(rng.integers(len(own)))]), pairs
        others = [i for i in placed if len(getattr(self.pairs.get((i.category, name)), "turn", ())) >= ENOUGH_PAIRS]
        if not own and others and rng.random() < BESIDE_OTHER:
            anchor = others[int(rng.integers(len(others)))]
            return anchor, self.pairs[anchor.category, name]
        return None, None

    def _instance(self, objects: _Objects, model: int, name: str, corners: np.ndarray, size: np.ndarray) -> Instance:
        flat, difficult = tuple(float(v) for v in np.clip(corners, 0, size).ravel()), bool(objects.difficult[model])
        if not objects.oriented[model]:
            return Instance.from_hbb(name, hbb_of(flat), difficult=difficult)
        return Instance.from_corners(name, flat, hbb_within(flat, self.fill.get(name, 1.0)), difficult=difficult)

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


def _border(instance: Instance, scene: Scene) -> int:
    """Which borders cut the object: 1 left, 2 top, 4 right, 8 bottom, added up."""
    if not touches_border(instance, scene.width, scene.height):
        return 0
    c = (*instance.corners, *instance.hbb)
    xs, ys = c[0::2], c[1::2]
    return (min(xs) < BORDER) + 2 * (min(ys) < BORDER) + 4 * (max(xs) > scene.width - BORDER) + 8 * (max(ys) > scene.height - BORDER)


def _against_border(corners: np.ndarray, border: int, size: np.ndarray) -> np.ndarray | None:
    """The box shifted so that it touches the borders named, and scaled to reach from one to the opposite; None where it does not fit."""
    spans = [axis for axis, both in enumerate((5, 10)) if border & both == both]
    if spans:
        ratio = max(float(size[axis] / max(np.ptp(corners[:, axis]), 1e-9)) for axis in spans)
        corners = corners.mean(0) + (corners - corners.mean(0)) * ratio
    low, high = corners.min(0), corners.max(0)
    made = corners.copy()
    for axis, (first, last) in enumerate(((1, 4), (2, 8))):
        near, far = bool(border & first), bool(border & last)
        if near:
            made[:, axis] += -low[axis]
        elif far:
            made[:, axis] += size[axis] - high[axis]
        elif high[axis] - low[axis] > size[axis] - 2.1 * BORDER:
            return None
        else:
            made[:, axis] += max(0.0, 1.05 * BORDER - low[axis])
            made[:, axis] -= max(0.0, float(made[:, axis].max()) - (size[axis] - 1.05 * BORDER))
    return made if (made >= -1e-6).all() and (made <= size + 1e-6).all() else None


def _moved_in(corners: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The box inside the picture, touching no border; shrunk where it is too large."""
    room = size - 2.1 * BORDER
    ratio = float(min(1.0, (room / np.maximum(np.ptp(corners, axis=0), 1e-9)).min()))
    made = corners.mean(0) + (corners - corners.mean(0)) * ratio
    made = made + np.maximum(0, 1.05 * BORDER - made.min(0))
    return made - np.maximum(0, made.max(0) - (size - 1.05 * BORDER))


def _beside(anchor: Instance, offset: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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


def _collect_pairs(scene: Scene, boxes: np.ndarray, pairs: dict[tuple[str, str], list[tuple[float, float, float]]]) -> None:
    """For every object its nearest neighbour of each class of the picture (:class:`_Pairs`)."""
    names = np.array(scene.categories())
    whole = np.array([not touches_border(i, scene.width, scene.height) for i in scene.instances])
    for a in sorted(set(names.tolist())):
        for b in sorted(set(names.tolist())):
            from_, to = np.flatnonzero((names == a) & whole), np.flatnonzero((names == b) & whole)
            k = 2 if a == b else 1
            if not len(from_) or len(to) < k:
                continue
            _, near = cKDTree(boxes[to, :2]).query(boxes[from_, :2], k=k)
            near = near.reshape(len(from_), k)
            for i, row in zip(from_, near, strict=True):
                others = [int(to[j]) for j in row if to[j] != i]
                if not others:
                    continue
                j = others[0]
                angle, unit = boxes[i, 4], math.sqrt(max(boxes[i, 2] * boxes[i, 3], 1e-6))
                dx, dy = (boxes[j, :2] - boxes[i, :2]) / unit
                along = math.cos(angle) * dx + math.sin(angle) * dy
                across = -math.sin(angle) * dx + math.cos(angle) * dy
                pairs.setdefault((a, b), []).append((along, across, float(boxes[j, 4] - angle)))


def _intraclass(order: np.ndarray, pictures: np.ndarray) -> float:
    """Intraclass correlation of the normal scores of size ranks: how alike the sizes of one picture are (one-way ANOVA)."""
    n = len(order)
    scores = np.empty(n)
    scores[order] = norm.ppf((np.arange(n) + 0.5) / n)
    groups, index, sizes = np.unique(pictures, return_inverse=True, return_counts=True)
    if n <= len(groups) or len(groups) < 2:
        return 0.5
    means = np.bincount(index, scores) / sizes
    within = float(((scores - means[index]) ** 2).sum()) / (n - len(groups))
    between = float((sizes * (means - scores.mean()) ** 2).sum()) / (len(groups) - 1)
    usual = (n - float((sizes**2).sum()) / n) / (len(groups) - 1)
    spread = max(0.0, (between - within) / max(usual, 1e-9))
    return float(np.clip(spread / max(spread + within, 1e-9), 0.0, 0.99))
