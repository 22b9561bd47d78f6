"""Labels that lie in a file: the same in any order, for other processes too, and gone with the sequence."""

import gc
import pickle
import tempfile
from pathlib import Path

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.spooled import spool


def letters(words: str):
    return spool(((word[0], word) for word in words.split()), str.encode, bytes.decode)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_items_come_back_in_any_order(folder):
    words = ["ant", "bee", "ape", "cow", "ass"]
    found = letters(" ".join(words))
    assert list(found) == words and [found[k] for k in (3, 0, -1)] == ["cow", "ant", "ass"] and len(found) == 5
    assert found[1:3] == ("bee", "ape") and found[::-2] == ("ass", "ape", "ant") and next(reversed(found)) == "ass"
    with_a = found.tagged("a")
    assert list(with_a) == ["ant", "ape", "ass"] and with_a[1] == "ape" and not with_a.tagged("b") and "cow" in found
    with pytest.raises(IndexError):
        found[5]


def test_the_file_goes_with_the_last_that_reads_it(folder):
    found = letters("ant bee")
    other, part = pickle.loads(pickle.dumps(found)), found.tagged("b")  # noqa: S301
    del found
    assert list(part) == ["bee"] and list(other) == ["ant", "bee"] and len(list(folder.iterdir())) == 1
    del part
    gc.collect()
    assert not list(folder.iterdir())


def test_what_fails_on_the_way_leaves_nothing(folder, monkeypatch):
    def broken():
        yield "a", "ant"
        raise CCDiffError("the second shard is broken")

    with pytest.raises(CCDiffError, match="second shard"):
        spool(broken(), str.encode, bytes.decode)
    gc.collect()
    assert not list(Path(folder).iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    with pytest.raises(CCDiffError, match="make a temporary file"):
        letters("ant")
