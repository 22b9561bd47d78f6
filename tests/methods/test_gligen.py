"""GLIGEN against its published computation in plain form; slots, branches and schedule; gradients; released names."""

from __future__ import annotations

import json
import math
import pathlib

import pytest
import torch
import torch.nn.functional as F
from diffusers import PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.generator import read_generator
from ccdiff_cli.methods import Given, load_pipeline, method_of
from ccdiff_cli.methods.gligen import METHOD
from ccdiff_cli.methods.gligen import checkpoints as released
from ccdiff_cli.methods.gligen.network import (
    GLIGENConfig,
    GroundedUNet,
    fusers,
    gates,
    ground_unet,
    grounding_config,
    grounding_parameters,
    grounding_scale,
    grounding_slots,
    is_grounding,
)
from ccdiff_cli.methods.gligen.pipeline import GLIGENPipeline
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.training.costs import check_training
from tests import golden_check
from tests.models.plain import cross, linear, norm
from tests.models.small import TEXT, UNET, make_batch, make_scenes

from .small import make_pipeline, make_recipe, pictures, stable_diffusion, trained_names

SLOTS = 6


def make_unet(**options) -> GroundedUNet:
    """Gates open and null tokens not zero, which they are only at the start."""
    unet = ground_unet(UNet2DConditionModel(**UNET), GLIGENConfig(**{"slots": SLOTS} | options)).eval()
    with torch.no_grad():
        for fuser in fusers(unet).values():
            fuser.alpha_attn.fill_(float(torch.randn(())))
            fuser.alpha_dense.fill_(float(torch.randn(())))
        unet.position_net.null_positive_feature.normal_()
        unet.position_net.null_position_feature.normal_()
    return unet


def denoise(unet, latents, t, batch: LayoutBatch, kwargs) -> Tensor:
    return unet(latents, t, batch.caption_tokens, cross_attention_kwargs=kwargs).sample


def close(found: Tensor, expected: Tensor, limit: float = 2e-6) -> None:
    assert golden_check.relative_error(found, expected) < limit


# ---- the published computation, one picture ----


def plain_tokens(w: dict[str, Tensor], hbb: Tensor, pooled: Tensor, slots: int) -> Tensor:
    out = []
    for j in range(slots):
        text, place = w["null_positive_feature"], w["null_position_feature"]
        if j < len(hbb):
            code = [f(100 ** (k / 8) * float(v)) for k in range(8) for f in (math.sin, math.cos) for v in hbb[j]]
            text, place = pooled[j], torch.tensor(code)
        x = torch.cat([text, place])
        for k in (0, 2):
            x = F.silu(linear(w, f"linears.{k}", x))
        out.append(linear(w, "linears.4", x))
    return torch.stack(out)


def plain_fuser(w: dict[str, Tensor], x: Tensor, tokens: Tensor, heads: int, s: float = 1.0) -> Tensor:
    u = norm(w, "norm1", torch.cat([x, linear(w, "linear", tokens)]))
    x = x + s * torch.tanh(w["alpha_attn"]) * cross(w, "attn", u, u, heads)[: len(x)]
    value, gate = linear(w, "ff.net.0.proj", norm(w, "norm2", x)).chunk(2, -1)
    return x + s * torch.tanh(w["alpha_dense"]) * linear(w, "ff.net.2", value * F.gelu(gate))


class PlainFuser(torch.nn.Module):
    def __init__(self, fuser, tokens: Tensor, heads: int, s: float):
        super().__init__()
        self.w, self.tokens, self.heads, self.s = dict(fuser.named_parameters()), tokens, heads, s

    def forward(self, x: Tensor, objs: Tensor) -> Tensor:
        return plain_fuser(self.w, x[0], self.tokens, self.heads, self.s)[None]


def plain_denoise(unet, latents, t, batch: LayoutBatch, b: int, *, s: float = 1.0, slots: int = SLOTS) -> Tensor:
    """Picture ``b`` of a batch as conditional branch, its fusers replaced meanwhile."""
    valid = batch.valid[b]
    pooled = batch.class_pooled[batch.class_index[b][valid]]
    tokens = plain_tokens(dict(unet.position_net.named_parameters()), batch.hbb[b][valid], pooled, slots)
    blocks = {name: unet.get_submodule(name.removesuffix(".fuser")) for name in fusers(unet)}
    kept = {name: block.fuser for name, block in blocks.items()}
    try:
        for name, block in blocks.items():
            block.fuser = PlainFuser(kept[name], tokens, block.attn1.heads, s)
        kwargs = grounding_slots(batch.rows(b, b + 1), slots)  # the blocks call their fuser only where it is given
        return unet(latents[b : b + 1], t, batch.caption_tokens[b : b + 1], cross_attention_kwargs=kwargs).sample[0]
    finally:
        for name, block in blocks.items():
            block.fuser = kept[name]


# ---- the network ----


@torch.no_grad()
@pytest.mark.parametrize(("counts", "size"), [([3, 1], (128, 128)), ([0, 6], (96, 160)), ([2, 0, 5], (72, 104))])
def test_matches_the_published_form(counts, size):
    torch.manual_seed(len(counts))
    unet, batch, t = make_unet(), make_batch(counts, size, pad=1), torch.tensor([300])
    batch.hbb[-1, 0] = torch.tensor([0.9, -0.5, 1.5, 0.2])  # beyond the border
    batch.hbb[-1, 1] = 0.5  # without area
    latents = torch.randn(len(counts), 4, *batch.latent_size)
    kwargs = grounding_slots(batch, SLOTS)
    for s in (1.0, 0.37, 0.0):
        with grounding_scale(unet, s):
            out = denoise(unet, latents, t, batch, kwargs)
        for b in range(len(counts)):
            close(out[b], plain_denoise(unet, latents, t, batch, b, s=s))
    close(out, denoise(unet, latents, t, batch, None))


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch_nor_on_padding_nor_on_the_order_of_its_instances():
    torch.manual_seed(5)
    unet, t = make_unet(), torch.tensor([700])
    together = make_batch([3, 0, 6, 1], pad=2)
    latents = torch.randn(4, 4, 16, 16)
    out = denoise(unet, latents, t, together, grounding_slots(together, SLOTS))
    for b in range(4):
        alone = together.rows(b, b + 1)
        close(denoise(unet, latents[b : b + 1], t, alone, grounding_slots(alone, SLOTS))[0], out[b])
    moved = make_batch([3, 0, 6, 1], pad=2)
    places = torch.stack([torch.randperm(8) for _ in range(4)])
    moved.hbb = moved.hbb.gather(1, places[..., None].expand_as(moved.hbb))
    moved.valid, moved.class_index = moved.valid.gather(1, places), moved.class_index.gather(1, places)
    close(denoise(unet, latents, t, moved, grounding_slots(moved, SLOTS)), out)
    # as published, the number of slots is part of the model
    assert golden_check.relative_error(denoise(unet, latents, t, together, grounding_slots(together, SLOTS + 4)), out) > 1e-4


@torch.no_grad()
def test_the_unconditional_branch_has_empty_slots_and_keeps_its_fusers():
    torch.manual_seed(7)
    unet, t, batch = make_unet(), torch.tensor([100]), make_batch([2, 3])
    latents = torch.randn(2, 4, 16, 16)
    nothing = make_batch([2, 3])
    nothing.valid[:] = False
    expected = torch.stack([plain_denoise(unet, latents, t, nothing, b) for b in range(2)])
    close(denoise(unet, latents, t, batch, grounding_slots(batch, SLOTS, torch.tensor([False, False]))), expected)
    assert golden_check.relative_error(denoise(unet, latents, t, batch, None), expected) > 1e-3
    out = denoise(unet, latents, t, batch, grounding_slots(batch, SLOTS))
    mixed = denoise(unet, latents, t, batch, grounding_slots(batch, SLOTS, torch.tensor([False, True])))
    close(mixed, torch.stack([expected[0], out[1]]))
    text = torch.cat([batch.caption_tokens] * 2)
    pair = unet(torch.cat([latents] * 2), t, text, cross_attention_kwargs=grounding_slots(batch, SLOTS, guidance=True)).sample
    close(pair, torch.cat([expected, out]))


def test_schedule():
    published = GLIGENConfig()
    assert [published.scale(step, 50) for step in (0, 14, 15, 49)] == [1, 1, 0, 0]
    assert [published.scale(step, 3) for step in range(3)] == [0, 0, 0]  # int(0.3 * 3)
    falling = GLIGENConfig(full=0.2, fading=0.4)
    assert [falling.scale(step, 10) for step in range(10)] == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0])
    for options in ({"slots": 0}, {"full": -0.1}, {"full": 0.7, "fading": 0.5}, {"full": math.nan}):
        with pytest.raises(CCDiffError):
            GLIGENConfig(**options)
    with pytest.raises(CCDiffError, match="unknown keys"):
        GLIGENConfig.from_dict({"slot": 3})


def test_the_scale_is_undone_whatever_happens():
    unet = make_unet()
    before = gates(unet)
    next(iter(fusers(unet).values())).enabled = False  # as diffusers' pipelines leave them
    with pytest.raises(KeyboardInterrupt), grounding_scale(unet, 0.5):
        assert all(fuser.enabled for fuser in fusers(unet).values())
        torch.testing.assert_close(gates(unet), before / 2)
        raise KeyboardInterrupt
    assert torch.equal(gates(unet), before)
    assert [fuser.enabled for fuser in fusers(unet).values()] == [False] + [True] * (len(fusers(unet)) - 1)


def test_more_instances_than_slots_are_refused():
    grounding_slots(make_batch([SLOTS]), SLOTS)
    with pytest.raises(CCDiffError, match="7 instances, this GLIGEN takes 6"):
        grounding_slots(make_batch([1, SLOTS + 1]), SLOTS)


@torch.no_grad()
def test_a_new_one_starts_as_the_unet_it_is_made_of_does():
    torch.manual_seed(3)
    plain = UNet2DConditionModel(**UNET).eval()
    unet = ground_unet(plain, GLIGENConfig(slots=4))
    batch, latents = make_batch([2, 1]), torch.randn(2, 4, 16, 16)
    assert float(gates(unet).max()) == 0
    assert gates(unet).shape == (len(fusers(unet)), 2)
    expected = denoise(plain, latents, torch.tensor([9]), batch, None)
    close(denoise(unet, latents, torch.tensor([9]), batch, grounding_slots(batch, 4)), expected)
    assert not unet.training
    # that of another configuration has the first one's weights too
    assert grounding_config(ground_unet(plain, GLIGENConfig(slots=9))).slots == 9


def test_gradients_are_those_of_the_published_form_and_reach_what_is_trained_alone():
    torch.manual_seed(8)
    unet, batch, t = make_unet(), make_batch([4, 2]), torch.tensor([500])
    unet.requires_grad_(False)
    own = list(grounding_parameters(unet))
    for parameter in own:
        parameter.requires_grad_(True)
    latents, target = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    expected = torch.stack([plain_denoise(unet, latents, t, batch, b) for b in range(2)])
    expected = torch.autograd.grad(((expected - target) ** 2).sum(), own)
    ((denoise(unet, latents, t, batch, grounding_slots(batch, SLOTS)) - target) ** 2).sum().backward()
    trained = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in unet.named_parameters() if name.startswith("position_net") or ".fuser." in name}
    assert len(own) == len(trained)
    for parameter, other in zip(own, expected, strict=True):
        assert float(other.norm()) > 0
        assert float((parameter.grad - other).norm()) < 5e-3 * float(other.norm())  # gates are sums that nearly cancel


def test_every_parameter_has_a_gradient_where_no_picture_has_an_instance():
    unet, batch = make_unet(), make_batch([0, 0], pad=1)
    denoise(unet, torch.randn(2, 4, 16, 16), torch.tensor([5]), batch, grounding_slots(batch, SLOTS)).sum().backward()
    assert all(parameter.grad is not None for parameter in grounding_parameters(unet))


@torch.no_grad()
def test_half_precision_does_not_round_the_boxes():
    unet, batch = make_unet(), make_batch([3])
    given = grounding_slots(batch, SLOTS)["gligen"]
    expected = unet.position_net(**given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(unet.position_net(**given), expected)
    latents = torch.randn(1, 4, 16, 16)
    whole = denoise(unet, latents, torch.tensor([5]), batch, {"gligen": given})
    torch.nn.Module.to(unet, torch.bfloat16)
    found = unet.position_net(**given)
    assert found.dtype == torch.bfloat16
    assert golden_check.relative_error(found.float(), expected) < 0.01
    half = batch.to(dtype=torch.bfloat16)
    assert half.hbb.dtype == torch.float32
    found = denoise(unet, latents.bfloat16(), torch.tensor([5]), half, grounding_slots(half, SLOTS))
    assert golden_check.relative_error(found.float(), whole) < 0.1


@torch.no_grad()
def test_a_saved_unet_is_the_same_one(tmp_path):
    unet, batch, latents = make_unet(full=0.5), make_batch([2]), torch.randn(1, 4, 16, 16)
    unet.save_pretrained(tmp_path)
    back = GroundedUNet.from_pretrained(tmp_path).eval()
    assert grounding_config(back) == grounding_config(unet)
    kwargs = grounding_slots(batch, SLOTS)
    close(denoise(back, latents, torch.tensor([5]), batch, kwargs), denoise(unet, latents, torch.tensor([5]), batch, kwargs))
    assert UNet2DConditionModel.load_config(tmp_path)["attention_type"] == "gated"  # diffusers' own pipelines read it


# ---- released checkpoints ----


@pytest.mark.parametrize("form", ["authors", "folder", "diffusers"])
def test_import_and_back(tmp_path, form):
    unet, base, path = make_unet(slots=30), stable_diffusion(tmp_path / "sd"), tmp_path / "released" / released.RELEASED_FILE
    path.parent.mkdir()
    if form == "diffusers":
        path = stable_diffusion(path.parent)
        unet.save_pretrained(path / "unet")
    else:
        torch.save({"model": released.to_released(unet), "text_encoder": {}, "autoencoder": {}, "diffusion": {}}, path)
    given = Given() if form == "diffusers" else Given(base)
    METHOD.import_checkpoint(path.parent if form == "folder" else path, tmp_path / "g", given)
    assert method_of(read_generator(tmp_path / "g")) is METHOD
    pipe = load_pipeline(tmp_path / "g")
    assert isinstance(pipe, GLIGENPipeline)
    assert grounding_config(pipe.unet) == GLIGENConfig()
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    own = pipe.unet.state_dict()
    assert all(torch.equal(own[name], value) for name, value in unet.state_dict().items())
    assert pictures(pipe, [2], num_inference_steps=4).shape == (1, 4, 16, 16)
    (file,) = METHOD.export_checkpoint(tmp_path / "g", tmp_path / "back")
    back = torch.load(file, weights_only=True)["model"]
    assert set(back) == set(released.to_released(unet))
    assert all(torch.equal(back[name], value) for name, value in released.to_released(unet).items())


def test_released_names():
    names = set(released.to_released(make_unet()))
    fuser = "transformer_blocks.0.fuser.alpha_attn"
    # three levels of one layer a block, the last without attention
    wanted = [f"{block}.1.{fuser}" for block in ("input_blocks.1", "input_blocks.3", "middle_block", "output_blocks.2", "output_blocks.5")]
    assert not {*wanted, "position_net.linears.0.weight", "position_net.null_position_feature", "input_blocks.2.0.op.weight"} - names
    assert sum(".fuser.alpha_attn" in name for name in names) == 7
    assert all(is_grounding(name) for name in names if "fuser" in name or "position_net" in name)


def test_every_key_is_accounted_for(tmp_path):
    base, path = stable_diffusion(tmp_path / "sd"), tmp_path / "a.bin"
    weights = released.to_released(make_unet())
    del weights["position_net.null_position_feature"]
    weights |= {"out.2.bias": torch.zeros(7), "downsample_net.layers.0.weight": torch.zeros(1)}
    torch.save({"model": weights}, path)
    message = r"missing keys \(1\): position_net\.null_pos\S+ surplus keys \(1\): downsample_net\S+ shapes \(1\): conv_out\.bias \(7,\)"
    with pytest.raises(CCDiffError, match=message):
        METHOD.import_checkpoint(path, tmp_path / "g", Given(base))
    with pytest.raises(CCDiffError, match="Stable Diffusion folder"):
        METHOD.import_checkpoint(path, tmp_path / "g", Given())
    with pytest.raises(CCDiffError, match="attention_type is 'default'"):
        METHOD.import_checkpoint(base, tmp_path / "g", Given())
    assert not (tmp_path / "g").exists()


def test_what_is_no_such_checkpoint_is_refused(tmp_path):
    path, unet = tmp_path / "a.bin", make_unet()
    with pytest.raises(CCDiffError, match="does not exist"):
        released.read_released(path)
    weights = released.to_released(unet)
    weights["input_blocks.0.0.weight"] = torch.zeros(16, 9, 3, 3)
    torch.save({"model": weights}, path)
    with pytest.raises(CCDiffError, match="9 channels instead of 4: an inpainting checkpoint"):
        released.load_released(unet, released.read_released(path), path)
    torch.save({"model": weights, "config_dict": pathlib.PurePosixPath("a")}, path)
    with pytest.raises(CCDiffError, match="tensors alone") as caught:
        released.read_released(path)
    assert "training program" in str(caught.value.fix)
    torch.save({"model": {"a": 1}}, path)
    with pytest.raises(CCDiffError, match="expected"):
        released.read_released(path)


# ---- the method ----


def test_training_lowers_the_loss_and_changes_what_is_trained_alone():
    recipe = make_recipe(METHOD, gligen={"slots": 5})
    names = trained_names(METHOD, recipe)
    expected = {name for name, _ in make_pipeline(METHOD, recipe).unet.named_parameters() if "fuser" in name or "position_net" in name}
    assert names == expected
    whole = make_recipe(METHOD, unet={"source": "x", "train_all": True})
    assert len(trained_names(METHOD, whole)) > len(names)


def test_pictures_with_more_objects_than_slots_are_refused_before_training():
    scenes, recipe = make_scenes([2, 5])[0], make_recipe(METHOD, gligen={"slots": 4})
    with pytest.raises(CCDiffError, match=r"1\.png has 5 objects; GLIGEN by recipe small takes 4") as caught:
        check_training(recipe, scenes, where="set")
    assert "raise gligen.slots by 1" in str(caught.value.fix)
    check_training(make_recipe(METHOD, gligen={"slots": 5}), scenes, where="set")


def open_gates(pipe):
    for fuser in fusers(pipe.unet).values():
        for gate in (fuser.alpha_attn, fuser.alpha_dense):
            torch.nn.init.constant_(gate, 0.7)
    return pipe


def test_the_training_log_says_how_far_the_gates_are_open():
    recipe = make_recipe(METHOD)
    pipe = make_pipeline(METHOD, recipe, training=True)
    figures = METHOD.stages[0].loss(pipe, recipe).figures
    assert set(figures().values()) == {0.0} and len(figures()) == 4
    next(iter(fusers(pipe.unet).values())).alpha_attn.data.fill_(-1.0)
    assert figures()["gates/attention_max"] == pytest.approx(0.7616, abs=1e-4) and figures()["gates/feed_forward_max"] == 0
    assert 0 < figures()["gates/attention_mean"] < figures()["gates/attention_max"]


def test_a_picture_depends_on_its_scene_and_noise_alone():
    pipe = open_gates(make_pipeline(METHOD, make_recipe(METHOD)))
    together = pictures(pipe, [3, 0, 5])
    for k in range(3):
        close(pictures(pipe, [3, 0, 5], [k])[0], together[k], 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scheduler", ["euler", "plms"])
def test_the_first_part_of_the_steps_is_grounded_in_both_branches(scheduler):
    pipe = open_gates(make_pipeline(METHOD, make_recipe(METHOD)))
    if scheduler == "plms":
        pipe.scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True)
    pipe.scheduler.set_timesteps(10)
    passes = len(pipe.scheduler.timesteps)
    assert passes == (11 if scheduler == "plms" else 10)
    layout, empty = pipe.layout_batch(make_scenes([2])[0]), pipe.encode_text(["two"])[0]
    condition = pipe.condition(layout, empty, guided=True)
    x, t = torch.randn(1, 4, 16, 16).repeat(2, 1, 1, 1), torch.tensor(500)
    text = torch.cat([empty, layout.caption_tokens])
    grounded = pipe.unet(x, t, text, cross_attention_kwargs=grounding_slots(layout, 30, guidance=True)).sample
    plain = pipe.unet(x, t, text).sample
    assert all(golden_check.relative_error(grounded[k], plain[k]) > 1e-3 for k in range(2))
    first = passes - 10 + 3  # PLMS passes twice through the first step
    for i in range(passes):
        close(pipe.predict(x, t, condition, i / passes), grounded if i < first else plain)
    assert all(fuser.enabled for fuser in fusers(pipe.unet).values())


# ---- golden files ----


@torch.no_grad()
@pytest.mark.parametrize(
    ("counts", "size", "names"), [([0], (128, 128), "unet"), ([4, 0, 6], (96, 160), "model"), ([1, 2], (128, 64), "unet")]
)
def test_golden_check_runs_files_of_any_count_and_size(tmp_path, capsys, counts, size, names):
    torch.manual_seed(counts[0])
    unet = make_unet().half().float()
    batch, b = make_batch(counts, size), len(counts)
    batch.class_index, batch.class_pooled = torch.arange(batch.valid.numel()).view_as(batch.valid), torch.randn(batch.valid.numel(), TEXT)
    latents, t, negative = torch.randn(b, 4, *batch.latent_size), torch.tensor([300]), torch.randn(1, 8, TEXT)
    nothing = make_batch(counts, size)
    nothing.valid[:] = False
    nothing.caption_tokens = negative.expand(b, -1, -1)
    w = dict(unet.position_net.named_parameters())
    pooled = batch.class_pooled.view(*batch.valid.shape, TEXT)
    layer = "mid_block.attentions.0"
    x = torch.randn(b, 9, 32)
    tokens = torch.stack([plain_tokens(w, batch.hbb[k, :n], pooled[k, :n], SLOTS) for k, n in enumerate(counts)])
    inside = dict(fusers(unet)[f"{layer}.transformer_blocks.0.fuser"].named_parameters())
    out = {
        "grounding_tokens": tokens,
        "grounding_tokens_null": plain_tokens(w, batch.hbb[0, :0], pooled[0, :0], SLOTS)[None],
        f"layer.{layer}.fuser": torch.stack([plain_fuser(inside, x[k], tokens[k], 4) for k in range(b)]),
    }
    for name, s in (("", 1.0), ("_module_off", 0.0)):
        both = [plain_denoise(unet, latents, t, which, k, s=s) for which in (nothing, batch) for k in range(b)]
        out[f"noise_guided_pair{name}"] = torch.stack(both)
    given = {
        "hbb": batch.hbb, "valid": batch.valid, "text_pooled": pooled, "latents": latents, "timestep": t,
        "negative_text_tokens": negative, "text_tokens": batch.caption_tokens, f"layer.{layer}.x": x,
    }  # fmt: skip
    weights = unet.state_dict() if names == "unet" else released.to_released(unet)
    tensors = {f"{names}.{k}": v.half() for k, v in weights.items()}
    tensors |= {f"in.{k}": v for k, v in given.items()} | {f"out.{k}": v for k, v in out.items()}
    metadata = {"model": "gligen", "unet_config": json.dumps(UNET | {"attention_type": "gated"}), "slots": str(SLOTS)}
    path = tmp_path / "golden.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    assert golden_check.main([str(path)]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count(" ok\n") == 5
    tensors["out.grounding_tokens"] = tensors["out.grounding_tokens"] + 0.01
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    assert golden_check.main([str(path)]) == 1
