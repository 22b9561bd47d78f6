"""The generator folder: a diffusers pipeline plus ``ccdiff.json``, which is written last and says what the generator is.

Light on purpose (no torch): plans and dry runs read it without loading a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from .errors import CCDiffError
from .files import content_key, parse_json, read_bytes, read_json, sha256_file
from .stored import ClassName, Count, Digest, FileName, Flag, Number, Pixels, Stored, Text, checked

GENERATOR_FILE = "ccdiff.json"
SHIPPED = "tiny"
"""What the shipped generator is called where a generator's folder may be given."""

INDEX = "model_index.json"
IN_PIPELINE = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "negative_prompt": "negative_prompt"}
"""Keys of a recipe's ``sampling`` that a pipeline keeps in its configuration -> their names there."""
_FIX = "train or import the generator again, or copy it again"


class Sampling(Stored):
    """What of a recipe's sampling a synthesis uses."""

    steps: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = None
    guidance_scale: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=1, lt=1000)] | None = None
    negative_prompt: Text | None = None
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    channels_last: Flag | None = None
    compile: Flag | None = None


class Denoiser(Stored):
    """What of a recipe's denoiser a synthesis uses."""

    top_k: Annotated[int, Field(strict=True, ge=1, le=10**6)] | None = None


class UsedRecipe(Stored):
    """What of a recipe is used after training."""

    name: Text = ""
    method: Text | None = None
    caption_style: Literal["plain", "short", "measured", "phrases", "quadrants", "stored"] = "plain"
    retrieval: Text = "words"
    sampling: Sampling = Sampling()
    denoiser: Denoiser = Denoiser()


class TrainedOn(Stored):
    """The set that a generator was trained on."""

    key: Text | None = None
    sources: list[Text] | None = None


class Generator(Stored):
    """``ccdiff.json``."""

    picture_size: Pixels
    classes: list[ClassName]
    identity: Text = ""
    method: Text | None = None
    recipe: UsedRecipe | None = None
    data: TrainedOn | None = None
    steps: Count | None = None
    final_loss: Number | None = None
    files: dict[FileName, Digest] | None = None


CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {"ccdiff_cli.models.autoencoder": ("PatchAutoencoder", "TinyAutoencoder"), "diffusers": ("AutoencoderKL",)},
    "text_encoder": {"transformers": ("CLIPTextModel",)},
    "tokenizer": {
        "transformers": ("PreTrainedTokenizerFast", "TokenizersBackend", "CLIPTokenizer", "CLIPTokenizerFast"),
    },
    "scheduler": {
        "diffusers": (
            "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler",
        ),
    },
    "image_encoder": {"transformers": ("Dinov2Model",)},
    "feature_extractor": {
        "transformers": (
            "BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil", "CLIPImageProcessor", "CLIPImageProcessorFast",
            "CLIPImageProcessorPil",
        ),
    },
}  # fmt: skip
"""Part -> library -> the classes that a generator folder may name, of the parts that methods share: no other is ever imported."""


def shipped_generator() -> Path:
    """The folder of the tiny model that comes with the package."""
    return Path(__file__).parent / "weights" / SHIPPED


def generator_folder(name: str) -> Path:
    """A generator's folder by its path, or the shipped model by its name."""
    return shipped_generator() if name == SHIPPED else Path(name)


def read_generator(folder: str | Path) -> dict[str, Any]:
    """What a generator folder says of itself.

    Raises:
        CCDiffError: no such folder, an unfinished training, a broken ``ccdiff.json``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CCDiffError("no such generator folder", where=folder, fix="give the folder that `ccdiff train --out` wrote")
    path = folder / GENERATOR_FILE
    if not path.is_file():
        if (folder / "train").is_dir():
            raise CCDiffError("the training is unfinished", where=folder, fix="run the same `ccdiff train` command again: it resumes")
        raise CCDiffError(
            f"not a generator folder: there is no {GENERATOR_FILE}", where=folder, fix="give the folder that `ccdiff train --out` wrote"
        )
    description: dict[str, Any] = read_json(path)
    if isinstance(description, dict) and not {"picture_size", "classes"} <= description.keys():
        raise CCDiffError("the generator's description lacks its picture size or its classes", where=path, fix=_FIX)
    generator: Generator = checked(Generator, description, where=path, fix=_FIX)
    if len(set(generator.classes)) != len(generator.classes):
        raise CCDiffError("classes: a name stands there twice", where=path, fix=_FIX)
    return description


def check_index(folder: str | Path, parts: Mapping[str, Mapping[str, tuple[str, ...]]] = CLASSES, optional: Sequence[str] = ()) -> None:
    """Look at ``model_index.json`` and the parts' configurations before any library does.

    Args:
        parts: what the generator's method has, as :data:`CLASSES`; ``optional``: those that may be missing.

    Raises:
        CCDiffError: they are missing or broken, or name a class that is none of these.
    """
    folder = Path(folder)
    path = folder / INDEX
    index: dict[str, Any] = checked(dict[str, JsonValue], read_json(path), where=path, fix=_FIX)
    for part, known in parts.items():
        named = index.get(part)
        if part in optional and named in (None, [None, None]):
            continue
        pair: tuple[str, str] = checked(tuple[Text, Text], named, where=f"{path}: {part}", fix=_FIX)
        if pair[1] not in known.get(pair[0], ()):
            expected = ", ".join(name for names in known.values() for name in names)
            raise CCDiffError(
                f"{part}: {pair[1]} of {pair[0]} is no class that generators have (expected {expected})", where=path, fix=_FIX
            )
        if not (folder / part).is_dir():
            raise CCDiffError(f"the generator's part {part} is missing", where=folder, fix=_FIX)
        for configuration in sorted((folder / part).glob("*.json")):
            if configuration.name != "tokenizer.json" and "index" not in configuration.name:
                value = parse_json(read_bytes(configuration), where=configuration, constants=True)
                checked(dict[str, JsonValue], value, where=configuration, fix=_FIX)
    for name, value in index.items():
        if isinstance(value, list) and name not in parts:
            raise CCDiffError(f"{name}: no part that generators have", where=path, fix=_FIX)


def part_hashes(folder: str | Path) -> dict[str, str]:
    """SHA-256 of the files that a generator is loaded from, but ``ccdiff.json``: what training keeps beside them does not count."""
    folder, hashes = Path(folder), {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        ours = name.parts[0] != "train" and not any(part.startswith(".") for part in name.parts)
        if ours and path.suffix in (".json", ".safetensors", ".txt", ".model") and path.is_file():
            hashes[name.as_posix()] = sha256_file(path)
    return hashes


def generator_key(folder: str | Path) -> str:
    """A key of the files that a generator is loaded from: what training keeps beside them, and texts for people, do not count.

    Raises:
        CCDiffError: files are not those that the generator was finished with.
    """
    folder = Path(folder)
    hashes = part_hashes(folder)
    if wrong := changed_files(folder, hashes):
        raise CCDiffError(
            f"the generator is not as it was finished: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
            where=folder,
            fix="run the same `ccdiff train` again (it makes again what is lost), or copy the generator again",
        )
    return content_key(hashes)


def changed_files(folder: Path, hashes: dict[str, str] | None = None) -> list[str]:
    """What is missing, changed or too much beside ``ccdiff.json``; [] for a generator of a version that kept no hashes."""
    known = read_generator(folder).get("files") if (folder / GENERATOR_FILE).is_file() else None
    if known is None:
        return []
    found = {name: digest for name, digest in (hashes or part_hashes(folder)).items() if name != GENERATOR_FILE}
    wrong = [f"{name} is {'missing' if name not in found else 'changed'}" for name in known if found.get(name) != known[name]]
    return wrong + [f"{name} does not belong to it" for name in found.keys() - known.keys()]
