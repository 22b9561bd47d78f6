"""Layouts by diffusion: a denoising model of a set's layouts as maps of classes, and the test that its boxes are like the real ones.

The first two steps of AeroGen's pipeline (Tang et al., CVPR 2025, arXiv 2411.15497), which its authors did not release, built from the
paper.  What the paper leaves open is our choice, and small enough for a CPU:

* A layout is a map of 64 x 64 cells with a channel for each class: +1 where the cell's centre lies in one of its objects, else -1.  A
  UNet on patches of 4 x 4 cells learns to denoise such maps (DDPM, Ho et al. 2020; cosine schedule), told how many objects of each class
  there are, and in a tenth of the draws not told.  NOTE: it predicts the map, not the noise: the noise of a patch is 16 numbers a class,
  more than its channels can hold, and maps drawn so are full of specks.
* A layout is drawn with the counts of a real picture, so that the order of pictures decides which classes come how often, as for every
  source.  Every connected component above 0 is an object; its oriented box the smallest rectangle around it, less the margin of the
  cells' staircase, upright where that is as good.  Classes without orientations in the set get horizontal boxes.
* A box whose size or shape is more than 2 deviations from the mean of the real ones of its class is left out; a layout with no box
  left, or with an unlikely number of them, is drawn again.
* NOTE: objects of one class that touch become one component: where a set is dense, its boxes are too few and too large.  Of a box that
  the border cuts only the visible part is known.
* Training and drawing run on one thread of the CPU: the same bytes on any number of them.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from ..dataset import versions
from ..errors import CCDiffError
from ..files import cache_folder, content_key, read_bytes, write_bytes
from ..geometry import (
    bitmap_outlines,
    clip_hbb,
    corners_inside,
    corners_to_le90,
    hbb_corners,
    hbb_of,
    le90_to_corners,
    min_area_le90,
    visible_hbbs,
)
from ..scene import Corners, Instance, Scene
from .augment import fill_of, hbb_within

REVISION = 2
"""Raised when a change of this module changes what a training learns."""
SIDE, PATCH = 64, 4
WIDTHS = (32, 64)
STEPS, BATCH, PEAK_LR = 300, 16, 2e-3
UNTOLD = 0.1
"""Share of the draws in training that are not told the counts."""
DRAW_STEPS = 25
TRIES = 4
SPECKS = 4
"""A layout with so many times more components than the fullest real one has objects is noise: it is drawn again as a whole."""
SIGMAS = 2.0
UPRIGHT = 1.02
"""An upright box is taken where its area is at most so many times that of the smallest one."""

Progress = Callable[[str, int, int], None]


class LayoutDenoiser(nn.Module):
    """Predicts the maps that noisy ones were made from.

    Args:
        classes: how many channels the maps have.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.enter, self.leave = nn.Conv2d(classes * PATCH**2, width, 1), nn.Conv2d(width, classes * PATCH**2, 1)
        self.counts = nn.Sequential(nn.Linear(classes + 1, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.unet = UNet2DModel(
            sample_size=SIDE // PATCH, in_channels=width, out_channels=width, block_out_channels=WIDTHS, layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8, attention_head_dim=32, class_embed_type="identity",
        )  # fmt: skip

    def forward(self, maps: Tensor, time: Tensor, counts: Tensor) -> Tensor:
        """``(B, C, 64, 64)`` noisy maps, ``(B,)`` times, ``(B, C + 1)`` of :func:`_told` -> ``(B, C, 64, 64)``."""
        patches = self.enter(nn.functional.pixel_unshuffle(maps, PATCH))
        return nn.functional.pixel_shuffle(self.leave(self.unet(patches, time, self.counts(counts)).sample), PATCH)


class DiffusionLayouts:
    """A model of the layouts of a pool; ``draw`` is a layout source.  Trained when it is made, or read from the cache folder.

    Args:
        pool: layouts with at least one object each.
        progress: told of the steps of training.
    """

    def __init__(self, pool: Sequence[Scene], progress: Progress | None = None) -> None:
        self.classes = sorted({name for scene in pool for name in scene.categories()})
        self.likely, self.fill = Likely(pool), fill_of(pool)
        oriented = Counter(i.category for scene in pool for i in scene.instances if i.oriented)
        of_all = Counter(i.category for scene in pool for i in scene.instances)
        self.oriented = {name: 2 * oriented[name] > of_all[name] for name in self.classes}
        with _one_thread():
            self.model = _trained(pool, self.classes, progress)

    def draw(self, scenes: Sequence[Scene], rngs: Sequence[np.random.Generator]) -> list[Scene]:
        """For every scene a layout with about as many objects of each class (nothing else is taken from it but the picture's size).

        ``provenance["layout"]`` says how many layouts were ``rejected`` before it, and how many boxes of it were ``outliers`` and left
        out.  Where every one of ``TRIES`` layouts is rejected, the first one with objects is taken, else the scene itself
        (``instead_of``).  NOTE: scenes drawn together differ by rounding from the same ones drawn alone.
        """
        made = [_said(scene, rejected=TRIES, outliers=0, instead_of="diffusion") for scene in scenes]
        left = list(range(len(scenes)))
        for attempt in range(TRIES):
            again = []
            for k, maps in zip(left, self._maps([scenes[k] for k in left], [rngs[k] for k in left]), strict=True):
                drawn = self._objects(maps, scenes[k])
                kept = tuple(instance for instance in drawn if self.likely.box(instance, scenes[k]))
                fits = self.likely.number(len(kept))
                if fits or (kept and "instead_of" in made[k].provenance["layout"]):
                    layout, gone = scenes[k].replace(instances=kept), len(drawn) - len(kept)
                    made[k] = _said(layout, rejected=attempt if fits else TRIES, outliers=gone)
                if not fits:
                    again.append(k)
            if not again:
                break
            left = again
        return made

    @torch.no_grad()
    def _maps(self, scenes: Sequence[Scene], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """(B, C, 64, 64) of layouts, as they come out of the model."""
        scheduler = _schedule()
        scheduler.set_timesteps(DRAW_STEPS)
        x = torch.from_numpy(np.stack([rng.standard_normal((len(self.classes), SIDE, SIDE), dtype=np.float32) for rng in rngs]))
        told = torch.from_numpy(np.stack([_told(scene, self.classes) for scene in scenes]))
        with _one_thread():
            for time in scheduler.timesteps:
                x = scheduler.step(self.model(x, time.expand(len(x)), told), time, x).prev_sample
        return x.numpy()

    def _objects(self, maps: np.ndarray, scene: Scene) -> list[Instance]:
        cell = np.array([scene.width / SIDE, scene.height / SIDE])
        rings = [(name, ring) for name, channel in zip(self.classes, maps, strict=True) for ring in bitmap_outlines(channel > 0)]
        if len(rings) > SPECKS * self.likely.most:
            return []
        return [self._instance(name, np.reshape(ring, (-1, 2)) * cell, cell, scene) for name, ring in rings]

    def _instance(self, name: str, ring: np.ndarray, cell: np.ndarray, scene: Scene) -> Instance:
        window = (0.0, 0.0, float(scene.width), float(scene.height))
        if not self.oriented[name]:
            return Instance.from_hbb(name, hbb_of(ring.ravel().tolist()))
        corners = box_around(ring, float(cell.mean()))
        if corners_inside(corners, window):
            corners = tuple(float(v) for v in np.clip(np.reshape(corners, (4, 2)), 0, window[2:]).ravel())  # type: ignore[assignment]
        seen = tuple(visible_hbbs(np.reshape(corners, (1, 8)), window)[0].tolist())
        return Instance.from_corners(name, corners, clip_hbb(hbb_within(corners, self.fill.get(name, 1.0)), seen) or seen)  # type: ignore[arg-type]


def box_around(ring: np.ndarray, cell: float) -> Corners:
    """The oriented box of an outline along the edges of cells, pixels.

    Slanted sides of a rectangle become staircases, whose steps stand out by up to half the diagonal of a cell: the smallest rectangle
    around them is made smaller on all sides alike until its area is that of the outline, by that much at most.

    Args:
        ring: (N, 2) points; ``cell``: side of a cell, pixels.
    """
    x1, y1, x2, y2 = hbb_of(ring.ravel().tolist())
    cx, cy, w, h, angle = min_area_le90(ring.ravel().tolist())
    if (x2 - x1) * (y2 - y1) <= UPRIGHT * w * h:
        return hbb_corners((x1, y1, x2, y2))
    x, y = ring.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    total = w + h
    margin = (total - math.sqrt(max(0.0, total**2 - 4 * max(0.0, w * h - area)))) / 4
    margin = min(margin, cell * math.sqrt(0.5))
    return le90_to_corners((cx, cy, w - 2 * margin, h - 2 * margin, angle))


class Likely:
    """Normal distributions fitted to the real boxes of each class, and to the numbers of objects: what is likely by them.

    Of a box: logarithm of the area, as a share of the picture's, and of the ratio of its sides; of a layout: logarithm of its number of
    objects, of which ``most`` is the largest.  Likely is what lies within ``SIGMAS`` deviations of the mean.
    """

    FLOOR = 0.1
    """The least deviation of a logarithm."""

    def __init__(self, pool: Sequence[Scene]) -> None:
        rows: dict[str, list[tuple[float, float]]] = {}
        for scene in pool:
            for instance in scene.instances:
                rows.setdefault(instance.category, []).append(self._attributes(instance, scene))
        self.boxes = {name: self._fitted(np.array(found)) for name, found in rows.items()}
        self.most = max(len(scene.instances) for scene in pool)
        self.numbers = self._fitted(np.log(np.maximum(1, [len(scene.instances) for scene in pool]))[:, None])

    def box(self, instance: Instance, scene: Scene) -> bool:
        """Whether a box is like those of its class."""
        mean, deviation = self.boxes[instance.category]
        return bool((np.abs(np.array(self._attributes(instance, scene)) - mean) <= SIGMAS * deviation).all())

    def number(self, count: int) -> bool:
        """Whether pictures have about so many objects; never of none."""
        mean, deviation = self.numbers
        return count > 0 and bool(abs(math.log(count) - mean[0]) <= SIGMAS * deviation[0])

    @classmethod
    def _fitted(cls, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows.mean(0), np.maximum(rows.std(0), cls.FLOOR)

    @staticmethod
    def _attributes(instance: Instance, scene: Scene) -> tuple[float, float]:
        _, _, w, h, _ = corners_to_le90(instance.corners)
        return math.log(max(w * h, 1e-6) / (scene.width * scene.height)), math.log(max(w, 1e-3) / max(h, 1e-3))


def maps_of(scene: Scene, classes: Sequence[str]) -> np.ndarray:
    """(C, 64, 64) booleans: which cells have their centre in an object of each class; of an object without any, the cell it stands in."""
    maps = np.zeros((len(classes), SIDE, SIDE), bool)
    centres = np.stack(np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5), axis=-1)  # y, x -> (x, y)
    for instance in scene.instances:
        points = np.reshape(instance.corners, (4, 2)) * (SIDE / scene.width, SIDE / scene.height)
        sides, offsets = np.roll(points, -1, axis=0) - points, centres[..., None, :] - points
        turns = sides[:, 0] * offsets[..., 1] - sides[:, 1] * offsets[..., 0]  # on which side of each of the four lines
        inside = np.logical_or((turns >= 0).all(-1), (turns <= 0).all(-1))
        if not inside.any():
            x, y = np.clip(points.mean(0).astype(int), 0, SIDE - 1)
            inside[y, x] = True
        maps[classes.index(instance.category)] |= inside
    return maps


def _said(scene: Scene, **changes: Any) -> Scene:
    return scene.replace(provenance={**scene.provenance, "layout": changes})


def _told(scene: Scene, classes: Sequence[str]) -> np.ndarray:
    """(C + 1,) what the model is told: 1, and the logarithms of the counts; all zero: nothing."""
    counts = Counter(scene.categories())
    return np.array([1.0, *(math.log2(1 + counts[name]) for name in classes)], np.float32)


def _schedule() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing", clip_sample=True)


def _trained(pool: Sequence[Scene], classes: Sequence[str], progress: Progress | None) -> LayoutDenoiser:
    """The model of a pool, from the cache folder where it lies there."""
    records = [[s.width, s.height, [[i.category, i.corners] for i in s.instances]] for s in pool]
    settings = [REVISION, SIDE, PATCH, WIDTHS, STEPS, BATCH, PEAK_LR, UNTOLD, versions()["torch"]]
    file = cache_folder() / "layouts" / f"{content_key([settings, list(classes), records])}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LayoutDenoiser(len(classes)).to(memory_format=torch.channels_last)
    if file.is_file():
        with contextlib.suppress(CCDiffError, SafetensorError, RuntimeError):  # what is damaged is made again
            model.load_state_dict(safetensors_load(read_bytes(file)))
            return model.eval().requires_grad_(False)
    _train(model, pool, classes, progress)
    write_bytes(file, safetensors_save({name: value.contiguous() for name, value in model.state_dict().items()}))
    return model.eval().requires_grad_(False)


def _train(model: LayoutDenoiser, pool: Sequence[Scene], classes: Sequence[str], progress: Progress | None) -> None:
    rng, scheduler = np.random.default_rng(0), _schedule()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01)
    order = np.zeros(0, int)
    model.train()
    for step in range(STEPS):
        share = step / STEPS
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, 20 * share + 1e-3) * (0.5 + 0.5 * math.cos(math.pi * share))
        while len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(pool))])
        chosen, order = order[:BATCH], order[BATCH:]
        loss = _loss(model, scheduler, [pool[k] for k in chosen], classes, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress("layout model", step + 1, STEPS)


def _loss(
    model: LayoutDenoiser, scheduler: DDIMScheduler, scenes: Sequence[Scene], classes: Sequence[str], rng: np.random.Generator
) -> Tensor:
    count = len(scenes)
    maps = np.stack([_flipped(maps_of(scene, classes), int(rng.integers(4))) for scene in scenes])
    told = np.stack([_told(scene, classes) for scene in scenes])
    told[rng.random(count) < UNTOLD] = 0
    clean = torch.from_numpy(maps.astype(np.float32)) * 2 - 1
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    time = torch.from_numpy(rng.integers(0, scheduler.config.num_train_timesteps, count))
    predicted = model(scheduler.add_noise(clean, noise, time), time, torch.from_numpy(told))
    return nn.functional.mse_loss(predicted, clean)


def _flipped(maps: np.ndarray, code: int) -> np.ndarray:
    """Flipped left to right, or upside down, or both: aerial pictures have no up."""
    return maps[:, :: -1 if code & 2 else 1, :: -1 if code & 1 else 1]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
