"""Labels as a careless hand, or a generator that does not keep to its layout, would leave them: moved and scaled at random.

Notable: an object's labels are jittered by (draw, picture's name, object) alone, and only the labels: the pixels stay what they are, so the
arm of jittered labels differs from that of the same pictures by the labels' imprecision alone.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from ..scene import Instance, Scene

JITTER = 15
"""What the random stream is for."""


def jitter_labels(scene: Scene, share: float, draw: int) -> Scene:
    """The scene with every box moved by about ``share`` of its sides, and scaled by about as much.

    Boxes may end up partly outside the picture, as imprecise ones do; nothing is left out.
    """
    rng = np.random.default_rng([draw, JITTER, zlib.crc32(scene.file_name.encode())])
    return scene.replace(instances=tuple(_moved(i, share * rng.standard_normal(3)) for i in scene.instances))


def _moved(instance: Instance, by: np.ndarray) -> Instance:
    x1, y1, x2, y2 = instance.hbb
    centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    shift, scale = by[:2] * (x2 - x1, y2 - y1), float(np.exp(by[2]))
    box, corners = ((np.array(v).reshape(-1, 2) - centre) * scale + centre + shift for v in (instance.hbb, instance.corners))
    hbb, moved = (tuple(float(v) for v in points.reshape(-1)) for points in (box, corners))
    return dataclasses.replace(instance, hbb=hbb, corners=moved, mask=())  # type: ignore[arg-type]
