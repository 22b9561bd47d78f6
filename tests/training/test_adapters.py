"""Adapters on a frozen UNet and an optimizer of 8 bits: what they change, that a training resumes with them, what is said without them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import nn

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods.recipe import StageConfig
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.training.adapters import adapt, check_extras, merge, numbers, targets
from ccdiff_cli.training.costs import memory_of_training
from ccdiff_cli.training.loop import Run, run_stage

FROZEN = {"unet.source": "sd", "unet.train_all": False, "unet.lora": 2}


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 2, "norm_num_groups": 4}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return UNet2DConditionModel(sample_size=8, **sizes, **blocks).eval()


@torch.no_grad()
def answer(unet: UNet2DConditionModel) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 3, 8, generator=draw)
    return unet(noisy, torch.tensor([10, 500]), text).sample


def test_adapters_change_nothing_at_first_and_end_in_the_weights() -> None:
    pytest.importorskip("peft")
    unet = small_unet()
    names, before, kept = list(unet.state_dict()), answer(unet), {k: v.clone() for k, v in unet.state_dict().items()}
    own = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight  # stands for what a stage trains itself
    laid, count = set(targets(unet, [own])), numbers(unet, [own], 3)
    adapt(unet, [own], 3, seed=5)
    assert torch.equal(answer(unet), before)
    trained = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained) and sum(p.numel() for p in trained.values()) == count
    other = small_unet()
    adapt(other, [], 3, seed=5)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    adapted = answer(unet)
    assert (adapted - before).abs().max() > 1e-3
    merge(unet)
    assert list(unet.state_dict()) == names and (answer(unet) - adapted).abs().max() < 1e-5
    changed = {name for name, value in unet.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed == {f"{name}.weight" for name in laid} and "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q" not in laid
    assert all(name.rpartition(".")[2] in ("to_q", "to_k", "to_v") for name in laid)


class Square(nn.Module):
    """A layer of 4,096 numbers, from which on moments are kept in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.to_q = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.to_q(x) - x.flip(1)).square().mean()


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, torch.Tensor):
        yield state


@pytest.mark.parametrize("what", ["peft", "bitsandbytes"])
def test_a_training_with_them_resumes_to_the_same_bytes(tmp_path: Path, what: str) -> None:
    pytest.importorskip(what)
    kind = {"optimizer": "adamw8bit"} if what == "bitsandbytes" else {}
    config = StageConfig(steps=7, batch_size=4, learning_rate=0.01, checkpoint_every=2, ema_decay=0.5, **kind)

    def train(folder: Path, stop_at: int | None = None) -> tuple[list[float], torch.Tensor]:
        module = Square()
        if what == "peft":
            adapt(module, [], 2, seed=3)

        def batch_of(step: int, *_: int) -> dict[str, torch.Tensor]:
            if step == stop_at:
                raise InterruptedError
            return {"x": torch.randn(4, 64, generator=torch.Generator().manual_seed(step))}

        losses = run_stage("square", module, batch_of, config, Run(folder, Accelerator(cpu=True), 3, "k"))
        if what == "peft":
            merge(module)
        return losses, module.to_q.weight.detach().clone()

    losses, weight = train(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(tmp_path / "cut", stop_at=5)
    again_losses, again = train(tmp_path / "cut")
    assert again_losses == losses and torch.equal(again, weight)
    assert losses[-1] < losses[0] and not torch.equal(weight, Square().to_q.weight)
    if what == "bitsandbytes":
        saved = torch.load(tmp_path / "whole" / "checkpoint-00000006.pt", weights_only=True)["optimizer"]["state"]
        moments = [value for value in tensors_of(saved) if value.numel() == 4096]
        assert len(moments) == 2 and all(value.dtype == torch.uint8 for value in moments)


def test_what_is_missing_is_said_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_extras(load_recipe("ccdiffpp-sd14-dior"))
    with pytest.raises(CCDiffError, match=r"unet\.lora(.|\n)*ccdiff\[lora\]"):
        check_extras(load_recipe("ccdiffpp-sd14-dior", FROZEN))
    with pytest.raises(CCDiffError, match=r"denoiser\.train\.optimizer(.|\n)*ccdiff\[8bit\]"):
        check_extras(load_recipe("tiny", {"denoiser.train.optimizer": "adamw8bit"}))


def test_adapters_on_what_is_trained_anyway_are_refused() -> None:
    with pytest.raises(CCDiffError, match=r"unet\.lora"):
        load_recipe("ccdiffpp-sd14-dior", {"unet.train_all": True, "unet.lora": 2})


def test_the_memory_of_both_is_in_the_plan() -> None:
    plain, small = (memory_of_training(load_recipe("tiny", changes), []) for changes in ({}, {"denoiser.train.optimizer": "adamw8bit"}))
    trained = plain["checkpoint"] / 16  # with moments of 8 bytes and an average
    assert plain["weights"] - small["weights"] == pytest.approx(6 * trained) and small["checkpoint"] == 10 * trained


def test_recipes_of_before_have_the_keys_that_they_had() -> None:
    written = load_recipe("ccdiffpp-sd14-dior").model_dump(mode="json")
    assert "lora" not in written["unet"] and "optimizer" not in written["denoiser"]["train"]
