"""CLIP-G and CLIP-L: how well a picture fits its caption, and every object's crop its class name.

Notable: as published the model is OpenCLIP's ViT-L/14, laion2b_s32b_b82k, a figure is the mean cosine times 100, and a crop is the HBB;
``crops="obb"`` turns the object upright and crops its oriented box, which leaves out the neighbours of a slanted object.  Another model or
another crop gives figures that must not be compared with the published ones, so both are part of the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image

from ..detectors.backbones import torch_device
from ..errors import CCDiffError
from ..files import content_key, sha256_file
from ..geometry import corners_to_le90, fitted_corners, le90_to_corners
from ..scene import Scene
from .features import EXTRA, Column, read_scene, read_state

Crops = Literal["hbb", "obb"]
PUBLISHED_MODEL = "ViT-L-14"
PUBLISHED_WEIGHTS = "laion2b_s32b_b82k"
CONTEXT = 77


@dataclass(frozen=True)
class Clip:
    """A CLIP model: ``name`` as it stands in tables, ``key`` of its weights, encoders to unit rows (N, D), and ``tokens`` of a text."""

    name: str
    key: str
    pictures: Callable[[Sequence[Image.Image]], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray]
    tokens: Callable[[str], int]


def find_clip(text: str, device: str = "auto") -> Clip:
    """The model of an option: ``MODEL@FILE`` (an OpenCLIP architecture and its weights), or ``MODEL@TAG`` to download.

    Raises:
        CCDiffError: not installed, an unknown model, weights that are missing or do not fit.
    """
    try:
        import open_clip
    except ImportError as error:
        raise CCDiffError("open_clip is not installed", fix=EXTRA) from error
    name, _, weights = text.partition("@")
    hint = f"--clip {PUBLISHED_MODEL}@FILE with OpenCLIP's weights, or --clip {PUBLISHED_MODEL}@{PUBLISHED_WEIGHTS} to download them"
    if name not in open_clip.list_models():
        raise CCDiffError(f"OpenCLIP does not know the model {name!r}", fix=hint)
    if not weights:
        raise CCDiffError(f"--clip {text} names no weights", fix=hint)
    where = torch_device(device, "--device auto or cpu")
    path = Path(weights).expanduser()
    try:
        if weights in open_clip.list_pretrained_tags_by_model(name):
            model, _, prepare = open_clip.create_model_and_transforms(name, pretrained=weights, weights_only=True)
            tag, key = weights, content_key([name, weights])
        else:
            if path.is_dir():
                path = _only_file(path, hint)
            state = read_state(path, f"OpenCLIP's {name}", hint)
            model, _, prepare = open_clip.create_model_and_transforms(name, pretrained=None)
            model.load_state_dict(state)
            named = str(path.absolute()).lower().replace("-", "_")  # a hub folder names its weights, its file does not
            tag = PUBLISHED_WEIGHTS if PUBLISHED_WEIGHTS in named else path.stem
            key = content_key([name, sha256_file(path)])
    except CCDiffError:
        raise
    except Exception as error:  # no network, or weights of another model
        raise CCDiffError(f"cannot load OpenCLIP's {name} with {weights}: {str(error).splitlines()[0]}", fix=hint) from error
    model.to(where).eval()
    tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def pictures(some: Sequence[Image.Image]) -> np.ndarray:
        features = model.encode_image(torch.stack([prepare(p) for p in some]).to(where), normalize=True)
        return features.float().cpu().numpy()

    @torch.no_grad()
    def texts(some: Sequence[str]) -> np.ndarray:
        return model.encode_text(tokenizer(list(some)).to(where), normalize=True).float().cpu().numpy()

    def tokens(some: str) -> int:
        return len(tokenizer.encode(some)) + 2 if hasattr(tokenizer, "encode") else 0

    return Clip(f"{name} {tag}", key, pictures, texts, tokens)


CLIP_ROWS = {"global": Column(gaps=True), "local": Column(counted="objects"), "objects": Column(), "lost": Column()}


def clip_rows(scenes: Sequence[Scene], clip: Clip, crops: Crops, batch: int = 32) -> dict[str, np.ndarray]:
    """Cosines times 100.

    Returns:
        ``global`` (N,): of picture and caption, NaN without a caption; ``local`` (M,): of every crop and its class name; ``objects`` (N,):
        crops of each picture; ``lost`` (N,): objects of which less than a pixel lies in the picture.
    """
    names = sorted({c for s in scenes for c in s.categories()})
    known = dict(zip(names, clip.texts(names), strict=True)) if names else {}
    result: dict[str, list[Any]] = {"global": [], "local": [], "objects": [], "lost": []}
    for start in range(0, len(scenes), batch):
        some = scenes[start : start + batch]
        images = [read_scene(s) for s in some]
        whole, captions = clip.pictures(images), clip.texts([s.caption for s in some])
        cosines = 100 * (whole * captions).sum(axis=1)
        result["global"] += [float(v) if s.caption else np.nan for s, v in zip(some, cosines, strict=True)]
        for scene, image in zip(some, images, strict=True):
            cut = [(i.category, crop(image, i.hbb if crops == "hbb" else i.corners)) for i in scene.instances]
            kept = [(name, piece) for name, piece in cut if piece is not None]
            for first in range(0, len(kept), batch):
                pieces = kept[first : first + batch]
                features = clip.pictures([piece for _, piece in pieces])
                result["local"] += [float(100 * f @ known[name]) for f, (name, _) in zip(features, pieces, strict=True)]
            result["objects"].append(len(kept))
            result["lost"].append(len(cut) - len(kept))
    return {name: np.array(values, np.float32 if name in ("global", "local") else np.int64) for name, values in result.items()}


def crop(image: Image.Image, box: Sequence[float]) -> Image.Image | None:
    """The part of a picture in an HBB, or upright in an oriented box (its long side along x); None under a pixel.

    Of an oriented box that reaches beyond the picture it is the smallest rectangle at its angle around the part inside.
    """
    if len(box) == 4:
        x1, y1 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
        x2, y2 = min(image.width, int(np.ceil(box[2]))), min(image.height, int(np.ceil(box[3])))
        return image.crop((x1, y1, x2, y2)) if x2 > x1 and y2 > y1 else None
    upright = corners_to_le90(fitted_corners(tuple(box), (0, 0, image.width, image.height)))  # type: ignore[arg-type]
    width, height = round(upright[2]), round(upright[3])
    if width < 1 or height < 1:
        return None
    corners = np.array(le90_to_corners(upright), np.float32).reshape(4, 2)
    if (corners < 0).all(axis=0).any() or (corners[:, 0] > image.width).all() or (corners[:, 1] > image.height).all():
        return None
    target = np.array([[0, 0], [width, 0], [width, height]], np.float32)
    move = cv2.getAffineTransform(corners[:3] - 0.5, target - 0.5)  # OpenCV counts from the middle of the first pixel
    turned = cv2.warpAffine(np.asarray(image), move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Image.fromarray(turned)


def _only_file(folder: Path, hint: str) -> Path:
    for pattern in ("open_clip_model.safetensors", "*.safetensors", "*.bin", "*.pt"):
        if len(found := sorted(folder.glob(pattern))) == 1:
            return found[0]
    raise CCDiffError("expected one file of weights in the folder", where=folder, fix=hint)
