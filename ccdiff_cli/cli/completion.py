"""What a shell completes after Tab: names that the program ships, and folders of the kind that an option takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

MOST_LOOKED_AT = 2000
"""Entries of a folder: a shell waits for the answer."""


def recipes(incomplete: str) -> list[str]:
    from ..recipes import shipped_recipes

    return [*_starting(shipped_recipes(), incomplete), *_files(incomplete, (".yaml", ".yml"))]


def experiments(incomplete: str) -> list[str]:
    from ..recipes import shipped_recipes

    return [*_starting(shipped_recipes(experiments=True), incomplete), *_files(incomplete, (".yaml", ".yml"))]


def formats(incomplete: str) -> list[str]:
    from ..formats import READERS

    return _starting(READERS, incomplete)


def export_formats(incomplete: str) -> list[str]:
    from ..export.writers import WRITERS

    return _starting(WRITERS, incomplete)


def sets(incomplete: str) -> list[str]:
    """Folders with a manifest, and folders on the way to one."""
    return list(_folders(incomplete, "manifest.json"))


def generators(incomplete: str) -> list[str]:
    """Folders with a generator, and the shipped one."""
    return [*_starting(["tiny"], incomplete), *_folders(incomplete, "ccdiff.json")]


COMPLETERS: dict[str, Callable[[str], list[str]]] = {
    "recipes": recipes,
    "experiments": experiments,
    "formats": formats,
    "export formats": export_formats,
    "sets": sets,
    "generators": generators,
}
"""Kind of names -> what can stand in place of the beginning that was typed."""


def _starting(names: object, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]  # type: ignore[attr-defined]


def _entries(incomplete: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    folder, beginning = os.path.split(incomplete)
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as found:
            for _, entry in zip(range(MOST_LOOKED_AT), found, strict=False):
                if entry.name.startswith(beginning) and (beginning or not entry.name.startswith(".")):
                    yield os.path.join(folder, entry.name), entry
    except OSError:
        return


def _files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    return sorted(name for name, entry in _entries(incomplete) if entry.name.endswith(endings))


def _folders(incomplete: str, mark: str) -> Iterator[str]:
    """Folders that hold the file ``mark``; of others, with a slash, those that hold folders."""
    for name, entry in sorted(_entries(incomplete), key=lambda pair: pair[0]):
        try:
            if not entry.is_dir():
                continue
            if (Path(entry.path) / mark).is_file():
                yield name
            elif any(inner.is_dir() for _, inner in zip(range(MOST_LOOKED_AT), os.scandir(entry.path), strict=False)):
                yield f"{name}{os.sep}"
        except OSError:
            continue
