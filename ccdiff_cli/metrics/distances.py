"""Distances between two sets of features: FID, KID, precision, recall, density, coverage, nearest neighbours.

Notable:

* FID (Heusel et al. 2017) without a root of a matrix: the trace of (A B)^(1/2) is the sum of the singular values of a small product of
  the pictures themselves, equal to torch-fidelity's and many times faster, which the bootstrap needs.  FID is biased upward on small
  sets: compare sets of the same number of pictures only.
* KID (Bińkowski et al. 2018) is the unbiased estimate over all pairs, where torch-fidelity averages it over random subsets: the same
  expectation without the noise of the subsets.
* A resampled set holds pictures (of KID: pictures of one source) several times, which alone raises both; so their interval is that of
  the deviations from the resamples' mean, laid around the figure.  In KID pairs of a picture with itself are left out.
* Precision and recall: Kynkäänniemi et al. 2019; density and coverage: Naeem et al. 2020; all with the 5 nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, eigvalsh

from ..detectors import Progress

NEIGHBOURS = 5
ROWS = 2048
"""Rows of a distance matrix held at once."""


def fid(real: np.ndarray, made: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two feature sets (N, D), (M, D)."""
    return _frechet(real, np.ones(len(real)), made, np.ones(len(made)))


def kid(real: np.ndarray, made: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the cubic kernel (x.y / D + 1)^3, unbiased."""
    return float(_kid(real, made, np.ones((1, len(real))), np.ones((1, len(made))))[0])


def compare(
    real: np.ndarray,
    made: np.ndarray,
    groups: Sequence[str],
    *,
    samples: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
    stage: str = "",
) -> dict[str, dict[str, float | None]]:
    """Every figure with its 95 % interval (None with fewer than 10 samples).

    Args:
        real: (N, D) features of real pictures.
        made: (M, D) features of the set judged.
        groups: the source of every real picture; pictures of one source are drawn together.
        samples: bootstrap samples over real sources and pictures judged.

    Returns:
        {"FID" | "KID" | "precision" | "recall" | "density" | "coverage": {"value", "low", "high"}}; KID is in thousandths.
    """
    real, made = np.asarray(real, np.float64), np.asarray(made, np.float64)
    rng = np.random.default_rng([seed, 11])
    names = sorted(set(groups))
    member = np.array([names.index(g) for g in groups])
    times_real = [
        np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member].astype(float) for _ in range(samples)
    ]
    times_made = [np.bincount(rng.integers(len(made), size=len(made)), minlength=len(made)).astype(float) for _ in range(samples)]
    drawn = []
    for k, (a, b) in enumerate(zip(times_real, times_made, strict=True)):
        drawn.append(_frechet(real, a, made, b))
        if progress:
            progress(stage, k + 1, samples)
    value = fid(real, made)
    result = {"FID": {"value": value, **_around(value, np.array(drawn))}}
    every = 1000 * _kid(real, made, np.array([np.ones(len(real)), *times_real]), np.array([np.ones(len(made)), *times_made]))
    result["KID"] = {"value": float(every[0]), **_around(float(every[0]), every[1:])}
    for name, (each, of_real) in neighbourhoods(real, made).items():
        weights = times_real if of_real else times_made
        result[name] = {"value": float(each.mean()), **_interval([float(each @ w / w.sum()) for w in weights if w.sum()])}
    return {name: {k: None if v is None else round(v, 5) for k, v in row.items()} for name, row in result.items()}


def neighbourhoods(real: np.ndarray, made: np.ndarray, k: int = NEIGHBOURS) -> dict[str, tuple[np.ndarray, bool]]:
    """Per picture: whether it lies in the other set's neighbourhood.

    Returns:
        {"precision", "density": ((M,), False), "recall", "coverage": ((N,), True)}; the means are the measures.
    """
    reach_real, reach_made = _reach(real, k), _reach(made, k)
    inside = np.zeros(len(made))  # real neighbourhoods that hold the picture
    recall, coverage = np.zeros(len(real)), np.zeros(len(real))
    for start, distance in _distances(real, made):
        stop = start + len(distance)
        inside += (distance <= reach_real[start:stop, None]).sum(axis=0)
        recall[start:stop] = (distance <= reach_made[None]).any(axis=1)
        coverage[start:stop] = distance.min(axis=1) <= reach_real[start:stop]
    neighbours = min(k, len(real) - 1)
    return {
        "precision": ((inside > 0).astype(float), False),
        "recall": (recall, True),
        "density": (inside / max(1, neighbours), False),
        "coverage": (coverage, True),
    }


def nearest(of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every row of ``of`` the nearest row of ``among`` by cosine distance (1 - cosine): index and distance, (N,) each."""
    one, other = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (np.asarray(of, float), np.asarray(among, float))
    )
    index, distance = np.zeros(len(one), np.int64), np.zeros(len(one))
    for start in range(0, len(one), ROWS):
        cosine = one[start : start + ROWS] @ other.T
        index[start : start + ROWS] = cosine.argmax(axis=1)
        distance[start : start + ROWS] = np.clip(1 - cosine.max(axis=1), 0, None)
    return index, distance


def mean_interval(values: np.ndarray, groups: np.ndarray, *, samples: int, seed: int = 0) -> dict[str, float | None]:
    """Mean of values and its 95 % interval when the groups they belong to (whole numbers from 0) are drawn anew."""
    if not len(values):
        return {"value": None, "low": None, "high": None}
    rng = np.random.default_rng([seed, 12])
    count = int(groups.max()) + 1
    total, number = np.bincount(groups, values, minlength=count), np.bincount(groups, minlength=count)
    drawn = []
    for _ in range(samples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        if times @ number:
            drawn.append(float(times @ total / (times @ number)))
    return {"value": round(float(values.mean()), 5), **{k: v if v is None else round(v, 5) for k, v in _interval(drawn).items()}}


def _around(value: float, drawn: np.ndarray) -> dict[str, float | None]:
    return _interval(drawn - drawn.mean() + value if len(drawn) else drawn)


def _interval(drawn: Any) -> dict[str, float | None]:
    if len(drawn) < 10:
        return {"low": None, "high": None}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


def _frechet(x: np.ndarray, times_x: np.ndarray, y: np.ndarray, times_y: np.ndarray) -> float:
    """|a - b|^2 + tr A + tr B - 2 tr (A B)^(1/2) of the means and covariances of rows that stand in their sets so many times.

    With A = F'F and B = G'G the last trace is the sum of the singular values of FG': here the roots of the eigenvalues of its smaller
    square.
    """
    mean_x, f = _factor(np.asarray(x, np.float64), times_x)
    mean_y, g = _factor(np.asarray(y, np.float64), times_y)
    both = f @ g.T
    square = both @ both.T if len(f) <= len(g) else both.T @ both
    cross = np.sqrt(np.clip(eigvalsh(square), 0, None)).sum()
    return float(((mean_x - mean_y) ** 2).sum() + (f**2).sum() + (g**2).sum() - 2 * cross)


def _factor(x: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,), and F of at most D rows with F'F the covariance."""
    total = times.sum()
    mean = times @ x / total
    there = times > 0
    f = (x[there] - mean) * np.sqrt(times[there] / max(total - 1, 1))[:, None]
    if len(f) <= f.shape[1]:
        return mean, f
    covariance = f.T @ f
    try:
        return mean, cholesky(covariance)
    except LinAlgError:  # a feature that never changes, or follows from others
        values, vectors = eigh(covariance)
        return mean, np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def _kid(real: np.ndarray, made: np.ndarray, times_real: np.ndarray, times_made: np.ndarray) -> np.ndarray:
    """KID of every resample: times (S, N) and (S, M) that each picture stands in it; pairs of a picture with itself left out."""

    def mean(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, same: bool) -> np.ndarray:
        total = np.zeros(len(a))
        for start in range(0, len(x), ROWS):
            block = (x[start : start + ROWS] @ y.T / x.shape[1] + 1) ** 3
            if same:
                block[np.arange(len(block)), np.arange(start, start + len(block))] = 0
            total += ((block @ b.T) * a[:, start : start + ROWS].T).sum(axis=0)
        pairs = a.sum(axis=1) * b.sum(axis=1) - ((a * a).sum(axis=1) if same else 0)
        result: np.ndarray = total / np.maximum(pairs, 1e-12)
        return result

    return (
        mean(real, real, times_real, times_real, True)
        + mean(made, made, times_made, times_made, True)
        - 2 * mean(real, made, times_real, times_made, False)
    )


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    squares = (y**2).sum(axis=1)
    for start in range(0, len(x), ROWS):
        some = x[start : start + ROWS]
        yield start, np.sqrt(np.clip((some**2).sum(axis=1)[:, None] + squares - 2 * some @ y.T, 0, None))


def _reach(x: np.ndarray, k: int) -> np.ndarray:
    """Distance of every row to its k-th nearest other row, (N,)."""
    k = min(k, len(x) - 1)
    reach = np.zeros(len(x))
    for start, distance in _distances(x, x):
        reach[start : start + len(distance)] = np.partition(distance, k, axis=1)[:, k]
    return reach
