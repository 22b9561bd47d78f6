"""``ccdiff synthesize``: n labelled pictures from a generator and a set's layouts.

    plan -> blocks of pictures, by one process or several -> one set on disk

Notable here:

* Labels are the very layout that conditioned the picture; both stand in the plan before the first picture is made.
* The set's bytes are the same whatever the number of processes and however often the run was interrupted (same kind of device, same
  versions; the plan holds both).  The same command again goes on where the last one stopped.
* Several processes: ``num_processes`` starts them here, and hands out blocks one at a time, so a slow or dead worker holds nothing up;
  under ``accelerate launch`` or ``torchrun`` each process takes every world-size-th block.  No process waits for another between
  its first block and its last.  Machines that share nothing but a folder each take a ``part``.

``options`` says what can be asked for, ``run`` goes from the request to the set: ``planning`` makes the ``plan``, ``worker`` carries it
out, ``workers`` shares it among processes and ``cluster`` among actors, ``records`` knows what is made, ``filtering`` judges it, ``finish``
makes a set of it, ``verify`` proves it, ``accept`` takes changes by hand, ``repair`` those of a detector.
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import FilterOptions, RepairOptions, SamplingOptions, SynthesisOptions, WorkOptions

if TYPE_CHECKING:
    from .accept import accept_set
    from .plan import PLAN, PLAN_LINES
    from .repair import repair_set
    from .run import synthesize
    from .verify import CONTACT_SHEET, verify_set
else:
    __getattr__ = offered(
        __name__,
        accept="accept_set",
        plan="PLAN PLAN_LINES",
        repair="repair_set",
        run="synthesize",
        verify="CONTACT_SHEET verify_set",
    )

__all__ = [
    "CONTACT_SHEET", "PLAN", "PLAN_LINES", "FilterOptions", "RepairOptions", "SamplingOptions", "SynthesisOptions", "WorkOptions",
    "accept_set", "repair_set", "synthesize", "verify_set",
]  # fmt: skip
