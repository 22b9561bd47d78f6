"""The plan of a synthetic set: for every picture its layout, caption, references and seed, written before any picture is made.

::

    S/plan.jsonl   one line per picture: k, seed, drawn_from, references, layout (a ``dataset.scene_record``)
    S/plan.json    what the plan was made from (generator, layouts, options), where it is carried out, the hash of plan.jsonl

Notable here:

* Pictures are made in blocks of ``batch_size``: block b holds pictures b * batch_size and up, whoever makes it.  The composition of a
  batch, which floating point rounding may show, is therefore a matter of the plan, not of the number of processes.
* A folder belongs to one plan.  The same command again goes on with it; another one is refused, and told what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from ..dataset import MANIFEST, SceneRecord, scene_from_record, scene_record, versions
from ..errors import CCDiffError
from ..files import content_key, inside, read_json, sha256_file, write_json, write_text
from ..references import Reference, ReferenceBank
from ..scene import ClassList, Scene
from ..stored import ClassName, Count, Digest, Flag, Free, Number, Seed, Stored, Text, checked, read_lines

PLAN = "plan.json"
PLAN_LINES = "plan.jsonl"
FORMAT = "ccdiff plan 2"


class _Options(Stored):
    n: Annotated[int, Field(strict=True, ge=1)]
    seed: Count
    batch_size: Annotated[int, Field(strict=True, ge=1, le=10**6)]
    steps: Annotated[int, Field(strict=True, ge=1, le=10**6)]
    guidance_scale: Number
    negative_prompt: Text
    scheduler: Text | None = None
    precision: Literal["float32", "bfloat16", "float16"]
    channels_last: Flag = False
    compile: Flag = False
    threads: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    format: Literal["png", "jpeg", "webp"]
    shuffle_layouts: Flag = False
    filter: Filter | None = None
    redraws: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None


class Filter(Stored):
    """The rules of a filter."""

    mode: Literal["objects", "pictures"]
    recall: Number
    retries: Count


class _Identity(Stored):
    options: _Options
    generator: Free
    layouts: Free
    shard: _Shard | None = None


class _Shard(Stored):
    first: Count
    of: Count


class Header(Stored):
    """``plan.json``."""

    format: Literal["ccdiff plan 2"]
    key: Text
    identity: _Identity
    lines: Digest
    classes: list[ClassName]
    counts: Free
    layouts: Free
    filter: Free | None = None
    environment: Free


class _References(TypedDict):
    instances: list[Text | None]
    background: Text | None


class _Line(TypedDict):
    k: Count
    seed: Seed
    drawn_from: Count
    references: _References | None
    layout: SceneRecord


@dataclass(frozen=True)
class Job:
    """One picture to make.

    Attributes:
        k: its number.
        scene: its layout and caption, which are also its labels.
        references: keys of the references, ``{"instances": [key or None, ...], "background": key or None}``; None: no bank.
        seed: of its initial noise.
        drawn_from: the number of the picture whose layout, caption and references the pipeline is given: ``k``, but in a floor set.
    """

    k: int
    scene: Scene
    references: Mapping[str, Any] | None
    seed: int
    drawn_from: int


@dataclass(frozen=True)
class Plan:
    """A plan as ``planning.make_plan`` makes it and :func:`read_plan` reads it.

    Attributes:
        header: what stands in ``plan.json``.
        jobs: one per picture, in order.
    """

    header: dict[str, Any]
    jobs: tuple[Job, ...]

    @property
    def key(self) -> str:
        """The key of everything the pictures depend on but the machine."""
        return str(self.header["key"])

    @property
    def options(self) -> dict[str, Any]:
        return self.header["identity"]["options"]

    @property
    def classes(self) -> ClassList:
        return ClassList(tuple(self.header["classes"]))

    @property
    def first(self) -> int:
        """The number of the first picture: of a shard not 0."""
        return first_of(self.header["identity"])

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-len(self.jobs) // self.options["batch_size"])

    def block(self, b: int) -> tuple[Job, ...]:
        """The pictures of one block."""
        size = self.options["batch_size"]
        return self.jobs[b * size : (b + 1) * size]


def first_of(identity: Mapping[str, Any]) -> int:
    """The number of the first picture of what is planned: of a shard not 0."""
    return int((identity.get("shard") or {}).get("first", 0))


def environment(device: str) -> dict[str, Any]:
    """What else the bytes of a picture depend on: the kind of device and the versions of the libraries."""
    return {"device": device, **versions()}


def lines_of(jobs: Sequence[Job]) -> str:
    """``plan.jsonl``."""
    rows = (
        {"k": j.k, "seed": j.seed, "drawn_from": j.drawn_from, "references": j.references, "layout": scene_record(j.scene)} for j in jobs
    )
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_plan(out: str | Path, plan: Plan, machine: Mapping[str, Any]) -> None:
    """Write the plan; ``plan.json`` last."""
    out = Path(out)
    write_text(out / PLAN_LINES, lines_of(plan.jobs))
    write_json(out / PLAN, {**plan.header, "environment": dict(machine)})


def read_plan(out: str | Path) -> Plan:
    """Read the plan of a folder.

    Raises:
        CCDiffError: it is missing, or ``plan.jsonl`` is not the one that belongs to it.
    """
    out = Path(out)
    path, fix = out / PLAN_LINES, "run the same `ccdiff synthesize` again: it makes the plan again"
    header: dict[str, Any] = read_json(out / PLAN)
    checked(Header, header, where=out / PLAN, fix=fix)
    if header["key"] != content_key(header["identity"]):
        raise CCDiffError("key: it is not that of the identity", where=out / PLAN, fix=fix)
    if sha256_file(path) != header["lines"]:
        raise CCDiffError("the plan was changed after it was made", where=path, fix=fix)
    rows = list(read_lines(_Line, path, fix=fix))
    jobs = tuple(Job(row["k"], scene_from_record(row["layout"]), row["references"], row["seed"], row["drawn_from"]) for row in rows)
    if not jobs or len({job.scene.file_name for job in jobs}) != len(jobs):
        raise CCDiffError("expected a picture a line, each with a name of its own", where=path, fix=fix)
    first = first_of(header["identity"])
    for number, job in enumerate(jobs, start=1):
        where = f"{path}:{number}"
        inside(out, job.scene.file_name, where=where)
        if not first <= job.drawn_from < first + len(jobs):
            raise CCDiffError(f"drawn_from: there is no picture {job.drawn_from}", where=where, fix=fix)
        if job.references is not None and len(job.references["instances"]) != len(job.scene.instances):
            raise CCDiffError("references: expected one an object", where=where, fix=fix)
    ClassList(tuple(header["classes"])).check(job.scene for job in jobs)
    return Plan(header, jobs)


def holds_plan(out: str | Path, identity: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    """Whether a folder already holds the plan of this run; False where it holds none yet.

    Raises:
        CCDiffError: it holds another plan (listing what differs), or something else altogether.
    """
    out = Path(out)
    if (out / PLAN).is_file():
        try:
            found = read_json(out / PLAN)
        except CCDiffError:
            if not _is_ours(out, content_key(identity)):
                raise
            return False
    elif _is_ours(out, content_key(identity)):
        return False  # it was lost, and is made again
    else:
        foreign = sorted(p.name for p in out.iterdir() if not p.name.startswith(".") and p.name != PLAN_LINES) if out.is_dir() else []
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise CCDiffError(f"the folder is not empty ({shown}) and holds no plan", where=out, fix="choose another --out folder")
        return False
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CCDiffError(f"not a plan of this version (expected {FORMAT!r})", where=out / PLAN, fix="delete the folder and start again")
    changes = _differences(found.get("identity", {}), dict(identity)) + _differences(found.get("environment", {}), dict(machine))
    if changes:
        raise CCDiffError(
            f"the folder belongs to another run; changed: {'; '.join(changes)}",
            where=out,
            fix="choose another --out folder, delete this one, or go back to what it was started with",
        )
    try:
        read_plan(out)
    except CCDiffError:  # a line was lost or changed: the plan is made again
        return False
    return True


def _is_ours(out: Path, key: str) -> bool:
    """Whether the set in a folder, finished or not, was made by the plan of this key."""
    for path in (out / MANIFEST, *sorted((out / "records").glob("*.json"))[:1]):
        try:
            found = read_json(path)
        except CCDiffError:
            continue
        if isinstance(found, dict) and found.get("plan") == key:
            return True
    return False


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        parts: list[str] = []
        for key in sorted({*before, *now}):
            parts += _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        return parts
    return [] if before == now else [f"{name.removeprefix('options.')} was {before}, now {now}"]


def references_of(bank: ReferenceBank) -> dict[str, Reference]:
    """Every reference of a bank by its key; equal keys mean equal pictures."""
    crops = [reference for name in bank.classes for reference in bank.instances[name]]
    return {reference.key: reference for reference in (*crops, *bank.backgrounds)}
