"""Feature distances against torch-fidelity, closed forms and brute force; and what they must do when pictures get worse."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.drawn import draw_picture
from ccdiff_cli.drawn.scenes import SCENES
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.metrics.distances import compare, fid, kid, mean_interval, nearest, neighbourhoods
from ccdiff_cli.metrics.features import find_extractor


def normal(seed: int, rows: int, width: int = 6, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (rows, width))


def test_fid_is_the_closed_form_of_two_gaussians_and_zero_for_equal_sets():
    a = normal(0, 400)
    assert fid(a, a) == pytest.approx(0, abs=1e-9)
    assert fid(a, a + 2) == pytest.approx(4 * 6)
    assert fid(a, (a - a.mean(0)) * 3 + a.mean(0)) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)))
    assert fid(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def test_fid_and_kid_equal_torch_fidelity():
    metric_fid, metric_kid = pytest.importorskip("torch_fidelity.metric_fid"), pytest.importorskip("torch_fidelity.metric_kid")
    import torch

    for rows, width in ((50, 8), (20, 40)):  # with fewer pictures than features, too
        a, b = normal(1, rows, width), normal(2, rows, width, shift=0.3, scale=1.4)
        stats = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
        theirs = metric_fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
        assert fid(a, b) == pytest.approx(theirs, rel=1e-6)
        options = {"kid_subsets": 1, "kid_subset_size": rows, "verbose": False, "rng_seed": 0}
        theirs = metric_kid.kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **options)["kernel_inception_distance_mean"]
        assert kid(a, b) == pytest.approx(theirs, rel=1e-9)


def test_kid_of_a_resample_leaves_out_pairs_of_a_picture_with_itself():
    """Samples of one distribution: without that, the interval of a resampled set would lie above its own figure."""
    a, b = normal(3, 60), normal(4, 60)
    row = compare(a, b, [str(i) for i in range(60)], samples=60)["KID"]
    assert row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize("k", [1, 5])
def test_neighbourhoods_are_those_of_brute_force(k):
    real, made = normal(5, 23), normal(6, 17, shift=0.5)
    far = lambda x, y: np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))  # noqa: E731
    reach_real, reach_made = (np.sort(far(x, x), axis=1)[:, k] for x in (real, made))
    between = far(real, made)
    found = {name: values.mean() for name, (values, _) in neighbourhoods(real, made, k).items()}
    assert found == pytest.approx(
        {
            "precision": (between <= reach_real[:, None]).any(0).mean(),
            "recall": (between <= reach_made[None]).any(1).mean(),
            "density": (between <= reach_real[:, None]).sum() / (k * 17),
            "coverage": (between.min(1) <= reach_real).mean(),
        }
    )


def test_nearest_is_the_highest_cosine():
    of, among = normal(7, 9), normal(8, 31)
    cosine = (of / np.linalg.norm(of, axis=1)[:, None]) @ (among / np.linalg.norm(among, axis=1)[:, None]).T
    index, distance = nearest(of, among)
    assert index.tolist() == cosine.argmax(1).tolist() and distance == pytest.approx(1 - cosine.max(1))


def test_intervals_hold_the_figure_and_narrow_with_more_pictures():
    widths = []
    for rows in (60, 600):
        result = compare(normal(9, rows), normal(10, rows, shift=0.4), [str(i // 2) for i in range(rows)], samples=40)
        for row in result.values():
            assert row["low"] <= row["value"] <= row["high"]
        widths.append(result["FID"]["high"] - result["FID"]["low"])
    assert widths[1] < widths[0] / 2
    assert compare(normal(9, 20), normal(10, 20), ["a"] * 20, samples=0)["FID"]["low"] is None


def test_mean_interval_draws_whole_pictures():
    values = np.repeat([0.0, 1.0], 50)
    one = mean_interval(values, np.repeat([0, 1], 50), samples=100)  # two pictures: the mean is anything from 0 to 1
    many = mean_interval(values, np.arange(100), samples=100)
    assert (one["low"], one["value"], one["high"]) == (0, 0.5, 1) and many["low"] > 0.35
    assert mean_interval(np.zeros(0), np.zeros(0, int), samples=10)["value"] is None


@pytest.fixture(scope="module")
def drawn():
    """The drawn set's scenes, twelve of each kind, in two halves of the same kinds; encoded by EfficientNet-Lite0."""
    try:
        judge = find_extractor("efficientnet-lite0", "cpu")
    except CCDiffError:
        pytest.skip("needs the extra cpu-detector")
    pictures = [draw_picture(k, size=96)[0] for k in range(12 * len(SCENES))]
    kinds = np.array([k % len(SCENES) for k in range(len(pictures))])
    half = np.array([(k // len(SCENES)) % 2 for k in range(len(pictures))])

    def encode(some: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([judge.encode([Image.fromarray(p) for p in some[i : i + 8]]) for i in range(0, len(some), 8)])

    return pictures, kinds, half, encode


@pytest.mark.parametrize("distance", [fid, kid])
def test_distance_is_near_zero_between_halves_and_grows_with_blur_noise_and_imbalance(drawn, distance):
    pictures, kinds, half, encode = drawn
    if not hasattr(encode, "known"):  # both distances look at the same features
        rng = np.random.default_rng(0)
        one = [p for p, h in zip(pictures, half, strict=True) if h]
        noisy = [[np.clip(p + rng.normal(0, s, p.shape), 0, 255).astype(np.uint8) for p in one] for s in (15, 40)]
        encode.known = (
            encode(pictures),
            [encode([cv2.GaussianBlur(p, None, s) for p in one]) for s in (1.0, 2.5)],
            [encode(n) for n in noisy],
        )
    known, blurred, noised = encode.known
    real, other = known[half == 0], known[half == 1]
    halves = distance(real, other)
    for worse in (blurred, noised):
        assert halves < distance(real, worse[0]) < distance(real, worse[1])
        assert distance(real, worse[1]) > 3 * halves
    skewed = [known[(half == 1) & (kinds < kept)] for kept in (len(SCENES), len(SCENES) // 2, 1)]
    resized = [x[np.arange(len(other)) % len(x)] for x in skewed]  # the same number of pictures, ever fewer kinds
    values = [distance(real, x) for x in resized]
    assert values[0] < values[1] < values[2]
