"""How a command that failed ends: one message and the right exit code, whatever was raised.

Bad input is a :class:`CCDiffError`, exit code 2; what the operating system refuses, too little memory and names that are not UTF-8 end the
same way wherever they come up.  A traceback, exit code 1, is left to bugs of ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from .console import print_json
from .errors import CCDiffError, Stopped, visible
from .startup import BROKEN_PIPE, INTERRUPTED, TERMINATED, Terminated, limited

BUG, BAD_INPUT = 1, 2
NO_MEMORY = b"error: too little memory, even for saying where\n  fix: raise the limit (ulimit -v), or end what else needs memory\n"
"""What is left to say where telling of an error needs more memory than there is."""
COUNTS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "MASTER_PORT": 1}
"""What launchers (torchrun, accelerate) say in the environment -> the least that it can be."""
MEMORY_SIGNS = (
    "not enough memory", "cannot allocate memory", "can't allocate memory", "failed to map segment", "can't start new thread", "bad_alloc",
    "out of memory", "unable to allocate", "resource temporarily unavailable", "cannot create thread", "could not create a primitive",
)  # fmt: skip
"""What libraries say, under many kinds of error, when memory (or the address space) runs out."""


HELP = {"--help", "-h", "--help-all", "--version"}


def check_surroundings(arguments: Sequence[str]) -> None:
    """Refuse what would only fail later, or worse be taken for something else.

    Raises:
        CCDiffError: an argument that is not UTF-8; a launcher's variable that is no number; the current folder was removed, in which
            libraries of PyTorch end the program without a word.
    """
    if not HELP.intersection(arguments):
        try:
            os.getcwd()
        except OSError as error:
            raise CCDiffError("the current folder was removed", fix="go to one that is there: cd ~") from error
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _not_utf8(error, "the argument") from None
    numbers = {name: _whole_number(name, os.environ[name], least) for name, least in COUNTS.items() if os.environ.get(name, "") != ""}
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if rank in numbers and size in numbers and numbers[rank] >= numbers[size]:
            raise CCDiffError(
                f"{rank} is {numbers[rank]}, but {size} is {numbers[size]}", where="environment", fix=f"unset {rank} and {size}"
            )


def _whole_number(name: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise CCDiffError(
            f"{name}={text[:40]!r} is not a whole number of at least {least}",
            where="environment",
            fix=f"torchrun and accelerate set it for each process; otherwise: unset {name}",
        )
    return int(text)


def _not_utf8(error: UnicodeEncodeError, what: str) -> CCDiffError:
    """Of text that cannot be spelled: a name that is not UTF-8 on the disk, or a Python that was told to speak ASCII."""
    text = str(error.object)
    shown = text if len(text) <= 300 else f"...{text[max(0, error.start - 60) : error.end + 60]}..."
    if any("\ud800" <= c <= "\udfff" for c in text):
        return CCDiffError(
            f"{what} {shown!r} is not UTF-8", fix="rename it (convmv -r -f latin1 -t utf8 --notest FOLDER), or set LANG=C.UTF-8 if it is"
        )
    return CCDiffError(f"{shown!r} cannot be spelled in {error.encoding}", fix="set PYTHONUTF8=1, or LANG=C.UTF-8, in the environment")


def tell(error: BaseException, *, as_json: bool = False) -> int:
    """Say what went wrong on standard error (with ``--json`` on standard output, too) and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        _say(f"{'stopped by a signal' if code == TERMINATED else 'interrupted'}: run the same command again to go on")
        return code
    if isinstance(error, SystemExit):
        if isinstance(error.__context__, BrokenPipeError):
            return BROKEN_PIPE  # typer hides it
        if error.code == TERMINATED:  # of a training, which has saved its last step
            _say("stopped by a signal: run the same command again to go on")
        return error.code if isinstance(error.code, int) else BUG if error.code else 0
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE  # who read the output has read enough
    if isinstance(error, Stopped):
        _say(visible(str(error), lines=False))
        return error.code
    if type(error).__name__ == "NoArgsIsHelpError":  # typer's; the help has been shown
        return BAD_INPUT
    if type(error).__name__ == "Abort":
        _say("interrupted: nothing was asked for")
        return INTERRUPTED
    found = as_ccdiff_error(error)
    if found is None:
        told = _without_keys("".join(traceback.format_exception(error)).rstrip())
        _say(f"{told}\nthis is a bug of ccdiff: please report it with the lines above")
        return BUG
    found = CCDiffError(shortened(found.what), where=shortened(found.where or "") or None, fix=shortened(found.fix or "") or None)
    if as_json:
        with contextlib.suppress(OSError):
            print_json({"error": found.what, "where": found.where, "fix": found.fix})
    head = f"{found.where}: {found.what}" if found.where else found.what
    _say(f"error: {visible(head, lines=False)}" + (f"\n  fix: {visible(found.fix, lines=False)}" if found.fix else ""))
    return BAD_INPUT


def shortened(text: str, most: int = 3000) -> str:
    """A text of which no more than its ends are shown where an option or a file holds thousands of characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most:,} characters ...] {text[-most // 2 :]}"


def _without_keys(text: str) -> str:
    """A text without the values of environment variables that hold keys."""
    for name, value in os.environ.items():
        if name.upper().endswith(("_KEY", "_TOKEN", "_SECRET", "PASSWORD")) and len(value.strip()) >= 6:
            text = text.replace(value.strip(), "***")
    return text


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def as_ccdiff_error(error: BaseException) -> CCDiffError | None:
    """What a person is told of an error; None of a bug."""
    if isinstance(error, CCDiffError):
        lacking = any(short_of_memory(cause) for cause in _chain(error) if not isinstance(cause, (CCDiffError, ValueError)))
        return _too_little_memory(error, error.where) if lacking else error
    message: Any = getattr(error, "format_message", None)  # click's usage errors, of which typer has its own copy
    if callable(message):
        context: Any = getattr(error, "ctx", None)
        return CCDiffError(str(message()), fix=f"{context.command_path} --help" if context is not None else "ccdiff --help")
    if any(short_of_memory(cause) for cause in _chain(error)):
        return _too_little_memory(error)
    if isinstance(error, UnicodeEncodeError):
        return _not_utf8(error, "the name or text")
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if error.filename is not None else None
        return CCDiffError(
            f"the operating system refuses: {error.strerror}", where=os.fsdecode(name) if isinstance(name, (str, bytes)) else None
        )
    return None


def short_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever kind, says that memory (or the address space) ran out."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    known |= isinstance(error, SystemError) and limited()  # of an extension that forgot to look
    return known or any(sign in str(error).lower() for sign in MEMORY_SIGNS)


def _too_little_memory(error: BaseException, where: str | None = None) -> CCDiffError:
    cause = next(e for e in _chain(error) if not isinstance(e, CCDiffError) and short_of_memory(e))
    what = " ".join(str(cause).split())[:200]
    return CCDiffError(
        f"too little memory{f' ({what})' if what else ''}",
        where=where,
        fix="use smaller batches or fewer processes, or raise the limit (ulimit -v); what was made stays, the same command goes on",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def flush_streams() -> None:
    """What standard output or standard error cannot take is dropped, for Python would say so at its very end, with another exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
