"""What a room offers, imported when it is asked for: its options, which every help reads, do not bring what carries them out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def offered(room: str, **modules: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package: names (separated by spaces) that its modules hold.

    A type checker and a reader see the imports themselves, which stand under ``if TYPE_CHECKING``.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{room}.{homes[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    return find
