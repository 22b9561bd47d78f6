"""AeroGen's network: the published computation with its slots, batches, checkpoints, gradients, and golden files."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods import export_checkpoint, import_checkpoint, load_pipeline
from ccdiff_cli.methods.aerogen import checkpoints, sampling
from ccdiff_cli.methods.aerogen.network import AeroGenUNet, Layout, cell_corners, clockwise, rasters, trained_parameters
from ccdiff_cli.methods.aerogen.pipeline import AeroGenPipeline
from ccdiff_cli.models.checkpoints import read_pickle
from tests import golden_check
from tests.models.small import make_scenes, make_text_encoder, make_tokenizer, make_vae

TEXT, CLASS = 24, 12


def make_unet(**layout) -> AeroGenUNet:
    torch.manual_seed(1)
    sizes = checkpoints.unet_config(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(1, 2), num_heads=2,
                                    context_dim=TEXT, sample_size=16)  # fmt: skip
    unet = AeroGenUNet(**sizes, layout={"class_width": CLASS, "slots": 6, "hidden": 32, **layout}).eval()
    for name, parameter in unet.named_parameters():  # nothing may be zero, or it would hide a fault
        if name.startswith("mask_attention.proj_out") or "null" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return unet


def make_layout(counts: list[int], grid: tuple[int, int] = (16, 16), pad: int = 0) -> Layout:
    """Quadrangles that overlap and leave the picture; what a picture holds depends on its place in ``counts`` alone."""
    width = max(counts) + pad
    obb, vectors = torch.zeros(len(counts), width, 8), torch.zeros(len(counts), width, CLASS)
    for b, count in enumerate(counts):
        g = torch.Generator().manual_seed(b)
        centre = torch.rand(count, 1, 2, generator=g) * 1.2 - 0.1
        obb[b, :count] = (centre + (torch.rand(count, 4, 2, generator=g) - 0.5) * 0.6).reshape(count, 8)
        vectors[b, :count] = torch.randn(count, CLASS, generator=g)
    return Layout(obb, vectors, torch.arange(width)[None] < torch.tensor(counts)[:, None], grid)


def picture(layout: Layout, b: int) -> Layout:
    count = int(layout.valid[b].sum())
    return Layout(layout.obb[b : b + 1, :count], layout.vectors[b : b + 1, :count], layout.valid[b : b + 1, :count], layout.grid)


def inputs(rows: int, grid: tuple[int, int] = (16, 16)) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(9)
    return torch.randn(rows, 4, *grid, generator=g), torch.randn(rows, 5, TEXT, generator=g)


def close(a: Tensor, b: Tensor, limit: float = 2e-6) -> bool:
    return float((a - b).norm() / b.norm()) <= limit


# ---- the plain form: one picture, S slots, every slot on the whole grid ----


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))


def slots_of(layout: Layout, slots: int) -> tuple[list[list[float]], list[Tensor | None]]:
    """Corners in cells and class vectors of the S slots of the one picture, None where empty."""
    height, width = layout.grid
    count = int(layout.valid[0].sum())
    corners = [
        [math.trunc(float(np.float32(v) * np.float32((width, height)[k % 2]))) for k, v in enumerate(o)] for o in layout.obb[0, :count]
    ]
    empty = max(slots - count, 0)
    return corners + [[0] * 8] * empty, [*layout.vectors[0, :count], *[None] * empty]


def plain_tokens(w: dict[str, Tensor], corners: list[list[float]], vectors: list[Tensor | None]) -> Tensor:
    tokens = []
    for place, vector in zip(corners, vectors, strict=True):
        code = []
        for i in range(8):
            f = np.float32(100) ** np.float32(i / 8)
            code += [math.sin(np.float32(f * np.float32(c))) for c in place] + [math.cos(np.float32(f * np.float32(c))) for c in place]
        if vector is None:
            x = torch.cat([w["layout_encoder.null_text_feature"], w["layout_encoder.null_position_feature"]])
        else:
            x = torch.cat([vector, torch.tensor(code)])
        x = linear(w, "layout_encoder.linears.0", x)
        x = linear(w, "layout_encoder.linears.2", F.silu(x))
        tokens.append(linear(w, "layout_encoder.linears.4", F.silu(x)))
    return torch.stack(tokens)


def plain_mask_attention(w: dict[str, Tensor], x: Tensor, corners: list[list[float]], vectors: list[Tensor | None]) -> Tensor:
    """(C, h, w) -> the same."""
    name = "mask_attention."
    total = torch.zeros_like(x)
    for place, vector in zip(corners, vectors, strict=True):
        if vector is None:
            continue
        mask = np.zeros(x.shape[1:], np.uint8)
        cv2.fillPoly(mask, [np.array(place, np.int32).reshape(4, 2)], 1)
        z = linear(w, name + "proj_in", x.permute(1, 2, 0))
        z = z + linear(w, name + "crossattn.to_out.0", linear(w, name + "crossattn.to_v", vector))
        n = F.layer_norm(z, z.shape[-1:], w[name + "norm3.weight"], w[name + "norm3.bias"], 1e-5)
        a, gate = linear(w, name + "ffn.net.0.proj", n).chunk(2, -1)
        z = z + linear(w, name + "ffn.net.2", a * F.gelu(gate))
        total = total + torch.from_numpy(mask) * linear(w, name + "proj_out", z).permute(2, 0, 1)
    return 0.2 * total + 0.8 * x


class PlainDual:
    """Attention of every slot's token, empty ones one by one."""

    def __init__(self, control, tokens: Tensor):
        self.control, self.tokens = control, tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        (x,), (text,) = hidden_states, encoder_hidden_states
        out = []
        query = attn.to_q(x).chunk(attn.heads, -1)
        pairs = [(attn.to_k(text), attn.to_v(text)), (self.control.to_k_control(self.tokens), self.control.to_v_control(self.tokens))]
        for h in range(attn.heads):
            parts = []
            for key, value in pairs:
                k, v = key.chunk(attn.heads, -1)[h], value.chunk(attn.heads, -1)[h]
                parts.append((query[h] @ k.T / math.sqrt(k.shape[-1])).softmax(-1) @ v)
            out.append(parts[0] + parts[1])
        return attn.to_out[0](torch.cat(out, -1))[None]


@torch.no_grad()
def plain_denoise(unet: AeroGenUNet, x: Tensor, t: int, text: Tensor, layout: Layout, slots: int) -> Tensor:
    """One picture (1, 4, h, w)."""
    w = dict(unet.state_dict())
    corners, vectors = slots_of(layout, slots)
    tokens = plain_tokens(w, corners, vectors)
    kept = unet.attn_processors
    unet.set_attn_processor({k: PlainDual(p, tokens) if hasattr(p, "to_k_control") else p for k, p in kept.items()})

    def masked(module, given, output):
        return plain_mask_attention(w, output[0], corners, vectors)[None] if t >= 200 else output

    hook = unet.conv_in.register_forward_hook(masked)
    try:
        return unet(x, t, text).sample
    finally:
        hook.remove()
        unet.set_attn_processor(kept)


@torch.no_grad()
def denoise(unet: AeroGenUNet, x: Tensor, t, text: Tensor, layout: Layout) -> Tensor:
    return unet(x, torch.as_tensor(t), text, cross_attention_kwargs={"layout": unet.prepare(layout)}).sample


@pytest.mark.parametrize("grid", [(16, 16), (8, 24)], ids=["square", "wide"])
@pytest.mark.parametrize("t", [199, 200, 999])
def test_equals_the_plain_form_with_its_slots(grid, t):
    unet = make_unet()
    layout = make_layout([3, 0, 1, 8], grid, pad=1)  # 8 are more than the 6 slots
    x, text = inputs(4, grid)
    ours = denoise(unet, x, t, text, layout)
    for b in range(4):
        assert close(ours[b : b + 1], plain_denoise(unet, x[b : b + 1], t, text[b : b + 1], picture(layout, b), 6)), b


def test_the_number_of_slots_is_a_setting_and_changes_the_picture():
    layout, (x, text) = make_layout([2]), inputs(1)
    few, many = make_unet(slots=2), make_unet(slots=20)
    assert close(denoise(many, x, 500, text, layout), plain_denoise(many, x, 500, text, layout, 20))
    assert close(denoise(few, x, 500, text, layout), plain_denoise(few, x, 500, text, layout, 2))
    assert not close(denoise(many, x, 500, text, layout), denoise(few, x, 500, text, layout), 1e-3)


def test_a_picture_alone_equals_the_same_in_a_batch_at_other_times_with_padding():
    unet = make_unet()
    layout = make_layout([2, 30, 0, 6], pad=3)
    x, text = inputs(4)
    times = torch.tensor([150, 800, 200, 199])
    together = denoise(unet, x, times, text, layout)
    for b in range(4):
        alone = denoise(unet, x[b : b + 1], times[b], text[b : b + 1], picture(layout, b))
        assert close(together[b : b + 1], alone), b


def test_the_released_program_lets_the_first_picture_decide_on_the_mask_attention():
    ours, theirs = make_unet(), make_unet(first_sample_decides=True)
    layout, (x, text) = make_layout([2, 2]), inputs(2)
    mixed = denoise(theirs, x, torch.tensor([150, 800]), text, layout)
    second = denoise(ours, x[1:], 800, text[1:], picture(layout, 1))
    assert not close(mixed[1:], second, 1e-3)
    assert close(denoise(ours, x, torch.tensor([150, 800]), text, layout)[1:], second)


def test_valid_places_need_not_come_first():
    unet = make_unet()
    layout, (x, text) = make_layout([3]), inputs(1)
    place = torch.tensor([4, 0, 2])
    spread = Layout(torch.rand(1, 5, 8), torch.randn(1, 5, CLASS), torch.zeros(1, 5, dtype=torch.bool), layout.grid)
    spread.obb[0, place], spread.vectors[0, place], spread.valid[0, place] = layout.obb[0], layout.vectors[0], True
    assert close(denoise(unet, x, 500, text, spread), denoise(unet, x, 500, text, layout))


def test_guidance_repeats_the_layout():
    unet = make_unet()
    layout, (x, text) = make_layout([2, 4]), inputs(2)
    with torch.no_grad():
        context = unet.prepare(layout).repeated(2)
        both = unet(torch.cat([x, x]), 400, torch.cat([text * 0, text]), cross_attention_kwargs={"layout": context}).sample
    assert close(both[2:], denoise(unet, x, 400, text, layout))
    assert close(both[:2], denoise(unet, x, 400, text * 0, layout))


# ---- geometry ----


def test_corners_are_cut_toward_zero():
    obb = torch.tensor([-0.06, 0.99, 1.0, -0.01, 0.5, 0.26, 1.2, 0.0])
    assert cell_corners(obb, (16, 32)).tolist() == [-1.0, 15.0, 32.0, 0.0, 16.0, 4.0, 38.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-10, 25), min_size=8, max_size=8), st.sampled_from(["opencv", "pillow"]))
def test_a_raster_holds_its_corners_and_stays_in_its_hull(corners, how):
    mask = rasters(torch.tensor([corners], dtype=torch.float32), (16, 16), how)[0]
    xs, ys = corners[0::2], corners[1::2]
    inside = [(y, x) for x, y in zip(xs, ys, strict=True) if 0 <= x < 16 and 0 <= y < 16]
    assert all(mask[y, x] for y, x in inside)
    rows, columns = mask.nonzero(as_tuple=True)
    assert all(min(ys) <= y <= max(ys) for y in rows) and all(min(xs) <= x <= max(xs) for x in columns)


def test_a_box_without_area_is_one_cell_and_one_beyond_the_picture_none():
    corners = torch.tensor([[3.0, 4] * 4, [20.0, 20, 25, 20, 25, 25, 20, 25], [-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]])
    assert rasters(corners, (16, 16)).flatten(1).sum(1).tolist() == [1, 0, 256]
    assert rasters(corners[:2], (16, 16), "pillow").flatten(1).sum(1).tolist() == [1, 0]


# ---- what is trained ----


def test_gradients_reach_all_that_is_trained_and_the_rest_can_be_frozen():
    unet = make_unet()
    unet.requires_grad_(False)
    for parameter in trained_parameters(unet):
        parameter.requires_grad_(True)
    layout, (x, text) = make_layout([2, 0]), inputs(2)
    unet(x, torch.tensor([700, 50]), text, cross_attention_kwargs={"layout": unet.prepare(layout)}).sample.square().sum().backward()
    for name, parameter in unet.named_parameters():
        new = ".transformer_blocks." in name or name.startswith(("layout_encoder", "mask_attention"))
        assert parameter.requires_grad == new and (parameter.grad is not None and bool(parameter.grad.any())) == new, name


@pytest.mark.parametrize(("counts", "t"), [([0, 0], 700), ([2, 1], 50)], ids=["no objects", "late"])
def test_every_trained_weight_has_a_gradient_even_where_nothing_is_masked(counts, t):
    unet = make_unet()
    layout, (x, text) = make_layout(counts), inputs(2)
    unet(x, t, text, cross_attention_kwargs={"layout": unet.prepare(layout)}).sample.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained_parameters(unet))


def test_it_starts_with_the_share_of_the_picture_alone_and_saves_and_loads(tmp_path):
    sizes = checkpoints.unet_config(model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(1,), num_heads=2,
                                    context_dim=TEXT)  # fmt: skip
    unet = AeroGenUNet(**sizes, layout={"class_width": CLASS, "mask_strength": 0.3}).eval()
    assert not unet.mask_attention.proj_out.weight.any()
    unet.save_pretrained(tmp_path)
    again = AeroGenUNet.from_pretrained(tmp_path)
    assert again.layout_config == unet.layout_config and again.layout_config.mask_strength == 0.3
    assert all(torch.equal(a, b) for a, b in zip(unet.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(CCDiffError, match="raster is 'gdal'"):
        AeroGenUNet(**sizes, layout={"raster": "gdal"})
    with pytest.raises(CCDiffError, match=r"unknown keys \['slot'\]"):
        AeroGenUNet(**sizes, layout={"slot": 3})


# ---- the sampler ----


def test_the_sampler_takes_the_published_steps():
    scheduler = sampling.ddim()
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    abar = np.float32(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)).astype(float)
    assert scheduler.alphas_cumprod.numpy() == pytest.approx(abar, rel=1e-12)
    a, p = abar[1::20], np.r_[abar[0], abar[1:-20:20]]
    assert scheduler.sigmas(0.2).numpy()[::-1] == pytest.approx(0.2 * np.sqrt((1 - p) / (1 - a) * (1 - a / p)), rel=1e-9)


def test_any_number_of_steps_is_what_was_asked_and_the_released_count_is_a_switch():
    scheduler = sampling.ddim()
    for steps, released, expected in ((7, False, 7), (7, True, 8), (3, False, 3), (999, False, 999), (1, True, 1)):
        scheduler.set_timesteps(steps, released_count=released)
        assert len(scheduler.timesteps) == expected and scheduler.timesteps[-1] == 1
    for steps, options in ((3, {"released_count": True}), (1000, {}), (0, {}), (1001, {})):
        with pytest.raises(CCDiffError, match=f"{steps} denoising steps"):
            scheduler.set_timesteps(steps, **options)


@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_sampling_equals_a_loop_of_the_formula_also_from_a_saved_scheduler(eta, tmp_path):
    g = torch.Generator().manual_seed(2)
    x, noises = torch.randn(2, 4, 3, 3, generator=g), torch.randn(4, 2, 4, 3, 3, generator=g)
    sampling.ddim().save_pretrained(tmp_path)
    scheduler, y = sampling.AeroGenDDIM.from_pretrained(tmp_path), x.double()
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    scheduler.set_timesteps(4)
    times = [751, 501, 251, 1]
    assert scheduler.timesteps.tolist() == times
    for j, t in enumerate(times):
        x = scheduler.step(torch.sin(3 * x) + t / 1000, t, x, eta=eta, variance_noise=noises[j]).prev_sample
        a, p = abar[t], abar[times[j + 1]] if j < 3 else abar[0]
        e, sigma = torch.sin(3 * y) + t / 1000, eta * math.sqrt((1 - p) / (1 - a) * (1 - a / p))
        y = math.sqrt(p) * (y - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - p - sigma**2) * e + sigma * noises[j]
    assert close(x.double(), y)


# ---- checkpoints ----


def test_released_names_go_both_ways(tmp_path):
    unet = make_unet()
    weights = checkpoints.to_released(unet)
    assert "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k_control.weight" in weights
    assert "model.diffusion_model.maskcrossattention.crossattn.to_q.weight" in weights
    training_state = weights | {
        "betas": torch.zeros(3), "model_ema.diffusion_modelx": torch.zeros(1), "first_stage_model.decoder.conv_in.weight": torch.zeros(1),
        "cond_stage_model.transformer.x": torch.zeros(1),
    }  # fmt: skip
    torch.save({"state_dict": training_state, "global_step": 3}, tmp_path / "last.ckpt")
    other = make_unet()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    unused = checkpoints.load_released(other, read_pickle(tmp_path / "last.ckpt", "state_dict"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in unet.state_dict().items())
    assert set(unused) == set(training_state) - set(checkpoints.released_names(unet).values())
    assert checkpoints.layout_sizes(weights) == {"class_width": CLASS, "frequencies": 8, "hidden": 32}


@pytest.mark.parametrize("mult", [(1,), (1, 2, 2)])
@pytest.mark.parametrize("attends", [(1,), (2, 4), (1, 2, 4)])
def test_every_weight_has_one_released_name_in_any_size(mult, attends):
    sizes = checkpoints.unet_config(model_channels=32, channel_mult=mult, num_res_blocks=2, attention_resolutions=attends, num_heads=2,
                                    context_dim=TEXT)  # fmt: skip
    unet = AeroGenUNet(**sizes, layout={"class_width": CLASS})
    names = checkpoints.released_names(unet)
    assert len(set(names.values())) == len(names) == len(unet.state_dict())


def test_the_published_sizes_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        unet = AeroGenUNet(**checkpoints.unet_config())

    def millions(parameters) -> float:
        return sum(p.numel() for p in parameters) / 1e6

    assert round(millions(unet.layout_encoder.parameters()), 1) == 1.1
    released = checkpoints.to_released(unet)
    assert round(sum(v.numel() for k, v in released.items() if k.startswith(checkpoints.UNET)) / 1e6) == 906
    trained = [v for k, v in released.items() if ".transformer_blocks." in k or "maskcrossattention" in k]
    assert round(sum(v.numel() for v in trained) / 1e6) == 288
    assert round(sum(v.numel() for k, v in released.items() if "maskcrossattention" in k) / 1e6, 1) == 2.1
    names = set(checkpoints.released_names(unet).values())
    for name in (
        "input_blocks.11.0.out_layers.3.weight", "input_blocks.9.0.op.weight", "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.1.transformer_blocks.0.attn2.to_v_control.weight",
        "middle_block.1.proj_in.weight", "out.2.bias",
    ):  # fmt: skip
        assert checkpoints.UNET + name in names, name


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path):
    unet = make_unet()
    weights = checkpoints.to_released(unet)
    del weights["model.diffusion_model.time_embed.0.bias"]
    weights["model.diffusion_model.extra.weight"] = torch.zeros(1)
    weights["condition_tokenizer.linears.4.bias"] = torch.zeros(5)
    with pytest.raises(CCDiffError) as caught:
        checkpoints.load_released(unet, weights, "x.ckpt")
    message = str(caught.value)
    assert (
        "missing keys (1): model.diffusion_model.time_embed.0.bias" in message
        and "surplus keys (1): model.diffusion_model.extra" in message
    )
    assert "condition_tokenizer.linears.4.bias (5,) instead of (24,)" in message and message.startswith("x.ckpt")


def test_contexts_are_of_plain_tensors():
    context = make_unet().prepare(make_layout([2, 0]))
    assert all(isinstance(getattr(context, f.name), Tensor) for f in dataclasses.fields(context))


# ---- the pipeline ----


def make_pipeline(text_encoder=None, **layout) -> AeroGenPipeline:
    torch.manual_seed(3)
    text_encoder = text_encoder or make_text_encoder()
    return AeroGenPipeline(
        vae=make_vae().eval(), text_encoder=text_encoder.eval(), tokenizer=make_tokenizer(), unet=make_unet(class_width=TEXT, **layout),
        scheduler=sampling.ddim(), num_inference_steps=2, guidance_scale=2.5, class_prompt="an aerial {class}",
    )  # fmt: skip


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


def test_a_picture_of_a_batch_equals_the_picture_alone_also_from_a_saved_folder(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    again = AeroGenPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler).__name__ == "AeroGenDDIM" and again.config.class_prompt == "an aerial {class}"
    scenes, _ = make_scenes([3, 0, 25])
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
    together = pipe(scenes, generator=generators(3), output_type="latent").images
    for b in range(3):
        alone = again(scenes[b : b + 1], generator=generators(3)[b : b + 1], output_type="latent").images
        assert close(alone, together[b : b + 1], 1e-5)


def test_guidance_leaves_the_layout_in_both_branches():
    pipe = make_pipeline()
    scenes, _ = make_scenes([3, 1])
    layout = pipe.layout_batch(scenes)
    empty = pipe.encode_text([""])[0]
    x = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        both = pipe.predict(torch.cat([x, x]), torch.tensor(500), pipe.condition(layout, empty, guided=True))
        dropped = pipe.predict(x, torch.tensor(500), pipe.condition(layout, empty, dropped=torch.tensor([True, False])))
        layout.valid[:] = False
        bare = pipe.predict(x, torch.tensor(500), pipe.condition(layout, empty, dropped=torch.tensor([True, True])))
    assert close(both[0], dropped[0]) and close(both[3], dropped[1]) and not close(both[0], bare[0], 1e-3)


def test_class_vectors_are_of_the_prompt_and_projected_where_the_encoder_projects():
    plain = make_text_encoder().eval()
    projecting = CLIPTextModelWithProjection(CLIPTextConfig(**{**plain.config.to_dict(), "projection_dim": TEXT})).eval()
    for encoder in (plain, projecting):
        pipe = make_pipeline(encoder)
        tokens, vectors = pipe.encode_text(["ship", "two plane"])
        ids = pipe.tokenizer(["ship", "an aerial ship"], padding="max_length", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = encoder(ids)
        assert close(tokens[0], out.last_hidden_state[0])
        assert close(vectors[0], (out.text_embeds if encoder is projecting else out.pooler_output)[1])


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 3), st.booleans())
def test_corners_come_clockwise_from_the_left_top_one_in_whatever_order_they_are_given(angle, w, h, first, backwards):
    across, down = np.array([math.cos(angle), math.sin(angle)]) * w, np.array([-math.sin(angle), math.cos(angle)]) * h
    box = np.array([-across - down, across - down, across + down, -across + down]) + 0.5
    given = np.roll(box[::-1] if backwards else box, first, 0)
    found = clockwise(torch.tensor(given)).view(4, 2).numpy()
    total = found.sum(1)
    assert total[0] <= total.min() + 1e-5 and all(np.abs(given - corner).max(1).min() < 1e-9 for corner in found)
    turn = np.roll(found, -1, 0)
    assert (found[:, 0] * turn[:, 1] - found[:, 1] * turn[:, 0]).sum() > 0  # clockwise, as y points down


def test_a_horizontal_box_starts_left_top_and_one_of_45_degrees_at_its_top():
    assert clockwise(torch.tensor([[1.0, 1], [1, 0], [0, 0], [0, 1]])).tolist() == [0, 0, 1, 0, 1, 1, 0, 1]
    assert clockwise(torch.tensor([[0.0, 1], [1, 0], [2, 1], [1, 2]])).tolist() == [1, 0, 2, 1, 1, 2, 0, 1]


# ---- import and export ----


def stable_diffusion(folder: Path) -> Path:
    plain = {key: value for key, value in make_unet().config.items() if not key.startswith("_") and key != "layout"}
    UNet2DConditionModel(**plain).save_pretrained(folder / "unet")
    make_vae().save_pretrained(folder / "vae")
    make_text_encoder().save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def test_a_released_checkpoint_becomes_a_generator_and_goes_back(tmp_path):
    torch.manual_seed(2)
    sd = stable_diffusion(tmp_path / "sd")
    CLIPTextModelWithProjection(CLIPTextConfig(**{**make_text_encoder().config.to_dict(), "projection_dim": CLASS})).save_pretrained(
        tmp_path / "clip"
    )
    unet = make_unet(slots=15)
    weights = checkpoints.to_released(unet)
    (tmp_path / "released").mkdir()
    torch.save({"state_dict": weights | {"betas": torch.zeros(3)}, "epoch": 2}, tmp_path / "released" / "last.ckpt")
    given = {"stable_diffusion": sd, "image_encoder": tmp_path / "clip"}
    made = import_checkpoint(tmp_path / "released", tmp_path / "g", method="aerogen", **given)
    assert made["method"] == "aerogen" and made["picture_size"] == 128 and "betas" in made["unused_keys"]
    pipe = load_pipeline(tmp_path / "g")
    assert all(torch.equal(v, pipe.unet.state_dict()[k]) for k, v in unet.state_dict().items())
    (file,) = export_checkpoint(tmp_path / "g", tmp_path / "back")
    back = read_pickle(file, "state_dict")
    names = set(checkpoints.released_names(unet).values())
    assert back.keys() == weights.keys() and all(torch.equal(back[k], weights[k]) for k in names)
    for missing in given:
        with pytest.raises(CCDiffError, match="give its folder by --"):
            import_checkpoint(tmp_path / "released", tmp_path / "h", method="aerogen", **{k: v for k, v in given.items() if k != missing})
    assert not (tmp_path / "h").exists()


@pytest.mark.skipif("CCDIFF_SHARED" not in os.environ, reason="CCDIFF_SHARED does not name the folder with reference/methods/golden")
def test_passes_on_the_given_files():
    files = sorted(map(str, (Path(os.environ["CCDIFF_SHARED"]) / "reference" / "methods" / "golden").glob("aerogen_*.safetensors")))
    assert files and golden_check.main(files) == 0
