"""YAML as this program reads it, in one place: recipes, detector settings, ``data.yaml``, class files, and the values of ``--set``.

Notable here:

* What comes out is what JSON could hold, too: mappings, lists, texts, numbers, booleans, null.  Dates and the other kinds of YAML are
  refused where they stand.
* A key that stands twice, a merge (``<<``) and aliases that unfold to more than ``MOST_NODES`` values (the "billion laughs") are
  refused, too.
* Whatever a file does to the parser, one :class:`CCDiffError` with file and line comes out of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import CCDiffError, os_errors

MOST_BYTES = 4 << 20
MOST_NODES = 200_000
MOST_DIGITS = 300
"""A whole number of more digits is no setting, and Python refuses to print one of thousands."""
ODD_VALUES = (ValueError, TypeError, OverflowError, LookupError, AttributeError)
"""What PyYAML raises over a value that is none of its kind; ValueError holds UnicodeError."""


class _Loader(yaml.SafeLoader):
    """Safe, without merges, aliases bounded, keys once; an error knows its line."""

    def construct_document(self, node: yaml.Node) -> Any:
        _unfolded(node, {}, set())
        return super().construct_document(node)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except ODD_VALUES as error:
            kind = node.tag.rpartition(":")[2]
            raise _refused(f"{_short(node.value)!r} is no {kind} ({str(error)[:100]}): put quotes around text", node) from error
        if value is not None and not isinstance(value, (str, bool, int, float, list, dict)):
            raise _refused(f"a {type(value).__name__} is not read here ({_short(node.value)!r}): put quotes around text", node)
        if isinstance(value, int) and value.bit_length() > MOST_DIGITS * 3:
            raise _refused("a number of hundreds of digits", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    raise _refused("merge keys (<<) are not read", key_node)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise _refused("a key is a text, found a list or a mapping", key_node)
                key = self.construct_object(key_node, deep=True)
                if key in lines:
                    raise _refused(f"the key {_short(key_node.value)!r} stands twice, first in line {lines[key]}", key_node)
                lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def _refused(what: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _short(value: Any) -> str:
    return value[:60] if isinstance(value, str) else type(value).__name__


def _unfolded(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values a node holds when every alias is written out."""
    if id(node) in above:
        raise _refused("an alias that holds itself", node)
    if id(node) not in known:
        count = 1
        if not isinstance(node, yaml.ScalarNode):
            above.add(id(node))
            for entry in node.value:
                for part in entry if isinstance(entry, tuple) else (entry,):
                    count += _unfolded(part, known, above)
            above.discard(id(node))
        if count > MOST_NODES:
            raise _refused(f"more than {MOST_NODES} values, aliases written out", node)
        known[id(node)] = count
    return known[id(node)]


def parse_yaml(text: str, *, where: str | Path) -> Any:
    """The value of a YAML text.

    Args:
        where: the file (or option) it comes from.

    Raises:
        CCDiffError: with the line, whatever is wrong with it.
    """
    return _unshared(_parsed(text, where, "YAML", lambda loader: loader.get_single_data()))


def _unshared(value: Any) -> Any:
    """A copy in which what aliases made one object is several: a change of one place changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(v) for key, v in value.items()}
    return [_unshared(v) for v in value] if isinstance(value, list) else value


def compose_yaml(text: str, *, where: str | Path) -> Any:
    """The nodes of a YAML (or JSON) text, which know their lines; None of an empty one.

    Raises:
        CCDiffError: see :func:`parse_yaml`; keys and values are not looked at.
    """
    return _parsed(text, where, "YAML or JSON", lambda loader: loader.get_single_node())


def _parsed(text: str, where: str | Path, kind: str, take: Callable[[_Loader], Any]) -> Any:
    loader = None
    try:
        loader = _Loader(text)
        return take(loader)
    except (yaml.YAMLError, RecursionError, *ODD_VALUES) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f":{mark.line + 1}" if mark is not None else ""
        if isinstance(error, RecursionError):
            place, what = f":{loader.line + 1}" if loader is not None else "", "nested too deeply"
        elif isinstance(error, yaml.reader.ReaderError):
            place = f":{text.count(chr(10), 0, error.position) + 1}"
            what = f"the character {text[error.position : error.position + 1]!a} must not stand in it"
        else:
            what = str(getattr(error, "problem", None) or error) or type(error).__name__
        raise CCDiffError(f"not valid {kind}: {what[:300]}", where=f"{where}{place}") from error


def read_yaml(path: str | Path, what: str) -> Any:
    """The value of a YAML file.

    Args:
        what: what the file is, for the message: "the recipe".

    Raises:
        CCDiffError: it cannot be read, is not UTF-8, not YAML (with the line), or no file of settings by its size.
    """
    path = Path(path)
    with os_errors(path, f"read {what}"), open(path, "rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CCDiffError(f"{what} is larger than {MOST_BYTES >> 20} MiB", where=path, fix="give a file of settings")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CCDiffError(
            f"cannot read {what}: not UTF-8 text (byte {error.start})", where=f"{path}:{line}", fix="save it as UTF-8"
        ) from error
    return parse_yaml(text, where=path)


def seen_from(root: Path, value: Any) -> Any:
    """The same values with paths whole that are seen from ``root``; texts with a separator are paths where something lies there."""
    if isinstance(value, Path):
        return root / value
    if isinstance(value, str) and "/" in value:
        return str(root / value) if os.path.exists(root / value) else value
    if isinstance(value, Mapping):
        return {key: seen_from(root, inner) for key, inner in value.items()}
    return type(value)(seen_from(root, inner) for inner in value) if isinstance(value, (list, tuple)) else value


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of ``--set KEY=VALUE``; the last of a key counts.

    Raises:
        CCDiffError: no KEY=VALUE, an empty part of a dotted key, a value that is not YAML.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not all(part.strip() for part in key.split(".")):
            raise CCDiffError(f"--set {pair[:200]!r}: expected KEY=VALUE", fix="for example --set denoiser.train.steps=2000")
        try:
            values[key] = parse_yaml(text, where=f"--set {pair[:200]!r}")
        except CCDiffError as error:
            raise CCDiffError(f"the value is {error.what}", where=error.where, fix="quote text: --set name='my model'") from error
    return values
