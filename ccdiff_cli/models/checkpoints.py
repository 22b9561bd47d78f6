"""What importing a released checkpoint needs, whatever its method: files read as tensors and nothing else, every key accounted for.

Notable here: a pickle is opened with ``weights_only=True``, so that it can hold tensors and nothing that runs; missing and surplus keys
are listed and refused.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedModel

from .. import __version__
from ..errors import CCDiffError, os_errors, said_by, visible
from ..files import TEMPORARY_PREFIX, content_key, write_json
from ..generator import GENERATOR_FILE, IN_PIPELINE
from ..pretrained import SPARE_OF_CLIP
from ..sources import Source, check_files, check_model
from .accounting import account_for
from .pipeline import ScenePipeline, check_finite

_WITHIN = {CLIPTextModel: ("clip",)}
"""What else a class can be loaded from: a whole CLIP holds its text encoder."""


def check_empty(out: Path) -> None:
    """Refuse a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CCDiffError("the output folder is not empty", where=out, fix="choose another --out folder")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CCDiffError: it is missing or broken.
    """
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the folder that holds it")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CCDiffError(f"not a safetensors file: {error}", where=path, fix="copy the file again") from error


def read_pickle(path: Path, *entries: str) -> dict[str, Tensor]:
    """The tensors of a file of torch, with ``module.`` taken off their names.

    Args:
        entries: what the tensors may lie under in a larger file ("state_dict", "model", ...), the first one found; what lies beside is not
            looked at.

    Raises:
        CCDiffError: no such file; it holds other objects than tensors, which could run programs.
    """
    if not path.is_file():
        raise CCDiffError("the file does not exist", where=path, fix="give the folder that holds it")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CCDiffError(
            f"not a file of tensors alone: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=path,
            fix="a checkpoint that needs other objects than tensors is not opened, because it could run programs",
        ) from error
    if isinstance(weights, Mapping):
        weights = next((weights[entry] for entry in entries if isinstance(weights.get(entry), Mapping)), weights)
    if not isinstance(weights, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise CCDiffError("expected a dictionary of names and tensors", where=path)
    for key, value in weights.items():
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            fix = "give the file as it was released"  # networks are made of the sizes of weights, so these are believed
            raise CCDiffError(f"{visible(key)[:100]} claims more numbers, {tuple(value.shape)}, than the file holds", where=path, fix=fix)
    return {key.removeprefix("module."): value for key, value in weights.items()}


@contextmanager
def odd_sizes(what: str, where: str | Path, fix: str) -> Iterator[None]:
    """Whatever goes wrong while a network is made of the sizes that a file's weights have says that the file is another.

    Args:
        what: what the file should be: "a LayoutDiffusion network".

    Raises:
        CCDiffError: in place of whatever it was.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise CCDiffError(f"not {what} (missing or odd: {visible(said_by(error, 200))})", where=where, fix=fix) from error


def numbered(weights: Mapping[str, Any], prefix: str) -> int:
    """How many parts ``PREFIX0.``, ``PREFIX1.``, ... there are, all of them.

    Raises:
        ValueError: one is missing.
    """
    found = {key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix)}
    if found != {str(k) for k in range(len(found))}:
        raise ValueError(f"{prefix}: parts that are not counted from 0 to {len(found) - 1}")
    return len(found)


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Load every weight, in the precision it is stored in.

    Raises:
        CCDiffError: listing missing and surplus keys and wrong shapes.
    """
    account_for(module.state_dict(), weights, where, "check that the checkpoint and the Stable Diffusion folder belong together")
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtypes.pop())
    module.load_state_dict(weights)
    module.eval()


def part(cls: Any, folder: Path, name: str = "", *, config_only: bool = False) -> Any:
    """One part of a diffusers or transformers folder; safetensors only.

    Raises:
        CCDiffError: it cannot be loaded, is of another class, or its tensors are not those of the class.
    """
    where = folder / name if name else folder
    fits = "a folder in the diffusers / transformers layout with safetensors weights"
    if not where.is_dir():
        raise CCDiffError("the folder does not exist", where=where, fix="give a folder in the diffusers / transformers layout")
    if config_only:
        try:
            return cls.from_config(cls.load_config(str(where)))
        except Exception as error:  # the library raises of nearly every kind
            raise CCDiffError(f"cannot read its configuration: {said_by(error)}", where=where, fix=fits) from error
    source = Source(str(where))
    if not issubclass(cls, nn.Module):
        return check_files(cls, source, ((),), fits=fits).load()
    named = (cls.config_class.model_type, *_WITHIN.get(cls, ())) if issubclass(cls, PreTrainedModel) else (cls.__name__,)
    return check_model(dict.fromkeys(named, cls), source, fits=fits, spare=SPARE_OF_CLIP).load()


def picture_size_of(pipe: ScenePipeline) -> int:
    """Side in pixels of the pictures that the UNet's configuration names."""
    sample = pipe.unet.config.sample_size
    return int(sample if isinstance(sample, int) else sample[0]) * pipe.vae_scale_factor


def imported(
    model: str, identity: Sequence[Any], picture_size: int, files: Mapping[str, str], *, unused: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """``ccdiff.json`` of a generator made of a released checkpoint: any class, until somebody says which.

    Args:
        identity: what makes it this generator and no other.
        files: name -> SHA-256 of the released files.
        unused: what of the checkpoint is not needed.
        more: what else is said of it under ``imported``.
    """
    return {
        "format": "ccdiff generator 1",
        "identity": content_key(identity),
        "picture_size": picture_size,
        "classes": [],
        "imported": {"model": model, **more, "files": dict(files)},
        "unused_keys": list(unused),
        "ccdiff": __version__,
    }


def write_generator(pipe: ScenePipeline, out: Path, description: dict[str, Any]) -> None:
    """The folder appears whole or not at all.

    Raises:
        CCDiffError: a weight is no number; the disk refuses.
    """
    check_finite(pipe, out, "give the released files as they were published")
    partial = out.with_name(TEMPORARY_PREFIX + out.name)
    with os_errors(out, "write the generator"):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if "method" in description:  # what a synthesis does unless told otherwise
                sampling = {key: pipe.config[name] for key, name in IN_PIPELINE.items()}
                description["recipe"] = {**description.get("recipe", {}), "sampling": sampling}
            pipe.save_pretrained(partial)
            write_json(partial / GENERATOR_FILE, description)
            if out.exists():
                out.rmdir()  # empty, as checked
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def checkpoint_file(path: Path, pattern: str) -> Path:
    """A released file, given itself or by the folder that holds it alone of its kind (``*.ckpt``)."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(pattern))
    if len(found) != 1:
        raise CCDiffError(f"{len(found)} files are called {pattern}, expected one", where=path, fix="give the file itself")
    return found[0]


def write_tensors(weights: Mapping[str, Any], target: Path, metadata: dict[str, str] | None = None) -> None:
    """A file of tensors alone, of safetensors (with its ``metadata``) or of torch by its name; it appears whole or not at all."""
    with os_errors(target, "write the checkpoint"):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(TEMPORARY_PREFIX + target.name)
        if target.suffix == ".safetensors":
            save_file(dict(weights), partial, metadata=metadata)
        else:
            torch.save(weights, partial)
        os.replace(partial, target)
