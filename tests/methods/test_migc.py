"""MIGC against its published computation in plain form; batches, order and padding; steps; gradients; released names."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.generator import read_generator
from ccdiff_cli.methods import Given, load_pipeline, method_of
from ccdiff_cli.methods.migc import METHOD
from ccdiff_cli.methods.migc import checkpoints as released
from ccdiff_cli.methods.migc.network import (
    MIGCConfig,
    MIGCUNet,
    area_masks,
    install_migc,
    instance_masks,
    migc_config,
    migc_parameters,
    prepare_context,
    slot_order,
)
from ccdiff_cli.methods.migc.pipeline import MIGCPipeline
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.training.costs import check_training
from tests import golden_check
from tests.models.plain import cross, linear, norm, resize
from tests.models.small import PLACES, UNET, make_batch, make_scenes

from .small import make_pipeline, make_recipe, pictures, stable_diffusion, trained_names

SLOTS = 8


def make_unet(**options) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**UNET)
    install_migc(unet, MIGCConfig(**{"places": PLACES, "slots": SLOTS, "position_width": 20, "reduction": 5, "fuser": 0.2} | options))
    return unet.eval()


def edgy_batch(counts: list[int], size: tuple[int, int] = (128, 128), pad: int = 0) -> LayoutBatch:
    """Random boxes; of the first four of a picture one has no area, one no visible pixel, one reaches beyond, one fills the picture."""
    batch = make_batch(counts, size, pad=pad)
    for b, count in enumerate(counts):
        for n, box in enumerate(([0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.31, 0.31], [0.6, -0.3, 1.4, 0.2], [0.0, 0.0, 1.0, 1.0])):
            if n + 1 < count:  # the last one stays an ordinary box
                batch.hbb[b, n] = torch.tensor(box)
    return batch


# ---- the published computation, one picture, one instance at a time ----


def cbam(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """(channels, h, w) -> the same."""

    def mlp(values: Tensor) -> Tensor:
        return linear(w, f"{name}.ChannelGate.mlp.3", F.relu(linear(w, f"{name}.ChannelGate.mlp.1", values)))

    flat = x.flatten(1)
    x = x * torch.sigmoid(mlp(flat.mean(1)) + mlp(flat.max(1).values))[:, None, None]
    two = torch.stack([x.max(0).values, x.mean(0)])
    return x * torch.sigmoid(F.conv2d(two[None], w[f"{name}.SpatialGate.spatial.conv.weight"], padding=3)[0])


def position(w: dict[str, Tensor], box: Tensor) -> Tensor:
    x0, y0, x1, y1 = (float(v) for v in box)
    code = []
    for k in range(8):
        code += [f(100 ** (k / 8) * v) for f in (math.sin, math.cos) for v in (x0, x1, y0, y1)]
    x = torch.tensor(code)
    for k in (0, 2):
        x = F.silu(linear(w, f"pos_net.linears_position.{k}", x))
    return linear(w, "pos_net.linears_position.4", x)


def pixel_masks(hbb: Tensor, image: tuple[int, int]) -> Tensor:
    """(N, 4) -> (N + 1, H, W), the background first."""
    masks = torch.zeros(len(hbb) + 1, *image)
    for i, box in enumerate(hbb.double().tolist()):
        for row in range(int(image[0] * box[1]), int(image[0] * box[3])):
            for column in range(int(image[1] * box[0]), int(image[1] * box[2])):
                if 0 <= row < image[0] and 0 <= column < image[1]:
                    masks[i + 1, row, column] = 1
    masks[0] = (masks.sum(0) == 0).float()
    return masks


class PlainProcessor:
    """``w``: parameters of the module, or None; ``layout``: one picture."""

    def __init__(self, w: dict[str, Tensor] | None, layout: dict):
        self.w, self.layout = w, layout

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        (x,), (caption,) = hidden_states, encoder_hidden_states
        given, w = self.layout, self.w
        own = {k: v for k, v in attn.state_dict().items() if "processor" not in k}
        seen = [cross({f"a.{k}": v for k, v in own.items()}, "a", x, text, attn.heads) for text in [caption, *given["text"]]]
        if not given["text"]:
            return seen[0][None]
        size = given["grids"][len(x)]
        masks = [resize(resize(m, given["latent"]), size).flatten()[:, None] for m in given["masks"]]
        if w is None:
            if not given["fuser"]:
                return seen[0][None]
            weight = 10 * sum(masks[1:])
            return ((seen[0] + sum(10 * m * a for m, a in zip(masks[1:], seen[1:], strict=True))) / (1 + weight + 1e-6))[None]
        planes, together = [masks[0] * seen[0]], sum(m @ m.T for m in masks)
        for m, a, pooled, box in zip(masks[1:], seen[1:], given["pooled"], given["hbb"], strict=True):
            planes.append(m * (a + cross(w, "ea", norm(w, "norm", x), torch.stack([pooled, position(w, box)]), given["heads"])))
        planes.append(cross(w, "la", x, x, given["heads"], together != 0))

        def logit(plane: Tensor, mask: Tensor) -> Tensor:
            y = linear({"c.weight": w["sac.conv1.weight"][:, :, 0, 0], "c.bias": w["sac.conv1.bias"]}, "c", torch.cat([plane, mask], 1))
            y = cbam(w, "sac.cbam1", y.T.unflatten(1, size))
            return F.conv2d(y[None], w["sac.conv2.weight"], w["sac.conv2.bias"])[0, 0]

        z = [logit(p, m) for p, m in zip(planes, [*masks, torch.ones_like(masks[0])], strict=True)]
        null = logit(torch.zeros_like(planes[0]), torch.zeros_like(masks[0]))
        middle = z[1:-1] + [null] * (given["slots"] - len(z))
        order = given["order"]
        shaded = cbam(w, "sac.cbam2", torch.stack([z[0], *[middle[k] for k in order], z[-1]]))
        undone = dict(zip(order, shaded[1:-1], strict=True))
        weights = torch.stack([shaded[0], *[undone[k] for k in range(len(z) - 2)], shaded[-1]]).flatten(1).softmax(0)
        return sum(v[:, None] * p for v, p in zip(weights, planes, strict=True))[None]


def plain_denoise(unet, latents, timestep, batch: LayoutBatch, b: int, order, *, module=True, fuser=False, slots=SLOTS) -> Tensor:
    """The published form for picture ``b`` of a batch as conditional branch; the UNet's processors are put back."""
    valid = batch.valid[b]
    index = batch.class_index[b][valid]
    grids, size = {}, batch.latent_size
    for _ in unet.config.down_block_types:
        grids[size[0] * size[1]] = size
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    hbb = batch.hbb[b][valid]
    layout = {
        "hbb": hbb, "text": list(batch.class_tokens[index]), "pooled": batch.class_pooled[index],
        "masks": pixel_masks(hbb, batch.image_size),
        "latent": batch.latent_size, "grids": grids, "heads": 8, "slots": slots, "order": [int(k) for k in order], "fuser": fuser,
    }  # fmt: skip
    kept = unet.attn_processors
    plain = {}
    for name, processor in kept.items():
        if ".attn2." in name:
            own = getattr(processor, "migc", None)
            plain[name] = PlainProcessor(dict(own.named_parameters()) if own is not None and module else None, layout)
        else:
            plain[name] = processor
    unet.set_attn_processor(dict(plain))
    try:
        return unet(latents[b : b + 1], timestep, batch.caption_tokens[b : b + 1]).sample[0]
    finally:
        unet.set_attn_processor(dict(kept))


def denoise(unet, latents, timestep, batch: LayoutBatch, context) -> Tensor:
    kwargs = None if context is None else {"conditioning": context}
    return unet(latents, timestep, batch.caption_tokens, cross_attention_kwargs=kwargs).sample


def close(found: Tensor, expected: Tensor, limit: float = 2e-6) -> None:
    assert golden_check.relative_error(found, expected) < limit


# ---- the network ----


@torch.no_grad()
@pytest.mark.parametrize(("counts", "size", "pad"), [([3, 1], (128, 128), 0), ([6], (96, 160), 2), ([2, 0, 5], (72, 104), 1)])
def test_matches_the_published_form(counts, size, pad):
    torch.manual_seed(len(counts))
    unet, batch = make_unet(), edgy_batch(counts, size, pad)
    latents, t = torch.randn(len(counts), 4, *batch.latent_size), torch.tensor([300])
    order = torch.stack([torch.randperm(SLOTS - 2) for _ in counts])
    whole = prepare_context(unet, batch, order=order)
    for module, fuser in ((True, False), (True, True), (False, True)):
        out = denoise(unet, latents, t, batch, dataclasses.replace(whole, module=module, fuser=fuser))
        for b in range(len(counts)):
            close(out[b], plain_denoise(unet, latents, t, batch, b, order[b], module=module, fuser=fuser))
    close(denoise(unet, latents, t, batch, None)[0], plain_denoise(unet, latents, t, batch, 0, order[0], module=False))


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch_nor_on_padding_nor_on_the_order_of_its_instances():
    torch.manual_seed(5)
    unet, t = make_unet(), torch.tensor([700])
    together = edgy_batch([3, 0, 6, 1], pad=2)
    latents = torch.randn(4, 4, 16, 16)
    out = denoise(unet, latents, t, together, prepare_context(unet, together))
    for b in range(4):
        alone = together.rows(b, b + 1)
        close(denoise(unet, latents[b : b + 1], t, alone, prepare_context(unet, alone))[0], out[b])
    # places moved among the padding
    moved = edgy_batch([3, 0, 6, 1], pad=2)
    places = torch.stack([torch.randperm(8) for _ in range(4)])
    for name in ("hbb", "obb"):
        setattr(moved, name, getattr(moved, name).gather(1, places[..., None].expand_as(getattr(moved, name))))
    for name in ("valid", "class_index"):
        setattr(moved, name, getattr(moved, name).gather(1, places))
    assert not torch.equal(moved.hbb, together.hbb)
    close(denoise(unet, latents, t, moved, prepare_context(unet, moved)), out)
    # which slot an instance has does matter
    other = prepare_context(unet, together, order=torch.arange(SLOTS - 2).flip(0))
    assert golden_check.relative_error(denoise(unet, latents, t, together, other)[2], out[2]) > 1e-4


@torch.no_grad()
def test_padding_as_published_takes_a_share():
    torch.manual_seed(6)
    unet, t, batch = make_unet(), torch.tensor([100]), make_batch([2, 1])
    latents = torch.randn(2, 4, 16, 16)
    padded = batch.published_padding(4)
    order = torch.arange(SLOTS - 2)
    out = denoise(unet, latents, t, padded, prepare_context(unet, padded, order=order))
    for b in range(2):
        close(out[b], plain_denoise(unet, latents, t, padded, b, order))
    assert golden_check.relative_error(denoise(unet, latents, t, batch, prepare_context(unet, batch, order=order)), out) > 1e-4


@torch.no_grad()
def test_unconditional_rows_and_pictures_without_instances_are_plain():
    torch.manual_seed(7)
    unet, t, batch = make_unet(), torch.tensor([100]), make_batch([2, 0, 3])
    latents = torch.randn(3, 4, 16, 16)
    plain = denoise(unet, latents, t, batch, None)
    out = denoise(unet, latents, t, batch, prepare_context(unet, batch))
    close(out[1], plain[1])
    assert golden_check.relative_error(out[0], plain[0]) > 1e-3
    dropped = denoise(unet, latents, t, batch, prepare_context(unet, batch, torch.tensor([False, True, True])))
    close(dropped[:2], plain[:2])
    close(dropped[2], out[2])
    twice = dataclasses.replace(batch, caption_tokens=torch.cat([batch.caption_tokens] * 2))
    for fuser in (False, True):
        context = dataclasses.replace(prepare_context(unet, batch, guidance=True), fuser=fuser)
        pair = denoise(unet, torch.cat([latents] * 2), t, twice, context)
        close(pair[:3], plain)
        close(pair[3:], denoise(unet, latents, t, batch, dataclasses.replace(prepare_context(unet, batch), fuser=fuser)))


def test_steps_count_from_0_and_include_the_last():
    unet, batch = make_unet(active=5 / 20, fuser=2 / 20), make_batch([1])
    context, config = prepare_context(unet, batch), migc_config(unet)

    def at(share: float) -> tuple[bool, bool] | None:
        now = context.at(share, config)
        return None if now is None else (now.module, now.fuser)

    assert [at(step / 20) for step in (0, 2, 3, 5, 6)] == [(True, True), (True, True), (True, False), (True, False), None]
    published = MIGCConfig()
    assert sum(context.at(step / 50, published) is not None for step in range(50)) == 26


def test_more_instances_than_slots_are_refused():
    unet = make_unet()
    prepare_context(unet, make_batch([SLOTS - 2]))
    with pytest.raises(CCDiffError, match="7 instances, this MIGC takes 6"):
        prepare_context(unet, make_batch([1, SLOTS - 1]))


def test_a_slot_order_must_be_a_permutation():
    unet = make_unet()
    for order in (torch.zeros(SLOTS - 2, dtype=torch.int64), torch.arange(SLOTS)):
        with pytest.raises(ValueError, match="permutation"):
            prepare_context(unet, make_batch([1]), order=order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "all"}, "masks"),
        ({"active": 1.5}, "active"),
        ({"fuser": -0.1}, "fuser"),
        ({"slots": 2}, "slots"),
        ({"places": ("down_blocks.2",)}, "no cross-attention"),
        ({"heads": 7}, "heads"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(CCDiffError, match=message):
        make_unet(**options)


def test_gradients_are_those_of_the_published_form_and_reach_the_module_alone():
    torch.manual_seed(8)
    unet, batch, t = make_unet(), edgy_batch([4, 2]), torch.tensor([500])
    unet.requires_grad_(False)
    own = list(migc_parameters(unet))
    for parameter in own:
        parameter.requires_grad_(True)
    latents, target = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    order = torch.randperm(SLOTS - 2)
    expected = torch.stack([plain_denoise(unet, latents, t, batch, b, order) for b in range(2)])
    expected = torch.autograd.grad(((expected - target) ** 2).sum(), own)
    ((denoise(unet, latents, t, batch, prepare_context(unet, batch, order=order)) - target) ** 2).sum().backward()
    trained = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in unet.named_parameters() if ".processor.migc." in name}
    assert len(own) == len(trained)
    for parameter, other in zip(own, expected, strict=True):
        assert float(other.norm()) > 0
        assert float((parameter.grad - other).norm()) < 1e-4 * float(other.norm())


@pytest.mark.parametrize("counts", [[0, 0], [1, 2]])
def test_every_parameter_has_a_gradient_even_where_no_row_is_conditional(counts):
    unet, batch = make_unet(), make_batch([max(counts), 1])
    batch.valid = torch.arange(batch.valid.shape[1])[None] < torch.tensor(counts)[:, None]
    context = prepare_context(unet, batch, torch.tensor([False, False]))
    denoise(unet, torch.randn(2, 4, 16, 16), torch.tensor([5]), batch, context).sum().backward()
    assert all(parameter.grad is not None for parameter in migc_parameters(unet))


@torch.no_grad()
def test_half_precision_runs_with_and_without_autocast():
    unet, batch, latents = make_unet(), make_batch([3, 1]), torch.randn(2, 4, 16, 16)
    expected = denoise(unet, latents, torch.tensor([5]), batch, prepare_context(unet, batch))
    with torch.autocast("cpu", torch.bfloat16):
        found = denoise(unet, latents, torch.tensor([5]), batch, prepare_context(unet, batch))
    assert golden_check.relative_error(found.float(), expected) < 0.05
    unet, batch = torch.nn.Module.to(unet, torch.bfloat16), batch.to(dtype=torch.bfloat16)
    found = denoise(unet, latents.bfloat16(), torch.tensor([5]), batch, prepare_context(unet, batch))
    assert found.dtype == torch.bfloat16
    assert golden_check.relative_error(found.float(), expected) < 0.1


@torch.no_grad()
def test_a_saved_unet_is_the_same_one(tmp_path):
    unet, batch, latents = make_unet(masks="area"), make_batch([2]), torch.randn(1, 4, 16, 16)
    unet.save_pretrained(tmp_path)
    back = MIGCUNet.from_pretrained(tmp_path).eval()
    assert migc_config(back) == migc_config(unet)
    expected = denoise(unet, latents, torch.tensor([5]), batch, prepare_context(unet, batch))
    close(denoise(back, latents, torch.tensor([5]), batch, prepare_context(back, batch)), expected)


# ---- masks and slots ----


@pytest.mark.parametrize(
    ("image", "latent", "grid"), [((96, 160), (12, 20), (6, 10)), ((72, 104), (9, 13), (5, 7)), ((64, 64), (8, 8), (8, 8))]
)
def test_masks_are_the_resized_rasters(image, latent, grid):
    rng = np.random.default_rng(image[0])
    low = rng.uniform(-0.2, 0.9, (12, 2))
    hbb = torch.tensor(np.concatenate([low, low + rng.uniform(0, 0.5, (12, 2))], axis=1))
    picture = torch.arange(12) % 3
    for sizes in ((latent,), (latent, grid)):
        masks, background = instance_masks(hbb, picture, 4, image, *sizes)
        for b in range(4):  # the last one has none
            expected = pixel_masks(hbb[picture == b], image)
            for size in sizes:
                expected = F.interpolate(expected[None], size=size, mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(torch.cat([background[b : b + 1], masks[picture == b]]), expected, atol=1e-6, rtol=0)


def test_area_masks_keep_what_lies_between_the_sample_points():
    hbb = torch.tensor([[0.27, 0.27, 0.28, 0.28], [0.125, 0.25, 0.5, 0.75], [-1.0, 0.5, 0.25, 3.0]])
    picture = torch.zeros(3, dtype=torch.int64)
    points, _ = instance_masks(hbb, picture, 1, (256, 256), (32, 32), (8, 8))
    areas, background = area_masks(hbb, picture, 1, (256, 256), (8, 8))
    assert float(points[0].max()) == 0
    torch.testing.assert_close(areas.mean(dim=(1, 2)), torch.tensor([1e-4, 0.375 * 0.5, 0.25 * 0.5]))
    assert float(background.min()) == 0
    assert float(background.max()) == 1


def test_slots_follow_the_boxes_then_the_class():
    hbb = torch.tensor([[[0.5, 0, 1, 1], [0.1, 0, 1, 1], [0.9, 0, 0, 0], [0.1, 0, 1, 1], [0.1, 0, 1, 0.5]]])
    valid = torch.tensor([[True, True, False, True, True]])
    assert slot_order(hbb, torch.tensor([[0, 2, 0, 1, 3]]), valid).tolist() == [[3, 2, 4, 1, 0]]


# ---- released checkpoints ----


def released_unet() -> UNet2DConditionModel:
    """Stable Diffusion's two layers a block, since released names count them."""
    unet = UNet2DConditionModel(**UNET | {"layers_per_block": 2})
    install_migc(unet, MIGCConfig(places=PLACES, slots=5, position_width=20))
    return unet.eval()


def test_released_names():
    name = "model.diffusion_model.{}.transformer_blocks.0.attn2.any.thing.migc.ea.to_q.weight"
    ours = "{}.transformer_blocks.0.attn2.processor.migc.ea.to_q.weight"
    for theirs, block in (
        ("middle_block.1", "mid_block.attentions.0"),
        ("output_blocks.3.1", "up_blocks.1.attentions.0"),
        ("output_blocks.5.1", "up_blocks.1.attentions.2"),
        ("output_blocks.11.1", "up_blocks.3.attentions.2"),
        ("input_blocks.4.1", "down_blocks.1.attentions.0"),
        ("input_blocks.8.1", "down_blocks.2.attentions.1"),
    ):
        assert released.our_name(name.format(theirs)) == ours.format(block)
        assert released.our_name(released.released_name(ours.format(block))) == ours.format(block)
        assert released.our_name("unet." + ours.format(block)) == ours.format(block)
    for other in (name.format("input_blocks.3.0"), "model.diffusion_model.out.0.weight", "nothing"):
        assert released.our_name(other) == other


@pytest.mark.parametrize("form", ["authors", "diffusers", "folder"])
def test_import_and_back(tmp_path, form):
    unet = released_unet()
    base = stable_diffusion(tmp_path / "sd", layers_per_block=2)
    path = tmp_path / "released" / ("migc.safetensors" if form == "diffusers" else released.RELEASED_FILE)
    path.parent.mkdir()
    if form == "diffusers":
        save_file({f"unet.{name}": value for name, value in released.module_weights(unet).items()}, path)
    else:
        torch.save({"state_dict": released.to_released(unet)}, path)
    made = METHOD.import_checkpoint(path.parent if form == "folder" else path, tmp_path / "g", Given(base))
    assert method_of(read_generator(tmp_path / "g")) is METHOD
    assert made["imported"]["places"] == list(PLACES)
    pipe = load_pipeline(tmp_path / "g")
    assert isinstance(pipe, MIGCPipeline)
    assert migc_config(pipe.unet) == MIGCConfig(places=PLACES, slots=5, position_width=20)
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipe.config.num_inference_steps == 50
    own, plain = pipe.unet.state_dict(), UNet2DConditionModel.from_pretrained(base / "unet").state_dict()
    module = released.module_weights(unet)
    assert len(module) == 4 * 32
    assert set(own) == {*module, *plain}
    assert all(torch.equal(own[name], value) for name, value in {**module, **plain}.items())
    assert pictures(pipe, [2], num_inference_steps=2).shape == (1, 4, 16, 16)
    (file,) = METHOD.export_checkpoint(tmp_path / "g", tmp_path / "back")
    back = torch.load(file, weights_only=True)["state_dict"]
    assert set(back) == set(released.to_released(unet))
    assert all(torch.equal(back[name], value) for name, value in released.to_released(unet).items())


def test_every_key_is_accounted_for(tmp_path):
    base, path = stable_diffusion(tmp_path / "sd", layers_per_block=2), tmp_path / "MIGC_SD14.ckpt"
    weights = released.to_released(released_unet())
    gone = next(name for name in weights if name.endswith("ea.to_q.weight"))
    odd = next(name for name in weights if name.endswith("la.to_q.weight"))
    changed = {k: v for k, v in weights.items() if k != gone} | {odd: torch.zeros(2, 3), "model.extra": torch.zeros(1)}
    torch.save({"state_dict": changed}, path)
    with pytest.raises(CCDiffError, match=r"missing keys \(1\): .*ea\.to_q.*surplus keys \(1\): model\.extra; shapes \(1\): .*\(2, 3\)"):
        METHOD.import_checkpoint(path, tmp_path / "g", Given(base))
    with pytest.raises(CCDiffError, match="Stable Diffusion folder"):
        METHOD.import_checkpoint(path, tmp_path / "g", Given())
    with pytest.raises(CCDiffError, match="found none"):
        METHOD.import_checkpoint(base, tmp_path / "g", Given(base))
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CCDiffError, match="no weights of MIGC"):
        METHOD.import_checkpoint(path, tmp_path / "g", Given(base))
    assert not (tmp_path / "g").exists()


def test_what_is_no_such_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(CCDiffError, match="does not exist"):
        released.read_released(path)
    prefix = "model.diffusion_model.middle_block.1.migc"
    torch.save({"state_dict": {f"{prefix}.gamma": torch.zeros(1), f"{prefix}.ea.to_q.weight": torch.zeros(1)}}, path)
    with pytest.raises(CCDiffError, match=r"MIGC\+\+"):
        released.read_released(path)
    torch.save({"state_dict": {"a": pathlib.PurePosixPath("a")}}, path)
    with pytest.raises(CCDiffError, match="tensors alone"):
        released.read_released(path)


# ---- the method ----


def test_training_lowers_the_loss_and_changes_the_module_alone():
    names = trained_names(METHOD, make_recipe(METHOD))
    assert names == {name for name, _ in make_pipeline(METHOD, make_recipe(METHOD)).unet.named_parameters() if ".processor.migc." in name}
    whole = make_recipe(METHOD, unet={"source": "x", "train_all": True})
    assert len(trained_names(METHOD, whole)) > len(names)


def test_pictures_with_more_objects_than_slots_are_refused_before_training():
    with pytest.raises(CCDiffError, match=r"0\.png has 5 objects; MIGC by recipe small takes 4") as caught:
        check_training(make_recipe(METHOD, migc={"slots": 6}), make_scenes([5])[0], where="set")
    assert "raise migc.slots by 1" in str(caught.value.fix)


def test_a_picture_depends_on_its_scene_and_noise_alone():
    pipe = make_pipeline(METHOD, make_recipe(METHOD))
    together = pictures(pipe, [3, 0, 5])
    torch.manual_seed(99)  # as released, the order of the slots would be drawn from here
    for k in range(3):
        close(pictures(pipe, [3, 0, 5], [k])[0], together[k], 1e-5)


def test_padding_and_order_as_published_are_switches():
    pipe = make_pipeline(METHOD, make_recipe(METHOD))
    plain = pictures(pipe, [3, 1])
    order = torch.randperm(28)
    assert golden_check.relative_error(pictures(pipe, [3, 1], slot_order=order), plain) > 1e-5
    assert torch.equal(pictures(pipe, [3, 1], slot_order=order), pictures(pipe, [3, 1], slot_order=order))
    pipe.register_to_config(published_padding=6)
    assert golden_check.relative_error(pictures(pipe, [3, 1]), plain) > 1e-3


@torch.no_grad()
def test_the_module_works_up_to_half_of_the_steps_and_in_the_conditional_branch_alone():
    pipe = make_pipeline(METHOD, make_recipe(METHOD))
    layout = pipe.layout_batch(make_scenes([2])[0])
    empty = pipe.encode_text(["two"])[0]
    condition = pipe.condition(layout, empty, guided=True)
    x, t = torch.randn(1, 4, 16, 16).repeat(2, 1, 1, 1), torch.tensor(500)
    early, late = pipe.predict(x, t, condition, 0.5), pipe.predict(x, t, condition, 0.51)
    close(early[0], late[0])
    assert golden_check.relative_error(early[1], late[1]) > 1e-3
    close(late, pipe.unet(x, t, torch.cat([empty, layout.caption_tokens])).sample)


# ---- golden files ----


@torch.no_grad()
@pytest.mark.parametrize(("count", "size", "step"), [(0, "128", 0), (4, "[96, 160]", 9), (2, "(128, 64)", 10)])
def test_golden_check_runs_files_of_any_count_and_size(tmp_path, capsys, count, size, step):
    torch.manual_seed(count)
    unet = make_unet().half().float()
    image = tuple(int(v) for v in size.strip("[]()").split(","))
    batch = edgy_batch([count], (image[0], image[-1]))
    batch.class_index, batch.class_tokens, batch.class_pooled = torch.arange(count)[None], torch.randn(count, 8, 24), torch.randn(count, 24)
    latents, t, negative, order = (
        torch.randn(1, 4, *batch.latent_size),
        torch.tensor([300]),
        torch.randn(1, 8, 24),
        torch.randperm(SLOTS - 2),
    )
    unconditional = unet(latents, t, negative).sample[0]
    out = {}
    active = step <= 9
    for name, module, fuser in (
        ("", active, False), ("_module_off", False, False), ("_with_plain_fuser", active, active), ("_plain_fuser_only", False, True),
    ):  # fmt: skip
        conditional = plain_denoise(unet, latents, t, batch, 0, order, module=module, fuser=fuser)
        out[f"noise_guided_pair{name}"] = torch.stack([unconditional, conditional])
    masks = F.interpolate(pixel_masks(batch.hbb[0], batch.image_size)[None], size=batch.latent_size, mode="bilinear")[0]
    out |= {"background_mask": masks[0], "instance_masks": masks[1:]}
    given = {
        "hbb": batch.hbb[0], "latents": latents, "timestep": t, "negative_text_tokens": negative, "slot_order": order,
        "text_tokens": torch.cat([batch.caption_tokens, batch.class_tokens]),
        "text_pooled": torch.cat([batch.caption_pooled, batch.class_pooled])[:, None],
    }  # fmt: skip
    tensors = {f"unet.{k}": v.half() for k, v in unet.state_dict().items()}
    tensors |= {f"in.{k}": v for k, v in given.items()} | {f"out.{k}": v for k, v in out.items()}
    module_config = {"places": PLACES, "heads": 8, "position_hidden": 20, "slots": SLOTS, "cbam_reduction": 5}
    metadata = {"model": "migc", "unet_config": json.dumps(UNET), "module_config": json.dumps(module_config), "image_size": size}
    path = tmp_path / "golden.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata | {"migc_steps": "9", "step_index": str(step)})
    assert golden_check.main([str(path)]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count(" ok\n") == 6
    tensors["out.noise_guided_pair"] = tensors["out.noise_guided_pair"] + 0.01
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata | {"migc_steps": "9", "step_index": str(step)})
    assert golden_check.main([str(path)]) == 1
