"""Both resamplers against a plain form; batches; references that are missing or shared."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ccdiff_cli.models.layers import fourier_code, ragged_attention
from ccdiff_cli.models.resamplers import CoResampler

from .plain import plain_co_resampler, plain_dual_resampler
from .small import make_batch, make_resampler


def features_of(batch, b):
    padded = torch.cat([batch.features, torch.zeros_like(batch.features[:1])])  # index -1: no reference
    return padded[batch.instance_reference[b][batch.valid[b]]], padded[batch.background_reference[b]]


@pytest.mark.parametrize("variant", ["ccdiff++", "ccdiff"])
@torch.no_grad()
def test_equals_the_plain_form_in_a_batch(variant):
    torch.manual_seed(0)
    resampler = make_resampler(variant)
    batch = make_batch([4, 1, 30], pad=2)
    tokens = resampler(batch)
    start = 0
    for b, count in enumerate(batch.valid.sum(1).tolist()):
        given = (*features_of(batch, b), batch.obb[b][batch.valid[b]])
        expected = plain_co_resampler(resampler, *given) if variant == "ccdiff++" else plain_dual_resampler(resampler, *given)
        ours = [tokens.foreground[start : start + count], tokens.background[b], tokens.relation[b] if variant == "ccdiff++" else None]
        for a, e in zip(ours, expected, strict=False):
            assert (a - e).norm() <= 2e-6 * e.norm()
        start += count


@torch.no_grad()
def test_no_instances_leaves_the_background_and_relation_defined():
    resampler = make_resampler()
    tokens = resampler(make_batch([0, 0]))
    assert tokens.foreground.shape == (0, 3, 24) and tokens.background.isfinite().all() and tokens.relation.isfinite().all()


@pytest.mark.parametrize("variant", ["ccdiff++", "ccdiff"])
@torch.no_grad()
def test_no_reference_at_all_equals_zero_features(variant):
    resampler = make_resampler(variant)
    batch = make_batch([3])
    none = dataclasses.replace(
        batch,
        features=batch.features[:0],
        instance_reference=torch.full_like(batch.instance_reference, -1),
        background_reference=torch.tensor([-1]),
    )
    zero = dataclasses.replace(batch, features=torch.zeros_like(batch.features))
    a, b = resampler(none), resampler(zero)
    assert torch.allclose(a.foreground, b.foreground, atol=1e-6) and torch.allclose(a.background, b.background, atol=1e-6)


def test_fourier_code_order():
    code = fourier_code(torch.tensor([0.1, 0.9]))
    f = 100 ** (1 / 8)
    expected = torch.tensor([0.1, 0.9]).sin(), torch.tensor([0.1, 0.9]).cos(), torch.tensor([0.1 * f, 0.9 * f]).sin()
    assert torch.allclose(code[:6], torch.cat(expected)) and code.shape == (32,)


def test_ragged_attention_is_softmax_over_the_joined_keys():
    torch.manual_seed(0)
    query, owner = torch.randn(3, 2, 4, 5), torch.tensor([2, 0, 1, 0, 0])
    key, value, own = torch.randn(5, 2, 6, 5) * 30, torch.randn(5, 2, 6, 5), torch.randn(3, 2, 1, 5)
    out = ragged_attention(query, [(key, value, owner), (own, own, torch.arange(3))])
    for b in range(3):
        k = torch.cat([*key[owner == b], own[b]], dim=1)
        v = torch.cat([*value[owner == b], own[b]], dim=1)
        assert torch.allclose(out[b], torch.nn.functional.scaled_dot_product_attention(query[b], k, v), atol=1e-5)


def test_save_and_load(tmp_path):
    resampler = make_resampler()
    resampler.save_pretrained(tmp_path)
    loaded = CoResampler.from_pretrained(tmp_path)
    batch = make_batch([2])
    with torch.no_grad():
        assert torch.allclose(loaded(batch).relation, resampler(batch).relation, atol=1e-6)
