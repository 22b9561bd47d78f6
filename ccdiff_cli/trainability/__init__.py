"""Does a detector gain?  The same detector on real pictures, and on those with others added, tested on real ones.

    arms x fractions of the real set x seeds -> trainings -> detections -> gains with intervals -> report

Notable:

* All arms get the same first weights and the same seeds, so gains are taken pair by pair; each is trained for as many optimizer steps as
  the real one, and for as many epochs (as published), beside real pictures trained as long.
* Headroom first: the real arms of every seed are trained before any other, and say whether the experiment can answer (:mod:`.yardstick`).
* Every training and every prediction is filed under the key of what it depends on: an interrupted experiment goes on where it
  stopped, and one with more seeds, arms or fractions trains only what is new.
* Layout adherence comes for free: the detectors of the real arm look for the layouts in the synthetic pictures.
* The same trainings serve :mod:`.misses`: what a detector gets wrong on training pictures, which new layouts are drawn by.
* Leak guard: an experiment is refused when test pictures, or what shows the same, went into anything that is trained on (:mod:`.leaks`).
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import MissesOptions, TrainabilityOptions

if TYPE_CHECKING:
    from .adherence import layout_adherence, swap_labels
    from .arms import REAL
    from .calibration import calibrate
    from .config import ExperimentConfig, load_detector_config, load_experiment
    from .leaks import check_leaks
    from .misses import find_misses
    from .run import BOTH, eval_trainability
    from .statistics import verdict
else:
    __getattr__ = offered(
        __name__,
        adherence="layout_adherence swap_labels",
        arms="REAL",
        calibration="calibrate",
        config="ExperimentConfig load_detector_config load_experiment",
        leaks="check_leaks",
        misses="find_misses",
        run="BOTH eval_trainability",
        statistics="verdict",
    )

__all__ = [
    "BOTH",
    "REAL",
    "ExperimentConfig",
    "MissesOptions",
    "TrainabilityOptions",
    "calibrate",
    "check_leaks",
    "eval_trainability",
    "find_misses",
    "layout_adherence",
    "load_detector_config",
    "load_experiment",
    "swap_labels",
    "verdict",
]
