"""What a person sees while a command runs: one progress bar a stage with rate and remaining time, then a clear last line.

Bars and notes go to standard error, results to standard output, so that ``--json`` can be piped.  Where standard error is not a
terminal, a stage prints a plain line when it starts, every half minute, and when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

errors = Console(stderr=True, highlight=False)
output = Console(highlight=False, soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


@contextlib.contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function ``progress(stage, done, total)`` that draws one bar a stage; pictures, files or steps count alike.

    On a terminal it has an attribute ``note(stage, text)``, which puts a few words beside the stage's name; unless quiet it has
    ``say(said)``, which prints the grave ranks of what was counted so far.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif errors.is_terminal:
        columns = [
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
            TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        ]  # fmt: skip
        with Progress(*columns, console=errors, speed_estimate_period=120) as bars:
            tasks: dict[str, Any] = {}

            def show(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total, completed=0)
                bars.update(tasks[stage], completed=done, total=total)

            def note(stage: str, text: str) -> None:
                if stage in tasks:
                    bars.update(tasks[stage], description=f"{stage} ({text})")

            show.note = note  # type: ignore[attr-defined]
            show.say = _say  # type: ignore[attr-defined]
            yield show
    else:
        plain = _plain_lines()
        plain.say = _say  # type: ignore[attr-defined]
        yield plain


def _say(said: Mapping[str, Any]) -> None:
    for line in ranks(said, grave=True):
        errors.print(line)


def _plain_lines() -> Callable[[str, int, int], None]:
    began: dict[str, tuple[float, int]] = {}
    said: dict[str, float] = {}

    def show(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, first = began.setdefault(stage, (now, done))
        if now - said.get(stage, -1e9) < 30 and done < total:
            return
        said[stage] = now
        rate = (done - first) / (now - start) if now > start else 0.0
        left = f", {rate:.1f}/s, {(total - done) / rate:.0f} s left" if rate > 0 else ""
        errors.print(f"{stage}: {done} of {total}{left}")

    return show


RANKS = (("notes", "note"), ("cutting", "cutting"), ("skipped", "left out"), ("changes", "changed"))
"""Key of a manifest and how its lines begin: what a person must see stands last."""


def ranks(said: Mapping[str, Any], *, grave: bool = False) -> list[Text]:
    """What was counted on the way, a line each, the gravest last; a line names the first place where there is one.

    Args:
        grave: only what altered labels or pixels, and what was left out because it is broken.
    """
    lines = []
    for key, title in RANKS:
        for what, count in (said.get(key) or {}).items():
            first = next(iter((said.get("places") or {}).get(what, ())), None)
            place = f" (first: {': '.join(filter(None, (first['where'], first['what'])))})" if first else ""
            colour = "bold red" if key == "changes" else "yellow" if key == "skipped" and first else ""
            if colour or not grave:
                lines.append(Text(f"{title}: {what}: {count:,}{place}", colour))
    return lines


def finish(result: dict[str, Any], *, as_json: bool, lines: Sequence[RenderableType]) -> None:
    """The end of a command: its result as JSON, or the lines (and tables) for people (the last one says what to run next).

    Of several processes under torchrun or accelerate launch, the first speaks.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=1, default=str))
        return
    for line in lines:
        output.print(line, markup=False)
