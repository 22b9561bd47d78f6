"""``prepare``: a raw data set becomes the set on disk that everything else works on.

Read the labels, check every picture's header, cut and resize, write captions, the reference bank and a manifest that counts all that was
left out and why.

* Every file is named by what it holds and written whole, so an interrupted run is completed by the same command, to the same bytes.
* Pictures are decoded, cut and encoded by several processes, one picture each; results are taken in order, so their number changes nothing.
* Large scenes are cut while they are decoded, see ``windows``.
* NOTE: the split is decided per source picture, before tiles are cut; all tiles of a picture share its split and ``source``.

``run`` goes from the raw set to the finished one; ``labels`` settles what is known before any picture is cut, ``picture`` makes one,
``workers`` several at a time, ``folder`` keeps what is unfinished apart from what is whole.
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import PrepareOptions

if TYPE_CHECKING:
    from .run import prepare_dataset
else:
    __getattr__ = offered(__name__, run="prepare_dataset")

__all__ = ["PrepareOptions", "prepare_dataset"]
