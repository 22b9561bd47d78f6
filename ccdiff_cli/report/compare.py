"""What ``compare`` shows: of every set a table of quality and one of trainability, as a page, Markdown and LaTeX.

Notable: published rows stand in tables of their own, for their pictures, detectors and budgets were others; only the order of the methods
can be held against ours, and for that both need the same data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..errors import markdown, visible
from ..scene import ClassList, Scene
from .evaluation import columns, shown_cell, table_rows, tabular
from .figures import gains
from .page import NO_VALUE, hex_colour, labelled, render
from .trainability import METRICS, gain_text, spread_text

Cells = list[str]
LEFT_OUT = ("precision", "recall", "density", "coverage")
"""Columns that the page of ``evaluate`` has, and this one not."""
FLOOR = "floor: pictures drawn from each other's layouts"


def comparison_page(
    results: Mapping[str, Any],
    classes: Mapping[str, ClassList],
    samples: Mapping[str, Sequence[tuple[Scene, Mapping[str, Scene]]]],
) -> str:
    """The page of :func:`ccdiff_cli.compare.compare`.

    Args:
        classes: of every set.
        samples: set -> (real picture, row -> what it drew from that picture's layout).
    """
    sets = []
    for name, said in results["sets"].items():
        shown = samples.get(name, ())
        there = [c for c in classes[name] if any(i.category == c for real, _ in shown for i in real.instances)]
        sets.append(
            {
                "name": name,
                "said": said,
                "sentences": sentences(said),
                "tables": tables_of(said),
                "gains": Markup(gains(_at_equal_steps(said["trainability"]["arms"]))),  # our own SVG; matplotlib escapes the names
                "rows": [row for row in results["methods"] if row in said["rows"]],
                "legend": [(c, hex_colour(c, classes[name])) for c in there],
                "samples": [
                    (labelled(real, classes[name]), {r: labelled(s, classes[name]) for r, s in drawn.items()}) for real, drawn in shown
                ],
            }
        )
    return render("compare.html", r=results, sets=sets, methods=method_rows(results), method_columns=METHOD_COLUMNS)


METHOD_COLUMNS = ("row", "method", "recipe", "pictures seen", "takes", "exact", "licence of the published weights", "differs")


def method_rows(results: Mapping[str, Any]) -> list[Cells]:
    """What every row is."""
    rows = []
    for name, m in results["methods"].items():
        recipe = m["recipe"] + (f", from {m['start']}" if m["start"] else "")
        rows.append([name, m["title"], recipe, f"{m['pictures_seen']:,}", ", ".join(m["takes"]), m["exact"], m["licence"], m["differs"]])
    return rows


def tables_of(said: Mapping[str, Any]) -> list[tuple[str, Cells, list[Cells]]]:
    """(title, head, rows) of a set: quality, trainability, and both as published where the data set is known."""
    quality = said["quality"]
    wanted = [(k, c) for k, c in enumerate(columns(quality)) if not c.title.startswith(LEFT_OUT)]
    head = ["", *(f"{c.title} {c.better}" for _, c in wanted)]
    rows = [
        [FLOOR if role == "floor" else name, *(shown_cell(c, cells[k]) for k, c in wanted)]
        for name, role, cells in table_rows(quality)
        if role != "floor"
        or any(cells[k] for k, c in wanted if c.title.startswith("FID"))  # exchanged labels have no pictures of their own
    ]
    made = [("Quality", head, rows), ("Trainability", *_trainability_table(said["trainability"]))]
    known = said["published"]
    if known is None:
        return made
    made.append(
        (
            f"As published for {known['data_set']} (other pictures, detectors and budgets: not comparable but in their order): quality",
            ["", "CLIP-L ↑", "CLIP-G ↑", "FID ↓", "mAP50 ↑", "mAP50:95 ↑"],
            [[name, *(f"{v:.2f}" for v in values)] for name, values in known["quality"].items()],
        )
    )
    made.append(
        (
            f"As published for {known['data_set']}: trainability",
            ["trained on", *METRICS],
            [[name, *(f"{row[m]:.2f}" for m in METRICS)] for name, row in known["trainability"].items()],
        )
    )
    return made


def _trainability_table(found: Mapping[str, Any]) -> tuple[Cells, list[Cells]]:
    """Arms at equal steps with their gains, and beside them the gain at equal epochs, as published."""
    at = {(row["kind"], row["fraction"]): row for row in found["protocols"]}
    gains_at = {"fair": "gain in mAP, equal steps", "published": "equal epochs (as published)", "longer": "of that, by longer training"}
    shown = [key for key in gains_at if any(row[key] for row in found["protocols"])]
    head = ["trained on", "pictures", *METRICS, *(gains_at[key] for key in shown)]
    rows = []
    for name, arm in found["arms"].items():
        if arm["kind"] == "longer" or (arm["protocol"] == "epochs" and _fair_too(arm, found["arms"])):
            continue
        both = at.get((arm["kind"], arm["fraction"]), {})
        gained = [gain_text(side["gain"]["mAP"]) if (side := both.get(key)) else NO_VALUE for key in shown]
        rows.append([name, f"{arm['pictures']:,}", *(spread_text(arm[m]) for m in METRICS), *gained])
    return head, rows


def _fair_too(arm: Mapping[str, Any], arms: Mapping[str, Any]) -> bool:
    same = (arm["kind"], arm["ratio"], arm["fraction"])
    return any((a["kind"], a["ratio"], a["fraction"]) == same and a["protocol"] == "steps" for a in arms.values())


def _at_equal_steps(arms: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arm for name, arm in arms.items() if arm["protocol"] == "steps"}


def sentences(said: Mapping[str, Any]) -> list[str]:
    """What a set's figures say, plainly: whether the experiment can answer, who gains clear of zero, and the order beside the published."""
    found = said["trainability"]
    lines = [found["yardstick"]["sentence"]]
    fair = [row for row in found["protocols"] if row["fair"]]
    several = len({row["fraction"] for row in fair}) > 1
    rows = {row["kind"] + (f" ({row['fraction']:g} %)" if several else ""): row["fair"]["gain"]["mAP"] for row in fair}
    clear = {name: gain for name, gain in rows.items() if gain.get("interval")}
    for word, some in (
        ("Gain clear of zero", [n for n, g in clear.items() if g["interval"]["low"] > 0]),
        ("Loss clear of zero", [n for n, g in clear.items() if g["interval"]["high"] < 0]),
    ):
        if some:
            lines.append(f"{word}: {', '.join(f'{n} {gain_text(rows[n])}' for n in some)}.")
    if clear and all(g["interval"]["low"] <= 0 <= g["interval"]["high"] for g in clear.values()):
        lines.append("No row's gain or loss is clear of zero.")
    lines += [f"{row} is missing: {why['error']}" for row, why in said["failed"].items()]
    if said["published"] is not None and (order := _order(said["published"]["trainability"], fair)):
        lines.append(order)
    return lines


def _order(published: Mapping[str, Any], fair: Sequence[Mapping[str, Any]]) -> str | None:
    """Our order of the methods by the gain in mAP, at the largest part of the real pictures, and the published one of the same methods."""
    most = max((row["fraction"] for row in fair), default=None)
    gained = {row["kind"]: row["fair"]["gain"]["mAP"]["mean"] for row in fair if row["fraction"] == most}
    both = [name for name, mean in gained.items() if name in published and mean is not None]
    if len(both) < 3:
        return None
    from scipy.stats import kendalltau

    ours, theirs = sorted(both, key=lambda n: -gained[n]), sorted(both, key=lambda n: -published[n]["mAP"])
    tau = kendalltau([gained[n] for n in both], [published[n]["mAP"] for n in both]).statistic
    return f"Order by the gain in mAP: {', '.join(ours)}; as published: {', '.join(theirs)} (Kendall's tau {tau:+.2f})."


def notes(results: Mapping[str, Any]) -> list[str]:
    """Protocol, licences and exactness, as lines."""
    lines = []
    for name, m in results["methods"].items():
        boxes = f"; {m['boxes']}" if m["boxes"] else ""
        lines.append(
            f"{name}: {m['title']}, recipe {m['recipe']}, {m['pictures_seen']:,} pictures seen in training; relative error "
            f"{m['exact']}; published weights: {m['licence']}; differs: {m['differs']}{boxes}"
        )
    for name, said in results["sets"].items():
        q, t = said["quality"]["protocol"], said["trainability"]["protocol"]
        lines.append(f"{name}, quality: {q['real pictures']}; {q['pictures judged by features']} pictures of each row judged by features")
        lines.append(f"{name}, trainability: {t['detector']['kind']}, {t['steps']:,} steps, seeds {t['seeds']}; {t['interval']}")
    return lines


def markdown_tables(results: Mapping[str, Any]) -> str:
    """All tables in Markdown, with what they say and the notes beneath."""
    lines: list[str] = []
    for name, said in results["sets"].items():
        lines += [f"## {markdown(name)}", "", *(f"{markdown(text)}\n" for text in sentences(said))]
        for title, head, rows in tables_of(said):
            lines += [f"**{markdown(title)}**", ""]
            lines += [f"| {' | '.join(markdown(c) for c in head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
            lines += [f"| {' | '.join(markdown(c) for c in row)} |" for row in rows]
            lines.append("")
    return "\n".join([*lines, "## Notes", "", *(f"- {markdown(note)}" for note in notes(results)), ""])


def latex_tables(results: Mapping[str, Any]) -> str:
    """A tabular for every table, to be pasted."""
    lines = [visible(f"% {note}", lines=False) for note in notes(results)]
    for name, said in results["sets"].items():
        for title, head, rows in tables_of(said):
            lines += [visible(f"% {name}: {title}", lines=False), *tabular(head, rows)]
    return "\n".join(lines)
