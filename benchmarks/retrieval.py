"""Background references: how well they fit, by the words of captions and by embeddings; how long the exact search takes.

    python -m benchmarks.retrieval fit runs/vhr10 --retrieval own --checkpoint ccdiff_cli/weights/tiny --sheet runs/backgrounds.png
    python -m benchmarks.retrieval speed --pictures 100000 --width 768

``fit``: for every picture of the val split, backgrounds are drawn from the train split for its caption, as `synthesize` does, with seeds
0 to 7, and compared with the picture itself: do they show its main class, which share of the classes of both do they have in common
(intersection over union), how far apart are the mean colours (Euclidean, RGB 0..255), how many different pictures were drawn.

``speed``: one caption against all pictures, processor and wall time; beside it faiss (``IndexFlatIP``), where it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ccdiff_cli.dataset import read_set
from ccdiff_cli.drawing import contact_sheet
from ccdiff_cli.files import atomic_write
from ccdiff_cli.pictures import read_rgb
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.references import CaptionSimilarity, Reference, ReferenceBank
from ccdiff_cli.retrieval import EmbeddingSimilarity, open_similarity
from ccdiff_cli.scene import ClassList, Scene

SEEDS = 8


class _Random:
    def __init__(self, count: int) -> None:
        self.count, self.rng = count, np.random.default_rng(0)

    def scores(self, scene: Scene) -> np.ndarray:
        return self.rng.random(self.count)


class _Colour:
    """The best that colour could do, with the true picture known."""

    def __init__(self, train: np.ndarray, true: dict[str, np.ndarray]) -> None:
        self.train, self.true = train, true

    def scores(self, scene: Scene) -> np.ndarray:
        return -np.linalg.norm(self.train - self.true[scene.file_name], axis=1)


def fit(asked: argparse.Namespace) -> None:
    from ccdiff_cli.methods.ccdiff.pipeline import CCDiffPipeline

    prepared, bank = read_set(asked.data), ReferenceBank.read(asked.data)
    train = prepared.split("train")
    scenes = [s.replace(caption=caption_of(s, asked.style)) for s in prepared.split("val") if s.instances]
    pipe = CCDiffPipeline.from_pretrained(asked.checkpoint) if asked.retrieval == "own" else None
    embedded = open_similarity(asked.retrieval, prepared, pipe=pipe, style=asked.style)
    colours, true = _mean_colours(train), dict(zip((s.file_name for s in scenes), _mean_colours(scenes), strict=True))
    classes = [set(s.categories()) for s in train]
    place = {r.key: k for k, r in enumerate(bank.backgrounds)}
    ways: dict[str, Any] = {
        "drawn at random": _Random(len(train)),
        "words of captions": CaptionSimilarity([s.caption for s in train]),
        f"embeddings ({asked.retrieval})": embedded,
        "nearest mean colour (knows the picture)": _Colour(colours, true),
    }
    print("| backgrounds by | k | main class | classes in common | colour distance | different pictures |\n|---|---|---|---|---|---|")
    for name, similarity in ways.items():
        bank.similarity = similarity
        for top_k in (1, 8):
            rows, drawn = [], []
            for scene in scenes:
                main, own = Counter(scene.categories()).most_common(1)[0][0], set(scene.categories())
                for seed in range(1 if top_k == 1 else SEEDS):
                    k = place[bank.choose(scene, seed=seed, top_k=top_k).background.key]  # type: ignore[union-attr]
                    drawn.append(k)
                    distance = float(np.linalg.norm(colours[k] - true[scene.file_name]))
                    rows.append((main in classes[k], len(own & classes[k]) / len(own | classes[k]), distance))
            shares = np.mean(rows, axis=0)
            print(f"| {name} | {top_k} | {shares[0]:.1%} | {shares[1]:.2f} | {shares[2]:.1f} | {len(set(drawn))} of {len(drawn)} |")
    if asked.sheet:
        cells, titles = [], []
        for index in np.linspace(0, len(scenes) - 1, 12).astype(int):
            scene = scenes[index]
            cells.append(read_rgb(str(scene.path)))
            titles.append(scene.caption.split(". ")[-1])
            for name in ("words of captions", f"embeddings ({asked.retrieval})"):
                bank.similarity = ways[name]
                for seed in range(4):
                    reference = bank.choose(scene, seed=seed, top_k=8).background
                    cells.append(read_rgb(reference.path))  # type: ignore[union-attr]
                    titles.append(f"{name.split()[0]} {seed}")
        with atomic_write(asked.sheet) as stream:
            contact_sheet(cells, columns=9, titles=titles).save(stream, format="PNG")


def _mean_colours(scenes: Any) -> np.ndarray:
    return np.stack([np.asarray(read_rgb(str(s.path)), np.float64).reshape(-1, 3).mean(0) for s in scenes])


def speed(asked: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(asked.pictures, asked.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[17] + 0.01 * rng.normal(size=asked.width).astype(np.float32)
    similarity = EmbeddingSimilarity(vectors, {}, lambda text: query, "")
    backgrounds = [Reference("", "", 1, 1, f"s{k // 4}", "background", f"{k}") for k in range(asked.pictures)]
    bank, scene = ReferenceBank(ClassList(("ship",)), [], backgrounds, similarity), Scene("a.png", 9, 9, (), caption="a")
    ways: dict[str, Callable[[], Any]] = {
        "matrix product": lambda: similarity.scores(scene),
        "bank.choose (product, own source left out, ranking, draw)": lambda: bank.choose(scene, seed=0),
    }
    try:
        import faiss

        index = faiss.IndexFlatIP(asked.width)
        index.add(vectors)
        ways["faiss IndexFlatIP, 8 best"] = lambda: index.search(query[None], 8)
    except ImportError:
        print("faiss is not installed: no comparison")
    print("| search | processor ms | wall ms |\n|---|---|---|")
    for name, way in ways.items():
        way()
        taken = []
        for _ in range(asked.repeats):
            start = time.process_time(), time.perf_counter()
            way()
            taken.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        best = np.min(taken, axis=0) * 1000
        print(f"| {name} | {best[0]:.1f} | {best[1]:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    fitting = parts.add_parser("fit")
    fitting.add_argument("data", type=Path, help="a prepared set with a val split")
    fitting.add_argument("--retrieval", default="own", help="own, or a CLIP folder")
    fitting.add_argument("--checkpoint", default="ccdiff_cli/weights/tiny", help="the generator whose own encoders are used")
    fitting.add_argument("--style", default="short", help="of the captions, as the generator was trained")
    fitting.add_argument("--sheet", type=Path, help="PNG to write: 12 pictures, 4 backgrounds by words and 4 by embedding of each")
    fitting.set_defaults(run=fit)
    timing = parts.add_parser("speed")
    timing.add_argument("--pictures", type=int, default=100_000)
    timing.add_argument("--width", type=int, default=768)
    timing.add_argument("--repeats", type=int, default=7)
    timing.set_defaults(run=speed)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
