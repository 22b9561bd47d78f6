"""The chain as a graph: what each stage is made from, its key, its folder, and what was written down when it was done.

    prepare -> train -> synthesize -> export, evaluate, trainability

Notable:

* A stage's identity holds the options that decide its result, as the project file says them, the files that they name, and the keys of the
  stages it needs; its key is the hash of that and names its folder, ``runs/STAGE-KEY``.  So a change makes stale what depends on it, and
  nothing else; what was made before stays where it is.
* A receipt, ``runs/STAGE-KEY.json``, is written last: identity, time taken, and what the folder held.  A stage without one is begun or
  missing, and the same command goes on with it.
* An option of the command line that the file does not say makes a variant of a stage, with a key of its own.  The stages after it go on
  with the variant that was finished last, as a person who has just typed it expects, and say so.
* What a stage reads is keyed as it is: a raw set by the bytes of its files (asked anew where a size or a time changed), a prepared or
  synthetic set whose labels were edited by its new key.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..dataset import MANIFEST, read_set
from ..errors import CCDiffError
from ..files import content_key, is_file, sha256_file, write_json
from ..generator import GENERATOR_FILE, generator_key
from ..stored import Free, Number, Stored, Text, checked, read_as
from .file import Project
from .place import DATA, INPUTS

TYPED = "command line"
"""What the command line said, in a stage's identity."""
RAW = "data.json"
LARGE = 64 << 20
"""Files named by options are hashed up to this size; of larger ones size and time count."""


@dataclass(frozen=True)
class Stage:
    """One step of the chain.

    Attributes:
        sections: of the project file, that decide its result.
        last: the file of its folder that is written last.
        holds: what the folder is: a set of pictures, a generator, or results.
    """

    name: str
    verb: str
    sections: tuple[str, ...]
    last: str
    holds: Literal["set", "generator", "results"]

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages whose folders it reads."""
        return tuple(name for name in INPUTS[self.name].values() if name != DATA)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prepare", "prepare", ("prepare",), MANIFEST, "set"),
        Stage("train", "train", ("train",), GENERATOR_FILE, "generator"),
        Stage("synthesize", "synthesize", ("synthesize", "layouts", "filter"), MANIFEST, "set"),
        Stage("export", "export", ("export",), "", "results"),
        Stage("evaluate", "evaluate", ("evaluate",), "results.json", "results"),
        Stage("trainability", "eval-trainability", ("trainability",), "results.json", "results"),
    )
}
"""In the order in which they are carried out."""


class Receipt(Stored):
    """``runs/STAGE-KEY.json``."""

    format: Literal["ccdiff stage 1"]
    stage: Text
    key: Text
    identity: Free
    holds: Text | None = None
    seconds: Number
    finished: Text


class _Raw(Stored):
    """``runs/data.json``: the last look at the raw set."""

    look: Text
    key: Annotated[str, Field(strict=True, min_length=1)]


@dataclass(frozen=True)
class State:
    """How a stage stands.

    Attributes:
        state: "done", "stale" (done before, and something changed), "begun" (started, not finished) or "missing".
        key: of what the project file asks for now; ``folder``: where that lies, or will lie.
        why: of a stale stage: each change, for people.
        seconds: that it took, of a finished one; ``earlier``: the folder that a stale one left.
        typed: of a finished one: what the command line had said; ``held``: the key of what its folder held.
    """

    stage: Stage
    state: str
    key: str
    folder: Path
    identity: dict[str, Any]
    why: tuple[str, ...] = ()
    seconds: float | None = None
    finished: str | None = None
    earlier: Path | None = None
    typed: tuple[str, ...] = ()
    held: str | None = None

    @functools.cached_property
    def mark(self) -> str:
        """What the stages after it are keyed by: its key, and of a finished set or generator that was edited since, what it is now."""
        now = _holds(self.stage, self.folder) if self.held is not None else None
        return self.key if now == self.held else f"{self.key} edited {now}"


def states_of(project: Project, only: str | None = None) -> dict[str, State]:
    """How every stage of the project stands, in order; up to ``only`` and what it needs where that is given.

    Raises:
        CCDiffError: the raw set is missing; a file that an option names cannot be read.
    """
    wanted = set(STAGES) if only is None else _needed(only)
    receipts = read_receipts(project)
    states: dict[str, State] = {}
    for name, stage in STAGES.items():
        if name in wanted:
            states[name] = _state(project, stage, states, receipts.get(name, []))
    return states


def _needed(name: str) -> set[str]:
    return {name}.union(*(_needed(other) for other in STAGES[name].needs))


def _state(project: Project, stage: Stage, before: Mapping[str, State], receipts: list[Receipt]) -> State:
    identity = identity_of(project, stage, before)
    for receipt in reversed(receipts):
        if _untyped(receipt.identity) == identity and _is_there(stage, folder := folder_of(project, stage, receipt.key)):
            typed = tuple(f"{key.removeprefix('options.')} {_value(value)}" for key, value in receipt.identity.get(TYPED, {}).items())  # type: ignore[union-attr]
            return State(
                stage, "done", receipt.key, folder, receipt.identity, (), receipt.seconds, receipt.finished, typed=typed, held=receipt.holds
            )
    key = content_key(identity)
    folder = folder_of(project, stage, key)
    if folder.is_dir():
        return State(stage, "begun", key, folder, identity)
    if receipts:
        latest = receipts[-1]
        why = tuple(_differences(_untyped(latest.identity), identity)) or ("its folder was removed",)
        earlier = folder_of(project, stage, latest.key)
        return State(stage, "stale", key, folder, identity, why=why, earlier=earlier if earlier.is_dir() else None)
    return State(stage, "missing", key, folder, identity)


def typed_state(project: Project, state: State, typed: Mapping[str, Any]) -> State:
    """The variant of a stage that a command line asks for; the file's own where it says nothing new.

    Args:
        state: of :func:`states_of`.
        typed: dotted option -> value that the file does not say.
    """
    identity = {**_untyped(state.identity), **({TYPED: dict(typed)} if typed else {})}
    key = content_key(identity)
    return State(state.stage, state.state, key, folder_of(project, state.stage, key), identity)


def folder_of(project: Project, stage: Stage, key: str) -> Path:
    """Where the result of a key lies."""
    return project.runs / f"{stage.name}-{key[:8]}"


def _untyped(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key != TYPED}


def identity_of(project: Project, stage: Stage, before: Mapping[str, State]) -> dict[str, Any]:
    """Everything that a stage's result depends on, JSON-able; ``before``: the states of the stages it needs."""
    options = {section: project.deciding(section) for section in stage.sections}
    files = {key: _content(path) for key, path in project.files_named(stage.sections)}
    inputs: dict[str, str] = {}
    if not stage.needs:
        inputs[DATA] = raw_key(project)
    for name in stage.needs:
        inputs[name] = before[name].mark
    return {**options, **({"files": files} if files else {}), "inputs": inputs}


def _holds(stage: Stage, folder: Path) -> str | None:
    if stage.holds == "set":
        return read_set(folder).key()
    return generator_key(folder) if stage.holds == "generator" else None


def _is_there(stage: Stage, folder: Path) -> bool:
    return is_file(folder / stage.last) if stage.last else folder.is_dir()


def _content(path: Path) -> str:
    if path.is_dir():
        texts = sorted(p for p in path.iterdir() if p.suffix == ".txt" and p.is_file())
        return content_key({p.name: sha256_file(p) for p in texts})
    size = path.stat().st_size
    return sha256_file(path) if size <= LARGE else content_key([size, path.stat().st_mtime_ns])


# ---------------------------------------------------------------------------------------------------------------- the raw set


def raw_key(project: Project) -> str:
    """The key of the raw set's files: names and bytes.  They are read again only where a name, size or time changed since the last look."""
    root, memory = project.data_path, project.runs / RAW
    if not root.exists():
        raise CCDiffError("the data set is not there", where=project.path, fix=f"data: {root}: put it there, or name its folder")
    found = sorted(_files_below(root))
    look = content_key([[_spelled(name), status.st_size, status.st_mtime_ns] for name, status in found])
    if is_file(memory):
        try:
            known = read_as(_Raw, memory)
        except CCDiffError:
            known = None
        if known is not None and known.look == look:
            return str(known.key)
    key = content_key([[_spelled(name), sha256_file(root / name if name else root)] for name, _ in found])
    write_json(memory, {"look": look, "key": key})
    return key


def _spelled(name: str) -> str:
    """A file's name, also of an old archive's that is not UTF-8: what ``prepare`` leaves out is no reason to stop here."""
    return name.encode("utf-8", "backslashreplace").decode()


def _files_below(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    if root.is_file():
        yield "", root.stat()
        return
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if path.is_file():
                yield path.relative_to(root).as_posix(), path.stat()


# ---------------------------------------------------------------------------------------------------------------- receipts


@contextmanager
def recorded(project: Project, state: State) -> Iterator[None]:
    """Write the receipt of a stage when the block ends without an error.

    Time of earlier, interrupted tries is not counted, nor that of finding a finished stage done.
    """
    begun, path = time.monotonic(), _receipt_path(state.folder)
    yield
    seconds = time.monotonic() - begun
    if is_file(path):
        with contextlib.suppress(CCDiffError):
            seconds = max(seconds, read_as(Receipt, path).seconds)
    receipt = {
        "format": "ccdiff stage 1",
        "stage": state.stage.name,
        "key": state.key,
        "identity": state.identity,
        "holds": _holds(state.stage, state.folder),
        "seconds": round(seconds, 1),
        "finished": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
    }
    checked(Receipt, receipt, where=state.folder)
    write_json(path, receipt)


def _receipt_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def read_receipts(project: Project) -> dict[str, list[Receipt]]:
    """The receipts of every stage, in the order in which the stages were finished; a damaged one counts as none."""
    found: dict[str, list[Receipt]] = {}
    for path in sorted(project.runs.glob("*-????????.json")) if project.runs.is_dir() else ():
        try:
            receipt = read_as(Receipt, path)
        except CCDiffError:
            continue
        if _is_sound(receipt, path):
            found.setdefault(receipt.stage, []).append(receipt)
    for receipts in found.values():
        receipts.sort(key=lambda r: r.finished)
    return found


def _is_sound(receipt: Receipt, path: Path) -> bool:
    """Whether a receipt is of a stage, its key that of its identity, and its name that of its key."""
    of_itself = receipt.key == content_key(receipt.identity) and path.stem == f"{receipt.stage}-{receipt.key[:8]}"
    return receipt.stage in STAGES and of_itself and isinstance(receipt.identity.get(TYPED, {}), dict)


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Each change between two identities, for people: "prepare.tile was 256, now 128"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif before != now:
        group, _, key = name.partition(".")
        if group == "inputs":
            edited = " edited " in str(now) and " edited " not in str(before)
            yield f"{'the files of the data set' if key == DATA else key} changed" if not edited else f"{key}: its labels were edited"
        elif group == "files":
            yield f"the file of {key} changed"
        else:
            yield f"{name} was {_value(before)}, now {_value(now)}"


def _value(value: Any) -> str:
    return "not given" if value is None else str(value)[:80]
