"""The reference bank: crops of labelled objects and whole pictures that a generator takes its looks from.

``D/references/`` holds one RGBA crop for every object of the train split, at its HBB and at the scale of the prepared pictures; alpha is
the object's mask where one is known, else full.  ``references.json`` describes them: class, size, aspect ratio, source, where the mask
came from.  Backgrounds are the train pictures themselves, found by the words of their captions or by ``retrieval``'s embeddings.

NOTE: a scene never gets a reference of its own ``source``: a picture must not be drawn from a crop of itself.  Draws are seeded by
(seed, instance index) alone, so a scene's references do not depend on the order in which scenes are asked for.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw
from typing_extensions import NotRequired, TypedDict

from .dataset import IMAGES, read_set
from .errors import CCDiffError
from .files import inside, read_json, write_json
from .pictures import decoded, open_picture, to_rgb
from .scene import ClassList, Instance, Scene
from .stored import ClassName, FileName, Flag, Pixels, Text, checked
from .unchanged import hashes_of, listed

REFERENCES = "references"
BANK = "references.json"
WORDS = "words"
"""Backgrounds are found by the words of captions; the other ways stand in ``retrieval``."""
LARGEST = 200
"""Instances are drawn from so many largest crops of their class (CC-Diff)."""
SCANNED, TREE_WORDS = 20_000, 256
"""Banks of more backgrounds are searched by a tree, where captions know at most so many words: in many dimensions a tree finds nothing."""
ALIKE, TIE = 1e-3, 1e-6
"""Below this score nothing is alike; scores nearer to each other than this are told apart by the draw."""


@dataclass(frozen=True)
class Reference:
    """One reference picture.

    Attributes:
        path: the crop (RGBA) or the whole picture (RGB).
        category: the class of an instance; "" for a background.
        width, height: pixels.
        source: the original picture it was cut from.
        kind: "instance" or "background".
        key: a key of its content, for caches.
        spectrum: of the picture, where it is not natural colour ("colour-infrared", "panchromatic").
    """

    path: str
    category: str
    width: int
    height: int
    source: str
    kind: str
    key: str
    spectrum: str = ""

    def image(self) -> Image.Image:
        """The picture as RGB; where alpha says background it is black.

        Raises:
            CCDiffError: the file is missing or does not decode.
        """
        try:
            with open_picture(self.path) as stored:
                if stored.mode != "RGBA":
                    return to_rgb(decoded(stored))
                black = Image.new("RGB", stored.size)
                black.paste(stored.convert("RGB"), mask=stored.getchannel("A"))
                return black
        except CCDiffError as error:
            raise CCDiffError(f"the reference does not open: {error.what}", where=self.path, fix="prepare the set again") from error


@dataclass(frozen=True)
class SceneReferences:
    """References of one scene: one for each instance (None where the bank has nothing), and one background."""

    instances: tuple[Reference | None, ...]
    background: Reference | None


_Entry = TypedDict(
    "_Entry",
    {
        "file": FileName, "class": ClassName, "width": Pixels, "height": Pixels, "source": Text, "difficult": Flag, "sha256": Text,
        "picture": NotRequired[Text],
    },
)  # fmt: skip


class _Bank(TypedDict):
    instances: list[_Entry]
    backgrounds: NotRequired[list[Text]]


def read_bank(root: Path) -> dict[str, Any]:
    """What ``references.json`` says, checked.

    Raises:
        CCDiffError: it is missing or broken, or names a file outside of its folder.
    """
    path = root / REFERENCES / BANK
    fix = "run the same `ccdiff prepare` again"
    bank: dict[str, Any] = read_json(path)
    checked(_Bank, bank, where=path, fix=fix)
    names = [entry["file"] for entry in bank["instances"]]
    for name in names:
        inside(root / REFERENCES, name, where=path)
    if len(set(names)) != len(names):
        raise CCDiffError("a crop stands twice in it", where=path, fix=fix)
    return bank


def _damaged_crops(root: Path, entries: Sequence[Mapping[str, Any]], *, full: bool = False) -> list[str]:
    """What is wrong with the crops' files."""
    known = {entry["file"]: entry["sha256"] for entry in entries}
    hashed = {name: digest for name, digest in known.items() if len(digest) == 64}
    there: dict[str, os.stat_result] = {}
    for folder in sorted({name.rpartition("/")[0] for name in known}):
        there |= {f"{folder}/{name}" if folder else name: status for name, status in listed(root / REFERENCES / folder).items()}
    wrong = [f"the crop {name} is missing" for name in known if name not in there]
    there = {name: status for name, status in there.items() if name in hashed}
    found = hashes_of(root / REFERENCES, there, known={} if full else hashed)
    return wrong + [f"the crop {name} was changed" for name, digest in found.items() if digest != hashed[name]]


def problems_of_bank(root: Path) -> list[str]:
    """What is wrong with the bank of a set, whose crops are all hashed.

    Raises:
        CCDiffError: ``references.json`` cannot be read.
    """
    entries = read_bank(root)["instances"]
    known = {entry["file"] for entry in entries}
    surplus = sorted({f"{p.parent.name}/{p.name}" for p in (root / REFERENCES).glob("*/*.png")} - known)
    return _damaged_crops(root, entries, full=True) + [f"{REFERENCES}/{name}: does not belong to the bank" for name in surplus]


def crops_without_picture(root: Path, scenes: Iterable[Scene]) -> list[str]:
    """Crops of source pictures of which no prepared picture is left."""
    left = {scene.provenance.get("picture") for scene in scenes}
    return [e["file"] for e in read_bank(root)["instances"] if "picture" in e and e["picture"] not in left]


def drop_crops(root: Path, names: Sequence[str]) -> None:
    """Take crops out of ``references.json``; their files stay."""
    if names:
        bank, gone = read_bank(root), set(names)
        write_json(root / REFERENCES / BANK, {**bank, "instances": [e for e in bank["instances"] if e["file"] not in gone]})


class Similarity(Protocol):
    """How like a scene each background is; a retrieval model can take this place."""

    def scores(self, scene: Scene) -> np.ndarray:
        """(number of backgrounds,) floats, higher is more similar, in the order of ``ReferenceBank.backgrounds``."""


class CaptionSimilarity:
    """Cosine of the bags of words of two captions, each word weighted by log(pictures / pictures that have it).

    Numbers are no words; words that every caption has ("This is an aerial image of") weigh nothing.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self._captions = list(captions)

    @functools.cached_property
    def _table(self) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
        """Word -> column, the weight of each, and the captions' vectors (number of captions, words) of unit length."""
        bags = [_words(c) for c in self._captions]
        column = {w: k for k, w in enumerate(sorted({w for bag in bags for w in bag}))}
        counts = np.zeros((len(bags), len(column)), np.float32)
        for row, bag in enumerate(bags):
            for word in bag:
                counts[row, column[word]] += 1
        weight = np.log(max(1, len(bags)) / np.maximum(1, (counts > 0).sum(0))).astype(np.float32)
        vectors = counts * weight
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return column, weight, np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    @functools.cached_property
    def _tree(self) -> tuple[Any, list[np.ndarray]]:
        """A tree of the different vectors, and where in the bank each stands."""
        from scipy.spatial import cKDTree  # slow to import

        vectors, place = np.unique(self._table[2], axis=0, return_inverse=True)
        order = np.argsort(place.ravel(), kind="stable")
        return cKDTree(vectors.astype(np.float64)), np.split(order, np.cumsum(np.bincount(place.ravel()))[:-1])

    def _vector(self, caption: str) -> np.ndarray:
        column, weight, _ = self._table
        vector = np.zeros(len(column), np.float32)
        for word in _words(caption):
            if word in column:
                vector[column[word]] += 1
        vector *= weight
        norm = float(np.linalg.norm(vector))
        return vector / norm if norm > 0 else vector

    def scores(self, scene: Scene) -> np.ndarray:
        return self._table[2] @ self._vector(scene.caption)

    def ranked(self, scene: Scene) -> Iterator[tuple[float, np.ndarray]]:
        """Scores and the backgrounds that have them, best first, found in a tree: of large banks with few words, while anything is alike.

        Else, and where nothing more is alike, nothing comes: :meth:`scores` says all.
        """
        if len(self._captions) <= SCANNED or len(self._table[0]) > TREE_WORDS:
            return
        vector = self._vector(scene.caption).astype(np.float64)
        tree, places = self._tree
        told, count = 0, 4
        while vector.any() and told < len(places):
            count = min(count * 4, len(places))
            distances, found = tree.query(vector, k=count)
            for distance, row in zip(np.atleast_1d(distances)[told:].tolist(), np.atleast_1d(found)[told:].tolist(), strict=True):
                score = 1 - distance**2 / 2  # of unit vectors
                if score < ALIKE:
                    return
                yield round(score, 7), places[row]
            told = count


def _words(caption: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", caption.lower())


class ReferenceBank:
    """The crops and backgrounds of a prepared set's train split.

    Attributes:
        classes: the set's class list.
        instances: class name -> its crops, largest first; without difficult ones.
        backgrounds: the train pictures.
    """

    def __init__(
        self, classes: ClassList, instances: Iterable[Reference], backgrounds: Sequence[Reference], similarity: Similarity
    ) -> None:
        self.classes = classes
        self.backgrounds = tuple(backgrounds)
        self.similarity: Similarity = similarity
        ordered = sorted(instances, key=lambda r: (-r.width * r.height, r.path))
        self.instances = {name: tuple(r for r in ordered if r.category == name) for name in classes}
        self._ratios = {name: np.array([r.width / r.height for r in refs]) for name, refs in self.instances.items()}
        self._crops = {name: _Pool(refs) for name, refs in self.instances.items()}
        self._pictures = _Pool(self.backgrounds)

    @classmethod
    def read(cls, root: str | Path) -> ReferenceBank:
        """Read the bank of a prepared set.

        Raises:
            CCDiffError: no bank in the folder, broken entries, a missing crop.
        """
        root = Path(root)
        if not (root / REFERENCES / BANK).is_file():
            raise CCDiffError("the set has no reference bank", where=root, fix="give a set that `ccdiff prepare` wrote")
        entries, stored = read_bank(root)["instances"], read_set(root)
        if damaged := _damaged_crops(root, entries):
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            raise CCDiffError(f"{damaged[0]}{more}", where=root / REFERENCES, fix="run the same `ccdiff prepare` again: it makes it again")
        scenes = stored.split("train")
        spectra = {s.source: str(s.provenance.get("spectrum", "")) for s in scenes}
        instances = [
            Reference(
                str(root / REFERENCES / e["file"]), e["class"], e["width"], e["height"], e["source"], "instance", e["sha256"][:16],
                spectra.get(e["source"], ""),
            )
            for e in entries
            if not e["difficult"]
        ]  # fmt: skip
        backgrounds = [
            Reference(
                str(s.path), "", s.width, s.height, s.source, "background", stored.hashes[s.file_name][:16],
                str(s.provenance.get("spectrum", "")),
            )
            for s in scenes
        ]  # fmt: skip
        return cls(stored.classes, instances, backgrounds, CaptionSimilarity([s.caption for s in scenes]))

    def candidates(self) -> list[Reference]:
        """Every reference that :meth:`choose` can return, each once, in a fixed order: what is worth encoding beforehand."""
        found: dict[str, Reference] = {}
        for references in self.instances.values():
            # leaving one source out brings as many smaller crops in
            spare = max(Counter(r.source for r in references).values(), default=0)
            for spectrum in dict.fromkeys(r.spectrum for r in references):
                found.update((r.key, r) for r in [r for r in references if r.spectrum == spectrum][: LARGEST + spare])
            found.update((r.key, r) for r in references[: LARGEST + spare])
        found.update((r.key, r) for r in self.backgrounds)
        return list(found.values())

    def choose(self, scene: Scene, *, seed: int, top_k: int = 8, exclude_source: str | None = None) -> SceneReferences:
        """References for a scene.

        Instance: of the ``LARGEST`` largest crops of its class, the ``top_k`` whose aspect ratio is nearest to the HBB's
        (|r_crop / r_box - 1|), one of which is drawn. Background: of the ``top_k`` most similar train pictures, one is drawn.
        Both are of the spectrum that the scene's ``provenance["spectrum"]`` names (by default natural colour), where the bank has any.

        Args:
            seed: with the instance's index it decides the draw.
            top_k: 1 is the published behaviour (the best match, no draw).
            exclude_source: the source that must not be used; ``scene.source`` when None.
        """
        if top_k < 1:
            raise CCDiffError(f"top_k {top_k}", fix="top_k is at least 1")
        source = exclude_source if exclude_source is not None else scene.source
        spectrum = str(scene.provenance.get("spectrum", ""))
        # once a scene, which may hold very many objects
        allowed = {name: self._allowed(name, source, spectrum) for name in set(scene.categories())}
        chosen = tuple(
            self._instance(instance, np.random.default_rng([seed, 1, k]), top_k, allowed[instance.category])
            for k, instance in enumerate(scene.instances)
        )
        return SceneReferences(chosen, self._background(scene, np.random.default_rng([seed, 2]), top_k, source))

    def _allowed(self, category: str, source: str, spectrum: str) -> np.ndarray:
        """Places of the largest crops of a class that are not of the source."""
        if not self.instances.get(category):
            return np.zeros(0, np.int64)
        return self._crops[category].allowed(source, spectrum, LARGEST)

    def _instance(self, instance: Instance, rng: np.random.Generator, top_k: int, allowed: np.ndarray) -> Reference | None:
        if not len(allowed):
            return None
        x1, y1, x2, y2 = instance.hbb
        ratio = max(x2 - x1, 1e-6) / max(y2 - y1, 1e-6)
        distance = np.abs(self._ratios[instance.category][allowed] / ratio - 1)
        nearest = np.argsort(distance, kind="stable")[:top_k]
        return self.instances[instance.category][int(allowed[nearest[int(rng.integers(len(nearest)))]])]

    def _background(self, scene: Scene, rng: np.random.Generator, top_k: int, source: str) -> Reference | None:
        spectrum = str(scene.provenance.get("spectrum", ""))
        ranked = getattr(self.similarity, "ranked", None)
        place = self._by_tree(ranked(scene), rng, top_k, source, spectrum) if ranked is not None else None
        if place is not None:
            return self.backgrounds[place]
        allowed = self._pictures.allowed(source, spectrum)
        if not len(allowed):
            return None
        scores = np.asarray(self.similarity.scores(scene), np.float64)
        if len(scores) != len(self.backgrounds):
            raise CCDiffError(f"{len(scores)} scores for {len(self.backgrounds)} backgrounds: the index is of another set")
        scores = scores[allowed]
        if top_k > 1:  # pictures with the same caption tie: without this the first files would always win
            scores = scores + rng.random(len(scores)) * TIE
        if len(scores) > 8 * top_k:  # sorting them all takes longer than all else
            near = np.flatnonzero(scores >= np.partition(scores, len(scores) - top_k)[len(scores) - top_k])
            allowed, scores = allowed[near], scores[near]
        best = np.argsort(-scores, kind="stable")[:top_k]
        return self.backgrounds[int(allowed[best[int(rng.integers(len(best)))]])]

    def _by_tree(
        self, ranked: Iterator[tuple[float, np.ndarray]], rng: np.random.Generator, top_k: int, source: str, spectrum: str
    ) -> int | None:
        """The place of the background that looking at all of them would draw, from the best ones alone; None where these are too few."""
        places: list[int] = []
        scores: list[float] = []
        last = -math.inf
        for score, group in ranked:
            if score < last - TIE:
                break
            mine = [p for p in group.tolist() if self._pictures.has(p, source, spectrum)]
            places += mine
            scores += [score] * len(mine)
            if last == -math.inf and len(places) >= top_k:
                last = score
        else:
            return None
        order = np.argsort(places)
        chosen, values = np.array(places)[order], np.array(scores)[order]
        if top_k > 1:
            ranks, count = self._pictures.ranks(chosen, source, spectrum)
            values = values + _numbers(rng, ranks, count) * TIE
        best = np.argsort(-values, kind="stable")[:top_k]
        return int(chosen[best[int(rng.integers(len(best)))]])


class _Pool:
    """References by spectrum and source: those of a scene are not of its source, and of its spectrum where any such are left."""

    def __init__(self, references: Sequence[Reference]) -> None:
        self._sources, self._spectra = [r.source for r in references], [r.spectrum for r in references]
        by_spectrum: dict[str, list[int]] = {}
        by_source: dict[str, list[int]] = {}
        for place, reference in enumerate(references):
            by_spectrum.setdefault(reference.spectrum, []).append(place)
            by_source.setdefault(reference.source, []).append(place)
        self._all = np.arange(len(references))
        self._by_spectrum = {name: np.array(places) for name, places in by_spectrum.items()}
        self._by_source = {name: np.array(places) for name, places in by_source.items()}

    def _own(self, source: str, spectrum: str) -> tuple[np.ndarray, np.ndarray]:
        """The places of the scene's spectrum, and those among them that are of its source; all places where nothing else is left."""
        own = self._by_source.get(source, self._all[:0])
        pool = self._by_spectrum.get(spectrum, self._all[:0])
        if len(pool) < len(self._all):
            of_both = own[[self._spectra[p] == spectrum for p in own.tolist()]] if len(own) else own
            return (pool, of_both) if len(pool) > len(of_both) else (self._all, own)
        return pool, own

    def allowed(self, source: str, spectrum: str, most: int | None = None) -> np.ndarray:
        """The places of a scene's references, in order, at most so many."""
        pool, own = self._own(source, spectrum)
        if most is not None:
            pool = pool[: most + len(own)]
        if len(own) > 8:
            pool = pool[~np.isin(pool, own)]
        else:  # which is slow on small arrays
            for place in own.tolist():
                pool = pool[pool != place]
        return pool[:most]

    def has(self, place: int, source: str, spectrum: str) -> bool:
        """Whether a place is among :meth:`allowed`."""
        return self._sources[place] != source and (self._spectra[place] == spectrum or self._own(source, spectrum)[0] is self._all)

    def ranks(self, places: np.ndarray, source: str, spectrum: str) -> tuple[np.ndarray, int]:
        """Where allowed places stand among :meth:`allowed`, and how many these are."""
        pool, own = self._own(source, spectrum)
        return np.searchsorted(pool, places) - np.searchsorted(own, places), len(pool) - len(own)


def _numbers(rng: np.random.Generator, ranks: np.ndarray, count: int) -> np.ndarray:
    """``rng.random(count)[ranks]``, ranks ascending; of few ranks, without drawing the others."""
    if 500 * len(ranks) > count:
        return rng.random(count)[ranks]
    found, at = [], 0
    for rank in ranks.tolist():
        rng.bit_generator.advance(rank - at)  # type: ignore[attr-defined]
        found.append(rng.random())
        at = rank + 1
    rng.bit_generator.advance(count - at)  # type: ignore[attr-defined]
    return np.array(found)


def reference_window(instance: Instance, width: int, height: int) -> tuple[int, int, int, int]:
    """The whole pixels (x1 y1 x2 y2) of an object's HBB in its picture: at least one, all inside."""
    x1, y1 = max(0, math.floor(instance.hbb[0])), max(0, math.floor(instance.hbb[1]))
    x2 = min(width, max(x1 + 1, math.ceil(instance.hbb[2])))
    y2 = min(height, max(y1 + 1, math.ceil(instance.hbb[3])))
    return min(x1, x2 - 1), min(y1, y2 - 1), x2, y2


MIN_SHARE = 0.1
"""A model's mask that covers less of its box has missed the object: the whole box is better."""


def cut_reference(
    crop: Image.Image, corner: tuple[int, int], instance: Instance, scale: float, *, masks: str = "coco", mask: np.ndarray | None = None
) -> tuple[bytes, dict[str, Any]]:
    """The crop of an object at its HBB as RGBA PNG bytes, and its record for the bank.

    Args:
        crop: the pixels of :func:`reference_window`, RGB.
        corner: its top left in the picture.
        scale: prepared pixels per source pixel.
        masks: "coco": the object's own mask, where it has one; "none": no mask; else the name of the model that made ``mask``.
        mask: (h, w) bool, of the crop's size.
    """
    x1, y1 = corner
    alpha, origin = Image.new("L", crop.size, 255), "none"
    if masks == "coco" and instance.mask:
        drawn = Image.new("L", crop.size, 0)
        for outline in instance.mask:
            points = [(x - x1, y - y1) for x, y in zip(outline[0::2], outline[1::2], strict=True)]
            ImageDraw.Draw(drawn).polygon(points, fill=255)
        if drawn.getbbox() is not None:
            alpha, origin = drawn, masks
    elif mask is not None and mask.mean() >= MIN_SHARE:
        alpha, origin = Image.fromarray(mask.astype(np.uint8) * 255), masks
    if scale != 1.0:
        size = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
        crop, alpha = (part.resize(size, Image.Resampling.BICUBIC) for part in (crop, alpha))
    crop.putalpha(alpha)
    stream = io.BytesIO()
    crop.save(stream, "PNG", compress_level=3)
    record = {
        "class": instance.category,
        "width": crop.width,
        "height": crop.height,
        "aspect_ratio": round(crop.width / crop.height, 4),
        "mask": origin,
        "difficult": instance.difficult,
    }
    return stream.getvalue(), record


def write_bank(root: str | Path, instances: Sequence[dict[str, Any]], scenes: Iterable[Scene]) -> None:
    """Write ``references.json``: the crops' records and the train pictures that can serve as background."""
    backgrounds = [f"{IMAGES}/{s.file_name}" for s in scenes if s.split == "train"]
    write_json(Path(root) / REFERENCES / BANK, {"instances": list(instances), "backgrounds": backgrounds})
