"""Low-rank adapters (LoRA, Hu et al., ICLR 2022) on a frozen UNet, by peft.

They lie on queries, keys and values of its attentions, as far as the stage does not train these themselves, and are added into the weights
when the stage is done: the generator has the parts that it has without them, and nothing else knows of them.

NOTE: output projections are left out, for some methods read their weights beside calling them (``models.conditioning``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import CCDiffError
from ..methods.perceptual import network_weights
from ..methods.recipe import Recipe, Section, StageConfig

TARGETS = ("to_q", "to_k", "to_v")


def check_extras(recipe: Recipe) -> None:
    """Whether the libraries are there that a recipe asks for.

    Raises:
        CCDiffError: one is not, with the key that asks for it.
    """
    if recipe.unet is not None and recipe.unet.lora and importlib.util.find_spec("peft") is None:
        raise CCDiffError("low-rank adapters need peft", where="recipe key unet.lora", fix="pip install 'ccdiff[lora]', or set it to 0")
    if recipe.denoiser.perceptual or recipe.decoder is not None:
        network_weights()
    for key in _eight_bits(recipe):
        if importlib.util.find_spec("bitsandbytes") is None:
            fix = "pip install 'ccdiff[8bit]', or set it to adamw"
            raise CCDiffError("AdamW in 8 bits needs bitsandbytes", where=f"recipe key {key}", fix=fix)


def _eight_bits(section: Section, path: str = "") -> list[str]:
    """The keys of a recipe that ask for an optimizer of 8 bits."""
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            found += _eight_bits(value, f"{path}{name}.")
    if isinstance(section, StageConfig) and section.optimizer == "adamw8bit":
        found.append(f"{path}optimizer")
    return found


def targets(unet: nn.Module, trained: Iterable[nn.Parameter]) -> dict[str, nn.Linear]:
    """The layers that adapters lie on, by name: of the parameters that are not ``trained``."""
    changed = {id(parameter) for parameter in trained}
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS and id(module.weight) not in changed
    }


def numbers(unet: nn.Module, trained: Iterable[nn.Parameter], rank: int) -> int:
    """How many numbers the adapters of a rank train."""
    return sum(rank * (layer.in_features + layer.out_features) for layer in targets(unet, trained).values())


def adapt(unet: nn.Module, trained: Iterable[nn.Parameter], rank: int, seed: int) -> None:
    """Lay adapters of a rank on the UNet, in place, which change nothing yet: they alone have ``requires_grad`` then."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    names = list(targets(unet, trained))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), unet)


def merge(unet: Any) -> None:
    """Add the adapters into the weights, in place; the modules are those of before."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(unet.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)  # type: ignore[attr-defined]
            unet.set_submodule(name, module.get_base_layer())
    del unet.peft_config
