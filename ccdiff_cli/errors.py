"""The one error type a user sees: a message that says what is wrong, where, and what to do about it.

``cli.main`` turns a :class:`CCDiffError` into its message on standard error and exit code 2, without a traceback.  Anything
else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CCDiffError(Exception):
    """Bad input or a bad environment: file, line or key, what was found, what was expected, the fix.

    Args:
        what: what is wrong, in one sentence, with the offending value.
        where: the file (and line or key) it was found in.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, str(where) if where is not None else None, fix
        text = f"{self.where}: {what}" if self.where else what
        super().__init__(f"{text}\n  fix: {fix}" if fix else text)

    def __reduce__(self):  # survives the trip from a worker process
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(cls: type[CCDiffError], what: str, where: str | None, fix: str | None) -> CCDiffError:
    return cls(what, where=where, fix=fix)


class UnsafeInput(CCDiffError):
    """Input that reaches out of its folder or abuses its format: an error whatever may be left out."""


class EditedSet(UserWarning):
    """A set's labels are not those it was made with."""


class Stopped(Exception):
    """A signal asked to stop: what was made stays, and the same command goes on.  ``code`` is the exit code."""

    code = 128 + 15


@contextmanager
def os_errors(path: str | Path, doing: str) -> Iterator[None]:
    """Turn the operating system's refusals (no space, no permission, not a directory) into a :class:`CCDiffError`."""
    try:
        yield
    except OSError as error:
        fix = {
            28: "free some space, or choose another output folder, then run the same command again: it resumes",
            13: "check the permissions of the folder",
            30: "the file system is read-only: choose another output folder",
            122: "your disk quota is used up: free some space, then run the same command again",
        }.get(error.errno or 0)
        raise CCDiffError(f"cannot {doing}: {error.strerror or error}", where=path, fix=fix) from error


JOINERS = "\u200c\u200d\u00ad"
"""Invisible, but part of how Persian, Indian scripts and emoji are written: shown as they are."""


def said_by(error: BaseException, most: int = 300) -> str:
    """What an error of a library says, on one line of at most so many characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def visible(text: str, *, lines: bool = True) -> str:
    """A text with everything that a terminal would obey or hide written out (``\\x1b``, ``\\u202e``, ``\\udce9``).

    Args:
        lines: whether ends of lines stay; tabs then do, too.
    """
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) or (lines and c in "\n\t") else ascii(c)[1:-1] for c in text)


def markdown(text: Any) -> str:
    """A text that says in Markdown what it says here: no markup, link, HTML or cell of a table comes out of it."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|~&#$!" else c for c in visible(str(text), lines=False))


def markdown_code(text: Any) -> str:
    """A text in a span of code."""
    return f"`{visible(str(text), lines=False).replace('`', chr(39))}`"


def _harmless(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"


class UnreadablePicture(CCDiffError):
    """A picture that exists but does not decode."""
