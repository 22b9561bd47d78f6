"""The facts for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..quantities import GSD
from .facts import SIZE_BINS


def tables(facts: dict[str, Any]) -> list[Table]:
    """The facts for a terminal: classes by split, sizes by class, what is suspicious."""
    splits = list(facts["per_split"])
    first = _table(
        f"{facts['kind']} set: {facts['pictures']:,} pictures, {facts['objects']:,} objects", "class", *splits, "all", "difficult"
    )
    for name, c in facts["per_class"].items():
        first.add_row(name, *(f"{c['per_split'][s]:,}" for s in splits), f"{c['objects']:,}", f"{c['difficult']:,}")
    first.add_section()
    parts = facts["per_split"].values()
    first.add_row("objects", *(f"{p['objects']:,}" for p in parts), f"{facts['objects']:,}", f"{sum(p['difficult'] for p in parts):,}")
    first.add_row("pictures", *(f"{p['pictures']:,}" for p in parts), f"{facts['pictures']:,}", "")
    empty = [p["pictures_without_objects"] for p in parts]
    first.add_row("without objects", *(f"{n:,}" for n in empty), f"{sum(empty):,}", "")
    first.add_row("objects per picture", *(f"{p['objects_per_picture']['mean']:.1f}" for p in parts), "", "")

    bins = [name for name, _, _ in SIZE_BINS]
    second = _table("sizes: square root of the OBB's area", "class", *bins, "median")
    for name, c in facts["sizes"]["per_class"].items():
        median = facts["per_class"][name]["median_size"]
        second.add_row(name, *(f"{c[b]:,}" for b in bins), "" if median is None else f"{median:.0f} px")
    second.add_section()
    second.add_row("all", *(f"{facts['sizes']['bins'][b]:,}" for b in bins), "")

    third = _table("suspicious", "what", "count")
    for reason, count in facts["suspicious"]["counts"].items():
        third.add_row(reason, f"{count:,}")
    duplicates = facts["duplicates"]
    third.add_row("alike pictures in different splits (leak)", f"{len(duplicates['across_splits']):,}")
    third.add_row("source pictures in different splits (leak)", f"{len(duplicates['sources_in_two_splits']):,}")
    third.add_row("alike pictures in one split", f"{len(duplicates['within_a_split']):,}")
    third.add_row("pictures that do not decode", f"{len(facts['unreadable']):,}")
    third.add_row("pictures of another size than declared", f"{len(facts['declared_size_wrong']):,}")
    tables = [first, second, third]
    said = {**({"gsd": facts["gsd"]} if facts["gsd"]["pictures"] else {}), **facts["metadata"]}
    if said:
        fourth = _table("what is known of the pictures", "quantity", "pictures", "least", "median", "most")
        for name, g in said.items():
            values = (g[k] if isinstance(g[k], str) else f"{g[k]:g}" for k in ("min", "median", "max"))
            fourth.add_row("metres a pixel (gsd)" if name == GSD else name, f"{g['pictures']:,} of {facts['pictures']:,}", *values)
        tables.append(fourth)
    return tables


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
