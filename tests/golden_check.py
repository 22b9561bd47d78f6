"""Run our modules on a golden file and print how far each output is from the expected one.

    python -m tests.golden_check FILE...

Exits with 1 when any relative error (norm of the difference over norm of the expected) is above 1e-5, 2 when a file cannot be read.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tests.golden import MODULES, part

LIMIT = 1e-5


def outputs(path: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our and the expected ``out.*`` tensors of a golden file, whichever method it is of."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    model = metadata["model"]
    if model not in MODULES:
        raise ValueError(f"no method is called {model!r}; there are {', '.join(MODULES)}")
    return importlib.import_module(f"tests.golden.{MODULES[model]}").outputs(metadata, tensors, **options), part(tensors, "out.")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the expected; the former alone where nothing but zeros is expected."""
    norm = float(expected.double().norm())
    return float((found.double() - expected.double()).norm()) / (norm or 1.0)


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m tests.golden_check FILE...", file=sys.stderr)
        return 2
    status = 0
    for argument in arguments:
        try:
            ours, expected = outputs(Path(argument))
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            print(f"{argument}: not a golden file that can be run: {error}", file=sys.stderr)
            status = 2
            continue
        print(argument)
        for name, tensor in sorted(expected.items()):
            if name not in ours or ours[name].shape != tensor.shape:
                print(f"  out.{name}: not computed, or of another shape than {tuple(tensor.shape)}")
                status = max(status, 1)
                continue
            error = relative_error(ours[name], tensor)
            good = error <= LIMIT  # False for NaN
            print(f"  out.{name:20s} {error:.2e} {'ok' if good else f'above {LIMIT:g}'}")
            status = max(status, 0 if good else 1)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
