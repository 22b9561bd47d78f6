"""The conditional generation module: the published computation, batches, padding, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.models.conditioning import (
    ConditionedUNet,
    ConditioningConfig,
    conditioning_parameters,
    install_conditioning,
    prepare_context,
)
from ccdiff_cli.models.layout import LayoutBatch

from .plain import plain_denoise
from .small import PLACES, UNET, make_batch, make_resampler, make_unet

VARIANTS = ["ccdiff++", "ccdiff"]


def picture(batch: LayoutBatch, b: int) -> LayoutBatch:
    """Picture ``b`` alone, without padding."""
    count = int(batch.valid[b].sum())
    rows = {
        f.name: getattr(batch, f.name)[b : b + 1, :count]
        for f in dataclasses.fields(batch)
        if f.name in ("hbb", "obb", "valid", "class_index", "instance_reference")
    }
    alone = {name: getattr(batch, name)[b : b + 1] for name in ("caption_tokens", "caption_pooled", "background_reference")}
    return dataclasses.replace(batch, **rows, **alone, regions=None)


def noise(batch: LayoutBatch, rows: int | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(11)
    return torch.randn(rows or batch.batch_size, 4, *batch.latent_size, generator=g)


@torch.no_grad()
def denoise(unet, resampler, batch, x, **options) -> torch.Tensor:
    context = prepare_context(unet, batch, resampler(batch), **options)
    return unet(x, torch.tensor(300), batch.caption_tokens, cross_attention_kwargs={"conditioning": context}).sample


class Denoiser(torch.nn.Module):
    """Resampler and UNet as one module, as training steps them."""

    def __init__(self, unet, resampler):
        super().__init__()
        self.unet, self.resampler = unet, resampler

    def forward(self, x, timesteps, batch, conditional=None):
        context = prepare_context(self.unet, batch, self.resampler(batch), conditional)
        return self.unet(x, timesteps, batch.caption_tokens, cross_attention_kwargs={"conditioning": context}).sample


def models(variant: str, **options):
    torch.manual_seed(5)
    return make_unet(variant, **options).eval(), make_resampler(variant).eval()


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-5) -> bool:
    return float((a - b).norm() / b.norm()) <= limit


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("size", "heads"), [((128, 128), None), ((96, 160), 8)], ids=["square", "not square, 8 heads"])
def test_equals_the_plain_form(variant, size, heads):
    unet, resampler = models(variant, heads=heads)
    batch = make_batch([3, 0, 7], size)
    x = noise(batch)
    ours = denoise(unet, resampler, batch, x)
    with torch.no_grad():
        tokens = resampler(batch)
    for b in range(3):
        assert close(ours[b], plain_denoise(unet, x, torch.tensor(300), batch, tokens, b, variant), 5e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_alone_equals_the_same_in_a_crowd_with_padding(variant):
    unet, resampler = models(variant)
    batch = make_batch([2, 60, 0], pad=5)
    x = noise(batch)
    together = denoise(unet, resampler, batch, x)
    for b in range(3):
        alone = picture(batch, b)
        assert close(denoise(unet, resampler, alone, x[b : b + 1])[0], together[b], 2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_padding_holds_does_not_matter(variant):
    unet, resampler = models(variant)
    batch = make_batch([2, 4], pad=3)
    x = noise(batch)
    other = dataclasses.replace(batch, hbb=batch.hbb.clone(), obb=batch.obb.clone(), class_index=batch.class_index.clone())
    other.hbb[~batch.valid], other.obb[~batch.valid], other.class_index[~batch.valid] = 0.7, torch.rand(8), 2
    other.instance_reference = torch.where(batch.valid, batch.instance_reference, 3)
    assert torch.equal(denoise(unet, resampler, batch, x), denoise(unet, resampler, other, x))


def test_published_padding_feeds_the_relation_tokens_and_nothing_else():
    _, resampler = models("ccdiff++")
    batch = make_batch([2, 5, 0])
    published = batch.published_padding(4)
    assert published.valid.sum(1).tolist() == [4, 5, 4]
    with torch.no_grad():
        ours, theirs = resampler(batch), resampler(published)
    kept = torch.tensor([0, 1, 4, 5, 6, 7, 8])  # of 4 + 5 + 4 instances
    assert torch.allclose(ours.foreground, theirs.foreground[kept], atol=1e-6)
    assert torch.allclose(ours.background, theirs.background, atol=1e-6)
    assert torch.allclose(ours.relation[1], theirs.relation[1], atol=1e-6)
    assert not torch.allclose(ours.relation[0], theirs.relation[0], atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unconditional_rows_are_the_plain_unet(variant):
    unet, resampler = models(variant)
    batch = make_batch([3, 2, 4])
    x = noise(batch)
    conditional = torch.tensor([True, False, True])
    mixed = denoise(unet, resampler, batch, x, conditional=conditional)
    every = denoise(unet, resampler, batch, x)
    with torch.no_grad():
        plain = unet(x, torch.tensor(300), batch.caption_tokens).sample
    assert close(mixed[1], plain[1], 1e-6) and close(mixed[0], every[0], 1e-6) and close(mixed[2], every[2], 1e-6)
    assert not close(every[1], plain[1], 1e-3)
    none = denoise(unet, resampler, batch, x, conditional=torch.zeros(3, dtype=torch.bool))
    assert close(none, plain, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_guidance_pair_is_the_two_branches(variant):
    unet, resampler = models(variant)
    batch = make_batch([3, 0])
    x = noise(batch)
    negative = torch.randn(2, *batch.caption_tokens.shape[1:])
    with torch.no_grad():
        context = prepare_context(unet, batch, resampler(batch), guidance=True)
        pair = unet(
            torch.cat([x, x]),
            torch.tensor(300),
            torch.cat([negative, batch.caption_tokens]),
            cross_attention_kwargs={"conditioning": context},
        ).sample
        plain = unet(x, torch.tensor(300), negative).sample
    assert close(pair[:2], plain, 2e-6) and close(pair[2:], denoise(unet, resampler, batch, x), 2e-6)


def test_a_context_of_another_batch_is_refused():
    unet, resampler = models("ccdiff++")
    batch = make_batch([3, 0])
    with pytest.raises(ValueError, match="conditional rows"):
        denoise(unet, resampler, batch, noise(batch), guidance=True)


def test_gate_threshold_keeps_its_bound():
    # the sum over instances lacks at most N * threshold times the largest term; far below that through the whole UNet here
    unet, resampler = models("ccdiff++")
    batch = make_batch([20])
    x = noise(batch)
    exact = denoise(unet, resampler, batch, x, gate_threshold=0.0)
    assert close(denoise(unet, resampler, batch, x), exact, 2e-6)
    coarse = denoise(unet, resampler, batch, x, gate_threshold=1e-2)
    assert 1e-6 < float((coarse - exact).norm() / exact.norm()) < 20 * 1e-2


def test_skipping_makes_work_follow_the_covered_area():
    unet, resampler = models("ccdiff++")
    batch = make_batch([40], (256, 256))
    small = dataclasses.replace(batch, hbb=torch.cat([batch.hbb[..., :2], batch.hbb[..., :2] + 0.02], -1))
    tokens = resampler(batch)

    def tiles(b):
        return sum(len(layer.grid.instances.source) for layer in prepare_context(unet, b, tokens).layers.values())

    assert tiles(small) < tiles(batch) / 2


@pytest.mark.parametrize(
    "options", [{"gate": "obb"}, {"gate_centred": True}, {"gate_min_cells": 3.0}, {"gate": "obb", "gate_min_cells": 3.0}]
)
def test_gate_options_change_the_result_and_stay_finite(options):
    unet, resampler = models("ccdiff++")
    batch = make_batch([5, 1])
    x = noise(batch)
    published = denoise(unet, resampler, batch, x)
    install = ConditioningConfig.from_dict(unet.config.conditioning | options)
    unet.register_to_config(conditioning=install.to_dict())
    changed = denoise(unet, resampler, batch, x)
    assert changed.isfinite().all() and not close(changed, published, 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("counts", [[0, 0], [1, 0], [100, 3]], ids=["N=0", "N=1", "N=100"])
def test_a_training_step_gives_every_parameter_a_gradient(variant, counts):
    torch.manual_seed(0)
    model = Denoiser(make_unet(variant), make_resampler(variant)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = make_batch(counts)
    loss = model(noise(batch), torch.tensor([10, 900]), batch).square().mean()
    loss.backward()
    # an empty text tile leaves nothing out: everything that is trained takes part in every graph, so that DDP can rely on it
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    if min(counts) > 0:
        assert [n for n, p in model.named_parameters() if not p.grad.any()] == []
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_published_training_reaches_the_module_and_nothing_else():
    torch.manual_seed(0)
    unet, resampler = make_unet(), make_resampler()
    unet.requires_grad_(False)
    trained = list(conditioning_parameters(unet))
    for p in trained:
        p.requires_grad_(True)
    before = {n: p.clone() for n, p in unet.named_parameters()}
    model = Denoiser(unet, resampler)
    optimizer = torch.optim.SGD([*trained, *resampler.parameters()], lr=1.0)
    batch = make_batch([4, 2])
    model(noise(batch), torch.tensor([10, 900]), batch).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in [*trained, *resampler.parameters()])
    optimizer.step()
    moved = {n for n, p in unet.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, _ in unet.named_parameters() if ".fusion." in n} and len(moved) == len(trained)


def test_dual_resampler_stops_the_bridge_from_moving_the_foreground():
    torch.manual_seed(0)
    resampler = make_resampler("ccdiff")
    resampler(make_batch([3])).background.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in resampler.fg_resampler.parameters())
    assert resampler.point_net.linears_position[0].weight.grad is not None


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_equals_the_plain_step(variant):
    batch = make_batch([4, 0, 2])
    conditional = torch.tensor([True, True, False])
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Denoiser(make_unet(variant), make_resampler(variant)).train()
        if checkpointing:
            model.unet.enable_gradient_checkpointing()
        model(noise(batch), torch.tensor([10, 900, 5]), batch, conditional).square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.allclose(grads[1][name], grad, atol=1e-6, rtol=1e-4), name


def test_zero_init_leaves_a_plain_unet_where_no_instance_is():
    torch.manual_seed(0)
    unet, resampler = make_unet(zero_init=True).eval(), make_resampler().eval()
    batch = make_batch([0])
    x = noise(batch)
    with torch.no_grad():
        plain = unet(x, torch.tensor(300), batch.caption_tokens).sample
    assert close(denoise(unet, resampler, batch, x), plain, 1e-6)


def test_bfloat16_stays_near_float32():
    unet, resampler = models("ccdiff++")
    batch = make_batch([3, 5])
    x = noise(batch)
    exact = denoise(unet, resampler, batch, x)
    half = denoise(unet.to(torch.bfloat16), resampler.to(torch.bfloat16), batch.to(dtype=torch.bfloat16), x.bfloat16())
    assert half.dtype == torch.bfloat16 and close(half.float(), exact, 0.05)


def test_autocast_trains():
    torch.manual_seed(0)
    model = Denoiser(make_unet(), make_resampler())
    batch = make_batch([3, 5])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(noise(batch), torch.tensor([10, 900]), batch).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_blocks_compile_without_a_graph_break():
    torch._dynamo.reset()
    unet, resampler = models("ccdiff++")
    batch = make_batch([3, 1])
    x = noise(batch)
    plain = denoise(unet, resampler, batch, x)
    unet.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert close(denoise(unet, resampler, batch, x), plain, 1e-6)
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0
    torch._dynamo.reset()


def test_save_and_load_keep_the_module(tmp_path):
    unet, resampler = models("ccdiff")
    assert isinstance(unet, ConditionedUNet)
    unet.save_pretrained(tmp_path)
    loaded = ConditionedUNet.from_pretrained(tmp_path).eval()
    batch = make_batch([3])
    x = noise(batch)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in unet.state_dict().items())
    assert close(denoise(loaded, resampler, batch, x), denoise(unet, resampler, batch, x), 1e-6)


def test_parameters_carry_the_released_names():
    names = {n for n, _ in make_unet().named_parameters() if ".processor." in n}
    stem = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.processor.fusion."
    here = {n.removeprefix(stem) for n in names if n.startswith(stem)}
    attention = {
        f"{a}.{p}"
        for a in ("ea_obj", "ea2", "ea_rel", "la")
        for p in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
    }
    norms = {f"{n}.{p}" for n in ("norm_obj", "norm2", "norm_rel") for p in ("weight", "bias")}
    points = {f"pos_net.linears_position.{k}.{p}" for k in (0, 2, 4) for p in ("weight", "bias")}
    assert here == attention | norms | points
    assert {n.split(".attn2")[0].split(".attentions")[0] for n in names} == set(PLACES)


def test_a_place_without_cross_attention_is_refused():
    from diffusers import UNet2DConditionModel

    with pytest.raises(CCDiffError, match=r"up_blocks\.0"):
        install_conditioning(UNet2DConditionModel(**UNET), ConditioningConfig(places=("mid_block", "up_blocks.0")))
    with pytest.raises(CCDiffError, match="variant"):
        ConditioningConfig(variant="ccdiff+++")
    with pytest.raises(CCDiffError, match="gate_shape"):
        ConditioningConfig.from_dict({"gate_shape": "obb"})
