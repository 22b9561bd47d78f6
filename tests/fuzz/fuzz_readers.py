"""Coverage-guided fuzzing of every reader (needs the extra ``fuzz``: atheris has wheels for CPython 3.11 to 3.13 on Linux).

    python -m tests.fuzz.fuzz_readers runs/fuzz -max_total_time=300 -timeout=20 -rss_limit_mb=3000
    python -m tests.fuzz.fuzz_readers runs/fuzz dota hrsc -max_total_time=300        only these of TARGETS

The first argument is the folder of inputs: it is filled with the sound files of ``seeds.py``, grows by whatever reaches new code, and is
used again by the next run.  An input is one byte that picks target and file, then the bytes of that file; the rest of the set stays sound.
An input whose reader raises anything but CCDiffError, or makes what cannot be trusted, ends the run and is written as
``runs/fuzz-crash-...``; ``python -m tests.fuzz.fuzz_readers runs/fuzz-crash-...`` shows its traceback again.  Other options are those of
libFuzzer.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

_ROOMS = (
    "formats",
    "files",
    "dataset",
    "stored",
    "generator",
    "layouts.misses",
    "references",
    "synthesis.plan",
    "synthesis.accept",
    "synthesis.finish",
    "synthesis.records",
    "synthesis.verify",
    "export.receipt",
    "pictures",
    "prepare.windows",
    "prepare.merging",
)
_FOLLOWED = [f"ccdiff_cli.{name}" for name in _ROOMS]
with atheris.instrument_imports(include=[*_FOLLOWED, "defusedxml", "json", "yaml", "PIL"]):
    from tests.fuzz.seeds import TARGETS as RAW
    from tests.fuzz.seeds import TOKENS
    from tests.fuzz.stored import STORED

TARGETS = {**RAW, **STORED}


def main() -> None:
    top = Path(tempfile.mkdtemp(prefix="ccdiff-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    targets = [(name, top / name / file) for name, (build, _) in TARGETS.items() for file in build(top / name)]
    sound = {path: path.read_bytes() for _, path in targets}

    words = sys.argv[1:]
    corpus = Path(words.pop(0)) if words and not words[0].startswith("-") and not Path(words[0]).is_file() else None
    wanted = {word for word in words if word in TARGETS} or set(TARGETS)
    arguments = [word for word in words if word not in TARGETS]

    def once(data: bytes) -> None:
        name, path = targets[data[0] % len(targets)] if data else ("", top)
        if name not in wanted:
            return
        try:
            path.write_bytes(data[1:])
            TARGETS[name][1](top / name, path)
        finally:
            path.write_bytes(sound[path])

    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        for k, (name, path) in enumerate(targets):
            if name in wanted:
                (corpus / f"seed-{name}-{k}").write_bytes(bytes([k]) + sound[path])
        dictionary = top / "words.dict"
        dictionary.write_text("".join(f'"{"".join(f"{chr(92)}x{b:02x}" for b in word)}"\n' for word in TOKENS if 0 < len(word) < 64))
        arguments = [str(corpus), f"-artifact_prefix={corpus}-", f"-dict={dictionary}", "-max_len=4000", *arguments]
    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
