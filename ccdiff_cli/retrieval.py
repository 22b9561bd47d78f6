"""Backgrounds by embedding: the training pictures that look most like what a caption says.

    bank = ReferenceBank.read(prepared.root)
    bank.similarity = open_similarity("own", prepared, pipe=pipe)        # or a folder or hub name of a CLIP

``D/references/index-KEY.safetensors`` holds the embeddings (float16, unit length) of the train pictures and of the set's captions; KEY is
a key of the set and of the encoders, so another set or encoder makes another file and the same ones never compute it again.  The search
is one exact matrix product: at 100,000 pictures it takes milliseconds (``docs/results.md``).

* CLIP's two encoders share a space (the published way: cosine of CLIP ViT-L/14).
* A generator's own two encoders do not, once they are trained and their projection head is gone; a linear map from picture to text
  embeddings is fitted to the set's pairs of picture and caption (ridge regression) when the index is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from PIL import Image

from .dataset import PictureSet
from .errors import CCDiffError, os_errors
from .files import content_key, write_bytes
from .models.pipeline import ScenePipeline
from .pictures import read_rgb
from .prepare.captions import caption_of
from .pretrained import BATCH, Clip, unit, weights_key
from .references import REFERENCES
from .scene import Scene

OWN = "own"
ROWS = 1024
"""Pictures of a part of the index, after which an interrupted run goes on."""
RIDGE = 0.01
"""Regularisation of the linear map, relative to the mean square of an embedding's channel."""
Progress = Callable[[str, int, int], None]


class OwnEncoders:
    """A generator's own encoders: the image encoder's [CLS] token (n, E) and the text encoder's pooled output (D,)."""

    def __init__(self, pipe: ScenePipeline) -> None:
        if getattr(pipe, "image_encoder", None) is None:
            raise CCDiffError("this generator has no image encoder to retrieve with", fix="use --retrieval words, or a CLIP folder")
        self.pipe = pipe
        vocabulary = pipe.tokenizer.get_vocab()
        parts = [weights_key(pipe.text_encoder, pipe.image_encoder), vocabulary, pipe.feature_extractor.to_dict()]
        self.key = content_key([*parts, bool(pipe.config.renormalise_references)])

    def pictures(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self.pipe.encode_references(images)[:, 0].float().cpu().numpy()

    def text(self, text: str) -> np.ndarray:
        return unit(self.pipe.encode_text([text])[1][0].float().cpu().numpy())


class EmbeddingSimilarity:
    """Cosine of a caption's embedding and the train pictures'; takes the place of ``references.CaptionSimilarity``.

    Texts are encoded one at a time and remembered, so a caption's neighbours do not depend on what else was asked.

    Attributes:
        pictures: (number of train pictures, D) float32 of unit length.
        key: of the set and the encoders: the index's name.
    """

    def __init__(self, pictures: np.ndarray, texts: dict[str, np.ndarray], encode: Callable[[str], np.ndarray], key: str) -> None:
        self.pictures, self.key = pictures, key
        self._texts, self._encode = texts, encode

    def scores(self, scene: Scene) -> np.ndarray:
        return self.pictures @ self.text(scene.caption)

    def text(self, caption: str) -> np.ndarray:
        """(D,) embedding of a caption, rounded as the index's are."""
        if caption not in self._texts:
            self._texts[caption] = _rounded(self._encode(caption))
        return self._texts[caption]

    def remember(self, captions: Sequence[str], progress: Progress | None = None) -> None:
        """Encode captions beforehand."""
        missing = [c for c in dict.fromkeys(captions) if c not in self._texts]
        for done, caption in enumerate(missing, start=1):
            self.text(caption)
            if progress is not None:
                progress("encoding captions", done, len(missing))


def open_similarity(
    retrieval: str,
    prepared: PictureSet,
    *,
    style: str = "stored",
    pipe: ScenePipeline | None = None,
    where: str = "--retrieval",
    device: str | None = None,
    progress: Progress | None = None,
) -> EmbeddingSimilarity:
    """The similarity by embeddings of a prepared set; its index is made where it does not lie beside the bank yet.

    Args:
        retrieval: "own" (the encoders of ``pipe``), or folder or hub name of a CLIP.
        style: of the captions that will be asked for: "stored", or one of ``prepare.captions``. Those of the set's scenes are in the
            index, and a generator's own encoders are joined by them.
        where: the option or recipe key that ``retrieval`` came from, for messages.

    Raises:
        CCDiffError: not a CLIP, no train pictures, one that does not decode, the folder of the set cannot be written.
    """
    train = prepared.split("train")
    if not train:
        raise CCDiffError("the set has no pictures in its train split to retrieve", where=prepared.root, fix="prepare it with other splits")
    if retrieval == OWN:
        if pipe is None:
            raise CCDiffError("there is no generator whose own encoders could be used", where=where, fix="give a CLIP folder")
        encoders: Clip | OwnEncoders = OwnEncoders(pipe)
    else:
        encoders = Clip(retrieval, where=where, device=device)
    key = content_key(["ccdiff index 1", prepared.key(), encoders.key, style])
    path = prepared.root / REFERENCES / f"index-{key}.safetensors"
    said = {scene.file_name: scene.caption if style == "stored" else caption_of(scene, style) for scene in prepared.scenes}
    captions = sorted(set(said.values()))
    stored = _read(path, pictures=len(train), captions=len(captions))
    if stored is None:
        stored = _embed(encoders, train, [said[scene.file_name] for scene in train], captions, path.with_suffix(""), progress)
        write_bytes(path, safetensors.numpy.save(stored))
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    pictures, texts = (stored[name].astype(np.float32) for name in ("pictures", "captions"))
    return EmbeddingSimilarity(pictures, dict(zip(captions, texts, strict=True)), encoders.text, key)


def _read(path: Path, **rows: int) -> dict[str, np.ndarray] | None:
    """Arrays of these lengths, or None where there is no file that holds them whole."""
    if not path.is_file():
        return None
    try:
        stored = safetensors.numpy.load_file(path)
    except (ValueError, OSError, safetensors.SafetensorError):
        return None
    return stored if {name: len(array) for name, array in stored.items()} == rows else None


def _embed(
    encoders: Clip | OwnEncoders,
    train: Sequence[Scene],
    said: Sequence[str],
    captions: Sequence[str],
    folder: Path,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Embeddings of the train pictures, whose captions are ``said``, and of all ``captions``.

    Pictures are embedded in parts that are kept in ``folder``, so an interrupted run goes on.
    """
    report = progress or (lambda stage, done, total: None)
    with os_errors(folder, "make the retrieval index"):
        folder.mkdir(parents=True, exist_ok=True)
    found: list[np.ndarray] = []
    for first in range(0, len(train), ROWS):
        part, file = train[first : first + ROWS], folder / f"{first // ROWS:06d}.safetensors"
        made = _read(file, pictures=len(part))
        if made is None:
            batches = []
            for start in range(0, len(part), BATCH):
                batches.append(encoders.pictures([read_rgb(str(scene.path)) for scene in part[start : start + BATCH]]))
                report("indexing pictures", first + start, len(train))
            made = {"pictures": np.concatenate(batches)}
            write_bytes(file, safetensors.numpy.save(made))
        found.append(made["pictures"])
        report("indexing pictures", first + len(part), len(train))
    texts = {}
    for done, caption in enumerate(captions, start=1):
        texts[caption] = encoders.text(caption)
        report("indexing captions", done, len(captions))
    pictures = np.concatenate(found)
    if isinstance(encoders, OwnEncoders):
        pictures = pictures @ linear_map(pictures, np.stack([texts[caption] for caption in said]))
    return {"pictures": _rounded(unit(pictures), np.float16), "captions": _rounded(np.stack(list(texts.values())), np.float16)}


def linear_map(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(E, D): the ridge regression of text embeddings (n, D) on the picture embeddings (n, E) of the same scenes."""
    a, b = pictures.astype(np.float64), texts.astype(np.float64)
    square = a.T @ a
    return np.linalg.solve(square + RIDGE * max(np.trace(square) / len(square), 1e-12) * np.eye(len(square)), a.T @ b)


def _rounded(vectors: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    return vectors.astype(np.float16).astype(dtype)
