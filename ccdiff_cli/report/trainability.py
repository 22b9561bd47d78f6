"""The tables of a trainability comparison as Markdown and LaTeX: the arms at both protocols, side by side.

Notable: the published protocol trains longer on more pictures.  Beside its gain stands what the real pictures alone gain by as much
training, and what is left of the gain over them: the first is the sum of the other two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import markdown, visible
from .evaluation import tex

NO_VALUE = "\N{EN DASH}"
COLUMNS = ("equal steps", "equal epochs (as published)", "longer training alone", "left of the published gain")
METRICS = ("mAP", "AP50", "AP75")


def protocol_rows(results: Mapping[str, Any], metric: str = "mAP") -> list[tuple[str, list[str]]]:
    """(arm, its gain in each of :data:`COLUMNS` as text) of every way of adding pictures."""
    rows = []
    for row in results["protocols"]:
        gains = [row[k]["gain"][metric] if row[k] else None for k in ("fair", "published", "longer")]
        gains.append(row["over_longer"][metric] if row["over_longer"] else None)
        rows.append((str(row["name"]), [gain_text(g) for g in gains]))
    return rows


def gain_text(gain: Mapping[str, Any] | None) -> str:
    """ "+1.9 [+0.4, +3.3]"; a dash where it was not measured."""
    if gain is None or gain["mean"] is None:
        return NO_VALUE
    within = gain["interval"]
    return _signed(gain["mean"]) + (f" [{_signed(within['low'])}, {_signed(within['high'])}]" if within else "")


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"


def _spread(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return NO_VALUE
    return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")


def _arm_cells(arm: Mapping[str, Any]) -> list[str]:
    gain = arm["gain"]["mAP"] if "gain" in arm else None
    return [f"{arm['pictures']:,}", f"{arm['steps']:,}", *(_spread(arm[m]) for m in METRICS), gain_text(gain) if gain else ""]


def _notes(results: Mapping[str, Any]) -> list[str]:
    p = results["protocol"]
    detector = f"{p['detector']['kind']} ({p['detector'].get('backbone', '')}, {p['detector'].get('input_size', '')} px)"
    return [
        results["yardstick"]["sentence"],
        results["protocols_sentence"],
        f"{detector}, batches of {p['detector']['batch']}, seeds {', '.join(map(str, p['seeds']))}; {p['evaluation']}",
        f"intervals: {p['interval']}",
    ]


def markdown_table(results: Mapping[str, Any]) -> str:
    """Arms, then the gains at both protocols, then what they say."""
    lines = ["| trained on | pictures | steps | mAP | AP50 | AP75 | gain in mAP |", "|---|" + "---:|" * 6]
    lines += [f"| {markdown(name)} | " + " | ".join(_arm_cells(arm)) + " |" for name, arm in results["arms"].items()]
    lines += ["", "| gain in mAP | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {markdown(name)} | " + " | ".join(cells) + " |" for name, cells in protocol_rows(results)]
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in _notes(results)), ""])


def latex_table(results: Mapping[str, Any]) -> str:
    """Two tabulars, to be pasted."""

    def tabular(head: list[str], rows: list[list[str]]) -> list[str]:
        body = [" & ".join(tex(c).replace("±", r"$\pm$").replace(NO_VALUE, "--") for c in row) + r" \\" for row in rows]
        first = " & ".join(tex(c) for c in head) + r" \\"
        return [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\hline", first, r"\hline", *body, r"\hline", r"\end{tabular}", ""]

    arms = [[name, *_arm_cells(arm)] for name, arm in results["arms"].items()]
    both = [[name, *cells] for name, cells in protocol_rows(results)]
    notes = [visible(f"% {note}", lines=False) for note in _notes(results)]
    return "\n".join(
        [
            *notes,
            *tabular(["trained on", "pictures", "steps", *METRICS, "gain in mAP"], arms),
            *tabular(["gain in mAP", *COLUMNS], both),
        ]
    )
