"""DiffusionSat against its published computation in plain form; unknown quantities; gradients; released names."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods.diffusionsat.checkpoints import joined_weights, load_released
from ccdiff_cli.methods.diffusionsat.network import (
    MetadataEmbedding,
    embedding_of,
    keep_metadata,
    make_unet,
    scale_metadata,
    with_metadata,
)
from tests import golden_check
from tests.models.small import TEXT, UNET

NAN = math.nan


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert golden_check.relative_error(found.detach(), expected.detach()) < 2e-6


def plain_scale(row: list[float]) -> list[float]:
    lon, lat, gsd, cloud, year, month, day = row
    scaled = [
        1000 * (lon + 180) / 360, 1000 * (lat + 90) / 180, 1000 * gsd, 1000 * cloud, 1000 * (year - 1980) / 120,
        1000 * month / 12, 1000 * day / 31,
    ]  # fmt: skip
    return [0.0 if math.isnan(v) else v for v in scaled]


def plain_embedding(weights: dict[str, torch.Tensor], scaled: list[float], channels: int) -> torch.Tensor:
    total = torch.zeros(())
    for i, s in enumerate(scaled):
        frequencies = [torch.exp(torch.tensor(-math.log(10000) * j, dtype=torch.float32) / (channels // 2)) for j in range(channels // 2)]
        angles = [float(torch.tensor(s, dtype=torch.float32) * f) for f in frequencies]
        code = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        hidden = weights[f"{i}.linear_1.weight"] @ code + weights[f"{i}.linear_1.bias"]
        hidden = hidden * torch.sigmoid(hidden)
        total = total + weights[f"{i}.linear_2.weight"] @ hidden + weights[f"{i}.linear_2.bias"]
    return total


quantity = st.one_of(st.just(NAN), st.floats(-200, 3000, allow_nan=False))


@given(st.lists(quantity, min_size=7, max_size=7))
@settings(max_examples=60, deadline=None)
def test_each_quantity_is_scaled_by_itself_and_unknown_is_zero(row):
    found = scale_metadata(torch.tensor([row], dtype=torch.float64))[0]
    assert found.dtype == torch.float32
    assert found.tolist() == torch.tensor(plain_scale(row), dtype=torch.float64).float().tolist()


def test_nothing_is_clamped_and_true_zeros_stay():
    found = scale_metadata(torch.tensor([[-180.0, -90.0, 30.0, 0.0, 1940.0, 24.0, 0.0]]))
    assert found.tolist() == [[0.0, 0.0, 30000.0, 0.0, pytest.approx(-1000 / 3), 2000.0, 0.0]]


def test_embedding_is_the_published_sum_even_of_thousands():
    torch.manual_seed(0)
    embedding = MetadataEmbedding(channels=12, width=20)
    scaled = torch.tensor([[925.88, 345.2, 30000.0, 0.0, 308.3, 166.67, 354.8], [0.0] * 7])
    for row, found in zip(scaled, embedding(scaled), strict=True):
        close(found, plain_embedding(embedding.state_dict(), row.tolist(), 12))


def test_unknown_still_adds_its_embedding():
    embedding = MetadataEmbedding(channels=12, width=20)
    assert embedding(torch.zeros(1, 7)).abs().sum() > 0
    with torch.no_grad():
        first, code = embedding.get_submodule("3"), torch.cat([torch.ones(6), torch.zeros(6)])[None]
        without = embedding(torch.zeros(1, 7)) - first(code)
        first.linear_2.weight.zero_(), first.linear_2.bias.zero_()
        close(embedding(torch.zeros(1, 7)), without)


def test_half_weights_do_not_round_the_quantities():
    torch.manual_seed(0)
    embedding = MetadataEmbedding(channels=32, width=64)
    scaled = torch.tensor([[4100.7, 0, 1001.3, 0, 0, 0, 0]])
    exact = embedding(scaled).detach()
    half = embedding.to(torch.bfloat16)(scaled).detach().float()
    rounded = embedding(scaled.bfloat16()).detach().float()
    assert golden_check.relative_error(half, exact) < 0.02 < golden_check.relative_error(rounded, exact)


def test_another_number_of_quantities_is_refused():
    with pytest.raises(ValueError, match="7 quantities"):
        MetadataEmbedding(channels=12, width=20)(torch.zeros(2, 6))


class PlainTimeEmbedding(nn.Module):
    """The time embedding of a UNet that knows no metadata, with what the metadata add."""

    def __init__(self, own: nn.Module, added: torch.Tensor):
        super().__init__()
        self.own, self.added = own, added

    def forward(self, code, condition=None):
        return self.own(code, condition) + self.added


def made(**changes):
    torch.manual_seed(1)
    return make_unet(UNET | {"use_metadata": True, "num_metadata": 7, "use_linear_projection": True} | changes)


def test_a_step_is_that_of_a_plain_unet_with_another_time_embedding():
    unet, embedding = made()
    latents, text, t = torch.randn(2, 4, 12, 16), torch.randn(2, 5, TEXT), torch.tensor([3, 911])
    scaled = scale_metadata(torch.tensor([[NAN, NAN, 0.3, NAN, 2014, NAN, NAN], [10.0, -20, NAN, 0.1, NAN, 3, 9]]))
    found = unet(latents, t, text, class_labels=embedding(scaled)).sample
    plain = UNet2DConditionModel.from_config({k: v for k, v in unet.config.items() if k != "class_embed_type"})
    plain.load_state_dict(unet.state_dict())
    plain.time_embedding = PlainTimeEmbedding(plain.time_embedding, embedding(scaled))
    close(found, plain(latents, t, text).sample)
    for b in range(2):  # the batch changes nothing
        alone = unet(latents[b : b + 1], t[b : b + 1], text[b : b + 1], class_labels=embedding(scaled[b : b + 1])).sample
        close(alone, found[b : b + 1])


def test_a_plain_unet_becomes_one_with_metadata_and_keeps_it(tmp_path):
    torch.manual_seed(2)
    plain = UNet2DConditionModel(**UNET)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 5, TEXT)
    before = plain(*inputs).sample
    unet = with_metadata(plain)
    width = unet.time_embedding.linear_2.out_features
    assert torch.equal(unet(*inputs, class_labels=torch.zeros(1, width)).sample, before)
    embedding = embedding_of(unet)
    unet.save_pretrained(tmp_path / "unet"), embedding.save_pretrained(tmp_path / "embedding")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "unet"), MetadataEmbedding.from_pretrained(tmp_path / "embedding")
    scaled = torch.rand(1, 7) * 1000
    expected = unet(*inputs, class_labels=embedding(scaled)).sample
    close(again[0](*inputs, class_labels=again[1](scaled)).sample, expected)
    with pytest.raises(ValueError, match="class labels of its own"):
        with_metadata(UNet2DConditionModel(**UNET, num_class_embeds=3))


def test_gradients_reach_the_whole_unet_and_every_embedder_of_dropped_quantities_too():
    unet, embedding = made()
    scaled = keep_metadata(torch.full((2, 7), 500.0), torch.zeros(2, 7))
    unet(torch.randn(2, 4, 8, 8), torch.tensor([5, 6]), torch.randn(2, 5, TEXT), class_labels=embedding(scaled)).sample.sum().backward()
    assert not [n for module in (unet, embedding) for n, p in module.named_parameters() if p.grad is None]
    assert all(p.grad.abs().sum() > 0 for p in embedding.parameters())


def test_kept_quantities_stay_and_the_rest_are_unknown():
    scaled = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]])
    found = keep_metadata(scaled, torch.tensor([[1, 0, 1, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]]))
    assert found.tolist() == [[1, 0, 3, 0, 0, 0, 7], [1, 2, 3, 4, 5, 6, 0]]
    assert keep_metadata(scaled, torch.tensor([[True], [False]])).tolist() == [scaled[0].tolist(), [0] * 7]


def test_released_names_there_and_back():
    unet, embedding = made()
    config = UNET | {"use_metadata": True, "num_metadata": 7, "use_linear_projection": True}
    weights = {k: v.half() for k, v in joined_weights(unet.state_dict(), embedding.state_dict()).items()}
    assert {f"metadata_embedding.{i}.linear_{j}.{k}" for i in range(7) for j in (1, 2) for k in ("weight", "bias")} <= set(weights)
    again, embedded = load_released(config, weights, "here")
    assert next(again.parameters()).dtype == torch.float16
    back = joined_weights(again.state_dict(), embedded.state_dict())
    assert set(back) == set(weights) and all(torch.equal(back[k], weights[k]) for k in weights)


def test_every_odd_released_weight_is_named_at_once():
    unet, embedding = made()
    config = UNET | {"use_linear_projection": True}
    weights = joined_weights(unet.state_dict(), embedding.state_dict())
    del weights["metadata_embedding.6.linear_2.bias"], weights["conv_out.bias"]
    weights["metadata_embedding.9.extra"] = torch.zeros(1)
    weights["conv_in.bias"] = torch.zeros(3)
    with pytest.raises(CCDiffError) as caught:
        load_released(config | {"num_metadata": 7}, weights, "unet.bin")
    text = str(caught.value)
    for name in ("metadata_embedding.6.linear_2.bias", "conv_out.bias", "metadata_embedding.9.extra", "conv_in.bias (3,)", "unet.bin"):
        assert name in text
    with pytest.raises(CCDiffError, match="a plain UNet"):
        load_released(config, unet.state_dict(), "unet.bin")


@pytest.mark.parametrize("case", ["no metadata", "one row for all", "no guidance", "a file of its own sizes"])
def test_golden_files_of_other_kinds_are_run(tmp_path, case):
    """A file as the published ones, of our own weights; what it expects is computed plainly, one picture after another."""
    torch.manual_seed(3)
    count = 3
    config = UNET | {"use_metadata": True, "num_metadata": 7}
    unet, embedding = make_unet(config)
    raw = torch.tensor([[NAN, 50, 0.2, NAN, 2001, NAN, 5], [1, NAN, 12.5, 1, NAN, 12, NAN], [NAN] * 7])
    given = {"metadata_raw": raw} if case != "no metadata" else {}
    if case == "one row for all":
        given["metadata_raw"] = raw[:1]
    used = given.get("metadata_raw", torch.full((1, 7), NAN)).expand(count, 7)
    text, negative, noise = torch.randn(count, 4, TEXT), torch.randn(1, 4, TEXT), torch.randn(count, 4, 8, 12)
    guidance = 1.0 if case == "no guidance" else 3.0
    given |= {
        "text_tokens": text,
        "negative_text_tokens": negative,
        "initial_noise": noise,
        "latents": noise,
        "timestep": torch.tensor([7]),
    }
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
                "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"}  # fmt: skip
    steps = 7
    share = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    expected, predicted = [], []
    with torch.no_grad():
        for b in range(count):
            weights = embedding.state_dict()
            labels = plain_embedding(weights, plain_scale(used[b].double().tolist()), UNET["block_out_channels"][0])[None]
            nothing = plain_embedding(weights, [0.0] * 7, UNET["block_out_channels"][0])[None]
            x = noise[b : b + 1]
            predicted.append(unet(x, 7, text[b : b + 1], class_labels=labels).sample)
            for k in reversed(range(steps)):
                t = 1 + k * (1000 // steps)
                v = unet(x, t, text[b : b + 1], class_labels=labels).sample
                if guidance > 1:
                    without = unet(x, t, negative, class_labels=nothing).sample
                    v = without + guidance * (v - without)
                a = share[t]
                before = t - 1000 // steps
                a2 = share[max(before, 0)]
                clean = a.sqrt() * x - (1 - a).sqrt() * v
                n = a.sqrt() * v + (1 - a).sqrt() * x
                x = (a2.sqrt() * clean + (1 - a2).sqrt() * n).float()
            expected.append(x)
    tensors = joined_weights(unet.state_dict(), embedding.state_dict()) | {f"in.{k}": v.clone() for k, v in given.items()}
    tensors |= {"out.sampled_latents": torch.cat(expected), "out.prediction": torch.cat(predicted)}
    description = {"model": "diffusionsat", "unet_config": json.dumps(config), "scheduler_config": json.dumps(schedule),
                   "steps": str(steps), "guidance": str(guidance), "snr_gamma": "5.0"}  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors", metadata=description)
    assert golden_check.main([str(tmp_path / "x.safetensors")]) == 0
