"""Draw docs/screens/*.png: the pages that the program writes, as a browser shows them.

    python docs/screens.py runs/own docs/screens

The folder is the one that examples/own_data.ipynb writes, so nothing is picked by hand.
Needs Chromium (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1060, 1250
PAGES = {"inspection": "inspection/inspection.html", "trainability": "trainability/report.html"}


def main(work: str, out: str) -> None:
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("error: no Chromium found; apt-get install chromium")
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, page in PAGES.items():
            shot = Path(folder) / f"{name}.png"
            options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
            address = (Path(work) / page).resolve(strict=True).as_uri()
            subprocess.run([browser, *options, f"--user-data-dir={folder}/profile", address], check=True, capture_output=True, timeout=300)
            with Image.open(shot) as picture:  # in 256 colours: a third of the bytes
                picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(Path(out) / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
