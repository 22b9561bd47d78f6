"""The text tokenizer of Txt2Img-MHN: byte-pair encoding of characters, in the released text format.

The file: ``n_chars n_merges``, then ``codepoint id`` lines, then ``left right new`` lines in order of priority, then ``unk pad bos eos``.

Notable here:
- :meth:`CaptionPieces.encode` is what the released vocabulary was used with; :func:`plain_words` comes before it, because that
  vocabulary knows neither capitals nor punctuation.
- learning a vocabulary is left to ``tokenizers``; only its result is put into this format.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from ...errors import CCDiffError
from ...files import atomic_write

BEGIN = "\u2581"
"""Stands in front of every word."""
PAD, UNK, BOS, EOS = 0, 1, 2, 3
_SPACE = re.compile(f"[\t\n\v\f\r {BEGIN}]+")  # as the reference tokenizer: other white space is a character
_FORM = "line 1 `n_chars n_merges`, then `codepoint id`, then `left right new`, last `unk pad bos eos`"


def plain_words(caption: str) -> str:
    """The caption in lower case with letters, digits and single spaces alone."""
    return " ".join("".join(c if c.isalnum() else " " if c != "'" else "" for c in caption.lower()).split())


class CaptionPieces(ConfigMixin):
    """A vocabulary of pieces; as a part of a generator its configuration is all of it.

    Args:
        text: the content of the released text file.
        length: T, places of a caption.
    """

    config_name = "pieces_config.json"

    @register_to_config
    def __init__(self, length: int = 40, text: str = ""):
        self.characters, self.merges, self.special = _parse(text)
        self._known: dict[str, list[int]] = {}

    @property
    def size(self) -> int:
        """Ids that the vocabulary may give, the special ones with them."""
        return max([*self.characters.values(), *(new for _, new in self.merges.values()), *self.special]) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it is, as many as it takes."""
        return [i for word in _SPACE.split(text) if word for i in self._word(word)]

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Captions in any writing -> ids ``(n, T)`` int64, 0 where there is nothing, and how many pieces each has before it is cut to T."""
        length = self.config.length
        ids = torch.zeros(len(captions), length, dtype=torch.int64)
        counts = []
        for row, caption in zip(ids, captions, strict=True):
            found = self.encode(plain_words(caption))
            counts.append(len(found))
            row[: min(len(found), length)] = torch.tensor(found[:length], dtype=torch.int64)
        return ids, counts

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = self._pieces(word)
        return self._known[word]

    def _pieces(self, word: str) -> list[int]:
        unknown = self.special[0]
        ids: list[int] = []
        for character in BEGIN + word:
            found = self.characters.get(character, unknown)
            if found != unknown or not ids or ids[-1] != unknown:
                ids.append(found)
        while True:
            ranked = [(self.merges[pair][0], k) for k, pair in enumerate(itertools.pairwise(ids)) if pair in self.merges]
            if not ranked:
                return ids
            _, k = min(ranked)
            ids[k : k + 2] = [self.merges[ids[k], ids[k + 1]][1]]

    # ---- as a part of a generator folder ----

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.save_config(save_directory)

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> CaptionPieces:
        return cls.from_config(cls.load_config(path))


def read_pieces(path: Path, length: int = 40) -> CaptionPieces:
    """A released vocabulary file.

    Raises:
        CCDiffError: missing, or not of the form.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CCDiffError(f"cannot read the vocabulary: {error}", where=path, fix=f"give a text file: {_FORM}") from error
    try:
        return CaptionPieces(length=length, text=text)
    except CCDiffError as error:
        raise CCDiffError(error.what, where=path, fix=error.fix) from None


def write_pieces(pieces: CaptionPieces, path: Path) -> None:
    """The vocabulary as a released file."""
    with atomic_write(path) as file:
        file.write(pieces.config.text.encode())


def learn_pieces(captions: Iterable[str], size: int, length: int = 40) -> CaptionPieces:
    """A vocabulary of at most ``size`` pieces, learnt from captions; the same captions give the same vocabulary.

    Raises:
        CCDiffError: captions without a letter.
    """
    words = [plain_words(caption) for caption in captions]
    alphabet = sorted(set("".join(words)) - {" "})
    if not alphabet:
        raise CCDiffError("no caption has a word, so no vocabulary can be learnt", fix="prepare the set with captions")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BEGIN, prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=max(size - 4, len(alphabet) + 1), show_progress=False, initial_alphabet=[BEGIN, *alphabet])
    tokenizer.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    ids = {character: 4 + k for k, character in enumerate([BEGIN, *alphabet])}
    lines = [f"{ord(character)} {k}" for character, k in ids.items()]
    for left, right in merges:
        ids.setdefault(left + right, 4 + len(ids))
        lines.append(f"{ids[left]} {ids[right]} {ids[left + right]}")
    text = "\n".join([f"{len(alphabet) + 1} {len(merges)}", *lines, f"{UNK} {PAD} {BOS} {EOS}", ""])
    return CaptionPieces(length=length, text=text)


def _parse(text: str) -> tuple[dict[str, int], dict[tuple[int, int], tuple[int, int]], tuple[int, int, int, int]]:
    """Character -> id; pair -> (priority, id); (unk, pad, bos, eos).

    Raises:
        CCDiffError: naming the line that is not of the form.
    """
    lines = [line.split() for line in text.split("\n") if line.strip()]

    def row(k: int, count: int) -> list[int]:
        try:
            values = [int(v) for v in lines[k]]
        except (IndexError, ValueError):
            values = []
        if len(values) != count or min(values) < 0:
            found = " ".join(lines[k])[:60] if k < len(lines) else "the end"
            raise CCDiffError(f"line {k + 1} of the vocabulary: expected {count} whole numbers, found {found!r}", fix=_FORM)
        return values

    characters_n, merges_n = row(0, 2)
    if len(lines) != characters_n + merges_n + 2:
        raise CCDiffError(f"the vocabulary announces {characters_n} characters and {merges_n} merges and has {len(lines)} lines", fix=_FORM)
    characters: dict[str, int] = {}
    for k in range(1, characters_n + 1):
        code, number = row(k, 2)
        if code > 0x10FFFF:
            raise CCDiffError(f"line {k + 1} of the vocabulary: {code} is no character", fix=_FORM)
        characters[chr(code)] = number
    merges: dict[tuple[int, int], tuple[int, int]] = {}
    for k in range(merges_n):
        left, right, new = row(1 + characters_n + k, 3)
        merges.setdefault((left, right), (k, new))
    unk, pad, bos, eos = row(len(lines) - 1, 4)
    return characters, merges, (unk, pad, bos, eos)
