"""Training of the denoiser: the conditioning alone (as published) or the whole UNet, from cached frozen features.

What is notable: pictures of a batch hold any number of instances; a picture's references are drawn anew every time it is seen and never
come from its own source; whole conditions are dropped for a share of the pictures, so that guidance has an unconditional branch that was
trained; UNet, conditional generation module and resampler are one module to the loop, so their gradients are synchronised and clipped
together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import compute_snr
from torch import nn

from ..models.conditioning import conditioning_parameters, prepare_context
from ..models.layout import LayoutBatch, boxes_of_scenes
from ..models.pipeline import CCDiffPipeline
from ..prepare.captions import caption_of
from ..recipes import Recipe
from ..references import WORDS, ReferenceBank
from ..scene import SYMMETRIES, Scene, symmetric_pixels, symmetric_scene
from .autoencoder import load_pixels, pixel_tensor
from .cache import FeatureStore, build_store
from .loop import Progress, batch_indices, run_stage, seed_of


@dataclass
class TrainingItem:
    """One picture in one orientation: its labels, its caption, and the keys of its cached features."""

    scene: Scene
    caption: str
    latent: str


def training_items(scenes: Sequence[Scene], recipe: Recipe) -> list[TrainingItem]:
    """Every training picture, in as many of its 8 symmetries and as often as the recipe says."""
    items = []
    for scene, times in zip(scenes, repeats(scenes, recipe.denoiser.balance, seed=recipe.seed), strict=True):
        for k in range(0, SYMMETRIES, SYMMETRIES // recipe.denoiser.symmetries):
            moved = symmetric_scene(scene, k)
            caption = scene.caption if recipe.caption_style == "stored" else caption_of(moved, style=recipe.caption_style)
            items += [TrainingItem(moved, caption, f"{scene.file_name}#{k}")] * times
    return items


def repeats(scenes: Sequence[Scene], balance: float, *, seed: int) -> list[int]:
    """How often each picture is seen in an epoch: ``sqrt(balance / share of pictures with the class)`` of its rarest class, at least once.

    The repeat factors of LVIS (Gupta et al., CVPR 2019); their fractions are drawn with the seed.
    """
    if not balance:
        return [1] * len(scenes)
    count = Counter(name for scene in scenes for name in {i.category for i in scene.instances})
    factor = {name: max(1.0, math.sqrt(balance * len(scenes) / n)) for name, n in count.items()}
    rng = np.random.default_rng(seed_of(seed, "denoiser", "balance"))
    wanted = [max((factor[i.category] for i in scene.instances), default=1.0) for scene in scenes]
    return [int(f) + int(rng.random() < f % 1) for f in wanted]


class DenoiserLoss(nn.Module):
    """``forward(**piece of :meth:`parts`) -> loss``: everything that is trained, in one module."""

    def __init__(self, pipe: CCDiffPipeline, recipe: Recipe) -> None:
        super().__init__()
        self.unet, self.resampler = pipe.unet, pipe.resampler
        self.scheduler = pipe.scheduler
        self.snr_gamma, self.object_weight = recipe.denoiser.snr_gamma, recipe.denoiser.object_weight
        self.objects_at_once = recipe.denoiser.objects_at_once

    def parts(self, batch: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """A batch of :func:`batch_source` in pieces of at most ``objects_at_once`` objects (a picture is never divided).

        Noise and timesteps are drawn for the whole batch, on the CPU (the same numbers on every device), and what the loss divides by is
        that of the whole batch, so gradients summed over the pieces are those of the batch up to rounding.

        Returns:
            (share of the batch's pictures, arguments of :meth:`forward`) of each piece.
        """
        latents, layout = batch["latents"], batch["layout"]
        noise = torch.randn(latents.shape).to(latents)
        steps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),)).to(latents.device)
        whole = {**batch, "noise": noise, "steps": steps, "mean_weight": self._weights(layout).mean()}
        pieces = _pieces(layout.valid.sum(1).tolist(), self.objects_at_once)
        if len(pieces) == 1:
            return [(1.0, whole)]
        rows = ("latents", "dropped", "noise", "steps")
        return [
            ((last - first) / len(latents), whole | {k: whole[k][first:last] for k in rows} | {"layout": layout.rows(first, last)})
            for first, last in pieces
        ]

    def _weights(self, layout: LayoutBatch) -> torch.Tensor:
        """What the error of each cell counts for, (B, h, w)."""
        assert layout.regions is not None
        return torch.where(layout.regions[:, :-1].any(1), self.object_weight, 1.0)

    def forward(
        self,
        latents: torch.Tensor,
        layout: LayoutBatch,
        dropped: torch.Tensor,
        empty_tokens: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        mean_weight: torch.Tensor,
    ) -> torch.Tensor:
        schedule = self.scheduler
        noisy = schedule.add_noise(latents, noise, steps)
        context = prepare_context(self.unet, layout, self.resampler(layout), conditional=~dropped)
        captions = torch.where(dropped[:, None, None], empty_tokens, layout.caption_tokens)
        predicted = self.unet(noisy, steps, captions, cross_attention_kwargs={"conditioning": context}).sample.float()
        kind = schedule.config.prediction_type
        target = noise if kind == "epsilon" else schedule.get_velocity(latents, noise, steps)
        error = (predicted - target).square().mean(1)
        if self.object_weight != 1:
            error = error * (self._weights(layout) / mean_weight)
        error = error.mean((1, 2))
        if self.snr_gamma:
            snr = compute_snr(schedule, steps)
            weight = snr.clamp(max=self.snr_gamma) / (snr if kind == "epsilon" else snr + 1)
            error = error * weight
        return error.mean()


def _pieces(objects: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Consecutive runs (first, last + 1) of pictures that hold at most ``most`` objects together, or are one picture."""
    pieces, first, held = [], 0, 0
    for k, count in enumerate(objects):
        if k > first and held + count > most:
            pieces.append((first, k))
            first, held = k, 0
        held += count
    return [*pieces, (first, len(objects))]


@dataclass
class Features:
    """The cached frozen features of a training set."""

    latents: FeatureStore
    texts: FeatureStore
    pooled: FeatureStore
    references: FeatureStore


def cache_features(
    pipe: CCDiffPipeline,
    items: Sequence[TrainingItem],
    scenes: Sequence[Scene],
    classes: Sequence[str],
    bank: ReferenceBank,
    recipe: Recipe,
    root: Path,
    accelerator: Accelerator,
    *,
    encoders_key: str,
    autoencoder_key: str,
    set_key: str,
    progress: Progress | None,
) -> Features:
    """Encode what is not in the cache yet: latents of every picture and symmetry, texts, reference tokens."""
    by_name = {scene.file_name: scene for scene in scenes}
    keys = list(dict.fromkeys(item.latent for item in items))

    def latents(indices: list[int]) -> torch.Tensor:
        rows = []
        for index in indices:
            name, k = keys[index].rsplit("#", 1)
            rows.append(symmetric_pixels(load_pixels(by_name[name]), int(k)))
        pixels = pixel_tensor(rows).to(accelerator.device)
        if recipe.autoencoder.precision == "float32":
            return pipe.encode_latents(pixels)
        with torch.autocast(accelerator.device.type, torch.bfloat16):
            return pipe.encode_latents(pixels.contiguous(memory_format=torch.channels_last)).float()

    texts = sorted({item.caption for item in items} | set(classes) | {recipe.sampling.negative_prompt, ""})
    tokens = build_store(
        root, "texts", texts, encoders_key, lambda part: pipe.encode_text([texts[i] for i in part])[0], accelerator,
        batch_size=64, progress=progress,
    )  # fmt: skip
    pooled = build_store(
        root, "texts-pooled", texts, encoders_key, lambda part: pipe.encode_text([texts[i] for i in part])[1], accelerator,
        batch_size=64, progress=progress,
    )  # fmt: skip
    candidates = {reference.key: reference for reference in bank.candidates()}
    names = sorted(candidates)

    def pictures_of(part: list[int]) -> torch.Tensor:
        return pipe.encode_references([candidates[names[i]].image() for i in part])

    references = build_store(
        root, "references", names, encoders_key, pictures_of, accelerator, batch_size=64, progress=progress,
    )  # fmt: skip
    pictures = [autoencoder_key, set_key]  # names say nothing of what pictures hold
    return Features(
        build_store(root, "latents", keys, pictures, latents, accelerator, batch_size=16, progress=progress), tokens, pooled, references
    )


def batch_source(
    items: Sequence[TrainingItem], features: Features, classes: Sequence[str], bank: ReferenceBank, recipe: Recipe
) -> Callable[[int, int, int, int], dict[str, Any]]:
    """The function that makes the batch of a step; a function of its arguments and the recipe's seed alone."""
    class_tokens, class_pooled = features.texts.tensor(classes), features.pooled.tensor(classes)
    empty = features.texts.tensor([recipe.sampling.negative_prompt])
    train, dropout = recipe.denoiser.train, recipe.denoiser.dropout

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, Any]:
        indices = batch_indices(
            len(items), step=step, micro=micro, rank=rank, world=world, config=train, seed=recipe.seed, stage="denoiser"
        )
        rng = np.random.default_rng(seed_of(recipe.seed, "denoiser", "draw", step, micro, rank))
        drawn = [items[i] for i in indices]
        dropped = rng.random(len(drawn)) < dropout.everything
        without = rng.random(len(drawn)) < dropout.references
        rows: dict[str, int] = {}

        def row(reference: Any, skip: bool) -> int:
            if reference is None or skip or reference.key not in features.references:
                return -1
            return rows.setdefault(reference.key, len(rows))

        boxes = boxes_of_scenes([item.scene for item in drawn], list(classes))
        instance_reference = torch.full(boxes.valid.shape, -1)
        background_reference = torch.full((len(drawn),), -1)
        for b, item in enumerate(drawn):
            # by words, backgrounds follow the caption of the set, as they always did; by embedding, the one that the generator is given
            asked = item.scene if recipe.retrieval == WORDS else item.scene.replace(caption=item.caption)
            chosen = bank.choose(asked, seed=int(rng.integers(2**31)), top_k=recipe.denoiser.top_k)
            skip = bool(without[b] or dropped[b])
            for n, reference in enumerate(chosen.instances):
                instance_reference[b, n] = row(reference, skip)
            background_reference[b] = row(chosen.background, skip)
        store = features.references
        shape = store[next(iter(store.rows))].shape if store.rows else (1, recipe.encoders.image_width)
        tokens = store.tensor(list(rows)) if rows else torch.zeros(0, *shape)
        captions = [item.caption for item in drawn]
        latents = features.latents.tensor([item.latent for item in drawn])
        scene = drawn[0].scene
        layout = LayoutBatch(
            hbb=boxes.hbb, obb=boxes.obb, valid=boxes.valid, class_index=boxes.class_index,
            class_tokens=class_tokens, class_pooled=class_pooled,
            caption_tokens=features.texts.tensor(captions), caption_pooled=features.pooled.tensor(captions),
            features=tokens, instance_reference=instance_reference, background_reference=background_reference,
            image_size=(scene.height, scene.width), latent_size=(int(latents.shape[-2]), int(latents.shape[-1])),
        ).with_regions()  # fmt: skip
        return {"latents": latents, "layout": layout, "dropped": torch.from_numpy(dropped), "empty_tokens": empty}

    return batch_of


def train_denoiser(
    pipe: CCDiffPipeline,
    batch_of: Callable[[int, int, int, int], dict[str, Any]],
    recipe: Recipe,
    folder: Path,
    accelerator: Accelerator,
    *,
    key: Any,
    progress: Progress | None = None,
    log: Any = None,
    sample: tuple[Callable[[int], None], Callable[[int], bool]] | None = None,
) -> list[float]:
    """Run the denoiser stage on the pipeline's UNet and resampler, in place."""
    pipe.unet.requires_grad_(recipe.unet.train_all)
    for parameter in conditioning_parameters(pipe.unet):
        parameter.requires_grad_(True)
    pipe.resampler.requires_grad_(True)
    if recipe.denoiser.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    module = DenoiserLoss(pipe, recipe).to(accelerator.device).train()
    losses = run_stage(
        "denoiser", module, batch_of, recipe.denoiser.train, folder, accelerator, seed=recipe.seed, key=key, progress=progress, log=log,
        every=(recipe.denoiser.sample_every, *sample) if sample else None,
    )  # fmt: skip
    pipe.unet.eval().requires_grad_(False)
    pipe.resampler.eval().requires_grad_(False)
    return losses
