"""Cutting tiles out of a very large picture: peak memory and processor time of our windowed reading against Pillow's whole picture.

    python -m benchmarks.large_scenes FOLDER [--side 20000] [--tile 1024] [--overlap 200]

Draws one picture of ``side`` x ``side`` pixels in each layout into FOLDER (1 GB in all; those that are there are used again), then cuts
all tiles out of each, every form in a process of its own: (ours) ``read_windows``; (plain) ``Image.open``, ``load``, ``crop``.  Memory is
the process's peak above what it held before.  Both must give the same pixels (a sum over the tiles is compared).
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ccdiff_cli.pictures import picture_size
from ccdiff_cli.prepare.tiling import tile_origins
from ccdiff_cli.prepare.windows import read_windows

LAYOUTS = {"PNG": "scene.png", "TIFF, tiles of 512 px": "tiles.tif", "TIFF, strips of 16 rows": "strips.tif", "JPEG": "scene.jpg"}


def pixels(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    """A part of the picture, (H, W, 3): slopes, checks and fine texture."""
    y, x = np.mgrid[y1:y2, x1:x2]
    return np.stack([(x // 7 + y // 5) & 255, (x ^ y) & 255, (x // 64 + y // 64) % 2 * 120 + 60], axis=2).astype(np.uint8)


def draw(path: Path, side: int) -> None:
    if path.suffix == ".jpg":
        image = Image.new("RGB", (side, side))
        for y in range(0, side, 500):
            image.paste(Image.fromarray(pixels(0, y, side, min(side, y + 500))), (0, y))
        image.save(path, quality=85)
        return
    with open(path, "wb") as stream:
        write_png(stream, side) if path.suffix == ".png" else write_tiff(stream, side, 512 if path.stem == "tiles" else None)


def write_png(stream: IO[bytes], side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> None:
        stream.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    stream.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    packer = zlib.compressobj(1)
    for y in range(0, side, 100):
        rows = pixels(0, y, side, min(side, y + 100)).reshape(-1, 3 * side)
        filtered = np.ones((len(rows), 1 + 3 * side), np.uint8)  # filter 1: the difference to the pixel on the left
        filtered[:, 1:4], filtered[:, 4:] = rows[:, :3], rows[:, 3:] - rows[:, :-3]
        chunk(b"IDAT", packer.compress(filtered.tobytes()))
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def write_tiff(stream: IO[bytes], side: int, tile: int | None) -> None:
    """Deflated RGB in square tiles, or in strips of 16 rows."""
    stream.write(b"II*\0\0\0\0\0")
    width, height = tile or side, tile or 16
    places, sizes = [], []
    for y in range(0, side, height):
        for x in range(0, side, width):
            data = zlib.compress(pixels(x, y, x + width, y + height if tile else min(side, y + height)).tobytes(), 1)
            places.append(stream.tell())
            sizes.append(stream.write(data))
    entries = [(256, 4, [side]), (257, 4, [side]), (258, 3, [8, 8, 8]), (259, 3, [8]), (262, 3, [2]), (277, 3, [3]), (284, 3, [1])]
    if tile:
        entries += [(322, 3, [tile]), (323, 3, [tile]), (324, 4, places), (325, 4, sizes)]
    else:
        entries += [(273, 4, places), (278, 4, [height]), (279, 4, sizes)]
    stream.write(b"\0" * (stream.tell() % 2))
    at = stream.tell()
    beyond, listed, extra = at + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, values in sorted(entries):
        data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'L'}", *values)
        if len(data) > 4:
            data, extra = struct.pack("<L", beyond + len(extra)), extra + data + b"\0" * (len(data) % 2)
        listed += struct.pack("<HHL", tag, kind, len(values)) + data.ljust(4, b"\0")
    stream.write(struct.pack("<H", len(entries)) + listed + b"\0\0\0\0" + extra)
    stream.seek(4)
    stream.write(struct.pack("<L", at))


def cut(path: Path, form: str, tile: int, overlap: int) -> dict[str, float]:
    """All tiles of a picture, in this process: peak memory above the start (MB), processor seconds, sum of the pixels."""
    width, height = picture_size(path)
    windows = [(x, y, min(width, x + tile), min(height, y + tile)) for x, y in tile_origins(width, height, tile, overlap)]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    total = 0
    if form == "ours":
        for _, part in read_windows(path, windows):
            total += int(np.asarray(part).sum(dtype=np.int64))
    else:
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(path) as image:
            image.load()
            for window in windows:
                total += int(np.asarray(image.crop(window)).sum(dtype=np.int64))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"MB": round(peak / 1024), "processor seconds": round(time.process_time() - start, 2), "tiles": len(windows), "sum": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=200)
    parser.add_argument("--one", nargs=2, metavar=("FILE", "FORM"), help="what the processes are started with")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(cut(options.folder / options.one[0], options.one[1], options.tile, options.overlap)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    report = {}
    for layout, name in LAYOUTS.items():
        path = options.folder / name
        if not path.exists():
            draw(path, options.side)
        row = {}
        for form in ("ours", "plain"):
            command = [sys.executable, "-m", "benchmarks.large_scenes", *sys.argv[1:], "--one", name, form]
            row[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert row["ours"].pop("sum") == row["plain"].pop("sum"), f"{layout}: other pixels than Pillow's"
        report[layout] = row
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
