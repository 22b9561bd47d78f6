"""Writers: any set on disk as COCO (Roboflow's folders too), DOTA (labels, or Task 1 results), YOLO, YOLO-OBB, VOC, CC-Diff
(``metadata.jsonl``), Hugging Face or webdataset files.

One file a format; ``WRITERS`` names them, ``run.export_set`` does what they share.
"""

from __future__ import annotations

from .common import ExportOptions
from .run import Export, export_set
from .writers import WRITERS

__all__ = ["WRITERS", "Export", "ExportOptions", "export_set"]
