"""Damaged, huge and hostile files of our own folders: read, or refused in one message."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats.test_hostile import edits
from tests.fuzz.seeds import TOKENS, damaged
from tests.fuzz.stored import STORED


@pytest.fixture(scope="module")
def sound():
    with tempfile.TemporaryDirectory() as top:
        found = {}
        for name, (build, _) in STORED.items():
            root = Path(top) / name
            found[name] = root, {root / file: b"" for file in build(root)}
            found[name] = root, {path: path.read_bytes() for path in found[name][1]}
        yield found


@pytest.mark.parametrize("kind", sorted(STORED))
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files(sound, kind, data):
    root, files = sound[kind]
    path = data.draw(st.sampled_from(sorted(files)))
    changed = data.draw(st.one_of(edits.map(lambda e: damaged(files[path], e)), st.binary(max_size=200)))
    try:
        path.write_bytes(changed)
        STORED[kind][1](root, path)
    finally:
        path.write_bytes(files[path])


@pytest.mark.parametrize("kind", sorted(STORED))
def test_every_token_in_place_of_many_words(sound, kind):
    root, files = sound[kind]
    for path, text in files.items():
        for k in range(len(TOKENS)):
            for turn in (0.6180339887, 0.7548776662):
                path.write_bytes(damaged(text, [("swap word", (k * turn) % 1, 0, k)]))
                STORED[kind][1](root, path)
        path.write_bytes(text)


DEEP = b'{"images": ' + b"[" * 900 + b"]" * 900 + b"}"
ODD = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"[1]",
    b'"x"',
    b"1e999",
    b"[" * 100_000,
    DEEP,
    b'{"a": 1, "a": 2}',
    b'{"pictures": {"x": NaN}}',
    b"\xff\xfe{",
]


@pytest.mark.parametrize("kind", sorted(STORED))
def test_odd_files(sound, kind):
    root, files = sound[kind]
    for path, text in files.items():
        for odd in ODD:
            path.write_bytes(odd)
            STORED[kind][1](root, path)
        path.write_bytes(text)


@pytest.mark.parametrize("kind", sorted(STORED))
def test_files_that_are_no_files(sound, kind):
    root, files = sound[kind]
    for path, text in files.items():
        path.unlink()
        for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir), (lambda p: os.symlink("/nowhere", p), os.unlink)):
            make(path)
            try:
                STORED[kind][1](root, _Here(text))
            finally:
                remove(path)
        path.write_bytes(text)


class _Here:
    """Stands for a path whose bytes are not looked at."""

    name = ""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_bytes(self) -> bytes:
        return self.data
