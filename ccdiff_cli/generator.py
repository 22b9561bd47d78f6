"""The generator folder: a diffusers pipeline plus ``ccdiff.json``, which is written last and says what the generator is.

Light on purpose (no torch): plans and dry runs read it without loading a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import CCDiffError
from .files import content_key, read_json, sha256_file

GENERATOR_FILE = "ccdiff.json"
SHIPPED = "tiny"
"""What the shipped generator is called where a generator's folder may be given."""


def shipped_generator() -> Path:
    """The folder of the tiny model that comes with the package."""
    return Path(__file__).parent / "weights" / SHIPPED


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
    description = read_json(path)
    if (
        not isinstance(description, dict)
        or not isinstance(description.get("picture_size"), int)
        or not isinstance(description.get("classes"), list)
    ):
        raise CCDiffError(
            "the generator's description lacks its picture size or its classes", where=path, fix="train or import the generator again"
        )
    return description


def generator_key(folder: str | Path) -> str:
    """A key of the files that a generator is loaded from: what training keeps beside them, and texts for people, do not count."""
    folder = Path(folder)
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        ours = name.parts[0] != "train" and not any(part.startswith(".") for part in name.parts)
        if ours and path.suffix in (".json", ".safetensors", ".txt", ".model") and path.is_file():
            hashes[name.as_posix()] = sha256_file(path)
    return content_key(hashes)
