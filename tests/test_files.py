"""Copies share nothing with what they were made of; links are asked for in one place."""

import os
import re
from pathlib import Path

import pytest

import ccdiff_cli
from ccdiff_cli import files
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import copy_file, link_file


def test_a_copy_changes_with_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"pixels" * 1000)
    copy_file(tmp_path / "a", tmp_path / "below" / "b")
    assert (tmp_path / "below" / "b").read_bytes() == b"pixels" * 1000
    (tmp_path / "below" / "b").write_bytes(b"other")
    assert (tmp_path / "a").read_bytes() == b"pixels" * 1000
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["a", "below", "b"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_copy_is_a_reflink_where_the_file_system_can(tmp_path, monkeypatch, shared):
    asked = []

    def reflink(source, target):
        asked.append((source, target))
        if shared:
            os.write(target, os.pread(source, 100, 0))
        return shared

    monkeypatch.setattr(files, "_reflink", reflink)
    (tmp_path / "a").write_bytes(b"pixels")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"pixels" and len(asked) == 1


def test_a_copy_of_nothing_leaves_nothing(tmp_path):
    with pytest.raises(CCDiffError, match="cannot read the file"):
        copy_file(tmp_path / "nowhere", tmp_path / "b")
    with pytest.raises(CCDiffError, match=r"cannot link the file|cannot read the file"):
        link_file(tmp_path / "nowhere", tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_link_is_the_file_itself_even_of_a_symbolic_one(tmp_path):
    (tmp_path / "a").write_bytes(b"pixels")
    (tmp_path / "s").symlink_to("a")
    assert link_file(tmp_path / "s", tmp_path / "below" / "b")
    assert os.path.samefile(tmp_path / "a", tmp_path / "below" / "b") and not (tmp_path / "below" / "b").is_symlink()


def test_nothing_else_in_the_program_makes_links():
    """Sets, detectors' training sets, references and exports are files of their own: no tool that changes one changes another."""
    made = re.compile(r"os\.(link|symlink)\(|\.(symlink_to|hardlink_to)\(")
    root = Path(ccdiff_cli.__file__).parent
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if made.search(path.read_text(encoding="utf-8"))}
    assert found == {"files.py"}
    called = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "link_file(" in path.read_text(encoding="utf-8")}
    assert called == {"files.py", "export/pictures.py"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_is_no_file_is_never_replaced(tmp_path):
    """To a user who may do all, /dev/null would be a name like any other."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CCDiffError, match="not a plain file"):
            files.write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo() and sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    files.write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").read_text() == "x" and (tmp_path / "pipe").is_fifo(), "the link is replaced, not where it leads"
