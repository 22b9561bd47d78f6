"""Models that others trained, from a folder or a hub name: CLIP here, SAM in ``prepare.masks``.

Notable here:

* Loaded with safetensors only, and only when the source is of the asked kind and holds every weight: transformers would else fill what is
  missing with random numbers and go on.
* A model's key is a hash of its weights, preprocessing and vocabulary, so the same model is the same from whatever folder or hub it came.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, CLIPModel, CLIPProcessor
from transformers.utils import logging as transformers_logging

from .errors import CCDiffError
from .files import content_key

BATCH = 32


def load_pretrained(model: Any, processor: Any, source: str | Path, *, where: str) -> tuple[Any, Any, str]:
    """A frozen model of a transformers class with its processor, and its key.

    Args:
        model, processor: the classes (``CLIPModel``, ``CLIPProcessor``).
        source: a folder in the transformers layout, or a hub name.
        where: the option or recipe key that named the source, for the message.

    Raises:
        CCDiffError: no such folder, a model of another kind, a weight is missing or damaged.
    """
    kind, wanted = model.__name__, model.config_class.model_type
    fix = f"give a folder with config.json, preprocessor files and model.safetensors of a {kind}, or a hub name where the network is there"
    name = str(source)
    # "runs/clip" has the form of a hub name: it counts as a folder where there is a folder "runs"
    local = name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).parent.is_dir()
    if local and not Path(name).is_dir():
        raise CCDiffError(f"no such folder, and not a hub name (OWNER/NAME): {name!r}", where=where, fix=fix)
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(name)
            if config.model_type != wanted:
                raise CCDiffError(f"{name!r} holds a model of the kind {config.model_type!r}, not a {kind}", where=where, fix=fix)
            made, info = model.from_pretrained(name, use_safetensors=True, output_loading_info=True)
            prepares = processor.from_pretrained(name)
    except CCDiffError:
        raise
    except Exception as error:  # a damaged or missing file can end in nearly any error of the libraries that read it
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise CCDiffError(f"cannot load a {kind} from {name!r}: {what}", where=where, fix=fix) from error
    if lacking := lacking_weights(info):
        raise CCDiffError(f"{name!r} lacks {len(lacking)} weights of a {kind}, for example {lacking[0]}", where=where, fix=fix)
    made.eval().requires_grad_(False)
    words = prepares.tokenizer.get_vocab() if hasattr(prepares, "tokenizer") else None
    return made, prepares, content_key([weights_key(made), prepares.image_processor.to_dict(), words])


def weights_key(*modules: torch.nn.Module) -> str:
    """A key of the weights of some modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def best_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Clip:
    """CLIP's embeddings of pictures and texts, in one space (Radford et al., ICML 2021).

    Attributes:
        key: of its weights and preprocessing.

    Raises:
        CCDiffError: see :func:`load_pretrained`.
    """

    def __init__(self, source: str | Path, *, where: str, device: str | None = None) -> None:
        self.model, self.processor, self.key = load_pretrained(CLIPModel, CLIPProcessor, source, where=where)
        self.model.to(device or best_device())

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> np.ndarray:
        """``n`` RGB pictures -> (n, D) unit float32."""
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return unit(self.model.visual_projection(pooled).float().cpu().numpy())

    @torch.no_grad()
    def text(self, text: str) -> np.ndarray:
        """(D,) unit float32; what CLIP cannot read any more (over 77 tokens) is cut off."""
        length = int(self.model.config.text_config.max_position_embeddings)
        tokens = self.processor.tokenizer([text], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        tokens = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        pooled = self.model.text_model(**tokens).pooler_output
        return unit(self.model.text_projection(pooled).float().cpu().numpy())[0]


def lacking_weights(told: Mapping[str, Any]) -> list[str]:
    """Weights that files lack or hold in another shape, of what ``from_pretrained`` tells: the libraries fill them with noise."""
    return [str(key) for what in ("missing_keys", "mismatched_keys") for key in sorted(told.get(what) or (), key=str)]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars and no report of missing weights: those are errors of ours."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
