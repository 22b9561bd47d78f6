"""Layouts by diffusion: a denoising model of a set's layouts as boxes, and the test that its boxes are like the real ones.

The first two steps of AeroGen's pipeline (Tang et al., CVPR 2025, arXiv 2411.15497), which its authors did not release.  NOTE: theirs
denoises a layout as a map with a channel for each class, ours as the boxes themselves.  Maps are nearly all ground, and a model of them
that a CPU trained in two minutes drew nothing (docs/log.md); objects of a class that touch are one there, and of a cut object its visible
part alone is known.  Here:

* An object is ten numbers: centre, logarithms of its area and of the ratio of its sides (over the deviations of its class), cosine and
  sine of twice its angle, and for each border of the picture whether it cuts the object (+1 or -1: analog bits, Chen et al., ICLR 2023).
  A transformer on the objects of a layout, told their classes, learns to denoise them all at once (DDPM, Ho et al. 2020; cosine schedule;
  it predicts velocities, Salimans and Ho 2022), from layouts in all symmetries.
* What the objects of a class have in common in a layout (direction, size) shows in the mean of their noisy numbers: every object is
  given it.  A layout is learned from the more often the more objects it has.
* A layout is drawn with the classes of a real picture, so that the order of pictures decides which classes come how often, as for every
  source.  An object that a border cuts is put against it, another one inside, if it is not there; then overlaps above what is usual for
  the two classes are repaired.  Classes without orientations in the set get horizontal boxes.
* A box whose size or shape is more than 2 deviations from the mean of the real ones of its class is an outlier.  A layout that loses
  objects as outliers or in the repair is drawn again; of ``TRIES`` the one that loses the fewest is taken without them.
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
from diffusers import DDIMScheduler
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from ..dataset import versions
from ..errors import CCDiffError
from ..files import cache_folder, content_key, read_bytes, write_bytes
from ..geometry import corners_to_le90, hbb_of, le90_to_corners
from ..scene import Instance, Scene
from .augment import BORDER, cut_sides, fill_of, touches_border
from .repair import Overlaps, repair
from .sampler import SIDES, against_border, instance_at, moved_in

REVISION = 3
"""Raised when a change of this module changes what a training learns."""
WIDTH, LAYERS, HEADS, FREQUENCIES = 128, 4, 4, 4
STEPS, BATCH, PEAK_LR = 2000, 64, 2e-3
SORTED = 8
"""So many batches are drawn together and sorted by their numbers of objects, to save padding."""
MOST = 100
"""Of a layout with more objects a training step sees so many, at random."""
DRAW_STEPS = 50
TRIES = 4
SIGMAS = 2.0
NUMBERS = 10
"""Of an object: x, y, size, ratio, cosine, sine, cut on the left, at the top, on the right, at the bottom."""
PLACE, TURN = math.sqrt(3), math.sqrt(2)
"""What gives places and angles that are evenly spread the deviation 1."""

Progress = Callable[[str, int, int], None]


class LayoutDenoiser(nn.Module):
    """Predicts the velocities of noisy objects.

    Args:
        classes: how many there are.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, WIDTH)
        self.enter = nn.Linear(NUMBERS * (2 + 2 * FREQUENCIES) + 1, WIDTH)
        self.time = nn.Sequential(nn.Linear(64, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.leave = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, NUMBERS))

    def forward(self, objects: Tensor, time: Tensor, classes: Tensor, padding: Tensor) -> Tensor:
        """``(B, N, 10)`` noisy objects, ``(B,)`` times, ``(B, N)`` class indices, ``(B, N)`` True where there is none -> ``(B, N, 10)``."""
        waves = [wave(objects * 2.0**k) for k in range(-1, FREQUENCIES - 1) for wave in (torch.sin, torch.cos)]
        alike = (classes[:, :, None] == classes[:, None]) & ~padding[:, None]
        count = alike.sum(-1, keepdim=True).clamp(min=1)
        habits = [alike.float() @ objects / count, count.log2()]
        phase = torch.exp(-math.log(1e4) * torch.arange(32) / 32) * time[:, None]
        told = self.classes(classes) + self.time(torch.cat([phase.sin(), phase.cos()], -1))[:, None]
        return self.leave(self.body(self.enter(torch.cat([objects, *waves, *habits], -1)) + told, src_key_padding_mask=padding))


class DiffusionLayouts:
    """A model of the layouts of a pool; ``draw`` is a layout source.  Trained when it is made, or read from the cache folder.

    Args:
        pool: layouts with at least one object each.
        progress: told of the steps of training.
    """

    def __init__(self, pool: Sequence[Scene], progress: Progress | None = None) -> None:
        self.code, self.likely, self.fill, self.allowed = Code(pool), Likely(pool), fill_of(pool), Overlaps(pool)
        with _one_thread():
            self.model = _trained(pool, self.code, progress)

    def draw(self, scenes: Sequence[Scene], rngs: Sequence[np.random.Generator]) -> list[Scene]:
        """For every scene a layout with the same classes (nothing else is taken from it but the picture's size).

        ``provenance["layout"]`` says how many layouts were ``rejected`` before it, how many ``outliers`` of it were left out, and what the
        repair of overlaps did (``moved``, ``shrunk``, ``left_out``).  Where no try has an object left, the scene itself is taken
        (``instead_of``).  NOTE: scenes drawn together differ by rounding from the same ones drawn alone.
        """
        made = [_said(scene, rejected=TRIES, outliers=0, instead_of="diffusion") for scene in scenes]
        fewest = [len(scene.instances) for scene in scenes]
        left = [k for k, scene in enumerate(scenes) if scene.instances]
        for attempt in range(TRIES):
            again = []
            for k, numbers in zip(left, self._numbers([scenes[k] for k in left], [rngs[k] for k in left]), strict=True):
                layout, outliers, repaired = self._layout(numbers, scenes[k])
                lost = len(numbers) - len(layout.instances)
                if lost < fewest[k]:
                    made[k], fewest[k] = _said(layout, rejected=attempt, outliers=outliers, **repaired), lost
                if lost:
                    again.append(k)
            left = again
            if not left:
                break
        return made

    @torch.no_grad()
    def _numbers(self, scenes: Sequence[Scene], rngs: Sequence[np.random.Generator]) -> list[np.ndarray]:
        """For every scene (N, 10) of new objects of its classes, as they come out of the model."""
        scheduler = _schedule()
        scheduler.set_timesteps(DRAW_STEPS)
        noise = [rng.standard_normal((len(scene.instances), NUMBERS), dtype=np.float32) for scene, rng in zip(scenes, rngs, strict=True)]
        x, classes, padding = _batch(noise, [self.code.classes_of(scene) for scene in scenes])
        with _one_thread():
            for time in scheduler.timesteps:
                x = scheduler.step(self.model(x, time.expand(len(x)), classes, padding), time, x).prev_sample
        return [row[: len(scene.instances)].numpy() for row, scene in zip(x, scenes, strict=True)]

    def _layout(self, numbers: np.ndarray, scene: Scene) -> tuple[Scene, int, dict[str, int]]:
        """The layout, how many outliers it is without, and what was repaired."""
        names = scene.categories()
        drawn = [self.code.instance(row, name, scene, self.fill.get(name, 1.0)) for row, name in zip(numbers, names, strict=True)]
        kept = tuple(instance for instance in drawn if self.likely.box(instance, scene))
        cut = [k for k, i in enumerate(kept) if touches_border(i, scene.width, scene.height)]
        layout, repaired = repair(scene.replace(instances=kept), allowed=self.allowed, cut=cut)
        return layout, len(drawn) - len(kept), repaired


class Code:
    """Objects as numbers (``NUMBERS`` says which), and back."""

    def __init__(self, pool: Sequence[Scene]) -> None:
        self.classes = sorted({name for scene in pool for name in scene.categories()})
        self.normal = _normal_by_class(pool)
        oriented = Counter(i.category for scene in pool for i in scene.instances if i.oriented)
        of_all = Counter(i.category for scene in pool for i in scene.instances)
        self.oriented = {name: 2 * oriented[name] > of_all[name] for name in self.classes}

    def classes_of(self, scene: Scene) -> np.ndarray:
        """(N,) indices."""
        return np.array([self.classes.index(name) for name in scene.categories()], np.int64)

    def numbers(self, scene: Scene) -> np.ndarray:
        """(N, 10) of about deviation 1."""
        rows = []
        for instance in scene.instances:
            cx, cy, _, _, angle = corners_to_le90(instance.corners)
            mean, deviation = self.normal[instance.category]
            area, ratio = (np.array(attributes(instance, scene)) - mean) / deviation
            place = PLACE * (2 * cx / scene.width - 1), PLACE * (2 * cy / scene.height - 1)
            cuts = (2.0 * cut - 1 for cut in cut_sides(instance, scene.width, scene.height))
            rows.append((*place, area, ratio, TURN * math.cos(2 * angle), TURN * math.sin(2 * angle), *cuts))
        return np.array(rows, np.float32).reshape(-1, NUMBERS)

    def instance(self, row: np.ndarray, name: str, scene: Scene, fill: float) -> Instance:
        """The object of a row; against the borders that cut it, and touching no others."""
        mean, deviation = self.normal[name]
        log_area, log_ratio = row[2:4].astype(np.float64) * deviation + mean
        area, ratio = math.exp(min(log_area, 1.0)) * scene.width * scene.height, math.exp(float(np.clip(log_ratio, 0.0, 7.0)))
        angle = math.atan2(float(row[5]), float(row[4])) / 2
        if not self.oriented[name]:
            angle = 0.0 if row[4] > 0 else math.pi / 2
        size = np.array([scene.width, scene.height], np.float64)
        cx, cy = (row[:2] / PLACE + 1) / 2 * size
        corners = np.array(le90_to_corners((cx, cy, math.sqrt(area * ratio), math.sqrt(area / ratio), angle))).reshape(4, 2)
        border = sum(bit for bit, cut in zip(SIDES, row[6:], strict=True) if cut > 0)
        fitted: np.ndarray | None = corners
        if border:
            fitted = against_border(corners, border, _reach(corners, border, size), size)
        elif corners.min() < BORDER or (corners > size - BORDER).any():
            fitted = None
        return instance_at(name, moved_in(corners, size) if fitted is None else fitted, size, fill, oriented=self.oriented[name])


class Likely:
    """Normal distributions fitted to the real boxes of each class (:func:`attributes`): what is likely by them.

    Likely is what lies within ``SIGMAS`` deviations of the mean.
    """

    def __init__(self, pool: Sequence[Scene]) -> None:
        self.boxes = _normal_by_class(pool)

    def box(self, instance: Instance, scene: Scene) -> bool:
        """Whether a box is like those of its class."""
        mean, deviation = self.boxes[instance.category]
        return bool((np.abs(np.array(attributes(instance, scene)) - mean) <= SIGMAS * deviation).all())


def attributes(instance: Instance, scene: Scene) -> tuple[float, float]:
    """Of a box: logarithm of the area, as a share of the picture's, and of the ratio of its sides."""
    _, _, w, h, _ = corners_to_le90(instance.corners)
    return math.log(max(w * h, 1e-6) / (scene.width * scene.height)), math.log(max(w, 1e-3) / max(h, 1e-3))


FLOOR = 0.1
"""The least deviation of a logarithm."""


def _normal_by_class(pool: Sequence[Scene]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of the :func:`attributes` of every class."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for scene in pool:
        for instance in scene.instances:
            rows.setdefault(instance.category, []).append(attributes(instance, scene))
    return {name: (np.mean(found, axis=0), np.maximum(np.std(found, axis=0), FLOOR)) for name, found in rows.items()}


def _reach(corners: np.ndarray, border: int, size: np.ndarray) -> np.ndarray:
    """How far (4, 2) corners reach beyond the borders named, over their extent along the axis."""
    x1, y1, x2, y2 = hbb_of(corners.ravel().tolist())
    beyond = np.maximum(0.0, (-x1, -y1, x2 - size[0], y2 - size[1])) / np.maximum(1e-6, (x2 - x1, y2 - y1, x2 - x1, y2 - y1))
    return beyond * [bool(border & bit) for bit in SIDES]


_MIRRORED = np.array([-1, 1, 1, 1, 1, -1, 1, 1, 1, 1], np.float32), [0, 1, 2, 3, 4, 5, 8, 7, 6, 9]
_UPSIDE_DOWN = np.array([1, -1, 1, 1, 1, -1, 1, 1, 1, 1], np.float32), [0, 1, 2, 3, 4, 5, 6, 9, 8, 7]
_TRANSPOSED = np.array([1, 1, 1, 1, -1, 1, 1, 1, 1, 1], np.float32), [1, 0, 2, 3, 4, 5, 7, 6, 9, 8]


def symmetric(numbers: np.ndarray, code: int) -> np.ndarray:
    """Objects of a picture that is flipped left to right (1), upside down (2) and has x and y exchanged (4; of square pictures)."""
    for bit, (signs, order) in zip((1, 2, 4), (_MIRRORED, _UPSIDE_DOWN, _TRANSPOSED), strict=True):
        if code & bit:
            numbers = numbers[:, order] * signs
    return numbers


def _said(scene: Scene, **changes: Any) -> Scene:
    return scene.replace(provenance={**scene.provenance, "layout": changes})


def _schedule() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )  # fmt: skip


def _batch(objects: Sequence[np.ndarray], classes: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Objects (B, N, 10), classes (B, N), and (B, N) True where there is none; N that of the fullest layout."""
    most = max(map(len, objects))
    x, c = torch.zeros(len(objects), most, NUMBERS), torch.zeros(len(objects), most, dtype=torch.int64)
    padding = torch.ones(len(objects), most, dtype=torch.bool)
    for k, (mine, labels) in enumerate(zip(objects, classes, strict=True)):
        x[k, : len(mine)], c[k, : len(mine)], padding[k, : len(mine)] = torch.from_numpy(mine), torch.from_numpy(labels), False
    return x, c, padding


def _trained(pool: Sequence[Scene], code: Code, progress: Progress | None) -> LayoutDenoiser:
    """The model of a pool, from the cache folder where it lies there."""
    records = [[s.width, s.height, [[i.category, i.corners, i.hbb, i.oriented] for i in s.instances]] for s in pool]
    settings = [REVISION, WIDTH, LAYERS, HEADS, FREQUENCIES, STEPS, BATCH, PEAK_LR, MOST, versions()["torch"]]
    file = cache_folder() / "layouts" / f"{content_key([settings, code.classes, records])}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LayoutDenoiser(len(code.classes))
    if file.is_file():
        with contextlib.suppress(CCDiffError, SafetensorError, RuntimeError):  # what is damaged is made again
            model.load_state_dict(safetensors_load(read_bytes(file)))
            return model.eval().requires_grad_(False)
    _train(model, pool, code, progress)
    write_bytes(file, safetensors_save({name: value.contiguous() for name, value in model.state_dict().items()}))
    return model.eval().requires_grad_(False)


def _train(model: LayoutDenoiser, pool: Sequence[Scene], code: Code, progress: Progress | None) -> None:
    rng, scheduler = np.random.default_rng(0), _schedule()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01)
    known = [(code.numbers(scene), code.classes_of(scene), scene.width == scene.height) for scene in pool]
    often = np.array([len(numbers) for numbers, _, _ in known], np.float64)
    often /= often.sum()
    batches: list[np.ndarray] = []
    model.train()
    for step in range(STEPS):
        share = step / STEPS
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, 20 * share + 1e-3) * (0.5 + 0.5 * math.cos(math.pi * share))
        if not batches:
            chosen = rng.choice(len(pool), SORTED * BATCH, p=often)
            chosen = chosen[np.argsort([len(known[k][0]) for k in chosen], kind="stable")].reshape(SORTED, BATCH)
            batches = list(chosen[rng.permutation(SORTED)])
        loss = _loss(model, scheduler, [known[k] for k in batches.pop()], rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress("layout model", step + 1, STEPS)


def _loss(
    model: LayoutDenoiser, scheduler: DDIMScheduler, layouts: Sequence[tuple[np.ndarray, np.ndarray, bool]], rng: np.random.Generator
) -> Tensor:
    """Mean square error of the velocities of layouts (numbers, classes, whether the picture is square) in random symmetries."""
    objects, classes = [], []
    for numbers, labels, square in layouts:
        seen = np.sort(rng.permutation(len(numbers))[:MOST])
        objects.append(symmetric(numbers[seen], int(rng.integers(8 if square else 4))))
        classes.append(labels[seen])
    clean, labels_, padding = _batch(objects, classes)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    time = torch.from_numpy(rng.integers(0, scheduler.config.num_train_timesteps, len(clean)))
    predicted = model(scheduler.add_noise(clean, noise, time), time, labels_, padding)
    return nn.functional.mse_loss(predicted[~padding], scheduler.get_velocity(clean, noise, time)[~padding])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
