"""``ccdiff layout``: layouts of a source as pictures and in numbers, and sources side by side."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..bounds import check_crowded, check_memory
from ..dataset import PictureSet, check_out, in_memory, read_set, scene_record
from ..drawing import contact_sheet, layout_image, legend
from ..errors import CCDiffError
from ..files import write_bytes, write_json, write_text
from ..locks import locked
from ..scene import ClassList, Scene
from .llm import Writer
from .options import LayoutOptions
from .planning import SOURCES, Progress, layouts_of_set, plan_layouts
from .statistics import MEASURES, Statistics, compare_sources

SHEET_LAYOUTS, COLUMNS, CELL = 60, 10, 150


@locked("layout")
def show_layouts(
    data: str | Path,
    out: str | Path,
    n: int = SHEET_LAYOUTS,
    options: LayoutOptions = LayoutOptions(),
    *,
    seed: int = 0,
    writer: Writer | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make n layouts; write ``layouts.png``, ``layouts.jsonl`` (lines of ``dataset.scene_record``) and ``statistics.json``.

    Returns:
        What ``statistics.json`` holds: the numbers of the layouts and of the set they came from, and what the language model did.

    Raises:
        CCDiffError: see :func:`plan_layouts`.
    """
    pictures, out = _open(data, out, options.split, n), Path(out)
    made = plan_layouts(pictures, n, seed, options, writer=writer, progress=progress)
    source = options.source or "augmented"
    facts = {
        "set": str(data),
        "source": source,
        "balance": options.balance,
        "misses": str(options.misses) if options.misses else None,
        "seed": seed,
        "layouts": Statistics(made, pictures.classes).summary(),
        "real": Statistics(layouts_of_set(pictures, options.split), pictures.classes).summary(),
        "llm": _account(writer if source == "llm" else None),
        "sheet": str(out / "layouts.png"),
    }
    write_sheet(out / "layouts.png", made, pictures.classes)
    write_text(out / "layouts.jsonl", "".join(json.dumps(scene_record(s), ensure_ascii=False) + "\n" for s in made))
    write_json(out / "statistics.json", facts)
    return facts


@locked("layout")
def compare_layouts(
    data: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    sources: Sequence[str] | None = None,
    n: int | None = None,
    writer: Writer | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How far every source, fitted to half of the set, is from the other half: ``comparison.json`` and one sheet a source in ``out``.

    Args:
        sources: by default all, "llm" only with a writer.
        n: layouts of each source; by default as many as the other half.

    Raises:
        CCDiffError: see :func:`plan_layouts`; a set of one picture.
    """
    pictures, out = _open(data, out, split, n or 0), Path(out)
    layouts = layouts_of_set(pictures, split)
    if len({s.source or s.file_name for s in layouts}) < 2:
        raise CCDiffError("one source picture has no halves", where=data, fix="give a set made of several pictures")
    chosen = list(sources) if sources else [name for name in SOURCES if name != "llm" or writer is not None]

    def make(half: PictureSet, n: int, source: str) -> list[Scene]:
        return plan_layouts(half, n, seed, LayoutOptions.model_validate({"source": source}), writer=writer, progress=progress)

    found = compare_sources(layouts, pictures.classes, chosen, make, pictures.root, seed=seed, n=n, progress=progress)
    for source, examples in found.pop("examples").items():
        write_sheet(out / f"{source}.png", examples, pictures.classes)
    facts = {"set": str(data), "split": split, "seed": seed, "n": n, **found, "measures": MEASURES, "llm": _account(writer)}
    write_json(out / "comparison.json", facts)
    return facts


def _account(writer: Writer | None) -> dict[str, Any] | None:
    """What the language model did."""
    return {**writer.counts, "reasons": dict(writer.reasons.most_common(10))} if writer is not None else None


def comparison_table(facts: dict[str, Any]) -> Table:
    """The comparison for a terminal."""
    first, other = facts["pictures"]
    table = Table(
        title=f"distance to {other} real layouts that no source has seen (fitted to {first} others)",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("what")
    for source in facts["distances"]:
        table.add_column("other half" if source == "real" else source, justify="right")
    for measure in MEASURES:
        values = (facts["distances"][source][measure] for source in facts["distances"])
        table.add_row(measure, *("" if v is None else f"{v:.3f}" for v in values))
    table.caption = "0: the same; what each line measures stands in comparison.json"
    return table


def statistics_table(facts: dict[str, Any]) -> Table:
    """Layouts beside the real ones, for a terminal."""
    made, real = facts["layouts"], facts["real"]
    table = Table(title=f"{made['pictures']} layouts of source {facts['source']}", title_justify="left", title_style="bold")
    for name in ("class", "objects", "share", "share, real", "median size", "median size, real"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name in {**real["per_class"], **made["per_class"]}:
        mine, theirs = made["per_class"].get(name), real["per_class"].get(name)
        shares = [f"{100 * c['objects'] / s['objects']:.1f} %" if c else "" for c, s in ((mine, made), (theirs, real))]
        sizes = [f"{100 * c['size'][1]:.1f} %" if c else "" for c in (mine, theirs)]
        table.add_row(name, f"{mine['objects']:,}" if mine else "0", *shares, *sizes)
    table.add_section()
    means = [f"{s['objects_per_picture']['mean']:.1f}" for s in (made, real)]
    table.add_row("objects per picture", "", *means, "", "")
    table.add_row("cut by the border", "", *(f"{100 * s['cut_by_the_border']:.0f} %" for s in (made, real)), "", "")
    table.caption = "size: square root of the area over that of the picture's"
    return table


def write_sheet(path: Path, scenes: Sequence[Scene], classes: ClassList, count: int = SHEET_LAYOUTS) -> None:
    """Layouts spread evenly over the list, with a legend."""
    chosen = [scenes[i] for i in np.unique(np.linspace(0, len(scenes) - 1, min(count, len(scenes))).astype(int))]
    pictures = [layout_image(s, CELL / max(s.width, s.height), classes=classes, labels=False) for s in chosen]
    columns = min(COLUMNS, len(pictures))
    present = {name for scene in chosen for name in scene.categories()}
    strip = legend([n for n in classes if n in present], max(3 * CELL, columns * (CELL + 4)), classes=classes)
    buffer = io.BytesIO()
    contact_sheet(pictures, columns, footer=strip).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _open(data: str | Path, out: str | Path, split: str, n: int) -> PictureSet:
    pictures = in_memory(read_set(data))
    check_crowded(pictures.split(split), where=data)
    check_memory(n * 20_000.0, f"a list of {n:,} layouts", where="--n", fix="ask for fewer layouts")
    check_out(out, pictures.root, around=True)
    return pictures
