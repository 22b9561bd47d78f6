"""What a set of very many pictures takes: processor time and memory of every stage, by number of pictures.

    OMP_NUM_THREADS=1 python -m benchmarks.scale /tmp/scale --pictures 1000 10000 100000
    OMP_NUM_THREADS=1 python -m benchmarks.scale /tmp/scale --pictures 1000000 --workers 3 --kills 5 --within 600

The pictures are of 32 px and come from the pipeline that the tests use, which costs next to nothing: what is measured is everything
around a generator.  Every stage is a process of its own; time and memory (of the largest process, workers included) are the kernel's.

* ``synthesize``: plan, pictures, labels, by ``--workers`` processes; killed (SIGKILL, workers too) ``--kills`` times on its way, each
  10 to ``--within`` seconds after it began, and begun again, whose times are added up;
* ``again``: the same command once more, which finds nothing to do;
* ``verify``; ``export`` (COCO, by hard links).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ccdiff_cli.files import write_json
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset

SIDE, CLASSES = 32, ("ship", "plane", "harbor")
STAGES = ("synthesize", "again", "verify", "export")
MAKE = """
import sys
from ccdiff_cli.options import checked_options
from ccdiff_cli.synthesis import SynthesisOptions, WorkOptions, synthesize
folder, out, n, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = checked_options(SynthesisOptions, {"n": n, "batch_size": 50}, where="options")
work = checked_options(WorkOptions, {"num_processes": workers}, where="options")
print(synthesize(folder + "/generator", folder + "/set", out, options, work=work, pipeline="tests.synthesis.fake:load")["made"])
"""
VERIFY = "import sys; from ccdiff_cli.__main__ import main; sys.argv = ['ccdiff', 'verify', sys.argv[2]]; main()"
EXPORT = (
    "import sys; from ccdiff_cli.__main__ import main; "
    "sys.argv = ['ccdiff', 'export', sys.argv[2], '--format', 'coco', '--link', '--out', sys.argv[2] + '-coco']; main()"
)


def build(folder: Path, layouts: int) -> None:
    """A prepared set with so many train pictures and its bank, and a generator's folder."""
    if (folder / "set" / "manifest.json").is_file():
        return
    rng = np.random.default_rng(0)
    (folder / "raw" / "images").mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for k in range(layouts):
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / "raw" / "images" / f"p{k}.png")
        images.append({"id": k, "file_name": f"p{k}.png", "width": SIDE, "height": SIDE, "split": "train"})
        for _ in range(1 + k % 3):
            x, y = (int(v) for v in rng.integers(0, 16, 2))
            boxes.append({"id": len(boxes), "image_id": k, "category_id": int(rng.integers(1, 4)), "bbox": [x, y, 12, 10]})
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    (folder / "raw" / "labels.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    prepare_dataset(folder / "raw", folder / "set", PrepareOptions(size=SIDE), processes=1)
    (folder / "generator" / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "generator" / "unet" / "weights.safetensors").write_text("1.5")
    recipe = {"name": "fake", "caption_style": "short", "sampling": {"steps": 1, "guidance_scale": 1.0}, "denoiser": {"top_k": 8}}
    write_json(folder / "generator" / "ccdiff.json", {"picture_size": SIDE, "classes": list(CLASSES), "recipe": recipe, "steps": 5})


@dataclass
class Taken:
    """Seconds on the clock and of processors, and MB at most."""

    wall: float = 0.0
    processor: float = 0.0
    memory: int = 0


def measured(taken: Taken, code: str, *arguments: object, kill_after: float | None = None) -> bool:
    """Add what Python code takes in a process of its own and in what it starts; returns whether it came to its end."""
    start = time.monotonic()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    if kill_after is not None:
        while time.monotonic() < start + kill_after and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    taken.wall += time.monotonic() - start
    taken.processor += usage.ru_utime + usage.ru_stime
    taken.memory = max(taken.memory, usage.ru_maxrss >> 10)
    if status and kill_after is None:
        raise SystemExit(f"a stage ended with {os.waitstatus_to_exitcode(status)}: {arguments}")
    return status == 0


def run(stage: str, folder: Path, out: Path, n: int, workers: int, kills: int, within: float) -> Taken:
    """One stage of a set of n pictures."""
    taken = Taken()
    if stage in ("verify", "export"):
        measured(taken, VERIFY if stage == "verify" else EXPORT, folder, out)
        return taken
    rng = np.random.default_rng(n)
    for _ in range(kills if stage == "synthesize" else 0):
        measured(taken, MAKE, folder, out, n, workers, kill_after=float(rng.uniform(10, within)))
    measured(taken, MAKE, folder, out, n, workers)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--layouts", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--within", type=float, default=90)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    options = parser.parse_args()
    folder = options.folder / str(options.layouts)
    build(folder, options.layouts)
    print("| pictures | stage | seconds | of processors | MB at most |\n|---|---|---|---|---|")
    for n in options.pictures:
        out = folder / f"out{n}"
        if options.stages[0] == "synthesize":
            for old in (out, Path(f"{out}-coco")):
                shutil.rmtree(old, ignore_errors=True)
        for stage in options.stages:
            taken = run(stage, folder, out, n, options.workers, options.kills, options.within)
            print(f"| {n:,} | {stage} | {taken.wall:.1f} | {taken.processor:.1f} | {taken.memory:,} |", flush=True)


if __name__ == "__main__":
    main()
