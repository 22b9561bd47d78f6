"""Options of a synthesis by the names of their flags, as tests say them."""

from typing import Any

from ccdiff_cli.options import checked_options, nested
from ccdiff_cli.synthesis import SynthesisOptions, WorkOptions, synthesize

PLACES = {
    **{name: ("sampling", name) for name in ("steps", "guidance_scale", "negative_prompt", "scheduler", "published", "precision")},
    **{name: ("sampling", name) for name in ("channels_last", "compile")},
    **{f"filter_{name}": ("filter", name) for name in ("recall", "retries", "detector", "clip", "judges")},
    "filter": ("filter", "mode"),
    "layout_source": ("layouts", "source"),
    "balance": ("layouts", "balance"),
    "misses": ("layouts", "misses"),
    "split": ("layouts", "split"),
}


def options_of(n: int, **given: Any) -> SynthesisOptions:
    values = {("n",): n, **{PLACES.get(name, (name,)): value for name, value in given.items()}}
    return checked_options(SynthesisOptions, nested(values), where="options")


def make_set(checkpoint: Any, layouts: Any, out: Any, n: int, **given: Any) -> dict[str, Any]:
    work = {name: given.pop(name) for name in ("num_processes", "part", "ray") if name in given}
    how = {name: given.pop(name) for name in ("progress", "dry_run", "pipeline") if name in given}
    return synthesize(checkpoint, layouts, out, options_of(n, **given), work=checked_options(WorkOptions, work, where="options"), **how)
