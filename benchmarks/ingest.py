"""Reading all of DIOR's annotations: our reader against the usual loop.

    python -m benchmarks.ingest DIOR_FOLDER [--limit 1000] [--repeats 1]

The folder needs ``Annotations/`` alone (23,463 HBB and 23,463 OBB files).  Compared, in turns, so that a busy machine disturbs both
alike: (ours) ``read_dior``: defused XML, every field checked, boxes matched one to one by overlap; (plain) ``xml.etree.ElementTree``
without any check, which gives every HBB the first OBB of its class that is still free.  Each form's figure is the smallest over the
repeats, in wall and processor time; ``first of the same class`` is also judged: how many of its OBBs belong to another object.
Files are read once before the clock starts, so that a cold disk counts for neither (``--cold`` leaves that out).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ccdiff_cli.formats.dior import HBB_FOLDER, OBB_FOLDER, read_dior
from ccdiff_cli.formats.voc import _CORNERS, _SIDES

Pair = tuple[tuple[float, ...], tuple[float, ...]]


def plain_loop(root: Path) -> dict[str, list[Pair]]:
    """Picture -> (HBB, OBB) of every object, () where no OBB of its class is left."""
    found: dict[str, list[Pair]] = {}
    for path in sorted((root / HBB_FOLDER).glob("*.xml")):
        free = []
        for element in ElementTree.parse(root / OBB_FOLDER / path.name).getroot().iter("object"):  # noqa: S314 - the point of comparison
            box = element.find("robndbox")
            assert box is not None
            free.append((element.findtext("name"), tuple(float(box.findtext(k) or 0) for k in _CORNERS)))
        pairs: list[Pair] = []
        for element in ElementTree.parse(path).getroot().iter("object"):  # noqa: S314
            name, box = element.findtext("name"), element.find("bndbox")
            assert box is not None
            hbb = tuple(float(box.findtext(k) or 0) for k in _SIDES)
            first = next((k for k, (other, _) in enumerate(free) if other == name), None)
            pairs.append((hbb, free.pop(first)[1] if first is not None else ()))
        found[path.stem] = pairs
    return found


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds, processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def limited(root: Path, limit: int, folder: Path) -> Path:
    """A folder of links to the first ``limit`` pictures' annotations."""
    for name in (HBB_FOLDER, OBB_FOLDER):
        (folder / name).mkdir(parents=True)
        for path in sorted((root / name).glob("*.xml"))[:limit]:
            (folder / name / path.name).symlink_to(path.resolve())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="DIOR's folder (pictures are not needed)")
    parser.add_argument("--limit", type=int, help="only so many pictures, the first by name")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="do not read the files before the clock starts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = limited(options.root, options.limit, Path(temporary)) if options.limit else options.root
        files = [p for name in (HBB_FOLDER, OBB_FOLDER) for p in (root / name).glob("*.xml")]
        size = 0 if options.cold else sum(len(p.read_bytes()) for p in files)
        ours, plain = [], []
        for _ in range(options.repeats):
            raw, *times = timed(lambda: read_dior(root, pictures=False))
            ours.append(times)
            pairs, *times = timed(lambda: plain_loop(root))
            plain.append(times)
    wrong = total = 0
    for scene in raw.scenes:
        right = {i.hbb: i.corners for i in scene.instances if i.oriented}  # boxes that repeat exactly count once
        for hbb, corners in pairs[scene.source]:
            if hbb in right and corners:
                total += 1
                wrong += corners != right[hbb]
    best = {name: [min(t[k] for t in times) for k in (0, 1)] for name, times in (("ours", ours), ("plain", plain))}
    report = {
        "files": len(files),
        "megabytes": round(size / 1e6, 1),
        "scenes": len(raw.scenes),
        "objects": sum(len(s.instances) for s in raw.scenes),
        "notes": dict(sorted(raw.notes.items())),
        "seconds": {name: {"wall": round(w, 2), "processor": round(p, 2)} for name, (w, p) in best.items()},
        "ours / plain": {
            "wall": round(best["ours"][0] / best["plain"][0], 2),
            "processor": round(best["ours"][1] / best["plain"][1], 2),
        },
        "first of the same class": {"objects": total, "OBB of another object": wrong, "share": round(wrong / max(total, 1), 4)},
        "python": platform.python_version(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
