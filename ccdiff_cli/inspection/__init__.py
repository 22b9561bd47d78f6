"""``inspect``: what a set holds, and what in it looks wrong, before hours of training are spent on it.

Counts per class and split, sizes, angles, objects per picture, boxes that cannot be right, pictures that stand in two splits; as a
dictionary (``--json``, ``inspection.json``), as tables in the terminal, and as one HTML page with drawn samples.

* Nothing is changed in the set, and it is never written to; a raw folder is looked at through its reader, without being prepared.
* Pictures are decoded once, small, in threads.
* Everything is found in a fixed order: the same set gives the same page.
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import InspectOptions

if TYPE_CHECKING:
    from .run import inspect_set
    from .terminal import tables
else:
    __getattr__ = offered(__name__, run="inspect_set", terminal="tables")

__all__ = ["InspectOptions", "inspect_set", "tables"]
