"""Writers: any set on disk as COCO (Roboflow's folders too), DOTA (labels, or Task 1 results), YOLO, YOLO-OBB, VOC, CC-Diff
(``metadata.jsonl``), Hugging Face or webdataset files.

One file a format; ``WRITERS`` names them, ``run.export_set`` does what they share.
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import ExportOptions

if TYPE_CHECKING:
    from .run import Export, export_set
    from .writers import WRITERS
else:
    __getattr__ = offered(__name__, run="Export export_set", writers="WRITERS")

__all__ = ["WRITERS", "Export", "ExportOptions", "export_set"]
