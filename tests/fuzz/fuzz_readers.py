"""Coverage-guided fuzzing of every reader (needs ``pip install atheris``, which has wheels for CPython 3.11 to 3.13 on Linux).

    python -m tests.fuzz.fuzz_readers runs/fuzz -max_total_time=300 -timeout=20 -rss_limit_mb=3000

The first argument is the folder of inputs: it is filled with the sound label files of ``seeds.py``, grows by whatever reaches new code, and
is used again by the next run.  An input is one byte that picks reader and label file, then the bytes of that file; the rest of the set
stays sound.  An input whose reader raises anything but CCDiffError, or makes scenes that cannot be trusted, ends the run and is written as
``crash-...`` to the working folder; ``python -m tests.fuzz.fuzz_readers crash-...`` shows its traceback again.  Other options are those
of libFuzzer.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ccdiff_cli.formats", "ccdiff_cli.files", "defusedxml", "json", "yaml"]):
    from tests.fuzz.seeds import SEEDS, TOKENS, read_damaged


def main() -> None:
    top = Path(tempfile.mkdtemp(prefix="ccdiff-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    targets = [(name, top / name / label) for name, build in SEEDS.items() for label in build(top / name)]
    sound = {path: path.read_bytes() for _, path in targets}

    def once(data: bytes) -> None:
        if not data:
            return
        format, path = targets[data[0] % len(targets)]
        try:
            path.write_bytes(data[1:])
            read_damaged(top / format, format)
        finally:
            path.write_bytes(sound[path])

    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and not Path(arguments[0]).is_file():
        corpus = Path(arguments[0])
        corpus.mkdir(parents=True, exist_ok=True)
        for k, (name, path) in enumerate(targets):
            (corpus / f"seed-{name}-{k}").write_bytes(bytes([k]) + sound[path])
        words = top / "words.dict"
        words.write_text("".join(f'"{"".join(f"{chr(92)}x{b:02x}" for b in word)}"\n' for word in TOKENS if 0 < len(word) < 64))
        arguments += [f"-dict={words}", "-max_len=4000"]
    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
