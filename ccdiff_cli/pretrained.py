"""Models that others trained, from a folder or a hub name: CLIP here, SAM in ``prepare.masks``.

Notable here:

* Loaded with safetensors only, and only when the source is of the asked kind and holds every weight (``sources``).
* A model's key is a hash of its weights, preprocessing and vocabulary, so the same model is the same from whatever folder or hub it came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from .files import content_key
from .sources import Source, check_files, check_model, open_place

BATCH = 32
PROCESSOR_FILES = (("preprocessor_config.json",), ("processor_config.json",))
WHOLE_CLIP = "a whole CLIP with its preprocessor files, as openai/clip-vit-large-patch14"
SPARE_OF_CLIP = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
"""What of a CLIP its text encoder does not need."""


def load_pretrained(model: Any, processor: Any, source: str | Path, *, where: str) -> tuple[Any, Any, str]:
    """A frozen model of a transformers class with its processor, and its key.

    Args:
        model, processor: the classes (``CLIPModel``, ``CLIPProcessor``).
        source: a folder in the transformers layout, or a hub name.
        where: the option or recipe key that named the source, for the message.

    Raises:
        CCDiffError: no such folder, a model of another kind, a weight is missing or damaged.
    """
    given = Source(str(source), where)
    fits = f"a folder with config.json, preprocessor files and model.safetensors of a {model.__name__}, or its hub name"
    place = open_place(given)
    found = check_model({model.config_class.model_type: model}, given, fits=fits, place=place)
    prepares = check_files(processor, given, PROCESSOR_FILES, fits=fits, place=place).load()
    made = found.load()
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
