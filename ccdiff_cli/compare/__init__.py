"""Generators side by side: the published quality table and trainability table, for any methods and sets, from one file.

    compare.yaml -> for each set and row: train -> synthesize (layouts of the reference split, and of the train split)
                 -> for each set: evaluate, eval-trainability -> one page, one Markdown file, one LaTeX file

Notable:

* Every row gets the same budget: the pictures that its denoiser sees in training, the pictures that it makes, the detectors' steps.
* Each step is the function behind a verb and resumes as that verb does; what is made lies under a key of what it was made from, so a
  changed file makes anew only what the change reaches.
* A row that fails is left out and said; the others are finished.

``config`` is the file, ``run`` carries it out; the tables are drawn by ``report.compare``.
"""

from typing import TYPE_CHECKING

from ..lazy import offered

if TYPE_CHECKING:
    from .config import Comparison, read_comparison
    from .run import compare
else:
    __getattr__ = offered(__name__, config="Comparison read_comparison", run="compare")

__all__ = ["Comparison", "compare", "read_comparison"]
