"""What a person sees while a command runs: one progress bar a stage with rate and remaining time, then a clear last line.

Bars and notes go to standard error, results to standard output, so that ``--json`` can be piped.  Where standard error is not a
terminal, a stage prints a plain line when it starts, every half minute, and when it ends.

Everything printed passes through :func:`.errors.visible`, whoever prints it: what data says (names, captions, answers of a server) may hold
control characters that rewrite a terminal, marks that turn the direction of writing, or halves of characters that no terminal takes.  Our
own consoles do so when they render, standard output and standard error of everybody else are wrapped by :func:`guarded_streams`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.text import Text

from .errors import CCDiffError, visible

OWN_CODES = re.compile(r"\r|(?:\x1b\[A)+")
"""What the progress bars of libraries begin a write with: back to the start of the line, up a line."""


class _Guarded:
    """A text stream whose writes are made visible; everything else is that of the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def rich_proxied_file(self) -> Any:  # rich writes its own colours: to the stream itself, having made visible what it shows
        return getattr(self._stream, "rich_proxied_file", self._stream)

    def write(self, text: str) -> int:
        codes = OWN_CODES.match(text)
        self._stream.write((codes.group() if codes else "") + visible(text[codes.end() if codes else 0 :]))
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Whatever this process writes to standard output and standard error is made visible; what they cannot spell is escaped, too."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def _guarded(stream: Any) -> Any:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return stream if stream is None or isinstance(stream, _Guarded) else _Guarded(stream)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """The same for a while."""
    before = sys.stdout, sys.stderr
    guard_streams()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Console(Console):
    """A console that shows what it is given: no markup, no emoji codes, no control characters from data."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Errors(_Console):
    """Standard error: where it is closed or full, the work goes on without a word."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except (OSError, ValueError):
            self._buffer.clear()
            self.quiet = True


errors = _Errors(stderr=True)
output = _Console(soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


_watching: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("progress", default=None)


def tell(stage: str, done: int, total: int) -> None:
    """Progress of what takes long now and then, deep below a verb (hashing, parsing): shown where the verb shows any."""
    if (show := _watching.get()) is not None:
        show(stage, done, total)


def remark(text: str) -> None:
    """A line for people from deep below a verb, the same one once: shown where the verb shows progress."""
    if (hear := getattr(_watching.get(), "remark", None)) is not None:
        hear(text)


@contextlib.contextmanager
def progress_bars(*, as_json: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """See :func:`_progress_bars`; :func:`tell` and :func:`remark` are heard, too.

    Args:
        as_json: the result is JSON: nothing is shown where standard error goes into it (``2>&1``).
    """
    with _progress_bars(quiet=as_json and _one_stream()) as show:
        token = _watching.set(show)
        try:
            yield show
        finally:
            _watching.reset(token)


def _one_stream() -> bool:
    """Whether standard error ends in the file or pipe that standard output ends in."""
    try:
        return os.path.samestat(os.fstat(1), os.fstat(2)) and not os.isatty(2)
    except OSError:  # one of them is closed
        return False


@contextlib.contextmanager
def _progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function ``progress(stage, done, total)`` that draws one bar a stage; pictures, files or steps count alike.

    Unless quiet it has three attributes: ``note(stage, text)`` puts a few words beside the stage's name, or on a line of their own where
    nothing was said of the stage for half a minute; ``say(said)`` prints the grave ranks of what was counted so far;
    ``remark(text)`` prints a line, the same one once.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif errors.is_terminal:
        columns = [
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate(),
            TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        ]  # fmt: skip
        with Progress(*columns, console=errors, speed_estimate_period=120) as bars, guarded_streams():
            tasks: dict[str, Any] = {}

            def show(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(visible(stage, lines=False), total=total, completed=0)
                bars.update(tasks[stage], completed=done, total=total)

            def note(stage: str, text: str) -> None:
                if stage in tasks:
                    bars.update(tasks[stage], description=visible(f"{stage} ({text})", lines=False))

            show.note = note  # type: ignore[attr-defined]
            show.say, show.remark = _say, _once()  # type: ignore[attr-defined]
            yield show
    else:
        plain = _plain_lines()
        plain.say, plain.remark = _say, _once()  # type: ignore[attr-defined]
        yield plain


def _say(said: Mapping[str, Any]) -> None:
    for line in ranks(said, grave=True):
        errors.print(line, soft_wrap=True)


def _once() -> Callable[[str], None]:
    said: set[str] = set()

    def show(text: str) -> None:
        if text not in said:
            said.add(text)
            errors.print(visible(text, lines=False), soft_wrap=True)

    return show


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
        errors.print(visible(f"{stage}: {done} of {total}{left}", lines=False))

    def note(stage: str, text: str) -> None:
        now = time.monotonic()
        if now - said.setdefault(stage, now) >= 30:
            said[stage] = now
            errors.print(visible(f"{stage}: {text}", lines=False))

    show.note = note  # type: ignore[attr-defined]
    return show


RANKS = (("notes", "note"), ("cutting", "cutting"), ("skipped", "left out"), ("changes", "warning"))
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
            if (colour or not grave) and count:
                lines.append(Text(visible(f"{title}: {what}: {count:,}{place}", lines=False), colour))
    return lines


def to_stderr(text: str) -> None:
    """Something to know before a command has ended."""
    print(visible(text), file=sys.stderr, flush=True)


def finish(result: dict[str, Any], *, as_json: bool, lines: Sequence[RenderableType]) -> None:
    """The end of a command: its result as JSON, or the lines (and tables) for people (the last one says what to run next).

    Of several processes under torchrun or accelerate launch, the first speaks.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        if as_json:
            print_json(result)
        for line in () if as_json else lines:
            output.print(visible(line, lines=False) if isinstance(line, str) else line)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CCDiffError(
            f"cannot write the result: {error.strerror}", where="standard output", fix="the work is done; the same command shows it again"
        ) from error


def print_json(value: Any) -> None:
    """A value as JSON on standard output: ASCII alone, so no character of it means anything to a terminal, and no ``NaN``."""
    print(json.dumps(_finite(value), indent=1, default=str, allow_nan=False).replace("\x7f", "\\u007f"))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
