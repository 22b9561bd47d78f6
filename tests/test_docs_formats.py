"""docs/formats.md and the help of `prepare` name what there is, so that they cannot go stale."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ccdiff_cli.cli import app
from ccdiff_cli.export import WRITERS
from ccdiff_cli.export.common import CAPTIONS, DIFFICULT, MASKS, ORIENTATIONS
from ccdiff_cli.formats import READERS
from ccdiff_cli.formats.classes import CLASS_LISTS

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()


def rows(heading):
    """Name -> the other cells of a table's rows."""
    part = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {m.group(1): m.group(2).split("|") for m in re.finditer(r"^\| `([\w-]+)` \|(.*)\|$", part, re.MULTILINE)}


def test_every_reader_in_the_order_of_recognition():
    assert list(rows("Read")) == list(READERS) and all(len(cells) == 4 for cells in rows("Read").values())


def test_every_writer_and_what_it_keeps():
    found = rows("Written")
    assert sorted(found) == sorted(WRITERS)
    words = {CAPTIONS: "captions", MASKS: "masks", DIFFICULT: "difficult", ORIENTATIONS: "OBB"}
    for name, (keeps, _) in found.items():
        writer = WRITERS[name]
        if "everything" in keeps or "as `" in keeps:
            continue
        held = {*writer.holds, *writer.apart}
        assert {what for what, word in words.items() if word in keeps} == held & set(words), name


def test_every_class_list():
    listed = next(line for line in TEXT.splitlines() if line.startswith("Class lists by name"))
    assert re.findall(r"`([a-z0-9]+)`", listed.replace("`--classes NAME`", "")) == list(CLASS_LISTS)


@pytest.mark.parametrize("name", sorted({*READERS, *CLASS_LISTS}))
def test_the_help_names_them(name):
    help_text = CliRunner().invoke(app, ["prepare", "--help"], env={"COLUMNS": "400"}).output
    assert re.search(rf"[ :]{re.escape(name)}[ ,.;]", help_text), help_text
