"""Formats that are not read, told by name: whoever comes with one is told what it is and what makes a set of it that is read.

Only asked where no reader takes a folder.  The first files of each kind are looked at, and of them the first 100 kB.
"""

from __future__ import annotations

import re
from pathlib import Path

from .raw import first_files, read_head

HEAD, FILES = 100_000, 5
_EXPORT = "let the tool export COCO, YOLO or VOC"
_BY = "convert it to COCO, for example by supervision or FiftyOne"
_GROUND = "boxes of the ground become pixels by each picture's transform: convert it to COCO"
_KEYS: tuple[tuple[str, tuple[bytes, ...], str], ...] = (
    (
        "VIA (VGG Image Annotator)",
        (rb'"regions?"\s*:', rb'"shape_attributes"'),
        "export COCO in VIA 2 (Annotation, Export Annotations as COCO)",
    ),
    ("Label Studio", (rb'"(rectangle|polygon|brush|keypoint)labels"',), "export COCO or YOLO in Label Studio"),
    ("CreateML", (rb'"annotations?"\s*:\s*\[', rb'"coordinates"\s*:\s*\{'), _EXPORT),
    ("Supervisely", (rb'"classTitle"',), "export COCO or YOLO in Supervisely"),
    ("Labelbox", (rb'"(data_row|Labeled Data|DataRow ID)"',), "convert it by labelbox' own converter (COCO)"),
    (
        "Darwin (V7)",
        (rb'"(bounding_box|polygon)"\s*:\s*\{', rb'"(dataset|item|slots)"\s*:'),
        "export COCO in V7: darwin dataset convert coco",
    ),
    ("Datumaro", (rb'"items"\s*:\s*\[', rb'"(label_categories|attributes|categories)"'), "datum convert -f coco"),
    ("FiftyOne", (rb'"samples"\s*:\s*\[', rb'"filepath"'), "export it: dataset.export(dataset_type=fiftyone.types.COCODetectionDataset)"),
    (
        "results of a detector (COCO)",
        (rb"\A\s*\[\s*\{", rb'"image_id"', rb'"score"'),
        "give the set itself; results are for `ccdiff merge-tiles`",
    ),
    (
        "GeoJSON",
        (rb'"type"\s*:\s*"FeatureCollection"',),
        _GROUND,
    ),
)
"""Name, what all must stand in the head of a JSON file, what to do."""
_COLUMNS: tuple[tuple[str, bytes], ...] = (
    ("a table of VIA", rb"filename,\s*file_size,\s*file_attributes"),
    ("a table of Open Images", rb"ImageID,\s*Source,\s*LabelName"),
    ("metadata.csv of a Hugging Face imagefolder", rb"(.*,)?\s*file_name\s*,"),
    ("a table of boxes (TensorFlow, RetinaNet)", rb"(filename|image|img|path)[\w ]*,|[^,\n]+\.(jpe?g|png|tiff?|bmp)(,\s*[\d.]+){4},"),
)  # fmt: skip
_KITTI = re.compile(rb"[A-Za-z_]+ -?[\d.]+ -?\d+( -?[\d.]+){12,13}\s*$", re.MULTILINE)


def unread(root: Path) -> tuple[str, str, str] | None:
    """The file that shows it, what it is, and what to do; None of a folder that shows nothing known."""
    return next((found for look in (_json, _table, _kitti, _parquet) if (found := look(root))), None)


def unread_by_suffix(root: Path) -> tuple[str, str, str] | None:
    """The same by the names of files alone, which may lie beside the labels of a set that is read."""
    return next(((str(found[0]), *told) for suffix, told in _SUFFIXES.items() if (found := _first(root, suffix))), None)


def _first(root: Path, *suffixes: str) -> list[Path]:
    return [root] if root.is_file() and root.name.lower().endswith(suffixes) else first_files(root, suffixes, FILES)


def _json(root: Path) -> tuple[str, str, str] | None:
    for path in _first(root, ".json", ".geojson", ".ndjson"):
        head = read_head(path, HEAD)
        for name, keys, fix in _KEYS:
            if all(re.search(key, head) for key in keys):
                return str(path), name, fix
    return None


def _table(root: Path) -> tuple[str, str, str] | None:
    for path in _first(root, ".csv", ".tsv"):
        head = read_head(path, HEAD).lstrip(b"\xef\xbb\xbf").splitlines()[:1]
        for name, columns in _COLUMNS:
            if head and re.match(columns, head[0], re.IGNORECASE):
                fix = "write metadata.jsonl, or let datasets do so" if "metadata.csv" in name else _BY
                return str(path), name, fix
    return None


def _parquet(root: Path) -> tuple[str, str, str] | None:
    fix = "unpack it with datasets: save the pictures, and a line of metadata.jsonl for each (docs/formats.md: huggingface)"
    for path in _first(root, ".parquet"):
        if read_head(path, 4) == b"PAR1":
            return str(path), "Parquet with pictures inside, as the Hugging Face Hub keeps sets", fix
    return None


_SUFFIXES: dict[str, tuple[str, str]] = {
    ".tfrecord": ("TFRecord", _BY),
    ".shp": ("a shapefile", _GROUND),
    ".kml": ("KML", _GROUND),
    ".lmdb": ("LMDB", _BY),
    ".mat": ("a MATLAB file", _BY),
    ".hdf5": ("HDF5", _BY),
    ".h5": ("HDF5", _BY),
}


def _kitti(root: Path) -> tuple[str, str, str] | None:
    for path in _first(root, ".txt"):
        if _KITTI.match(read_head(path, HEAD)):
            return str(path), "KITTI", _BY
    return None
