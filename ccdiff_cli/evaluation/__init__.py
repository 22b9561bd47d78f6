"""How good is a synthetic set?  The published quality table (CLIP-L, CLIP-G, FID, YOLOScore) and what one needs to trust it.

Notable:

* Every figure stands between a ceiling (real pictures) and, for what depends on layouts, a floor (labels exchanged among the pictures,
  and a set made from shuffled layouts where one is given).
* Feature distances depend on the number of pictures, so all generators, and the real training pictures that serve as ceiling, are judged
  on the same number of them: that of the smallest synthetic set, drawn by a fixed seed.
* What was encoded, trained or found lies under a key of what it depends on, so an interrupted run goes on, and a second generator costs
  its own pictures alone.

``run`` goes from the sets to the report, ``compared`` says what is compared, ``judging`` measures, ``planning`` says what it would cost.
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import EvaluateOptions

if TYPE_CHECKING:
    from .compared import REAL
    from .run import evaluate
else:
    __getattr__ = offered(__name__, run="evaluate", compared="REAL")

__all__ = ["REAL", "EvaluateOptions", "evaluate"]
