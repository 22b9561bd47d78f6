"""Scene, Instance, ClassList: the one in-memory type of a labelled picture.

Every reader makes scenes, every writer, layout source, generator and detector takes them.  All coordinates are pixels of the
picture (x to the right, y down, the origin at the corner of the first pixel); floats, so 0 <= x <= width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import CCDiffError

if TYPE_CHECKING:
    from .pictures import Reading

HBB = tuple[float, float, float, float]
"""Horizontal bounding box: x_min, y_min, x_max, y_max in pixels."""
Corners = tuple[float, float, float, float, float, float, float, float]
"""The four corners of an oriented box: x1 y1 x2 y2 x3 y3 x4 y4 in pixels, in order around the box."""


def cleaned(name: str) -> str:
    """A class name with single spaces; "" where it is empty or has characters that cannot be printed."""
    text = " ".join(name.split())
    return text if text.isprintable() else ""


@dataclass(frozen=True)
class Instance:
    """One labelled object.

    Attributes:
        category: the class name, one of the set's :class:`ClassList`.
        hbb: horizontal box, pixels.
        corners: oriented box, pixels; equals the corners of ``hbb`` where the source knows no orientation.
        oriented: whether ``corners`` is a real orientation rather than made from ``hbb``.
        difficult: the source's flag; ignored by evaluation as DOTA does, kept by everything else.
        mask: polygons (each x1 y1 x2 y2 ...) of the object's outline, pixels; empty where unknown.
        extra: what else the source said (its id, a score, a description), JSON-able.
    """

    category: str
    hbb: HBB
    corners: Corners
    oriented: bool = True
    difficult: bool = False
    mask: tuple[tuple[float, ...], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_hbb(cls, category: str, hbb: Sequence[float], **kwargs: Any) -> Instance:
        """An instance that only has a horizontal box (``oriented=False``)."""
        x1, y1, x2, y2 = (float(v) for v in hbb)
        return cls(category, (x1, y1, x2, y2), (x1, y1, x2, y1, x2, y2, x1, y2), oriented=False, **kwargs)

    @classmethod
    def from_corners(cls, category: str, corners: Sequence[float], hbb: Sequence[float] | None = None, **kwargs: Any) -> Instance:
        """An instance with an oriented box; the HBB is that of the corners unless given."""
        c = tuple(float(v) for v in corners)
        if len(c) != 8:
            raise ValueError(f"expected 8 corner coordinates, found {len(c)}")
        box = tuple(float(v) for v in hbb) if hbb is not None else (min(c[0::2]), min(c[1::2]), max(c[0::2]), max(c[1::2]))
        return cls(category, box, c, oriented=True, **kwargs)  # type: ignore[arg-type]

    def is_finite(self) -> bool:
        """Whether every coordinate is a finite number."""
        return all(math.isfinite(v) for v in (*self.hbb, *self.corners))


@dataclass(frozen=True)
class Scene:
    """One labelled picture.

    Attributes:
        file_name: the picture's name relative to the set's ``images/`` (or to its source's picture folder).
        width, height: picture size in pixels.
        instances: every labelled object; no cap.
        split: "train", "val" or "test".
        source: the id of the original picture this one was cut from; pictures that share it never stand in two splits.
        caption: the scene caption; "" where there is none yet.
        path: where the picture lies now; None for a layout without a picture.
        provenance: how the picture came to be (tile offset, generator, seed, references, ...), JSON-able.
        reading: how the file's pixels become the picture that the labels mean (raw sets; see ``prepare.pixels``); None: as they are stored.
    """

    file_name: str
    width: int
    height: int
    instances: tuple[Instance, ...] = ()
    split: str = "train"
    source: str = ""
    caption: str = ""
    path: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading | None = None

    def replace(self, **changes: Any) -> Scene:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def categories(self) -> list[str]:
        """The class names of the instances, in order, with repeats."""
        return [instance.category for instance in self.instances]


@dataclass(frozen=True)
class ClassList:
    """The frozen, ordered class names of a data set; position = index, COCO category id = index + 1."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise CCDiffError(f"class names repeat: {', '.join(self.names)}")
        if not self.names or any(not name.strip() for name in self.names):
            raise CCDiffError("the class list is empty or has an empty name")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def index(self, name: str, *, where: str | None = None) -> int:
        """Index of a class.

        Raises:
            CCDiffError: an unknown class, listing the known ones.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise CCDiffError(f"unknown class {name!r}", where=where, fix=f"known classes: {', '.join(self.names)}") from None

    def check(self, scenes: Iterable[Scene]) -> None:
        """Raise CCDiffError when a scene holds a class that is not in the list."""
        for scene in scenes:
            for instance in scene.instances:
                self.index(instance.category, where=scene.file_name)


SYMMETRIES = 8
"""The flips and quarter turns of a picture: ``k % 4`` quarter turns (counter-clockwise), then for k >= 4 a left-right flip."""


def symmetric_scene(scene: Scene, k: int) -> Scene:
    """The scene after symmetry ``k`` (0 to 7; 0 is the scene itself); its caption is kept, though positions in it may no longer hold."""
    width, height = scene.width, scene.height
    for _ in range(k % 4):
        width, height = height, width

    def move(points: Sequence[float]) -> tuple[float, ...]:
        moved: list[float] = []
        for x, y in zip(points[0::2], points[1::2], strict=True):
            side = scene.width
            for turn in range(k % 4):
                x, y = y, side - x
                side = scene.height if turn % 2 == 0 else scene.width
            moved += (width - x, y) if k >= 4 else (x, y)
        return tuple(moved)

    def moved_instance(instance: Instance) -> Instance:
        xs_ys = move(instance.hbb)
        hbb = (min(xs_ys[0::2]), min(xs_ys[1::2]), max(xs_ys[0::2]), max(xs_ys[1::2]))
        corners: Corners = move(instance.corners)  # type: ignore[assignment]
        return dataclasses.replace(instance, hbb=hbb, corners=corners, mask=tuple(move(p) for p in instance.mask))

    return scene.replace(width=width, height=height, instances=tuple(moved_instance(i) for i in scene.instances)) if k else scene


def symmetric_pixels(pixels: Any, k: int) -> Any:
    """The same symmetry of an (H, W, ...) array."""
    import numpy as np

    turned = np.rot90(pixels, k % 4)
    return turned[:, ::-1] if k >= 4 else turned
