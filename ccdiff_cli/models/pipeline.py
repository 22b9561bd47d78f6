"""ScenePipeline: scenes in, pictures out; a diffusers pipeline that loads from and saves to a generator folder, whatever its method.

    pipe = methods.load_pipeline("generator")
    pictures = pipe(scenes, references, generator=[torch.Generator().manual_seed(k) for k in range(len(scenes))]).images

Notable here:
- everything that does not change over the denoising steps is computed once per batch (``condition``).
- texts and references are encoded one at a time and remembered, so an encoding never depends on what else is in the batch.
- the initial noise of a picture is drawn on the CPU from its own generator.  A picture is therefore the same in any batch up
  to floating point rounding of the batched matrix products, and bit for bit the same in the same batch.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.utils import BaseOutput, deprecation_utils
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging
from typing_extensions import Self

from ..errors import CCDiffError, said_by
from ..files import parse_json, read_bytes, read_json, write_json, write_text
from ..generator import INDEX, check_index
from ..scene import Scene
from .layout import LayoutBatch, boxes_of_scenes

_CACHE_BYTES = 512 * 2**20
_DTYPE = "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"  # diffusers renamed the argument
_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "timestep_spacing": "trailing"}
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {"use_karras_sigmas": False}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {**_DPM, "use_karras_sigmas": False}),
    "dpmsolver++-karras": (DPMSolverMultistepScheduler, {**_DPM, "use_karras_sigmas": True}),
}
"""Those that may stand in place of a generator's own, and how they differ from its schedule.  Noise levels of Karras et al. (NeurIPS 2022)
end near 0, where even times leave the last of them in one step: with few steps, fine detail is lost in it."""
PUBLISHED_NEGATIVE_PROMPT = "worst quality, low quality, bad anatomy, watermark, text, blurry"


class Reference(Protocol):
    """One reference picture; equal keys mean equal pictures."""

    @property
    def key(self) -> str: ...

    def image(self) -> Image.Image: ...


class SceneReferences(Protocol):
    """The references of one scene: one (or None) for each instance, in order, and one (or None) for the background."""

    @property
    def instances(self) -> Sequence[Reference | None]: ...

    @property
    def background(self) -> Reference | None: ...


@dataclass
class SceneOutput(BaseOutput):
    """``images``: list of PIL pictures, ``(B, H, W, 3)`` float array in [0, 1], or ``(B, C, h, w)`` latents."""

    images: list[Image.Image] | np.ndarray | Tensor


class _Cache:
    """Least recently used tensors up to a number of bytes."""

    def __init__(self, limit: int = _CACHE_BYTES):
        self.limit, self.size = limit, 0
        self.entries: OrderedDict[Any, tuple[Tensor, ...]] = OrderedDict()

    def get(self, key: Any, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        made = make()
        self.entries[key] = made
        self.size += _bytes(made)
        while self.size > self.limit and len(self.entries) > 1:
            self.size -= _bytes(self.entries.popitem(last=False)[1])
        return made


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def check_weights(pipe: ScenePipeline, where: str | Path) -> None:
    """Whether every weight of a loaded generator came from its files, and is a number.

    Raises:
        CCDiffError: naming the part and the tensor.
    """
    fix = "train the generator again, or copy it again"
    for name, part in pipe.modules_of().items():
        stored: dict[str, tuple[int, ...]] = {}
        for file in sorted((Path(where) / name).glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                stored |= {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 - no dictionary
        state = {key: value for key, value in part.state_dict().items() if not key.endswith("position_ids")}
        missing = [key for key, value in state.items() if value.is_meta]
        if isinstance(part, PreTrainedModel):  # transformers fills what is missing with noise, and renames as it reads
            if Counter(tuple(value.shape) for value in state.values()) - Counter(stored.values()):
                _, loaded = type(part).from_pretrained(Path(where) / name, output_loading_info=True)
                missing += sorted(loaded["missing_keys"])
        else:
            missing += [key for key in state if key not in stored]
        if missing:
            raise CCDiffError(f"the part {name} lacks the tensor {missing[0]}", where=where, fix=fix)
    check_finite(pipe, where, fix)


def check_finite(pipe: ScenePipeline, where: str | Path, fix: str) -> None:
    """Refuse weights that are no numbers."""
    for name, part in pipe.modules_of().items():
        for key, value in part.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise CCDiffError(f"the tensor {key} of the part {name} holds what is no number", where=where, fix=fix)


class ScenePipeline(DiffusionPipeline):
    """Generation of labelled aerial pictures from scenes, whatever the method: what every method's pipeline is made from.

    A method says in ``PARTS`` what its generator folders hold, in ``TRAINED`` which components its training changes, and implements
    ``condition`` and ``predict``; where it works otherwise (in pixels, in tokens, with a solver of its own), it overrides more.

    Attributes:
        PARTS: component -> library -> the classes that ``model_index.json`` may name; no other is ever imported.
        TRAINED: the components that hold trained parameters.
        vae_scale_factor: pixels a cell of the grid that is denoised.
    """

    PARTS: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}
    TRAINED: ClassVar[tuple[str, ...]] = ("unet",)
    vae_scale_factor: int
    scheduler: Any

    def __init__(self) -> None:
        super().__init__()
        self._texts, self._references = _Cache(_CACHE_BYTES // 8), _Cache()
        self._place: torch.device | None = None

    @property
    def _execution_device(self) -> torch.device:
        """Where the parts run.  diffusers walks through all modules each time it is asked: while a batch is made the answer is kept."""
        return self._place if self._place is not None else super()._execution_device

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        outer, self._place = self._place, self._execution_device
        try:
            yield
        finally:
            self._place = outer

    def modules_of(self) -> dict[str, torch.nn.Module]:
        """The components that hold weights, by name."""
        return {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}

    @classmethod
    def from_pretrained(cls, path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load a generator folder; weights become ``dtype`` (float32 unless given) however they are stored.

        Raises:
            CCDiffError: the folder is not a generator, or a part of it is missing or damaged.
        """
        kwargs[_DTYPE] = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        kwargs.setdefault("use_safetensors", True)
        diffusers_logging.disable_progress_bar()  # a dozen bars of milliseconds each
        transformers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()  # what is missing or does not fit is an error of ours
        transformers_logging.set_verbosity_error()
        try:
            if Path(path).is_dir():
                check_index(path, cls.PARTS, cls._optional_components)
        except CCDiffError as error:
            raise CCDiffError(f"cannot load the generator: {error.what}", where=error.where, fix=error.fix) from error
        try:
            return super().from_pretrained(path, **kwargs)
        except Exception as error:  # the libraries raise of nearly every kind
            raise CCDiffError(
                f"cannot load the generator: {said_by(error, 500)}",
                where=path,
                fix="give a folder written by `ccdiff train` or `ccdiff import-checkpoint`",
            ) from error

    def save_pretrained(self, save_directory, **kwargs: Any) -> None:
        """Write the generator folder (safetensors; see diffusers), the same bytes wherever its parts were loaded from."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        for path in (folder / INDEX, *sorted(folder.glob("*/*config.json"))):
            found = parse_json(read_bytes(path), where=path, careful=False, constants=True)
            if isinstance(found, dict) and found.pop("_name_or_path", None) is not None:
                write_text(path, json.dumps(found, indent=2, sort_keys=True) + "\n")
        # transformers 5 names its tokenizer class differently; the old name loads everywhere
        index = read_json(folder / INDEX)
        if index.get("tokenizer") == ["transformers", "TokenizersBackend"]:
            index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
            write_json(folder / INDEX, index)

    def compile_blocks(self, **kwargs: Any) -> None:
        """Compile the repeated blocks of the UNet, each without a graph break; ``kwargs`` go to ``torch.compile``."""
        blocks = sum(type(module).__name__ in self.unet._repeated_blocks for module in self.unet.modules())
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 4 * blocks)  # a block may specialise on its name
        self.unet.compile_repeated_blocks(fullgraph=True, **kwargs)

    # ---- encoders; training caches what they return ----

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``n`` texts -> tokens ``(n, L, D)`` and pooled ``(n, D)``."""
        if getattr(self, "text_encoder", None) is None:  # a method that reads no text
            return torch.zeros(len(texts), 0, 0), torch.zeros(len(texts), 0)
        out = self._encoded(texts)
        return out.last_hidden_state, out.pooler_output

    def _encoded(self, texts: Sequence[str]) -> Any:
        """What the text encoder makes of texts, each cut or filled to its length."""
        length = self.tokenizer.model_max_length
        made = self.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        long = self.tokenizer(list(texts), padding=False, truncation=False)["input_ids"]
        for text, ids in zip(texts, long, strict=True):
            if len(ids) > length:
                warnings.warn(f"a text of {len(ids)} tokens is cut to {length}: {text[:80]!r}...", stacklevel=2)
        return self.text_encoder(made["input_ids"].to(self._execution_device))

    def encode_references(self, images: Sequence[Image.Image]) -> Tensor:
        """``n`` RGB pictures -> image tokens ``(n, T, E)``.

        Raises:
            CCDiffError: the generator has no image encoder.
        """
        raise CCDiffError("this generator has no image encoder", fix="generate without references")

    @torch.no_grad()
    def encode_latents(self, pixels: Tensor) -> Tensor:
        """``(n, 3, H, W)`` in [-1, 1] -> ``(n, C, h, w)``: the mode of the VAE's distribution, scaled as the UNet sees it."""
        latents = self.vae.encode(pixels.to(device=self._execution_device, dtype=self.vae.dtype)).latent_dist.mode()
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """``(n, C, h, w)`` -> ``(n, 3, H, W)`` float32 in [0, 1]."""
        return (self.decoded(latents) / 2 + 0.5).clamp(0, 1)

    def decoded(self, latents: Tensor) -> Tensor:
        """``(n, C, h, w)`` -> ``(n, 3, H, W)`` float32, about [-1, 1] and not cut to it; gradients pass."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        found: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return found.float()

    def _text(self, text: str) -> tuple[Tensor, Tensor]:
        tokens, pooled = self._texts.get((text, self._execution_device, self.arithmetic), lambda: self.encode_text([text]))
        return tokens, pooled

    def _features(self, reference: Reference) -> Tensor:
        key = (reference.key, self._execution_device)
        return self._references.get(key, lambda: (self.encode_references([reference.image().convert("RGB")]),))[0]

    def empty_features(self) -> Tensor:
        """Image tokens of no reference, ``(0, T, E)``."""
        return torch.zeros(0, 1, 0)

    @property
    def known_classes(self) -> list[str] | None:
        """The class list that the generator keeps and ``LayoutBatch.class_index`` counts through; None: any class, by its text."""
        return None

    def metadata_of(self, scenes: Sequence[Scene]) -> Tensor | None:
        """What is known of the pictures beyond their objects, ``(B, M)`` float64 with NaN for unknown; None: the method does not ask."""
        return None

    def prepare_layout(self, layout: LayoutBatch) -> LayoutBatch:
        """The layout with what follows from it alone (rasters and the like); done once a batch, in training as in sampling."""
        return layout

    # ---- layouts ----

    def layout_batch(self, scenes: Sequence[Scene], references: Sequence[SceneReferences | None] | None = None) -> LayoutBatch:
        """The tensors of scenes of one size, on the device.

        Raises:
            CCDiffError: no scenes, different sizes, a size that the VAE cannot divide, corners that are not numbers, or
                references that do not match the instances.
        """
        if not scenes:
            raise CCDiffError("no scenes to generate")
        width, height = scenes[0].width, scenes[0].height
        factor = self.vae_scale_factor
        for scene in scenes:
            if (scene.width, scene.height) != (width, height):
                raise CCDiffError(
                    f"scenes of a batch differ in size: {scene.width}x{scene.height} and {width}x{height}",
                    where=scene.file_name,
                    fix="group scenes by size",
                )
            if not all(instance.is_finite() for instance in scene.instances):
                raise CCDiffError("a box has a coordinate that is not a finite number", where=scene.file_name)
        if width % factor or height % factor or width <= 0 or height <= 0:
            raise CCDiffError(f"pictures of {width}x{height}: both sides must be multiples of {factor}", where=scenes[0].file_name)
        if references is None:
            references = [None] * len(scenes)
        if len(references) != len(scenes):
            raise CCDiffError(f"{len(references)} sets of references for {len(scenes)} scenes")
        for scene, given in zip(scenes, references, strict=True):
            if given is not None and len(given.instances) != len(scene.instances):
                raise CCDiffError(f"{len(given.instances)} references for {len(scene.instances)} instances", where=scene.file_name)

        names = self.known_classes or sorted({name for scene in scenes for name in scene.categories()})
        for scene in scenes:
            if unknown := [name for name in scene.categories() if name not in names]:
                raise CCDiffError(
                    f"the generator does not know the class {unknown[0]!r}", where=scene.file_name, fix=f"its classes: {', '.join(names)}"
                )
        boxes = boxes_of_scenes(scenes, names)
        instance_reference = torch.full(boxes.valid.shape, -1)
        background_reference = torch.full((len(scenes),), -1)
        used: dict[str, int] = {}
        features: list[Tensor] = []

        def place(reference: Reference | None) -> int:
            if reference is None:
                return -1
            if reference.key not in used:
                used[reference.key] = len(features)
                features.append(self._features(reference))
            return used[reference.key]

        for b, given in enumerate(references):
            if given is not None:
                for n, reference in enumerate(given.instances):
                    instance_reference[b, n] = place(reference)
                background_reference[b] = place(given.background)

        captions = [self._text(scene.caption) for scene in scenes]
        classes = [self._text(name) for name in names]
        tokens, pooled = captions[0]
        batch = LayoutBatch(
            hbb=boxes.hbb,
            obb=boxes.obb,
            valid=boxes.valid,
            class_index=boxes.class_index,
            class_tokens=torch.cat([t for t, _ in classes]) if classes else tokens[:0],
            class_pooled=torch.cat([p for _, p in classes]) if classes else pooled[:0],
            caption_tokens=torch.cat([t for t, _ in captions]),
            caption_pooled=torch.cat([p for _, p in captions]),
            features=torch.cat(features) if features else self.empty_features(),
            instance_reference=instance_reference,
            background_reference=background_reference,
            image_size=(height, width),
            latent_size=(height // factor, width // factor),
            captions=tuple(scene.caption for scene in scenes),
            metadata=self.metadata_of(scenes),
        )
        return self.prepare_layout(batch).to(self._execution_device, self.arithmetic)

    # ---- the condition: what a method is ----

    def condition(self, layout: LayoutBatch, empty: Tensor, *, dropped: Tensor | None = None, guided: bool = False, **options: Any) -> Any:
        """Everything that no denoising step changes, once a batch.  The unconditional branch is decided here and nowhere else.

        Args:
            layout: B pictures, on the device; ``empty``: ``(1, L, D)`` text tokens of the unconditional branch.
            dropped: in training, ``(B,)`` bool: which rows take the unconditional branch.
            guided: in sampling: 2 B rows, the unconditional branch of every picture first, then the conditional.
            options: of ``__call__``.
        """
        raise NotImplementedError

    def text_rows(self, layout: LayoutBatch, empty: Tensor, *, dropped: Tensor | None, guided: bool) -> Tensor:
        """The captions' tokens of every row that :meth:`condition` is asked for, with ``empty`` where the branch is the unconditional."""
        text = layout.caption_tokens
        if dropped is not None:
            text = torch.where(dropped[:, None, None], empty, text)
        return torch.cat([empty.to(text).expand_as(text), text]) if guided else text

    def bring_unet(self) -> None:
        """Under model offload, bring the UNet to the device: for conditions that use its layers before its own pass does."""
        hook = getattr(self.unet, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.unet)

    def predict(self, x: Tensor, t: Tensor, condition: Any, share: float = 0.0) -> Tensor:
        """One pass of the network: as many rows as ``condition`` has -> noise or velocity, as the schedule says, in the shape of ``x``.

        Args:
            share: of the steps done, 0 <= share < 1; 0 in training.
        """
        raise NotImplementedError

    # ---- sampling ----

    @property
    def arithmetic(self) -> torch.dtype:
        """What the network computes in."""
        return next(getattr(self, self.TRAINED[0]).parameters()).dtype

    def set_up(self, *, scheduler: str | None = None, channels_last: bool = False, compile: bool = False) -> None:
        """Other ways to sample: a scheduler by name in place of the generator's own, and other ways to compute the same.

        Raises:
            CCDiffError: the method does not sample so.
        """
        if scheduler in SAMPLERS:
            kind, changes = SAMPLERS[scheduler]
            self.scheduler = kind.from_config(self.scheduler.config, **changes)
        elif scheduler is not None:
            raise CCDiffError(f"unknown scheduler {scheduler!r}", where="--scheduler", fix=f"choose {', '.join(SAMPLERS)}")
        if channels_last:
            for name in (*self.TRAINED, "vae"):
                part = getattr(self, name, None)
                if isinstance(part, torch.nn.Module):
                    part.to(memory_format=torch.channels_last)
        if compile:
            self.compile_blocks()

    def initial_noise(self, generators: Sequence[torch.Generator | None], layout: LayoutBatch) -> Tensor:
        """``(B, C, h, w)`` of unit variance, each picture's drawn from its own generator."""
        shape = (1, self.unet.config.in_channels, *layout.latent_size)
        return torch.cat([torch.randn(shape, generator=g) for g in generators])

    @torch.no_grad()
    def __call__(
        self,
        scenes: Sequence[Scene],
        references: Sequence[SceneReferences | None] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        negative_prompt: str | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        **options: Any,
    ) -> SceneOutput:
        """Generate one picture for each scene.

        Args:
            scenes: layouts with captions, all of one size; boxes in pixels.
            references: for each scene its references or None.
            num_inference_steps, guidance_scale, negative_prompt: in place of the generator's own; a guidance scale of 1 runs
                the conditional branch only.
            generator: one CPU generator for each picture (or one for all, drawn from in order).
            latents: ``(B, C, h, w)`` initial noise of unit variance, in place of ``generator``.
            output_type: "pil", "np" or "latent".
            options: of the method, see its pipeline's ``condition``.

        Raises:
            CCDiffError: see :meth:`layout_batch`; also a wrong number of generators.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        negative = self.config.negative_prompt if negative_prompt is None else negative_prompt
        if output_type not in ("pil", "np", "latent"):
            raise CCDiffError(f"output type {output_type!r}", fix="choose pil, np or latent")
        if steps < 1:
            raise CCDiffError(f"{steps} denoising steps", fix="ask for at least one")
        generators = [generator] * len(scenes) if isinstance(generator, torch.Generator) or generator is None else list(generator)
        if len(generators) != len(scenes):
            raise CCDiffError(f"{len(generators)} generators for {len(scenes)} scenes", fix="give one generator for each scene")
        with self._in_place():
            layout = self.layout_batch(scenes, references)
            x = self.sample(layout, self._text(negative)[0], generators, steps=steps, scale=scale, latents=latents, **options)
            images: Any = x
            if output_type != "latent":
                images = self.decode_latents(x).permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = [Image.fromarray(picture) for picture in (images * 255).round().astype(np.uint8)]
        self.maybe_free_model_hooks()
        return SceneOutput(images=images)

    def sample(
        self,
        layout: LayoutBatch,
        empty: Tensor,
        generators: Sequence[torch.Generator | None],
        *,
        steps: int,
        scale: float,
        latents: Tensor | None = None,
        begin: int = 0,
        **options: Any,
    ) -> Tensor:
        """The denoising loop: ``(B, C, h, w)`` float32 latents.

        Args:
            empty: ``(1, L, D)`` text tokens of the unconditional branch.
            latents: the initial noise in place of one drawn from ``generators``.
            begin: the first step that is taken; above 0 ``latents`` are those of pictures, and are noised to that step.
        """
        device, size, guided = self._execution_device, layout.batch_size, scale != 1.0
        condition = self.condition(layout, empty, guided=guided, **options)
        scheduler = self.scheduler
        scheduler.set_timesteps(steps, device=device)
        noise = self.initial_noise(generators, layout) if latents is None or begin else latents
        expected = (size, self.unet.config.in_channels, *layout.latent_size)
        given = noise if latents is None else latents
        if given.shape != expected:
            raise CCDiffError(f"latents of shape {tuple(given.shape)}, expected {expected}")
        x = noise.to(device=device, dtype=torch.float32)
        if begin:
            x = scheduler.add_noise(given.to(x), x, scheduler.timesteps[begin : begin + 1].repeat(size))
            if hasattr(scheduler, "set_begin_index"):  # the others keep no place
                scheduler.set_begin_index(begin)
        else:
            x = x * scheduler.init_noise_sigma
        accepted = inspect.signature(scheduler.step).parameters
        extra: dict[str, Any] = {"generator": list(generators)} if "generator" in accepted and generators[0] is not None else {}
        if "eta" in accepted and "eta" in self.config:
            extra["eta"] = self.config["eta"]
        total = len(scheduler.timesteps)
        with self.progress_bar(total=steps) as bar:
            for i, t in enumerate(scheduler.timesteps[begin:], begin):
                rows = scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t).to(self.arithmetic)
                predicted = self.predict(rows, t, condition, i / total)
                if guided:
                    unconditional, conditional = predicted.chunk(2)
                    predicted = unconditional + scale * (conditional - unconditional)
                x = scheduler.step(predicted, t, x, return_dict=False, **extra)[0]
                if (i + 1) % getattr(scheduler, "order", 1) == 0 or i + 1 == total:
                    bar.update()
        return x


def __getattr__(name: str) -> Any:
    """Programs written for earlier versions find the one pipeline that there was here."""
    if name == "CCDiffPipeline":
        return importlib.import_module("ccdiff_cli.methods.ccdiff.pipeline").CCDiffPipeline
    raise AttributeError(name)
