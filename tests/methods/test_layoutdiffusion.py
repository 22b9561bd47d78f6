"""LayoutDiffusion's network: the published computation with its padding slots, batches, samplers, losses, checkpoints, golden files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods import export_checkpoint, import_checkpoint, load_pipeline
from ccdiff_cli.methods.layoutdiffusion import checkpoints, diffusion, sampling
from ccdiff_cli.methods.layoutdiffusion.network import Layout, LayoutDiffusionUNet, pack_layout
from ccdiff_cli.methods.layoutdiffusion.pipeline import LayoutDiffusionPipeline
from ccdiff_cli.models.checkpoints import load_weights
from tests import golden_check
from tests.models.small import make_scenes

CLASSES, SLOTS, SIDE = 9, 7, 8
SIZES = dict(
    image_size=SIDE, in_channels=3, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_ds=(1, 2), num_head_channels=16,
    classes=CLASSES, slots=SLOTS, layout_width=32, layout_layers=2, layout_heads=4,
)  # fmt: skip


def make_model(**sizes) -> LayoutDiffusionUNet:
    torch.manual_seed(1)
    model = LayoutDiffusionUNet(**{**SIZES, **sizes}).eval()
    for parameter in model.parameters():  # nothing may be zero or one, or it would hide a fault
        if parameter.dim() == 1 or not parameter.any():
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return model


def make_boxes(counts: list[int], pad: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Classes, boxes and which are valid; what a picture holds depends on its place in ``counts`` alone; padding holds rubbish."""
    width = max(counts) + pad
    classes, boxes = torch.full((len(counts), width), 5), torch.rand(len(counts), width, 4)
    for b, count in enumerate(counts):
        g = torch.Generator().manual_seed(b)
        corner = torch.rand(count, 2, generator=g)
        boxes[b, :count] = torch.cat([corner, corner + torch.rand(count, 2, generator=g) * 0.4], 1)
        classes[b, :count] = torch.randint(1, CLASSES - 1, (count,), generator=g)
    return classes, boxes, torch.arange(width)[None] < torch.tensor(counts)[:, None]


def packed(counts: list[int], pad: int = 0, slots: int = SLOTS) -> Layout:
    return pack_layout(*make_boxes(counts, pad), slots, CLASSES - 1)


def published(counts: list[int], b: int, slots: int = SLOTS) -> Layout:
    """Picture ``b`` in all its slots, padding one by one."""
    classes, boxes, _ = make_boxes(counts)
    n = counts[b]
    empty = max(slots - 1 - n, 0)
    return Layout(
        torch.cat([torch.tensor([0]), classes[b, :n], torch.full((empty,), CLASSES - 1)])[None],
        torch.cat([torch.tensor([[0.0, 0, 1, 1]]), boxes[b, :n], torch.zeros(empty, 4)])[None],
        torch.ones(1, 1 + n + empty),
    )


def noise(rows: int, channels: int = 3) -> Tensor:
    return torch.randn(rows, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(9))


def close(a: Tensor, b: Tensor, limit: float = 3e-6) -> bool:
    return float((a - b).norm() / b.norm()) <= limit


# ---- the plain form: one picture, all its slots, double precision ----


class Plain:
    def __init__(self, model: LayoutDiffusionUNet):
        self.w = {k: v.double() for k, v in model.state_dict().items()}
        self.c = model.config

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[name + ".weight"].flatten(1), self.w[name + ".bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        """GroupNorm of tokens (n, C) over all tokens."""
        groups = x.T.reshape(32, -1)
        groups = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return (groups.view(x.T.shape).T) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def encode(self, layout: Layout) -> None:
        w, name, width = self.w, "layout_encoder.", self.c.layout_width
        self.names = w[name + "obj_class_embedding.weight"][layout.classes[0]]
        self.places = self.linear(name + "obj_bbox_embedding", layout.boxes[0].double())
        u = self.names + self.places
        for k in range(self.c.layout_layers):
            block = f"{name}transform.resblocks.{k}."
            n = F.layer_norm(u, (width,), w[block + "ln_1.weight"], w[block + "ln_1.bias"])
            qkv, d, heads = self.linear(block + "attn.c_qkv", n), width // self.c.layout_heads, []
            for h in range(self.c.layout_heads):
                q, key, v = qkv[:, 3 * h * d : 3 * (h + 1) * d].split(d, 1)
                heads.append((q @ key.T / math.sqrt(d)).softmax(-1) @ v)
            u = u + self.linear(block + "attn.c_proj", torch.cat(heads, 1))
            n = F.layer_norm(u, (width,), w[block + "ln_2.weight"], w[block + "ln_2.bias"])
            u = u + self.linear(block + "mlp.c_proj", F.gelu(self.linear(block + "mlp.c_fc", n)))
        self.tokens = F.layer_norm(u, (width,), w[name + "final_ln.weight"], w[name + "final_ln.bias"])
        self.whole = self.linear(name + "transformer_proj", self.tokens[0])

    def attention(self, name: str, x: Tensor, head_width: int) -> Tensor:
        side = x.shape[-1]
        cells = [[j / side, i / side, (j + 1) / side, (i + 1) / side] for i in range(side) for j in range(side)]
        codes = self.linear("layout_encoder.obj_bbox_embedding", torch.tensor(cells, dtype=torch.float64))
        flat = x.flatten(1).T  # P, C
        project = name + ".layout_position_embedding_projector"
        q, k, v = self.linear(name + ".qkv_projector", self.norm(name + ".norm_for_qkv", flat)).chunk(3, 1)
        pc = self.norm(name + ".norm_for_image_patch_positional_embedding", self.linear(project, codes))
        po = self.norm(name + ".norm_for_layout_positional_embedding", self.linear(project, self.places))
        content = (self.tokens + self.norm(name + ".norm_for_obj_class_embedding", self.names)) / 2
        ko, vo = self.linear(name + ".layout_content_embedding_projector", content).chunk(2, 1)
        heads = []
        for at in range(0, x.shape[0], head_width):
            part = slice(at, at + head_width)
            query = torch.cat([q[:, part], pc[:, part]], 1)
            keys = torch.cat([torch.cat([k[:, part], pc[:, part]], 1), torch.cat([ko[:, part], po[:, part]], 1)])
            values = torch.cat([v[:, part], vo[:, part]])
            heads.append((query @ keys.T / math.sqrt(2 * head_width)).softmax(-1) @ values)
        return x + self.linear(name + ".proj_out", torch.cat(heads, 1)).T.reshape(x.shape)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[name + ".weight"]
        return F.conv2d(x[None], weight, self.w[name + ".bias"], padding=weight.shape[-1] // 2)[0]

    def image_norm(self, name: str, x: Tensor) -> Tensor:
        return self.norm(name, x.flatten(1).T).T.reshape(x.shape)

    def residual(self, name: str, x: Tensor, emb: Tensor, resample: str = "") -> Tensor:
        def change(y: Tensor) -> Tensor:
            if resample == "up":
                return y.repeat_interleave(2, 1).repeat_interleave(2, 2)
            if resample == "down":
                return (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
            return y

        h = self.conv(name + ".in_layers.2", change(F.silu(self.image_norm(name + ".in_layers.0", x))))
        scale, shift = self.linear(name + ".emb_layers.1", F.silu(emb)).chunk(2)
        h = self.image_norm(name + ".out_layers.0", h) * (1 + scale[:, None, None]) + shift[:, None, None]
        h = self.conv(name + ".out_layers.3", F.silu(h))
        x = change(x)
        return h + (self.conv(name + ".skip_connection", x) if name + ".skip_connection.weight" in self.w else x)

    def __call__(self, x: Tensor, t: float, layout: Layout) -> Tensor:
        """(C, R, R) -> (2 C, R, R)."""
        self.encode(layout)
        m = self.c.model_channels
        w = [10000 ** (-i / (m // 2)) for i in range(m // 2)]
        code = torch.tensor([math.cos(t * f) for f in w] + [math.sin(t * f) for f in w], dtype=torch.float64)
        emb = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", code))) + self.whole
        d = self.c.num_head_channels
        h = self.conv("input_blocks.0.0", x.double())
        skips, levels = [h], len(self.c.channel_mult)
        at = 1
        for level in range(levels):
            for _ in range(self.c.num_res_blocks):
                h = self.residual(f"input_blocks.{at}.0", h, emb)
                if 2**level in self.c.attention_ds:
                    h = self.attention(f"input_blocks.{at}.1", h, d)
                skips.append(h)
                at += 1
            if level < levels - 1:
                h = self.residual(f"input_blocks.{at}.0", h, emb, "down")
                skips.append(h)
                at += 1
        h = self.residual("middle_block.0", h, emb)
        h = self.residual("middle_block.2", self.attention("middle_block.1", h, d), emb)
        at = 0
        for level in range(levels - 1, -1, -1):
            for i in range(self.c.num_res_blocks + 1):
                h = self.residual(f"output_blocks.{at}.0", torch.cat([h, skips.pop()]), emb)
                place = 1
                if 2**level in self.c.attention_ds:
                    h = self.attention(f"output_blocks.{at}.1", h, d)
                    place = 2
                if level and i == self.c.num_res_blocks:
                    h = self.residual(f"output_blocks.{at}.{place}", h, emb, "up")
                at += 1
        assert not skips
        return self.conv("out.2", F.silu(self.image_norm("out.0", h)))


@torch.no_grad()
def predict(model: LayoutDiffusionUNet, x: Tensor, t, layout: Layout) -> Tensor:
    return model(x, torch.as_tensor(t), model.prepare(layout))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"channel_mult": (1, 2, 2), "attention_ds": (2,), "num_res_blocks": 2},
        {"channel_mult": (2,), "attention_ds": (), "layout_width": 64},
    ],
    ids=["two levels", "three levels", "attention in the middle only"],
)
@torch.no_grad()
def test_equals_the_plain_form_with_its_padding(sizes):
    model = make_model(**sizes)
    counts = [3, 0, 1, 6, 12]  # 6 fill all slots, 12 are more
    x, times = noise(5), torch.tensor([999.0, 0.0, 12.5, 500.0, 42.0])
    ours = predict(model, x, times, packed(counts, pad=2))
    plain = Plain(model)
    for b in range(len(counts)):
        assert close(ours[b].double(), plain(x[b], float(times[b]), published(counts, b))), b


def test_a_picture_alone_equals_the_same_in_a_batch_with_padding():
    model = make_model()
    counts = [2, 30, 0, 6]
    x, times = noise(4), torch.tensor([150, 800, 1, 999])
    together = predict(model, x, times, packed(counts, pad=3))
    for b in range(4):
        classes, boxes, valid = make_boxes(counts)
        alone = pack_layout(
            classes[b : b + 1, : counts[b]], boxes[b : b + 1, : counts[b]], valid[b : b + 1, : counts[b]], SLOTS, CLASSES - 1
        )
        assert close(predict(model, x[b : b + 1], times[b], alone), together[b : b + 1]), b


def test_one_weighted_slot_is_the_same_as_all_the_published_ones_and_their_number_matters():
    model = make_model()
    x = noise(1)
    for slots in (4, 20):
        few = predict(model, x, 300, packed([2], slots=slots))
        assert close(few, predict(model, x, 300, published([2], 0, slots)))
    assert not close(few, predict(model, x, 300, packed([2])), 1e-3)


def test_the_order_of_objects_has_no_effect_but_slot_0_is_the_picture():
    model = make_model()
    x, layout = noise(1), packed([4])
    order = torch.tensor([0, 3, 1, 5, 2, 4])
    mixed = Layout(layout.classes[:, order], layout.boxes[:, order], layout.weight[:, order])
    assert close(predict(model, x, 300, mixed), predict(model, x, 300, layout))


def test_a_picture_without_objects_equals_its_unconditional_branch():
    model = make_model()
    x = noise(2)
    layout = packed([0, 3])
    unconditional = predict(model, x, 300, layout.without_objects(model.padding))
    assert close(predict(model, x, 300, layout)[:1], unconditional[:1])
    assert not close(predict(model, x, 300, layout)[1:], unconditional[1:], 1e-3)
    assert close(unconditional[1:], predict(model, x, 300, packed([0, 0]))[1:])


def test_gradients_reach_every_weight():
    model = make_model()
    for counts in ([2, 0], [0, 0]):
        model.zero_grad()
        x = noise(2)
        model(x, torch.tensor([3, 900]), model.prepare(packed(counts))).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()) and bool(parameter.grad.any()), name


def test_it_starts_by_predicting_nothing_and_saves_and_loads(tmp_path):
    model = LayoutDiffusionUNet(**SIZES)
    assert not predict(model, noise(1), 3, packed([2])).any()
    model.save_pretrained(tmp_path)
    again = LayoutDiffusionUNet.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"model_channels": 48}, "multiples of 32"),
        ({"layout_width": 40}, "multiples of 32"),
        ({"image_size": 9}, "cannot be halved 1 times"),
        ({"layout_heads": 5}, "does not divide into 5 heads"),
        ({"num_head_channels": 24}, "do not divide into heads"),
        ({"classes": 1}, "two classes"),
    ],
)
def test_sizes_that_make_no_network_are_refused(sizes, words):
    with pytest.raises(CCDiffError, match=words):
        LayoutDiffusionUNet(**{**SIZES, **sizes})


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ({}, 568.6),
        ({"image_size": 128, "channel_mult": (1, 1, 2, 3, 4), "attention_ds": (4, 8, 16)}, 435.3),
        ({"model_channels": 128, "layout_width": 128, "layout_layers": 4, "num_head_channels": 32}, 141.9),
        ({"image_size": 32, "in_channels": 4, "channel_mult": (1, 2, 4), "attention_ds": (1, 2, 4), "num_head_channels": 32}, 301.3),
    ],
)
def test_the_published_sizes_have_the_published_numbers_of_weights(sizes, millions):
    with torch.device("meta"):
        model = LayoutDiffusionUNet(**sizes)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


# ---- samplers ----


def test_the_solver_takes_the_published_orders_and_times():
    assert [sampling.dpm_orders(n) for n in (1, 2, 3, 4, 5, 6, 7)] == [[1], [2], [2, 1], [3, 1], [3, 2], [3, 2, 1], [3, 3, 1]]
    for n in range(1, 60):
        assert sum(sampling.dpm_orders(n)) == n
    assert sampling.dpm_orders(25) == [3] * 8 + [1]
    assert float(sampling.dpm_times(3)[-1]) == pytest.approx(9.974254e-5, rel=1e-6)
    assert float(sampling.dpm_times(3, 1e-3)[-1]) == pytest.approx(1.000222e-3, rel=1e-6)
    for bad in (0, -3):
        with pytest.raises(CCDiffError, match=f"{bad} denoising steps"):
            sampling.dpm_orders(bad)
    with pytest.raises(CCDiffError, match="end time is 0"):
        sampling.dpm_times(3, 0)


@pytest.mark.parametrize("evaluations", [1, 2, 3, 6, 7, 8, 25])
def test_the_solver_equals_the_formulas_in_double_precision(evaluations):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    asked = []

    def noise(y: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return torch.tanh(y) + 0.3 * torch.sin(t.view(-1, 1, 1, 1).to(y.dtype) / 300)

    ours = sampling.dpm_sample(noise, x, evaluations, 1e-2)  # where single precision suffices
    assert len(asked) == evaluations and all(t.shape == (2,) for t in asked)

    def alpha(t: float) -> float:
        return math.exp(-(20 - 0.1) * t * t / 4 - 0.1 * t / 2)

    def snr(t: float) -> float:
        return math.log(alpha(t) / math.sqrt(1 - alpha(t) ** 2))

    def at(value: float) -> float:
        z = 39.8 * math.log(1 + math.exp(-2 * value))
        return z / ((math.sqrt(0.01 + z) + 0.1) * 19.9)

    def e(y: Tensor, t: float) -> Tensor:
        return noise(y, torch.tensor([1000 * max(t - 0.001, 0)], dtype=torch.float64))

    orders, y = sampling.dpm_orders(evaluations), x.double()
    edges = np.linspace(snr(1), snr(1e-2), len(orders) + 1)
    for order, first, last in zip(orders, edges[:-1], edges[1:], strict=True):
        s, r, h = at(first), at(last), last - first
        s1, s2 = at(first + h / (2 if order == 2 else 3)), at(first + 2 * h / 3)
        sigma = {t: math.sqrt(1 - alpha(t) ** 2) for t in (r, s1, s2)}
        e0 = e(y, s)
        out = alpha(r) / alpha(s) * y - sigma[r] * math.expm1(h) * e0
        if order == 2:
            e1 = e(alpha(s1) / alpha(s) * y - sigma[s1] * math.expm1(h / 2) * e0, s1)
            out = out - sigma[r] * math.expm1(h) * (e1 - e0)
        if order == 3:
            e1 = e(alpha(s1) / alpha(s) * y - sigma[s1] * math.expm1(h / 3) * e0, s1)
            y2 = alpha(s2) / alpha(s) * y - sigma[s2] * math.expm1(2 * h / 3) * e0
            y2 = y2 - 2 * sigma[s2] * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * (e1 - e0)
            out = out - 1.5 * sigma[r] * (math.expm1(h) / h - 1) * (e(y2, s2) - e0)
        y = out
    assert close(ours.double(), y, 2e-5)


def test_the_shorter_chain_keeps_the_published_times_and_noises():
    for steps in (2, 20, 200, 1000):
        short = sampling.respaced(steps)
        assert short.times.tolist() == [round(i * 999 / (steps - 1)) for i in range(steps)]
        abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        assert short.chain.alphas_cumprod.numpy() == pytest.approx(abar[short.times], rel=1e-9)
    with pytest.raises(CCDiffError, match="1 denoising steps"):
        sampling.respaced(1)


def test_the_chain_is_the_normal_distribution_it_should_be():
    """q(x before | x, picture) is proportional to q(x | x before) q(x before | picture): means and variances of that product."""
    chain = diffusion.training_chain()
    index = torch.tensor([1, 10, 500, 999])
    start, x = torch.full((4, 1), 0.3, dtype=torch.float64), torch.full((4, 1), -0.8, dtype=torch.float64)
    a, before, beta = 1 - chain.betas[index], chain.previous[index], chain.betas[index]
    precision = a / beta + 1 / (1 - before)
    assert chain.posterior_log_variance[index].numpy() == pytest.approx((1 / precision).log().numpy(), rel=1e-9)
    mean = (a.sqrt() * -0.8 / beta + before.sqrt() * 0.3 / (1 - before)) / precision
    assert chain.posterior_mean(start, x, index)[:, 0].numpy() == pytest.approx(mean.numpy(), rel=1e-9)
    assert chain.posterior_log_variance[0] == chain.posterior_log_variance[1]


def test_ancestral_sampling_finds_the_picture_of_a_network_that_knows_it():
    target = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(4)) * 2 - 1
    abar = torch.cumprod(1 - diffusion.linear_betas(), 0).float()
    g = torch.Generator().manual_seed(5)

    def known(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a = abar[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * target) / (1 - a).sqrt(), -torch.ones_like(x)

    found = sampling.ancestral_sample(known, torch.randn(2, 3, 4, 4, generator=g), 20, lambda j: torch.randn(2, 3, 4, 4, generator=g))
    assert close(found, target, 1e-3)


def test_guidance_strengthens_the_noise_alone():
    model, x = make_model(), noise(2)
    layout = packed([2, 3])
    with torch.no_grad():
        given, none = model.prepare(layout), model.prepare(layout.without_objects(model.padding))
        c, u = (model(x, torch.tensor(50), context).chunk(2, 1) for context in (given, none))
        for scale in (0.0, 1.5):
            found, variance = sampling.guided(model, given, none, scale)(x, torch.tensor(50))
            assert close(found, c[0] + scale * (c[0] - u[0])) and torch.equal(variance, c[1])


# ---- losses ----


def test_losses_equal_their_definition():
    g = torch.Generator().manual_seed(3)
    start = torch.rand(3, 1, 4, 4, generator=g) * 2 - 1
    start[:, :, 0, 0], start[:, :, 0, 1] = -1, 1  # open bins
    added, prediction, index = torch.randn(3, 1, 4, 4, generator=g), torch.randn(3, 2, 4, 4, generator=g), torch.tensor([0, 1, 700])
    squared, bound = (v.mean((1, 2)) for v in diffusion.losses(diffusion.training_chain(), prediction, start, added, index))
    assert squared.numpy() == pytest.approx(((added - prediction[:, :1]) ** 2).mean((1, 2, 3)).numpy(), rel=1e-6)
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    for b, t in enumerate(index.tolist()):
        x0, e, v = start[b, 0].double().numpy(), added[b, 0].double().numpy(), prediction[b].double().numpy()
        x = math.sqrt(abar[t]) * x0 + math.sqrt(1 - abar[t]) * e
        previous = abar[t - 1] if t else 1.0
        of0, ofx = betas[t] * math.sqrt(previous) / (1 - abar[t]), (1 - previous) * math.sqrt(1 - betas[t]) / (1 - abar[t])
        mean = of0 * (x - math.sqrt(1 - abar[t]) * v[0]) / math.sqrt(abar[t]) + ofx * x
        least = betas[max(t, 1)] * (1 - abar[max(t, 1) - 1]) / (1 - abar[max(t, 1)])
        share = (v[1] + 1) / 2
        log = share * math.log(betas[t]) + (1 - share) * math.log(least)
        if t:
            nats = 0.5 * (log - math.log(least) - 1 + (least + (of0 * x0 + ofx * x - mean) ** 2) / np.exp(log))
        else:

            def cdf(y, mean=mean, log=log):
                y = (y - mean) / np.exp(log / 2)
                return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

            low = np.where(x0 < -0.999, 0.0, cdf(x0 - 1 / 255))
            high = np.where(x0 > 0.999, 1.0, cdf(x0 + 1 / 255))
            nats = -np.log(np.maximum(high - low, 1e-12))
        assert float(bound[b]) == pytest.approx(nats.mean() / math.log(2), rel=2e-3 if t == 0 else 1e-4), t


def test_the_bound_teaches_the_variance_alone():
    prediction = torch.randn(2, 2, 4, 4, requires_grad=True)
    start = torch.rand(2, 1, 4, 4) * 2 - 1
    _, bound = diffusion.losses(diffusion.training_chain(), prediction, start, torch.randn(2, 1, 4, 4), torch.tensor([0, 300]))
    (gradient,) = torch.autograd.grad(bound.sum(), prediction)
    assert not gradient[:, :1].any() and bool(gradient[:, 1:].any())


# ---- checkpoints ----


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"channel_mult": (1, 1, 2), "attention_ds": (2, 4), "num_res_blocks": 3},
        {"channel_mult": (2,), "attention_ds": (1,), "in_channels": 4},
    ],
)
def test_a_released_file_gives_the_network_back(tmp_path, sizes):
    model = make_model(**sizes)
    weights = model.state_dict()
    early = {k.replace("obj_bbox_embedding", "obj_box_embedding"): v for k, v in weights.items()}
    for given in (weights, early):
        read = checkpoints.with_present_names(given)
        found = checkpoints.sizes_of(read, head_width=16, layout_heads=4)
        size = 8 * 2 ** (len({**SIZES, **sizes}["channel_mult"]) - 1)  # as published: the lowest grid is 8 x 8
        expected = {**SIZES, **sizes, "slots": 10, "image_size": size}
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()} == expected
        other = LayoutDiffusionUNet(**found)
        load_weights(other, read, tmp_path)
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_released_file_becomes_a_generator_and_goes_back(tmp_path):
    model = make_model(image_size=16, slots=10, layout_heads=8)
    weights = model.state_dict()
    torch.save(weights, tmp_path / "released.pt")
    names = [f"class {k}" for k in range(CLASSES - 2)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    given = {"method": "layoutdiffusion", "head_width": 16, "classes": tmp_path / "classes.txt"}
    made = import_checkpoint(tmp_path / "released.pt", tmp_path / "g", **given)
    assert made["method"] == "layoutdiffusion" and made["picture_size"] == 16 and made["classes"] == names
    pipe = load_pipeline(tmp_path / "g")
    assert pipe.known_classes == names and pipe.vae is None
    assert all(torch.equal(v, pipe.unet.state_dict()[k]) for k, v in model.state_dict().items())
    (file,) = export_checkpoint(tmp_path / "g", tmp_path / "back")
    back = torch.load(file, weights_only=True)
    assert back.keys() == weights.keys() and all(torch.equal(back[k], weights[k]) for k in weights)
    with pytest.raises(CCDiffError, match="knows 7 classes by number, 0 names"):
        import_checkpoint(tmp_path / "released.pt", tmp_path / "h", method="layoutdiffusion", head_width=16)
    del weights["time_embed.0.bias"]
    torch.save(weights | {"extra.weight": torch.zeros(1), "out.2.bias": torch.zeros(5)}, tmp_path / "released.pt")
    with pytest.raises(CCDiffError) as caught:
        import_checkpoint(tmp_path / "released.pt", tmp_path / "h", **given)
    message = str(caught.value)
    assert "missing keys (1): time_embed.0.bias" in message and "surplus keys (1): extra.weight" in message
    assert "out.2.bias (5,) instead of (6,)" in message and not (tmp_path / "h").exists()


RESBLOCK = "layout_encoder.transform.resblocks."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time_embed.0.weight": torch.zeros(0, 32)}, "not a LayoutDiffusion network"),
        ({"time_embed.0.weight": torch.zeros(())}, "not a LayoutDiffusion network"),
        ({"time_embed.0.weight": torch.zeros(124, 31)}, "multiples of 32"),
        ({"input_blocks.0.0.weight": torch.zeros(0)}, "not a LayoutDiffusion network"),
        ({"layout_encoder.obj_class_embedding.weight": torch.zeros(3)}, "not a LayoutDiffusion network"),
        ({f"{RESBLOCK}100000000.ln.weight": torch.zeros(1)}, "counted from 0"),
        ({"input_blocks.100000000.0.weight": torch.zeros(1)}, "counted from 0"),
        ({"layout_encoder.obj_class_embedding.weight": torch.zeros(1).expand(CLASSES, 10**9)}, "more numbers"),
        ({"out.2.bias": torch.zeros(6).to_sparse()}, "more numbers"),
        ({"out.2.bias": torch.zeros(6, dtype=torch.complex64)}, "kinds of numbers"),
        ({"out.2.bias": torch.full((6,), torch.nan)}, "no number"),
    ],
)
def test_a_file_whose_weights_lie_is_refused_before_a_network_of_any_size_is_made(tmp_path, changes, said):
    torch.save({**make_model(image_size=16, slots=10, layout_heads=8).state_dict(), **changes}, tmp_path / "odd.pt")
    (tmp_path / "classes.txt").write_text("\n".join(f"class {k}" for k in range(CLASSES - 2)))
    with pytest.raises(CCDiffError, match=said):
        import_checkpoint(tmp_path / "odd.pt", tmp_path / "g", method="layoutdiffusion", head_width=16, classes=tmp_path / "classes.txt")
    assert not (tmp_path / "g").exists()


# ---- the pipeline ----


def make_pipeline(**options) -> LayoutDiffusionPipeline:
    model = make_model(image_size=16, class_names=("court", "plane", "ship", "a", "b", "c", "d"))
    pipe = LayoutDiffusionPipeline(unet=model, scheduler=diffusion.training_schedule(), num_inference_steps=4, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


@pytest.mark.parametrize("sampler", ["dpmsolver-fast", "ancestral"])
def test_a_picture_of_a_batch_equals_the_picture_alone_also_from_a_saved_folder(tmp_path, sampler):
    pipe = make_pipeline(sampler=sampler)
    pipe.save_pretrained(tmp_path)
    again = LayoutDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    scenes, _ = make_scenes([3, 0, 25], size=(16, 16))
    together = pipe(scenes, generator=generators(3), output_type="latent").images
    assert float(together.abs().max()) <= 1
    for b in range(3):
        alone = again(scenes[b : b + 1], generator=generators(3)[b : b + 1], output_type="latent").images
        assert close(alone, together[b : b + 1], 1e-3)  # the network is rough, and four steps are few


def test_the_unconditional_branch_has_padding_in_place_of_objects():
    pipe = make_pipeline()
    scenes, _ = make_scenes([3, 2], size=(16, 16))
    layout, empty, x = pipe.layout_batch(scenes), torch.zeros(1, 0, 0), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        both = pipe.predict(torch.cat([x, x]), torch.tensor(500), pipe.condition(layout, empty, guided=True))
        dropped = pipe.predict(x, torch.tensor(500), pipe.condition(layout, empty, dropped=torch.tensor([True, False])))
        layout.valid[:] = False
        bare = pipe.predict(x, torch.tensor(500), pipe.condition(layout, empty))
    assert close(both[:2], bare) and close(both[0], dropped[0]) and close(both[3], dropped[1]) and not close(both[3], bare[1], 1e-3)


def test_what_it_cannot_do_is_said():
    pipe = make_pipeline()
    with pytest.raises(CCDiffError, match="built for pictures of 16x16, asked for 32x16"):
        pipe(make_scenes([1], size=(16, 32))[0])
    with pytest.raises(CCDiffError, match="does not sample by 'euler'"):
        pipe.set_up(scheduler="euler")
    scene = make_scenes([1], size=(16, 16))[0][0]
    unknown = scene.replace(instances=tuple(i.__class__.from_corners("zebra", i.corners) for i in scene.instances))
    with pytest.raises(CCDiffError, match="does not know the class 'zebra'"):
        pipe([unknown])


@pytest.mark.skipif("CCDIFF_SHARED" not in os.environ, reason="CCDIFF_SHARED does not name the folder with reference/methods/golden")
def test_passes_on_the_given_files():
    files = sorted(map(str, (Path(os.environ["CCDIFF_SHARED"]) / "reference" / "methods" / "golden").glob("layoutdiffusion_*.safetensors")))
    assert files and golden_check.main(files) == 0
