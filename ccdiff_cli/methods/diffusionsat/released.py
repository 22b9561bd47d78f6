"""Released DiffusionSat UNets to our two parts and back: the names of a UNet, and ``metadata_embedding.{i}.linear_{1,2}.*`` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from ...errors import CCDiffError
from ...models.accounting import account_for
from .network import MetadataEmbedding, make_unet

METADATA = "metadata_embedding."


def joined_weights(unet: Mapping[str, Tensor], embedding: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of both parts under released names."""
    return dict(unet) | {METADATA + name: value for name, value in embedding.items()}


def load_released(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str | Path
) -> tuple[UNet2DConditionModel, MetadataEmbedding]:
    """Both parts of a released UNet's configuration and weights, in the precision the weights are stored in.

    Raises:
        CCDiffError: a UNet without metadata; missing, surplus and wrongly shaped weights, all listed.
    """
    count = len({name.split(".")[1] for name in weights if name.startswith(METADATA)})
    if not count:
        raise CCDiffError(
            f"no weight is called {METADATA}...: a plain UNet", where=where, fix="give a released DiffusionSat checkpoint folder"
        )
    unet, embedding = make_unet(dict(config) | {"num_metadata": config.get("num_metadata") or count})
    own = joined_weights(unet.state_dict(), embedding.state_dict())
    account_for(own, weights, where, "give the unet or unet_ema folder of a released single-picture DiffusionSat checkpoint, whole")
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(kinds) == 1:
        kind = kinds.pop()
        unet.to(kind), embedding.to(kind)
    embedding.load_state_dict({name.removeprefix(METADATA): v for name, v in weights.items() if name.startswith(METADATA)})
    unet.load_state_dict({name: v for name, v in weights.items() if not name.startswith(METADATA)})
    return unet.eval(), embedding.eval()
