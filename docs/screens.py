"""Draw docs/screens/*.png: the pages that the program writes, as a browser shows them.

    python docs/screens.py runs/screens docs/screens

The pages are those of a demo cut short (fewer pictures, a training of ten steps), so nothing is picked by hand, and nothing is learned.
Needs Chromium (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ccdiff_cli.demo import run_demo
from ccdiff_cli.inspection import inspect_set

WIDTH, HEIGHT = 1060, 1250
SHORT = {
    "pictures": 48,
    "train_steps": 10,
    "synthetic": 30,
    "sampling_steps": 6,
    "detector": {"steps": 60, "warmup_steps": 10},
    "detector_seeds": (0, 1),
}


def main(work: str, out: str) -> None:
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("error: no Chromium found; apt-get install chromium")
    Path(out).mkdir(parents=True, exist_ok=True)
    report = run_demo(work, **SHORT)["report"]  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        page = inspect_set(Path(work) / "drawn", Path(folder) / "inspection")["page"]
        for name, shown in (("inspection", page), ("trainability", report)):
            shot = Path(folder) / f"{name}.png"
            address = Path(shown).resolve().as_uri()
            options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
            subprocess.run([browser, *options, f"--user-data-dir={folder}/profile", address], check=True, capture_output=True, timeout=120)
            _save(Image.open(io.BytesIO(shot.read_bytes())), Path(out) / f"{name}.png")


def _save(picture: Image.Image, path: Path) -> None:
    """In 256 colours: a third of the bytes."""
    picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
