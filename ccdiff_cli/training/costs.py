"""What a training takes in memory, said by its plan and held against the machine before anything is loaded.

Notable here:

* What a picture takes is counted, not guessed: what each stage trains runs once on the meta device, which computes shapes and nothing
  else, and the tensors that autograd would keep are added up.  Of several stages the largest counts.
* What an object takes the method says; measured at the tiny recipe it is a third more than the sum of
  the tensors kept (``MORE``), for what lives shortly.
* Weights of parts from a source are read off their safetensors headers; of a hub name nothing is known before it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ..bounds import amount, check_crowded, check_memory, free_memory
from ..detectors.backbones import EfficientNetLite0
from ..errors import CCDiffError
from ..generator import SHIPPED, shipped_generator
from ..methods import Base, Stage, method_named
from ..methods.decoder import DRAWN, Judge
from ..models.autoencoder import TinyAutoencoder, decoder_parameters
from ..recipes import Recipe
from ..scene import Scene
from .adapters import numbers
from .parts import own_unet
from .sources import autoencoder_without_weights

PROGRAM = 800e6
"""Bytes of the interpreter and its libraries."""
MORE = 1.4
_UNTRAINED, _TRAINED = 4, 8
"""Bytes of a parameter: its value; with its gradient, but without the moments of AdamW."""


def memory_of_training(recipe: Recipe, scenes: Sequence[Scene], start: str | Path | None = None) -> dict[str, Any]:
    """About how many bytes a process takes in its largest ``stage``: ``weights``, ``pictures``, ``objects``, ``all``.

    ``crowd`` is the number of objects of its largest piece.  ``{}`` where a part is of a hub name, or not on this machine.
    """
    try:
        parts, frozen = _parts_without_weights(recipe, Path(start) if start else None)
        looks = recipe.denoiser.perceptual or recipe.decoder is not None
        looking = _looking(recipe, Path(start) if start else None) if looks else Looking()
        needs = [_of_stage(recipe, stage, parts, frozen, scenes, looking) for stage in method_named(recipe.method).stages_of(recipe)]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, AttributeError):  # said by what loads them
        return {}
    need = max(needs, key=lambda found: found["weights"] + found["pictures"] + found["objects"])
    return {**need, "all": PROGRAM + need["weights"] + need["pictures"] + need["objects"]}


def _of_stage(
    recipe: Recipe, stage: Stage, parts: dict[str, torch.nn.Module], frozen: float, scenes: Sequence[Scene], looking: Looking
) -> dict[str, Any]:
    method, train = method_named(recipe.method), stage.config(recipe)
    kept = _kept_by(stage, recipe, parts)
    every = sum(map(_count, parts.values()))
    looked: float = looking.picture if stage.sees == "both" or (stage.sees == "features" and recipe.denoiser.perceptual) else 0
    if stage.sees == "both":
        trained, every = looking.decoder + looking.judge, every + looking.judge  # the decoder's values are among the frozen ones
        looked = (looked + looking.judged) * (1 + (DRAWN if recipe.decoder is not None and recipe.decoder.drawn else 0))
    else:
        changed = {id(p): p.numel() for p in stage.trains(SimpleNamespace(**parts), recipe)}
        trained = sum(changed.values())
        if recipe.unet is not None and recipe.unet.lora and "unet" in parts:
            more = numbers(parts["unet"], stage.trains(SimpleNamespace(**parts), recipe), recipe.unet.lora)
            trained, every = trained + more, every + more
    ema = 4 if train.ema_decay else 0
    moments = 2 if train.optimizer == "adamw8bit" else 8
    weights = trained * (_TRAINED + moments + ema) + (every - trained) * _UNTRAINED + frozen
    width = 4 if train.precision == "float32" else 2
    picture = kept * width * (0.3 if recipe.denoiser.gradient_checkpointing else 1.0) + looked * width
    objects = [len(scene.instances) for scene in scenes] if stage.sees == "features" else []
    crowd = _largest_piece(objects, train.batch_size, recipe.denoiser.objects_at_once)
    return {
        "stage": stage.name,
        "weights": weights,
        "pictures": MORE * picture * train.batch_size,
        "objects": MORE * crowd * method.numbers_of_object(recipe, parts) * width if crowd else 0.0,
        "crowd": crowd,
        "batch": train.batch_size,
        "checkpoint": trained * (4 + moments + ema),
    }


def check_training(recipe: Recipe, scenes: Sequence[Scene], *, where: str | Path, start: str | Path | None = None) -> str:
    """The memory of a training, for people.

    Raises:
        CCDiffError: clearly more than this machine has, naming what to lower; a picture too crowded to be trained on.
    """
    check_crowded(scenes, where=where)
    method = method_named(recipe.method)
    most, fullest = method.most_objects(recipe), max(scenes, key=lambda scene: len(scene.instances), default=None)
    if most is not None and fullest is not None and len(fullest.instances) > most:
        raise CCDiffError(
            f"{fullest.file_name} has {len(fullest.instances)} objects; {method.title} by recipe {recipe.name} takes {most}",
            where=where,
            fix=f"raise {recipe.method}.slots by {len(fullest.instances) - most} in the recipe, or prepare smaller tiles",
        )
    need = memory_of_training(recipe, scenes, start)
    if not need:
        return "not known before the parts are loaded"
    batch = int(need["batch"])
    if not torch.cuda.is_available():
        free = free_memory() or need["all"]
        fits = int((free - need["all"] + need["pictures"]) / (need["pictures"] / batch))
        if fits >= 1:
            keys = f"{need['stage']}.train.batch_size", f"{need['stage']}.train.accumulation"
            fix = f"lower {keys[0]} (now {batch}; about {fits} fit), raise {keys[1]} by as much"
        elif need["objects"] > need["weights"]:
            fix = f"lower denoiser.objects_at_once (now {recipe.denoiser.objects_at_once}), or prepare smaller tiles"
        else:
            fix = "take a smaller recipe, or a larger machine"
        check_memory(need["all"], f"a step of batch {batch} with up to {need['crowd']:,} objects", where=f"recipe {recipe.name}", fix=fix)
    parts = ", ".join(f"{amount(need[k])} {k}" for k in ("weights", "pictures", "objects") if need[k] or k != "objects")
    crowd = f"; at most {need['crowd']:,} objects at a time" if need["crowd"] else ""
    of = "" if need["stage"] == method.stages[-1].name else f", in the stage {need['stage']}"
    kept = f"a checkpoint on disk takes {amount(need['checkpoint'])}, the last two are kept"
    return f"about {amount(need['all'])} a process ({parts}{crowd}){of}; {kept}"


def _parts_without_weights(recipe: Recipe, start: Path | None) -> tuple[dict[str, torch.nn.Module], float]:
    """What the method builds, on the meta device, and the bytes of the parts that stay as they are."""
    needs, auto, enc, unet = recipe.base(), recipe.autoencoder, recipe.encoders, recipe.unet
    names = [n for n, need in (("vae", "vae"), ("text_encoder", "text"), ("image_encoder", "image"), ("unet", "unet")) if need in needs]
    sources = {
        "vae": (auto.source, auto.subfolder) if auto else (None, None),
        "text_encoder": (enc.text_source, enc.text_subfolder) if enc else (None, None),
        "image_encoder": (enc.image_source, None) if enc else (None, None),
        "unet": (unet.source, unet.subfolder) if unet else (None, None),
    }
    folders = {name: folder for name in names if (folder := _folder(name, start, *sources[name])) is not None}
    found = {name: _config_of(folder) for name, folder in folders.items()}
    vae, text, image = (found.get(name, {}) for name in ("vae", "text_encoder", "image_encoder"))
    side, channels = recipe.picture_size, 3
    if "vae" in needs and auto is not None:
        side //= 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)  # our own shrinks by 8
        channels = vae.get("latent_channels", auto.latent_channels)
    text_width = text.get("hidden_size", enc.text_width if enc else 0) if "text" in needs else 0
    image_width = image.get("hidden_size", enc.image_width if enc else 0) if "image" in needs else 0
    parts: dict[str, Any] = {}
    with torch.device("meta"):
        if "unet" in needs and unet is not None:
            plain = UNet2DConditionModel.from_config(found["unet"]) if "unet" in found else own_unet(unet, side, channels, text_width)
            plain.register_to_config(sample_size=side)
            parts["unet"] = plain
        if text:
            parts["text_encoder"] = CLIPTextModel(CLIPTextConfig.from_dict(text))
        parts |= method_named(recipe.method).build(Base(recipe, (), (), side, channels, text_width, image_width, parts))
    frozen = sum(f.stat().st_size for name, folder in folders.items() if name != "unet" for f in folder.glob("*.safetensors"))
    made = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module) and name not in folders.keys() - {"unet"}}
    return made, 2.0 * frozen  # files are in half precision as a rule


def _folder(name: str, start: Path | None, source: str | None, subfolder: str | None) -> Path | None:
    """Where a part is loaded from; None: it is trained."""
    if start:
        return start / name
    if source == SHIPPED:
        return shipped_generator() / name
    return Path(source) / (subfolder or "") if source else None


def _config_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a configuration")
    return {k: v for k, v in found.items() if not k.startswith("_") and k != "conditioning"}


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _kept_by(stage: Stage, recipe: Recipe, parts: dict[str, torch.nn.Module]) -> int:
    """Numbers that autograd keeps of one picture."""
    for part in parts.values():
        part.requires_grad_(True)
    return _numbers_kept(parts.values(), lambda: stage.once(recipe, parts))


@dataclass(frozen=True)
class Looking:
    """What looking at decoded latents takes: numbers that autograd keeps of one picture, what a judge's three passes add to them, and those
    of decoder and judge themselves."""

    picture: int = 0
    judged: int = 0
    decoder: int = 0
    judge: int = 0


def _looking(recipe: Recipe, start: Path | None) -> Looking:
    auto, side = recipe.autoencoder, recipe.picture_size
    if auto is None:
        return Looking()
    folder = _folder("vae", start, auto.source, auto.subfolder)
    with torch.device("meta"):
        decoder = autoencoder_without_weights(folder) if folder else TinyAutoencoder((auto.width,) * 4, auto.latent_channels)
        parts = [decoder.requires_grad_(False), EfficientNetLite0(torch.nn.BatchNorm2d).eval().requires_grad_(False)]
        judge = Judge()
        small = side // 2 ** (len(decoder.config.block_out_channels) - 1)
        latents = torch.empty(1, decoder.config.latent_channels, small, small, requires_grad=True)
        kept = _numbers_kept(parts, lambda: parts[1](decoder.decode(latents, return_dict=False)[0]))
        seen = list(parts[1](decoder.decode(latents, return_dict=False)[0]).values())
        one = _numbers_kept([judge], lambda: judge(seen))
        two = _numbers_kept([judge], lambda: judge([x.repeat(2, 1, 1, 1) for x in seen]))
    judged = 3 * (two - one)  # decoded ones twice, and real ones; what is kept of the judge's own weights is kept once
    return Looking(kept, judged, sum(parameter.numel() for parameter in decoder_parameters(decoder)), _count(judge))


def _numbers_kept(parts: Iterable[torch.nn.Module], once: Callable[[], Any]) -> int:
    """Numbers that autograd keeps, beside those of the parts themselves, of what ``once`` computes."""
    kept: dict[int, torch.Tensor] = {}
    own = {id(p) for part in parts for p in part.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in own and tensor._base is None:
            kept[id(tensor)] = tensor
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        once()
    return sum(tensor.numel() for tensor in kept.values())


def _largest_piece(objects: Sequence[int], batch: int, most: int) -> int:
    """The most objects that are worked on at once: the crowded pictures may meet in one batch."""
    crowded = sorted(objects, reverse=True)[:batch]
    return max(min(sum(crowded), most), max(crowded, default=0))
