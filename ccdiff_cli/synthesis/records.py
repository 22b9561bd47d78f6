"""What of a plan is made: records of blocks, verdicts of the filter, and the pictures themselves.

Notable: a block counts as made once its record (``records/block-NNNNNN.json``, the hashes of its pictures) is there and the pictures have
these hashes.  Anything less is made again as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ..dataset import IMAGES, MANIFEST, read_manifest
from ..errors import CCDiffError
from ..files import read_json, sha256_file
from ..stored import Count, Digest, FileName, Flag, Number, Seed, Text, checked, read_lines
from .plan import Job, Plan

RECORDS = "records"
VERDICTS = "filter.jsonl"
"""Of a filtered set: the record of every planned picture, one a line."""


def record_path(out: Path, b: int) -> Path:
    """Where the record of block ``b`` lies."""
    return out / RECORDS / f"block-{b:06d}.json"


class _Entry(TypedDict):
    file_name: FileName
    sha256: Digest | None
    attempt: NotRequired[Count]
    seed: NotRequired[Seed]
    scores: NotRequired[list[dict[str, Number]]]
    passed: NotRequired[list[Flag]]
    accepted: NotRequired[Flag]
    dropped: NotRequired[Flag]
    redrawn: NotRequired[Count]
    infrared: NotRequired[Flag]


class _Record(TypedDict):
    plan: Text
    pictures: list[_Entry]
    made_in_batches_of: NotRequired[Count]


def read_record(out: Path, b: int, plan: Plan) -> dict[str, Any] | None:
    """The record of a block of this plan; None where there is none, or a damaged one: the block is made again then."""
    path = record_path(out, b)
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = checked(_Record, read_json(path), where=path)
    except CCDiffError:
        return None
    jobs = plan.block(b)
    names = [entry["file_name"] for entry in record["pictures"]]
    whole = record["plan"] == plan.key and names == [job.scene.file_name for job in jobs]
    return record if whole and all(_fits(e, job, plan) for e, job in zip(record["pictures"], jobs, strict=True)) else None


def _fits(entry: Mapping[str, Any], job: Job, plan: Plan) -> bool:
    """Whether the record of a picture says all that is asked of it."""
    if plan.options["filter"] is None:
        return entry["sha256"] is not None
    count = len(job.scene.instances)
    return (
        all(key in entry for key in ("attempt", "seed", "scores", "passed", "accepted"))
        and len(entry["scores"]) == len(entry["passed"]) == count
        and (entry["sha256"] is None) == bool(entry.get("dropped"))
    )


def known_pictures(out: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """File name -> record of what this plan has already made: from the finished set, and from the records of an unfinished one.

    What is damaged counts as not made.
    """
    found: dict[str, dict[str, Any]] = {}
    if (out / MANIFEST).is_file():
        with contextlib.suppress(CCDiffError):
            manifest = read_manifest(out)
            if manifest.get("plan") == plan.key and plan.options["filter"] is None:
                other = (manifest.get("colours") or {}).get("pictures", {})
                found.update({k: {"file_name": k, "sha256": digest, **other.get(k, {})} for k, digest in manifest["pictures"].items()})
            elif manifest.get("plan") == plan.key and sha256_file(out / VERDICTS) == (manifest.get("filter") or {}).get("verdicts"):
                jobs = {job.scene.file_name: job for job in plan.jobs}
                entries = [e for e in read_verdicts(out) if e["file_name"] in jobs]
                found.update({e["file_name"]: e for e in entries if _fits(e, jobs[e["file_name"]], plan)})
    for b in range(plan.blocks):
        if (record := read_record(out, b, plan)) is not None:
            found.update({entry["file_name"]: entry for entry in record["pictures"]})
    return found


def read_verdicts(out: Path) -> list[dict[str, Any]]:
    """The lines of ``filter.jsonl``.

    Raises:
        CCDiffError: it is missing or broken.
    """
    return list(read_lines(_Entry, out / VERDICTS, fix="run the same `ccdiff synthesize` again: it makes the pictures again"))


def missing_blocks(out: Path, plan: Plan) -> list[int]:
    """The blocks that are still to be made; a block with a missing or altered picture is one of them."""
    known = known_pictures(out, plan)

    def whole(job: Job) -> bool:
        entry, path = known.get(job.scene.file_name), out / IMAGES / job.scene.file_name
        if entry is None:
            return False
        return bool(entry.get("dropped")) or (path.is_file() and sha256_file(path) == entry["sha256"])

    return [b for b in range(plan.blocks) if not all(whole(job) for job in plan.block(b))]
