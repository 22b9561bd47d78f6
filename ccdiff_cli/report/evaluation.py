"""What ``evaluate`` shows: the table (terminal, Markdown, LaTeX) and the page with figures and grids.

Notable: a feature figure's column carries its extractor's name, a CLIP figure's its crops if they are not as published, so figures of
different protocols never share a column; published rows fill only the columns that were measured as they were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.table import Table

from ..errors import markdown, visible
from ..metrics.colours import BANDS
from ..scene import ClassList, Scene
from .figures import FAINT, INK, REAL, STYLE, WIDTH, literal, svg_text
from .page import NO_VALUE, hex_colour, labelled, picture_address, render

GENERATORS = ("#1f6feb", "#c2410c", "#1a7f5a", "#8250df", "#b58900", "#0e7490")
FLOOR = "#c9d1dc"
UP, DOWN = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, the better direction, decimals, and the {"value", "low", "high"} of a row (None: not measured)."""

    title: str
    better: str
    digits: int
    of: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
    published: str = ""


def columns(results: Mapping[str, Any]) -> list[Column]:
    """The columns of these results, in the order of the published table."""
    rows, protocol = results["rows"].values(), results["protocol"]
    made: list[Column] = []
    if protocol["clip"]:
        crops = "" if protocol["crops"] == "hbb" else f" ({protocol['crops'].upper()} crops)"
        made.append(Column(f"CLIP-L{crops}", UP, 2, lambda r: r.get("clip", {}).get("CLIP-L"), "CLIP-L"))
        made.append(Column("CLIP-G", UP, 2, lambda r: r.get("clip", {}).get("CLIP-G"), "CLIP-G"))
    for judge in protocol["extractors"]:
        for name, better, digits in (
            ("FID", DOWN, 2), ("KID", DOWN, 2), ("precision", UP, 3), ("recall", UP, 3), ("density", UP, 3), ("coverage", UP, 3),
        ):  # fmt: skip
            published = "FID" if (name, judge) == ("FID", "inception") else ""
            made.append(Column(f"{name} [{judge}]", better, digits, _feature(judge, name), published))
    for kind in ("hbb", "obb"):
        if any(kind in r.get("yoloscore", {}) for r in rows):
            suffix = "" if kind == "hbb" else " (OBB)"
            made.append(Column(f"mAP50{suffix}", UP, 1, _score(kind, "AP50"), "mAP50" if kind == "hbb" else ""))
            made.append(Column(f"mAP50:95{suffix}", UP, 1, _score(kind, "mAP"), "mAP" if kind == "hbb" else ""))
    return made


def _feature(judge: str, name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any] | None]:
    return lambda row: row.get("features", {}).get(judge, {}).get(name)


def _score(kind: str, name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any] | None]:
    def of(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        summary = row.get("yoloscore", {}).get(kind)
        return None if summary is None else {"value": summary[name], "low": None, "high": None}

    return of


def table_rows(results: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any] | None]]]:
    """(name, role, cells) of every row; after each generator the floor of its own pictures with labels exchanged; last the published."""
    wanted = columns(results)
    listed: list[tuple[str, str, list[Mapping[str, Any] | None]]] = []
    for name, row in results["rows"].items():
        title = f"{name} (ceiling)" if row["role"] == "ceiling" else f"{name} (floor: shuffled layouts)" if row["role"] == "floor" else name
        listed.append((title, row["role"], [c.of(row) for c in wanted]))
        if row["role"] == "generator" and "yoloscore_floor" in row:
            swapped = {"yoloscore": row["yoloscore_floor"]}
            listed.append((f"{name}, labels exchanged (floor)", "floor", [c.of(swapped) for c in wanted]))
    published = results["published"]
    for method, values in (published or {"rows": {}})["rows"].items():
        cells: list[Mapping[str, Any] | None] = [
            {"value": values[c.published], "low": None, "high": None} if c.published in values else None for c in wanted
        ]
        if any(cells):
            listed.append((f"{method} (published)", "published", cells))
    return listed


def shown_cell(column: Column, value: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    if value is None or value["value"] is None:
        return NO_VALUE
    text = f"{value['value']:.{column.digits}f}"
    if interval and value.get("low") is not None:
        text += f" [{value['low']:.{column.digits}f}, {value['high']:.{column.digits}f}]"
    return text


def terminal_tables(results: Mapping[str, Any]) -> list[Table]:
    """The table for a terminal: one for CLIP and layouts, one for each extractor, so that nothing is cut off."""
    wanted, rows = columns(results), table_rows(results)
    groups: dict[str, list[int]] = {}
    for k, column in enumerate(wanted):
        judge = re.search(r"\[(.*)\]", column.title)
        groups.setdefault(judge.group(1) if judge else "text and layout", []).append(k)
    tables = []
    for title, chosen in groups.items():
        table = Table(title=title, title_justify="left", show_edge=False)
        table.add_column("")
        for k in chosen:
            table.add_column(f"{wanted[k].title.split(' [')[0]} {wanted[k].better}", justify="right")
        for name, _, cells in rows:
            if any(cells[k] for k in chosen):
                table.add_row(
                    name, *(shown_cell(wanted[k], cells[k], interval=wanted[k].title.startswith(("FID", "CLIP"))) for k in chosen)
                )
        tables.append(table)
    return tables


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table in Markdown, with the protocol beneath it."""
    wanted = columns(results)
    lines = ["| | " + " | ".join(f"{c.title} {c.better}" for c in wanted) + " |", "|---|" + "---:|" * len(wanted)]
    lines += [
        f"| {markdown(name)} | " + " | ".join(shown_cell(c, v) for c, v in zip(wanted, cells, strict=True)) + " |"
        for name, _, cells in table_rows(results)
    ]
    return "\n".join([*lines, "", *(f"- {markdown(name)}: {markdown(value)}" for name, value in protocol_lines(results)), ""])


def latex_table(results: Mapping[str, Any]) -> str:
    """A tabular of the figures (without intervals), to be pasted."""
    wanted = columns(results)
    head = ["", *(f"{c.title} {c.better}" for c in wanted)]
    rows = [
        [name, *(shown_cell(c, v, interval=False) for c, v in zip(wanted, cells, strict=True))] for name, _, cells in table_rows(results)
    ]
    notes = [visible(f"% {name}: {value}", lines=False) for name, value in protocol_lines(results)]
    return "\n".join([*notes, *tabular(head, rows)])


def tabular(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of LaTeX, the first column to the left, with an empty line behind it."""
    first, *body = (" & ".join(_tex_cell(c) for c in row) + r" \\" for row in (head, *rows))
    return [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\hline", first, r"\hline", *body, r"\hline", r"\end{tabular}", ""]


def _tex_cell(text: str) -> str:
    signs = {"±": r"$\pm$", NO_VALUE: "--", UP: r"$\uparrow$", DOWN: r"$\downarrow$"}
    return "".join(signs.get(part, tex(part)) for part in re.split(f"([{''.join(signs)}])", text))


def protocol_lines(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The protocol as (what, how) lines."""
    p = results["protocol"]
    lines = [("real pictures", p["real pictures"])]
    lines += [(f"layouts of {name}", value) for name, value in p["layouts of the synthetic pictures"].items()]
    lines += [(f"features [{name}]", note) for name, note in p["extractors"].items()]
    lines += [
        (
            "feature figures",
            f"{p['pictures judged by features']} pictures of each set; ceiling: {p['ceiling of the feature figures']}; KID {p['KID']}",
        )
    ]
    if p["clip"]:
        lines.append(("CLIP", f"{p['clip']}, cosine x 100; crops by {p['crops'].upper()}"))
    if p["detector"]:
        d = p["detector"]
        lines.append(
            (
                "mAP (YOLOScore)",
                f"{d['kind']} ({d.get('backbone', '')}, {d.get('input_size', '')} px, {d['steps']} steps of {d['batch']}) trained on the "
                "real training pictures; COCO's mAP of its detections against the layouts",
            )
        )
    if p["interval"]:
        lines.append(("intervals", p["interval"]))
    if results["published"]:
        lines += [(f"published {c}", f"not shown: {why}") for c, why in results["published"]["left_out"].items()]
    return lines


def tex(text: str) -> str:
    """A text as LaTeX sets it: a name with a backslash is no command."""
    words = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return re.sub(r"[&%$#_{}\\^~]", lambda found: words.get(found[0], f"\\{found[0]}"), visible(text, lines=False))


def evaluation_page(
    results: Mapping[str, Any],
    classes: ClassList,
    samples: Mapping[str, Sequence[Scene]],
    closest: Mapping[str, Sequence[tuple[Scene, Scene, float]]],
) -> str:
    """The page of :func:`ccdiff_cli.evaluation.evaluate`.

    Args:
        samples: pictures of every set, shown with their labels.
        closest: generator -> (synthetic picture, its nearest training picture, distance).
    """
    wanted = columns(results)
    rows = results["rows"]
    names = [c for c in classes if any(i.category == c for some in samples.values() for s in some for i in s.instances)]
    colours = row_colours(results)
    first = next(iter(results["protocol"]["extractors"]))
    return render(
        "evaluation.html",
        r=results,
        tables=[_part(wanted, table_rows(results), main) for main in (True, False)],
        protocol=protocol_lines(results),
        legend=[(name, hex_colour(name, classes)) for name in names],
        colours=colours,
        distance_figure=Markup(distance_figure(results)),  # our own SVG; matplotlib escapes the names
        layout_figure=Markup(layout_figure(results)) if any("yoloscore" in r for r in rows.values()) else "",
        class_figure=Markup(class_figure(results)) if any("yoloscore" in r for r in rows.values()) else "",
        spectrum_figure=Markup(spectrum_figure(results)),
        nearest_figure=Markup(nearest_figure(results, first)),
        first=first,
        samples={name: [labelled(s, classes) for s in some] for name, some in samples.items()},
        closest={
            name: [
                {"pictures": [picture_address(a), picture_address(b)], "names": [a.file_name, b.file_name], "distance": d}
                for a, b, d in some
            ]
            for name, some in closest.items()
        },
    )  # fmt: skip


def _part(wanted: Sequence[Column], rows: Sequence[tuple[str, str, list[Mapping[str, Any] | None]]], main: bool) -> dict[str, Any]:
    """The published table's columns (CLIP, FID, mAP), or the others: as wide as the page allows."""
    chosen = [k for k, c in enumerate(wanted) if c.title.startswith(("CLIP", "FID", "mAP")) == main]
    cells = [(name, role, [(shown_cell(wanted[k], row[k], interval=False), _interval_text(wanted[k], row[k])) for k in chosen])
             for name, role, row in rows if any(row[k] for k in chosen)]  # fmt: skip
    return {"columns": [wanted[k] for k in chosen], "rows": cells}


def _interval_text(column: Column, value: Mapping[str, Any] | None) -> str:
    if value is None or value.get("low") is None:
        return ""
    return f"{value['low']:.{column.digits}f} … {value['high']:.{column.digits}f}"


def row_colours(results: Mapping[str, Any]) -> dict[str, str]:
    """Name of a set -> its colour in every figure."""
    colours, k = {}, 0
    for name, row in results["rows"].items():
        if row["role"] == "generator":
            colours[name], k = GENERATORS[k % len(GENERATORS)], k + 1
        else:
            colours[name] = REAL if row["role"] == "ceiling" else FLOOR
    return colours


def distance_figure(results: Mapping[str, Any]) -> str:
    """FID and KID of every set with their intervals: one plot for each extractor and measure, on its own scale."""
    colours = row_colours(results)
    judges = list(results["protocol"]["extractors"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, len(judges) * (0.4 * len(colours) + 1.0)), layout="constrained")
        grid = figure.subplots(len(judges), 2, squeeze=False)
        for line, judge in zip(grid, judges, strict=True):
            for axes, measure in zip(line, ("FID", "KID"), strict=True):
                order = [n for n in reversed(colours) if judge in results["rows"][n].get("features", {})]
                for y, name in enumerate(order):
                    value = results["rows"][name]["features"][judge][measure]
                    axes.barh(y, value["value"], color=colours[name], height=0.6)
                    if value["low"] is not None:
                        axes.plot([value["low"], value["high"]], [y, y], color=INK, linewidth=1.2)
                axes.set_yticks(range(len(order)), [literal(n) for n in order])
                axes.tick_params(axis="y", length=0)
                axes.grid(axis="x", color=FAINT)
                axes.set_axisbelow(True)
                axes.set_xlabel(f"{measure}{' x 1000' if measure == 'KID' else ''} [{literal(judge)}], lower is better")
        return svg_text(figure)


def layout_figure(results: Mapping[str, Any]) -> str:
    """mAP50 of the detector on every set, between floor and ceiling."""
    colours = row_colours(results)
    bars = []
    for name, row in results["rows"].items():
        if "yoloscore" in row:
            bars.append((name + (" (ceiling)" if row["role"] == "ceiling" else ""), row["yoloscore"]["hbb"]["AP50"], colours[name]))
        if row["role"] == "generator" and "yoloscore_floor" in row:
            bars.append((f"{name}, labels exchanged (floor)", row["yoloscore_floor"]["hbb"]["AP50"], FLOOR))
    bars = bars[::-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.42 * len(bars) + 0.9))
        axes = figure.add_subplot()
        for y, (_, value, colour) in enumerate(bars):
            if value is not None:
                axes.barh(y, value, height=0.6, color=colour)
                axes.text(value + 1, y, f"{value:.1f}", va="center")
        axes.set_yticks(range(len(bars)), [literal(name) for name, _, _ in bars])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 105)
        axes.grid(axis="x", color=FAINT)
        axes.set_axisbelow(True)
        axes.set_xlabel("mAP50 of the detector trained on real pictures")
        return svg_text(figure)


def class_figure(results: Mapping[str, Any]) -> str:
    """AP50 by class and by size, a bar for every set."""
    colours = row_colours(results)
    sets = [n for n, r in results["rows"].items() if "yoloscore" in r]
    summaries = {n: results["rows"][n]["yoloscore"]["hbb"] for n in sets}
    classes = [c for c in results["classes"] if any(s["per_class"][c]["AP50"] is not None for s in summaries.values())]
    sizes = [z for z in summaries[sets[0]]["per_size"] if any(s["per_size"][z]["AP50"] is not None for s in summaries.values())]
    with matplotlib.rc_context(STYLE | {"font.size": 9}):
        figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
        for axes, labels, key in zip(figure.subplots(2, 1), (classes, sizes), ("per_class", "per_size"), strict=True):
            width = 0.8 / len(sets)
            for k, name in enumerate(sets):
                heights = [summaries[name][key][label]["AP50"] or 0 for label in labels]
                axes.bar(
                    np.arange(len(labels)) - 0.4 + width * (k + 0.5), heights, width=width * 0.92, color=colours[name], label=literal(name)
                )
            axes.set_xticks(range(len(labels)), [literal(label).replace(" ", "\n", 1) for label in labels])
            axes.tick_params(axis="x", length=0)
            axes.set_ylim(0, 102)
            axes.set_ylabel("AP50")
            axes.grid(axis="y", color=FAINT)
            axes.set_axisbelow(True)
        return svg_text(figure)


def spectrum_figure(results: Mapping[str, Any]) -> str:
    """Power of the grey values over spatial frequency, every set."""
    colours = row_colours(results)
    frequency = (np.arange(BANDS) + 0.5) / BANDS / 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8))
        axes = figure.add_subplot()
        for name, row in results["rows"].items():
            axes.plot(frequency, row["colours"]["spectrum"], color=colours[name], linewidth=1.8, label=literal(name))
        axes.set_xlabel("spatial frequency, cycles a pixel")
        axes.set_ylabel("power, dB")
        axes.grid(color=FAINT)
        return svg_text(figure)


def nearest_figure(results: Mapping[str, Any], judge: str) -> str:
    """Share of pictures within a distance of a training picture, unseen real pictures and synthetic ones."""
    colours = row_colours(results)
    share = np.arange(0, 101, 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8))
        axes = figure.add_subplot()
        for name, row in results["rows"].items():
            axes.plot(row["nearest"][judge]["quantiles"], share, color=colours[name], linewidth=1.8, label=literal(name))
        axes.set_xlabel(f"distance to the nearest training picture (1 - cosine, {literal(judge)})")
        axes.set_ylabel("pictures, %")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 101)
        axes.grid(color=FAINT)
        return svg_text(figure)
