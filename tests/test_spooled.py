"""Labels that lie in a file: the same in any order, for other processes too, and gone with the sequence."""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ccdiff_cli import spooled
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.spooled import spool

ROOT = Path(__file__).parents[1]


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


def test_a_file_with_a_name_goes_with_the_last_that_reads_it(folder, monkeypatch):
    monkeypatch.setattr(spooled.os.path, "isdir", lambda path: False)  # a system without /proc
    found = letters("ant bee")
    other, part = pickle.loads(pickle.dumps(found)), found.tagged("b")  # noqa: S301
    del found
    assert list(part) == ["bee"] and list(other) == ["ant", "bee"] and len(list(folder.iterdir())) == 1
    del part
    gc.collect()
    assert not list(folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the file has a name")
def test_on_linux_the_file_has_no_name_and_other_processes_read_it(folder):
    found = letters("ant bee")
    assert not list(folder.iterdir()) and list(found.tagged("b")) == ["bee"]
    code = "import pickle, sys; print(list(pickle.load(sys.stdin.buffer)))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(found), capture_output=True, cwd=ROOT, check=True)
    assert done.stdout.decode().strip() == "['ant', 'bee']"
    path = found._file.path
    del found
    gc.collect()
    assert not os.path.exists(path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the file has a name")
def test_nothing_stays_of_a_process_that_is_killed(folder):
    code = "import os; from tests.test_spooled import letters; found = letters('ant bee'); print(list(found)); os.kill(os.getpid(), 9)"
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == -9 and not list(folder.iterdir()), done.stderr


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
