"""Where parts of models come from: a folder or a name of the hub, looked at before anything of it is loaded.

    found = check_model({"dinov2": Dinov2Model}, Source("facebook/dinov2-large", where="recipe key encoders.image_source"), fits=IMAGE)
    found.line()   # for people
    found.load()   # the weights, fetched only now

Notable here:

* Class, and names and shapes of all tensors, are read off ``config.json`` and the headers of the safetensors files: the libraries would
  fill what is missing with random numbers and go on.  transformers renames as it reads, so it is shown tensors without memory of the
  same names and shapes, and asked what it misses.
* Of a hub name only the listing, the small files and the headers are fetched.  Whether the hub can be reached is asked once, without
  tries again; where it cannot, its cache counts as a folder.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from .errors import CCDiffError, said_by
from .files import parse_json, read_bytes

SECONDS = 5.0
"""How long the hub may take to say that it is there."""

Shapes = dict[str, tuple[int, ...]]
_SMALL = (".json", ".txt", ".model")
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention of autoencoders that were written before 2023, as Stable Diffusion 1's, and what diffusers reads it as."""


@dataclass(frozen=True)
class Source:
    """Where a part lies, as it was given.

    Attributes:
        name: a folder, or OWNER/NAME of the hub, with @REVISION behind it (branch, tag, commit) where it is not the newest.
        where: the option or recipe key that gave it; None: the folder says enough.
        subfolder: of the part in it.
        variant: of the weights' files: "fp16" for ``model.fp16.safetensors``; None: those without, or the only ones there.
        key_of_variant: what to set for another.
    """

    name: str
    where: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    key_of_variant: str | None = None


class Place(Protocol):
    """What can be asked of a folder, here or on the hub; names are relative, with ``/``."""

    shown: str

    def names(self, folder: str) -> list[str]: ...

    def header(self, name: str) -> tuple[Shapes, set[str]]: ...

    def fetch(self, names: Sequence[str]) -> Path: ...


class _Folder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.shown = root, str(root)

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, and of its folders with ``/`` behind; [] where there is none."""
        path = self.root / folder
        return sorted(f"{p.name}/" if p.is_dir() else p.name for p in path.iterdir()) if path.is_dir() else []

    def header(self, name: str) -> tuple[Shapes, set[str]]:
        """Shapes of the tensors of a safetensors file, and the names of those that are no floats."""
        with safe_open(self.root / name, "pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no dictionary
            return _header({key: (tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()})

    def fetch(self, names: Sequence[str]) -> Path:
        """The folder, with these files in it."""
        return self.root


class _Hub:
    """A repository of the hub at a revision; what is fetched is kept under its name, to be found without the hub."""

    def __init__(self, repository: str, revision: str | None, files: Sequence[str], shown: str) -> None:
        self.repository, self.revision, self.files, self.shown = repository, revision, files, shown

    def names(self, folder: str) -> list[str]:
        below = [PurePosixPath(name).relative_to(folder) for name in self.files if PurePosixPath(name).is_relative_to(folder)]
        return sorted({f"{path.parts[0]}/" if len(path.parts) > 1 else str(path) for path in below})

    def header(self, name: str) -> tuple[Shapes, set[str]]:
        from huggingface_hub import HfApi

        told = HfApi().parse_safetensors_file_metadata(self.repository, name, revision=self.revision)
        return _header({key: (tuple(tensor.shape), str(tensor.dtype)) for key, tensor in told.tensors.items()})

    def fetch(self, names: Sequence[str]) -> Path:
        from huggingface_hub import hf_hub_download

        paths = [Path(hf_hub_download(self.repository, name, revision=self.revision)) for name in names]
        return paths[0].parents[len(PurePosixPath(names[0]).parts) - 1]


def _header(told: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[Shapes, set[str]]:
    return {key: shape for key, (shape, _) in told.items()}, {key for key, (_, kind) in told.items() if not re.match("B?F", kind)}


@functools.cache
def _unreachable(endpoint: str) -> str | None:
    """Why the hub cannot be asked; None: it can."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(endpoint, timeout=SECONDS)
    except Exception as error:  # of whatever library talks to the network
        return said_by(error, 100)
    return None


def open_place(source: Source) -> Place:
    """The folder, or what of the hub was meant.

    Raises:
        CCDiffError: there is none; it is on the hub, which cannot be reached or does not give it.
    """
    folder = Path(source.name).expanduser()
    if folder.is_dir():
        return _Folder(folder)
    name, _, revision = source.name.partition("@")
    # "runs/clip" has the form of a hub name: it counts as a folder where there is a folder "runs"
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(name).parent.is_dir():
        raise CCDiffError(
            f"no such folder, and not a hub name (OWNER/NAME): {source.name!r}", where=source.where, fix="give the path of a folder"
        )
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if (reason := _unreachable(constants.ENDPOINT)) is not None:
        try:
            return _Folder(Path(snapshot_download(name, revision=revision or None, local_files_only=True)))
        except Exception as error:
            raise CCDiffError(
                f"{source.name!r} is no folder here, and the hub cannot be reached ({reason})",
                where=source.where,
                fix="copy the folder here and name it by its path, or run once where the hub can be reached: what is fetched is kept",
            ) from error
    try:
        told = HfApi().model_info(name, revision=revision or None, timeout=4 * SECONDS)
    except RevisionNotFoundError as error:
        fix = "give a branch, a tag or a commit that its page on the hub shows"
        raise CCDiffError(f"{name!r} has no revision {revision!r}", where=source.where, fix=fix) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        what = "wants its terms accepted first" if isinstance(error, GatedRepoError) else "is not on the hub, or private"
        fix = "check the name; accept the terms on its page; then `hf auth login`, or HF_TOKEN in the environment"
        raise CCDiffError(f"{name!r} {what}", where=source.where, fix=fix) from error
    except Exception as error:
        raise CCDiffError(
            f"the hub does not tell of {name!r}: {said_by(error)}", where=source.where, fix="try again, or copy it"
        ) from error
    return _Hub(name, revision or None, [entry.rfilename for entry in told.siblings or ()], source.name)


@dataclass(frozen=True)
class Found:
    """A part that was looked at and fits.

    Attributes:
        config: what its configuration says; {} of a tokenizer or a processor.
        files: of its weights, seen from the place.
        variant: of these; ``parameters``: how many numbers they hold.
    """

    source: Source
    kind: Any
    place: Place
    config: Mapping[str, Any]
    files: tuple[str, ...] = ()
    variant: str | None = None
    parameters: int = 0

    def line(self) -> str:
        """For people."""
        weights = f", {self.parameters / 1e6:,.1f} M numbers" if self.parameters else ""
        variant = f", variant {self.variant}" if self.variant else ""
        return f"{self.kind.__name__} of {_shown(self.source, self.place)}{weights}{variant}"

    def load(self, **options: Any) -> Any:
        """The part.

        Raises:
            CCDiffError: its library cannot load it.
        """
        subfolder = {"subfolder": self.source.subfolder} if self.source.subfolder else {}
        if self.files:
            options = {"use_safetensors": True, "variant": self.variant, **options}
        try:
            with quiet_libraries():
                root = self.place.fetch([*_small(self.place, self.source), *self.files])
                return self.kind.from_pretrained(str(root), **subfolder, **options)
        except Exception as error:  # the libraries raise of nearly every kind
            raise _error(self.source, self.place, f"cannot load a {self.kind.__name__}: {said_by(error)}", "copy it again") from error


def read_settings(place: Place, name: str) -> dict[str, Any]:
    """A small JSON file of a place.

    Raises:
        CCDiffError: it is damaged, or no object.
    """
    found = parse_json(read_bytes(place.fetch([name]) / name), where=name, constants=True)
    if not isinstance(found, dict):
        raise CCDiffError("not a JSON object", where=name, fix="copy it again")
    return found


def check_model(
    kinds: Mapping[str, Any], source: Source, *, fits: str, spare: Sequence[str] = (), own: bool = False, place: Place | None = None
) -> Found:
    """A model whose class is one of those asked for, and whose files hold every weight of it and no other.

    Args:
        kinds: what a configuration may call it (``_class_name`` of diffusers, ``model_type`` of transformers) -> the class to load.
        fits: what would, for the message.
        spare: beginnings of the names of tensors that may be there and are not needed.
        own: the folder is a generator of ours, whose networks hold more than a plain one: surplus tensors and another class of the same
            library are no error.

    Raises:
        CCDiffError: naming what was found.
    """
    place = place or open_place(source)

    def wrong(what: str, fix: str = fits) -> CCDiffError:
        return _error(source, place, what, fix)

    folder = source.subfolder or ""
    there = place.names(folder)
    if "config.json" not in there:
        raise wrong(f"no config.json there{_listed(there or place.names(''), folder if there else '')}", f"give {fits}")
    with _wrapped(wrong):
        config = read_settings(place, _joined(folder, "config.json"))
    named = config.get("_class_name") or config.get("model_type") or "nothing that says its class"
    first = next(iter(kinds.values()))
    cls = kinds.get(str(named), first if own else None)
    if cls is None:
        raise wrong(f"found {named}, expected {first.__name__}", f"give {fits}")
    variant, files = _weights(cls, place, folder, source, wrong)
    given: Shapes = {}
    whole: set[str] = set()
    with _wrapped(wrong):
        for name in files:
            shapes, numbers = place.header(name)
            given |= shapes
            whole |= numbers
    with _wrapped(wrong):
        if issubclass(cls, PreTrainedModel):
            made = cls.config_class.from_pretrained(str(place.fetch(_small(place, source)) / folder))
            config, (missing, surplus, odd) = made.to_dict(), _transformers(cls, made, given)
        else:
            missing, surplus, odd = _diffusers(cls, config, given)
    surplus = [] if own else [key for key in surplus if not key.startswith(tuple(spare))]
    kinds_of_number = [key for key in given if key in whole and key.endswith((".weight", ".bias"))]
    lists = (("missing", missing), ("surplus", surplus), ("of another shape", odd), ("no floats", kinds_of_number))
    if said := [f"{len(keys)} {title}, first {keys[0]}" for title, keys in lists if keys]:
        raise wrong(f"the {len(given)} tensors are not those of its {cls.__name__}: {'; '.join(said)}", f"copy it again, or give {fits}")
    numbers_in = sum(math.prod(shape) for shape in given.values())
    return Found(source, cls, place, config, tuple(files), variant, numbers_in)


def check_files(kind: Any, source: Source, needed: Sequence[Sequence[str]], *, fits: str, place: Place | None = None) -> Found:
    """A tokenizer or a processor, which is small enough to be loaded to look at it.

    Args:
        needed: sets of file names, of which one must be there.

    Raises:
        CCDiffError: no such files, or its library cannot read them.
    """
    place = place or open_place(source)
    folder = source.subfolder or ""
    there = place.names(folder)
    if not any(set(names) <= set(there) for names in needed):
        wanted = " or ".join(" and ".join(names) for names in needed)
        listed = _listed(there or place.names(""), folder if there else "")
        raise _error(source, place, f"no {wanted} there{listed}", f"give {fits}")
    found = Found(source, kind, place, {})
    found.load()
    return found


def _weights(cls: Any, place: Place, folder: str, source: Source, wrong: Callable[..., CCDiffError]) -> tuple[str | None, list[str]]:
    """The variant and the files of the weights: one, or the parts that an index names."""
    stem = "model" if issubclass(cls, PreTrainedModel) else "diffusion_pytorch_model"
    there = place.names(folder)
    variants: dict[str | None, str] = {}
    for name in there:
        if found := re.fullmatch(rf"{stem}(?:\.(\w+))?\.safetensors", name):
            variants[found[1]] = name
        elif found := re.fullmatch(rf"{stem}\.safetensors\.index(?:\.(\w+))?\.json", name):
            variants.setdefault(found[1], name)
    if not variants:
        pickles = [name for name in there if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
        if pickles:
            raise wrong(
                f"its weights are there as {pickles[0]} only, which could run programs and is not opened",
                "give a copy that has .safetensors files, or make one: load it where it can be trusted, and `save_pretrained(FOLDER)`",
            )
        raise wrong(f"no {stem}.safetensors there{_listed(there, folder)}")
    wanted = source.variant
    if wanted is None and None not in variants and len(variants) == 1:
        (wanted,) = variants
    if wanted not in variants:
        names = ", ".join(str(name) for name in variants if name)
        what = f"no weights of the variant {wanted!r}" if wanted else "no weights without a variant"
        fix = f"set {source.key_of_variant}" if source.key_of_variant else "give a folder with one of them alone"
        raise wrong(f"{what} there, but {names or 'those without one'}", f"{fix} to one of them" if source.key_of_variant else fix)
    name = variants[wanted]
    if not name.endswith(".json"):
        return wanted, [_joined(folder, name)]
    with _wrapped(wrong):
        index = read_settings(place, _joined(folder, name))
        parts = sorted(set(index["weight_map"].values()))
    if lacking := [part for part in parts if part not in there]:
        raise wrong(f"{len(lacking)} of {len(parts)} parts of its weights are missing, first {lacking[0]}", "copy it again")
    return wanted, [_joined(folder, part) for part in parts]


Compared = tuple[list[str], list[str], list[str]]
"""Names of tensors that are missing and surplus, and those of another shape, with both."""


def _transformers(cls: Any, config: Any, given: Shapes) -> Compared:
    empty = {key: torch.zeros(()).expand(shape) for key, shape in given.items()}
    with quiet_libraries():
        _, told = cls.from_pretrained(
            None, config=config, state_dict=empty, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    odd = [f"{key} {tuple(found)} instead of {tuple(wanted)}" for key, found, wanted in told["mismatched_keys"]]
    return sorted(told["missing_keys"]), sorted(told["unexpected_keys"]), sorted(odd)


def _diffusers(cls: Any, config: Mapping[str, Any], given: Shapes) -> Compared:
    with quiet_libraries(), torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in cls.from_config(dict(config)).state_dict().items()}
    given = {_renamed(key, expected): shape for key, shape in given.items()}
    odd = [f"{key} {given[key]} instead of {shape}" for key, shape in expected.items() if key in given and given[key] != shape]
    return sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys()), sorted(odd)


def _renamed(key: str, expected: Mapping[str, Any]) -> str:
    head, _, last = key.rpartition(".")
    path, _, name = head.rpartition(".")
    new = f"{path}.{_RENAMED.get(name, name)}.{last}"
    return new if key not in expected and new in expected else key


def _small(place: Place, source: Source) -> list[str]:
    folder = source.subfolder or ""
    return [_joined(folder, name) for name in place.names(folder) if name.endswith(_SMALL)]


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _shown(source: Source, place: Place) -> str:
    return f"{place.shown}/{source.subfolder}" if source.subfolder else place.shown


def _error(source: Source, place: Place, what: str, fix: str) -> CCDiffError:
    shown = _shown(source, place)
    return CCDiffError(f"{shown}: {what}", where=source.where, fix=fix) if source.where else CCDiffError(what, where=shown, fix=fix)


def _listed(names: Sequence[str], folder: str) -> str:
    if not names:
        return ", and nothing else"
    return f"; {f'{folder}/ holds' if folder else 'the folder holds'} {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"


@contextmanager
def _wrapped(wrong: Callable[..., CCDiffError]) -> Iterator[None]:
    """What reads a file may raise of nearly every kind."""
    try:
        yield
    except CCDiffError as error:
        raise wrong(f"{error.where}: {error.what}" if error.where else error.what, "copy it again") from error
    except SafetensorError as error:
        raise wrong(f"not a whole safetensors file: {said_by(error)}", "copy it again") from error
    except Exception as error:
        raise wrong(said_by(error), "copy it again") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars and no report of missing weights: those are errors of ours."""
    from diffusers.utils import logging as diffusers_logging

    levels = transformers_logging.get_verbosity(), diffusers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    diffusers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        diffusers_logging.set_verbosity(levels[1])
