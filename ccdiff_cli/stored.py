"""Reading what this program wrote: types that are checked before a value is used, and errors that name file and key.

Sets and generators are passed from person to person, so nothing in them is believed.  Every kind of file has its typed model beside the
code that writes it (set: ``dataset``, generator: ``generator``, plan and records: ``synthesis``, ...); this module holds what they share.
Keys that a model does not name are kept and not looked at.

NOTE: numbers are strict: a truth value or a text is no number, a number with a fraction no whole one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, TypeAdapter, ValidationError

from .errors import CCDiffError
from .files import parse_json, read_bytes
from .options import problem_of
from .scene import cleaned


class Stored(BaseModel):
    """A JSON object of a file of ours."""

    model_config = ConfigDict(extra="allow", frozen=True)


def _class_name(name: str) -> str:
    if not name or cleaned(name) != name:
        raise ValueError("expected a class name of printable characters and single spaces")
    return name


def _file_name(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected a file name of printable characters")
    return name


def _caption(text: str) -> str:
    if text.isprintable():
        return text
    spaced = " ".join(text.split())
    if any(ord(ch) < 32 or 127 <= ord(ch) < 160 for ch in spaced):
        raise ValueError("expected a text without control characters")
    return spaced if any(ch in text for ch in "\n\r\t\v\f") else text


Text = Annotated[str, Field(strict=True)]
ClassName = Annotated[str, Field(strict=True, max_length=1000), AfterValidator(_class_name)]
FileName = Annotated[str, Field(strict=True, min_length=1, max_length=4000), AfterValidator(_file_name)]
Caption = Annotated[str, Field(strict=True), AfterValidator(_caption)]
Digest = Annotated[str, Field(strict=True), StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
"""A SHA-256."""
Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=10**6)]
"""A side of a picture."""
Coordinate = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e9, le=1e9)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Bit = Literal[0, 1]
"""0 or 1, as COCO writes it, or a truth value."""
Free = dict[str, JsonValue]
"""Anything that JSON can say, of a depth that can be worked with."""


def checked(kind: Any, value: Any, *, where: str | Path, fix: str | None = None) -> Any:
    """``value`` as a ``kind`` (a model, a typed dictionary, any annotation).

    Raises:
        CCDiffError: naming the first key that does not fit, what was found and what was expected.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        problem = problem_of(error)
        raise CCDiffError(f"{f'{problem.key}: ' if problem.key else ''}{problem.what}", where=where, fix=fix) from None


def read_as(kind: Any, path: str | Path, *, fix: str | None = None) -> Any:
    """A JSON file as a ``kind``.

    Raises:
        CCDiffError: see :func:`files.read_json` and :func:`checked`.
    """
    try:
        value = parse_json(read_bytes(path), where=path)
    except CCDiffError as error:
        raise CCDiffError(error.what, where=error.where, fix=error.fix or fix) from error
    return checked(kind, value, where=path, fix=fix)


def read_lines(kind: Any, path: str | Path, *, fix: str | None = None) -> Iterator[Any]:
    """The lines of a file, each a JSON object, as ``kind``; errors name the line."""
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if line:
            where = f"{path}:{number}"
            yield checked(kind, parse_json(line, where=where), where=where, fix=fix)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
