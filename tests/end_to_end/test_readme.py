"""What README and the verbs' own help tell a reader to type is what the program accepts.

Every `ccdiff ...` line of a ```bash block is checked against the verbs and options; a block opened with ```bash runnable is run as
a whole, in a folder of its own, by the slow tests.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from ccdiff_cli.cli import app

from .conftest import ENVIRONMENT, Run

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = typer.main.get_command(app)
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def blocks(text: str) -> list[tuple[bool, str]]:
    """(runnable?, text) of every ```bash block."""
    return [("runnable" in info, body) for info, body in re.findall(r"^```bash([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def commands(body: str) -> Iterator[list[str]]:
    """The words of every command of a block: continued lines joined, comments and prompts left out, &&, | and ; taken apart."""
    for line in body.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                while words and "=" in words[0] and not words[0].startswith("-"):
                    words = words[1:]  # an environment variable set for the command
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def arguments_of(words: list[str]) -> list[str] | None:
    """What stands after ``ccdiff``, also behind accelerate launch or a path; None for another program."""
    if words[:2] == ["docker", "build"]:
        return None
    for i, word in enumerate(words):
        if word == "ccdiff" or word.startswith("ccdiff:") or word.endswith("/ccdiff"):
            return words[i + 1 :]
        if word == "-m" and words[i + 1 : i + 2] == ["ccdiff_cli"]:
            return words[i + 2 :]
    return None


def check(arguments: list[str]) -> None:
    """Fail unless the program's own parser accepts the verb, its options and their values' types (nothing is run)."""
    if not arguments or arguments[0] in ("--help", "-h", "--version"):
        return
    verb = COMMAND.get_command(None, arguments[0])  # type: ignore[attr-defined]
    assert verb is not None, f"no such verb: ccdiff {' '.join(arguments)}; there are {', '.join(COMMAND.list_commands(None))}"  # type: ignore[attr-defined]
    if "--help" in arguments or "-h" in arguments:
        return
    try:
        verb.make_context(arguments[0], arguments[1:])
    except Exception as error:  # the parser's own message says which option
        pytest.fail(f"ccdiff {' '.join(arguments)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_shown_is_accepted(document: Path) -> None:
    shown = [words for _, body in blocks(document.read_text(encoding="utf-8")) for words in commands(body)]
    for words in shown:
        if words[0] == "make":
            for target in words[1:]:
                assert "=" in target or target in TARGETS, f"no such target: {' '.join(words)}"
        elif (arguments := arguments_of(words)) is not None:
            check(arguments)


def test_readme_shows_the_two_commands_and_the_chain() -> None:
    shown = [words for _, body in blocks((ROOT / "README.md").read_text(encoding="utf-8")) for words in commands(body)]
    assert ["make", "demo"] in shown and ["make", "test"] in shown
    verbs = {arguments[0] for words in shown if (arguments := arguments_of(words))}
    assert {"prepare", "train", "synthesize", "export", "eval-trainability"} <= verbs


@pytest.mark.parametrize("verb", sorted(COMMAND.list_commands(None)))  # type: ignore[attr-defined]
def test_help_of_every_verb_says_what_it_does_and_how(verb: str) -> None:
    command = COMMAND.get_command(None, verb)  # type: ignore[attr-defined]
    assert command.help
    example = command.epilog.removeprefix("Example: ")
    assert arguments_of(shlex.split(example)) is not None
    check(shlex.split(example)[1:])
    assert all(getattr(parameter, "help", "") for parameter in command.params), verb


def test_help_is_printed_without_the_heavy_libraries(ccdiff: Run) -> None:
    script = "import sys; from ccdiff_cli.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.rstrip().endswith("False")
    version = ccdiff("--version")
    assert version.returncode == 0 and re.fullmatch(r"ccdiff \d+\.\d+\.\d+\S*\n", version.stdout)


def test_this_check_can_fail() -> None:
    for wrong in (
        "prepair X --out Y",
        "prepare X --out Y --tyle 3",
        "synthesize --n many --checkpoint G --layouts D --out S",
        "train --out",
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(shlex.split(wrong))


@pytest.mark.slow
def test_the_runnable_blocks_run(tmp_path: Path) -> None:
    """In a folder beside nothing else, one after the other, as a reader would; `ccdiff` is this environment's."""
    binaries = Path(sys.executable).parent
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "2", "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    for runnable, body in blocks((ROOT / "README.md").read_text(encoding="utf-8")):
        if runnable:
            code, told = run_block(body, tmp_path, environment)
            assert code == 0, f"{body}\n{told}"


def run_block(body: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code of a block of bash, and what it said; whatever ends this, nothing that it started goes on."""
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", body],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, told = process.communicate(timeout=4 * 3600)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, told
