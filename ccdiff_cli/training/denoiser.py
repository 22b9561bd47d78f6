"""What a method's stages train on: items, cached frozen features, batches.

What is notable: pictures of a batch hold any number of instances; a picture's references are drawn anew every time it is seen and never
come from its own source; whole conditions are dropped for a share of the pictures, so that guidance has an unconditional branch that was
trained; only what the method takes of a scene is encoded.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..methods import Stage
from ..methods.decoder import DRAWN
from ..methods.method import REFERENCES
from ..models.layout import LayoutBatch, boxes_of_scenes
from ..models.pipeline import ScenePipeline
from ..prepare.captions import caption_of
from ..recipes import Recipe
from ..references import WORDS
from ..scene import SYMMETRIES, Scene, symmetric_pixels, symmetric_scene
from ..spooled import Made, Spooled
from .adapters import adapt, merge
from .autoencoder import load_pixels, pixel_tensor
from .cache import FeatureStore, build_store
from .loop import BatchOf, batch_indices, pass_of, run_stage, seed_of
from .parts import Work

AT_ONCE = 16
"""Pictures that are encoded together."""


@dataclass
class TrainingItem:
    """One picture in one orientation: its labels, its caption, and the keys of its cached features."""

    scene: Scene
    caption: str
    latent: str


def training_items(scenes: Sequence[Scene], recipe: Recipe) -> Sequence[TrainingItem]:
    """Every training picture, in as many of its 8 symmetries and as often as the recipe says; where scenes are not in memory, items are
    made as they are asked for."""
    symmetries = range(0, SYMMETRIES, SYMMETRIES // recipe.denoiser.symmetries)

    def item(n: int) -> TrainingItem:
        i, j = divmod(n, len(symmetries))
        scene, k = scenes[i], symmetries[j]
        moved = symmetric_scene(scene, k)
        caption = scene.caption if recipe.caption_style == "stored" else caption_of(moved, style=recipe.caption_style)
        return TrainingItem(moved, caption, f"{scene.file_name}#{k}")

    each: Sequence[TrainingItem] = Made(len(scenes) * len(symmetries), item)
    if not isinstance(scenes, Spooled):
        each = list(each)
    times = repeats(scenes, recipe.denoiser.balance, seed=recipe.seed)
    places = np.repeat(np.arange(len(each)), np.repeat(times, len(symmetries)))
    return Made(len(places), lambda n: each[int(places[n])])


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


@dataclass
class Features:
    """The cached frozen features of a training set; None: the method takes none of the kind."""

    latents: FeatureStore
    texts: FeatureStore | None
    pooled: FeatureStore | None
    references: FeatureStore | None


def cache_features(work: Work, pipe: ScenePipeline, items: Sequence[TrainingItem], *, autoencoder_key: str, encoders_key: str) -> Features:
    """Encode what is not in the cache yet: latents of every picture and symmetry; texts and reference tokens where they are taken."""
    recipe, accelerator, classes = work.recipe, work.accelerator, list(work.prepared.classes)
    places = _places(work.scenes)
    keys = list(dict.fromkeys(item.latent for item in items))
    exact = recipe.autoencoder is None or recipe.autoencoder.precision == "float32"

    def latents(indices: list[int]) -> torch.Tensor:
        pixels = pixel_tensor([_pixels(work.scenes, places, keys[index]) for index in indices]).to(accelerator.device)
        if exact:
            return pipe.encode_latents(pixels)
        with torch.autocast(accelerator.device.type, torch.bfloat16):
            return pipe.encode_latents(pixels.contiguous(memory_format=torch.channels_last)).float()

    def store(kind: str, names: list[str], made_from: Any, encode: Callable[[list[int]], torch.Tensor], batch_size: int) -> FeatureStore:
        return build_store(
            work.folder / "cache", kind, names, made_from, encode, accelerator, batch_size=batch_size, progress=work.progress
        )

    work.threads.choose("features", lambda: latents(list(range(min(AT_ONCE, len(keys))))))
    tokens = pooled = references = None
    if "text" in recipe.base():
        texts = sorted({item.caption for item in items} | set(classes) | {recipe.sampling.negative_prompt, ""})
        tokens = store("texts", texts, encoders_key, lambda part: pipe.encode_text([texts[i] for i in part])[0], 64)
        pooled = store("texts-pooled", texts, encoders_key, lambda part: pipe.encode_text([texts[i] for i in part])[1], 64)
    if REFERENCES in work.method.takes:
        candidates = {reference.key: reference for reference in work.bank.candidates()}
        names = sorted(candidates)
        references = store(
            "references", names, encoders_key, lambda part: pipe.encode_references([candidates[names[i]].image() for i in part]), 64
        )
    pictures = [autoencoder_key, work.prepared.key()]  # names say nothing of what pictures hold
    return Features(store("latents", keys, pictures, latents, AT_ONCE), tokens, pooled, references)


def _places(scenes: Sequence[Scene]) -> dict[str, int]:
    """Where each picture stands among the scenes."""
    return {scene.file_name: k for k, scene in enumerate(scenes)}


def _pixels(scenes: Sequence[Scene], places: Mapping[str, int], key: str) -> np.ndarray:
    """The picture of a :class:`TrainingItem`'s ``latent``, in its orientation."""
    name, k = key.rsplit("#", 1)
    return symmetric_pixels(load_pixels(scenes[places[name]]), int(k))


def pixel_source(items: Sequence[TrainingItem], scenes: Sequence[Scene], stage: Stage, recipe: Recipe) -> BatchOf:
    """Batches ``{"pixels": (B, 3, H, W) in [-1, 1], "step": number}`` for a stage that sees pictures."""
    places, config = _places(scenes), stage.config(recipe)

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, Any]:
        indices = batch_indices(
            len(items), step=step, micro=micro, rank=rank, world=world, config=config, seed=recipe.seed, stage=stage.name
        )
        return {"pixels": pixel_tensor([_pixels(scenes, places, items[i].latent) for i in indices]), "step": step}

    return batch_of


def batch_source(
    items: Sequence[TrainingItem],
    features: Features,
    work: Work,
    pipe: ScenePipeline,
    stage: Stage,
    drawn_latents: FeatureStore | None = None,
) -> BatchOf:
    """Batches ``{"latents", "layout", "dropped", "empty_tokens"}`` for a stage that sees cached features; with the real "pixels" where its
    loss looks at them, and half as many of the "drawn" latents where there are any."""
    recipe, bank, classes = work.recipe, work.bank, pipe.known_classes or list(work.prepared.classes)
    class_tokens, class_pooled = _texts(features, classes)
    empty, _ = _texts(features, [recipe.sampling.negative_prompt])
    config, dropout = stage.config(recipe), recipe.denoiser.dropout
    places = _places(work.scenes) if stage.sees == "both" or recipe.denoiser.perceptual else {}

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, Any]:
        indices = batch_indices(
            len(items), step=step, micro=micro, rank=rank, world=world, config=config, seed=recipe.seed, stage=stage.name
        )
        rng = np.random.default_rng(seed_of(recipe.seed, stage.name, "draw", step, *pass_of(micro, rank, world)))
        drawn = [items[i] for i in indices]
        dropped = rng.random(len(drawn)) < dropout.everything
        without = rng.random(len(drawn)) < dropout.references
        rows: dict[str, int] = {}

        def row(reference: Any, skip: bool) -> int:
            if reference is None or skip or features.references is None or reference.key not in features.references:
                return -1
            return rows.setdefault(reference.key, len(rows))

        boxes = boxes_of_scenes([item.scene for item in drawn], classes)
        instance_reference = torch.full(boxes.valid.shape, -1)
        background_reference = torch.full((len(drawn),), -1)
        for b, item in enumerate(drawn if features.references is not None else ()):
            # by words, backgrounds follow the caption of the set, as they always did; by embedding, the one that the generator is given
            asked = item.scene if recipe.retrieval == WORDS else item.scene.replace(caption=item.caption)
            chosen = bank.choose(asked, seed=int(rng.integers(2**31)), top_k=recipe.denoiser.top_k)
            skip = bool(without[b] or dropped[b])
            for n, reference in enumerate(chosen.instances):
                instance_reference[b, n] = row(reference, skip)
            background_reference[b] = row(chosen.background, skip)
        captions = [item.caption for item in drawn]
        caption_tokens, caption_pooled = _texts(features, captions)
        latents = features.latents.tensor([item.latent for item in drawn])
        scene = drawn[0].scene
        layout = LayoutBatch(
            hbb=boxes.hbb, obb=boxes.obb, valid=boxes.valid, class_index=boxes.class_index,
            class_tokens=class_tokens, class_pooled=class_pooled, caption_tokens=caption_tokens, caption_pooled=caption_pooled,
            features=_references(features.references, list(rows), recipe),
            instance_reference=instance_reference, background_reference=background_reference,
            image_size=(scene.height, scene.width), latent_size=(int(latents.shape[-2]), int(latents.shape[-1])),
            captions=tuple(captions), metadata=pipe.metadata_of([item.scene for item in drawn]),
        )  # fmt: skip
        batch = {"latents": latents, "layout": pipe.prepare_layout(layout), "dropped": torch.from_numpy(dropped), "empty_tokens": empty}
        if places:
            batch["pixels"] = pixel_tensor([_pixels(work.scenes, places, item.latent) for item in drawn])
        if drawn_latents is not None:
            names = rng.integers(len(drawn_latents.rows), size=max(1, int(DRAWN * len(drawn))))
            batch["drawn"] = drawn_latents.tensor([str(k) for k in names])
        return batch

    return batch_of


def _texts(features: Features, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``(n, L, D)`` and pooled ``(n, D)`` of texts; without width where the method reads none."""
    if features.texts is None or features.pooled is None:
        return torch.zeros(len(texts), 0, 0), torch.zeros(len(texts), 0)
    return features.texts.tensor(texts), features.pooled.tensor(texts)


def _references(store: FeatureStore | None, keys: list[str], recipe: Recipe) -> torch.Tensor:
    """Image tokens ``(n, T, E)`` of references."""
    if store is None:
        return torch.zeros(0, 1, 0)
    if keys:
        return store.tensor(keys)
    shape = store[next(iter(store.rows))].shape if store.rows else (1, recipe.encoders.image_width if recipe.encoders else 0)
    return torch.zeros(0, *shape)


def train_stage(
    work: Work,
    pipe: ScenePipeline,
    stage: Stage,
    batch_of: BatchOf,
    *,
    key: Any,
    sample: tuple[Callable[[int], None], Callable[[int], bool]] | None = None,
) -> list[float]:
    """Run one of the method's stages on the pipeline's parts, in place; the losses."""
    recipe, accelerator = work.recipe, work.accelerator
    parts: list[Any] = [part for name, part in pipe.modules_of().items() if name in pipe.TRAINED]
    for part in parts:
        part.requires_grad_(False).to(accelerator.device)
        if recipe.denoiser.gradient_checkpointing:
            with contextlib.suppress(AttributeError, ValueError):  # a part that has no such mode
                part.enable_gradient_checkpointing()
    trained = list(stage.trains(pipe, recipe))
    adapted = pipe.unet if stage.sees == "features" and recipe.unet is not None and recipe.unet.lora else None
    if adapted is not None:
        adapt(adapted, trained, recipe.unet.lora, seed_of(recipe.seed, stage.name, "lora"))
    for parameter in trained:
        parameter.requires_grad_(True)
    module = stage.loss(pipe, recipe).to(accelerator.device).train()
    every = (recipe.denoiser.sample_every, *sample) if sample else None
    losses = run_stage(stage.name, module, batch_of, stage.config(recipe), work.run(stage.name, key), every=every)
    if adapted is not None:
        merge(adapted)
    for part in pipe.modules_of().values():
        part.eval().requires_grad_(False)
    return losses
