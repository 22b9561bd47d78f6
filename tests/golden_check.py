"""Run our modules on a golden file and print how far each output is from the expected one.

    python -m tests.golden_check FILE...

Exits with 1 when any relative error (norm of the difference over norm of the expected) is above 1e-5, 2 when a file cannot be read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ccdiff_cli.models.conditioning import ConditioningConfig, install_conditioning, prepare_context
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.models.resamplers import RESAMPLERS

LIMIT = 1e-5


def places_of(names: list[str]) -> list[str]:
    """The blocks that hold a conditional generation module, from the names of its parameters."""
    places = []
    for name in names:
        if ".attn2.processor.fusion." in name:
            block = ".".join(name.split(".")[: 1 if name.startswith("mid_block") else 2])
            if block not in places:
                places.append(block)
    return places


@torch.no_grad()
def outputs(path: Path, gate_threshold: float | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our and the expected ``out.*`` tensors of a golden file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            key[len(prefix) :]: value.float() if value.is_floating_point() else value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }

    given, expected = part("in."), part("out.")
    resampler = RESAMPLERS[metadata["model"]](**json.loads(metadata["resampler_config"])).eval()
    resampler.load_state_dict({k: v for k, v in part("resampler.").items() if not k.startswith("to_latents")})
    unet = UNet2DConditionModel(**json.loads(metadata["unet_config"])).eval()
    weights = part("unet.")
    point = next((v for k, v in weights.items() if k.endswith("fusion.pos_net.linears_position.0.weight")), torch.empty(512, 0))
    places = tuple(places_of(list(weights)))
    install_conditioning(unet, ConditioningConfig(variant=metadata["model"], places=places, point_width=len(point), heads=8))
    unet.load_state_dict(weights)

    # as published, padding counts as instances: all places of the file are valid
    count = len(given["hbb"])
    caption, classes = given["text_tokens"][:1], given["text_tokens"][1:]
    size = (
        int(metadata["image_size"]) if "," not in metadata["image_size"] else tuple(json.loads(f"[{metadata['image_size'].strip('[]()')}]"))
    )
    image_size = (size, size) if isinstance(size, int) else size
    latent_size = (given["latents"].shape[-2], given["latents"].shape[-1])
    batch = LayoutBatch(
        hbb=given["hbb"][None],
        obb=given["obb"].view(-1, 4, 2).transpose(1, 2).reshape(1, -1, 8),  # the files hold x1 y1 x2 y2 x3 y3 x4 y4
        valid=torch.ones(1, count, dtype=torch.bool),
        class_index=torch.arange(count)[None],
        class_tokens=classes,
        class_pooled=given["text_pooled"][1:, 0],
        caption_tokens=caption,
        caption_pooled=given["text_pooled"][:1, 0],
        features=torch.cat([given["instance_features"], given["background_features"]]),
        instance_reference=torch.arange(count)[None],
        background_reference=torch.tensor([count]),
        image_size=image_size,
        latent_size=latent_size,
    )
    tokens = resampler(batch)
    ours = {"foreground_tokens": tokens.foreground, "background_tokens": tokens.background}
    if tokens.relation is not None:
        ours["relation_tokens"] = tokens.relation
    latents, timestep = given["latents"], given["timestep"]

    def denoise(guidance: bool) -> Tensor:
        context = prepare_context(unet, batch, tokens, guidance=guidance, gate_threshold=gate_threshold)
        text = torch.cat([given["negative_text_tokens"], caption]) if guidance else caption
        x = torch.cat([latents] * len(text))
        return unet(x, timestep, text, cross_attention_kwargs={"conditioning": context}).sample

    ours["noise_conditional"] = denoise(guidance=False)
    ours["noise_guided_pair"] = denoise(guidance=True)
    return ours, expected


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the expected; the former alone where nothing but zeros is expected."""
    norm = float(expected.double().norm())
    return float((found.double() - expected.double()).norm()) / (norm or 1.0)


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m tests.golden_check FILE...", file=sys.stderr)
        return 2
    status = 0
    for argument in arguments:
        try:
            ours, expected = outputs(Path(argument))
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            print(f"{argument}: not a golden file that can be run: {error}", file=sys.stderr)
            status = 2
            continue
        print(argument)
        for name, tensor in sorted(expected.items()):
            if name not in ours or ours[name].shape != tensor.shape:
                print(f"  out.{name}: not computed, or of another shape than {tuple(tensor.shape)}")
                status = max(status, 1)
                continue
            error = relative_error(ours[name], tensor)
            good = error <= LIMIT  # False for NaN
            print(f"  out.{name:20s} {error:.2e} {'ok' if good else f'above {LIMIT:g}'}")
            status = max(status, 0 if good else 1)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
