"""Grounding by gated self-attention (GLIGEN, arXiv 2301.07093) in diffusers' own blocks.

Notable here:
- the network is diffusers' ``UNet2DConditionModel`` with ``attention_type="gated"``: a tokenizer of text and box for a fixed number
  of slots, and a ``fuser`` in every transformer block.  Here is what diffusers leaves out: the slots of a batch with another
  layout in each picture, both branches, the schedule, and training.
- empty slots hold learned null tokens and are attended to, so what comes out depends on the number of slots.  It belongs to the
  generator and never follows the batch; more instances than slots are an error, not dropped.
- the code of a box and the tokenizer are computed in float32 whatever the weights are in: half precision moves a box by pixels.
- the schedule's scale stands in the gates themselves: ``s tanh(a) = tanh(atanh(s tanh(a)))``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin as ModelMixin  # diffusers looks it up here when it loads a saved GroundedUNet
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from diffusers.models.embeddings import GLIGENTextBoundingboxProjection
from torch import Tensor, nn

from ...errors import CCDiffError
from ...models.layers import fourier_code
from ...models.layout import LayoutBatch
from ...models.unets import remember, settings_of


@dataclass(frozen=True)
class GLIGENConfig:
    """How a UNet is grounded; saved in its configuration.

    Attributes:
        slots: places for instances, the same in training and sampling; published: 30.
        full, fading: shares of the denoising steps with full grounding, and after them with grounding that falls to 0; the rest
            has none.  Published: 0.3 and 0.
    """

    slots: int = 30
    full: float = 0.3
    fading: float = 0.0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise CCDiffError(f"GLIGEN: slots is {self.slots}", fix="give at least 1")
        if not (self.full >= 0 and self.fading >= 0 and self.full + self.fading <= 1):
            raise CCDiffError(f"GLIGEN: full is {self.full} and fading {self.fading}", fix="give shares of the steps, together at most 1")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GLIGENConfig:
        return settings_of(cls, values, "GLIGEN")

    def scale(self, step: int, steps: int) -> float:
        """s at a denoising step counted from 0, of ``steps``."""
        full, fading = int(self.full * steps), int(self.fading * steps)
        if step < full:
            return 1.0
        return 1 - (step - full + 1) / fading if step < full + fading else 0.0


class GroundingNet(GLIGENTextBoundingboxProjection):
    """diffusers' tokenizer in float32; its result is in the type of the weights."""

    def forward(self, boxes: Tensor, masks: Tensor, positive_embeddings: Tensor) -> Tensor:  # type: ignore[override]
        """``(B, S, 4)`` HBB, ``(B, S)`` 1 where a slot is filled, ``(B, S, D)`` pooled text -> ``(B, S, D)``."""
        filled = masks.bool()[..., None]
        # NOTE: the meta device, where only sizes are asked for, knows no autocast
        with contextlib.nullcontext() if boxes.is_meta else torch.autocast(boxes.device.type, enabled=False):
            text = torch.where(filled, positive_embeddings.float(), self.null_positive_feature.float())
            place = torch.where(filled, fourier_code(boxes), self.null_position_feature.float())
            tokens = torch.cat([text, place], dim=-1)
            for layer in self.linears:
                tokens = F.linear(tokens, layer.weight.float(), layer.bias.float()) if isinstance(layer, nn.Linear) else layer(tokens)
        return tokens.to(self.null_positive_feature.dtype)


class GroundedUNet(UNet2DConditionModel):
    """A gated ``UNet2DConditionModel`` that remembers its slots and schedule.

    Args:
        grounding: a :class:`GLIGENConfig` as a dictionary.
        unet: the arguments of ``UNet2DConditionModel``; ``attention_type`` is always "gated".
    """

    def __init__(self, grounding: dict[str, Any] | None = None, **unet: Any):
        super().__init__(**unet | {"attention_type": "gated"})
        self.register_to_config(grounding=GLIGENConfig.from_dict(grounding or {}).to_dict(), attention_type="gated")
        self.position_net.__class__ = GroundingNet


remember(GroundedUNet, "grounding")


def grounded_like(unet_config: Mapping[str, Any], config: GLIGENConfig) -> GroundedUNet:
    """A grounded UNet of random weights with the sizes of a plain one."""
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    return GroundedUNet(**{k: v for k, v in unet_config.items() if k in known}, grounding=config.to_dict())


def ground_unet(unet: UNet2DConditionModel, config: GLIGENConfig) -> GroundedUNet:
    """A grounded UNet that starts as ``unet`` does: its weights, closed gates, and random new ones.

    Raises:
        CCDiffError: a UNet that is none of Stable Diffusion's form.
    """
    if not isinstance(unet.config.cross_attention_dim, int):
        raise CCDiffError("GLIGEN: the UNet's blocks take texts of different widths", fix="take a UNet with one cross_attention_dim")
    made = grounded_like(unet.config, config)
    weight = next(unet.parameters())
    nn.Module.to(made, device=weight.device, dtype=weight.dtype)  # diffusers' own warns of what is not so
    own = {name for name, _ in made.named_parameters()} | {name for name, _ in made.named_buffers()}
    surplus = made.load_state_dict(unet.state_dict(), strict=False).unexpected_keys
    missing = sorted(name for name in own - set(unet.state_dict()) if not is_grounding(name))
    if surplus or missing:
        raise CCDiffError(f"GLIGEN: this UNet cannot be grounded; other parameters: {', '.join([*surplus, *missing])}")
    return made.train(unet.training)


def grounding_config(unet: UNet2DConditionModel) -> GLIGENConfig:
    return GLIGENConfig.from_dict(unet.config.grounding)


def is_grounding(name: str) -> bool:
    """Whether a parameter of the UNet is one that GLIGEN trains."""
    return name.startswith("position_net.") or (".transformer_blocks." in name and ".fuser." in name)


def grounding_parameters(unet: UNet2DConditionModel) -> Iterator[nn.Parameter]:
    """The tokenizer's and the fusers' parameters."""
    return (parameter for name, parameter in unet.named_parameters() if is_grounding(name))


def fusers(unet: UNet2DConditionModel) -> dict[str, GatedSelfAttentionDense]:
    """The gated layers by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, GatedSelfAttentionDense)}


def gates(unet: UNet2DConditionModel) -> Tensor:
    """|tanh alpha| of every fuser, ``(fusers, 2)``: how far the attention and the feed-forward are open."""
    return torch.stack([torch.stack([f.alpha_attn, f.alpha_dense]) for f in fusers(unet).values()]).detach().float().tanh().abs()


def grounding_slots(
    batch: LayoutBatch, slots: int, conditional: Tensor | None = None, *, guidance: bool = False
) -> dict[str, dict[str, Tensor]]:
    """What goes into ``unet(..., cross_attention_kwargs=...)``: the instances of each picture in its first slots.

    Args:
        batch: B pictures; ``hbb``, ``valid``, ``class_index`` and ``class_pooled`` are used.
        conditional: ``(B,)`` bool; pictures with False get empty slots.  None: all are conditional.
        guidance: the UNet batch will be ``[unconditional x B, conditional x B]``; the former get empty slots.

    Raises:
        CCDiffError: a picture has more instances than slots.
    """
    if guidance and conditional is not None:
        raise ValueError("with guidance every picture has a conditional row: leave conditional out")
    valid, width = batch.valid, batch.class_pooled.shape[-1]
    most = int(valid.sum(1).max()) if valid.numel() else 0
    if most > slots:
        raise CCDiffError(f"a picture has {most} instances, this GLIGEN takes {slots}", fix="leave instances out, or train with more slots")
    boxes = batch.hbb.new_zeros(batch.batch_size, slots, 4, dtype=torch.float32)
    masks = boxes.new_zeros(batch.batch_size, slots)
    text = boxes.new_zeros(batch.batch_size, slots, width)
    picture, place = valid.nonzero()[:, 0], (valid.cumsum(1) - 1)[valid]
    boxes[picture, place] = batch.hbb[valid].float()
    text[picture, place] = batch.class_pooled.float()[batch.class_index[valid]]
    masks[picture, place] = 1.0
    if conditional is not None:
        masks = masks * conditional.to(masks)[:, None]
    if guidance:
        boxes, text = torch.cat([boxes, boxes]), torch.cat([text, text])
        masks = torch.cat([torch.zeros_like(masks), masks])
    return {"gligen": {"boxes": boxes, "masks": masks, "positive_embeddings": text}}


@contextlib.contextmanager
def grounding_scale(unet: UNet2DConditionModel, scale: float) -> Iterator[None]:
    """Within, every fuser adds ``scale`` times what it would; 0 skips them, as diffusers' pipelines leave them after a call.

    Not for training: the gates' values are replaced meanwhile.
    """
    layers = list(fusers(unet).values())
    kept = [(layer.enabled, layer.alpha_attn.data, layer.alpha_dense.data) for layer in layers]
    try:
        for layer in layers:
            layer.enabled = scale != 0
            if scale not in (0, 1):
                for gate in (layer.alpha_attn, layer.alpha_dense):
                    gate.data = torch.atanh(scale * torch.tanh(gate.data.double())).to(gate.dtype)
        yield
    finally:
        for layer, (enabled, attn, dense) in zip(layers, kept, strict=True):
            layer.enabled, layer.alpha_attn.data, layer.alpha_dense.data = enabled, attn, dense
